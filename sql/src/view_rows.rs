//! The rows of a view that became visible in a stretch of time: what a refresh commits.

mod by_range;
mod compared;
mod in_memory;
mod known;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::functions::core::expr_fn::greatest;
use datafusion::functions_aggregate::expr_fn as functions_aggregate;
use datafusion::logical_expr::{SortExpr, ident, lit};
use datafusion::prelude::DataFrame;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{EventTime, FeatureView, RowTime, Source, check_dated};
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::{AVAILABLE_TIME, COMMIT, EVENT_TIME, ObjectStore, WRITE_POSITION, WRITE_WITHIN};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};

pub use by_range::{MOST_RANGES, RangeRows, ranges_with_rows, split_rows};
pub use compared::changed_rows;
pub use in_memory::sorted_in_memory;
pub use known::{known_rows, one_source};

use crate::session::{EventRange, Session, exact, query_error, timestamp};

/// Batches as they are computed.
pub type RowStream = BoxStream<'static, Result<RecordBatch>>;

/// The rows of `view` that became visible after `since` (all, where it is `None`) and by `until`, with the columns of
/// its data files, sorted by key, event time and available time. Of feature rows that are equal in all three, which one
/// query over one state of the sources can yield, the one that was written last stands for all, then the one with the
/// greatest values (rule T5); the events of a windowed view all count.
///
/// Sources are read no further back than the view's `LOOKBACK` asks.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] names the file or column that is wrong.
pub async fn view_rows(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    since: Option<Timestamp>,
    until: Timestamp,
) -> Result<RowStream> {
    let range = EventRange { from: read_from(view, since), ..EventRange::known_by(until) };
    sources.add(session, view, range).await?;
    in_order(session, visible_in(session.view_frame(view).await?, view, since, until)?, view).await
}

/// The rows of `view` with event times of `from` and before `until`: of its history those that were visible by `known`, and
/// those of all pushed events that `sources` names, as [`view_rows`] gives them.
///
/// # Errors
/// As [`view_rows`].
pub async fn rows_between(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    range: (Timestamp, Timestamp),
    known: Timestamp,
) -> Result<RowStream> {
    in_order(session, rows_in(session, sources, view, range, known).await?, view).await
}

/// The same, in no order and not yet each once.
async fn rows_in(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    (from, until): (Timestamp, Timestamp),
    known: Timestamp,
) -> Result<DataFrame> {
    // Without LOOKBACK they may reach back to the first event.
    let reach = view.lookback.map_or(Timestamp::MIN, |lookback| from - lookback);
    let range = EventRange { from: reach, until, known, pushed: Timestamp::MAX };
    let rows = known::frame(session, sources, view, range).await?;
    let event = exact(EVENT_TIME);
    let wanted = event.clone().gt_eq(lit(timestamp(from))).and(event.lt(lit(timestamp(until))));
    rows.filter(wanted).map_err(query_error)
}

/// Rows of a view without those that have event times of `from` and before `until`; of a file that was merged from several,
/// the rows of commits after `base` stay.
pub fn outside(rows: RowStream, (from, until): (Timestamp, Timestamp), base: u64) -> RowStream {
    let kept = move |batch: RecordBatch| {
        let [event, _] = times_of(&batch)?;
        let commits = batch.column_by_name(COMMIT).and_then(|of| of.as_primitive_opt::<Int64Type>());
        let later = |row: usize| commits.is_some_and(|commits| commits.value(row).cast_unsigned() > base);
        let outside = |time: i64| time < from.micros() || time >= until.micros();
        let wanted: BooleanArray =
            event.values().iter().enumerate().map(|(row, time)| Some(outside(*time) || later(row))).collect();
        Ok(filter_record_batch(&batch, &wanted)?)
    };
    rows.map(move |batch| batch.and_then(kept)).boxed()
}

