//! The sweep for views of rows: the newest row of the key, kept as a place in its batch until the answers are gathered.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;
use arrow::row::OwnedRow;
use datafusion::error::Result;

use super::merge::Sweep;
use super::sides::{Columns, Question, Questions, RowBatch, RowSide, SpineSide};

/// Answers from more batches than this are not held at once: the batch of the spine is then answered in pieces.
const MOST_BATCHES: usize = 32;

/// Where a row lies. What nobody points to any more is gone.
type Place = (Arc<RowBatch>, usize);

pub(super) struct LatestRows {
    spine: SpineSide,
    rows: RowSide,
    sweep: Sweep<OwnedRow, Place>,
    payload: Vec<usize>,
    schema: SchemaRef,
    /// A batch of the spine that is not answered to its end, and its first row without an answer.
    begun: Option<(Questions, usize)>,
}

/// Batches that hold answers, and where each answer lies: 0 for none, else the batch's number and the row.
#[derive(Default)]
struct Answers {
    batches: Vec<Arc<RowBatch>>,
    places: Vec<(usize, usize)>,
}

impl Answers {
    fn add(&mut self, answer: Option<Place>) {
        let Some((batch, row)) = answer else { return self.places.push((0, 0)) };
        let known = self.batches.iter().rposition(|known| Arc::ptr_eq(known, &batch));
        if known.is_none() {
            self.batches.push(batch);
        }
        self.places.push((known.map_or(self.batches.len(), |index| index + 1), row));
    }
}

impl LatestRows {
    pub(super) fn new(spine: SpineSide, rows: RowSide, columns: &Columns, schema: SchemaRef) -> Self {
        Self { spine, rows, sweep: Sweep::new(), payload: columns.payload.clone(), schema, begun: None }
    }

    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let (questions, start) = match self.begun.take() {
            Some(begun) => begun,
            None => match self.spine.next().await? {
                Some(questions) => (questions, 0),
                None => return Ok(None),
            },
        };
        let (mut answers, mut row) = (Answers::default(), start);
        while row < questions.batch.num_rows() && answers.batches.len() < MOST_BATCHES {
            answers.add(match questions.at(row) {
                Some(question) => self.answer(question).await?,
                None => None,
            });
            row += 1;
        }
        let gathered = self.gather(&questions.batch.slice(start, row - start), &answers)?;
        if row < questions.batch.num_rows() {
            self.begun = Some((questions, row));
        }
        Ok(Some(gathered))
    }

    /// Offers all rows that were known of a key, then asks.
    async fn answer(&mut self, Question { key, known, .. }: Question<'_>) -> Result<Option<Place>> {
        while let Some((batch, at)) = self.rows.next_until(key, known).await? {
            let of = batch.keys.row(at);
            // Rows of keys that the spine does not ask for are passed over without a copy.
            if of == key {
                let times = (batch.event.value(at), batch.available.value(at));
                self.sweep.offer(|held| held.row() == of, || of.owned(), times, (Arc::clone(batch), at));
            }
        }
        Ok(self.sweep.answer(|held| held.row() == key))
    }

    fn gather(&self, spine: &RecordBatch, answers: &Answers) -> Result<RecordBatch> {
        let mut columns = spine.columns().to_vec();
        for (&index, field) in self.payload.iter().zip(&self.schema.fields()[columns.len()..]) {
            let nothing: ArrayRef = new_null_array(field.data_type(), 1);
            let held = answers.batches.iter().map(|of| of.batch.column(index).as_ref());
            let values: Vec<&dyn Array> = std::iter::once(nothing.as_ref()).chain(held).collect();
            columns.push(interleave(&values, &answers.places)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(spine.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}
