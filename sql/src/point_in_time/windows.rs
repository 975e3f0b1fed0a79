//! The sweep for windowed views: events are added to their key's tiles as they become visible, and each question is
//! answered from the tiles that its windows cover.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use arrow::row::OwnedRow;
use datafusion::error::{DataFusionError, Result};
use springhouse_featurestore::aggregate::{Arguments, EntityTiles, FeatureBuilder, Summaries, TileLayout};
use springhouse_featurestore::definition::Windowed;
use springhouse_featurestore::time::Timestamp;

use super::sides::{Columns, Question, RowBatch, RowSide, SpineSide, take};

/// A window's summaries for each window of a view, and the event time of the entity's newest event.
type Answer = (Vec<Summaries>, i64);

pub(super) struct WindowSums {
    spine: SpineSide,
    rows: RowSide,
    payload: Vec<usize>,
    windowed: Arc<Windowed>,
    layout: Arc<TileLayout>,
    schema: SchemaRef,
    /// The arguments of the batch of rows being read.
    arguments: Option<(Arc<RowBatch>, Arguments)>,
    held: Option<(OwnedRow, EntityTiles)>,
}

fn failed(error: springhouse_featurestore::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl WindowSums {
    pub(super) fn new(
        spine: SpineSide,
        rows: RowSide,
        columns: &Columns,
        windowed: &Arc<Windowed>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let layout = Arc::new(TileLayout::new(windowed).map_err(failed)?);
        let payload = columns.payload.clone();
        Ok(Self { spine, rows, payload, windowed: Arc::clone(windowed), layout, schema, arguments: None, held: None })
    }

    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(questions) = self.spine.next().await? else { return Ok(None) };
        let batch = &questions.batch;
        let (windowed, layout) = (Arc::clone(&self.windowed), Arc::clone(&self.layout));
        let mut features = FeatureBuilder::new(&windowed, &layout);
        let mut events: Vec<Option<i64>> = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let answer = match questions.at(row) {
                Some(question) => self.answer(question).await?,
                None => None,
            };
            events.push(answer.as_ref().map(|(_, event)| *event));
            features.append(answer.as_ref().map(|(windows, _)| windows.as_slice()));
        }
        let mut columns = batch.columns().to_vec();
        columns.extend(features.finish().map_err(failed)?);
        columns.push(Arc::new(TimestampMicrosecondArray::from(events).with_timezone("UTC")));
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?))
    }

    /// Adds all events that were known of a key, then asks.
    async fn answer(&mut self, Question { key, time, known }: Question<'_>) -> Result<Option<Answer>> {
        while let Some((batch, at)) = self.rows.next_until(key, known).await? {
            let of = batch.keys.row(at);
            // Events of keys that the spine does not ask for are passed over.
            if of != key {
                continue;
            }
            if self.arguments.as_ref().is_none_or(|(read, _)| !Arc::ptr_eq(read, batch)) {
                let arguments = Arguments::new(&self.windowed, &take(&batch.batch, &self.payload)).map_err(failed)?;
                self.arguments = Some((Arc::clone(batch), arguments));
            }
            if self.held.as_ref().is_none_or(|(held, _)| held.row() != of) {
                self.held = Some((of.owned(), EntityTiles::default()));
            }
            if let (Some((_, tiles)), Some((_, arguments))) = (&mut self.held, &self.arguments) {
                let [event, available] =
                    [&batch.event, &batch.available].map(|times| Timestamp::from_micros(times.value(at)));
                tiles.add(&self.layout, event, available, |argument| arguments.value(argument, at));
            }
        }
        let Some((_, tiles)) = self.held.as_mut().filter(|(held, _)| held.row() == key) else { return Ok(None) };
        let as_of = Timestamp::from_micros(time);
        tiles.forget_before(&self.layout, as_of);
        Ok(tiles.newest().map(|(event, _)| (tiles.windows(&self.layout, as_of), event.micros())))
    }
}