/// How many events a view's timed sources have from one event time to before another, and the least event time of all.
///
/// # Errors
/// As [`view_rows`].
pub async fn count_events(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    range: EventRange,
) -> Result<(u64, Option<Timestamp>)> {
    sources.add(session, view, range).await?;
    let (mut count, mut least) = (0, None::<Timestamp>);
    for pinned in &view.sources {
        let source = sources.catalog.source(pinned)?;
        let EventTime::Column { column, .. } = &source.event_time else { continue };
        let frame = session.context().table(source.name.as_str()).await.map_err(query_error)?;
        let counted = vec![functions_aggregate::count(lit(1_i64)), functions_aggregate::min(ident(column))];
        let batches =
            frame.aggregate(Vec::new(), counted).map_err(query_error)?.collect().await.map_err(query_error)?;
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            let rows = batch.column(0).as_primitive::<Int64Type>().value(0);
            count += rows.cast_unsigned();
            let first = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            if first.is_valid(0) {
                let first = Timestamp::from_micros(first.value(0));
                least = Some(least.map_or(first, |least| least.min(first)));
            }
        }
    }
    Ok((count, least))
}

/// The rows of `view` that `new` events of its sources bring, as [`view_rows`] gives them. Where each row stands
/// by itself nothing but the new events is read; else those before them are read too, as far back as `LOOKBACK` says.
///
/// # Errors
/// As [`view_rows`].
pub async fn pushed_rows(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    new: &PushedEvents,
) -> Result<RowStream> {
    if !view.reaches_back() {
        for pinned in &view.sources {
            let source = sources.catalog.source(pinned)?;
            let alone = new.has(&source.name);
            let pushed = if alone { new } else { sources.pushed };
            sources.add_one(session, (view, source), None, !alone, pushed).await?;
        }
        return in_order(session, session.view_frame(view).await?, view).await;
    }
    let oldest = oldest_event(sources.catalog, view, new)?;
    // Without LOOKBACK they may reach back to the first event.
    let from = view.lookback.map_or(Timestamp::MIN, |lookback| oldest - lookback);
    sources.add(session, view, EventRange { from, ..EventRange::known_by(Timestamp::MAX) }).await?;
    let frame = session.view_frame(view).await?;
    let recent = exact(EVENT_TIME).gt_eq(lit(timestamp(oldest)));
    in_order(session, frame.filter(recent).map_err(query_error)?, view).await
}

/// The least event time of new events that a view reads.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::NotFound`] when the catalog lacks a source.
pub fn oldest_event(catalog: &CatalogState, view: &FeatureView, new: &PushedEvents) -> Result<Timestamp> {
    let mut oldest = Timestamp::MAX;
    for pinned in &view.sources {
        let source = catalog.source(pinned)?;
        let EventTime::Column { column, .. } = &source.event_time else { continue };
        for batch in new.batches.get(&source.name).into_iter().flatten() {
            let times =
                batch.column_by_name(column).and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
            let least = times.and_then(arrow::compute::min);
            oldest = oldest.min(least.map_or(Timestamp::MAX, Timestamp::from_micros));
        }
    }
    Ok(oldest)
}

/// Where a view's events are: what the catalog says of its sources, and what was pushed to them.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The catalog.
    pub catalog: &'a CatalogState,
    /// Where pushed events' files are.
    pub store: &'a Arc<dyn ObjectStore>,
    /// The pushed events that count beside the history.
    pub pushed: &'a PushedEvents,
}

impl Sources<'_> {
    /// Adds a view's sources (and their tables) to a session, with the events of a range.
    ///
    /// # Errors
    /// As [`Session::add_table`] and [`Session::add_events`].
    pub async fn add(&self, session: &Session, view: &FeatureView, range: EventRange) -> Result<()> {
        for pinned in &view.sources {
            let source = self.catalog.source(pinned)?;
            self.add_one(session, (view, source), Some(range), true, self.pushed).await?;
        }
        Ok(())
    }

    async fn add_one(
        &self,
        session: &Session,
        (view, source): (&FeatureView, &Source),
        range: Option<EventRange>,
        history: bool,
        pushed: &PushedEvents,
    ) -> Result<()> {
        if history {
            for table in &source.tables {
                session.add_table(self.catalog.table(table)?).await?;
            }
        }
        session.add_events_of_view((view, source), range, history, pushed, self.store).await
    }
}

