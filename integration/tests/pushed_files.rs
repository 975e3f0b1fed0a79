//! The files of pushed events: merged they give the same values everywhere, whatever happens meanwhile; what nobody needs is not
//! read; and what they cost stays what it was, however long a store is flushed to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Column, Source};
use springhouse_featurestore::object_storage::api::memory::InMemory;
use springhouse_featurestore::push::{
    Claim, EventSink, Flush, PushCommit, PushEntry, PushHeader, PushOrigin, PushedEvents,
};
use springhouse_featurestore::tier::{ObjectStore, list_objects};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_materializer::Jobs;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::session::EventRange;
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::compaction::{copy_of, sum, wrong};
use crate::crash::DyingStore;
use crate::faulty_store::FaultyStore;
use crate::project::{Event, TestProject, at, write_events};
use crate::push::{Server, batch, refresh_all};
use crate::windows::{USERS, definitions};

/// A view that reaches back, and a contract over all three.
const FURTHER: &str = "
CREATE FEATURE VIEW lately ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, paid_at, known_at,
            sum(amount) OVER (PARTITION BY user_name ORDER BY paid_at RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS total
     FROM paid;
CREATE CONTRACT together TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (last_payment FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT,
            spending FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT,
            lately FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(last_payment.amount, -1) AS amount, coalesce(lately.total, -1) AS total)
  OUTPUT (fraud_probability FLOAT);
";

/// The usual definitions, of a source whose events are known when they happen, with that view.
fn further() -> String {
    let all = definitions() + FURTHER;
    all.replace(" AVAILABLE AT known_at", "").replace(", known_at", "")
}

fn header(sequence: i64, watermark: i64) -> PushHeader {
    let sequence = Some(sequence.cast_unsigned());
    PushHeader { producer: Some("till".to_owned()), sequence, watermark: Some(at(watermark)) }
}

/// The second of a round.
fn second(round: i64) -> i64 {
    10_000 + 40 * round
}

/// The events of a round: several of one time among them, and such of before the last rounds.
fn events_of(round: i64) -> Vec<Event> {
    let event = |number: i64| {
        let user = USERS[usize::try_from((round + number) % 3).expect("small")];
        let happened = if number == 2 { second(round) - 2_500 } else { second(round) - 7 };
        let amount = f64::from(i32::try_from(round * 4 + number).expect("small")) / 2.0;
        (user, happened, 0, Some(amount))
    };
    (0..=round % 4).map(event).collect()
}

/// A round of pushes, which are flushed.
async fn push(project: &TestProject, server: &Server, round: i64) {
    project.clock.set(at(second(round)));
    let events = batch(&events_of(round));
    server.pushes.push("paid", events, header(round, second(round) - 1)).await.expect("taken");
    server.pushes.flush().await.expect("flushes");
}

/// A store to which so many rounds were flushed, with the views of all kinds.
async fn pushed(rounds: i64) -> (TestProject, CatalogState, Server) {
    let project = TestProject::new(&[("ann", 9_000, 9_000, Some(1.0)), ("bob", 9_500, 9_600, Some(2.0))]);
    let state = project.apply(&further()).await.expect("valid definitions");
    project.clock.set(at(second(0)));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    for round in 1..=rounds {
        push(&project, &server, round).await;
    }
    server.features.follow(&()).await.expect("follows");
    (project, state, server)
}

fn online(server: &Server) -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from_iter_values(USERS));
    let keys = RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
    server.features.lookup_with(&server.features.plan("together").expect("defined"), &keys).expect("looks up")
}

