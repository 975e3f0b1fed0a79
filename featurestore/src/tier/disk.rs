//! The disk tier: RocksDB, one column family per generation of a view version.
//!
//! A view's mark lies in the default column family and is written in the same batch as the rows, so a crash leaves
//! both or neither. Whole loads go into a new column family through sorted files built outside and ingested; the mark
//! then names the new generation, and the old family is dropped.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use rocksdb::{
    ColumnFamilyDescriptor, DBWithThreadMode, DEFAULT_COLUMN_FAMILY_NAME, IngestExternalFileOptions, MultiThreaded,
    Options, SstFileWriter, WriteBatch,
};
use serde::{Deserialize, Serialize};

use super::{
    EachRow, EntityRead, Generation, KeyedRow, Mark, OnlineTier, ViewRead, merge_rows, rocksdb_tuning as tuning,
};
use crate::definition::{Pinned, Version};
use crate::encoding::{is_chunk, merge_values};
use crate::{Error, Result};

type Database = DBWithThreadMode<MultiThreaded>;

/// Rows of a load held in memory before they become a sorted file.
const SORT_BUFFER_BYTES: usize = 64 << 20;

/// What people can do about a folder that RocksDB does not read.
const REBUILD: &str = "delete the folder: it is rebuilt from object storage, and nothing is lost";

/// RocksDB in a folder that one process owns.
#[derive(Debug)]
pub struct DiskTier {
    database: Database,
    folder: PathBuf,
    view_options: Options2,
    views: RwLock<HashMap<Pinned, Arc<RwLock<DiskView>>>>,
}

/// [`Options`] with a `Debug` that prints nothing of it.
struct Options2(Options);

impl std::fmt::Debug for Options2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Options")
    }
}

/// A view's record in the default column family.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct DiskView {
    generation: u64,
    mark: Mark,
    /// How its rows are packed: what was packed otherwise is loaded anew.
    #[serde(default)]
    layout: u32,
}

/// Grows when rows or chunks are packed otherwise.
const LAYOUT: u32 = 1;

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
        let descriptors = families.iter().map(|name| ColumnFamilyDescriptor::new(name, tuning::view(&cache)));
        let database =
            Database::open_cf_descriptors(&options, folder, descriptors).map_err(|error| open_error(folder, error))?;
        let tier = Self {
            database,
            folder: folder.to_owned(),
            view_options: Options2(tuning::view(&cache)),
            views: RwLock::default(),
        };
        tier.read_records(&families)?;
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
            if record.layout == LAYOUT {
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
            self.database.create_cf(&name, &self.view_options.0).map_err(|error| self.failed(error))?;
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
        let record = DiskView { generation: state.generation, mark, layout: LAYOUT };
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
        self.database.create_cf(&name, &self.view_options.0).map_err(|error| self.failed(error))?;
        Ok(Box::new(DiskGeneration {
            tier: self,
            view: view.clone(),
            slot,
            generation,
            buffer: BTreeMap::new(),
            buffered: 0,
            again: BTreeMap::new(),
            again_bytes: 0,
            last: None,
            files: 0,
            overlap: false,
        }))
    }

    fn forget(&self, view: &Pinned) -> Result<()> {
        let slot = self.views.write().unwrap_or_else(PoisonError::into_inner).remove(view);
        if let Some(slot) = slot {
            let state = slot.write().unwrap_or_else(PoisonError::into_inner);
            self.database.delete(view.to_string()).map_err(|error| self.failed(error))?;
            self.database.drop_cf(&family(view, state.generation)).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }
}

/// A load: rows are sorted in memory by buffers, written as files, and ingested into the new family.
///
/// Where rows come in order of keys, as those of one data file do, the files do not overlap. The few keys that come again
/// at their borders are merged in the end; where many do, files of merge operands are, by a compaction.
struct DiskGeneration<'a> {
    tier: &'a DiskTier,
    view: Pinned,
    slot: Arc<RwLock<DiskView>>,
    generation: u64,
    buffer: BTreeMap<Bytes, Bytes>,
    buffered: usize,
    /// Rows of keys that are not after those in files.
    again: BTreeMap<Bytes, Bytes>,
    again_bytes: usize,
    /// The greatest key in files.
    last: Option<Bytes>,
    files: usize,
    /// Whether files overlap.
    overlap: bool,
}

