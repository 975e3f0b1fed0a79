//! Events that a view does without: kept in a table beside its rows, listed, tried again, or let go.
//!
//! A flush sets an event aside where the view's query fails on it ([`crate::push`]); its commit names the view's table. The
//! event itself stays where all pushes are. *Tried again*, events that the query takes now are committed with their own
//! places in the order of writes (rule T5), in the same commit that takes them out of the table: so each counts once, whatever
//! is killed or comes first, and whoever follows the view gets them like any commit's rows. *Dropped*, they leave the table
//! by a commit that says who did it, and why. A backfill that computes them anew takes them out too.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::{cast, concat_batches, filter_record_batch, not};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimestampMicrosecondType};
use async_trait::async_trait;
use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::{Column, ColumnType, Definition, EventTime, FeatureView, Source};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{
    EventPlace, PushEntry, PushHistoryState, PushOrigin, PushedEvents, WhySetAside, late_events,
};
use springhouse_featurestore::tier::{
    BackfillPlan, DataFile, MOST_SET_ASIDE, REASON, SET_ASIDE_AT, SetAside, SetAsideEvents, ViewCommit, ViewCommitKind,
    ViewLog, ViewLogState, WRITE_POSITION, WRITE_WITHIN, places_of, read_set_aside, reasons_of, with_reasons,
    write_set_aside,
};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::OnDemand;
use springhouse_sql::view_rows::{RowStream, Sources, pushed_rows};

use crate::Jobs;
use crate::jobs::until_first;
use crate::separate::{Aside, Limits, Separated, separate};

/// The source of an event, among those of several.
const SOURCE: &str = "@source";

/// What became of a view's events that had been set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettledNow {
    /// The view, `name@version`.
    pub view: String,
    /// The events that count now,
    pub counted: u64,
    /// those that were let go,
    pub dropped: u64,
    /// and those that are set aside still.
    pub left: u64,
    /// The commit; absent where there was nothing to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<u64>,
}

impl SettledNow {
    fn nothing(view: &FeatureView, left: u64) -> Self {
        Self { view: view.pinned().to_string(), counted: 0, dropped: 0, left, commit: None }
    }
}

impl Jobs {
    /// A view's events that are set aside: those of each of its sources, with their places, and when and why.
    ///
    /// # Errors
    /// Those of the view's log and of its files.
    pub async fn set_aside(&self, view: &FeatureView) -> Result<SetAsideEvents> {
        read_set_aside(self.store(), &self.log(view).state().await?.set_aside).await
    }

    /// Tries a view's events again that are set aside. Those that its query takes now count from here on; the others stay, with
    /// what it fails with now.
    ///
    /// # Errors
    /// Those of the store and of the view's sources that say nothing about the events; nothing is then changed.
    pub async fn retry_set_aside(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        by: &Signature,
    ) -> Result<SettledNow> {
        let log = self.log(view);
        let done = until_first(view, || self.try_retry(catalog, view, &log, by)).await?;
        tracing::info!(view = %view.name, counted = done.counted, left = done.left, "events that were set aside were tried again");
        Ok(done)
    }

