//! Compaction: a view's small data files are merged into larger ones, in commits that change no row.
//!
//! Every refresh and every flush writes a file; a flush a minute is half a million of them in a year. Files are told apart
//! by the power of eight that their rows reach. Where eight or more reach the same one, they are merged into one file, which
//! reaches the next: so a row is written again once for every power, and seven files of each are left at most. A file that is
//! large enough is left alone.
//!
//! ```text
//! rows   1 1 1 1 1 1 1 1   9 8 12     ->   8 9 8 12        one commit: these eight files give way to that one
//! ```
//!
//! The merged rows have the order of data files, their bits, all of their columns, and the number of the commit that wrote
//! each of them first ([`COMMIT`]): rule T5 and backfills look at it. Rows are only merged with others of the same columns.
//!
//! The merged file is written before the commit that puts it in the place of the others; a crash leaves a file that no commit
//! names. When another writer comes first, the commit is tried again on what it left, as long as all files that are to give
//! way still count; a file that was added meanwhile stays where it is. The files that gave way are garbage, which is
//! collected after a time ([`crate::garbage`]): who has begun to read them reads on.
//!
//! The files of pushed events are merged in the same way, though only with those beside them ([`pushed_files`]).

pub mod pushed_files;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;

use arrow::datatypes::FieldRef;
use serde::Serialize;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::{COMMIT, DataFile, ViewCommit, ViewCommitKind, ViewLog, ViewLogState};
use springhouse_featurestore::{Error, Result};

use crate::Jobs;
use crate::jobs::{until_on_top, write_file};

/// So many files of one power are merged. With fewer, rows are written again more often; with more, more files are left.
const FAN_IN: usize = 8;

/// Files that are merged at once: a batch of each is held.
const MOST_AT_ONCE: usize = 64;

/// A file of more bytes is left alone: to read it is no longer a matter of requests.
const FULL_BYTES: u64 = 128 << 20;

/// A data file and the number of the commit that it is told for.
pub type Numbered = (u64, DataFile);

/// What a compaction did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// A view as `name@version`, or the pushes to a source.
    pub what: String,
    /// The files that gave way,
    pub merged: usize,
    /// and those that took their place.
    pub written: usize,
    /// The rows in these; of several rounds those of each.
    pub rows: u64,
    /// The files that there are now.
    pub files: usize,
}

impl Compacted {
    fn nothing_of(what: String) -> Self {
        Self { what, merged: 0, written: 0, rows: 0, files: 0 }
    }
}

impl Jobs {
    /// Merges a view's small files until there are none to merge.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] for a file that cannot be read or whose rows are not those that its
    /// commit told of; nothing is then changed.
    pub async fn compact(&self, view: &FeatureView) -> Result<Compacted> {
        let log = self.log(view);
        let mut done = Compacted::nothing_of(view.pinned().to_string());
        let mut state = log.state().await?;
        while let Some(file) = self.compact_once(view, &log, &state, &mut done).await? {
            done.written += 1;
            done.rows += file.rows;
            state = log.state().await?;
        }
        done.files = state.files.len();
        if done.written > 0 {
            tracing::info!(view = %view.name, merged = done.merged, written = done.written, "compacted");
        }
        Ok(done)
    }

