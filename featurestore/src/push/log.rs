//! The log of pushes on this host: RocksDB in a folder of its own, each write synced before it is acknowledged.
//!
//! Unlike the disk tier it cannot be rebuilt: it alone holds what was pushed and not yet flushed.
//!
//! | key | value |
//! |---|---|
//! | `e`, position (8) | source's length (2), source, what is known of the push, events as an Arrow IPC stream |
//! | `p`, source, `00`, producer | the producer's last sequence (8) |
//! | `w`, source, `00`, producer | the producer's watermark (8) |
//! | `h`, source, `00`, producer | when the producer was last heard of (8) |
//! | `r`, source, `00`, producer | when the producer was retired (8) |
//! | `n` | the last position (8) |
//! | `i` | the log's incarnation (8): positions are this log's until they are flushed |
//!
//! What is known of a push: when it came (8), whether it has a sequence (1), the sequence (8), its producer's length (2),
//! the producer. Entries without it are of a log from before it was kept: their source's length has no highest bit.
//!
//! Numbers are big-endian. A push's entry, sequence, watermark and position are one atomic write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use rocksdb::{DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use super::{ProducerChange, ProducerState, PushHeader, SaidByProducer};
use crate::object_storage::create_folder;
use crate::tier::{WRITE_POSITION, WRITE_WITHIN};
use crate::time::{Span, Timestamp};
use crate::{Error, Result};

/// What is held in memory before a file is made of it: several flushes of pushes, so that most of it is let go of before.
const BUFFER_BYTES: usize = 128 << 20;

/// Files of the newest level before they are merged: nearly all are let go of before.
const COMPACT_FROM_FILES: i32 = 8;

/// Entries of so many bytes, the newest, are held in memory too: what is flushed is seldom read back from the disk.
const RECENT_BYTES: u64 = 64 << 20;

/// The most producers of a source: each is remembered for ever.
const MOST_PRODUCERS: usize = 10_000;

/// The most bytes of a producer's name.
const MOST_PRODUCER_BYTES: usize = 256;

/// What an entry takes in memory beside its events.
const ENTRY_BYTES: u64 = 1 << 10;

/// About what an encoded entry takes beside its columns: source, schema, messages and padding.
const ENCODED_BYTES: usize = 2 << 10;

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

impl PushEntry {
    /// Its events with their place in the order of writes: [`WRITE_POSITION`] and [`WRITE_WITHIN`] after their columns.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when events already have such columns.
    pub fn ordered_events(&self) -> Result<RecordBatch> {
        let rows = self.events.num_rows();
        let position = i64::try_from(self.position).unwrap_or(i64::MAX);
        let within = (0..i64::MAX).take(rows);
        let order: [(&str, ArrayRef); 2] = [
            (WRITE_POSITION, Arc::new(Int64Array::from_value(position, rows))),
            (WRITE_WITHIN, Arc::new(Int64Array::from_iter_values(within))),
        ];
        let mut fields: Vec<FieldRef> = self.events.schema_ref().fields().iter().cloned().collect();
        let mut columns = self.events.columns().to_vec();
        for (name, column) in order {
            fields.push(Arc::new(Field::new(name, DataType::Int64, true)));
            columns.push(column);
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

/// How far a log has got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogReach {
    /// The position of the newest push.
    pub last: u64,
    /// For each source the time up to which every event has been pushed: the least of what its producers say.
    pub watermarks: BTreeMap<String, Timestamp>,
}

/// What is known of producers, by source and producer.
type Producers<T> = BTreeMap<(String, String), T>;

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// Which log this is.
    incarnation: u64,
    /// The sources that were pushed to, as far as the log knows.
    sources: BTreeSet<String>,
    sequences: Producers<u64>,
    watermarks: Producers<Timestamp>,
    /// When each was last heard of.
    heard: Producers<Timestamp>,
    /// When those were retired that are not counted any more.
    retired: Producers<Timestamp>,
    /// When anybody was last heard of.
    latest: Option<Timestamp>,
    /// How long a producer may be silent while others speak and still count; `None` for ever.
    silence: Option<Span>,
    /// The entries that are held.
    held: VecDeque<Held>,
    /// Bytes of all of them.
    bytes: u64,
    /// Bytes of those that are in memory too.
    recent_bytes: u64,
}

/// An entry that the log holds.
#[derive(Debug)]
struct Held {
    position: u64,
    bytes: u64,
    /// Itself, while it is among the newest.
    entry: Option<PushEntry>,
}

impl Held {
    fn recent_bytes(&self) -> u64 {
        if self.entry.is_some() { self.bytes + ENTRY_BYTES } else { 0 }
    }
}

/// The log, in a folder that one process owns.
#[derive(Debug)]
pub struct PushLog {
    database: DB,
    folder: PathBuf,
    /// Held by whoever appends, for as long as the disk takes: who asks for the state does not wait for the disk.
    appending: Mutex<()>,
    state: Mutex<State>,
}

impl State {
    /// Adds an entry, and lets the oldest ones in memory go where there are too many.
    fn hold(&mut self, entry: PushEntry, bytes: u64) {
        let held = Held { position: entry.position, bytes, entry: Some(entry) };
        (self.bytes, self.recent_bytes) = (self.bytes + bytes, self.recent_bytes + held.recent_bytes());
        self.held.push_back(held);
        let mut index = self.held.partition_point(|held| held.entry.is_none());
        while self.recent_bytes > RECENT_BYTES && index < self.held.len() {
            self.recent_bytes -= self.held[index].recent_bytes();
            self.held[index].entry = None;
            index += 1;
        }
    }

