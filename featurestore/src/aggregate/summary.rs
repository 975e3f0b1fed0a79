//! The summary of an aggregate's argument: as much of count, sum, sum of squares, least and greatest as the aggregates
//! over it need.
//!
//! Bytes: the count (a varint), then the parts that the layout names, in the order of [`Parts`].

use serde::{Deserialize, Serialize};

use super::variance::{deviation, variance};
use super::{Divisor, Extremes, Total, order_of};
use crate::{Error, Result};

/// What a summary holds beside the count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Parts {
    /// The sum.
    pub total: bool,
    /// The sum of squares; there is then a sum too.
    pub squares: bool,
    /// The least and the greatest.
    pub extremes: bool,
}

impl Parts {
    /// As a byte.
    pub fn bits(self) -> u8 {
        u8::from(self.total) | u8::from(self.squares) << 1 | u8::from(self.extremes) << 2
    }

    /// From a byte.
    pub fn of_bits(bits: u8) -> Self {
        Self { total: bits & 1 != 0, squares: bits & 2 != 0, extremes: bits & 4 != 0 }
    }

    /// What either holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::of_bits(self.bits() | other.bits())
    }
}

/// A value of an argument that is not null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A signed integer.
    Signed(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// A float.
    Float(f64),
    /// A date or a time: it has an order, but no sum.
    Moment(i64),
    /// Something that is only counted.
    Present,
}

impl Value {
    /// An integer that orders as values of its kind do.
    fn order(self) -> i64 {
        match self {
            Self::Signed(value) | Self::Moment(value) => value,
            Self::Unsigned(value) => (value ^ 1 << 63).cast_signed(),
            Self::Float(value) => order_of(value),
            Self::Present => 0,
        }
    }
}

/// A summary of values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    count: u64,
    total: Total,
    squares: Total,
    extremes: Extremes,
}

impl Summary {
    /// Adds a value.
    pub fn add(&mut self, value: Value, parts: Parts) {
        self.count += 1;
        if parts.total {
            match value {
                Value::Signed(value) => self.total.add_integer(i128::from(value)),
                Value::Unsigned(value) => self.total.add_integer(i128::from(value)),
                Value::Float(value) => self.total.add(value),
                Value::Moment(_) | Value::Present => {}
            }
        }
        if parts.squares {
            match value {
                Value::Signed(value) => self.squares.add_integer(i128::from(value) * i128::from(value)),
                Value::Unsigned(value) => self.squares.add_integer_square(value),
                Value::Float(value) => self.squares.add_square(value),
                Value::Moment(_) | Value::Present => {}
            }
        }
        if parts.extremes {
            self.extremes.add(value.order());
        }
    }

    /// Adds another summary.
    pub fn merge(&mut self, other: &Self, parts: Parts) {
        self.count += other.count;
        if parts.total {
            self.total.merge(&other.total);
        }
        if parts.squares {
            self.squares.merge(&other.squares);
        }
        if parts.extremes {
            self.extremes.merge(&other.extremes);
        }
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their exact sum.
    pub fn total(&self) -> &Total {
        &self.total
    }

    /// Their mean, rounded once; `None` for no value.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.total.mean(self.count))
    }

    /// Their variance, rounded once.
    pub fn variance(&self, divisor: Divisor) -> Option<f64> {
        variance(self.count, &self.total, &self.squares, divisor)
    }

    /// Their standard deviation, rounded once.
    pub fn deviation(&self, divisor: Divisor) -> Option<f64> {
        deviation(self.count, &self.total, &self.squares, divisor)
    }

    /// The least and the greatest, as integers in their order.
    pub fn extremes(&self) -> Extremes {
        self.extremes
    }

    /// Appends its bytes; equal summaries have equal bytes.
    pub fn encode(&self, parts: Parts, out: &mut Vec<u8>) {
        let mut count = self.count;
        while count >= 0x80 {
            out.push(count.to_le_bytes()[0] | 0x80);
            count >>= 7;
        }
        out.push(count.to_le_bytes()[0]);
        if parts.total {
            self.total.encode(out);
        }
        if parts.squares {
            self.squares.encode(out);
        }
        if parts.extremes {
            self.extremes.encode(out);
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(parts: Parts, bytes: &mut &[u8]) -> Result<Self> {
        let mut read = Self::default();
        read.merge_encoded(parts, bytes)?;
        Ok(read)
    }

    /// Adds a summary as it is stored, without making one of it, and moves past its bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn merge_encoded(&mut self, parts: Parts, bytes: &mut &[u8]) -> Result<()> {
        self.count += read_count(bytes)?;
        if parts.total {
            self.total.merge_encoded(bytes)?;
        }
        if parts.squares {
            self.squares.merge_encoded(bytes)?;
        }
        if parts.extremes {
            self.extremes.merge(&Extremes::decode(bytes)?);
        }
        Ok(())
    }
}

fn read_count(bytes: &mut &[u8]) -> Result<u64> {
    let (mut count, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes
            .split_first()
            .filter(|_| shift < 64)
            .ok_or_else(|| Error::damaged("a stored summary is cut off").remedy("refresh the view again"))?;
        *bytes = rest;
        count |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Vec<Value>> {
        let value = prop_oneof![
            any::<i64>().prop_map(Value::Signed),
            any::<u64>().prop_map(Value::Unsigned),
            any::<f64>().prop_map(Value::Float),
            any::<i64>().prop_map(Value::Moment),
            Just(Value::Present),
        ];
        proptest::collection::vec(value, 0..6)
    }

    fn summary(values: &[Value], parts: Parts) -> Summary {
        let mut summary = Summary::default();
        for value in values {
            summary.add(*value, parts);
        }
        summary
    }

    proptest! {
        #[test]
        fn the_laws_hold(a in values(), b in values(), c in values(), bits in 0_u8..8) {
            let parts = Parts::of_bits(bits);
            prop_assert_eq!(parts.bits(), bits);
            let all: Vec<Value> = c.iter().chain(&a).chain(&b).copied().collect();
            let (a, b, c) = (summary(&a, parts), summary(&b, parts), summary(&c, parts));
            let mut left = a.clone();
            left.merge(&b, parts);
            left.merge(&c, parts);
            let mut right = b;
            right.merge(&c, parts);
            right.merge(&Summary::default(), parts);
            right.merge(&a, parts);
            prop_assert_eq!(&left, &right);
            prop_assert_eq!(&left, &summary(&all, parts));
            let (mut bytes, mut again) = (Vec::new(), Vec::new());
            left.encode(parts, &mut bytes);
            right.encode(parts, &mut again);
            prop_assert_eq!(&bytes, &again);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Summary::decode(parts, &mut rest).expect("own bytes"), left);
            prop_assert!(rest.is_empty() && Summary::decode(parts, &mut &bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn integers_are_summed_exactly(values in proptest::collection::vec(any::<i64>(), 0..20)) {
            let parts = Parts { total: true, ..Parts::default() };
            let signed: Vec<Value> = values.iter().copied().map(Value::Signed).collect();
            let expected: i128 = values.iter().copied().map(i128::from).sum();
            prop_assert_eq!(summary(&signed, parts).total().integer(), Some(expected));
        }
    }
}
