//! What is flushed and has not come to every view: a process ended between, or a view's commits fail. What producers say holds
//! for views that have all of their pushes (rule T6), and who changes a producer waits for no view of another source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, Int64Type};
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::object_storage::api as object_storage;
use springhouse_featurestore::push::{EventSink, ProducerChange, PushHeader};
use springhouse_featurestore::tier::ObjectStore;
use springhouse_featurestore::time::{Span, Timestamp};

use crate::meanwhile::{Call, Meddled};
use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, refresh_all};
use crate::windows::definitions;

/// The usual definitions, of a source whose events are known when they happen, a view that reaches back, and another source.
fn text() -> String {
    definitions().replace(" AVAILABLE AT known_at", "").replace(", known_at", "")
        + "
CREATE FEATURE VIEW lately ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, paid_at,
            sum(amount) OVER (PARTITION BY user_name ORDER BY paid_at RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS much
     FROM paid;
CREATE SOURCE seen EVENT TIME seen_at AS PUSHED (user_name VARCHAR, seen_at TIMESTAMP);
CREATE FEATURE VIEW last_seen ENTITY user_account REFRESH EVERY '1 minute' AS SELECT user_name, seen_at, 1 AS there FROM seen;
CREATE CONTRACT summing TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (lately FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(lately.much, -1) AS much) OUTPUT (fraud_probability FLOAT);
"
}

fn seen(user: &str, second: i64) -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from(vec![user]));
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![second * 1_000_000]).with_timezone("UTC"));
    RecordBatch::try_from_iter_with_nullable([("user_name", users, true), ("seen_at", times, true)])
        .expect("two columns")
}

/// What a store does with the calls of a kind whose paths hold these words, while it is on.
struct Trouble {
    on: Arc<AtomicBool>,
    store: Arc<dyn ObjectStore>,
}

impl Trouble {
    /// They are answered with an error, or panic.
    fn before(project: &TestProject, kind: Call, words: &'static [&'static str], panics: bool) -> Self {
        let on = Arc::new(AtomicBool::new(false));
        let is_on = Arc::clone(&on);
        let store = Meddled::of(&project.store, move |call, path| {
            let due = is_on.load(Ordering::SeqCst) && call == kind && words.iter().all(|word| path.contains(word));
            Box::pin(async move {
                assert!(!(due && panics), "{path} is strange");
                if due { Err(object_storage::Error::Generic { store: "meddled", source: path.into() }) } else { Ok(()) }
            })
        });
        Self { on, store }
    }

    fn is_on(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }
}

