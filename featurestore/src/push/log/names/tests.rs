//! Names are bounded, are kept with what is taken, and leave only where nothing can count twice by it.

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;

use super::*;
use crate::ErrorKind;
use crate::catalog::Signature;
use crate::push::log::Push;
use crate::push::{KnownProducer, ProducerChange, PushHeader, PushHistoryState};

const FEW: Most = Most { all: 5, of_one: 2, of_nobody: 4 };

const DAY: i64 = 24 * 60 * 60 * 1_000_000;

fn opened(folder: &std::path::Path) -> Arc<PushLog> {
    Arc::new(PushLog::open(folder).expect("a log"))
}

/// What a producer sends on a day, without events.
fn said(producer: &str, day: i64, sequence: Option<u64>, watermark: Option<i64>) -> Push {
    Push {
        source: "paid".to_owned(),
        events: RecordBatch::new_empty(Arc::new(Schema::empty())),
        header: PushHeader {
            producer: Some(producer.to_owned()),
            sequence,
            watermark: watermark.map(Timestamp::from_micros),
        },
        at: Timestamp::from_micros(day * DAY),
    }
}

fn names(log: &PushLog) -> Vec<(String, Option<String>)> {
    log.producers(Some("paid")).into_iter().map(|state| (state.producer, state.owner)).collect()
}

fn named(names: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    names.iter().map(|(name, owner)| ((*name).to_owned(), owner.map(ToOwned::to_owned))).collect()
}

#[test]
fn a_name_is_kept_and_becomes_a_callers_with_the_first_push_that_is_taken_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = opened(folder.path());
    let refused = log.admit("paid", "till", Some("ann")).expect("nobody's yet");
    let error = log.admit("paid", "till", Some("bob")).expect_err("it is being used");
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    // Her push is not taken: it is nobody's again.
    drop(refused);
    assert_eq!(names(&log), []);
    let taken = log.admit("paid", "till", Some("bob")).expect("nobody's still");
    log.append(vec![said("till", 1, Some(1), None)]).expect("writable");
    drop(taken);
    assert_eq!(names(&log), named(&[("till", Some("bob"))]));
    let folder_of_log = folder.path();
    drop(log);
    let log = opened(folder_of_log);
    assert_eq!(log.admit("paid", "till", Some("ann")).expect_err("another's").kind(), ErrorKind::Forbidden);
    log.admit("paid", "till", Some("bob")).expect("its own");
}

#[test]
fn one_caller_never_uses_up_the_names_of_a_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = opened(folder.path());
    let admit = |producer: &str, caller: Option<&str>| log.admit_of("paid", producer, caller, FEW);
    let take = |producer: &str, caller: Option<&str>| {
        let in_use = admit(producer, caller)?;
        log.append(vec![said(producer, 1, None, None)])?;
        drop(in_use);
        Ok::<_, Error>(())
    };
    take("a1", Some("ann")).expect("its first");
    // What is under way counts too, and not twice.
    let under_way = admit("a2", Some("ann")).expect("its second");
    let again = admit("a2", Some("ann")).expect("the same");
    let error = admit("a3", Some("ann")).expect_err("no third");
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("caller: ann"), "{error}");
    take("b1", Some("bob")).expect("another has room");
    drop((under_way, again));
    take("a2", Some("ann")).expect("as before");
    take("a1", Some("ann")).expect("it is known");
    admit("a3", Some("ann")).expect_err("no third");
    take("n1", None).expect("of nobody in particular");
    take("n2", None).expect("all five");
    let error = take("n3", None).expect_err("a sixth");
    assert!(error.to_string().contains("as many producers as there may be"), "{error}");
    take("n1", None).expect("it is known");
    // Who takes a name of nobody's has one more.
    take("n1", Some("bob")).expect("nobody's, and it said nothing");
    take("n2", Some("bob")).expect_err("it has two");
}

