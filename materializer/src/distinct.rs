//! What a view has got of the events that its sources tell apart by `DISTINCT ON` (rule T12).
//!
//! A view's rows are those of the events that are in its history until its last read, or among its pushes until its last
//! position: each once. So a refresh leaves out what was pushed before, and a push what history had. A view whose rows rest
//! on several events needs none of this: whatever brings it rows reads its events anew, each once.
//!
//! What a file of its history holds and the view has not taken is told by its rows ([`named`]).

mod named;

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Available, FeatureView, Source};
use springhouse_featurestore::push::PushEntry;
use springhouse_featurestore::tier::{HistoryFiles, ViewCommit, ViewLogState};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_sql::session::{EventRange, NewEvents, Session, TakenEvents};

use crate::Jobs;

/// Where new events are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewIn<'a> {
    /// In these files,
    pub(crate) files: &'a HistoryFiles,
    /// of those that became visible after this time (all, where it is `None`)
    pub(crate) since: Option<Timestamp>,
    /// and by this one.
    pub(crate) until: Timestamp,
    /// The files whose events the view has got, of those that had been visible by its last read.
    pub(crate) read: &'a HistoryFiles,
}

/// How far a view has got by a commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Got {
    /// The commit's number.
    pub(crate) commit: u64,
    /// Until when its history was read,
    pub(crate) until: Option<Timestamp>,
    /// and of which files.
    pub(crate) files: Arc<HistoryFiles>,
    /// Up to which position pushes are committed.
    pub(crate) pushed: u64,
    /// Whether some of what the files hold may only have been named.
    pub(crate) named: bool,
    /// Whether it has all that the files hold: it is computed from them, and not committed.
    pub(crate) by_files: bool,
}

/// So many commits before one are looked at for the files of the history by then.
const LOOKED_BACK: u64 = 1_024;

impl Got {
    /// By the newest commit.
    pub(crate) fn of(state: &ViewLogState) -> Self {
        let (commit, until, pushed) = (state.number, state.read_until, state.pushed);
        let (files, named) = (Arc::new(state.history.clone()), state.restated.is_some());
        Self { commit, until, files, pushed, named, by_files: false }
    }

    /// By the last of the commits that follow.
    pub(crate) fn after(mut self, commits: &[(u64, ViewCommit)]) -> Self {
        for (number, commit) in commits {
            self.commit = *number;
            self.until = Some(commit.read_until.unwrap_or(commit.watermark));
            if let Some(files) = &commit.history {
                self.files = Arc::new(files.clone());
            }
            self.pushed = commit.pushed.map_or(self.pushed, |range| range.until);
            // What a backfill has not made right it marks among the files.
            self.named = commit.restated.is_some() || self.named && !commit.kind.replaces();
        }
        self
    }

    /// Whether by both the same was read of the history.
    pub(crate) fn is_of_the_same_history(&self, other: &Self) -> bool {
        self.until == other.until && self.files == other.files
    }

    /// Whether some event of an entry may have been in the history of its source until then: only the files tell.
    pub(crate) fn may_have(&self, source: &Source, entry: &PushEntry) -> bool {
        let Some(until) = self.until.filter(|_| entry.source == source.name) else { return false };
        before(source, &entry.events, until + Span::from_micros(1)).contains(&true)
    }
}

/// The least and the greatest event time of some events.
pub(crate) fn times_of(source: &Source, events: &RecordBatch) -> Option<(Timestamp, Timestamp)> {
    let times = events.column_by_name(source.event_column()?)?.as_primitive_opt::<TimestampMicrosecondType>()?;
    let (least, greatest) = (arrow::compute::min(times)?, arrow::compute::max(times)?);
    Some((Timestamp::from_micros(least), Timestamp::from_micros(greatest)))
}

/// Which events lie before a time, by row.
pub(crate) fn before(source: &Source, events: &RecordBatch, time: Timestamp) -> Vec<bool> {
    let column = source.event_column().and_then(|name| events.column_by_name(name));
    let times = column.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    times.map_or_else(Vec::new, |times| times.values().iter().map(|of| *of < time.micros()).collect())
}

