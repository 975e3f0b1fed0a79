//! Applies entries of the log to the tiers: each view of a pushed source gets its rows, or its tiles their events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{EventTime, FeatureView};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{Lacking, LogReach, PushEntry, PushHistoryState, PushedEvents};
use springhouse_featurestore::tier::{KeyedRow, Mark, Packer, merge_rows};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::pushed::PushedQuery;
use springhouse_sql::view_rows::{RowStream, Sources, pushed_rows, sorted_in_memory};

use super::{Prepared, Shared, set_aside};

/// The most events of a flush that are sorted in memory: several times what is usually flushed.
const SORTED_IN_MEMORY: usize = 8 << 20;

/// Events take about so many times the bytes of their files in memory.
const UNPACKED: u64 = 4;

/// Views that are brought up at once, when they lack pushes.
const BEHIND_AT_ONCE: usize = 4;

/// A push does not wait longer than this for one view: it is durable, and the view has it later. Only views whose rows rest
/// on stored events wait for storage at all.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

/// Entries that a view gets together, or the first of those that it lacks.
pub(super) struct Piece {
    pub(super) entries: Vec<PushEntry>,
    /// With them the view has all of its pushes up to this position.
    until: u64,
    /// Whether that is as far as the log had got.
    pub(super) last: bool,
}

impl Piece {
    /// No more entries than so many bytes in memory, and at least one.
    fn cut(&mut self, most: u64) {
        let mut bytes = 0;
        let over = self.entries.iter().position(|entry| {
            let before = bytes;
            bytes += bytes_of(entry) as u64;
            before > 0 && bytes > most
        });
        if let Some(over) = over {
            self.entries.truncate(over);
            (self.until, self.last) = (self.entries.last().map_or(self.until, |last| last.position), false);
        }
    }
}

/// The memory that an entry's events need; those of one file share theirs.
fn bytes_of(entry: &PushEntry) -> usize {
    entry.events.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or_default()).sum()
}

impl Shared {
    /// What a tier at this mark lacks of a view's pushes, or the first of it.
    pub(super) async fn rows_after(&self, view: &FeatureView, mark: Mark) -> Result<Lacking> {
        let catalog = (self.catalog)();
        let nothing = Lacking { rows: Vec::new(), mark, more: false };
        let found = self.pushed_views(&catalog).into_iter().find(|(pushed, _)| pushed.pinned() == view.pinned());
        let Some((view, sources)) = found else { return Ok(nothing) };
        if self.fence.is_lost() {
            // Another log's pushes come by commits; this one's are not in the store's order.
            return Ok(nothing);
        }
        let reach = self.log.reach();
        let piece = self.missing(&sources, mark.pushed, &reach).await?;
        let (rows, mark) = self.rows_of_piece(&catalog, view, mark, (&piece, &reach)).await?;
        Ok(Lacking { rows, mark, more: !piece.last })
    }

    /// All of it, where the log holds it and the view's query reads nothing else. The caller holds the lock of those who
    /// change the tiers.
    pub(super) async fn rows_at_hand(&self, view: &FeatureView, mark: Mark) -> Result<Option<(Vec<KeyedRow>, Mark)>> {
        let catalog = (self.catalog)();
        let found = self.pushed_views(&catalog).into_iter().find(|(pushed, _)| pushed.pinned() == view.pinned());
        let Some((view, sources)) = found.filter(|_| !self.fence.is_lost()) else { return Ok(Some((Vec::new(), mark))) };
        let reach = self.log.reach();
        let (entries, in_log) = self.lacking(&sources, mark.pushed)?;
        let by_itself = entries.is_empty() || self.prepared(&catalog, view).await?.query.is_some();
        if !in_log || !by_itself {
            return Ok(None);
        }
        let piece = Piece { entries, until: reach.last.max(mark.pushed), last: true };
        self.rows_of_piece(&catalog, view, mark, (&piece, &reach)).await.map(Some)
    }

    /// The entries of some sources that the log holds after a position, and whether those are all that there are.
    fn lacking(&self, sources: &BTreeSet<&str>, after: u64) -> Result<(Vec<PushEntry>, bool)> {
        // In this order: what leaves the log between the two is in the history.
        let mut entries = self.log.entries_after(after)?;
        entries.retain(|entry| sources.contains(entry.source.as_str()) && entry.events.num_rows() > 0);
        let first_held = entries.first().map_or(u64::MAX, |entry| entry.position);
        let history = self.history();
        let flushed = history.files.iter().filter(|(source, _)| sources.contains(source.as_str()));
        let mut ranges = flushed.flat_map(|(_, files)| files).filter_map(|file| file.positions);
        Ok((entries, !ranges.any(|range| range.until > after && range.after.max(after) + 1 < first_held)))
    }

