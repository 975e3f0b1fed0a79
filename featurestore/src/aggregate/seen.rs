//! A value with its times: what the aggregates that go by event time keep.
//!
//! Of two values of one event time the one that was known later counts as the later, and of those the greater: their order
//! never depends on the order in which they are added.
//!
//! Bytes: event time, available time (8 bytes each, big-endian with the sign flipped) and a [`Held`] value.

use super::{Held, Value, read_number};
use crate::Result;
use crate::encoding::ordered;
use crate::time::Timestamp;

/// A value and its times; what is null is seen too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) event: Timestamp,
    pub(super) available: Timestamp,
    pub(super) value: Option<Held>,
}

impl Seen {
    pub(super) fn new(event: Timestamp, available: Timestamp, value: Option<Value<'_>>) -> Self {
        Self { event, available, value: value.map(Held::from) }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&ordered(self.event.micros()));
        out.extend_from_slice(&ordered(self.available.micros()));
        Held::encode(self.value.as_ref(), out);
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub(super) fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let event = Timestamp::from_micros(read_number(bytes)?);
        let available = Timestamp::from_micros(read_number(bytes)?);
        Ok(Self { event, available, value: Held::decode(bytes)? })
    }
}
