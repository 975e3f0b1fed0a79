//! Load: a closed loop for throughput, an open loop with Poisson arrivals for latency; medians and spreads.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use springhouse_featurestore::Result;

/// Alternations of the two sides.
pub const ROUNDS: usize = 7;

/// How long one side of a round runs.
const ROUND: Duration = Duration::from_millis(700);

/// Writes a line of the result.
#[expect(clippy::disallowed_macros, reason = "the result of a benchmark goes to stdout")]
pub fn say(line: &str) {
    println!("{line}");
}

/// Writes a line about the work.
#[expect(clippy::disallowed_macros, reason = "the rest goes to stderr")]
pub fn note(line: &str) {
    eprintln!("{line}");
}

/// Real time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Calls per second of a closed loop with one caller.
pub async fn closed_loop(mut call: impl AsyncFnMut() -> Result<()>) -> Result<f64> {
    let (start, mut calls) = (now(), 0_u32);
    while start.elapsed() < ROUND {
        call().await?;
        calls += 1;
    }
    Ok(f64::from(calls) / start.elapsed().as_secs_f64())
}

/// Latencies of an open loop: calls arrive as a Poisson process of `rate` per second whether or not the earlier ones
/// are answered; each is measured from its arrival. One caller answers them in order, as one connection does.
pub async fn open_loop(rate: f64, mut call: impl AsyncFnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (start, mut arrival, mut latencies) = (now(), 0.0_f64, Vec::new());
    while arrival < 2.0 {
        arrival += -random.random_range(f64::MIN_POSITIVE..1.0).ln() / rate;
        let due = start + Duration::from_secs_f64(arrival);
        let wait = due.saturating_duration_since(now());
        // Timers are a millisecond coarse: the last stretch is spent yielding.
        if wait > Duration::from_millis(2) {
            tokio::time::sleep(wait.saturating_sub(Duration::from_millis(2))).await;
        }
        while now() < due {
            tokio::task::yield_now().await;
        }
        call().await?;
        latencies.push(now().duration_since(due));
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Rates of two sides that alternate, and the ratio's median and extremes.
pub struct Compared {
    /// Median of ours.
    pub ours: f64,
    /// Median of the peer.
    pub peer: f64,
    /// Median of the rounds' ratios.
    pub ratio: f64,
    /// The least and the greatest.
    pub spread: (f64, f64),
}

impl Compared {
    /// Of the rounds' pairs (ours, peer).
    pub fn of(rounds: &[(f64, f64)]) -> Self {
        let sorted = |values: Vec<f64>| {
            let mut values = values;
            values.sort_by(f64::total_cmp);
            values
        };
        let ratios = sorted(rounds.iter().map(|(ours, peer)| ours / peer).collect());
        let middle = rounds.len() / 2;
        Self {
            ours: sorted(rounds.iter().map(|round| round.0).collect())[middle],
            peer: sorted(rounds.iter().map(|round| round.1).collect())[middle],
            ratio: ratios[middle],
            spread: (ratios[0], ratios[ratios.len() - 1]),
        }
    }

    /// A row of the table.
    pub fn row(&self, what: &str, unit: &str, latencies: &[Duration]) -> String {
        let at = |share: usize| {
            let index = (latencies.len() * share / 100).min(latencies.len().saturating_sub(1));
            latencies.get(index).map_or_else(|| "-".to_owned(), |latency| format!("{:.2}", latency.as_secs_f64() * 1e3))
        };
        let latency = if latencies.is_empty() { "-".to_owned() } else { format!("{} / {} ms", at(50), at(99)) };
        format!(
            "| {what} | {:.0} {unit} | {:.0} {unit} | {:.2} ({:.2} to {:.2}) | {latency} |",
            self.ours, self.peer, self.ratio, self.spread.0, self.spread.1
        )
    }
}
