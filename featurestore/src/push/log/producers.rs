//! What the log keeps of producers, and what a person changes about them.

use std::collections::{BTreeMap, BTreeSet};

use rocksdb::WriteBatch;

use super::format::producer_key;
use super::state::Producers;
use super::{LogReach, PushLog};
use crate::catalog::Signature;
use crate::push::{ProducerChange, ProducerCorrection, ProducerState, SaidByProducer};
use crate::time::{Span, Timestamp};
use crate::{Error, Result};

fn json(correction: &ProducerCorrection) -> Result<Vec<u8>> {
    serde_json::to_vec(correction)
        .map_err(|error| Error::internal("a correction cannot be written as JSON").source(error))
}

impl PushLog {
    /// Learns what another log was told by producers.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn learn<'a>(&self, said: impl Iterator<Item = (&'a str, &'a str, SaidByProducer)>) -> Result<()> {
        let _appending = self.appending();
        let (mut batch, mut sequences, mut watermarks) = (WriteBatch::default(), Producers::new(), Producers::new());
        let (mut corrections, mut owners, mut set_backs) = (Producers::new(), Producers::new(), Producers::new());
        for (source, producer, SaidByProducer { last, watermark, corrected, owner, set_back, .. }) in said {
            let of = (source.to_owned(), producer.to_owned());
            let state = self.state();
            // A name that was claimed here and not flushed is still claimed; what the store knows of comes before it.
            if let Some(owner) = owner
                && state.owners.get(&of) != Some(&owner)
            {
                batch.put(producer_key(b'o', source, producer), &owner);
                owners.insert(of.clone(), owner);
            }
            let is_set_back = set_back.is_some() && state.set_back.get(&of) < set_back.as_ref();
            if let Some(at) = set_back.filter(|_| is_set_back) {
                batch.put(producer_key(b'b', source, producer), at.micros().cast_unsigned().to_be_bytes());
                set_backs.insert(of.clone(), at);
            }
            if let Some(correction) = corrected
                && state.corrected.get(&of).is_none_or(|known| known.by.at < correction.by.at)
            {
                batch.put(producer_key(b'c', source, producer), json(&correction)?);
                corrections.insert(of.clone(), correction);
            }
            if let Some(last) = last
                && (is_set_back || state.sequences.get(&of).is_none_or(|known| *known < last))
            {
                batch.put(producer_key(b'p', source, producer), last.to_be_bytes());
                sequences.insert(of.clone(), last);
            }
            if let Some(watermark) = watermark
                && !state.retired.contains_key(&of)
                && state.watermarks.get(&of).is_none_or(|known| *known < watermark)
            {
                batch.put(producer_key(b'w', source, producer), watermark.micros().cast_unsigned().to_be_bytes());
                watermarks.insert(of, watermark);
            }
        }
        if !batch.is_empty() {
            self.write(batch)?;
            let mut state = self.state();
            state.counted.clear();
            state.owners.extend(owners);
            state.set_back.extend(set_backs);
            state.corrected.extend(corrections);
            state.sources.extend(sequences.keys().chain(watermarks.keys()).map(|(source, _)| source.clone()));
            state.sequences.extend(sequences);
            state.watermarks.extend(watermarks);
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
            let (corrected, owner) = (state.corrected.get(&of).cloned(), state.owners.get(&of).cloned());
            (of, SaidByProducer { watermark, corrected, owner, ..SaidByProducer::default() })
        });
        said.collect()
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

    /// Changes what counts of a producer, by the will of a person, whose name is kept; synced.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] with the producers that there are, [`crate::ErrorKind::Invalid`] for a watermark or a
    /// sequence that is not earlier than what the producer said, [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn change(&self, source: &str, producer: &str, change: ProducerChange, by: Signature) -> Result<ProducerState> {
        let _appending = self.appending();
        let at = by.at;
        let correction = ProducerCorrection { change: change.clone(), by };
        let of = (source.to_owned(), producer.to_owned());
        let known = self.producers(Some(source));
        let Some(before) = known.iter().find(|state| state.producer == producer) else {
            let names: Vec<&str> = known.iter().map(|state| state.producer.as_str()).collect();
            return Err(Error::not_found("no such producer has pushed to the source")
                .with("source", source)
                .with("producer", producer)
                .with("producers", names.join(", ")));
        };
        let mut batch = WriteBatch::default();
        let bytes = |time: Timestamp| time.micros().cast_unsigned().to_be_bytes();
        match &change {
            ProducerChange::Retire => {
                batch.delete(producer_key(b'w', source, producer));
                batch.put(producer_key(b'r', source, producer), bytes(at));
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
                batch.put(producer_key(b'w', source, producer), bytes(watermark.dated()?));
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
                batch.put(producer_key(b'b', source, producer), bytes(at));
            }
            ProducerChange::HandOver(caller) => batch.put(producer_key(b'o', source, producer), caller),
        }
        batch.put(producer_key(b'c', source, producer), json(&correction)?);
        self.write(batch)?;
        let mut state = self.state();
        state.counted.remove(source);
        state.corrected.insert(of.clone(), correction);
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
                state.set_back.insert(of.clone(), at);
            }
            ProducerChange::HandOver(caller) => {
                state.owners.insert(of.clone(), caller);
            }
        }
        Ok(state.producer(&of))
    }
}
