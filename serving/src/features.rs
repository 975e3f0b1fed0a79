//! The feature server: a store's catalog and tiers, followed as they change, and the lookup over them.

mod following;
mod views;
mod watched;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use springhouse_featurestore::catalog::{Catalog, CatalogState};
use springhouse_featurestore::definition::{Contract, FeatureView, Pinned};
use springhouse_featurestore::freshness::lag;
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::push::EventSink;
use springhouse_featurestore::tier::{DiskTier, MemoryTier, ObjectStore, OnlineTier, RememberedStates, Restated};
use springhouse_featurestore::time::{Clock, Timestamp};
use springhouse_featurestore::{Error, Result};

use self::following::{FOLLOWED_AT_ONCE, Followed};
use self::views::Views;
pub(crate) use self::views::in_words;
pub use self::views::{Trouble, ViewState};
use crate::package::Package;

/// A contract with a package that answers for it, and everything a worker needs to do so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeployedContract {
    /// The contract, at the version that the package implements.
    pub contract: Contract,
    /// The views that it pins, in the order of its rules.
    pub views: Vec<FeatureView>,
    /// The package's digest.
    pub digest: String,
}

/// Where a worker gets deployments, packages and features: in the same process or over Flight.
#[async_trait]
pub trait FeatureSource: Send + Sync + std::fmt::Debug {
    /// What is deployed.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when the store cannot be reached.
    async fn deployments(&self) -> Result<Vec<DeployedContract>>;

    /// A package, verified against its digest.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] when its bytes do not match.
    async fn package(&self, digest: &str) -> Result<Package>;

    /// Looks up rows of keys for a contract version; the answer has the columns that
    /// [`springhouse_featurestore::lookup`] documents, row for row.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for keys that the contract does not have.
    async fn lookup(&self, contract: &Pinned, keys: RecordBatch) -> Result<RecordBatch>;
}

/// How a view stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewStatus {
    /// The view, `name@version`.
    pub view: String,
    /// Every event up to this time has been processed and can be looked up.
    pub watermark: Option<Timestamp>,
    /// Now less the watermark, in seconds; absent before the first refresh.
    pub lag_seconds: Option<f64>,
    /// How often it is to be refreshed.
    pub refresh_every: String,
    /// How it is followed.
    #[serde(default)]
    pub state: ViewState,
    /// What of history is not what was committed, until a backfill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restated: Option<Restated>,
    /// The pushed events that it does without, since its query fails on them; as of its newest commit.
    #[serde(default)]
    pub set_aside: u64,
}

/// How the feature server stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureStatus {
    /// Its clock's time.
    pub now: Timestamp,
    /// The newest catalog commit that it follows.
    pub catalog_commit: u64,
    /// Deployed contracts: `name@version` and the package's digest.
    pub deployments: BTreeMap<String, String>,
    /// Current contracts, `name@version`.
    pub contracts: Vec<String>,
    /// Its views.
    pub views: Vec<ViewStatus>,
    /// Keys answered from memory since the start.
    pub memory_hits: u64,
    /// Keys asked for since the start.
    pub memory_reads: u64,
    /// Producers that are left out of their sources' watermarks, `source: producer`: they say nothing any more.
    #[serde(default)]
    pub silent_producers: Vec<String>,
}

impl FeatureStatus {
    /// The same for those who may not run queries: without what could quote values of events.
    #[must_use]
    pub fn without_reasons(mut self) -> Self {
        for view in &mut self.views {
            view.state = std::mem::take(&mut view.state).without_reason();
        }
        self
    }
}

/// What a view's log says as of a commit.
#[derive(Debug)]
struct SaidByLog {
    commit: u64,
    /// What of history is not what was committed.
    restated: Option<Restated>,
    /// How many events are set aside.
    set_aside: u64,
}

