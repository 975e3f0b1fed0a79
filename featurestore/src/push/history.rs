//! Pushed events on object storage, beside the history that sources read: Parquet files and a log of commits.
//!
//! ```text
//! pushes/log/000000000003.json                   commit: who takes pushes, up to which position, files, what producers said
//! pushes/state/000000000064.json                 checkpoint: what the commits up to this one add up to
//! pushes/data/departures/000000000003-2-120.parquet
//! pushes/data/departures/compact-000000000019-1f-3.parquet
//! ```
//!
//! *The fence.* One process takes pushes for a store. Who begins to takes the next epoch, by a commit like any other; each
//! flush is a commit of an epoch. Commits are numbered and conditional, so a flush of an epoch that is over cannot succeed:
//! its process reads who came after it, and stops. File names hold epoch and position: nobody replaces another's file,
//! nor one that it wrote itself for a commit of which it does not know what came.
//!
//! *Positions* are one sequence over all logs that ever fed the store, up to the last flush. Beyond it they are a log's own;
//! a log that others have passed gives its entries new ones when its process takes over ([`super::PushLog::renumber`]).
//! A log that was copied, or restored from a backup, is told by what the store knows of it and it does not ([`Claim`]): it
//! becomes another log.
//!
//! *Compaction.* Small files of a source that follow each other are merged by whoever comes to it ([`PushHistory::merge`]), in a
//! commit that changes no event and no position. It needs no epoch: it is a commit of the one that holds, and a flush goes on
//! from it with the files that it has written already. Files of a source never overlap in positions, and what is read as of a
//! position is told event by event.

mod entries;
mod files;
mod producers;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

pub use self::producers::{KnownProducer, NoLonger, Runs, SaidByProducer, Taken};
pub use self::state::PushHistoryState;

use self::producers::Said;
use super::{PushEntry, PushedEvents};
use crate::catalog::{Checkpoints, CommitLog};
use crate::tier::{DataFile, PushedRange};
use crate::time::Timestamp;
use crate::{ErrorKind, Result};

/// Who takes pushes for a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taker {
    /// Counts those who have begun to; 0 before that was kept.
    pub epoch: u64,
    /// The incarnation of the log that it writes.
    pub log: u64,
}

/// What a commit of pushes did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushCommitKind {
    /// Added what was flushed, or began an epoch.
    #[default]
    Flush,
    /// Put files in the place of others that hold the same events.
    Compact,
}

/// One flush of the log, the beginning of an epoch, or a compaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushCommit {
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// What it did.
    #[serde(default)]
    pub kind: PushCommitKind,
    /// Who wrote it; of a compaction, who takes pushes.
    #[serde(default)]
    pub taker: Taker,
    /// Of the beginning of an epoch, the process: two that begin with copies of one log mean different things.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u64>,
    /// The position up to which pushes are on object storage.
    pub until: u64,
    /// How far each source's producers have got.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// What producers have said since the commit before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub producers: Said,
    /// What the store had of producers by the commit before, and holds no longer.
    #[serde(default, skip_serializing_if = "NoLonger::is_empty")]
    pub no_longer: NoLonger,
    /// The paths of the files whose place those of a compaction take; of a flush none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<String>,
    /// The events that it adds, by source.
    pub files: BTreeMap<String, Vec<DataFile>>,
}

impl PushCommit {
    /// One of a kind that says and adds nothing.
    fn empty(kind: PushCommitKind, at: Timestamp, taker: Taker, until: u64) -> Self {
        let (watermarks, producers, no_longer, files) = Default::default();
        Self { at, kind, taker, process: None, until, watermarks, producers, no_longer, replaced: Vec::new(), files }
    }
}

