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

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::{ProducerChange, ProducerCorrection, PushEntry, PushOrigin, PushedEvents};
use crate::catalog::{Checkpoints, CommitLog};
use crate::tier::{DataFile, PushedRange};
use crate::time::Timestamp;
use crate::{ErrorKind, Result};

/// How many runs of sequences are remembered of a producer, to tell what was taken twice. What is forgotten is taken again
/// rather than lost.
const RUNS_REMEMBERED: usize = 4_096;

/// The same where one log alone has fed the store: only a copy of it can hold what was taken. Who numbers without gaps has
/// one run.
const RUNS_OF_ONE_LOG: usize = 16;

/// Who takes pushes for a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taker {
    /// Counts those who have begun to; 0 before that was kept.
    pub epoch: u64,
    /// The incarnation of the log that it writes.
    pub log: u64,
}

/// What a producer said in the pushes of a flush.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidByProducer {
    /// The greatest sequence that it has sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// It has sent every event up to this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<Timestamp>,
    /// The sequences of the pushes among them, as runs of numbers that follow each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Runs,
    /// What a person changed about it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<ProducerCorrection>,
    /// The caller whose name it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When a person set its sequence back last: what a log remembers from before does not count. Not in commits, which have
    /// the correction.
    #[serde(skip)]
    pub set_back: Option<Timestamp>,
}

/// Sequences of a producer that a log has taken: from one to another, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The log.
    pub log: u64,
    /// The least,
    pub first: u64,
    /// and the greatest.
    pub last: u64,
}

/// What is known of a producer of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownProducer {
    /// The greatest sequence that it has sent.
    pub last: Option<u64>,
    /// It has sent every event up to this time.
    pub watermark: Option<Timestamp>,
    /// Which logs took which of its batches, the newest last.
    pub taken: Vec<Taken>,
    /// What a person changed about it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<ProducerCorrection>,
    /// The caller whose name it is; none where it was never one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When a person set its sequence back last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_back: Option<Timestamp>,
}

impl KnownProducer {
    /// What a log learns of it that did not take its pushes.
    pub fn told(&self) -> SaidByProducer {
        SaidByProducer {
            last: self.last,
            watermark: self.watermark,
            taken: Vec::new(),
            corrected: self.corrected.clone(),
            owner: self.owner.clone(),
            set_back: self.set_back,
        }
    }

    /// Begins its sequences anew after one: those above it are nobody's any more.
    fn set_back(&mut self, sequence: u64, at: Timestamp) {
        (self.last, self.set_back) = (Some(sequence), Some(at));
        self.taken.retain_mut(|taken| {
            taken.last = taken.last.min(sequence);
            taken.first <= sequence
        });
    }

    fn hear(&mut self, log: u64, most_runs: usize, said: SaidByProducer) {
        if let Some(ProducerCorrection { change: ProducerChange::Sequence(sequence), by }) = &said.corrected {
            self.set_back(*sequence, by.at);
        }
        self.last = self.last.max(said.last);
        self.watermark = said.watermark.or(self.watermark);
        self.owner = said.owner.or_else(|| self.owner.take());
        self.corrected = said.corrected.or_else(|| self.corrected.take());
        for (first, last) in said.taken {
            match self.taken.last_mut().filter(|taken| taken.log == log && taken.last.checked_add(1) == Some(first)) {
                Some(taken) => taken.last = last,
                None => self.taken.push(Taken { log, first, last }),
            }
        }
        let forgotten = self.taken.len().saturating_sub(most_runs);
        self.taken.drain(..forgotten);
    }
}

/// Sequences as runs of numbers that follow each other.
pub type Runs = Vec<(u64, u64)>;

/// What producers said, by source and producer.
type Said = BTreeMap<String, BTreeMap<String, SaidByProducer>>;

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
    /// The paths of the files whose place those of a compaction take; of a flush none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<String>,
    /// The events that it adds, by source.
    pub files: BTreeMap<String, Vec<DataFile>>,
}

impl PushCommit {
    /// One of a kind that says and adds nothing.
    fn empty(kind: PushCommitKind, at: Timestamp, taker: Taker, until: u64) -> Self {
        let (watermarks, producers, files) = Default::default();
        Self { at, kind, taker, process: None, until, watermarks, producers, replaced: Vec::new(), files }
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
}

/// All flushes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushHistoryState {
    /// The newest commit's number; 0 before the first.
    pub number: u64,
    /// Who takes pushes.
    #[serde(default)]
    pub taker: Taker,
    /// The position up to which pushes are on object storage.
    pub until: u64,
    /// The greatest position that each log has flushed.
    #[serde(default)]
    pub flushed: BTreeMap<u64, u64>,
    /// The last epoch of each log.
    #[serde(default)]
    pub epochs: BTreeMap<u64, u64>,
    /// How far each source's producers have got.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// What is known of producers, by source and producer.
    #[serde(default)]
    pub producers: BTreeMap<String, BTreeMap<String, KnownProducer>>,
    /// All pushed events by source, each in the order of their positions.
    pub files: BTreeMap<String, Vec<DataFile>>,
}

impl PushHistoryState {
    fn apply(&mut self, number: u64, commit: PushCommit) {
        self.number = number;
        if commit.kind == PushCommitKind::Compact {
            self.replace(&commit.replaced, commit.files);
            return;
        }
        let log = commit.taker.log;
        let positions = PushedRange { after: self.until, until: commit.until, log };
        self.taker = commit.taker;
        // A log that has begun to take pushes is known by a position of 0.
        let flushed = self.flushed.entry(log).or_default();
        if commit.until > self.until {
            (*flushed, self.until) = (commit.until, commit.until);
        }
        self.epochs.insert(log, commit.taker.epoch);
        self.watermarks.extend(commit.watermarks);
        let most_runs = self.most_runs();
        for (source, producers) in commit.producers {
            let known = self.producers.entry(source).or_default();
            for (producer, said) in producers {
                known.entry(producer).or_default().hear(log, most_runs, said);
            }
        }
        for (source, files) in commit.files {
            let files =
                files.into_iter().map(|file| DataFile { positions: file.positions.or(Some(positions)), ..file });
            self.files.entry(source).or_default().extend(files);
        }
    }

