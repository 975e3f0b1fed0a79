//! Events that a view's history holds and that the view has not: they came late, in a file that had been read before and was
//! written anew, or in a new one that no refresh takes in by itself (rule T11). A refresh names such files, and what is
//! committed stays until a backfill. A push of such an event is taken, and counts once (rule T12).
//!
//! Which events those are the view's rows tell: of an event that it has there is a row of the same key at the same time. They
//! are asked only where a file is not what it was, or has been named. Where two events have one key and one time, and the
//! view has the other, this one is taken to be had until the backfill: it may be missing, and never counts twice.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Source};
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::DataFile;
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_sql::view_rows::{Sources, pushed_rows};

use super::Got;
use crate::Jobs;
use crate::history::changed;

/// Of so many events of one time, by row, it is told which of them a view has; others at that time are taken to be had.
const MOST_AT_ONE_TIME: usize = 64;

/// The rows that a view had committed by some commit.
struct Committed {
    commit: u64,
    /// The files that have them, and maybe later ones.
    files: Vec<(u64, DataFile)>,
}

impl Jobs {
    /// Of events that are in a view's history leaves those alone marked, by batch and row, that the view has.
    ///
    /// # Errors
    /// Those of reading the view's files.
    pub(super) async fn unmark_named(
        &self,
        catalog: &CatalogState,
        (view, source): (&FeatureView, &Source),
        got: &Got,
        batches: &[RecordBatch],
        marked: &mut [Vec<bool>],
    ) -> Result<()> {
        if got.by_files || !marked.iter().flatten().any(|marked| *marked) {
            return Ok(());
        }
        if !got.named && changed(&got.files, &self.history_files(catalog, view).await?).is_empty() {
            return Ok(());
        }
        let state = self.log(view).state().await?;
        if state.replaced > got.commit {
            // Whoever is at that commit is loaded anew, by what has been committed since.
            return Ok(());
        }
        let files = state.files.into_iter().filter(|(number, file)| file.commits(*number).0 <= got.commit).collect();
        let committed = Committed { commit: got.commit, files };
        for (batch, marked) in batches.iter().zip(marked) {
            for row in self.named(catalog, (view, source), &committed, batch, marked).await? {
                marked[row] = false;
            }
        }
        Ok(())
    }

    /// Which of the marked events of a batch, by row, have no row in a view. One on which the view's query fails has none.
    async fn named(
        &self,
        catalog: &CatalogState,
        (view, source): (&FeatureView, &Source),
        committed: &Committed,
        batch: &RecordBatch,
        marked: &[bool],
    ) -> Result<Vec<usize>> {
        let times = source.event_column().and_then(|column| batch.column_by_name(column));
        let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        let Some(times) = times else { return Ok(Vec::new()) };
        let (mut left, mut named) = (by_distinct_time(times.values(), marked), Vec::new());
        while let Some(mut rows) = left.pop() {
            let events = take_record_batch(batch, &UInt64Array::from_iter_values(rows.iter().map(|row| *row as u64)))?;
            match self.times_without_row(catalog, (view, source), committed, events).await {
                Ok(without) => {
                    let at = |row: &usize| Timestamp::from_micros(times.value(*row));
                    named.extend(rows.into_iter().filter(|row| without.contains(&at(row))));
                }
                Err(error) if error.kind() == ErrorKind::Invalid && rows.len() > 1 => {
                    let rest = rows.split_off(rows.len() / 2);
                    left.extend([rest, rows]);
                }
                Err(error) if error.kind() == ErrorKind::Invalid => named.extend(rows),
                Err(error) => return Err(error),
            }
        }
        Ok(named)
    }

    /// The times of those of some events, no two of one time, that a view's query takes and of which it has no row.
    async fn times_without_row(
        &self,
        catalog: &CatalogState,
        (view, source): (&FeatureView, &Source),
        committed: &Committed,
        events: RecordBatch,
    ) -> Result<BTreeSet<Timestamp>> {
        let none = PushedEvents::default();
        let batches = BTreeMap::from([(source.name.clone(), vec![events])]);
        let new = PushedEvents { batches, ..PushedEvents::default() };
        let sources = Sources { catalog, store: self.store(), pushed: &none };
        let rows: Vec<RecordBatch> = pushed_rows(&self.session()?, &sources, view, &new).await?.try_collect().await?;
        let (files, by) = (committed.files.as_slice(), committed.commit);
        self.session()?.times_without_row(self.store(), view, (files, by), rows).await
    }
}

/// The marked rows in groups of which none has two of one time.
fn by_distinct_time(times: &[i64], marked: &[bool]) -> Vec<Vec<usize>> {
    let (mut groups, mut at) = (Vec::<Vec<usize>>::new(), BTreeMap::<i64, usize>::new());
    for (row, time) in times.iter().enumerate().filter(|(row, _)| marked.get(*row) == Some(&true)) {
        let before = at.entry(*time).or_default();
        if *before == MOST_AT_ONE_TIME {
            continue;
        }
        if *before == groups.len() {
            groups.push(Vec::new());
        }
        groups[*before].push(row);
        *before += 1;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_marked_events_no_two_of_one_time_are_asked_about_together() {
        let marked = [true, true, false, true, true, true];
        assert_eq!(by_distinct_time(&[7, 8, 8, 8, 7, 8], &marked), [vec![0, 1], vec![3, 4], vec![5]]);
        assert!(by_distinct_time(&[7, 8], &[false, false]).is_empty());
        assert_eq!(by_distinct_time(&[7; 100], &[true; 100]).len(), MOST_AT_ONE_TIME);
    }
}
