//! Packed rows: an entity's features with their times, in bytes that compare as rule T5 orders rows.
//!
//! ```text
//! event time | available time | sequence | schema id | null bits | fixed-width columns | ends of text | text
//! 8          | 8              | 8        | 4         | n/8       | 1 to 8 each         | 4 each       |
//! ```
//!
//! The three leading numbers are big-endian with the sign flipped: of two rows of one entity the one whose bytes are
//! greater is the one that holds: later event time, then later available time, then later write (`sequence` is the
//! number of the commit that wrote it), then, between rows that nothing else tells apart, the greater bytes.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanBuilder, PrimitiveArray, PrimitiveBuilder, StringBuilder,
};
use arrow::datatypes::{
    Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use sha2::{Digest, Sha256};

use crate::definition::{Column, ColumnType};
use crate::time::Timestamp;
use crate::{Error, Result};

/// Bytes before the null bits.
pub const ROW_HEADER_BYTES: usize = 28;

/// The times of a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowHeader {
    /// When it happened; [`Timestamp::MIN`] for rows that hold at every time.
    pub event_time: Timestamp,
    /// When it could first be known.
    pub available_time: Timestamp,
    /// The number of the commit that wrote it.
    pub sequence: i64,
}

impl RowHeader {
    /// Reads the times of a packed row; `None` when the bytes are too short to be one.
    pub fn read(row: &[u8]) -> Option<Self> {
        let number = |at: usize| row.get(at..at + 8)?.try_into().ok().map(super::from_ordered);
        Some(Self {
            event_time: Timestamp::from_micros(number(0)?),
            available_time: Timestamp::from_micros(number(8)?),
            sequence: number(16)?,
        })
    }
}

/// The layout of a view's packed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLayout {
    columns: Vec<Column>,
    schema_id: [u8; 4],
    /// Where each column's value (or the end of its text) stands.
    offsets: Vec<usize>,
    /// Where the text begins.
    text_start: usize,
}

impl RowLayout {
    /// The layout of these columns: fixed-width ones first, then the ends of texts, each group in declared order.
    pub fn new(columns: &[Column]) -> Self {
        let mut offsets = vec![0; columns.len()];
        let mut at = ROW_HEADER_BYTES + columns.len().div_ceil(8);
        for (offset, column) in offsets.iter_mut().zip(columns) {
            if let Some(width) = column.column_type.fixed_width() {
                *offset = at;
                at += width;
            }
        }
        for (offset, column) in offsets.iter_mut().zip(columns) {
            if column.column_type.fixed_width().is_none() {
                *offset = at;
                at += 4;
            }
        }
        Self { columns: columns.to_vec(), schema_id: schema_id(columns), offsets, text_start: at }
    }

    /// The feature columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Packs the rows of a batch of feature columns, given in the layout's order.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when a column is of another type than the layout's.
    pub fn encode(&self, headers: &[RowHeader], arrays: &[ArrayRef]) -> Result<Vec<Vec<u8>>> {
        self.check_types(arrays)?;
        let mut rows: Vec<Vec<u8>> = headers.iter().map(|header| self.empty_row(*header)).collect();
        for (index, array) in arrays.iter().enumerate() {
            self.encode_column(index, array, &mut rows);
        }
        Ok(rows)
    }

    fn check_types(&self, arrays: &[ArrayRef]) -> Result<()> {
        if arrays.len() != self.columns.len() {
            return Err(Error::invalid("wrong number of feature columns")
                .with("expected", self.columns.len())
                .with("given", arrays.len()));
        }
        for (column, array) in self.columns.iter().zip(arrays) {
            let expected = column.column_type.to_arrow();
            if array.data_type() != &expected {
                return Err(Error::invalid("a feature column has the wrong type")
                    .with("column", &column.name)
                    .with("expected", expected)
                    .with("given", array.data_type()));
            }
        }
        Ok(())
    }

