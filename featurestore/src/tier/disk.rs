//! The disk tier: RocksDB, one column family per generation of a view version.
//!
//! A view's mark lies in the default column family and is written in the same batch as the rows, so a crash leaves
//! both or neither. Whole loads go into a new column family through sorted files built outside and ingested; the mark
//! then names the new generation, and the old family is dropped ([`DiskGeneration`]). Many rows that are added to those of a
//! view go into its family, as files of merge operands, ingested in one step with a file of the mark ([`DiskAddition`]).
//! What is past its time leaves when RocksDB writes its files again.

mod addition;
mod generation;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use rocksdb::{
    Cache, ColumnFamilyDescriptor, DBWithThreadMode, DEFAULT_COLUMN_FAMILY_NAME, MultiThreaded, Options, SstFileWriter,
    WriteBatch,
};
use serde::{Deserialize, Serialize};

use self::addition::DiskAddition;
use self::generation::DiskGeneration;
use super::rocksdb_tuning::{self as tuning, Past};
use super::{EachRow, EntityRead, Expiry, Generation, KeyedRow, Mark, OnlineTier, ViewRead, merge_rows};
use crate::definition::{Pinned, Version};
use crate::encoding::{is_chunk, merge_values};
use crate::time::Timestamp;
use crate::{Error, Result};

type Database = DBWithThreadMode<MultiThreaded>;

/// Rows of a load held in memory before they become a sorted file.
const SORT_BUFFER_BYTES: usize = 64 << 20;

/// What the names of files that are to be ingested begin with.
const LOAD_FILES: &str = "load-";

/// What people can do about a folder that RocksDB does not read.
const REBUILD: &str = "delete the folder: it is rebuilt from object storage, and nothing is lost";

/// RocksDB in a folder that one process owns.
pub struct DiskTier {
    database: Database,
    folder: PathBuf,
    cache: Cache,
    /// Those of ingested files.
    file_options: Options,
    /// Those of each view's families, and what these let go of. RocksDB does not keep them alive.
    view_options: Mutex<HashMap<String, ViewOptions>>,
    views: RwLock<HashMap<Pinned, Arc<RwLock<DiskView>>>>,
}

impl std::fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTier").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The options of a view's families, and what these let go of.
type ViewOptions = (Arc<Options>, Past);

/// A view's record in the default column family.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct DiskView {
    generation: u64,
    mark: Mark,
    /// What was past at this time may be gone.
    #[serde(default)]
    expired: Option<Timestamp>,
    /// How its rows are packed: what was packed otherwise is loaded anew.
    #[serde(default)]
    layout: u32,
}

/// Grows when rows or chunks are packed otherwise.
const LAYOUT: u32 = 2;

impl Default for DiskView {
    /// Of no rows, packed as they are now.
    fn default() -> Self {
        Self { generation: 0, mark: Mark::default(), expired: None, layout: LAYOUT }
    }
}

/// The generation of a view that is no longer there.
const FORGOTTEN: u64 = u64::MAX;

