//! Refresh: the rows of a view that became visible since its watermark, as one commit of data and watermark.
//!
//! A refresh at time T of a view with watermark W commits the rows with visible time in (W, T] and the watermark T.
//! Where a view's refreshes read again what was pushed, they leave out what is set aside; and a pushed event on which the view's
//! query fails is found ([`crate::at_fault`]) and set aside by the same commit. A row of history on which it fails is an error.
//! What is pushed to a view's sources comes to it otherwise ([`crate::push`]): the first refresh takes what has been
//! pushed before, later ones read history alone, and the watermark is no later than the producers'. A view whose rows lie
//! ahead of their events (the end of an hour) has all pushes by its refreshes, once their time has come.
//! Run again at T it finds nothing to do. Cut off anywhere before the commit's conditional put it has changed nothing
//! that a reader sees; of two that race one wins and the other looks again. Flushes and compactions that commit while it
//! computes cost it nothing: it is committed on top of them ([`crate::on_top`]), unless a flush has taken an event that it has
//! read too, and both are one (rule T12).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::object_storage::written_at;
use springhouse_featurestore::push::{PushHistoryState, PushedEvents};
use springhouse_featurestore::tier::{
    DataFile, HistoryFiles, PushedRange, Restated, SetAside, ViewCommit, ViewCommitKind, ViewLog, ViewLogState,
};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_sql::view_rows::{RowStream, Sources, oldest_event, rows_between, view_rows};

use crate::Jobs;
use crate::at_fault::AtFault;
use crate::distinct::NewIn;
use crate::jobs::{until_first, write_file};
use crate::uncommitted::Lacking;

/// The pushed events at fault that one try of a refresh has found, for the next: to find them costs many runs of the query.
#[derive(Debug, Default)]
struct Kept(Mutex<Option<(u64, AtFault)>>);

impl Kept {
    /// What was found, unless some events have been counted after all since.
    fn found(&self, state: &ViewLogState) -> AtFault {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.as_ref().filter(|(counted_by, _)| *counted_by == state.set_aside.counted_by);
        kept.map_or_else(AtFault::default, |(_, found)| found.clone())
    }

    fn keep(&self, state: &ViewLogState, found: &AtFault) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((state.set_aside.counted_by, found.clone()));
    }
}

/// What a refresh did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refreshed {
    /// The view, `name@version`.
    pub view: String,
    /// The rows that it added.
    pub rows: u64,
    /// The watermark before.
    pub since: Option<Timestamp>,
    /// The watermark now.
    pub watermark: Timestamp,
    /// The events that it left out as too late.
    pub late: u64,
    /// Those of the rows that came late, in new files: they had been known by the last refresh.
    #[serde(skip_serializing_if = "is_zero")]
    pub appeared: u64,
    /// The pushed events that it set aside, since the view's query fails on them.
    #[serde(skip_serializing_if = "is_zero")]
    pub set_aside: u64,
    /// What of history is not what was committed, from when it was found until a backfill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restated: Option<Restated>,
    /// Whose word keeps the watermark from going on to now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back: Option<HeldBack>,
    /// Whether there was anything to do.
    pub committed: bool,
    /// The view's newest commit.
    pub commit: u64,
    /// How far this machine's clock is ahead of object storage's, where that is too far: what the view is told to have seen it
    /// has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ahead: Option<Span>,
}

/// What a refresh reads: what was pushed, and the files of history, until a time.
#[derive(Debug, Clone, Copy)]
struct Read<'a> {
    history: &'a PushHistoryState,
    files: &'a HistoryFiles,
    now: Timestamp,
}

/// A clock that is further ahead of object storage's is wrong. Clocks that are kept differ by milliseconds, and a store that
/// rounds, or dates an object by when its upload began, by minutes at most.
const CLOCK_AHEAD: Span = Span::from_secs(3_600);