    /// Lets all of a view's events go that are set aside. They stay among what was pushed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn drop_set_aside(&self, view: &FeatureView, by: &Signature) -> Result<SettledNow> {
        let log = self.log(view);
        let done = until_first(view, || self.try_drop(view, &log, by)).await?;
        let Signature { who, why, .. } = by;
        tracing::warn!(view = %view.name, dropped = done.dropped, who, why, "events that were set aside were dropped");
        Ok(done)
    }

    async fn try_drop(&self, view: &FeatureView, log: &ViewLog, by: &Signature) -> Result<SettledNow> {
        let mut state = log.state().await?;
        let dropped = state.set_aside.events;
        if dropped == 0 {
            return Ok(SettledNow::nothing(view, 0));
        }
        let table = SetAside { counted_by: state.set_aside.counted_by, ..SetAside::default() };
        self.commit_table(log, &mut state, (ViewCommitKind::Drop, by), (Vec::new(), 0), table).await?;
        Ok(SettledNow { dropped, commit: Some(state.number), ..SettledNow::nothing(view, 0) })
    }

    async fn try_retry(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        log: &ViewLog,
        by: &Signature,
    ) -> Result<SettledNow> {
        let mut state = log.state().await?;
        let events = state.set_aside.events;
        if events == 0 {
            return Ok(SettledNow::nothing(view, 0));
        }
        let before = read_set_aside(self.store(), &state.set_aside).await?;
        let pushed = self.pushed().state().await?;
        let found = self.tried_again(catalog, view, (&pushed, &state), &before).await?;
        let after = still_aside(&before, &found)?;
        let left = found.failed.len() as u64;
        if left == events && after == before {
            return Ok(SettledNow::nothing(view, left));
        }
        let (mut files, mut late) = (Vec::new(), 0);
        for some in &found.good {
            let rows = self.rows_set_aside(catalog, view, (&pushed, &state), some).await?;
            files.extend(self.write_file(view, log, &state, rows).await?);
            for entry in some {
                late += late_events(source_of(catalog, view, &entry.source)?, &entry.events);
            }
        }
        let counted = events - left;
        let counted_by = if counted > 0 { state.number + 1 } else { state.set_aside.counted_by };
        let table = self.write_table(log, &state, &after).await?;
        let table = SetAside { counted_by, ..table };
        self.commit_table(log, &mut state, (ViewCommitKind::Retry, by), (files, late), table).await?;
        Ok(SettledNow { counted, commit: Some(state.number), ..SettledNow::nothing(view, left) })
    }

    /// Which events of a table the view's query takes now.
    async fn tried_again(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        at: (&PushHistoryState, &ViewLogState),
        table: &SetAsideEvents,
    ) -> Result<Separated> {
        let attempt = move |some: Vec<PushEntry>| async move {
            let rows = self.rows_set_aside(catalog, view, at, &some).await?;
            rows.try_for_each(|_| std::future::ready(Ok(()))).await
        };
        // Somebody waits for the answer, for each event.
        separate(pushes_of(table)?, Limits::NONE, attempt).await
    }

    /// The rows that events bring which were set aside. Each has its own place in the order of writes; a row of several events is
    /// written after all that is committed.
    async fn rows_set_aside(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (history, state): (&PushHistoryState, &ViewLogState),
        entries: &[PushEntry],
    ) -> Result<RowStream> {
        let pushed = if view.reaches_back() { history.events() } else { PushedEvents::default() };
        let sources = Sources { catalog, store: self.store(), pushed: &pushed };
        let written = WriteOrder::of_commit(history.until.max(state.pushed), state.number + 1);
        let session = self.session()?.writing(written);
        pushed_rows(&session, &sources, view, &PushedEvents::of_entries(entries)).await
    }

    async fn commit_table(
        &self,
        log: &ViewLog,
        state: &mut ViewLogState,
        (kind, by): (ViewCommitKind, &Signature),
        (files, late): (Vec<DataFile>, u64),
        table: SetAside,
    ) -> Result<()> {
        let watermark = state.watermark;
        let watermark = watermark.ok_or_else(|| Error::internal("a view without a commit has set events aside"))?;
        let commit = ViewCommit {
            read_until: state.read_until,
            late,
            files,
            set_aside: Some(table),
            signed: Some(by.clone()),
            ..ViewCommit::new(self.clock().now(), kind, watermark)
        };
        log.commit(state, commit).await
    }

    /// A view's table with more events, written for its next commit.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] where the table is full.
    pub(crate) async fn table_with(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, state): (&ViewLog, &ViewLogState),
        more: Vec<(String, Aside)>,
    ) -> Result<SetAside> {
        let mut events = read_set_aside(self.store(), &state.set_aside).await?;
        for (source, (aside, whys)) in more {
            let told = with_reasons(&of_source(source_of(catalog, view, &source)?, &aside)?, &whys)?;
            let all = match events.remove(&source) {
                Some(before) => concat_batches(before.schema_ref(), [&before, &told])?,
                None => told,
            };
            events.insert(source, all);
        }
        let count: u64 = events.values().map(|events| events.num_rows() as u64).sum();
        if count > MOST_SET_ASIDE {
            return Err(Error::busy("too many of a view's events are set aside")
                .with("view", &view.name)
                .with("events", count)
                .with("limit", MOST_SET_ASIDE)
                .remedy("try them again or drop them: springhouse set-aside VIEW --retry, or --drop -m WHY"));
        }
        Ok(SetAside { counted_by: state.set_aside.counted_by, ..self.write_table(log, state, &events).await? })
    }

    async fn write_table(&self, log: &ViewLog, state: &ViewLogState, table: &SetAsideEvents) -> Result<SetAside> {
        let mut written = SetAside::default();
        for (source, events) in table.iter().filter(|(_, events)| events.num_rows() > 0) {
            let name = format!("{:012}-{}-aside", state.number + 1, self.mark());
            let file = write_set_aside(self.store(), log.folder(), &name, events).await?;
            written.events += file.rows;
            written.files.insert(source.clone(), file);
        }
        Ok(written)
    }

    /// What a backfill's commit says of the events that are set aside: those that it has computed rows of are no more; `None`
    /// where nothing changes.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] where some were counted since it began, which it has computed too.
    pub(crate) async fn left_by_backfill(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, state): (&ViewLog, &ViewLogState),
        plan: &BackfillPlan,
    ) -> Result<Option<SetAside>> {
        if state.set_aside.counted_by > plan.base {
            return Err(Error::invalid("events that had been set aside were counted while this backfill was computed")
                .with("view", &view.name)
                .with("commit", state.set_aside.counted_by)
                .remedy("run the backfill again"));
        }
        if state.set_aside.events == 0 {
            return Ok(None);
        }
        let mut table = read_set_aside(self.store(), &state.set_aside).await?;
        for (name, events) in &mut table {
            let computed = computed_by(source_of(catalog, view, name)?, view, plan, events)?;
            *events = filter_record_batch(events, &not(&computed)?)?;
        }
        let counted_by = state.set_aside.counted_by;
        Ok(Some(SetAside { counted_by, ..self.write_table(log, state, &table).await? }))
    }
}

