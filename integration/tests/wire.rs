//! The wire: a running server, foreign clients (pyarrow's Flight, tritonclient), and everything that is wrong to send.

use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use springhouse_featurestore::catalog::{Catalog, CatalogCommit, Change, PackageRecord};
use springhouse_featurestore::push::PushLog;
use springhouse_featurestore::tier::DiskTier;
use springhouse_materializer::push::Pushes;
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::app::{App, StorePart, WorkerPart, bind, direct};
use springhouse_serving::flight::FlightServer;
use springhouse_serving::model::neural::{TrainOptions, train};
use springhouse_serving::package::{Package, Training};
use springhouse_serving::security::Security;
use springhouse_serving::worker::{Contracts, WorkerOptions};
use springhouse_serving::{FeatureServer, FeatureSource};
use tokio::sync::watch;

use crate::project::{DEFINITIONS, TestProject, at};

/// The interpreter of the test environment, which `make test` prepares.
pub fn python() -> String {
    std::env::var("SPRINGHOUSE_PYTHON")
        .expect("SPRINGHOUSE_PYTHON is not set: run the tests with `make test`, which prepares it")
}

/// Runs a client script; its output is shown when it fails.
pub async fn run_client(script: &str, arguments: Vec<String>) {
    let path = format!("{}/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    let run = move || Command::new(python()).arg(path).args(arguments).output().expect("python runs");
    let output = tokio::task::spawn_blocking(run).await.expect("no panic");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}\n{err}");
}

/// A package for a contract whose inputs are an amount and whether it is domestic.
pub fn package(contract: &springhouse_featurestore::definition::Contract) -> Package {
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter_values((0..100).map(f64::from)));
    let domestic: ArrayRef = Arc::new(arrow::array::BooleanArray::from_iter((0..100).map(|i| Some(i % 3 == 0))));
    let inputs = RecordBatch::try_from_iter([("amount", amounts), ("domestic", domestic)]).expect("two columns");
    let labels: Vec<f32> = (0..100).map(|i| if i > 60 { 1.0 } else { 0.0 }).collect();
    let names = vec!["amount".to_owned(), "domestic".to_owned()];
    let options = TrainOptions { hidden: vec![4], epochs: 3, ..TrainOptions::default() };
    let trained = train(&inputs, &names, &labels, &options, |_, _| {}).expect("two classes");
    let training = Training {
        training_set: String::new(),
        rows: 100,
        label: "late".to_owned(),
        seed: options.seed,
        metrics: trained.metrics,
    };
    Package::of_perceptron(contract, names, options.hidden, trained.weights, training).expect("whole")
}

/// A project with a deployed package, refreshed at second 60.
pub async fn deployed() -> (TestProject, Package) {
    let project = TestProject::new(&[("ann", 10, 10, Some(70.0)), ("bob", 20, 20, Some(2.0))]);
    let mut state = project.apply(DEFINITIONS).await.expect("valid definitions");
    let contract = state.current_contract("fraud").expect("defined").clone();
    let package = package(&contract);
    package.store(&project.store).await.expect("writable");
    let record = PackageRecord { digest: package.digest().to_owned(), contract: contract.pinned() };
    let deploy = Change::Deploy { contract: "fraud".to_owned(), digest: record.digest.clone() };
    let commit = CatalogCommit::new(at(0), "test", "test", vec![Change::Package(record), deploy]);
    Catalog::new(Arc::clone(&project.store)).commit(&mut state, commit).await.expect("first");
    project.clock.set(at(60));
    project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    (project, package)
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_clients_get_answers_and_bad_requests_get_precise_errors() {
    let (project, package) = deployed().await;
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let features = Arc::new(FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone()));
    features.follow(&()).await.expect("readable");
    let contracts = Arc::new(
        Contracts::new(
            direct(&features),
            WorkerOptions { batch_rows: 100, queue_rows: 1000, ..WorkerOptions::default() },
        )
        .expect("a session"),
    );
    contracts.follow().await.expect("the package loads");
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let http = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let http_address = http.local_addr().expect("bound").to_string();
    let socket = project.folder.path().join("store.sock");
    let log = PushLog::open(&project.folder.path().join("log")).expect("a folder");
    let (tier, changing) = features.tier();
    let pushes = Arc::new(
        Pushes::start(project.jobs(), log, tier, changing, Box::new(features.followed())).await.expect("starts"),
    );
    features.push_to(Arc::clone(&pushes) as _);
    let queries = Arc::new(WireQueries::start(project.jobs()).expect("threads"));
    let flight = FlightServer::new(Arc::clone(&features), queries, Some(Arc::clone(&project.clock))).with_sink(pushes);
    let app = App {
        listeners: vec![listener],
        store: Some(StorePart { features, flight, socket: Some(socket.clone()) }),
        worker: Some(WorkerPart { contracts, clock: project.clock.clone() }),
        http: Some(http),
        security: Security::open(),
    };
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(app.run(stopping));
    let socket = socket.to_string_lossy().into_owned();
    run_client("check_flight.py", vec![address.clone(), socket, package.digest().to_owned()]).await;
    run_client("check_predict.py", vec![address, package.digest().to_owned()]).await;
    run_client("check_metrics.py", vec![http_address]).await;
    stop.send_replace(true);
    running.await.expect("no panic").expect("drained");
}