#[test]
fn a_name_that_leaves_has_nothing_to_say_and_was_silent_for_long() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = opened(folder.path());
    let by = Signature { at: Timestamp::from_micros(0), who: "op".to_owned(), why: String::new() };
    let retire = |producer: &str| log.change("paid", producer, ProducerChange::Retire, by.clone()).expect("known");
    log.append(vec![
        said("nothing", 0, None, None),
        said("numbered", 0, Some(7), None),
        said("numbered and retired", 0, Some(7), Some(5)),
        said("up to now", 0, None, Some(5)),
        said("retired", 0, None, Some(5)),
        said("in use", 0, None, None),
        said("lately", 2, None, None),
    ])
    .expect("writable");
    retire("retired");
    retire("numbered and retired");
    let in_use = log.admit("paid", "in use", Some("ann")).expect("nobody's");
    log.append(vec![said("speaks", 31, None, None)]).expect("writable");
    assert_eq!(log.let_silent_names_go("paid").expect("writable"), 2);
    let left = ["in use", "lately", "numbered", "numbered and retired", "speaks", "up to now"];
    let left = named(&left.map(|name| (name, None)));
    assert_eq!(names(&log), left);
    drop(in_use);
    assert_eq!(log.let_silent_names_go("paid").expect("nothing"), 0, "it was looked at a moment ago");
    drop(log);
    let log = opened(folder.path());
    assert_eq!(names(&log), left);
    // Whatever leaves: nothing that was sent counts again.
    log.append(vec![said("speaks", 90, None, None)]).expect("writable");
    assert_eq!(log.let_silent_names_go("paid").expect("writable"), 2);
    for producer in ["numbered", "numbered and retired"] {
        let sent = log.append(vec![said(producer, 91, Some(7), None)]).expect("writable");
        assert!(sent.0[0].is_none(), "{producer} sent it before");
    }
}

#[test]
fn what_was_pushed_under_before_callers_were_known_is_nobodys_until_it_is_handed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = opened(folder.path());
    for (producer, sequence, watermark) in [("till", Some(7), None), ("clock", None, Some(5)), ("plain", None, None)] {
        let in_use = log.admit("paid", producer, None).expect("nobody is asked");
        log.append(vec![said(producer, 1, sequence, watermark)]).expect("writable");
        drop(in_use);
    }
    for producer in ["till", "clock"] {
        let error = log.admit("paid", producer, Some("mallory")).expect_err("whoever comes first");
        let text = error.to_string();
        assert!(
            error.kind() == ErrorKind::Forbidden && text.contains(&format!("--hand-over {producer} --to")),
            "{text}"
        );
        log.admit("paid", producer, None).expect("where nobody is asked it goes on");
    }
    log.admit("paid", "plain", Some("ann")).expect("it has said nothing that could be made false");
    let by = Signature { at: Timestamp::from_micros(9), who: "op".to_owned(), why: "tokens".to_owned() };
    log.change("paid", "till", ProducerChange::HandOver("ann".to_owned()), by).expect("known");
    log.admit("paid", "till", Some("ann")).expect("hers");
    log.admit("paid", "till", Some("mallory")).expect_err("another's");
}

#[test]
fn the_store_is_told_of_names_that_have_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = opened(folder.path());
    log.append(vec![said("gone", 0, None, None), said("numbered", 0, Some(7), None), said("lately", 20, None, None)])
        .expect("writable");
    let known = |last: Option<u64>| KnownProducer { last, ..KnownProducer::default() };
    let named = ["gone", "lately"].map(|name| (name.to_owned(), known(None)));
    let named = named.into_iter().chain([("numbered".to_owned(), known(Some(7)))]).collect();
    let store = PushHistoryState { producers: [("paid".to_owned(), named)].into(), ..PushHistoryState::default() };
    assert!(log.no_longer(&log.reach(), &store).is_empty());
    log.append(vec![said("speaks", 31, None, None)]).expect("writable");
    assert_eq!(log.let_silent_names_go("paid").expect("writable"), 1);
    let left = log.no_longer(&log.reach(), &store).producers.remove("paid").expect("one has left");
    assert_eq!(left.into_iter().collect::<Vec<_>>(), ["gone"]);
    log.append(vec![said("gone", 32, None, None)]).expect("writable");
    assert!(log.no_longer(&log.reach(), &store).is_empty(), "it is back");
}