impl DiskGeneration<'_> {
    /// Writes the buffer as a sorted file, but for the keys that are not after those of the files before.
    fn flush(&mut self) -> Result<()> {
        let mut rows = std::mem::take(&mut self.buffer);
        self.buffered = 0;
        if let Some(last) = &self.last {
            let after = rows.split_off(last);
            let again = std::mem::replace(&mut rows, after).into_iter().chain(rows.remove_entry(last));
            let again: Vec<KeyedRow> = again.collect();
            self.again_bytes += again.iter().map(|(key, row)| key.len() + row.len()).sum::<usize>();
            merge_rows(&mut self.again, again)?;
        }
        self.last = rows.last_key_value().map(|(key, _)| key.clone()).or(self.last.take());
        self.ingest(rows, false)?;
        if self.again_bytes >= SORT_BUFFER_BYTES { self.flush_again() } else { Ok(()) }
    }

    /// Writes rows of keys that came again as a file of merge operands.
    fn flush_again(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.again);
        self.again_bytes = 0;
        self.overlap |= !rows.is_empty();
        self.ingest(rows, true)
    }

    /// Writes rows as a file, as values or as merge operands, and ingests it.
    fn ingest(&mut self, rows: BTreeMap<Bytes, Bytes>, merged: bool) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let path = self.tier.folder.join(format!("load-{}-{}.sst", self.view, self.files));
        self.write_file(&path, rows, merged).map_err(|error| self.tier.failed(error))?;
        let handle = self.tier.family_handle(&family(&self.view, self.generation))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let ingested = self.tier.database.ingest_external_file_cf_opts(&handle, &options, vec![&path]);
        ingested.map_err(|error| self.tier.failed(error))?;
        self.files += 1;
        Ok(())
    }

    fn write_file(&self, path: &Path, rows: BTreeMap<Bytes, Bytes>, merged: bool) -> Result<(), rocksdb::Error> {
        let mut writer = SstFileWriter::create(&self.tier.view_options.0);
        writer.open(path)?;
        for (key, row) in rows {
            if merged {
                writer.merge(key, row)?;
            } else {
                writer.put(key, row)?;
            }
        }
        writer.finish()
    }

    /// Merges the few keys that came again into what files hold of them.
    fn merge_again(&mut self, name: &str) -> Result<()> {
        let handle = self.tier.family_handle(name)?;
        let mut batch = WriteBatch::default();
        for (key, row) in std::mem::take(&mut self.again) {
            let held = self.tier.database.get_pinned_cf(&handle, &key).map_err(|error| self.tier.failed(error))?;
            let merged = held.map_or(Ok(row.clone()), |held| merge_values(&held, &row))?;
            batch.put_cf(&handle, key, merged);
        }
        self.tier.database.write(batch).map_err(|error| self.tier.failed(error))
    }
}

