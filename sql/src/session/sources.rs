//! Sources in a session: their history in our types, what was pushed beside it, within a range, without what they reject.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as QueryResult;
use datafusion::logical_expr::{Expr, LogicalPlan, cast, ident, lit};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::definition::{Available, Column, ColumnType, EventTime, FeatureView, Rejects, Source};
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::{DataFile, ObjectStore, WRITE_POSITION};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};

use super::left_out::counts;
use super::local_time::utc_of_local_column;
use super::write_order::{no_order, order_names, tells_order, with_order};
use super::{Rule, Session, columns_of, exact, query_error, ruled, timestamp};
use crate::barrier::as_it_comes;
use crate::pushed::of_schema;

/// The events of sources that a query is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRange {
    /// The least event time; [`Timestamp::MIN`] for all.
    pub from: Timestamp,
    /// The greatest event time.
    pub until: Timestamp,
    /// The greatest event time and available time of history (rule T3),
    pub known: Timestamp,
    /// and of what was pushed; [`Timestamp::MAX`] for all that is given.
    pub pushed: Timestamp,
}

impl EventRange {
    /// Everything that was known by a time.
    pub fn known_by(until: Timestamp) -> Self {
        Self { from: Timestamp::MIN, until, known: until, pushed: until }
    }

    /// What it says of pushed events.
    fn of_pushed(self) -> Self {
        Self { known: self.pushed, ..self }
    }
}

impl Session {
    /// Adds a source under its name, with the events of its history in a range.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the column that is gone or of another type.
    pub async fn add_source(&self, source: &Source, range: Option<EventRange>) -> Result<()> {
        let history = self.history(source).await?;
        self.register(source, history, range)
    }

