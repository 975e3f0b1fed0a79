//! Refreshes that read again what was pushed: of a view that looks back (`LOOKBACK`), and of one whose rows hold from the end of
//! their hour on. An event that is set aside stays among what was pushed, and costs none of them anything but itself.

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::BackfillAsked;
use springhouse_featurestore::time::Span;
use springhouse_materializer::refresh::Refreshed;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, refresh_all};
use crate::set_aside::write_rates;

/// Shares of what was paid, by a rate that a table has: the queries fail on a rate of 0.
const SHARES: &str = "
CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments.parquet';
CREATE EXTERNAL TABLE rates STORED AS PARQUET LOCATION 'rates.parquet';
CREATE SOURCE paid EVENT TIME paid_at AS SELECT user_name, paid_at, amount FROM payments;
CREATE SOURCE rated STATIC AS SELECT customer, rate FROM rates;
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW lately ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, paid_at, sum(CAST(amount AS BIGINT) / rate) OVER (PARTITION BY user_name ORDER BY paid_at
            RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS share
     FROM paid JOIN rated ON customer = user_name;
CREATE FEATURE VIEW hourly ENTITY user_account EVENT TIME ended_at REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, date_trunc('hour', paid_at) + INTERVAL '1 hour' AS ended_at,
            sum(CAST(amount AS BIGINT) / rate) AS share
     FROM paid JOIN rated ON customer = user_name GROUP BY user_name, date_trunc('hour', paid_at);
CREATE CONTRACT of_lately TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (lately FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(lately.share, 0) AS share) OUTPUT (limit FLOAT);
CREATE CONTRACT of_hourly TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (hourly FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(hourly.share, 0) AS share) OUTPUT (limit FLOAT);
";

/// A project of those views, refreshed at second 1,000, and a server of it.
struct Shared {
    project: TestProject,
    state: CatalogState,
    server: Server,
    sequence: u64,
}

impl Shared {
    /// Bob's rate is 0: the views fail on what he pays.
    async fn new() -> Self {
        let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
        write_rates(&project, 0);
        let state = project.apply(SHARES).await.expect("valid definitions");
        project.clock.set(at(1_000));
        refresh_all(&project, &state).await;
        let server = Server::start_on(&project, &project.store, 1 << 20).await;
        Self { project, state, server, sequence: 0 }
    }

    fn view(&self, name: &str) -> FeatureView {
        self.state.live_views().into_iter().find(|view| view.name == name).expect("defined").clone()
    }

    /// Pushes events; gives the names of the views that cannot have them now.
    async fn push(&mut self, events: &[Event]) -> Vec<String> {
        self.sequence += 1;
        let header = PushHeader { producer: Some("till".to_owned()), sequence: Some(self.sequence), watermark: None };
        self.server.pushes.push("paid", batch(events), header).await.expect("taken").behind
    }

    async fn flush(&self) {
        self.server.pushes.flush().await.expect("flushes");
        self.follow().await;
    }

    async fn follow(&self) {
        self.server.features.follow(&()).await.expect("follows");
    }

    /// Refreshes a view at a second, and follows.
    async fn refresh(&self, view: &str, second: i64) -> Refreshed {
        self.project.clock.set(at(second));
        let done = self.project.jobs().refresh(&self.state, &self.view(view)).await.expect("refreshes");
        self.follow().await;
        done
    }

    async fn set_aside(&self, view: &str) -> u64 {
        self.project.jobs().log(&self.view(view)).state().await.expect("readable").set_aside.events
    }

    /// Tries the events of a view again: how many count now, and how many are left.
    async fn retry(&self, view: &str) -> (u64, u64) {
        let done = self.project.jobs().retry_set_aside(&self.state, &self.view(view), &by()).await.expect("tried");
        self.follow().await;
        (done.counted, done.left)
    }

    /// The share that a view has of a user online.
    fn online(&self, view: &str, user: &str) -> Option<i64> {
        let users: ArrayRef = std::sync::Arc::new(StringArray::from(vec![user]));
        let keys = RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
        let plan = self.server.features.plan(&format!("of_{view}")).expect("defined");
        let answer = self.server.features.lookup_with(&plan, &keys).expect("looks up");
        answer[format!("{view}.share").as_str()].as_primitive::<Int64Type>().iter().next().flatten()
    }

    /// The same as of a second, of what is committed and of the sources.
    async fn offline(&self, view: &str, user: &str, second: i64) -> [Option<i64>; 2] {
        let from = format!("SELECT '{user}' AS user_name, to_timestamp({second}) AT TIME ZONE 'UTC' AS t");
        let contract = self.state.current_contract(&format!("of_{view}")).expect("defined");
        let mut found = [None; 2];
        for (found, rows) in found.iter_mut().zip([RowsFrom::Committed, RowsFrom::Sources]) {
            let spine = SpineSource { from: from.clone(), time: "t".to_owned(), lag: Span::ZERO };
            let request =
                TrainingSetRequest { spine, rows, as_of: AsOf::Known, with_features: true, order: SpineOrder::AsGiven };
            let set = self.project.jobs().training_set(&self.state, contract, &request).await.expect("plans");
            let batches: Vec<RecordBatch> = set.execute().try_collect().await.expect("runs");
            let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
            *found = all[format!("{view}.share").as_str()].as_primitive::<Int64Type>().iter().next().flatten();
        }
        found
    }
}

fn by() -> Signature {
    Signature { at: at(1_000), who: "ann".to_owned(), why: "a test".to_owned() }
}

#[tokio::test]
async fn a_view_that_looks_back_goes_on_after_an_event_on_which_it_fails() {
    let mut shared = Shared::new().await;
    assert!(shared.push(&[("ann", 900, 0, Some(8.0)), ("bob", 901, 0, Some(50.0))]).await.is_empty());
    // It lies within what these look back to.
    assert!(shared.push(&[("ann", 902, 0, Some(6.0)), ("cid", 903, 0, Some(7.0))]).await.is_empty());
    let shown = |shared: &Shared| ["ann", "bob", "cid"].map(|user| shared.online("lately", user));
    assert_eq!(shown(&shared), [Some(9), None, Some(7)]);
    shared.flush().await;
    assert_eq!((shared.set_aside("lately").await, shown(&shared)), (1, [Some(9), None, Some(7)]));
    let done = shared.refresh("lately", 1_200).await;
    assert_eq!((done.set_aside, shown(&shared)), (0, [Some(9), None, Some(7)]));
    assert!(shared.push(&[("ann", 1_100, 0, Some(2.0))]).await.is_empty());
    assert_eq!(shown(&shared), [Some(10), None, Some(7)]);
    shared.flush().await;
    shared.refresh("lately", 1_300).await;
    for (user, share) in [("ann", Some(10)), ("bob", None)] {
        assert_eq!(shared.offline("lately", user, 1_000).await, [share.map(|_| 9); 2], "{user}");
        assert_eq!(shared.online("lately", user), share, "{user}");
    }
    write_rates(&shared.project, 5);
    assert_eq!((shared.retry("lately").await, shown(&shared)), ((1, 0), [Some(10), Some(10), Some(7)]));
    assert_eq!(shared.offline("lately", "bob", 1_000).await, [Some(10); 2]);
    // It counts in what comes after it.
    assert!(shared.push(&[("bob", 1_250, 0, Some(5.0))]).await.is_empty());
    assert_eq!(shared.online("lately", "bob"), Some(11));
    shared.flush().await;
    shared.refresh("lately", 1_400).await;
    assert_eq!(shared.online("lately", "bob"), Some(11));
}

#[tokio::test]
async fn an_hour_is_refreshed_without_an_event_on_which_it_fails_and_has_it_once_that_passes() {
    let mut shared = Shared::new().await;
    shared.push(&[("ann", 900, 0, Some(8.0)), ("bob", 901, 0, Some(50.0))]).await;
    shared.push(&[("cid", 902, 0, Some(3.0))]).await;
    shared.flush().await;
    assert_eq!(shared.set_aside("hourly").await, 0, "it has pushes by its refreshes");
    let shown = |shared: &Shared| ["ann", "bob", "cid"].map(|user| shared.online("hourly", user));
    let done = shared.refresh("hourly", 3_600).await;
    assert_eq!((done.set_aside, shown(&shared)), (1, [Some(6), None, Some(3)]));
    // It is of the hour that a late one belongs to.
    shared.project.clock.set(at(3_700));
    shared.push(&[("ann", 2_000, 0, Some(6.0))]).await;
    shared.flush().await;
    let done = shared.refresh("hourly", 3_700).await;
    assert_eq!((done.set_aside, shown(&shared)), (0, [Some(9), None, Some(3)]));
    write_rates(&shared.project, 5);
    assert_eq!((shared.retry("hourly").await, shown(&shared)), ((1, 0), [Some(9), Some(10), Some(3)]));
    shared.push(&[("bob", 3_650, 0, Some(20.0))]).await;
    shared.flush().await;
    shared.refresh("hourly", 7_200).await;
    assert_eq!(shown(&shared), [Some(9), Some(4), Some(3)]);
    for (user, second, share) in [("ann", 3_600, 9), ("bob", 3_600, 10), ("bob", 7_200, 4), ("cid", 3_600, 3)] {
        assert_eq!(shared.offline("hourly", user, second).await, [Some(share); 2], "{user} at {second}");
    }
}

#[tokio::test]
async fn many_failing_events_of_a_pusher_leave_a_view_that_looks_back_to_the_others() {
    let mut shared = Shared::new().await;
    let many: Vec<Event> = (0..150).map(|second| ("bob", 700 + second, 0, Some(5.0))).collect();
    for _ in 0..2 {
        shared.push(&many).await;
    }
    shared.push(&[("ann", 900, 0, Some(8.0)), ("bob", 901, 0, Some(5.0)), ("ann", 902, 0, Some(6.0))]).await;
    shared.follow().await;
    assert_eq!((shared.online("lately", "ann"), shared.online("lately", "bob")), (Some(9), None));
    shared.flush().await;
    shared.refresh("lately", 1_200).await;
    shared.refresh("hourly", 3_600).await;
    assert_eq!([shared.set_aside("lately").await, shared.set_aside("hourly").await], [301, 301]);
    assert_eq!((shared.online("lately", "ann"), shared.online("hourly", "ann")), (Some(9), Some(9)));
    write_rates(&shared.project, 5);
    assert_eq!([shared.retry("lately").await, shared.retry("hourly").await], [(301, 0); 2]);
    assert_eq!((shared.online("lately", "bob"), shared.online("hourly", "bob")), (Some(301), Some(301)));
}

#[tokio::test]
async fn a_refresh_finds_the_event_that_it_fails_on_though_it_was_taken_before() {
    let mut shared = Shared::new().await;
    write_rates(&shared.project, 5);
    shared.push(&[("ann", 900, 0, Some(8.0)), ("bob", 901, 0, Some(50.0)), ("cid", 902, 0, Some(3.0))]).await;
    shared.flush().await;
    assert_eq!(shared.online("lately", "bob"), Some(10));
    write_rates(&shared.project, 0);
    // One that comes before the refresh is not its victim.
    assert_eq!(shared.push(&[("cid", 903, 0, Some(1.0))]).await, ["lately"]);
    let done = shared.refresh("lately", 1_200).await;
    assert_eq!((done.set_aside, shared.set_aside("lately").await), (1, 1));
    assert_eq!(shared.online("lately", "cid"), Some(4));
    assert_eq!(shared.refresh("lately", 1_300).await.set_aside, 0);
    // The server knows of it as well.
    assert!(shared.push(&[("ann", 1_250, 0, Some(2.0))]).await.is_empty());
    shared.flush().await;
    assert_eq!((shared.online("lately", "ann"), shared.set_aside("lately").await), (Some(7), 1));
    write_rates(&shared.project, 5);
    assert_eq!((shared.retry("lately").await, shared.online("lately", "bob")), ((1, 0), Some(10)));
}

#[tokio::test]
async fn an_event_that_was_retried_counts_in_rows_that_look_back_to_it_after_a_restart() {
    let mut shared = Shared::new().await;
    write_rates(&shared.project, 5);
    shared.push(&[("bob", 900, 0, Some(50.0))]).await;
    assert_eq!(shared.online("lately", "bob"), Some(10));
    // The flush fails on what the tier has taken: its note stays until the tier is without it.
    write_rates(&shared.project, 0);
    shared.flush().await;
    assert_eq!((shared.set_aside("lately").await, shared.online("lately", "bob")), (1, None));
    for restarts in [false, true] {
        if restarts {
            let Shared { project, state, server, sequence } = shared;
            drop(server);
            let server = Server::start_on(&project, &project.store, 1 << 20).await;
            shared = Shared { project, state, server, sequence };
        }
        write_rates(&shared.project, 5);
        // Of the second time there is nothing left to try.
        let retried = if restarts { (0, 0) } else { (1, 0) };
        assert_eq!(shared.retry("lately").await, retried);
        let (second, share) = if restarts { (960, 12) } else { (950, 11) };
        assert!(shared.push(&[("bob", second, 0, Some(5.0))]).await.is_empty());
        assert_eq!(shared.online("lately", "bob"), Some(share), "restarted: {restarts}");
        if restarts {
            shared.flush().await;
            assert_eq!(shared.online("lately", "bob"), Some(share));
            assert_eq!(shared.offline("lately", "bob", 1_000).await, [Some(share); 2]);
        }
    }
    assert_eq!(shared.offline("lately", "bob", 955).await, [Some(11); 2]);
}

#[tokio::test]
async fn a_row_of_history_on_which_a_view_fails_is_an_error_and_sets_nothing_aside() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0)), ("bob", 950, 950, Some(5.0))]);
    write_rates(&project, 5);
    let state = project.apply(SHARES).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    let mut shared = Shared { project, state, server, sequence: 0 };
    shared.push(&[("ann", 900, 0, Some(8.0)), ("bob", 901, 0, Some(50.0))]).await;
    shared.flush().await;
    write_rates(&shared.project, 0);
    shared.project.clock.set(at(1_200));
    let view = shared.view("lately");
    let error = shared.project.jobs().refresh(&shared.state, &view).await.expect_err("a row of history");
    assert!(error.kind() == ErrorKind::Invalid && error.chain().contains("Divide by zero"), "{}", error.chain());
    assert_eq!(shared.set_aside("lately").await, 0);
}

