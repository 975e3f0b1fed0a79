//! Order-preserving bytes of typed composite keys.
//!
//! The parts of a key stand one after another, each in a form whose byte order is the value's order and that no other
//! value's form begins with, so composite keys compare part by part and can never run together:
//!
//! | type | bytes |
//! |---|---|
//! | signed integers, dates, timestamps | big-endian, sign bit flipped |
//! | unsigned integers, booleans | big-endian |
//! | text | the UTF-8 bytes with `00` written `00 FF`, then `00 00` |

use std::fmt::Write;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};

use crate::definition::{Column, ColumnType};
use crate::{Error, Result};

/// Encodes the keys of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCodec {
    columns: Vec<Column>,
}

/// Encoded keys, row for row; a key with a null part is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedKeys {
    bytes: Vec<u8>,
    /// The end of each key; an absent key is empty (a real key never is).
    ends: Vec<usize>,
}

impl EncodedKeys {
    /// How many rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The key of a row; `None` where a part of it is null.
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        let key = &self.bytes[start..self.ends[row]];
        (!key.is_empty()).then_some(key)
    }

    /// All keys, in order of rows.
    pub fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.places().map(|place| (!place.is_empty()).then(|| &self.bytes[place]))
    }

    /// Where the bytes of each row's key are; nowhere where it has none.
    pub(super) fn places(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| start..*end)
    }

    /// The key at a place.
    pub(super) fn at(&self, place: Range<usize>) -> &[u8] {
        &self.bytes[place]
    }

    /// A key of one to eight bytes as a number, with nought after its end: since no key begins with another, that cannot
    /// make two the same.
    pub(super) fn short(&self, place: &Range<usize>) -> Option<u64> {
        let length = place.len();
        if !(1..=8).contains(&length) {
            return None;
        }
        let whole = self.bytes.get(place.start..).and_then(<[u8]>::first_chunk);
        let number = u64::from_be_bytes(whole.copied().unwrap_or_else(|| {
            let mut last = [0; 8];
            last[..length].copy_from_slice(&self.bytes[place.clone()]);
            last
        }));
        Some(number & u64::MAX << (64 - 8 * length))
    }
}

