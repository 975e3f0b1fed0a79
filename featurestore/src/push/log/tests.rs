//! The log keeps what it was given, once, and what producers said.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;

use super::*;
use crate::catalog::Signature;
use crate::push::{
    KnownProducer, ProducerChange, ProducerCorrection, PushHeader, PushHistoryState, PushedEvents, SaidByProducer,
};
use crate::time::Span;

fn push(producer: &str, sequence: u64, values: &[i64], watermark: Option<i64>) -> Push {
    let array: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
    Push {
        source: "paid".to_owned(),
        events: RecordBatch::try_from_iter([("value", array)]).expect("a batch"),
        header: PushHeader {
            producer: Some(producer.to_owned()),
            sequence: Some(sequence),
            watermark: watermark.map(Timestamp::from_micros),
        },
        at: Timestamp::from_micros(sequence.cast_signed()),
    }
}

fn held(log: &PushLog, after: u64) -> Vec<(u64, i64)> {
    let entries = log.entries_after(after).expect("readable");
    entries.iter().map(|e| (e.position, e.events.column(0).as_primitive::<Int64Type>().value(0))).collect()
}

#[test]
fn entries_are_the_same_from_memory_and_from_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    // Two of these are as many as memory holds.
    let many = vec![0; 1 << 20];
    for first in [10_i64, 20, 30, 40] {
        let values = [&[first], many.as_slice()].concat();
        log.append(vec![push("a", first.cast_unsigned(), &values, None)]).expect("writable");
    }
    let all = [(1, 10), (2, 20), (3, 30), (4, 40)];
    for after in 0..5_u8 {
        assert_eq!(held(&log, after.into()), all[usize::from(after)..], "after {after}");
    }
    log.trim(1).expect("writable");
    assert_eq!(held(&log, 0), all[1..]);
    log.trim(3).expect("writable");
    assert_eq!(held(&log, 0), all[3..]);
    log.append(vec![push("a", 50, &[50], None)]).expect("writable");
    assert_eq!(held(&log, 3), [(4, 40), (5, 50)]);
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    assert_eq!(held(&log, 0), [(4, 40), (5, 50)]);
}

#[test]
fn a_piece_of_the_log_is_the_same_from_memory_and_from_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    for value in 1..=6_i64 {
        let push = push("a", value.cast_unsigned(), &[value], None);
        let source = if value == 2 || value == 5 { "seen" } else { "paid" };
        log.append(vec![Push { source: source.to_owned(), ..push }]).expect("writable");
    }
    log.trim(1).expect("writable");
    let check = |log: &PushLog| {
        let piece = |source: &str, stretch: (u64, u64), bytes: u64| {
            let piece = log.first_entries(|of| of == source, stretch, bytes).expect("readable");
            let positions: Vec<u64> = piece.entries.iter().map(|entry| entry.position).collect();
            (positions, piece.first, piece.until, piece.more)
        };
        assert_eq!(piece("paid", (0, 9), 1_000), (vec![3, 4, 6], Some(2), 9, false));
        assert_eq!(piece("paid", (0, 9), 16), (vec![3, 4], Some(2), 4, true));
        assert_eq!(piece("paid", (4, 9), 1), (vec![6], Some(5), 9, false), "at least one");
        assert_eq!(piece("seen", (2, 4), 1_000), (vec![], Some(3), 4, false));
        assert_eq!(piece("seen", (0, 1), 1_000), (vec![], Some(2), 1, false));
        assert_eq!(piece("seen", (6, 9), 1_000), (vec![], None, 9, false));
    };
    check(&log);
    assert_eq!(log.recent_entries_after(3).map(|entries| entries.len()), Some(3));
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    check(&log);
    assert!(log.recent_entries_after(3).is_none(), "they are on the disk alone");
}

