//! Pushes on their way into the log, its entries, and how those are read, let go of and numbered anew.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use rocksdb::{Direction, IteratorMode, WriteBatch};

use super::format::{Head, decode, entry_key, number, source_of};
use super::{PushLog, damaged};
use crate::encoding::bytes_of_rows;
use crate::push::PushHeader;
use crate::tier::{WRITE_POSITION, WRITE_WITHIN};
use crate::time::Timestamp;
use crate::{Error, Result};

/// A batch to append.
#[derive(Debug, Clone)]
pub struct Push {
    /// Its source.
    pub source: String,
    /// Its events, with the source's columns; none for a heartbeat.
    pub events: RecordBatch,
    /// What its producer says.
    pub header: PushHeader,
    /// When it came.
    pub at: Timestamp,
}

/// A push in the log.
#[derive(Debug, Clone)]
pub struct PushEntry {
    /// Its number, from 1.
    pub position: u64,
    /// Its source.
    pub source: String,
    /// Its events.
    pub events: RecordBatch,
    /// Who sent it, as which batch, and when it came.
    pub origin: PushOrigin,
    /// Its events with their place in the order of writes.
    ordered: RecordBatch,
}

/// Who sent a push, as which batch, and when it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushOrigin {
    /// When it came; absent where that was not kept.
    pub at: Option<Timestamp>,
    /// The producer; empty where it did not say.
    pub producer: String,
    /// The batch's sequence.
    pub sequence: Option<u64>,
}

/// The first of the entries that a log holds after a position.
#[derive(Debug, Default)]
pub struct LogPiece {
    /// Those of the sources that were asked for, oldest first.
    pub entries: Vec<PushEntry>,
    /// The position of the first entry that the log holds there, of whatever source.
    pub first: Option<u64>,
    /// The position up to which these are all that it holds.
    pub until: u64,
    /// Whether it has more of what was asked for.
    pub more: bool,
}

impl LogPiece {
    /// Adds an entry, if it is among those that were asked for and there is room; whether to go on.
    fn add(&mut self, entry: PushEntry, bytes: &mut u64, most_bytes: u64) -> bool {
        *bytes = bytes.saturating_add(entry.events_bytes());
        if *bytes > most_bytes
            && let Some(last) = self.entries.last()
        {
            (self.until, self.more) = (last.position, true);
            return false;
        }
        self.entries.push(entry);
        true
    }
}

impl PushEntry {
    /// The entry of some events. Every view of the source reads them with their place in the order of writes: those columns are
    /// made here, once. Some of a push's events tell their places themselves.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when Arrow refuses the columns.
    pub fn new(position: u64, source: String, events: RecordBatch, origin: PushOrigin) -> Result<Self> {
        if [WRITE_POSITION, WRITE_WITHIN].iter().all(|name| events.column_by_name(name).is_some()) {
            return Ok(Self { position, source, ordered: events.clone(), events, origin });
        }
        let rows = events.num_rows();
        let within = (0..i64::MAX).take(rows);
        let order: [(&str, ArrayRef); 2] = [
            (WRITE_POSITION, Arc::new(Int64Array::from_value(i64::try_from(position).unwrap_or(i64::MAX), rows))),
            (WRITE_WITHIN, Arc::new(Int64Array::from_iter_values(within))),
        ];
        let mut fields: Vec<FieldRef> = events.schema_ref().fields().iter().cloned().collect();
        let mut columns = events.columns().to_vec();
        for (name, column) in order {
            fields.push(Arc::new(Field::new(name, DataType::Int64, true)));
            columns.push(column);
        }
        let ordered = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        Ok(Self { position, source, events, origin, ordered })
    }

    /// Those of its events that are to be kept, by row, at the places that they have in the order of writes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when these are not its rows.
    pub fn keeping(&self, kept: &BooleanArray) -> Result<Self> {
        let (events, ordered) = (filter_record_batch(&self.events, kept)?, filter_record_batch(&self.ordered, kept)?);
        Ok(Self { position: self.position, source: self.source.clone(), events, origin: self.origin.clone(), ordered })
    }

    /// Its events with their place in the order of writes: [`WRITE_POSITION`] and [`WRITE_WITHIN`] after their columns.
    pub fn ordered_events(&self) -> &RecordBatch {
        &self.ordered
    }

    /// The memory that its events need, in bytes; those of one file may share theirs.
    pub fn events_bytes(&self) -> u64 {
        bytes_of_rows(&self.events) as u64
    }
}

