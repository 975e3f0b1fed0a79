//! Deadlines, cancelled callers and a full queue, with a feature source that holds its answers back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use async_trait::async_trait;
use springhouse_featurestore::definition::{
    Column, ColumnType, Contract, FeatureRule, FeatureView, Input, Pinned, RowTime, RuleAction, Version,
};
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::tier::ReferenceTier;
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_sql::session::{Session, SessionOptions};
use tokio::sync::{Semaphore, watch};

use super::{Answer, ContractWorker, Question, WorkerOptions};
use crate::features::{DeployedContract, FeatureSource};
use crate::model::neural::{TrainOptions, train};
use crate::package::{Package, Training};

/// Answers that every feature is missing, one lookup for each permit.
#[derive(Debug)]
struct HeldSource {
    plan: LookupPlan,
    gate: Semaphore,
    /// Rows of the lookups that have begun.
    asked: watch::Sender<usize>,
}

#[async_trait]
impl FeatureSource for HeldSource {
    async fn deployments(&self) -> Result<Vec<DeployedContract>> {
        Ok(Vec::new())
    }

    async fn package(&self, _digest: &str) -> Result<Package> {
        Err(springhouse_featurestore::Error::not_found("no packages here"))
    }

    async fn lookup(&self, _contract: &Pinned, keys: RecordBatch) -> Result<RecordBatch> {
        self.asked.send_modify(|asked| *asked += keys.num_rows());
        self.gate.acquire().await.expect("never closed").forget();
        let keys = self.plan.take_keys(&keys)?;
        self.plan.lookup(&ReferenceTier::default(), &keys, Timestamp::from_micros(0))
    }
}

fn deployed() -> DeployedContract {
    let pinned = |name: &str| Pinned::new(name, Version::from_text("1"));
    let view = FeatureView {
        name: "payments".to_owned(),
        version: Version::from_text("1"),
        policy: None,
        text: String::new(),
        entity: pinned("user_account"),
        keys: vec![Column::required("user_name", ColumnType::Utf8)],
        sources: Vec::new(),
        query: String::new(),
        row_time: RowTime::Static,
        refresh_every: Span::from_secs(60),
        ttl: None,
        lookback: None,
        windowed: None,
        ahead: false,
        features: vec![Column::nullable("amount", ColumnType::Float64)],
    };
    let rule = FeatureRule {
        view: view.pinned(),
        fresh_within: Span::from_secs(60),
        max_age: None,
        on_stale: RuleAction::Serve,
        on_expired: RuleAction::Default,
        on_missing: RuleAction::Default,
    };
    let contract = Contract {
        name: "fraud".to_owned(),
        version: Version::from_text("1"),
        policy: None,
        text: String::new(),
        tier: "interactive".to_owned(),
        request: vec![Column::nullable("user_name", ColumnType::Utf8)],
        features: vec![rule],
        inputs: vec![Input {
            name: "amount".to_owned(),
            expression: "coalesce(payments.amount, 1)".to_owned(),
            column: Column::nullable("amount", ColumnType::Float64),
        }],
        output: vec![Column::required("probability", ColumnType::Float32)],
        latency: None,
        availability: None,
    };
    DeployedContract { contract, views: vec![view], digest: "sha256:test".to_owned() }
}

fn package(contract: &Contract) -> Package {
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter_values((0..20).map(f64::from)));
    let inputs = RecordBatch::try_from_iter([("amount", amounts)]).expect("one column");
    let labels: Vec<f32> = (0..20_u8).map(|row| f32::from(u8::from(row > 9))).collect();
    let options = TrainOptions { hidden: vec![2], epochs: 1, ..TrainOptions::default() };
    let trained = train(&inputs, &["amount".to_owned()], &labels, &options, |_, _| {}).expect("two classes");
    let training = Training {
        training_set: String::new(),
        rows: 20,
        label: "late".to_owned(),
        seed: options.seed,
        metrics: trained.metrics,
    };
    Package::of_perceptron(contract, vec!["amount".to_owned()], options.hidden, trained.weights, training)
        .expect("whole")
}

