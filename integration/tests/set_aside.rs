//! Events that a view does without, since its query fails on them: set aside one by one, listed, tried again and counted once
//! online and offline, whatever is killed or comes first; or let go by somebody who says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::push::{EventPlace, EventSink, PushHeader};
use springhouse_featurestore::tier::{
    BackfillAsked, Beyond, MOST_SET_ASIDE, ObjectStore, ViewCommitKind, ViewLogState, places_of, reasons_of,
};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_serving::features::ViewState;
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::faulty_store::FaultyStore;
use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, closed, refresh_all};
use crate::windows::definitions;

/// A view over pushes and a table: it fails on an event of a user whose rate is 0.
const SHARES: &str = "
CREATE EXTERNAL TABLE rates STORED AS PARQUET LOCATION 'rates.parquet';
CREATE SOURCE rated STATIC AS SELECT customer, rate FROM rates;
CREATE FEATURE VIEW shares ENTITY user_account WINDOWS ('2 days') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, sum(CAST(amount AS BIGINT) / rate) AS share FROM paid JOIN rated ON customer = user_name
     GROUP BY user_name;
CREATE CONTRACT sharing TIER interactive
  REQUEST (user_name VARCHAR)
  FEATURES (shares FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(shares.share_2d, -1) AS share)
  OUTPUT (fraud_probability FLOAT);
";

/// The project with that view, refreshed; and the view.
struct Rated {
    project: TestProject,
    state: CatalogState,
    view: FeatureView,
}

impl Rated {
    async fn new(bob: i64) -> Self {
        let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
        write_rates(&project, bob);
        let state = project.apply(&(definitions() + SHARES)).await.expect("valid definitions");
        project.clock.set(at(1_000));
        refresh_all(&project, &state).await;
        let view = state.live_views().into_iter().find(|view| view.name == "shares").expect("defined").clone();
        Self { project, state, view }
    }

    async fn server(&self) -> Server {
        Server::start_on(&self.project, &self.project.store, 1 << 20).await
    }

    async fn log(&self) -> ViewLogState {
        self.project.jobs().log(&self.view).state().await.expect("readable")
    }

    /// The places of the events that are set aside, and what the last of them failed with.
    async fn set_aside(&self) -> (Vec<(u64, u64)>, String) {
        let table = self.project.jobs().set_aside(&self.view).await.expect("readable");
        let Some(events) = table.get("paid") else { return (Vec::new(), String::new()) };
        let places = places_of(events).expect("told");
        let last = reasons_of(events).expect("told").pop().expect("some");
        (places.into_iter().map(|EventPlace { position, within }| (position, within)).collect(), last.reason)
    }

    /// Tries the events again, as a process of its own: how many count now, and how many are left.
    async fn retry(&self) -> (u64, u64) {
        let done = self.project.jobs().retry_set_aside(&self.state, &self.view, &by("")).await.expect("tried");
        (done.counted, done.left)
    }

    /// What offline says at the clock's time, from what is committed and from the sources.
    async fn offline(&self, user: &str) -> [Option<i64>; 2] {
        let spine = format!("SELECT '{user}' AS user_name, to_timestamp(1000) AT TIME ZONE 'UTC' AS t");
        let contract = self.state.current_contract("sharing").expect("defined");
        let mut found = [None; 2];
        for (found, rows) in found.iter_mut().zip([RowsFrom::Committed, RowsFrom::Sources]) {
            let spine = SpineSource { from: spine.clone(), time: "t".to_owned(), lag: Span::ZERO };
            let request =
                TrainingSetRequest { spine, rows, as_of: AsOf::Known, with_features: true, order: SpineOrder::AsGiven };
            let set = self.project.jobs().training_set(&self.state, contract, &request).await.expect("plans");
            let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
            let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
            *found = all["shares.share_2d"].as_primitive::<Int64Type>().iter().next().flatten();
        }
        found
    }