impl DiskTier {
    /// Opens the tier in a folder, and creates it where there is none.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] when another process has it open, [`crate::ErrorKind::Damaged`] with the remedy when
    /// RocksDB finds it corrupt.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| {
            Error::unavailable("the disk tier's folder cannot be made").with("folder", folder.display()).source(error)
        })?;
        let cache = tuning::cache();
        let options = tuning::database();
        let exists = folder.join("CURRENT").exists();
        let families = if exists {
            Database::list_cf(&options, folder).map_err(|error| open_error(folder, error))?
        } else {
            vec![DEFAULT_COLUMN_FAMILY_NAME.to_owned()]
        };
        let mut view_options: HashMap<String, ViewOptions> = HashMap::new();
        let descriptors: Vec<ColumnFamilyDescriptor> = families
            .iter()
            .map(|name| {
                let view = name.rsplit_once('#').map_or(name.as_str(), |(view, _)| view).to_owned();
                let (options, _) = view_options.entry(view).or_insert_with(|| view_options_of(&cache));
                ColumnFamilyDescriptor::new(name, Options::clone(options))
            })
            .collect();
        let database =
            Database::open_cf_descriptors(&options, folder, descriptors).map_err(|error| open_error(folder, error))?;
        let tier = Self {
            database,
            folder: folder.to_owned(),
            file_options: tuning::view(&cache),
            view_options: Mutex::new(view_options),
            cache,
            views: RwLock::default(),
        };
        tier.read_records(&families)?;
        tier.remove_cut_off();
        Ok(tier)
    }

    /// Reads all marks, and drops the families that no mark names: loads that a crash has cut off.
    fn read_records(&self, families: &[String]) -> Result<()> {
        let mut views = HashMap::new();
        for entry in self.database.iterator(rocksdb::IteratorMode::Start) {
            let (key, value) = entry.map_err(|error| open_error(&self.folder, error))?;
            let (view, record) = parse_record(&key, &value).ok_or_else(|| {
                Error::damaged("a mark of the disk tier is not readable")
                    .with("folder", self.folder.display())
                    .with("key", String::from_utf8_lossy(&key))
                    .remedy(REBUILD)
            })?;
            // A power cut may have taken the rows and left their mark.
            if record.layout == LAYOUT && families.contains(&family(&view, record.generation)) {
                let record = self.with_added(&view, record)?;
                views.insert(view, Arc::new(RwLock::new(record)));
            } else {
                self.database.delete(&key).map_err(|error| self.failed(error))?;
            }
        }
        let named: Vec<String> = views
            .iter()
            .map(|(view, record)| family(view, record.read().unwrap_or_else(PoisonError::into_inner).generation))
            .collect();
        for name in families.iter().filter(|name| *name != DEFAULT_COLUMN_FAMILY_NAME && !named.contains(name)) {
            self.database.drop_cf(name).map_err(|error| self.failed(error))?;
        }
        *self.views.write().unwrap_or_else(PoisonError::into_inner) = views;
        Ok(())
    }

    /// Removes the files of loads that a crash has cut off.
    fn remove_cut_off(&self) {
        let files = std::fs::read_dir(&self.folder).into_iter().flatten().filter_map(std::result::Result::ok);
        for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(LOAD_FILES)) {
            if let Err(error) = std::fs::remove_file(file.path()) {
                tracing::warn!(path = %file.path().display(), %error, "what is left of a load cannot be removed");
            }
        }
    }

    /// The options of a view's families, and what these let go of.
    fn options_of(&self, view: &Pinned) -> ViewOptions {
        let mut all = self.view_options.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(view.to_string()).or_insert_with(|| view_options_of(&self.cache)).clone()
    }

    /// Whether the view's families let go of something.
    fn lets_go(&self, view: &Pinned) -> bool {
        self.options_of(view).1.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Writes rows as a sorted file, as values or as merge operands.
    fn write_file(&self, path: &Path, rows: BTreeMap<Bytes, Bytes>, merged: bool) -> Result<()> {
        let write = || {
            let mut writer = SstFileWriter::create(&self.file_options);
            writer.open(path)?;
            for (key, row) in rows {
                if merged {
                    writer.merge(key, row)?;
                } else {
                    writer.put(key, row)?;
                }
            }
            writer.finish()
        };
        write().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: rocksdb::Error) -> Error {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => {
                Error::damaged("the disk tier is corrupt").with("folder", self.folder.display()).remedy(REBUILD)
            }
            _ => Error::unavailable("the disk tier failed").with("folder", self.folder.display()),
        }
        .source(error)
    }

    fn slot(&self, view: &Pinned) -> Option<Arc<RwLock<DiskView>>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).get(view).cloned()
    }

    fn slot_or_new(&self, view: &Pinned) -> Result<Arc<RwLock<DiskView>>> {
        if let Some(slot) = self.slot(view) {
            return Ok(slot);
        }
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = views.get(view) {
            return Ok(Arc::clone(slot));
        }
        let name = family(view, 0);
        if self.database.cf_handle(&name).is_none() {
            self.database.create_cf(&name, &self.options_of(view).0).map_err(|error| self.failed(error))?;
        }
        let slot = Arc::new(RwLock::new(DiskView::default()));
        views.insert(view.clone(), Arc::clone(&slot));
        Ok(slot)
    }

    fn family_handle(&self, name: &str) -> Result<Arc<rocksdb::BoundColumnFamily<'_>>> {
        self.database.cf_handle(name).ok_or_else(|| {
            Error::damaged("the disk tier lacks a column family that its marks name")
                .with("folder", self.folder.display())
                .with("family", name)
                .remedy(REBUILD)
        })
    }
}

