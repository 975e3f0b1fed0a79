//! Which pushed events a view's query fails on, where a refresh reads them again: a view that is defined after the push, one that
//! reaches back to it, and one whose rows come by refreshes alone.
//!
//! The query is tried on history alone first: what fails there is named, and nothing is set aside. Then the first push with which
//! it fails is looked for among its sources' own pushes, and of that push the events, one after another; until it takes all that is
//! left. Each attempt is a run of the whole query, so their number is bounded, whatever was pushed: after a few pushes that are found
//! several are looked at together, and after many attempts the fewest pushes that are known to fail are set aside, whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{
    EventPlaces, PushEntry, PushHistoryState, PushedEvents, SetAsidePlaces, WhySetAside,
};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};

use crate::Jobs;
use crate::separate::{Aside, Failed, Limits, all_of, parted, separate};

/// So many pushes at fault are looked at one by one; from then on twice as many at once each time.
const ONE_BY_ONE: usize = 4;

/// So many events of a push are told apart one by one.
const ALONE: usize = 4;

/// The most pushes that are looked at together: two to the power of this.
const MOST_AT_ONCE: usize = 16;

/// After so many attempts nothing is told apart any more.
const MOST_ATTEMPTS: usize = 128;

/// So often what is left is halved then, and once less each time that it still fails.
const COARSE: usize = 4;

/// What was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct AtFault {
    /// The places that are left out now, those of before among them.
    pub(crate) left_out: Arc<EventPlaces>,
    /// The events on which the query fails, by source.
    pub(crate) aside: Vec<(String, Aside)>,
}

impl Jobs {
    /// Finds the pushed events with which `attempt` fails, which is given those that count; it has failed with `error` on all but
    /// those that are left out already. What was found before is kept.
    ///
    /// # Errors
    /// What the query fails with where that is not a pushed event's; those of the store.
    pub(crate) async fn at_fault<F: Future<Output = Result<()>>>(
        &self,
        view: &FeatureView,
        history: &PushHistoryState,
        (found, error): (AtFault, Error),
        attempt: impl Fn(PushedEvents) -> F,
    ) -> Result<AtFault> {
        let sources: BTreeSet<&str> = view.sources.iter().map(|source| source.name.as_str()).collect();
        let sources = &sources;
        let entries = move |range: (u64, u64)| async move {
            self.pushed().first_entries(history, sources, range, self.piece_bytes()).await
        };
        let pushes = positions(&entries, history.until, &found.left_out).await?;
        let looked = Looked { view: &view.name, events: history.events(), pushes, at: self.clock().now() };
        looked.find((found, error), entries, attempt).await
    }
}

/// The positions of the pushes that have events which count.
async fn positions<E: Future<Output = Result<(Vec<PushEntry>, u64)>>>(
    entries: impl Fn((u64, u64)) -> E,
    until: u64,
    left_out: &Arc<EventPlaces>,
) -> Result<Vec<u64>> {
    let (mut found, mut after) = (Vec::new(), 0);
    while after < until {
        let (some, reached) = entries((after, until)).await?;
        for entry in some {
            let entry = counted(entry, left_out)?;
            if entry.events.num_rows() > 0 && found.last() != Some(&entry.position) {
                found.push(entry.position);
            }
        }
        after = reached;
    }
    Ok(found)
}

/// Where events at fault are looked for.
struct Looked<'a> {
    view: &'a str,
    /// All that was pushed.
    events: PushedEvents,
    /// The positions of the pushes that may be at fault.
    pushes: Vec<u64>,
    /// When.
    at: Timestamp,
}