#[tokio::test]
async fn an_event_that_was_let_go_stays_away_from_refreshes_until_a_backfill_counts_it() {
    let mut shared = Shared::new().await;
    shared.push(&[("ann", 900, 0, Some(8.0)), ("bob", 901, 0, Some(50.0))]).await;
    shared.flush().await;
    let (view, jobs) = (shared.view("lately"), shared.project.jobs());
    assert_eq!(jobs.drop_set_aside(&view, &by()).await.expect("dropped").dropped, 1);
    let done = shared.refresh("lately", 1_200).await;
    assert_eq!((done.set_aside, shared.set_aside("lately").await), (0, 0));
    write_rates(&shared.project, 5);
    shared.refresh("lately", 1_300).await;
    assert!(shared.push(&[("ann", 1_250, 0, Some(2.0))]).await.is_empty());
    assert_eq!(["ann", "bob"].map(|user| shared.online("lately", user)), [Some(7), None]);
    shared.flush().await;
    let asked = BackfillAsked { from: None, until: None, every: Span::from_secs(86_400) };
    jobs.backfill(&shared.state, &view, asked, &()).await.expect("backfills");
    shared.refresh("lately", 1_400).await;
    assert_eq!(["ann", "bob"].map(|user| shared.online("lately", user)), [Some(7), Some(10)]);
}