    /// The entries after a position that are in memory, and how many before those are not.
    fn recent_after(&self, position: u64) -> (usize, Vec<PushEntry>) {
        let first = self.held.partition_point(|held| held.position <= position);
        let recent: Vec<PushEntry> = self.held.range(first..).filter_map(|held| held.entry.clone()).collect();
        (self.held.len() - first - recent.len(), recent)
    }

    /// The first and the last position that is held up to one.
    fn held_until(&self, position: u64) -> Option<(u64, u64)> {
        let gone = self.held.partition_point(|held| held.position <= position);
        Some((self.held.front()?.position, self.held.get(gone.checked_sub(1)?)?.position))
    }

    /// Holds nothing up to a position any more.
    fn let_go(&mut self, position: u64) {
        while self.held.front().is_some_and(|held| held.position <= position)
            && let Some(held) = self.held.pop_front()
        {
            self.bytes -= held.bytes;
            self.recent_bytes -= held.recent_bytes();
        }
    }

    fn reach(&self) -> LogReach {
        let mut least: BTreeMap<String, Timestamp> = BTreeMap::new();
        for (of, watermark) in self.watermarks.iter().filter(|(of, _)| !self.is_silent(of)) {
            let source = &of.0;
            least.entry(source.clone()).and_modify(|held| *held = (*held).min(*watermark)).or_insert(*watermark);
        }
        LogReach { last: self.last, watermarks: least }
    }

    /// Whether a producer says nothing any more while others do.
    fn is_silent(&self, of: &(String, String)) -> bool {
        let (Some(silence), Some(latest), Some(heard)) = (self.silence, self.latest, self.heard.get(of)) else {
            return false;
        };
        latest.since(*heard) > silence
    }