    /// Merges the first group that can be; none where there is none.
    async fn compact_once(
        &self,
        view: &FeatureView,
        log: &ViewLog,
        state: &ViewLogState,
        done: &mut Compacted,
    ) -> Result<Option<DataFile>> {
        for group in groups(&state.files) {
            if let Some((further, files)) = by_columns(view, log, group).await?.into_iter().next() {
                let file = self.merge(view, log, state.number, &files, &further).await?;
                if until_on_top(view, || self.replace(log, &files, &file)).await? {
                    done.merged += files.len();
                    return Ok(Some(file));
                }
                // Something else took the place of one of them: what is left is looked at the next time.
                tracing::info!(view = %view.name, "the files of a compaction do not count any more");
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Writes the rows of several files as one.
    async fn merge(
        &self,
        view: &FeatureView,
        log: &ViewLog,
        number: u64,
        files: &[Numbered],
        further: &[FieldRef],
    ) -> Result<DataFile> {
        let session = self.session_of(1)?;
        let (_, rows) = session.merged_rows(self.store(), view, files, further).await?;
        let name = format!("compact-{:012}-{}", number + 1, self.mark());
        let merged = write_file(log, view, &name, rows, &()).await?;
        let merged = merged.ok_or_else(|| Error::damaged("data files have no rows").with("view", &view.name))?;
        check_same(&view.pinned(), files.iter().map(|(_, file)| file), &merged)?;
        let commits = files.iter().map(|(number, file)| file.commits(*number));
        let (least, greatest) =
            commits.fold((u64::MAX, 0), |(least, greatest), (first, last)| (first.min(least), last.max(greatest)));
        Ok(DataFile { commit: Some(greatest), first_commit: Some(least), ..merged })
    }

    /// Puts a file in the place of others, unless one of those does not count any more.
    async fn replace(&self, log: &ViewLog, files: &[Numbered], merged: &DataFile) -> Result<bool> {
        let mut state = log.state().await?;
        let held: HashSet<&str> = state.files.iter().map(|(_, file)| file.path.as_str()).collect();
        let all = files.iter().all(|(_, file)| held.contains(file.path.as_str()));
        let (true, Some(watermark)) = (all, state.watermark) else { return Ok(false) };
        let commit = ViewCommit {
            read_until: state.read_until,
            replaced: files.iter().map(|(_, file)| file.path.clone()).collect(),
            files: vec![merged.clone()],
            ..ViewCommit::new(self.clock().now(), ViewCommitKind::Compact, watermark)
        };
        log.commit(&mut state, commit).await?;
        Ok(true)
    }
}

/// Files that are to be merged, group by group: those of few rows first. Each comes with the number of its commit.
pub fn groups(files: &[Numbered]) -> Vec<Vec<Numbered>> {
    let mut powers: BTreeMap<u32, Vec<&Numbered>> = BTreeMap::new();
    for numbered in files.iter().filter(|(_, file)| file.bytes < FULL_BYTES) {
        powers.entry(numbered.1.rows.max(1).ilog(FAN_IN as u64)).or_default().push(numbered);
    }
    let chunks = powers.values().flat_map(|of_power| of_power.chunks(MOST_AT_ONCE));
    chunks.filter(|chunk| chunk.len() >= FAN_IN).map(|chunk| chunk.iter().map(|of| (*of).clone()).collect()).collect()
}

/// The files of a group by the columns that they have beside the view's own and [`COMMIT`]; those of enough files.
async fn by_columns(
    view: &FeatureView,
    log: &ViewLog,
    group: Vec<Numbered>,
) -> Result<Vec<(Vec<FieldRef>, Vec<Numbered>)>> {
    let mut found: Vec<(Vec<FieldRef>, Vec<Numbered>)> = Vec::new();
    for (number, file) in group {
        let columns = log.further_columns(view, &file).await?;
        let has_commits = columns.iter().any(|column| column.name() == COMMIT);
        let first_commit = if has_commits { Some(file.first_commit.unwrap_or(number)) } else { None };
        let numbered = (number, DataFile { first_commit, ..file });
        let columns: Vec<FieldRef> = columns.into_iter().filter(|column| column.name() != COMMIT).collect();
        match found.iter_mut().find(|(of, _)| *of == columns) {
            Some((_, files)) => files.push(numbered),
            None => found.push((columns, vec![numbered])),
        }
    }
    // Where a view's files gained a column, those of before and those of after are never together: half will do.
    found.retain(|(_, files)| files.len() >= FAN_IN / 2);
    Ok(found)
}

/// Checks that a merged file has exactly the rows of others.
fn check_same<'a>(
    of: &impl Display,
    files: impl Iterator<Item = &'a DataFile> + Clone,
    merged: &DataFile,
) -> Result<()> {
    let rows: u64 = files.clone().map(|file| file.rows).sum();
    let sum = files.clone().try_fold(0_u64, |sum, file| Some(sum.wrapping_add(file.fingerprint?)));
    if rows == merged.rows && (sum.is_none() || sum == merged.fingerprint) {
        return Ok(());
    }
    let paths: Vec<&str> = files.map(|file| file.path.as_str()).collect();
    Err(Error::damaged("data files do not have the rows that their commits tell of")
        .with("of", of)
        .with("files", paths.join(", "))
        .with("rows told of", rows)
        .with("rows found", merged.rows)
        .remedy("springhouse check --full names the one; restore it from a backup of the store"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: usize, rows: u64) -> Numbered {
        let (path, number) = (format!("data/{name}"), name as u64);
        (number, DataFile { path, rows, bytes: 100 * rows, ..DataFile::default() })
    }

    /// A year of a flush a minute, without the files.
    #[test]
    fn a_row_is_written_again_a_few_times_and_few_files_are_left() {
        let (mut files, mut written, mut flushed) = (Vec::new(), 0_u64, 0_u64);
        for flush in 0..100_000_usize {
            let rows = 1 + (flush as u64).wrapping_mul(2_654_435_761) % 20;
            flushed += rows;
            files.push(file(flush, rows));
            while let Some(group) = groups(&files).into_iter().next() {
                let rows: u64 = group.iter().map(|(_, file)| file.rows).sum();
                written += rows;
                let paths: HashSet<&str> = group.iter().map(|(_, file)| file.path.as_str()).collect();
                files.retain(|(_, file)| !paths.contains(file.path.as_str()));
                files.push(file(1_000_000 + flush, rows));
            }
            assert!(files.len() <= 7 * 8, "{} files after {flush} flushes", files.len());
        }
        assert_eq!(files.iter().map(|(_, file)| file.rows).sum::<u64>(), flushed);
        assert!(written <= 7 * flushed, "{written} rows written for {flushed}");
    }

    #[test]
    fn large_files_are_left_alone_and_old_stores_are_merged_in_pieces() {
        let large = |name| {
            let (number, of) = file(name, 1_000_000);
            (number, DataFile { bytes: FULL_BYTES, ..of })
        };
        assert!(groups(&(0..20).map(large).collect::<Vec<_>>()).is_empty());
        let many: Vec<Numbered> = (0..1_000).map(|name| file(name, 3)).collect();
        assert!(groups(&many).iter().all(|group| (FAN_IN..=MOST_AT_ONCE).contains(&group.len())));
        assert_eq!(groups(&many).len(), 16);
    }
}
