//! Quantiles to within 0.4 %: how many values lie in each of buckets whose widths grow with the values.
//!
//! A bucket is named by the upper 20 bits of a float in its order ([`order_of`]): sign, exponent and the first eight
//! bits of the fraction, 256 buckets from one power of two to the next, as in HDR histograms. A bucket is read as its
//! end nearer to zero, so integers below 512 are exact. Counts add up, so merging in any order gives the same bytes: the
//! number of buckets (4); for each in order its name (4, sign flipped) and its count (8).

use std::collections::BTreeMap;

use super::sorted::merge_sorted;
use super::{float_of, order_of};
use crate::Result;

/// The lower bits of a float that do not name its bucket.
const UNNAMED: u32 = 44;

/// The most buckets that are kept as a list, which is merged and copied quickly: those of values that lie within 32
/// powers of two, from a cent to tens of millions. A longer list would take too long to insert into.
const MOST_LISTED: usize = 8_192;

/// Counts of values in buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantiles {
    counts: Buckets,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Buckets {
    /// In order.
    Listed(Vec<(i32, u64)>),
    /// More than [`MOST_LISTED`].
    Mapped(BTreeMap<i32, u64>),
}

impl Default for Quantiles {
    fn default() -> Self {
        Self { counts: Buckets::Listed(Vec::new()) }
    }
}

impl Buckets {
    /// Each bucket with its count, in order.
    fn iter(&self) -> impl Iterator<Item = (i32, u64)> {
        let (listed, mapped) = match self {
            Self::Listed(listed) => (listed.as_slice(), None),
            Self::Mapped(mapped) => (&[][..], Some(mapped)),
        };
        let mapped = mapped.into_iter().flatten().map(|(bucket, count)| (*bucket, *count));
        listed.iter().copied().chain(mapped)
    }

    fn len(&self) -> usize {
        match self {
            Self::Listed(listed) => listed.len(),
            Self::Mapped(mapped) => mapped.len(),
        }
    }

    fn add(&mut self, bucket: i32, count: u64) {
        match self {
            Self::Listed(listed) => match listed.binary_search_by_key(&bucket, |(of, _)| *of) {
                Ok(place) => listed[place].1 += count,
                Err(place) => {
                    listed.insert(place, (bucket, count));
                    self.keep_short();
                }
            },
            Self::Mapped(mapped) => *mapped.entry(bucket).or_default() += count,
        }
    }

    /// Turns a list that is too long into a map.
    fn keep_short(&mut self) {
        if let Self::Listed(listed) = self
            && listed.len() > MOST_LISTED
        {
            *self = Self::Mapped(listed.drain(..).collect());
        }
    }

    fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Listed(ours), Self::Listed(theirs)) => {
                merge_sorted(ours, theirs, |one, new| one.0.cmp(&new.0), |held, new| held.1 += new.1);
                self.keep_short();
            }
            (Self::Listed(_), Self::Mapped(theirs)) => {
                let ours = std::mem::replace(self, Self::Mapped(theirs.clone()));
                ours.iter().for_each(|(bucket, count)| self.add(bucket, count));
            }
            (Self::Mapped(_), _) => other.iter().for_each(|(bucket, count)| self.add(bucket, count)),
        }
    }
}

fn bucket(value: f64) -> i32 {
    i32::try_from(order_of(value) >> UNNAMED).unwrap_or(i32::MAX)
}

/// The end of a bucket that is nearer to zero.
fn read(bucket: i32) -> f64 {
    let lowest = i64::from(bucket) << UNNAMED;
    if lowest == order_of(f64::NAN) >> UNNAMED << UNNAMED {
        return f64::NAN;
    }
    // Of negative values the order's highest is the nearest to zero.
    float_of(if bucket < 0 { lowest | ((1 << UNNAMED) - 1) } else { lowest })
}

impl Quantiles {
    /// Adds a value. NaN is above everything.
    pub fn add(&mut self, value: f64) {
        self.counts.add(bucket(value), 1);
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
    }

