//! A network that goes silent: nothing is refused and nothing is closed, it is only that no byte arrives any more.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Float64Type;
use async_trait::async_trait;
use springhouse_featurestore::catalog::{Catalog, CatalogCommit, CatalogState, Change, PackageRecord};
use springhouse_featurestore::definition::Pinned;
use springhouse_featurestore::object_storage::api::ObjectStoreExt;
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::tier::{DiskTier, open_store};
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::app::{App, StorePart, WorkerPart, bind};
use springhouse_serving::features::DeployedContract;
use springhouse_serving::flight::{FlightServer, RemoteFeatures};
use springhouse_serving::package::Package;
use springhouse_serving::predict::PredictClient;
use springhouse_serving::security::Security;
use springhouse_serving::worker::{Contracts, WorkerOptions};
use springhouse_serving::{FeatureServer, FeatureSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::project::{DEFINITIONS, TestProject, at};
use crate::wire::package;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// They arrive.
    Open,
    /// They arrive when it is open again.
    Held,
    /// They never arrive, nor does anything on a connection that was there meanwhile.
    Lost,
}

/// A network before a server.
struct Proxy {
    address: String,
    network: watch::Sender<Network>,
}

impl Proxy {
    async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let (network, seen) = watch::channel(Network::Open);
        let server = server.to_owned();
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                tokio::spawn(tunnel(caller, server.clone(), seen.clone()));
            }
        });
        Self { address, network }
    }
}

/// Carries a connection's bytes as the network is; both ends stay open when they are lost.
async fn tunnel(mut caller: TcpStream, server: String, network: watch::Receiver<Network>) {
    let mut lost = network.clone();
    let mut server = TcpStream::connect(server).await.expect("the server is there");
    let (mut from_caller, mut to_caller) = caller.split();
    let (mut from_server, mut to_server) = server.split();
    let (there, back) = (network.clone(), network);
    let carried = async {
        tokio::join!(carry(&mut from_caller, &mut to_server, there), carry(&mut from_server, &mut to_caller, back))
    };
    tokio::select! {
        biased;
        () = until_lost(&mut lost) => std::future::pending().await,
        _ = carried => {}
    }
}

async fn until_lost(network: &mut watch::Receiver<Network>) {
    if network.wait_for(|network| *network == Network::Lost).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn carry(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mut network: watch::Receiver<Network>,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        if network.wait_for(|network| *network == Network::Open).await.is_err() {
            return Ok(());
        }
        to.write_all(&bytes[..read]).await?;
    }
}

/// Features over two networks: those of one contract over that which fails.
#[derive(Debug)]
struct TwoNetworks {
    failing: RemoteFeatures,
    sound: RemoteFeatures,
    over_failing: Pinned,
}

#[async_trait]
impl FeatureSource for TwoNetworks {
    async fn deployments(&self) -> Result<Vec<DeployedContract>> {
        self.sound.deployments().await
    }

    async fn package(&self, digest: &str) -> Result<Package> {
        self.sound.package(digest).await
    }

    async fn lookup(&self, contract: &Pinned, keys: RecordBatch) -> Result<RecordBatch> {
        let source = if *contract == self.over_failing { &self.failing } else { &self.sound };
        source.lookup(contract, keys).await
    }
}

/// A project with two deployed contracts over one view, which was refreshed at second 60.
async fn deployed() -> (TestProject, CatalogState) {
    let project = TestProject::new(&[("ann", 10, 10, Some(70.0)), ("bob", 20, 20, Some(2.0))]);
    let contract = &DEFINITIONS[DEFINITIONS.find("CREATE CONTRACT").expect("there is one")..];
    let definitions = format!("{DEFINITIONS}{}", contract.replace("fraud", "trust"));
    let mut state = project.apply(&definitions).await.expect("valid definitions");
    let mut changes = Vec::new();
    for name in ["fraud", "trust"] {
        let contract = state.current_contract(name).expect("defined").clone();
        let package = package(&contract);
        package.store(&project.store).await.expect("writable");
        let record = PackageRecord { digest: package.digest().to_owned(), contract: contract.pinned() };
        changes.push(Change::Deploy { contract: name.to_owned(), digest: record.digest.clone() });
        changes.insert(0, Change::Package(record));
    }
    let commit = CatalogCommit::new(at(0), "test", "test", changes);
    Catalog::new(Arc::clone(&project.store)).commit(&mut state, commit).await.expect("first");
    project.clock.set(at(60));
    project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    (project, state)
}

/// Serves what is given on a free port, which is returned, until the test ends.
async fn serve(store: Option<StorePart>, worker: Option<WorkerPart>) -> String {
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let app = App { listeners: vec![listener], store, worker, http: None, security: Security::open() };
    tokio::spawn(async move {
        let (_stop, stopping) = watch::channel(false);
        app.run(stopping).await
    });
    address
}

async fn serve_store(project: &TestProject) -> String {
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let features = Arc::new(FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone()));
    features.follow(&()).await.expect("readable");
    let flight =
        FlightServer::new(Arc::clone(&features), Arc::new(WireQueries::start(project.jobs()).expect("threads")), None);
    serve(Some(StorePart { features, flight, socket: None }), None).await
}

fn keys(user: &str) -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from(vec![user]));
    RecordBatch::try_from_iter([("user_name", users)]).expect("one column")
}