#[test]
fn the_order_of_writes_is_made_once_for_all_views() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    let taken = log.append(vec![push("a", 1, &[10, 11], None)]).expect("writable").0;
    let of = |entry: &PushEntry| {
        let events = PushedEvents::of_entries([entry]);
        assert_eq!(events.batches["paid"][0].num_columns(), 3);
        events.batches["paid"][0].columns()[1..].to_vec()
    };
    let held = log.entries_after(0).expect("readable");
    let (first, other) = (of(taken[0].as_ref().expect("new")), of(&held[0]));
    assert!(first.iter().zip(&other).all(|(first, other)| Arc::ptr_eq(first, other)), "they are made anew");
}

#[test]
fn what_was_appended_is_there_once_after_reopening() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    let taken = log.append(vec![push("a", 1, &[10], None), push("b", 1, &[20], Some(5)), push("a", 1, &[10], None)]);
    let positions: Vec<_> = taken.expect("writable").0.iter().map(|e| e.as_ref().map(|e| e.position)).collect();
    assert_eq!(positions, [Some(1), Some(2), None]);
    assert_eq!(PushLog::open(folder.path()).expect_err("in use").kind(), crate::ErrorKind::Busy);
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    assert_eq!((log.last(), held(&log, 0)), (2, vec![(1, 10), (2, 20)]));
    assert!(log.append(vec![push("b", 1, &[20], None)]).expect("writable").0[0].is_none());
    let taken = log.append(vec![push("a", 7, &[30], Some(9)), push("b", 2, &[], Some(3))]);
    let reach = LogReach { last: 3, watermarks: [("paid".to_owned(), Timestamp::from_micros(5))].into() };
    assert_eq!((taken.expect("writable").1, log.reach()), (reach.clone(), reach));
    log.trim(2).expect("writable");
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    assert_eq!((log.last(), held(&log, 0), held(&log, 3)), (3, vec![(3, 30)], vec![]));
    log.trim(3).expect("writable");
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    assert_eq!((log.last(), log.bytes(), log.reach().watermarks.len()), (3, 0, 1));
}

fn mark(log: &PushLog) -> Option<i64> {
    log.reach().watermarks.get("paid").map(|mark| mark.micros())
}

#[test]
fn a_producer_is_retired_and_a_watermark_corrected_and_both_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(4_000))]).expect("writable");
    let at = Timestamp::from_micros;
    let by = |second| Signature { at: at(second), who: "ann".to_owned(), why: "it is gone".to_owned() };
    assert_eq!(
        log.change("paid", "c", ProducerChange::Retire, by(9)).expect_err("unknown").kind(),
        crate::ErrorKind::NotFound
    );
    assert!(log.change("paid", "b", ProducerChange::Watermark(at(4_001)), by(9)).is_err(), "forward");
    let retired = log.change("paid", "a", ProducerChange::Retire, by(9)).expect("known");
    assert_eq!((retired.sequence, retired.watermark, retired.retired), (Some(1), None, Some(at(9))));
    assert_eq!(mark(&log), Some(4_000));
    log.change("paid", "b", ProducerChange::Watermark(at(7)), by(9)).expect("earlier");
    assert_eq!(mark(&log), Some(7));
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    assert_eq!((mark(&log), log.producers(Some("paid"))[0].retired), (Some(7), Some(at(9))));
    assert_eq!(log.producers(Some("paid"))[1].heard, Some(at(2)));
    let corrected = ProducerCorrection::new(ProducerChange::Watermark(at(7)), by(9));
    assert_eq!(log.producers(Some("paid"))[1].corrected, Some(corrected));
    // What it sent is still known, and it counts again when it says how far it is.
    assert!(log.append(vec![push("a", 1, &[10], None)]).expect("writable").0[0].is_none());
    log.append(vec![push("a", 3, &[], Some(6))]).expect("writable");
    assert_eq!((mark(&log), log.producers(Some("paid"))[0].retired), (Some(6), None));
}