/// A view's rows sorted and each once, as they are computed.
async fn in_order(session: &Session, frame: DataFrame, view: &FeatureView) -> Result<RowStream> {
    let batches = session.stream(unique_order(frame, view)?).await?;
    each_once(batches.map_err(query_error).boxed(), view)
}

/// Of sorted feature rows with equal keys and times the last; the events of a windowed view all. A time that none may have
/// ends them: what is written must read back.
pub(crate) fn each_once(batches: RowStream, view: &FeatureView) -> Result<RowStream> {
    let schema = springhouse_featurestore::tier::data_schema(view);
    if view.windowed.is_some() {
        let rows = DatedRows::of(view);
        return Ok(batches.map(move |batch| rows.checked(conform(&batch?, &schema)?)).boxed());
    }
    let (mut last, dated) = (LastOfEqual::new(&schema, view.keys.len())?, DatedRows::of(view));
    let rows = batches.map(Some).chain(futures::stream::once(async { None })).filter_map(move |batch| {
        let kept = match batch {
            Some(Ok(batch)) => last.next(conform(&batch, &schema).and_then(|batch| dated.checked(batch))),
            Some(Err(error)) => Err(error),
            None => Ok(last.end()),
        };
        std::future::ready(kept.transpose())
    });
    Ok(rows.boxed())
}

/// Checks that the times of a view's rows are ones that events may have.
struct DatedRows {
    view: String,
    /// The rows of a static view hold at every time, which is before all of these.
    is_static: bool,
}

impl DatedRows {
    fn of(view: &FeatureView) -> Self {
        Self { view: view.name.clone(), is_static: view.is_static() }
    }

    fn checked(&self, batch: RecordBatch) -> Result<RecordBatch> {
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            if self.is_static && [EVENT_TIME, AVAILABLE_TIME].contains(&field.name().as_str()) {
                continue;
            }
            check_dated(column).map_err(|error| error.with("view", &self.view).with("column", field.name()))?;
        }
        Ok(batch)
    }
}

/// The least event time that the rows visible after `since` can depend on.
fn read_from(view: &FeatureView, since: Option<Timestamp>) -> Timestamp {
    match (since, &view.row_time, view.lookback) {
        (Some(since), RowTime::Delayed { delay, .. }, Some(lookback)) => since - *delay - lookback,
        // A late row may be of any time; without LOOKBACK a value may reach back to the first event.
        _ => Timestamp::MIN,
    }
}

/// Those of a view's rows that became visible after `since` (all, where it is `None`) and by `until`.
///
/// # Errors
/// Those of planning.
pub fn visible_in(
    frame: DataFrame,
    view: &FeatureView,
    since: Option<Timestamp>,
    until: Timestamp,
) -> Result<DataFrame> {
    if view.is_static() {
        return Ok(frame);
    }
    let (event, available) = (exact(EVENT_TIME), exact(AVAILABLE_TIME));
    let known = lit(timestamp(until));
    let mut wanted = event.clone().lt_eq(known.clone()).and(available.clone().lt_eq(known));
    if let Some(since) = since {
        let since = lit(timestamp(since));
        wanted = wanted.and(event.gt(since.clone()).or(available.gt(since)));
    }
    frame.filter(wanted).map_err(query_error)
}

/// Sorted by keys, times and values.
pub(crate) fn unique_order(frame: DataFrame, view: &FeatureView) -> Result<DataFrame> {
    frame.sort(row_order(view)).map_err(query_error)
}

