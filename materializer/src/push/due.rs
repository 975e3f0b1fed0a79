//! Waiting until the clock has come to what a producer says (rule T10): producers' clocks are a little ahead of ours at
//! times, and an event counts from its own time on.
//!
//! What waits so has room that others wait for. So there is a bound of its own for it, which is a part of that room, and one
//! caller has half of it; a clock that is hardly ahead is not asked about.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use springhouse_featurestore::time::{Clock, Span, Timestamp};
use springhouse_featurestore::{Error, Result};

/// How often the clock is looked at: it may be set, so the time that is missing says nothing of how long that takes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is waited beyond the tolerance before a clock is said to stand still: it and the timer do not run exactly alike.
const GRACE: Duration = Duration::from_secs(1);

/// Whoever waits no longer than this is not counted.
const BRIEFLY: Span = Span::from_micros(100_000);

/// Bytes of batches that wait for their time, of all callers together: half of those that a server has under way.
const EARLY_BYTES: usize = 32 << 20;

/// Those of one caller; one that has none waiting gets a place for what it has. Callers whom nobody asks who they are have all.
const EARLY_BYTES_OF_ONE: usize = EARLY_BYTES / 2;

/// The batches that wait for their time.
#[derive(Debug, Default)]
pub(super) struct Early(Mutex<HashMap<Option<String>, usize>>);

impl Early {
    /// A place for a batch of so many bytes whose time comes in so long; none where that is soon.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] when too much waits for its time.
    pub(super) fn place(&self, caller: Option<&str>, bytes: usize, ahead: Span) -> Result<Option<EarlyPlace<'_>>> {
        if ahead <= BRIEFLY {
            return Ok(None);
        }
        let bytes = bytes.min(EARLY_BYTES);
        let mut waiting = self.waiting();
        let caller = caller.map(ToOwned::to_owned);
        let (all, its) = (waiting.values().sum::<usize>(), waiting.get(&caller).copied().unwrap_or_default());
        let share = if caller.is_some() { EARLY_BYTES_OF_ONE } else { EARLY_BYTES };
        if all + bytes > EARLY_BYTES || its > 0 && its + bytes > share {
            return Err(Error::busy("too many events that lie ahead of this server's clock wait for their time")
                .with("bytes that wait", all)
                .with("those of the caller", its)
                .with("ahead by", ahead)
                .remedy("send events when they have happened; check the producer's clock"));
        }
        *waiting.entry(caller.clone()).or_default() += bytes;
        drop(waiting);
        Ok(Some(EarlyPlace { early: self, caller, bytes }))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Option<String>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those that wait for their time.
#[derive(Debug)]
pub(super) struct EarlyPlace<'a> {
    early: &'a Early,
    caller: Option<String>,
    bytes: usize,
}

impl Drop for EarlyPlace<'_> {
    fn drop(&mut self) {
        let mut waiting = self.early.waiting();
        if let Some(its) = waiting.get_mut(&self.caller) {
            *its -= self.bytes;
            if *its == 0 {
                waiting.remove(&self.caller);
            }
        }
    }
}

/// Waits until the clock shows `due`, which lies no further ahead of it than it tolerates. Returns what it shows then.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] when a clock that stands still, or was set back, has not come there in as
/// much real time as it tolerates.
pub(super) async fn wait_until(clock: &dyn Clock, due: Timestamp, tolerance: Span) -> Result<Timestamp> {
    let most = Duration::from_micros(tolerance.micros().cast_unsigned()) + GRACE;
    let mut waited = Duration::ZERO;
    loop {
        let now = clock.now();
        if now >= due {
            return Ok(now);
        }
        if waited >= most {
            return Err(Error::invalid(
                "an event or a watermark lies in the future, and the clock does not come to it",
            )
            .with("value", due)
            .with("now", now)
            .remedy("send it when it has happened; check this server's clock and the producer's"));
        }
        let missing = Duration::from_micros(due.since(now).micros().cast_unsigned());
        let step = missing.min(LOOK_EVERY).max(Duration::from_millis(1));
        tokio::time::sleep(step).await;
        waited += step;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use springhouse_featurestore::ErrorKind;
    use springhouse_featurestore::time::DrivenClock;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[tokio::test]
    async fn what_is_due_is_not_waited_for_and_a_clock_that_runs_comes_to_the_rest() {
        let still = DrivenClock::still(at(7));
        assert_eq!(wait_until(&still, at(7), Span::ZERO).await.expect("due"), at(7));
        let moving = DrivenClock::moving(at(0));
        let now = wait_until(&moving, at(30_000), Span::from_secs(5)).await.expect("comes");
        assert!(now >= at(30_000));
    }

    #[tokio::test]
    async fn a_clock_that_is_set_forward_ends_the_wait_and_one_that_stands_still_is_named() {
        let clock = Arc::new(DrivenClock::still(at(0)));
        let waiting = Arc::clone(&clock);
        let waiting = tokio::spawn(async move { wait_until(&*waiting, at(4_000_000), Span::from_secs(60)).await });
        tokio::time::sleep(Duration::from_millis(30)).await;
        // Back, and then beyond.
        clock.set(at(-9_000_000));
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!waiting.is_finished());
        clock.set(at(5_000_000));
        assert_eq!(waiting.await.expect("no panic").expect("comes"), at(5_000_000));
        let error = wait_until(&*clock, at(6_000_000), Span::from_micros(1_000)).await.expect_err("stands still");
        assert!(error.to_string().contains("the clock does not come to it"), "{error}");
    }

    #[test]
    fn what_waits_for_its_time_leaves_room_for_others() {
        let (early, second) = (Early::default(), Span::from_secs(1));
        let place = |caller, bytes| early.place(caller, bytes, second);
        let half = EARLY_BYTES / 2;
        // However large: whoever has none waiting gets a place.
        let all = place(Some("ann"), 1 << 30).expect("nobody else waits").expect("counted");
        assert!(early.place(Some("ann"), 1 << 30, BRIEFLY).expect("hardly ahead").is_none());
        place(Some("bob"), 1).expect_err("no room");
        drop(all);
        let held = place(Some("ann"), half).expect("its half");
        let error = place(Some("ann"), 1).expect_err("more than half");
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("clock"), "{error}");
        let other = place(Some("bob"), half).expect("the rest is for others");
        drop((held, other));
        let whole = [place(None, half).expect("free"), place(None, half).expect("who is not asked has all")];
        place(None, 1).expect_err("no room");
        drop(whole);
        assert!(early.waiting().is_empty());
    }
}