    fn producer(&self, of: &(String, String)) -> ProducerState {
        ProducerState {
            source: of.0.clone(),
            producer: of.1.clone(),
            sequence: self.sequences.get(of).copied(),
            watermark: self.watermarks.get(of).copied(),
            heard: self.heard.get(of).copied(),
            retired: self.retired.get(of).copied(),
            silent: self.watermarks.contains_key(of) && self.is_silent(of),
        }
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn entry_key(position: u64) -> [u8; 9] {
    let mut key = [b'e'; 9];
    key[1..].copy_from_slice(&position.to_be_bytes());
    key
}

fn producer_key(kind: u8, source: &str, producer: &str) -> Vec<u8> {
    [&[kind], source.as_bytes(), &[0], producer.as_bytes()].concat()
}

impl PushLog {
    /// Opens the log in a folder, and creates it where there is none.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] when another process has it open, [`crate::ErrorKind::Damaged`] when it cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        create_folder(folder).map_err(|error| {
            Error::unavailable("the push log's folder cannot be made").with("folder", folder.display()).source(error)
        })?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_keep_log_file_num(4);
        // What is written here is read once, and let go of soon: to compress and to compact it is wasted.
        options.set_compression_type(DBCompressionType::None);
        options.set_level_zero_file_num_compaction_trigger(COMPACT_FROM_FILES);
        options.set_write_buffer_size(BUFFER_BYTES);
        let database = DB::open(&options, folder).map_err(|error| {
            let text = error.to_string();
            if text.contains("lock") || text.contains("LOCK") {
                Error::busy("the push log is in use by another process")
                    .with("folder", folder.display())
                    .remedy("stop that process, or push to its address")
            } else {
                damaged(folder, "it cannot be opened")
            }
            .source(error)
        })?;
        let log = Self { database, folder: folder.to_owned(), appending: Mutex::default(), state: Mutex::default() };
        log.read_state()?;
        Ok(log)
    }

