//! Bytes: keys that sort as their values do, packed rows that compare as rule T5 orders them, and chunks of tiles that
//! merge.

mod chunk;
mod key;
mod row;
mod rows_by_key;
mod value;

pub use chunk::{ChunkId, ChunkLayout, ChunkReads, add_chunk, is_chunk, merge_values};
pub use key::{EncodedKeys, KeyCodec};
pub use row::{ROW_HEADER_BYTES, RowHeader, RowLayout, WriteOrder};
pub use rows_by_key::RowsByKey;
pub(crate) use value::write as write_values;

/// A signed number as eight bytes whose order is the number's.
pub(crate) fn ordered(value: i64) -> [u8; 8] {
    (value.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// Reads what [`ordered`] wrote.
pub(crate) fn from_ordered(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ (1 << 63)).cast_signed()
}
