//! Who calls: a running server with tokens, TLS and client certificates, and everybody whom it must not let do what they ask.

mod bounds;
mod producers;
mod queries;
mod tls;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use futures::stream;
use springhouse_featurestore::push::{PushHeader, PushLog};
use springhouse_featurestore::tier::DiskTier;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_materializer::push::Pushes;
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::app::{App, StorePart, WorkerPart, bind, direct};
use springhouse_serving::flight::{FlightServer, RemoteFeatures};
use springhouse_serving::predict::{PredictClient, TextColumn};
use springhouse_serving::security::{Access, CallersFile, Scope, Security, SecurityFiles};
use springhouse_serving::worker::{Contracts, WorkerOptions};
use springhouse_serving::{FeatureServer, FeatureSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::flights::binary;
use crate::project::{DEFINITIONS, TestProject, at};
use crate::push::opened;
use crate::wire::deployed;

/// A running store and worker in this process.
struct Running {
    address: String,
    http: String,
    stop: watch::Sender<bool>,
    ended: JoinHandle<Result<()>>,
}

impl Running {
    async fn start(project: &TestProject, security: Security, socket: Option<PathBuf>) -> Self {
        // One that ended a moment ago may still hold them.
        let disk = opened(&project.folder.path().join("disk"), DiskTier::open).await;
        let features = Arc::new(FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone()));
        features.follow(&()).await.expect("readable");
        let options = WorkerOptions { batch_rows: 100, queue_rows: 1000, ..WorkerOptions::default() };
        let contracts = Arc::new(Contracts::new(direct(&features), options).expect("a session"));
        contracts.follow().await.expect("the package loads");
        let log = opened(&project.folder.path().join("log"), PushLog::open).await;
        let (tier, changing) = features.tier();
        let followed = Box::new(features.followed());
        let pushes = Arc::new(Pushes::start(project.jobs(), log, tier, changing, followed).await.expect("starts"));
        features.push_to(Arc::clone(&pushes) as _);
        let queries = Arc::new(WireQueries::start(project.jobs()).expect("threads"));
        let flight = FlightServer::new(Arc::clone(&features), queries, Some(Arc::clone(&project.clock)));
        let local = "127.0.0.1:0".parse().expect("an address");
        let (listener, http) = (bind(local).await.expect("free"), bind(local).await.expect("free"));
        let address = listener.local_addr().expect("bound").to_string();
        let http_address = http.local_addr().expect("bound").to_string();
        let app = App {
            listeners: vec![listener],
            store: Some(StorePart { features, flight: flight.with_sink(pushes), socket }),
            worker: Some(WorkerPart { contracts, clock: project.clock.clone() }),
            http: Some(http),
            security,
        };
        let (stop, stopping) = watch::channel(false);
        Self { address, http: http_address, stop, ended: tokio::spawn(app.run(stopping)) }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.ended.await.expect("no panic").expect("drained");
    }
}

/// Deletes the push log of a server that has ended: it is let go of a moment after that.
async fn without_log(folder: &Path) {
    let log = folder.join("log");
    for _ in 0..250 {
        if std::fs::remove_dir_all(&log).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_dir_all(&log).expect("nobody writes there any more");
}

/// Makes a token, and gives its file.
fn token(folder: &Path, caller: &str, scopes: &[Scope]) -> PathBuf {
    let make = |file: &mut CallersFile| file.create(caller, scopes, at(0));
    let token = CallersFile::change(&folder.join("callers.toml"), make).expect("written");
    let file = folder.join(format!("{caller}.token"));
    std::fs::write(&file, format!("{}\n", token.reveal())).expect("writable");
    file
}

fn with_tokens(folder: &Path) -> Security {
    Security::read(SecurityFiles { callers: Some(folder.join("callers.toml")), tls: None }).expect("right")
}

fn ann() -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from(vec!["ann"]));
    RecordBatch::try_from_iter([("user_name", users)]).expect("one column")
}

/// A status line.
async fn get_metrics(http: &str, token: Option<&Path>) -> Result<()> {
    let shown = token.map_or_else(String::new, |file| {
        format!("Authorization: Bearer {}\r\n", std::fs::read_to_string(file).expect("there").trim())
    });
    let mut stream = tokio::net::TcpStream::connect(http).await.expect("listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n{shown}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some("401") => Err(Error::unauthenticated(answer)),
        Some("403") => Err(Error::forbidden(answer)),
        _ => Err(Error::internal(answer)),
    }
}