    /// Checks that online and offline have these shares.
    async fn check(&self, server: &Server, shares: &[(&str, Option<i64>)]) {
        server.features.follow(&()).await.expect("follows");
        for (user, share) in shares {
            assert_eq!(share_of(server, user), *share, "{user} online");
            assert_eq!(self.offline(user).await, [*share; 2], "{user} offline");
        }
    }
}

/// Writes what ann's, bob's and cid's payments are divided by.
pub fn write_rates(project: &TestProject, bob: i64) {
    let customers: ArrayRef = Arc::new(StringArray::from(vec!["ann", "bob", "cid"]));
    let rates: ArrayRef = Arc::new(Int64Array::from(vec![2, bob, 1]));
    let rows = RecordBatch::try_from_iter_with_nullable([("customer", customers, true), ("rate", rates, true)]);
    let rows = rows.expect("two columns");
    let path = project.folder.path().join("rates.parquet");
    let mut file = ParquetFileWriter::create(&path, rows.schema(), &BTreeMap::new()).expect("writable");
    file.write(&rows).expect("writable");
    file.finish().expect("writable");
}

fn keys(user: &str) -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from(vec![user]));
    RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys")
}

fn share_of(server: &Server, user: &str) -> Option<i64> {
    let plan = server.features.plan("sharing").expect("defined");
    let answer = server.features.lookup_with(&plan, &keys(user)).expect("looks up");
    answer["shares.share_2d"].as_primitive::<Int64Type>().iter().next().flatten()
}

fn by(why: &str) -> Signature {
    Signature { at: at(1_000), who: "ann".to_owned(), why: why.to_owned() }
}

async fn push(server: &Server, sequence: u64, events: &[Event]) -> Vec<String> {
    let header = PushHeader { producer: Some("till".to_owned()), sequence: Some(sequence), watermark: None };
    server.pushes.push("paid", batch(events), header).await.expect("taken").behind
}

/// A push of three events, one of them bob's.
const PUSHED: [Event; 3] = [("ann", 900, 900, Some(8.0)), ("bob", 901, 901, Some(50.0)), ("ann", 902, 902, Some(6.0))];

#[tokio::test]
async fn one_event_of_a_push_is_set_aside_listed_and_counted_once_when_it_passes() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    assert!(push(&server, 1, &PUSHED).await.is_empty());
    assert_eq!((share_of(&server, "ann"), share_of(&server, "bob")), (Some(9), None), "the others of the push count");
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    let (places, reason) = rated.set_aside().await;
    assert_eq!(places, [(1, 1)]);
    assert!(reason.contains("Divide by zero"), "{reason}");
    let of_view =
        |view: &str| server.features.status().expect("known").views.into_iter().find(|of| of.view.starts_with(view));
    assert_eq!(["shares@", "spending@"].map(|view| of_view(view).expect("live").set_aside), [1, 0]);
    let session = rated.project.jobs().full_session(&rated.state).await.expect("a session");
    let rows =
        session.query("SELECT user_name, \"@within\", amount FROM set_aside.shares WHERE \"@reason\" LIKE '%zero%'");
    let rows = rows.await.expect("runs");
    let rows: Vec<RecordBatch> = rows.into_iter().filter(|rows| rows.num_rows() > 0).collect();
    assert_eq!((rows[0].num_rows(), rows[0].column(0).as_string::<i32>().value(0)), (1, "bob"));
    assert!(session.query("SELECT * FROM set_aside.nothing").await.is_err());
    // While the cause stays nothing changes, and nothing is committed.
    let before = rated.log().await;
    assert_eq!(rated.retry().await, (0, 1));
    assert_eq!(rated.log().await, before);
    write_rates(&rated.project, 5);
    assert_eq!(rated.retry().await, (1, 0));
    assert_eq!(rated.retry().await, (0, 0));
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(10))]).await;
    let log = rated.log().await;
    assert_eq!((log.set_aside.events, log.set_aside.files.len(), log.late), (0, 0, 0));
    let commit = rated.project.jobs().log(&rated.view).commit_at(log.number).await.expect("readable").expect("there");
    assert_eq!((commit.kind, commit.signed), (ViewCommitKind::Retry, Some(by(""))));
    // Everything but object storage can be lost.
    drop(server);
    let disk = rated.project.folder.path().join("disk");
    closed(&disk).await;
    std::fs::remove_dir_all(disk).expect("deleted");
    rated.check(&rated.server().await, &[("ann", Some(9)), ("bob", Some(10))]).await;
}

