//! A load that is watched: one of which nothing comes for long is given up, so that it does not keep its place for ever.
//!
//! How long a load may take depends on how much there is, and is nobody's to say. But requests to storage are given up
//! within a minute, and rows come batch by batch: where no row has come for many minutes, something hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use springhouse_featurestore::tier::Progress;
use springhouse_featurestore::{Error, Result};

/// A load of which nothing comes for longer than two of these is given up. The first may have passed while its thread was at
/// work; and a thousand commits may be read before the first row.
const STILL_FOR: Duration = Duration::from_secs(300);

/// Counts what a load tells of its progress, and passes it on.
#[derive(Debug)]
pub(super) struct Watched<'a> {
    told: &'a dyn Progress,
    moves: AtomicU64,
    still_for: Duration,
}

impl<'a> Watched<'a> {
    /// Passes on to another.
    pub(super) fn new(told: &'a dyn Progress) -> Self {
        Self { told, moves: AtomicU64::new(0), still_for: STILL_FOR }
    }

    /// What the work gives, unless it stands still for too long.
    ///
    /// # Errors
    /// The work's own; [`springhouse_featurestore::ErrorKind::Unavailable`] when nothing comes of it.
    pub(super) async fn unless_still<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let (mut seen, mut still) = (self.moves.load(Ordering::Relaxed), 0);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(self.still_for) => {}
            }
            let moves = self.moves.load(Ordering::Relaxed);
            still = if moves == seen { still + 1 } else { 0 };
            seen = moves;
            if still == 2 {
                return Err(Error::unavailable("the view was given up: nothing has come of following it for long")
                    .with("seconds", 2 * self.still_for.as_secs())
                    .remedy("look at what object storage answers; it is tried again every second"));
            }
        }
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

impl Progress for Watched<'_> {
    fn begin(&self, what: &str, rows: u64) {
        self.moved();
        self.told.begin(what, rows);
    }

    fn advance(&self, rows: u64) {
        self.moved();
        self.told.advance(rows);
    }

    fn end(&self) {
        self.moved();
        self.told.end();
    }
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_load_that_moves_may_take_long_and_one_that_stands_still_is_given_up() {
        let watched = Watched { still_for: Duration::from_millis(20), ..Watched::new(&()) };
        let moving = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                watched.advance(1);
            }
            Ok(7)
        };
        assert_eq!(watched.unless_still(moving).await.expect("it moves"), 7);
        let hanging = std::future::pending::<Result<()>>();
        assert_eq!(watched.unless_still(hanging).await.expect_err("given up").kind(), ErrorKind::Unavailable);
    }
}
