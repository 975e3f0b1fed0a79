//! What the log keeps of producers, and what a person changes about them.

use std::collections::{BTreeMap, BTreeSet};

use rocksdb::WriteBatch;

use super::format::producer_key;
use super::names::of_source;
use super::state::{Producers, State};
use super::{LogReach, PushLog};
use crate::catalog::Signature;
use crate::push::{
    Corrections, NoLonger, ProducerChange, ProducerCorrection, ProducerState, PushHistoryState, SaidByProducer,
};
use crate::time::{Span, Timestamp};
use crate::{Error, Result};

fn json(corrected: &Corrections) -> Result<Vec<u8>> {
    serde_json::to_vec(corrected)
        .map_err(|error| Error::internal("corrections cannot be written as JSON").source(error))
}

fn bytes_of(time: Timestamp) -> [u8; 8] {
    time.micros().cast_unsigned().to_be_bytes()
}

impl PushLog {
    /// Learns what another log was told by producers, and what people changed about them there. `at` is the time at which this
    /// log takes pushes over; those that it never heard of count as heard of then, and where it takes over `from_others`, all
    /// do: nobody knows when they spoke last.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn learn<'a>(
        &self,
        said: impl Iterator<Item = (&'a str, &'a str, SaidByProducer)>,
        at: Timestamp,
        from_others: bool,
    ) -> Result<()> {
        let _appending = self.appending();
        let mut learned = Learned::default();
        {
            let state = self.state();
            let mut all: BTreeSet<(String, String)> = state.watermarks.keys().cloned().collect();
            for (source, producer, said) in said {
                let of = (source.to_owned(), producer.to_owned());
                learned.add(&state, &of, said)?;
                all.insert(of);
            }
            if from_others {
                learned.at = Some(at);
            } else {
                all.retain(|of| !state.heard.contains_key(of));
            }
            learned.hear(&state, all, at);
        }
        if !learned.batch.is_empty() {
            self.write(std::mem::take(&mut learned.batch))?;
            let mut state = self.state();
            state.counted.clear();
            learned.apply_to(&mut state);
        }
        Ok(())
    }

    /// How far producers have said that they are, as far as a flush may tell that takes the log to where it had got: what came
    /// after that may not have been applied, or acknowledged.
    pub fn said(&self, reach: &LogReach) -> BTreeMap<(String, String), SaidByProducer> {
        let state = self.state();
        let all = state.last == reach.last;
        let known = state.sequences.keys().chain(state.watermarks.keys()).chain(state.corrected.keys());
        let said = known.chain(state.owners.keys()).cloned().map(|of| {
            let watermark = state.watermarks.get(&of).copied();
            let told = |watermark: &Timestamp| all || reach.watermarks.get(&of.0) >= Some(watermark);
            let watermark = watermark.filter(told);
            let corrected = state.corrected.get(&of).cloned().unwrap_or_default();
            let owner = state.owners.get(&of).cloned();
            let last = state.sequences.get(&of).copied();
            (of, SaidByProducer { last, watermark, corrected, owner, ..SaidByProducer::default() })
        });
        said.collect()
    }

    /// What a store has of producers and that holds no longer, as far as a flush may tell that takes the log to where it had got:
    /// watermarks of sources whose producers are all retired or silent, and names that have left. This log has learned
    /// what the store knows.
    pub fn no_longer(&self, reach: &LogReach, store: &PushHistoryState) -> NoLonger {
        let state = self.state();
        // Where none of its producers is known nobody knows whose word the source's watermark is.
        let knows_who_said = |source: &str| {
            of_source(&state.watermarks, source).chain(of_source(&state.retired, source)).next().is_some()
        };
        let watermarks = store.watermarks.keys().filter(|source| !reach.watermarks.contains_key(*source));
        let watermarks = watermarks.filter(|source| knows_who_said(source)).cloned().collect();
        let mut producers = BTreeMap::new();
        for (source, known) in &store.producers {
            let left = known.iter().filter(|(producer, known)| {
                known.last.is_none() && !state.is_kept(&(source.clone(), (*producer).clone()))
            });
            let left: BTreeSet<String> = left.map(|(producer, _)| producer.clone()).collect();
            if !left.is_empty() {
                producers.insert(source.clone(), left);
            }
        }
        NoLonger { watermarks, producers }
    }

    /// Leaves those producers out of their sources' watermarks that say nothing for longer than this while others do.
    pub fn leave_out_after(&self, silence: Option<Span>) {
        self.state().silence = silence;
    }

    /// The producers of a source, or of all, in order of name.
    pub fn producers(&self, source: Option<&str>) -> Vec<ProducerState> {
        let state = self.state();
        let known = state.sequences.keys().chain(state.watermarks.keys()).chain(state.heard.keys());
        let known = known.chain(state.corrected.keys()).chain(state.owners.keys());
        let known: BTreeSet<_> = known.filter(|of| source.is_none_or(|source| of.0 == source)).collect();
        known.into_iter().map(|of| state.producer(of)).collect()
    }

    /// Those of all sources that are left out of watermarks because they say nothing any more.
    pub fn silent_producers(&self) -> Vec<ProducerState> {
        let state = self.state();
        state.watermarks.keys().filter(|of| state.is_silent(of)).map(|of| state.producer(of)).collect()
    }

    /// Changes what counts of a producer, by the will of a person, whose name is kept; synced.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] with the producers that there are, [`crate::ErrorKind::Invalid`] for a watermark or a
    /// sequence that is not earlier than what the producer said, [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn change(&self, source: &str, producer: &str, change: ProducerChange, by: Signature) -> Result<ProducerState> {
        let _appending = self.appending();
        let at = by.at;
        let of = (source.to_owned(), producer.to_owned());
        let known = self.producers(Some(source));
        let Some(before) = known.iter().find(|state| state.producer == producer) else {
            let names: Vec<&str> = known.iter().map(|state| state.producer.as_str()).collect();
            return Err(Error::not_found("no such producer has pushed to the source")
                .with("source", source)
                .with("producer", producer)
                .with("producers", names.join(", ")));
        };
        let mut corrected = self.state().corrected.get(&of).cloned().unwrap_or_default();
        let order = corrected.add(change.clone(), by);
        let mut batch = WriteBatch::default();
        match &change {
            ProducerChange::Retire => {
                batch.delete(producer_key(b'w', source, producer));
                batch.put(producer_key(b'r', source, producer), bytes_of(at));
            }
            ProducerChange::Watermark(watermark) => {
                // The same once more: a correction that was cut off is gone on with.
                if before.watermark.is_none_or(|said| said < *watermark) {
                    return Err(Error::invalid("a watermark is corrected to an earlier one")
                        .with("producer", producer)
                        .with("value", watermark)
                        .with("said", before.watermark.map_or_else(|| "nothing".to_owned(), |said| said.to_string()))
                        .remedy("the producer itself moves it forward; to count it no more, retire it"));
                }
                batch.put(producer_key(b'w', source, producer), bytes_of(watermark.dated()?));
            }
            ProducerChange::Sequence(sequence) => {
                if before.sequence.is_none_or(|sent| sent < *sequence) {
                    return Err(Error::invalid("a sequence is set back to an earlier one")
                        .with("producer", producer)
                        .with("value", sequence)
                        .with("sent", before.sequence.map_or_else(|| "nothing".to_owned(), |sent| sent.to_string()))
                        .remedy("the producer itself moves it forward, by its next batch"));
                }
                batch.put(producer_key(b'p', source, producer), sequence.to_be_bytes());
                batch.put(producer_key(b'b', source, producer), bytes_of(order));
            }
            ProducerChange::HandOver(caller) => batch.put(producer_key(b'o', source, producer), caller),
        }
        batch.put(producer_key(b'c', source, producer), json(&corrected)?);
        self.write(batch)?;
        let mut state = self.state();
        state.counted.remove(source);
        state.corrected.insert(of.clone(), corrected);
        match change {
            ProducerChange::Retire => {
                state.watermarks.remove(&of);
                state.retired.insert(of.clone(), at);
            }
            ProducerChange::Watermark(watermark) => {
                state.watermarks.insert(of.clone(), watermark);
            }
            ProducerChange::Sequence(sequence) => {
                state.sequences.insert(of.clone(), sequence);
                state.set_back.insert(of.clone(), order);
            }
            ProducerChange::HandOver(caller) => {
                state.owners.insert(of.clone(), caller);
            }
        }
        Ok(state.producer(&of))
    }
}