    /// The entries of some sources after a position, up to where the log had got, or the first of them: what the log says of
    /// watermarks must not be younger than its entries.
    async fn missing(&self, sources: &BTreeSet<&str>, after: u64, reach: &LogReach) -> Result<Piece> {
        if after >= reach.last {
            return Ok(Piece { entries: Vec::new(), until: after, last: true });
        }
        let flushed = self.history().until.min(reach.last);
        let until = if after < flushed {
            self.history().until_within(sources, (after, flushed), self.jobs.piece_bytes())
        } else {
            reach.last
        };
        let entries = self.entries_of(sources, (after, until)).await?;
        let mut piece = Piece { entries, until, last: until >= reach.last };
        piece.entries.retain(|entry| sources.contains(entry.source.as_str()) && entry.events.num_rows() > 0);
        piece.cut(UNPACKED.saturating_mul(self.jobs.piece_bytes()));
        Ok(piece)
    }

    /// The same of what a flush commits: up to where the history has got.
    pub(super) async fn flushed_piece(
        &self,
        sources: &BTreeSet<&str>,
        after: u64,
        history: &PushHistoryState,
    ) -> Result<Piece> {
        let mut after = after;
        loop {
            let until = history.until_within(sources, (after, history.until), self.jobs.piece_bytes()).max(after);
            let entries = self.entries_of(sources, (after, until)).await?;
            let mut piece = Piece { entries, until, last: until >= history.until };
            piece.entries.retain(|entry| sources.contains(entry.source.as_str()));
            piece.cut(UNPACKED.saturating_mul(self.jobs.piece_bytes()));
            if piece.last || !piece.entries.is_empty() {
                return Ok(piece);
            }
            after = until;
        }
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

    /// Applies what the tiers lack of the log, several views at once and each by itself.
    pub(super) async fn apply_missing(&self, catalog: &CatalogState) -> Result<()> {
        if self.fence.is_lost() {
            return Ok(());
        }
        let reach = self.log.reach();
        let views = self.pushed_views(catalog).into_iter();
        let each: Vec<_> = views.map(|(view, sources)| self.bring_up(catalog, view, sources)).collect();
        stream::iter(each).buffer_unordered(BEHIND_AT_ONCE).for_each(std::future::ready).await;
        let mut applied = self.applied();
        if applied.as_ref().is_none_or(|applied| applied.last < reach.last) {
            *applied = Some(reach);
        }
        Ok(())
    }

    /// Applies what a view lacks, or notes why that cannot be.
    async fn bring_up(&self, catalog: &CatalogState, view: &FeatureView, sources: BTreeSet<&str>) {
        if let Err(error) = self.apply_missing_to(catalog, view, &sources).await {
            self.note(view, Err(error));
        }
    }

    /// Applies what a view lacks, piece by piece, until it has all that the log holds. What is computed for it is computed
    /// without the lock, and applied if nobody else has changed the view meanwhile.
    async fn apply_missing_to(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
    ) -> Result<()> {
        let pinned = view.pinned();
        loop {
            let mark = self.tier.mark(&pinned)?;
            let reach = self.log.reach();
            if mark.commit > 0 {
                let piece = self.missing(sources, mark.pushed, &reach).await?;
                let (rows, reached) = self.rows_of_piece(catalog, view, mark, (&piece, &reach)).await?;
                let _changing = self.changing.lock().await;
                if self.tier.mark(&pinned)? != mark {
                    continue;
                }
                if reached != mark {
                    self.tier.apply(&pinned, rows, reached)?;
                }
                // What was passed over because the view was behind is in the log: it is behind until it has that.
                let (left, in_log) = self.lacking(sources, reached.pushed)?;
                if left.is_empty() && (in_log || reached.pushed >= self.log.reach().last) {
                    self.note(view, Ok(()));
                    return Ok(());
                }
            } else {
                let _changing = self.changing.lock().await;
                if self.tier.mark(&pinned)?.commit == 0 {
                    // Its first refresh takes what has been pushed until then; who loads it takes what the log holds.
                    self.note(view, Ok(()));
                    return Ok(());
                }
            }
        }
    }

    /// Applies entries that follow those that the tiers have. A view that cannot have them soon is behind from then on.
    pub(super) async fn apply(&self, catalog: &CatalogState, entries: &[PushEntry], reach: &LogReach) -> Result<()> {
        let touched: BTreeSet<&str> = entries.iter().map(|entry| entry.source.as_str()).collect();
        for (view, sources) in self.pushed_views(catalog) {
            if sources.is_disjoint(&touched) {
                continue;
            }
            let applied = self.apply_to(catalog, (view, &sources), (entries, reach));
            let applied = tokio::time::timeout(VISIBLE_WITHIN, applied).await.unwrap_or_else(|_| {
                Err(Error::unavailable("what the view's rows rest on cannot be read fast enough")
                    .with("seconds", VISIBLE_WITHIN.as_secs()))
            });
            if let Err(error) = applied {
                self.note(view, Err(error));
            }
        }
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
            let new = entries.iter().filter(|entry| entry.position > mark.pushed && entry.events.num_rows() > 0);
            let new = new.filter(|entry| sources.contains(entry.source.as_str())).cloned().collect();
            let until = entries.last().map_or(mark.pushed, |last| last.position);
            let piece = Piece { entries: new, until, last: true };
            let (rows, reached) = self.rows_of_piece(catalog, view, mark, (&piece, reach)).await?;
            let _changing = self.changing.lock().await;
            if self.tier.mark(&pinned)? != mark {
                continue;
            }
            if reached != mark {
                self.tier.apply(&pinned, rows, reached)?;
            }
            return Ok(());
        }
    }

