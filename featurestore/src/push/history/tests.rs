//! Flushes, compactions and what is read of them, on a store in memory.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::*;
use crate::catalog::Signature;
use crate::push::{Corrections, ProducerChange, ProducerCorrection, PushOrigin};

fn entry(position: u64, sequence: u64, values: &[i64]) -> PushEntry {
    let array: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
    let origin = PushOrigin { at: None, producer: "till".to_owned(), sequence: Some(sequence) };
    entry_of(position, RecordBatch::try_from_iter([("value", array)]).expect("a batch"), origin)
}

fn entry_of(position: u64, events: RecordBatch, origin: PushOrigin) -> PushEntry {
    PushEntry::new(position, "paid".to_owned(), events, origin).expect("an entry")
}

/// A log that has taken no epoch yet, or this one; of so many pushes.
fn claim(log: u64, last: u64) -> Claim {
    Claim { log, epoch: None, last, older: false, process: 100 + log }
}

fn flush(entries: &[PushEntry]) -> Flush<'_> {
    let said = [(("paid".to_owned(), "till".to_owned()), SaidByProducer::default())].into();
    let (watermarks, no_longer) = Default::default();
    Flush { at: Timestamp::from_micros(1), entries, watermarks, said, no_longer }
}

#[tokio::test]
async fn a_flush_of_an_epoch_that_is_over_fails_and_replaces_no_file() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut old = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let mut new = history.take_over(&claim(8, 0), Timestamp::from_micros(2)).await.expect("taken");
    history.commit(&mut new, flush(&[entry(1, 5, &[10, 11])])).await.expect("flushed");
    let error = history.commit(&mut old, flush(&[entry(1, 4, &[99])])).await.expect_err("over");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let state = history.state().await.expect("readable");
    assert_eq!((state.taker, state.until), (Taker { epoch: 2, log: 8 }, 1));
    let held = history.entries(&state, &["paid"].into(), (0, 9)).await.expect("readable");
    assert_eq!((held.len(), held[0].events.clone()), (1, entry(1, 5, &[10, 11]).events));
    assert_eq!((state.flushed_of(7), state.flushed_of(8)), (0, 1));
    let origin = |sequence| PushOrigin { producer: "till".to_owned(), sequence: Some(sequence), at: None };
    history.commit(&mut new, flush(&[entry(2, 7, &[12])])).await.expect("flushed");
    let state = history.state().await.expect("readable");
    // Of what a producer sent to two takers by turns each keeps its own.
    let elsewhere = [4, 5, 6, 7, 8].map(|of| state.taken_elsewhere(7, "paid", &origin(of)));
    assert_eq!(elsewhere, [false, true, false, true, false]);
}

fn of_one(correction: ProducerCorrection) -> Corrections {
    let mut all = Corrections::default();
    all.put(correction);
    all
}

/// A flush without events, of what one producer says.
async fn say(history: &PushHistory, state: &mut PushHistoryState, said: SaidByProducer) {
    let said = [(("paid".to_owned(), "till".to_owned()), said)].into();
    let (watermarks, no_longer) = Default::default();
    let flush = Flush { at: Timestamp::from_micros(9), entries: &[], watermarks, said, no_longer };
    history.commit(state, flush).await.expect("flushed");
}