#[tokio::test]
async fn the_file_of_events_that_are_set_aside_is_neither_garbage_nor_unchecked() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    push(&server, 1, &PUSHED).await;
    server.pushes.flush().await.expect("flushes");
    let jobs = rated.project.jobs();
    // Long after it was written.
    rated.project.clock.set(at(4_000_000_000));
    let collect = async || {
        let mut removed = 0;
        for _ in 0..2 {
            removed += jobs.collect_garbage(&rated.state, Span::ZERO).await.expect("collects").removed;
        }
        removed
    };
    assert_eq!(collect().await, 0);
    assert_eq!(rated.set_aside().await.0, [(1, 1)]);
    let wrong = async || {
        let checked = jobs.check(&rated.state, None, true).await.expect("checks");
        checked.into_iter().flat_map(|of| of.wrong).collect::<Vec<_>>()
    };
    assert_eq!(wrong().await, Vec::<String>::new());
    let path = rated.log().await.set_aside.files["paid"].path.clone();
    let (file, away) =
        (rated.project.folder.path().join("store").join(&path), rated.project.folder.path().join("away"));
    std::fs::rename(&file, &away).expect("moved");
    let found = wrong().await;
    assert!(found.iter().any(|wrong| wrong.contains(&path)), "{found:?}");
    std::fs::rename(&away, &file).expect("moved");
    jobs.drop_set_aside(&rated.view, &by("a test of the till")).await.expect("dropped");
    assert_eq!((collect().await, file.exists()), (1, false));
    assert_eq!(wrong().await, Vec::<String>::new());
}

#[tokio::test]
async fn who_tries_an_event_first_decides_for_the_tiers_and_for_the_commits() {
    for restarted in [false, true] {
        // It fails when it is applied, and would pass when it is committed.
        let rated = Rated::new(0).await;
        let mut server = rated.server().await;
        push(&server, 1, &PUSHED).await;
        write_rates(&rated.project, 5);
        if restarted {
            drop(server);
            server = rated.server().await;
        }
        server.pushes.flush().await.expect("flushes");
        server.features.follow(&()).await.expect("follows");
        assert_eq!((rated.set_aside().await.0, share_of(&server, "bob")), (vec![(1, 1)], None));
        assert_eq!(rated.retry().await, (1, 0));
        rated.check(&server, &[("ann", Some(9)), ("bob", Some(10))]).await;
        // It passes when it is applied, and fails when it is committed: the tier has it no more.
        push(&server, 2, &[("bob", 903, 903, Some(5.0)), ("cid", 903, 903, Some(7.0))]).await;
        assert_eq!((share_of(&server, "bob"), share_of(&server, "cid")), (Some(11), Some(7)));
        write_rates(&rated.project, 0);
        server.pushes.flush().await.expect("flushes");
        if restarted {
            drop(server);
            server = rated.server().await;
        }
        server.features.follow(&()).await.expect("follows");
        assert_eq!((share_of(&server, "bob"), share_of(&server, "cid")), (Some(10), Some(7)));
        write_rates(&rated.project, 5);
        assert_eq!(rated.retry().await, (1, 0));
        rated.check(&server, &[("bob", Some(11)), ("cid", Some(7))]).await;
    }
}

#[tokio::test]
async fn two_retries_and_a_flush_at_once_count_it_once() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    push(&server, 1, &PUSHED).await;
    server.pushes.flush().await.expect("flushes");
    write_rates(&rated.project, 5);
    push(&server, 2, &[("bob", 950, 950, Some(20.0))]).await;
    let (one, other, flushed) = tokio::join!(rated.retry(), rated.retry(), server.pushes.flush());
    flushed.expect("flushes");
    assert_eq!((one.0 + other.0, rated.log().await.set_aside.events), (1, 0));
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(14))]).await;
}