/// Which events of a table a backfill has computed rows of.
fn computed_by(source: &Source, view: &FeatureView, plan: &BackfillPlan, events: &RecordBatch) -> Result<BooleanArray> {
    let places = places_of(events)?;
    let column = match &source.event_time {
        EventTime::Column { column, .. } => Some(column.as_str()),
        EventTime::Static => None,
    };
    // A row of several events may have another time than they; to count such a row again changes nothing (rule T5).
    let own = column.filter(|column| view.windowed.is_some() || view.row_time.event_time() == Some(*column));
    let times = own.and_then(|column| events.column_by_name(column));
    let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    let within = |row: usize| {
        times.is_some_and(|times| {
            let time = Timestamp::from_micros(times.value(row));
            plan.from <= time && time < plan.until
        })
    };
    let computed = places.iter().enumerate();
    Ok(computed.map(|(row, place)| Some(place.position <= plan.pushed && (plan.is_whole() || within(row)))).collect())
}

/// A view's source of a name, at the version that the view reads.
fn source_of<'a>(catalog: &'a CatalogState, view: &FeatureView, name: &str) -> Result<&'a Source> {
    let pinned = view.sources.iter().find(|source| source.name == name).ok_or_else(|| {
        Error::internal("an event is set aside of a source that the view does not read")
            .with("view", &view.name)
            .with("source", name)
    })?;
    catalog.source(pinned)
}

/// A source's columns, any of which may be null, as those pushed before it gained one are.
fn schema_of(source: &Source) -> Vec<FieldRef> {
    let places = [WRITE_POSITION, WRITE_WITHIN].map(|name| Arc::new(Field::new(name, DataType::Int64, true)));
    let own = source.columns.iter().map(|column| Arc::new(Column::to_field(column).with_nullable(true)));
    own.chain(places).collect()
}

