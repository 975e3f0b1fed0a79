//! What was pushed, by what tells a source's events apart (rule T12): an event that was pushed before is not logged again.
//!
//! An index in a column family of its own, so that letting go of entries stays as cheap as it is. Its changes are written
//! together with the entries that they are of.
//!
//! | key | value |
//! |---|---|
//! | source, `00`, event time (8, in order), hash of what else tells it apart (16) | nothing |
//! | source, `01` | the event time from which on every push is here (8), the columns that tell events apart |
//!
//! All that is not flushed is here, and of what was flushed the events of about the last day: of older ones the flushed files
//! tell. Who appends asks them first ([`PushLog::told_from`]).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use rocksdb::{
    BlockBasedOptions, ColumnFamily, ColumnFamilyDescriptor, DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME, Direction,
    IteratorMode, Options, WriteBatch,
};
use sha2::{Digest, Sha256};

use super::format::{encode, entry_key, source_of};
use super::{PushLog, damaged};
use crate::definition::{Column, Source};
use crate::encoding::write_values;
use crate::time::{Span, Timestamp};
use crate::{Error, Result};

/// The column family.
const FAMILY: &str = "distinct";

/// How far the index reaches back before the newest event: producers send again what they sent within hours.
const HORIZON: Span = Span::from_secs(24 * 60 * 60);

/// The index is cut in steps of so much event time: each cut leaves a mark behind until files are merged.
const CUT_STEP: Span = Span::from_secs(60 * 60);

/// Entries of so many bytes are read and looked at together: what the log holds may be more than memory has.
const LOOKED_AT_BYTES: u64 = 16 << 20;

/// What an event's hash takes in its key.
const HASH_BYTES: usize = 16;

/// What the log knows of the sources that tell their events apart.
#[derive(Debug, Default)]
pub(super) struct DistinctIndex {
    known: Mutex<BTreeMap<String, Known>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    /// The columns that tell events apart, the event time first.
    identity: Vec<Column>,
    /// From this event time on every push is in the index.
    from: Timestamp,
}

/// The least event times of what a log holds of the sources that tell their events apart, up to the position that was looked
/// at.
#[derive(Debug)]
pub struct OldestHeld {
    of: BTreeMap<String, Known>,
    until: u64,
    times: BTreeMap<String, Timestamp>,
}

/// The events of the pushes of one write.
#[derive(Debug, Default)]
pub(super) struct Appending {
    keys: HashSet<Vec<u8>>,
}

/// The column families of a log's database.
pub(super) fn families(options: &Options) -> [ColumnFamilyDescriptor; 2] {
    let mut index = Options::default();
    index.set_compression_type(DBCompressionType::Lz4);
    let mut table = BlockBasedOptions::default();
    // Most events are new: that they are not there is told without a read.
    table.set_bloom_filter(10.0, false);
    index.set_block_based_table_factory(&table);
    let default = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, options.clone());
    [default, ColumnFamilyDescriptor::new(FAMILY, index)]
}

fn mark_key(source: &str) -> Vec<u8> {
    [source.as_bytes(), &[1]].concat()
}

/// What the keys of a source's events begin with.
fn events_of(source: &str) -> Vec<u8> {
    [source.as_bytes(), &[0]].concat()
}

/// What the keys of a source's events of a time begin with.
fn time_key(source: &str, time: Timestamp) -> Vec<u8> {
    let in_order = time.micros().cast_unsigned() ^ (1 << 63);
    [events_of(source).as_slice(), &in_order.to_be_bytes()].concat()
}

/// The event time of a key.
fn time_of(source: &str, key: &[u8]) -> Option<Timestamp> {
    let time = key.strip_prefix(events_of(source).as_slice())?.first_chunk::<8>()?;
    Some(Timestamp::from_micros((u64::from_be_bytes(*time) ^ (1 << 63)).cast_signed()))
}

/// A column of events in its type. Those of before the source had it have a null.
fn column_of(column: &Column, events: &RecordBatch) -> Result<ArrayRef> {
    let kind = column.column_type.to_arrow();
    match events.column_by_name(&column.name) {
        Some(array) if *array.data_type() == kind => Ok(Arc::clone(array)),
        Some(array) => Ok(cast(array, &kind)?),
        None => Ok(new_null_array(&kind, events.num_rows())),
    }
}