    fn read_state(&self) -> Result<()> {
        let (mut state, mut incarnation) = (State::default(), None);
        for item in self.database.iterator(IteratorMode::Start) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            let wrong = || damaged(&self.folder, "a record is not readable");
            let (kind, rest) = key.split_first().ok_or_else(wrong)?;
            let producer = || {
                let (source, producer) = std::str::from_utf8(rest).ok()?.split_once('\0')?;
                Some((source.to_owned(), producer.to_owned()))
            };
            match kind {
                b'e' => {
                    let (position, bytes) = (number(rest).ok_or_else(wrong)?, value.len() as u64);
                    state.held.push_back(Held { position, bytes, entry: None });
                    state.bytes += bytes;
                    state.sources.insert(source_of(&value).ok_or_else(wrong)?.to_owned());
                }
                b'n' => state.last = number(&value).ok_or_else(wrong)?,
                b'i' => incarnation = Some(number(&value).ok_or_else(wrong)?),
                b'p' => {
                    let of = producer().ok_or_else(wrong)?;
                    state.sources.insert(of.0.clone());
                    state.sequences.insert(of, number(&value).ok_or_else(wrong)?);
                }
                b'w' => {
                    let micros = number(&value).ok_or_else(wrong)?.cast_signed();
                    let of = producer().ok_or_else(wrong)?;
                    state.sources.insert(of.0.clone());
                    state.watermarks.insert(of, Timestamp::from_micros(micros));
                }
                b'h' | b'r' => {
                    let at = Timestamp::from_micros(number(&value).ok_or_else(wrong)?.cast_signed());
                    let of = producer().ok_or_else(wrong)?;
                    if *kind == b'h' {
                        state.latest = state.latest.max(Some(at));
                        state.heard.insert(of, at);
                    } else {
                        state.retired.insert(of, at);
                    }
                }
                _ => return Err(wrong()),
            }
        }
        state.incarnation = incarnation.unwrap_or_default();
        *self.state() = state;
        Ok(())
    }

    /// Which log this is: positions that are not flushed are this one's alone. A log that is new gets `new`; one from
    /// before logs were told apart is number 0.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn identified(&self, new: u64) -> Result<u64> {
        let _appending = self.appending();
        let known = self.database.get(b"i").map_err(|error| self.failed(error))?.is_some();
        if !known {
            let used = self.last() > 0 || !self.state().sources.is_empty();
            let incarnation = if used { 0 } else { new };
            let mut batch = WriteBatch::default();
            batch.put(b"i", incarnation.to_be_bytes());
            self.write(batch)?;
            self.state().incarnation = incarnation;
        }
        Ok(self.incarnation())
    }

    /// Which log this is, once it is [identified](Self::identified).
    pub fn incarnation(&self) -> u64 {
        self.state().incarnation
    }

    /// Writes a batch and waits until it is on the disk.
    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        self.database.write_opt(batch, &synced).map_err(|error| self.failed(error))
    }

    /// Gives all entries new positions after one, in their order, where another log's positions have passed theirs; those
    /// that `taken` tells of were taken by the other log too, and go. In one atomic write.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for an entry that cannot be read, [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn renumber(&self, after: u64, taken: impl Fn(&str, &PushOrigin) -> bool) -> Result<()> {
        let _appending = self.appending();
        let mut last = after.max(self.last());
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(0), entry_key(u64::MAX));
        for item in self.database.iterator(IteratorMode::From(b"e", Direction::Forward)) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            if !key.starts_with(b"e") {
                break;
            }
            let head = Head::read(&value).ok_or_else(|| damaged(&self.folder, "an entry is not readable"))?;
            if !taken(head.source, &head.origin) {
                last += 1;
                batch.put(entry_key(last), &value);
            }
        }
        batch.put(b"n", last.to_be_bytes());
        self.write(batch)?;
        self.read_state()
    }

    /// Learns what another log was told by producers.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn learn<'a>(&self, said: impl Iterator<Item = (&'a str, &'a str, SaidByProducer)>) -> Result<()> {
        let _appending = self.appending();
        let (mut batch, mut sequences, mut watermarks) = (WriteBatch::default(), Producers::new(), Producers::new());
        for (source, producer, SaidByProducer { last, watermark, .. }) in said {
            let of = (source.to_owned(), producer.to_owned());
            let state = self.state();
            if let Some(last) = last
                && state.sequences.get(&of).is_none_or(|known| *known < last)
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
        if !sequences.is_empty() || !watermarks.is_empty() {
            self.write(batch)?;
            let mut state = self.state();
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
        let known = state.sequences.keys().chain(state.watermarks.keys()).cloned();
        let said = known.map(|of| {
            let watermark = state.watermarks.get(&of).copied();
            let told = |watermark: &Timestamp| all || reach.watermarks.get(&of.0) >= Some(watermark);
            let watermark = watermark.filter(told);
            (of, SaidByProducer { watermark, ..SaidByProducer::default() })
        });
        said.collect()
    }

    /// Whether a producer of a source may push: one that is known, or one of not too many.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for a name that is too long, [`crate::ErrorKind::Busy`] with too many producers.
    pub fn admit_producer(&self, source: &str, producer: &str) -> Result<()> {
        if producer.len() > MOST_PRODUCER_BYTES {
            return Err(Error::invalid("a producer's name is too long")
                .with("bytes", producer.len())
                .with("limit", MOST_PRODUCER_BYTES)
                .remedy("give each producer a short name, and keep it"));
        }
        let state = self.state();
        let of = (source.to_owned(), producer.to_owned());
        if state.sequences.contains_key(&of) || state.watermarks.contains_key(&of) || state.heard.contains_key(&of) {
            return Ok(());
        }
        let known =
            state.heard.range((source.to_owned(), String::new())..).take_while(|((of, _), _)| of == source).count();
        if known >= MOST_PRODUCERS {
            return Err(Error::busy("the source has as many producers as there may be")
                .with("source", source)
                .with("producers", known)
                .remedy("let each sender keep its name: a producer is remembered for ever"));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn appending(&self) -> MutexGuard<'_, ()> {
        self.appending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: rocksdb::Error) -> Error {
        Error::unavailable("the push log failed").with("folder", self.folder.display()).source(error)
    }

    /// The position of the newest push; 0 before the first.
    pub fn last(&self) -> u64 {
        self.state().last
    }

    /// About how many bytes of events are held.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Whether a source was pushed to, as far as the log knows: it forgets with what it lets go of.
    pub fn knows(&self, source: &str) -> bool {
        self.state().sources.contains(source)
    }

    /// Counts on from a position, where the log's own is not there yet: a new log of a store that has had pushes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn begin_after(&self, position: u64) -> Result<()> {
        let _appending = self.appending();
        if self.last() < position {
            self.database.put(b"n", position.to_be_bytes()).map_err(|error| self.failed(error))?;
            self.state().last = position;
        }
        Ok(())
    }

    /// How far it has got.
    pub fn reach(&self) -> LogReach {
        self.state().reach()
    }

    /// Appends several pushes in one synced write. For each its entry, or `None` for one that was sent before; a
    /// heartbeat's entry has no events and is not kept. With them, how far the log has got by them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails; none of them is then in the log.
    pub fn append(&self, pushes: Vec<Push>) -> Result<(Vec<Option<PushEntry>>, LogReach)> {
        let _appending = self.appending();
        let bytes = pushes.iter().map(|push| encoded_bytes(&push.events)).sum::<Result<usize>>()?;
        let (mut batch, mut entries) = (WriteBatch::with_capacity_bytes(bytes), Vec::with_capacity(pushes.len()));
        let (mut last, mut held) = (self.last(), Vec::new());
        let (mut sequences, mut watermarks) = (Producers::new(), Producers::new());
        let (mut heard_of, mut latest) = (Producers::new(), None);
        for Push { source, events, header, at } in pushes {
            latest = Some(at);
            let named = header.producer.is_some();
            let producer = (source.clone(), header.producer.unwrap_or_default());
            let origin = PushOrigin { at: Some(at), producer: producer.1.clone(), sequence: header.sequence };
            if named || header.watermark.is_some() {
                heard_of.insert(producer.clone(), at);
            }
            if let Some(sequence) = header.sequence {
                let before =
                    sequences.get(&producer).copied().or_else(|| self.state().sequences.get(&producer).copied());
                if before.is_some_and(|before| before >= sequence) {
                    entries.push(None);
                    continue;
                }
                batch.put(producer_key(b'p', &producer.0, &producer.1), sequence.to_be_bytes());
                sequences.insert(producer.clone(), sequence);
            }
            if let Some(watermark) = header.watermark {
                let before = watermarks.get(&producer).copied();
                let before = before.or_else(|| self.state().watermarks.get(&producer).copied());
                let watermark = before.map_or(watermark, |before| watermark.max(before));
                batch.put(
                    producer_key(b'w', &producer.0, &producer.1),
                    watermark.micros().cast_unsigned().to_be_bytes(),
                );
                batch.delete(producer_key(b'r', &producer.0, &producer.1));
                watermarks.insert(producer, watermark);
            }
            if events.num_rows() > 0 {
                last += 1;
                let value = encode(&source, &origin, &events)?;
                let (source, events, origin) = (source.clone(), events.clone(), origin.clone());
                let entry = PushEntry { position: last, source, events, origin };
                held.push((entry, value.len() as u64));
                batch.put(entry_key(last), value);
            }
            entries.push(Some(PushEntry { position: last, source, events, origin }));
        }
        for ((source, producer), heard) in &heard_of {
            batch.put(producer_key(b'h', source, producer), heard.micros().cast_unsigned().to_be_bytes());
        }
        batch.put(b"n", last.to_be_bytes());
        self.write(batch)?;
        let mut state = self.state();
        state.last = last;
        for (entry, bytes) in held {
            state.hold(entry, bytes);
        }
        state.sources.extend(entries.iter().flatten().map(|entry| entry.source.clone()));
        state.sequences.extend(sequences);
        state.retired.retain(|of, _| !watermarks.contains_key(of));
        state.watermarks.extend(watermarks);
        state.heard.extend(heard_of);
        state.latest = latest.or(state.latest);
        Ok((entries, state.reach()))
    }

    /// Leaves those producers out of their sources' watermarks that say nothing for longer than this while others do.
    pub fn leave_out_after(&self, silence: Option<Span>) {
        self.state().silence = silence;
    }

    /// The producers of a source, or of all, in order of name.
    pub fn producers(&self, source: Option<&str>) -> Vec<ProducerState> {
        let state = self.state();
        let known = state.sequences.keys().chain(state.watermarks.keys()).chain(state.heard.keys());
        let known: BTreeSet<_> = known.filter(|of| source.is_none_or(|source| of.0 == source)).collect();
        known.into_iter().map(|of| state.producer(of)).collect()
    }

    /// Changes what counts of a producer, by the will of a person; synced.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] with the producers that there are, [`crate::ErrorKind::Invalid`] for a watermark that is
    /// not earlier than what the producer said, [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn change(&self, source: &str, producer: &str, change: ProducerChange, at: Timestamp) -> Result<ProducerState> {
        let _appending = self.appending();
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
        match change {
            ProducerChange::Retire => {
                batch.delete(producer_key(b'w', source, producer));
                batch.put(producer_key(b'r', source, producer), bytes(at));
            }
            ProducerChange::Watermark(watermark) => {
                // The same once more: a correction that was cut off is gone on with.
                if before.watermark.is_none_or(|said| said < watermark) {
                    return Err(Error::invalid("a watermark is corrected to an earlier one")
                        .with("producer", producer)
                        .with("value", watermark)
                        .with("said", before.watermark.map_or_else(|| "nothing".to_owned(), |said| said.to_string()))
                        .remedy("the producer itself moves it forward; to count it no more, retire it"));
                }
                batch.put(producer_key(b'w', source, producer), bytes(watermark.dated()?));
            }
        }
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        self.database.write_opt(batch, &synced).map_err(|error| self.failed(error))?;
        let mut state = self.state();
        match change {
            ProducerChange::Retire => {
                state.watermarks.remove(&of);
                state.retired.insert(of.clone(), at);
            }
            ProducerChange::Watermark(watermark) => {
                state.watermarks.insert(of.clone(), watermark);
            }
        }
        Ok(state.producer(&of))
    }

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
            let entry = decode(position, &value).map_err(|error| {
                damaged(&self.folder, "an entry is not readable").with("position", position).source(error)
            })?;
            entries.push(entry);
        }
        entries.extend(recent);
        Ok(entries)
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
}