/// Predicts for one user; nothing takes longer than ten seconds.
async fn predict(client: &PredictClient, contract: &str) -> Result<()> {
    let asked = async {
        let metadata = client.metadata(contract).await?;
        let text = |value: &str| vec![Some(value.to_owned())];
        let columns = [("user_name".to_owned(), text("ann")), ("country".to_owned(), text("NL"))];
        client.infer(&metadata, &columns).await.map(|_| ())
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("callers are told in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network_fails_its_own_lookups_by_their_deadlines_and_is_found_again() {
    let (project, state) = deployed().await;
    let store = serve_store(&project).await;
    let proxy = Proxy::start(&store).await;
    let source = Arc::new(TwoNetworks {
        failing: RemoteFeatures::seeded(&proxy.address, 1).expect("an address"),
        sound: RemoteFeatures::seeded(&format!("http://{store}"), 2).expect("an address"),
        over_failing: state.current_contract("fraud").expect("defined").pinned(),
    });
    let options = WorkerOptions { lookup_within: Duration::from_secs(1), ..WorkerOptions::default() };
    let contracts = Arc::new(Contracts::new(source, options).expect("a session"));
    contracts.follow().await.expect("the packages load");
    let worker =
        serve(None, Some(WorkerPart { contracts: Arc::clone(&contracts), clock: project.clock.clone() })).await;
    let client = PredictClient::new(&format!("http://{worker}")).expect("an address");
    let hurried = client.clone().within(Duration::from_millis(300));
    for contract in ["fraud", "trust"] {
        predict(&client, contract).await.expect("the network is open");
    }

    proxy.network.send_replace(Network::Lost);
    for _ in 0..3 {
        // Two callers at once are a batch that no caller leads alone.
        let (one, other, elsewhere) =
            tokio::join!(predict(&hurried, "fraud"), predict(&hurried, "fraud"), predict(&client, "trust"));
        for late in [one, other] {
            let kind = late.expect_err("the network is silent").kind();
            assert!(matches!(kind, ErrorKind::Expired | ErrorKind::Unavailable), "{kind:?}");
        }
        elsewhere.expect("the other network is open");
    }
    let patient = predict(&client, "fraud").await.expect_err("the network is silent");
    assert_eq!(patient.kind(), ErrorKind::Unavailable);
    let expired = contracts.worker("fraud", "").expect("served").counters().expired;
    assert!(expired > 0, "the worker told its callers");

    proxy.network.send_replace(Network::Open);
    let found = async {
        while predict(&client, "fraud").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), found).await.expect("within seconds, without a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_never_meets_another_question() {
    let (project, state) = deployed().await;
    let proxy = Proxy::start(&serve_store(&project).await).await;
    let features = RemoteFeatures::seeded(&proxy.address, 1).expect("an address");
    let contract = state.current_contract("fraud").expect("defined").pinned();
    let amount = async |user: &str| {
        let answer = features.lookup(&contract, keys(user)).await.expect("looks up");
        answer["last_payment.amount"].as_primitive::<Float64Type>().value(0).to_bits()
    };
    assert_eq!(amount("ann").await, 70.0_f64.to_bits());
    for _ in 0..3 {
        proxy.network.send_replace(Network::Held);
        tokio::time::timeout(Duration::from_millis(50), amount("ann")).await.expect_err("nothing arrives");
        proxy.network.send_replace(Network::Open);
        assert_eq!(amount("bob").await, 2.0_f64.to_bits());
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_left_alone_for_a_moment_and_found_when_it_is_there() {
    let (project, state) = deployed().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a free port");
    let features = RemoteFeatures::seeded(&format!("http://{free}"), 1).expect("an address");
    let contract = state.current_contract("fraud").expect("defined").pinned();
    let first = features.lookup(&contract, keys("ann")).await.expect_err("nobody is there");
    let second = features.lookup(&contract, keys("ann")).await.expect_err("nobody is there");
    assert_eq!([first.kind(), second.kind()], [ErrorKind::Unavailable; 2]);
    assert!(second.to_string().contains("tried again in"), "{second}");
    let listener = bind(free).await.expect("still free");
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let server = Arc::new(FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone()));
    server.follow(&()).await.expect("readable");
    let flight =
        FlightServer::new(Arc::clone(&server), Arc::new(WireQueries::start(project.jobs()).expect("threads")), None);
    let store = Some(StorePart { features: server, flight, socket: None });
    let (_stop, stopping) = watch::channel(false);
    let running = tokio::spawn(
        App { listeners: vec![listener], store, worker: None, http: None, security: Security::open() }.run(stopping),
    );
    let found = async {
        while features.lookup(&contract, keys("ann")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("it is found");
    running.abort();
}

#[tokio::test]
async fn object_storage_that_does_not_answer_is_an_error_in_bounded_time() {
    // Connections are made, and nobody reads what comes on them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("bound"));
    let options = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_region", "us-east-1"),
        ("aws_access_key_id", "k"),
        ("aws_secret_access_key", "s"),
        ("timeout", "200ms"),
    ];
    let store = open_store("s3://house/project", options).expect("an S3 URL");
    let (path, bytes) = (Path::from("a"), "b".into());
    let (read, written) = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(store.get(&path), store.put(&path, bytes))
    })
    .await
    .expect("within a minute");
    let kind = |error: springhouse_featurestore::object_storage::api::Error| {
        springhouse_featurestore::Error::from(error).kind()
    };
    assert_eq!(kind(read.map(|_| ()).expect_err("silent")), ErrorKind::Unavailable);
    assert_eq!(kind(written.map(|_| ()).expect_err("silent")), ErrorKind::Unavailable);
}