/// The keys of events.
fn keys_of(source: &str, identity: &[Column], events: &RecordBatch) -> Result<Vec<Vec<u8>>> {
    let untold = || Error::internal("a source's events have no event time").with("source", source);
    let (event_time, others) = identity.split_first().ok_or_else(untold)?;
    let mut hashes = vec![Sha256::new(); events.num_rows()];
    for column in others {
        let array = &column_of(column, events)?;
        for (row, hash) in hashes.iter_mut().enumerate() {
            hash.update([u8::from(array.is_valid(row))]);
        }
        write_values(column.column_type, array, |row, bytes| {
            hashes[row].update((bytes.len() as u64).to_le_bytes());
            hashes[row].update(bytes);
        });
    }
    let times = column_of(event_time, events)?;
    let times = times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(untold)?;
    let keys = hashes.into_iter().enumerate().map(|(row, hash)| {
        let mut key = time_key(source, Timestamp::from_micros(times.value(row)));
        key.extend_from_slice(&hash.finalize()[..HASH_BYTES]);
        key
    });
    Ok(keys.collect())
}

/// The least event time of some events.
fn least_time(identity: &[Column], events: &RecordBatch) -> Option<Timestamp> {
    let times = events.column_by_name(&identity.first()?.name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
    arrow::compute::min(times).map(Timestamp::from_micros)
}

impl DistinctIndex {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, source: &str) -> Option<Known> {
        self.known().get(source).cloned()
    }
}

impl Known {
    fn of(source: &Source, from: Timestamp) -> Option<Self> {
        Some(Self { identity: source.identity()?.into_iter().cloned().collect(), from })
    }

    fn value(&self) -> Vec<u8> {
        [self.from.micros().to_be_bytes().as_slice(), self.columns().as_bytes()].concat()
    }

    fn columns(&self) -> String {
        let mut columns = String::new();
        for column in &self.identity {
            columns.push_str(&column.to_string());
            columns.push(',');
        }
        columns
    }
}

impl PushLog {
    fn index(&self) -> Result<&ColumnFamily> {
        self.database.cf_handle(FAMILY).ok_or_else(|| Error::internal("the push log has no index of events"))
    }

    /// The event time from which on the log knows every push of a source that tells its events apart; `None` where it was
    /// never told of those that have been flushed ([`Self::learn_held`]).
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn told_from(&self, source: &Source) -> Result<Option<Timestamp>> {
        let Some(mut known) = Known::of(source, Timestamp::MIN) else { return Ok(None) };
        if let Some(before) = self.distinct.of(&source.name).filter(|before| before.identity == known.identity) {
            return Ok(Some(before.from));
        }
        let mark = self.database.get_cf(self.index()?, mark_key(&source.name)).map_err(|error| self.failed(error))?;
        let Some((from, columns)) = mark.as_deref().and_then(|mark| mark.split_first_chunk::<8>()) else {
            return Ok(None);
        };
        if known.columns().as_bytes() != columns {
            return Ok(None);
        }
        known.from = Timestamp::from_micros(i64::from_be_bytes(*from));
        let from = known.from;
        self.distinct.known().insert(source.name.clone(), known);
        Ok(Some(from))
    }