fn damaged(folder: &Path, what: &str) -> Error {
    Error::damaged(format!("the push log is damaged: {what}"))
        .with("folder", folder.display())
        .remedy("restore the folder from a backup; deleting it loses what was pushed and not yet flushed")
}

/// About how many bytes [`encode`] makes of events.
fn encoded_bytes(events: &RecordBatch) -> Result<usize> {
    let of_columns = events.columns().iter().map(|column| column.to_data().get_slice_memory_size());
    let bytes = of_columns.sum::<std::result::Result<usize, _>>()?;
    Ok(bytes + bytes / 64 + ENCODED_BYTES)
}

/// Set in the length of an entry's source where its origin follows.
const WITH_ORIGIN: u16 = 1 << 15;

fn encode(source: &str, origin: &PushOrigin, events: &RecordBatch) -> Result<Vec<u8>> {
    let length = |text: &str| u16::try_from(text.len()).ok().filter(|length| length & WITH_ORIGIN == 0);
    let too_long = |what: &str| Error::invalid(format!("{what} is longer than 32,767 bytes")).with("source", source);
    let mut value = Vec::with_capacity(encoded_bytes(events)?);
    let source_length = length(source).ok_or_else(|| too_long("a source's name"))?;
    value.extend_from_slice(&(source_length | WITH_ORIGIN).to_be_bytes());
    value.extend_from_slice(source.as_bytes());
    value.extend_from_slice(&origin.at.unwrap_or(Timestamp::MIN).micros().to_be_bytes());
    value.push(u8::from(origin.sequence.is_some()));
    value.extend_from_slice(&origin.sequence.unwrap_or_default().to_be_bytes());
    let producer = length(&origin.producer).ok_or_else(|| too_long("a producer's name"))?;
    value.extend_from_slice(&producer.to_be_bytes());
    value.extend_from_slice(origin.producer.as_bytes());
    let mut writer = StreamWriter::try_new(value, &events.schema())?;
    writer.write(events)?;
    Ok(writer.into_inner()?)
}

