//! The values that occur most often: exactly while there are few different ones, within known bounds beyond.
//!
//! Up to [`MOST_COUNTED`] different values each has its exact count. Beyond it there are two parts, neither of which depends
//! on the order in which values came or parts were merged:
//! - the counts of all values together in a count-min sketch (G. Cormode and S. Muthukrishnan, "An improved data stream
//!   summary: the count-min sketch and its applications", 2005), 4 rows of 1,024: counts only add up. A count that is read
//!   is never too small, and with a probability of 98 % too great by at most 0.27 % of all events;
//! - candidates: the [`MOST_COUNTED`] values with the least ranks. An event's rank is a hash of its value and times, a
//!   value's is the least of its events' (E. Cohen, "Stream sampling for frequency cap statistics", 2015), so the more
//!   often a value occurs, the less its rank: one that makes up 2 % of the events is missed once in some 25,000 times.
//!   Events of one value and the same times have one hash, and so count once here.
//!
//! Bytes, values in order:
//!
//! ```text
//! few:  how many values (2) | for each: value, rank (8), count (a varint)
//! many: FF FF | how many candidates (2) | for each: value, rank (8) | the counts of the sketch (varints)
//! ```

use std::collections::BTreeMap;

use twox_hash::XxHash64;

use super::value::{read_varint, write_varint};
use super::{Held, Value, read_array};
use crate::Result;
use crate::time::Timestamp;

/// The most different values that are counted exactly.
pub const MOST_COUNTED: usize = 512;

/// The most values that an aggregate can ask for.
pub const MOST_TOP: u16 = 100;

const MANY: u16 = u16::MAX;

const ROWS: usize = 4;
const COLUMNS_BITS: usize = 10;
const COLUMNS: usize = 1 << COLUMNS_BITS;