impl Looked<'_> {
    /// What was pushed up to a position, without what is left out.
    fn until(&self, position: u64, left_out: &Arc<EventPlaces>) -> PushedEvents {
        PushedEvents { until: Some(position), ..self.events.clone().leaving_out(left_out) }
    }

    /// The position of the last of the first pushes.
    fn position(&self, pushes: usize) -> u64 {
        pushes.checked_sub(1).and_then(|last| self.pushes.get(last)).copied().unwrap_or(0)
    }

    async fn find<F: Future<Output = Result<()>>, E: Future<Output = Result<(Vec<PushEntry>, u64)>>>(
        &self,
        (mut found, mut reason): (AtFault, Error),
        entries: impl Fn((u64, u64)) -> E,
        attempt: impl Fn(PushedEvents) -> F,
    ) -> Result<AtFault> {
        let spent = AtomicUsize::new(0);
        let attempt = |pushed| {
            spent.fetch_add(1, Ordering::Relaxed);
            attempt(pushed)
        };
        let left = || MOST_ATTEMPTS.saturating_sub(spent.load(Ordering::Relaxed));
        attempt(self.until(0, &found.left_out)).await?;
        let (mut fine, mut rounds, mut coarse, all) = (0, 0_usize, COARSE, self.pushes.len());
        while fine < all {
            let steps = if left() > 0 { left() } else { coarse };
            coarse -= usize::from(left() == 0 && coarse > 0);
            let up_to = |pushes| attempt(self.until(self.position(pushes), &found.left_out));
            let (before, failing, error) = first_failing((fine, all), steps, reason, up_to).await?;
            rounds += 1;
            let wide = 1_usize << rounds.saturating_sub(ONE_BY_ONE).min(MOST_AT_ONCE);
            let last = failing.max(before + wide).min(all);
            let (some, reached) = entries((self.position(before), self.position(last))).await?;
            let some: Vec<PushEntry> =
                some.into_iter().map(|entry| counted(entry, &found.left_out)).collect::<Result<_>>()?;
            let some: Vec<PushEntry> = some.into_iter().filter(|entry| entry.events.num_rows() > 0).collect();
            let failed = if left() == 0 {
                let whole = some.iter().map(|entry| all_of(entry, &error)).collect::<Result<Vec<_>>>()?;
                whole.into_iter().flatten().collect()
            } else {
                let with = |taken: Vec<PushEntry>, some: Vec<PushEntry>| {
                    let batches = PushedEvents::of_entries(taken.iter().chain(&some)).batches;
                    attempt(PushedEvents { batches, ..self.until(self.position(before), &found.left_out) })
                };
                separate(some.clone(), Limits { alone: ALONE, attempts: left(), ..Limits::NONE }, with).await?.failed
            };
            if failed.is_empty() {
                // It took each of them now.
                return Err(error);
            }
            self.set_aside(&mut found, &some, failed)?;
            fine = self.pushes.partition_point(|position| *position <= reached);
            match attempt(self.events.clone().leaving_out(&found.left_out)).await {
                Ok(()) => return Ok(found),
                Err(error) if error.kind() == ErrorKind::Invalid => reason = error,
                Err(error) => return Err(error),
            }
        }
        Err(reason)
    }

    /// Adds events on which the query fails to what was found.
    fn set_aside(&self, found: &mut AtFault, entries: &[PushEntry], failed: Vec<Failed>) -> Result<()> {
        let mut places = SetAsidePlaces::new();
        for failed in failed {
            tracing::error!(
                view = %self.view, source = %failed.source, position = failed.place.position,
                row = failed.place.within, reason = %failed.reason,
                "the view's query fails on a pushed event: a refresh sets it aside for this view"
            );
            places.insert(failed.place, WhySetAside { at: self.at, reason: failed.reason });
        }
        for entry in entries {
            if let (entry, Some(aside)) = parted(entry.clone(), &places)? {
                found.aside.push((entry.source, aside));
            }
        }
        Arc::make_mut(&mut found.left_out).extend(places.into_keys());
        Ok(())
    }
}

/// A push without those of its events that are left out.
fn counted(entry: PushEntry, left_out: &Arc<EventPlaces>) -> Result<PushEntry> {
    let pushed = PushedEvents::default().leaving_out(left_out);
    let events = pushed.counted_of(entry.ordered_events())?;
    PushEntry::new(entry.position, entry.source, events, entry.origin)
}