#[tokio::test]
async fn a_producer_that_was_retired_says_nothing_until_it_speaks_again() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let at = Timestamp::from_micros;
    let by = |second| Signature { at: at(second), who: "op".to_owned(), why: String::new() };
    let corrected = |change, second| of_one(ProducerCorrection::new(change, by(second)));
    let told = |state: &PushHistoryState| {
        let told = state.producers["paid"]["till"].told();
        (told.watermark.map(Timestamp::micros), told.spoke_again)
    };
    let said = |watermark: Option<i64>, corrected| SaidByProducer {
        watermark: watermark.map(at),
        corrected,
        ..SaidByProducer::default()
    };
    let of = |said: SaidByProducer| [(("paid".to_owned(), "till".to_owned()), said)].into();
    assert!(!state.has_said(&of(said(Some(50), Corrections::default()))));
    say(&history, &mut state, said(Some(50), Corrections::default())).await;
    assert!(state.has_said(&of(said(Some(50), Corrections::default()))));
    assert_eq!(told(&state), (Some(50), false));
    say(&history, &mut state, said(None, corrected(ProducerChange::Retire, 60))).await;
    assert_eq!(told(&state), (None, false), "nobody waits for it");
    say(&history, &mut state, said(Some(70), corrected(ProducerChange::Retire, 60))).await;
    assert_eq!(told(&state), (Some(70), true));
    // What the flush may not tell yet is not told from before either.
    say(&history, &mut state, said(None, corrected(ProducerChange::Watermark(at(40)), 80))).await;
    assert_eq!(told(&state), (Some(40), true));
    assert_eq!(history.state().await.expect("readable"), state);
}

#[tokio::test]
async fn what_holds_no_longer_leaves_the_store_and_what_was_sent_stays_known() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let of = |producer: &str| ("paid".to_owned(), producer.to_owned());
    let owned = SaidByProducer { owner: Some("ann".to_owned()), ..SaidByProducer::default() };
    let entries = [entry(1, 5, &[1])];
    let watermarks: BTreeMap<String, Timestamp> = [("paid".to_owned(), Timestamp::from_micros(5))].into();
    let said = ["gone", "stays", "till"].map(|producer| (of(producer), owned.clone())).into();
    let first = Flush { watermarks: watermarks.clone(), said, ..flush(&entries) };
    history.commit(&mut state, first).await.expect("flushed");
    assert_eq!((&state.watermarks, state.producers["paid"].len()), (&watermarks, 3));
    let gone = ["gone", "till"].map(ToOwned::to_owned).into();
    let no_longer = NoLonger { watermarks: ["paid".to_owned()].into(), producers: [("paid".to_owned(), gone)].into() };
    history.commit(&mut state, Flush { no_longer, ..flush(&[]) }).await.expect("flushed");
    let left: Vec<&String> = state.producers["paid"].keys().collect();
    assert_eq!(left, ["stays", "till"], "a sequence that was sent is never forgotten");
    assert!(state.watermarks.is_empty() && state.knows("paid"));
    assert_eq!(history.state().await.expect("readable"), state);
}

#[tokio::test]
async fn a_sequence_that_is_set_back_after_more_was_taken_stays_set_back_by_the_flush_that_has_both() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let by = Signature { at: Timestamp::from_micros(2), who: "op".to_owned(), why: String::new() };
    let corrected = of_one(ProducerCorrection::new(ProducerChange::Sequence(5), by));
    // What the log has after the correction is what the producer goes on from.
    let said = SaidByProducer { last: Some(5), corrected, ..SaidByProducer::default() };
    let said = [(("paid".to_owned(), "till".to_owned()), said)].into();
    let entries = [entry(1, 4, &[1]), entry(2, 901, &[2])];
    history.commit(&mut state, Flush { said, ..flush(&entries) }).await.expect("flushed");
    assert_eq!(state.producers["paid"]["till"].told().last, Some(5));
    assert_eq!(state.files_of("paid").iter().map(|file| file.rows).sum::<u64>(), 2, "its events were taken");
}

#[tokio::test]
async fn changes_of_two_kinds_that_were_not_flushed_come_to_the_store_together() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    history.commit(&mut state, flush(&[entry(1, 5, &[1]), entry(2, 900, &[2])])).await.expect("flushed");
    let by = |at| Signature { at: Timestamp::from_micros(at), who: "op".to_owned(), why: String::new() };
    let mut corrected = of_one(ProducerCorrection::new(ProducerChange::Sequence(5), by(20)));
    corrected.put(ProducerCorrection::new(ProducerChange::HandOver("bob".to_owned()), by(30)));
    let said = SaidByProducer { corrected: corrected.clone(), ..SaidByProducer::default() };
    let of = [(("paid".to_owned(), "till".to_owned()), said.clone())].into();
    assert!(!state.has_said(&of));
    say(&history, &mut state, said).await;
    let known = &state.producers["paid"]["till"];
    assert_eq!((known.last, known.set_back), (Some(5), Some(Timestamp::from_micros(20))));
    assert!(state.has_said(&of) && known.corrected == corrected);
}

