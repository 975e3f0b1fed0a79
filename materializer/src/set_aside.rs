//! Events that a view does without: kept in a table beside its rows, listed, tried again, or let go.
//!
//! A flush sets an event aside where the view's query fails on it ([`crate::push`]); its commit names the view's table. The
//! event itself stays where all pushes are. *Tried again*, events that the query takes now are committed with their own
//! places in the order of writes (rule T5), in the same commit that takes them out of the table: so each counts once, whatever
//! is killed or comes first, and whoever follows the view gets them like any commit's rows. *Dropped*, they leave the table
//! by a commit that says who did it, and why. A backfill that computes them anew takes them out too.
//!
//! Refreshes of some views read again what was pushed, as do backfills and training sets: they all leave out the places that
//! [`Jobs::left_out`] gives.

mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, concat_batches, filter_record_batch, not};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimestampMicrosecondType};
use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::{Column, EventTime, FeatureView, Source};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{
    EventPlace, EventPlaces, PushEntry, PushHistoryState, PushOrigin, PushedEvents, WhySetAside, late_events,
};
use springhouse_featurestore::tier::{
    BackfillPlan, Beyond, DataFile, MOST_BEYOND, MOST_SET_ASIDE, REASON, SET_ASIDE_AT, SetAside, SetAsideEvents,
    ViewCommit, ViewCommitKind, ViewLog, ViewLogState, WRITE_POSITION, WRITE_WITHIN, places_of, read_set_aside,
    reasons_of, with_reasons, write_set_aside,
};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::view_rows::{RowStream, Sources, oldest_event, pushed_rows, view_rows};

pub(crate) use self::tables::SetAsideTables;
use crate::Jobs;
use crate::jobs::until_first;
use crate::separate::{Aside, Limits, Separated, places_of_all, separate};

/// The most events of a view that are set aside, those included of which the places alone are told.
const MOST_IN_ALL: u64 = 1_000_000;

/// What is said of an event on which a backfill failed.
const BACKFILL_FAILED: &str =
    "a backfill has failed on it: springhouse set-aside VIEW --retry tells with what it fails";

