//! The table, the file of callers, and what is never said.

use std::path::{Path, PathBuf};

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::time::{Clock, DrivenClock, Timestamp};
use springhouse_featurestore::training_set::{CommandSpine, TrainingSetCommand};

use super::table::{Need, of_action, of_command, of_path};
use super::*;
use crate::flight::Command;

/// A file of callers in a folder of its own.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn callers(&self) -> PathBuf {
        self.0.path().join("callers.toml")
    }

    fn token(&self, caller: &str, scopes: &[Scope]) -> String {
        let make = |file: &mut CallersFile| file.create(caller, scopes, Timestamp::from_micros(0));
        CallersFile::change(&self.callers(), make).expect("written").reveal().to_owned()
    }
}

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).expect("ascii"))])
}

#[test]
fn every_path_and_command_needs_what_the_table_says() {
    let flight = |method: &str| of_path(&format!("/arrow.flight.protocol.FlightService/{method}"));
    let predict = |method: &str| of_path(&format!("/inference.GRPCInferenceService/{method}"));
    assert_eq!(of_path("/grpc.health.v1.Health/Check"), Need::Nothing);
    assert_eq!(of_path("/grpc.health.v1.Healthy/Check"), Need::Known);
    assert_eq!(of_path("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), Need::Known);
    assert_eq!((predict("ServerLive"), predict("ServerReady")), (Need::Nothing, Need::Nothing));
    assert_eq!(predict("ModelInfer"), Need::OneOf(&[Scope::Predict]));
    assert_eq!(flight("DoPut"), Need::OneOf(&[Scope::Push]));
    assert_eq!((flight("DoGet"), flight("DoExchange"), flight("DoAction")), (Need::Known, Need::Known, Need::Known));
    assert_eq!(of_path("/metrics"), Need::OneOf(&[Scope::Operate, Scope::Read]));
    assert_eq!((of_path("/"), of_path("/else"), of_path("*")), (Need::Known, Need::Known, Need::Known));

    let written = |text: &str| Some(CommandSpine::Written(text.to_owned()));
    let spine = |spine: Option<CommandSpine>| {
        Command::TrainingSet(TrainingSetCommand {
            contract: "fraud".to_owned(),
            spine,
            time: Some("t".to_owned()),
            parts: None,
            part: None,
        })
    };
    assert_eq!(of_command(&spine(None)), [Scope::Read]);
    assert_eq!(of_command(&spine(written("SELECT 1"))), [Scope::Query]);
    assert_eq!(of_command(&spine(written("/etc/passwd"))), [Scope::Query]);
    assert_eq!(of_command(&spine(Some(CommandSpine::defined("landings")))), [Scope::Read]);
    assert_eq!(of_command(&Command::lookup("fraud")), [Scope::Read]);
    assert_eq!(of_command(&Command::push("paid")), [Scope::Push]);
    assert_eq!(of_action("producers"), [Scope::Read, Scope::Push, Scope::Operate]);
    for action in ["clock", "flush", "follow", "change_producer"] {
        assert_eq!(of_action(action), [Scope::Operate]);
    }
}

#[test]
fn a_token_is_known_whole_and_no_error_repeats_it() {
    let folder = Folder::new();
    let token = folder.token("worker 7", &[Scope::Read]);
    let stored = std::fs::read_to_string(folder.callers()).expect("there");
    let secret = token.rsplit('_').next().expect("three parts");
    assert!(secret.len() == 64 && !stored.contains(secret), "{stored}");
    let callers = Callers::read(folder.callers()).expect("right");
    let caller = callers.of_request(&bearer(&token), None).expect("known");
    assert_eq!(caller.name(), "worker 7");
    caller.require(Scope::Read).expect("has it");
    let error = caller.require(Scope::Push).expect_err("lacks it");
    assert!(error.kind() == ErrorKind::Forbidden && error.to_string().contains("push"), "{error}");

    let longer = format!("{token}0");
    let other = token.replace(secret, &"0".repeat(64));
    for wrong in [&token[..token.len() - 1], &longer, &other, "", "springhouse_", "x"] {
        let error = callers.of_request(&bearer(wrong), None).expect_err("not known");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(wrong.len() < 12 || !error.chain().contains(wrong), "{error}");
    }
    let error = callers.of_request(&HeaderMap::new(), None).expect_err("says nothing");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    let made = CallersFile::default().create("a", &[Scope::Read], Timestamp::from_micros(0)).expect("randomness");
    assert_eq!(format!("{made:?}"), "Token");
    assert!(!format!("{callers:?}{caller:?}").contains(secret));
}

#[test]
fn what_is_revoked_stops_at_once_and_what_stays_goes_on() {
    let folder = Folder::new();
    let (kept, gone) = (folder.token("kept", &[Scope::Read]), folder.token("gone", &[Scope::Read]));
    let callers = Callers::read(folder.callers()).expect("right");
    let known = |token: &str| callers.of_request(&bearer(token), None);
    let (kept_caller, gone_caller) = (known(&kept).expect("known"), known(&gone).expect("known"));
    assert!(!callers.reload().expect("as before"));
    let id = gone.split('_').nth(1).expect("three parts").to_owned();
    CallersFile::change(&folder.callers(), |file| file.revoke(&id)).expect("there");
    assert!(callers.reload().expect("right"));
    kept_caller.require(Scope::Read).expect("still known");
    assert_eq!(gone_caller.require(Scope::Read).expect_err("revoked").kind(), ErrorKind::Unauthenticated);
    known(&kept).expect("known");
    known(&gone).expect_err("revoked");

    // A file that is not right is told of once, and changes nothing.
    std::fs::write(folder.callers(), format!("token = \"{kept}\"\n")).expect("writable");
    let error = callers.reload().expect_err("not right").chain();
    assert!(error.contains("line: 1") && !error.contains(&kept), "{error}");
    assert!(!callers.reload().expect("told of before"));
    known(&kept).expect("still known");
    std::fs::remove_file(folder.callers()).expect("there");
    callers.reload().expect_err("missing");
    assert!(!callers.reload().expect("told of before"));
    known(&kept).expect("still known");
}

#[test]
fn a_token_that_expires_is_refused_by_name_from_then_on_and_one_from_before_that_was_kept_is_not() {
    let folder = Folder::new();
    let at = Timestamp::from_micros;
    let for_ever = folder.token("old", &[Scope::Read]);
    let stored = std::fs::read_to_string(folder.callers()).expect("there");
    assert!(!stored.contains("expires"), "as files were before: {stored}");
    let make = |file: &mut CallersFile| file.create_until("gate", &[Scope::Push], at(0), Some(at(1_000_000)));
    let token = CallersFile::change(&folder.callers(), make).expect("written").reveal().to_owned();
    let clock = Arc::new(DrivenClock::still(at(999_999)));
    let callers = Callers::read_at(folder.callers(), Arc::clone(&clock) as Arc<dyn Clock>).expect("right");
    let known = |token: &str| callers.of_request(&bearer(token), None);
    let open = known(&token).expect("a moment is left");
    open.require(Scope::Push).expect("a moment is left");
    clock.set(at(1_000_000));
    for error in [known(&token).expect_err("expired"), open.require(Scope::Push).expect_err("expired")] {
        let said = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(said.contains("expired at: 1970-01-01T00:00:01") && said.contains("caller: gate"), "{said}");
    }
    clock.set(Timestamp::MAX);
    known(&for_ever).expect("until it is revoked").require(Scope::Read).expect("has it");
}

#[test]
fn two_commands_never_change_the_callers_at_once() {
    let folder = Folder::new();
    let error = CallersFile::change(&folder.callers(), |_| {
        CallersFile::change(&folder.callers(), |file| file.revoke("none")).map(|_| ())
    });
    assert_eq!(error.expect_err("busy").kind(), ErrorKind::Busy);
    // Neither that nor an id that is not there leaves anything behind.
    let error = CallersFile::change(&folder.callers(), |file| file.revoke("none")).expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!folder.callers().exists());
    folder.token("a", &[Scope::Read]);
}

#[test]
fn off_loopback_nothing_runs_open_unless_it_is_said_by_name() {
    let open = Security::open();
    let nothing = Waived::default();
    for local in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
        open.admits(local.parse().expect("an address"), nothing).expect("only this host");
    }
    for wide in ["0.0.0.0", "::", "10.0.0.1", "2001:db8::1"] {
        let wide = wide.parse().expect("an address");
        let error = open.admits(wide, nothing).expect_err("others reach it").to_string();
        assert!(error.contains("--without-authentication"), "{error}");
        let half = Waived { authentication: true, ..nothing };
        let error = open.admits(wide, half).expect_err("not encrypted").to_string();
        assert!(error.contains("--without-encryption"), "{error}");
        open.admits(wide, Waived { authentication: true, encryption: true }).expect("said by name");
    }
    let folder = Folder::new();
    folder.token("a", &[Scope::Read]);
    let files = SecurityFiles { callers: Some(folder.callers()), tls: None };
    let known = Security::read(files).expect("right");
    let wide = "0.0.0.0".parse().expect("an address");
    known.admits(wide, nothing).expect_err("tokens would be read on their way");
    known.admits(wide, Waived { encryption: true, ..nothing }).expect("said by name");
    let missing = SecurityFiles { callers: Some(Path::new("/nowhere/callers.toml").to_owned()), tls: None };
    Security::read(missing).expect_err("missing");
}