#[tokio::test]
async fn of_two_logs_from_before_logs_were_told_apart_one_is_number_0() {
    let (history, at) = (PushHistory::new(Arc::new(InMemory::new())), Timestamp::from_micros(1));
    let old = |last, process| Claim { log: 0, epoch: None, last, older: false, process };
    let mut state = history.take_over(&old(500, 201), at).await.expect("taken");
    assert_eq!(state.taker, Taker { epoch: 1, log: 0 });
    history.commit(&mut state, flush(&[entry(600, 1, &[10])])).await.expect("flushed");
    // It has unflushed pushes of its own at positions that the other one has flushed.
    let state = history.take_over(&old(900, 202), at).await.expect("taken");
    assert_eq!(state.taker, Taker { epoch: 2, log: 202 });
    assert_eq!((state.flushed_of(0), state.flushed_of(202)), (600, 0));
    let known = Claim { epoch: Some(1), ..old(600, 203) };
    let state = history.take_over(&known, at).await.expect("taken");
    assert_eq!(state.taker, Taker { epoch: 3, log: 0 }, "the first one comes back");
}

#[tokio::test]
async fn whose_a_producer_is_and_that_its_sequence_was_set_back_travel_with_the_commits() {
    let store = Arc::new(InMemory::new());
    let history = PushHistory::new(Arc::clone(&store) as Arc<dyn ObjectStore>);
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let of = ("paid".to_owned(), "till".to_owned());
    let by = |at| Signature { at: Timestamp::from_micros(at), who: "op".to_owned(), why: String::new() };
    let owner = Some("ann".to_owned());
    let corrected = |change, at| of_one(ProducerCorrection::new(change, by(at)));
    let flushes = [
        (vec![entry(1, 5, &[1]), entry(2, 1_000_000, &[2])], Corrections::default()),
        (vec![entry(3, 6, &[3])], corrected(ProducerChange::Sequence(5), 20)),
        (Vec::new(), corrected(ProducerChange::HandOver("bob".to_owned()), 30)),
    ];
    for (entries, corrected) in &flushes {
        let said = SaidByProducer { owner: owner.clone(), corrected: corrected.clone(), ..Default::default() };
        let said = [(of.clone(), said)].into();
        let (at, (watermarks, no_longer)) = (Timestamp::from_micros(9), Default::default());
        history.commit(&mut state, Flush { at, entries, watermarks, said, no_longer }).await.expect("flushed");
    }
    let read = history.state().await.expect("readable");
    assert_eq!(read, state);
    let known = &read.producers["paid"]["till"];
    assert_eq!((known.last, known.set_back), (Some(6), Some(Timestamp::from_micros(20))));
    assert_eq!(known.owner, owner, "the log says whose it is, and hands over itself");
    let runs: Vec<(u64, u64)> = known.taken.iter().map(|taken| (taken.first, taken.last)).collect();
    assert_eq!(runs, [(5, 6)], "what was above it is nobody's");
}

