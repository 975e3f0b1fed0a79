//! A whole load of a view on disk: a new column family, from sorted files.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use rocksdb::{IngestExternalFileOptions, WriteBatch};

use super::{DiskTier, DiskView, FORGOTTEN, SORT_BUFFER_BYTES, family, record_bytes};
use crate::definition::Pinned;
use crate::encoding::merge_values;
use crate::tier::{Generation, KeyedRow, Mark, merge_rows};
use crate::{Error, Result};

/// A load: rows are sorted in memory by buffers, written as files, and ingested into the new family.
///
/// Where rows come in order of keys, as those of one data file do, the files do not overlap. The few keys that come again
/// at their borders are merged in the end; where many do, files of merge operands are, by a compaction.
pub(super) struct DiskGeneration<'a> {
    tier: &'a DiskTier,
    view: Pinned,
    slot: Arc<RwLock<DiskView>>,
    generation: u64,
    /// Whether its family let go of what was past from the beginning.
    lets_go: bool,
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

impl<'a> DiskGeneration<'a> {
    /// Of no rows yet; its column family is there, and lets go of what is past or not.
    pub(super) fn new(
        tier: &'a DiskTier,
        view: &Pinned,
        slot: Arc<RwLock<DiskView>>,
        (generation, lets_go): (u64, bool),
    ) -> Self {
        Self {
            tier,
            view: view.clone(),
            slot,
            generation,
            lets_go,
            buffer: BTreeMap::new(),
            buffered: 0,
            again: BTreeMap::new(),
            again_bytes: 0,
            last: None,
            files: 0,
            overlap: false,
        }
    }

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
        self.tier.write_file(&path, rows, merged)?;
        let handle = self.tier.family_handle(&family(&self.view, self.generation))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let ingested = self.tier.database.ingest_external_file_cf_opts(&handle, &options, vec![&path]);
        ingested.map_err(|error| self.tier.failed(error))?;
        self.files += 1;
        Ok(())
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
            if state.generation == FORGOTTEN {
                // Its family goes when the view is loaded again, or the tier opened.
                return Err(Error::conflict("the view was forgotten meanwhile").with("view", &self.view));
            }
            // It has everything, unless its family let go of something meanwhile.
            let expired = state.expired.filter(|_| self.lets_go || tier.lets_go(&self.view));
            let record = DiskView { generation: self.generation, mark, expired, ..*state };
            let bytes = record_bytes(&record)?;
            tier.database.put(self.view.to_string(), bytes).map_err(|error| tier.failed(error))?;
            let old = family(&self.view, state.generation);
            *state = record;
            old
        };
        // The mark is on the disk before the rows that it no longer names go: a power cut leaves one of the two whole.
        tier.database.flush_wal(true).map_err(|error| tier.failed(error))?;
        tier.database.drop_cf(&old).map_err(|error| tier.failed(error))
    }
}
