//! The summary of an aggregate's argument: its count, and as many parts as the aggregates over it need.
//!
//! Bytes: the count (a varint), then the parts that the layout names, in the order of [`Parts`]; before those from the
//! ends on, 0 where all of them are empty and they are left out, else 1.

use super::value::{checked_count, read_varint, write_varint};
use super::variance::{deviation, variance};
use super::{
    Distinct, Divisor, Ends, Extremes, Held, HyperLogLog, LastValues, Quantiles, TopValues, Total, Value, read_array,
};
use crate::Result;
use crate::encoding::RowHeader;

/// What a summary holds beside the count: a set of parts, and how many last values are kept, as a power of two in the
/// upper five bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Parts(u16);

impl Parts {
    /// The sum.
    pub const TOTAL: Self = Self(1);
    /// The sum of squares; there is then a sum too.
    pub const SQUARES: Self = Self(1 << 1);
    /// The least and the greatest.
    pub const EXTREMES: Self = Self(1 << 2);
    /// The first and the last value that is not null.
    pub const ENDS: Self = Self(1 << 3);
    /// The first and the last value, null or not.
    pub const ROW_ENDS: Self = Self(1 << 4);
    /// The distinct values.
    pub const DISTINCT: Self = Self(1 << 5);
    /// A sketch of the distinct values.
    pub const HYPER_LOG_LOG: Self = Self(1 << 6);
    /// The quantiles.
    pub const QUANTILES: Self = Self(1 << 7);

    /// The values that occur most often.
    pub const TOP: Self = Self(1 << 8);
    /// The last values that are not null; see [`Self::keeping`].
    pub const LAST: Self = Self(1 << 9);
    /// The last values, null or not.
    pub const ROW_LAST: Self = Self(1 << 10);

    const SETS: u32 = 11;
    const ALL: u16 = (1 << Self::SETS) - 1;
    /// What goes by the order of events.
    const ORDERED: Self = Self(Self::ENDS.0 | Self::ROW_ENDS.0 | Self::LAST.0 | Self::ROW_LAST.0);
    /// What cannot be taken away again.
    pub(super) const DETAIL: Self = Self(Self::ALL & !7);

    /// As two bytes.
    pub fn to_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }

    /// From two bytes.
    pub fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_be_bytes(bytes))
    }

    /// What either holds, and as many last values as the one that keeps more.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let kept = (self.0 >> Self::SETS).max(other.0 >> Self::SETS);
        Self((self.0 | other.0) & Self::ALL | kept << Self::SETS)
    }

    /// The same, with at least so many last values.
    #[must_use]
    pub fn keeping(self, most: u16) -> Self {
        let power = u16::try_from(most.max(1).next_power_of_two().trailing_zeros()).unwrap_or(u16::MAX);
        self.or(Self(power << Self::SETS))
    }

    /// How many last values are kept.
    fn kept(self) -> usize {
        1 << (self.0 >> Self::SETS)
    }

    /// Whether it counts when an event was written.
    pub fn keep_order(self) -> bool {
        self.any(Self::ORDERED)
    }

    /// Whether some of these are among them.
    pub fn any(self, of: Self) -> bool {
        self.0 & of.0 & Self::ALL != 0
    }
}

/// A summary of values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    count: u64,
    total: Total,
    squares: Total,
    extremes: Extremes,
    /// What few aggregates need; none while it would be empty.
    detail: Option<Box<Detail>>,
}

/// The larger parts of a summary.
#[derive(Debug, Clone, Default, PartialEq)]
struct Detail {
    ends: Ends,
    row_ends: Ends,
    distinct: Distinct,
    sketch: HyperLogLog,
    quantiles: Quantiles,
    top: TopValues,
    last: LastValues,
    row_last: LastValues,
}