/// Events that tell their places, with the columns of a source's version.
fn of_source(source: &Source, events: &RecordBatch) -> Result<RecordBatch> {
    let fields = schema_of(source);
    let column = |field: &FieldRef| -> Result<ArrayRef> {
        match events.column_by_name(field.name()) {
            Some(array) => Ok(cast(array, field.data_type())?),
            None => Ok(new_null_array(field.data_type(), events.num_rows())),
        }
    };
    let columns = fields.iter().map(column).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The events of a table as pushes, in their order; each tells its place.
fn pushes_of(table: &SetAsideEvents) -> Result<Vec<PushEntry>> {
    let mut entries = Vec::new();
    for (source, events) in table {
        let places = places_of(events)?;
        let wanted = [SET_ASIDE_AT, REASON];
        let own = (0..events.num_columns())
            .filter(|index| !wanted.contains(&events.schema_ref().field(*index).name().as_str()));
        let own = events.project(&own.collect::<Vec<_>>())?;
        let mut start = 0;
        for run in places.chunk_by(|one, other| one.position == other.position) {
            let (position, events) = (run[0].position, own.slice(start, run.len()));
            entries.push(PushEntry::new(position, source.clone(), events, PushOrigin::default())?);
            start += run.len();
        }
    }
    entries.sort_by_key(|entry| entry.position);
    Ok(entries)
}

/// What is left of a table: the events on which the query fails, with what it fails with now.
fn still_aside(table: &SetAsideEvents, found: &Separated) -> Result<SetAsideEvents> {
    let reasons = found.failed.iter().map(|failed| (failed.place, failed.reason.clone()));
    let reasons: BTreeMap<_, _> = reasons.collect();
    let mut left = SetAsideEvents::new();
    for (source, events) in table {
        let (places, whys) = (places_of(events)?, reasons_of(events)?);
        let fails: BooleanArray = places.iter().map(|place| Some(reasons.contains_key(place))).collect();
        let now = places
            .iter()
            .zip(whys)
            .filter_map(|(place, why)| Some(WhySetAside { at: why.at, reason: reasons.get(place)?.clone() }));
        let now: Vec<WhySetAside> = now.collect();
        if !now.is_empty() {
            left.insert(source.clone(), with_reasons(&filter_record_batch(events, &fails)?, &now)?);
        }
    }
    Ok(left)
}

/// The schema `set_aside` of queries that people write: of each current view a table of its events that are set aside.
#[derive(Debug)]
pub(crate) struct SetAsideTables {
    jobs: Jobs,
    catalog: CatalogState,
}

impl SetAsideTables {
    pub(crate) fn of(jobs: Jobs, catalog: &CatalogState) -> Self {
        Self { jobs, catalog: catalog.clone() }
    }
}

#[async_trait]
impl OnDemand for SetAsideTables {
    fn names(&self) -> Vec<String> {
        let names = self.catalog.definitions().filter_map(|definition| match definition.as_ref() {
            Definition::FeatureView(view) => Some(view.name.clone()),
            _ => None,
        });
        names.collect()
    }

    async fn read(&self, name: &str) -> Result<Option<RecordBatch>> {
        let view = self.catalog.definitions().find_map(|definition| match definition.as_ref() {
            Definition::FeatureView(view) if view.name == name => Some(view.clone()),
            _ => None,
        });
        let Some(view) = view else { return Ok(None) };
        let table = self.jobs.set_aside(&view).await?;
        let sources = view.sources.iter().map(|pinned| self.catalog.source(pinned)).collect::<Result<Vec<_>>>()?;
        let timed = sources.into_iter().filter(|source| source.event_time != EventTime::Static);
        one_table(&timed.collect::<Vec<_>>(), &table).map(Some)
    }
}

/// The events of several sources as one table: [`SOURCE`], the columns of all sources, and what tells of each event. A column that
/// two sources have in different types is that of the first; the other's is called `source.column`.
fn one_table(sources: &[&Source], table: &SetAsideEvents) -> Result<RecordBatch> {
    let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new(SOURCE, DataType::Utf8, false))];
    let mut named: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for source in sources {
        for column in &source.columns {
            let field = Column::to_field(column).with_nullable(true);
            let known = fields.iter().find(|other| other.name() == field.name());
            let name = match known {
                Some(other) if other.data_type() != field.data_type() => format!("{}.{}", source.name, column.name),
                _ => column.name.clone(),
            };
            if !fields.iter().any(|other| *other.name() == name) {
                fields.push(Arc::new(field.with_name(&name)));
            }
            named.insert((&source.name, &column.name), name);
        }
    }
    let told = [
        (WRITE_POSITION, DataType::Int64),
        (WRITE_WITHIN, DataType::Int64),
        (SET_ASIDE_AT, ColumnType::Timestamp.to_arrow()),
        (REASON, DataType::Utf8),
    ];
    fields.extend(told.map(|(name, kind)| Arc::new(Field::new(name, kind, true))));
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let mut batches = vec![RecordBatch::new_empty(Arc::clone(&schema))];
    for (source, events) in table {
        let rows = events.num_rows();
        let mut columns: BTreeMap<String, ArrayRef> = BTreeMap::new();
        columns.insert(SOURCE.to_owned(), Arc::new(StringArray::from_iter_values(std::iter::repeat_n(source, rows))));
        for (field, array) in events.schema_ref().fields().iter().zip(events.columns()) {
            let name = named.get(&(source.as_str(), field.name().as_str())).unwrap_or(field.name());
            columns.insert(name.clone(), Arc::clone(array));
        }
        let column = |field: &FieldRef| match columns.get(field.name()) {
            Some(array) => Arc::clone(array),
            None => new_null_array(field.data_type(), rows),
        };
        batches.push(RecordBatch::try_new(Arc::clone(&schema), schema.fields().iter().map(column).collect())?);
    }
    Ok(concat_batches(&schema, &batches)?)
}

