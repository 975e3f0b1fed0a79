//! Check: whether everything that commits name is there and whole, and whether a disk tier has what object storage has.
//!
//! Of each log every record is read and compared with its checksum; of each data file that counts the size is compared with
//! what its commit tells, and in full its rows and their fingerprint. Of a disk tier a sample of keys is compared, with what all
//! files say of them. Of views that are in use it is seen whether they are ahead of the clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::encoding::{KeyCodec, ROW_HEADER_BYTES, is_chunk};
use springhouse_featurestore::object_storage::CutOffFile;
use springhouse_featurestore::push::PushHistory;
use springhouse_featurestore::tier::{
    DataFile, DataFolder, Expiry, Fingerprint, Mark, OnlineTier, Packer, ViewLog, data_schema, merge_rows,
    read_data_file,
};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, ErrorKind, Result};

use crate::Jobs;
use crate::push::CLOCK_TOLERANCE;

/// Keys of each view that are compared with the disk tier.
const SAMPLE: usize = 200;

/// A file that nobody has written to for so long is not being written any more: a put takes seconds.
const CUT_OFF_AFTER: Span = Span::from_secs(3_600);

/// What was looked at of one log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The catalog, the pushes, or a view as `name@version`.
    pub what: String,
    /// The records of its log.
    pub commits: u64,
    /// The data files that count,
    pub files: usize,
    /// and their rows.
    pub rows: u64,
    /// The keys that were compared with the disk tier; none where it was not opened, or is not where the log is.
    pub keys: Option<usize>,
    /// What is wrong, each with its place.
    pub wrong: Vec<String>,
    /// Files that were cut off while they were written: nothing is wrong with the rest, and `springhouse gc` removes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cut_off: Vec<String>,
}

impl Jobs {
    /// Checks the catalog, the flushed pushes and all view versions that have data; `full` reads every data file.
    ///
    /// # Errors
    /// Those of the store that make it impossible to go on; what is found wrong is in the answer.
    pub async fn check(
        &self,
        catalog: &CatalogState,
        tier: Option<&dyn OnlineTier>,
        full: bool,
    ) -> Result<Vec<Checked>> {
        let mut all = vec![self.check_catalog().await?, self.check_pushes(full).await?];
        all.extend(self.check_folder().await?);
        let live: BTreeSet<Pinned> = catalog.live_views().into_iter().map(FeatureView::pinned).collect();
        for view in catalog.all_views() {
            let mut checked = self.check_view(view, tier, full).await?;
            if checked.wrong.is_empty() && live.contains(&view.pinned()) {
                checked.wrong.extend(self.check_times(view).await?);
            }
            if checked.commits > 0 || !checked.wrong.is_empty() {
                all.push(checked);
            }
        }
        Ok(all)
    }

    async fn check_catalog(&self) -> Result<Checked> {
        let (commits, wrong) = self.catalog().log().verify().await?;
        Ok(Checked { what: "catalog".to_owned(), commits, wrong: told(&wrong), ..Checked::default() })
    }

    /// What lies in the store's folder that was being written when its process was killed.
    async fn check_folder(&self) -> Result<Option<Checked>> {
        let Some(folder) = self.folder() else { return Ok(None) };
        let files = CutOffFile::list(folder, CUT_OFF_AFTER, self.clock().now()).await?;
        let told = |file: &CutOffFile| {
            let (path, bytes, written) = (file.path.display(), file.bytes, file.written);
            format!(
                "{path}: {bytes} bytes, cut off at {written} while it was written; springhouse gc removes it after a day"
            )
        };
        let cut_off: Vec<String> = files.iter().map(told).collect();
        Ok((!cut_off.is_empty()).then(|| Checked { what: "folder".to_owned(), cut_off, ..Checked::default() }))
    }

    async fn check_pushes(&self, full: bool) -> Result<Checked> {
        let (commits, wrong) = self.pushed().log().verify().await?;
        let mut checked = Checked { what: "pushes".to_owned(), commits, wrong: told(&wrong), ..Checked::default() };
        if !checked.wrong.is_empty() {
            return Ok(checked);
        }
        let files: Vec<DataFile> = self.pushed().state().await?.files.into_values().flatten().collect();
        let listed = DataFolder::list(self.store(), &PushHistory::folder()).await?;
        check_sizes(&listed, &files, &mut checked);
        for file in files.iter().filter(|_| full) {
            checked.wrong.extend(self.check_rows(file, None).await.err().map(|error| error.chain()));
        }
        Ok(checked)
    }

