//! Values of arguments: as they come in, and as states keep them.

use super::order_of;
use crate::encoding::{from_ordered, ordered};
use crate::{Error, Result};

/// A value of an argument that is not null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A signed integer.
    Signed(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// A float.
    Float(f64),
    /// A date or a time: it has an order, but no sum.
    Moment(i64),
    /// A truth value.
    Boolean(bool),
    /// A text.
    Text(&'a str),
    /// Something that is only counted.
    Present,
}

impl Value<'_> {
    /// An integer that orders as values of its kind do.
    pub(super) fn order(self) -> i64 {
        match self {
            Self::Signed(value) | Self::Moment(value) => value,
            Self::Unsigned(value) => (value ^ 1 << 63).cast_signed(),
            Self::Float(value) => order_of(value),
            Self::Boolean(value) => i64::from(value),
            Self::Text(_) | Self::Present => 0,
        }
    }

    /// An integer that is equal where values of its kind are: of floats there is one zero, and one NaN.
    pub(super) fn bits(self) -> i64 {
        match self {
            Self::Unsigned(value) => value.cast_signed(),
            Self::Float(value) if value.is_nan() => f64::NAN.to_bits().cast_signed(),
            Self::Float(value) => (value + 0.0).to_bits().cast_signed(),
            other => other.order(),
        }
    }

    /// The float that is nearest; of what is no number, its order.
    #[expect(clippy::cast_precision_loss, reason = "the nearest is asked for")]
    pub(super) fn float(self) -> f64 {
        match self {
            Self::Float(value) => value,
            Self::Unsigned(value) => value as f64,
            other => other.order() as f64,
        }
    }
}

/// A value that is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// A number of any kind: integers as they are, unsigned ones and floats by their bits.
    Number(i64),
    /// A text.
    Text(Box<str>),
}

impl From<Value<'_>> for Held {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Text(text) => Self::Text(text.into()),
            // The bits of a float, with its sign of zero.
            Value::Float(value) if !value.is_nan() => Self::Number(value.to_bits().cast_signed()),
            other => Self::Number(other.bits()),
        }
    }
}

impl Held {
    /// Appends a value's bytes, or those of none: 0; 1 and a number (8 bytes, big-endian with the sign flipped); 2 and a
    /// text's length (4) and bytes.
    pub(super) fn encode(value: Option<&Self>, out: &mut Vec<u8>) {
        match value {
            None => out.push(0),
            Some(Self::Number(number)) => {
                out.push(1);
                out.extend_from_slice(&ordered(*number));
            }
            Some(Self::Text(text)) => {
                out.push(2);
                out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Reads what [`Self::encode`] wrote, and moves past it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when the bytes end too early or are no text.
    pub(super) fn decode(bytes: &mut &[u8]) -> Result<Option<Self>> {
        match read_array(bytes)? {
            [0] => Ok(None),
            [1] => Ok(Some(Self::Number(read_number(bytes)?))),
            _ => {
                let length = u32::from_be_bytes(read_array(bytes)?) as usize;
                let (text, rest) = bytes.split_at_checked(length).ok_or_else(cut)?;
                *bytes = rest;
                Ok(Some(Self::Text(std::str::from_utf8(text).map_err(|_| cut())?.into())))
            }
        }
    }
}

pub(super) fn cut() -> Error {
    Error::damaged("a stored aggregate is cut off")
        .remedy("delete the disk tier's folder; it is rebuilt from object storage")
}

/// A count of events as it was stored; one that no store can hold is damage, and sums of such would overflow.
pub(super) fn checked_count(count: u64) -> Result<u64> {
    if count >> 48 == 0 { Ok(count) } else { Err(cut()) }
}

/// Reads some bytes and moves past them.
pub(super) fn read_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
    *bytes = rest;
    Ok(*head)
}

/// Reads a number that orders as its bytes, and moves past it.
pub(super) fn read_number(bytes: &mut &[u8]) -> Result<i64> {
    read_array(bytes).map(from_ordered)
}

/// Appends a number, seven bits a byte, the least first.
pub(super) fn write_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Reads what [`write_varint`] wrote, and moves past it.
pub(super) fn read_varint(bytes: &mut &[u8]) -> Result<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first().filter(|_| shift < 64).ok_or_else(cut)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
}
