//! The two sides of the join as the sweeps read them: questions from the spine, rows from the view.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{Row, RowConverter, Rows, SortField};
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use springhouse_featurestore::freshness::ServingHistory;
use springhouse_featurestore::time::Timestamp;

/// Where the columns stand that the join reads.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) spine_keys: Vec<usize>,
    pub(super) spine_time: usize,
    pub(super) row_keys: Vec<usize>,
    pub(super) visible: usize,
    pub(super) event: usize,
    pub(super) available: usize,
    pub(super) payload: Vec<usize>,
    pub(super) sort_fields: Vec<SortField>,
}

/// The spine's side.
pub(super) struct SpineSide {
    stream: SendableRecordBatchStream,
    converter: RowConverter,
    columns: Columns,
    served: Option<Arc<ServingHistory>>,
}

/// What a row of the spine asks.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) key: Row<'a>,
    /// As of when.
    pub(super) time: i64,
    /// Of what was known by then.
    pub(super) known: i64,
}

/// A batch of the spine: for which key and as of when each row asks.
pub(super) struct Questions {
    pub(super) batch: RecordBatch,
    keys: Rows,
    times: Int64Array,
    /// The key columns that have nulls.
    nullable: Vec<ArrayRef>,
    served: Option<Arc<ServingHistory>>,
}

impl SpineSide {
    pub(super) fn new(
        stream: SendableRecordBatchStream,
        columns: &Columns,
        served: Option<Arc<ServingHistory>>,
    ) -> Result<Self> {
        let converter = RowConverter::new(columns.sort_fields.clone())?;
        Ok(Self { stream, converter, columns: columns.clone(), served })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Questions>> {
        let Some(batch) = self.stream.next().await.transpose()? else { return Ok(None) };
        let keys = take(&batch, &self.columns.spine_keys);
        let (converted, times) = (self.converter.convert_columns(&keys)?, micros(&batch, self.columns.spine_time)?);
        let nullable = keys.into_iter().filter(|key| key.null_count() > 0).collect();
        Ok(Some(Questions { batch, keys: converted, times, nullable, served: self.served.clone() }))
    }
}

impl Questions {
    /// What a row asks; `None` where its key or time is null: nothing is known of it.
    pub(super) fn at(&self, row: usize) -> Option<Question<'_>> {
        let whole = self.times.is_valid(row) && self.nullable.iter().all(|key| key.is_valid(row));
        whole.then(|| {
            let time = self.times.value(row);
            let served = self.served.as_ref().map(|served| served.known_at(Timestamp::from_micros(time)).micros());
            Question { key: self.keys.row(row), time, known: served.unwrap_or(time) }
        })
    }
}

/// The view's side: the batch that holds the next row, and its place there.
pub(super) struct RowSide {
    stream: SendableRecordBatchStream,
    converter: RowConverter,
    columns: Columns,
    current: Option<Arc<RowBatch>>,
    at: usize,
}

/// A batch of the view's rows, with their keys converted and their times at hand.
pub(super) struct RowBatch {
    pub(super) batch: RecordBatch,
    pub(super) keys: Rows,
    pub(super) visible: Int64Array,
    pub(super) event: Int64Array,
    pub(super) available: Int64Array,
}

impl RowSide {
    pub(super) fn new(stream: SendableRecordBatchStream, columns: &Columns) -> Result<Self> {
        let converter = RowConverter::new(columns.sort_fields.clone())?;
        Ok(Self { stream, converter, columns: columns.clone(), current: None, at: 0 })
    }

    /// The next row, if it is not after this key and time; the row after it is the next then.
    pub(super) async fn next_until(&mut self, key: Row<'_>, time: i64) -> Result<Option<(&Arc<RowBatch>, usize)>> {
        while self.current.as_ref().is_none_or(|current| self.at >= current.batch.num_rows()) {
            let Some(batch) = self.stream.next().await.transpose()? else { return Ok(None) };
            self.at = 0;
            self.current = Some(Arc::new(RowBatch {
                keys: self.converter.convert_columns(&take(&batch, &self.columns.row_keys))?,
                visible: micros(&batch, self.columns.visible)?,
                event: micros(&batch, self.columns.event)?,
                available: micros(&batch, self.columns.available)?,
                batch,
            }));
        }
        let Some(current) = self.current.as_ref() else { return Ok(None) };
        let at = self.at;
        if (current.keys.row(at), current.visible.value(at)) > (key, time) {
            return Ok(None);
        }
        self.at += 1;
        Ok(Some((current, at)))
    }
}

pub(super) fn take(batch: &RecordBatch, indices: &[usize]) -> Vec<ArrayRef> {
    indices.iter().map(|&index| Arc::clone(batch.column(index))).collect()
}

/// A time column as plain microseconds.
fn micros(batch: &RecordBatch, index: usize) -> Result<Int64Array> {
    Ok(cast(batch.column(index), &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}