    /// Whether the log holds events of a source.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for an entry that cannot be read.
    pub fn holds(&self, source: &str) -> Result<bool> {
        for item in self.database.iterator(IteratorMode::From(b"e", Direction::Forward)) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            if !key.starts_with(b"e") {
                break;
            }
            let of = source_of(&value).ok_or_else(|| damaged(&self.folder, "an entry is not readable"))?;
            if of == source {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The least event time of what the log holds of a source. Who appends does not wait for this.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for an entry that cannot be read.
    pub fn oldest_held_of(&self, source: &Source) -> Result<Option<Timestamp>> {
        let of = Known::of(source, Timestamp::MIN).map(|known| (source.name.clone(), known));
        let mut oldest = OldestHeld { of: of.into_iter().collect(), until: 0, times: BTreeMap::new() };
        self.look_on(&mut oldest)?;
        Ok(oldest.times.remove(&source.name))
    }

    /// The same of all sources whose events the log knows, for [`Self::cut_events`].
    ///
    /// # Errors
    /// As [`Self::oldest_held_of`].
    pub fn oldest_held(&self) -> Result<OldestHeld> {
        let of = self.distinct.known().clone();
        let mut oldest = OldestHeld { of, until: 0, times: BTreeMap::new() };
        self.look_on(&mut oldest)?;
        Ok(oldest)
    }

    /// Looks at what has come since it was looked last.
    fn look_on(&self, oldest: &mut OldestHeld) -> Result<()> {
        let last = self.last();
        while oldest.until < last {
            let stretch = (oldest.until, last);
            let piece = self.first_entries(|source| oldest.of.contains_key(source), stretch, LOOKED_AT_BYTES)?;
            for entry in &piece.entries {
                let Some(source) = oldest.of.get(&entry.source) else { continue };
                let Some(first) = least_time(&source.identity, &entry.events) else { continue };
                oldest.times.entry(entry.source.clone()).and_modify(|time| *time = first.min(*time)).or_insert(first);
            }
            oldest.until = piece.until;
        }
        Ok(())
    }

    /// Learns events of a source that have been flushed. They count once [`Self::learn_held`] has said that these are all.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn learn_flushed(&self, source: &Source, events: &RecordBatch) -> Result<()> {
        let Some(known) = Known::of(source, Timestamp::MIN) else { return Ok(()) };
        let (family, mut batch) = (self.index()?, WriteBatch::default());
        for key in keys_of(&source.name, &known.identity, events)? {
            batch.put_cf(family, key, []);
        }
        self.database.write(batch).map_err(|error| self.failed(error))
    }

    /// Learns the events of a source that the log holds, and that those which have been flushed are all known from an event
    /// time on. Of the held ones copies of others go, where `drop_copies` says so: nothing may have been applied of them, and
    /// nobody may append meanwhile. Else who appends waits only while it looks at what has come since it began.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails, [`crate::ErrorKind::Damaged`] for an entry that cannot be read.
    pub fn learn_held(&self, source: &Source, from: Timestamp, drop_copies: bool) -> Result<()> {
        let Some(known) = Known::of(source, from) else { return Ok(()) };
        let of = (source.name.as_str(), known.identity.as_slice());
        let (mut reached, mut dropped, last) = (0, false, self.last());
        while reached < last {
            let mut batch = WriteBatch::default();
            dropped |= self.note_held(&mut batch, of, (&mut reached, last), drop_copies)?;
            // It counts, and is on the disk, once the mark below is.
            self.database.write(batch).map_err(|error| self.failed(error))?;
        }
        let _appending = self.appending();
        let (mut batch, last) = (WriteBatch::default(), self.last());
        while reached < last {
            dropped |= self.note_held(&mut batch, of, (&mut reached, last), drop_copies)?;
        }
        batch.put_cf(self.index()?, mark_key(&source.name), known.value());
        self.write(batch)?;
        self.distinct.known().insert(source.name.clone(), known);
        if dropped { self.read_state() } else { Ok(()) }
    }

    /// Notes some of the events that the log holds after a position and up to another, and moves on the former; whether copies
    /// among them go.
    fn note_held(
        &self,
        batch: &mut WriteBatch,
        (source, identity): (&str, &[Column]),
        (reached, until): (&mut u64, u64),
        drop_copies: bool,
    ) -> Result<bool> {
        let (mut seen, mut dropped) = (Appending::default(), false);
        let piece = self.first_entries(|of| of == source, (*reached, until), LOOKED_AT_BYTES)?;
        for entry in &piece.entries {
            let new = self.new_of(batch, &mut seen, (source, identity), &entry.events)?;
            if drop_copies && new.num_rows() < entry.events.num_rows() {
                dropped = true;
                match new.num_rows() {
                    0 => batch.delete(entry_key(entry.position)),
                    _ => batch.put(entry_key(entry.position), encode(source, &entry.origin, &new)?),
                }
            }
        }
        *reached = piece.until;
        Ok(dropped)
    }

    /// Forgets which events of a source have been pushed, to learn them anew.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn forget_events_of(&self, source: &Source) -> Result<()> {
        let _appending = self.appending();
        let (family, mut batch) = (self.index()?, WriteBatch::default());
        let mark = mark_key(&source.name);
        batch.delete_range_cf(family, events_of(&source.name), mark.clone());
        batch.delete_cf(family, mark);
        self.write(batch)?;
        self.distinct.known().remove(&source.name);
        Ok(())
    }

