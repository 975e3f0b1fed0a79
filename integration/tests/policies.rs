//! Meaning and policy: data and packages are bound to what definitions mean; what they only rule holds at once.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::Float32Type;
use springhouse_featurestore::catalog::{Catalog, CatalogCommit, CatalogState, Change};
use springhouse_featurestore::definition::{Definition, DefinitionKind, Version};
use springhouse_featurestore::tier::{DiskTier, open_store};
use springhouse_featurestore::time::{DrivenClock, Span, Timestamp};
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_serving::FeatureServer;
use springhouse_serving::app::direct;
use springhouse_serving::worker::{Answer, Contracts, Question, WorkerOptions};
use springhouse_sql::change_plan::{Action, ChangePlan};

use crate::project::{DEFINITIONS, TestProject, at};
use crate::wire::deployed;

struct Served {
    features: Arc<FeatureServer>,
    contracts: Contracts,
}

impl Served {
    fn new(project: &TestProject) -> Self {
        let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
        let features = FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone());
        let features = Arc::new(features);
        let contracts = Contracts::new(direct(&features), WorkerOptions::default()).expect("a session");
        Self { features, contracts }
    }

    /// What a request of one row is answered once everything that was committed is followed.
    async fn ask(&self, contract: &str, columns: Vec<ArrayRef>) -> Result<Answer> {
        self.features.follow(&()).await.expect("readable");
        self.contracts.follow().await.expect("the package loads");
        let worker = self.contracts.worker(contract, "").expect("served");
        worker.ask(Question { columns, rows: 1, deadline: None, caller: None }).await
    }
}

fn of_ann() -> Vec<ArrayRef> {
    ["ann", "NL"].map(|text| Arc::new(StringArray::from(vec![text])) as ArrayRef).to_vec()
}

async fn plan(project: &TestProject, text: &str) -> ChangePlan {
    ChangePlan::new(&project.check(text).await.expect("valid"), &project.state().await)
}