/// What an entry begins with.
struct Head<'a> {
    source: &'a str,
    origin: PushOrigin,
    /// Its events as an Arrow IPC stream.
    events: &'a [u8],
}

impl<'a> Head<'a> {
    /// Reads it; `None` where the bytes are cut off.
    fn read(value: &'a [u8]) -> Option<Self> {
        let text = |length: u16, bytes: &'a [u8]| {
            let (text, rest) = bytes.split_at_checked(usize::from(length))?;
            Some((std::str::from_utf8(text).ok()?, rest))
        };
        let (length, rest) = value.split_first_chunk::<2>()?;
        let length = u16::from_be_bytes(*length);
        let (source, rest) = text(length & !WITH_ORIGIN, rest)?;
        if length & WITH_ORIGIN == 0 {
            return Some(Self { source, origin: PushOrigin::default(), events: rest });
        }
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (known, rest) = rest.split_first()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (producer, events) = text(u16::from_be_bytes(*length), rest)?;
        let at = Timestamp::from_micros(i64::from_be_bytes(*at));
        let sequence = (*known == 1).then(|| u64::from_be_bytes(*sequence));
        let origin = PushOrigin { at: (at != Timestamp::MIN).then_some(at), producer: producer.to_owned(), sequence };
        Some(Self { source, origin, events })
    }
}