#[tokio::test]
async fn a_damaged_package_is_named_and_never_loaded() {
    let (project, package) = deployed().await;
    let digits = package.digest().trim_start_matches("sha256:");
    let path = project.folder.path().join("store/packages").join(digits).join("weights.safetensors");
    let mut bytes = std::fs::read(&path).expect("stored");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&path, bytes).expect("writable");
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let features = FeatureServer::new(Arc::clone(&project.store), disk, 0, project.clock.clone());
    let error = features.package(package.digest()).await.expect_err("damaged").to_string();
    assert!(error.contains("damaged") && error.contains("push the package again"), "{error}");
}

#[tokio::test]
async fn a_lost_disk_tier_is_rebuilt_and_answers_the_same() {
    let (project, _) = deployed().await;
    let keys = RecordBatch::try_from_iter([("user_name", Arc::new(StringArray::from(vec!["ann", "zed"])) as ArrayRef)]);
    let keys = keys.expect("one column");
    let folder = project.folder.path().join("disk");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let disk = DiskTier::open(&folder).expect("a folder");
        let features = FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone());
        features.follow(&()).await.expect("readable");
        let plan = features.plan("fraud").expect("defined");
        answers.push(features.lookup_with(&plan, &keys).expect("looks up"));
        drop(features);
        std::fs::remove_dir_all(&folder).expect("removable");
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn a_view_that_cannot_be_loaded_is_unavailable_by_itself() {
    let project = TestProject::new(&[("ann", 10, 10, Some(70.0))]);
    let last = DEFINITIONS.find("CREATE CONTRACT").expect("there is one");
    let (before, contract) = DEFINITIONS.split_at(last);
    let view = &before[before.find("CREATE FEATURE VIEW").expect("there is one")..];
    let others = format!("{view}{contract}").replace("last_payment", "other_payment").replace("fraud", "trust");
    let state = project.apply(&format!("{DEFINITIONS}{others}")).await.expect("valid definitions");
    project.clock.set(at(60));
    for view in state.live_views() {
        project.jobs().refresh(&state, view).await.expect("refreshes");
    }
    let damaged = state.live_views().into_iter().find(|view| view.name == "last_payment").expect("live").pinned();
    let log = project.folder.path().join("store/views/last_payment").join(damaged.version.as_str()).join("log");
    let commit = log.join("000000000001.json");
    let sound = std::fs::read(&commit).expect("committed");
    std::fs::write(&commit, "nothing that can be read").expect("writable");

    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let features = FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone());
    features.follow(&()).await.expect("the other view goes on");
    let keys = RecordBatch::try_from_iter([("user_name", Arc::new(StringArray::from(vec!["ann"])) as ArrayRef)]);
    let (keys, plan) = (keys.expect("one column"), |contract: &str| features.plan(contract).expect("defined"));
    features.lookup_with(&plan("trust"), &keys).expect("the other view answers");
    let error = features.lookup_with(&plan("fraud"), &keys).expect_err("its view is damaged");
    assert_eq!(error.kind(), springhouse_featurestore::ErrorKind::Unavailable);
    assert!(error.to_string().contains("last_payment") && error.to_string().contains("damaged"), "{error}");
    let status = features.status().expect("readable");
    for view in &status.views {
        assert_eq!(view.state.is_unavailable(), view.view == damaged.to_string(), "{view:?}");
    }
    let mut metrics = springhouse_serving::metrics::Metrics::default();
    metrics.add_features(&status);
    let text = metrics.text().expect("written");
    assert!(
        text.lines().any(|line| line.contains("view_unavailable{view=\"last_payment\"") && line.ends_with(" 1.0")),
        "{text}"
    );

    std::fs::write(&commit, sound).expect("writable");
    features.follow(&()).await.expect("all views go on");
    features.lookup_with(&plan("fraud"), &keys).expect("it answers again");
}

#[tokio::test]
async fn an_address_in_use_is_said() {
    let held = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let error = bind(held.local_addr().expect("bound")).await.expect_err("in use").to_string();
    assert!(error.contains("--listen"), "{error}");
}