async fn training_set(jobs: &Jobs, state: &CatalogState, rows: RowsFrom) -> RecordBatch {
    let asked = ["ann", "bob", "cid"].iter().flat_map(|user| [9_700, 10_300, 10_777, 11_300].map(|at| (user, at)));
    let values: Vec<String> = asked.map(|(user, at)| format!("('{user}', {at})")).collect();
    let spine = format!(
        "SELECT user_name, to_timestamp(s) AT TIME ZONE 'UTC' AS t FROM (VALUES {}) AS v (user_name, s)",
        values.join(", ")
    );
    let request = TrainingSetRequest {
        spine: SpineSource { from: spine, time: "t".to_owned(), lag: Span::ZERO },
        rows,
        as_of: AsOf::Known,
        with_features: true,
        order: SpineOrder::AsGiven,
    };
    let contract = state.current_contract("together").expect("defined");
    let set = jobs.training_set(state, contract, &request).await.expect("plans");
    let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
    arrow::compute::concat_batches(set.schema(), &batches).expect("one schema")
}

/// What a backfill of everything gives, by view.
async fn backfilled(jobs: &Jobs, state: &CatalogState) -> Vec<(u64, u64)> {
    let mut sums = Vec::new();
    for view in state.live_views() {
        jobs.backfill(state, view, crate::backfill::asked(None, None, 500), &()).await.expect("backfills");
        sums.push(sum(&jobs.log(view).state().await.expect("readable")));
    }
    sums
}

fn source(state: &CatalogState) -> &Source {
    state.source(&state.live_views()[0].sources[0]).expect("defined")
}

/// How many of some pushed events a query counts in a range.
async fn counted(jobs: &Jobs, state: &CatalogState, events: &PushedEvents, range: Option<EventRange>) -> i64 {
    let session = jobs.session().expect("a session");
    session.add_events(source(state), range, false, events, jobs.store()).await.expect("readable");
    let counts = session.query("SELECT count(*) FROM paid").await.expect("runs");
    counts[0].column(0).as_primitive::<Int64Type>().value(0)
}

async fn files(jobs: &Jobs) -> usize {
    jobs.pushed().state().await.expect("readable").files_of("paid").len()
}

async fn rows(jobs: &Jobs) -> u64 {
    jobs.pushed().state().await.expect("readable").files_of("paid").iter().map(|file| file.rows).sum()
}

fn pushed_by(rounds: i64) -> u64 {
    (1..=rounds).map(|round| events_of(round).len() as u64).sum()
}

#[tokio::test]
async fn merged_files_give_the_same_values_everywhere() {
    let (project, state, server) = pushed(33).await;
    let jobs = project.jobs();
    let all = [RowsFrom::Committed, RowsFrom::Sources];
    let mut before = Vec::new();
    for rows in all {
        before.push(training_set(&jobs, &state, rows).await);
    }
    let answered = online(&server);
    let apart = copy_of(&project, "apart");
    let done = jobs.compact_pushes().await.expect("compacts");
    assert_eq!((done.len(), done[0].what.as_str()), (1, "pushes to paid"));
    assert!(done[0].merged >= 32 && done[0].files < 10, "{done:?}");
    assert_eq!((files(&jobs).await, rows(&jobs).await), (done[0].files, pushed_by(33)));
    assert_eq!(jobs.compact_pushes().await.expect("compacts")[0].merged, 0, "there is nothing left to merge");
    // The files that gave way are gone at once; the server has looked at its fence.
    server.pushes.flush().await.expect("there is nothing to flush");
    let collected = jobs.collect_garbage(&state, Span::ZERO).await.expect("collects");
    assert!(collected.removed >= done[0].merged, "{collected:?}");
    for (rows, before) in all.into_iter().zip(&before) {
        assert_eq!(&training_set(&jobs, &state, rows).await, before, "{rows:?}");
    }
    assert_eq!(online(&server), answered);
    let checked = jobs.check(&state, None, true).await.expect("checks");
    assert!(wrong(&checked).is_empty(), "{checked:?}");
    // What reaches back reads merged files, and a server that lost its disk tier has the same again.
    push(&project, &server, 34).await;
    server.features.follow(&()).await.expect("follows");
    let answered = online(&server);
    drop(server);
    let folder = project.folder.path().join("another");
    std::fs::create_dir(&folder).expect("writable");
    let server = Server::start_in(&folder, project.jobs(), 0).await;
    assert_eq!(online(&server), answered);
    drop(server);
    // So do backfills.
    let merged = copy_of(&project, "merged");
    let apart = (project.jobs_on(&apart), project.jobs_on(&merged));
    let events = events_of(34);
    assert_eq!(rows(&apart.1).await, rows(&apart.0).await + events.len() as u64);
    let unmerged = Server::start_in(&new_folder(&project, "unmerged"), apart.0.clone(), 0).await;
    push(&project, &unmerged, 34).await;
    drop(unmerged);
    assert_eq!(backfilled(&apart.1, &state).await, backfilled(&apart.0, &state).await);
}

