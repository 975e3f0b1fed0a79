//! Compaction of pushed events: a source's files that follow each other are merged into larger ones.
//!
//! Files lie in the order of their positions, which is that of time as well, nearly. Only neighbours are merged, so that
//! this stays so: files never overlap, each tells from which position and time to which its events are, and a reader opens
//! those that may hold what it asks for. A merged file is the others written one behind the other, each event with its
//! columns and its place in the order of writes to the bit.
//!
//! Files are told apart by the power of eight that their rows reach. Neighbours that reach no more than a power are merged when
//! there are eight or more of them, and together they reach the next: so a row is written again once for every power at most,
//! and a few files of each are left. What is smaller and lies between them goes with them.
//!
//! ```text
//! rows   70 9 1 1 2 1 1 1 1 1     ->   70 9 9        one commit: these eight files give way to that one
//! ```
//!
//! The commit is one of the log of pushes, beside those of whoever takes them: it needs no fence, since it changes no event, and a
//! flush that finds it goes on from it.

use std::collections::{BTreeSet, HashSet};

use arrow::datatypes::SchemaRef;
use springhouse_featurestore::Result;
use springhouse_featurestore::push::{PushHistory, PushHistoryState};
use springhouse_featurestore::tier::DataFile;

use super::{Compacted, FAN_IN, FULL_BYTES, MOST_AT_ONCE, check_same};
use crate::Jobs;

impl Jobs {
    /// Merges the small files of everything that was pushed, source by source.
    ///
    /// # Errors
    /// As [`Self::compact_pushes_to`]; other sources go on.
    pub async fn compact_pushes(&self) -> Result<Vec<Compacted>> {
        let (mut done, mut failed) = (Vec::new(), None);
        for source in self.pushed().state().await?.files.into_keys() {
            match self.compact_pushes_to(&source).await {
                Ok(of_source) => done.push(of_source),
                Err(error) => {
                    tracing::error!(%source, error = %error.chain(), "pushed files cannot be merged; other sources go on");
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// Merges the small files of what was pushed to a source until there are none to merge.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] for a file that cannot be read or whose events are not those that its
    /// commit told of; nothing is then changed.
    pub async fn compact_pushes_to(&self, source: &str) -> Result<Compacted> {
        let pushed = self.pushed();
        let mut done = Compacted::nothing_of(format!("pushes to {source}"));
        let mut state = pushed.state().await?;
        let mut over = PassedOver::of(&pushed, state.files_of(source)).await?;
        while let Some(file) = self.compact_pushes_once(&pushed, source, (&state, &mut over), &mut done).await? {
            done.written += 1;
            done.rows += file.rows;
            state = pushed.state().await?;
        }
        done.files = state.files_of(source).len();
        if done.written > 0 {
            tracing::info!(%source, merged = done.merged, written = done.written, "pushed files compacted");
        }
        Ok(done)
    }

    /// Merges the first run that can be; none where there is none.
    async fn compact_pushes_once(
        &self,
        pushed: &PushHistory,
        source: &str,
        (state, over): (&PushHistoryState, &mut PassedOver),
        done: &mut Compacted,
    ) -> Result<Option<DataFile>> {
        while let Some(run) = over.first_run(state.files_of(source)) {
            let files = match of_one_kind(pushed, run).await? {
                Run::Same(files) => files,
                Run::Apart(files) => {
                    over.paths.extend(files.iter().map(|file| file.path.clone()));
                    continue;
                }
            };
            let name = format!("compact-{:012}-{}", state.number + 1, self.mark());
            let merged = pushed.merge(source, &name, files).await?;
            check_same(&done.what, files.iter(), &merged)?;
            if pushed.replace(source, files, &merged, self.clock().now()).await? {
                done.merged += files.len();
                return Ok(Some(merged));
            }
            // Somebody else has merged one of them: what is left is looked at the next time.
            tracing::info!(%source, "the pushed files of a compaction do not count any more");
            return Ok(None);
        }
        Ok(None)
    }
}

/// Files that are not merged: what stands between them is looked at all the same.
#[derive(Debug, Default)]
struct PassedOver {
    /// Those before this position, of a version that did not keep positions: there may be very many.
    before: u64,
    /// Those that have other columns than the files beside them.
    paths: HashSet<String>,
}

impl PassedOver {
    /// Finds out where a source's files from before positions were kept end; a few are opened.
    async fn of(pushed: &PushHistory, files: &[DataFile]) -> Result<Self> {
        let (mut old, mut known) = (0, files.len());
        let Some(first) = files.first().filter(|_| !runs(files).is_empty()) else { return Ok(Self::default()) };
        if pushed.columns_of(first).await?.is_some() {
            return Ok(Self::default());
        }
        while old + 1 < known {
            let middle = usize::midpoint(old, known);
            match pushed.columns_of(&files[middle]).await? {
                None => old = middle,
                Some(_) => known = middle,
            }
        }
        Ok(Self { before: files[old].positions.map_or(0, |range| range.until), paths: HashSet::new() })
    }

    fn has(&self, file: &DataFile) -> bool {
        file.positions.is_some_and(|range| range.until <= self.before) || self.paths.contains(&file.path)
    }

    /// The first of the runs that the other files have.
    fn first_run<'a>(&self, files: &'a [DataFile]) -> Option<&'a [DataFile]> {
        files.split(|file| self.has(file)).find_map(|some| runs(some).into_iter().next())
    }
}

/// Files that follow each other and are to be merged, run by run: those of few rows first. The files are given in the order of
/// their positions; the runs of one power have files of those before among them.
pub fn runs(files: &[DataFile]) -> Vec<&[DataFile]> {
    let power = |file: &DataFile| rows_of(file).ilog(FAN_IN as u64);
    let is_full = |file: &DataFile| file.bytes >= FULL_BYTES;
    let powers: BTreeSet<u32> = files.iter().filter(|file| !is_full(file)).map(power).collect();
    let of_power = |reached: u32| {
        let neighbours = files.split(move |file| is_full(file) || power(file) > reached);
        let next = (FAN_IN as u64).saturating_pow(reached + 1);
        neighbours.filter_map(move |run| begin_of(run, next))
    };
    powers.into_iter().flat_map(of_power).collect()
}

/// A file's rows; one without any, of pushes without events, goes with those of one.
fn rows_of(file: &DataFile) -> u64 {
    file.rows.max(1)
}

/// As many of the first files of a run as are merged at once, and as reach so many rows together.
fn begin_of(run: &[DataFile], wanted: u64) -> Option<&[DataFile]> {
    let (mut rows, mut taken) = (0, 0);
    for file in run {
        if taken >= MOST_AT_ONCE && rows >= wanted {
            break;
        }
        rows += rows_of(file);
        taken += 1;
    }
    (taken >= FAN_IN && rows >= wanted).then(|| &run[..taken])
}

/// What of a run can be merged.
enum Run<'a> {
    /// These: they follow each other, and have the same columns.
    Same(&'a [DataFile]),
    /// None of it; and these never with the files beside them. The last may be with those that come after the run.
    Apart(&'a [DataFile]),
}

/// The first files of a run that follow each other and have the same columns, if they are enough. A source that has gained a
/// column has files with it and before them files without: half of what makes a run will do.
async fn of_one_kind<'a>(pushed: &PushHistory, run: &'a [DataFile]) -> Result<Run<'a>> {
    let mut columns: Vec<Option<SchemaRef>> = Vec::with_capacity(run.len());
    for file in run {
        columns.push(pushed.columns_of(file).await?);
    }
    let (mut begin, mut last) = (0, run.len());
    for same in columns.chunk_by(|one, other| one == other) {
        if same[0].is_some() && same.len() >= FAN_IN / 2 {
            return Ok(Run::Same(&run[begin..begin + same.len()]));
        }
        last = if same[0].is_some() { begin } else { run.len() };
        begin += same.len();
    }
    Ok(Run::Apart(&run[..last]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: usize, rows: u64) -> DataFile {
        DataFile { path: format!("data/{name}"), rows, bytes: 100 * rows, ..DataFile::default() }
    }

    /// Flushes with sizes, merged as soon as there is something to merge. Gives the most files that there were, and how
    /// often a row was written again.
    fn flushed(flushes: usize, rows_of: impl Fn(usize) -> u64) -> (usize, u64) {
        let (mut files, mut written, mut all, mut most) = (Vec::<DataFile>::new(), 0_u64, 0_u64, 0);
        for flush in 0..flushes {
            let rows = rows_of(flush);
            all += rows;
            files.push(file(flush, rows));
            while let Some((first, length, rows)) = runs(&files).first().map(|run| {
                let rows = run.iter().map(|file| file.rows).sum::<u64>();
                (run[0].path.clone(), run.len(), rows)
            }) {
                let begin = files.iter().position(|file| file.path == first).expect("one of them");
                written += rows;
                files.splice(begin..begin + length, [file(1_000_000 + flush, rows)]);
            }
            most = most.max(files.len());
        }
        assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), all);
        (most, written / all)
    }

