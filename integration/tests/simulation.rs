//! A seeded simulation of a store's life: a clock, pushes in any order and again, refreshes, flushes, restarts, and whatever
//! can go wrong. After each step every lookup of every view is what the oracle says, and in the end of some seeds every row
//! of a training set too.
//!
//! The same seed gives the same trace. `SIMULATION_SEEDS` says which seeds are run: so many, or `246..247`; and
//! `SIMULATION_FAULTS` what may go wrong: names of [`faults`] with commas between them, or `none`.

mod copies;
mod faults;
mod history;
mod loads;
mod oracle;
mod producers;
mod refused;
pub mod steps;
mod takers;
mod twice;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use faults::Faults;
use world::{Trace, World};

/// Seeds of a run without `SIMULATION_SEEDS`.
const SEEDS: u64 = 100;

/// Steps of a seed, and of a long one.
const STEPS: [u32; 2] = [8, 40];

/// Of so many seeds one is long, and ends with training sets, which take longer than a few steps.
const LONG: u64 = 20;

/// What a seed takes at most: a simulation that waits for itself is wrong.
const LONGEST: Duration = Duration::from_secs(240);

/// After so many seeds that went wrong no more are run.
const MOST_WRONG: usize = 5;

async fn simulate(seed: u64, faults: &Faults, trace: &Trace) {
    let mut world = World::new(seed, faults, trace).await;
    let long = seed.is_multiple_of(LONG);
    for _ in 0..STEPS[usize::from(long)] {
        world.step().await;
    }
    if long {
        world.train().await;
    }
}

/// Runs a seed. Gives its trace, and what was wrong.
fn run(seed: u64, faults: &Faults) -> (Vec<String>, Result<(), String>) {
    let trace = Trace::default();
    let simulated = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let simulated = async { tokio::time::timeout(LONGEST, simulate(seed, faults, &trace)).await };
        runtime.block_on(simulated).expect("it ends");
    }));
    let wrong = simulated.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    let trace = std::mem::take(&mut *trace.lock().unwrap_or_else(PoisonError::into_inner));
    (trace, wrong)
}

/// What is said of a seed that went wrong.
fn told(seed: u64, faults: &Faults, trace: &[String], wrong: &str) -> String {
    let again = format!("SIMULATION_SEEDS={seed}..{} SIMULATION_FAULTS={}", seed + 1, faults.names());
    format!("seed {seed} is wrong ({again}) after these steps:\n{}\n{wrong}", trace.join("\n"))
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let faults = Faults::wanted();
    for seed in [3, 7, LONG] {
        let (first, wrong) = run(seed, &faults);
        if let Err(wrong) = wrong {
            panic!("{}", told(seed, &faults, &first, &wrong));
        }
        assert_eq!(first, run(seed, &faults).0, "seed {seed}");
    }
}

#[test]
fn every_answer_is_right_whatever_happens() {
    let faults = Faults::wanted();
    let seeds = std::env::var("SIMULATION_SEEDS").unwrap_or_else(|_| SEEDS.to_string());
    let (first, end) = seeds.split_once("..").unwrap_or(("0", &seeds));
    let number = |text: &str| text.parse::<u64>().expect("a number of seeds, or FIRST..END");
    let (next, end) = (AtomicU64::new(number(first)), number(end));
    let wrong: Mutex<Vec<(u64, String)>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || wrong.lock().unwrap_or_else(PoisonError::into_inner).len() >= MOST_WRONG {
                        break;
                    }
                    if let (trace, Err(what)) = run(seed, &faults) {
                        let what = told(seed, &faults, &trace, &what);
                        wrong.lock().unwrap_or_else(PoisonError::into_inner).push((seed, what));
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    wrong.sort();
    let seeds: Vec<u64> = wrong.iter().map(|(seed, _)| *seed).collect();
    let told: Vec<String> = wrong.into_iter().map(|(_, what)| what).collect();
    assert!(seeds.is_empty(), "{}\n\nwrong seeds: {seeds:?}", told.join("\n\n"));
}
