//! The fence: one process takes pushes for a store, and a process that has been passed knows it.
//!
//! Who begins to takes an epoch on object storage ([`PushHistory`](springhouse_featurestore::push::PushHistory)). A flush of an
//! older epoch cannot succeed; and every few seconds the newest epoch is looked at, so that a process whose store was taken
//! over stops acknowledging soon. What it had acknowledged and not flushed stays in its log, and is taken in, once, when it
//! is started again.
//!
//! A log that was copied, or restored from a backup, would number pushes as the one that it comes from. The log keeps the
//! epoch that it took last, and the store those that were taken with it: where the store knows of a later one, or of
//! positions that the log has not come to, the log becomes another ([`Claim`]). Of its entries those go that the store holds at
//! the same positions, and those whose sequences it has.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use springhouse_featurestore::definition::Pinned;
use springhouse_featurestore::push::{Claim, PushHistoryState, PushLog, Taker};
use springhouse_featurestore::tier::{Mark, OnlineTier};
use springhouse_featurestore::{Error, Result};

use super::{FollowedCatalog, Shared, current_sources, distinct};
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

    /// Notes who has taken an epoch; whether it is the first that has come after this one.
    fn see(&self, other: Taker) -> bool {
        let passed = other.epoch > self.own.epoch && self.passed_by.set(other).is_ok();
        if passed {
            tracing::error!(
                epoch = other.epoch,
                own_epoch = self.own.epoch,
                "another process has begun to take pushes for this store: this one acknowledges nothing more"
            );
        }
        passed
    }

    /// Whether it is another process with a copy of this one's log.
    fn has_copy(&self, other: Taker) -> bool {
        other.epoch > self.own.epoch && other.log == self.own.log
    }
}

/// Begins an epoch, and brings what this process holds in line with what others have flushed meanwhile: rows of tiers that
/// were never committed go, to be loaded anew, and entries of the log that were never flushed get new positions.
///
/// # Errors
/// Those of the store, the log and the tiers; begun again it does what is left.
pub(super) async fn take_over(
    jobs: &Jobs,
    log: &Arc<PushLog>,
    tier: &dyn OnlineTier,
    catalog: &FollowedCatalog,
) -> Result<PushHistoryState> {
    let mut marks: Vec<(Pinned, Mark)> = Vec::new();
    for view in catalog().live_views() {
        marks.push((view.pinned(), tier.mark(&view.pinned())?));
    }
    let known = log.identified(jobs.writer())?;
    // What a tier has of a log was in the log first.
    let older = marks.iter().any(|(_, mark)| mark.log == known && mark.pushed > log.last());
    let claim = Claim { log: known, epoch: log.epoch(), last: log.last(), older, process: jobs.writer() };
    let history = jobs.pushed().take_over(&claim, jobs.clock().now()).await?;
    let own = history.taker.log;
    let (copied, flushed) = (own != known, history.flushed_of(own));
    let passed = copied || history.until > flushed;
    let mut used = history.until;
    for (view, mark) in marks {
        let uncommitted = mark.pushed > history.flushed_of(mark.log);
        // Of a log that was copied nobody knows whose its positions are.
        let nobodys = copied && mark.log == known && mark.pushed > 0;
        if nobodys || uncommitted && (passed || mark.log != own) {
            tier.forget(&view)?;
            tracing::warn!(%view, "the tier held pushes that are not in the store's order: it is loaded anew");
        }
        used = used.max(mark.pushed);
    }
    let said = history.producers.iter().flat_map(|(source, producers)| {
        producers.iter().map(move |(producer, known)| (source.as_str(), producer.as_str(), known.told()))
    });
    if passed {
        // Their events get other positions, and are tried anew.
        log.forget_set_aside()?;
    }
    if copied {
        tracing::warn!(
            log = format!("{known:x}"),
            becomes = format!("{own:x}"),
            "the push log is a copy, or was restored from a backup: what it holds and the store does not is taken in under \
             positions of its own"
        );
        let held = jobs.pushed().flushed_among(&history, &log.entries_after(0)?).await?;
        log.renumber(own, used, |position, source, origin| {
            held.contains(&position) || history.taken_elsewhere(own, source, origin)
        })?;
    } else if passed {
        // What this log flushed is found on object storage by whoever needs it.
        log.trim(flushed)?;
        log.renumber(own, used, |_, source, origin| history.taken_elsewhere(own, source, origin))?;
    }
    if copied || passed {
        // Others may have flushed copies of the events that are left.
        log.forget_events()?;
        for source in current_sources(&catalog()).filter(|source| source.identity().is_some()) {
            if log.holds(&source.name)? {
                distinct::learn(jobs, log, source, &history, true).await?;
            }
        }
    }
    let others = log.epoch().is_none_or(|own| own + 1 < history.taker.epoch);
    log.learn(said, jobs.clock().now(), others)?;
    // A new log of an old store goes on where the last one was: positions that a tier has are not given again.
    log.begin_after(used)?;
    log.took(history.taker.epoch)?;
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
    /// Looks at the newest epoch, and at which files have taken the place of others.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn look_at_fence(&self) -> Result<()> {
        let newest = self.jobs.pushed().state().await?;
        self.see(newest.takers()).await?;
        self.see_compacted(newest);
        Ok(())
    }

    /// Notes who has taken epochs. Where one of them has a copy of this process's log its pushes have positions that rows here
    /// have too: those go, and are loaded anew from what is committed.
    pub(super) async fn see(&self, takers: impl IntoIterator<Item = Taker>) -> Result<()> {
        let takers: Vec<Taker> = takers.into_iter().collect();
        let Some(newest) = takers.iter().max_by_key(|taker| taker.epoch) else { return Ok(()) };
        if !self.fence.see(*newest) || !takers.iter().any(|taker| self.fence.has_copy(*taker)) {
            return Ok(());
        }
        let _changing = self.changing.lock().await;
        for view in (self.catalog)().live_views() {
            if self.tier.mark(&view.pinned())?.log == self.fence.own.log {
                self.tier.forget(&view.pinned())?;
                tracing::warn!(view = %view.name, "another process has a copy of the push log: the view is loaded anew");
            }
        }
        Ok(())
    }
}
