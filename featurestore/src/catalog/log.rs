//! A log of numbered, immutable, checksummed records on object storage.
//!
//! Record `7` of the log below `catalog/` is the object `catalog/000000000007.json`: a line
//! `{"sha256":"..."}` with the digest of the rest, then the record as indented JSON, readable with `cat` and `jq`.

use std::marker::PhantomData;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::definition::hex;
use crate::object_storage::{NotPut, put_once};
use crate::{Error, Result};

/// Records that are read at once.
const READ_AT_ONCE: usize = 16;

/// A log of `T` below a prefix. Numbers begin at 1 and have no gaps.
#[derive(Debug)]
pub struct CommitLog<T> {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    records: PhantomData<fn() -> T>,
}

impl<T> Clone for CommitLog<T> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), prefix: self.prefix.clone(), records: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> CommitLog<T> {
    /// The log below `prefix`.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix, records: PhantomData }
    }

    /// All records after `number`, oldest first.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for a record that does not match its checksum, or a gap in the numbers.
    pub async fn read_after(&self, number: u64) -> Result<Vec<(u64, T)>> {
        let mut numbers: Vec<u64> = self
            .store
            .list_with_offset(Some(&self.prefix), &self.path(number))
            .try_filter_map(async |object| Ok(number_of(&object.location)))
            .try_collect()
            .await?;
        numbers.sort_unstable();
        for (found, expected) in numbers.iter().zip(number + 1..) {
            if *found != expected {
                return Err(Error::damaged("a commit is missing from the log")
                    .with("path", self.path(expected))
                    .with("next found", self.path(*found))
                    .remedy("restore the object from a backup of the store"));
            }
        }
        let records = stream::iter(numbers).map(|number| async move { Ok((number, self.read(number).await?)) });
        records.buffered(READ_AT_ONCE).try_collect().await
    }

    async fn read(&self, number: u64) -> Result<T> {
        let path = self.path(number);
        let bytes = self.store.get(&path).await?.bytes().await?;
        from_checked(&bytes).map_err(|error| {
            error.with("path", &path).remedy("restore the object from a backup of the store; nothing after it was read")
        })
    }

    /// Writes record `number`, which must be the next one. A record that is there already and is the same is this one: what
    /// two writers could both write without meaning the same must name its writer.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when another record is there: another writer came first. After
    /// [`crate::ErrorKind::Unavailable`] it may be there later all the same.
    pub async fn append(&self, number: u64, record: &T) -> Result<()> {
        let path = self.path(number);
        put_once(&self.store, &path, to_checked(record)?.into()).await.map_err(|error| match error {
            NotPut::Taken(error) => Error::conflict("another writer has committed first")
                .with("path", &path)
                .remedy("read the new state and try again")
                .source(error),
            NotPut::Failed(error) => error,
        })
    }

    fn path(&self, number: u64) -> Path {
        self.prefix.clone().join(format!("{number:012}.json"))
    }
}

/// A record as JSON below the line of its checksum.
pub(super) fn to_checked(record: &impl Serialize) -> Result<Vec<u8>> {
    let body = serde_json::to_vec_pretty(record)
        .map_err(|error| Error::internal("a commit cannot be written as JSON").source(error))?;
    let mut bytes = checksum_line(&body).into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The record of such bytes.
pub(super) fn from_checked<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let damaged = |what: &str| Error::damaged(format!("a commit is damaged: {what}"));
    let split = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged("it has no checksum line"))?;
    let (head, body) = (&bytes[..split], &bytes[split + 1..]);
    if head != checksum_line(body).as_bytes() {
        return Err(damaged("its bytes do not match its checksum"));
    }
    serde_json::from_slice(body).map_err(|error| damaged("it is not a commit of this format").source(error))
}

fn checksum_line(body: &[u8]) -> String {
    format!("{{\"sha256\":\"{}\"}}", hex(&Sha256::digest(body)))
}

/// The number of a record's path.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    path.filename()?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::ErrorKind;

    fn log() -> (Arc<dyn ObjectStore>, CommitLog<String>) {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        (Arc::clone(&store), CommitLog::new(store, Path::from("log")))
    }

    #[tokio::test]
    async fn of_two_writers_of_one_number_exactly_one_wins() {
        let (_, log) = log();
        log.append(1, &"first".to_owned()).await.expect("empty log");
        let error = log.append(1, &"second".to_owned()).await.expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(log.read_after(0).await.expect("readable"), vec![(1, "first".to_owned())]);
    }

    #[tokio::test]
    async fn a_damaged_commit_is_named() {
        let (store, log) = log();
        log.append(1, &"whole".to_owned()).await.expect("empty log");
        let path = Path::from("log/000000000001.json");
        let mut bytes = store.get(&path).await.expect("there").bytes().await.expect("readable").to_vec();
        *bytes.last_mut().expect("not empty") ^= 1;
        store.put(&path, bytes.into()).await.expect("writable");
        let error = log.read_after(0).await.expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("log/000000000001.json"), "{error}");
    }

    #[tokio::test]
    async fn a_gap_is_named_and_only_what_is_new_is_read() {
        let (_, log) = log();
        for number in [1, 2, 4] {
            log.append(number, &number.to_string()).await.expect("new number");
        }
        assert_eq!(log.read_after(3).await.expect("no gap after 3"), vec![(4, "4".to_owned())]);
        let error = log.read_after(1).await.expect_err("3 is missing");
        assert!(error.to_string().contains("000000000003"), "{error}");
    }
}
