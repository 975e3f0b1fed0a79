//! When a view, or the catalog, is tried next.

use springhouse_featurestore::time::{Span, Timestamp};

/// The first wait after a failure.
const FIRST_RETRY: Span = Span::from_secs(1);

/// When something is tried next, and how often it has failed since it last succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) at: Timestamp,
    pub(super) failures: u32,
    /// Whether it is known when it succeeded last.
    pub(super) planned: bool,
}

impl Turn {
    /// At once; when it succeeded last is not known.
    pub(super) fn unknown() -> Self {
        Self { at: Timestamp::MIN, failures: 0, planned: false }
    }

    /// At this time.
    pub(super) fn planned(at: Timestamp) -> Self {
        Self { at, failures: 0, planned: true }
    }

    /// Whether its time has come: or it was planned by a clock that was ahead, and lies further ahead than anything is planned.
    pub(super) fn is_due(self, now: Timestamp, longest: Span) -> bool {
        is_due(self.at, now, longest)
    }

    /// After a success that began at `now`; `share` is from 0 to 1.
    pub(super) fn after_success(now: Timestamp, every: Span, share: f64) -> Self {
        // Early rather than late: a view is to be no older than it says.
        Self::planned(now + varied(every, 0.9, share))
    }

    /// After a failure at `now`; waits are no longer than `longest`.
    pub(super) fn after_failure(self, now: Timestamp, longest: Span, share: f64) -> Self {
        let doubled = FIRST_RETRY.micros().saturating_mul(1_i64.checked_shl(self.failures.min(40)).unwrap_or(i64::MAX));
        let wait = Span::from_micros(doubled.min(longest.micros()));
        Self { at: now + varied(wait, 0.9, share), failures: self.failures.saturating_add(1), ..self }
    }
}

/// Whether the time has come for what is planned at `at`, no more than `longest` ahead: what lies further ahead was planned by a
/// clock that has been set back since.
pub(super) fn is_due(at: Timestamp, now: Timestamp, longest: Span) -> bool {
    at <= now || at > now + longest
}

/// Between `least` and the whole of a span.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a wait needs no precision")]
fn varied(span: Span, least: f64, share: f64) -> Span {
    Span::from_micros((span.micros() as f64 * (least + (1.0 - least) * share)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_further_ahead_than_its_interval_is_due() {
        let (second, every) = (Timestamp::from_micros(1), Span::from_micros(60));
        let due = |at| Turn::planned(Timestamp::from_micros(at)).is_due(second, every);
        assert_eq!([0, 1, 2, 61, 62, i64::MAX].map(due), [true, true, false, false, true, true]);
        assert!(Turn::unknown().is_due(second, every));
    }

    #[test]
    fn waits_double_up_to_the_interval_and_vary_by_a_tenth() {
        let (now, every) = (Timestamp::from_micros(0), Span::from_secs(600));
        let mut turn = Turn::planned(now);
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
