//! Events each once (rule T12): of a source that says by `DISTINCT ON` what makes an event the same.
//!
//! Of copies the one counts that was known first; of equals the pushed one before that of the history, of pushes the one of
//! the earlier position, and of copies of the history the one with the least values, so that every query sees the same one.
//! Copies have one event time: what is looked at is bounded by the times that a query reads.
//!
//! A query that adds to what a view has looks at what is new alone, and leaves out the copies of what the view has got.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType, UInt64Type};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column as LogicalColumn, JoinType, NullEquality};
use datafusion::error::Result as QueryResult;
use datafusion::functions_aggregate::expr_fn::{max, min};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlanBuilder, SortExpr, lit};
use datafusion::prelude::DataFrame;
use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::{Available, Column, FeatureView, Source};
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::{
    COMMIT, DataFile, EVENT_TIME, ObjectStore, WRITE_POSITION, WRITE_WITHIN, data_schema,
};
use springhouse_featurestore::time::Timestamp;

use super::sources::{EventRange, in_time};
use super::{Session, exact, query_error, timestamp};
use crate::barrier::table_of;
use crate::pushed::of_schema;
use crate::view_rows::RowStream;

/// Numbers the copies of an event.
const COPY: &str = "@copy";

/// Numbers events that are asked about.
const ROW: &str = "@row";

/// Events of a source that count already, read by the session that tells of them.
#[derive(Clone)]
pub struct TakenEvents {
    /// Their columns are those that tell events apart, as [`taken_name`] names them.
    table: Arc<dyn TableProvider>,
}

impl fmt::Debug for TakenEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenEvents").finish_non_exhaustive()
    }
}

/// What of the events of sources is new to a view: it concerns those sources alone that tell their events apart.
#[derive(Debug, Clone, Default)]
pub struct NewEvents {
    /// They became visible after this time; all did, where it is `None`.
    pub since: Option<Timestamp>,
    /// The events that count already, by source.
    pub taken: BTreeMap<String, Vec<TakenEvents>>,
}

/// The name of a column of taken events, by its place among those that tell events apart.
fn taken_name(index: usize) -> String {
    format!("@taken_{index}")
}

impl Session {
    /// The same, in which sources that tell their events apart have those alone that are new.
    #[must_use]
    pub fn only_new(mut self, new: NewEvents) -> Self {
        self.new_events = Some(Arc::new(new));
        self
    }