fn new_folder(project: &TestProject, name: &str) -> std::path::PathBuf {
    let folder = project.folder.path().join(name);
    std::fs::create_dir(&folder).expect("writable");
    folder
}

#[tokio::test]
async fn events_up_to_a_position_are_the_same_within_a_merged_file() {
    let (project, state, _server) = pushed(20).await;
    let jobs = project.jobs();
    let pushes = jobs.pushed();
    let mut before = BTreeMap::new();
    for position in 0..=20 {
        let events = pushes.events_until(position).await.expect("readable");
        before.insert(position, counted(&jobs, &state, &events, None).await);
    }
    jobs.compact_pushes().await.expect("compacts");
    assert!(files(&jobs).await < 10);
    for (position, count) in before {
        let expected = pushed_by(position.cast_signed()).cast_signed();
        let events = pushes.events_until(position).await.expect("readable");
        assert_eq!((count, counted(&jobs, &state, &events, None).await), (expected, expected), "until {position}");
    }
}

#[tokio::test]
async fn files_that_cannot_hold_what_is_asked_are_not_opened() {
    let (project, state, _server) = pushed(12).await;
    let jobs = project.jobs();
    let history = jobs.pushed().state().await.expect("readable");
    // Whoever opened one of the last files would fail.
    for file in &history.files_of("paid")[6..] {
        std::fs::remove_file(project.folder.path().join("store").join(Path::new(&file.path))).expect("there");
    }
    let known = EventRange::known_by(at(second(6) + 1));
    assert_eq!(counted(&jobs, &state, &history.events(), Some(known)).await, pushed_by(6).cast_signed());
    let late =
        EventRange { from: at(second(12) + 1), until: Timestamp::MAX, known: Timestamp::MAX, pushed: Timestamp::MAX };
    assert_eq!(counted(&jobs, &state, &history.events(), Some(late)).await, 0);
    let held = jobs.pushed().entries(&history, &["paid"].into(), (2, 6)).await.expect("readable");
    assert_eq!(held.iter().map(|entry| entry.position).collect::<Vec<_>>(), [3, 4, 5, 6]);
}

#[tokio::test]
async fn a_compaction_of_pushes_that_dies_at_any_step_loses_nothing() {
    let (project, state, _server) = pushed(9).await;
    let before =
        counted(&project.jobs(), &state, &project.jobs().pushed().state().await.expect("readable").events(), None)
            .await;
    let mut outcomes = Vec::new();
    for calls in 0.. {
        let store = copy_of(&project, &format!("copy-{calls}"));
        let dying: Arc<dyn ObjectStore> =
            Arc::new(DyingStore { inner: Arc::clone(&store), calls_left: AtomicI64::new(calls) });
        outcomes.push(project.jobs_on(&dying).compact_pushes().await.is_ok());
        let jobs = project.jobs_on(&store);
        for _ in 0..2 {
            let events = jobs.pushed().state().await.expect("readable after a crash").events();
            assert_eq!(counted(&jobs, &state, &events, None).await, before, "after {calls} calls");
            let checked = jobs.check(&state, None, true).await.expect("checks");
            assert!(wrong(&checked).is_empty(), "after {calls} calls: {checked:?}");
            // Whatever happened, the next one finds the same end, and what was left is garbage.
            jobs.compact_pushes().await.expect("a whole store");
            jobs.collect_garbage(&state, Span::ZERO).await.expect("collects");
        }
        std::fs::remove_dir_all(project.folder.path().join(format!("copy-{calls}"))).expect("there");
        if outcomes.last() == Some(&true) {
            break;
        }
    }
    assert!(outcomes.len() > 10, "it took {} calls", outcomes.len());
}