impl Generation for DiskGeneration<'_> {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        self.buffered += rows.iter().map(|(key, row)| key.len() + row.len()).sum::<usize>();
        merge_rows(&mut self.buffer, rows)?;
        if self.buffered >= SORT_BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<()> {
        self.flush()?;
        let name = family(&self.view, self.generation);
        if !self.overlap {
            return self.merge_again(&name);
        }
        self.flush_again()?;
        self.tier.database.compact_range_cf(&self.tier.family_handle(&name)?, None::<&[u8]>, None::<&[u8]>);
        self.overlap = false;
        Ok(())
    }

    fn finish(mut self: Box<Self>, mark: Mark) -> Result<()> {
        self.settle()?;
        let tier = self.tier;
        let old = {
            let mut state = self.slot.write().unwrap_or_else(PoisonError::into_inner);
            let record = DiskView { generation: self.generation, mark, layout: LAYOUT };
            let bytes = record_bytes(&record)?;
            tier.database.put(self.view.to_string(), bytes).map_err(|error| tier.failed(error))?;
            let old = family(&self.view, state.generation);
            *state = record;
            old
        };
        tier.database.drop_cf(&old).map_err(|error| tier.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::conformance;

    #[test]
    fn the_disk_tier_keeps_the_contract() {
        let folder = tempfile::tempdir().expect("a folder");
        conformance::run(|name| Box::new(DiskTier::open(&folder.path().join(name)).expect("a new folder")));
    }

    #[test]
    fn what_was_applied_is_there_after_reopening() {
        let folder = tempfile::tempdir().expect("a folder");
        let view = conformance::view("kept");
        let mark = Mark::of_commit(3, None);
        let tier = DiskTier::open(folder.path()).expect("a new folder");
        tier.apply(&view, conformance::rows(&[("a", "1")]), mark).expect("writable");
        drop(tier);
        let tier = DiskTier::open(folder.path()).expect("reopened");
        let read = tier.read(&view, &[b"a"]).expect("readable");
        assert_eq!((read.rows[0].as_deref(), read.mark), (Some(b"1".as_slice()), mark));
    }

    #[test]
    fn a_load_of_several_files_keeps_the_newest_row_of_each_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let view = conformance::view("large");
        let tier = DiskTier::open(folder.path()).expect("a new folder");
        let mut generation = tier.begin_generation(&view).expect("begun");
        // Three passes over the same keys, more bytes together than one buffer takes; the second pass is the newest.
        let (keys, width) = (2_000_u32, 16 << 10);
        for pass in [1_u8, 3, 2] {
            for key in 0..keys {
                let row = Bytes::from(vec![pass; width]);
                generation.add(vec![(Bytes::copy_from_slice(&key.to_be_bytes()), row)]).expect("writable");
            }
        }
        generation.finish(Mark::of_commit(1, None)).expect("ingested");
        for key in [0, 7, keys - 1] {
            let read = tier.read(&view, &[&key.to_be_bytes()]).expect("readable");
            assert_eq!(read.rows[0].as_ref().map(|row| (row[0], row.len())), Some((3, width)));
        }
        let left = std::fs::read_dir(folder.path()).expect("readable").filter_map(Result::ok);
        assert_eq!(left.filter(|file| file.file_name().to_string_lossy().starts_with("load-")).count(), 0);
    }

    #[test]
    fn a_load_in_order_of_keys_merges_those_that_come_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let view = conformance::view("ordered");
        let tier = DiskTier::open(folder.path()).expect("a new folder");
        let mut generation = tier.begin_generation(&view).expect("begun");
        // As many bytes as three buffers take; a key comes again soon after, in the same buffer or in the next one.
        let (keys, width) = (12_000_u32, 16 << 10);
        let row = |value: u8| Bytes::from(vec![value; width]);
        for key in 0..keys {
            let again = key.saturating_sub(3);
            let of = |key: u32, value| (Bytes::copy_from_slice(&key.to_be_bytes()), row(value));
            generation.add(vec![of(key, 1), of(again, if again % 2 == 0 { 2 } else { 0 })]).expect("writable");
        }
        generation.finish(Mark::of_commit(1, None)).expect("ingested");
        for key in 0..keys - 3 {
            let read = tier.read(&view, &[&key.to_be_bytes()]).expect("readable");
            let expected = if key % 2 == 0 { 2 } else { 1 };
            assert_eq!(read.rows[0].as_ref().map(|row| (row[0], row.len())), Some((expected, width)), "key {key}");
        }
    }

    #[test]
    fn a_folder_in_use_and_a_damaged_one_are_named_with_the_remedy() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = DiskTier::open(folder.path()).expect("a new folder");
        let error = DiskTier::open(folder.path()).expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        drop(tier);
        std::fs::write(folder.path().join("CURRENT"), "MANIFEST-999999\n").expect("writable");
        let error = DiskTier::open(folder.path()).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("delete the folder"), "{error}");
    }
}
