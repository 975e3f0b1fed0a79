//! A clock that was a year ahead for one refresh: it is told, found, and mended by a command that is recorded.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::object_storage::api as object_storage;
use springhouse_featurestore::tier::{BackfillAsked, ObjectStore, ViewCommitKind};
use springhouse_featurestore::time::{Clock, Span, SystemClock, Timestamp};
use springhouse_materializer::Jobs;
use springhouse_materializer::backfill::Backfilled;

use crate::backfill::{self, committed, rows_of};
use crate::faulty_store::FaultyStore;
use crate::meanwhile::{Call, Meddled};
use crate::project::{DEFINITIONS, Event, TestProject, at, write_events};
use crate::push::{Server, refresh_all};
use crate::windows::definitions;

const YEAR: i64 = 365 * 86_400;

/// What a check finds wrong.
async fn wrong(project: &TestProject, state: &CatalogState) -> Vec<String> {
    let checked = project.jobs().check(state, None, true).await.expect("checks");
    checked.into_iter().flat_map(|of| of.wrong).collect()
}

async fn times(project: &TestProject, view: &FeatureView) -> [Option<Timestamp>; 2] {
    let state = project.jobs().log(view).state().await.expect("readable");
    [state.watermark, state.read_until]
}

#[tokio::test]
async fn a_view_that_is_ahead_of_the_clock_is_found_and_set_back() {
    let project = TestProject::new(&[("ann", 100, 100, Some(1.0)), ("ann", 5_000, 5_000, Some(2.0))]);
    let text = definitions()
        + "CREATE FEATURE VIEW homes ENTITY user_account REFRESH EVERY '1 hour' \
           AS SELECT customer AS user_name, branch FROM branches;";
    let state = project.apply(&text).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    assert_eq!(wrong(&project, &state).await, Vec::<String>::new());
    let view = |name: &str| state.live_views().into_iter().find(|view| view.name == name).expect("defined");
    let by = Signature { at: at(1_000), who: "dora".to_owned(), why: "the clock was wrong".to_owned() };
    let every = Span::from_secs(100_000);
    let error = project.jobs().reset(&state, view("spending"), every, by.clone(), &()).await.expect_err("not ahead");
    assert!(error.to_string().contains("not ahead of the clock"), "{error}");
    // A year ahead, and back.
    project.clock.set(at(1_000 + YEAR));
    refresh_all(&project, &state).await;
    project.clock.set(at(2_000));
    let found = wrong(&project, &state).await;
    for name in ["spending", "last_payment", "homes"] {
        let named =
            |text: &&String| text.contains(&at(1_000 + YEAR).to_string()) && text.contains(&format!("backfill {name}"));
        assert_eq!(found.iter().filter(named).count(), 1, "{name}: {found:?}");
    }
    // An ordinary backfill moves nothing back.
    let asked = BackfillAsked { from: None, until: None, every };
    project.jobs().backfill(&state, view("spending"), asked, &()).await.expect("backfills");
    assert_eq!(times(&project, view("spending")).await, [Some(at(1_000 + YEAR)); 2]);
    for view in state.live_views() {
        project.jobs().reset(&state, view, every, by.clone(), &()).await.expect("sets back");
        assert_eq!(times(&project, view).await, [Some(at(2_000)); 2], "{}", view.name);
        let commits = project.jobs().log(view).commits_after(0).await.expect("readable");
        let (_, newest) = commits.last().expect("there are some");
        let kind = if view.is_static() { ViewCommitKind::Replace } else { ViewCommitKind::Backfill };
        assert_eq!((newest.kind, newest.signed.as_ref()), (kind, Some(&by)), "{}", view.name);
    }
    assert_eq!(wrong(&project, &state).await, Vec::<String>::new());
    // What happens from then on is taken in as if nothing had been.
    let server = Server::start_on(&project, &project.store, 0).await;
    let total = |server: &Server| {
        let answer = server.lookup(&[Some("ann")]);
        let status = answer["spending@status"].as_string::<i32>().value(0).to_owned();
        (answer["spending.total_2d"].as_primitive::<Float64Type>().value(0), status)
    };
    assert_eq!(total(&server), (1.0, "fresh".to_owned()));
    project.clock.set(at(6_000));
    assert_eq!(total(&server).1, "stale", "nobody has refreshed it");
    refresh_all(&project, &state).await;
    server.features.follow(&()).await.expect("follows");
    assert_eq!(total(&server), (3.0, "fresh".to_owned()));
}

/// What history has, and an event of a new file, which is known after the time to which a view is set back.
const OLD: Event = ("ann", 100, 100, Some(1.0));
const NEW: Event = ("ann", 2_100, 2_100, Some(2.0));