#[test]
fn a_producers_name_is_the_callers_who_uses_it_first_until_it_is_handed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Arc::new(PushLog::open(folder.path()).expect("new"));
    let by = |second| Signature { at: Timestamp::from_micros(second), who: "op".to_owned(), why: "moved".to_owned() };
    let first = log.admit("paid", "till", Some("ann")).expect("nobody's yet");
    log.append(vec![push("till", 1, &[10], None)]).expect("writable");
    drop(first);
    log.admit("paid", "till", Some("ann")).expect("its own");
    log.admit("seen", "till", Some("bob")).expect("of another source");
    let error = log.admit("paid", "till", Some("bob")).expect_err("another's");
    assert_eq!(error.kind(), crate::ErrorKind::Forbidden);
    let said = error.to_string();
    assert!(said.contains("belongs to: ann") && said.contains("paid --hand-over till --to bob"), "{said}");
    drop(log);
    let log = Arc::new(PushLog::open(folder.path()).expect("reopened"));
    assert!(log.admit("paid", "till", Some("bob")).is_err());
    let changed = log.change("paid", "till", ProducerChange::HandOver("bob".to_owned()), by(5)).expect("known");
    assert_eq!(changed.owner.as_deref(), Some("bob"));
    drop(log);
    let log = Arc::new(PushLog::open(folder.path()).expect("reopened"));
    log.admit("paid", "till", Some("bob")).expect("its own");
    assert!(log.admit("paid", "till", Some("ann")).is_err());
}

#[test]
fn a_sequence_that_was_used_up_is_set_back_and_another_log_learns_it() {
    let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (log, other) = (PushLog::open(one.path()).expect("new"), PushLog::open(two.path()).expect("new"));
    let by = |second| Signature { at: Timestamp::from_micros(second), who: "op".to_owned(), why: String::new() };
    let burnt = 1_000_000;
    for log in [&log, &other] {
        log.append(vec![push("till", 2, &[10], None), push("till", burnt, &[66], None)]).expect("writable");
        assert!(log.append(vec![push("till", 3, &[30], None)]).expect("writable").0[0].is_none(), "passed over");
    }
    assert!(log.change("paid", "till", ProducerChange::Sequence(burnt + 1), by(5)).is_err(), "forward");
    log.change("paid", "till", ProducerChange::Sequence(2), by(5)).expect("earlier");
    log.change("paid", "till", ProducerChange::Sequence(2), by(6)).expect("the same once more");
    drop(log);
    let log = PushLog::open(one.path()).expect("reopened");
    let said = || SaidByProducer {
        last: Some(2),
        set_back: Some(Timestamp::from_micros(6)),
        owner: Some("ann".to_owned()),
        ..Default::default()
    };
    // What it knows itself is not learned again.
    assert!(log.append(vec![push("till", 3, &[30], None)]).expect("writable").0[0].is_some());
    for _ in 0..2 {
        log.learn([("paid", "till", said())].into_iter(), Timestamp::from_micros(7), false).expect("writable");
        assert!(log.append(vec![push("till", 3, &[30], None)]).expect("writable").0[0].is_none(), "sent before");
        other.learn([("paid", "till", said())].into_iter(), Timestamp::from_micros(7), true).expect("writable");
    }
    assert!(other.append(vec![push("till", 3, &[30], None)]).expect("writable").0[0].is_some());
    assert_eq!(other.producers(Some("paid"))[0].owner.as_deref(), Some("ann"), "learned too");
}

#[test]
fn a_clock_that_was_ahead_makes_no_producer_silent_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    log.leave_out_after(Some(Span::from_micros(10)));
    log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(3))]).expect("writable");
    // The clock is a day ahead, and set right again.
    log.append(vec![push("a", 1_000_000, &[10], Some(9))]).expect("writable");
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    log.leave_out_after(Some(Span::from_micros(10)));
    assert_eq!((mark(&log), log.producers(None).iter().any(|producer| producer.silent)), (Some(3), false));
    log.append(vec![push("b", 4, &[20], Some(4))]).expect("writable");
    assert_eq!((mark(&log), log.producers(None).iter().any(|producer| producer.silent)), (Some(4), false));
}

