//! Backfill: a view's rows of a stretch of event time computed anew from its sources, and put in the place of those that
//! are committed, in one commit.
//!
//! The stretch is cut into ranges. Each is computed by itself, several at once, from a history that is read once for all,
//! into a file of its own, and noted in the view's backfill log: after a crash the next run goes on with the ranges that
//! are left. Files that hold rows both in the stretch and outside are written again without the former. Until the commit
//! nobody sees any of it; after it the tiers load the view as a new generation, so no reader sees a mixture.
//!
//! What is known is as of the commit that the backfill began from. What refreshes and pushes have committed since stays.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{PushHistoryState, PushedEvents};
use springhouse_featurestore::tier::{
    Backfill, BackfillAsked, BackfillLog, BackfillPlan, DataFile, Progress, ViewCommit, ViewCommitKind, ViewLog,
    ViewLogState,
};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::EventRange;
use springhouse_sql::view_rows::{MOST_RANGES, RangeRows, Sources, count_events, outside, rows_between, split_rows};
use tokio::sync::Mutex;

use crate::Jobs;
use crate::jobs::{until_first, write_file};

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
        if view.is_static() {
            return Err(Error::invalid("a static view has no stretch of time to backfill")
                .with("view", &view.name)
                .remedy("refresh it: a refresh replaces all of its rows"));
        }
        let log = BackfillLog::new(self.store().clone(), &view.pinned());
        let backfill = self.begin(catalog, view, asked, &log).await?;
        let plan = backfill.plan.clone();
        let resumed = backfill.done.len();
        if resumed > 0 {
            tracing::info!(view = %view.name, ranges = resumed, "going on with the backfill that was cut off");
        }
        let pushed = self.pushed().state_at(plan.pushed).await?.events();
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
        asked: BackfillAsked,
        log: &BackfillLog,
    ) -> Result<Backfill> {
        let state = self.log(view).state().await?;
        let history = self.history_files(catalog, view).await?;
        if let Some(begun) = log.begun().await?
            && begun.plan.asked == asked
            && begun.plan.history == history
            && begun.plan.base >= state.replaced
        {
            return Ok(begun);
        }
        let flushed = self.pushed().state_at(state.pushed).await?;
        if state.number == 0 && view.sources.iter().any(|source| flushed.knows(&source.name)) {
            return Err(Error::invalid("events have been pushed to the view's sources, and it was never refreshed")
                .with("view", &view.name)
                .remedy("springhouse refresh, which takes what was pushed"));
        }
        // Before the first refresh nothing is known of what lies after the stretch: the first refresh goes on there.
        let before = |until: Timestamp| until - Span::from_micros(1);
        let now = self.clock().now();
        let known = state.read_until.unwrap_or_else(|| now.min(asked.until.map_or(now, before)));
        let until = asked.until.unwrap_or(known + Span::from_micros(1));
        let from = match asked.from {
            Some(from) => from,
            None => self.first_event(catalog, view, &flushed.events(), known).await?.unwrap_or(until),
        };
        if from >= until {
            return Err(Error::invalid("there is nothing to backfill: the stretch is empty")
                .with("view", &view.name)
                .with("from", from)
                .with("until", until)
                .remedy("give a --from that lies before --until"));
        }
        let (base, pushed) = (state.number, state.pushed);
        log.begin(BackfillPlan { asked, from, until, known, base, pushed, history }).await
    }

    async fn first_event(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        pushed: &PushedEvents,
        known: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let sources = Sources { catalog, store: self.store(), pushed };
        Ok(count_events(&self.session()?, &sources, view, EventRange::known_by(known)).await?.1)
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
        let all = EventRange { from: *from, until: *until, known: plan.known };
        let events = count_events(&self.session()?, sources, view, all).await?.0;
        let mut split: Vec<Option<RangeRows>> = ranges.iter().map(|_| None).collect();
        if ranges.len() > 1 && !view.reaches_back() {
            progress.begin(&format!("reading the events of {}", view.name), events);
            let times: Vec<EventTimes> = ranges.iter().map(|(_, times)| *times).collect();
            let rows = split_rows(&self.session()?, sources, view, &times, plan.known, progress).await?;
            split = rows.into_iter().map(Some).collect();
            progress.end();
        }
        progress.begin(&format!("backfilling {}", view.name), events);
        let (number, at_once) = (backfill.lock().await.number, self.threads());
        let ranges = futures::stream::iter(ranges.iter().zip(split)).map(|((index, times), rows)| {
            let name = format!("backfill-{number:06}-{index:06}-{}", self.mark());
            async move {
                let session = self.session_of(at_once)?;
                let rows = match &rows {
                    Some(rows) => rows.sorted(&session, view).await?,
                    None => rows_between(&session, sources, view, *times, plan.known).await?,
                };
                let file = write_file(&self.log(view), view, &name, rows, progress).await?;
                let mut backfill = backfill.lock().await;
                log.done(&mut backfill, *index, file).await
            }
        });
        ranges.buffer_unordered(at_once).try_collect::<()>().await?;
        progress.end();
        Ok(())
    }

    /// Commits the ranges' files beside what else counts.
    async fn commit_backfill(&self, catalog: &CatalogState, view: &FeatureView, backfill: &Backfill) -> Result<u64> {
        let log = self.log(view);
        let kept: Mutex<HashMap<String, Option<DataFile>>> = Mutex::default();
        until_first(view, || self.try_commit(catalog, view, &log, backfill, &kept)).await
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
        let mut files = Vec::new();
        let mut kept = kept.lock().await;
        for (number, file) in &state.files {
            let file = DataFile { commit: Some(*number), ..file.clone() };
            // What was committed since it began became known later, and stays.
            if *number > plan.base || !touches(&file, plan) {
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
        files.extend(backfill.done.values().flatten().cloned());
        let commit = self.backfill_commit(catalog, view, &state, plan, files)?;
        log.commit(&mut state, commit).await?;
        Ok(state.number)
    }

    fn backfill_commit(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        plan: &BackfillPlan,
        files: Vec<DataFile>,
    ) -> Result<ViewCommit> {
        let (watermark, read_until) = match state.watermark {
            Some(watermark) => (watermark, state.read_until),
            None => {
                let none = PushHistoryState::default();
                (crate::refresh::watermark_of(catalog, view, &none, None, plan.known)?, Some(plan.known))
            }
        };
        Ok(ViewCommit {
            at: self.clock().now(),
            kind: ViewCommitKind::Backfill,
            watermark,
            read_until,
            pushed: None,
            late: 0,
            history: Some(plan.history.clone()),
            restated: None,
            files,
        })
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
        let rows = outside(log.read(file).await?, (plan.from, plan.until));
        let name = format!("backfill-{:06}-rest-{index:06}-{}", backfill.number, self.mark());
        let rest = write_file(log, view, &name, rows, &()).await?;
        Ok(rest.map(|rest| DataFile { commit: file.commit, ..rest }))
    }
}

/// Whether a file may hold rows of the stretch.
fn touches(file: &DataFile, plan: &BackfillPlan) -> bool {
    file.event_times.is_none_or(|(least, greatest)| greatest >= plan.from && least < plan.until)
}
