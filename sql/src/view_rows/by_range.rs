//! A view's rows of many ranges of event time, from one pass over its sources.
//!
//! History may lie in any order: to read each range from it by itself takes as many passes as there are ranges. Rows that
//! stand by themselves are written to a temporary file for each range, and sorted from there.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::Result as QueryResult;
use datafusion::physical_plan::SpillManager;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use futures::TryStreamExt;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::Progress;
use springhouse_featurestore::time::Timestamp;

use super::{RowStream, Sources, in_order, rows_in, times_of};
use crate::session::{BATCH_ROWS, Session, query_error};
use crate::spill::{Spilled, SpilledColumns};

/// Ranges that are split from one pass: each has a file open.
pub const MOST_RANGES: usize = 256;

/// The share of a session's memory that rows may take before they are written.
const SHARE_HELD: usize = 16;

/// A view's rows of one range, on disk until they are read.
#[derive(Debug)]
pub struct RangeRows(Spilled);

impl RangeRows {
    /// The rows as [`super::rows_between`] gives them.
    ///
    /// # Errors
    /// Those of planning; the stream gives those of reading and sorting.
    pub async fn sorted(&self, session: &Session, view: &FeatureView) -> Result<RowStream> {
        let rows = Arc::new(SpilledColumns::whole(&self.0));
        let table = StreamingTable::try_new(self.0.schema(), vec![rows]).map_err(query_error)?;
        let frame = session.context().read_table(Arc::new(table)).map_err(query_error)?;
        in_order(session, frame, view).await
    }
}

/// The rows of a view in each of several ranges of event time, each from one time to before another, in order and at most
/// [`MOST_RANGES`]; those that were visible by `known`. `progress` is told of rows as they are read.
///
/// # Errors
/// As [`super::view_rows`], and those of writing temporary files.
pub async fn split_rows(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    ranges: &[(Timestamp, Timestamp)],
    known: Timestamp,
    progress: &dyn Progress,
) -> Result<Vec<RangeRows>> {
    let (Some((from, _)), Some((_, until))) = (ranges.first(), ranges.last()) else { return Ok(Vec::new()) };
    let rows = rows_in(session, sources, view, (*from, *until), known).await?;
    let mut batches = session.stream(rows).await?;
    let schema = batches.schema();
    let metrics = SpillMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
    let manager = Arc::new(SpillManager::new(session.context().runtime_env(), metrics, Arc::clone(&schema)));
    let file = |_| manager.create_in_progress_file("splitting rows by ranges").map(|file| (file, 0));
    let mut files = ranges.iter().map(file).collect::<QueryResult<Vec<_>>>().map_err(query_error)?;
    let most = session.memory_bytes() / SHARE_HELD;
    let (mut held, mut held_bytes): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
    loop {
        let next = batches.try_next().await.map_err(query_error)?;
        let ended = next.is_none();
        if let Some(batch) = next {
            progress.advance(batch.num_rows() as u64);
            held_bytes += batch.get_array_memory_size();
            held.push(batch);
        }
        if ended || held_bytes > most {
            let (rows, batches) = (rows_by_range(&held, ranges)?, held.iter().collect::<Vec<_>>());
            for ((file, batch_bytes), rows) in files.iter_mut().zip(rows) {
                for some in rows.chunks(BATCH_ROWS) {
                    let written = file.append_batch(&interleave_record_batch(&batches, some)?).map_err(query_error)?;
                    *batch_bytes = written.max(*batch_bytes);
                }
            }
            (held, held_bytes) = (Vec::new(), 0);
        }
        if ended {
            break;
        }
    }
    let finished = files.into_iter().map(|(mut file, batch_bytes)| {
        let file = file.finish().map_err(query_error)?;
        Ok(RangeRows(Spilled::new(Arc::clone(&manager), file, Arc::clone(&schema), batch_bytes)))
    });
    finished.collect()
}

/// Which rows of which batches are in each range.
fn rows_by_range(batches: &[RecordBatch], ranges: &[(Timestamp, Timestamp)]) -> Result<Vec<Vec<(usize, usize)>>> {
    let mut rows = vec![Vec::new(); ranges.len()];
    for (number, batch) in batches.iter().enumerate() {
        let [event, _] = times_of(batch)?;
        for (row, time) in event.values().iter().enumerate() {
            let before = ranges.partition_point(|(from, _)| from.micros() <= *time);
            // Those of a range that is not wanted lie between two that are.
            if let Some(index) = before.checked_sub(1).filter(|index| *time < ranges[*index].1.micros()) {
                rows[index].push((number, row));
            }
        }
    }
    Ok(rows)
}
