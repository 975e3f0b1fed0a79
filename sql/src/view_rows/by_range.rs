//! A view's rows of many ranges of event time, from one pass over its sources.
//!
//! History may lie in any order: to read each range from it by itself takes as many passes as there are ranges. Rows that
//! stand by themselves are written to a temporary file for each range, and sorted from there.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::Result as QueryResult;
use datafusion::logical_expr::{cast, lit};
use datafusion::physical_plan::SpillManager;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::{EVENT_TIME, Progress};
use springhouse_featurestore::time::{Span, Timestamp};

use super::{RowStream, Sources, in_order, rows_in, times_of};
use crate::session::{BATCH_ROWS, Session, exact, query_error};
use crate::spill::{Spilled, SpilledColumns};

/// Ranges that are split from one pass: each has a file open.
pub const MOST_RANGES: usize = 256;

/// Ranges of which it is looked whether they have rows.
const MOST_LOOKED_AT: i64 = 1 << 20;

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

/// The ranges of a length in a stretch of event time in which a view has rows, of what [`super::known_rows`] knows: in
/// order, and neighbours as one where there are more than `most`.
///
/// # Errors
/// As [`super::view_rows`].
pub async fn ranges_with_rows(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    (from, until): (Timestamp, Timestamp),
    (every, most): (Span, usize),
    known: Timestamp,
) -> Result<Vec<(Timestamp, Timestamp)>> {
    // So that those that are looked at can be held.
    let every = every.micros().max(until.since(from).micros() / MOST_LOOKED_AT).max(1);
    let rows = rows_in(session, sources, view, (from, until), known).await?;
    let since = cast(exact(EVENT_TIME), DataType::Int64) - lit(from.micros());
    let ranges = rows.select(vec![(since / lit(every)).alias("range")]).and_then(DataFrame::distinct);
    let batches = ranges.map_err(query_error)?.collect().await.map_err(query_error)?;
    let numbers = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
    let mut numbers: Vec<i64> = numbers.collect();
    numbers.sort_unstable();
    let start = |number: i64| from + Span::from_micros(number.saturating_mul(every));
    let together = numbers.chunks(numbers.len().div_ceil(most.max(1)).max(1));
    Ok(together.map(|of| (start(of[0]), start(of[of.len() - 1] + 1).min(until))).collect())
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