    /// The rows that a piece brings to a view at a mark, and the mark with them. What the log says of watermarks holds with the
    /// last piece.
    async fn rows_of_piece(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        mark: Mark,
        (piece, reach): (&Piece, &LogReach),
    ) -> Result<(Vec<KeyedRow>, Mark)> {
        let rows = match self.packed_rows(catalog, view, &piece.entries, mark).await {
            Err(error) if error.kind() == ErrorKind::Invalid => {
                let (good, aside) = self.separated(catalog, view, piece.entries.clone()).await?;
                set_aside::tell(view, &aside);
                let mut rows = BTreeMap::new();
                for some in good {
                    merge_rows(&mut rows, self.packed_rows(catalog, view, &some, mark).await?.into_iter().collect())?;
                }
                rows
            }
            packed => packed?,
        };
        let on = piece.until > mark.pushed;
        let (pushed, log) = if on { (piece.until, self.log.incarnation()) } else { (mark.pushed, mark.log) };
        let watermark = if piece.last {
            self.watermark_of(catalog, view, mark.committed, &reach.watermarks)?.max(mark.watermark)
        } else {
            mark.watermark
        };
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
            // Tiers take what the flush computes again of views that reach back.
            None if view.reaches_back() => self.rows_of(catalog, view, entries, WriteOrder::when_pushed).await,
            None => self.rows_of(catalog, view, entries, WriteOrder::of_pushes).await,
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

    /// A view's rows of some entries of the log. Those that rest on several events have the place of the last.
    async fn rows_of(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: &[PushEntry],
        written: fn(u64) -> WriteOrder,
    ) -> Result<RowStream> {
        let new = PushedEvents::of_entries(entries);
        let mut pushed = PushedEvents::default();
        if view.reaches_back() {
            // Their values reach back to other events: those that have been flushed, and those that have not.
            // In this order: what leaves the log between the two is in the history.
            let mut held = self.log.entries_after(self.history().until)?;
            let history = self.history();
            held.retain(|entry| entry.position > history.until);
            pushed = PushedEvents { files: history.files.clone(), ..PushedEvents::of_entries(&held) };
        }
        let sources = Sources { catalog, store: self.jobs.store(), pushed: &pushed };
        // What rests on several events has all of them up to the last.
        let last = entries.last().map_or(0, |entry| entry.position);
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
            return self.rows_of(catalog, view, entries, WriteOrder::of_pushes).await;
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

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use springhouse_featurestore::push::PushOrigin;

    use super::*;

    #[test]
    fn a_piece_has_no_more_than_its_bytes_and_at_least_one_entry() {
        let entry = |position: u64| {
            let values: ArrayRef = Arc::new(Int64Array::from_value(7, 100));
            let events = RecordBatch::try_from_iter([("value", values)]).expect("a batch");
            PushEntry { position, source: "paid".to_owned(), events, origin: PushOrigin::default() }
        };
        let cut = |most: u64| {
            let mut piece = Piece { entries: [3, 5, 8].map(entry).into(), until: 9, last: true };
            piece.cut(most);
            (piece.entries.len(), piece.until, piece.last)
        };
        assert_eq!(cut(800 * 3), (3, 9, true));
        assert_eq!(cut(800 * 3 - 1), (2, 5, false));
        assert_eq!(cut(1), (1, 3, false));
    }
}