#[tokio::test]
async fn a_retry_that_is_killed_anywhere_or_hears_a_false_error_counts_each_event_once() {
    for dies in [true, false] {
        let rated = Rated::new(0).await;
        let server = rated.server().await;
        for (sequence, second) in (1..=8).zip(900..) {
            push(&server, sequence, &[("bob", second, second, Some(5.0)), ("ann", second, second, Some(2.0))]).await;
        }
        server.pushes.flush().await.expect("flushes");
        assert_eq!(rated.set_aside().await.0.len(), 8);
        write_rates(&rated.project, 5);
        let store = FaultyStore::new(Arc::clone(&rated.project.store));
        let mut fault = 0;
        // It may have done it and not know.
        while rated.log().await.set_aside.events > 0 {
            let jobs = rated.project.jobs_on(&(Arc::clone(&store) as Arc<dyn ObjectStore>));
            if dies {
                store.dies_after(fault);
            } else {
                store.acts_and_fails(fault);
            }
            let done = jobs.retry_set_aside(&rated.state, &rated.view, &by("")).await;
            store.is_whole();
            let left = rated.log().await.set_aside.events;
            assert!(left == 0 || left == 8 && done.is_err(), "all of them or none: {left}, {done:?}");
            fault += 1;
            assert!(fault < 500, "it never succeeds");
        }
        assert!(fault > 1, "some of them failed");
        assert_eq!(rated.retry().await, (0, 0));
        rated.check(&server, &[("ann", Some(10)), ("bob", Some(8))]).await;
    }
}

#[tokio::test]
async fn events_are_let_go_by_somebody_who_says_why() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    push(&server, 1, &PUSHED).await;
    server.pushes.flush().await.expect("flushes");
    let jobs = rated.project.jobs();
    let done = jobs.drop_set_aside(&rated.view, &by("a test of the till")).await.expect("dropped");
    assert_eq!((done.dropped, done.left), (1, 0));
    let number = done.commit.expect("committed");
    let commit = jobs.log(&rated.view).commit_at(number).await.expect("readable").expect("there");
    assert_eq!((commit.kind, commit.signed), (ViewCommitKind::Drop, Some(by("a test of the till"))));
    write_rates(&rated.project, 5);
    assert_eq!(rated.retry().await, (0, 0));
    server.features.follow(&()).await.expect("follows");
    assert_eq!((share_of(&server, "ann"), share_of(&server, "bob")), (Some(9), None));
    assert_eq!(jobs.drop_set_aside(&rated.view, &by("again")).await.expect("nothing").commit, None);
}

#[tokio::test]
async fn whoever_pushes_nothing_but_failing_events_costs_nobody_elses_anything() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    for sequence in 1..=3 {
        let events: Vec<Event> = (0..150).map(|second| ("bob", 700 + second, 0, Some(5.0))).collect();
        push(&server, sequence, &events).await;
    }
    // In one push with good events, and in one after it, a bad event costs only itself.
    push(&server, 4, &PUSHED).await;
    push(&server, 5, &[("cid", 903, 903, Some(7.0))]).await;
    server.features.follow(&()).await.expect("has them, however long it took to tell them apart");
    assert_eq!(["ann", "bob", "cid"].map(|user| share_of(&server, user)), [Some(9), None, Some(7)]);
    let total = &server.lookup(&[Some("bob")])["spending.payments_2d"];
    assert_eq!(total.as_primitive::<Int64Type>().value(0), 451, "other views have them");
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    let states: Vec<ViewState> =
        server.features.status().expect("known").views.into_iter().map(|of| of.state).collect();
    assert!(!states.iter().any(ViewState::is_unavailable), "{states:?}");
    assert_eq!(rated.log().await.set_aside.events, 451);
    write_rates(&rated.project, 5);
    assert_eq!(rated.retry().await, (451, 0));
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(460)), ("cid", Some(7))]).await;
}