    /// The value at `millionths` of the way from the least (0) to the greatest (1,000,000), by rank, downwards; `None`
    /// for no value.
    pub fn at(&self, millionths: u32) -> Option<f64> {
        let count: u64 = self.counts.iter().map(|(_, count)| count).sum();
        let rank = u128::from(count.checked_sub(1)?) * u128::from(millionths) / 1_000_000;
        let mut passed = 0;
        let found = self.counts.iter().find(|(_, count)| {
            passed += u128::from(*count);
            passed > rank
        });
        found.map(|(bucket, _)| read(bucket))
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u32::try_from(self.counts.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (bucket, count) in self.counts.iter() {
            out.extend_from_slice(&(bucket.cast_unsigned() ^ 1 << 31).to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let buckets = u32::from_be_bytes(super::read_array(bytes)?);
        let one = |_| {
            let bucket = u32::from_be_bytes(super::read_array(bytes)?) ^ 1 << 31;
            let count = super::value::checked_count(u64::from_be_bytes(super::read_array(bytes)?))?;
            Ok((bucket.cast_signed(), count))
        };
        let mut counts = Buckets::Listed((0..buckets).map(one).collect::<Result<_>>()?);
        counts.keep_short();
        Ok(Self { counts })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantiles(values: &[f64]) -> Quantiles {
        let mut quantiles = Quantiles::default();
        for value in values {
            quantiles.add(*value);
        }
        quantiles
    }

    proptest! {
        #[test]
        fn the_laws_hold_and_ranks_are_exact(
            a in proptest::collection::vec(any::<f64>(), 0..20),
            b in proptest::collection::vec(prop_oneof![(-512_i32..512).prop_map(f64::from), any::<f64>()], 0..20),
            millionths in 0_u32..=1_000_000,
        ) {
            let mut all: Vec<f64> = b.iter().chain(&a).copied().collect();
            let mut merged = quantiles(&a);
            merged.merge(&quantiles(&b));
            prop_assert_eq!(&merged, &quantiles(&all));
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(&Quantiles::decode(&mut rest).expect("own bytes"), &merged);
            prop_assert!(rest.is_empty() && Quantiles::decode(&mut &bytes[..bytes.len() - 1]).is_err());
            all.sort_by_key(|value| order_of(*value));
            let rank = all.len().saturating_sub(1) * millionths as usize / 1_000_000;
            match (merged.at(millionths), all.get(rank)) {
                (Some(found), Some(exact)) => {
                    let near = (found - exact).abs() <= exact.abs() / 256.0 || found.abs() <= f64::MIN_POSITIVE && exact.abs() <= f64::MIN_POSITIVE;
                    prop_assert!(near || found.to_bits() == exact.to_bits() || found.is_nan() && exact.is_nan(), "{} for {}", found, exact);
                    prop_assert!(exact.fract() != 0.0 || exact.abs() >= 512.0 || found.to_bits() == (*exact + 0.0).to_bits(), "{} for {}", found, exact);
                }
                (found, exact) => prop_assert!(found.is_none() && exact.is_none()),
            }
        }
    }

    #[test]
    fn the_laws_hold_beyond_the_list() {
        let of = |from: u32, to: u32| {
            let mut quantiles = Quantiles::default();
            // One value a bucket: its upper 20 bits.
            (from..to).for_each(|name| quantiles.add(f64::from_bits(u64::from(name) << UNNAMED)));
            quantiles
        };
        let (short, long, other) = (of(500, 600), of(0, 9_000), of(8_500, 17_000));
        assert!(matches!((&short.counts, &long.counts), (Buckets::Listed(_), Buckets::Mapped(_))));
        for parts in [[&short, &long, &other], [&long, &short, &other], [&other, &long, &short]] {
            let mut merged = Quantiles::default();
            for part in parts {
                merged.merge(part);
            }
            let mut expected = of(0, 17_000);
            (500..600).chain(8_500..9_000).for_each(|name| expected.merge(&of(name, name + 1)));
            assert_eq!(merged, expected);
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            assert_eq!(Quantiles::decode(&mut bytes.as_slice()).expect("own bytes"), expected);
        }
    }
}