#[tokio::test]
async fn flushes_and_two_compactions_at_once_lose_nothing() {
    let (project, state, server) = pushed(16).await;
    let (one, other) = (project.jobs(), project.jobs());
    let compacted = async |jobs: &Jobs| {
        for _ in 0..12 {
            jobs.compact_pushes().await.expect("compacts");
            tokio::task::yield_now().await;
        }
    };
    let flushed = async {
        for round in 17..=40 {
            push(&project, &server, round).await;
        }
    };
    tokio::join!(compacted(&one), compacted(&other), flushed);
    let jobs = project.jobs();
    assert_eq!(rows(&jobs).await, pushed_by(40));
    let events = jobs.pushed().state().await.expect("readable");
    assert_eq!((events.until, events.taker.epoch), (40, 1));
    assert_eq!(counted(&jobs, &state, &events.events(), None).await, pushed_by(40).cast_signed());
    let checked = jobs.check(&state, None, true).await.expect("checks");
    assert!(wrong(&checked).is_empty(), "{checked:?}");
}

#[tokio::test]
async fn another_taker_goes_on_after_a_compaction_and_the_first_one_is_still_fenced() {
    let (project, state, first) = pushed(10).await;
    let jobs = project.jobs();
    let next = Server::start_in(&new_folder(&project, "second"), project.jobs(), 0).await;
    assert!(jobs.compact_pushes().await.expect("compacts")[0].merged > 0);
    push(&project, &next, 11).await;
    project.clock.set(at(10_480));
    let refused = first.pushes.push("paid", batch(&events_of(12)), header(12, 0)).await;
    assert!(refused.is_err() || first.pushes.flush().await.is_err(), "its epoch is over");
    assert_eq!(rows(&jobs).await, pushed_by(11));
    next.features.follow(&()).await.expect("follows");
    assert_eq!(training_set(&jobs, &state, RowsFrom::Sources).await.num_rows(), 12);
}

/// A flush of an event a minute, written as a taker would, without one.
async fn flush_of(jobs: &Jobs, source: &Source, minute: i64) {
    let pushed = jobs.pushed();
    let mut state = pushed.state().await.expect("readable");
    let position = state.until + 1;
    let time = || -> ArrayRef {
        let micros = (60 + 60 * minute) * 1_000_000;
        Arc::new(TimestampMicrosecondArray::from(vec![micros]).with_timezone("UTC"))
    };
    let columns = source.columns.iter().map(|column| -> ArrayRef {
        match column.name.as_str() {
            "user_name" => Arc::new(StringArray::from(vec!["ann"])),
            "amount" => Arc::new(Float64Array::from(vec![1.0])),
            _ => time(),
        }
    });
    let schema = Column::to_schema(source.columns.iter());
    let events = RecordBatch::try_new(schema, columns.collect()).expect("the source's columns");
    let entry = PushEntry::new(position, source.name.clone(), events, PushOrigin::default()).expect("an entry");
    let (watermarks, said, no_longer) = Default::default();
    let flush = Flush { at: at(60 * minute), entries: &[entry], watermarks, said, no_longer };
    pushed.commit(&mut state, flush).await.expect("flushed");
}

/// A flush of an event, as it was written before events had their places.
async fn flush_of_before(project: &TestProject, jobs: &Jobs) {
    let pushed = jobs.pushed();
    let state = pushed.state().await.expect("readable");
    let (number, until) = (state.number + 1, state.until + 1);
    let path = format!("pushes/data/paid/{number:012}.parquet");
    let file = project.folder.path().join("store").join(&path);
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    write_events(&file, &[("ann", 60, 60, Some(1.0))]);
    let bytes = file.metadata().expect("there").len();
    let commit = format!(
        r#"{{"at": "2020-01-01T00:00:00Z", "until": {until}, "watermarks": {{}},
             "files": {{"paid": [{{"path": "{path}", "rows": 1, "bytes": {bytes}}}]}}}}"#
    );
    let commit: PushCommit = serde_json::from_str(&commit).expect("as it was written");
    pushed.log().append(number, &commit).await.expect("written");
}