fn start(queue_rows: usize) -> (Arc<HeldSource>, Arc<ContractWorker>) {
    start_with(WorkerOptions { batch_rows: 4, queue_rows, lookup_within: Duration::from_secs(60) })
}

fn start_with(options: WorkerOptions) -> (Arc<HeldSource>, Arc<ContractWorker>) {
    start_of(deployed(), options)
}

fn start_of(deployed: DeployedContract, options: WorkerOptions) -> (Arc<HeldSource>, Arc<ContractWorker>) {
    let source = Arc::new(HeldSource {
        plan: LookupPlan::new(&deployed.contract, &deployed.views).expect("its own views"),
        gate: Semaphore::new(0),
        asked: watch::Sender::new(0),
    });
    let session = SessionOptions { project: ".".into(), memory_bytes: 64 << 20, partitions: 1 };
    let session = Session::new(&session).expect("a session");
    let package = package(&deployed.contract);
    let worker =
        ContractWorker::start(deployed, &package, Arc::clone(&source) as Arc<dyn FeatureSource>, &session, &options)
            .expect("its own package");
    (source, worker)
}

fn question(rows: usize, within: Option<Duration>) -> Question {
    let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("user {row}"))));
    Question { columns: vec![names], rows, deadline: within.map(|within| now() + within), caller: None }
}

#[expect(clippy::disallowed_methods, reason = "a caller's deadline runs in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Asks in a task of its own.
fn ask(worker: &Arc<ContractWorker>, question: Question) -> tokio::task::JoinHandle<Result<Answer>> {
    let worker = Arc::clone(worker);
    tokio::spawn(async move { worker.ask(question).await })
}

/// Waits until the source has been asked for so many rows in all.
async fn until_asked(source: &HeldSource, rows: usize) {
    source.asked.subscribe().wait_for(|asked| *asked >= rows).await.expect("the source lives");
}

#[tokio::test]
async fn a_caller_is_told_at_its_deadline_and_its_place_is_given_back() {
    let (source, worker) = start(4);
    let error = ask(&worker, question(4, Some(Duration::from_millis(20)))).await.expect("no panic").expect_err("late");
    assert_eq!(error.kind(), ErrorKind::Expired);
    assert_eq!(worker.counters().expired, 1);
    // The queue of four rows is free again, though the batch is still being looked up.
    source.gate.add_permits(2);
    let answer = ask(&worker, question(4, None)).await.expect("no panic").expect("there is place");
    assert_eq!((answer.columns[0].len(), answer.fresh_rows), (4, 0));
}

#[tokio::test]
async fn a_request_that_expires_in_the_queue_is_never_looked_up() {
    let (source, worker) = start(100);
    let first = ask(&worker, question(4, None));
    until_asked(&source, 4).await;
    let late = ask(&worker, question(3, Some(Duration::from_millis(20)))).await.expect("no panic");
    assert_eq!(late.expect_err("late").kind(), ErrorKind::Expired);
    source.gate.add_permits(2);
    first.await.expect("no panic").expect("answered");
    ask(&worker, question(1, None)).await.expect("no panic").expect("answered");
    assert_eq!(*source.asked.borrow(), 5, "four rows, then one");
}

#[tokio::test]
async fn a_cancelled_request_never_reaches_the_model() {
    let (source, worker) = start(100);
    let first = ask(&worker, question(4, None));
    until_asked(&source, 4).await;
    let cancelled = ask(&worker, question(2, None));
    tokio::task::yield_now().await;
    cancelled.abort();
    assert!(cancelled.await.expect_err("aborted").is_cancelled());
    source.gate.add_permits(2);
    first.await.expect("no panic").expect("answered");
    ask(&worker, question(1, None)).await.expect("no panic").expect("answered");
    assert_eq!(*source.asked.borrow(), 5, "four rows, then one");
    assert_eq!(worker.counters().rows, 5);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_again() {
    let (source, worker) = start(6);
    let first = ask(&worker, question(4, None));
    until_asked(&source, 4).await;
    let waiting = ask(&worker, question(2, None));
    tokio::task::yield_now().await;
    let error = worker.ask(question(1, None)).await.expect_err("full");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("try again in"), "{error}");
    assert_eq!(worker.counters().shed, 1);
    source.gate.add_permits(2);
    first.await.expect("no panic").expect("answered");
    waiting.await.expect("no panic").expect("answered");
}

