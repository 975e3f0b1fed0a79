//! The queue before a worker: bounded in rows, with an honest refusal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use springhouse_featurestore::{Error, Result};

use super::Pending;
use crate::shares::{Full, Share, Shares};

/// Counts of one contract since the worker's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Rows answered.
    pub rows: u64,
    /// Rows answered with every view fresh.
    pub fresh_rows: u64,
    /// Requests that a `FAIL` rule refused.
    pub refused: u64,
    /// Requests turned away because the queue was full.
    pub shed: u64,
    /// Requests whose deadline passed before their answer was ready.
    pub expired: u64,
}

/// The same, counted by many at once.
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    pub(crate) requests: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) fresh_rows: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) expired: AtomicU64,
}

impl LiveCounters {
    pub(crate) fn read(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            requests: read(&self.requests),
            rows: read(&self.rows),
            fresh_rows: read(&self.fresh_rows),
            refused: read(&self.refused),
            shed: read(&self.shed),
            expired: read(&self.expired),
        }
    }
}

/// Bytes of the texts of a contract's rows that wait.
const TEXT_BYTES: usize = 256 << 20;

/// A request with fewer is not counted.
const SHORT_TEXT_BYTES: usize = 16 << 10;

/// What both ends of a queue see.
#[derive(Debug)]
pub(crate) struct Load {
    /// Rows waiting.
    waiting: AtomicUsize,
    limit: usize,
    /// Rows of callers who are known by name.
    shares: Arc<Shares<Arc<str>>>,
    /// Bytes of the texts of rows that wait.
    texts: Arc<Shares<Arc<str>>>,
    /// Recent microseconds per row of the worker, for the delay that a refusal names.
    row_micros: AtomicU64,
    pub(crate) counters: LiveCounters,
}

impl Load {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            limit,
            // That there are no more than the limit is counted without a lock, for all.
            shares: Shares::new(usize::MAX, limit.div_ceil(2)),
            texts: Shares::halves(TEXT_BYTES),
            row_micros: AtomicU64::new(0),
            counters: LiveCounters::default(),
        }
    }

    /// Takes place for rows, or says when to come again. What is given is held while they wait.
    pub(crate) fn admit(&self, rows: usize, caller: Option<&Arc<str>>) -> Result<Option<Share<Arc<str>>>> {
        let share = match caller.map(|caller| (caller, self.shares.take(Some(caller), rows))) {
            None => None,
            Some((_, Ok(share))) => Some(share),
            Some((caller, Err(Full::Share { used, limit } | Full::Whole { used, limit }))) => {
                return Err(self
                    .shed("one caller has its share of the contract's queue", used, limit)
                    .with("caller", caller));
            }
        };
        let before = self.waiting.fetch_add(rows, Ordering::AcqRel);
        if before + rows <= self.limit || before == 0 {
            return Ok(share);
        }
        self.leave(rows);
        Err(self.shed("the contract's queue is full", before, self.limit))
    }

    /// Takes place for the texts of a request: its rows may be few and its texts long. Short ones are not counted.
    pub(crate) fn admit_texts(&self, bytes: usize, caller: Option<&Arc<str>>) -> Result<Option<Share<Arc<str>>>> {
        if bytes <= SHORT_TEXT_BYTES {
            return Ok(None);
        }
        self.texts.take(caller, bytes).map(Some).map_err(|full| {
            self.counters.shed.fetch_add(1, Ordering::Relaxed);
            full.error("bytes of texts that wait for the contract", caller.map(AsRef::as_ref))
        })
    }

    /// Counts a request that is turned away.
    fn shed(&self, why: &str, before: usize, limit: usize) -> Error {
        self.counters.shed.fetch_add(1, Ordering::Relaxed);
        let drain = Duration::from_micros(self.row_micros.load(Ordering::Relaxed).saturating_mul(before as u64));
        Error::busy(why)
            .with("rows waiting", before)
            .with("limit", limit)
            .remedy(format!("try again in {} ms", drain.as_millis().max(1)))
    }

    pub(crate) fn leave(&self, rows: usize) {
        self.waiting.fetch_sub(rows, Ordering::AcqRel);
    }

    /// Notes how long a batch took; a moving average over about eight batches.
    pub(crate) fn note(&self, rows: usize, took: Duration) {
        let now = u64::try_from(took.as_micros()).unwrap_or(u64::MAX) / rows.max(1) as u64;
        let before = self.row_micros.load(Ordering::Relaxed);
        self.row_micros.store((before * 7 + now) / 8, Ordering::Relaxed);
    }
}

/// The questions that wait, by their numbers: in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<BTreeMap<u64, Pending>>);

impl Waiting {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a question in line.
    pub(crate) fn add(&self, number: u64, pending: Pending) {
        self.locked().insert(number, pending);
    }

    /// Takes a question out of the line, if it is still there.
    pub(crate) fn remove(&self, number: u64) {
        self.locked().remove(&number);
    }

    /// Takes what has gathered, up to a number of rows; the first is taken however many it has.
    pub(crate) fn gather(&self, most_rows: usize) -> Vec<(u64, Pending)> {
        let (mut batch, mut rows) = (Vec::new(), 0);
        let mut waiting = self.locked();
        while let Some(next) = waiting.first_entry() {
            rows += next.get().question.rows;
            if !batch.is_empty() && rows > most_rows {
                break;
            }
            batch.push(next.remove_entry());
        }
        batch
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.locked().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_never_fills_a_queue_that_others_wait_for() {
        let load = Load::new(100);
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let admit = |who: Option<&Arc<str>>| load.admit(10, who);
        let held: Vec<_> = (0..5).map(|_| admit(Some(&ann)).expect("less than half")).collect();
        let error = admit(Some(&ann)).expect_err("more than half").to_string();
        assert!(error.contains("caller: ann") && error.contains("try again in"), "{error}");
        let others: Vec<_> = (0..5).map(|_| admit(Some(&bob)).expect("the rest is for others")).collect();
        assert!(admit(None).is_err() && load.counters.read().shed == 2);
        drop(held);
        load.leave(50);
        admit(Some(&ann)).expect("given back");
        admit(None).expect("who is not known by name");
        drop(others);
    }

    #[test]
    fn a_few_rows_of_long_texts_fill_no_queue_that_others_wait_for() {
        let load = Load::new(100);
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let long = TEXT_BYTES / 8;
        let held: Vec<_> = (0..4).map(|_| load.admit_texts(long, Some(&ann)).expect("less than half")).collect();
        let error = load.admit_texts(long, Some(&ann)).expect_err("more than half");
        assert!(error.to_string().contains("caller: ann") && load.counters.read().shed == 1, "{error}");
        assert!(load.admit_texts(SHORT_TEXT_BYTES, Some(&ann)).expect("short").is_none());
        load.admit_texts(4 * long, Some(&bob)).expect("the rest is for others");
        drop(held);
        load.admit_texts(long, Some(&ann)).expect("given back");
    }
}
