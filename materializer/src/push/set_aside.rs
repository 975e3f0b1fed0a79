//! Events on which a view's query fails.
//!
//! A push is tried against the queries of its source's views before it is taken ([`super::tried`]), and refused where one fails. A query that can fail for no event (it reads columns, compares, does arithmetic with
//! floats) is not tried. What fails later all the same (a view that came after the push, one that reads other tables or events
//! too) is set aside for that view alone: every other view has it.
//!
//! Whoever tries an event first decides, whether to apply it or to commit it: that is noted in the log before anybody sees what
//! follows from it, and told by the view's next commit ([`crate::set_aside`] is what happens then). Rows are computed by several
//! at once, and what is noted meanwhile would make them wrong: they are handed out while it is as it was ([`Seen`]), and once
//! they are, or are being committed, none but a flush notes anything of their events.
//!
//! Whoever pushes may send nothing but such. What is spent on a push is bounded: after many that fail the rest of it is set aside
//! in parts, and what comes after it is tried like any push. So no view stops for what is pushed to it.
//!
//! Views that reach back read pushes again, and leave out more ([`super::left_out`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::push::{EventPlace, EventPlaces, PushEntry, PushLog, SetAsidePlaces, WhySetAside};
use springhouse_featurestore::tier::{Mark, OnlineTier, SetAside, ViewLog, ViewLogState};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::view_rows::RowStream;

use super::Shared;
use crate::separate::{Aside, Limits, Separated, parted, separate};

/// So many events of a push are told apart one by one where they fail. Each costs some runs of the view's query.
const ALONE: usize = 32;

/// The most events of a view that no commit tells of yet: beyond them it gets its pushes after the next flush, which tells of
/// them.
const MOST_UNTOLD: usize = 5_000;

/// What views do without and no commit tells of yet, and what their commits tell of.
#[derive(Debug, Default)]
pub(super) struct SetAsideHere {
    views: Mutex<HashMap<Pinned, OfView>>,
    /// Of views that reach back: what the newest commit tells that was seen.
    told: Mutex<HashMap<Pinned, Told>>,
}

/// What a view's commits tell of events that are set aside, up to one of them.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// That commit's number.
    pub(super) commit: u64,
    /// The position up to which it tells of pushes: what is noted of these is told of, or has been counted since.
    pub(super) pushed: u64,
    pub(super) table: SetAside,
    /// The places of the table's events, and of those that were let go.
    pub(super) places: Arc<EventPlaces>,
}

impl Told {
    /// Whether notes alone tell whether an event is set aside.
    pub(super) fn leaves_to_notes(&self, place: &EventPlace) -> bool {
        place.position > self.pushed
    }
}

/// What had been noted of a view when rows were computed: how often, before and after they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    before: u64,
    after: u64,
}

#[derive(Debug, Default)]
struct OfView {
    places: Arc<SetAsidePlaces>,
    in_a_row: usize,
    /// How often something was noted.
    noted: u64,
    /// A tier or a load was given the view's rows up to this position;
    handed_out: u64,
    /// and a flush has committed them up to this one, or is about to.
    committing: u64,
    /// Notes up to this position were let go of.
    let_go: u64,
    /// The load that goes on: the position that it has got to, and how often something had been noted by then.
    loading: Option<(u64, u64)>,
}

impl SetAsideHere {
    /// What a log knows.
    pub(super) fn of(log: &PushLog) -> Result<Self> {
        let known = log.all_set_aside()?;
        let views =
            known.into_iter().map(|(view, places)| (view, OfView { places: Arc::new(places), ..OfView::default() }));
        Ok(Self { views: Mutex::new(views.collect()), ..Self::default() })
    }

    /// Lets a tier load those views anew of which something is noted: after a power cut nobody knows whether it is as it was before
    /// these events were taken from it.
    pub(super) fn distrust(&self, tier: &dyn OnlineTier) -> Result<()> {
        for view in self.views().keys() {
            let mark = tier.mark(view)?;
            if mark.commit > 0 {
                tier.apply(view, Vec::new(), Mark { committed: None, ..mark })?;
            }
        }
        Ok(())
    }

