//! Backfill: a view's rows of a stretch of event time computed anew from its sources, and put in the place of those that
//! are committed, in one commit.
//!
//! The stretch is cut into ranges. Each is computed by itself, several at once, from a history that is read once for all,
//! into a file of its own, and noted in the view's backfill log: after a crash the next run goes on with the ranges that
//! are left. Files that hold rows both in the stretch and outside are written again without the former. Until the commit
//! nobody sees any of it; after it the tiers load the view as a new generation, so no reader sees a mixture.
//!
//! What is known is as of the commit that the backfill began from: history until its last refresh, and the pushes that
//! are committed, whatever their times. What refreshes and pushes have committed since stays, and wins over rows of the same
//! times; only where flushes have brought events that it reads in history too, and that are one (rule T12), it is to be run
//! again. New files whose rows the next refresh takes in by itself are left to it, so that each counts once.
//!
//! Ranges follow the data: where the stretch would be cut into many, it is looked once which of them have rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{PushHistoryState, PushedEvents};
use springhouse_featurestore::tier::{
    Backfill, BackfillAsked, BackfillLog, BackfillPlan, DataFile, HistoryFiles, Progress, ViewCommit, ViewCommitKind,
    ViewLog, ViewLogState,
};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::{EventRange, Session};
use springhouse_sql::view_rows::{
    MOST_RANGES, RangeRows, Sources, count_events, one_source, outside, ranges_with_rows, rows_between, split_rows,
};
use tokio::sync::Mutex;

use crate::Jobs;
use crate::distinct::{Got, told_apart};
use crate::history::{settled, without_new};
use crate::jobs::{until_on_top, write_file};

/// The most ranges of a view that reads its history anew for each, and of others, which read it once for many.
const MOST_CUT: [usize; 2] = [MOST_RANGES, 16 * MOST_RANGES];

/// So many ranges are not worth looking which of them have rows.
const FEW_RANGES: [usize; 2] = [16, MOST_RANGES];

/// From one event time to before another.
type EventTimes = (Timestamp, Timestamp);

/// What a backfill did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backfilled {
    /// The view, `name@version`.
    pub view: String,
    /// The least event time of the rows that it computed,
    pub from: Timestamp,
    /// and the one before which they lie.
    pub until: Timestamp,
    /// The rows that it computed.
    pub rows: u64,
    /// The ranges in all,
    pub ranges: usize,
    /// and those that an earlier run had done.
    pub resumed: usize,
    /// The commit that has them.
    pub commit: u64,
}

impl Jobs {
    /// Backfills a view. `asked` says which stretch; a backfill of the same stretch that was cut off is gone on with,
    /// unless the files that it reads have changed.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for a static view, for an empty stretch and for sources that
    /// no longer fit; [`springhouse_featurestore::ErrorKind::Conflict`] when another backfill is running.
    pub async fn backfill(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        asked: BackfillAsked,
        progress: &dyn Progress,
    ) -> Result<Backfilled> {
        self.run_backfill(catalog, view, (asked, None), progress).await
    }

    /// Computes all of a view's rows anew, of what is known now, and sets its watermark and until when history was read back to
    /// now, or to what producers say: the remedy for a clock that was ahead when the view was refreshed (rule T6). The commit
    /// says who wanted it.
    ///
    /// # Errors
    /// As [`Self::backfill`], and [`springhouse_featurestore::ErrorKind::Invalid`] for a view that is not ahead of the clock.
    pub async fn reset(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        every: Span,
        by: Signature,
        progress: &dyn Progress,
    ) -> Result<Backfilled> {
        let (state, now) = (self.log(view).state().await?, self.clock().now());
        if state.watermark.max(state.read_until).is_none_or(|reached| reached <= now) {
            return Err(Error::invalid("the view is not ahead of the clock: there is nothing to set back")
                .with("view", &view.name)
                .with(
                    "watermark",
                    state.watermark.map_or_else(|| "never refreshed".to_owned(), |mark| mark.to_string()),
                )
                .with("now", now)
                .remedy("springhouse backfill without --reset-watermark computes rows anew"));
        }
        if view.is_static() {
            let done = self.refresh_anew(catalog, view, &by).await?;
            let (view, rows, ranges, resumed) = (done.view, done.rows, 1, 0);
            let (from, until) = (done.watermark, done.watermark);
            return Ok(Backfilled { view, from, until, rows, ranges, resumed, commit: done.commit });
        }
        let asked = BackfillAsked { from: None, until: None, every };
        self.run_backfill(catalog, view, (asked, Some(by)), progress).await
    }

