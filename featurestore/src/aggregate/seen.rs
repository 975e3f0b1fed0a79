//! A value with its times and its place in the order of writes: what the aggregates that go by event time keep.
//!
//! Of two values the later is that of the later event time, then of the later available time, then of the later write (rule T5);
//! of values that one write brought together the greater. Their order never depends on the order in which they are added.
//!
//! Bytes: event time, available time, the two numbers of the place (8 bytes each, big-endian with the sign flipped) and a
//! [`Held`] value.

use super::{Held, Value, read_number};
use crate::Result;
use crate::encoding::{RowHeader, WriteOrder, ordered};
use crate::time::Timestamp;

/// A value, its times and its place; what is null is seen too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) at: RowHeader,
    pub(super) value: Option<Held>,
}

impl Seen {
    pub(super) fn new(at: RowHeader, value: Option<Value<'_>>) -> Self {
        Self { at, value: value.map(Held::from) }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let RowHeader { event_time, available_time, written } = self.at;
        out.extend_from_slice(&ordered(event_time.micros()));
        out.extend_from_slice(&ordered(available_time.micros()));
        out.extend_from_slice(&ordered(written.position));
        out.extend_from_slice(&ordered(written.within));
        Held::encode(self.value.as_ref(), out);
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub(super) fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let event_time = Timestamp::from_micros(read_number(bytes)?);
        let available_time = Timestamp::from_micros(read_number(bytes)?);
        let written = WriteOrder { position: read_number(bytes)?, within: read_number(bytes)? };
        Ok(Self { at: RowHeader { event_time, available_time, written }, value: Held::decode(bytes)? })
    }
}
