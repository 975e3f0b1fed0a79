//! The log of pushes on this host: RocksDB in a folder of its own, each write synced before it is acknowledged.
//!
//! Unlike the disk tier it cannot be rebuilt: it alone holds what was pushed and not yet flushed.
//!
//! | key | value |
//! |---|---|
//! | `e`, position (8) | source's length (2), source, what is known of the push, events as an Arrow IPC stream |
//! | `p`, source, `00`, producer | the producer's last sequence (8) |
//! | `w`, source, `00`, producer | the producer's watermark (8) |
//! | `h`, source, `00`, producer | when the producer was last heard of, or learned of from another log (8) |
//! | `r`, source, `00`, producer | when the producer was retired (8) |
//! | `o`, source, `00`, producer | the name of the caller whose the producer is |
//! | `b`, source, `00`, producer | where the correction comes that set the producer's sequence back last (8) |
//! | `c`, source, `00`, producer | what people changed about the producer last, of each kind, as JSON |
//! | `n` | the last position (8) |
//! | `i` | the log's incarnation (8): positions are this log's until they are flushed |
//! | `t` | the epoch that its process took last (8): a copy does not know of later ones |
//! | `a`, view, place | an event that the view does without ([`set_aside`]) |
//!
//! What is known of a push: when it came (8), whether it has a sequence (1), the sequence (8), its producer's length (2),
//! the producer. Entries without it are of a log from before it was kept: their source's length has no highest bit.
//!
//! Numbers are big-endian. A push's entry, sequence, watermark and position are one atomic write.

mod distinct;
mod entries;
mod format;
mod names;
mod owners;
mod producers;
mod set_aside;
mod state;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rocksdb::{DB, DBCompressionType, IteratorMode, Options, WriteBatch, WriteOptions};

pub use self::distinct::OldestHeld;
pub use self::entries::{LogPiece, Push, PushEntry, PushOrigin};
use self::format::{encode, encoded_bytes, entry_key, number, producer_key, source_of};
pub use self::names::NameInUse;
pub use self::set_aside::{EventPlace, SetAsidePlaces, WhySetAside};
pub use self::state::LogReach;
use self::state::{Held, Producers, State};
use crate::object_storage::create_folder;
use crate::time::Timestamp;
use crate::{Error, Result};

/// What is held in memory before a file is made of it: several flushes of pushes, so that most of it is let go of before.
const BUFFER_BYTES: usize = 128 << 20;

/// Files of the newest level before they are merged: nearly all are let go of before.
const COMPACT_FROM_FILES: i32 = 8;

