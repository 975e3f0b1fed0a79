//! Garbage on object storage: data files that no commit names.
//!
//! ```text
//! views/airport_weather/3f2a9c1d0b4e/garbage.json     files that were found unnamed, and when first
//! pushes/garbage.json
//! ```
//!
//! A crash before a commit leaves files, and a compaction or a backfill lets go of some that were named until then. A file is
//! removed when it is older than a grace time *and* was first found unnamed as long ago: who is still writing it has that long
//! to commit it, and who has begun to read it has that long to read on. So it takes two looks; what the first has found is kept
//! beside the files. When it is lost, they are found again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;

use crate::time::{Span, Timestamp};
use crate::{Error, Result};

/// What a look has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// The files that were removed,
    pub removed: usize,
    /// and their bytes.
    pub bytes: u64,
    /// Files that are unnamed and not for long enough.
    pub waiting: usize,
}

impl std::ops::AddAssign for Collected {
    fn add_assign(&mut self, other: Self) {
        self.removed += other.removed;
        self.bytes += other.bytes;
        self.waiting += other.waiting;
    }
}

/// A data file as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub written: Timestamp,
}

/// The data files below a folder, listed before anybody asks which of them are named: one that is committed meanwhile is.
#[derive(Debug)]
pub struct DataFolder {
    store: Arc<dyn ObjectStore>,
    found: Path,
    files: Vec<StoredFile>,
}

impl DataFolder {
    /// Lists the Parquet files of a folder whose data is in `data/`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn list(store: &Arc<dyn ObjectStore>, folder: &Path) -> Result<Self> {
        let data = folder.clone().join("data");
        let files = store.list(Some(&data)).try_filter_map(async |object| {
            let is_data = object.location.extension() == Some("parquet");
            Ok(is_data.then(|| StoredFile {
                path: object.location.to_string(),
                bytes: object.size,
                written: Timestamp::from_micros(object.last_modified.timestamp_micros()),
            }))
        });
        let files = files.try_collect().await?;
        Ok(Self { store: Arc::clone(store), found: folder.clone().join("garbage.json"), files })
    }

    /// The files.
    pub fn files(&self) -> &[StoredFile] {
        &self.files
    }

    /// Removes files that are not among `named`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails; what was not removed is found the next time.
    pub async fn collect(self, named: &HashSet<String>, grace: Span, now: Timestamp) -> Result<Collected> {
        let before = self.found_before().await?;
        let mut found = BTreeMap::new();
        let mut collected = Collected::default();
        for file in self.files.iter().filter(|file| !named.contains(&file.path)) {
            let since = before.get(&file.path).copied().unwrap_or(now);
            if now.since(since) >= grace && now.since(file.written) >= grace {
                match self.store.delete(&Path::from(file.path.as_str())).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                collected.removed += 1;
                collected.bytes += file.bytes;
            } else {
                found.insert(file.path.clone(), since);
                collected.waiting += 1;
            }
        }
        if found != before {
            let bytes = serde_json::to_vec(&found)
                .map_err(|error| Error::internal("what was found cannot be written as JSON").source(error))?;
            self.store.put(&self.found, bytes.into()).await?;
        }
        Ok(collected)
    }

    /// What earlier looks have found unnamed; nothing where that cannot be read.
    async fn found_before(&self) -> Result<BTreeMap<String, Timestamp>> {
        let bytes = match self.store.get(&self.found).await {
            Ok(object) => object.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(BTreeMap::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %self.found, %error, "what was found unnamed before is not readable: it is found again");
            BTreeMap::new()
        }))
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_file_is_removed_when_it_was_unnamed_for_the_grace_time_and_never_before() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = |name: &str| format!("views/v/1/data/{name}.parquet");
        for name in ["named", "left", "dropped"] {
            store.put(&Path::from(path(name)), "rows".into()).await.expect("writable");
        }
        let (now, day) = (crate::time::Clock::now(&crate::time::SystemClock), Span::from_secs(86_400));
        let collect = async |named: &[&str], now| {
            let named = named.iter().map(|name| path(name)).collect();
            DataFolder::list(&store, &Path::from("views/v/1"))
                .await
                .expect("lists")
                .collect(&named, day, now)
                .await
                .expect("collects")
        };
        let waiting = |waiting| Collected { waiting, ..Collected::default() };
        assert_eq!(collect(&["named", "dropped"], now).await, waiting(1), "it may be about to be committed");
        // Long after they were written one is let go of: who reads it has a day.
        let later = now + day + day;
        let removed = collect(&["named"], later).await;
        assert_eq!(removed, Collected { removed: 1, bytes: 4, waiting: 1 });
        assert_eq!(collect(&["named"], later + Span::from_secs(86_399)).await, waiting(1));
        assert_eq!(collect(&["named"], later + day).await, Collected { removed: 1, bytes: 4, waiting: 0 });
        let left = DataFolder::list(&store, &Path::from("views/v/1")).await.expect("lists");
        assert_eq!(left.files().iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), [path("named")]);
        // A clock that is set back removes nothing.
        assert_eq!(collect(&[], now - day).await, waiting(1));
    }
}