/// What a view's watermark waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    /// The source whose producers are behind.
    pub source: String,
    /// The producer that is furthest behind; absent where none has said how far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Whether the view waits for its pushes: some are flushed and have not come to it yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lacks_pushes: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde hands over")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Jobs {
    /// Refreshes a view up to the clock's time.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the source file or column that is wrong; the old state then still holds.
    pub async fn refresh(&self, catalog: &CatalogState, view: &FeatureView) -> Result<Refreshed> {
        let log = self.log(view);
        let kept = Kept::default();
        until_first(view, || self.try_refresh(catalog, view, (&log, &kept), None)).await
    }

    /// The same as if the view had never been refreshed, for a view whose refreshes replace all of its rows; the commit says
    /// who wanted it.
    pub(crate) async fn refresh_anew(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        by: &Signature,
    ) -> Result<Refreshed> {
        let log = self.log(view);
        let kept = Kept::default();
        until_first(view, || self.try_refresh(catalog, view, (&log, &kept), Some(by))).await
    }

    async fn try_refresh(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, kept): (&ViewLog, &Kept),
        anew: Option<&Signature>,
    ) -> Result<Refreshed> {
        let mut state = log.state().await?;
        if anew.is_some() {
            (state.watermark, state.read_until) = (None, None);
        }
        // A clock that was set back reads nothing twice.
        let (since, at) = (state.watermark, self.clock().now());
        let now = state.read_until.map_or(at, |read| read.max(at));
        let mut done = Refreshed {
            view: view.pinned().to_string(),
            rows: 0,
            since,
            watermark: now,
            late: 0,
            appeared: 0,
            set_aside: 0,
            restated: state.restated.clone(),
            held_back: None,
            committed: false,
            commit: state.number,
            clock_ahead: None,
        };
        // These files are read and no others: what comes meanwhile is seen by the next refresh. They are listed before it is
        // looked which pushes there are: whoever flushes one that is not known here has read no less of history.
        let read = self.history_files(catalog, view).await?;
        let history = self.pushed().state().await?;
        let takes_pushes = (state.number == 0 || view.ahead) && history.until > state.pushed;
        if state.read_until == Some(now) && read == state.history && !takes_pushes {
            done.watermark = since.unwrap_or(now);
            return Ok(done);
        }
        let lacking =
            if takes_pushes { Lacking::new() } else { self.lacking(view, &history, state.pushed, since).await? };
        let (watermark, held_back) = watermark_of(catalog, view, (&history, &lacking), since, now)?;
        done.held_back = held_back;
        let past = self.past(catalog, (view, log), &state, &read, &history).await?;
        done.late = past.late + self.count_late(catalog, view, &state, (&history, &read), now).await?;
        done.appeared = past.appeared.as_ref().map_or(0, |file| file.rows);
        let from = Read { history: &history, files: &read, now };
        let (mut files, set_aside) = self.write_good_rows(catalog, (view, log), (&state, kept), from).await?;
        files.extend(past.appeared);
        done.set_aside = set_aside.as_ref().map_or(0, |table| table.events.saturating_sub(state.set_aside.events));
        done.rows = files.iter().map(|file| file.rows).sum();
        done.watermark = watermark;
        let kind = if view.is_static() { ViewCommitKind::Replace } else { ViewCommitKind::Refresh };
        let read_until = (watermark != now).then_some(now);
        // The first refresh takes all that had been pushed by then; of rows that lie ahead of their events every one.
        let pushed =
            takes_pushes.then_some(PushedRange { after: state.pushed, until: history.until, log: history.taker.log });
        let commit = ViewCommit {
            read_until,
            pushed,
            late: done.late,
            history: (read != state.history).then_some(read),
            restated: past.restated,
            set_aside,
            files,
            signed: anew.cloned(),
            ..ViewCommit::new(at, kind, watermark)
        };
        self.commit_on_top(catalog, (view, log), &mut state, commit, now).await?;
        done.watermark = state.watermark.unwrap_or(watermark);
        (done.committed, done.commit) = (true, state.number);
        done.clock_ahead = self.clock_ahead(view, log, state.number).await;
        done.restated = state.restated;
        tracing::info!(view = %view.name, rows = done.rows, late = done.late, watermark = %watermark, "refreshed");
        if let Some(Restated { files, rows_before, rows_now, rows_changed, late_events }) = &done.restated {
            tracing::warn!(
                view = %view.name, ?files, rows_before, rows_now, rows_changed, late_events,
                "history is not what it was; what was committed stays until springhouse backfill"
            );
        }
        Ok(done)
    }

    /// How far this machine's clock is ahead of object storage's, which has just written a commit; none where it is not, or
    /// where that cannot be seen.
    async fn clock_ahead(&self, view: &FeatureView, log: &ViewLog, commit: u64) -> Option<Span> {
        if !self.clock().is_the_machines() {
            return None;
        }
        let path = log.log().path(commit);
        let written = written_at(self.store(), &path).await;
        let written =
            written.inspect_err(|error| tracing::debug!(%path, error = %error.chain(), "a commit's time is not told"));
        let (now, written) = (self.clock().now(), written.ok()?);
        let ahead = now.since(written);
        if ahead <= CLOCK_AHEAD {
            return None;
        }
        tracing::error!(
            view = %view.name, %now, %written, %ahead,
            "this machine's clock is far ahead of object storage's: if it is wrong, set it right, then springhouse check names \
             the views that are ahead, and springhouse backfill VIEW --reset-watermark sets them back"
        );
        Some(ahead)
    }

    /// The events that became known since the last refresh, and later than their sources allow.
    async fn count_late(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        (history, read): (&PushHistoryState, &HistoryFiles),
        now: Timestamp,
    ) -> Result<u64> {
        let pushed = if state.number == 0 { history.events() } else { PushedEvents::default() };
        self.count_rejected(catalog, view, &pushed, read, (state.read_until, now)).await
    }

    /// Computes and writes the new rows; without any there is no file. Pushed events on which the view's query fails are set
    /// aside: what the commit then says of those that are.
    async fn write_good_rows(
        &self,
        catalog: &CatalogState,
        (view, log): (&FeatureView, &ViewLog),
        (state, kept): (&ViewLogState, &Kept),
        read: Read<'_>,
    ) -> Result<(Vec<DataFile>, Option<SetAside>)> {
        // Rows that reach back do so to pushed events too; to commit such a row again changes nothing (rule T5).
        if !(state.number == 0 || view.reads_pushes_again()) {
            let none = PushedEvents::default();
            return Ok((self.write_new_rows(catalog, (view, log), state, read, &none).await?, None));
        }
        let left_out = self.left_out(&state.set_aside).await?;
        let mut found = kept.found(state);
        Arc::make_mut(&mut found.left_out).extend(left_out.iter());
        let pushed = read.history.events().leaving_out(&found.left_out);
        let mut files = self.write_new_rows(catalog, (view, log), state, read, &pushed).await;
        if let Err(error) = files {
            if error.kind() != ErrorKind::Invalid {
                return Err(error);
            }
            let attempt = move |pushed: PushedEvents| async move {
                let rows = self.new_rows(catalog, view, state, read, &pushed).await?;
                rows.try_for_each(|_| std::future::ready(Ok(()))).await
            };
            found = self.at_fault(view, read.history, (found, error), attempt).await?;
            kept.keep(state, &found);
            let pushed = read.history.events().leaving_out(&found.left_out);
            files = self.write_new_rows(catalog, (view, log), state, read, &pushed).await;
        }
        let files = files?;
        if found.aside.is_empty() {
            return Ok((files, None));
        }
        Ok((files, Some(self.table_with(catalog, view, (log, state), found.aside).await?)))
    }

    async fn write_new_rows(
        &self,
        catalog: &CatalogState,
        (view, log): (&FeatureView, &ViewLog),
        state: &ViewLogState,
        read: Read<'_>,
        pushed: &PushedEvents,
    ) -> Result<Vec<DataFile>> {
        let rows = self.new_rows(catalog, view, state, read, pushed).await?;
        self.write_file(view, log, state, rows).await
    }

    /// Computes the new rows, of history and of some pushed events.
    async fn new_rows(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        Read { history, files, now }: Read<'_>,
        pushed: &PushedEvents,
    ) -> Result<RowStream> {
        let sources = Sources { catalog, store: self.store(), pushed };
        let written = WriteOrder::of_commit(history.until.max(state.pushed), state.number + 1);
        let mut session = self.seeing(self.session()?, catalog, view, files)?.writing(written);
        if state.number > 0 && !view.reaches_back() {
            let new_in = NewIn { files, since: state.read_until, until: now, read: files };
            session = self.seeing_new(session, catalog, view, state, new_in).await?;
        }
        // The first refresh takes what has been pushed, whatever the clocks of those who pushed say.
        if state.number == 0 && !pushed.files.is_empty() && !view.is_static() {
            rows_between(&session, &sources, view, (Timestamp::MIN, Timestamp::MAX), now).await
        } else {
            let since = self.since(catalog, view, state, history).await?;
            view_rows(&session, &sources, view, since, now).await
        }
    }

    /// After what time rows are computed: that until which was read before. Rows that lie ahead of their events come to no view
    /// with the pushes themselves: those of all that was pushed since are computed too, however old it is.
    async fn since(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        history: &PushHistoryState,
    ) -> Result<Option<Timestamp>> {
        let Some(read_until) = state.read_until.filter(|_| view.ahead && history.until > state.pushed) else {
            return Ok(state.read_until);
        };
        let sources: BTreeSet<&str> = view.sources.iter().map(|source| source.name.as_str()).collect();
        let (mut after, mut oldest) = (state.pushed, Timestamp::MAX);
        while after < history.until {
            let range = (after, history.until);
            let (entries, until) = self.pushed().first_entries(history, &sources, range, self.piece_bytes()).await?;
            oldest = oldest.min(oldest_event(catalog, view, &PushedEvents::of_entries(&entries))?);
            after = until;
        }
        Ok(Some(read_until.min(oldest - Span::from_micros(1))))
    }

    /// Writes rows as a file of the next commit; without any there is no file.
    pub(crate) async fn write_file(
        &self,
        view: &FeatureView,
        log: &ViewLog,
        state: &ViewLogState,
        rows: RowStream,
    ) -> Result<Vec<DataFile>> {
        let name = format!("{:012}-{}", state.number + 1, self.mark());
        Ok(write_file(log, view, &name, rows, &()).await?.into_iter().collect())
    }
}

