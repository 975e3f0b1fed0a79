//! Flush: what was pushed moves to object storage, and the log lets go of it.
//!
//! First the events, beside the history that the source reads; then for each view a commit of the rows that they bring;
//! then the log is trimmed to what every view has committed. A crash between leaves more in the log than is needed, and
//! the next flush goes on from there. What a view lacks and the log holds no more (another process flushed it, or the view's
//! first refresh ended after the flush) is read from object storage.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{Flush, LogReach, PushEntry, PushHistoryState, late_events};
use springhouse_featurestore::tier::{DataFile, PushedRange, ViewCommit, ViewCommitKind, ViewLog, ViewLogState};
use springhouse_featurestore::{Error, ErrorKind, Result};

use super::Shared;
use super::lacking::Piece;
use crate::distinct::Got;
use crate::jobs::until_first;
use crate::panics::caught;

/// How often a flush looks again at a history that it does not know.
const ATTEMPTS: usize = 3;

/// Pieces of a view that one flush commits: some hundred megabytes of events.
const PIECES_AT_ONCE: usize = 16;

impl Shared {
    /// Moves what has been applied to object storage, and its rows to the commits of their views.
    ///
    /// # Errors
    /// As [`Self::flush_whole`], and that of a view which cannot have its rows committed: the events are flushed all the same.
    pub(super) async fn flush(&self) -> Result<u64> {
        let (until, failed) = self.flush_whole().await?;
        failed.map_or(Ok(until), Err)
    }

    /// The same; gives the position up to which events are flushed, and beside it why a view cannot have its rows committed, which
    /// is told in the log too: whoever waits for the events alone goes on.
    pub(super) async fn flush_whole(&self) -> Result<(u64, Option<Error>)> {
        let _one = self.flushing.lock().await;
        self.fence.hold()?;
        let reach = self.flushable().await;
        self.flush_events(&reach).await?;
        let history = self.history();
        let catalog = (self.catalog)();
        let mut failed = None;
        for (view, sources) in self.pushed_views(&catalog) {
            let committed = self.commit_pieces(&catalog, view, &sources, &history);
            if let Err(error) = caught("what commits pushes to the view", committed).await {
                tracing::error!(view = %view.name, error = %error.chain(), "a view's pushes cannot be committed; others go on");
                failed.get_or_insert(error.with("view", &view.name));
            }
        }
        {
            let _changing = self.changing.lock().await;
            // What a view has not committed is found on object storage.
            self.log.trim(history.until)?;
        }
        self.cut_events().await?;
        // With nothing to flush nobody was asked for the fence.
        self.look_at_fence().await?;
        self.fence.hold()?;
        Ok((history.until, failed))
    }