    async fn check_view(&self, view: &FeatureView, tier: Option<&dyn OnlineTier>, full: bool) -> Result<Checked> {
        let log = self.log(view);
        let (commits, wrong) = log.log().verify().await?;
        let what = view.pinned().to_string();
        let mut checked = Checked { what, commits, wrong: told(&wrong), ..Checked::default() };
        if commits == 0 || !checked.wrong.is_empty() {
            return Ok(checked);
        }
        let state = match log.state().await {
            // The newest may be gone, which the others do not tell.
            Err(error) if error.kind() == ErrorKind::Damaged => {
                checked.wrong.push(error.chain());
                return Ok(checked);
            }
            state => state?,
        };
        let files: Vec<DataFile> = state.files.iter().map(|(_, file)| file.clone()).collect();
        let set_aside: Vec<DataFile> = state.set_aside.files.values().cloned().collect();
        let listed = DataFolder::list(self.store(), log.folder()).await?;
        check_sizes(&listed, &files, &mut checked);
        compare_sizes(&listed, &set_aside, &mut checked);
        for file in files.iter().filter(|_| full) {
            checked.wrong.extend(self.check_rows(file, Some(view)).await.err().map(|error| error.chain()));
        }
        for file in set_aside.iter().filter(|_| full) {
            checked.wrong.extend(self.check_rows(file, None).await.err().map(|error| error.chain()));
        }
        let at = Mark::of_commit(state.number, state.watermark);
        if let Some(tier) = tier.filter(|_| checked.wrong.is_empty()) {
            let mark = tier.mark(&view.pinned())?;
            // Pushes that are not flushed yet are in the tier alone.
            if mark.commit == at.commit && mark.pushed <= state.pushed {
                self.check_tier(view, &log, &state.files, tier, &mut checked).await?;
            }
        }
        Ok(checked)
    }

    /// Whether a view says that it has seen more than there can be: a clock was ahead when it was refreshed, and has been set
    /// back since. Until the clock comes there the view takes in nothing new, and says that it is fresh.
    async fn check_times(&self, view: &FeatureView) -> Result<Option<String>> {
        let (state, now) = (self.log(view).state().await?, self.clock().now());
        let latest = now + CLOCK_TOLERANCE;
        let ahead = |time: Option<Timestamp>| time.filter(|time| *time > latest);
        let (what, time) = match (ahead(state.watermark), ahead(state.read_until)) {
            (Some(watermark), _) => ("its watermark", watermark),
            (None, Some(read)) => ("the time until which it has read history", read),
            (None, None) => return Ok(None),
        };
        Ok(Some(format!(
            "{what}, {time}, is ahead of the clock, {now}: a clock was wrong when the view was refreshed; correct its sources' \
             producers that are ahead too (springhouse producers SOURCE --watermark NAME=TIME), then springhouse backfill {} \
             --reset-watermark",
            view.name
        )))
    }

    /// Whether a file has the rows that its commit tells of.
    async fn check_rows(&self, file: &DataFile, view: Option<&FeatureView>) -> Result<()> {
        let mut batches = read_data_file(self.store(), file).await?;
        let (mut rows, mut sum) = (0, view.map(|view| Fingerprint::new(&data_schema(view))).transpose()?);
        while let Some(batch) = batches.try_next().await? {
            rows += batch.num_rows() as u64;
            if sum.is_none() && file.fingerprint.is_some() {
                // Of pushed events, whose source may have had other columns then.
                sum = Some(Fingerprint::of_events(&batch.schema())?);
            }
            if let Some(sum) = &mut sum {
                sum.add(&batch)?;
            }
        }
        let found = sum.map(|sum| sum.sum()).filter(|_| file.fingerprint.is_some());
        if rows != file.rows || found != file.fingerprint.filter(|_| found.is_some()) {
            return Err(Error::damaged("a data file has other rows than its commit tells of")
                .with("path", &file.path)
                .with("rows told of", file.rows)
                .with("rows found", rows)
                .remedy("restore the object from a backup of the store"));
        }
        Ok(())
    }