#[tokio::test]
async fn requests_that_wait_together_are_one_batch_and_get_their_own_rows() {
    let (source, worker) = start(100);
    let first = ask(&worker, question(1, None));
    until_asked(&source, 1).await;
    let (one, three) = (ask(&worker, question(1, None)), ask(&worker, question(3, None)));
    let too_many = worker.ask(question(5, None)).await.expect_err("more than a batch");
    assert_eq!(too_many.kind(), ErrorKind::Invalid);
    source.gate.add_permits(2);
    first.await.expect("no panic").expect("answered");
    let rows = |answer: &Answer| answer.columns[0].len();
    assert_eq!(rows(&one.await.expect("no panic").expect("answered")), 1);
    assert_eq!(rows(&three.await.expect("no panic").expect("answered")), 3);
    assert_eq!(*source.asked.borrow(), 5, "two lookups for three requests");
}

#[tokio::test]
async fn a_request_past_its_deadline_leaves_the_queue() {
    let (source, worker) = start(100);
    let first = ask(&worker, question(4, None));
    until_asked(&source, 4).await;
    for _ in 0..3 {
        let late = ask(&worker, question(3, Some(Duration::from_millis(5)))).await.expect("no panic");
        assert_eq!(late.expect_err("late").kind(), ErrorKind::Expired);
        assert_eq!(worker.waiting(), 0, "nothing of it is kept while the turn is held");
    }
    source.gate.add_permits(1);
    first.await.expect("no panic").expect("answered");
}

#[tokio::test]
async fn a_lookup_that_takes_too_long_is_given_up_and_the_turn_goes_on() {
    let within = Duration::from_millis(20);
    let (source, worker) = start_with(WorkerOptions { batch_rows: 4, queue_rows: 100, lookup_within: within });
    let first = ask(&worker, question(4, None));
    until_asked(&source, 4).await;
    let (one, two) = (ask(&worker, question(1, None)), ask(&worker, question(2, None)));
    for late in [first, one, two] {
        let error = late.await.expect("no panic").expect_err("the source does not answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("lookup_millis"), "{error}");
    }
    assert_eq!(*source.asked.borrow(), 7, "a batch that found no source is not asked for one by one");
    source.gate.add_permits(1);
    ask(&worker, question(1, None)).await.expect("no panic").expect("answered");
}

#[tokio::test]
async fn a_batch_that_nobody_waits_for_is_given_up() {
    let (source, worker) = start(100);
    let first = ask(&worker, question(4, None));
    until_asked(&source, 4).await;
    let within = Some(Duration::from_millis(100));
    let (one, two) = (ask(&worker, question(1, within)), ask(&worker, question(2, within)));
    tokio::task::yield_now().await;
    first.abort();
    until_asked(&source, 7).await;
    for late in [one, two] {
        assert_eq!(late.await.expect("no panic").expect_err("late").kind(), ErrorKind::Expired);
    }
    // The one permit is for the next, whose turn has come.
    source.gate.add_permits(1);
    let next = tokio::time::timeout(Duration::from_secs(10), ask(&worker, question(1, None))).await;
    next.expect("the turn is free").expect("no panic").expect("answered");
}

#[tokio::test]
async fn an_input_that_cannot_be_computed_is_named_and_the_value_on_which_it_fails_is_not() {
    let mut deployed = deployed();
    "CAST(CAST(user_name AS BIGINT) AS DOUBLE)".clone_into(&mut deployed.contract.inputs[0].expression);
    let options = WorkerOptions { batch_rows: 4, queue_rows: 8, lookup_within: Duration::from_secs(60) };
    let (source, worker) = start_of(deployed, options);
    source.gate.add_permits(1);
    let error = worker.ask(question(1, None)).await.map(|_| ()).expect_err("not a number");
    let text = error.chain();
    assert!(text.contains("input: amount") && text.contains("contract: fraud") && !text.contains("user 0"), "{text}");
}
