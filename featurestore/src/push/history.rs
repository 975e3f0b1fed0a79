//! Pushed events on object storage, beside the history that sources read: Parquet files and a log of commits.
//!
//! ```text
//! pushes/log/000000000003.json                   commit: up to which position, files and watermarks by source
//! pushes/state/000000000064.json                 checkpoint: what the commits up to this one add up to
//! pushes/data/departures/000000000003.parquet
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use parquet::arrow::async_writer::AsyncArrowWriter;
use serde::{Deserialize, Serialize};

use super::PushedEvents;
use crate::catalog::{Checkpoints, CommitLog};
use crate::tier::DataFile;
use crate::time::Timestamp;
use crate::{Error, Result};

/// One flush of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushCommit {
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// The position up to which pushes are on object storage.
    pub until: u64,
    /// How far each source's producers have got.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// The events that it adds, by source.
    pub files: BTreeMap<String, Vec<DataFile>>,
}

/// All flushes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushHistoryState {
    /// The newest commit's number; 0 before the first.
    pub number: u64,
    /// The position up to which pushes are on object storage.
    pub until: u64,
    /// How far each source's producers have got.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// All pushed events by source.
    pub files: BTreeMap<String, Vec<DataFile>>,
}

impl PushHistoryState {
    fn apply(&mut self, number: u64, commit: PushCommit) {
        self.number = number;
        self.until = commit.until;
        self.watermarks.extend(commit.watermarks);
        for (source, files) in commit.files {
            self.files.entry(source).or_default().extend(files);
        }
    }

    /// Whether events of a source have been pushed.
    pub fn knows(&self, source: &str) -> bool {
        self.files.contains_key(source) || self.watermarks.contains_key(source)
    }

    /// The pushed events.
    pub fn events(&self) -> PushedEvents {
        PushedEvents { files: self.files.clone(), batches: BTreeMap::new() }
    }
}

/// The flushes on an object store.
#[derive(Debug, Clone)]
pub struct PushHistory {
    store: Arc<dyn ObjectStore>,
    log: CommitLog<PushCommit>,
    checkpoints: Checkpoints<PushHistoryState>,
}

impl PushHistory {
    /// The history on a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        let log = CommitLog::new(Arc::clone(&store), Path::from_iter(["pushes", "log"]));
        let checkpoints = Checkpoints::new(Arc::clone(&store), Path::from_iter(["pushes", "state"]));
        Self { store, log, checkpoints }
    }

    /// The state after the newest commit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a damaged commit.
    pub async fn state(&self) -> Result<PushHistoryState> {
        let mut state = self.checkpoints.newest().await?.unwrap_or_default();
        for (number, commit) in self.log.read_after(state.number).await? {
            state.apply(number, commit);
        }
        Ok(state)
    }

    /// The state after the flush that took the log to `position`, or beyond it where one flush did both.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn state_at(&self, position: u64) -> Result<PushHistoryState> {
        let mut state = PushHistoryState::default();
        for (number, commit) in self.log.read_after(0).await? {
            if state.until >= position {
                break;
            }
            state.apply(number, commit);
        }
        Ok(state)
    }

    /// Writes the commit that follows `state`, and the files of its events.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when another process flushes to the same store, [`crate::ErrorKind::Unavailable`].
    pub async fn commit(
        &self,
        state: &mut PushHistoryState,
        at: Timestamp,
        until: u64,
        watermarks: BTreeMap<String, Timestamp>,
        events: &PushedEvents,
    ) -> Result<()> {
        let number = state.number + 1;
        let mut files = BTreeMap::new();
        for (source, batches) in &events.batches {
            files.insert(source.clone(), vec![self.write(source, number, batches).await?]);
        }
        let commit = PushCommit { at, until, watermarks, files };
        self.log
            .append(number, &commit)
            .await
            .map_err(|error| error.remedy("one process alone may take pushes for a store: push to that one"))?;
        state.apply(number, commit);
        self.checkpoints.write(number, state).await;
        Ok(())
    }

    async fn write(&self, source: &str, number: u64, batches: &[RecordBatch]) -> Result<DataFile> {
        let path = Path::from_iter(["pushes", "data", source, &format!("{number:012}.parquet")]);
        let failed = |error: parquet::errors::ParquetError| {
            Error::unavailable("pushed events cannot be written").with("path", &path).source(error)
        };
        let schema = batches[0].schema();
        let object = BufWriter::new(Arc::clone(&self.store), path.clone());
        let properties = crate::parquet_file::properties(&schema).build();
        let mut writer = AsyncArrowWriter::try_new(object, schema, Some(properties)).map_err(failed)?;
        let mut rows = 0;
        for batch in batches {
            rows += batch.num_rows() as u64;
            writer.write(batch).await.map_err(failed)?;
        }
        writer.finish().await.map_err(failed)?;
        let (path, bytes) = (path.to_string(), writer.bytes_written() as u64);
        Ok(DataFile { path, rows, bytes, fingerprint: None, event_times: None, commit: None })
    }
}