/// What is said of an event of which the place alone was told.
const NO_ROOM: &str = "it was set aside when the view's table had no room for it";

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
        let let_go = self.let_go_with(&state.set_aside).await?;
        let table = SetAside { counted_by: state.set_aside.counted_by, let_go, ..SetAside::default() };
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
        let pushed = self.pushed().state().await?;
        let mut before = read_set_aside(self.store(), &state.set_aside).await?;
        let beyond = self.take_beyond(catalog, view, (&pushed, &state), &mut before).await?;
        let found = self.tried_again(catalog, view, (&pushed, &state), &before).await?;
        let after = still_aside(&before, &found)?;
        let counted = before.values().map(|events| events.num_rows() as u64).sum::<u64>() - found.failed.len() as u64;
        let left = events - counted;
        if counted == 0 && (after == before || !state.set_aside.beyond.is_empty()) {
            return Ok(SettledNow::nothing(view, left));
        }
        let still = self.table_of(log, &state, (after, beyond)).await?;
        let left_out = self.left_out(&still).await?;
        let (mut files, mut late) = (Vec::new(), 0);
        for some in &found.good {
            let rows = self.rows_set_aside(catalog, view, (&pushed, &state), (some, &left_out)).await?;
            files.extend(self.write_file(view, log, &state, rows).await?);
            for entry in some {
                late += late_events(source_of(catalog, view, &entry.source)?, &entry.events);
            }
        }
        let counted_by = if counted > 0 { state.number + 1 } else { state.set_aside.counted_by };
        let table = SetAside { counted_by, ..still };
        self.commit_table(log, &mut state, (ViewCommitKind::Retry, by), (files, late), table).await?;
        Ok(SettledNow { counted, commit: Some(state.number), ..SettledNow::nothing(view, left) })
    }

    /// Which events of a table the view's query takes now. Of a view whose rows rest on several events each is tried with those
    /// that are taken before it, and all are then one group.
    pub(crate) async fn tried_again(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        at: (&PushHistoryState, &ViewLogState),
        table: &SetAsideEvents,
    ) -> Result<Separated> {
        let entries = pushes_of(table)?;
        let mut tried = EventPlaces::clone(&*self.left_out(&at.1.set_aside).await?);
        tried.extend(places_of_all(&entries)?);
        let tried = &tried;
        let attempt = move |taken: Vec<PushEntry>, some: Vec<PushEntry>| async move {
            let counts = places_of_all(&[taken, some.clone()].concat())?;
            let left_out = Arc::new(tried.difference(&counts).copied().collect());
            let rows = self.rows_set_aside(catalog, view, at, (&some, &left_out)).await?;
            rows.try_for_each(|_| std::future::ready(Ok(()))).await
        };
        // Somebody waits for the answer, for each event.
        let mut found = separate(entries, Limits::NONE, attempt).await?;
        if view.reaches_back() && !found.good.is_empty() {
            found.good = vec![found.good.concat()];
        }
        Ok(found)
    }

    /// The rows that events bring which were set aside; those at some places are still. Each has its own place in the order of
    /// writes; a row of several events is written after all that is committed.
    async fn rows_set_aside(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (history, state): (&PushHistoryState, &ViewLogState),
        (entries, left_out): (&[PushEntry], &Arc<EventPlaces>),
    ) -> Result<RowStream> {
        let pushed = if view.reaches_back() { history.events() } else { PushedEvents::default() };
        let (pushed, new) = (pushed.leaving_out(left_out), PushedEvents::of_entries(entries));
        let sources = Sources { catalog, store: self.store(), pushed: &pushed };
        let written = WriteOrder::of_commit(history.until.max(state.pushed), state.number + 1);
        let session = self.session()?.writing(written);
        match state.read_until {
            // Later rows come by refreshes, once their time has come.
            Some(read) if view.ahead => {
                let before = oldest_event(catalog, view, &new)? - Span::from_micros(1);
                view_rows(&session, &sources, view, Some(before), read).await
            }
            _ => pushed_rows(&session, &sources, view, &new).await,
        }
    }

    /// Moves those events into a table that are set aside beyond it, as many as it may have; gives those that are left.
    async fn take_beyond(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (history, state): (&PushHistoryState, &ViewLogState),
        table: &mut SetAsideEvents,
    ) -> Result<Vec<Beyond>> {
        let (mut left, mut taken) = (Vec::new(), 0);
        for stretch in &state.set_aside.beyond {
            let room = MOST_SET_ASIDE - taken;
            if room == 0 {
                left.push(stretch.clone());
                continue;
            }
            let last = stretch.last.min(stretch.first + (room - 1));
            if last < stretch.last {
                left.push(Beyond { first: last + 1, ..stretch.clone() });
            }
            let now = Beyond { last, ..stretch.clone() };
            taken += now.events();
            self.add_events_of(catalog, view, (history, &now, NO_ROOM), table).await?;
        }
        Ok(left)
    }

    /// Adds a stretch of a push's events to a table, as they are among what was pushed.
    async fn add_events_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (history, of, reason): (&PushHistoryState, &Beyond, &str),
        table: &mut SetAsideEvents,
    ) -> Result<()> {
        let range = (of.position.saturating_sub(1), of.position);
        for entry in self.pushed().entries(history, &BTreeSet::from([of.source.as_str()]), range).await? {
            let events = entry.ordered_events();
            let is_of = |place: &EventPlace| (of.first..=of.last).contains(&place.within);
            let is_of: BooleanArray = places_of(events)?.iter().map(|place| Some(is_of(place))).collect();
            let events = filter_record_batch(events, &is_of)?;
            let why = WhySetAside { at: self.clock().now(), reason: reason.to_owned() };
            let source = source_of(catalog, view, &of.source)?;
            let told = with_reasons(&of_source(source, &events)?, &vec![why; events.num_rows()])?;
            add_to(table, &of.source, told)?;
        }
        Ok(())
    }

    /// The places of the events that a view does without by its commits.
    ///
    /// # Errors
    /// Those of reading its table.
    pub(crate) async fn left_out(&self, set_aside: &SetAside) -> Result<Arc<EventPlaces>> {
        let mut places = EventPlaces::new();
        for events in read_set_aside(self.store(), set_aside).await?.values() {
            places.extend(places_of(events)?);
        }
        places.extend(set_aside.beyond.iter().chain(&set_aside.let_go).flat_map(Beyond::places));
        Ok(Arc::new(places))
    }

    /// The places that a view lets go of, with all that are set aside of it: whoever reads pushes for it does without them. Beyond
    /// some thousand stretches those that were let go of first are read again.
    async fn let_go_with(&self, set_aside: &SetAside) -> Result<Vec<Beyond>> {
        let mut let_go = set_aside.let_go.clone();
        for (source, events) in read_set_aside(self.store(), set_aside).await? {
            places_of(&events)?.into_iter().for_each(|place| Beyond::add(&mut let_go, &source, place));
        }
        let_go.extend(set_aside.beyond.iter().cloned());
        let forgotten = let_go.len().saturating_sub(MOST_BEYOND);
        let_go.drain(..forgotten);
        Ok(let_go)
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

    /// A view's table with more events, written for its next commit. What is there already is not there twice.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] where there is no room for them.
    pub(crate) async fn table_with(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, state): (&ViewLog, &ViewLogState),
        more: Vec<(String, Aside)>,
    ) -> Result<SetAside> {
        let mut events = read_set_aside(self.store(), &state.set_aside).await?;
        let known = self.left_out(&state.set_aside).await?;
        for (source, (aside, whys)) in more {
            let told = with_reasons(&of_source(source_of(catalog, view, &source)?, &aside)?, &whys)?;
            let new: BooleanArray = places_of(&told)?.iter().map(|place| Some(!known.contains(place))).collect();
            add_to(&mut events, &source, filter_record_batch(&told, &new)?)?;
        }
        let table = self.table_of(log, state, (events, state.set_aside.beyond.clone())).await?;
        if table.beyond.len() > MOST_BEYOND || table.events > MOST_IN_ALL {
            return Err(Error::busy("too many of a view's events are set aside")
                .with("view", &view.name)
                .with("events", table.events)
                .with("limit", MOST_IN_ALL)
                .remedy("try them again or drop them: springhouse set-aside VIEW --retry, or --drop -m WHY"));
        }
        Ok(table)
    }

    /// Writes a table for a view's next commit, and tells the places alone of the events that have no room in it.
    async fn table_of(
        &self,
        log: &ViewLog,
        state: &ViewLogState,
        (mut table, mut beyond): (SetAsideEvents, Vec<Beyond>),
    ) -> Result<SetAside> {
        let mut room = usize::try_from(MOST_SET_ASIDE).unwrap_or(usize::MAX);
        for (source, events) in &mut table {
            let fits = events.num_rows().min(room);
            room -= fits;
            places_of(&events.slice(fits, events.num_rows() - fits))?
                .into_iter()
                .for_each(|place| Beyond::add(&mut beyond, source, place));
            *events = events.slice(0, fits);
        }
        let mut written = SetAside {
            events: beyond.iter().map(Beyond::events).sum(),
            beyond,
            counted_by: state.set_aside.counted_by,
            let_go: state.set_aside.let_go.clone(),
            ..SetAside::default()
        };
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
        // What was let go of counts again, where all that was pushed was computed.
        let forgets = plan.is_whole() && !state.set_aside.let_go.is_empty();
        if state.set_aside.events == 0 && !forgets && plan.left_out.is_empty() {
            return Ok(None);
        }
        let mut table = read_set_aside(self.store(), &state.set_aside).await?;
        for (name, events) in &mut table {
            let computed = computed_by(source_of(catalog, view, name)?, view, plan, events)?;
            *events = filter_record_batch(events, &not(&computed)?)?;
        }
        // Those on which it has failed itself.
        let (known, history) = (self.left_out(&state.set_aside).await?, self.pushed().state().await?);
        for of in plan.left_out.iter().filter(|of| !of.places().all(|place| known.contains(&place))) {
            self.add_events_of(catalog, view, (&history, of, BACKFILL_FAILED), &mut table).await?;
        }
        let mut table = self.table_of(log, state, (table, state.set_aside.beyond.clone())).await?;
        if forgets {
            let left_out: EventPlaces = plan.left_out.iter().flat_map(Beyond::places).collect();
            table.let_go.retain(|of| of.places().any(|place| left_out.contains(&place)));
        }
        Ok(Some(table))
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
    let left_out: EventPlaces = plan.left_out.iter().flat_map(Beyond::places).collect();
    let of = |row: usize, place: &EventPlace| {
        place.position <= plan.pushed && !left_out.contains(place) && (plan.is_whole() || within(row))
    };
    Ok(places.iter().enumerate().map(|(row, place)| Some(of(row, place))).collect())
}

/// Adds events of a source to a table.
fn add_to(table: &mut SetAsideEvents, source: &str, more: RecordBatch) -> Result<()> {
    let all = match table.remove(source) {
        Some(before) => concat_batches(before.schema_ref(), [&before, &more])?,
        None => more,
    };
    table.insert(source.to_owned(), all);
    Ok(())
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
mod tests;