    /// Moves events up to a position to object storage. Of a flush before, of which nobody knows what came, it is found out
    /// here: its commit is there or it is not.
    async fn flush_events(&self, reach: &LogReach) -> Result<()> {
        let mut attempt = 1;
        loop {
            let mut history = PushHistoryState::clone(&self.history());
            let mut entries = self.held_after(history.until).await?;
            entries.truncate(entries.partition_point(|entry| entry.position <= reach.last));
            let (watermarks, said) = (reach.watermarks.clone(), self.log.said(reach));
            let told = watermarks.iter().all(|(of, mark)| history.watermarks.get(of) == Some(mark));
            // In this order: a name that comes between the two has not left.
            let no_longer = self.log.no_longer(reach, &history);
            if entries.is_empty() && told && no_longer.is_empty() && history.has_said(&said) {
                return Ok(());
            }
            let flush = Flush { at: self.jobs.clock().now(), entries: &entries, watermarks, said, no_longer };
            match self.jobs.pushed().commit(&mut history, flush).await {
                Ok(()) => {
                    tracing::info!(until = history.until, pushes = entries.len(), "flushed");
                    self.flushed(history).await;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => {
                    attempt += 1;
                    let newest = self.jobs.pushed().state().await?;
                    self.see(newest.takers()).await?;
                    self.fence.hold()?;
                    // Of this epoch: an earlier flush of this process succeeded after all.
                    self.flushed(newest).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// From here on it is so, whatever fails below. Whoever computes rows that reach back sees entries in one place or the
    /// other.
    async fn flushed(&self, history: PushHistoryState) {
        let _changing = self.changing.lock().await;
        *self.history.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(history);
    }

    /// From here on what has been flushed is read from the files that have taken the place of others: those are garbage, and
    /// are removed after a time. Nothing else is new.
    pub(super) fn see_compacted(&self, newest: PushHistoryState) {
        let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
        let is_same = (newest.taker, newest.until) == (history.taker, history.until);
        if is_same && newest.number > history.number {
            *history = Arc::new(newest);
        }
    }

    /// Commits a view's rows of what has been flushed, piece by piece: a view that is far behind needs no more memory than
    /// another, and keeps others waiting for some pieces alone; the next flush goes on.
    async fn commit_pieces(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
        history: &PushHistoryState,
    ) -> Result<()> {
        for _ in 0..PIECES_AT_ONCE {
            let attempt = || self.commit_rows(catalog, view, sources, history);
            if until_first(view, attempt).await? {
                return Ok(());
            }
        }
        tracing::warn!(view = %view.name, "the view is far behind what was pushed; the next flush goes on");
        Ok(())
    }

    /// Commits a view's rows of the first piece of what has been flushed and is not in it; says whether that is all.
    async fn commit_rows(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
        history: &PushHistoryState,
    ) -> Result<bool> {
        let log = self.jobs.log(view);
        let mut state = log.state().await?;
        if state.number == 0 {
            // Its first refresh reads what has been flushed from object storage.
            return Ok(true);
        }
        if view.reaches_back() {
            self.saw_told(view, &state).await?;
        }
        let Piece { entries, last, .. } = self.flushed_piece(sources, state.pushed, history).await?;
        let since = state.watermark;
        // What producers say holds once all that they sent by then is there.
        let told = if last { self.watermark_of(catalog, view, since, &history.watermarks)? } else { since };
        let Some(watermark) = told.max(since) else { return Ok(true) };
        if entries.is_empty() && Some(watermark) == since {
            return Ok(true);
        }
        let pushed = entries.last().map(|last| PushedRange {
            after: state.pushed,
            until: last.position,
            log: self.log.incarnation(),
        });
        let pushed_from = entries.iter().filter_map(|entry| entry.origin.at).min();
        let entries = self.jobs.not_from_history(catalog, view, &Got::of(&state), entries).await?;
        let (files, counted) = self.write_good_rows_of(catalog, view, (&log, &state), entries.clone()).await?;
        let set_aside = self.table_with(catalog, view, (&log, &state), &entries).await?;
        let mut late = 0;
        for entry in &counted {
            if let Some(source) = view.sources.iter().find(|source| source.name == entry.source) {
                late += late_events(catalog.source(source)?, &entry.events);
            }
        }
        let commit = ViewCommit {
            read_until: state.read_until,
            pushed,
            late,
            files,
            pushed_from,
            set_aside,
            ..ViewCommit::new(self.jobs.clock().now(), ViewCommitKind::Push, watermark)
        };
        log.commit(&mut state, commit).await?;
        if view.reaches_back() {
            self.saw_told(view, &state).await?;
        }
        if let Some(range) = pushed {
            self.told_of_set_aside(view, range.until)?;
        }
        Ok(last)
    }

    /// Writes the rows of those entries' events that a view's query takes, and gives them; the others are set aside. From here on
    /// nobody else sets events of these entries aside.
    async fn write_good_rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, state): (&ViewLog, &ViewLogState),
        entries: Vec<PushEntry>,
    ) -> Result<(Vec<DataFile>, Vec<PushEntry>)> {
        self.set_aside.commit(view, entries.last().map_or(state.pushed, |last| last.position));
        let written = self.try_write_good_rows_of(catalog, view, (log, state), entries);
        let written = caught("what commits pushes to the view", written).await;
        if written.is_err() {
            self.set_aside.commit(view, state.pushed);
        }
        written
    }

    async fn try_write_good_rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        to: (&ViewLog, &ViewLogState),
        entries: Vec<PushEntry>,
    ) -> Result<(Vec<DataFile>, Vec<PushEntry>)> {
        let (entries, _) = self.without_set_aside(view, entries)?;
        match self.write_rows_of(catalog, view, to, &entries).await {
            Err(error) if error.kind() == ErrorKind::Invalid => {}
            files => return Ok((files?, entries)),
        }
        let good = self.separated_to_commit(catalog, view, entries).await?;
        let mut files = Vec::new();
        for some in &good {
            files.extend(self.write_rows_of(catalog, view, to, some).await?);
        }
        Ok((files, good.into_iter().flatten().collect()))
    }

    /// Writes the rows of entries as a file of the next commit; without any there is none.
    async fn write_rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, state): (&ViewLog, &ViewLogState),
        entries: &[PushEntry],
    ) -> Result<Vec<DataFile>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.sorted_rows_of(catalog, view, entries).await?;
        self.jobs.write_file(view, log, state, rows).await
    }
}