    /// Puts files in the place of others.
    fn replace(&mut self, replaced: &[String], files: BTreeMap<String, Vec<DataFile>>) {
        let gone: HashSet<&str> = replaced.iter().map(String::as_str).collect();
        for (source, files) in files {
            let of_source = self.files.entry(source).or_default();
            of_source.retain(|file| !gone.contains(file.path.as_str()));
            of_source.extend(files);
            of_source.sort_by_key(|file| file.positions.map(|range| range.after));
        }
    }

    /// Whether all of these files of a source count.
    fn holds(&self, source: &str, files: &[DataFile]) -> bool {
        let held: HashSet<&str> = self.files_of(source).iter().map(|file| file.path.as_str()).collect();
        files.iter().all(|file| held.contains(file.path.as_str()))
    }

    /// The files of a source's events, in the order of their positions.
    pub fn files_of(&self, source: &str) -> &[DataFile] {
        self.files.get(source).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether events of a source have been pushed.
    pub fn knows(&self, source: &str) -> bool {
        self.files.contains_key(source) || self.watermarks.contains_key(source)
    }

    /// The pushed events.
    pub fn events(&self) -> PushedEvents {
        PushedEvents { files: self.files.clone(), ..PushedEvents::default() }
    }

    /// The greatest position that a log has flushed; 0 for a log that has flushed nothing.
    pub fn flushed_of(&self, log: u64) -> u64 {
        self.flushed.get(&log).copied().unwrap_or_default()
    }

    /// Who has ever taken pushes, each log in its last epoch.
    pub fn takers(&self) -> impl Iterator<Item = Taker> + '_ {
        let known = self.epochs.iter().map(|(log, epoch)| Taker { epoch: *epoch, log: *log });
        known.chain([self.taker])
    }

    /// The last epoch that a log has taken; 0 for a log that has taken none.
    fn epoch_of(&self, log: u64) -> u64 {
        let newest = if self.taker.log == log { self.taker.epoch } else { 0 };
        self.epochs.get(&log).copied().unwrap_or(newest)
    }

    /// How many runs of sequences of a producer are remembered.
    fn most_runs(&self) -> usize {
        if self.flushed.len() > 1 { RUNS_REMEMBERED } else { RUNS_OF_ONE_LOG }
    }

    /// Whether a push that a log holds was taken by another log too.
    pub fn taken_elsewhere(&self, log: u64, source: &str, origin: &PushOrigin) -> bool {
        let Some(sequence) = origin.sequence else { return false };
        let producer = self.producers.get(source).and_then(|of| of.get(&origin.producer));
        let taken = producer.map(|producer| producer.taken.as_slice()).unwrap_or_default();
        taken.iter().any(|taken| taken.log != log && taken.first <= sequence && sequence <= taken.last)
    }

    /// Whether all corrections among what producers have said are on object storage.
    pub fn has_corrections(&self, said: &BTreeMap<(String, String), SaidByProducer>) -> bool {
        said.iter().all(|((source, producer), said)| {
            said.corrected.as_ref().is_none_or(|correction| self.has_correction(source, producer, correction))
        })
    }

    fn has_correction(&self, source: &str, producer: &str, correction: &ProducerCorrection) -> bool {
        let known = self.producers.get(source).and_then(|of| of.get(producer));
        known.is_some_and(|known| known.corrected.as_ref() == Some(correction))
    }

    /// What producers have said that is new here, with the sequences of some entries.
    fn news(&self, flush: &Flush<'_>) -> Said {
        let mut taken: BTreeMap<(&str, &str), (u64, Runs)> = BTreeMap::new();
        for PushEntry { source, origin, .. } in flush.entries {
            let Some(sequence) = origin.sequence else { continue };
            let (last, runs) = taken.entry((source, &origin.producer)).or_default();
            *last = sequence.max(*last);
            match runs.last_mut().filter(|(_, last)| last.checked_add(1) == Some(sequence)) {
                Some((_, last)) => *last = sequence,
                None => runs.push((sequence, sequence)),
            }
        }
        let mut news = Said::new();
        for ((source, producer), said) in &flush.said {
            let known = self.producers.get(source).and_then(|of| of.get(producer));
            let (last, mut taken) = match taken.remove(&(source.as_str(), producer.as_str())) {
                Some((last, taken)) => (Some(last), taken),
                None => (None, Vec::new()),
            };
            taken.drain(..taken.len().saturating_sub(self.most_runs()));
            let same = said.watermark.is_none_or(|mark| known.is_some_and(|known| known.watermark == Some(mark)));
            let corrected = said.corrected.clone().filter(|of| !self.has_correction(source, producer, of));
            let owner = said.owner.clone().filter(|of| known.and_then(|known| known.owner.as_ref()) != Some(of));
            if last.is_some() || !same || corrected.is_some() || owner.is_some() {
                let said = SaidByProducer { last, taken, corrected, owner, ..said.clone() };
                news.entry(source.clone()).or_default().insert(producer.clone(), said);
            }
        }
        news
    }
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
        let commit = PushCommit { watermarks: flush.watermarks, producers, files, ..empty };
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