/// What people are shown of a table: each event's place, when and why it was set aside, and its own columns.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Damaged`] when the table lacks columns.
pub fn taken_apart(events: &RecordBatch) -> Result<(Vec<(EventPlace, WhySetAside)>, RecordBatch)> {
    let places = places_of(events)?.into_iter().zip(reasons_of(events)?).collect();
    let told = [WRITE_POSITION, WRITE_WITHIN, SET_ASIDE_AT, REASON];
    let own =
        (0..events.num_columns()).filter(|index| !told.contains(&events.schema_ref().field(*index).name().as_str()));
    Ok((places, events.project(&own.collect::<Vec<_>>())?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, Int64Array};
    use springhouse_featurestore::definition::{Available, Version};

    use super::*;

    fn source(name: &str, columns: Vec<Column>) -> Source {
        Source {
            name: name.to_owned(),
            version: Version::from_text("1"),
            text: String::new(),
            event_time: EventTime::Column { column: "at".to_owned(), zone: None },
            available: Available::AtEventTime,
            available_zone: None,
            lateness: None,
            distinct: Vec::new(),
            query: None,
            tables: Vec::new(),
            columns,
        }
    }

    /// Two events at two places of a push, with these columns.
    fn aside(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        let numbers = |values: [i64; 2]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
        let places = [(WRITE_POSITION, numbers([4, 4])), (WRITE_WITHIN, numbers([0, 7]))];
        let events = RecordBatch::try_from_iter(columns.into_iter().chain(places)).expect("columns");
        let why = WhySetAside { at: Timestamp::from_micros(1), reason: "Divide by zero".to_owned() };
        with_reasons(&events, &[why.clone(), why]).expect("as many reasons")
    }

    fn texts(values: [&str; 2]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn numbers(values: [i64; 2]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    #[test]
    fn events_of_sources_with_other_columns_are_one_table() {
        let paid = aside(vec![("amount", numbers([5, 6]))]);
        let clicked = aside(vec![("amount", texts(["five", "six"])), ("page", texts(["home", "shop"]))]);
        let column = |name: &str, kind| Column::nullable(name, kind);
        let sources = [
            source("clicked", vec![column("amount", ColumnType::Utf8), column("page", ColumnType::Utf8)]),
            source("paid", vec![column("amount", ColumnType::Int64)]),
        ];
        let table = SetAsideEvents::from([("clicked".to_owned(), clicked), ("paid".to_owned(), paid)]);
        let all = one_table(&sources.iter().collect::<Vec<_>>(), &table).expect("one table");
        let names: Vec<&str> = all.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
        let told = [WRITE_POSITION, WRITE_WITHIN, SET_ASIDE_AT, REASON];
        assert_eq!(names, [&[SOURCE, "amount", "page", "paid.amount"][..], &told[..]].concat());
        assert_eq!((all.num_rows(), all["page"].null_count(), all["paid.amount"].null_count()), (4, 2, 2));
    }

    #[test]
    fn what_was_pushed_before_a_source_gained_a_column_lacks_it() {
        let column = |name: &str, kind| Column::nullable(name, kind);
        let wider = source("paid", vec![column("amount", ColumnType::Int64), column("page", ColumnType::Utf8)]);
        let events = of_source(&wider, &aside(vec![("amount", numbers([5, 6]))])).expect("wider");
        assert_eq!((events.num_columns(), events["page"].null_count()), (4, 2));
        assert_eq!(places_of(&events).expect("told").iter().map(|place| place.within).collect::<Vec<_>>(), [0, 7]);
    }

    #[test]
    fn events_of_one_push_are_tried_again_as_parts_of_it() {
        let table = SetAsideEvents::from([("paid".to_owned(), aside(vec![("amount", numbers([5, 6]))]))]);
        let pushes = pushes_of(&table).expect("pushes");
        assert_eq!((pushes.len(), pushes[0].position, pushes[0].events.num_columns()), (1, 4, 3));
        assert_eq!(places_of(pushes[0].ordered_events()).expect("told")[1].within, 7);
    }
}
