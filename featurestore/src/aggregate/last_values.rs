//! The last values, so many of them, in the order that `seen` gives them.
//!
//! Of the last of two parts the last are the last of the whole, so merging in any order gives the same bytes: how many
//! there are (2), then each.

use super::seen::Seen;
use super::{Held, Value};
use crate::Result;
use crate::encoding::RowHeader;

/// The most values that an aggregate can ask for.
pub const MOST_LAST: u16 = 1_024;

/// The last values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastValues {
    /// In order.
    seen: Vec<Seen>,
}

impl LastValues {
    /// Adds a value that happened, was known and was written then, and keeps `most`.
    pub fn add(&mut self, at: RowHeader, value: Option<Value<'_>>, most: usize) {
        // Once there are as many as are kept, nearly every value that comes late is older than all of them.
        let full = self.seen.len() >= most;
        if full && self.seen.first().is_some_and(|first| at < first.at) {
            return;
        }
        let seen = Seen::new(at, value);
        let place = self.seen.partition_point(|held| *held <= seen);
        self.seen.insert(place, seen);
        self.forget(most);
    }

    /// Adds others, and keeps `most`.
    pub fn merge(&mut self, other: &Self, most: usize) {
        let full = self.seen.len() >= most;
        let newer = match self.seen.first().filter(|_| full) {
            // Once there are as many as are kept, what is older than all of them is not copied.
            Some(first) => &other.seen[other.seen.partition_point(|seen| seen < first)..],
            None => &other.seen[..],
        };
        let in_order = self.seen.last().is_none_or(|last| newer.first().is_none_or(|first| last <= first));
        self.seen.extend_from_slice(newer);
        if !in_order {
            // Two runs in order are merged in one pass.
            self.seen.sort();
        }
        self.forget(most);
    }

    fn forget(&mut self, most: usize) {
        self.seen.drain(..self.seen.len().saturating_sub(most));
    }

    /// The last `most` values, the oldest first; a value is `None` where it is null.
    pub fn last(&self, most: usize) -> impl ExactSizeIterator<Item = Option<&Held>> {
        self.seen[self.seen.len().saturating_sub(most)..].iter().map(|seen| seen.value.as_ref())
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u16::try_from(self.seen.len()).unwrap_or(u16::MAX).to_be_bytes());
        self.seen.iter().for_each(|seen| seen.encode(out));
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let count = u16::from_be_bytes(super::read_array(bytes)?);
        Ok(Self { seen: (0..count).map(|_| Seen::decode(bytes)).collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encoding::WriteOrder;
    use crate::time::Timestamp;

    /// Event time, available time, position and row of its push, and a number.
    type Event = (i64, i64, (i64, i64), Option<i64>);

    fn last(events: &[Event], most: usize) -> LastValues {
        let mut last = LastValues::default();
        for (event, available, (position, within), value) in events {
            let [event_time, available_time] = [*event, *available].map(Timestamp::from_micros);
            let written = WriteOrder { position: *position, within: *within };
            last.add(RowHeader { event_time, available_time, written }, value.map(Value::Signed), most);
        }
        last
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let value = proptest::option::of(0_i64..3);
        proptest::collection::vec((0_i64..4, 0_i64..2, (0_i64..3, 0_i64..2), value), 0..12)
    }

    proptest! {
        #[test]
        fn the_laws_hold(a in events(), b in events(), most in 1_usize..8) {
            let mut all: Vec<Event> = b.iter().chain(&a).copied().collect();
            let mut merged = last(&a, most);
            merged.merge(&last(&b, most), most);
            merged.merge(&LastValues::default(), most);
            prop_assert_eq!(&merged, &last(&all, most));
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(&LastValues::decode(&mut rest).expect("own bytes"), &merged);
            prop_assert!(rest.is_empty() && LastValues::decode(&mut &bytes[..bytes.len() - 1]).is_err());
            all.sort_unstable();
            let expected: Vec<Option<Held>> =
                all[all.len().saturating_sub(most)..].iter().map(|(.., value)| value.map(Held::Number)).collect();
            prop_assert_eq!(merged.last(most).map(Option::<&Held>::cloned).collect::<Vec<_>>(), expected);
        }
    }
}
