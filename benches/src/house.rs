//! What is measured: the flights example, refreshed through November, with a store and a worker on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches, filter_record_batch, is_not_null};
use arrow::datatypes::{DataType, Float32Type};
use futures::TryStreamExt;
use springhouse_featurestore::catalog::{Catalog, CatalogCommit, CatalogState, Change, PackageRecord};
use springhouse_featurestore::definition::Contract;
use springhouse_featurestore::push::PushLog;
use springhouse_featurestore::tier::{DiskTier, ObjectStore, open_store};
use springhouse_featurestore::time::{Clock, DrivenClock, Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::Jobs;
use springhouse_materializer::push::Pushes;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::FeatureServer;
use springhouse_serving::app::{App, StorePart, WorkerPart, bind, direct};
use springhouse_serving::flight::FlightServer;
use springhouse_serving::model::neural::{TrainOptions, train};
use springhouse_serving::package::{Package, Training};
use springhouse_serving::security::Security;
use springhouse_serving::worker::{Contracts, WorkerOptions};
use springhouse_sql::change_plan::changes;
use springhouse_sql::check::check;
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::session::{Session, SessionOptions};
use springhouse_sql::spine::{SpineOrder, SpineSource};
use tokio::sync::watch;

use crate::load::note;

/// The contract.
pub const CONTRACT: &str = "arrival_delay";

/// Whether lookups find rows in the memory tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// All of them.
    Warm,
    /// None: every read goes to the disk tier.
    Off,
}

/// The example, built once.
pub struct House {
    pub folder: tempfile::TempDir,
    pub store: Arc<dyn ObjectStore>,
    pub clock: Arc<DrivenClock>,
    pub state: CatalogState,
    pub contract: Contract,
}

impl House {
    /// Applies, refreshes, trains and deploys.
    pub async fn build() -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|error| Error::unavailable("no folder").source(error))?;
        let store = open_store(&folder.path().join("store").to_string_lossy(), [])?;
        let clock = Arc::new(DrivenClock::still(Timestamp::parse("2013-12-01T05:00:00Z")?));
        let jobs = jobs(&store, &clock);
        let catalog = Catalog::new(Arc::clone(&store));
        let mut state = catalog.state().await?;
        let checked = check(&definitions()?, &state, &jobs.session()?).await?;
        let defined = changes(&checked, &state);
        commit(&catalog, &mut state, clock.as_ref(), defined).await?;
        for view in state.live_views() {
            let done = jobs.refresh(&state, view).await?;
            note(&format!("{}: {} rows", view.name, done.rows));
        }
        let contract = state.current_contract(CONTRACT)?.clone();
        let package = package(&jobs, &state, &contract).await?;
        package.store(&store).await?;
        let record = PackageRecord { digest: package.digest().to_owned(), contract: contract.pinned() };
        let deploy = Change::Deploy { contract: CONTRACT.to_owned(), digest: record.digest.clone() };
        commit(&catalog, &mut state, clock.as_ref(), vec![Change::Package(record), deploy]).await?;
        Ok(Self { folder, store, clock, state, contract })
    }

    /// Jobs on its store.
    pub fn jobs(&self) -> Jobs {
        jobs(&self.store, &self.clock)
    }

    /// The store, opened and loaded; `name` names the disk tier's folder.
    pub async fn features(&self, name: &str, memory: Memory) -> Result<Arc<FeatureServer>> {
        self.features_on(&self.store, name, memory).await
    }

    async fn features_on(
        &self,
        store: &Arc<dyn ObjectStore>,
        name: &str,
        memory: Memory,
    ) -> Result<Arc<FeatureServer>> {
        let disk = DiskTier::open(&self.folder.path().join(name))?;
        let bytes = if memory == Memory::Warm { 256 << 20 } else { 0 };
        let features = Arc::new(FeatureServer::new(Arc::clone(store), disk, bytes, self.clock.clone()));
        features.follow(&()).await?;
        Ok(features)
    }

    /// Starts a store and a worker in this process on one port; `name` names the disk tier's folder.
    pub async fn serve(&self, name: &str, memory: Memory) -> Result<SocketAddr> {
        self.serve_on(&self.store, name, memory, Security::open()).await
    }

    /// The same on another store, or for those whom it knows.
    pub async fn serve_on(
        &self,
        store: &Arc<dyn ObjectStore>,
        name: &str,
        memory: Memory,
        security: Security,
    ) -> Result<SocketAddr> {
        let features = self.features_on(store, name, memory).await?;
        let contracts = Arc::new(Contracts::new(direct(&features), WorkerOptions::default())?);
        contracts.follow().await?;
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr().map_err(|error| Error::internal("no address").source(error))?;
        let log = PushLog::open(&self.folder.path().join(format!("{name}-log")))?;
        let (tier, changing) = features.tier();
        let pushes = Arc::new(
            Pushes::start(jobs(store, &self.clock), log, tier, changing, Box::new(features.followed())).await?,
        );
        features.push_to(Arc::clone(&pushes) as _);
        let queries = Arc::new(WireQueries::start(jobs(store, &self.clock))?);
        let flight = FlightServer::new(Arc::clone(&features), queries, None).with_sink(pushes);
        let app = App {
            listeners: vec![listener],
            store: Some(StorePart { features, flight, socket: None }),
            worker: Some(WorkerPart { contracts, clock: self.clock.clone() }),
            http: None,
            security,
        };
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(async move {
            // The server lives as long as the benchmark.
            let _stop = stop;
            app.run(stopping).await
        });
        Ok(address)
    }
}