    /// Adds a source under its name, with the events of a range: those of its history if they are wanted, and pushed ones.
    ///
    /// # Errors
    /// As [`Self::add_source`].
    pub async fn add_events(
        &self,
        source: &Source,
        range: Option<EventRange>,
        history: bool,
        pushed: &PushedEvents,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<()> {
        let events = self.events(source, range, history, (pushed, false), store).await?;
        self.register(source, events, None)
    }

    /// The same for a view; where each of its rows is one event, events tell their place in the order of writes. The rows of
    /// a `STATIC` source have none.
    ///
    /// # Errors
    /// As [`Self::add_source`].
    pub(crate) async fn add_events_of_view(
        &self,
        (view, source): (&FeatureView, &Source),
        range: Option<EventRange>,
        history: bool,
        pushed: &PushedEvents,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<()> {
        let tell = tells_order(view) && source.event_time != EventTime::Static;
        let events = self.events(source, range, history, (pushed, tell), store).await?;
        self.register(source, events, None)
    }

    /// The events that a source rejects since they became known too late, of those that became known after `since` (all,
    /// where it is `None`) and by `until`.
    ///
    /// # Errors
    /// As [`Self::add_source`].
    pub async fn rejected_events(
        &self,
        source: &Source,
        pushed: &PushedEvents,
        store: &Arc<dyn ObjectStore>,
        since: Option<Timestamp>,
        until: Timestamp,
    ) -> Result<Option<DataFrame>> {
        let Some(rejects) = source.rejects() else { return Ok(None) };
        let known = || ident(rejects.available_time);
        let mut wanted = is_late(rejects).and(known().lt_eq(lit(timestamp(until))));
        if let Some(since) = since {
            wanted = wanted.and(known().gt(lit(timestamp(since))));
        }
        let events = self.events(source, None, true, (pushed, false), store).await?;
        events.filter(wanted).map(Some).map_err(query_error)
    }

    /// The events of a source within a range, those that it rejects included: its history's if it is wanted, and pushed ones;
    /// with their place in the order of writes if they are to tell it. Each once where the source tells them apart.
    async fn events(
        &self,
        source: &Source,
        range: Option<EventRange>,
        history: bool,
        (pushed, tell): (&PushedEvents, bool),
        store: &Arc<dyn ObjectStore>,
    ) -> Result<DataFrame> {
        if source.identity().is_none() {
            return self.whole(source, range, history, (pushed, tell), store).await;
        }
        let mut whole = self.whole(source, range, history, (pushed, true), store).await?;
        if pushed.has(&source.name) {
            // What is sorted below is a union, of which one side has no order of writes.
            whole = as_it_comes(self, whole).await?;
        }
        let mut once = self.each_event_once(source, whole).map_err(query_error)?;
        if !pushed.left_out.is_empty() {
            // After its copies: where the event that counts is left out, they do not count in its place.
            once = once.filter(counts(&pushed.left_out)).map_err(query_error)?;
        }
        if tell {
            return Ok(once);
        }
        let own: Vec<Expr> = source.columns.iter().map(|column| ident(&column.name)).collect();
        once.select(own).map_err(query_error)
    }

    /// The same with every copy of each, and of sources that tell their events apart with those too that are left out.
    pub(super) async fn whole(
        &self,
        source: &Source,
        range: Option<EventRange>,
        history: bool,
        (pushed, tell): (&PushedEvents, bool),
        store: &Arc<dyn ObjectStore>,
    ) -> Result<DataFrame> {
        let of_pushed = range.map(EventRange::of_pushed);
        let mut columns: Vec<Expr> = source.columns.iter().map(|column| ident(&column.name)).collect();
        let mut schema = Column::to_schema(source.columns.iter());
        let mut parts = Vec::new();
        if history && source.query.is_some() {
            let mut part = self.history(source).await?;
            if tell {
                part =
                    part.select(columns.iter().cloned().chain(no_order()).collect::<Vec<_>>()).map_err(query_error)?;
            }
            parts.push((part, range));
        }
        if tell {
            schema = with_order(&schema);
            columns.extend(order_names());
        }
        for files in self.pushed_files(source, of_pushed, pushed, &schema, store).await? {
            parts.push((files, of_pushed));
        }
        let batches = pushed.batches.get(&source.name).into_iter().flatten();
        let counted =
            |batch| if source.identity().is_some() { Ok(Clone::clone(batch)) } else { pushed.counted_of(batch) };
        let batches = batches.map(|batch| of_schema(&counted(batch)?, &schema)).collect::<Result<Vec<_>>>()?;
        if !batches.is_empty() || parts.is_empty() {
            let empty = arrow::array::RecordBatch::new_empty(Arc::clone(&schema));
            let batches = if batches.is_empty() { vec![empty] } else { batches };
            parts.push((self.context.read_batches(batches).map_err(query_error)?, of_pushed));
        }
        let mut whole: Option<DataFrame> = None;
        for (part, range) in parts {
            let mut part = part.select(columns.clone()).map_err(query_error)?;
            if let Some(range) = range {
                part = limit(part, source, range)?;
            }
            whole = Some(match whole {
                Some(whole) => whole.union(part).map_err(query_error)?,
                None => part,
            });
        }
        whole.ok_or_else(|| Error::internal("a source has no events at all").with("source", &source.name))
    }

    /// The events of a source's pushed files that may hold some of a range, as far as they count.
    async fn pushed_files(
        &self,
        source: &Source,
        range: Option<EventRange>,
        pushed: &PushedEvents,
        schema: &SchemaRef,
        store: &Arc<dyn ObjectStore>,
    ) -> Result<Vec<DataFrame>> {
        let files = pushed.files.get(&source.name).into_iter().flatten();
        let wanted = files.filter(|file| range.is_none_or(|range| may_hold(file, source, range)));
        let leaves_out = |file: &DataFile| source.identity().is_none() && pushed.leaves_out_of(file);
        let in_part = |file: &DataFile| pushed.cut(file).is_some() || leaves_out(file);
        let (cut, whole): (Vec<DataFile>, Vec<DataFile>) = wanted.cloned().partition(in_part);
        let mut parts = Vec::new();
        if !whole.is_empty() {
            parts.push(self.data_files(store, &whole, schema, &[]).await?);
        }
        if !cut.is_empty() {
            let has_order = schema.field_with_name(WRITE_POSITION).is_ok();
            let schema = if has_order { Arc::clone(schema) } else { with_order(schema) };
            let mut files = self.data_files(store, &cut, &schema, &[]).await?;
            if let Some(until) = pushed.until {
                let position = exact(WRITE_POSITION);
                let is_until = position.clone().is_null().or(position.lt_eq(lit(until.cast_signed())));
                files = files.filter(is_until).map_err(query_error)?;
            }
            if !pushed.left_out.is_empty() && source.identity().is_none() {
                files = files.filter(counts(&pushed.left_out)).map_err(query_error)?;
            }
            parts.push(files);
        }
        Ok(parts)
    }

    /// Registers those events of a source that it does not reject, within a range.
    pub(crate) fn register(&self, source: &Source, events: DataFrame, range: Option<EventRange>) -> Result<()> {
        let frame = match range {
            Some(range) => limit(events, source, range)?,
            None => events,
        };
        let frame = in_time(frame, source).map_err(query_error)?;
        self.context.register_table(source.name.as_str(), frame.into_view()).map_err(query_error)?;
        Ok(())
    }

    /// Takes a source's name back, so that other events can be added under it. Frames that have been made of it stay.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Internal`] when DataFusion refuses the name.
    pub(crate) fn forget(&self, source: &Source) -> Result<()> {
        self.context.deregister_table(source.name.as_str()).map_err(query_error)?;
        Ok(())
    }

    /// Whether each event of a source's history is made of one row of one table: then those of some of its files are told
    /// from these files alone. Its tables must have been added.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for a query that no longer plans.
    pub async fn row_by_row(&self, source: &Source) -> Result<bool> {
        let Some(query) = &source.query else { return Ok(false) };
        let frame = self.context.sql(query).await.map_err(query_error)?;
        let (mut tables, mut alone) = (0, true);
        let looked_at = frame.logical_plan().apply_with_subqueries(|node| {
            match node {
                LogicalPlan::TableScan(_) => tables += 1,
                LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {}
                _ => alone = false,
            }
            Ok(TreeNodeRecursion::Continue)
        });
        looked_at.map_err(query_error)?;
        Ok(alone && tables == 1)
    }

    /// The events that a source's query reads.
    async fn history(&self, source: &Source) -> Result<DataFrame> {
        let Some(query) = &source.query else {
            let none = arrow::array::RecordBatch::new_empty(Column::to_schema(source.columns.iter()));
            return self.context.read_batch(none).map_err(query_error);
        };
        let frame = self.source_frame(query, &source.zones()).await.map_err(|error| {
            Error::invalid("a source's query no longer fits its tables").with("source", &source.name).source(error)
        })?;
        let now = columns_of(&frame)?;
        for column in &source.columns {
            if !now.contains(column) {
                return Err(Error::invalid("a source's column is gone or of another type")
                    .with("source", &source.name)
                    .with("expected", column)
                    .with("found", now.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                    .remedy("restore the table's file, or change the source and apply"));
            }
        }
        Ok(frame)
    }

    /// A source's query with every column in one of our types, and its times in UTC: `zones` are those of the clocks by
    /// which columns without a zone were written, by column.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for a query that does not plan, and for types that cannot be carried.
    pub async fn source_frame(&self, query: &str, zones: &[(&str, &str)]) -> Result<DataFrame> {
        let frame = self.plan(query).await.map_err(query_error)?;
        let mut columns = Vec::new();
        for field in frame.schema().fields() {
            let mut expression = ident(field.name());
            let mut data_type = field.data_type().clone();
            if let Some((_, zone)) = zones.iter().find(|(column, _)| column == field.name())
                && matches!(data_type, DataType::Timestamp(_, None))
            {
                data_type = ColumnType::Timestamp.to_arrow();
                expression = utc_of_local_column(expression, zone);
            }
            let wanted =
                ColumnType::from_arrow(&data_type).map_err(|error| error.with("column", field.name()))?.to_arrow();
            let expression = if data_type == wanted { expression } else { cast(expression, wanted) };
            columns.push(expression.alias(field.name()));
        }
        frame.select(columns).map_err(query_error)
    }
}

/// Keeps the events of a range. Rows without an event time never happened. Where the range has no beginning, a time before
/// all that events may have ends the query: a value of many events would hide it.
fn limit(frame: DataFrame, source: &Source, range: EventRange) -> Result<DataFrame> {
    let EventTime::Column { column, .. } = &source.event_time else { return Ok(frame) };
    let mut wanted = ident(column).lt_eq(lit(timestamp(event_until(source, range))));
    if range.from > Timestamp::MIN {
        wanted = wanted.and(ident(column).gt_eq(lit(timestamp(range.from))));
    } else {
        wanted = wanted.and(ruled(ident(column), ("source", &source.name), column, Rule::Dated));
    }
    if let Available::Column(available) = &source.available {
        wanted = wanted.and(ident(available).lt_eq(lit(timestamp(range.known))));
    }
    frame.filter(wanted).map_err(query_error)
}

/// The greatest event time of a range.
fn event_until(source: &Source, range: EventRange) -> Timestamp {
    match &source.available {
        Available::Delay(delay) => range.until.min(range.known - *delay),
        Available::AtEventTime | Available::Column(_) => range.until.min(range.known),
    }
}

/// Whether a file of pushed events may hold some of a range: what [`limit`] keeps, by what is told of the file.
fn may_hold(file: &DataFile, source: &Source, range: EventRange) -> bool {
    let EventTime::Column { column, .. } = &source.event_time else { return true };
    let is_known = match &source.available {
        Available::Column(available) => file.may_have(available, (Timestamp::MIN, range.known)),
        Available::Delay(_) | Available::AtEventTime => true,
    };
    is_known && file.may_have(column, (range.from, event_until(source, range)))
}

/// Those of a source's events that it does not reject.
pub(super) fn in_time(events: DataFrame, source: &Source) -> QueryResult<DataFrame> {
    match source.rejects() {
        Some(rejects) => events.filter(is_late(rejects).is_not_true()),
        None => Ok(events),
    }
}

/// Whether an event became known too late. Counted in microseconds: adding intervals to times goes through the calendar.
fn is_late(rejects: Rejects<'_>) -> Expr {
    let micros = |column: &str| cast(ident(column), DataType::Int64);
    (micros(rejects.available_time) - micros(rejects.event_time)).gt(lit(rejects.lateness.micros()))
}