#[test]
fn a_silent_producer_is_left_out_while_others_speak() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    log.leave_out_after(Some(Span::from_micros(10)));
    log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(8))]).expect("writable");
    log.append(vec![push("b", 11, &[20], Some(9))]).expect("writable");
    assert_eq!(mark(&log), Some(5), "not yet");
    log.append(vec![push("b", 12, &[20], Some(9))]).expect("writable");
    assert_eq!((mark(&log), log.producers(None)[0].silent), (Some(9), true));
    log.append(vec![push("a", 13, &[10], Some(6))]).expect("writable");
    assert_eq!((mark(&log), log.producers(None)[0].silent), (Some(6), false));
}

/// A log in a folder that lasts as long as it.
fn opened() -> (tempfile::TempDir, PushLog) {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    (folder, log)
}

/// What the store tells of a producer that has said how far it is, and that was changed at another log.
fn told(watermark: Option<i64>, changes: &[(ProducerChange, i64)]) -> SaidByProducer {
    let mut said = SaidByProducer { watermark: watermark.map(Timestamp::from_micros), ..SaidByProducer::default() };
    for (change, second) in changes {
        let by = Signature { at: Timestamp::from_micros(*second), who: "op".to_owned(), why: String::new() };
        said.corrected.put(ProducerCorrection::new(change.clone(), by));
    }
    said
}

/// Another process has had the store, and tells this of the producer `a`.
fn learn(log: &PushLog, said: SaidByProducer, second: i64) {
    log.learn([("paid", "a", said)].into_iter(), Timestamp::from_micros(second), true).expect("writable");
}

#[test]
fn who_was_retired_at_another_log_is_retired_here_until_it_speaks_again() {
    let (folder, log) = opened();
    log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(8))]).expect("writable");
    assert_eq!(mark(&log), Some(5));
    let retired = told(None, &[(ProducerChange::Retire, 9)]);
    learn(&log, retired.clone(), 12);
    assert_eq!(mark(&log), Some(8));
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    let known = &log.producers(Some("paid"))[0];
    assert_eq!((known.watermark, known.retired), (None, Some(Timestamp::from_micros(9))));
    assert!(known.corrected.as_ref().is_some_and(|correction| correction.change == ProducerChange::Retire));
    // A new log that never heard of it waits for nobody either, and names it.
    let (_folder, new) = opened();
    learn(&new, retired.clone(), 12);
    assert_eq!((mark(&new), new.producers(None)[0].retired), (None, Some(Timestamp::from_micros(9))));
    // It has spoken to the other log since.
    learn(
        &log,
        SaidByProducer { watermark: Some(Timestamp::from_micros(6)), spoke_again: true, ..retired.clone() },
        20,
    );
    assert_eq!((mark(&log), log.producers(None)[0].retired), (Some(6), None));
    // It spoke to this log after it was retired at another.
    log.append(vec![push("a", 30, &[10], Some(7))]).expect("writable");
    learn(&log, told(None, &[(ProducerChange::Retire, 25)]), 40);
    assert_eq!((mark(&log), log.producers(None)[0].retired), (Some(7), None));
}

#[test]
fn a_watermark_that_was_set_back_at_another_log_is_set_back_here() {
    let (_folder, log) = opened();
    let at = Timestamp::from_micros;
    log.append(vec![push("a", 1, &[10], Some(500))]).expect("writable");
    learn(&log, told(Some(60), &[(ProducerChange::Watermark(at(50)), 9)]), 12);
    assert_eq!(mark(&log), Some(60), "it was set back to 50, and has come to 60 since");
    learn(&log, told(Some(55), &[(ProducerChange::Watermark(at(50)), 9)]), 13);
    assert_eq!(mark(&log), Some(60), "what is known already sets nothing back");
    // What was set back here, and never flushed, is not undone by what the store says.
    let by = Signature { at: at(20), who: "op".to_owned(), why: String::new() };
    log.change("paid", "a", ProducerChange::Watermark(at(30)), by).expect("earlier");
    learn(&log, told(Some(70), &[(ProducerChange::Watermark(at(50)), 9)]), 21);
    assert_eq!(mark(&log), Some(30));
}