/// The sources of a view that tell their events apart and have a history.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::NotFound`] when the catalog lacks a source.
pub(crate) fn told_apart<'a>(catalog: &'a CatalogState, view: &FeatureView) -> Result<Vec<&'a Source>> {
    let mut sources = Vec::new();
    for pinned in &view.sources {
        let source = catalog.source(pinned)?;
        if source.identity().is_some() && source.query.is_some() {
            sources.push(source);
        }
    }
    Ok(sources)
}

/// Whether a source's tables had files: without any they had no columns.
pub(crate) fn has_files(source: &Source, files: &HistoryFiles) -> bool {
    source.tables.iter().all(|table| files.get(table).is_some_and(|files| !files.is_empty()))
}

impl Jobs {
    /// A session in which the history of a view's sources that tell their events apart has only what the view has not got.
    ///
    /// # Errors
    /// Those of reading the history and the pushes.
    pub(crate) async fn seeing_new(
        &self,
        session: Session,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        new_in: NewIn<'_>,
    ) -> Result<Session> {
        let sources = told_apart(catalog, view)?;
        if sources.is_empty() {
            return Ok(session);
        }
        let mut new = NewEvents { since: new_in.since, ..NewEvents::default() };
        let pushed = self.pushed().events_until(state.pushed).await?;
        for source in sources {
            let looking = self.with_tables(catalog, view, source, new_in.files).await?;
            let range = EventRange::known_by(new_in.until);
            let least = looking.least_new_event(source, range, new_in.since, self.store()).await?;
            let Some(from) = least else { continue };
            let taken = new.taken.entry(source.name.clone()).or_default();
            taken.extend(self.taken_before(catalog, view, source, state, (new_in, from)).await?);
            let (session, committed) = (self.session()?, (&pushed, state.pushed));
            taken.extend(session.taken_of_pushes(source, (from, new_in.until), committed, self.store()).await?);
        }
        Ok(session.only_new(new))
    }