#[tokio::test]
async fn more_failing_events_than_a_table_has_are_committed_and_counted_when_they_pass() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    let many: Vec<Event> = (0..12_000).map(|at| ("bob", 100 + at / 20, 0, Some(5.0))).collect();
    push(&server, 1, &many).await;
    server.pushes.flush().await.expect("flushes, however many they are");
    server.features.follow(&()).await.expect("follows");
    assert!(push(&server, 2, &[("ann", 900, 900, Some(8.0))]).await.is_empty(), "it goes on");
    assert_eq!(share_of(&server, "ann"), Some(6));
    server.pushes.flush().await.expect("flushes");
    let log = rated.log().await;
    let beyond: u64 = log.set_aside.beyond.iter().map(Beyond::events).sum();
    assert_eq!((log.set_aside.events, log.set_aside.files["paid"].rows, beyond), (12_000, MOST_SET_ASIDE, 2_000));
    write_rates(&rated.project, 5);
    assert_eq!(rated.retry().await, (12_000, 0));
    rated.check(&server, &[("ann", Some(6)), ("bob", Some(12_000))]).await;
}

#[tokio::test]
async fn a_view_that_is_defined_later_does_without_an_old_event_on_which_it_fails() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    write_rates(&project, 0);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    push(&server, 1, &[("cid", 890, 890, Some(7.0))]).await;
    push(&server, 2, &PUSHED).await;
    push(&server, 3, &[("cid", 910, 910, Some(1.0)), ("bob", 911, 911, Some(5.0))]).await;
    server.pushes.flush().await.expect("flushes");
    let state = project.apply(&(definitions() + SHARES)).await.expect("valid definitions");
    let view = state.live_views().into_iter().find(|view| view.name == "shares").expect("defined").clone();
    let done = project.jobs().refresh(&state, &view).await.expect("two events are nobody else's");
    assert_eq!((done.set_aside, done.rows), (2, 5));
    let rated = Rated { project, state, view };
    assert_eq!(rated.set_aside().await.0, [(2, 1), (3, 1)]);
    rated.check(&server, &[("ann", Some(9)), ("bob", None), ("cid", Some(8))]).await;
    write_rates(&rated.project, 5);
    assert_eq!(rated.retry().await, (2, 0));
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(11)), ("cid", Some(8))]).await;
}

#[tokio::test]
async fn a_backfill_leaves_out_an_event_on_which_the_view_still_fails() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    push(&server, 1, &PUSHED).await;
    server.pushes.flush().await.expect("flushes");
    let asked = BackfillAsked { from: None, until: None, every: Span::from_secs(86_400) };
    rated.project.jobs().backfill(&rated.state, &rated.view, asked, &()).await.expect("backfills");
    assert_eq!(rated.set_aside().await.0, [(1, 1)]);
    rated.check(&server, &[("ann", Some(9)), ("bob", None)]).await;
    write_rates(&rated.project, 5);
    assert_eq!(rated.retry().await, (1, 0));
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(10))]).await;
}

#[tokio::test]
async fn a_backfill_takes_out_the_events_that_it_has_computed_and_no_others() {
    let rated = Rated::new(0).await;
    let server = rated.server().await;
    push(&server, 1, &PUSHED).await;
    push(&server, 2, &[("bob", 600, 600, Some(5.0))]).await;
    server.pushes.flush().await.expect("flushes");
    assert_eq!(rated.set_aside().await.0, [(1, 1), (2, 0)]);
    write_rates(&rated.project, 5);
    let jobs = rated.project.jobs();
    let asked = |from, until| BackfillAsked { from, until, every: Span::from_secs(86_400) };
    let stretch = asked(Some(at(500)), Some(at(700)));
    jobs.backfill(&rated.state, &rated.view, stretch, &()).await.expect("backfills");
    assert_eq!(rated.set_aside().await.0, [(1, 1)], "that of the stretch counts");
    server.features.follow(&()).await.expect("follows");
    assert_eq!(share_of(&server, "bob"), Some(1));
    assert_eq!(rated.retry().await, (1, 0));
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(11))]).await;
    jobs.backfill(&rated.state, &rated.view, asked(None, None), &()).await.expect("backfills");
    rated.check(&server, &[("ann", Some(9)), ("bob", Some(11))]).await;
}