impl Summary {
    /// Adds a value, or a null, of an event that happened, was known and was written then.
    pub fn add(&mut self, at: RowHeader, value: Option<Value<'_>>, parts: Parts) {
        if parts.any(Parts::ROW_ENDS) {
            self.detail.get_or_insert_default().row_ends.add(at, value);
        }
        if parts.any(Parts::ROW_LAST) {
            self.detail.get_or_insert_default().row_last.add(at, value, parts.kept());
        }
        let Some(value) = value else { return };
        self.count += 1;
        if parts.any(Parts::TOTAL) {
            match value {
                Value::Signed(value) => self.total.add_integer(i128::from(value)),
                Value::Unsigned(value) => self.total.add_integer(i128::from(value)),
                Value::Float(value) => self.total.add(value),
                Value::Moment(_) | Value::Boolean(_) | Value::Text(_) | Value::Present => {}
            }
        }
        if parts.any(Parts::SQUARES) {
            match value {
                Value::Signed(value) => self.squares.add_integer(i128::from(value) * i128::from(value)),
                Value::Unsigned(value) => self.squares.add_integer_square(value),
                Value::Float(value) => self.squares.add_square(value),
                Value::Moment(_) | Value::Boolean(_) | Value::Text(_) | Value::Present => {}
            }
        }
        if parts.any(Parts::EXTREMES) {
            self.extremes.add(value.order());
        }
        if parts.any(Parts::DETAIL) {
            self.detail.get_or_insert_default().add(at, value, parts);
        }
    }

    /// Adds another summary.
    pub fn merge(&mut self, other: &Self, parts: Parts) {
        self.merge_sums(other, parts);
        if parts.any(Parts::EXTREMES) {
            self.extremes.merge(&other.extremes);
        }
        if let Some(other) = &other.detail {
            self.detail.get_or_insert_default().merge(other, parts);
        }
    }

    /// Adds what can be taken away again of another summary: its count and its sums.
    pub(super) fn merge_sums(&mut self, other: &Self, parts: Parts) {
        self.count += other.count;
        if parts.any(Parts::TOTAL) {
            self.total.merge(&other.total);
        }
        if parts.any(Parts::SQUARES) {
            self.squares.merge(&other.squares);
        }
    }

    /// Takes away the count and the sums of a summary that were added before.
    pub(super) fn subtract(&mut self, other: &Self, parts: Parts) {
        self.count = self.count.saturating_sub(other.count);
        if parts.any(Parts::TOTAL) {
            self.total.subtract(&other.total);
        }
        if parts.any(Parts::SQUARES) {
            self.squares.subtract(&other.squares);
        }
    }

