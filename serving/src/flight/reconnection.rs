//! When a server that could not be reached is tried again: after a wait that doubles, and varies at random by a half, so
//! that the workers of a server that comes back do not all come at the same moment. Until then it is not asked.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

/// The first wait.
const FIRST: Duration = Duration::from_millis(50);

/// The longest: so long after a server is back it is asked again.
const LONGEST: Duration = Duration::from_secs(1);

/// The waits of one server.
#[derive(Debug)]
pub(super) struct Reconnection(Mutex<State>);

#[derive(Debug)]
struct State {
    random: ChaCha8Rng,
    /// How often it could not be reached since it last was.
    failures: u32,
    next: Option<Instant>,
}

impl Reconnection {
    /// Nothing has failed yet; `seed` makes the waits.
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(State { random: ChaCha8Rng::seed_from_u64(seed), failures: 0, next: None }))
    }

    /// How long it is not to be asked yet.
    pub(super) fn wait(&self) -> Option<Duration> {
        let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).next?;
        next.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }

    /// It could not be reached.
    pub(super) fn failed(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = wait_after(state.failures, state.random.random_range(0.5..1.0));
        state.failures = state.failures.saturating_add(1);
        state.next = Some(Instant::now() + wait);
    }

    /// It has answered.
    pub(super) fn reached(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.failures, state.next) = (0, None);
    }
}

/// The wait after a failure that so many came before; `share` is from 0 to 1.
fn wait_after(failures: u32, share: f64) -> Duration {
    FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST).mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        let waits: Vec<u128> = (0..7).map(|failures| wait_after(failures, 1.0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(wait_after(100, 0.5).as_millis(), 500);
    }

    #[test]
    fn a_server_that_failed_is_left_alone_for_a_while_and_one_that_answered_is_not() {
        let reconnection = Reconnection::new(1);
        assert_eq!(reconnection.wait(), None);
        for _ in 0..10 {
            reconnection.failed();
        }
        assert!(reconnection.wait().is_some_and(|wait| wait <= LONGEST));
        reconnection.reached();
        assert_eq!(reconnection.wait(), None);
    }
}