/// The order of a view's rows in its data files: keys, times, their place in the order of writes where it counts, and values,
/// nulls first.
pub(crate) fn row_order(view: &FeatureView) -> Vec<SortExpr> {
    let keys = view.keys.iter().map(|key| exact(&key.name));
    let times = [EVENT_TIME, AVAILABLE_TIME].map(exact);
    let written = [WRITE_POSITION, WRITE_WITHIN].into_iter().filter(|_| view.keeps_order()).map(exact);
    let values = view.row_columns().iter().map(|column| exact(&column.name));
    keys.chain(times).chain(written).chain(values).map(|column| column.sort(true, true)).collect()
}

/// DataFusion's nullability and metadata differ from the data files'; the columns do not.
fn conform(batch: &RecordBatch, schema: &arrow::datatypes::SchemaRef) -> Result<RecordBatch> {
    Ok(RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec())?)
}

/// Keeps the last of each run of rows with equal key and times, across batches.
struct LastOfEqual {
    converter: RowConverter,
    columns: Vec<usize>,
    /// The last row seen, which the next batch may continue.
    held: Option<(RecordBatch, OwnedRow)>,
}

impl LastOfEqual {
    fn new(schema: &arrow::datatypes::SchemaRef, keys: usize) -> Result<Self> {
        let times = [schema.index_of(EVENT_TIME)?, schema.index_of(AVAILABLE_TIME)?];
        let columns: Vec<usize> = (0..keys).chain(times).collect();
        let fields = columns.iter().map(|&index| SortField::new(schema.field(index).data_type().clone())).collect();
        Ok(Self { converter: RowConverter::new(fields)?, columns, held: None })
    }

    fn next(&mut self, batch: Result<RecordBatch>) -> Result<Option<RecordBatch>> {
        let batch = batch?;
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        let columns: Vec<ArrayRef> = self.columns.iter().map(|&index| Arc::clone(batch.column(index))).collect();
        let identity = self.converter.convert_columns(&columns)?;
        let before = self.held.take().filter(|(_, held)| held.row() != identity.row(0)).map(|(row, _)| row);
        self.held = Some((batch.slice(rows - 1, 1), identity.row(rows - 1).owned()));
        let last: BooleanArray =
            (0..rows).map(|row| Some(row + 1 < rows && identity.row(row) != identity.row(row + 1))).collect();
        let kept = filter_record_batch(&batch, &last)?;
        let parts: Vec<RecordBatch> = before.into_iter().chain([kept]).collect();
        let kept = arrow::compute::concat_batches(&batch.schema(), &parts)?;
        Ok((kept.num_rows() > 0).then_some(kept))
    }

    fn end(&mut self) -> Option<RecordBatch> {
        self.held.take().map(|(row, _)| row)
    }
}

/// Committed rows of a view in the order in which they became visible.
///
/// # Errors
/// Those of planning; the stream gives those of reading.
pub async fn by_visible_time(session: &Session, rows: DataFrame, view: &FeatureView) -> Result<RowStream> {
    let visible = greatest(vec![exact(EVENT_TIME), exact(AVAILABLE_TIME)]);
    let sorted = rows.sort(vec![visible.sort(true, true)]).map_err(query_error)?;
    let schema = springhouse_featurestore::tier::data_schema(view);
    let batches = session.stream(sorted).await?;
    Ok(batches.map(move |batch| conform(&batch.map_err(query_error)?, &schema)).boxed())
}

/// The times of a data-file batch in microseconds: event and available.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Internal`] when the batch is not one.
pub fn times_of(batch: &RecordBatch) -> Result<[arrow::array::TimestampMicrosecondArray; 2]> {
    let column = |name: &str| {
        batch
            .column_by_name(name)
            .and_then(|array| array.as_primitive_opt().cloned())
            .ok_or_else(|| Error::internal("a batch of view rows lacks its times").with("column", name))
    };
    Ok([column(EVENT_TIME)?, column(AVAILABLE_TIME)?])
}
