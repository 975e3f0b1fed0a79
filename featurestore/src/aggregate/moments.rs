//! Count, mean and variance of floats: the count, the exact sum and the exact sum of squares.
//!
//! With `n` values, sum `S` and sum of squares `Q`, the population variance is `(n Q - S^2) / n^2` and the sample
//! variance `(n Q - S^2) / (n (n - 1))`. The numerator is exact, so nothing cancels, and each result is rounded once.

use num_bigint::BigUint;

use super::dyadic::{Dyadic, quotient_of, root_of_quotient};
use super::total::Total;
use crate::{Error, Result};

/// Over which number the squares' sum is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divisor {
    /// The number of values: the variance of a population. Null for no value.
    Population,
    /// One less: the estimate from a sample. Null for fewer than two values.
    Sample,
}

/// The first two moments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    count: u64,
    total: Total,
    squares: Total,
}

impl Moments {
    /// From their parts.
    pub(super) fn of(count: u64, total: Total, squares: Total) -> Self {
        Self { count, total, squares }
    }

    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.total.add(value);
        self.squares.add_square(value);
    }

    /// Adds other moments.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.total.merge(&other.total);
        self.squares.merge(&other.squares);
    }

    /// Takes away moments that were merged into these before.
    pub fn subtract(&mut self, other: &Self) {
        self.count = self.count.saturating_sub(other.count);
        self.total.subtract(&other.total);
        self.squares.subtract(&other.squares);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; `None` for no value.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.total.mean(self.count))
    }

    /// Their variance; NaN where a value is not finite.
    pub fn variance(&self, divisor: Divisor) -> Option<f64> {
        self.spread(divisor, quotient_of)
    }

    /// The root of their variance, rounded once.
    pub fn deviation(&self, divisor: Divisor) -> Option<f64> {
        self.spread(divisor, root_of_quotient)
    }

    fn spread(&self, divisor: Divisor, read: impl Fn(&BigUint, i32, &BigUint) -> f64) -> Option<f64> {
        let less = match divisor {
            Divisor::Population => Some(self.count),
            Divisor::Sample => self.count.checked_sub(1),
        };
        let less = less.filter(|less| *less > 0)?;
        if self.total.not_finite().is_some() {
            return Some(f64::NAN);
        }
        let (numerator, exponent) = Dyadic::spread(self.count, self.squares.finite(), self.total.finite());
        Some(read(&numerator, exponent, &(BigUint::from(self.count) * less)))
    }

    /// Appends their bytes; equal moments have equal bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_be_bytes());
        self.total.encode(out);
        self.squares.encode(out);
    }

    /// Reads their bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let cut = || Error::damaged("stored moments are cut off").remedy("refresh the view again");
        let (count, mut rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
        let read = Self {
            count: u64::from_be_bytes(*count),
            total: Total::decode(&mut rest)?,
            squares: Total::decode(&mut rest)?,
        };
        *bytes = rest;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moments(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        for value in values {
            moments.add(*value);
        }
        moments
    }

    #[test]
    fn small_deviations_of_large_values_are_not_lost() {
        // The textbook case: the mean square less the square of the mean cancels to nothing in plain floats.
        let far = moments(&[1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0, 1e9 + 16.0]);
        assert_eq!(far.variance(Divisor::Sample), Some(30.0));
        assert_eq!(far.variance(Divisor::Population), Some(22.5));
        assert_eq!(far.deviation(Divisor::Population), Some(22.5_f64.sqrt()));
        assert_eq!(far.mean(), Some(1e9 + 10.0));
        // Squares beyond the largest float are exact all the same.
        assert_eq!(moments(&[1e200, 1e200]).variance(Divisor::Population), Some(0.0));
    }

    #[test]
    fn what_has_no_variance_says_so() {
        assert_eq!(moments(&[]).mean(), None);
        assert_eq!(moments(&[]).variance(Divisor::Population), None);
        assert_eq!(moments(&[5.0]).variance(Divisor::Sample), None);
        assert_eq!(moments(&[5.0]).variance(Divisor::Population), Some(0.0));
        assert!(moments(&[1.0, f64::INFINITY]).variance(Divisor::Population).is_some_and(f64::is_nan));
    }

    proptest! {
        #[test]
        fn the_laws_hold(
            a in proptest::collection::vec(any::<f64>(), 0..6),
            b in proptest::collection::vec(-1000_i32..1000, 0..6),
        ) {
            let b: Vec<f64> = b.into_iter().map(|tenths| f64::from(tenths) / 10.0).collect();
            let all: Vec<f64> = b.iter().chain(&a).copied().collect();
            let (a, b, all) = (moments(&a), moments(&b), moments(&all));
            let mut left = a.clone();
            left.merge(&b);
            prop_assert_eq!(&left, &all);
            let mut right = b.clone();
            right.merge(&a);
            prop_assert_eq!(&right, &all);
            right.subtract(&b);
            prop_assert_eq!(&right, &a);
            let mut bytes = Vec::new();
            a.encode(&mut bytes);
            prop_assert_eq!(Moments::decode(&mut bytes.as_slice()).expect("own bytes"), a);
        }

        #[test]
        fn integers_have_the_variance_that_integers_say(values in proptest::collection::vec(-1000_i64..1000, 2..40)) {
            #[expect(clippy::cast_precision_loss, reason = "small integers")]
            let floats: Vec<f64> = values.iter().map(|value| *value as f64).collect();
            let (n, sum) = (values.len() as i128, i128::from(values.iter().sum::<i64>()));
            let squares: i128 = values.iter().map(|value| i128::from(value * value)).sum();
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let expected = (n * squares - sum * sum) as f64 / (n * (n - 1)) as f64;
            prop_assert_eq!(moments(&floats).variance(Divisor::Sample), Some(expected));
        }
    }
}
