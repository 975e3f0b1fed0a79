//! What all flushes add up to.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Flush, KnownProducer, PushCommit, PushCommitKind, Runs, Said, SaidByProducer, Taker};
use crate::push::{Corrections, PushEntry, PushOrigin, PushedEvents};
use crate::tier::{DataFile, PushedRange};
use crate::time::Timestamp;

/// How many runs of sequences are remembered of a producer, to tell what was taken twice. What is forgotten is taken again
/// rather than lost.
const RUNS_REMEMBERED: usize = 4_096;

/// The same where one log alone has fed the store: only a copy of it can hold what was taken. Who numbers without gaps has
/// one run.
const RUNS_OF_ONE_LOG: usize = 16;

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
    pub(super) fn apply(&mut self, number: u64, commit: PushCommit) {
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
        self.watermarks.retain(|source, _| !commit.no_longer.watermarks.contains(source));
        self.watermarks.extend(commit.watermarks);
        for (source, gone) in &commit.no_longer.producers {
            let known = self.producers.entry(source.clone()).or_default();
            known.retain(|producer, known| known.last.is_some() || !gone.contains(producer));
        }
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
    pub(super) fn holds(&self, source: &str, files: &[DataFile]) -> bool {
        let held: HashSet<&str> = self.files_of(source).iter().map(|file| file.path.as_str()).collect();
        files.iter().all(|file| held.contains(file.path.as_str()))
    }

    /// The files of a source's events, in the order of their positions.
    pub fn files_of(&self, source: &str) -> &[DataFile] {
        self.files.get(source).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether events of a source have been pushed.
    pub fn knows(&self, source: &str) -> bool {
        let has_said = self.watermarks.contains_key(source) || self.producers.contains_key(source);
        has_said || self.files.contains_key(source)
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
    pub(super) fn epoch_of(&self, log: u64) -> u64 {
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

    /// Whether how far producers have said that they are, and what people changed about them, is all on object storage. Who
    /// takes over knows of nothing else: the least of their watermarks is not enough.
    pub fn has_said(&self, said: &BTreeMap<(String, String), SaidByProducer>) -> bool {
        said.iter().all(|((source, producer), said)| {
            self.has_watermark(source, producer, said) && self.lacks_of(source, producer, &said.corrected).is_empty()
        })
    }

    fn has_watermark(&self, source: &str, producer: &str, said: &SaidByProducer) -> bool {
        let known = self.producers.get(source).and_then(|of| of.get(producer));
        said.watermark.is_none_or(|mark| known.is_some_and(|known| known.says() == Some(mark)))
    }

    /// Those corrections of a producer that are not on object storage.
    fn lacks_of(&self, source: &str, producer: &str, corrected: &Corrections) -> Corrections {
        match self.producers.get(source).and_then(|of| of.get(producer)) {
            Some(known) => corrected.not_in(&known.corrected),
            None => corrected.clone(),
        }
    }

    /// What producers have said that is new here, with the sequences of some entries.
    pub(super) fn news(&self, flush: &Flush<'_>) -> Said {
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
            // A person may have set it back after these were taken: what was sent beyond counts as not sent.
            let last = match said.last {
                Some(kept) if last.is_some_and(|last| kept < last) => {
                    taken.retain(|(first, _)| *first <= kept);
                    for (_, last) in &mut taken {
                        *last = kept.min(*last);
                    }
                    Some(kept)
                }
                _ => last,
            };
            taken.drain(..taken.len().saturating_sub(self.most_runs()));
            let same = self.has_watermark(source, producer, said);
            let corrected = self.lacks_of(source, producer, &said.corrected);
            let owner = said.owner.clone().filter(|of| known.and_then(|known| known.owner.as_ref()) != Some(of));
            if last.is_some() || !same || !corrected.is_empty() || owner.is_some() {
                let said = SaidByProducer { last, taken, corrected, owner, ..said.clone() };
                news.entry(source.clone()).or_default().insert(producer.clone(), said);
            }
        }
        news
    }
}
