//! A log of numbered, immutable, checksummed records on object storage.
//!
//! Record `7` of the log below `catalog/` is the object `catalog/000000000007.json`: a line
//! `{"sha256":"..."}` with the digest of the rest, then the record as indented JSON, readable with `cat` and `jq`.

use std::marker::PhantomData;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::commit::FORMAT;
use crate::definition::hex;
use crate::object_storage::{NotPut, put_once};
use crate::{Error, ErrorKind, Result};

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
    /// Nothing is listed: a log grows for years, and who follows it asks for the next record. The end is where two in a row are
    /// missing, so that a single one that is lost is seen; more are by [`Self::read_after_as_told`], [`Self::check_end`] and
    /// [`Self::verify`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for a record that does not match its checksum, or a gap in the numbers.
    pub async fn read_after(&self, number: u64) -> Result<Vec<(u64, T)>> {
        self.read_some_after(number, usize::MAX).await
    }

    /// The first of them: all, where there are fewer than `enough`, and else about as many.
    ///
    /// # Errors
    /// As [`Self::read_after`].
    pub async fn read_some_after(&self, number: u64, enough: usize) -> Result<Vec<(u64, T)>> {
        let (mut records, mut next, mut at_once) = (Vec::new(), number + 1, 2);
        loop {
            if records.len() >= enough {
                return Ok(records);
            }
            let numbers = next..next + at_once;
            let asked =
                stream::iter(numbers).map(|number| async move { Ok::<_, Error>((number, self.read(number).await?)) });
            let mut asked = std::pin::pin!(asked.buffered(READ_AT_ONCE));
            let mut missing = None;
            while let Some((number, record)) = asked.try_next().await? {
                match (record, missing) {
                    (Some(record), None) => records.push((number, record)),
                    (None, None) => missing = Some(number),
                    (None, Some(_)) => return Ok(records),
                    (Some(_), Some(missing)) => {
                        if self.read(missing).await?.is_none() {
                            return Err(self.gap(missing, number));
                        }
                        // Others have written both between these reads.
                        break;
                    }
                }
            }
            next = missing.unwrap_or(next + at_once);
            at_once = if missing.is_some() { 2 } else { (2 * at_once).min(READ_AT_ONCE as u64) };
        }
    }

    /// The same of a log of which somebody has told before that it has a record `told`: then it has all up to that one, however
    /// many of them are lost.
    ///
    /// # Errors
    /// As [`Self::read_after`].
    pub async fn read_after_as_told(&self, number: u64, told: Option<u64>) -> Result<Vec<(u64, T)>> {
        let records = self.read_after(number).await?;
        let last = records.last().map_or(number, |(number, _)| *number);
        match told.filter(|told| *told > last) {
            Some(told) => Err(self.gap(last + 1, told)),
            None => Ok(records),
        }
    }

    /// Makes sure that the log ends with a number, or that others have gone on from it, before something is appended that could
    /// be taken for a record that was lost: what the store lists tells of a gap of any length.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for a gap, [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn check_end(&self, number: u64) -> Result<()> {
        let listed = self.store.list_with_offset(Some(&self.prefix), &self.path(number));
        let beyond = listed.try_filter_map(async |object| Ok(number_of(&object.location)));
        let least =
            beyond.try_fold(None, async |least: Option<u64>, of| Ok(Some(least.map_or(of, |least| least.min(of)))));
        match least.await?.filter(|least| *least > number + 1) {
            // Others may have written it meanwhile.
            Some(found) if self.read(number + 1).await?.is_none() => Err(self.gap(number + 1, found)),
            _ => Ok(()),
        }
    }

    /// The numbers of all records, least first, as the store lists them: for who looks at the whole log.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn numbers(&self) -> Result<Vec<u64>> {
        let listed = self.store.list(Some(&self.prefix));
        let mut numbers: Vec<u64> =
            listed.try_filter_map(async |object| Ok(number_of(&object.location))).try_collect().await?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads every record. Returns how many there are and what is wrong with them: those that are missing, and those that do not
    /// match their checksums.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn verify(&self) -> Result<(u64, Vec<Error>)> {
        let numbers = self.numbers().await?;
        let (mut wrong, mut expected) = (Vec::new(), 1);
        for number in &numbers {
            if *number != expected {
                wrong.push(self.gap(expected, *number));
            }
            expected = number + 1;
        }
        let read = stream::iter(numbers.iter().copied()).map(|number| self.read(number)).buffered(READ_AT_ONCE);
        let mut read = std::pin::pin!(read);
        while let Some(record) = read.next().await {
            match record {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Damaged => wrong.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((numbers.len() as u64, wrong))
    }

    /// Where the record of a number lies.
    pub fn path(&self, number: u64) -> Path {
        self.prefix.clone().join(format!("{number:012}.json"))
    }

    fn gap(&self, missing: u64, found: u64) -> Error {
        Error::damaged("a commit is missing from the log")
            .with("path", self.path(missing))
            .with("the log goes on to", self.path(found))
            .remedy(
                "restore the object, and those between, from a backup of the store: springhouse check names all that are \
                 missing; nothing is written until then, so that nothing takes their place",
            )
    }

    /// The record of a number, if there is one.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when it does not match its checksum, [`crate::ErrorKind::Newer`] when a newer release
    /// wrote it.
    pub async fn read(&self, number: u64) -> Result<Option<T>> {
        let path = self.path(number);
        let bytes = match self.store.get(&path).await {
            Ok(object) => object.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let record = from_checked(&bytes).map_err(|error| {
            let error = error.with("path", &path);
            match error.kind() {
                ErrorKind::Damaged => {
                    error.remedy("restore the object from a backup of the store; nothing after it was read")
                }
                _ => error,
            }
        });
        record.map(Some)
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
    // Its bytes are those that were written: what cannot be read in them, another release has put there.
    let newer = || {
        Error::newer("a commit was written by a newer release of springhouse")
            .with("this release", env!("CARGO_PKG_VERSION"))
            .remedy("upgrade this program; until then it goes on with what it has read before")
    };
    if serde_json::from_slice::<Told>(body).is_ok_and(|told| told.format > FORMAT) {
        return Err(newer());
    }
    serde_json::from_slice(body).map_err(|error| newer().source(error))
}

/// What a record says of itself, whatever else it says; most kinds of record say nothing.
#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    format: u32,
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
    async fn a_commit_of_a_newer_release_asks_for_an_upgrade_and_is_never_called_damaged() {
        let (store, log) = log();
        log.append(1, &"known".to_owned()).await.expect("empty log");
        let newer =
            [serde_json::json!({"format": FORMAT + 1}), serde_json::json!({"change": "of a kind of the future"})];
        for record in newer {
            store.put(&log.path(2), to_checked(&record).expect("writable").into()).await.expect("writable");
            let error = log.read_after(0).await.expect_err("not a text");
            assert_eq!(error.kind(), ErrorKind::Newer);
            assert!(error.to_string().contains("upgrade") && error.to_string().contains("000000000002"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_log_of_any_length_is_read_whole_and_from_anywhere() {
        let (_, log) = log();
        for length in 1..=70 {
            log.append(length, &length.to_string()).await.expect("new number");
            for after in [0, length / 2, length - 1, length, length + 1] {
                let numbers: Vec<u64> =
                    log.read_after(after).await.expect("no gap").iter().map(|(of, _)| *of).collect();
                assert_eq!(numbers, (after + 1..=length).collect::<Vec<_>>());
            }
        }
        assert_eq!(log.numbers().await.expect("lists"), (1..=70).collect::<Vec<_>>());
        assert_eq!(log.read(71).await.expect("none"), None);
    }

    #[tokio::test]
    async fn any_number_of_lost_records_is_named_before_anything_takes_their_place() {
        let (store, log) = log();
        for number in 1..=9 {
            log.append(number, &number.to_string()).await.expect("new number");
        }
        assert_eq!(log.read_after_as_told(7, Some(9)).await.expect("all there").len(), 2);
        assert_eq!(log.read_after_as_told(7, Some(3)).await.expect("told long ago").len(), 2);
        log.check_end(9).await.expect("the end");
        log.check_end(4).await.expect("others went on");
        for number in 4..=6 {
            store.delete(&log.path(number)).await.expect("there");
        }
        assert_eq!(log.read_after(0).await.expect("taken for the end").len(), 3);
        let told = log.read_after_as_told(0, Some(9)).await.expect_err("lost");
        for error in [told, log.check_end(3).await.expect_err("lost")] {
            assert_eq!(error.kind(), ErrorKind::Damaged);
            assert!(error.to_string().contains("log/000000000004.json"), "{error}");
        }
        for number in 7..=9 {
            store.delete(&log.path(number)).await.expect("there");
        }
        assert!(log.read_after_as_told(0, Some(9)).await.is_err(), "the newest are lost too");
    }

    #[tokio::test]
    async fn a_gap_is_named_and_only_what_is_new_is_read() {
        let (_, log) = log();
        for number in [1, 2, 4] {
            log.append(number, &number.to_string()).await.expect("new number");
        }
        assert_eq!(log.read_after(3).await.expect("no gap after 3"), vec![(4, "4".to_owned())]);
        let (records, wrong) = log.verify().await.expect("readable");
        assert!(records == 3 && wrong.len() == 1 && wrong[0].to_string().contains("000000000003"), "{wrong:?}");
        let error = log.read_after(1).await.expect_err("3 is missing");
        assert!(error.to_string().contains("000000000003"), "{error}");
    }
}