#[tokio::test]
async fn files_that_cannot_be_merged_keep_no_others_from_it() {
    // So many of before, and so many of now, by turns.
    let stores: [&[(i64, i64)]; 2] = [&[(70, 16), (64, 16)], &[(0, 16), (64, 16)]];
    for flushes in stores {
        let project = TestProject::new(&[]);
        let state = project.apply(&further()).await.expect("valid definitions");
        let (jobs, mut all) = (project.jobs(), 0);
        for (before, now) in flushes {
            for _ in 0..*before {
                flush_of_before(&project, &jobs).await;
            }
            for minute in 0..*now {
                flush_of(&jobs, source(&state), minute).await;
            }
            all += before + now;
            let done = jobs.compact_pushes_to("paid").await.expect("compacts");
            assert_eq!((done.merged, done.written), (16, 1), "{flushes:?}");
            assert_eq!(rows(&jobs).await, all.cast_unsigned(), "{flushes:?}");
        }
    }
}

/// The size of the greatest checkpoint.
async fn checkpoint_bytes(store: &Arc<dyn ObjectStore>) -> usize {
    let mut most = 0;
    for path in list_objects(store, "pushes/state").await.expect("lists") {
        let bytes = springhouse_featurestore::tier::get_object(store, &path).await.expect("there");
        most = most.max(bytes.len());
    }
    most
}

/// What a store costs to which is flushed every minute, and whose files are merged every hour: after a day it is what it was
/// after three hours, but for a few files.
#[tokio::test]
async fn what_a_store_costs_does_not_grow_with_its_flushes() {
    let mut project = TestProject::new(&[]);
    let counting = FaultyStore::new(Arc::new(InMemory::new()));
    project.store = Arc::clone(&counting) as _;
    let state = project.apply(&further()).await.expect("valid definitions");
    let jobs = project.jobs();
    let claim = Claim { log: 7, epoch: None, last: 0, older: false, process: 7 };
    jobs.pushed().take_over(&claim, at(0)).await.expect("taken");
    let mut found = Vec::new();
    for minute in 1..=1_536_i64 {
        flush_of(&jobs, source(&state), minute).await;
        if minute % 64 == 0 {
            jobs.compact_pushes_to("paid").await.expect("compacts");
        }
        if [192, 1_536].contains(&minute) {
            project.clock.set(at(60 * minute + 60));
            let store = Arc::clone(&project.store);
            let (files, bytes) = (files(&jobs).await, checkpoint_bytes(&store).await);
            let (reader, follower) = (project.jobs(), project.jobs());
            counting.requests();
            let request = training_set(&reader, &state, RowsFrom::Sources).await;
            let requests = counting.requests();
            follower.pushed().state().await.expect("readable");
            let first_look = counting.requests();
            flush_of(&jobs, source(&state), minute + 10_000).await;
            counting.requests();
            follower.pushed().state().await.expect("readable");
            found.push((files, bytes, requests, first_look, counting.requests()));
            assert_eq!(request.num_rows(), 12);
        }
    }
    let [(_, early_bytes, early, ..), (files, bytes, requests, first_look, next_look)] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(rows(&jobs).await, 1_538);
    assert!(files <= 24, "{found:?}");
    assert!(bytes <= 90 * 700 && bytes < 2 * early_bytes, "{found:?}");
    // Unmerged, each file takes three requests of each of three views.
    assert!(requests <= 500 && requests <= 5 * early, "{found:?}");
    assert!(first_look <= 2 + 2 * 66 && next_look <= 4, "{found:?}");
}
