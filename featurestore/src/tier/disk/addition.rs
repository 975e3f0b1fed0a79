//! Many rows that are added to those of a view on disk, in one step with the mark.
//!
//! Rows are sorted in memory by buffers and written as files of merge operands: a packed row that is given again changes
//! nothing, but a chunk of tiles counts each time that it is merged. So rows and mark may not come apart: the files, and one
//! that holds the mark under the empty key (which is no entity's), are ingested in one step, which RocksDB does as a whole or
//! not at all. When the tier is opened, a mark that an ingestion brought and that is later than the one in the default column
//! family counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use rocksdb::IngestExternalFileOptions;

use super::{DiskTier, DiskView, FORGOTTEN, LOAD_FILES, SORT_BUFFER_BYTES, family, record_bytes};
use crate::definition::Pinned;
use crate::tier::{Generation, KeyedRow, Mark, merge_rows};
use crate::{Error, Result};

/// The key of the mark in a view's family.
const MARK: &[u8] = b"";

/// An addition that nobody sees yet.
pub(super) struct DiskAddition<'a> {
    tier: &'a DiskTier,
    view: Pinned,
    slot: Arc<RwLock<DiskView>>,
    buffer: BTreeMap<Bytes, Bytes>,
    buffered: usize,
    files: Vec<PathBuf>,
}

impl<'a> DiskAddition<'a> {
    /// Of no rows yet.
    pub(super) fn new(tier: &'a DiskTier, view: &Pinned, slot: Arc<RwLock<DiskView>>) -> Self {
        Self { tier, view: view.clone(), slot, buffer: BTreeMap::new(), buffered: 0, files: Vec::new() }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.buffer);
        self.buffered = 0;
        if rows.is_empty() { Ok(()) } else { self.write(rows, true) }
    }

    fn write(&mut self, rows: BTreeMap<Bytes, Bytes>, merged: bool) -> Result<()> {
        let path = self.tier.folder.join(format!("{LOAD_FILES}more-{}-{}.sst", self.view, self.files.len()));
        self.files.push(path.clone());
        self.tier.write_file(&path, rows, merged)
    }
}

impl Generation for DiskAddition<'_> {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        self.buffered += rows.iter().map(|(key, row)| key.len() + row.len()).sum::<usize>();
        merge_rows(&mut self.buffer, rows)?;
        if self.buffered >= SORT_BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<()> {
        self.flush()
    }

    fn finish(mut self: Box<Self>, mark: Mark) -> Result<()> {
        self.settle()?;
        let (tier, slot) = (self.tier, Arc::clone(&self.slot));
        let failed = |error| tier.failed(error);
        let mut state = slot.write().unwrap_or_else(PoisonError::into_inner);
        if state.generation == FORGOTTEN {
            return Err(Error::conflict("the view was forgotten meanwhile").with("view", &self.view));
        }
        let record = DiskView { mark, ..*state };
        let bytes = record_bytes(&record)?;
        self.write(BTreeMap::from([(Bytes::from_static(MARK), Bytes::from(bytes.clone()))]), false)?;
        let handle = tier.family_handle(&family(&self.view, state.generation))?;
        // What was written before is as durable as what is ingested: after a power cut the mark must not be ahead of it.
        tier.database.flush_wal(true).map_err(failed)?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let files = self.files.iter().collect();
        tier.database.ingest_external_file_cf_opts(&handle, &options, files).map_err(failed)?;
        *state = record;
        tier.database.put(self.view.to_string(), bytes).map_err(failed)
    }
}

impl Drop for DiskAddition<'_> {
    /// Those that were ingested are gone from here.
    fn drop(&mut self) {
        for path in self.files.iter().filter(|path| path.exists()) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "what is left of a load cannot be removed");
            }
        }
    }
}

impl DiskTier {
    /// A view's record, with the mark of an addition whose process died right after it.
    pub(super) fn with_added(&self, view: &Pinned, record: DiskView) -> Result<DiskView> {
        let Some(handle) = self.database.cf_handle(&family(view, record.generation)) else { return Ok(record) };
        let Some(bytes) = self.database.get_cf(&handle, MARK).map_err(|error| self.failed(error))? else {
            return Ok(record);
        };
        let added: DiskView = serde_json::from_slice(&bytes).map_err(|error| {
            Error::damaged("a mark of the disk tier is not readable")
                .with("folder", self.folder.display())
                .with("view", view)
                .remedy(super::REBUILD)
                .source(error)
        })?;
        Ok(if added.mark.commit > record.mark.commit { DiskView { mark: added.mark, ..record } } else { record })
    }
}