    /// The rows of each flush.
    type RowsOf = Box<dyn Fn(usize) -> u64>;

    /// Three weeks of a flush a minute, without the files.
    #[test]
    fn of_many_flushes_few_files_are_left_and_a_row_is_written_again_a_few_times() {
        let mixed = |flush: usize| (flush as u64).wrapping_mul(2_654_435_761) >> 7;
        let sizes: [(&str, RowsOf); 4] = [
            ("one event each", Box::new(|_| 1)),
            ("a few", Box::new(move |flush| 1 + mixed(flush) % 20)),
            ("few and many by turns", Box::new(|flush| if flush.is_multiple_of(2) { 1 } else { 5_000 })),
            ("of every size", Box::new(move |flush| 8_u64.pow(u32::try_from(mixed(flush) % 6).expect("small")))),
        ];
        for (name, rows_of) in sizes {
            let (most, written) = flushed(30_000, rows_of);
            assert!(most <= 200, "{name}: {most} files");
            assert!(written <= 8, "{name}: a row is written {written} times");
        }
    }

    #[test]
    fn only_neighbours_are_merged_and_large_files_are_left_alone() {
        let of = |rows: &[u64]| rows.iter().enumerate().map(|(name, rows)| file(name, *rows)).collect::<Vec<_>>();
        let merged = |rows: &[u64]| {
            let files = of(rows);
            runs(&files).first().map(|run| run.iter().map(|file| file.rows).collect::<Vec<_>>())
        };
        assert_eq!(merged(&[70, 9, 1, 1, 2, 1, 1, 1, 1, 1]), Some(vec![1, 1, 2, 1, 1, 1, 1, 1]));
        assert_eq!(merged(&[1, 1, 1, 1, 9, 1, 1, 1, 1]), None, "they do not reach the next power");
        assert_eq!(merged(&[1, 9, 9, 1, 9, 9, 9, 9, 9]), Some(vec![1, 9, 9, 1, 9, 9, 9, 9, 9]));
        let mut files = of(&[1; 15]);
        files[7].bytes = FULL_BYTES;
        assert!(runs(&files).is_empty());
        let many = of(&[3; 1_000]);
        assert_eq!(runs(&many)[0].len(), MOST_AT_ONCE);
    }
}