    /// Forgets which events have been pushed: another log has taken some.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn forget_events(&self) -> Result<()> {
        let _appending = self.appending();
        let mut batch = WriteBatch::default();
        // No name begins with such bytes: they are no UTF-8.
        batch.delete_range_cf(self.index()?, [0_u8].as_slice(), [u8::MAX].as_slice());
        self.write(batch)?;
        self.distinct.known().clear();
        Ok(())
    }

    /// Events without those that were pushed before; the others are noted in the same write as their entry.
    pub(super) fn not_pushed_before(
        &self,
        batch: &mut WriteBatch,
        seen: &mut Appending,
        source: &str,
        events: RecordBatch,
    ) -> Result<RecordBatch> {
        match self.distinct.of(source) {
            Some(known) if events.num_rows() > 0 => self.new_of(batch, seen, (source, &known.identity), &events),
            _ => Ok(events),
        }
    }

    fn new_of(
        &self,
        batch: &mut WriteBatch,
        seen: &mut Appending,
        (source, identity): (&str, &[Column]),
        events: &RecordBatch,
    ) -> Result<RecordBatch> {
        let family = self.index()?;
        let mut new = Vec::with_capacity(events.num_rows());
        for key in keys_of(source, identity, events)? {
            let known = || self.database.get_pinned_cf(family, &key).map_err(|error| self.failed(error));
            let is_new = !seen.keys.contains(&key) && known()?.is_none();
            if is_new {
                batch.put_cf(family, &key, []);
                seen.keys.insert(key);
            }
            new.push(is_new);
        }
        if new.iter().all(|new| *new) {
            return Ok(events.clone());
        }
        Ok(filter_record_batch(events, &BooleanArray::from(new))?)
    }

    /// Lets go of the index of flushed events that are older than it reaches, `now` being the clock's time and `oldest` what the
    /// log held lately: only what has come since is looked at while those who append wait. Nobody may be about to append an
    /// event of which the flushed files were asked before.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn cut_events(&self, mut oldest: OldestHeld, now: Timestamp) -> Result<()> {
        let _appending = self.appending();
        self.look_on(&mut oldest)?;
        let family = self.index()?;
        for (source, known) in oldest.of {
            if self.distinct.of(&source).as_ref() != Some(&known) {
                // It is told apart by something else since.
                continue;
            }
            let end = [events_of(&source).as_slice(), &[u8::MAX; 8 + HASH_BYTES]].concat();
            let mut newest = self.database.iterator_cf(family, IteratorMode::From(&end, Direction::Reverse));
            let newest = newest.next().transpose().map_err(|error| self.failed(error))?;
            let Some(newest) = newest.and_then(|(key, _)| time_of(&source, &key)) else { continue };
            // One event of a clock that was ahead makes no other old.
            let from = newest.min(now) - HORIZON;
            // Of what is not flushed no file tells.
            let from = oldest.times.get(&source).map_or(from, |oldest| from.min(*oldest));
            let from = Timestamp::from_micros(from.micros() - from.micros().rem_euclid(CUT_STEP.micros()));
            if from <= known.from {
                continue;
            }
            let known = Known { from, ..known };
            let mut batch = WriteBatch::default();
            batch.delete_range_cf(family, time_key(&source, Timestamp::MIN), time_key(&source, from));
            batch.put_cf(family, mark_key(&source), known.value());
            self.write(batch)?;
            self.distinct.known().insert(source, known);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
