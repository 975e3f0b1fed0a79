//! The injected clock (rule T9): the machine's own, or one that replays at another time.
//!
//! This is the only file of the project that reads the wall clock; `clippy.toml` bans it elsewhere.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Timestamp;

/// Tells what time it is. Everything that depends on time is given one.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now.
    fn now(&self) -> Timestamp;

    /// Whether it means the time that it is everywhere else: no replay, no test.
    fn is_the_machines(&self) -> bool {
        false
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Timestamp::from_micros(micros)
    }

    fn is_the_machines(&self) -> bool {
        true
    }
}

/// A clock that starts at a chosen time, moves as real time does (or stands still), and can be set anew.
#[derive(Debug)]
pub struct DrivenClock {
    base: AtomicI64,
    /// `None`: stands still until it is set.
    started: Option<Instant>,
}

impl DrivenClock {
    /// A clock that shows `start` now and moves as real time does.
    #[expect(clippy::disallowed_methods, reason = "the clock module measures real time")]
    pub fn moving(start: Timestamp) -> Self {
        Self { base: AtomicI64::new(start.micros()), started: Some(Instant::now()) }
    }

    /// A clock that shows `start` until it is set: tests and simulations are exact with it.
    pub fn still(start: Timestamp) -> Self {
        Self { base: AtomicI64::new(start.micros()), started: None }
    }

    /// Sets the time shown now.
    pub fn set(&self, now: Timestamp) {
        self.base.store(now.micros().saturating_sub(self.elapsed()), Ordering::SeqCst);
    }

    fn elapsed(&self) -> i64 {
        self.started.map_or(0, |start| i64::try_from(start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

impl Clock for DrivenClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.base.load(Ordering::SeqCst).saturating_add(self.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_still_clock_shows_what_it_was_set_to() {
        let clock = DrivenClock::still(Timestamp::from_micros(5));
        assert_eq!(clock.now(), Timestamp::from_micros(5));
        clock.set(Timestamp::from_micros(7));
        assert_eq!(clock.now(), Timestamp::from_micros(7));
    }

    #[test]
    fn a_moving_clock_never_runs_backwards_on_its_own() {
        let clock = DrivenClock::moving(Timestamp::from_micros(1_000));
        let first = clock.now();
        assert!(first >= Timestamp::from_micros(1_000));
        assert!(clock.now() >= first);
    }
}