    async fn run_backfill(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (asked, reset): (BackfillAsked, Option<Signature>),
        progress: &dyn Progress,
    ) -> Result<Backfilled> {
        if view.is_static() {
            return Err(Error::invalid("a static view has no stretch of time to backfill")
                .with("view", &view.name)
                .remedy("refresh it: a refresh replaces all of its rows"));
        }
        let log = BackfillLog::new(self.store().clone(), &view.pinned());
        let backfill = self.begin(catalog, view, (asked, reset), &log).await?;
        let plan = backfill.plan.clone();
        let resumed = backfill.done.len();
        if resumed > 0 {
            tracing::info!(view = %view.name, ranges = resumed, "going on with the backfill that was cut off");
        }
        let pushed = self.pushed().events_until(plan.pushed).await?;
        let backfill = Mutex::new(backfill);
        self.compute(catalog, view, &pushed, (&log, &backfill), progress).await?;
        let backfill = backfill.into_inner();
        let commit = self.commit_backfill(catalog, view, &backfill).await?;
        log.committed(&backfill, commit).await?;
        let rows = backfill.done.values().flatten().map(|file| file.rows).sum();
        tracing::info!(view = %view.name, rows, from = %plan.from, until = %plan.until, "backfilled");
        let (from, until) = (plan.from, plan.until);
        let ranges = plan.ranges().len();
        Ok(Backfilled { view: view.pinned().to_string(), from, until, rows, ranges, resumed, commit })
    }

    /// The backfill that was cut off, or a new one.
    async fn begin(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (asked, reset): (BackfillAsked, Option<Signature>),
        log: &BackfillLog,
    ) -> Result<Backfill> {
        let state = self.log(view).state().await?;
        let now = self.history_files(catalog, view).await?;
        let taken = self.taken_tables(catalog, view).await?;
        if let Some(begun) = log.begun().await?
            && begun.plan.asked == asked
            && begun.plan.reset.is_some() == reset.is_some()
            && begun.plan.history == without_new(now.clone(), &begun.plan.history, &taken)
            && begun.plan.base >= state.replaced.max(state.set_aside.counted_by)
            && (begun.plan.base > 0 || state.number == 0)
            && !self.was_flushed_too(catalog, view, &begun.plan, &state).await?
        {
            return Ok(begun);
        }
        let history = without_new(now, &state.history, &taken);
        if state.number == 0 {
            self.refuse_pushed(view).await?;
        }
        let pushed = self.pushed().events_until(state.pushed).await?;
        let plan = self.plan(catalog, view, (asked, reset), (&state, &pushed), history).await?;
        log.begin(plan).await
    }

    /// What was pushed before a view's first commit is taken by its first refresh alone.
    async fn refuse_pushed(&self, view: &FeatureView) -> Result<()> {
        let pushed = self.pushed().state().await?;
        if view.sources.iter().any(|source| pushed.knows(&source.name)) {
            return Err(Error::invalid("events have been pushed to the view's sources, and it was never refreshed")
                .with("view", &view.name)
                .remedy("springhouse refresh, which takes what was pushed"));
        }
        Ok(())
    }