    /// Says what the least and the greatest are.
    pub(super) fn set_extremes(&mut self, extremes: Extremes) {
        self.extremes = extremes;
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

    /// The first value that is not null.
    pub fn first(&self) -> Option<&Held> {
        self.detail.as_ref()?.ends.first()
    }

    /// The last value that is not null.
    pub fn last(&self) -> Option<&Held> {
        self.detail.as_ref()?.ends.last()
    }

    /// The first event's value; `None` when it is null.
    pub fn first_of_rows(&self) -> Option<&Held> {
        self.detail.as_ref()?.row_ends.first()
    }

    /// The last event's value; `None` when it is null.
    pub fn last_of_rows(&self) -> Option<&Held> {
        self.detail.as_ref()?.row_ends.last()
    }

    /// The last values that are not null, the oldest first; `None` where there are none.
    pub fn last_values(&self, most: u16) -> Option<impl ExactSizeIterator<Item = Option<&Held>>> {
        Some(self.detail.as_ref()?.last.last(usize::from(most))).filter(|values| values.len() > 0)
    }

    /// The values of the last events, the oldest first; `None` where there are no events.
    pub fn last_values_of_rows(&self, most: u16) -> Option<impl ExactSizeIterator<Item = Option<&Held>>> {
        Some(self.detail.as_ref()?.row_last.last(usize::from(most))).filter(|values| values.len() > 0)
    }

    /// The values that occur most often, as integers in their order or as texts; `None` where there are none.
    pub fn top(&self, most: u16) -> Option<Vec<&Held>> {
        Some(self.detail.as_ref()?.top.top(usize::from(most))).filter(|values| !values.is_empty())
    }

    /// How many distinct values there are; `None` beyond [`super::MOST_DISTINCT`].
    pub fn distinct(&self) -> Option<usize> {
        self.detail.as_ref().map_or(Some(0), |detail| detail.distinct.count())
    }

    /// About how many distinct values there are.
    pub fn about_distinct(&self) -> u64 {
        self.detail.as_ref().map_or(0, |detail| detail.sketch.estimate())
    }

    /// The value so many millionths of the way from the least to the greatest.
    pub fn quantile(&self, millionths: u32) -> Option<f64> {
        self.detail.as_ref()?.quantiles.at(millionths)
    }

    /// Appends its bytes; equal summaries have equal bytes.
    pub fn encode(&self, parts: Parts, out: &mut Vec<u8>) {
        write_varint(self.count, out);
        if parts.any(Parts::TOTAL) {
            self.total.encode(out);
        }
        if parts.any(Parts::SQUARES) {
            self.squares.encode(out);
        }
        if parts.any(Parts::EXTREMES) {
            self.extremes.encode(out);
        }
        if parts.any(Parts::DETAIL) {
            out.push(u8::from(self.detail.is_some()));
            if let Some(detail) = &self.detail {
                detail.encode(parts, out);
            }
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
        self.count += checked_count(read_varint(bytes)?)?;
        if parts.any(Parts::TOTAL) {
            self.total.merge_encoded(bytes)?;
        }
        if parts.any(Parts::SQUARES) {
            self.squares.merge_encoded(bytes)?;
        }
        if parts.any(Parts::EXTREMES) {
            self.extremes.merge(&Extremes::decode(bytes)?);
        }
        if parts.any(Parts::DETAIL) && read_array::<1>(bytes)? != [0] {
            let detail = Detail::decode(parts, bytes)?;
            match &mut self.detail {
                Some(held) => held.merge(&detail, parts),
                None => self.detail = Some(Box::new(detail)),
            }
        }
        Ok(())
    }
}

impl Detail {
    /// Adds a value that is not null.
    fn add(&mut self, at: RowHeader, value: Value<'_>, parts: Parts) {
        if parts.any(Parts::ENDS) {
            self.ends.add(at, Some(value));
        }
        if parts.any(Parts::DISTINCT) {
            self.distinct.add(value);
        }
        if parts.any(Parts::HYPER_LOG_LOG) {
            self.sketch.add(value);
        }
        if parts.any(Parts::QUANTILES) {
            self.quantiles.add(value.float());
        }
        if parts.any(Parts::TOP) {
            self.top.add(at.event_time, at.available_time, value);
        }
        if parts.any(Parts::LAST) {
            self.last.add(at, Some(value), parts.kept());
        }
    }

    fn merge(&mut self, other: &Self, parts: Parts) {
        self.ends.merge(&other.ends);
        self.row_ends.merge(&other.row_ends);
        self.distinct.merge(&other.distinct);
        self.sketch.merge(&other.sketch);
        self.quantiles.merge(&other.quantiles);
        self.top.merge(&other.top);
        self.last.merge(&other.last, parts.kept());
        self.row_last.merge(&other.row_last, parts.kept());
    }

    fn encode(&self, parts: Parts, out: &mut Vec<u8>) {
        if parts.any(Parts::ENDS) {
            self.ends.encode(out);
        }
        if parts.any(Parts::ROW_ENDS) {
            self.row_ends.encode(out);
        }
        if parts.any(Parts::DISTINCT) {
            self.distinct.encode(out);
        }
        if parts.any(Parts::HYPER_LOG_LOG) {
            self.sketch.encode(out);
        }
        if parts.any(Parts::QUANTILES) {
            self.quantiles.encode(out);
        }
        if parts.any(Parts::TOP) {
            self.top.encode(out);
        }
        if parts.any(Parts::LAST) {
            self.last.encode(out);
        }
        if parts.any(Parts::ROW_LAST) {
            self.row_last.encode(out);
        }
    }

    fn decode(parts: Parts, bytes: &mut &[u8]) -> Result<Self> {
        let mut read = Self::default();
        if parts.any(Parts::ENDS) {
            read.ends = Ends::decode(bytes)?;
        }
        if parts.any(Parts::ROW_ENDS) {
            read.row_ends = Ends::decode(bytes)?;
        }
        if parts.any(Parts::DISTINCT) {
            read.distinct = Distinct::decode(bytes)?;
        }
        if parts.any(Parts::HYPER_LOG_LOG) {
            read.sketch = HyperLogLog::decode(bytes)?;
        }
        if parts.any(Parts::QUANTILES) {
            read.quantiles = Quantiles::decode(bytes)?;
        }
        if parts.any(Parts::TOP) {
            read.top = TopValues::decode(bytes)?;
        }
        if parts.any(Parts::LAST) {
            read.last = LastValues::decode(bytes)?;
        }
        if parts.any(Parts::ROW_LAST) {
            read.row_last = LastValues::decode(bytes)?;
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encoding::WriteOrder;
    use crate::time::Timestamp;

    /// The second in which it happened and was known, the push that brought it, and its value.
    type Event = (i64, i64, Option<Owned>);

    #[derive(Debug, Clone)]
    enum Owned {
        Signed(i64),
        Unsigned(u64),
        Float(f64),
        Moment(i64),
        Boolean(bool),
        Text(String),
        Present,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let value = prop_oneof![
            any::<i64>().prop_map(Owned::Signed),
            any::<u64>().prop_map(Owned::Unsigned),
            any::<f64>().prop_map(Owned::Float),
            any::<i64>().prop_map(Owned::Moment),
            any::<bool>().prop_map(Owned::Boolean),
            "[ab]{0,3}".prop_map(Owned::Text),
            Just(Owned::Present),
        ];
        proptest::collection::vec((0_i64..5, 0_i64..3, proptest::option::of(value)), 0..6)
    }

    fn summary(events: &[Event], parts: Parts) -> Summary {
        let mut summary = Summary::default();
        for (second, position, value) in events {
            let value = value.as_ref().map(|value| match value {
                Owned::Signed(value) => Value::Signed(*value),
                Owned::Unsigned(value) => Value::Unsigned(*value),
                Owned::Float(value) => Value::Float(*value),
                Owned::Moment(value) => Value::Moment(*value),
                Owned::Boolean(value) => Value::Boolean(*value),
                Owned::Text(value) => Value::Text(value),
                Owned::Present => Value::Present,
            });
            let at = Timestamp::from_micros(*second);
            let written = WriteOrder { position: *position, within: 0 };
            summary.add(RowHeader { event_time: at, available_time: at, written }, value, parts);
        }
        summary
    }

    proptest! {
        #[test]
        fn the_laws_hold(a in events(), b in events(), c in events(), bits in 0..=Parts::ALL, kept in 1_u16..9) {
            let parts = Parts(bits).keeping(kept);
            prop_assert_eq!(Parts::from_bytes(parts.to_bytes()), parts);
            let all: Vec<Event> = c.iter().chain(&a).chain(&b).cloned().collect();
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
            prop_assert_eq!(&Summary::decode(parts, &mut rest).expect("own bytes"), &left);
            prop_assert!(rest.is_empty() && Summary::decode(parts, &mut &bytes[..bytes.len() - 1]).is_err());
            right.merge_encoded(parts, &mut bytes.as_slice()).expect("own bytes");
            left.merge(&left.clone(), parts);
            prop_assert_eq!(right, left);
        }

        #[test]
        fn integers_are_summed_exactly(values in proptest::collection::vec(any::<i64>(), 0..20)) {
            let signed: Vec<Event> = values.iter().map(|value| (0, 0, Some(Owned::Signed(*value)))).collect();
            let expected: i128 = values.iter().copied().map(i128::from).sum();
            prop_assert_eq!(summary(&signed, Parts::TOTAL).total().integer(), Some(expected));
        }
    }
}