#[test]
fn every_scope_has_one_name_and_one_place() {
    for scope in Scope::ALL {
        assert_eq!(scope.as_str().parse::<Scope>().expect("a scope"), scope);
        let alone = Scopes::from_iter([scope]);
        for other in Scope::ALL {
            assert_eq!(alone.has(other), scope == other);
            assert!(Scopes::all().has(other));
        }
    }
    assert!("root".parse::<Scope>().expect_err("no scope").to_string().contains("operate"));
}

#[test]
fn a_caller_has_so_many_calls_open_by_all_of_its_tokens_and_others_have_theirs() {
    let folder = Folder::new();
    let tokens = [folder.token("ann", &[Scope::Read]), folder.token("ann", &[Scope::Push])];
    let other = folder.token("bob", &[Scope::Read]);
    let callers = Callers::read(folder.callers()).expect("right");
    let known = |token: &str| callers.of_request(&bearer(token), None).expect("known");
    let mut open = Vec::new();
    let error = loop {
        match known(&tokens[open.len() % 2]).open() {
            Ok(call) => open.push(call.expect("counted")),
            Err(error) => break error,
        }
    };
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("caller: ann"), "{error}");
    assert_eq!(open.len(), 4096);
    known(&other).open().expect("its own");
    // Another token is another of the same caller's.
    let third = folder.token("ann", &[Scope::Query]);
    assert!(callers.reload().expect("right"));
    known(&third).open().expect_err("the same share");
    open.pop();
    known(&third).open().expect("given back");
    assert!(Caller::anybody().open().expect("nobody is asked").is_none());
}