/// How far a view can have got, and whose word that is: until now with history, which a refresh has read, and until what
/// producers say where they have said it; never back (rule T6). Pushes of which nobody says how far they are make no
/// promise, and hold nothing back where there is a history. What producers say of pushes that the view lacks does not hold.
pub(crate) fn watermark_of(
    catalog: &CatalogState,
    view: &FeatureView,
    (pushed, lacking): (&PushHistoryState, &Lacking),
    since: Option<Timestamp>,
    now: Timestamp,
) -> Result<(Timestamp, Option<HeldBack>)> {
    let (mut reached, mut held_back) = (now, None);
    for pinned in &view.sources {
        let source = catalog.source(pinned)?;
        let said = match pushed.watermarks.get(&source.name) {
            Some(said) => *said,
            None if source.query.is_some() => continue,
            None => since.unwrap_or(Timestamp::MIN),
        };
        let told = lacking.get(&source.name).map_or(said, |had| said.min(*had));
        if told < reached {
            let producers = pushed.producers.get(&source.name).into_iter().flatten();
            let behind =
                producers.filter(|(_, producer)| producer.watermark == Some(told)).map(|(name, _)| name.clone());
            let (producer, lacks_pushes) = (behind.min(), told < said);
            reached = told;
            held_back = Some(HeldBack { source: source.name.clone(), producer, lacks_pushes });
        }
    }
    Ok((since.map_or(reached, |since| since.max(reached)), held_back))
}
