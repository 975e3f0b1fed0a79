//! The exact total of floats, with those that are no numbers counted apart.
//!
//! Read, it is what an infinitely precise sum would be, rounded once: NaN if a NaN or both infinities were added, an
//! infinity if one was, else the nearest float. Zero is positive.
//!
//! Bytes: a byte of flags (bit 0: counts of NaN and the infinities follow, 8 bytes big-endian each), then the sum.

use super::Dyadic;
use super::dyadic::parts;
use super::value::checked_count;
use crate::{Error, Result};

/// An exact total.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Total {
    finite: Dyadic,
    /// How many NaN, positive and negative infinities.
    special: [u64; 3],
}

impl Total {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        match special_index(value) {
            Some(index) => self.special[index] += 1,
            None => {
                let (integer, exponent) = parts(value);
                self.finite.add(i128::from(integer), exponent);
            }
        }
    }

    /// Adds a value's square.
    pub(super) fn add_square(&mut self, value: f64) {
        match special_index(value) {
            Some(0) => self.special[0] += 1,
            Some(_) => self.special[1] += 1,
            // The square of a large value is no infinity here.
            None => {
                let (integer, exponent) = parts(value);
                self.finite.add(i128::from(integer) * i128::from(integer), 2 * exponent);
            }
        }
    }

    /// Adds an integer.
    pub fn add_integer(&mut self, value: i128) {
        self.finite.add(value, 0);
    }

    /// Adds an integer's square.
    pub(super) fn add_integer_square(&mut self, value: u64) {
        // Above 2^127 a square leaves 128 signed bits: it is added in two halves.
        let square = u128::from(value) * u128::from(value);
        for half in [square >> 64, square & u128::from(u64::MAX)].into_iter().zip([64, 0]) {
            self.finite.add(i128::try_from(half.0).unwrap_or(i128::MAX), half.1);
        }
    }

    /// The total, where it is an integer of 128 bits.
    pub fn integer(&self) -> Option<i128> {
        self.finite.integer().filter(|_| self.special == [0; 3])
    }

    /// Adds another total.
    pub fn merge(&mut self, other: &Self) {
        self.finite.merge(&other.finite);
        self.special.iter_mut().zip(other.special).for_each(|(held, more)| *held += more);
    }

    /// Takes away a total that was merged into this one before.
    pub fn subtract(&mut self, other: &Self) {
        self.finite.subtract(&other.finite);
        self.special.iter_mut().zip(other.special).for_each(|(held, less)| *held = held.saturating_sub(less));
    }

    /// The total, rounded once.
    pub fn sum(&self) -> f64 {
        self.not_finite().unwrap_or_else(|| self.finite.to_f64())
    }

    /// The total over a count of values, rounded once.
    pub fn mean(&self, count: u64) -> f64 {
        self.not_finite().unwrap_or_else(|| self.finite.quotient(count))
    }

    pub(super) fn finite(&self) -> &Dyadic {
        &self.finite
    }

    pub(super) fn not_finite(&self) -> Option<f64> {
        match self.special.map(|count| count > 0) {
            [false, false, false] => None,
            [false, true, false] => Some(f64::INFINITY),
            [false, false, true] => Some(f64::NEG_INFINITY),
            _ => Some(f64::NAN),
        }
    }

    /// Appends its bytes; equal totals have equal bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let any = self.special != [0; 3];
        out.push(u8::from(any));
        if any {
            self.special.iter().for_each(|count| out.extend_from_slice(&count.to_be_bytes()));
        }
        self.finite.encode(out);
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let mut read = Self::default();
        read.merge_encoded(bytes)?;
        Ok(read)
    }

    /// Adds a total as it is stored, and moves past its bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn merge_encoded(&mut self, bytes: &mut &[u8]) -> Result<()> {
        let cut = || Error::damaged("a stored total is cut off").remedy("refresh the view again");
        let (flags, mut rest) = bytes.split_first().ok_or_else(cut)?;
        if flags & 1 == 1 {
            for count in &mut self.special {
                let (head, tail) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
                *count += checked_count(u64::from_be_bytes(*head))?;
                rest = tail;
            }
        }
        *bytes = rest;
        self.finite.merge_encoded(bytes)
    }
}

fn special_index(value: f64) -> Option<usize> {
    if value.is_nan() {
        Some(0)
    } else if value.is_infinite() {
        Some(if value > 0.0 { 1 } else { 2 })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn total(values: &[f64]) -> Total {
        let mut total = Total::default();
        for value in values {
            total.add(*value);
        }
        total
    }

    #[test]
    fn a_cancelled_sum_is_exact_where_a_plain_one_is_not() {
        let values = [1e100, 1.0, -1e100, 1e-30];
        assert_eq!(total(&values).sum().to_bits(), 1.0_f64.to_bits());
        let tenths = vec![0.1; 10];
        assert_eq!(total(&tenths).sum().to_bits(), 1.0_f64.to_bits());
    }

    #[test]
    fn what_is_no_number_decides_and_can_be_taken_away() {
        let plain = total(&[1.0, 2.0]);
        for (odd, expected) in [
            (vec![f64::INFINITY], f64::INFINITY),
            (vec![f64::NEG_INFINITY], f64::NEG_INFINITY),
            (vec![f64::INFINITY, f64::NEG_INFINITY], f64::NAN),
            (vec![f64::NAN, f64::INFINITY], f64::NAN),
        ] {
            let odd = total(&odd);
            let mut all = plain.clone();
            all.merge(&odd);
            assert_eq!((all.sum().is_nan(), all.sum() > 0.0), (expected.is_nan(), expected > 0.0));
            all.subtract(&odd);
            assert_eq!(all, plain);
        }
        assert_eq!(total(&[-0.0]).sum().to_bits(), 0.0_f64.to_bits());
    }

    proptest! {
        #[test]
        fn the_laws_hold(
            a in proptest::collection::vec(any::<f64>(), 0..6),
            b in proptest::collection::vec(any::<f64>(), 0..6),
            c in proptest::collection::vec(any::<f64>(), 0..6),
        ) {
            let merged = |left: &Total, right: &Total| {
                let mut sum = left.clone();
                sum.merge(right);
                sum
            };
            let (a, b, c) = (total(&a), total(&b), total(&c));
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(&merged(&a, &Total::default()), &a);
            let mut bytes = Vec::new();
            a.encode(&mut bytes);
            prop_assert_eq!(Total::decode(&mut bytes.as_slice()).expect("own bytes"), a);
        }
    }
}
