//! Bytes of single values, as packed rows hold them: numbers as little-endian, texts as UTF-8, and lists as
//!
//! ```text
//! number of elements (4) | null bits (1 for each 8) | the elements, or for texts their ends (4 each), then the texts
//! ```

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanBuilder, ListArray, NullBufferBuilder, PrimitiveArray,
    StringBuilder,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    Date32Type, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use crate::definition::ColumnType;

/// Gives the bytes of every value of a column that is not null, with its row.
pub(crate) fn write(kind: ColumnType, array: &dyn Array, mut put: impl FnMut(usize, &[u8])) {
    match kind {
        ColumnType::Boolean => {
            let values = array.as_boolean();
            for row in valid(array) {
                put(row, &[u8::from(values.value(row))]);
            }
        }
        ColumnType::Int8 => numbers::<Int8Type, 1>(array, i8::to_le_bytes, put),
        ColumnType::Int16 => numbers::<Int16Type, 2>(array, i16::to_le_bytes, put),
        ColumnType::Int32 => numbers::<Int32Type, 4>(array, i32::to_le_bytes, put),
        ColumnType::Int64 => numbers::<Int64Type, 8>(array, i64::to_le_bytes, put),
        ColumnType::UInt8 => numbers::<UInt8Type, 1>(array, u8::to_le_bytes, put),
        ColumnType::UInt16 => numbers::<UInt16Type, 2>(array, u16::to_le_bytes, put),
        ColumnType::UInt32 => numbers::<UInt32Type, 4>(array, u32::to_le_bytes, put),
        ColumnType::UInt64 => numbers::<UInt64Type, 8>(array, u64::to_le_bytes, put),
        ColumnType::Float32 => numbers::<Float32Type, 4>(array, f32::to_le_bytes, put),
        ColumnType::Float64 => numbers::<Float64Type, 8>(array, f64::to_le_bytes, put),
        ColumnType::Date => numbers::<Date32Type, 4>(array, i32::to_le_bytes, put),
        ColumnType::Timestamp => numbers::<TimestampMicrosecondType, 8>(array, i64::to_le_bytes, put),
        ColumnType::Utf8 => {
            let values = array.as_string::<i32>();
            for row in valid(array) {
                put(row, values.value(row).as_bytes());
            }
        }
        ColumnType::List(element) => {
            let (lists, mut bytes) = (array.as_list::<i32>(), Vec::new());
            for row in valid(array) {
                bytes.clear();
                write_list(*element, lists.value(row).as_ref(), &mut bytes);
                put(row, &bytes);
            }
        }
    }
}

fn valid(array: &dyn Array) -> impl Iterator<Item = usize> {
    let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
    (0..array.len()).filter(move |row| nulls.is_none_or(|nulls| nulls.is_valid(*row)))
}

fn numbers<T: ArrowPrimitiveType, const N: usize>(
    array: &dyn Array,
    bytes: impl Fn(T::Native) -> [u8; N],
    mut put: impl FnMut(usize, &[u8]),
) {
    let values = array.as_primitive::<T>();
    for row in valid(array) {
        put(row, &bytes(values.value(row)));
    }
}

fn write_list(element: ColumnType, elements: &dyn Array, out: &mut Vec<u8>) {
    // A list of a feature is far below 2^32 elements and bytes: Arrow's own offsets for a whole column are 31 bits.
    let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&length(elements.len()));
    let nulls = out.len();
    out.resize(nulls + elements.len().div_ceil(8), 0);
    for row in (0..elements.len()).filter(|row| elements.is_null(*row)) {
        out[nulls + row / 8] |= 1 << (row % 8);
    }
    let start = out.len();
    // One write by the type of the elements alone: a list has no lists in it.
    if let Some(width) = element.fixed_width() {
        out.resize(start + elements.len() * width, 0);
        write_scalars(element, elements, &mut |row, bytes| {
            out[start + row * width..][..width].copy_from_slice(bytes);
        });
    } else {
        out.resize(start + elements.len() * 4, 0);
        let texts = out.len();
        let mut ends = vec![0; elements.len()];
        write_scalars(element, elements, &mut |row, bytes| {
            out.extend_from_slice(bytes);
            ends[row] = bytes.len();
        });
        let mut end = 0;
        for (row, bytes) in ends.into_iter().enumerate() {
            end += bytes;
            out[start + row * 4..][..4].copy_from_slice(&length(end));
        }
        debug_assert_eq!(texts + end, out.len(), "every text is counted");
    }
}

/// [`write`] for the elements of a list: behind a pointer, so that the two do not make each other without end.
fn write_scalars(kind: ColumnType, array: &dyn Array, put: &mut dyn FnMut(usize, &[u8])) {
    write(kind, array, put);
}

