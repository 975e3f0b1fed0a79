//! Variance and standard deviation from a count, an exact sum and an exact sum of squares.
//!
//! With `n` values, sum `S` and sum of squares `Q`, the population variance is `(n Q - S^2) / n^2` and the sample
//! variance `(n Q - S^2) / (n (n - 1))`. The numerator is exact, so nothing cancels, and each result is rounded once.

use num_bigint::BigUint;

use super::dyadic::{Dyadic, quotient_of, root_of_quotient};
use super::total::Total;

/// Over which number the squares' sum is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divisor {
    /// The number of values: the variance of a population. Null for no value.
    Population,
    /// One less: the estimate from a sample. Null for fewer than two values.
    Sample,
}

/// The variance; NaN where a value is not finite.
pub(super) fn variance(count: u64, total: &Total, squares: &Total, divisor: Divisor) -> Option<f64> {
    spread(count, total, squares, divisor, quotient_of)
}

/// The root of the variance, rounded once.
pub(super) fn deviation(count: u64, total: &Total, squares: &Total, divisor: Divisor) -> Option<f64> {
    spread(count, total, squares, divisor, root_of_quotient)
}

fn spread(
    count: u64,
    total: &Total,
    squares: &Total,
    divisor: Divisor,
    read: impl Fn(&BigUint, i32, &BigUint) -> f64,
) -> Option<f64> {
    let less = match divisor {
        Divisor::Population => Some(count),
        Divisor::Sample => count.checked_sub(1),
    };
    let less = less.filter(|less| *less > 0)?;
    if total.not_finite().is_some() {
        return Some(f64::NAN);
    }
    let (numerator, exponent) = Dyadic::spread(count, squares.finite(), total.finite());
    Some(read(&numerator, exponent, &(BigUint::from(count) * less)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Parts, Summary, Value};
    use super::*;
    use crate::encoding::RowHeader;
    use crate::time::Timestamp;

    fn summary(values: &[f64]) -> Summary {
        let mut summary = Summary::default();
        for value in values {
            let at = RowHeader::of_times(Timestamp::MIN, Timestamp::MIN);
            summary.add(at, Some(Value::Float(*value)), Parts::TOTAL.or(Parts::SQUARES));
        }
        summary
    }

    #[test]
    fn small_deviations_of_large_values_are_not_lost() {
        // The textbook case: the mean square less the square of the mean cancels to nothing in plain floats.
        let far = summary(&[1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0, 1e9 + 16.0]);
        assert_eq!(far.variance(Divisor::Sample), Some(30.0));
        assert_eq!(far.variance(Divisor::Population), Some(22.5));
        assert_eq!(far.deviation(Divisor::Population), Some(22.5_f64.sqrt()));
        assert_eq!(far.mean(), Some(1e9 + 10.0));
        // Squares beyond the largest float are exact all the same.
        assert_eq!(summary(&[1e200, 1e200]).variance(Divisor::Population), Some(0.0));
    }

    #[test]
    fn what_has_no_variance_says_so() {
        assert_eq!(summary(&[]).mean(), None);
        assert_eq!(summary(&[]).variance(Divisor::Population), None);
        assert_eq!(summary(&[5.0]).variance(Divisor::Sample), None);
        assert_eq!(summary(&[5.0]).variance(Divisor::Population), Some(0.0));
        assert!(summary(&[1.0, f64::INFINITY]).variance(Divisor::Population).is_some_and(f64::is_nan));
    }

    proptest! {
        #[test]
        fn integers_have_the_variance_that_integers_say(values in proptest::collection::vec(-1000_i64..1000, 2..40)) {
            #[expect(clippy::cast_precision_loss, reason = "small integers")]
            let floats: Vec<f64> = values.iter().map(|value| *value as f64).collect();
            let (n, sum) = (values.len() as i128, i128::from(values.iter().sum::<i64>()));
            let squares: i128 = values.iter().map(|value| i128::from(value * value)).sum();
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let expected = (n * squares - sum * sum) as f64 / (n * (n - 1)) as f64;
            prop_assert_eq!(summary(&floats).variance(Divisor::Sample), Some(expected));
        }
    }
}
