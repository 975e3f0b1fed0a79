//! The catalog: what is defined, packaged and deployed, as a history of numbered commits on object storage.
//!
//! Every change is one commit: who, when, why, and what it adds or retires; the history of commits is the audit log.
//! A commit is written with a conditional put (create if absent). The loser of a race gets a conflict, reads what the
//! winner wrote, checks its own change against it and tries again; there is never a lost update.

mod checkpoint;
mod commit;
mod log;
mod state;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

pub use checkpoint::Checkpoints;
pub use commit::{CatalogCommit, Change, PackageRecord};
pub use log::CommitLog;
pub use state::{CatalogState, Deployment};

use crate::Result;

/// The catalog of one store.
#[derive(Debug, Clone)]
pub struct Catalog {
    log: CommitLog<CatalogCommit>,
}

impl Catalog {
    /// The catalog below `catalog/` of a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { log: CommitLog::new(store, Path::from("catalog")) }
    }

    /// The state after the newest commit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a commit whose bytes do not match its checksum.
    pub async fn state(&self) -> Result<CatalogState> {
        let mut state = CatalogState::default();
        self.follow(&mut state).await?;
        Ok(state)
    }

    /// Brings a state up to the newest commit; `true` when there was anything new.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn follow(&self, state: &mut CatalogState) -> Result<bool> {
        let commits = self.log.read_after(state.number()).await?;
        let any = !commits.is_empty();
        for (number, commit) in commits {
            state.apply(number, commit);
        }
        Ok(any)
    }

    /// Writes the commit that follows `state`, and applies it to it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when another writer has committed since `state` was read.
    pub async fn commit(&self, state: &mut CatalogState, commit: CatalogCommit) -> Result<u64> {
        let number = state.number() + 1;
        self.log.append(number, &commit).await?;
        state.apply(number, commit);
        Ok(number)
    }

    /// All commits with their numbers, oldest first.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn history(&self) -> Result<Vec<(u64, CatalogCommit)>> {
        self.log.read_after(0).await
    }
}
