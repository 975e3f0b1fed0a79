//! Against integers of any length: a float is some multiple of 2^-1074.

use proptest::prelude::*;

use super::*;

/// Any finite float: of any exponent, and often of the kind that people have.
fn finite() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("finite", |value| value.is_finite()),
        (-1_000_000_i32..1_000_000).prop_map(|cents| f64::from(cents) / 100.0),
        (-100_i32..100).prop_map(f64::from),
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
        Just(f64::from_bits(1)),
    ]
}

/// The value in units of 2^-1074.
fn units(value: f64) -> BigInt {
    let (integer, exponent) = parts(value);
    if integer == 0 { BigInt::ZERO } else { BigInt::from(integer) << shift(exponent, -1074) }
}

fn sum_of(values: &[f64]) -> Dyadic {
    let mut sum = Dyadic::default();
    for value in values {
        let (integer, exponent) = parts(*value);
        sum.add(i128::from(integer), exponent);
    }
    sum
}

/// Whether no float is nearer to `exact / divisor` units than `float`, and an even one was taken of two as near.
fn is_nearest(float: f64, exact: &BigInt, divisor: u64) -> bool {
    let limit = (BigInt::from(1) << 2098_u32) - (BigInt::from(1) << 2044_u32);
    if float.is_infinite() {
        return exact.magnitude() >= (limit * divisor).magnitude();
    }
    let distance = |other: f64| (units(other) * divisor - exact).magnitude().clone();
    let own = distance(float);
    let odd = float.to_bits() & 1 == 1;
    [float.next_up(), float.next_down()].into_iter().filter(|other| other.is_finite()).all(|other| {
        let theirs = distance(other);
        own < theirs || own == theirs && !odd
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_float_is_its_parts(value in finite()) {
        prop_assert_eq!(sum_of(&[value]).to_f64().to_bits(), (value + 0.0).to_bits());
    }

    #[test]
    fn a_sum_and_a_mean_are_rounded_once(values in proptest::collection::vec(finite(), 1..12)) {
        let exact: BigInt = values.iter().map(|value| units(*value)).sum();
        let sum = sum_of(&values);
        prop_assert!(is_nearest(sum.to_f64(), &exact, 1), "{}", sum.to_f64());
        let count = values.len() as u64;
        prop_assert!(is_nearest(sum.quotient(count), &exact, count), "{}", sum.quotient(count));
    }

    #[test]
    fn the_order_of_adding_and_of_merging_does_not_matter(
        values in proptest::collection::vec(finite(), 0..12),
        cut in 0_usize..12,
    ) {
        let cut = cut.min(values.len());
        let reversed: Vec<f64> = values.iter().rev().copied().collect();
        let (mut left, right) = (sum_of(&values[..cut]), sum_of(&values[cut..]));
        let mut other = right.clone();
        other.merge(&left);
        left.merge(&right);
        prop_assert_eq!(&left, &sum_of(&reversed));
        prop_assert_eq!(&left, &other);
        left.subtract(&right);
        prop_assert_eq!(&left, &sum_of(&values[..cut]));
    }

    #[test]
    fn what_is_encoded_reads_back_with_the_same_bytes(values in proptest::collection::vec(finite(), 0..8)) {
        let sum = sum_of(&values);
        let mut bytes = Vec::new();
        sum.encode(&mut bytes);
        let mut rest = bytes.as_slice();
        let read = Dyadic::decode(&mut rest).expect("own bytes");
        let mut again = Vec::new();
        read.encode(&mut again);
        prop_assert!(rest.is_empty());
        prop_assert_eq!(again, bytes);
        prop_assert_eq!(read, sum);
    }

    #[test]
    fn a_root_is_rounded_once(value in 0_u64.., divisor in 1_u64.., exponent in -300_i32..300) {
        let root = root_of_quotient(&BigUint::from(value), exponent, &BigUint::from(divisor));
        // The root's neighbours half way: root^2 lies between their squares, as exact fractions.
        if value > 0 {
            let (integer, low) = parts(root);
            // Half a unit in the last place, in units of 2^(scale).
            let ulp = parts(root.next_up() - root).1 - 1;
            let scale = ulp.min(low);
            let middle = BigInt::from(integer) << shift(low, scale);
            let half = BigInt::from(1) << shift(ulp, scale);
            let target = |side: BigInt| {
                // Compares side^2 * divisor * 2^(2 scale) with value * 2^exponent.
                let squared = &side * &side * divisor;
                let least = (2 * scale).min(exponent);
                (squared << shift(2 * scale, least)).cmp(&(BigInt::from(value) << shift(exponent, least)))
            };
            prop_assert!(target(&middle - &half).is_le(), "too high: {root}");
            prop_assert!(target(&middle + &half).is_ge(), "too low: {root}");
        }
    }
}

#[test]
fn cut_bytes_are_damage() {
    let mut bytes = Vec::new();
    sum_of(&[1.5, 1e300]).encode(&mut bytes);
    for end in 0..bytes.len() {
        let error = Dyadic::decode(&mut &bytes[..end]).expect_err("cut off");
        assert_eq!(error.kind(), crate::ErrorKind::Damaged);
    }
}
