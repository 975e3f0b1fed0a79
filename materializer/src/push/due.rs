//! Waiting until the clock has come to what a producer says (rule T10): producers' clocks are a little ahead of ours at
//! times, and an event counts from its own time on.

use std::time::Duration;

use springhouse_featurestore::time::{Clock, Span, Timestamp};
use springhouse_featurestore::{Error, Result};

/// How often the clock is looked at: it may be set, so the time that is missing says nothing of how long that takes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is waited beyond the tolerance before a clock is said to stand still: it and the timer do not run exactly alike.
const GRACE: Duration = Duration::from_secs(1);

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
}