    /// The events from a time on that a view has got of a source's history.
    async fn taken_before(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        source: &Source,
        state: &ViewLogState,
        (new_in, from): (NewIn<'_>, Timestamp),
    ) -> Result<Option<TakenEvents>> {
        // Copies have one event time: where it alone tells when they became visible, no copy was visible before.
        let known_by_itself = matches!(source.available, Available::Column(_));
        let wanted = (new_in.since.is_none() || known_by_itself) && has_files(source, new_in.read);
        let (true, Some(until)) = (wanted, state.read_until) else { return Ok(None) };
        let read = self.with_tables(catalog, view, source, new_in.read).await?;
        read.taken_of_history(source, EventRange { from, ..EventRange::known_by(until) }, self.store()).await
    }

    /// A session with the tables of a source, which consist of some files.
    pub(crate) async fn with_tables(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        source: &Source,
        files: &HistoryFiles,
    ) -> Result<Session> {
        let session = self.seeing(self.session()?, catalog, view, files)?;
        for table in &source.tables {
            session.add_table(catalog.table(table)?).await?;
        }
        Ok(session)
    }

    /// Entries without the events that a view has got from its history, and without those that are then empty.
    ///
    /// # Errors
    /// Those of reading the files of the history.
    pub(crate) async fn not_from_history(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        got: &Got,
        mut entries: Vec<PushEntry>,
    ) -> Result<Vec<PushEntry>> {
        if view.reaches_back() {
            return Ok(entries);
        }
        for source in told_apart(catalog, view)? {
            let late: Vec<usize> = (0..entries.len()).filter(|index| got.may_have(source, &entries[*index])).collect();
            if late.is_empty() {
                continue;
            }
            let batches: Vec<RecordBatch> = late.iter().map(|index| entries[*index].events.clone()).collect();
            let mut copies = self.copies_in_history(catalog, view, source, got, &batches).await?;
            self.unmark_named(catalog, (view, source), got, &batches, &mut copies).await?;
            for (index, copies) in late.into_iter().zip(copies) {
                if copies.contains(&true) {
                    let kept: BooleanArray = copies.iter().map(|copy| Some(!copy)).collect();
                    entries[index] = entries[index].keeping(&kept)?;
                }
            }
            entries.retain(|entry| entry.source != source.name || entry.events.num_rows() > 0);
        }
        Ok(entries)
    }

    /// Which events of batches a view has got from its history, by batch and row.
    async fn copies_in_history(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        source: &Source,
        got: &Got,
        batches: &[RecordBatch],
    ) -> Result<Vec<Vec<bool>>> {
        let mut copies: Vec<Vec<bool>> = batches.iter().map(|batch| vec![false; batch.num_rows()]).collect();
        let times = batches.iter().filter_map(|batch| times_of(source, batch));
        let times = times.reduce(|all, times| (all.0.min(times.0), all.1.max(times.1)));
        let (Some((from, greatest)), Some(until)) = (times, got.until) else { return Ok(copies) };
        if !has_files(source, &got.files) {
            return Ok(copies);
        }
        let session = self.with_tables(catalog, view, source, &got.files).await?;
        let range = EventRange { from, until: greatest.min(until), known: until, pushed: until };
        let Some(taken) = session.taken_of_history(source, range, self.store()).await? else { return Ok(copies) };
        for (batch, copies) in batches.iter().zip(&mut copies) {
            *copies = session.copies(source, batch, &taken).await?;
        }
        Ok(copies)
    }

    /// How far a view had got by a commit; `None` where that takes too long to tell. What is read follows what has been committed
    /// since, and where the history has become another since, how long before it did so last.
    ///
    /// # Errors
    /// Those of the view's log.
    pub(crate) async fn got_at(&self, view: &FeatureView, commit: u64) -> Result<Option<Got>> {
        let log = self.log(view);
        let state = log.state().await?;
        if commit == 0 || state.number <= commit {
            return Ok(Some(if commit == 0 { Got::default() } else { Got::of(&state) }));
        }
        let since = log.commits_after(commit).await?;
        let pushed = since.iter().find_map(|(_, commit)| commit.pushed).map_or(state.pushed, |range| range.after);
        let named = state.restated.is_some() || since.iter().any(|(_, commit)| commit.kind.replaces());
        let (mut until, mut files) = (None, None);
        if !since.iter().any(|(_, commit)| commit.history.is_some()) {
            files = Some(state.history);
        }
        for number in (1..=commit).rev() {
            if commit - number >= LOOKED_BACK {
                return Ok(None);
            }
            let Some(found) = log.commit_at(number).await? else { break };
            until = until.or(Some(found.read_until.unwrap_or(found.watermark)));
            files = files.or(found.history);
            if files.is_some() {
                break;
            }
        }
        let files = Arc::new(files.unwrap_or_default());
        Ok(Some(Got { commit, until, files, pushed, named, by_files: false }))
    }

    /// Whether some event of entries is in a view's history as it was read by the second, and was not by the first: the view
    /// has it of its push, and of what it has read since.
    ///
    /// # Errors
    /// As [`Self::not_from_history`].
    pub(crate) async fn has_of_both(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (first, second): (&Got, &Got),
        entries: Vec<PushEntry>,
    ) -> Result<bool> {
        let count = |entries: &[PushEntry]| entries.iter().map(|entry| entry.events.num_rows()).sum::<usize>();
        let pushed = self.not_from_history(catalog, view, first, entries).await?;
        let events = count(&pushed);
        Ok(count(&self.not_from_history(catalog, view, second, pushed).await?) < events)
    }

    /// The same of what was flushed after the first and up to a position: whether those who computed by the second, and knew
    /// nothing of these flushes, have events that the flushes have committed. Views whose rows rest on several events have
    /// such events once all the same.
    ///
    /// # Errors
    /// Those of reading the history and the pushes.
    pub(crate) async fn flushed_meanwhile(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (first, second): (&Got, &Got),
        until: u64,
    ) -> Result<bool> {
        let sources = told_apart(catalog, view)?;
        if sources.is_empty() || view.reaches_back() || first.is_of_the_same_history(second) || until <= first.pushed {
            return Ok(false);
        }
        let (names, history) =
            (sources.iter().map(|source| source.name.as_str()).collect(), self.pushed().state().await?);
        let mut after = first.pushed;
        while after < until {
            let (entries, reached) =
                self.pushed().first_entries(&history, &names, (after, until), self.piece_bytes()).await?;
            if self.has_of_both(catalog, view, (first, second), entries).await? {
                return Ok(true);
            }
            after = reached;
        }
        Ok(false)
    }
}