/// The versions of meaning and policy of the view and the contract of the usual definitions.
fn versions(state: &CatalogState, view: &str, contract: &str) -> [(Version, Option<Version>); 2] {
    [(DefinitionKind::FeatureView, view), (DefinitionKind::Contract, contract)].map(|(kind, name)| {
        let definition = state.current(kind, name).expect("defined");
        (definition.version().clone(), definition.policy().cloned())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_holds_at_once_for_the_data_and_the_package_that_there_are() {
    let (project, package) = deployed().await;
    let served = Served::new(&project);
    let before = versions(&project.state().await, "last_payment", "fraud");
    project.clock.set(at(90));
    let answer = served.ask("fraud", of_ann()).await.expect("30 seconds behind, of two minutes");
    assert_eq!(answer.fresh_rows, 1);

    let stricter = DEFINITIONS
        .replace("FRESH WITHIN '2 minutes'", "FRESH WITHIN '10 seconds'")
        .replace("ON STALE SERVE", "ON STALE FAIL")
        .replace("TIER interactive", "TIER batch")
        .replace("OUTPUT (fraud_probability FLOAT)", "OUTPUT (fraud_probability FLOAT) LATENCY '5 milliseconds' AT 0.9")
        .replace("REFRESH EVERY '1 minute'", "REFRESH EVERY '5 minutes'");
    let planned = plan(&project, &stricter).await;
    let shown = planned.to_string();
    assert_eq!(planned.items.iter().filter(|item| item.action == Action::Policy).count(), 2, "{shown}");
    assert!(shown.contains("policy changed, holds at once") && shown.contains("2 to change"), "{shown}");
    let told = format!("reaches package {}: its model gets inputs by the new rules", package.digest());
    assert!(shown.contains(&told), "{shown}");

    let state = project.apply(&stricter).await.expect("valid");
    let after = versions(&state, "last_payment", "fraud");
    for ((old, old_policy), (new, new_policy)) in before.iter().zip(&after) {
        assert_eq!(old, new, "the meaning is the same");
        assert!(old_policy.is_some() && new_policy.is_some() && old_policy != new_policy);
    }
    assert_eq!(state.live_views()[0].refresh_every, Span::from_secs(300));
    let error = served.ask("fraud", of_ann()).await.expect_err("30 seconds behind, of ten");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    project.clock.set(at(65));
    let answer = served.ask("fraud", of_ann()).await.expect("the rows are still there, and the package");
    assert_eq!(answer.worker.deployed().digest, package.digest());
    assert_eq!(answer.worker.contract().tier, "batch");

    let same = plan(&project, &stricter).await;
    assert!(same.is_empty(), "{same}");
    let latency = stricter.replace("'5 milliseconds'", "'6 milliseconds'");
    let shown = plan(&project, &latency).await.to_string();
    assert!(shown.contains("1 to change") && !shown.contains("reaches package"), "no model sees it: {shown}");
}

#[tokio::test]
async fn another_meaning_is_a_version_beside_the_old_one() {
    let (project, package) = deployed().await;
    let before = versions(&project.state().await, "last_payment", "fraud");
    let other = DEFINITIONS.replace("amount, -1)", "amount, 0)");
    let shown = plan(&project, &other).await.to_string();
    assert!(shown.contains("(changed, ") && shown.contains("it goes on with the versions"), "{shown}");
    let state = project.apply(&other).await.expect("valid");
    let [view, contract] = versions(&state, "last_payment", "fraud");
    assert!(view == before[0] && contract.0 != before[1].0 && contract.1 == before[1].1);
    assert_eq!(state.deployment("fraud").map(|of| of.digest.as_str()), Some(package.digest()));
    // And back: the first version is there again.
    let state = project.apply(DEFINITIONS).await.expect("valid");
    assert_eq!(versions(&state, "last_payment", "fraud"), before);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("readable");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("writable");
        }
    }
}

/// The store that the release before wrote: a view of single rows and one of windows, refreshed and pushed to, and a deployed
/// package, whose answer to `shop=a asked=3` at 10:02:03 was 0.35199207.
fn of_the_release_before() -> (TestProject, String) {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stores/one_version"), folder.path());
    let store = open_store(&folder.path().join("store").to_string_lossy(), []).expect("a store");
    let text = std::fs::read_to_string(folder.path().join("shop.sql")).expect("readable");
    let clock = Arc::new(DrivenClock::still(Timestamp::parse("2024-03-01T10:02:03Z").expect("a time")));
    (TestProject { folder, clock, store }, text)
}

/// What that was.
const ANSWERED: f32 = 0.351_992_07;

fn value_of(answer: &Answer) -> f32 {
    answer.columns[0].as_primitive::<Float32Type>().value(0)
}

fn of_shop_a() -> Vec<ArrayRef> {
    vec![Arc::new(StringArray::from(vec!["a"])), Arc::new(Int64Array::from(vec![3]))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_did_not_tell_the_two_apart_is_carried_over() {
    let (project, text) = of_the_release_before();
    let before = versions(&project.state().await, "turnover", "busy");
    assert_eq!(before.each_ref().map(|(version, _)| version.as_str()), ["54d3746cf184", "fb683113ae7a"]);
    let same = plan(&project, &text).await;
    assert!(same.is_empty(), "the same definitions are no change: {same}");

    let served = Served::new(&project);
    let answer = served.ask("busy", of_shop_a()).await.expect("as before");
    assert_eq!(value_of(&answer).to_bits(), ANSWERED.to_bits());
    assert!(answer.findings.is_empty(), "all is fresh: {:?}", answer.findings);

    let other = text
        .replace("FRESH WITHIN '2 hours'", "FRESH WITHIN '3 hours'")
        .replace("'10 minutes'\n  AS", "'20 minutes'\n  AS");
    let state = project.apply(&other).await.expect("valid");
    for ((version, old), (same, new)) in before.iter().zip(&versions(&state, "turnover", "busy")) {
        assert!(version == same && old.is_none() && new.is_some(), "the version goes on, and has a policy");
    }
    let planned = plan(&project, &other).await;
    assert!(planned.is_empty(), "{planned}");
    let answer = served.ask("busy", of_shop_a()).await.expect("the same rows and package");
    assert_eq!(value_of(&answer).to_bits(), ANSWERED.to_bits());
    for view in state.live_views() {
        project.jobs().refresh(&state, view).await.expect("goes on from where it was");
    }
}

/// The view as the release before wrote it: its version is the hash of its whole text, and it has no version of its policy.
async fn view_of_before(project: &TestProject, text: &str) -> Definition {
    let checked = project.check(text).await.expect("valid");
    let view = checked.definitions.into_iter().find(|definition| definition.kind() == DefinitionKind::FeatureView);
    let Some(Definition::FeatureView(mut view)) = view else { panic!("a view") };
    view.version = Version::of(&view.text, std::iter::once(&view.entity).chain(&view.sources));
    view.policy = None;
    Definition::FeatureView(view)
}

#[tokio::test]
async fn of_old_versions_that_mean_the_same_the_current_one_goes_on() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let (usual, _) = DEFINITIONS.split_once("CREATE CONTRACT").expect("the last one");
    let text_of = |minutes: u64| usual.replace("EVERY '1 minute'", &format!("EVERY '{minutes} minutes'"));
    let (sources, _) = usual.split_once("CREATE FEATURE VIEW").expect("the last one of these");
    project.apply(sources).await.expect("valid");
    let mut old = Vec::new();
    for minutes in [2, 3, 4] {
        old.push((view_of_before(&project, &text_of(minutes)).await, text_of(minutes)));
    }
    old.sort_by(|(one, _), (other, _)| one.version().as_str().cmp(other.version().as_str()));
    let catalog = Catalog::new(Arc::clone(&project.store));
    for (current, text) in &old {
        let mut state = catalog.state().await.expect("readable");
        let define = Change::Define(Box::new(current.clone()));
        catalog.commit(&mut state, CatalogCommit::new(at(0), "ann", "a test", vec![define])).await.expect("commits");
        let same = plan(&project, text).await;
        assert!(same.is_empty(), "the same definitions are no change: {same}");
        let state = project.state().await;
        let holds = state.current(DefinitionKind::FeatureView, "last_payment").expect("defined");
        assert_eq!(holds.version(), current.version());
    }
    let (current, _) = old.last().expect("three");
    let state = project.apply(&text_of(5)).await.expect("valid");
    assert_eq!(state.live_views()[0].version, *current.version());
    assert_eq!(state.live_views()[0].refresh_every, Span::from_secs(300));
}