/// Of so many pushes that are fine and more of them that fail, how many are fine and how few fail, looked at in so many attempts;
/// and with what.
async fn first_failing<F: Future<Output = Result<()>>>(
    (mut fine, mut failing): (usize, usize),
    most: usize,
    mut reason: Error,
    up_to: impl Fn(usize) -> F,
) -> Result<(usize, usize, Error)> {
    for _ in 0..most {
        if failing - fine <= 1 {
            break;
        }
        let middle = fine.midpoint(failing);
        match up_to(middle).await {
            Ok(()) => fine = middle,
            Err(error) if error.kind() == ErrorKind::Invalid => (failing, reason) = (middle, error),
            Err(error) => return Err(error),
        }
    }
    Ok((fine, failing, reason))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use springhouse_featurestore::push::{EventPlace, PushOrigin};
    use springhouse_featurestore::tier::places_of;

    use super::*;

    #[tokio::test]
    async fn the_first_push_that_fails_is_found_in_few_attempts() {
        let attempts = std::cell::Cell::new(0);
        let up_to = |pushes: usize| {
            attempts.set(attempts.get() + 1);
            std::future::ready(if pushes < 700 { Ok(()) } else { Err(Error::invalid(format!("at {pushes}"))) })
        };
        let (fine, failing, reason) =
            first_failing((3, 1_000), 64, Error::invalid("at all"), up_to).await.expect("found");
        assert_eq!((fine, failing, reason.to_string()), (699, 700, "at 700".to_owned()));
        assert!(attempts.get() <= 10, "{} attempts", attempts.get());
        let (fine, failing, _) = first_failing((0, 1_024), 2, Error::invalid("at all"), up_to).await.expect("found");
        assert_eq!((fine, failing), (512, 768));
        let away = |_| std::future::ready(Err(Error::unavailable("no store")));
        let error = first_failing((0, 9), 64, Error::invalid("at all"), away).await.expect_err("the store's");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    fn push(position: u64, events: usize) -> PushEntry {
        let values: ArrayRef = Arc::new(Int64Array::from(vec![1; events]));
        let events = RecordBatch::try_from_iter([("value", values)]).expect("a batch");
        PushEntry::new(position, "paid".to_owned(), events, PushOrigin::default()).expect("an entry")
    }

    /// Looks among a thousand pushes of eight events, at every hundredth position, for those that are poison; how many events are
    /// left out then, and after how many attempts.
    async fn look(is_poison: fn(EventPlace) -> bool) -> (usize, usize) {
        let pushes: Vec<PushEntry> = (1..=1_000).map(|number| push(number * 100, 8)).collect();
        let positions = pushes.iter().map(|entry| entry.position).collect();
        let looked = Looked { view: "shares", events: PushedEvents::default(), pushes: positions, at: Timestamp::MIN };
        let (entries, attempts) = (&pushes, AtomicUsize::new(0));
        let attempt = |pushed: PushedEvents| {
            attempts.fetch_add(1, Ordering::Relaxed);
            let until = pushed.until.unwrap_or(u64::MAX);
            let held = entries.iter().filter(|entry| entry.position <= until).map(PushEntry::ordered_events);
            let mut places =
                held.chain(pushed.batches.values().flatten()).flat_map(|batch| places_of(batch).expect("told"));
            let fails = places.any(|place| is_poison(place) && !pushed.left_out.contains(&place));
            std::future::ready(if fails { Err(Error::invalid("Divide by zero")) } else { Ok(()) })
        };
        let between = |(after, until): (u64, u64)| {
            let some = entries.iter().filter(|entry| after < entry.position && entry.position <= until);
            std::future::ready(Ok((some.cloned().collect(), until)))
        };
        let start = (AtFault::default(), Error::invalid("Divide by zero"));
        let found = looked.find(start, between, attempt).await.expect("found");
        let aside: usize = found.aside.iter().map(|(_, (events, _))| events.num_rows()).sum();
        assert_eq!(aside, found.left_out.len());
        (aside, attempts.into_inner())
    }

    #[tokio::test]
    async fn what_is_spent_on_pushes_at_fault_is_bounded_whatever_was_pushed() {
        let (events, attempts) = look(|place| place.position == 70_000 && place.within == 5).await;
        assert!(events == 1 && attempts <= 20, "{events} after {attempts}");
        let few = |place: EventPlace| [30_000, 60_000].contains(&place.position) && place.within == 0;
        let (events, attempts) = look(few).await;
        assert!(events == 2 && attempts <= 40, "{events} after {attempts}");
        let dozens = |place: EventPlace| place.position.is_multiple_of(1_500) && place.within == 3;
        let (events, attempts) = look(dozens).await;
        assert!(events >= 66 && attempts <= 160, "{events} after {attempts}");
        let (events, attempts) = look(|_| true).await;
        assert!(events == 8_000 && attempts <= 160, "{events} after {attempts}");
    }
}