/// A project that was refreshed at 1000.
async fn begun(events: &[Event]) -> (TestProject, CatalogState) {
    let project = TestProject::new(events);
    let state = project.apply(&text()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    (project, state)
}

fn view_of(state: &CatalogState, name: &str) -> FeatureView {
    state.live_views().into_iter().find(|view| view.name == name).expect("defined").clone()
}

async fn watermark(project: &TestProject, view: &FeatureView) -> Timestamp {
    project.jobs().log(view).state().await.expect("readable").watermark.expect("refreshed")
}

fn until(second: i64) -> PushHeader {
    PushHeader { producer: Some("till".to_owned()), sequence: None, watermark: Some(at(second)) }
}

fn by() -> Signature {
    Signature { at: at(2_000), who: "dora".to_owned(), why: "it was wrong".to_owned() }
}

#[tokio::test]
async fn a_refresh_promises_no_pushes_that_are_flushed_and_have_not_come_to_its_view() {
    let (project, state) = begun(&[("ann", 100, 100, Some(1.0))]).await;
    let (spending, last) = (view_of(&state, "spending"), view_of(&state, "last_payment"));
    let away = Trouble::before(&project, Call::Put, &["spending"], false);
    let server = Server::start_on(&project, &away.store, 0).await;
    project.clock.set(at(1_500));
    away.is_on(true);
    server.pushes.push("paid", batch(&[("ann", 1_400, 1_400, Some(2.0))]), until(1_500)).await.expect("taken");
    // Of another source, behind it in the same flush.
    server.pushes.push("seen", seen("ann", 1_450), until(1_450)).await.expect("taken");
    let error = server.pushes.flush().await.expect_err("one view's commit fails");
    assert!(error.to_string().contains("view: spending"), "{}", error.chain());
    drop(server);
    project.clock.set(at(2_000));
    let done = project.jobs().refresh(&state, &spending).await.expect("refreshes");
    assert_eq!(done.watermark, at(1_000), "the push of 1400 is not in it");
    let held_back = done.held_back.expect("by what it lacks");
    assert_eq!((held_back.source.as_str(), held_back.lacks_pushes), ("paid", true));
    // Other views have all of theirs, and are as far as producers say.
    let done = project.jobs().refresh(&state, &last).await.expect("refreshes");
    assert_eq!((done.watermark, done.held_back.expect("by its producer").lacks_pushes), (at(1_500), false));
    // The next flush brings it, and with it what had been said.
    let server = Server::start_on(&project, &project.store, 0).await;
    server.pushes.flush().await.expect("flushes");
    assert_eq!(watermark(&project, &spending).await, at(1_500));
    project.clock.set(at(2_100));
    let done = project.jobs().refresh(&state, &spending).await.expect("refreshes");
    assert_eq!((done.watermark, done.held_back.expect("by its producer").lacks_pushes), (at(1_500), false));
    server.features.follow(&()).await.expect("follows");
    let answer = server.lookup(&[Some("ann")]);
    assert!((answer["spending.total_2d"].as_primitive::<Float64Type>().value(0) - 3.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_view_that_is_set_back_promises_no_pushes_that_it_lacks() {
    let (project, state) = begun(&[("ann", 100, 100, Some(1.0))]).await;
    let spending = view_of(&state, "spending");
    let away = Trouble::before(&project, Call::Put, &["spending"], false);
    let server = Server::start_on(&project, &away.store, 0).await;
    project.clock.set(at(1_500));
    away.is_on(true);
    server.pushes.push("paid", batch(&[("ann", 1_400, 1_400, Some(2.0))]), until(1_500)).await.expect("taken");
    drop(server.pushes.flush().await.expect_err("one view's commit fails"));
    drop(server);
    project.clock.set(at(1_000_000));
    project.jobs().refresh(&state, &spending).await.expect("refreshes");
    project.clock.set(at(2_000));
    let every = Span::from_secs(100_000);
    project.jobs().reset(&state, &spending, every, by(), &()).await.expect("sets back");
    assert_eq!(watermark(&project, &spending).await, at(1_400) - Span::from_micros(1));
    let server = Server::start_on(&project, &project.store, 0).await;
    server.pushes.flush().await.expect("flushes");
    assert_eq!(watermark(&project, &spending).await, at(1_500));
}

#[tokio::test]
async fn a_view_that_cannot_be_committed_stops_no_correction_of_another_sources_producer() {
    let (project, _) = begun(&[("ann", 100, 100, Some(1.0))]).await;
    let away = Trouble::before(&project, Call::Put, &["spending"], false);
    let server = Server::start_on(&project, &away.store, 0).await;
    project.clock.set(at(1_500));
    away.is_on(true);
    let sent = |sequence, second| PushHeader { sequence: Some(sequence), ..until(second) };
    server.pushes.push("paid", batch(&[("ann", 1_400, 1_400, Some(2.0))]), sent(1, 1_400)).await.expect("taken");
    server.pushes.push("seen", seen("ann", 1_400), sent(7, 1_450)).await.expect("taken");
    assert!(server.pushes.flush().await.is_err(), "one view's commit fails");
    let change = |change| server.pushes.change_producer("seen", "till", change, by());
    let changed = change(ProducerChange::Sequence(3)).await.expect("changed");
    assert_eq!(changed.sequence, Some(3));
    let changed = change(ProducerChange::Watermark(at(1_200))).await.expect("changed");
    assert_eq!(changed.watermark, Some(at(1_200)));
    assert_eq!(watermark(&project, &view_of(&project.state().await, "last_seen")).await, at(1_200), "it is set back");
    // Of its own source's views it is told.
    let error = server.pushes.change_producer("paid", "till", ProducerChange::Watermark(at(900)), by()).await;
    let error = error.expect_err("it cannot be set back");
    assert!(error.to_string().contains("view: spending"), "{}", error.chain());
}

#[tokio::test]
async fn a_flush_that_panics_is_a_failure_of_its_view_and_the_next_one_goes_on() {
    let (project, state) = begun(&[("ann", 100, 100, Some(1.0))]).await;
    let (spending, last) = (view_of(&state, "spending"), view_of(&state, "last_payment"));
    let strange = Trouble::before(&project, Call::Put, &["spending"], true);
    let server = Server::start_on(&project, &strange.store, 0).await;
    project.clock.set(at(1_500));
    strange.is_on(true);
    server.pushes.push("paid", batch(&[("ann", 1_400, 1_400, Some(2.0))]), until(1_500)).await.expect("taken");
    let error = server.pushes.flush().await.expect_err("it panics");
    assert!(error.to_string().contains("view: spending"), "{}", error.chain());
    assert_eq!((watermark(&project, &spending).await, watermark(&project, &last).await), (at(1_000), at(1_500)));
    strange.is_on(false);
    server.pushes.push("paid", batch(&[("bob", 1_450, 1_450, Some(4.0))]), until(1_500)).await.expect("taken");
    server.pushes.flush().await.expect("flushes");
    assert_eq!(watermark(&project, &spending).await, at(1_500));
}

#[tokio::test]
async fn a_panic_while_pushes_are_applied_costs_its_view_alone() {
    let (project, _) = begun(&[("ann", 100, 100, Some(1.0))]).await;
    // What it reaches back to is read while pushes are applied.
    let strange = Trouble::before(&project, Call::Get, &["pushes/data"], true);
    let server = Server::start_on(&project, &strange.store, 0).await;
    project.clock.set(at(1_500));
    let much = |user: &str| {
        let users: ArrayRef = Arc::new(StringArray::from(vec![user]));
        let keys = RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
        let answer = server.features.lookup_with(&server.features.plan("summing").expect("defined"), &keys);
        answer.expect("looks up")["lately.much"].as_primitive::<Float64Type>().iter().next().flatten()
    };
    server.pushes.push("paid", batch(&[("ann", 1_400, 1_400, Some(2.0))]), until(1_400)).await.expect("taken");
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    assert_eq!(much("ann"), Some(3.0));
    strange.is_on(true);
    for second in [1_450, 1_460] {
        let ack = server.pushes.push("paid", batch(&[("ann", second, second, Some(5.0))]), until(second)).await;
        assert_eq!(ack.expect("taken").behind, ["lately"], "it alone is behind");
    }
    let answer = server.lookup(&[Some("ann")]);
    assert_eq!(answer["spending.payments_2d"].as_primitive::<Int64Type>().value(0), 4, "the others have them");
    strange.is_on(false);
    server.features.follow(&()).await.expect("follows");
    assert_eq!(much("ann"), Some(13.0), "it has them when it can");
    let ack = server.pushes.push("paid", batch(&[("ann", 1_470, 1_470, Some(1.0))]), until(1_470)).await;
    assert_eq!(ack.expect("taken").behind, Vec::<String>::new());
    let unknown = server.pushes.push("nothing", batch(&[]), until(1_470)).await.expect_err("no such source");
    assert_ne!(unknown.kind(), ErrorKind::Unavailable);
}