    /// Compares a sample of a view's keys in a tier with what its files say.
    async fn check_tier(
        &self,
        view: &FeatureView,
        log: &ViewLog,
        files: &[(u64, DataFile)],
        tier: &dyn OnlineTier,
        checked: &mut Checked,
    ) -> Result<()> {
        let now = self.clock().now();
        let sample = sample_of(view, log, files, now.micros()).await?;
        let packer = Packer::new(view)?;
        let mut expected = BTreeMap::new();
        for (number, file) in files {
            let mut batches = log.read(file).await?;
            while let Some(batch) = batches.try_next().await? {
                let rows = packer.pack(&batch, *number)?;
                merge_rows(&mut expected, rows.into_iter().filter(|(key, _)| is_of(&sample, key)).collect())?;
            }
        }
        let expiry = Expiry::new(view)?;
        let keys: Vec<&[u8]> = expected.keys().map(AsRef::as_ref).collect();
        let read = tier.read(&view.pinned(), &keys)?;
        let other = expected.iter().zip(&read.rows).filter(|((key, row), found)| match found {
            Some(found) => said(row) != said(found),
            None => !expiry.is_past(key, row, now),
        });
        let other = other.count();
        if other > 0 {
            checked.wrong.push(format!(
                "disk tier: {other} of {} entries of {} keys are not what object storage has; delete its folder: it is \
                 rebuilt, and nothing is lost",
                expected.len(),
                sample.len()
            ));
        }
        checked.keys = Some(sample.len());
        Ok(())
    }
}

/// Whether files are there with their sizes.
fn check_sizes(listed: &DataFolder, files: &[DataFile], checked: &mut Checked) {
    checked.files = files.len();
    checked.rows = files.iter().map(|file| file.rows).sum();
    compare_sizes(listed, files, checked);
}

fn compare_sizes(listed: &DataFolder, files: &[DataFile], checked: &mut Checked) {
    let sizes: HashMap<&str, u64> = listed.files().iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    for file in files {
        match sizes.get(file.path.as_str()) {
            Some(bytes) if *bytes == file.bytes => {}
            Some(bytes) => checked.wrong.push(format!("{}: {bytes} bytes, committed with {}", file.path, file.bytes)),
            None => checked.wrong.push(format!("{}: is gone", file.path)),
        }
    }
}

fn told(wrong: &[Error]) -> Vec<String> {
    wrong.iter().map(Error::chain).collect()
}

/// What an entry says, whichever write it came with: a row of several events has another place in their order when it is
/// applied than when it is committed.
fn said(row: &[u8]) -> (&[u8], &[u8]) {
    // Two times, the place in the order of writes, and the rest.
    if is_chunk(row) || row.len() < ROW_HEADER_BYTES { (row, &[]) } else { (&row[..16], &row[32..]) }
}

/// Whether an entry's key is one of these entities' or begins with it: no key begins with another.
fn is_of(sample: &BTreeSet<Vec<u8>>, key: &[u8]) -> bool {
    sample
        .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
        .next_back()
        .is_some_and(|entity| key.starts_with(entity))
}

/// Some of a view's keys, each with the same chance: those of the least hashes.
async fn sample_of(
    view: &FeatureView,
    log: &ViewLog,
    files: &[(u64, DataFile)],
    seed: i64,
) -> Result<BTreeSet<Vec<u8>>> {
    let codec = KeyCodec::new(&view.keys)?;
    let mut least: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (_, file) in files {
        let mut batches = log.read(file).await?;
        while let Some(batch) = batches.try_next().await? {
            let keys = codec.encode(&key_columns(view, &batch)?)?;
            for key in keys.iter().flatten() {
                let mut hasher = DefaultHasher::new();
                hasher.write_i64(seed);
                hasher.write(key);
                let hash = hasher.finish();
                if least.len() < SAMPLE || least.last_key_value().is_some_and(|(greatest, _)| hash < *greatest) {
                    least.entry(hash).or_insert_with(|| key.to_vec());
                }
                if least.len() > SAMPLE {
                    least.pop_last();
                }
            }
        }
    }
    Ok(least.into_values().collect())
}

fn key_columns(view: &FeatureView, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    let column = |name: &str| {
        let column = batch.column_by_name(name).map(Arc::clone);
        column.ok_or_else(|| Error::damaged("a data file lacks a column").with("column", name))
    };
    view.keys.iter().map(|key| column(&key.name)).collect()
}