/// The counts of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopValues {
    counts: Counts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Counts {
    /// The rank and the count of every value.
    Few(BTreeMap<Held, (u64, u64)>),
    Many(Box<Sketch>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sketch {
    /// With their ranks.
    candidates: BTreeMap<Held, u64>,
    counts: Vec<u64>,
}

impl Default for TopValues {
    fn default() -> Self {
        Self { counts: Counts::Few(BTreeMap::new()) }
    }
}

/// A value as it is kept: by its order, so that values of a kind come in order, and equal ones are one.
fn kept(value: Value<'_>) -> Held {
    match value {
        Value::Text(text) => Held::Text(text.into()),
        other => Held::Number(other.order()),
    }
}

fn hash(value: &Held, seed: u64) -> u64 {
    match value {
        Held::Text(text) => XxHash64::oneshot(seed, text.as_bytes()),
        Held::Number(number) => XxHash64::oneshot(seed ^ 1, &number.to_le_bytes()),
    }
}

/// The places of a value in the rows of the sketch.
fn places(value: &Held) -> impl Iterator<Item = usize> {
    let hash = hash(value, 2);
    (0..ROWS).map(move |row| {
        let column = usize::try_from(hash >> (row * COLUMNS_BITS)).unwrap_or_default() % COLUMNS;
        row * COLUMNS + column
    })
}

impl Sketch {
    fn new() -> Self {
        Self { candidates: BTreeMap::new(), counts: vec![0; ROWS * COLUMNS] }
    }

    /// Of exact counts.
    fn of(values: BTreeMap<Held, (u64, u64)>) -> Box<Self> {
        let mut sketch = Box::new(Self::new());
        for (value, (rank, count)) in values {
            sketch.count(&value, count);
            sketch.offer(&value, rank);
        }
        sketch
    }

    fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        for (value, rank) in &other.candidates {
            self.offer(value, *rank);
        }
    }

    /// Takes a value in where it is among the candidates with the least ranks.
    fn offer(&mut self, value: &Held, rank: u64) {
        if let Some(held) = self.candidates.get_mut(value) {
            *held = rank.min(*held);
        } else if self.candidates.len() < MOST_COUNTED {
            self.candidates.insert(value.clone(), rank);
        } else {
            let last = self.candidates.iter().map(|(value, rank)| (*rank, value)).max();
            if let Some(last) = last.filter(|last| (rank, value) < *last).map(|(_, last)| last.clone()) {
                self.candidates.remove(&last);
                self.candidates.insert(value.clone(), rank);
            }
        }
    }

    fn count(&mut self, value: &Held, count: u64) {
        places(value).for_each(|place| self.counts[place] += count);
    }

    fn estimate(&self, value: &Held) -> u64 {
        places(value).map(|place| self.counts[place]).min().unwrap_or(0)
    }
}

impl TopValues {
    /// Adds the value of an event that happened and was known at these times.
    pub fn add(&mut self, event: Timestamp, available: Timestamp, value: Value<'_>) {
        let value = kept(value);
        let mut times = [0; 16];
        times[..8].copy_from_slice(&event.micros().to_le_bytes());
        times[8..].copy_from_slice(&available.micros().to_le_bytes());
        let rank = XxHash64::oneshot(hash(&value, 0), &times);
        self.insert(value, rank, 1);
    }

    fn insert(&mut self, value: Held, rank: u64, count: u64) {
        match &mut self.counts {
            Counts::Few(values) => {
                let held = values.entry(value).or_insert((rank, 0));
                *held = (rank.min(held.0), held.1 + count);
                if values.len() > MOST_COUNTED {
                    self.counts = Counts::Many(Sketch::of(std::mem::take(values)));
                }
            }
            Counts::Many(sketch) => {
                sketch.count(&value, count);
                sketch.offer(&value, rank);
            }
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        match &other.counts {
            Counts::Few(values) => {
                for (value, (rank, count)) in values {
                    self.insert(value.clone(), *rank, *count);
                }
            }
            Counts::Many(other) => match &mut self.counts {
                Counts::Many(ours) => ours.merge(other),
                Counts::Few(values) => {
                    let mut ours = Sketch::of(std::mem::take(values));
                    ours.merge(other);
                    self.counts = Counts::Many(ours);
                }
            },
        }
    }

    /// The values that occur most often, the most frequent first, of equally frequent ones the least: numbers by their
    /// order ([`super::order_of`] of floats).
    pub fn top(&self, most: usize) -> Vec<&Held> {
        let mut counted: Vec<(std::cmp::Reverse<u64>, &Held)> = match &self.counts {
            Counts::Few(values) => {
                values.iter().map(|(value, (_, count))| (std::cmp::Reverse(*count), value)).collect()
            }
            Counts::Many(sketch) => {
                let estimated = |value| (std::cmp::Reverse(sketch.estimate(value)), value);
                sketch.candidates.keys().map(estimated).collect()
            }
        };
        counted.sort_unstable();
        counted.into_iter().take(most).map(|(_, value)| value).collect()
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let length = |count: usize| u16::try_from(count).unwrap_or(MANY).to_be_bytes();
        match &self.counts {
            Counts::Few(values) => {
                out.extend_from_slice(&length(values.len()));
                for (value, (rank, count)) in values {
                    Held::encode(Some(value), out);
                    out.extend_from_slice(&rank.to_be_bytes());
                    write_varint(*count, out);
                }
            }
            Counts::Many(sketch) => {
                out.extend_from_slice(&MANY.to_be_bytes());
                out.extend_from_slice(&length(sketch.candidates.len()));
                for (value, rank) in &sketch.candidates {
                    Held::encode(Some(value), out);
                    out.extend_from_slice(&rank.to_be_bytes());
                }
                sketch.counts.iter().for_each(|count| write_varint(*count, out));
            }
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let ranked = |bytes: &mut &[u8]| -> Result<(Held, u64)> {
            let value = Held::decode(bytes)?.ok_or_else(super::value::cut)?;
            Ok((value, u64::from_be_bytes(read_array(bytes)?)))
        };
        let count = u16::from_be_bytes(read_array(bytes)?);
        if count < MANY {
            let mut values = BTreeMap::new();
            for _ in 0..count {
                let (value, rank) = ranked(bytes)?;
                values.insert(value, (rank, read_varint(bytes)?));
            }
            return Ok(Self { counts: Counts::Few(values) });
        }
        let mut sketch = Box::new(Sketch::new());
        for _ in 0..u16::from_be_bytes(read_array(bytes)?) {
            let (value, rank) = ranked(bytes)?;
            sketch.candidates.insert(value, rank);
        }
        for count in &mut sketch.counts {
            *count = read_varint(bytes)?;
        }
        Ok(Self { counts: Counts::Many(sketch) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Events of one value each, told apart by their times.
    fn top(events: &[(i64, i64)]) -> TopValues {
        let mut top = TopValues::default();
        for (at, value) in events {
            let at = Timestamp::from_micros(*at);
            top.add(at, at, Value::Signed(*value));
        }
        top
    }

    fn events(values: i64, most: usize) -> impl Strategy<Value = Vec<(i64, i64)>> {
        proptest::collection::vec((0..1_000_i64, 0..values), 0..most)
    }

    fn exact(events: &[(i64, i64)], most: usize) -> Vec<Held> {
        let mut counts = BTreeMap::new();
        for (_, value) in events {
            *counts.entry(*value).or_insert(0_u64) += 1;
        }
        let mut counts: Vec<(i64, u64)> = counts.into_iter().collect();
        counts.sort_by_key(|(value, count)| (std::cmp::Reverse(*count), *value));
        counts.into_iter().take(most).map(|(value, _)| Held::Number(value)).collect()
    }

    fn check(a: &[(i64, i64)], b: &[(i64, i64)]) -> Result<(), TestCaseError> {
        let all: Vec<(i64, i64)> = b.iter().chain(a).copied().collect();
        let mut merged = top(a);
        merged.merge(&top(b));
        merged.merge(&TopValues::default());
        prop_assert_eq!(&merged, &top(&all));
        let mut other = top(b);
        other.merge(&top(a));
        prop_assert_eq!(&merged, &other);
        let mut bytes = Vec::new();
        merged.encode(&mut bytes);
        let mut rest = bytes.as_slice();
        prop_assert_eq!(&TopValues::decode(&mut rest).expect("own bytes"), &merged);
        prop_assert!(rest.is_empty() && TopValues::decode(&mut &bytes[..bytes.len() - 1]).is_err());
        if let Counts::Few(values) = &merged.counts {
            prop_assert!(values.len() <= MOST_COUNTED);
            let found: Vec<Held> = merged.top(5).into_iter().cloned().collect();
            prop_assert_eq!(found, exact(&all, 5));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_laws_hold_with_few_values(a in events(8, 40), b in events(8, 40)) {
            check(&a, &b)?;
        }

        #[test]
        fn the_laws_hold_with_many_values(a in events(2_000, 900), b in events(2_000, 900)) {
            check(&a, &b)?;
        }
    }

    #[test]
    fn what_is_frequent_among_very_many_values_is_found() {
        // 100,000 events: five values of 8 to 2 % each, the others nearly all different.
        let shares = [(1, 8), (2, 6), (3, 5), (4, 3), (5, 2)];
        let mut events = Vec::new();
        for (value, share) in shares {
            events.extend((0..share * 1_000).map(|_| value));
        }
        let rare = 100_000 - events.len();
        events.extend((0..rare).map(|i| 1_000 + i64::try_from(i).expect("small") * 7_919 % 70_000));
        let events: Vec<(i64, i64)> = (0..).zip(events).collect();
        let found: Vec<Held> = top(&events).top(5).into_iter().cloned().collect();
        assert_eq!(found, [1, 2, 3, 4, 5].map(Held::Number));
    }
}