/// One key column, downcast once for a whole batch.
enum Part<'a> {
    Boolean(&'a BooleanArray),
    Int8(&'a PrimitiveArray<Int8Type>),
    Int16(&'a PrimitiveArray<Int16Type>),
    Int32(&'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>),
    UInt8(&'a PrimitiveArray<UInt8Type>),
    UInt16(&'a PrimitiveArray<UInt16Type>),
    UInt32(&'a PrimitiveArray<UInt32Type>),
    UInt64(&'a PrimitiveArray<UInt64Type>),
    Date(&'a PrimitiveArray<Date32Type>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>),
    Utf8(&'a StringArray),
}

impl KeyCodec {
    /// A codec for these key columns.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for no columns at all and for floating-point columns.
    pub fn new(columns: &[Column]) -> Result<Self> {
        if columns.is_empty() {
            return Err(Error::invalid("an entity needs at least one key column"));
        }
        if let Some(float) =
            columns.iter().find(|column| matches!(column.column_type, ColumnType::Float32 | ColumnType::Float64))
        {
            return Err(Error::invalid("a floating-point column cannot be a key")
                .with("column", &float.name)
                .remedy("equal floats are not always the same number: use an integer, text, date or timestamp"));
        }
        if let Some(list) = columns.iter().find(|column| column.column_type.is_list()) {
            return Err(Error::invalid("a list cannot be a key")
                .with("column", &list.name)
                .remedy("use an integer, text, date or timestamp, or several key columns"));
        }
        Ok(Self { columns: columns.to_vec() })
    }

    /// The key columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Encodes rows of key columns, given in the codec's order.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when a column is missing or of another type.
    pub fn encode(&self, arrays: &[ArrayRef]) -> Result<EncodedKeys> {
        let rows = arrays.first().map_or(0, Array::len);
        let parts = self.parts(arrays)?;
        let mut keys =
            EncodedKeys { bytes: Vec::with_capacity(rows * 8 * parts.len()), ends: Vec::with_capacity(rows) };
        for row in 0..rows {
            let start = keys.bytes.len();
            if !parts.iter().all(|part| part.write(row, &mut keys.bytes)) {
                keys.bytes.truncate(start);
            }
            keys.ends.push(keys.bytes.len());
        }
        Ok(keys)
    }

    fn parts<'a>(&self, arrays: &'a [ArrayRef]) -> Result<Vec<Part<'a>>> {
        if arrays.len() != self.columns.len() {
            return Err(Error::invalid("wrong number of key columns")
                .with("expected", self.columns.len())
                .with("given", arrays.len()));
        }
        self.columns.iter().zip(arrays).map(|(column, array)| Part::new(column, array)).collect()
    }

    /// A key as people read it: `origin=JFK, dest=LAX`. For messages; damaged bytes are shown as hexadecimal.
    pub fn describe(&self, key: &[u8]) -> String {
        let mut rest = key;
        let mut text = String::new();
        for column in &self.columns {
            let Some((value, after)) = describe_part(column.column_type, rest) else {
                return crate::definition::hex(key);
            };
            let comma = if text.is_empty() { "" } else { ", " };
            write!(text, "{comma}{}={value}", column.name).expect("writing to a String cannot fail");
            rest = after;
        }
        text
    }
}

impl<'a> Part<'a> {
    fn new(column: &Column, array: &'a ArrayRef) -> Result<Self> {
        let expected = column.column_type.to_arrow();
        if array.data_type() != &expected {
            return Err(Error::invalid("a key column has the wrong type")
                .with("column", &column.name)
                .with("expected", expected)
                .with("given", array.data_type()));
        }
        Ok(match column.column_type {
            ColumnType::Boolean => Self::Boolean(array.as_boolean()),
            ColumnType::Int8 => Self::Int8(array.as_primitive()),
            ColumnType::Int16 => Self::Int16(array.as_primitive()),
            ColumnType::Int32 => Self::Int32(array.as_primitive()),
            ColumnType::Int64 => Self::Int64(array.as_primitive()),
            ColumnType::UInt8 => Self::UInt8(array.as_primitive()),
            ColumnType::UInt16 => Self::UInt16(array.as_primitive()),
            ColumnType::UInt32 => Self::UInt32(array.as_primitive()),
            ColumnType::UInt64 => Self::UInt64(array.as_primitive()),
            ColumnType::Date => Self::Date(array.as_primitive()),
            ColumnType::Timestamp => Self::Timestamp(array.as_primitive()),
            ColumnType::Utf8 => Self::Utf8(array.as_string()),
            ColumnType::Float32 | ColumnType::Float64 | ColumnType::List(_) => {
                return Err(Error::internal("a key column of floats or lists passed the codec's check"));
            }
        })
    }

    /// Appends the value's bytes; `false` for null.
    fn write(&self, row: usize, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Boolean(array) => {
                array.is_valid(row) && {
                    out.push(u8::from(array.value(row)));
                    true
                }
            }
            Self::Int8(array) => number(array, row, out, |value| (value.cast_unsigned() ^ (1 << 7)).to_be_bytes()),
            Self::Int16(array) => number(array, row, out, |value| (value.cast_unsigned() ^ (1 << 15)).to_be_bytes()),
            Self::Int32(array) => number(array, row, out, |value| (value.cast_unsigned() ^ (1 << 31)).to_be_bytes()),
            Self::Int64(array) => number(array, row, out, super::ordered),
            Self::UInt8(array) => number(array, row, out, u8::to_be_bytes),
            Self::UInt16(array) => number(array, row, out, u16::to_be_bytes),
            Self::UInt32(array) => number(array, row, out, u32::to_be_bytes),
            Self::UInt64(array) => number(array, row, out, u64::to_be_bytes),
            Self::Date(array) => number(array, row, out, |value| (value.cast_unsigned() ^ (1 << 31)).to_be_bytes()),
            Self::Timestamp(array) => number(array, row, out, super::ordered),
            Self::Utf8(array) => {
                array.is_valid(row) && {
                    text(array.value(row), out);
                    true
                }
            }
        }
    }
}

fn number<T: ArrowPrimitiveType, const N: usize>(
    array: &PrimitiveArray<T>,
    row: usize,
    out: &mut Vec<u8>,
    bytes: impl Fn(T::Native) -> [u8; N],
) -> bool {
    let valid = array.is_valid(row);
    if valid {
        out.extend_from_slice(&bytes(array.value(row)));
    }
    valid
}

fn text(value: &str, out: &mut Vec<u8>) {
    if value.as_bytes().contains(&0) {
        for &byte in value.as_bytes() {
            out.push(byte);
            if byte == 0 {
                out.push(0xFF);
            }
        }
    } else {
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(&[0, 0]);
}

fn describe_part(column_type: ColumnType, bytes: &[u8]) -> Option<(String, &[u8])> {
    if column_type == ColumnType::Utf8 {
        return describe_text(bytes);
    }
    let width = column_type.fixed_width()?;
    let (head, rest) = bytes.split_at_checked(width)?;
    let unsigned = head.iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    let value = match column_type {
        ColumnType::Boolean => (unsigned == 1).to_string(),
        ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => unsigned.to_string(),
        _ => {
            let bits = 64 - 8 * u32::try_from(width).ok()?;
            ((unsigned ^ (1 << (8 * width - 1))) << bits).cast_signed().wrapping_shr(bits).to_string()
        }
    };
    Some((value, rest))
}

fn describe_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let mut value = Vec::new();
    let mut at = 0;
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            (0, Some(0)) => return Some((String::from_utf8(value).ok()?, &bytes[at + 2..])),
            (0, Some(0xFF)) => {
                value.push(0);
                at += 2;
            }
            (0, _) => return None,
            (byte, _) => {
                value.push(byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, Int64Array};
    use proptest::prelude::*;

    use super::*;

    fn codec() -> KeyCodec {
        KeyCodec::new(&[
            Column::required("name", ColumnType::Utf8),
            Column::required("number", ColumnType::Int64),
            Column::required("tail", ColumnType::Utf8),
        ])
        .expect("valid columns")
    }

    fn encode(rows: &[(String, i64, String)]) -> EncodedKeys {
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.2))),
        ];
        codec().encode(&arrays).expect("typed rows")
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_values_do(a in "[\\x00-\\x02a-c]{0,4}", b in "[\\x00-\\x02a-c]{0,4}", m: i64, n: i64,
                                        s in "[\\x00a]{0,2}", t in "[\\x00a]{0,2}") {
            let rows = [(a, m, s), (b, n, t)];
            let keys = encode(&rows);
            prop_assert_eq!(keys.get(0).cmp(&keys.get(1)), rows[0].cmp(&rows[1]));
        }

        #[test]
        fn a_key_describes_the_values_that_made_it(a in "[a-z]{1,8}", n: i64, t in "[a-z]{1,8}") {
            let keys = encode(&[(a.clone(), n, t.clone())]);
            prop_assert_eq!(codec().describe(keys.get(0).expect("present")), format!("name={a}, number={n}, tail={t}"));
        }
    }

    #[test]
    fn a_key_with_a_null_part_is_absent() {
        let codec = KeyCodec::new(&[Column::required("id", ColumnType::Int32)]).expect("valid");
        let keys =
            codec.encode(&[Arc::new(Int32Array::from(vec![Some(-1), None, Some(1)])) as ArrayRef]).expect("typed");
        assert!(keys.get(0).is_some() && keys.get(1).is_none() && keys.get(2).is_some());
        assert!(keys.get(0) < keys.get(2));
    }

    #[test]
    fn a_float_key_and_a_column_of_another_type_are_refused() {
        assert!(KeyCodec::new(&[Column::required("x", ColumnType::Float64)]).is_err());
        let codec = KeyCodec::new(&[Column::required("id", ColumnType::Int32)]).expect("valid");
        let error = codec.encode(&[Arc::new(Int64Array::from(vec![1])) as ArrayRef]).expect_err("wrong type");
        assert!(error.to_string().contains("Int32") && error.to_string().contains("Int64"), "{error}");
    }
}