#[test]
fn a_producer_that_another_log_heard_of_and_that_is_silent_here_is_left_out() {
    let (_folder, log) = opened();
    log.leave_out_after(Some(Span::from_micros(10)));
    learn(&log, told(Some(5), &[]), 100);
    log.append(vec![push("b", 105, &[20], Some(90))]).expect("writable");
    assert_eq!(mark(&log), Some(5), "it may come yet");
    log.append(vec![push("b", 111, &[20], Some(95))]).expect("writable");
    assert_eq!((mark(&log), log.producers(None)[0].silent), (Some(95), true));
    // Another process has had the store: nobody knows when it spoke to that one.
    learn(&log, told(Some(6), &[]), 200);
    log.append(vec![push("b", 201, &[20], Some(96))]).expect("writable");
    assert_eq!((mark(&log), log.producers(None)[0].silent), (Some(6), false));
}

#[test]
fn a_sequence_that_was_set_back_and_a_name_that_was_handed_over_here_hold_before_they_are_flushed() {
    let (folder, log) = opened();
    let by = |second| Signature { at: Timestamp::from_micros(second), who: "op".to_owned(), why: String::new() };
    log.append(vec![push("a", 7, &[10], None)]).expect("writable");
    log.change("paid", "a", ProducerChange::Sequence(3), by(8)).expect("earlier");
    log.change("paid", "a", ProducerChange::HandOver("bob".to_owned()), by(9)).expect("known");
    assert!(log.append(vec![push("a", 4, &[40], None), push("a", 5, &[50], None)]).expect("writable").0[1].is_some());
    // The process ends before its flush: the store has what was before.
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    let before = SaidByProducer { last: Some(7), owner: Some("ann".to_owned()), ..told(None, &[]) };
    for from_others in [false, true] {
        let said = [("paid", "a", before.clone())].into_iter();
        log.learn(said, Timestamp::from_micros(20), from_others).expect("writable");
        let known = &log.producers(None)[0];
        assert_eq!((known.sequence, known.owner.as_deref()), (Some(5), Some("bob")));
    }
    assert!(log.append(vec![push("a", 6, &[60], None)]).expect("writable").0[0].is_some(), "it was never sent");
    // What was changed at another log since is the later word.
    let later = [(ProducerChange::Sequence(4), 30), (ProducerChange::HandOver("cid".to_owned()), 31)];
    let set_back = Some(Timestamp::from_micros(30));
    let later = SaidByProducer { last: Some(4), owner: Some("cid".to_owned()), set_back, ..told(None, &later) };
    learn(&log, later, 40);
    let known = &log.producers(None)[0];
    assert_eq!((known.sequence, known.owner.as_deref()), (Some(4), Some("cid")));
}

#[test]
fn a_correction_of_a_clock_that_was_ahead_does_not_outlive_later_ones() {
    let (_folder, log) = opened();
    let by = |second| Signature { at: Timestamp::from_micros(second), who: "op".to_owned(), why: String::new() };
    log.append(vec![push("a", 7, &[10], Some(5))]).expect("writable");
    log.change("paid", "a", ProducerChange::Retire, by(9_000)).expect("known");
    let ahead = log.said(&log.reach());
    // The clock is set right, and it is retired once more; then its sequence is set back twice.
    let retired = log.change("paid", "a", ProducerChange::Retire, by(20)).expect("known");
    assert_eq!(retired.retired, Some(Timestamp::from_micros(20)), "people are told the clock's time");
    log.change("paid", "a", ProducerChange::Sequence(6), by(21)).expect("earlier");
    log.change("paid", "a", ProducerChange::Sequence(3), by(21)).expect("earlier");
    let mut store = KnownProducer::default();
    for said in [ahead, log.said(&log.reach())] {
        store.hear(7, 16, said.into_values().next().expect("one"));
    }
    let of = ("paid".to_owned(), "a".to_owned());
    let own = log.said(&log.reach()).remove(&of).expect("known").corrected;
    assert!(own.not_in(&store.corrected).is_empty(), "nothing is left to tell: {own:?} {:?}", store.corrected);
    assert_eq!((store.last, own.sequence().map(|of| of.by.at)), (Some(3), Some(Timestamp::from_micros(21))));
    // What the store says of a producer that was back before it was retired here changes nothing.
    let retired = told(None, &[(ProducerChange::Retire, 9_000)]);
    let said = SaidByProducer { watermark: Some(Timestamp::from_micros(6)), spoke_again: true, ..retired };
    learn(&log, said, 30);
    assert_eq!((mark(&log), log.producers(None)[0].sequence), (None, Some(3)));
}