    fn empty_row(&self, header: RowHeader) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.text_start + 16);
        row.extend_from_slice(&super::ordered(header.event_time.micros()));
        row.extend_from_slice(&super::ordered(header.available_time.micros()));
        row.extend_from_slice(&super::ordered(header.sequence));
        row.extend_from_slice(&self.schema_id);
        row.resize(self.text_start, 0);
        row
    }

    fn encode_column(&self, index: usize, array: &ArrayRef, rows: &mut [Vec<u8>]) {
        let at = self.offsets[index];
        match self.columns[index].column_type {
            ColumnType::Boolean => {
                let values = array.as_boolean();
                put_valid(index, array, rows, |row, out| out[at] = u8::from(values.value(row)));
            }
            ColumnType::Int8 => self.put_numbers(index, array.as_primitive::<Int8Type>(), rows, i8::to_le_bytes),
            ColumnType::Int16 => self.put_numbers(index, array.as_primitive::<Int16Type>(), rows, i16::to_le_bytes),
            ColumnType::Int32 => self.put_numbers(index, array.as_primitive::<Int32Type>(), rows, i32::to_le_bytes),
            ColumnType::Int64 => self.put_numbers(index, array.as_primitive::<Int64Type>(), rows, i64::to_le_bytes),
            ColumnType::UInt8 => self.put_numbers(index, array.as_primitive::<UInt8Type>(), rows, u8::to_le_bytes),
            ColumnType::UInt16 => self.put_numbers(index, array.as_primitive::<UInt16Type>(), rows, u16::to_le_bytes),
            ColumnType::UInt32 => self.put_numbers(index, array.as_primitive::<UInt32Type>(), rows, u32::to_le_bytes),
            ColumnType::UInt64 => self.put_numbers(index, array.as_primitive::<UInt64Type>(), rows, u64::to_le_bytes),
            ColumnType::Float32 => self.put_numbers(index, array.as_primitive::<Float32Type>(), rows, f32::to_le_bytes),
            ColumnType::Float64 => self.put_numbers(index, array.as_primitive::<Float64Type>(), rows, f64::to_le_bytes),
            ColumnType::Date => self.put_numbers(index, array.as_primitive::<Date32Type>(), rows, i32::to_le_bytes),
            ColumnType::Timestamp => {
                self.put_numbers(index, array.as_primitive::<TimestampMicrosecondType>(), rows, i64::to_le_bytes);
            }
            ColumnType::Utf8 => self.put_text(index, array, rows),
        }
    }

    fn put_numbers<T: ArrowPrimitiveType, const N: usize>(
        &self,
        index: usize,
        array: &PrimitiveArray<T>,
        rows: &mut [Vec<u8>],
        bytes: impl Fn(T::Native) -> [u8; N],
    ) {
        let at = self.offsets[index];
        put_valid(index, array, rows, |row, out| out[at..at + N].copy_from_slice(&bytes(array.value(row))));
    }

    fn put_text(&self, index: usize, array: &ArrayRef, rows: &mut [Vec<u8>]) {
        let at = self.offsets[index];
        let values = array.as_string::<i32>();
        put_valid(index, array, rows, |row, out| out.extend_from_slice(values.value(row).as_bytes()));
        for row in rows {
            // A row's text is far below 4 GiB: Arrow's own offsets for a whole column are 31 bits.
            let end = u32::try_from(row.len() - self.text_start).unwrap_or(u32::MAX);
            row[at..at + 4].copy_from_slice(&end.to_le_bytes());
        }
    }

    /// Unpacks rows straight into Arrow columns; an absent row gives nulls.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when bytes are too short or were packed with other columns.
    pub fn decode<R: AsRef<[u8]>>(&self, rows: &[Option<R>]) -> Result<Vec<ArrayRef>> {
        for row in rows.iter().flatten() {
            let row = row.as_ref();
            if row.len() < self.text_start || row[24..ROW_HEADER_BYTES] != self.schema_id {
                return Err(Error::damaged("a stored row does not have its view's columns")
                    .with("bytes", row.len())
                    .remedy("delete the disk tier's folder; it is rebuilt from object storage"));
            }
        }
        (0..self.columns.len()).map(|index| self.decode_column(index, rows)).collect()
    }

    fn decode_column<R: AsRef<[u8]>>(&self, index: usize, rows: &[Option<R>]) -> Result<ArrayRef> {
        Ok(match self.columns[index].column_type {
            ColumnType::Boolean => self.take_booleans(index, rows),
            ColumnType::Int8 => self.take_numbers::<Int8Type, _, 1>(index, rows, i8::from_le_bytes),
            ColumnType::Int16 => self.take_numbers::<Int16Type, _, 2>(index, rows, i16::from_le_bytes),
            ColumnType::Int32 => self.take_numbers::<Int32Type, _, 4>(index, rows, i32::from_le_bytes),
            ColumnType::Int64 => self.take_numbers::<Int64Type, _, 8>(index, rows, i64::from_le_bytes),
            ColumnType::UInt8 => self.take_numbers::<UInt8Type, _, 1>(index, rows, u8::from_le_bytes),
            ColumnType::UInt16 => self.take_numbers::<UInt16Type, _, 2>(index, rows, u16::from_le_bytes),
            ColumnType::UInt32 => self.take_numbers::<UInt32Type, _, 4>(index, rows, u32::from_le_bytes),
            ColumnType::UInt64 => self.take_numbers::<UInt64Type, _, 8>(index, rows, u64::from_le_bytes),
            ColumnType::Float32 => self.take_numbers::<Float32Type, _, 4>(index, rows, f32::from_le_bytes),
            ColumnType::Float64 => self.take_numbers::<Float64Type, _, 8>(index, rows, f64::from_le_bytes),
            ColumnType::Date => self.take_numbers::<Date32Type, _, 4>(index, rows, i32::from_le_bytes),
            ColumnType::Timestamp => {
                self.take_numbers::<TimestampMicrosecondType, _, 8>(index, rows, i64::from_le_bytes)
            }
            ColumnType::Utf8 => self.take_text(index, rows)?,
        })
    }

    fn take_numbers<T: ArrowPrimitiveType, R: AsRef<[u8]>, const N: usize>(
        &self,
        index: usize,
        rows: &[Option<R>],
        number: impl Fn([u8; N]) -> T::Native,
    ) -> ArrayRef {
        let at = self.offsets[index];
        let mut builder =
            PrimitiveBuilder::<T>::with_capacity(rows.len()).with_data_type(self.columns[index].column_type.to_arrow());
        for row in rows {
            let value = value_of(index, row.as_ref());
            builder.append_option(value.map(|row| number(row[at..at + N].try_into().expect("N bytes"))));
        }
        Arc::new(builder.finish())
    }

    fn take_booleans<R: AsRef<[u8]>>(&self, index: usize, rows: &[Option<R>]) -> ArrayRef {
        let at = self.offsets[index];
        let mut builder = BooleanBuilder::with_capacity(rows.len());
        for row in rows {
            builder.append_option(value_of(index, row.as_ref()).map(|row| row[at] != 0));
        }
        Arc::new(builder.finish())
    }

    fn take_text<R: AsRef<[u8]>>(&self, index: usize, rows: &[Option<R>]) -> Result<ArrayRef> {
        let mut builder = StringBuilder::new();
        for row in rows {
            match value_of(index, row.as_ref()) {
                None => builder.append_null(),
                Some(row) => builder.append_value(self.text_of(index, row)?),
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    fn text_of<'a>(&self, index: usize, row: &'a [u8]) -> Result<&'a str> {
        let end_at = |at: usize| u32::from_le_bytes(row[at..at + 4].try_into().expect("4 bytes")) as usize;
        let at = self.offsets[index];
        let first_end = self.offsets.iter().zip(&self.columns).find(|(_, c)| c.column_type.fixed_width().is_none());
        let start = if first_end.is_some_and(|(first, _)| *first == at) { 0 } else { end_at(at - 4) };
        row.get(self.text_start + start..self.text_start + end_at(at))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .ok_or_else(|| {
                Error::damaged("a stored row's text does not fit its bytes")
                    .with("column", &self.columns[index].name)
                    .remedy("delete the disk tier's folder; it is rebuilt from object storage")
            })
    }
}

