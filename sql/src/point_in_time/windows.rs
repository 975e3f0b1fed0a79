//! The sweep for windowed views: events are added to what is kept of their key as they become visible, and each question
//! is answered from that: windows that run along where events come in order and all aggregates can take away what has
//! passed, else windows in two stacks. Either way a question costs the same in a window of any length.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use springhouse_featurestore::aggregate::{
    Arguments, FeatureBuilder, RunningWindows, StackedWindows, Summaries, TileLayout, Value,
};
use springhouse_featurestore::definition::Windowed;
use springhouse_featurestore::encoding::RowHeader;
use springhouse_featurestore::time::Timestamp;

use super::keys::Keys;
use super::sides::{Columns, Question, RowSide, SpineSide, take};

/// What is kept of a key.
enum Kept {
    /// With the last answer.
    Running(RunningWindows, Vec<Summaries>),
    Stacked(StackedWindows),
}

impl Kept {
    fn begin(&mut self) {
        match self {
            Self::Running(windows, _) => windows.clear(),
            Self::Stacked(windows) => windows.clear(),
        }
    }

    fn add<'a>(&mut self, layout: &TileLayout, at: RowHeader, value_of: impl Fn(usize) -> Option<Value<'a>>) {
        match self {
            Self::Running(windows, _) => windows.add(layout, at, value_of),
            Self::Stacked(windows) => windows.add(layout, at, value_of),
        }
    }

    /// Finds what the windows hold as of a time. Returns the event time of the newest event.
    fn ask(&mut self, layout: &TileLayout, as_of: Timestamp) -> Option<i64> {
        let newest = match self {
            Self::Running(windows, answer) => {
                windows.windows(layout, as_of, answer);
                windows.newest()
            }
            Self::Stacked(windows) => {
                windows.windows(layout, as_of);
                windows.newest()
            }
        };
        newest.map(|(event, _)| event.micros())
    }

    /// What was found last.
    fn answer(&self) -> &[Summaries] {
        match self {
            Self::Running(_, answer) => answer,
            Self::Stacked(windows) => windows.answer(),
        }
    }
}

pub(super) struct WindowSums<K: Keys> {
    spine: SpineSide<K>,
    rows: RowSide<K>,
    payload: Vec<usize>,
    windowed: Arc<Windowed>,
    layout: Arc<TileLayout>,
    schema: SchemaRef,
    /// The arguments of the batch of rows being read.
    arguments: Option<Arguments>,
    /// The key whose events are kept.
    key: Option<K::Owned>,
    kept: Kept,
}

fn failed(error: springhouse_featurestore::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl<K: Keys> WindowSums<K> {
    pub(super) fn new(
        spine: SpineSide<K>,
        rows: RowSide<K>,
        columns: &Columns,
        windowed: &Arc<Windowed>,
        in_event_order: bool,
        schema: SchemaRef,
    ) -> Result<Self> {
        let layout = Arc::new(TileLayout::new(windowed).map_err(failed)?);
        let (payload, windowed) = (columns.payload.clone(), Arc::clone(windowed));
        let kept = if in_event_order && RunningWindows::serves(&layout) {
            Kept::Running(RunningWindows::default(), Vec::new())
        } else {
            Kept::Stacked(StackedWindows::default())
        };
        let (arguments, key) = (None, None);
        Ok(Self { spine, rows, payload, windowed, layout, schema, arguments, key, kept })
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
            events.push(answer);
            features.append(answer.map(|_| self.kept.answer()));
        }
        let mut columns = batch.columns().to_vec();
        columns.extend(features.finish().map_err(failed)?);
        columns.push(Arc::new(TimestampMicrosecondArray::from(events).with_timezone("UTC")));
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?))
    }

    /// Adds all events that were known of a key, then asks. Returns the event time of its newest event, if it has one; the
    /// windows are then the answer of what is kept.
    async fn answer(&mut self, question: Question<K::Key<'_>>) -> Result<Option<i64>> {
        let Question { key, time, known } = question;
        while !self.add_events(key, known) {
            self.rows.load().await?;
            let arguments = self.rows.current().map(|rows| take(&rows.batch, &self.payload));
            let arguments = arguments.map(|arguments| Arguments::new(&self.windowed, &arguments)).transpose();
            self.arguments = arguments.map_err(failed)?;
        }
        if self.key.as_ref().is_none_or(|held| !K::is(held, key)) {
            return Ok(None);
        }
        Ok(self.kept.ask(&self.layout, Timestamp::from_micros(time)))
    }

    /// Adds a key's events that were known by then; `false` where more of them are in the next batch.
    fn add_events(&mut self, key: K::Key<'_>, known: i64) -> bool {
        let Self { rows, arguments, key: held, kept, layout, .. } = self;
        rows.pass(key, known, |batch, row| {
            if held.as_ref().is_none_or(|held| !K::is(held, key)) {
                *held = Some(K::own(key));
                kept.begin();
            }
            if let Some(arguments) = arguments {
                kept.add(layout, batch.at(row), |argument| arguments.value(argument, row));
            }
        })
    }
}
