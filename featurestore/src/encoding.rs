//! Bytes: keys that sort as their values do, packed rows that compare as rule T5 orders them, and chunks of tiles that
//! merge.

use arrow::array::{Array, ArrayRef, RecordBatch};

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

/// Bytes of a batch's rows. Columns that came in one body, or are slices, lie in one buffer: each counts what it has of it.
pub fn bytes_of_rows(rows: &RecordBatch) -> usize {
    let of =
        |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
    rows.columns().iter().map(of).fold(0, usize::saturating_add)
}

/// A signed number as eight bytes whose order is the number's.
pub(crate) fn ordered(value: i64) -> [u8; 8] {
    (value.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// Reads what [`ordered`] wrote.
pub(crate) fn from_ordered(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ (1 << 63)).cast_signed()
}
