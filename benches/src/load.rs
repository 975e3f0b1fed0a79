//! Load: a closed loop for throughput, an open loop with Poisson arrivals for latency; medians and spreads.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use springhouse_featurestore::{Error, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Alternations of the two sides.
pub const ROUNDS: usize = 7;

/// Alternations of short bursts.
const BURSTS: usize = 21;

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

/// The most memory that the process has had resident since the last call, in MB, as Linux reports it; `None` elsewhere.
pub fn take_peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    // Begins to count anew.
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(kilobytes / 1024)
}

/// Real time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Calls per second of a closed loop with one caller in this process.
pub async fn closed_loop(mut call: impl AsyncFnMut() -> Result<()>) -> Result<f64> {
    let (start, mut calls) = (now(), 0_u32);
    while start.elapsed() < ROUND {
        call().await?;
        calls += 1;
    }
    Ok(f64::from(calls) / start.elapsed().as_secs_f64())
}

/// Callers of a crowd: enough that neither side waits for a sleeping core.
pub const CALLERS: usize = 8;

/// Someone who calls over a connection of its own.
pub trait Caller: Send + 'static {
    /// Calls once.
    fn call(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Calls per second of a closed loop of this length with several callers at once, each on its own connection; gives them
/// back.
async fn crowd<C: Caller>(callers: Vec<C>, length: Duration) -> Result<(f64, Vec<C>)> {
    let start = now();
    let mut tasks = JoinSet::new();
    for mut caller in callers {
        tasks.spawn(async move {
            let mut calls = 0_u32;
            while start.elapsed() < length {
                caller.call().await?;
                calls += 1;
            }
            Ok::<_, Error>((calls, caller))
        });
    }
    let (mut calls, mut callers) = (0.0, Vec::new());
    while let Some(joined) = tasks.join_next().await {
        let (made, caller) = joined.map_err(|error| Error::internal("a caller panicked").source(error))??;
        calls += f64::from(made);
        callers.push(caller);
    }
    Ok((calls / start.elapsed().as_secs_f64(), callers))
}

/// Two crowds by turns, on the two sides of a comparison; then ours in an open loop at half of what it could take.
pub async fn compare<A: Caller, B: Caller>(mut ours: Vec<A>, mut peer: Vec<B>) -> Result<(Compared, Vec<Duration>)> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let (own, back) = crowd(ours, ROUND).await?;
        ours = back;
        let (other, back) = crowd(peer, ROUND).await?;
        peer = back;
        rounds.push((own, other));
    }
    let compared = Compared::of(&rounds);
    let latencies = open_loop(compared.ours / 2.0, ours).await?;
    Ok((compared, latencies))
}

/// Two crowds by turns in short bursts; `rest` is what happens, and is not measured, before each burst of ours.
pub async fn bursts<A: Caller, B: Caller>(
    mut ours: Vec<A>,
    mut peer: Vec<B>,
    length: Duration,
    mut rest: impl AsyncFnMut() -> Result<()>,
) -> Result<Compared> {
    let mut rounds = Vec::with_capacity(BURSTS);
    for _ in 0..BURSTS {
        rest().await?;
        let (own, back) = crowd(ours, length).await?;
        ours = back;
        let (other, back) = crowd(peer, length).await?;
        peer = back;
        rounds.push((own, other));
    }
    Ok(Compared::of(&rounds))
}

/// Latencies of an open loop: calls arrive as a Poisson process of `rate` per second whether or not the earlier ones
/// are answered; each is measured from its arrival, and waits for a free caller if there is none.
pub async fn open_loop<C: Caller>(rate: f64, callers: Vec<C>) -> Result<Vec<Duration>> {
    open_loop_while(rate, callers, |passed| passed < Duration::from_secs(2)).await.map(|(latencies, _)| latencies)
}

/// The same for as long as is wanted, of which the time that has passed is told; the callers come back.
pub async fn open_loop_while<C: Caller>(
    rate: f64,
    callers: Vec<C>,
    mut wanted: impl FnMut(Duration) -> bool,
) -> Result<(Vec<Duration>, Vec<C>)> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (free, mut idle) = mpsc::unbounded_channel();
    for caller in callers {
        free.send(caller).map_err(|_| Error::internal("nobody takes the callers"))?;
    }
    let mut tasks = JoinSet::new();
    let (start, mut arrival) = (now(), 0.0_f64);
    while wanted(Duration::from_secs_f64(arrival)) {
        arrival += -random.random_range(f64::MIN_POSITIVE..1.0).ln() / rate;
        // Timers are a millisecond coarse: arrivals of one millisecond come together, and count from then.
        tokio::time::sleep_until((start + Duration::from_secs_f64(arrival)).into()).await;
        let due = now();
        let mut caller = idle.recv().await.ok_or_else(|| Error::internal("all callers are gone"))?;
        let free = free.clone();
        tasks.spawn(async move {
            caller.call().await?;
            let latency = now().duration_since(due);
            free.send(caller).map_err(|_| Error::internal("nobody takes the caller back"))?;
            Ok::<_, Error>(latency)
        });
    }
    let mut latencies = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        latencies.push(joined.map_err(|error| Error::internal("a caller panicked").source(error))??);
    }
    latencies.sort_unstable();
    let callers = std::iter::from_fn(|| idle.try_recv().ok()).collect();
    Ok((latencies, callers))
}

/// The latency that so many hundredths of all are no greater than, in milliseconds; 0 of none.
pub fn percentile(sorted: &[Duration], share: usize) -> f64 {
    let index = (sorted.len() * share / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
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
        let at = |share: usize| percentile(latencies, share);
        let latency = if latencies.is_empty() { "-".to_owned() } else { format!("{:.2} / {:.2} ms", at(50), at(99)) };
        format!(
            "| {what} | {:.0} {unit} | {:.0} {unit} | {:.2} ({:.2} to {:.2}) | {latency} |",
            self.ours, self.peer, self.ratio, self.spread.0, self.spread.1
        )
    }
}