/// What a log learns from the store, to be written at once.
#[derive(Default)]
struct Learned {
    batch: WriteBatch,
    sequences: Producers<u64>,
    watermarks: Producers<Timestamp>,
    /// When those were retired of whom the log did not know it.
    retired: Producers<Timestamp>,
    corrected: Producers<Corrections>,
    owners: Producers<String>,
    set_back: Producers<Timestamp>,
    heard: Producers<Timestamp>,
    /// When the log learned it, where that counts as hearing of all of them.
    at: Option<Timestamp>,
}

impl Learned {
    /// What the store says of a producer that a log does not know.
    fn add(&mut self, state: &State, of: &(String, String), said: SaidByProducer) -> Result<()> {
        let (source, producer) = (&*of.0, &*of.1);
        let known = state.corrected.get(of).cloned().unwrap_or_default();
        let newer = said.corrected.newer_than(&known);
        // What was changed here and never flushed comes before what the store says.
        let own = known.newer_than(&said.corrected);
        self.add_watermark(state, of, &said, (&known, &newer));
        if !newer.is_empty() {
            let mut corrected = known;
            for correction in newer.all() {
                corrected.put(correction.clone());
            }
            self.batch.put(producer_key(b'c', source, producer), json(&corrected)?);
            self.corrected.insert(of.clone(), corrected);
        }
        // A name that was claimed here and not flushed is still claimed; what the store knows of comes before it, but for a
        // person's word that has not come to it.
        if let Some(owner) = said.owner
            && own.handed_over().is_none()
            && state.owners.get(of) != Some(&owner)
        {
            self.batch.put(producer_key(b'o', source, producer), &owner);
            self.owners.insert(of.clone(), owner);
        }
        let is_set_back = said.set_back.is_some() && state.set_back.get(of) < said.set_back.as_ref();
        if let Some(at) = said.set_back.filter(|_| is_set_back) {
            self.batch.put(producer_key(b'b', source, producer), bytes_of(at));
            self.set_back.insert(of.clone(), at);
        }
        let set_back_here = own.sequence().is_some_and(|own| Some(own.order()) > said.set_back);
        if let Some(last) = said.last
            && !set_back_here
            && (is_set_back || state.sequences.get(of).is_none_or(|known| *known < last))
        {
            self.batch.put(producer_key(b'p', source, producer), last.to_be_bytes());
            self.sequences.insert(of.clone(), last);
        }
        Ok(())
    }