    fn views(&self) -> MutexGuard<'_, HashMap<Pinned, OfView>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn places(&self, view: &Pinned) -> (Arc<SetAsidePlaces>, Seen) {
        let views = self.views();
        let Some(of) = views.get(view) else { return (Arc::default(), Seen { before: 0, after: 0 }) };
        (Arc::clone(&of.places), Seen { before: of.noted, after: of.noted })
    }

    /// Whether rows that a tier is to have, which then has all up to a position, are right still: nothing has been noted of the
    /// view since. From here on their events are not set aside but by a flush. The caller holds the lock of those who change
    /// the tiers.
    pub(super) fn hand_out(&self, view: &Pinned, until: u64, seen: Seen) -> bool {
        let mut views = self.views();
        let of = views.entry(view.clone()).or_default();
        if of.noted != seen.after {
            return false;
        }
        of.handed_out = of.handed_out.max(until);
        true
    }

    /// The same of rows between two positions that whoever loads a view adds to those that it has; they are seen with the last.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when something was noted since the load began, or commits tell of what was noted of its events.
    pub(super) fn hand_to_load(&self, view: &Pinned, (from, until): (u64, u64), seen: Seen) -> Result<()> {
        let mut views = self.views();
        let of = views.entry(view.clone()).or_default();
        let before = of.loading.take().filter(|(reached, _)| *reached == from).map_or(seen.before, |of| of.1);
        if before != seen.before || of.noted != seen.after || from < of.let_go {
            return Err(Error::unavailable("events of the view were set aside while it was loaded")
                .with("view", view)
                .remedy("it is loaded again within seconds"));
        }
        of.handed_out = of.handed_out.max(until);
        of.loading = Some((until, seen.after));
        Ok(())
    }

    /// A flush is about to commit a view's events up to a position, or has not committed those after it.
    pub(super) fn commit(&self, view: &FeatureView, until: u64) {
        self.views().entry(view.pinned()).or_default().committing = until;
    }

    /// How far it is looked which events are at fault that are to be applied, or committed: who commits them tells of them.
    fn limits(&self, view: &FeatureView, flushing: bool) -> Limits {
        let views = self.views();
        let (in_a_row, untold) = views.get(&view.pinned()).map_or((0, 0), |of| (of.in_a_row, of.places.len()));
        let most = if flushing { usize::MAX } else { MOST_UNTOLD.saturating_sub(untold) };
        Limits { in_a_row, alone: ALONE, most, ..Limits::NONE }
    }

    /// A view's query took what it was given.
    pub(super) fn took(&self, view: &FeatureView) {
        if let Some(of) = self.views().get_mut(&view.pinned()) {
            of.in_a_row = 0;
        }
    }

    pub(super) fn told(&self) -> MutexGuard<'_, HashMap<Pinned, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Pushes without those of their events that a view does without, and what had been noted of it.
    pub(super) fn without_set_aside(
        &self,
        view: &FeatureView,
        entries: Vec<PushEntry>,
    ) -> Result<(Vec<PushEntry>, Seen)> {
        let (places, seen) = self.set_aside.places(&view.pinned());
        if places.is_empty() {
            return Ok((entries, seen));
        }
        let kept = entries.into_iter().map(|entry| Ok(parted(entry, &places)?.0));
        let kept = kept.filter(|entry| entry.as_ref().map_or(true, |entry| entry.events.num_rows() > 0));
        Ok((kept.collect::<Result<_>>()?, seen))
    }

    /// The events that are to be applied, in groups that a view's query takes together; from here on it does without the others.
    ///
    /// # Errors
    /// Those that say nothing about the events; [`springhouse_featurestore::ErrorKind::Unavailable`] where the next flush is to decide, or is to tell of what
    /// is set aside first.
    pub(super) async fn separated_to_apply(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: Vec<PushEntry>,
        seen: Seen,
    ) -> Result<(Vec<Vec<PushEntry>>, Seen)> {
        let found = self.separated(catalog, view, entries, false).await?;
        let new = self.note_set_aside(view, &found, false)?;
        let seen = Seen { after: seen.after + u64::from(!new.is_empty()), ..seen };
        if let Some((position, reason)) = found.stopped {
            self.full.notify_one();
            return Err(Error::unavailable("many events of a view are set aside and not told of in its commits yet")
                .with("view", &view.name)
                .with("position", position)
                .with("limit", MOST_UNTOLD)
                .remedy("it has the rest after the next flush, which begins now")
                .source(reason));
        }
        Ok((found.good, seen))
    }

    /// The same of events that are to be committed. Those that fail now, and that the tier has taken before, are taken from it.
    ///
    /// # Errors
    /// Those that say nothing about the events.
    pub(super) async fn separated_to_commit(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: Vec<PushEntry>,
    ) -> Result<Vec<Vec<PushEntry>>> {
        let found = self.separated(catalog, view, entries, true).await?;
        let new = self.note_set_aside(view, &found, true)?;
        self.take_from_tier(view, new.keys().next().copied()).await?;
        Ok(found.good)
    }

    /// Tells the events apart on which a view's query fails. Where its rows rest on several events each is tried with those before
    /// it that were taken, and these are one group.
    async fn separated(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: Vec<PushEntry>,
        flushing: bool,
    ) -> Result<Separated> {
        let limits = self.set_aside.limits(view, flushing);
        if view.reaches_back() {
            return self.separated_reaching_back(catalog, view, entries, limits).await;
        }
        let prepared = self.prepared(catalog, view).await?;
        let prepared = &prepared;
        let attempt = move |_taken: Vec<PushEntry>, some: Vec<PushEntry>| async move {
            drained(self.rows_by(prepared, catalog, view, &some).await).await
        };
        separate(entries, limits, attempt).await
    }

    /// Notes events that a view does without from here on; gives those that it had not done without before. What a tier has, or
    /// a commit, is a flush's to decide.
    fn note_set_aside(&self, view: &FeatureView, found: &Separated, flushing: bool) -> Result<SetAsidePlaces> {
        let (pinned, at) = (view.pinned(), self.jobs.clock().now());
        let mut views = self.set_aside.views();
        let of_view = views.entry(pinned.clone()).or_default();
        of_view.in_a_row = found.in_a_row;
        let new = found.failed.iter().filter(|failed| !of_view.places.contains_key(&failed.place));
        let new: SetAsidePlaces =
            new.map(|failed| (failed.place, WhySetAside { at, reason: failed.reason.clone() })).collect();
        if let Some(first) = new.keys().next() {
            let mark = self.tier.mark(&pinned)?;
            let applied = if mark.commit > 0 { mark.pushed } else { 0 };
            if !flushing && first.position <= applied.max(of_view.handed_out).max(of_view.committing) {
                return Err(Error::unavailable("a view's query fails on an event that it has taken before")
                    .with("view", &view.name)
                    .with("position", first.position)
                    .remedy("the next flush decides whether it is set aside; the view is tried again until then"));
            }
            // Before anybody can see what follows from it.
            self.log.set_aside(&pinned, &new)?;
            Arc::make_mut(&mut of_view.places).extend(new.clone());
            of_view.noted += 1;
        }
        drop(views);
        for failed in found.failed.iter().filter(|failed| new.contains_key(&failed.place)) {
            tracing::error!(
                view = %view.name, source = %failed.source, position = failed.place.position,
                row = failed.place.within, reason = %failed.reason,
                "the view's query fails on a pushed event: it is set aside for this view"
            );
        }
        Ok(new)
    }

    /// Lets a tier that may have taken an event load its view anew, without it: as a new generation, which lookups do not wait
    /// for.
    async fn take_from_tier(&self, view: &FeatureView, first: Option<EventPlace>) -> Result<()> {
        let Some(first) = first else { return Ok(()) };
        let _changing = self.changing.lock().await;
        let mark = self.tier.mark(&view.pinned())?;
        if mark.commit > 0 && mark.pushed >= first.position {
            tracing::warn!(view = %view.name, position = first.position, "the tier has an event that is set aside: it is loaded anew");
            // No commit has no watermark: who follows the log sees that the tier is not at one of its commits.
            self.tier.apply(&view.pinned(), Vec::new(), Mark { committed: None, ..mark })?;
        }
        Ok(())
    }

    /// What a view's next commit says of the events that are set aside, with those among `entries`; `None` where none of them
    /// are.
    pub(super) async fn table_with(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, state): (&ViewLog, &ViewLogState),
        entries: &[PushEntry],
    ) -> Result<Option<SetAside>> {
        let (places, _) = self.set_aside.places(&view.pinned());
        let mut aside: Vec<(String, Aside)> = Vec::new();
        for entry in entries {
            if let (entry, Some(events)) = parted(entry.clone(), &places)? {
                aside.push((entry.source, events));
            }
        }
        if aside.is_empty() {
            return Ok(None);
        }
        self.jobs.table_with(catalog, view, (log, state), aside).await.map(Some)
    }

    /// A commit has told of a view's pushes up to a position, and of those events among them that are set aside.
    pub(super) fn told_of_set_aside(&self, view: &FeatureView, until: u64) -> Result<()> {
        let pinned = view.pinned();
        let known = self.set_aside.views().get(&pinned).is_some_and(|of| !of.places.is_empty());
        if known {
            let mark = self.tier.mark(&pinned)?;
            let settled = match mark {
                Mark { commit: 0, .. } => until,
                // It is yet to be loaded without them, and a power cut may give it back as it was before.
                Mark { committed: None, .. } => return Ok(()),
                // A tier that is behind is yet to be given them.
                Mark { pushed, .. } => until.min(pushed),
            };
            self.log.let_set_aside_go(&pinned, settled)?;
            // Whoever loads the view from an older commit would try these events anew.
            if let Some(of_view) = self.set_aside.views().get_mut(&pinned) {
                Arc::make_mut(&mut of_view.places).retain(|place, _| place.position > settled);
                of_view.let_go = of_view.let_go.max(settled);
            }
        }
        Ok(())
    }
}