fn view_options_of(cache: &Cache) -> ViewOptions {
    let past = Past::default();
    (Arc::new(tuning::view_with(cache, &past)), past)
}

fn family(view: &Pinned, generation: u64) -> String {
    format!("{view}#{generation}")
}

fn record_bytes(record: &DiskView) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|error| Error::internal("a mark cannot be written").source(error))
}

fn parse_record(key: &[u8], value: &[u8]) -> Option<(Pinned, DiskView)> {
    let (name, version) = std::str::from_utf8(key).ok()?.rsplit_once('@')?;
    Some((Pinned::new(name, Version::from_text(version)), serde_json::from_slice(value).ok()?))
}

fn open_error(folder: &Path, error: rocksdb::Error) -> Error {
    let text = error.to_string();
    if text.contains("lock") || text.contains("LOCK") {
        return Error::busy("the store is in use by another process")
            .with("folder", folder.display())
            .remedy("stop that process, or talk to it over its address")
            .source(error);
    }
    Error::damaged("the disk tier cannot be opened").with("folder", folder.display()).remedy(REBUILD).source(error)
}

impl OnlineTier for DiskTier {
    fn read(&self, view: &Pinned, keys: &[&[u8]]) -> Result<ViewRead> {
        let mut rows = Vec::with_capacity(keys.len());
        let mark = self.read_each(view, keys, &mut |_, row| {
            rows.push(row.map(Bytes::copy_from_slice));
            Ok(())
        })?;
        Ok(ViewRead { rows, mark })
    }

    fn read_each(&self, view: &Pinned, keys: &[&[u8]], each: &mut EachRow<'_>) -> Result<Mark> {
        let Some(slot) = self.slot(view) else {
            (0..keys.len()).try_for_each(|index| each(index, None))?;
            return Ok(Mark::default());
        };
        let state = slot.read().unwrap_or_else(PoisonError::into_inner);
        if state.generation == FORGOTTEN {
            (0..keys.len()).try_for_each(|index| each(index, None))?;
            return Ok(Mark::default());
        }
        let handle = self.family_handle(&family(view, state.generation))?;
        let rows = self.database.batched_multi_get_cf(&handle, keys, keys.is_sorted());
        for (index, row) in rows.into_iter().enumerate() {
            each(index, row.map_err(|error| self.failed(error))?.as_deref())?;
        }
        Ok(state.mark)
    }

