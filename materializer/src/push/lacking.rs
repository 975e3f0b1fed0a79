//! What views lack of pushes, and how they get it: in tiers that are loaded or that are behind, and in commits. In pieces of
//! bounded bytes, and without keeping those who push waiting for storage.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use futures::{StreamExt, stream};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::push::{Lacking, LogReach, PushEntry, PushHistoryState, PushLog};
use springhouse_featurestore::tier::{KeyedRow, Mark};
use springhouse_featurestore::{Error, Result};

use super::Shared;
use super::distinct::on_log;
use crate::panics::caught;

/// Views that are brought up at once, when they lack pushes.
const BEHIND_AT_ONCE: usize = 4;

/// How often what has come for a view that is behind is read beside pushes.
const ROUNDS: usize = 10;

/// Entries that a view gets together, or the first of those that it lacks.
pub(super) struct Piece {
    pub(super) entries: Vec<PushEntry>,
    /// With them the view has all of its pushes up to this position.
    pub(super) until: u64,
    /// Whether that is as far as the log had got.
    pub(super) last: bool,
}

impl Piece {
    /// No more entries than so many bytes in memory, and at least one.
    fn cut(&mut self, most: u64) {
        let mut bytes = 0;
        let over = self.entries.iter().position(|entry| {
            let before = bytes;
            bytes += entry.events_bytes();
            before > 0 && bytes > most
        });
        if let Some(over) = over {
            self.entries.truncate(over);
            (self.until, self.last) = (self.entries.last().map_or(self.until, |last| last.position), false);
        }
    }
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
        let (rows, reached, seen) = self.rows_of_piece(&catalog, view, mark, (&piece, &reach)).await?;
        self.set_aside.hand_to_load(&view.pinned(), (mark.pushed, reached.pushed), seen)?;
        Ok(Lacking { rows, mark: reached, more: !piece.last })
    }

    /// All of it, where the log holds it and the view's query reads nothing else. The caller holds the lock of those who
    /// change the tiers.
    pub(super) async fn rows_at_hand(&self, view: &FeatureView, mark: Mark) -> Result<Option<(Vec<KeyedRow>, Mark)>> {
        let catalog = (self.catalog)();
        let found = self.pushed_views(&catalog).into_iter().find(|(pushed, _)| pushed.pinned() == view.pinned());
        let Some((view, sources)) = found.filter(|_| !self.fence.is_lost()) else {
            return Ok(Some((Vec::new(), mark)));
        };
        let reach = self.log.reach();
        let (entries, in_log) = self.lacking(&sources, mark.pushed);
        let by_itself = entries.is_empty() || self.is_at_hand(&catalog, view, mark, &entries).await?;
        if !in_log || !by_itself {
            return Ok(None);
        }
        // Some may have come since it was asked how far the log had got.
        let until = entries.last().map_or(mark.pushed, |last| last.position).max(reach.last).max(mark.pushed);
        let piece = Piece { entries, until, last: true };
        let (rows, reached, seen) = self.rows_of_piece(&catalog, view, mark, (&piece, &reach)).await?;
        self.set_aside.hand_to_load(&view.pinned(), (mark.pushed, reached.pushed), seen)?;
        Ok(Some((rows, reached)))
    }

    /// Whether what entries bring to a view at a mark is computed from them alone: no storage is read for that.
    async fn is_at_hand(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        mark: Mark,
        entries: &[PushEntry],
    ) -> Result<bool> {
        let by_itself = self.prepared(catalog, view).await?.query.is_some();
        Ok(by_itself && !self.asks_history(catalog, view, mark.commit, entries)?)
    }

    /// The entries of some sources that the log has in memory after a position, and whether those are all that there are.
    fn lacking(&self, sources: &BTreeSet<&str>, after: u64) -> (Vec<PushEntry>, bool) {
        // In this order: what leaves the log between the two is in the history. What is on the disk alone is not at hand.
        let Some(mut entries) = self.log.recent_entries_after(after) else { return (Vec::new(), false) };
        entries.retain(|entry| sources.contains(entry.source.as_str()) && entry.events.num_rows() > 0);
        let first_held = entries.first().map_or(u64::MAX, |entry| entry.position);
        let history = self.history();
        let flushed = history.files.iter().filter(|(source, _)| sources.contains(source.as_str()));
        let mut ranges = flushed.flat_map(|(_, files)| files).filter_map(|file| file.positions);
        (entries, !ranges.any(|range| range.until > after && range.after.max(after) + 1 < first_held))
    }

    /// The entries of some sources after a position, up to where the log had got, or the first of them: what the log says of
    /// watermarks must not be younger than its entries.
    pub(super) async fn missing(&self, sources: &BTreeSet<&str>, after: u64, reach: &LogReach) -> Result<Piece> {
        if after >= reach.last {
            return Ok(Piece { entries: Vec::new(), until: after, last: true });
        }
        let mut piece = self.piece_of(sources, (after, reach.last)).await?;
        piece.entries.retain(|entry| entry.events.num_rows() > 0);
        Ok(piece)
    }

    /// The same of what a flush commits: up to where the history has got.
    pub(super) async fn flushed_piece(
        &self,
        sources: &BTreeSet<&str>,
        after: u64,
        history: &PushHistoryState,
    ) -> Result<Piece> {
        self.piece_of(sources, (after, history.until.max(after))).await
    }

    /// The entries of some sources after a position and up to another, or the first of them: those that the log holds, and before
    /// them those on object storage.
    async fn piece_of(&self, sources: &BTreeSet<&str>, (after, until): (u64, u64)) -> Result<Piece> {
        let most = self.jobs.piece_bytes();
        // In this order: what leaves the log between the two is in the history.
        let names: BTreeSet<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        let held = move |log: &PushLog| log.first_entries(|source| names.contains(source), (after, until), most);
        let held = on_log(&self.log, held).await?;
        let history = self.history();
        let flushed = until.min(history.until).min(held.first.map_or(u64::MAX, |first| first - 1));
        let mut entries = Vec::new();
        if after < flushed {
            let reached;
            (entries, reached) = self.jobs.pushed().first_entries(&history, sources, (after, flushed), most).await?;
            if reached < flushed {
                return Ok(Piece { entries, until: reached, last: false });
            }
        }
        entries.extend(held.entries);
        let mut piece = Piece { entries, until: held.until, last: !held.more };
        piece.cut(most);
        Ok(piece)
    }

    /// All entries that the log holds after a position: read off the runtime's threads where they are not in memory.
    pub(super) async fn held_after(&self, position: u64) -> Result<Vec<PushEntry>> {
        match self.log.recent_entries_after(position) {
            Some(entries) => Ok(entries),
            None => on_log(&self.log, move |log| log.entries_after(position)).await,
        }
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
        let applied = self.apply_missing_to(catalog, view, &sources);
        if let Err(error) = caught("what brings pushes to the view", applied).await {
            self.note(view, Err(error));
        }
    }

    /// Applies what a view lacks, piece by piece, up to where the log had got. What is computed for it is computed without the
    /// lock, and applied if nobody else has changed the view meanwhile.
    async fn apply_missing_to(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        sources: &BTreeSet<&str>,
    ) -> Result<()> {
        let (pinned, mut round) = (view.pinned(), 0);
        loop {
            let mark = self.tier.mark(&pinned)?;
            let reach = self.log.reach();
            if mark.commit == 0 {
                let _changing = self.changing.lock().await;
                if self.tier.mark(&pinned)?.commit > 0 {
                    continue;
                }
                // Its first refresh takes what has been pushed until then; who loads it takes what the log holds.
                self.note(view, Ok(()));
                return Ok(());
            }
            let piece = self.missing(sources, mark.pushed, &reach).await?;
            let (rows, reached, seen) = self.rows_of_piece(catalog, view, mark, (&piece, &reach)).await?;
            let _changing = self.changing.lock().await;
            if self.tier.mark(&pinned)? != mark || !self.set_aside.hand_out(&pinned, reached.pushed, seen) {
                continue;
            }
            if reached != mark {
                self.tier.apply(&pinned, rows, reached)?;
            }
            if !piece.last {
                continue;
            }
            // What comes from here on is applied as it comes, unless the view is behind.
            let is_behind = self.behind().contains_key(&pinned);
            if !is_behind || self.is_level(catalog, (view, sources), reached, round).await? {
                self.note(view, Ok(()));
                return Ok(());
            }
            round += 1;
            if round > ROUNDS {
                // It is tried again soon.
                return Ok(());
            }
        }
    }

    /// Whether a view that is behind has all that was passed over for it, which is in the log; the little that has come while
    /// the rest was computed is applied here, where it is at hand. Where it never is, since pushes come faster than what the
    /// view's rows rest on can be read, the next of them takes it with it. The caller holds the lock of those who change the
    /// tiers.
    async fn is_level(
        &self,
        catalog: &CatalogState,
        (view, sources): (&FeatureView, &BTreeSet<&str>),
        mark: Mark,
        round: usize,
    ) -> Result<bool> {
        let (left, in_log) = self.lacking(sources, mark.pushed);
        let Some(last) = left.last() else { return Ok(in_log || mark.pushed >= self.log.reach().last) };
        if !in_log {
            return Ok(false);
        }
        if !self.is_at_hand(catalog, view, mark, &left).await? {
            if round == ROUNDS {
                self.with_rest().insert(view.pinned());
            }
            return Ok(round == ROUNDS);
        }
        let (until, reach) = (last.position, self.log.reach());
        let piece = Piece { entries: left, until, last: false };
        let (rows, reached, seen) = self.rows_of_piece(catalog, view, mark, (&piece, &reach)).await?;
        if !self.set_aside.hand_out(&view.pinned(), reached.pushed, seen) {
            return Ok(false);
        }
        self.tier.apply(&view.pinned(), rows, reached)?;
        Ok(true)
    }

    /// What entries are to be applied to a view at a mark: those of some that have come, and before them what the view lacks
    /// where it was left with a rest.
    pub(super) fn with_rest_of(
        &self,
        (view, sources): (&Pinned, &BTreeSet<&str>),
        mark: Mark,
        entries: &[PushEntry],
    ) -> Result<Vec<PushEntry>> {
        let is_new = |entry: &&PushEntry| {
            entry.position > mark.pushed && entry.events.num_rows() > 0 && sources.contains(entry.source.as_str())
        };
        if !self.with_rest().contains(view) {
            return Ok(entries.iter().filter(is_new).cloned().collect());
        }
        let until = entries.last().map_or(mark.pushed, |last| last.position);
        let (mut left, in_log) = self.lacking(sources, mark.pushed);
        if !in_log {
            return Err(Error::unavailable("what the view lacks is not at hand: it is read beside pushes"));
        }
        left.retain(|entry| entry.position <= until);
        Ok(left)
    }

    /// The views that were left with a rest, which comes to them with the next push.
    pub(super) fn with_rest(&self) -> MutexGuard<'_, BTreeSet<Pinned>> {
        self.with_rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use springhouse_featurestore::push::PushOrigin;

    use super::*;

    #[test]
    fn a_piece_has_no_more_than_its_bytes_and_at_least_one_entry() {
        let entry = |position: u64| {
            let values: ArrayRef = Arc::new(Int64Array::from_value(7, 100));
            let events = RecordBatch::try_from_iter([("value", values)]).expect("a batch");
            PushEntry::new(position, "paid".to_owned(), events, PushOrigin::default()).expect("an entry")
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