/// A project whose table is a folder, with a view of windows that was refreshed by a clock that was a year ahead.
async fn ahead() -> (TestProject, CatalogState, FeatureView) {
    let project = TestProject::new(&[]);
    std::fs::create_dir(project.folder.path().join("payments")).expect("writable");
    write_events(&project.folder.path().join("payments/1.parquet"), &[OLD]);
    let text = backfill::definitions().replace("LOCATION 'payments.parquet'", "LOCATION 'payments/'");
    let state = project.apply(&text).await.expect("valid definitions");
    let view = state.live_views().into_iter().find(|view| view.name == "spent").expect("defined").clone();
    for second in [1_000, 1_000 + YEAR] {
        project.clock.set(at(second));
        refresh_all(&project, &state).await;
    }
    project.clock.set(at(2_000));
    (project, state, view)
}

/// A refresh takes all of the new file.
async fn refresh_with_new(project: &TestProject, state: &CatalogState, view: &FeatureView) {
    write_events(&project.folder.path().join("payments/2.parquet"), &[NEW]);
    project.clock.set(at(2_200));
    project.jobs().refresh(state, view).await.expect("refreshes");
}

async fn set_back(jobs: &Jobs, state: &CatalogState, view: &FeatureView) -> Result<Backfilled> {
    let by = Signature { at: at(2_000), who: "dora".to_owned(), why: "the clock was wrong".to_owned() };
    jobs.reset(state, view, Span::from_secs(100_000), by, &()).await
}

#[tokio::test]
async fn a_refresh_while_a_view_is_set_back_counts_nothing_twice() {
    let mut refused = 0;
    for call in 0..60 {
        let (project, state, view) = ahead().await;
        let store = FaultyStore::new(Arc::clone(&project.store));
        let jobs = project.jobs_on(&(Arc::clone(&store) as Arc<dyn ObjectStore>));
        store.stops_at(call);
        let mut reset = Box::pin(set_back(&jobs, &state, &view));
        let done = tokio::select! {
            biased;
            () = store.stopped() => None,
            done = &mut reset => Some(done),
        };
        store.is_whole();
        let undisturbed = done.is_some();
        let done = if let Some(done) = done {
            done
        } else {
            refresh_with_new(&project, &state, &view).await;
            store.goes_on();
            reset.await
        };
        if let Err(error) = done {
            assert!(error.to_string().contains("run the backfill again"), "call {call}: {}", error.chain());
            refused += 1;
            set_back(&project.jobs(), &state, &view).await.expect("sets back");
        }
        project.clock.set(at(3_000));
        project.jobs().refresh(&state, &view).await.expect("refreshes");
        assert_eq!(times(&project, &view).await, [Some(at(3_000)); 2], "call {call}");
        let expected: &[Event] = if undisturbed { &[OLD] } else { &[OLD, NEW] };
        assert_eq!(committed(&project, &view).await, rows_of(expected), "call {call}");
        if undisturbed {
            break;
        }
    }
    assert!(refused > 0, "some came between");
}

#[tokio::test]
async fn a_reset_that_was_cut_off_begins_anew_after_a_refresh() {
    let (project, state, view) = ahead().await;
    // Its ranges are computed, and its commit is not there.
    let away = Meddled::of(&project.store, |call, path| {
        let commits = call == Call::Put && path.contains("views/spent/") && path.contains("/log/");
        Box::pin(async move {
            let failed = object_storage::Error::Generic { store: "meddled", source: path.into() };
            if commits { Err(failed) } else { Ok(()) }
        })
    });
    set_back(&project.jobs_on(&away), &state, &view).await.expect_err("cut off");
    refresh_with_new(&project, &state, &view).await;
    let done = set_back(&project.jobs(), &state, &view).await.expect("sets back");
    assert_eq!(done.resumed, 0, "it begins anew");
    project.clock.set(at(3_000));
    project.jobs().refresh(&state, &view).await.expect("refreshes");
    assert_eq!(committed(&project, &view).await, rows_of(&[OLD, NEW]));
}

/// The machine's clock, some hours off.
#[derive(Debug)]
struct Off(i64);

impl Clock for Off {
    fn now(&self) -> Timestamp {
        SystemClock.now() + Span::from_secs(self.0 * 3_600)
    }

    fn is_the_machines(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_refresh_at_a_clock_ahead_of_object_storage_says_so() {
    for (hours, told) in [(0, false), (2, true)] {
        let project = TestProject::new(&[("ann", 100, 100, Some(1.0))]);
        let state = project.apply(DEFINITIONS).await.expect("valid definitions");
        let jobs = Jobs::new(Arc::clone(&project.store), project.options(), Arc::new(Off(hours)), 7);
        let done = jobs.refresh(&state, state.live_views()[0]).await.expect("refreshes");
        assert_eq!(done.clock_ahead.is_some_and(|ahead| ahead > Span::from_secs(3_600)), told, "{hours} hours");
    }
    // A replay is at another time than object storage, and means to be.
    let project = TestProject::new(&[]);
    write_events(&project.folder.path().join("payments.parquet"), &[("ann", 100, 100, Some(1.0))]);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    project.clock.set(SystemClock.now() + Span::from_secs(YEAR));
    let done = project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    assert_eq!(done.clock_ahead, None);
}
