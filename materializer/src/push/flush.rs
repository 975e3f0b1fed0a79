//! Flush: what was pushed moves to object storage, and the log lets go of it.
//!
//! First the events, beside the history that the source reads; then for each view a commit of the rows that they bring;
//! then the log is trimmed to what every view has committed. A crash between leaves more in the log than is needed, and
//! the next flush goes on from there.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{PushEntry, PushHistoryState, PushedEvents, late_events};
use springhouse_featurestore::tier::{PushedRange, ViewCommit, ViewCommitKind};

use super::Shared;
use crate::jobs::until_first;

impl Shared {
    pub(super) async fn flush(&self) -> Result<u64> {
        let _one = self.flushing.lock().await;
        let reach = self.flushable().await;
        let mut history = PushHistoryState::clone(&self.history());
        // Those that are flushed and still held are those that some view has not committed.
        let mut held = self.log.entries_after(0)?;
        held.truncate(held.partition_point(|entry| entry.position <= reach.last));
        let entries = &held[held.partition_point(|entry| entry.position <= history.until)..];
        let watermarks = reach.watermarks;
        if !entries.is_empty() || watermarks.iter().any(|(of, mark)| history.watermarks.get(of) != Some(mark)) {
            let until = entries.last().map_or(history.until, |entry| entry.position);
            let events = PushedEvents::of_entries(entries);
            let now = self.jobs.clock().now();
            self.jobs.pushed().commit(&mut history, now, until, watermarks, &events).await?;
            tracing::info!(until, pushes = entries.len(), "flushed");
            // From here on it is so, whatever fails below. Whoever computes rows that reach back sees the entries in one
            // place or the other.
            let _changing = self.changing.lock().await;
            *self.history.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(history.clone());
        }
        let catalog = (self.catalog)();
        let mut committed = history.until;
        for (view, sources) in self.pushed_views(&catalog) {
            let attempt = || self.commit_rows(&catalog, view, &sources, &history, &held);
            committed = committed.min(until_first(view, attempt).await?);
        }
        let _changing = self.changing.lock().await;
        self.log.trim(committed)?;
        Ok(committed)
    }

    /// Commits a view's rows of what has been flushed, of the log's entries. Returns the position up to which it needs no
    /// more of the log.
    async fn commit_rows(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
        history: &PushHistoryState,
        held: &[PushEntry],
    ) -> Result<u64> {
        let log = self.jobs.log(view);
        let mut state = log.state().await?;
        if state.number == 0 {
            // Its first refresh reads what has been flushed from object storage.
            return Ok(history.until);
        }
        let of_view = |entry: &&PushEntry| {
            entry.position > state.pushed && entry.position <= history.until && sources.contains(entry.source.as_str())
        };
        let entries: Vec<PushEntry> = held.iter().filter(of_view).cloned().collect();
        let since = state.watermark;
        let told = self.watermark_of(catalog, view, since, &history.watermarks)?;
        let Some(watermark) = told.max(since) else { return Ok(history.until) };
        if entries.is_empty() && Some(watermark) == since {
            return Ok(history.until);
        }
        let pushed = entries.last().map(|last| PushedRange { after: state.pushed, until: last.position });
        let files = if entries.is_empty() {
            Vec::new()
        } else {
            let rows = self.sorted_rows_of(catalog, view, &entries).await?;
            self.jobs.write_file(view, &log, &state, rows).await?
        };
        let mut late = 0;
        for entry in &entries {
            if let Some(source) = view.sources.iter().find(|source| source.name == entry.source) {
                late += late_events(catalog.source(source)?, &entry.events);
            }
        }
        let commit = ViewCommit {
            at: self.jobs.clock().now(),
            kind: ViewCommitKind::Push,
            watermark,
            read_until: state.read_until,
            pushed,
            late,
            history: None,
            restated: None,
            files,
        };
        log.commit(&mut state, commit).await?;
        Ok(history.until)
    }
}