/// Computes rows for nobody.
pub(super) async fn drained(rows: Result<RowStream>) -> Result<()> {
    rows?.try_for_each(|_| std::future::ready(Ok(()))).await
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::definition::Version;

    use super::*;

    #[test]
    fn rows_are_handed_out_while_nothing_is_noted_of_their_view() {
        let (here, view) = (SetAsideHere::default(), Pinned::new("shares", Version::from_text("3f2a")));
        let note = || here.views().entry(view.clone()).or_default().noted += 1;
        let seen = here.places(&view).1;
        assert!(here.hand_out(&view, 4, seen));
        note();
        assert!(!here.hand_out(&view, 5, seen), "they may have what is set aside");
        // Who computed them has noted it.
        assert!(here.hand_out(&view, 5, Seen { after: seen.after + 1, ..seen }));
        assert_eq!(here.views()[&view].handed_out, 5);
    }

    #[test]
    fn a_load_that_has_what_was_set_aside_since_is_begun_again() {
        let (here, view) = (SetAsideHere::default(), Pinned::new("shares", Version::from_text("3f2a")));
        let note = || here.views().entry(view.clone()).or_default().noted += 1;
        let load = |from, until| here.hand_to_load(&view, (from, until), here.places(&view).1).is_ok();
        assert!(load(0, 3) && load(3, 6));
        note();
        assert!(!load(6, 9), "its first pieces are of before");
        assert!(load(0, 3) && load(3, 9));
        // Commits tell of what was noted up to there, and nobody else does any more.
        here.views().entry(view.clone()).or_default().let_go = 2;
        assert!(!load(1, 9) && load(2, 9));
    }
}