/// The example's folder.
pub fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/flights")
}

/// All flights from January to October.
pub fn spine() -> SpineSource {
    SpineSource {
        from: "SELECT origin, dest, carrier, tailnum, distance, scheduled_at, arr_delay >= 15 AS late FROM flights \
               WHERE scheduled_at < TIMESTAMP '2013-11-01'"
            .to_owned(),
        time: "scheduled_at".to_owned(),
        lag: Span::ZERO,
    }
}

/// The training set of these flights.
pub fn training_set() -> TrainingSetRequest {
    TrainingSetRequest {
        spine: spine(),
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: false,
        order: SpineOrder::AsGiven,
    }
}

fn jobs(store: &Arc<dyn ObjectStore>, clock: &Arc<DrivenClock>) -> Jobs {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = SessionOptions { project: example(), memory_bytes: 1 << 30, partitions: threads };
    Jobs::new(Arc::clone(store), options, clock.clone(), 1)
}

fn definitions() -> Result<Vec<SourceFile>> {
    ["contracts.sql", "features.sql", "sources.sql"]
        .iter()
        .map(|name| {
            let text = std::fs::read_to_string(example().join(name))
                .map_err(|error| Error::unavailable("the example cannot be read").source(error))?;
            Ok(SourceFile { name: (*name).to_owned(), text })
        })
        .collect()
}

/// Commits changes of the catalog.
pub async fn commit(
    catalog: &Catalog,
    state: &mut CatalogState,
    clock: &dyn Clock,
    changes: Vec<Change>,
) -> Result<()> {
    let commit = CatalogCommit::new(clock.now(), "bench", "bench", changes);
    catalog.commit(state, commit).await.map(|_| ())
}

async fn package(jobs: &Jobs, state: &CatalogState, contract: &Contract) -> Result<Package> {
    let set = jobs.training_set(state, contract, &training_set()).await?;
    let batches: Vec<RecordBatch> = set.execute().try_collect().await?;
    let all = concat_batches(set.schema(), &batches)?;
    let all = filter_record_batch(&all, &is_not_null(&all["late"])?)?.slice(0, 50_000);
    let labels: ArrayRef = cast(&all["late"], &DataType::Float32)?;
    let labels = labels.as_primitive::<Float32Type>().values().to_vec();
    let names: Vec<String> = contract.inputs.iter().map(|input| input.name.clone()).collect();
    let options = TrainOptions { epochs: 1, ..TrainOptions::default() };
    let trained = train(&all, &names, &labels, &options, |_, _| {})?;
    let training = Training {
        training_set: "bench".to_owned(),
        rows: labels.len(),
        label: "late".to_owned(),
        seed: options.seed,
        metrics: trained.metrics,
    };
    Package::of_perceptron(contract, names, options.hidden, trained.weights, training)
}

/// A session over the example's own tables, for peers that run plain queries.
pub async fn plain_session(house: &House) -> Result<Session> {
    house.jobs().full_session(&house.state).await
}