/// A log whose process is about to take pushes, by what it knows of itself. The store knows more of a log that is a copy, or
/// older than it was: such a log feeds the store under a new number, and its positions are nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The log.
    pub log: u64,
    /// The epoch that it took last; absent where it has taken none, or that was not kept.
    pub epoch: Option<u64>,
    /// Its last position.
    pub last: u64,
    /// Whether it is known to be older than it was.
    pub older: bool,
    /// Tells the process apart from all others, as does the number of a log that it begins.
    pub process: u64,
}

impl Claim {
    /// The log as which it feeds a store.
    fn log_in(&self, state: &PushHistoryState) -> u64 {
        let newest = state.epoch_of(self.log);
        let later = match self.epoch {
            Some(epoch) => newest > epoch,
            // A log from before logs were told apart: there may be several, which all are number 0. Who comes first is it.
            None if self.log == 0 => state.taker.epoch > 0,
            // A log that has just begun, and was given a number that another one has been given.
            None => self.log == self.process && newest > 0,
        };
        if !later && !self.older && state.flushed_of(self.log) <= self.last {
            return self.log;
        }
        let used = |log| log == self.log || log == state.taker.log || state.flushed.contains_key(&log);
        let mut new = self.process;
        while used(new) {
            new = new.wrapping_add(1);
        }
        new
    }
}

/// What of a log is to be flushed.
#[derive(Debug)]
pub struct Flush<'a> {
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// The entries, which follow those that have been flushed.
    pub entries: &'a [PushEntry],
    /// How far each source's producers have got.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// What producers have said, by source and producer.
    pub said: BTreeMap<(String, String), SaidByProducer>,
    /// What of it on the store holds no longer.
    pub no_longer: NoLonger,
}

/// The state that a process has seen last: what is new since is all that it reads.
#[derive(Debug, Clone, Default)]
pub struct RememberedPushes(Arc<Mutex<Option<PushHistoryState>>>);

impl RememberedPushes {
    fn newest(&self) -> Option<PushHistoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, state: &PushHistoryState) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two that look at once the one that saw less may come last.
        if kept.as_ref().is_none_or(|kept| kept.number < state.number) {
            *kept = Some(state.clone());
        }
    }
}

/// The flushes on an object store.
#[derive(Debug, Clone)]
pub struct PushHistory {
    store: Arc<dyn ObjectStore>,
    log: CommitLog<PushCommit>,
    checkpoints: Checkpoints<PushHistoryState>,
    remembered: Option<RememberedPushes>,
}