#[test]
fn a_producer_that_was_heard_of_while_the_clock_was_ahead_is_silent_like_others() {
    let (_folder, log) = opened();
    log.leave_out_after(Some(Span::from_micros(10)));
    log.append(vec![push("a", 1_000_000, &[10], Some(5)), push("b", 1_000_001, &[20], Some(8))]).expect("writable");
    // The clock is set right: from here on it is waited for as long as for anybody.
    for (second, left) in [(100_u32, 5), (109, 5), (111, 9)] {
        let said = push("b", 1_000_001 + u64::from(second), &[], Some(9));
        log.append(vec![Push { at: Timestamp::from_micros(second.into()), ..said }]).expect("writable");
        assert_eq!(mark(&log), Some(left), "at {second}");
    }
    assert_eq!(log.silent_producers().iter().map(|of| of.producer.as_str()).collect::<Vec<_>>(), ["a"]);
    // A clock that is behind for a moment makes nobody silent.
    let (_folder, log) = opened();
    log.leave_out_after(Some(Span::from_micros(10)));
    log.append(vec![push("a", 200, &[10], Some(5))]).expect("writable");
    log.append(vec![push("b", 3, &[20], Some(9))]).expect("writable");
    log.append(vec![push("b", 205, &[20], Some(9))]).expect("writable");
    assert_eq!((mark(&log), log.silent_producers().len()), (Some(5), 0));
}

#[test]
fn a_source_whose_producers_are_all_retired_or_silent_has_no_watermark_on_the_store_any_more() {
    let (_folder, log) = opened();
    log.leave_out_after(Some(Span::from_micros(10)));
    let store = PushHistoryState {
        watermarks: [("paid".to_owned(), Timestamp::from_micros(5)), ("other".to_owned(), Timestamp::MIN)].into(),
        ..PushHistoryState::default()
    };
    let no_longer = |log: &PushLog| log.no_longer(&log.reach(), &store);
    log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], None)]).expect("writable");
    assert!(no_longer(&log).is_empty());
    // The only one that says how far it is falls silent, and comes back.
    log.append(vec![push("b", 20, &[20], None)]).expect("writable");
    assert_eq!(no_longer(&log).watermarks.into_iter().collect::<Vec<_>>(), ["paid"], "of the other nobody is known");
    log.append(vec![push("a", 21, &[10], Some(6))]).expect("writable");
    assert!(no_longer(&log).is_empty());
    let by = Signature { at: Timestamp::from_micros(22), who: "op".to_owned(), why: String::new() };
    log.change("paid", "a", ProducerChange::Retire, by).expect("known");
    assert_eq!(no_longer(&log).watermarks.into_iter().collect::<Vec<_>>(), ["paid"]);
}

#[test]
fn a_name_that_the_log_never_heard_of_makes_nobody_else_heard_of() {
    let (folder, log) = opened();
    log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(8))]).expect("writable");
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    log.leave_out_after(Some(Span::from_micros(10)));
    let said = [("paid", "a", told(Some(5), &[])), ("paid", "c", told(Some(9), &[]))].into_iter();
    log.learn(said, Timestamp::from_micros(50), false).expect("writable");
    let heard: Vec<_> = log.producers(None).iter().map(|of| of.heard.map(Timestamp::micros)).collect();
    assert_eq!(heard, [Some(1), Some(2), Some(50)]);
    assert_eq!(log.silent_producers(), [], "nobody has spoken yet");
    log.append(vec![push("b", 51, &[20], Some(9))]).expect("writable");
    assert_eq!(mark(&log), Some(9), "and now it is known who is silent");
}