    fn read_entities(&self, views: &[Pinned], keys: &[&[u8]]) -> Result<EntityRead> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|&index| keys[index]);
        let sorted: Vec<&[u8]> = order.iter().map(|&index| keys[index]).collect();
        let mut rows: Vec<Vec<Option<Bytes>>> = vec![Vec::with_capacity(views.len()); keys.len()];
        let mut marks = Vec::with_capacity(views.len());
        for view in views {
            let read = self.read(view, &sorted)?;
            marks.push(read.mark);
            for (&index, row) in order.iter().zip(read.rows) {
                rows[index].push(row);
            }
        }
        Ok(EntityRead { entities: rows.into_iter().map(Into::into).collect(), marks })
    }

    fn mark(&self, view: &Pinned) -> Result<Mark> {
        Ok(self.slot(view).map_or(Mark::default(), |slot| slot.read().unwrap_or_else(PoisonError::into_inner).mark))
    }

    fn apply(&self, view: &Pinned, rows: Vec<KeyedRow>, mark: Mark) -> Result<()> {
        let slot = self.slot_or_new(view)?;
        let mut state = slot.write().unwrap_or_else(PoisonError::into_inner);
        let handle = self.family_handle(&family(view, state.generation))?;
        let record = DiskView { mark, ..*state };
        let mut batch = WriteBatch::default();
        let mut chunks = BTreeMap::new();
        let (given, rows): (Vec<KeyedRow>, Vec<KeyedRow>) = rows.into_iter().partition(|(_, row)| is_chunk(row));
        merge_rows(&mut chunks, given)?;
        for (key, row) in rows {
            batch.merge_cf(&handle, key, row);
        }
        // Chunks change again and again: merged here, under the view's lock, no read has to merge them.
        for (key, chunk) in chunks {
            let held = self.database.get_pinned_cf(&handle, &key).map_err(|error| self.failed(error))?;
            let merged = held.map_or(Ok(chunk.clone()), |held| merge_values(&held, &chunk))?;
            batch.put_cf(&handle, key, merged);
        }
        batch.put(view.to_string(), record_bytes(&record)?);
        self.database.write(batch).map_err(|error| self.failed(error))?;
        *state = record;
        Ok(())
    }

    fn begin_generation(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        let slot = self.slot_or_new(view)?;
        let generation = slot.read().unwrap_or_else(PoisonError::into_inner).generation + 1;
        let name = family(view, generation);
        if self.database.cf_handle(&name).is_some() {
            // Left by a load that was given up.
            self.database.drop_cf(&name).map_err(|error| self.failed(error))?;
        }
        self.database.create_cf(&name, &self.options_of(view).0).map_err(|error| self.failed(error))?;
        let lets_go = self.lets_go(view);
        Ok(Box::new(DiskGeneration::new(self, view, slot, (generation, lets_go))))
    }

    fn begin_addition(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        Ok(Box::new(DiskAddition::new(self, view, self.slot_or_new(view)?)))
    }

    fn views(&self) -> Vec<Pinned> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn expire(&self, view: &Pinned, expiry: &Expiry, now: Timestamp) -> Result<bool> {
        let (true, Some(slot)) = (expiry.is_some(), self.slot(view)) else { return Ok(true) };
        let mut state = slot.write().unwrap_or_else(PoisonError::into_inner);
        let past = self.options_of(view).1;
        if state.expired.is_some_and(|expired| expired > now) {
            // What was past then is not now; the next generation is to have all of it.
            *past.write().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(false);
        }
        let until = Expiry::until(now).max(state.expired.unwrap_or(Timestamp::MIN));
        if state.expired == Some(until) && past.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(true);
        }
        // First it is written down, then it may go.
        let record = DiskView { expired: Some(until), ..*state };
        self.database.put(view.to_string(), record_bytes(&record)?).map_err(|error| self.failed(error))?;
        *state = record;
        *past.write().unwrap_or_else(PoisonError::into_inner) = Some(expiry.cutoff(until));
        Ok(true)
    }

    fn forget(&self, view: &Pinned) -> Result<()> {
        let slot = self.views.write().unwrap_or_else(PoisonError::into_inner).remove(view);
        if let Some(slot) = slot {
            let mut state = slot.write().unwrap_or_else(PoisonError::into_inner);
            self.database.delete(view.to_string()).map_err(|error| self.failed(error))?;
            self.database.flush_wal(true).map_err(|error| self.failed(error))?;
            self.database.drop_cf(&family(view, state.generation)).map_err(|error| self.failed(error))?;
            // Who has come to it before finds nothing.
            *state = DiskView { generation: FORGOTTEN, ..DiskView::default() };
            *self.options_of(view).1.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
