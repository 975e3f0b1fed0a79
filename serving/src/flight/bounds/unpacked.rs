//! What a decoded batch's dictionaries and views stand for, which is known only once it is decoded.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use tonic::Status;

use super::{MOST_BYTES, too_much};
use crate::status::to_status;

/// Checks a decoded batch before its columns are cast: what dictionaries and views stand for may be far more than they are.
/// Gives the bytes of that.
pub(in crate::flight) fn check_unpacked(batch: &RecordBatch) -> Result<u64, Status> {
    let bytes = batch.columns().iter().map(|column| unpacked_bytes(column)).fold(0, u64::saturating_add);
    if bytes <= MOST_BYTES {
        return Ok(bytes);
    }
    Err(to_status(too_much("bytes of the texts that dictionaries and views stand for", bytes, MOST_BYTES)))
}

/// Bytes of the texts that a column's dictionaries and views stand for; 0 of other columns, which are what they are.
fn unpacked_bytes(array: &dyn Array) -> u64 {
    let of_keys = |length: &dyn Fn(usize) -> u64| match array.as_any_dictionary_opt() {
        Some(dictionary) if !dictionary.values().is_empty() => {
            dictionary.normalized_keys().into_iter().map(length).fold(0, u64::saturating_add)
        }
        _ => 0,
    };
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().lengths().map(u64::from).sum(),
        DataType::Dictionary(_, values) => {
            let held = array.as_any_dictionary().values();
            match values.as_ref() {
                DataType::Utf8 => of_keys(&|key| u64::from(held.as_string::<i32>().value_length(key).unsigned_abs())),
                DataType::LargeUtf8 => of_keys(&|key| held.as_string::<i64>().value_length(key).unsigned_abs()),
                _ => 0,
            }
        }
        DataType::List(_) => unpacked_bytes(array.as_list::<i32>().values()),
        DataType::LargeList(_) => unpacked_bytes(array.as_list::<i64>().values()),
        DataType::FixedSizeList(..) => unpacked_bytes(array.as_fixed_size_list().values()),
        _ => 0,
    }
}
