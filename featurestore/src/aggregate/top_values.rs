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

use std::cmp::Reverse;

use twox_hash::XxHash64;

use super::sorted::merge_sorted;
use super::value::{checked_count, read_varint, write_varint};
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
    /// Every value, in order.
    Few(Vec<Counted>),
    Many(Box<Sketch>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    value: Held,
    rank: u64,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sketch {
    /// With their ranks, in order of values.
    candidates: Vec<(Held, u64)>,
    /// The greatest rank of a candidate; no bound while there is room for more of them.
    limit: u64,
    counts: Vec<u64>,
}

impl Default for TopValues {
    fn default() -> Self {
        Self { counts: Counts::Few(Vec::new()) }
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

impl Counted {
    /// Adds to its count, and lowers its rank.
    fn join(&mut self, rank: u64, count: u64) {
        self.rank = rank.min(self.rank);
        self.count += count;
    }
}

impl Sketch {
    fn new() -> Self {
        Self { candidates: Vec::new(), limit: u64::MAX, counts: vec![0; ROWS * COLUMNS] }
    }

    /// Of exact counts.
    fn of(values: Vec<Counted>) -> Box<Self> {
        let mut sketch = Box::new(Self::new());
        for Counted { value, rank, count } in values {
            sketch.count(&value, count);
            sketch.candidates.push((value, rank));
        }
        sketch.keep_least();
        sketch
    }

    fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        self.merge_candidates(other.candidates.iter().map(|(value, rank)| (value, *rank)));
    }

    /// Adds exact counts.
    fn merge_few(&mut self, values: &[Counted]) {
        for Counted { value, count, .. } in values {
            self.count(value, *count);
        }
        self.merge_candidates(values.iter().map(|counted| (&counted.value, counted.rank)));
    }

    /// Takes in those of the values, which come in order, that are among the candidates with the least ranks.
    fn merge_candidates<'a>(&mut self, values: impl Iterator<Item = (&'a Held, u64)>) {
        // What is above the limit is no candidate's least rank, nor a new candidate's.
        let near = values.filter(|(_, rank)| *rank <= self.limit);
        let near: Vec<(Held, u64)> = near.map(|(value, rank)| (value.clone(), rank)).collect();
        if near.is_empty() {
            return;
        }
        let join = |held: &mut (Held, u64), new: &(Held, u64)| held.1 = held.1.min(new.1);
        merge_sorted(&mut self.candidates, &near, |one, new| one.0.cmp(&new.0), join);
        self.keep_least();
    }

    /// Keeps those candidates that have the least ranks, of equal ones the least values.
    fn keep_least(&mut self) {
        if self.candidates.len() > MOST_COUNTED {
            let ranked = self.candidates.iter().zip(0_usize..);
            let mut ranked: Vec<(u64, usize)> = ranked.map(|((_, rank), place)| (*rank, place)).collect();
            let (_, last, _) = ranked.select_nth_unstable(MOST_COUNTED - 1);
            let (last, mut place) = (*last, 0);
            self.candidates.retain(|(_, rank)| {
                place += 1;
                (*rank, place - 1) <= last
            });
        }
        if self.candidates.len() == MOST_COUNTED {
            self.limit = self.candidates.iter().map(|(_, rank)| *rank).max().unwrap_or(u64::MAX);
        }
    }

    /// Takes a value in where it is among the candidates with the least ranks.
    fn offer(&mut self, value: &Held, rank: u64) {
        if rank > self.limit {
            return;
        }
        match self.candidates.binary_search_by(|(held, _)| held.cmp(value)) {
            Ok(place) if rank >= self.candidates[place].1 => return,
            Ok(place) => self.candidates[place].1 = rank,
            Err(place) => self.candidates.insert(place, (value.clone(), rank)),
        }
        self.keep_least();
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
        match &mut self.counts {
            Counts::Few(values) => match values.binary_search_by(|held| held.value.cmp(&value)) {
                Ok(place) => values[place].join(rank, 1),
                Err(place) => {
                    values.insert(place, Counted { value, rank, count: 1 });
                    self.keep_few();
                }
            },
            Counts::Many(sketch) => {
                sketch.count(&value, 1);
                sketch.offer(&value, rank);
            }
        }
    }

    /// Goes over to a sketch where there are too many values.
    fn keep_few(&mut self) {
        if let Counts::Few(values) = &mut self.counts
            && values.len() > MOST_COUNTED
        {
            self.counts = Counts::Many(Sketch::of(std::mem::take(values)));
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.counts, &other.counts) {
            (Counts::Few(ours), Counts::Few(theirs)) => {
                let join = |held: &mut Counted, new: &Counted| held.join(new.rank, new.count);
                merge_sorted(ours, theirs, |one, new| one.value.cmp(&new.value), join);
                self.keep_few();
            }
            (Counts::Few(ours), Counts::Many(theirs)) => {
                let mut sketch = theirs.clone();
                sketch.merge_few(ours);
                self.counts = Counts::Many(sketch);
            }
            (Counts::Many(ours), Counts::Few(theirs)) => ours.merge_few(theirs),
            (Counts::Many(ours), Counts::Many(theirs)) => ours.merge(theirs),
        }
    }

    /// The values that occur most often, the most frequent first, of equally frequent ones the least: numbers by their
    /// order ([`super::order_of`] of floats).
    pub fn top(&self, most: usize) -> Vec<&Held> {
        let mut counted: Vec<(Reverse<u64>, &Held)> = match &self.counts {
            Counts::Few(values) => values.iter().map(|counted| (Reverse(counted.count), &counted.value)).collect(),
            Counts::Many(sketch) => {
                sketch.candidates.iter().map(|(value, _)| (Reverse(sketch.estimate(value)), value)).collect()
            }
        };
        // The others need no order among themselves.
        if most < counted.len() {
            counted.select_nth_unstable(most);
            counted.truncate(most);
        }
        counted.sort_unstable();
        counted.into_iter().map(|(_, value)| value).collect()
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let length = |count: usize| u16::try_from(count).unwrap_or(MANY).to_be_bytes();
        match &self.counts {
            Counts::Few(values) => {
                out.extend_from_slice(&length(values.len()));
                for Counted { value, rank, count } in values {
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
            let mut values = Vec::new();
            for _ in 0..count {
                let (value, rank) = ranked(bytes)?;
                values.push(Counted { value, rank, count: checked_count(read_varint(bytes)?)? });
            }
            return Ok(Self { counts: Counts::Few(values) });
        }
        let mut sketch = Box::new(Sketch::new());
        for _ in 0..u16::from_be_bytes(read_array(bytes)?) {
            sketch.candidates.push(ranked(bytes)?);
        }
        sketch.keep_least();
        for count in &mut sketch.counts {
            *count = checked_count(read_varint(bytes)?)?;
        }
        Ok(Self { counts: Counts::Many(sketch) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
        counts.sort_by_key(|(value, count)| (Reverse(*count), *value));
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
