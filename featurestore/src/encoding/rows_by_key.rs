//! The rows of a batch by their keys: the different keys in order, and the rows of each in theirs.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::EncodedKeys;

/// Stands for the number of a row that has no key.
const NO_KEY: u32 = u32::MAX;

/// How many keys that were found lately are looked at first.
const LATELY: usize = 256;

/// The rows of a batch by their keys. Those without a whole key are left out.
#[derive(Debug)]
pub struct RowsByKey<'a> {
    /// The different keys, in order.
    keys: Vec<&'a [u8]>,
    /// Where the rows of each key end.
    ends: Vec<usize>,
    /// The rows of each key as they came.
    rows: Vec<u32>,
}

impl<'a> RowsByKey<'a> {
    /// Of the keys of a batch.
    pub fn new(encoded: &'a EncodedKeys) -> Self {
        let Numbered { mut keys, counts, numbers } = Numbered::new(encoded);
        let mut in_order: Vec<u32> = (0..).take(keys.len()).collect();
        in_order.sort_unstable_by_key(|number| keys[*number as usize]);
        // Where the next row of each key goes.
        let (mut next, mut first) = (vec![0; keys.len()], 0);
        for number in &in_order {
            next[*number as usize] = first;
            first += counts[*number as usize];
        }
        let mut rows = vec![0; first];
        for (row, number) in (0..).zip(numbers).filter(|(_, number)| *number != NO_KEY) {
            let place = &mut next[number as usize];
            rows[*place] = row;
            *place += 1;
        }
        let ends = in_order.iter().map(|number| next[*number as usize]).collect();
        keys.sort_unstable();
        Self { keys, ends, rows }
    }

    /// How many rows have a key.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The keys in order, each with its rows.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &[u32])> {
        let starts = std::iter::once(&0).chain(&self.ends);
        self.keys.iter().zip(starts.zip(&self.ends)).map(|(key, (start, end))| (*key, &self.rows[*start..*end]))
    }
}

/// The different keys as they came, how many rows each has, and for each row the number of its key among them.
struct Numbered<'a> {
    keys: Vec<&'a [u8]>,
    counts: Vec<usize>,
    numbers: Vec<u32>,
}

impl<'a> Numbered<'a> {
    fn new(encoded: &'a EncodedKeys) -> Self {
        // Most keys are short, and a number is found sooner than bytes; one that was found lately, sooner still.
        let mut short: HashMap<u64, u32, RandomState> = HashMap::default();
        let mut long: HashMap<&[u8], u32, RandomState> = HashMap::default();
        let mut lately = [(0, NO_KEY); LATELY];
        let mut all = Self { keys: Vec::new(), counts: Vec::new(), numbers: Vec::with_capacity(encoded.len()) };
        for place in encoded.places() {
            if place.is_empty() {
                all.numbers.push(NO_KEY);
                continue;
            }
            let next = u32::try_from(all.keys.len()).unwrap_or(NO_KEY);
            let number = match encoded.short(&place) {
                Some(key) => {
                    let found = &mut lately[place_of(key)];
                    if found.0 != key || found.1 == NO_KEY {
                        *found = (key, *short.entry(key).or_insert(next));
                    }
                    found.1
                }
                None => *long.entry(encoded.at(place.clone())).or_insert(next),
            };
            if number == next {
                all.keys.push(encoded.at(place));
                all.counts.push(0);
            }
            all.counts[number as usize] += 1;
            all.numbers.push(number);
        }
        all
    }
}

/// Where a key that was found lately is.
fn place_of(key: u64) -> usize {
    let mixed = key.wrapping_mul(0x9E37_79B1_85EB_CA87) >> (64 - LATELY.trailing_zeros());
    usize::try_from(mixed).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use proptest::prelude::*;

    use super::*;
    use crate::definition::{Column, ColumnType};
    use crate::encoding::KeyCodec;

    proptest! {
        #[test]
        fn keys_come_in_order_each_with_all_its_rows(
            rows in proptest::collection::vec(
                (
                    proptest::option::weighted(0.9, proptest::sample::select(vec!["", "a", "b\0", "a long key", "a long kez"])),
                    proptest::option::weighted(0.9, -2_i64..2),
                ),
                0..60,
            ),
            composite in any::<bool>(),
        ) {
            let names: ArrayRef = Arc::new(StringArray::from_iter(rows.iter().map(|row| row.0)));
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.1)));
            let (columns, arrays) = if composite {
                let name = Column::nullable("name", ColumnType::Utf8);
                (vec![name, Column::nullable("number", ColumnType::Int64)], vec![names, numbers])
            } else {
                (vec![Column::nullable("number", ColumnType::Int64)], vec![numbers])
            };
            let encoded = KeyCodec::new(&columns).expect("keys").encode(&arrays).expect("of these types");
            let mut expected: BTreeMap<&[u8], Vec<u32>> = BTreeMap::new();
            for (row, key) in (0..).zip(encoded.iter()) {
                if let Some(key) = key {
                    expected.entry(key).or_default().push(row);
                }
            }
            let by_key = RowsByKey::new(&encoded);
            prop_assert_eq!(by_key.rows(), expected.values().map(Vec::len).sum::<usize>());
            let found: Vec<(&[u8], Vec<u32>)> = by_key.iter().map(|(key, rows)| (key, rows.to_vec())).collect();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
