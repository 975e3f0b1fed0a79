//! Applies entries of the log to the tiers: each view of a pushed source gets its rows, or its tiles their events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{EventTime, FeatureView};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{EventPlaces, LogReach, PushEntry, PushedEvents};
use springhouse_featurestore::tier::{KeyedRow, Mark, Packer, merge_rows};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::pushed::PushedQuery;
use springhouse_sql::view_rows::{RowStream, Sources, pushed_rows, sorted_in_memory};
use tokio::time::Instant;

use super::lacking::Piece;
use super::set_aside::Seen;
use super::{Prepared, Shared};
use crate::panics::caught;

/// The most events of a flush that are sorted in memory: several times what is usually flushed.
const SORTED_IN_MEMORY: usize = 8 << 20;

/// A push does not wait longer than this for all of its views: it is durable, and those that it came too early for have it
/// later. Only views whose rows rest on stored events wait for storage at all.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

/// Views to which pushes are applied at once: more than one at a time waits for storage.
const APPLIED_AT_ONCE: usize = 16;

impl Shared {
    /// Applies entries that follow those that the tiers have, to several views at once and within one time for all: the views
    /// that read nothing else first. A view that cannot have them by then is behind from then on.
    pub(super) async fn apply(&self, catalog: &CatalogState, entries: &[PushEntry], reach: &LogReach) -> Result<()> {
        let touched: BTreeSet<&str> = entries.iter().map(|entry| entry.source.as_str()).collect();
        let mut views = self.pushed_views(catalog);
        views.retain(|(_, sources)| !sources.is_disjoint(&touched));
        views.sort_by_key(|(view, _)| view.reaches_back());
        let by = Instant::now() + VISIBLE_WITHIN;
        let each = views.iter().map(|(view, sources)| async move {
            let applied = self.apply_to(catalog, (view, sources), (entries, reach));
            let applied = caught("what brings pushes to the view", applied);
            let applied = tokio::time::timeout_at(by, applied).await.unwrap_or_else(|_| {
                Err(Error::unavailable("what the view's rows rest on cannot be read fast enough")
                    .with("seconds", VISIBLE_WITHIN.as_secs()))
            });
            if let Err(error) = applied {
                self.note(view, Err(error));
            }
        });
        let each: Vec<_> = each.collect();
        stream::iter(each).buffer_unordered(APPLIED_AT_ONCE).for_each(std::future::ready).await;
        Ok(())
    }

    async fn apply_to(
        &self,
        catalog: &CatalogState,
        (view, sources): (&FeatureView, &BTreeSet<&str>),
        (entries, reach): (&[PushEntry], &LogReach),
    ) -> Result<()> {
        let pinned = view.pinned();
        loop {
            let mark = {
                let _changing = self.changing.lock().await;
                // What a view that is behind lacks lies before these.
                if self.behind().contains_key(&pinned) {
                    return Ok(());
                }
                self.tier.mark(&pinned)?
            };
            if mark.commit == 0 {
                // Its first refresh takes what has been pushed until then; who loads it takes what the log holds.
                return Ok(());
            }
            let new = self.with_rest_of((&pinned, sources), mark, entries)?;
            let until = entries.last().map_or(mark.pushed, |last| last.position);
            let piece = Piece { entries: new, until, last: true };
            let (rows, reached, seen) = self.rows_of_piece(catalog, view, mark, (&piece, reach)).await?;
            let _changing = self.changing.lock().await;
            if self.tier.mark(&pinned)? != mark || !self.set_aside.hand_out(&pinned, reached.pushed, seen) {
                continue;
            }
            if reached != mark {
                self.tier.apply(&pinned, rows, reached)?;
            }
            self.with_rest().remove(&pinned);
            return Ok(());
        }
    }

    /// The rows that a piece brings to a view at a mark, the mark with them, and what had been set aside of the view by then. What
    /// the log says of watermarks holds with the last piece.
    pub(super) async fn rows_of_piece(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        mark: Mark,
        (piece, reach): (&Piece, &LogReach),
    ) -> Result<(Vec<KeyedRow>, Mark, Seen)> {
        let entries = self.new_to(catalog, view, mark.commit, piece.entries.clone()).await?;
        let (new, mut seen) = self.without_set_aside(view, entries)?;
        let rows = match self.packed_rows(catalog, view, &new, mark).await {
            Err(error) if error.kind() == ErrorKind::Invalid => {
                let mut rows = BTreeMap::new();
                let good;
                (good, seen) = self.separated_to_apply(catalog, view, new, seen).await?;
                for some in good {
                    merge_rows(&mut rows, self.packed_rows(catalog, view, &some, mark).await?.into_iter().collect())?;
                }
                rows
            }
            packed => {
                let rows = packed?;
                if !new.is_empty() {
                    self.set_aside.took(view);
                }
                rows
            }
        };
        let on = piece.until > mark.pushed;
        let (pushed, log) = if on { (piece.until, self.log.incarnation()) } else { (mark.pushed, mark.log) };
        let watermark = if piece.last {
            self.watermark_of(catalog, view, mark.committed, &reach.watermarks)?.max(mark.watermark)
        } else {
            mark.watermark
        };
        Ok((rows.into_iter().collect(), Mark { watermark, pushed, log, ..mark }, seen))
    }

