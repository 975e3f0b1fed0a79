//! The sweep for views of rows: the newest row of the key, kept as a place in its batch until the answers are gathered.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};

use super::keys::Keys;
use super::merge::Sweep;
use super::sides::{Columns, Question, Questions, RowBatch, RowSide, SpineSide};

/// Answers from more batches than this are not held at once: the batch of the spine is then answered in pieces.
const MOST_BATCHES: usize = 32;

/// Where a row lies: the number of its batch, and its row there.
type Place = (usize, usize);

pub(super) struct LatestRows<K: Keys> {
    spine: SpineSide<K>,
    rows: RowSide<K>,
    sweep: Sweep<K::Owned, Place>,
    /// The batch of the best row so far, where that is not the current one.
    held: Option<Arc<RowBatch<K>>>,
    payload: Vec<usize>,
    schema: SchemaRef,
    /// A batch of the spine that is not answered to its end, and its first row without an answer.
    begun: Option<(Questions<K>, usize)>,
}

/// Batches that hold answers, and where each answer lies: 0 for none, else the place of the batch and the row.
struct Answers<K> {
    batches: Vec<Arc<RowBatch<K>>>,
    places: Vec<(usize, usize)>,
}

impl<K: Keys> Answers<K> {
    /// Both sides are in one order, so an answer never lies before the one before it.
    fn add(&mut self, batch: &Arc<RowBatch<K>>, row: usize) {
        if self.batches.last().is_none_or(|last| last.number != batch.number) {
            self.batches.push(Arc::clone(batch));
        }
        self.places.push((self.batches.len(), row));
    }
}

impl<K: Keys> LatestRows<K> {
    pub(super) fn new(spine: SpineSide<K>, rows: RowSide<K>, columns: &Columns, schema: SchemaRef) -> Self {
        let payload = columns.payload.clone();
        Self { spine, rows, sweep: Sweep::new(), held: None, payload, schema, begun: None }
    }

    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let (questions, start) = match self.begun.take() {
            Some(begun) => begun,
            None => match self.spine.next().await? {
                Some(questions) => (questions, 0),
                None => return Ok(None),
            },
        };
        let length = questions.batch.num_rows();
        let mut answers = Answers { batches: Vec::new(), places: Vec::with_capacity(length - start) };
        let mut row = start;
        while row < length && answers.batches.len() < MOST_BATCHES {
            match questions.at(row) {
                Some(question) => self.answer(question, &mut answers).await?,
                None => answers.places.push((0, 0)),
            }
            row += 1;
        }
        let gathered = self.gather(&questions.batch.slice(start, row - start), &answers)?;
        if row < length {
            self.begun = Some((questions, row));
        }
        Ok(Some(gathered))
    }

    /// Offers all rows that were known of a key, then asks.
    async fn answer(&mut self, question: Question<K::Key<'_>>, answers: &mut Answers<K>) -> Result<()> {
        let Question { key, known, .. } = question;
        loop {
            let sweep = &mut self.sweep;
            let passed = self.rows.pass(key, known, |batch, row| {
                sweep.offer(|held| K::is(held, key), || K::own(key), batch.times(row), (batch.number, row));
            });
            if passed {
                break;
            }
            self.load().await?;
        }
        match self.sweep.answer(|held| K::is(held, key)) {
            None => answers.places.push((0, 0)),
            Some((number, row)) => {
                let batch = [self.rows.current(), self.held.as_ref()].into_iter().flatten();
                let batch = batch.into_iter().find(|batch| batch.number == number).ok_or_else(|| {
                    DataFusionError::Internal("the batch of the best row is no longer held".to_owned())
                })?;
                answers.add(batch, row);
            }
        }
        Ok(())
    }

    /// Loads the next rows, and holds those before for as long as one of them is the best.
    async fn load(&mut self) -> Result<()> {
        let best = self.sweep.best().map(|(number, _)| *number);
        if let Some(current) = self.rows.current().filter(|current| Some(current.number) == best) {
            self.held = Some(Arc::clone(current));
        }
        self.rows.load().await
    }

    fn gather(&self, spine: &RecordBatch, answers: &Answers<K>) -> Result<RecordBatch> {
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
