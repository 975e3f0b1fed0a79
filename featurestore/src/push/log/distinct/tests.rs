//! Events that were pushed before are told, however often a log is opened, cut or learnt anew.

use arrow::array::{Int64Array, TimestampMicrosecondArray};

use super::super::Push;
use super::*;
use crate::definition::{Available, ColumnType, EventTime, Version};
use crate::push::PushHeader;

const DAY: i64 = 24 * 60 * 60;

fn source() -> Source {
    Source {
        name: "paid".to_owned(),
        version: Version::from_text("0"),
        text: String::new(),
        event_time: EventTime::Column { column: "paid_at".to_owned(), zone: None },
        available: Available::AtEventTime,
        available_zone: None,
        lateness: None,
        distinct: vec!["id".to_owned()],
        query: None,
        tables: Vec::new(),
        columns: vec![Column::nullable("id", ColumnType::Int64), Column::nullable("paid_at", ColumnType::Timestamp)],
    }
}

/// Events by number and second.
fn events(events: &[(Option<i64>, i64)]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter(events.iter().map(|event| event.0)));
    let times = events.iter().map(|event| event.1 * 1_000_000);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"));
    RecordBatch::try_from_iter_with_nullable([("id", ids, true), ("paid_at", times, true)]).expect("two columns")
}

fn taken(log: &PushLog, given: &[(Option<i64>, i64)]) -> usize {
    let at = Timestamp::from_micros(0);
    let push = Push { source: "paid".to_owned(), events: events(given), header: PushHeader::default(), at };
    let (entries, _) = log.append(vec![push.clone(), push]).expect("writable");
    assert_eq!(entries[1].as_ref().map(|entry| entry.events.num_rows()), Some(0), "the same once more");
    entries[0].as_ref().map_or(0, |entry| entry.events.num_rows())
}

#[test]
fn an_event_that_was_pushed_before_is_not_logged_again_however_often_the_log_is_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    assert_eq!(log.told_from(&source()).expect("readable"), None);
    log.learn_held(&source(), Timestamp::MIN, false).expect("writable");
    assert_eq!(taken(&log, &[(Some(1), 10), (Some(1), 11), (None, 10), (Some(1), 10), (None, 10)]), 3);
    drop(log);
    let log = PushLog::open(folder.path()).expect("reopened");
    assert_eq!(log.told_from(&source()).expect("readable"), Some(Timestamp::MIN));
    assert_eq!(taken(&log, &[(Some(1), 10), (Some(2), 10)]), 1);
    assert_eq!((log.last(), log.entries_after(0).expect("readable").len()), (2, 2));
    let other = Source { distinct: vec!["paid_at".to_owned()], ..source() };
    assert_eq!(log.told_from(&other).expect("readable"), None, "told apart by something else");
}

#[test]
fn what_is_not_flushed_stays_known_and_what_is_flushed_for_a_day() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    log.learn_held(&source(), Timestamp::MIN, false).expect("writable");
    assert_eq!(taken(&log, &[(Some(1), 10), (Some(2), 2 * DAY)]), 2);
    log.cut_events(log.oldest_held().expect("readable"), Timestamp::MAX).expect("writable");
    assert_eq!(taken(&log, &[(Some(1), 10), (Some(2), 2 * DAY)]), 0);
    log.trim(log.last()).expect("writable");
    log.cut_events(log.oldest_held().expect("readable"), Timestamp::MAX).expect("writable");
    assert_eq!(log.told_from(&source()).expect("readable"), Some(Timestamp::from_micros(DAY * 1_000_000)));
    assert_eq!(taken(&log, &[(Some(1), 10), (Some(2), 2 * DAY)]), 1);
}

#[test]
fn copies_of_what_another_log_flushed_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    log.learn_held(&source(), Timestamp::MIN, false).expect("writable");
    taken(&log, &[(Some(1), 10), (Some(2), 10)]);
    taken(&log, &[(Some(3), 10)]);
    log.forget_events().expect("writable");
    assert_eq!(log.told_from(&source()).expect("readable"), None);
    log.learn_flushed(&source(), &events(&[(Some(1), 10), (Some(3), 10), (Some(4), 10)])).expect("writable");
    log.learn_held(&source(), Timestamp::MIN, true).expect("writable");
    let held = log.entries_after(0).expect("readable");
    assert_eq!((held.len(), held[0].events.clone()), (1, events(&[(Some(2), 10)])));
    assert_eq!(taken(&log, &[(Some(1), 10), (Some(2), 10), (Some(4), 10), (Some(5), 10)]), 1);
}

/// Events come while it is looked how old those are that the log holds: they are looked at before the index is cut.
#[test]
fn what_comes_while_the_index_is_about_to_be_cut_stays_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    log.learn_held(&source(), Timestamp::MIN, false).expect("writable");
    taken(&log, &[(Some(1), 3 * DAY)]);
    let oldest = log.oldest_held().expect("readable");
    taken(&log, &[(Some(2), 10)]);
    log.cut_events(oldest, Timestamp::MAX).expect("writable");
    assert_eq!(taken(&log, &[(Some(1), 3 * DAY), (Some(2), 10)]), 0);
}

#[test]
fn what_comes_while_the_held_events_are_learnt_is_learnt_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = PushLog::open(folder.path()).expect("new");
    let push = |second: i64| {
        let events = events(&(0..500).map(|id| (Some(id), second)).collect::<Vec<_>>());
        Push { source: "paid".to_owned(), events, header: PushHeader::default(), at: Timestamp::from_micros(0) }
    };
    for second in 0..20 {
        log.append(vec![push(second)]).expect("writable");
    }
    std::thread::scope(|scope| {
        let appending = scope.spawn(|| {
            for second in 20..40 {
                log.append(vec![push(second)]).expect("writable");
            }
        });
        log.learn_held(&source(), Timestamp::MIN, false).expect("writable");
        appending.join().expect("no panic");
    });
    for second in 0..40 {
        let (entries, _) = log.append(vec![push(second)]).expect("writable");
        assert_eq!(entries[0].as_ref().map(|entry| entry.events.num_rows()), Some(0), "of second {second}");
    }
}
