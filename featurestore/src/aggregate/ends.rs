//! The first and the last of values, in the order that `seen` gives them.
//!
//! Bytes: 0 for none; else 1, then first and last.

use super::seen::Seen;
use super::{Held, Value};
use crate::Result;
use crate::encoding::RowHeader;

/// The first and the last value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    ends: Option<(Seen, Seen)>,
}

impl Ends {
    /// Adds a value that happened, was known and was written then.
    pub fn add(&mut self, at: RowHeader, value: Option<Value<'_>>) {
        // Nearly every value lies between the ends, and need not be kept.
        if let Some((first, last)) = &self.ends
            && first.at < at
            && at < last.at
        {
            return;
        }
        let seen = Seen::new(at, value);
        self.take((&seen, &seen));
    }

    fn take(&mut self, (first, last): (&Seen, &Seen)) {
        match &mut self.ends {
            None => self.ends = Some((first.clone(), last.clone())),
            // What does not become an end is not copied.
            Some((held_first, held_last)) => {
                if *first < *held_first {
                    held_first.clone_from(first);
                }
                if *last > *held_last {
                    held_last.clone_from(last);
                }
            }
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        if let Some((first, last)) = &other.ends {
            self.take((first, last));
        }
    }

    /// The first value; `None` when it is null or there is none.
    pub fn first(&self) -> Option<&Held> {
        self.ends.as_ref().and_then(|ends| ends.0.value.as_ref())
    }

    /// The last value; `None` when it is null or there is none.
    pub fn last(&self) -> Option<&Held> {
        self.ends.as_ref().and_then(|ends| ends.1.value.as_ref())
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.ends.is_some()));
        if let Some((first, last)) = &self.ends {
            first.encode(out);
            last.encode(out);
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        if super::read_array::<1>(bytes)? == [0] {
            return Ok(Self::default());
        }
        Ok(Self { ends: Some((Seen::decode(bytes)?, Seen::decode(bytes)?)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encoding::WriteOrder;
    use crate::time::Timestamp;

    /// Event time, available time, position and row of its push, and a number or a text.
    type Event = (i64, i64, (i64, i64), Option<(bool, i64)>);

    fn ends(events: &[Event]) -> Ends {
        let mut ends = Ends::default();
        for (event, available, (position, within), value) in events {
            let text = value.map(|(_, value)| value.to_string()).unwrap_or_default();
            let value = value.map(|(number, value)| if number { Value::Signed(value) } else { Value::Text(&text) });
            let [event_time, available_time] = [*event, *available].map(Timestamp::from_micros);
            let written = WriteOrder { position: *position, within: *within };
            ends.add(RowHeader { event_time, available_time, written }, value);
        }
        ends
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let value = proptest::option::of((any::<bool>(), 0_i64..3));
        proptest::collection::vec((0_i64..3, 0_i64..2, (0_i64..3, 0_i64..2), value), 0..6)
    }

    proptest! {
        #[test]
        fn the_laws_hold(a in events(), b in events()) {
            let all: Vec<Event> = b.iter().chain(&a).copied().collect();
            let mut merged = ends(&a);
            merged.merge(&ends(&b));
            prop_assert_eq!(&merged, &ends(&all));
            merged.merge(&Ends::default());
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(&Ends::decode(&mut rest).expect("own bytes"), &merged);
            prop_assert!(rest.is_empty() && Ends::decode(&mut &bytes[..bytes.len() - 1]).is_err());
            let in_order = |(event, available, written, value): &&Event| {
                (*event, *available, *written, value.map(|(number, value)| (!number, value)))
            };
            let held = |event: &Event| {
                event.3.map(|(number, value)| {
                    if number { Held::Number(value) } else { Held::Text(value.to_string().into()) }
                })
            };
            let (first, last) = (all.iter().min_by_key(in_order), all.iter().max_by_key(in_order));
            prop_assert_eq!(merged.first().cloned(), first.and_then(held));
            prop_assert_eq!(merged.last().cloned(), last.and_then(held));
        }
    }
}