impl PushLog {
    /// The entries after a position, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for an entry that cannot be read.
    pub fn entries_after(&self, position: u64) -> Result<Vec<PushEntry>> {
        let (older, recent) = self.state().recent_after(position);
        if older == 0 {
            return Ok(recent);
        }
        let start = entry_key(position.saturating_add(1));
        let end = recent.first().map_or(u64::MAX, |entry| entry.position);
        let mut entries = Vec::with_capacity(older + recent.len());
        for item in self.database.iterator(IteratorMode::From(&start, Direction::Forward)) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            let Some(position) = key.strip_prefix(b"e").and_then(number).filter(|position| *position < end) else {
                break;
            };
            entries.push(decode(position, &value).map_err(|error| self.unreadable(position).source(error))?);
        }
        entries.extend(recent);
        Ok(entries)
    }

    fn unreadable(&self, position: u64) -> Error {
        damaged(&self.folder, "an entry is not readable").with("position", position)
    }

    /// The entries after a position, where all of them are in memory: no disk is read.
    pub fn recent_entries_after(&self, position: u64) -> Option<Vec<PushEntry>> {
        let (older, recent) = self.state().recent_after(position);
        (older == 0).then_some(recent)
    }

    /// The entries of some sources after a position and up to another, or the first of them, whose events need no more than so
    /// many bytes of memory; at least one. No other entries are decoded, and who appends does not wait.
    ///
    /// # Errors
    /// As [`Self::entries_after`].
    pub fn first_entries(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        (after, until): (u64, u64),
        most_bytes: u64,
    ) -> Result<LogPiece> {
        let (older, recent) = self.state().recent_after(after);
        let (mut piece, mut bytes) = (LogPiece { until, ..LogPiece::default() }, 0);
        if older > 0 {
            let start = entry_key(after.saturating_add(1));
            let end = recent.first().map_or(u64::MAX, |entry| entry.position);
            for item in self.database.iterator(IteratorMode::From(&start, Direction::Forward)) {
                let (key, value) = item.map_err(|error| self.failed(error))?;
                let Some(position) = key.strip_prefix(b"e").and_then(number).filter(|position| *position < end) else {
                    break;
                };
                piece.first.get_or_insert(position);
                if position > until {
                    return Ok(piece);
                }
                if !is_wanted(source_of(&value).ok_or_else(|| self.unreadable(position))?) {
                    continue;
                }
                let entry = decode(position, &value).map_err(|error| self.unreadable(position).source(error))?;
                if !piece.add(entry, &mut bytes, most_bytes) {
                    return Ok(piece);
                }
            }
        }
        for entry in recent {
            piece.first.get_or_insert(entry.position);
            if entry.position > until {
                break;
            }
            if is_wanted(&entry.source) && !piece.add(entry, &mut bytes, most_bytes) {
                break;
            }
        }
        Ok(piece)
    }

    /// Lets go of the entries up to a position.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn trim(&self, position: u64) -> Result<()> {
        let Some((first, last)) = self.state().held_until(position) else { return Ok(()) };
        let (from, until) = (entry_key(first), entry_key(last + 1));
        let mut batch = WriteBatch::default();
        batch.delete_range(from, until);
        self.database.write(batch).map_err(|error| self.failed(error))?;
        // Files of nothing else go at once, without a compaction.
        self.database.delete_file_in_range(from, until).map_err(|error| self.failed(error))?;
        self.state().let_go(last);
        Ok(())
    }

    /// Gives all entries new positions after one, in their order, where another log's positions have passed theirs; those
    /// that `taken` tells of, by position, source and origin, were taken by the other log too, and go. From then on it is this
    /// log, which is another where it was a copy. In one atomic write.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for an entry that cannot be read, [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn renumber(&self, log: u64, after: u64, taken: impl Fn(u64, &str, &PushOrigin) -> bool) -> Result<()> {
        let _appending = self.appending();
        let mut last = after.max(self.last());
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(0), entry_key(u64::MAX));
        for item in self.database.iterator(IteratorMode::From(b"e", Direction::Forward)) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            let Some(position) = key.strip_prefix(b"e") else { break };
            let wrong = || damaged(&self.folder, "an entry is not readable");
            let (position, head) = number(position).zip(Head::read(&value)).ok_or_else(wrong)?;
            if !taken(position, head.source, &head.origin) {
                last += 1;
                batch.put(entry_key(last), &value);
            }
        }
        batch.put(b"n", last.to_be_bytes());
        batch.put(b"i", log.to_be_bytes());
        self.write(batch)?;
        self.read_state()
    }
}
