//! Bounds at the edges: what a client declares is not believed, what is not of its type is not taken, what nests too deeply
//! is not parsed; and a server that refuses goes on.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, NullArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use futures::{TryStreamExt, stream};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::FeatureSource;
use springhouse_serving::app::{App, StorePart, bind};
use springhouse_serving::flight::{FlightServer, RemoteFeatures};
use springhouse_serving::security::Security;
use springhouse_sql::nesting::STACK_BYTES;
use springhouse_sql::spine::{SpineOrder, SpineSource};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::project::{TestProject, at};
use crate::push::Server;

pub const DEFINITIONS: &str = "
CREATE ENTITY card KEY (number BIGINT);
CREATE FEATURE VIEW spent ENTITY card EVENT TIME seen_at REFRESH EVERY '1 hour'
  AS PUSHED (number BIGINT, seen_at TIMESTAMP, amount INT);
CREATE CONTRACT limits TIER interactive REQUEST (number BIGINT)
  FEATURES (spent FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(spent.amount, -1) AS amount)
  OUTPUT (limit FLOAT);
";

/// The card that is known; a float has room for it, which made 487091308399.7 find it.
const CARD: i64 = 487_091_308_399;

/// A store that takes pushes and serves on a port, with one card's event.
pub struct Wire {
    pub project: TestProject,
    pub state: CatalogState,
    pub server: Server,
    pub address: String,
    client: FlightServiceClient<Channel>,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<springhouse_featurestore::Result<()>>,
}

impl Wire {
    pub async fn start() -> Self {
        let project = TestProject::new(&[]);
        let state = project.apply(DEFINITIONS).await.expect("valid definitions");
        project.clock.set(at(100));
        crate::push::refresh_all(&project, &state).await;
        let server = Server::start_on(&project, &project.store, 1 << 20).await;
        let header = PushHeader { watermark: Some(at(60)), ..PushHeader::default() };
        server.pushes.push("spent", events(Arc::new(Int32Array::from(vec![7]))), header).await.expect("taken");
        server.pushes.flush().await.expect("flushes");
        server.features.follow(&()).await.expect("follows");
        let flight = FlightServer::new(
            Arc::clone(&server.features),
            Arc::new(WireQueries::start(project.jobs()).expect("threads")),
            None,
        )
        .with_sink(Arc::clone(&server.pushes) as _);
        let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let store = StorePart { features: Arc::clone(&server.features), flight, socket: None };
        let app =
            App { listeners: vec![listener], store: Some(store), worker: None, http: None, security: Security::open() };
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn(app.run(stopping));
        let channel = Channel::from_shared(address.clone()).expect("an address").connect_lazy();
        let client = FlightServiceClient::new(channel);
        Self { project, state, server, address, client, stop, running }
    }

    /// Asks a lookup with these messages, the command in the first.
    pub async fn exchange(&self, messages: Vec<FlightData>) -> Result<Vec<FlightData>, tonic::Status> {
        let messages = commanded(messages, br#"{"lookup": {"contract": "limits"}}"#);
        let answers = self.client.clone().do_exchange(stream::iter(messages)).await?;
        answers.into_inner().try_collect().await
    }

    /// Pushes these messages.
    pub async fn put(&self, messages: Vec<FlightData>) -> Result<usize, tonic::Status> {
        let messages = commanded(messages, br#"{"push": {"source": "spent"}}"#);
        let answers = self.client.clone().do_put(stream::iter(messages)).await?;
        answers.into_inner().try_fold(0, async |acks, _| Ok(acks + 1)).await
    }

    /// The server answers as before.
    pub async fn check_alive(&self) {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![CARD]));
        let contract = self.state.current_contract("limits").expect("defined").pinned();
        let store = RemoteFeatures::new(&self.address).expect("an address");
        let keys = RecordBatch::try_from_iter([("number", keys)]).expect("one column");
        let answer = store.lookup(&contract, keys).await.expect("the server lives on");
        assert_eq!(answer["spent.amount"].as_primitive::<Int32Type>().value(0), 7);
    }

