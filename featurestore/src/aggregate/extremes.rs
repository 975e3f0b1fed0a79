//! The least and the greatest of values, as integers in the values' own order.
//!
//! Integers, dates and times stand for themselves; a float is mapped to an integer that orders as it does, with NaN
//! above everything (as in DataFusion and PostgreSQL) and one zero. A part cannot be taken away again.
//!
//! Bytes: 0 for no value; else 1, then least and greatest, 8 bytes each, big-endian with the sign flipped.

use crate::encoding::{from_ordered, ordered};
use crate::{Error, Result};

/// The least and the greatest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extremes {
    ends: Option<(i64, i64)>,
}

/// An integer that orders as floats do.
pub fn order_of(value: f64) -> i64 {
    if value.is_nan() {
        return i64::MAX;
    }
    // Adding zero turns the negative zero into the positive one.
    let bits = (value + 0.0).to_bits().cast_signed();
    if bits < 0 { bits ^ i64::MAX } else { bits }
}

/// The float of such an integer.
pub fn float_of(order: i64) -> f64 {
    if order == i64::MAX {
        return f64::NAN;
    }
    let bits = if order < 0 { order ^ i64::MAX } else { order };
    f64::from_bits(bits.cast_unsigned())
}

impl Extremes {
    /// Adds a value.
    pub fn add(&mut self, value: i64) {
        self.merge(&Self { ends: Some((value, value)) });
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.ends = match (self.ends, other.ends) {
            (Some(ours), Some(theirs)) => Some((ours.0.min(theirs.0), ours.1.max(theirs.1))),
            (ours, theirs) => ours.or(theirs),
        };
    }

    /// The least; `None` for no value.
    pub fn least(&self) -> Option<i64> {
        self.ends.map(|ends| ends.0)
    }

    /// The greatest; `None` for no value.
    pub fn greatest(&self) -> Option<i64> {
        self.ends.map(|ends| ends.1)
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.ends.is_some()));
        if let Some((least, greatest)) = self.ends {
            out.extend_from_slice(&ordered(least));
            out.extend_from_slice(&ordered(greatest));
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let cut = || Error::damaged("stored extremes are cut off").remedy("refresh the view again");
        let (flag, mut rest) = bytes.split_first().ok_or_else(cut)?;
        let mut number = || {
            let (head, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            Some(from_ordered(*head))
        };
        let ends = match flag {
            0 => None,
            _ => Some((number().ok_or_else(cut)?, number().ok_or_else(cut)?)),
        };
        *bytes = rest;
        Ok(Self { ends })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extremes(values: &[i64]) -> Extremes {
        let mut extremes = Extremes::default();
        for value in values {
            extremes.add(*value);
        }
        extremes
    }

    proptest! {
        #[test]
        fn the_laws_hold(
            a in proptest::collection::vec(any::<i64>(), 0..5),
            b in proptest::collection::vec(any::<i64>(), 0..5),
        ) {
            let all: Vec<i64> = b.iter().chain(&a).copied().collect();
            let mut left = extremes(&a);
            left.merge(&extremes(&b));
            prop_assert_eq!(left, extremes(&all));
            prop_assert_eq!((left.least(), left.greatest()), (all.iter().min().copied(), all.iter().max().copied()));
            let mut bytes = Vec::new();
            left.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Extremes::decode(&mut rest).expect("own bytes"), left);
            prop_assert!(rest.is_empty() && Extremes::decode(&mut &bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn floats_order_as_their_integers_do(a in any::<f64>(), b in any::<f64>()) {
            if let Some(order) = a.partial_cmp(&b) {
                prop_assert_eq!(order_of(a).cmp(&order_of(b)), order);
                prop_assert_eq!(float_of(order_of(a)).to_bits(), (a + 0.0).to_bits());
            }
        }
    }

    #[test]
    fn nan_is_above_everything_and_there_is_one_zero() {
        assert!(order_of(f64::NAN) > order_of(f64::INFINITY) && float_of(order_of(f64::NAN)).is_nan());
        assert_eq!(order_of(-0.0), order_of(0.0));
    }
}
