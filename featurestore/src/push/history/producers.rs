//! What the store knows of producers, and what a flush says of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::push::{Corrections, ProducerChange, ProducerCorrection};
use crate::time::Timestamp;

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
    /// What people changed about it last.
    #[serde(default, skip_serializing_if = "Corrections::is_empty")]
    pub corrected: Corrections,
    /// The caller whose name it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where the correction comes that set its sequence back last: what a log remembers from before does not count. Not in
    /// commits, which have the correction.
    #[serde(skip)]
    pub set_back: Option<Timestamp>,
    /// Whether it has said how far it is since it was retired. Not in commits either.
    #[serde(skip)]
    pub spoke_again: bool,
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
    /// What people changed about it last.
    #[serde(default, skip_serializing_if = "Corrections::is_empty")]
    pub corrected: Corrections,
    /// The caller whose name it is; none where it was never one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where the correction comes that set its sequence back last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_back: Option<Timestamp>,
    /// Whether it has said how far it is since it was retired last, as far as that was kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spoke_again: bool,
}

impl KnownProducer {
    /// What a log learns of it that did not take its pushes.
    pub fn told(&self) -> SaidByProducer {
        SaidByProducer {
            last: self.last,
            watermark: self.says(),
            taken: Vec::new(),
            corrected: self.corrected.clone(),
            owner: self.owner.clone(),
            set_back: self.set_back,
            spoke_again: self.spoke_again,
        }
    }

    /// Up to which time it has sent every event, as it says. One that was retired says nothing until it speaks again; what was
    /// written before that was kept has its word still.
    pub(super) fn says(&self) -> Option<Timestamp> {
        self.watermark.filter(|_| self.spoke_again || self.corrected.retired().is_none())
    }

    /// Begins its sequences anew after one: those above it are nobody's any more.
    fn set_back(&mut self, sequence: u64, at: Timestamp) {
        (self.last, self.set_back) = (Some(sequence), Some(at));
        self.taken.retain_mut(|taken| {
            taken.last = taken.last.min(sequence);
            taken.first <= sequence
        });
    }

    /// Changes what a person changed, unless it was changed again since.
    fn correct(&mut self, correction: &ProducerCorrection) {
        let (change, order) = (&correction.change, correction.order());
        if self.corrected.of_kind(change).is_some_and(|known| known.order() > order) {
            return;
        }
        match change {
            ProducerChange::Retire => (self.watermark, self.spoke_again) = (None, false),
            ProducerChange::Watermark(to) => self.watermark = self.watermark.map(|said| said.min(*to)),
            // A log from when one change was kept tells an older one once more.
            ProducerChange::Sequence(_) if self.set_back >= Some(order) => {}
            ProducerChange::Sequence(sequence) => self.set_back(*sequence, order),
            // The log says whose it is.
            ProducerChange::HandOver(_) => {}
        }
        self.corrected.put(correction.clone());
    }

    pub(in crate::push) fn hear(&mut self, log: u64, most_runs: usize, said: SaidByProducer) {
        for correction in said.corrected.all() {
            self.correct(correction);
        }
        self.last = self.last.max(said.last);
        self.watermark = said.watermark.or(self.watermark);
        self.spoke_again |= said.watermark.is_some() && self.corrected.retired().is_some();
        self.owner = said.owner.or_else(|| self.owner.take());
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

/// What the store has of producers and holds no longer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoLonger {
    /// The sources of which nobody says any more how far they are: whoever did is retired, or silent.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub watermarks: BTreeSet<String>,
    /// The producers whose names have left, by source: those had nothing to say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub producers: BTreeMap<String, BTreeSet<String>>,
}

impl NoLonger {
    /// Whether all that the store has holds.
    pub fn is_empty(&self) -> bool {
        self.watermarks.is_empty() && self.producers.is_empty()
    }
}

/// Sequences as runs of numbers that follow each other.
pub type Runs = Vec<(u64, u64)>;

/// What producers said, by source and producer.
pub(super) type Said = BTreeMap<String, BTreeMap<String, SaidByProducer>>;
