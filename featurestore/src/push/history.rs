//! Pushed events on object storage, beside the history that sources read: Parquet files and a log of commits.
//!
//! ```text
//! pushes/log/000000000003.json                   commit: who takes pushes, up to which position, files, what producers said
//! pushes/state/000000000064.json                 checkpoint: what the commits up to this one add up to
//! pushes/data/departures/000000000003-2-120.parquet
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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::arrow::async_writer::AsyncArrowWriter;
use serde::{Deserialize, Serialize};

use super::{ProducerChange, ProducerCorrection, PushEntry, PushOrigin, PushedEvents};
use crate::catalog::{Checkpoints, CommitLog};
use crate::tier::{DataFile, ObjectReader, PushedRange, WRITE_POSITION, WRITE_WITHIN};
use crate::time::Timestamp;
use crate::{Error, ErrorKind, Result};

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

/// One flush of the log, or the beginning of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushCommit {
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// Who wrote it.
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
    /// The events that it adds, by source.
    pub files: BTreeMap<String, Vec<DataFile>>,
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
    /// All pushed events by source.
    pub files: BTreeMap<String, Vec<DataFile>>,
}

impl PushHistoryState {
    fn apply(&mut self, number: u64, commit: PushCommit) {
        let log = commit.taker.log;
        let positions = PushedRange { after: self.until, until: commit.until, log };
        self.number = number;
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

    /// Whether events of a source have been pushed.
    pub fn knows(&self, source: &str) -> bool {
        self.files.contains_key(source) || self.watermarks.contains_key(source)
    }

    /// The pushed events.
    pub fn events(&self) -> PushedEvents {
        PushedEvents { files: self.files.clone(), batches: BTreeMap::new() }
    }

    /// Up to where the pushes of some sources after a position, and up to another, are taken together: the files that have
    /// them are of no more than so many bytes, or there is but one.
    pub fn until_within(&self, sources: &BTreeSet<&str>, (after, until): (u64, u64), bytes: u64) -> u64 {
        let of_sources = self.files.iter().filter(|(source, _)| sources.contains(source.as_str()));
        let sizes = of_sources.flat_map(|(_, files)| files).filter_map(|file| {
            let range = file.positions.filter(|range| range.after < until && range.until > after)?;
            Some((range.until, file.bytes))
        });
        let mut flushes: BTreeMap<u64, u64> = BTreeMap::new();
        for (flushed_until, bytes) in sizes {
            *flushes.entry(flushed_until).or_default() += bytes;
        }
        let (mut taken, mut reached) = (0_u64, None);
        for (flushed_until, of_flush) in flushes {
            taken = taken.saturating_add(of_flush);
            if taken > bytes
                && let Some(reached) = reached
            {
                return reached;
            }
            reached = Some(flushed_until);
        }
        // What is not in files is in the log, which is bounded.
        until
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

/// The flushes on an object store.
#[derive(Debug, Clone)]
pub struct PushHistory {
    store: Arc<dyn ObjectStore>,
    log: CommitLog<PushCommit>,
    checkpoints: Checkpoints<PushHistoryState>,
}

impl PushHistory {
    /// The history on a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        let log = CommitLog::new(Arc::clone(&store), Path::from_iter(["pushes", "log"]));
        let checkpoints = Checkpoints::new(Arc::clone(&store), Path::from_iter(["pushes", "state"]));
        Self { store, log, checkpoints }
    }

    /// The state after the newest commit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a damaged commit.
    pub async fn state(&self) -> Result<PushHistoryState> {
        let mut state = self.checkpoints.newest().await?.unwrap_or_default();
        for (number, commit) in self.log.read_after(state.number).await? {
            state.apply(number, commit);
        }
        Ok(state)
    }

    /// Where all of it lies.
    pub fn folder() -> Path {
        Path::from("pushes")
    }

    /// The flushes as a log.
    pub fn log(&self) -> &CommitLog<PushCommit> {
        &self.log
    }

    /// The pushed events of flushes up to `position`, those of the flush that holds it included.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn events_until(&self, position: u64) -> Result<PushedEvents> {
        let mut files = self.state().await?.files;
        for of_source in files.values_mut() {
            of_source.retain(|file| file.positions.is_none_or(|range| range.after < position));
        }
        files.retain(|_, of_source| !of_source.is_empty());
        Ok(PushedEvents { files, batches: BTreeMap::new() })
    }

    /// Who has written the commits after `number`, the newest last.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn takers_after(&self, number: u64) -> Result<Vec<Taker>> {
        Ok(self.log.read_after(number).await?.iter().map(|(_, commit)| commit.taker).collect())
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
            let (watermarks, producers, files) = Default::default();
            let (process, until) = (Some(claim.process), state.until);
            let commit = PushCommit { at, taker, process, until, watermarks, producers, files };
            match self.append(&mut state, commit).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                done => return done.map(|()| state),
            }
        }
    }

    /// Writes the flush that follows `state`, and the files of its events.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when there is a commit that `state` does not know: another process has taken over, or
    /// an earlier flush succeeded although it was answered with an error. [`crate::ErrorKind::Unavailable`].
    pub async fn commit(&self, state: &mut PushHistoryState, flush: Flush<'_>) -> Result<()> {
        let until = flush.entries.last().map_or(state.until, |entry| entry.position);
        let (number, taker) = (state.number + 1, state.taker);
        let mut files = BTreeMap::new();
        for (source, batches) in PushedEvents::of_entries(flush.entries).batches {
            let name = format!("{number:012}-{:x}-{until}.parquet", taker.epoch);
            let positions = PushedRange { after: state.until, until, log: taker.log };
            let file = self.write(&Path::from_iter(["pushes", "data", &source, &name]), &batches).await?;
            files.insert(source, vec![DataFile { positions: Some(positions), ..file }]);
        }
        let producers = state.news(&flush);
        let (at, watermarks) = (flush.at, flush.watermarks);
        let commit = PushCommit { at, taker, process: None, until, watermarks, producers, files };
        self.append(state, commit).await
    }

    async fn append(&self, state: &mut PushHistoryState, commit: PushCommit) -> Result<()> {
        let number = state.number + 1;
        self.log.append(number, &commit).await?;
        state.apply(number, commit);
        self.checkpoints.write(number, state).await;
        Ok(())
    }

    async fn write(&self, path: &Path, batches: &[RecordBatch]) -> Result<DataFile> {
        let failed = |error: parquet::errors::ParquetError| {
            Error::unavailable("pushed events cannot be written").with("path", path).source(error)
        };
        let schema = batches[0].schema();
        let object = BufWriter::new(Arc::clone(&self.store), path.clone());
        let properties = crate::parquet_file::properties(&schema).build();
        let mut writer = AsyncArrowWriter::try_new(object, schema, Some(properties)).map_err(failed)?;
        let mut rows = 0;
        for batch in batches {
            rows += batch.num_rows() as u64;
            writer.write(batch).await.map_err(failed)?;
        }
        writer.finish().await.map_err(failed)?;
        let (path, bytes) = (path.to_string(), writer.bytes_written() as u64);
        Ok(DataFile { path, rows, bytes, ..DataFile::default() })
    }

    /// The flushed entries of some sources after a position and up to another, by position. They have no origin.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when a file cannot be read.
    pub async fn entries(
        &self,
        state: &PushHistoryState,
        sources: &BTreeSet<&str>,
        (after, until): (u64, u64),
    ) -> Result<Vec<PushEntry>> {
        let mut entries = Vec::new();
        for (source, files) in state.files.iter().filter(|(source, _)| sources.contains(source.as_str())) {
            for file in files {
                let Some(range) = file.positions.filter(|range| range.after < until && range.until > after) else {
                    continue;
                };
                for batch in self.read(file).await? {
                    entries.extend(entries_of(source, &batch, range.until)?);
                }
            }
        }
        entries.retain(|entry| after < entry.position && entry.position <= until);
        entries.sort_by_key(|entry| entry.position);
        joined(&entries)
    }

    /// The positions of those among some entries that were flushed as they are: the store holds the same events of the same
    /// source at the same position.
    ///
    /// # Errors
    /// As [`Self::entries`].
    pub async fn flushed_among(&self, state: &PushHistoryState, entries: &[PushEntry]) -> Result<BTreeSet<u64>> {
        let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(BTreeSet::new()) };
        let sources: BTreeSet<&str> = entries.iter().map(|entry| entry.source.as_str()).collect();
        let flushed = self.entries(state, &sources, (first.position.saturating_sub(1), last.position)).await?;
        let flushed: BTreeMap<(u64, &str), &RecordBatch> =
            flushed.iter().map(|entry| ((entry.position, entry.source.as_str()), &entry.events)).collect();
        let same = |entry: &&PushEntry| {
            let held = flushed.get(&(entry.position, entry.source.as_str()));
            held.is_some_and(|held| held.columns() == entry.events.columns())
        };
        Ok(entries.iter().filter(same).map(|entry| entry.position).collect())
    }

    async fn read(&self, file: &DataFile) -> Result<Vec<RecordBatch>> {
        let damaged = |error: parquet::errors::ParquetError| {
            Error::damaged("a file of pushed events cannot be read")
                .with("path", &file.path)
                .remedy("restore the object from a backup of the store")
                .source(error)
        };
        let reader = ObjectReader::new(Arc::clone(&self.store), Path::from(file.path.as_str()), file.bytes);
        let stream = ParquetRecordBatchStreamBuilder::new(reader)
            .await
            .and_then(ParquetRecordBatchStreamBuilder::build)
            .map_err(damaged)?;
        stream.try_collect().await.map_err(damaged)
    }
}

