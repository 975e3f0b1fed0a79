//! The distinct values of an argument, exactly, up to a bound.
//!
//! A number is kept as it is; a text as the first 16 bytes of its SHA-256. Beyond the bound nothing is kept but that it
//! was passed: what a set of so many values holds is then the same for all of them, in whatever order they came.
//!
//! Bytes: the number of values (2), `FF FF` when there are more than the bound; then the values, 16 bytes each.

use sha2::{Digest, Sha256};

use super::Value;
use super::sorted::merge_sorted;
use crate::Result;

/// The most values that are counted exactly; beyond it `approx_distinct` estimates.
pub const MOST_DISTINCT: usize = 1_024;

const BEYOND: u16 = u16::MAX;

/// A set of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distinct {
    /// In order; none when there are too many.
    values: Option<Vec<u128>>,
}

impl Default for Distinct {
    fn default() -> Self {
        Self { values: Some(Vec::new()) }
    }
}

fn identity(value: Value<'_>) -> u128 {
    match value {
        Value::Text(text) => {
            let digest = Sha256::digest(text.as_bytes());
            digest.iter().take(16).fold(0, |whole, byte| whole << 8 | u128::from(*byte))
        }
        other => u128::from(other.bits().cast_unsigned()),
    }
}

impl Distinct {
    /// Adds a value.
    pub fn add(&mut self, value: Value<'_>) {
        self.insert(identity(value));
    }

    fn insert(&mut self, value: u128) {
        let Some(values) = &mut self.values else { return };
        if let Err(place) = values.binary_search(&value) {
            if values.len() == MOST_DISTINCT {
                self.values = None;
            } else {
                values.insert(place, value);
            }
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        match &other.values {
            None => self.values = None,
            Some(theirs) => {
                let Some(ours) = &mut self.values else { return };
                merge_sorted(ours, theirs, Ord::cmp, |_, _| ());
                if ours.len() > MOST_DISTINCT {
                    self.values = None;
                }
            }
        }
    }

    /// How many there are; `None` beyond the bound.
    pub fn count(&self) -> Option<usize> {
        self.values.as_ref().map(Vec::len)
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = self.count().and_then(|count| u16::try_from(count).ok()).unwrap_or(BEYOND);
        out.extend_from_slice(&count.to_be_bytes());
        for value in self.values.iter().flatten() {
            out.extend_from_slice(&value.to_be_bytes());
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let count = u16::from_be_bytes(super::read_array(bytes)?);
        if count == BEYOND {
            return Ok(Self { values: None });
        }
        let values = (0..count).map(|_| super::read_array(bytes).map(u128::from_be_bytes)).collect::<Result<_>>()?;
        Ok(Self { values: Some(values) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn distinct(values: &[i64]) -> Distinct {
        let mut distinct = Distinct::default();
        for value in values {
            distinct.add(Value::Signed(*value));
        }
        distinct
    }

    proptest! {
        #[test]
        fn the_laws_hold(a in proptest::collection::vec(0_i64..1_500, 0..2_000), b in proptest::collection::vec(0_i64..1_500, 0..2_000)) {
            let all: Vec<i64> = b.iter().chain(&a).copied().collect();
            let mut merged = distinct(&a);
            merged.merge(&distinct(&b));
            prop_assert_eq!(&merged, &distinct(&all));
            let exact = all.iter().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(merged.count(), (exact <= MOST_DISTINCT).then_some(exact));
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(&Distinct::decode(&mut rest).expect("own bytes"), &merged);
            prop_assert!(rest.is_empty() && Distinct::decode(&mut &bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn equal_values_of_any_type_are_one() {
        let mut set = Distinct::default();
        for value in [Value::Text("a"), Value::Text("b"), Value::Text("a"), Value::Float(0.0), Value::Float(-0.0)] {
            set.add(value);
        }
        set.add(Value::Float(f64::NAN));
        set.add(Value::Float(-f64::NAN));
        assert_eq!(set.count(), Some(4));
    }
}