    /// The rows that entries bring to a view, packed.
    async fn packed_rows(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: &[PushEntry],
        mark: Mark,
    ) -> Result<BTreeMap<Bytes, Bytes>> {
        // Many events may be of one key.
        let mut rows = BTreeMap::new();
        if !entries.is_empty() {
            let prepared = self.prepared(catalog, view).await?;
            let mut batches = self.rows_by(&prepared, catalog, view, entries).await?;
            while let Some(batch) = batches.try_next().await? {
                merge_rows(&mut rows, prepared.packer.pack(&batch, mark.commit + 1)?)?;
            }
        }
        Ok(rows)
    }

    /// The rows that entries bring to a view: by its planned query where it has one.
    pub(super) async fn rows_by(
        &self,
        prepared: &Prepared,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: &[PushEntry],
    ) -> Result<RowStream> {
        match &prepared.query {
            Some(query) => query.run(&PushedEvents::of_entries(entries)),
            // Tiers take what the flush computes again of views that reach back.
            None if view.reaches_back() => {
                let left_out = self.left_out(view).await?;
                self.rows_of(catalog, view, (entries, &left_out), WriteOrder::when_pushed).await
            }
            None => self.rows_of(catalog, view, (entries, &Arc::default()), WriteOrder::of_pushes).await,
        }
    }

    /// What applying pushes to a view needs, made once.
    pub(super) async fn prepared(&self, catalog: &CatalogState, view: &FeatureView) -> Result<Arc<Prepared>> {
        let pinned = view.pinned();
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(&pinned).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let query = PushedQuery::plan(&self.jobs.session()?, catalog, view).await?;
        let prepared = Arc::new(Prepared { packer: Packer::new(view)?, query });
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(pinned, Arc::clone(&prepared));
        Ok(prepared)
    }

    /// A view's rows of some entries of the log. Those that rest on several events have the place of the last; they reach back to
    /// all that was pushed until then, but to what is left out.
    pub(super) async fn rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (entries, left_out): (&[PushEntry], &Arc<EventPlaces>),
        written: fn(u64) -> WriteOrder,
    ) -> Result<RowStream> {
        let new = PushedEvents::of_entries(entries);
        let last = entries.last().map_or(0, |entry| entry.position);
        let mut pushed = PushedEvents::default();
        if view.reaches_back() {
            // Their values reach back to other events: those that have been flushed, and those that have not.
            // In this order: what leaves the log between the two is in the history.
            let mut held = self.held_after(self.history().until).await?;
            let history = self.history();
            held.retain(|entry| history.until < entry.position && entry.position <= last);
            let files = history.files.clone();
            pushed = PushedEvents { files, until: Some(last), ..PushedEvents::of_entries(&held) };
            pushed = pushed.leaving_out(left_out);
        }
        let sources = Sources { catalog, store: self.jobs.store(), pushed: &pushed };
        // What rests on several events has all of them up to the last.
        let session = self.jobs.session()?.writing(written(last));
        pushed_rows(&session, &sources, view, &new).await
    }

    /// The same, in the order of data files.
    pub(super) async fn sorted_rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: &[PushEntry],
    ) -> Result<RowStream> {
        let prepared = self.prepared(catalog, view).await?;
        let events: usize = entries.iter().map(|entry| entry.events.num_rows()).sum();
        let Some(query) = prepared.query.as_ref().filter(|_| view.windowed.is_some() && events <= SORTED_IN_MEMORY)
        else {
            let left_out = if view.reaches_back() { self.left_out(view).await? } else { Arc::default() };
            return self.rows_of(catalog, view, (entries, &left_out), WriteOrder::of_pushes).await;
        };
        let rows: Vec<RecordBatch> = query.run(&PushedEvents::of_entries(entries))?.try_collect().await?;
        let view = view.clone();
        let sorted = tokio::task::spawn_blocking(move || sorted_in_memory(&view, &rows))
            .await
            .map_err(|error| Error::internal("sorting rows panicked").source(error))??;
        Ok(stream::iter(sorted.into_iter().map(Ok)).boxed())
    }

    /// How far a view has got: the least of what its pushed sources' producers say and of what its commits say of others.
    pub(super) fn watermark_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        committed: Option<Timestamp>,
        log: &BTreeMap<String, Timestamp>,
    ) -> Result<Option<Timestamp>> {
        let mut reached = None;
        for pinned in &view.sources {
            let source = catalog.source(pinned)?;
            if source.event_time == EventTime::Static {
                continue;
            }
            let told = if self.knows(&pinned.name) || source.query.is_none() {
                self.watermark(&pinned.name, log).or(committed)
            } else {
                committed
            };
            reached = Some(reached.map_or(told, |least: Option<Timestamp>| least.min(told)));
        }
        Ok(reached.flatten())
    }
}