impl PushHistory {
    /// The history on a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        let log = CommitLog::new(Arc::clone(&store), Path::from_iter(["pushes", "log"]));
        let checkpoints = Checkpoints::new(Arc::clone(&store), Path::from_iter(["pushes", "state"]));
        Self { store, log, checkpoints, remembered: None }
    }

    /// The same history, for a process that looks at it again and again.
    #[must_use]
    pub fn remembering(self, state: &RememberedPushes) -> Self {
        Self { remembered: Some(state.clone()), ..self }
    }

    /// The state after the newest commit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a damaged commit.
    pub async fn state(&self) -> Result<PushHistoryState> {
        let mut state = match self.remembered.as_ref().and_then(RememberedPushes::newest) {
            Some(state) => state,
            None => self.checkpoints.newest().await?.unwrap_or_default(),
        };
        for (number, commit) in self.log.read_after(state.number).await? {
            state.apply(number, commit);
        }
        self.remember(&state);
        Ok(state)
    }

    fn remember(&self, state: &PushHistoryState) {
        if let Some(remembered) = &self.remembered {
            remembered.keep(state);
        }
    }

    /// Where all of it lies.
    pub fn folder() -> Path {
        Path::from("pushes")
    }

    /// The flushes as a log.
    pub fn log(&self) -> &CommitLog<PushCommit> {
        &self.log
    }

    /// The pushed events up to `position`, that one included.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn events_until(&self, position: u64) -> Result<PushedEvents> {
        let mut files = self.state().await?.files;
        for of_source in files.values_mut() {
            of_source.retain(|file| file.positions.is_none_or(|range| range.after < position));
        }
        files.retain(|_, of_source| !of_source.is_empty());
        Ok(PushedEvents { files, until: Some(position), ..PushedEvents::default() })
    }

    /// Begins an epoch for a log: from here on nobody else's flush succeeds. The state's taker tells as which log: of one that
    /// is a copy, or older than it was, as a new one.
    ///
    /// # Errors
    /// As [`Self::state`], and [`crate::ErrorKind::Unavailable`].
    pub async fn take_over(&self, claim: &Claim, at: Timestamp) -> Result<PushHistoryState> {
        self.log.check_end(self.state().await?.number).await?;
        loop {
            let mut state = self.state().await?;
            let taker = Taker { epoch: state.taker.epoch + 1, log: claim.log_in(&state) };
            let empty = PushCommit::empty(PushCommitKind::Flush, at, taker, state.until);
            let commit = PushCommit { process: Some(claim.process), ..empty };
            match self.append(&mut state, &commit).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                done => return done.map(|()| state),
            }
        }
    }

    /// Writes the flush that follows `state`, and the files of its events. It goes on from compactions that came first, and
    /// writes no file again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when there is another commit that `state` does not know: another process has taken over, or
    /// an earlier flush succeeded although it was answered with an error. [`crate::ErrorKind::Unavailable`].
    pub async fn commit(&self, state: &mut PushHistoryState, flush: Flush<'_>) -> Result<()> {
        let until = flush.entries.last().map_or(state.until, |entry| entry.position);
        let (number, taker) = (state.number + 1, state.taker);
        let positions = PushedRange { after: state.until, until, log: taker.log };
        let mut files = BTreeMap::new();
        for (source, batches) in PushedEvents::of_entries(flush.entries).batches {
            let name = format!("{number:012}-{:x}-{until}", taker.epoch);
            let written = self.write_flushed((&source, &name), &batches, positions).await?;
            files.insert(source, written);
        }
        let empty = PushCommit::empty(PushCommitKind::Flush, flush.at, taker, until);
        let producers = state.news(&flush);
        let commit = PushCommit { watermarks: flush.watermarks, producers, no_longer: flush.no_longer, files, ..empty };
        loop {
            let done = self.append(state, &commit).await;
            let is_passed = done.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
            if !is_passed || !self.takes_compactions(state).await? {
                return done;
            }
        }
    }

    /// Takes what is new into a state, if that is compactions and nothing else.
    async fn takes_compactions(&self, state: &mut PushHistoryState) -> Result<bool> {
        let new = self.log.read_after(state.number).await?;
        if new.is_empty() || new.iter().any(|(_, commit)| commit.kind != PushCommitKind::Compact) {
            return Ok(false);
        }
        for (number, commit) in new {
            state.apply(number, commit);
        }
        Ok(true)
    }

    /// Puts a file in the place of others of a source, whose events it has ([`Self::merge`]); unless one of those does not
    /// count any more. What others commit first stays, and it goes on from that.
    ///
    /// # Errors
    /// As [`Self::state`], and [`crate::ErrorKind::Unavailable`].
    pub async fn replace(&self, source: &str, files: &[DataFile], merged: &DataFile, at: Timestamp) -> Result<bool> {
        loop {
            let mut state = self.state().await?;
            if !state.holds(source, files) {
                return Ok(false);
            }
            let commit = PushCommit {
                replaced: files.iter().map(|file| file.path.clone()).collect(),
                files: BTreeMap::from([(source.to_owned(), vec![merged.clone()])]),
                ..PushCommit::empty(PushCommitKind::Compact, at, state.taker, state.until)
            };
            match self.append(&mut state, &commit).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                done => return done.map(|()| true),
            }
        }
    }

    async fn append(&self, state: &mut PushHistoryState, commit: &PushCommit) -> Result<()> {
        let number = state.number + 1;
        self.log.append(number, commit).await?;
        state.apply(number, commit.clone());
        self.remember(state);
        self.checkpoints.write(number, state).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