/// Marks nulls, and puts what is not null.
fn put_valid(index: usize, array: &dyn Array, rows: &mut [Vec<u8>], put: impl Fn(usize, &mut Vec<u8>)) {
    for (row, out) in rows.iter_mut().enumerate() {
        if array.is_null(row) {
            out[ROW_HEADER_BYTES + index / 8] |= 1 << (index % 8);
        } else {
            put(row, out);
        }
    }
}

/// The row, where its column is not null.
fn value_of<R: AsRef<[u8]>>(index: usize, row: Option<&R>) -> Option<&[u8]> {
    let row = row?.as_ref();
    (row[ROW_HEADER_BYTES + index / 8] >> (index % 8) & 1 == 0).then_some(row)
}

fn schema_id(columns: &[Column]) -> [u8; 4] {
    let mut hash = Sha256::new();
    for column in columns {
        hash.update(column.to_string().as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Float64Array, Int16Array, StringArray};
    use proptest::prelude::*;

    use super::*;

    fn layout() -> RowLayout {
        RowLayout::new(&[
            Column::nullable("a", ColumnType::Utf8),
            Column::nullable("b", ColumnType::Float64),
            Column::nullable("c", ColumnType::Utf8),
            Column::nullable("d", ColumnType::Int16),
            Column::nullable("e", ColumnType::Boolean),
        ])
    }

    fn header(event: i64, available: i64, sequence: i64) -> RowHeader {
        RowHeader {
            event_time: Timestamp::from_micros(event),
            available_time: Timestamp::from_micros(available),
            sequence,
        }
    }

    type Values = (Option<String>, Option<f64>, Option<String>, Option<i16>, Option<bool>);

    fn arrays(rows: &[Values]) -> Vec<ArrayRef> {
        vec![
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.0.clone()))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.1))),
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.2.clone()))),
            Arc::new(Int16Array::from_iter(rows.iter().map(|row| row.3))),
            Arc::new(BooleanArray::from_iter(rows.iter().map(|row| row.4))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_bit_for_bit(rows in proptest::collection::vec(any::<Values>(), 1..20)) {
            let columns = arrays(&rows);
            let packed = layout().encode(&vec![header(1, 2, 3); rows.len()], &columns).expect("typed");
            let unpacked = layout().decode(&packed.iter().map(Some).collect::<Vec<_>>()).expect("own bytes");
            for (before, after) in columns.iter().zip(&unpacked) {
                prop_assert_eq!(before.to_data(), after.to_data());
            }
            prop_assert_eq!(RowHeader::read(&packed[0]), Some(header(1, 2, 3)));
        }

        #[test]
        fn rows_compare_as_rule_t5_orders_them(a in any::<(i64, i64, i64)>(), b in any::<(i64, i64, i64)>()) {
            let columns = arrays(&[(None, None, None, None, None), (None, None, None, None, None)]);
            let rows = layout().encode(&[header(a.0, a.1, a.2), header(b.0, b.1, b.2)], &columns).expect("typed");
            prop_assert_eq!(rows[0].cmp(&rows[1]), a.cmp(&b));
        }
    }

    #[test]
    fn an_absent_row_is_null_in_every_column() {
        let absent: [Option<Vec<u8>>; 2] = [None, None];
        for column in layout().decode(&absent).expect("nothing to read") {
            assert_eq!(column.null_count(), 2);
        }
    }

    #[test]
    fn bytes_of_another_schema_are_named_as_damage() {
        let other = RowLayout::new(&[Column::nullable("x", ColumnType::Float64)]);
        let rows =
            other.encode(&[header(0, 0, 0)], &[Arc::new(Float64Array::from(vec![1.0])) as ArrayRef]).expect("typed");
        let error = layout().decode(&[Some(&rows[0])]).expect_err("another schema");
        assert_eq!(error.kind(), crate::ErrorKind::Damaged);
    }
}