    /// The events of a source's history in a range, as events that count already; its tables must have been added.
    ///
    /// # Errors
    /// As [`Session::add_source`].
    pub async fn taken_of_history(
        &self,
        source: &Source,
        range: EventRange,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<Option<TakenEvents>> {
        let events = self.whole(source, Some(range), true, (&PushedEvents::default(), true), store).await?;
        self.taken(source, events).await
    }

    /// Pushed events of a source up to a position, of event times from one to another, as events that count already.
    ///
    /// # Errors
    /// As [`Session::add_source`].
    pub async fn taken_of_pushes(
        &self,
        source: &Source,
        (from, until): (Timestamp, Timestamp),
        (pushed, position): (&PushedEvents, u64),
        store: &Arc<dyn ObjectStore>,
    ) -> Result<Option<TakenEvents>> {
        if !pushed.has(&source.name) {
            return Ok(None);
        }
        let range = EventRange { from, until, known: Timestamp::MAX, pushed: Timestamp::MAX };
        let events = self.whole(source, Some(range), false, (pushed, true), store).await?;
        let position = lit(i64::try_from(position).unwrap_or(i64::MAX));
        // Those of before positions were kept came before all others.
        let taken = exact(WRITE_POSITION).is_null().or(exact(WRITE_POSITION).lt_eq(position));
        self.taken(source, events.filter(taken).map_err(query_error)?).await
    }

    async fn taken(&self, source: &Source, events: DataFrame) -> Result<Option<TakenEvents>> {
        let Some(identity) = source.identity() else { return Ok(None) };
        let columns = identity.iter().enumerate();
        let columns: Vec<Expr> = columns.map(|(index, column)| exact(&column.name).alias(taken_name(index))).collect();
        let events = in_time(events, source).and_then(|events| events.select(columns)).map_err(query_error)?;
        Ok(Some(TakenEvents { table: table_of(self, events).await? }))
    }

    /// The greatest event time of a source's pushed events.
    ///
    /// # Errors
    /// As [`Session::add_source`].
    pub async fn newest_pushed_event(
        &self,
        source: &Source,
        pushed: &PushedEvents,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<Option<Timestamp>> {
        let Some(event_time) = source.event_column().filter(|_| pushed.has(&source.name)) else { return Ok(None) };
        let events = self.whole(source, None, false, (pushed, false), store).await?;
        one_time(events.aggregate(Vec::new(), vec![max(exact(event_time))])).await
    }

    /// What tells a source's pushed events of a stretch of event time apart.
    ///
    /// # Errors
    /// As [`Session::add_source`].
    pub async fn pushed_events(
        &self,
        source: &Source,
        (from, until): (Timestamp, Timestamp),
        pushed: &PushedEvents,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<RowStream> {
        let range = EventRange { from, until, known: Timestamp::MAX, pushed: Timestamp::MAX };
        let events = self.whole(source, Some(range), false, (pushed, false), store).await?;
        let identity = source.identity().unwrap_or_default();
        let told = events.select(identity.iter().map(|column| exact(&column.name)).collect::<Vec<_>>());
        Ok(self.stream(told.map_err(query_error)?).await?.map_err(query_error).boxed())
    }

    /// Which of some events, by row, are among events of their source that count already.
    ///
    /// # Errors
    /// Those of reading the latter.
    pub async fn copies(&self, source: &Source, events: &RecordBatch, taken: &TakenEvents) -> Result<Vec<bool>> {
        let mut copies = vec![false; events.num_rows()];
        let Some(identity) = source.identity() else { return Ok(copies) };
        let rows: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..events.num_rows() as u64));
        // They may have been pushed to another version of the source.
        let told = of_schema(events, &Column::to_schema(identity.iter().copied()))?;
        let mut columns = vec![(ROW, rows, false)];
        columns
            .extend(identity.iter().zip(told.columns()).map(|(of, array)| (of.name.as_str(), Arc::clone(array), true)));
        let asked = self.context.read_batch(RecordBatch::try_from_iter_with_nullable(columns)?).map_err(query_error)?;
        let names: Vec<&str> = identity.iter().map(|column| column.name.as_str()).collect();
        let found =
            self.joined(asked, &names, taken, JoinType::LeftSemi).and_then(|found| found.select(vec![exact(ROW)]));
        for batch in found.map_err(query_error)?.collect().await.map_err(query_error)? {
            for row in batch.column(0).as_primitive::<UInt64Type>().values() {
                if let Some(copy) = usize::try_from(*row).ok().and_then(|row| copies.get_mut(row)) {
                    *copy = true;
                }
            }
        }
        Ok(copies)
    }

    /// The event times of those of some rows of a view of which its files have none of the same key at the same time, up to a
    /// commit: of each file the number of the commit that wrote its rows is told.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] when a file cannot be read.
    pub async fn times_without_row(
        &self,
        store: &Arc<dyn ObjectStore>,
        view: &FeatureView,
        (files, commit): (&[(u64, DataFile)], u64),
        rows: Vec<RecordBatch>,
    ) -> Result<BTreeSet<Timestamp>> {
        let mut times = BTreeSet::new();
        for batch in &rows {
            let [of_rows, _] = crate::view_rows::times_of(batch)?;
            times.extend(of_rows.values().iter().map(|time| Timestamp::from_micros(*time)));
        }
        let (Some(least), Some(greatest)) = (times.first().copied(), times.last().copied()) else { return Ok(times) };
        let may_have = |file: &DataFile| file.event_times.is_none_or(|of| of.0 <= greatest && least <= of.1);
        let files = files.iter().filter(|(_, file)| may_have(file));
        let (whole, cut): (Vec<_>, Vec<_>) = files.partition(|(number, file)| file.commits(*number).1 <= commit);
        let (names, own) = (identity_of(view), data_schema(view));
        let mut committed: Option<DataFrame> = None;
        for (files, cut) in [(whole, false), (cut, true)] {
            let files: Vec<DataFile> = files.into_iter().map(|(_, file)| file.clone()).collect();
            if files.is_empty() {
                continue;
            }
            let further = cut.then(|| Arc::new(Field::new(COMMIT, DataType::Int64, true)));
            let schema = Schema::new(own.fields().iter().cloned().chain(further).collect::<Vec<_>>());
            let mut frame = self.data_files(store, &files, &Arc::new(schema), &[]).await?;
            if cut {
                let until = lit(i64::try_from(commit).unwrap_or(i64::MAX));
                frame = frame.filter(exact(COMMIT).lt_eq(until)).map_err(query_error)?;
            }
            let time = exact(EVENT_TIME);
            let near = time.clone().gt_eq(lit(timestamp(least))).and(time.lt_eq(lit(timestamp(greatest))));
            let columns = names.iter().enumerate().map(|(index, name)| exact(name).alias(taken_name(index)));
            let frame = frame.filter(near).and_then(|frame| frame.select(columns.collect::<Vec<_>>()));
            committed = Some(match committed {
                Some(committed) => committed.union(frame.map_err(query_error)?).map_err(query_error)?,
                None => frame.map_err(query_error)?,
            });
        }
        let Some(committed) = committed else { return Ok(times) };
        let committed = TakenEvents { table: table_of(self, committed).await? };
        let asked = self.context.read_batches(rows).map_err(query_error)?;
        let without = self.joined(asked, &names, &committed, JoinType::LeftAnti);
        let without = without.and_then(|rows| rows.select(vec![exact(EVENT_TIME)])).map_err(query_error)?;
        times.clear();
        for batch in without.collect().await.map_err(query_error)? {
            let of_rows = batch.column(0).as_primitive::<TimestampMicrosecondType>().values();
            times.extend(of_rows.iter().map(|time| Timestamp::from_micros(*time)));
        }
        Ok(times)
    }

    /// The least event time of the events of a source's history in a range that became visible after `since` (all, where it
    /// is `None`); its tables must have been added.
    ///
    /// # Errors
    /// As [`Session::add_source`].
    pub async fn least_new_event(
        &self,
        source: &Source,
        range: EventRange,
        since: Option<Timestamp>,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<Option<Timestamp>> {
        let Some(event_time) = source.event_column() else { return Ok(None) };
        let events = self.whole(source, Some(range), true, (&PushedEvents::default(), false), store).await?;
        let events = in_time(events, source).and_then(|events| visible_after(events, source, since));
        one_time(events.and_then(|events| events.aggregate(Vec::new(), vec![min(exact(event_time))]))).await
    }

    /// Of events that tell their place in the order of writes each once, without what is not new where that is asked for.
    pub(super) fn each_event_once(&self, source: &Source, events: DataFrame) -> QueryResult<DataFrame> {
        let Some(identity) = source.identity() else { return Ok(events) };
        let identity: Vec<&str> = identity.iter().map(|column| column.name.as_str()).collect();
        let columns: Vec<Expr> = events.schema().fields().iter().map(|field| exact(field.name())).collect();
        let mut events = events;
        if let Some(new) = &self.new_events {
            events = visible_after(events, source, new.since)?;
            for taken in new.taken.get(&source.name).into_iter().flatten() {
                events = self.joined(events, &identity, taken, JoinType::LeftAnti)?;
            }
        }
        let copy = row_number()
            .partition_by(identity.iter().map(|name| exact(name)).collect())
            .order_by(first_known(source, &identity))
            .build()?
            .alias(COPY);
        events.window(vec![copy])?.filter(exact(COPY).eq(lit(1_u64)))?.select(columns)
    }

    /// Those of some events that are among events that count already, or those that are not; a null is like a null.
    fn joined(
        &self,
        events: DataFrame,
        identity: &[&str],
        taken: &TakenEvents,
        kind: JoinType,
    ) -> QueryResult<DataFrame> {
        let (state, events) = events.into_parts();
        let taken = self.context.read_table(Arc::clone(&taken.table))?.into_unoptimized_plan();
        let own = identity.iter().map(|name| LogicalColumn::new_unqualified(*name)).collect();
        let others = (0..identity.len()).map(|index| LogicalColumn::new_unqualified(taken_name(index))).collect();
        let plan = LogicalPlanBuilder::from(events).join_detailed(
            taken,
            kind,
            (own, others),
            None,
            NullEquality::NullEqualsNull,
        )?;
        Ok(DataFrame::new(state, plan.build()?))
    }
}

/// What a view's row is told apart by: its key and its event time.
fn identity_of(view: &FeatureView) -> Vec<&str> {
    view.keys.iter().map(|key| key.name.as_str()).chain([EVENT_TIME]).collect()
}

/// The one time that a query gives.
async fn one_time(frame: QueryResult<DataFrame>) -> Result<Option<Timestamp>> {
    let batches = frame.map_err(query_error)?.collect().await.map_err(query_error)?;
    let mut times = batches.iter().filter(|batch| batch.num_rows() > 0).filter_map(|batch| {
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
        times.is_valid(0).then(|| Timestamp::from_micros(times.value(0)))
    });
    Ok(times.next_back())
}

/// The order in which copies of an event count: the first does.
fn first_known(source: &Source, identity: &[&str]) -> Vec<SortExpr> {
    let available = match &source.available {
        Available::Column(column) => Some(column.as_str()),
        Available::AtEventTime | Available::Delay(_) => None,
    };
    let values = source.columns.iter().map(|column| column.name.as_str());
    let others = values.filter(|name| !identity.contains(name) && available != Some(*name));
    let order = available.into_iter().chain([WRITE_POSITION, WRITE_WITHIN]).chain(others);
    // What has no position is of the history.
    order.map(|name| exact(name).sort(true, false)).collect()
}

/// The events that became visible after a time.
fn visible_after(events: DataFrame, source: &Source, since: Option<Timestamp>) -> QueryResult<DataFrame> {
    let (Some(since), Some(event_time)) = (since, source.event_column()) else { return Ok(events) };
    let after = |since: Timestamp| exact(event_time).gt(lit(timestamp(since)));
    events.filter(match &source.available {
        Available::AtEventTime => after(since),
        Available::Delay(delay) => after(since - *delay),
        Available::Column(available) => after(since).or(exact(available).gt(lit(timestamp(since)))),
    })
}