    /// What a new backfill is to do, of how the view stands and what was pushed to it.
    async fn plan(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (asked, reset): (BackfillAsked, Option<Signature>),
        (state, pushed): (&ViewLogState, &PushedEvents),
        history: HistoryFiles,
    ) -> Result<BackfillPlan> {
        let known = match &reset {
            Some(_) => self.clock().now(),
            None => self.known(catalog, view, asked, state, pushed)?,
        };
        let committed = |of: fn((Timestamp, Timestamp)) -> Timestamp| {
            state.files.iter().filter_map(move |(_, file)| file.event_times.map(of))
        };
        let beyond = |time: Timestamp| time + Span::from_micros(1);
        // What was pushed may lie after what is known of history.
        let until = asked.until.unwrap_or_else(|| beyond(committed(|times| times.1).fold(known, Timestamp::max)));
        let sources = Sources { catalog, store: self.store(), pushed };
        let session = || self.seeing(self.session()?, catalog, view, &history);
        let from = match asked.from {
            Some(from) => from,
            None => {
                let all = EventRange { pushed: Timestamp::MAX, ..EventRange::known_by(known) };
                let first = count_events(&session()?, &sources, view, all).await?.1;
                // What is committed may lie before what there is now.
                first.into_iter().chain(committed(|times| times.0)).min().unwrap_or(until)
            }
        };
        if from >= until {
            return Err(Error::invalid("there is nothing to backfill: the stretch is empty")
                .with("view", &view.name)
                .with("from", from)
                .with("until", until)
                .remedy("give a --from that lies before --until"));
        }
        let (base, pushed) = (state.number, state.pushed);
        let none = HistoryFiles::new();
        let plan = BackfillPlan { asked, from, until, known, base, pushed, history: none, cut: None, reset };
        let kind = usize::from(!view.reaches_back());
        let mut cut = None;
        if plan.even_ranges() > FEW_RANGES[kind] as u64 {
            let ranges = (asked.every, MOST_CUT[kind]);
            cut = Some(ranges_with_rows(&session()?, &sources, view, (from, until), ranges, known).await?);
        }
        Ok(BackfillPlan { history, cut, ..plan })
    }

    /// The tables whose new files the next refresh takes in by itself.
    async fn taken_tables(&self, catalog: &CatalogState, view: &FeatureView) -> Result<Vec<String>> {
        let source = self.taken_as_it_comes(catalog, view).await?;
        Ok(source.map_or_else(Vec::new, |source| source.tables.clone()))
    }

    /// Until when what history has counts.
    fn known(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        asked: BackfillAsked,
        state: &ViewLogState,
        pushed: &PushedEvents,
    ) -> Result<Timestamp> {
        let now = self.clock().now();
        let Some(read_until) = state.read_until else {
            // Nothing is known of what lies after the stretch: the first refresh goes on there.
            return Ok(asked.until.map_or(now, |until| now.min(until - Span::from_micros(1))));
        };
        // Rows that rest on several events were committed with pushes, from all that history had then. To commit them again
        // with the next refresh changes nothing (rule T5).
        let several = one_source(catalog, view)?.is_none();
        let with_pushes = several && view.sources.iter().any(|source| pushed.has(&source.name));
        Ok(if with_pushes { read_until.max(now) } else { read_until })
    }

    /// Computes the ranges that are not done.
    async fn compute(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        pushed: &PushedEvents,
        (log, backfill): (&BackfillLog, &Mutex<Backfill>),
        progress: &dyn Progress,
    ) -> Result<()> {
        let (plan, done) = {
            let backfill = backfill.lock().await;
            (backfill.plan.clone(), backfill.done.clone())
        };
        let left = plan.ranges().into_iter().enumerate().filter(|(index, _)| !done.contains_key(index));
        let left: Vec<(usize, EventTimes)> = left.collect();
        let sources = Sources { catalog, store: self.store(), pushed };
        for ranges in left.chunks(MOST_RANGES) {
            self.compute_ranges(&sources, view, (&plan, ranges), (log, backfill), progress).await?;
        }
        Ok(())
    }