/// Entries in which those are one that were read in parts: a file is read in batches, which end where they end.
fn joined(entries: &[PushEntry]) -> Result<Vec<PushEntry>> {
    let parts = entries.chunk_by(|one, other| (one.position, &one.source) == (other.position, &other.source));
    let joined = parts.map(|parts| {
        let first = &parts[0];
        if parts.len() == 1 {
            return Ok(first.clone());
        }
        let events = concat_batches(&first.events.schema(), parts.iter().map(|part| &part.events))?;
        PushEntry::new(first.position, first.source.clone(), events, first.origin.clone())
    });
    joined.collect()
}

/// The entries of a batch of a file, which has them by position. A file from before positions were kept is one entry.
fn entries_of(source: &str, batch: &RecordBatch, position: u64) -> Result<Vec<PushEntry>> {
    let schema = batch.schema();
    let own = |name: &str| name != WRITE_POSITION && name != WRITE_WITHIN;
    let columns: Vec<usize> = (0..schema.fields().len()).filter(|index| own(schema.field(*index).name())).collect();
    let events = batch.project(&columns)?;
    let entry =
        |position: u64, events: RecordBatch| PushEntry::new(position, source.to_owned(), events, PushOrigin::default());
    let positions = batch.column_by_name(WRITE_POSITION).and_then(|column| column.as_primitive_opt::<Int64Type>());
    let Some(positions) = positions.filter(|positions| positions.null_count() == 0) else {
        return Ok(vec![entry(position, events)?]);
    };
    let (mut entries, mut start) = (Vec::new(), 0);
    for run in positions.values().chunk_by(|one, other| one == other) {
        entries.push(entry(run[0].cast_unsigned(), events.slice(start, run.len()))?);
        start += run.len();
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::catalog::Signature;

    fn entry(position: u64, sequence: u64, values: &[i64]) -> PushEntry {
        let array: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
        let origin = PushOrigin { at: None, producer: "till".to_owned(), sequence: Some(sequence) };
        let events = RecordBatch::try_from_iter([("value", array)]).expect("a batch");
        PushEntry::new(position, "paid".to_owned(), events, origin).expect("an entry")
    }

    /// A log that has taken no epoch yet, or this one; of so many pushes.
    fn claim(log: u64, last: u64) -> Claim {
        Claim { log, epoch: None, last, older: false, process: 100 + log }
    }

    fn flush(entries: &[PushEntry]) -> Flush<'_> {
        let said = [(("paid".to_owned(), "till".to_owned()), SaidByProducer::default())].into();
        Flush { at: Timestamp::from_micros(1), entries, watermarks: BTreeMap::new(), said }
    }

    #[tokio::test]
    async fn a_flush_of_an_epoch_that_is_over_fails_and_replaces_no_file() {
        let history = PushHistory::new(Arc::new(InMemory::new()));
        let mut old = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
        let mut new = history.take_over(&claim(8, 0), Timestamp::from_micros(2)).await.expect("taken");
        history.commit(&mut new, flush(&[entry(1, 5, &[10, 11])])).await.expect("flushed");
        let error = history.commit(&mut old, flush(&[entry(1, 4, &[99])])).await.expect_err("over");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let state = history.state().await.expect("readable");
        assert_eq!((state.taker, state.until), (Taker { epoch: 2, log: 8 }, 1));
        let held = history.entries(&state, &["paid"].into(), (0, 9)).await.expect("readable");
        assert_eq!((held.len(), held[0].events.clone()), (1, entry(1, 5, &[10, 11]).events));
        assert_eq!((state.flushed_of(7), state.flushed_of(8)), (0, 1));
        let origin = |sequence| PushOrigin { producer: "till".to_owned(), sequence: Some(sequence), at: None };
        history.commit(&mut new, flush(&[entry(2, 7, &[12])])).await.expect("flushed");
        let state = history.state().await.expect("readable");
        // Of what a producer sent to two takers by turns each keeps its own.
        let elsewhere = [4, 5, 6, 7, 8].map(|of| state.taken_elsewhere(7, "paid", &origin(of)));
        assert_eq!(elsewhere, [false, true, false, true, false]);
    }

    #[test]
    fn pushes_are_taken_together_by_bytes_and_at_least_a_flush_at_once() {
        let file = |after, until, bytes| DataFile {
            bytes,
            positions: Some(PushedRange { after, until, log: 1 }),
            ..DataFile::default()
        };
        let files = BTreeMap::from([
            ("paid".to_owned(), vec![file(0, 10, 6), file(10, 20, 6), file(20, 30, 99), file(30, 40, 1)]),
            ("seen".to_owned(), vec![file(0, 10, 6), file(30, 40, 1)]),
            ("other".to_owned(), vec![file(0, 10, 1_000)]),
        ]);
        let state = PushHistoryState { files, until: 40, ..PushHistoryState::default() };
        let both = BTreeSet::from(["paid", "seen"]);
        assert_eq!(state.until_within(&both, (0, 50), 12), 10);
        assert_eq!(state.until_within(&BTreeSet::from(["paid"]), (0, 50), 12), 20);
        assert_eq!(state.until_within(&both, (10, 50), 12), 20);
        assert_eq!(state.until_within(&both, (20, 50), 12), 30, "a flush that is larger than that is taken alone");
        assert_eq!(state.until_within(&both, (30, 50), 12), 50, "and what is in no file with the last");
        assert_eq!(state.until_within(&both, (0, 15), 1_000), 15);
    }

    #[tokio::test]
    async fn whose_a_producer_is_and_that_its_sequence_was_set_back_travel_with_the_commits() {
        let store = Arc::new(InMemory::new());
        let history = PushHistory::new(Arc::clone(&store) as Arc<dyn ObjectStore>);
        let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
        let of = ("paid".to_owned(), "till".to_owned());
        let by = |at| Signature { at: Timestamp::from_micros(at), who: "op".to_owned(), why: String::new() };
        let owner = Some("ann".to_owned());
        let corrected = |change, at| Some(ProducerCorrection { change, by: by(at) });
        let flushes = [
            (vec![entry(1, 5, &[1]), entry(2, 1_000_000, &[2])], None),
            (vec![entry(3, 6, &[3])], corrected(ProducerChange::Sequence(5), 20)),
            (Vec::new(), corrected(ProducerChange::HandOver("bob".to_owned()), 30)),
        ];
        for (entries, corrected) in &flushes {
            let said = SaidByProducer { owner: owner.clone(), corrected: corrected.clone(), ..Default::default() };
            let said = [(of.clone(), said)].into();
            let (at, watermarks) = (Timestamp::from_micros(9), BTreeMap::new());
            history.commit(&mut state, Flush { at, entries, watermarks, said }).await.expect("flushed");
        }
        let read = history.state().await.expect("readable");
        assert_eq!(read, state);
        let known = &read.producers["paid"]["till"];
        assert_eq!((known.last, known.set_back), (Some(6), Some(Timestamp::from_micros(20))));
        assert_eq!(known.owner, owner, "the log says whose it is, and hands over itself");
        let runs: Vec<(u64, u64)> = known.taken.iter().map(|taken| (taken.first, taken.last)).collect();
        assert_eq!(runs, [(5, 6)], "what was above it is nobody's");
    }

    #[test]
    fn what_was_kept_of_producers_before_they_had_owners_reads_as_it_is() {
        let said: SaidByProducer =
            serde_json::from_str(r#"{"last": 7, "taken": [[1, 7]]}"#).expect("as it was written");
        assert_eq!((said.last, said.owner), (Some(7), None));
        let known: KnownProducer =
            serde_json::from_str(r#"{"last": 7, "watermark": null, "taken": []}"#).expect("the same");
        assert_eq!((known.last, known.owner, known.set_back), (Some(7), None, None));
        let written = serde_json::to_string(&KnownProducer::default()).expect("JSON");
        assert!(!written.contains("owner") && !written.contains("set_back"), "{written}");
    }

    #[tokio::test]
    async fn flushed_entries_are_found_again_by_position() {
        let history = PushHistory::new(Arc::new(InMemory::new()));
        let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
        history.commit(&mut state, flush(&[entry(1, 1, &[10]), entry(2, 2, &[20, 21])])).await.expect("flushed");
        history.commit(&mut state, flush(&[entry(5, 3, &[50])])).await.expect("flushed");
        for (range, expected) in [((0, 9), vec![1, 2, 5]), ((1, 2), vec![2]), ((2, 4), vec![]), ((2, 5), vec![5])] {
            let held = history.entries(&state, &["paid"].into(), range).await.expect("readable");
            assert_eq!(held.iter().map(|entry| entry.position).collect::<Vec<_>>(), expected);
        }
        let origin = |sequence| PushOrigin { producer: "till".to_owned(), sequence: Some(sequence), at: None };
        let elsewhere = [3, 4].map(|sequence| state.taken_elsewhere(8, "paid", &origin(sequence)));
        assert_eq!(elsewhere, [true, false], "of one log alone it is known too");
        // The log of which it is: what it holds and did not flush is its own.
        let of_log = [entry(2, 2, &[20, 21]), entry(5, 3, &[51]), entry(6, 6, &[50])];
        assert_eq!(history.flushed_among(&state, &of_log).await.expect("readable"), [2].into());
    }

    #[tokio::test]
    async fn an_entry_of_many_rows_is_one_when_it_is_read_back() {
        let history = PushHistory::new(Arc::new(InMemory::new()));
        let mut state = history.take_over(&claim(7, 0), Timestamp::from_micros(1)).await.expect("taken");
        let values: Vec<i64> = (0..20_000).collect();
        let flushed = [entry(1, 1, &values), entry(2, 2, &[7])];
        history.commit(&mut state, flush(&flushed)).await.expect("flushed");
        let held = history.entries(&state, &["paid"].into(), (0, 9)).await.expect("readable");
        assert_eq!(held.len(), 2);
        assert!(
            held.iter()
                .zip(&flushed)
                .all(|(held, of)| held.ordered_events().columns() == of.ordered_events().columns())
        );
    }

    #[tokio::test]
    async fn a_copy_of_a_log_becomes_another_log() {
        let (history, at) = (PushHistory::new(Arc::new(InMemory::new())), Timestamp::from_micros(1));
        let mut state = history.take_over(&claim(7, 0), at).await.expect("taken");
        history.commit(&mut state, flush(&[entry(1, 1, &[10]), entry(2, 2, &[20])])).await.expect("flushed");
        let of = async |claim: Claim| history.take_over(&claim, at).await.expect("taken").taker;
        // Itself, begun again; and a copy, of which nobody can tell yet that it is one.
        let known = Claim { epoch: Some(1), ..claim(7, 3) };
        assert_eq!(of(known).await, Taker { epoch: 2, log: 7 });
        assert_eq!(of(known).await, Taker { epoch: 3, log: 107 }, "another process has taken an epoch of it");
        let known = Claim { epoch: Some(2), ..known };
        assert_eq!(
            of(Claim { last: 1, ..known }).await,
            Taker { epoch: 4, log: 108 },
            "it is older than what it flushed"
        );
        assert_eq!(of(Claim { older: true, ..known }).await, Taker { epoch: 5, log: 109 });
        assert_eq!(of(known).await, Taker { epoch: 6, log: 7 });
        assert_eq!(history.state().await.expect("readable").epoch_of(7), 6);
        let new = Claim { process: 109, ..claim(109, 0) };
        assert_eq!(of(new).await, Taker { epoch: 7, log: 110 }, "the number is another's");
    }

    #[tokio::test]
    async fn nobody_begins_where_flushes_are_lost() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (history, at) = (PushHistory::new(Arc::clone(&store)), Timestamp::from_micros(1));
        let mut state = history.take_over(&claim(7, 0), at).await.expect("taken");
        for position in 1..=4 {
            let pushed = [entry(position, position, &[10])];
            history.commit(&mut state, flush(&pushed)).await.expect("flushed");
        }
        for number in [3, 4] {
            store.delete(&history.log.path(number)).await.expect("there");
        }
        let error = history.take_over(&claim(7, 4), at).await.expect_err("two flushes are lost");
        assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains("000000000003"), "{error}");
        assert!(history.log.read(3).await.expect("readable").is_none(), "nothing has taken their place");
    }

    #[tokio::test]
    async fn two_that_begin_with_copies_of_one_log_at_one_time_know_of_each_other() {
        let (history, at) = (PushHistory::new(Arc::new(InMemory::new())), Timestamp::from_micros(1));
        let other = Claim { process: 200, ..claim(7, 0) };
        let (one, two) = (claim(7, 0), other);
        let (one, two) = tokio::join!(history.take_over(&one, at), history.take_over(&two, at));
        let mut epochs = [one, two].map(|state| state.expect("taken").taker.epoch);
        epochs.sort_unstable();
        assert_eq!(epochs, [1, 2]);
    }
}
