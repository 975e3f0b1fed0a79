//! The two sides of the join as the sweeps read them: questions from the spine, rows from the view.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::SortField;
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use springhouse_featurestore::encoding::{RowHeader, WriteOrder};
use springhouse_featurestore::freshness::ServingHistory;
use springhouse_featurestore::time::Timestamp;

use super::keys::Keys;

/// Where the columns stand that the join reads.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) spine_keys: Vec<usize>,
    pub(super) spine_time: usize,
    pub(super) row_keys: Vec<usize>,
    pub(super) visible: usize,
    pub(super) event: usize,
    pub(super) available: usize,
    /// The place in the order of writes, where windows go by it.
    pub(super) written: Option<[usize; 2]>,
    pub(super) payload: Vec<usize>,
    pub(super) sort_fields: Vec<SortField>,
}

/// The spine's side.
pub(super) struct SpineSide<K: Keys> {
    stream: SendableRecordBatchStream,
    converter: K::Converter,
    columns: Columns,
    served: Option<Arc<ServingHistory>>,
}

/// What a row of the spine asks.
#[derive(Clone, Copy)]
pub(super) struct Question<Key> {
    pub(super) key: Key,
    /// As of when.
    pub(super) time: i64,
    /// Of what was known by then.
    pub(super) known: i64,
}

/// A batch of the spine: for which key and as of when each row asks.
pub(super) struct Questions<K> {
    pub(super) batch: RecordBatch,
    keys: K,
    times: Int64Array,
    /// The key columns that have nulls.
    nullable: Vec<ArrayRef>,
    served: Option<Arc<ServingHistory>>,
}

impl<K: Keys> SpineSide<K> {
    pub(super) fn new(
        stream: SendableRecordBatchStream,
        columns: &Columns,
        served: Option<Arc<ServingHistory>>,
    ) -> Result<Self> {
        let converter = K::converter(&columns.sort_fields)?;
        Ok(Self { stream, converter, columns: columns.clone(), served })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Questions<K>>> {
        let Some(batch) = self.stream.next().await.transpose()? else { return Ok(None) };
        let keys = take(&batch, &self.columns.spine_keys);
        let (converted, times) = (K::convert(&self.converter, &keys)?, numbers(&batch, self.columns.spine_time)?);
        let nullable = keys.into_iter().filter(|key| key.null_count() > 0).collect();
        Ok(Some(Questions { batch, keys: converted, times, nullable, served: self.served.clone() }))
    }
}

impl<K: Keys> Questions<K> {
    /// What a row asks; `None` where its key or time is null: nothing is known of it.
    pub(super) fn at(&self, row: usize) -> Option<Question<K::Key<'_>>> {
        let whole = self.times.is_valid(row) && self.nullable.iter().all(|key| key.is_valid(row));
        whole.then(|| {
            let time = self.times.value(row);
            let served = self.served.as_ref().map(|served| served.known_at(Timestamp::from_micros(time)).micros());
            Question { key: self.keys.key(row), time, known: served.unwrap_or(time) }
        })
    }
}

/// The view's side: the batch that holds the next row, and its place there.
pub(super) struct RowSide<K: Keys> {
    stream: SendableRecordBatchStream,
    converter: K::Converter,
    columns: Columns,
    current: Option<Arc<RowBatch<K>>>,
    at: usize,
    ended: bool,
}

/// A batch of the view's rows, with their keys converted and their times at hand.
pub(super) struct RowBatch<K> {
    pub(super) batch: RecordBatch,
    /// How many batches came before.
    pub(super) number: usize,
    keys: K,
    visible: Int64Array,
    event: Int64Array,
    available: Int64Array,
    written: Option<[Int64Array; 2]>,
}

impl<K: Keys> RowBatch<K> {
    /// When a row happened, could be known and was written; what does not tell when was written before all others.
    pub(super) fn at(&self, row: usize) -> RowHeader {
        let [event_time, available_time] =
            [&self.event, &self.available].map(|of| Timestamp::from_micros(of.value(row)));
        let times = RowHeader::of_times(event_time, available_time);
        match &self.written {
            Some([position, within]) if position.is_valid(row) && within.is_valid(row) => {
                let written = WriteOrder { position: position.value(row), within: within.value(row) };
                RowHeader { written, ..times }
            }
            _ => times,
        }
    }

    /// The event time and the available time of a row.
    pub(super) fn times(&self, row: usize) -> (i64, i64) {
        (self.event.value(row), self.available.value(row))
    }
}

impl<K: Keys> RowSide<K> {
    pub(super) fn new(stream: SendableRecordBatchStream, columns: &Columns) -> Result<Self> {
        let converter = K::converter(&columns.sort_fields)?;
        Ok(Self { stream, converter, columns: columns.clone(), current: None, at: 0, ended: false })
    }

    /// The batch that was loaded last.
    pub(super) fn current(&self) -> Option<&Arc<RowBatch<K>>> {
        self.current.as_ref()
    }

    /// Passes all rows that are not after this key and time, and gives those of the key. `false` where the rest of them
    /// is in the next batch, which must be loaded first. Rows of keys that nobody asks for cost a comparison.
    pub(super) fn pass(&mut self, key: K::Key<'_>, time: i64, mut row: impl FnMut(&RowBatch<K>, usize)) -> bool {
        let Some(current) = &self.current else { return self.ended };
        while self.at < current.batch.num_rows() {
            match K::compare(current.keys.key(self.at), key) {
                Ordering::Less => {}
                Ordering::Equal if current.visible.value(self.at) <= time => row(current, self.at),
                Ordering::Equal | Ordering::Greater => return true,
            }
            self.at += 1;
        }
        self.ended
    }

    /// Loads the next batch that has rows, if there is one.
    pub(super) async fn load(&mut self) -> Result<()> {
        let Some(batch) = self.stream.next().await.transpose()? else {
            self.ended = true;
            return Ok(());
        };
        self.at = 0;
        self.current = Some(Arc::new(RowBatch {
            number: self.current.as_ref().map_or(0, |before| before.number + 1),
            keys: K::convert(&self.converter, &take(&batch, &self.columns.row_keys))?,
            visible: numbers(&batch, self.columns.visible)?,
            event: numbers(&batch, self.columns.event)?,
            available: numbers(&batch, self.columns.available)?,
            written: match self.columns.written {
                Some([position, within]) => Some([numbers(&batch, position)?, numbers(&batch, within)?]),
                None => None,
            },
            batch,
        }));
        Ok(())
    }
}

pub(super) fn take(batch: &RecordBatch, indices: &[usize]) -> Vec<ArrayRef> {
    indices.iter().map(|&index| Arc::clone(batch.column(index))).collect()
}

/// A column of numbers; of times, of their microseconds.
fn numbers(batch: &RecordBatch, index: usize) -> Result<Int64Array> {
    Ok(cast(batch.column(index), &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}
