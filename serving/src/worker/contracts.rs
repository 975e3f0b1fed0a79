//! The contracts that a worker process serves: one worker each, exchanged when a deployment changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::{Session, SessionOptions};

use super::ContractWorker;
use crate::features::FeatureSource;

/// How much a worker takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerOptions {
    /// The most rows of a batch, and so of a request.
    pub batch_rows: usize,
    /// The most rows that wait, per contract.
    pub queue_rows: usize,
    /// How long a lookup may take, whatever its callers' deadlines are.
    pub lookup_within: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self { batch_rows: 4096, queue_rows: 16_384, lookup_within: Duration::from_secs(2) }
    }
}

/// All workers of a process by contract name.
#[derive(Debug)]
pub struct Contracts {
    source: Arc<dyn FeatureSource>,
    session: Session,
    options: WorkerOptions,
    workers: RwLock<BTreeMap<String, Arc<ContractWorker>>>,
}

impl Contracts {
    /// No workers yet; [`Self::follow`] starts them.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(source: Arc<dyn FeatureSource>, options: WorkerOptions) -> Result<Self> {
        // Input expressions need a session's functions, never its tables or memory.
        let session = SessionOptions { project: PathBuf::new(), memory_bytes: 64 << 20, partitions: 1 };
        Ok(Self { source, session: Session::new(&session)?, options, workers: RwLock::default() })
    }

    /// Starts workers for new deployments, exchanges those whose package changed, and lets go of the others. A new
    /// worker is ready before the old one gets no more requests; a package that does not load leaves the old one.
    ///
    /// # Errors
    /// The first that occurred; the other contracts are followed all the same.
    pub async fn follow(&self) -> Result<()> {
        let deployments = self.source.deployments().await?;
        let mut first_error = None;
        let names: Vec<String> = deployments.iter().map(|deployed| deployed.contract.name.clone()).collect();
        for deployed in deployments {
            let name = deployed.contract.name.clone();
            let current = self.workers.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
            if current.is_some_and(|worker| *worker.deployed() == deployed) {
                continue;
            }
            let started = match self.source.package(&deployed.digest).await {
                Ok(package) => {
                    ContractWorker::start(deployed, &package, Arc::clone(&self.source), &self.session, &self.options)
                }
                Err(error) => Err(error),
            };
            match started {
                Ok(worker) => {
                    tracing::info!(contract = %worker.contract().pinned(), package = %worker.deployed().digest, "serving");
                    self.workers.write().unwrap_or_else(PoisonError::into_inner).insert(name, worker);
                }
                Err(error) => first_error = first_error.or(Some(error.with("contract", name))),
            }
        }
        self.workers.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
        first_error.map_or(Ok(()), Err)
    }

    /// The worker of a contract; `version` may be empty.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`] with the names that are served.
    pub fn worker(&self, name: &str, version: &str) -> Result<Arc<ContractWorker>> {
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner);
        let served = || {
            let names: Vec<String> = workers.values().map(|worker| worker.contract().pinned().to_string()).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let worker = workers.get(name).ok_or_else(|| {
            Error::not_found("no such contract is deployed").with("contract", name).with("served", served())
        })?;
        if version.is_empty() || worker.contract().version.as_str() == version {
            return Ok(Arc::clone(worker));
        }
        Err(Error::not_found("the contract is not deployed at this version")
            .with("contract", name)
            .with("version", version)
            .with("served", served()))
    }

    /// All workers.
    pub fn all(&self) -> Vec<Arc<ContractWorker>> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
