//! Applies entries of the log to the tiers: each view of a pushed source gets its rows, or its tiles their events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{EventTime, FeatureView};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{LogReach, PushEntry, PushedEvents};
use springhouse_featurestore::tier::{KeyedRow, Mark, Packer, merge_rows};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::pushed::PushedQuery;
use springhouse_sql::view_rows::{RowStream, Sources, pushed_rows, sorted_in_memory};

use super::{Prepared, Shared, set_aside};

/// The most events of a flush that are sorted in memory: several times what is usually flushed.
const SORTED_IN_MEMORY: usize = 8 << 20;

impl Shared {
    /// What a tier at this mark lacks of a view's pushes.
    pub(super) async fn rows_after(&self, view: &FeatureView, mark: Mark) -> Result<(Vec<KeyedRow>, Mark)> {
        let catalog = (self.catalog)();
        let found = self.pushed_views(&catalog).into_iter().find(|(pushed, _)| pushed.pinned() == view.pinned());
        let Some((view, sources)) = found else { return Ok((Vec::new(), mark)) };
        if self.fence.is_lost() {
            // Another log's pushes come by commits; this one's are not in the store's order.
            return Ok((Vec::new(), mark));
        }
        let reach = self.log.reach();
        let entries = self.missing(&sources, mark, &reach).await?;
        self.rows_of_entries(&catalog, view, &sources, mark, (&entries, &reach)).await
    }

    /// The entries that a tier at this mark lacks of a view, at least up to where the log had got: what it says of
    /// watermarks must not be younger than its entries.
    async fn missing(&self, sources: &BTreeSet<&str>, mark: Mark, reach: &LogReach) -> Result<Vec<PushEntry>> {
        if mark.pushed < reach.last { self.entries_of(sources, (mark.pushed, u64::MAX)).await } else { Ok(Vec::new()) }
    }

    /// The entries after a position and up to another: those that the log holds, of all sources, and before them those of
    /// some sources from object storage.
    pub(super) async fn entries_of(
        &self,
        sources: &BTreeSet<&str>,
        (after, until): (u64, u64),
    ) -> Result<Vec<PushEntry>> {
        // In this order: what leaves the log between the two is in the history.
        let held = self.log.entries_after(after)?;
        let history = self.history();
        let first_held = held.first().map_or(u64::MAX, |entry| entry.position);
        let flushed = (after, until.min(history.until).min(first_held - 1));
        let mut entries = self.jobs.pushed().entries(&history, sources, flushed).await?;
        entries.extend(held.into_iter().take_while(|entry| entry.position <= until));
        Ok(entries)
    }

    /// Applies what the tiers lack of the log. The caller holds the lock of those who change them.
    pub(super) async fn apply_missing(&self, catalog: &CatalogState) -> Result<()> {
        if self.fence.is_lost() {
            return Ok(());
        }
        let reach = self.log.reach();
        for (view, sources) in self.pushed_views(catalog) {
            let applied = self.apply_missing_to(catalog, view, &sources, &reach).await;
            self.note(view, applied);
        }
        *self.applied() = Some(reach);
        Ok(())
    }

    async fn apply_missing_to(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
        reach: &LogReach,
    ) -> Result<()> {
        let mark = self.tier.mark(&view.pinned())?;
        let entries = self.missing(sources, mark, reach).await?;
        self.apply_to(catalog, view, sources, mark, (&entries, reach)).await
    }

    /// Applies entries that follow those that the tiers have.
    pub(super) async fn apply(&self, catalog: &CatalogState, entries: &[PushEntry], reach: &LogReach) -> Result<()> {
        let touched: BTreeSet<&str> = entries.iter().map(|entry| entry.source.as_str()).collect();
        for (view, sources) in self.pushed_views(catalog) {
            // What a view that is behind lacks lies before these.
            if !sources.is_disjoint(&touched) && !self.behind().contains_key(&view.pinned()) {
                let mark = self.tier.mark(&view.pinned())?;
                let applied = self.apply_to(catalog, view, &sources, mark, (entries, reach)).await;
                self.note(view, applied);
            }
        }
        Ok(())
    }

    async fn apply_to(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
        mark: Mark,
        log: (&[PushEntry], &LogReach),
    ) -> Result<()> {
        if mark.commit == 0 {
            // Its first refresh takes what has been pushed until then.
            return Ok(());
        }
        let (rows, reached) = self.rows_of_entries(catalog, view, sources, mark, log).await?;
        if reached != mark {
            self.tier.apply(&view.pinned(), rows, reached)?;
        }
        Ok(())
    }

    /// The rows that entries bring to a view at a mark, and the mark with them.
    async fn rows_of_entries(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
        mark: Mark,
        (entries, reach): (&[PushEntry], &LogReach),
    ) -> Result<(Vec<KeyedRow>, Mark)> {
        let new: Vec<PushEntry> = entries
            .iter()
            .filter(|entry| entry.position > mark.pushed && sources.contains(entry.source.as_str()))
            .filter(|entry| entry.events.num_rows() > 0)
            .cloned()
            .collect();
        let rows = match self.packed_rows(catalog, view, &new, mark).await {
            Err(error) if error.kind() == ErrorKind::Invalid => {
                let (good, aside) = self.separated(catalog, view, new).await?;
                set_aside::tell(view, &aside);
                let mut rows = BTreeMap::new();
                for some in good {
                    merge_rows(&mut rows, self.packed_rows(catalog, view, &some, mark).await?.into_iter().collect())?;
                }
                rows
            }
            packed => packed?,
        };
        let reached = entries.last().map(|entry| entry.position).filter(|position| *position > mark.pushed);
        let (pushed, log) = reached.map_or((mark.pushed, mark.log), |position| (position, self.log.incarnation()));
        let watermark = self.watermark_of(catalog, view, mark.committed, &reach.watermarks)?.max(mark.watermark);
        Ok((rows.into_iter().collect(), Mark { watermark, pushed, log, ..mark }))
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
            None => self.rows_of(catalog, view, entries).await,
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

    /// A view's rows of some entries of the log.
    pub(super) async fn rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: &[PushEntry],
    ) -> Result<RowStream> {
        let new = PushedEvents::of_entries(entries);
        let mut pushed = PushedEvents::default();
        if view.reaches_back() {
            // Their values reach back to other events: those that have been flushed, and those that have not.
            let history = self.history();
            pushed = PushedEvents {
                files: history.files.clone(),
                ..PushedEvents::of_entries(&self.log.entries_after(history.until)?)
            };
        }
        let sources = Sources { catalog, store: self.jobs.store(), pushed: &pushed };
        // What rests on several events has all of them up to the last.
        let last = entries.last().map_or(0, |entry| entry.position);
        let session = self.jobs.session()?.writing(WriteOrder::of_pushes(last));
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
            return self.rows_of(catalog, view, entries).await;
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
