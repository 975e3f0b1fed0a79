//! The fence: one process takes pushes for a store, and a process that has been passed knows it.
//!
//! Who begins to takes an epoch on object storage ([`PushHistory`](springhouse_featurestore::push::PushHistory)). A flush of an
//! older epoch cannot succeed; and every few seconds the newest epoch is looked at, so that a process whose store was taken
//! over stops acknowledging soon. What it had acknowledged and not flushed stays in its log, and is taken in, once, when it
//! is started again.

use std::sync::{OnceLock, Weak};
use std::time::Duration;

use springhouse_featurestore::push::{PushHistoryState, PushLog, SaidByProducer, Taker};
use springhouse_featurestore::tier::OnlineTier;
use springhouse_featurestore::{Error, Result};

use super::{FollowedCatalog, Shared};
use crate::Jobs;

/// How often the newest epoch is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// This process's epoch, and who has come after it.
#[derive(Debug)]
pub(super) struct Fence {
    own: Taker,
    passed_by: OnceLock<Taker>,
}

impl Fence {
    pub(super) fn new(own: Taker) -> Self {
        Self { own, passed_by: OnceLock::new() }
    }

    /// Whether this process takes pushes still.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] names the epoch that has come after its own.
    pub(super) fn hold(&self) -> Result<()> {
        match self.passed_by.get() {
            None => Ok(()),
            Some(other) => Err(Error::busy("another process has begun to take pushes for this store")
                .with("epoch", other.epoch)
                .with("own epoch", self.own.epoch)
                .remedy(
                    "push to that process; what this one holds and has not flushed is taken in when it is started again",
                )),
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.passed_by.get().is_some()
    }

    /// Notes who wrote the newest commit.
    pub(super) fn see(&self, newest: Taker) {
        if newest.epoch > self.own.epoch && self.passed_by.set(newest).is_ok() {
            tracing::error!(
                epoch = newest.epoch,
                own_epoch = self.own.epoch,
                "another process has begun to take pushes for this store: this one acknowledges nothing more"
            );
        }
    }
}

/// Begins an epoch, and brings what this process holds in line with what others have flushed meanwhile: rows of tiers that
/// were never committed go, to be loaded anew, and entries of the log that were never flushed get new positions.
///
/// # Errors
/// Those of the store, the log and the tiers; begun again it does what is left.
pub(super) async fn take_over(
    jobs: &Jobs,
    log: &PushLog,
    tier: &dyn OnlineTier,
    catalog: &FollowedCatalog,
) -> Result<PushHistoryState> {
    let own = log.identified(jobs.writer())?;
    let history = jobs.pushed().take_over(own, jobs.clock().now()).await?;
    let flushed = history.flushed_of(own);
    let passed = history.until > flushed;
    let mut used = history.until;
    for view in catalog().live_views() {
        let mark = tier.mark(&view.pinned())?;
        let uncommitted = mark.pushed > history.flushed_of(mark.log);
        if uncommitted && (passed || mark.log != own) {
            tier.forget(&view.pinned())?;
            tracing::warn!(view = %view.name, "the tier held pushes that are not in the store's order: it is loaded anew");
        }
        used = used.max(mark.pushed);
    }
    let said = history.producers.iter().flat_map(|(source, producers)| {
        producers.iter().map(move |(producer, known)| {
            let said = SaidByProducer { last: known.last, watermark: known.watermark, ..SaidByProducer::default() };
            (source.as_str(), producer.as_str(), said)
        })
    });
    if passed {
        // What this log flushed is found on object storage by whoever needs it.
        log.trim(flushed)?;
        log.renumber(used, |source, origin| history.taken_elsewhere(own, source, origin))?;
    }
    log.learn(said)?;
    // A new log of an old store goes on where the last one was: positions that a tier has are not given again.
    log.begin_after(used)?;
    Ok(history)
}

/// Looks at the newest epoch until nobody takes pushes any more.
pub(super) async fn watch(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(shared) = shared.upgrade() else { break };
        if shared.fence.is_lost() {
            break;
        }
        if let Err(error) = shared.look_at_fence().await {
            tracing::warn!(error = %error.chain(), "it cannot be seen whether another process takes pushes");
        }
    }
}

impl Shared {
    /// Looks at the newest epoch.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn look_at_fence(&self) -> Result<()> {
        let known = self.history().number;
        if let Some(newest) = self.jobs.pushed().taker_after(known).await? {
            self.fence.see(newest);
        }
        Ok(())
    }
}