/// The store opened for online reads by this process.
#[derive(Debug)]
pub struct FeatureServer {
    store: Arc<dyn ObjectStore>,
    catalog: Catalog,
    tier: Arc<MemoryTier<DiskTier>>,
    clock: Arc<dyn Clock>,
    state: RwLock<Arc<CatalogState>>,
    plans: RwLock<HashMap<Pinned, Arc<LookupPlan>>>,
    views: Views,
    /// What each view's log says of its history and of events that are set aside.
    restated: RwLock<HashMap<Pinned, SaidByLog>>,
    /// The states of views in which that was found: only what was committed since is read.
    noted: RememberedStates,
    /// Held by whoever changes the tiers, and not while storage is read.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// What was seen, held by who looks; not while a view is followed.
    following: tokio::sync::Mutex<Followed>,
    /// The places of the views that are followed, over all looks.
    places: tokio::sync::Semaphore,
    /// Held by the look that lets the sink bring up what it is behind with.
    replaying: tokio::sync::Mutex<()>,
    /// Who takes pushes, if somebody does.
    sink: OnceLock<Arc<dyn EventSink>>,
}

impl FeatureServer {
    /// A server over a store and an opened disk tier, with a cache of `memory_bytes`.
    pub fn new(store: Arc<dyn ObjectStore>, disk: DiskTier, memory_bytes: u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            catalog: Catalog::new(Arc::clone(&store)),
            store,
            tier: Arc::new(MemoryTier::new(disk, memory_bytes)),
            clock,
            state: RwLock::default(),
            plans: RwLock::default(),
            views: Views::default(),
            restated: RwLock::default(),
            noted: RememberedStates::default(),
            changing: Arc::default(),
            following: tokio::sync::Mutex::default(),
            places: tokio::sync::Semaphore::new(FOLLOWED_AT_ONCE),
            replaying: tokio::sync::Mutex::default(),
            sink: OnceLock::new(),
        }
    }

    /// The tiers, for the one who applies pushes to them, and the lock to hold meanwhile.
    pub fn tier(&self) -> (Arc<dyn OnlineTier>, Arc<tokio::sync::Mutex<()>>) {
        (Arc::clone(&self.tier) as Arc<dyn OnlineTier>, Arc::clone(&self.changing))
    }

    /// Gives the catalog that this server follows, for as long as it is there. The server holds the one who takes pushes:
    /// that one does not hold the server.
    pub fn followed(self: &Arc<Self>) -> impl Fn() -> Arc<CatalogState> + Send + Sync + 'static {
        let server = Arc::downgrade(self);
        move || server.upgrade().map(|server| server.state()).unwrap_or_default()
    }

    /// Tells who takes pushes; the first one told of stays.
    pub fn push_to(&self, sink: Arc<dyn EventSink>) {
        // There is one for each server.
        drop(self.sink.set(sink));
    }

    /// The catalog as of the last [`Self::follow`].
    pub fn state(&self) -> Arc<CatalogState> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The object store.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The plan of a contract by name (the deployed version, else the current one) or by `name@version`.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`] with the names that there are.
    pub fn plan(&self, contract: &str) -> Result<Arc<LookupPlan>> {
        let state = self.state();
        let found = match contract.split_once('@') {
            Some((name, version)) => {
                let version = springhouse_featurestore::definition::Version::from_text(version);
                state.contract(&Pinned::new(name, version))?
            }
            None => match deployed(&state, contract) {
                Some((contract, _)) => contract,
                None => state.current_contract(contract)?,
            },
        };
        self.plan_of(&state, found)
    }

    fn plan_of(&self, state: &CatalogState, contract: &Contract) -> Result<Arc<LookupPlan>> {
        let pinned = contract.pinned();
        if let Some(plan) = self.plans.read().unwrap_or_else(PoisonError::into_inner).get(&pinned)
            && plan.contract().policy == contract.policy
        {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(LookupPlan::new(contract, &views_of(state, contract)?)?);
        self.plans.write().unwrap_or_else(PoisonError::into_inner).insert(pinned, Arc::clone(&plan));
        Ok(plan)
    }

    /// Looks up a batch of keys, by column names, at the clock's time.
    ///
    /// # Errors
    /// As [`LookupPlan::take_asked_keys`] and [`LookupPlan::lookup`]; [`springhouse_featurestore::ErrorKind::Unavailable`] names
    /// a view of the contract that is not available, and why.
    pub fn lookup_with(&self, plan: &LookupPlan, keys: &RecordBatch) -> Result<RecordBatch> {
        self.views.check(plan.contract())?;
        plan.lookup(self.tier.as_ref(), &plan.take_asked_keys(keys)?, self.clock.now())
    }

    /// How it stands.
    ///
    /// # Errors
    /// Those of the tier.
    pub fn status(&self) -> Result<FeatureStatus> {
        let (state, now) = (self.state(), self.clock.now());
        let mut views = Vec::new();
        let restated = self.restated.read().unwrap_or_else(PoisonError::into_inner);
        for view in state.live_views() {
            // Why a view cannot be read is what its state tells.
            let watermark = self.tier.mark(&view.pinned()).ok().and_then(|mark| mark.watermark);
            views.push(ViewStatus {
                state: self.views.state(&view.pinned()),
                view: view.pinned().to_string(),
                watermark,
                lag_seconds: watermark.map(|_| lag(now, watermark).as_secs_f64()),
                refresh_every: view.refresh_every.to_string(),
                restated: restated.get(&view.pinned()).and_then(|of| of.restated.clone()),
                set_aside: restated.get(&view.pinned()).map_or(0, |of| of.set_aside),
            });
        }
        drop(restated);
        let (memory_hits, memory_reads) = self.tier.hits_of_reads();
        let deployments = state.deployments().keys().filter_map(|name| deployed(&state, name));
        let silent = self.sink.get().map(|sink| sink.silent_producers()).unwrap_or_default();
        Ok(FeatureStatus {
            now,
            catalog_commit: state.number(),
            deployments: deployments
                .map(|(contract, digest)| (contract.pinned().to_string(), digest.to_owned()))
                .collect(),
            contracts: state.contracts().map(|contract| contract.pinned().to_string()).collect(),
            views,
            memory_hits,
            memory_reads,
            silent_producers: silent.into_iter().map(|of| format!("{}: {}", of.source, of.producer)).collect(),
        })
    }
}

fn views_of(state: &CatalogState, contract: &Contract) -> Result<Vec<FeatureView>> {
    contract.features.iter().map(|rule| state.view(&rule.view).cloned()).collect()
}

/// The contract version that is deployed under a name, and its package's digest.
fn deployed<'a>(state: &'a CatalogState, name: &str) -> Option<(&'a Contract, &'a str)> {
    let record = state.packages().get(&state.deployment(name)?.digest)?;
    Some((state.contract(&record.contract).ok()?, &record.digest))
}

#[async_trait]
impl FeatureSource for FeatureServer {
    async fn deployments(&self) -> Result<Vec<DeployedContract>> {
        let state = self.state();
        state
            .deployments()
            .keys()
            .filter_map(|name| deployed(&state, name))
            .map(|(contract, digest)| {
                Ok(DeployedContract {
                    contract: contract.clone(),
                    views: views_of(&state, contract)?,
                    digest: digest.to_owned(),
                })
            })
            .collect()
    }

    async fn package(&self, digest: &str) -> Result<Package> {
        Package::load(&self.store, digest).await
    }

    async fn lookup(&self, contract: &Pinned, keys: RecordBatch) -> Result<RecordBatch> {
        let state = self.state();
        let contract = state.contract(contract).map_err(|error| {
            Error::not_found("the contract is not in the catalog").with("contract", contract).source(error)
        })?;
        self.lookup_with(&*self.plan_of(&state, contract)?, &keys)
    }
}
