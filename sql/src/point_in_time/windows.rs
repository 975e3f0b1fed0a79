//! The sweep for windowed views: events are added to their key's tiles as they become visible, and each question is
//! answered from the tiles that its windows cover.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use springhouse_featurestore::aggregate::{Arguments, EntityTiles, Summaries, TileLayout, feature_columns};
use springhouse_featurestore::definition::Windowed;
use springhouse_featurestore::time::Timestamp;

use super::exec::{Columns, RowSide, micros, take};

/// A window's summaries for each window of a view, and the event time of the entity's newest event.
type Answer = (Vec<Summaries>, i64);

pub(super) struct WindowMerging {
    spine: SendableRecordBatchStream,
    rows: RowSide,
    converter: RowConverter,
    columns: Columns,
    windowed: Arc<Windowed>,
    layout: TileLayout,
    schema: SchemaRef,
    /// The arguments of the row batch being read, and which batch that is.
    arguments: Option<Arguments>,
    batches_read: usize,
    held: Option<(OwnedRow, EntityTiles)>,
}

fn failed(error: springhouse_featurestore::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl WindowMerging {
    pub(super) fn new(
        spine: SendableRecordBatchStream,
        rows: RowSide,
        columns: &Columns,
        windowed: Arc<Windowed>,
        schema: SchemaRef,
    ) -> Result<Self> {
        Ok(Self {
            spine,
            rows,
            converter: RowConverter::new(columns.sort_fields.clone())?,
            columns: columns.clone(),
            layout: TileLayout::new(&windowed).map_err(failed)?,
            windowed,
            schema,
            arguments: None,
            batches_read: 0,
            held: None,
        })
    }

    pub(super) fn batches(self) -> BoxStream<'static, Result<RecordBatch>> {
        let batches =
            stream::try_unfold(
                self,
                |mut merging| async move { Ok(merging.next().await?.map(|batch| (batch, merging))) },
            );
        batches.boxed()
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.spine.next().await.transpose()? else { return Ok(None) };
        let keys = take(&batch, &self.columns.spine_keys);
        let nulls: Vec<&ArrayRef> = keys.iter().filter(|key| key.null_count() > 0).collect();
        let keys_of = self.converter.convert_columns(&keys)?;
        let times = micros(&batch, self.columns.spine_time)?;
        let mut answers: Vec<Option<Vec<Summaries>>> = Vec::with_capacity(batch.num_rows());
        let mut events: Vec<Option<i64>> = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let absent = times.is_null(row) || nulls.iter().any(|key| key.is_null(row));
            let answer = if absent { None } else { self.answer(&keys_of.row(row).owned(), times.value(row)).await? };
            events.push(answer.as_ref().map(|(_, event)| *event));
            answers.push(answer.map(|(windows, _)| windows));
        }
        let mut columns = batch.columns().to_vec();
        columns.extend(feature_columns(&self.windowed, &self.layout, &answers).map_err(failed)?);
        columns.push(Arc::new(TimestampMicrosecondArray::from(events).with_timezone("UTC")));
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?))
    }

    /// Adds all events that are visible to a key by a time, then asks.
    async fn answer(&mut self, key: &OwnedRow, time: i64) -> Result<Option<Answer>> {
        let mut values = Vec::new();
        while self.rows.fill(None).await? {
            self.drop_read_batches();
            let Some(current) = self.rows.kept.last() else { break };
            let (at, of) = (self.rows.at, current.keys.row(self.rows.at));
            if (of, current.visible.value(at)) > (key.row(), time) {
                break;
            }
            // Events of keys that the spine does not ask for are passed over.
            if of == key.row() {
                if self.arguments.is_none() {
                    let Some(batch) = &current.batch else {
                        return Err(DataFusionError::Internal("a batch being read is gone".to_owned()));
                    };
                    let columns = take(batch, &self.columns.payload);
                    self.arguments = Some(Arguments::new(&self.windowed, &columns).map_err(failed)?);
                }
                if self.held.as_ref().is_none_or(|(held, _)| held.row() != of) {
                    self.held = Some((of.owned(), EntityTiles::default()));
                }
                let event = |times: &Int64Array| Timestamp::from_micros(times.value(at));
                if let (Some((_, tiles)), Some(arguments)) = (&mut self.held, &self.arguments) {
                    arguments.of_row(at, &mut values);
                    tiles.add(&self.layout, event(&current.event), event(&current.available), &values);
                }
            }
            self.rows.at += 1;
        }
        let Some((_, tiles)) = self.held.as_mut().filter(|(held, _)| held.row() == key.row()) else { return Ok(None) };
        let as_of = Timestamp::from_micros(time);
        tiles.forget_before(&self.layout, as_of);
        Ok(tiles.newest().map(|(event, _)| (tiles.windows(&self.layout, as_of), event.micros())))
    }

    /// Only the batch being read is needed.
    fn drop_read_batches(&mut self) {
        let read = self.rows.kept.len() - 1;
        if read > 0 || self.batches_read == 0 {
            self.rows.kept.drain(..read);
            self.batches_read += 1;
            self.arguments = None;
        }
    }
}