/// Makes a column of the bytes of its values; `None` for a null. `None` where bytes are not of the type.
pub(super) fn read<'a>(kind: ColumnType, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) -> Option<ArrayRef> {
    Some(match kind {
        ColumnType::Boolean => {
            let mut builder = BooleanBuilder::with_capacity(values.len());
            for value in values {
                builder.append_option(value.map(|bytes| bytes.first().is_some_and(|byte| *byte != 0)));
            }
            Arc::new(builder.finish())
        }
        ColumnType::Int8 => read_numbers::<Int8Type, 1>(kind, values, i8::from_le_bytes)?,
        ColumnType::Int16 => read_numbers::<Int16Type, 2>(kind, values, i16::from_le_bytes)?,
        ColumnType::Int32 => read_numbers::<Int32Type, 4>(kind, values, i32::from_le_bytes)?,
        ColumnType::Int64 => read_numbers::<Int64Type, 8>(kind, values, i64::from_le_bytes)?,
        ColumnType::UInt8 => read_numbers::<UInt8Type, 1>(kind, values, u8::from_le_bytes)?,
        ColumnType::UInt16 => read_numbers::<UInt16Type, 2>(kind, values, u16::from_le_bytes)?,
        ColumnType::UInt32 => read_numbers::<UInt32Type, 4>(kind, values, u32::from_le_bytes)?,
        ColumnType::UInt64 => read_numbers::<UInt64Type, 8>(kind, values, u64::from_le_bytes)?,
        ColumnType::Float32 => read_numbers::<Float32Type, 4>(kind, values, f32::from_le_bytes)?,
        ColumnType::Float64 => read_numbers::<Float64Type, 8>(kind, values, f64::from_le_bytes)?,
        ColumnType::Date => read_numbers::<Date32Type, 4>(kind, values, i32::from_le_bytes)?,
        ColumnType::Timestamp => read_numbers::<TimestampMicrosecondType, 8>(kind, values, i64::from_le_bytes)?,
        ColumnType::Utf8 => {
            let mut builder = StringBuilder::new();
            for value in values {
                match value {
                    None => builder.append_null(),
                    Some(bytes) => builder.append_value(std::str::from_utf8(bytes).ok()?),
                }
            }
            Arc::new(builder.finish())
        }
        ColumnType::List(element) => read_lists(*element, values)?,
    })
}

fn read_numbers<'a, T: ArrowPrimitiveType, const N: usize>(
    kind: ColumnType,
    values: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
    number: impl Fn([u8; N]) -> T::Native,
) -> Option<ArrayRef> {
    // Arrow's own builder takes twice as long for a column of one row.
    let (mut numbers, mut nulls) = (Vec::with_capacity(values.len()), NullBufferBuilder::new(values.len()));
    for value in values {
        match value {
            None => {
                numbers.push(T::Native::default());
                nulls.append_null();
            }
            Some(bytes) => {
                numbers.push(number(bytes.try_into().ok()?));
                nulls.append_non_null();
            }
        }
    }
    let array = PrimitiveArray::<T>::try_new(numbers.into(), nulls.finish()).ok()?;
    let zoned = kind == ColumnType::Timestamp;
    Some(Arc::new(if zoned { array.with_data_type(kind.to_arrow()) } else { array }))
}

fn read_lists<'a>(element: ColumnType, lists: impl ExactSizeIterator<Item = Option<&'a [u8]>>) -> Option<ArrayRef> {
    let (mut lengths, mut valid) = (Vec::with_capacity(lists.len()), Vec::with_capacity(lists.len()));
    let mut elements = Vec::new();
    for list in lists {
        valid.push(list.is_some());
        let before = elements.len();
        if let Some(bytes) = list {
            add_elements(element, bytes, &mut elements)?;
        }
        lengths.push(elements.len() - before);
    }
    let values = read_scalars(element, &elements)?;
    let field = Arc::new(Field::new_list_field(element.to_arrow(), true));
    let lists = ListArray::try_new(field, OffsetBuffer::from_lengths(lengths), values, Some(NullBuffer::from(valid)));
    lists.ok().map(|lists| Arc::new(lists) as ArrayRef)
}

/// The bytes of the elements of a list.
fn add_elements<'a>(element: ColumnType, bytes: &'a [u8], elements: &mut Vec<Option<&'a [u8]>>) -> Option<()> {
    let (count, rest) = bytes.split_first_chunk()?;
    let count = u32::from_le_bytes(*count) as usize;
    let (nulls, rest) = rest.split_at_checked(count.div_ceil(8))?;
    let is_null = |row: usize| nulls[row / 8] >> (row % 8) & 1 == 1;
    if let Some(width) = element.fixed_width() {
        if rest.len() != count * width {
            return None;
        }
        elements.extend((0..count).map(|row| (!is_null(row)).then(|| &rest[row * width..][..width])));
        return Some(());
    }
    let (ends, texts) = rest.split_at_checked(count * 4)?;
    let mut start = 0;
    for (row, end) in ends.as_chunks::<4>().0.iter().enumerate() {
        let end = u32::from_le_bytes(*end) as usize;
        let text = texts.get(start..end)?;
        elements.push((!is_null(row)).then_some(text));
        start = end;
    }
    Some(())
}

/// [`read`] for the elements of lists, whose type is no list.
fn read_scalars(kind: ColumnType, values: &[Option<&[u8]>]) -> Option<ArrayRef> {
    let values: Box<dyn ExactSizeIterator<Item = Option<&[u8]>>> = Box::new(values.iter().copied());
    read(kind, values)
}
