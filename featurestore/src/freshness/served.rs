//! How far a view had got at past times: what serving knew then (rule T3), for training sets that are to have the lag of
//! serving in them. Pure.

use crate::time::{Span, Timestamp};

/// A view's watermarks over time.
///
/// From the first commit on they are those of the commits, as they were made; from when the first push came on, everything
/// was known at once. Before the first commit the system did not run: there it is as if the view had been refreshed exactly
/// every `REFRESH EVERY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServingHistory {
    /// When each commit was made, and its watermark; in order.
    commits: Vec<(Timestamp, Timestamp)>,
    /// When pushes began.
    pushed_from: Option<Timestamp>,
    refresh_every: Span,
}

impl ServingHistory {
    /// Of a view's commits in order, each with the time at which it was made and its watermark.
    pub fn new(commits: Vec<(Timestamp, Timestamp)>, pushed_from: Option<Timestamp>, refresh_every: Span) -> Self {
        Self { commits, pushed_from, refresh_every }
    }

    /// The view's watermark as of a time: serving then had the rows that were known by it.
    #[must_use]
    pub fn known_at(&self, time: Timestamp) -> Timestamp {
        if self.pushed_from.is_some_and(|from| from <= time) {
            return time;
        }
        let made = self.commits.partition_point(|(at, _)| *at <= time);
        match made.checked_sub(1) {
            Some(last) => self.commits[last].1.min(time),
            None => {
                let every = self.refresh_every.micros().max(1);
                Timestamp::from_micros(time.micros().div_euclid(every).saturating_mul(every))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_is_the_last_commit_s_and_before_the_first_as_if_refreshed_on_time() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let history = ServingHistory::new(vec![(at(100), at(95)), (at(170), at(170))], None, Span::from_secs(60));
        let known = |seconds| history.known_at(at(seconds));
        assert_eq!([59, 60, 99].map(known), [0, 60, 60].map(at));
        assert_eq!([100, 169, 170, 1_000].map(known), [95, 95, 170, 170].map(at));
        let pushed = ServingHistory::new(vec![(at(100), at(95))], Some(at(130)), Span::from_secs(60));
        assert_eq!([129, 130, 131].map(|seconds| pushed.known_at(at(seconds))), [95, 130, 131].map(at));
    }
}