#[test]
fn what_was_kept_of_producers_before_they_had_owners_reads_as_it_is() {
    let said: SaidByProducer = serde_json::from_str(r#"{"last": 7, "taken": [[1, 7]]}"#).expect("as it was written");
    assert_eq!((said.last, said.owner), (Some(7), None));
    let known: KnownProducer =
        serde_json::from_str(r#"{"last": 7, "watermark": null, "taken": []}"#).expect("the same");
    assert_eq!((known.last, known.owner, known.set_back), (Some(7), None, None));
    assert!(known.corrected.is_empty() && !known.spoke_again);
    let one =
        r#"{"corrected": {"change": "retire", "by": {"at": "2024-05-01T00:00:00Z", "who": "ann", "why": "gone"}}}"#;
    let said: SaidByProducer = serde_json::from_str(one).expect("one change, as it was written");
    assert!(said.corrected.retired().is_some_and(|correction| correction.by.who == "ann"));
    let written = serde_json::to_string(&KnownProducer::default()).expect("JSON");
    let retired = r#"{"last": 7, "watermark": "2024-05-01T00:00:00Z", "taken": [], "corrected":
        {"change": "retire", "by": {"at": "2024-05-02T00:00:00Z", "who": "ann"}}}"#;
    let retired: KnownProducer = serde_json::from_str(retired).expect("its word was not cleared then");
    assert!(retired.watermark.is_some() && retired.told().watermark.is_none(), "nobody believes it again");
    assert!(!written.contains("owner") && !written.contains("set_back"), "{written}");
}

#[tokio::test]
async fn flushed_entries_are_found_again_by_position() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    history.commit(&mut state, flush(&[entry(1, 1, &[10]), entry(2, 2, &[20, 21])])).await.expect("flushed");
    history.commit(&mut state, flush(&[entry(5, 3, &[50])])).await.expect("flushed");
    for (range, expected) in [((0, 9), vec![1, 2, 5]), ((1, 2), vec![2]), ((2, 4), vec![]), ((2, 5), vec![5])] {
        let held = history.entries(&state, &["paid"].into(), range).await.expect("readable");
        assert_eq!(held.iter().map(|entry| entry.position).collect::<Vec<_>>(), expected);
    }
    let origin = |sequence| PushOrigin { producer: "till".to_owned(), sequence: Some(sequence), at: None };
    let elsewhere = [3, 4].map(|sequence| state.taken_elsewhere(8, "paid", &origin(sequence)));
    assert_eq!(elsewhere, [true, false], "of one log alone it is known too");
    // The log of which it is: what it holds and did not flush is its own.
    let of_log = [entry(2, 2, &[20, 21]), entry(5, 3, &[51]), entry(6, 6, &[50])];
    assert_eq!(history.flushed_among(&state, &of_log).await.expect("readable"), [2].into());
}

#[tokio::test]
async fn a_copy_of_a_log_becomes_another_log() {
    let (history, at) = (PushHistory::new(Arc::new(InMemory::new())), Timestamp::from_micros(1));
    let mut state = history.take_over(&claim(7, 0), at).await.expect("taken");
    history.commit(&mut state, flush(&[entry(1, 1, &[10]), entry(2, 2, &[20])])).await.expect("flushed");
    let of = async |claim: Claim| history.take_over(&claim, at).await.expect("taken").taker;
    // Itself, begun again; and a copy, of which nobody can tell yet that it is one.
    let known = Claim { epoch: Some(1), ..claim(7, 3) };
    assert_eq!(of(known).await, Taker { epoch: 2, log: 7 });
    assert_eq!(of(known).await, Taker { epoch: 3, log: 107 }, "another process has taken an epoch of it");
    let known = Claim { epoch: Some(2), ..known };
    assert_eq!(of(Claim { last: 1, ..known }).await, Taker { epoch: 4, log: 108 }, "it is older than what it flushed");
    assert_eq!(of(Claim { older: true, ..known }).await, Taker { epoch: 5, log: 109 });
    assert_eq!(of(known).await, Taker { epoch: 6, log: 7 });
    assert_eq!(history.state().await.expect("readable").epoch_of(7), 6);
    let new = Claim { process: 109, ..claim(109, 0) };
    assert_eq!(of(new).await, Taker { epoch: 7, log: 110 }, "the number is another's");
}

#[tokio::test]
async fn nobody_begins_where_flushes_are_lost() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (history, at) = (PushHistory::new(Arc::clone(&store)), Timestamp::from_micros(1));
    let mut state = history.take_over(&claim(7, 0), at).await.expect("taken");
    for position in 1..=4 {
        let pushed = [entry(position, position, &[10])];
        history.commit(&mut state, flush(&pushed)).await.expect("flushed");
    }
    for number in [3, 4] {
        store.delete(&history.log.path(number)).await.expect("there");
    }
    let error = history.take_over(&claim(7, 4), at).await.expect_err("two flushes are lost");
    assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains("000000000003"), "{error}");
    assert!(history.log.read(3).await.expect("readable").is_none(), "nothing has taken their place");
}