    /// How far a producer is, or that it is not to be waited for. What the log knows of corrections, and which of the store's
    /// are newer, is given.
    fn add_watermark(
        &mut self,
        state: &State,
        of: &(String, String),
        said: &SaidByProducer,
        (known, newer): (&Corrections, &Corrections),
    ) {
        let (source, producer) = (&*of.0, &*of.1);
        let Some(watermark) = said.watermark else {
            // Unless it has spoken to this log since it was retired at another.
            let retired = newer.retired().map(|correction| correction.by.at);
            if let Some(at) = retired.filter(|at| state.heard.get(of) <= Some(at)) {
                self.batch.delete(producer_key(b'w', source, producer));
                self.batch.put(producer_key(b'r', source, producer), bytes_of(at));
                self.retired.insert(of.clone(), at);
            }
            return;
        };
        let order_here = |at: &Timestamp| known.retired().map_or(*at, |retired| retired.order().max(*at));
        let retired_here = state.retired.get(of).map(order_here);
        let is_back = said.spoke_again && said.corrected.retired().map(ProducerCorrection::order) >= retired_here;
        // A correction that was made here and never flushed comes before what the store says.
        let corrected_here = known.newer_than(&said.corrected).watermark().is_some();
        let is_other = match state.watermarks.get(of) {
            Some(own) if newer.watermark().is_some() => *own != watermark,
            own => own.is_none_or(|own| *own < watermark),
        };
        if is_other && !corrected_here && (retired_here.is_none() || is_back) {
            self.batch.put(producer_key(b'w', source, producer), bytes_of(watermark));
            self.batch.delete(producer_key(b'r', source, producer));
            self.watermarks.insert(of.clone(), watermark);
        }
    }

    /// All of some producers count as heard of at a time.
    fn hear(&mut self, state: &State, producers: BTreeSet<(String, String)>, at: Timestamp) {
        for of in producers {
            let heard = state.heard.get(&of).map_or(at, |heard| at.max(*heard));
            self.batch.put(producer_key(b'h', &of.0, &of.1), bytes_of(heard));
            self.heard.insert(of, heard);
        }
    }

    /// Once it is written.
    fn apply_to(self, state: &mut State) {
        state.sources.extend(self.sequences.keys().chain(self.watermarks.keys()).map(|(source, _)| source.clone()));
        state.owners.extend(self.owners);
        state.set_back.extend(self.set_back);
        state.corrected.extend(self.corrected);
        state.sequences.extend(self.sequences);
        state.retired.retain(|of, _| !self.watermarks.contains_key(of));
        state.watermarks.extend(self.watermarks);
        state.watermarks.retain(|of, _| !self.retired.contains_key(of));
        state.retired.extend(self.retired);
        state.heard.extend(self.heard);
        // Not what a clock that was ahead wrote of one of them.
        if let Some(at) = state.latest.max(self.at).filter(|_| self.at.is_some()) {
            state.goes_on(at);
        }
    }
}