/// The log, in a folder that one process owns.
#[derive(Debug)]
pub struct PushLog {
    database: DB,
    folder: PathBuf,
    /// Held by whoever appends, for as long as the disk takes: who asks for the state does not wait for the disk.
    appending: Mutex<()>,
    state: Mutex<State>,
    distinct: distinct::DistinctIndex,
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
        options.create_missing_column_families(true);
        let families = distinct::families(&options);
        let database = DB::open_cf_descriptors(&options, folder, families).map_err(|error| {
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
        let (appending, state, distinct) = Default::default();
        let log = Self { database, folder: folder.to_owned(), appending, state, distinct };
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
                b't' => state.epoch = Some(number(&value).ok_or_else(wrong)?),
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
                b'c' => {
                    let correction = serde_json::from_slice(&value).map_err(|error| wrong().source(error))?;
                    state.corrected.insert(producer().ok_or_else(wrong)?, correction);
                }
                b'o' => {
                    let owner = String::from_utf8(value.to_vec()).map_err(|error| wrong().source(error))?;
                    state.owners.insert(producer().ok_or_else(wrong)?, owner);
                }
                b'h' | b'r' | b'b' => {
                    let at = Timestamp::from_micros(number(&value).ok_or_else(wrong)?.cast_signed());
                    let of = producer().ok_or_else(wrong)?;
                    if *kind == b'h' {
                        // Who was heard of last by a clock that was ahead makes nobody else silent: the next push says how late it is.
                        state.heard.insert(of, at);
                    } else if *kind == b'r' {
                        state.retired.insert(of, at);
                    } else {
                        state.set_back.insert(of, at);
                    }
                }
                // Read when it is asked for.
                &set_aside::KIND => {}
                _ => return Err(wrong()),
            }
        }
        state.incarnation = incarnation.unwrap_or_default();
        let mut held = self.state();
        state.silence = held.silence;
        *held = state;
        Ok(())
    }

    /// Which log this is: positions that are not flushed are this one's alone. A log that is new gets `new`; one from
    /// before logs were told apart is number 0: of several of a store, the first that takes pushes ([`super::Claim`]).
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

    /// The epoch that it took last; `None` where it has taken none, or that was not kept.
    pub fn epoch(&self) -> Option<u64> {
        self.state().epoch
    }

    /// Notes the epoch that it has taken, before anything is acknowledged in it; synced.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn took(&self, epoch: u64) -> Result<()> {
        let _appending = self.appending();
        let mut batch = WriteBatch::default();
        batch.put(b"t", epoch.to_be_bytes());
        self.write(batch)?;
        self.state().epoch = Some(epoch);
        Ok(())
    }

    /// Writes a batch and waits until it is on the disk.
    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        self.database.write_opt(batch, &synced).map_err(|error| self.failed(error))
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

    /// Appends several pushes in one synced write. For each its entry, or `None` for one that was sent before; without the
    /// events that were pushed before, where their source tells that. A heartbeat's entry has no events and is not kept. With
    /// them, how far the log has got by them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails; none of them is then in the log.
    pub fn append(&self, pushes: Vec<Push>) -> Result<(Vec<Option<PushEntry>>, LogReach)> {
        let _appending = self.appending();
        let bytes = pushes.iter().map(|push| encoded_bytes(&push.events)).sum::<Result<usize>>()?;
        let (mut batch, mut entries) = (WriteBatch::with_capacity_bytes(bytes), Vec::with_capacity(pushes.len()));
        let (mut last, mut held) = (self.last(), Vec::new());
        let (mut sequences, mut watermarks) = (Producers::new(), Producers::new());
        let (mut heard_of, mut owners, mut latest) = (Producers::new(), Producers::new(), None);
        let mut seen = distinct::Appending::default();
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
            if let Some(caller) = self.state().claimed(&producer) {
                batch.put(producer_key(b'o', &producer.0, &producer.1), &caller);
                owners.insert(producer.clone(), caller);
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
            let events = self.not_pushed_before(&mut batch, &mut seen, &source, events)?;
            let kept = events.num_rows() > 0;
            last += u64::from(kept);
            let entry = PushEntry::new(last, source, events, origin)?;
            if kept {
                let value = encode(&entry.source, &entry.origin, &entry.events)?;
                held.push((entry.clone(), value.len() as u64));
                batch.put(entry_key(last), value);
            }
            entries.push(Some(entry));
        }
        for ((source, producer), heard) in &heard_of {
            batch.put(producer_key(b'h', source, producer), heard.micros().cast_unsigned().to_be_bytes());
        }
        batch.put(b"n", last.to_be_bytes());
        self.write(batch)?;
        let mut state = self.state();
        state.last = last;
        state.keep_names(owners, &heard_of);
        for (entry, bytes) in held {
            state.hold(entry, bytes);
        }
        state.sources.extend(entries.iter().flatten().map(|entry| entry.source.clone()));
        state.sequences.extend(sequences);
        state.retired.retain(|of, _| !watermarks.contains_key(of));
        state.watermarks.extend(watermarks);
        state.heard.extend(heard_of);
        if let Some(latest) = latest {
            state.goes_on(latest);
        }
        Ok((entries, state.reach()))
    }
}

fn damaged(folder: &Path, what: &str) -> Error {
    Error::damaged(format!("the push log is damaged: {what}"))
        .with("folder", folder.display())
        .remedy("restore the folder from a backup; deleting it loses what was pushed and not yet flushed")
}

#[cfg(test)]
mod tests;
