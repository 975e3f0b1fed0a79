//! The schedule: every live view refreshed by its `REFRESH EVERY`, for as long as somebody wants it.
//!
//! Views are refreshed beside each other, a few at once. One that fails is tried again after a second, then two, four and
//! so on up to its own interval, and keeps nobody else waiting. Waits vary at random by a tenth, so that views with one
//! interval, and schedulers that were started together, do not all come at the same moment.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::time::{Span, Timestamp};
use tokio::task::JoinSet;

use crate::Jobs;
use crate::refresh::Refreshed;

/// The first wait after a failure.
const FIRST_RETRY: Span = Span::from_secs(1);

/// Views that are refreshed at once: each has the memory of a query of its own.
const AT_ONCE: usize = 2;

/// When a view is tried next, and how often it has failed since it last succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    at: Timestamp,
    failures: u32,
}

impl Turn {
    /// After a refresh that began at `now`; `share` is from 0 to 1.
    fn after_success(now: Timestamp, every: Span, share: f64) -> Self {
        // Early rather than late: a view is to be no older than it says.
        Self { at: now + varied(every, 0.9, share), failures: 0 }
    }

    /// After a failure at `now`.
    fn after_failure(self, now: Timestamp, every: Span, share: f64) -> Self {
        let doubled = FIRST_RETRY.micros().saturating_mul(1_i64.checked_shl(self.failures.min(40)).unwrap_or(i64::MAX));
        let wait = Span::from_micros(doubled.min(every.micros()));
        Self { at: now + varied(wait, 0.9, share), failures: self.failures.saturating_add(1) }
    }
}

/// Between `least` and the whole of a span.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a wait needs no precision")]
fn varied(span: Span, least: f64, share: f64) -> Span {
    Span::from_micros((span.micros() as f64 * (least + (1.0 - least) * share)) as i64)
}

/// What happened to a view in its turn.
#[derive(Debug)]
pub struct TurnDone {
    /// The view.
    pub view: Pinned,
    /// What the refresh did.
    pub result: Result<Refreshed>,
    /// How often it has now failed in a row.
    pub failures: u32,
}

impl Jobs {
    /// Refreshes all live views by their intervals, until the future is dropped. `seed` makes the waits; `poll` is how
    /// often the catalog and the clock are looked at; each turn is told.
    ///
    /// # Errors
    /// Those of reading the catalog for the first time; later ones are told in the log, and tried again.
    pub async fn run_schedule(&self, seed: u64, poll: Duration, mut told: impl FnMut(&TurnDone)) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut catalog = std::sync::Arc::new(self.catalog().state().await?);
        let mut turns: HashMap<Pinned, Turn> = HashMap::new();
        let mut running: JoinSet<(FeatureView, Timestamp, Result<Refreshed>)> = JoinSet::new();
        let mut busy: Vec<Pinned> = Vec::new();
        loop {
            for view in catalog.live_views() {
                if let Entry::Vacant(new) = turns.entry(view.pinned()) {
                    new.insert(self.first_turn(view).await?);
                }
            }
            let now = self.clock().now();
            let mut due: Vec<(Timestamp, &FeatureView)> = catalog
                .live_views()
                .into_iter()
                .filter(|view| !busy.contains(&view.pinned()))
                .filter_map(|view| Some((turns.get(&view.pinned())?.at, view)))
                .filter(|(at, _)| *at <= now)
                .collect();
            due.sort_by_key(|(at, _)| *at);
            for (_, view) in due.into_iter().take(AT_ONCE.saturating_sub(busy.len())) {
                let (jobs, view, catalog) = (self.clone(), view.clone(), std::sync::Arc::clone(&catalog));
                busy.push(view.pinned());
                running.spawn(async move {
                    let done = jobs.refresh(&catalog, &view).await;
                    (view, now, done)
                });
            }
            tokio::select! {
                Some(joined) = running.join_next() => {
                    let (view, began, result) = joined.map_err(|error| {
                        springhouse_featurestore::Error::internal("a refresh panicked").source(error)
                    })?;
                    let (pinned, now, share) = (view.pinned(), self.clock().now(), random.random_range(0.0..1.0));
                    busy.retain(|of| *of != pinned);
                    let before = turns.get(&pinned).copied().unwrap_or(Turn { at: now, failures: 0 });
                    let turn = match &result {
                        // What came while it ran waits for the next.
                        Ok(_) => Turn::after_success(began, view.refresh_every, share),
                        Err(_) => before.after_failure(now, view.refresh_every, share),
                    };
                    turns.insert(pinned.clone(), turn);
                    told(&TurnDone { view: pinned, result, failures: turn.failures });
                }
                () = tokio::time::sleep(poll) => {
                    let mut newer = CatalogState::clone(&catalog);
                    match self.catalog().follow(&mut newer).await {
                        Ok(true) => catalog = std::sync::Arc::new(newer),
                        Ok(false) => {}
                        Err(error) => tracing::error!(error = %error.chain(), "the catalog cannot be read; going on with what there is"),
                    }
                }
            }
        }
    }

    /// A view's first turn: when its last refresh is as old as it may be.
    async fn first_turn(&self, view: &FeatureView) -> Result<Turn> {
        let read_until = self.log(view).state().await?.read_until;
        let at = read_until.map_or(Timestamp::MIN, |read| read + view.refresh_every);
        Ok(Turn { at, failures: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_interval_and_vary_by_a_tenth() {
        let (now, every) = (Timestamp::from_micros(0), Span::from_secs(600));
        let mut turn = Turn { at: now, failures: 0 };
        let mut waits = Vec::new();
        for _ in 0..12 {
            turn = turn.after_failure(now, every, 1.0);
            waits.push(turn.at.micros() / 1_000_000);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(turn.after_failure(now, every, 0.0).at.micros(), 540_000_000);
        let turn = Turn::after_success(now, every, 0.5);
        assert_eq!((turn.at.micros(), turn.failures), (570_000_000, 0));
    }
}