    /// Computes some ranges, as many at once as there are threads; they share the memory. Where a row stands by itself,
    /// history is read once for all of them.
    async fn compute_ranges(
        &self,
        sources: &Sources<'_>,
        view: &FeatureView,
        (plan, ranges): (&BackfillPlan, &[(usize, EventTimes)]),
        (log, backfill): (&BackfillLog, &Mutex<Backfill>),
        progress: &dyn Progress,
    ) -> Result<()> {
        let (Some((_, (from, _))), Some((_, (_, until)))) = (ranges.first(), ranges.last()) else { return Ok(()) };
        let all = EventRange { from: *from, until: *until, known: plan.known, pushed: Timestamp::MAX };
        let seeing = |session: Session| self.seeing(session, sources.catalog, view, &plan.history);
        let events = count_events(&seeing(self.session()?)?, sources, view, all).await?.0;
        // Of rows with the same times those win that were committed since it began.
        let written = WriteOrder::of_commit(plan.pushed, plan.base);
        let mut split: Vec<Option<RangeRows>> = ranges.iter().map(|_| None).collect();
        if ranges.len() > 1 && !view.reaches_back() {
            progress.begin(&format!("reading the events of {}", view.name), events);
            let times: Vec<EventTimes> = ranges.iter().map(|(_, times)| *times).collect();
            let rows =
                split_rows(&seeing(self.session()?)?.writing(written), sources, view, &times, plan.known, progress)
                    .await?;
            split = rows.into_iter().map(Some).collect();
            progress.end();
        }
        progress.begin(&format!("backfilling {}", view.name), events);
        let (number, at_once) = (backfill.lock().await.number, self.threads());
        let failed = AtomicBool::new(false);
        let failed = &failed;
        let ranges = futures::stream::iter(ranges.iter().zip(split)).map(|((index, times), rows)| {
            let name = format!("backfill-{number:06}-{index:06}-{}", self.mark());
            async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let session = seeing(self.session_of(at_once)?)?.writing(written);
                let rows = match &rows {
                    Some(rows) => rows.sorted(&session, view).await?,
                    None => rows_between(&session, sources, view, *times, plan.known).await?,
                };
                let file = write_file(&self.log(view), view, &name, rows, progress).await?;
                let mut backfill = backfill.lock().await;
                log.done(&mut backfill, *index, file).await
            }
        });
        // What the others are writing arrives even if nobody waits for it: then whoever tries again would meet it.
        let (mut ranges, mut ended) = (ranges.buffer_unordered(at_once), Ok(()));
        while let Some(computed) = ranges.next().await {
            failed.fetch_or(computed.is_err(), Ordering::Relaxed);
            ended = ended.and(computed);
        }
        progress.end();
        ended
    }

    /// Commits the ranges' files beside what else counts.
    async fn commit_backfill(&self, catalog: &CatalogState, view: &FeatureView, backfill: &Backfill) -> Result<u64> {
        let log = self.log(view);
        let kept: Mutex<HashMap<String, Option<DataFile>>> = Mutex::default();
        // The ranges are computed, and what is left of files once written is remembered.
        until_on_top(view, || self.try_commit(catalog, view, &log, backfill, &kept)).await
    }

    async fn try_commit(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        log: &ViewLog,
        backfill: &Backfill,
        kept: &Mutex<HashMap<String, Option<DataFile>>>,
    ) -> Result<u64> {
        let plan = &backfill.plan;
        let mut state = log.state().await?;
        if state.replaced > plan.base {
            return Err(Error::invalid("the view's rows were replaced while this backfill was computed")
                .with("view", &view.name)
                .with("commit", state.replaced)
                .remedy("run the backfill again"));
        }
        if plan.base == 0 {
            self.refuse_pushed(view).await?;
        }
        if plan.base == 0 && state.number > 0 {
            // Both have the rows of the stretch.
            return Err(Error::invalid("the view was refreshed for the first time while this backfill was computed")
                .with("view", &view.name)
                .with("commit", state.number)
                .remedy("run the backfill again"));
        }
        if self.was_flushed_too(catalog, view, plan, &state).await? {
            return Err(Error::invalid(
                "events that were pushed while this backfill was computed are in the history that it read",
            )
            .with("view", &view.name)
            .with("commit", state.number)
            .remedy("run the backfill again: it counts each of them once"));
        }
        let mut files = Vec::new();
        let mut kept = kept.lock().await;
        for (number, file) in &state.files {
            let file = DataFile { commit: Some(*number), ..file.clone() };
            // What was committed since it began became known later, and stays.
            if file.commits(*number).0 > plan.base || !touches(&file, plan) {
                files.push(file);
                continue;
            }
            if !kept.contains_key(&file.path) {
                let rest = self.rest_of(view, log, &file, backfill, kept.len()).await?;
                kept.insert(file.path.clone(), rest);
            }
            files.extend(kept.get(&file.path).cloned().flatten());
        }
        drop(kept);
        // Of rows with the same times those win that were committed since it began.
        let commit = (plan.base > 0).then_some(plan.base);
        files.extend(backfill.done.values().flatten().map(|file| DataFile { commit, ..file.clone() }));
        let taken = self.taken_tables(catalog, view).await?;
        let history = settled(&plan.history, &state, plan.is_whole() || plan.base == 0, &taken);
        let set_aside = self.left_by_backfill(catalog, view, (log, &state), plan).await?;
        let commit = self.backfill_commit(catalog, view, &state, plan, (files, history)).await?;
        let commit = ViewCommit { set_aside, ..commit };
        log.commit(&mut state, commit).await?;
        Ok(state.number)
    }

    /// Whether flushes that have been committed since a backfill began brought events that it reads in history, and that the
    /// view did not have of history then. Such flushes stay beside its rows, and each event counts once (rule T12).
    async fn was_flushed_too(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        plan: &BackfillPlan,
        state: &ViewLogState,
    ) -> Result<bool> {
        if plan.base == 0 || state.pushed <= plan.pushed || told_apart(catalog, view)?.is_empty() {
            return Ok(false);
        }
        let began = Got::of(&self.log(view).state_at(plan.base).await?);
        let read = Got { until: Some(plan.known), files: Arc::new(plan.history.clone()), ..began.clone() };
        self.flushed_meanwhile(catalog, view, (&began, &read), state.pushed).await
    }

    async fn backfill_commit(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        plan: &BackfillPlan,
        (files, history): (Vec<DataFile>, HistoryFiles),
    ) -> Result<ViewCommit> {
        let (watermark, read_until) = match (state.watermark, &plan.reset) {
            (Some(watermark), None) => (watermark, state.read_until),
            (before, reset) => {
                let pushed = if reset.is_some() { self.pushed().state().await? } else { PushHistoryState::default() };
                // Of what is pushed, and nobody says how far, no more is known than before.
                let known = plan.known;
                let since = before.map(|before| before.min(known)).filter(|_| is_only_pushed(catalog, view, &pushed));
                (crate::refresh::watermark_of(catalog, view, &pushed, since, known)?.0, Some(known))
            }
        };
        let commit = ViewCommit::new(self.clock().now(), ViewCommitKind::Backfill, watermark);
        Ok(ViewCommit { read_until, history: Some(history), files, signed: plan.reset.clone(), ..commit })
    }

    /// A file without the rows of the stretch; none where nothing is left of it.
    async fn rest_of(
        &self,
        view: &FeatureView,
        log: &ViewLog,
        file: &DataFile,
        backfill: &Backfill,
        index: usize,
    ) -> Result<Option<DataFile>> {
        let plan = &backfill.plan;
        let rows = outside(log.read(file).await?, (plan.from, plan.until), plan.base);
        let name = format!("backfill-{:06}-rest-{index:06}-{}", backfill.number, self.mark());
        let rest = write_file(log, view, &name, rows, &()).await?;
        Ok(rest.map(|rest| DataFile { commit: file.commit, first_commit: file.first_commit, ..rest }))
    }
}

/// Whether a view has a source without a history, of which no producer says how far it is.
fn is_only_pushed(catalog: &CatalogState, view: &FeatureView, pushed: &PushHistoryState) -> bool {
    view.sources.iter().any(|source| {
        let without_history = catalog.source(source).is_ok_and(|source| source.query.is_none());
        without_history && !pushed.watermarks.contains_key(&source.name)
    })
}

/// Whether a file may hold rows of the stretch.
fn touches(file: &DataFile, plan: &BackfillPlan) -> bool {
    file.event_times.is_none_or(|(least, greatest)| greatest >= plan.from && least < plan.until)
}