#[tokio::test]
async fn two_that_begin_with_copies_of_one_log_at_one_time_know_of_each_other() {
    let (history, at) = (PushHistory::new(Arc::new(InMemory::new())), Timestamp::from_micros(1));
    let other = Claim { process: 200, ..claim(7, 0) };
    let (one, two) = (claim(7, 0), other);
    let (one, two) = tokio::join!(history.take_over(&one, at), history.take_over(&two, at));
    let mut epochs = [one, two].map(|state| state.expect("taken").taker.epoch);
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2]);
}

/// The entries of a stretch of positions, each with its events.
async fn held(history: &PushHistory, state: &PushHistoryState, range: (u64, u64)) -> Vec<(u64, RecordBatch)> {
    let entries = history.entries(state, &["paid"].into(), range).await.expect("readable");
    entries.into_iter().map(|entry| (entry.position, entry.events)).collect()
}

/// Merges files of the source as they are in a state.
async fn merged(history: &PushHistory, state: &PushHistoryState, name: &str) -> DataFile {
    history.merge("paid", name, state.files_of("paid")).await.expect("merged")
}

/// Flushes of an entry each, from position 1 on.
async fn flushed(history: &PushHistory, state: &mut PushHistoryState, flushes: u64) {
    for _ in 0..flushes {
        let position = state.until + 1;
        let value = position.cast_signed();
        history.commit(state, flush(&[entry(position, position, &[value, -value])])).await.expect("flushed");
    }
}

fn now() -> Timestamp {
    Timestamp::from_micros(5)
}

#[tokio::test]
async fn a_merged_file_has_the_same_events_at_the_same_places() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    flushed(&history, &mut state, 9).await;
    let before = held(&history, &state, (0, 100)).await;
    let file = merged(&history, &state, "compact-1").await;
    let sum = state.files_of("paid").iter().filter_map(|file| file.fingerprint).fold(0, u64::wrapping_add);
    assert_eq!((file.rows, file.fingerprint), (18, Some(sum)));
    assert_eq!(file.positions, Some(PushedRange { after: 0, until: 9, log: 7 }));
    assert!(history.replace("paid", state.files_of("paid"), &file, now()).await.expect("committed"));
    let after = history.state().await.expect("readable");
    assert_eq!(after.files_of("paid"), [file]);
    assert_eq!((after.until, after.taker, &after.producers), (state.until, state.taker, &state.producers));
    assert_eq!(held(&history, &after, (0, 100)).await, before);
    assert_eq!(held(&history, &after, (3, 5)).await, before[3..5]);
    assert_eq!(history.events_until(4).await.expect("readable").until, Some(4));
}

#[tokio::test]
async fn a_flush_goes_on_from_a_compaction_and_writes_no_file_again() {
    let store = Arc::new(InMemory::new());
    let history = PushHistory::new(Arc::clone(&store) as _);
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    flushed(&history, &mut state, 8).await;
    // Another process, which takes no pushes.
    let other = PushHistory::new(Arc::clone(&store) as _);
    let file = merged(&other, &state, "compact-1").await;
    assert!(other.replace("paid", state.files_of("paid"), &file, now()).await.expect("committed"));
    flushed(&history, &mut state, 1).await;
    assert_eq!(state, other.state().await.expect("readable"));
    let positions = state.files_of("paid").iter().map(|file| file.positions.expect("known"));
    assert_eq!(positions.map(|range| (range.after, range.until)).collect::<Vec<_>>(), [(0, 8), (8, 9)]);
    let listed: Vec<_> = store.list(Some(&Path::from("pushes/data"))).try_collect().await.expect("lists");
    assert_eq!(listed.len(), 10, "eight files, one of them all, and one of the last flush: {listed:?}");
}