async fn push(store: &RemoteFeatures) -> Result<()> {
    let schema = crate::push::batch(&[]).schema();
    let mut pusher = store.pusher("paid", Arc::clone(&schema)).await?;
    pusher.send(&RecordBatch::new_empty(schema), &PushHeader::default()).await?;
    pusher.ack().await.map(|_| ())
}

/// Changes a producer that nobody knows, which those who may are told.
async fn change_producer(store: &RemoteFeatures) -> Result<()> {
    match store.act("change_producer", r#"{"source": "paid", "change": ["nobody", "retire"]}"#).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        answered => answered.map(|_| ()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_needs_its_scope_and_says_which() {
    let (project, package) = deployed().await;
    let folder = project.folder.path().to_owned();
    let names = Scope::ALL.map(|scope| (scope, token(&folder, scope.as_str(), &[scope])));
    let all = token(&folder, "all", &Scope::ALL);
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let address = format!("http://{}", server.address);
    let access = |file: &PathBuf| Access { token_file: Some(file.clone()), ..Access::default() };
    let metadata = PredictClient::with_access(&address, access(&all)).expect("an address");
    let metadata = metadata.metadata("fraud").await.expect("allowed");
    let text = |value: &str| vec![Some(value.to_owned())];
    let columns: Vec<TextColumn> = vec![("user_name".to_owned(), text("ann")), ("country".to_owned(), text("NL"))];
    let contract = project.state().await.current_contract("fraud").expect("defined").pinned();
    let now = at(60).to_string();

    let callers = names.iter().map(|(scope, file)| (Some(*scope), Some(file))).chain([(None, None)]);
    for (has, file) in callers {
        let access = file.map(access).unwrap_or_default();
        let store = RemoteFeatures::with_access(&address, access.clone()).expect("an address");
        let worker = PredictClient::with_access(&address, access).expect("an address");
        let shown = file.map(PathBuf::as_path);
        let asked: [(&str, Result<()>, &[Scope]); 13] = [
            ("lookup", store.lookup(&contract, ann()).await.map(|_| ()), &[Scope::Read]),
            ("package", store.package(package.digest()).await.map(|_| ()), &[Scope::Read]),
            ("contracts", store.deployments().await.map(|_| ()), &[Scope::Read]),
            ("status", store.act("status", "").await.map(|_| ()), &[Scope::Read, Scope::Operate]),
            ("clock", store.act("clock", &now).await.map(|_| ()), &[Scope::Operate]),
            ("follow", store.act("follow", "").await.map(|_| ()), &[Scope::Operate]),
            ("flush", store.act("flush", "").await.map(|_| ()), &[Scope::Operate]),
            ("push", push(&store).await, &[Scope::Push]),
            (
                "producers",
                store.act("producers", r#"{"source": "paid"}"#).await.map(|_| ()),
                &[Scope::Read, Scope::Push, Scope::Operate],
            ),
            ("change_producer", change_producer(&store).await, &[Scope::Operate]),
            ("infer", worker.infer(&metadata, &columns).await.map(|_| ()), &[Scope::Predict]),
            ("metadata", worker.metadata("fraud").await.map(|_| ()), &[Scope::Predict, Scope::Read, Scope::Operate]),
            ("metrics", get_metrics(&server.http, shown).await, &[Scope::Operate, Scope::Read]),
        ];
        for (what, answer, needed) in asked {
            let allowed = has.is_some_and(|scope| needed.contains(&scope));
            match answer {
                Ok(()) => assert!(allowed, "{what} with {has:?}"),
                Err(error) => {
                    assert!(!allowed, "{what} with {has:?}: {error:?}");
                    let kind = if has.is_some() { ErrorKind::Forbidden } else { ErrorKind::Unauthenticated };
                    assert_eq!(error.kind(), kind, "{what} with {has:?}: {error:?}");
                    // Of a Flight command it is known only when the message has been read, which nobody does for strangers.
                    if has.is_some() {
                        assert!(error.chain().contains(needed[0].as_str()), "{what} with {has:?}: {error:?}");
                    }
                }
            }
        }
    }
    health_needs_nothing_and_reflection_a_caller(&address).await;
    server.stop().await;
}

async fn health_needs_nothing_and_reflection_a_caller(address: &str) {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned()).expect("an address").connect_lazy();
    let asked = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel.clone()).check(asked).await.expect("anybody may ask");
    let nothing = stream::empty::<ServerReflectionRequest>();
    let refused = ServerReflectionClient::new(channel).server_reflection_info(nothing).await;
    assert_eq!(refused.map(|_| ()).expect_err("nobody known").code(), tonic::Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_what_it_opened() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let file = token(&folder, "worker", &[Scope::Read]);
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let access = Access { token_file: Some(file.clone()), ..Access::default() };
    let store = RemoteFeatures::with_access(&format!("http://{}", server.address), access).expect("an address");
    let contract = project.state().await.current_contract("fraud").expect("defined").pinned();
    store.lookup(&contract, ann()).await.expect("known");
    let shown = std::fs::read_to_string(&file).expect("there");
    let id = shown.split('_').nth(1).expect("three parts");
    CallersFile::change(&folder.join("callers.toml"), |callers| callers.revoke(id)).expect("there");
    let mut last = None;
    for _ in 0..100 {
        match store.lookup(&contract, ann()).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => {
                last = Some(error);
                break;
            }
        }
    }
    let error = last.expect("within ten seconds");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
    assert!(!error.chain().contains(shown.trim()));
    // A client that runs takes a new token from its file.
    token(&folder, "worker", &[Scope::Read]);
    for _ in 0..100 {
        if store.lookup(&contract, ann()).await.is_ok() {
            server.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the new token is not known after ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_replaces_nothing_but_a_dead_socket() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let file = folder.join("precious.txt");
    std::fs::write(&file, "precious").expect("writable");
    let failed = async |socket: PathBuf| {
        let server = Running::start(&project, Security::open(), Some(socket)).await;
        server.ended.await.expect("no panic").expect_err("the path is taken")
    };
    assert_eq!(failed(file.clone()).await.kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    let socket = folder.join("store.sock");
    let living = std::os::unix::net::UnixListener::bind(&socket).expect("free");
    assert_eq!(failed(socket.clone()).await.kind(), ErrorKind::Busy);
    drop(living);
    let server = Running::start(&project, Security::open(), Some(socket.clone())).await;
    let store = RemoteFeatures::new(&format!("unix://{}", socket.display())).expect("an address");
    for _ in 0..100 {
        if store.act("status", "").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    store.act("status", "").await.expect("answers");
    server.stop().await;
}

/// Runs the binary on a project.
async fn springhouse(project: &TestProject, arguments: &[&str]) -> Output {
    let folder = project.folder.path().to_owned();
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let run = move || Command::new(binary()).arg("--project").arg(folder).args(arguments).output().expect("runs");
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_tokens_and_refuses_to_serve_openly() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    project.apply(DEFINITIONS).await.expect("valid definitions");
    let settings = |text: &str| {
        let text = format!("store = \"store\"\n{text}");
        std::fs::write(project.folder.path().join("springhouse.toml"), text).expect("writable");
    };
    settings("");
    let error = async |arguments: &[&str]| {
        let output = springhouse(&project, arguments).await;
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let wide = "0.0.0.0:0";
    for arguments in [
        &["serve", "--listen", wide][..],
        &["serve", "--role", "worker", "--listen", wide],
        &["serve", "--listen", "127.0.0.1:0", "--http", wide],
        &["run", "--http", wide],
    ] {
        let said = error(arguments).await;
        assert!(said.contains("--without-authentication"), "{arguments:?}: {said}");
    }
    let said = error(&["token", "create", "--caller", "ann", "--scope", "read"]).await;
    assert!(said.contains("callers ="), "{said}");
    settings("callers = \"callers.toml\"\n");
    let said = error(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert!(said.contains("springhouse token create"), "{said}");
    let made = springhouse(&project, &["token", "create", "--caller", "ann", "--scope", "read"]).await;
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    assert!(made.status.success() && token.starts_with("springhouse_"), "{made:?}");
    let said = error(&["serve", "--listen", wide]).await;
    assert!(said.contains("--without-encryption"), "{said}");
    let listed = springhouse(&project, &["token", "list"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let id = token.split('_').nth(1).expect("three parts");
    assert!(listed.contains(id) && listed.contains("ann") && !listed.contains(&token), "{listed}");
    let day = ["token", "create", "--caller", "bob", "--scope", "read", "--expires", "1 day"];
    assert!(springhouse(&project, &day).await.status.success());
    let listed = springhouse(&project, &["--json", "token", "list"]).await;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert!(listed[0]["expires"].is_null() && listed[1]["expires"].is_string(), "{listed}");
    assert_eq!(listed[1]["expired"], false);
    let said = error(&["token", "create", "--caller", "ann", "--scope", "root"]).await;
    assert!(said.contains("operate"), "{said}");
    assert!(springhouse(&project, &["token", "revoke", id]).await.status.success());
    assert!(error(&["token", "revoke", id]).await.contains("no such token"));
}
