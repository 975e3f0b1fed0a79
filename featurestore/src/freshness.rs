//! Freshness: the one status that a value has (rules T6 and T7), and what a contract's rule makes of it (rule T8). Pure.

mod served;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::definition::{FeatureRule, RuleAction};
use crate::time::{Span, Timestamp};

pub use served::ServingHistory;

/// The status of a value. Where several could hold, the worst does: missing, then expired, then stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Within the contract's bounds; the value itself may be null.
    Fresh,
    /// The view's lag is over the contract's `FRESH WITHIN`.
    Stale,
    /// The row's age is over the contract's `MAX AGE`.
    Expired,
    /// There is no row for this entity.
    Missing,
}

impl Status {
    /// All statuses, from the best to the worst.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::Stale, Self::Expired, Self::Missing];

    /// Its word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Expired => "expired",
            Self::Missing => "missing",
        }
    }

    /// Reads a word of the wire.
    pub fn parse(word: &str) -> Option<Self> {
        // The first letters differ: one comparison is enough.
        let status = match word.as_bytes().first()? {
            b'f' => Self::Fresh,
            b's' => Self::Stale,
            b'e' => Self::Expired,
            _ => Self::Missing,
        };
        (status.as_str() == word).then_some(status)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a view has been processed: now - watermark. A view that was never refreshed lags without bound.
pub fn lag(now: Timestamp, watermark: Option<Timestamp>) -> Span {
    watermark.map_or(Span::from_micros(i64::MAX), |mark| now.since(mark))
}

/// Whether a row with this event time still exists at `now` under the view's TTL. Static rows always do.
pub fn alive(now: Timestamp, event_time: Timestamp, ttl: Option<Span>) -> bool {
    event_time == Timestamp::MIN || ttl.is_none_or(|ttl| now.since(event_time) <= ttl)
}

/// The status of an entity's row under a contract's rule.
///
/// `event_time` is `None` when there is no row; the static row of rule T2 has [`Timestamp::MIN`] and no age.
pub fn status(rule: &FeatureRule, lag: Span, now: Timestamp, event_time: Option<Timestamp>) -> Status {
    let Some(event_time) = event_time else { return Status::Missing };
    let aged = event_time != Timestamp::MIN && rule.max_age.is_some_and(|bound| now.since(event_time) > bound);
    if aged {
        Status::Expired
    } else if lag > rule.fresh_within {
        Status::Stale
    } else {
        Status::Fresh
    }
}

/// What the contract says to do with a value of this status; `None` for a fresh one.
pub fn action(rule: &FeatureRule, status: Status) -> Option<RuleAction> {
    match status {
        Status::Fresh => None,
        Status::Stale => Some(rule.on_stale),
        Status::Expired => Some(rule.on_expired),
        Status::Missing => Some(rule.on_missing),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::definition::{Pinned, Version};

    fn rule(fresh_within: i64, max_age: Option<i64>) -> FeatureRule {
        FeatureRule {
            view: Pinned::new("v", Version::from_text("0")),
            fresh_within: Span::from_micros(fresh_within),
            max_age: max_age.map(Span::from_micros),
            on_stale: RuleAction::Serve,
            on_expired: RuleAction::Default,
            on_missing: RuleAction::Fail,
        }
    }

    #[test]
    fn a_bound_that_is_met_exactly_is_kept() {
        let now = Timestamp::from_micros(100);
        let event = Some(Timestamp::from_micros(70));
        assert_eq!(status(&rule(10, Some(30)), Span::from_micros(10), now, event), Status::Fresh);
        assert_eq!(status(&rule(10, Some(30)), Span::from_micros(11), now, event), Status::Stale);
        assert_eq!(status(&rule(10, Some(29)), Span::from_micros(10), now, event), Status::Expired);
        assert_eq!(status(&rule(10, Some(29)), Span::from_micros(11), now, event), Status::Expired);
        assert_eq!(status(&rule(10, None), Span::from_micros(11), now, None), Status::Missing);
    }

    #[test]
    fn a_static_row_has_no_age() {
        let now = Timestamp::from_micros(100);
        assert_eq!(status(&rule(10, Some(1)), Span::ZERO, now, Some(Timestamp::MIN)), Status::Fresh);
        assert!(alive(now, Timestamp::MIN, Some(Span::from_micros(1))));
    }

    #[test]
    fn a_view_that_was_never_refreshed_is_stale() {
        let now = Timestamp::from_micros(100);
        assert_eq!(status(&rule(i64::MAX - 1, None), lag(now, None), now, Some(now)), Status::Stale);
    }

    proptest! {
        #[test]
        fn only_a_fresh_value_needs_no_rule(now in 0_i64..200, mark in 0_i64..200, event in proptest::option::of(0_i64..200),
                                            within in 0_i64..50, bound in proptest::option::of(0_i64..50)) {
            let (now, rule) = (Timestamp::from_micros(now), rule(within, bound));
            let lag = lag(now, Some(Timestamp::from_micros(mark)));
            let status = status(&rule, lag, now, event.map(Timestamp::from_micros));
            let fresh = event.is_some_and(|event| (now.micros() - event).max(0) <= bound.unwrap_or(i64::MAX))
                && (now.micros() - mark).max(0) <= within;
            prop_assert_eq!(status == Status::Fresh, fresh);
            prop_assert_eq!(action(&rule, status).is_none(), fresh);
        }
    }
}