#[tokio::test]
async fn of_two_compactions_one_wins_and_a_compaction_lets_nobody_through_the_fence() {
    let store = Arc::new(InMemory::new());
    let history = PushHistory::new(Arc::clone(&store) as _);
    let mut old = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    flushed(&history, &mut old, 8).await;
    let files = old.files_of("paid").to_vec();
    let (one, other) = (merged(&history, &old, "compact-1").await, merged(&history, &old, "compact-2").await);
    let mut new = history.take_over(&claim(8, 8), Timestamp::from_micros(2)).await.expect("taken");
    assert!(history.replace("paid", &files, &one, now()).await.expect("committed"));
    assert!(!history.replace("paid", &files, &other, now()).await.expect("passed over"));
    let error = history.commit(&mut old, flush(&[entry(9, 9, &[9])])).await.expect_err("its epoch is over");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    flushed(&history, &mut new, 1).await;
    let state = history.state().await.expect("readable");
    assert_eq!((state.taker, state.until), (Taker { epoch: 2, log: 8 }, 9));
    assert_eq!(state.files_of("paid").len(), 2);
}

#[tokio::test]
async fn a_push_of_many_rows_is_read_back_as_one() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let values: Vec<i64> = (0..150_000).collect();
    let entries = [entry(1, 1, &[1]), entry(2, 2, &values), entry(3, 3, &[3])];
    history.commit(&mut state, flush(&entries)).await.expect("flushed");
    let held = history.entries(&state, &["paid"].into(), (0, 9)).await.expect("readable");
    assert_eq!(held.iter().map(|entry| entry.events.num_rows()).collect::<Vec<_>>(), [1, 150_000, 1]);
    assert_eq!(held[1].events, entries[1].events);
    assert_eq!(held[1].ordered_events().columns(), entries[1].ordered_events().columns());
}

#[tokio::test]
async fn as_many_entries_are_read_as_have_so_many_bytes_also_within_a_merged_file() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let seen = |position: u64| {
        let PushEntry { events, origin, .. } = entry(position, position, &[7]);
        PushEntry::new(position, "seen".to_owned(), events, origin).expect("an entry")
    };
    let paid = |position: u64| entry(position, position, &[position.cast_signed()]);
    history.commit(&mut state, flush(&[paid(1), seen(2), paid(3)])).await.expect("flushed");
    history.commit(&mut state, flush(&[paid(4), seen(5)])).await.expect("flushed");
    let file = merged(&history, &state, "compact-1").await;
    assert!(history.replace("paid", state.files_of("paid"), &file, now()).await.expect("committed"));
    let state = history.state().await.expect("readable");
    let first = async |sources: &[&'static str], range: (u64, u64), bytes: u64| {
        let sources = sources.iter().copied().collect();
        let (entries, until) = history.first_entries(&state, &sources, range, bytes).await.expect("readable");
        (entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), until)
    };
    let both = ["paid", "seen"];
    assert_eq!(first(&both, (0, 5), 30).await, (vec![1, 2, 3], 3));
    assert_eq!(first(&both, (3, 5), 30).await, (vec![4, 5], 5));
    assert_eq!(first(&both, (2, 5), 1).await, (vec![3], 3), "at least one");
    assert_eq!(first(&both, (4, 5), 1).await, (vec![5], 5));
    assert_eq!(first(&both, (0, 4), 1_000).await, (vec![1, 2, 3, 4], 4));
    assert_eq!(first(&both[1..], (0, 5), 1).await, (vec![2], 2));
    assert_eq!(first(&both[1..], (2, 4), 1).await, (vec![], 4));
    // A log holds what was flushed of it, wherever that lies now.
    let of_log = [seen(2), paid(3), entry(4, 4, &[5]), paid(5)];
    assert_eq!(history.flushed_among(&state, &of_log).await.expect("readable"), [2, 3].into());
}