    pub async fn end(self) {
        self.stop.send_replace(true);
        self.running.await.expect("no panic").expect("drained");
    }
}

fn commanded(mut messages: Vec<FlightData>, command: &'static [u8]) -> Vec<FlightData> {
    if let Some(first) = messages.first_mut() {
        first.flight_descriptor = Some(FlightDescriptor::new_cmd(command));
    }
    messages
}

/// The card's event at second 50, with this amount.
pub fn events(amount: ArrayRef) -> RecordBatch {
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![50_000_000]).with_timezone("UTC"));
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![CARD]));
    let columns = [("number", numbers, true), ("seen_at", times, true), ("amount", amount, true)];
    RecordBatch::try_from_iter_with_nullable(columns).expect("three columns")
}

/// A batch as messages, the schema first.
pub fn messages(batch: &RecordBatch, codec: Option<CompressionType>) -> Vec<FlightData> {
    let options = IpcWriteOptions::default().try_with_compression(codec).expect("supported");
    let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
    let schema = generator.schema_to_bytes_with_dictionary_tracker(batch.schema_ref(), &mut tracker, &options);
    let encoded = generator.encode(batch, &mut tracker, &options, &mut IpcWriteContext::default());
    let (dictionaries, batch) = encoded.expect("encodes");
    [schema].into_iter().chain(dictionaries).chain([batch]).map(FlightData::from).collect()
}

fn keys(column: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([("number", column, true)]).expect("one column")
}

/// Replaces eight bytes wherever they stand.
fn replaced(bytes: &[u8], truth: i64, lie: i64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for place in 0..bytes.len().saturating_sub(7) {
        if bytes[place..place + 8] == truth.to_le_bytes() {
            bytes[place..place + 8].copy_from_slice(&lie.to_le_bytes());
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_declares_is_bounded_and_the_server_lives_on() {
    let wire = Wire::start().await;
    let mut huge = messages(&keys(Arc::new(Int64Array::from(vec![0; 1000]))), Some(CompressionType::LZ4_FRAME));
    let last = huge.last_mut().expect("a batch");
    last.data_body = replaced(&last.data_body, 8000, 1 << 47).into();
    let mut nulls = messages(&keys(Arc::new(NullArray::new(777))), None);
    let last = nulls.last_mut().expect("a batch");
    last.data_header = replaced(&last.data_header, 777, 1 << 40).into();
    let mut cut = messages(&keys(Arc::new(Int64Array::from(vec![5; 100]))), None);
    let last = cut.last_mut().expect("a batch");
    last.data_body = last.data_body.slice(0..16);
    let many = messages(&keys(Arc::new(Int64Array::new_null(100_001))), None);
    let cases =
        [(huge, "too many bytes"), (nulls, "too many rows"), (cut, "outside of its body"), (many, "too many rows")];
    for (sent, expected) in cases {
        let error = wire.exchange(sent.clone()).await.expect_err(expected);
        assert!(error.code() == tonic::Code::InvalidArgument && error.message().contains(expected), "{error}");
        let error = wire.put(sent).await.expect_err(expected);
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        wire.check_alive().await;
    }
    wire.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_of_no_rows_is_answered_with_no_rows() {
    let wire = Wire::start().await;
    let none = keys(Arc::new(Int64Array::from(Vec::<i64>::new())));
    let answers = wire.exchange(messages(&none, None)).await.expect("answered");
    assert_eq!(answers.len(), 2, "a schema, and a batch");
    let contract = wire.state.current_contract("limits").expect("defined").pinned();
    let store = RemoteFeatures::new(&wire.address).expect("an address");
    let answer = store.lookup(&contract, none).await.expect("answered");
    assert_eq!((answer.num_rows(), answer.num_columns()), (0, 4));
    wire.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_and_no_value_is_cast_in_silence() {
    let wire = Wire::start().await;
    let lookup = |columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, of)| (name, of, true)));
        let plan = wire.server.features.plan("limits").expect("defined");
        wire.server.features.lookup_with(&plan, &batch.expect("columns"))
    };
    let number: ArrayRef = Arc::new(Int64Array::from(vec![CARD]));
    let near: ArrayRef = Arc::new(Float64Array::from(vec![None, Some(487_091_308_399.7)]));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["abc"]));
    for (columns, expected) in [
        (vec![("number", near)], ["column: number", "row: 1", "value: 487091308399.7"]),
        (vec![("number", text)], ["column: number", "row: 0", "value: abc"]),
        (vec![("number", Arc::clone(&number)), ("nmuber", number)], ["not a key", "column: nmuber", "number BIGINT"]),
    ] {
        let error = lookup(columns).expect_err("refused").to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{expected:?}\n{error}");
    }
    let narrow: ArrayRef = Arc::new(Int32Array::from(vec![5]));
    assert_eq!(lookup(vec![("number", narrow)]).expect("an INT is a BIGINT").num_rows(), 1);
    wire.end().await;
}

