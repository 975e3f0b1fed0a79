//! Which pushed events a view's query fails on, where a refresh reads them again: a view that is defined after the push, one that
//! reaches back to it, and one whose rows come by refreshes alone.
//!
//! The query is tried on history alone first: what fails there is named, and nothing is set aside. Then the first push is looked
//! for with which it fails, and of that push the events, one after another; until it takes all that is left. Each push that is
//! found costs some attempts: after many, several are set aside together.

use std::collections::BTreeSet;
use std::sync::Arc;

use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{
    EventPlaces, PushEntry, PushHistoryState, PushedEvents, SetAsidePlaces, WhySetAside,
};
use springhouse_featurestore::{Error, ErrorKind, Result};

use crate::Jobs;
use crate::separate::{Aside, Failed, Limits, all_of, parted, separate};

/// So many pushes at fault are looked at one by one; from then on twice as many at once each time.
const ONE_BY_ONE: usize = 100;

/// So many events of a push are told apart one by one.
const ALONE: usize = 32;

/// The most pushes that are set aside at once.
const MOST_AT_ONCE: u64 = 1 << 16;

/// What was found.
pub(crate) struct AtFault {
    /// The places that are left out now, those of before among them.
    pub(crate) left_out: Arc<EventPlaces>,
    /// The events on which the query fails, by source.
    pub(crate) aside: Vec<(String, Aside)>,
}

impl Jobs {
    /// Finds the pushed events with which `attempt` fails, which is given those that count; it has failed with `error` on all but
    /// those that are left out already.
    ///
    /// # Errors
    /// What the query fails with where that is not a pushed event's; those of the store.
    pub(crate) async fn at_fault<F: Future<Output = Result<()>>>(
        &self,
        view: &FeatureView,
        history: &PushHistoryState,
        (left_out, error): (Arc<EventPlaces>, Error),
        attempt: impl Fn(PushedEvents) -> F,
    ) -> Result<AtFault> {
        let sources: BTreeSet<&str> = view.sources.iter().map(|source| source.name.as_str()).collect();
        let until = |position, left_out: &Arc<EventPlaces>| PushedEvents {
            until: Some(position),
            ..history.events().leaving_out(left_out)
        };
        attempt(until(0, &left_out)).await?;
        let mut found = AtFault { left_out, aside: Vec::new() };
        let (mut fine, mut pushes, mut reason) = (0, 0_usize, error);
        while fine < history.until {
            let up_to = |position| attempt(until(position, &found.left_out));
            let (failing, error) = first_failing((fine, history.until), reason, up_to).await?;
            pushes += 1;
            let wide = 1 << pushes.saturating_sub(ONE_BY_ONE).min(16);
            let (before, last) = (failing - 1, (failing - 1).saturating_add(MOST_AT_ONCE.min(wide)).min(history.until));
            let (entries, reached) =
                self.pushed().first_entries(history, &sources, (before, last), self.piece_bytes()).await?;
            let entries = entries.into_iter().map(|entry| counted(entry, &found.left_out));
            let entries: Vec<PushEntry> = entries.collect::<Result<_>>()?;
            let failed = if wide > 1 {
                let all = entries.iter().map(|entry| all_of(entry, &error)).collect::<Result<Vec<_>>>()?;
                all.into_iter().flatten().collect()
            } else {
                let with = |taken: Vec<PushEntry>, some: Vec<PushEntry>| {
                    let batches = PushedEvents::of_entries(taken.iter().chain(&some)).batches;
                    attempt(PushedEvents { batches, ..until(before, &found.left_out) })
                };
                let limits = Limits { alone: ALONE, ..Limits::NONE };
                separate(entries.clone(), limits, with).await?.failed
            };
            if failed.is_empty() {
                // It took each of them now.
                return Err(error);
            }
            self.set_them_aside(view, &mut found, &entries, failed)?;
            fine = if wide > 1 { reached } else { failing };
            match attempt(history.events().leaving_out(&found.left_out)).await {
                Ok(()) => return Ok(found),
                Err(error) if error.kind() == ErrorKind::Invalid => reason = error,
                Err(error) => return Err(error),
            }
        }
        Err(reason)
    }

    /// Adds events on which the query fails to what was found.
    fn set_them_aside(
        &self,
        view: &FeatureView,
        found: &mut AtFault,
        entries: &[PushEntry],
        failed: Vec<Failed>,
    ) -> Result<()> {
        let (mut places, at) = (SetAsidePlaces::new(), self.clock().now());
        for failed in failed {
            tracing::error!(
                view = %view.name, source = %failed.source, position = failed.place.position, row = failed.place.within,
                reason = %failed.reason, "the view's query fails on a pushed event: a refresh sets it aside for this view"
            );
            places.insert(failed.place, WhySetAside { at, reason: failed.reason });
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

/// The first position up to which the query fails on what was pushed, after one up to which it does not; and with what.
async fn first_failing<F: Future<Output = Result<()>>>(
    (mut fine, mut failing): (u64, u64),
    mut reason: Error,
    up_to: impl Fn(u64) -> F,
) -> Result<(u64, Error)> {
    while failing - fine > 1 {
        let middle = fine.midpoint(failing);
        match up_to(middle).await {
            Ok(()) => fine = middle,
            Err(error) if error.kind() == ErrorKind::Invalid => (failing, reason) = (middle, error),
            Err(error) => return Err(error),
        }
    }
    Ok((failing, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_push_that_fails_is_found_in_few_attempts() {
        let attempts = std::cell::Cell::new(0);
        let up_to = |position: u64| {
            attempts.set(attempts.get() + 1);
            std::future::ready(if position < 700 { Ok(()) } else { Err(Error::invalid(format!("at {position}"))) })
        };
        let (failing, reason) = first_failing((3, 1_000), Error::invalid("at all"), up_to).await.expect("found");
        assert_eq!((failing, reason.to_string()), (700, "at 700".to_owned()));
        assert!(attempts.get() <= 10, "{} attempts", attempts.get());
        let away = |_| std::future::ready(Err(Error::unavailable("no store")));
        let error = first_failing((0, 9), Error::invalid("at all"), away).await.expect_err("the store's");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
