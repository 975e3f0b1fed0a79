//! Connections that were closed at once, since there was no place for them: counted, and told of now and then. Who opens
//! thousands writes no thousand lines.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long nothing is said of them after something was.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The connections that a process has turned away, on all of its ports.
#[derive(Debug, Clone, Default)]
pub(crate) struct TurnedAway(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Since the port had as many as it may.
    of_port: AtomicU64,
    /// Since their address had as many as it may.
    of_address: AtomicU64,
    /// When it was last told of, and how many there were then.
    told: Mutex<Option<(Instant, u64)>>,
}

impl TurnedAway {
    /// Counts one.
    pub(super) fn note(&self, address_is_full: bool, host: Option<IpAddr>, now: Instant) {
        let count = if address_is_full { &self.0.of_address } else { &self.0.of_port };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(since) = self.to_tell(now) {
            let why =
                if address_is_full { "its address has as many as it may" } else { "there are as many as there may be" };
            let address = host.map_or_else(|| "this host".to_owned(), |host| host.to_string());
            tracing::warn!(%address, why, connections = since, "connections are closed at once");
        }
    }

    /// How many are to be told of now; none where something was told a moment ago.
    fn to_tell(&self, now: Instant) -> Option<u64> {
        let all = self.counts().iter().map(|(_, count)| count).sum();
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match *told {
            Some((at, _)) if now.saturating_duration_since(at) < TELL_EVERY => return None,
            Some((_, before)) => before,
            None => 0,
        };
        *told = Some((now, all));
        Some(all - before)
    }

    /// How many, by what was full.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 2] {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("port", read(&self.0.of_port)), ("address", read(&self.0.of_address))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_a_thousand_that_are_turned_away_one_line_is_written() {
        let (turned_away, start) = (TurnedAway::default(), Instant::now());
        let count = || turned_away.0.of_address.fetch_add(1, Ordering::Relaxed);
        count();
        assert_eq!(turned_away.to_tell(start), Some(1));
        for _ in 0..1000 {
            count();
            assert_eq!(turned_away.to_tell(start + Duration::from_secs(9)), None);
        }
        assert_eq!(turned_away.to_tell(start + TELL_EVERY), Some(1000));
        assert_eq!(turned_away.counts(), [("port", 0), ("address", 1001)]);
    }
}