#[tokio::test]
async fn a_spines_value_that_is_not_of_its_requests_type_is_refused_with_its_row() {
    let wire = Wire::start().await;
    let contract = wire.state.current_contract("limits").expect("defined");
    let jobs = wire.project.jobs();
    let set = async |from: &str| {
        let set = jobs.training_set(&wire.state, contract, &request(from, "asked_at")).await?;
        set.execute().try_collect::<Vec<_>>().await
    };
    let of = |values: &str| {
        format!(
            "SELECT number, arrow_cast(50000000, 'Timestamp(us, \"UTC\")') AS asked_at FROM (VALUES {values}) AS v (number)"
        )
    };
    let batches = set(&of("(1), (2)")).await.expect("numbers");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    for (values, expected) in [("(NULL), (1.7)", ["row: 2", "value: 1.7"]), ("('7'), ('abc')", ["row: 1", "value: 7"])]
    {
        let error = set(&of(values)).await.expect_err("refused").to_string();
        assert!(error.contains("column: number") && expected.iter().all(|part| error.contains(part)), "{error}");
    }
    let error = set("SELECT 1 AS number, 5 AS asked_at").await.expect_err("a bare number").to_string();
    assert!(error.contains("not a TIMESTAMP") && error.contains("spine column: asked_at"), "{error}");
    wire.end().await;
}

/// A training set for a spine.
fn request(from: &str, time: &str) -> TrainingSetRequest {
    TrainingSetRequest {
        spine: SpineSource { from: from.to_owned(), time: time.to_owned(), lag: Span::ZERO },
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: true,
        order: SpineOrder::AsGiven,
    }
}

/// Runs on a thread with the stack that the binary's threads have.
fn with_stack<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run =
        || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test());
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn hundreds_of_terms_are_planned_and_thousands_are_refused_with_their_place() {
    with_stack(async || {
        let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
        let definitions = |terms: usize| {
            let terms: Vec<String> = (0..terms).map(|term| format!("amount = {term}")).collect();
            crate::project::DEFINITIONS.replace("FROM paid;", &format!("FROM paid WHERE {};", terms.join(" OR ")))
        };
        let state = project.apply(&definitions(400)).await.expect("as people write it");
        project.clock.set(at(60));
        project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
        let inputs = vec!["1"; 4_000].join("+");
        let inputs = crate::project::DEFINITIONS.replace("-1) AS amount", &format!("{inputs}) AS amount"));
        for text in [definitions(4_000), inputs] {
            let error = project.check(&text).await.expect_err("too deep").to_string();
            assert!(error.contains("operators") && error.contains("--> definitions.sql:"), "{error}");
            assert!(error.contains('^') && error.contains("help: ") && error.len() < 1_000, "{error}");
        }
        let contract = state.current_contract("fraud").expect("defined");
        for from in [format!("SELECT {}", vec!["1"; 499_000].join("+")), format!("SELECT '{}'", "x".repeat(2 << 20))] {
            let error =
                project.jobs().training_set(&state, contract, &request(&from, "t")).await.err().expect("too much");
            let error = error.to_string();
            assert!(error.contains("line: 1") && error.contains("; ") && error.len() < 1_000, "{error}");
        }
    });
}