fn source_of(value: &[u8]) -> Option<&str> {
    Head::read(value).map(|head| head.source)
}

fn decode(position: u64, value: &[u8]) -> Result<PushEntry> {
    let cut = || Error::damaged("an entry is cut off");
    let Head { source, origin, events } = Head::read(value).ok_or_else(cut)?;
    let events = StreamReader::try_new(events, None)?.next().ok_or_else(cut)??;
    Ok(PushEntry { position, source: source.to_owned(), events, origin })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn push(producer: &str, sequence: u64, values: &[i64], watermark: Option<i64>) -> Push {
        let array: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
        Push {
            source: "paid".to_owned(),
            events: RecordBatch::try_from_iter([("value", array)]).expect("a batch"),
            header: PushHeader {
                producer: Some(producer.to_owned()),
                sequence: Some(sequence),
                watermark: watermark.map(Timestamp::from_micros),
            },
            at: Timestamp::from_micros(sequence.cast_signed()),
        }
    }

    fn held(log: &PushLog, after: u64) -> Vec<(u64, i64)> {
        let entries = log.entries_after(after).expect("readable");
        entries.iter().map(|e| (e.position, e.events.column(0).as_primitive::<Int64Type>().value(0))).collect()
    }

    #[test]
    fn entries_are_the_same_from_memory_and_from_the_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = PushLog::open(folder.path()).expect("new");
        // Two of these are as many as memory holds.
        let many = vec![0; 3 << 20];
        for first in [10_i64, 20, 30, 40] {
            let values = [&[first], many.as_slice()].concat();
            log.append(vec![push("a", first.cast_unsigned(), &values, None)]).expect("writable");
        }
        let all = [(1, 10), (2, 20), (3, 30), (4, 40)];
        for after in 0..5_u8 {
            assert_eq!(held(&log, after.into()), all[usize::from(after)..], "after {after}");
        }
        log.trim(1).expect("writable");
        assert_eq!(held(&log, 0), all[1..]);
        log.trim(3).expect("writable");
        assert_eq!(held(&log, 0), all[3..]);
        log.append(vec![push("a", 50, &[50], None)]).expect("writable");
        assert_eq!(held(&log, 3), [(4, 40), (5, 50)]);
        drop(log);
        let log = PushLog::open(folder.path()).expect("reopened");
        assert_eq!(held(&log, 0), [(4, 40), (5, 50)]);
    }

    #[test]
    fn what_was_appended_is_there_once_after_reopening() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = PushLog::open(folder.path()).expect("new");
        let taken =
            log.append(vec![push("a", 1, &[10], None), push("b", 1, &[20], Some(5)), push("a", 1, &[10], None)]);
        let positions: Vec<_> = taken.expect("writable").0.iter().map(|e| e.as_ref().map(|e| e.position)).collect();
        assert_eq!(positions, [Some(1), Some(2), None]);
        assert_eq!(PushLog::open(folder.path()).expect_err("in use").kind(), crate::ErrorKind::Busy);
        drop(log);
        let log = PushLog::open(folder.path()).expect("reopened");
        assert_eq!((log.last(), held(&log, 0)), (2, vec![(1, 10), (2, 20)]));
        assert!(log.append(vec![push("b", 1, &[20], None)]).expect("writable").0[0].is_none());
        let taken = log.append(vec![push("a", 7, &[30], Some(9)), push("b", 2, &[], Some(3))]);
        let reach = LogReach { last: 3, watermarks: [("paid".to_owned(), Timestamp::from_micros(5))].into() };
        assert_eq!((taken.expect("writable").1, log.reach()), (reach.clone(), reach));
        log.trim(2).expect("writable");
        drop(log);
        let log = PushLog::open(folder.path()).expect("reopened");
        assert_eq!((log.last(), held(&log, 0), held(&log, 3)), (3, vec![(3, 30)], vec![]));
        log.trim(3).expect("writable");
        drop(log);
        let log = PushLog::open(folder.path()).expect("reopened");
        assert_eq!((log.last(), log.bytes(), log.reach().watermarks.len()), (3, 0, 1));
    }

    fn mark(log: &PushLog) -> Option<i64> {
        log.reach().watermarks.get("paid").map(|mark| mark.micros())
    }

    #[test]
    fn a_producer_is_retired_and_a_watermark_corrected_and_both_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = PushLog::open(folder.path()).expect("new");
        log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(4_000))]).expect("writable");
        let at = Timestamp::from_micros;
        assert_eq!(
            log.change("paid", "c", ProducerChange::Retire, at(9)).expect_err("unknown").kind(),
            crate::ErrorKind::NotFound
        );
        assert!(log.change("paid", "b", ProducerChange::Watermark(at(4_001)), at(9)).is_err(), "forward");
        let retired = log.change("paid", "a", ProducerChange::Retire, at(9)).expect("known");
        assert_eq!((retired.sequence, retired.watermark, retired.retired), (Some(1), None, Some(at(9))));
        assert_eq!(mark(&log), Some(4_000));
        log.change("paid", "b", ProducerChange::Watermark(at(7)), at(9)).expect("earlier");
        assert_eq!(mark(&log), Some(7));
        drop(log);
        let log = PushLog::open(folder.path()).expect("reopened");
        assert_eq!((mark(&log), log.producers(Some("paid"))[0].retired), (Some(7), Some(at(9))));
        assert_eq!(log.producers(Some("paid"))[1].heard, Some(at(2)));
        // What it sent is still known, and it counts again when it says how far it is.
        assert!(log.append(vec![push("a", 1, &[10], None)]).expect("writable").0[0].is_none());
        log.append(vec![push("a", 3, &[], Some(6))]).expect("writable");
        assert_eq!((mark(&log), log.producers(Some("paid"))[0].retired), (Some(6), None));
    }

    #[test]
    fn a_silent_producer_is_left_out_while_others_speak() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = PushLog::open(folder.path()).expect("new");
        log.leave_out_after(Some(Span::from_micros(10)));
        log.append(vec![push("a", 1, &[10], Some(5)), push("b", 2, &[20], Some(8))]).expect("writable");
        log.append(vec![push("b", 11, &[20], Some(9))]).expect("writable");
        assert_eq!(mark(&log), Some(5), "not yet");
        log.append(vec![push("b", 12, &[20], Some(9))]).expect("writable");
        assert_eq!((mark(&log), log.producers(None)[0].silent), (Some(9), true));
        log.append(vec![push("a", 13, &[10], Some(6))]).expect("writable");
        assert_eq!((mark(&log), log.producers(None)[0].silent), (Some(6), false));
    }
}
