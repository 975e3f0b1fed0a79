//! A clock that was a year ahead for one refresh: it is told, found, and mended by a command that is recorded.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::{BackfillAsked, ViewCommitKind};
use springhouse_featurestore::time::{Clock, Span, SystemClock, Timestamp};
use springhouse_materializer::Jobs;

use crate::project::{DEFINITIONS, TestProject, at, write_events};
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