#[tokio::test]
async fn of_a_large_file_those_rows_are_read_that_are_near_the_positions() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    for position in 1..=7_u64 {
        // Such as cannot be written small.
        let mixed = |row: i64| row.wrapping_mul(0x1E37_79B9_7F4A_7C15);
        let values: Vec<i64> = (1..=100_000).map(|row| mixed(mixed(row) ^ (mixed(row) >> 29))).collect();
        history.commit(&mut state, flush(&[entry(position, position, &values)])).await.expect("flushed");
    }
    let file = merged(&history, &state, "compact-1").await;
    let opened = history.open(&file).await.expect("readable");
    let groups = |range| files::groups_with(opened.metadata(), range);
    let all = groups((0, 7));
    assert!(all.len() >= 2, "{all:?}");
    assert_eq!(groups((6, 7)), all[all.len() - 1..]);
    assert_eq!(groups((0, 1)), all[..1]);
    assert_eq!(groups((7, 9)), Vec::<usize>::new());
}

#[tokio::test]
async fn a_source_that_gains_a_column_within_a_flush_has_a_file_of_each_kind() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let column = |value: i64| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let events = RecordBatch::try_from_iter([("value", column(2)), ("tip", column(1))]).expect("a batch");
    let entries = [entry(1, 1, &[1]), entry_of(2, events, entry(2, 2, &[]).origin)];
    history.commit(&mut state, flush(&entries)).await.expect("flushed");
    let positions = state.files_of("paid").iter().map(|file| file.positions.expect("known"));
    assert_eq!(positions.map(|range| (range.after, range.until)).collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    let held = history.entries(&state, &["paid"].into(), (0, 9)).await.expect("readable");
    assert_eq!([&held[0].events, &held[1].events], [&entries[0].events, &entries[1].events]);
}

#[tokio::test]
async fn files_tell_their_times() {
    let history = PushHistory::new(Arc::new(InMemory::new()));
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let at = Timestamp::from_micros;
    for (position, times) in [(1, [10, 30]), (2, [20, 50])] {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC"));
        let events = RecordBatch::try_from_iter([("paid_at", times)]).expect("a batch");
        let entries = [entry_of(position, events, entry(position, position, &[]).origin)];
        history.commit(&mut state, flush(&entries)).await.expect("flushed");
    }
    let file = &state.files_of("paid")[1];
    assert_eq!(file.times, BTreeMap::from([("paid_at".to_owned(), (at(20), at(50)))]));
    let may_have = |column: &str, times| file.may_have(column, times);
    assert!(may_have("paid_at", (at(50), at(55))) && !may_have("paid_at", (at(51), at(55))));
    assert!(may_have("known_at", (at(1), at(2))), "of another column nothing is told");
}

/// Half a year of compactions: one after every 64 flushes. What a state holds follows the files that count, and reading it
/// what is new since the last look.
#[tokio::test]
async fn a_state_grows_with_the_files_that_count_and_not_with_the_commits() {
    let store = Arc::new(InMemory::new());
    let history = PushHistory::new(Arc::clone(&store) as _).remembering(&RememberedPushes::default());
    let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
    let mut checkpoints = Vec::new();
    for round in 0..30_u64 {
        flushed(&history, &mut state, 64).await;
        let files = state.files_of("paid").to_vec();
        let file = history.merge("paid", &format!("compact-{round}"), &files).await.expect("merged");
        assert!(history.replace("paid", &files, &file, now()).await.expect("committed"));
        let listed: Vec<_> = store.list(Some(&Path::from("pushes/state"))).try_collect().await.expect("lists");
        checkpoints.push(listed.iter().map(|object| object.size).max().unwrap_or(0));
        state = history.state().await.expect("readable");
        assert_eq!(state.files_of("paid").len(), 1);
    }
    let held = history.entries(&state, &["paid"].into(), (0, u64::MAX)).await.expect("readable");
    assert_eq!(held.len(), 30 * 64);
    // A checkpoint has at most the files since the last compaction: sixty-five of some hundred bytes.
    assert!(checkpoints.iter().all(|bytes| *bytes < 65 * 700), "{checkpoints:?}");
    assert!(checkpoints[29] < 2 * checkpoints[1].max(1_000), "{checkpoints:?}");
}
