//! The catalog: what is defined, packaged and deployed, as a history of numbered commits on object storage.
//!
//! Every change is one commit: who, when, why, and what it adds or retires; the history of commits is the audit log.
//! A commit is written with a conditional put (create if absent). The loser of a race gets a conflict, reads what the
//! winner wrote, checks its own change against it and tries again; there is never a lost update.
//!
//! ```text
//! catalog/000000000007.json            a commit
//! catalog-state/000000000064.json      checkpoint: what the commits up to this one add up to
//! ```

mod checkpoint;
mod commit;
mod head;
mod log;
mod state;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

pub use checkpoint::Checkpoints;
pub use commit::{CatalogCommit, Change, FORMAT, PackageRecord, Signature};
pub use head::{Head, Heads, HeadsSeen, Look};
pub use log::CommitLog;
pub use state::{CatalogState, Deployment};

use crate::{Error, ErrorKind, Result};

/// How often a change is decided anew when other writers come first.
const ATTEMPTS: usize = 5;

/// The catalog of one store.
#[derive(Debug, Clone)]
pub struct Catalog {
    log: CommitLog<CatalogCommit>,
    checkpoints: Checkpoints<CatalogState>,
    head: Head,
}

impl Catalog {
    /// The catalog below `catalog/` of a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            log: CommitLog::new(Arc::clone(&store), Path::from("catalog")),
            checkpoints: Checkpoints::new(Arc::clone(&store), Path::from("catalog-state")),
            head: Head::of_catalog(store),
        }
    }

    /// The state after the newest commit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a commit that is missing, or whose bytes do not match its checksum.
    pub async fn state(&self) -> Result<CatalogState> {
        // In this order: a commit is there before its head tells of it.
        let told = self.head.told().await?;
        let mut state = self.checkpoints.newest().await?.unwrap_or_default();
        for (number, commit) in self.log.read_after_as_told(state.number(), told).await? {
            state.apply(number, commit);
        }
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

    /// Commits the changes that `decide` derives from the newest state; when another writer comes first, it decides again.
    /// Returns the commit's number, or `None` where there was nothing to change.
    ///
    /// # Errors
    /// Those of `decide` and of [`Self::state`]; [`crate::ErrorKind::Conflict`] when others came first again and again.
    pub async fn change(
        &self,
        by: Signature,
        mut decide: impl AsyncFnMut(&CatalogState) -> Result<Vec<Change>>,
    ) -> Result<Option<u64>> {
        for attempt in 1..=ATTEMPTS {
            let mut state = self.state().await?;
            let changes = decide(&state).await?;
            if changes.is_empty() {
                return Ok(None);
            }
            let commit = CatalogCommit::new(by.at, by.who.clone(), by.why.clone(), changes);
            match self.commit(&mut state, commit).await {
                Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => {
                    tracing::info!(attempt, "another writer committed first; checking against its state");
                }
                done => return done.map(Some),
            }
        }
        Err(Error::conflict("other writers came first every time").remedy("try again"))
    }

    /// Writes the commit that follows `state`, and applies it to it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when another writer has committed since `state` was read.
    pub async fn commit(&self, state: &mut CatalogState, commit: CatalogCommit) -> Result<u64> {
        let number = state.number() + 1;
        self.log.append(number, &commit).await?;
        state.apply(number, commit);
        self.head.tell(number).await;
        self.checkpoints.write(number, state).await;
        Ok(number)
    }

    /// All commits with their numbers, oldest first.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn history(&self) -> Result<Vec<(u64, CatalogCommit)>> {
        self.log.read_after(0).await
    }

    /// The commits as a log.
    pub fn log(&self) -> &CommitLog<CatalogCommit> {
        &self.log
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::definition::{Pinned, Version};
    use crate::time::Timestamp;

    #[tokio::test]
    async fn a_change_is_decided_again_when_another_writer_comes_first() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (catalog, other) = (Catalog::new(Arc::clone(&store)), Catalog::new(store));
        let deploy = |digest: &str| Change::Deploy { contract: "fraud".to_owned(), digest: digest.to_owned() };
        let by = |who: &str| Signature { at: Timestamp::from_micros(1), who: who.to_owned(), why: "test".to_owned() };
        let mut seen = Vec::new();
        let number = catalog.change(by("ann"), async |state: &CatalogState| {
            seen.push(state.number());
            if state.number() == 0 {
                other.change(by("bob"), async |_: &CatalogState| Ok(vec![deploy("sha256:1")])).await?;
            }
            Ok(vec![deploy("sha256:2")])
        });
        assert_eq!(number.await.expect("decided twice"), Some(2));
        assert_eq!(seen, [0, 1]);
        let history = catalog.history().await.expect("readable");
        assert_eq!(history.iter().map(|(_, commit)| commit.who.as_str()).collect::<Vec<_>>(), ["bob", "ann"]);
        let nothing = catalog.change(by("ann"), async |_: &CatalogState| Ok(Vec::new())).await.expect("readable");
        assert_eq!(nothing, None);
    }

    #[tokio::test]
    async fn a_state_from_a_checkpoint_is_that_of_all_commits() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (catalog, mut state) = (Catalog::new(Arc::clone(&store)), CatalogState::default());
        for number in 1..=150_i64 {
            let contract = Pinned::new(format!("c{}", number % 5), Version::from_text("0123456789ab"));
            let digest = format!("sha256:{number:064x}");
            let deploy = Change::Deploy { contract: contract.name.clone(), digest: digest.clone() };
            let changes = vec![Change::Package(PackageRecord { digest, contract }), deploy];
            let at = Timestamp::from_micros(number);
            let commit = CatalogCommit::new(at, "test", "test", changes);
            catalog.commit(&mut state, commit).await.expect("nobody else commits");
        }
        assert_eq!(catalog.state().await.expect("readable"), state);
        assert_eq!(catalog.checkpoints.newest().await.expect("readable").map(|of| of.number()), Some(128));
        for number in [64, 128] {
            store.delete(&Path::from(format!("catalog-state/{number:012}.json"))).await.expect("there");
        }
        assert_eq!(catalog.state().await.expect("readable"), state, "without checkpoints it is the same");
        assert_eq!(catalog.history().await.expect("readable").len(), 150);
        for number in [149, 150] {
            store.delete(&catalog.log.path(number)).await.expect("there");
        }
        let error = catalog.state().await.expect_err("two are lost");
        assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains("000000000149"), "{error}");
    }
}
