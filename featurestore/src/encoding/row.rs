//! Packed rows: an entity's features with their times, in bytes that compare as rule T5 orders rows.
//!
//! ```text
//! event time | available time | place in the order of writes | schema id | null bits | fixed-width columns | ends of the rest | texts, lists
//! 8          | 8              | 16                           | 4         | n/8       | 1 to 8 each         | 4 each           |
//! ```
//!
//! The four leading numbers are big-endian with the sign flipped: of two rows of one entity the one whose bytes are
//! greater is the one that holds: later event time, then later available time, then later write ([`WriteOrder`]), then,
//! between rows that nothing else tells apart, the greater bytes.

use arrow::array::{Array, ArrayRef};
use sha2::{Digest, Sha256};

use super::value;
use crate::definition::Column;
use crate::time::Timestamp;
use crate::{Error, Result};

/// Bytes before the null bits.
pub const ROW_HEADER_BYTES: usize = 36;

/// A row's place in the one order of all writes of its view (rule T5): of pushes by their positions, and in a push by its
/// rows. What a commit read of history was written after the pushes that were committed before it, and before the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteOrder {
    /// The position of the push that brought it; of history the position up to which pushes had been committed.
    pub position: i64,
    /// Its row in the push; of history [`Self::COMMITTED`] and the number of the commit.
    pub within: i64,
}

impl Default for WriteOrder {
    /// History of which no commit is known: before every push.
    fn default() -> Self {
        Self::of_commit(0, 0)
    }
}

impl WriteOrder {
    /// Greater than the row of any push.
    pub const COMMITTED: i64 = 1 << 62;

    /// That of the rows that a commit read of history, after the pushes up to a position.
    pub fn of_commit(position: u64, number: u64) -> Self {
        let number = i64::try_from(number).unwrap_or(i64::MAX).min(Self::COMMITTED - 1);
        Self { position: i64::try_from(position).unwrap_or(i64::MAX), within: Self::COMMITTED + number }
    }

    /// That of rows that rest on several events, as they are in tiers from when those up to a position have come. The flush
    /// computes them again, from what history has by then.
    pub fn when_pushed(position: u64) -> Self {
        Self { within: Self::COMMITTED - 2, ..Self::of_pushes(position) }
    }

    /// That of rows that rest on several events, as they are committed with those up to a position.
    pub fn of_pushes(position: u64) -> Self {
        Self { position: i64::try_from(position).unwrap_or(i64::MAX), within: Self::COMMITTED - 1 }
    }
}

/// When a row, or an event of windows, happened, could be known and was written. Of two the greater is the later (rule T5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowHeader {
    /// When it happened; [`Timestamp::MIN`] for rows that hold at every time.
    pub event_time: Timestamp,
    /// When it could first be known.
    pub available_time: Timestamp,
    /// When it was written, among all writes.
    pub written: WriteOrder,
}

impl RowHeader {
    /// Of these times, written before all whose place in the order of writes is known.
    pub fn of_times(event_time: Timestamp, available_time: Timestamp) -> Self {
        Self { event_time, available_time, written: WriteOrder::default() }
    }

    /// The event time and the available time.
    pub fn times(self) -> (Timestamp, Timestamp) {
        (self.event_time, self.available_time)
    }

    /// Reads the times of a packed row; `None` when the bytes are too short to be one.
    pub fn read(row: &[u8]) -> Option<Self> {
        let number = |at: usize| row.get(at..at + 8)?.try_into().ok().map(super::from_ordered);
        Some(Self {
            event_time: Timestamp::from_micros(number(0)?),
            available_time: Timestamp::from_micros(number(8)?),
            written: WriteOrder { position: number(16)?, within: number(24)? },
        })
    }
}

/// The layout of a view's packed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLayout {
    columns: Vec<Column>,
    schema_id: [u8; 4],
    /// Where each column's value (of texts and lists: its end) stands.
    offsets: Vec<usize>,
    /// Where texts and lists begin.
    varying_start: usize,
}

impl RowLayout {
    /// The layout of these columns: fixed-width ones first, then the ends of texts and lists, each group in declared order.
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
        Self { columns: columns.to_vec(), schema_id: schema_id(columns), offsets, varying_start: at }
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
        let mut row = Vec::with_capacity(self.varying_start + 16);
        row.extend_from_slice(&super::ordered(header.event_time.micros()));
        row.extend_from_slice(&super::ordered(header.available_time.micros()));
        row.extend_from_slice(&super::ordered(header.written.position));
        row.extend_from_slice(&super::ordered(header.written.within));
        row.extend_from_slice(&self.schema_id);
        row.resize(self.varying_start, 0);
        row
    }

    fn encode_column(&self, index: usize, array: &ArrayRef, rows: &mut [Vec<u8>]) {
        let (at, kind) = (self.offsets[index], self.columns[index].column_type);
        for (_, out) in rows.iter_mut().enumerate().filter(|(row, _)| array.is_null(*row)) {
            out[ROW_HEADER_BYTES + index / 8] |= 1 << (index % 8);
        }
        match kind.fixed_width() {
            Some(width) => value::write(kind, array, |row, bytes| rows[row][at..at + width].copy_from_slice(bytes)),
            None => {
                value::write(kind, array, |row, bytes| rows[row].extend_from_slice(bytes));
                for row in rows {
                    // A row's texts and lists are far below 4 GiB: Arrow's own offsets for a whole column are 31 bits.
                    let end = u32::try_from(row.len() - self.varying_start).unwrap_or(u32::MAX);
                    row[at..at + 4].copy_from_slice(&end.to_le_bytes());
                }
            }
        }
    }

    /// Unpacks rows straight into Arrow columns; an absent row gives nulls.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when bytes are too short or were packed with other columns.
    pub fn decode<R: AsRef<[u8]>>(&self, rows: &[Option<R>]) -> Result<Vec<ArrayRef>> {
        for row in rows.iter().flatten() {
            let row = row.as_ref();
            if row.len() < self.varying_start || row[ROW_HEADER_BYTES - 4..ROW_HEADER_BYTES] != self.schema_id {
                return Err(Error::damaged("a stored row does not have its view's columns")
                    .with("bytes", row.len())
                    .remedy("delete the disk tier's folder; it is rebuilt from object storage"));
            }
        }
        (0..self.columns.len()).map(|index| self.decode_column(index, rows)).collect()
    }

    fn decode_column<R: AsRef<[u8]>>(&self, index: usize, rows: &[Option<R>]) -> Result<ArrayRef> {
        let (at, kind) = (self.offsets[index], self.columns[index].column_type);
        let held = rows.iter().map(|row| held(index, row.as_ref()));
        let read = match kind.fixed_width() {
            Some(width) => value::read(kind, held.map(|row| row.map(|row| &row[at..at + width]))),
            None => {
                let start = self.start_of(index);
                let bytes = held.map(|row| row.map_or(Some(None), |row| self.varying(start, at, row).map(Some)));
                bytes.collect::<Option<Vec<_>>>().and_then(|bytes| value::read(kind, bytes.into_iter()))
            }
        };
        read.ok_or_else(|| {
            Error::damaged("a stored row's values do not fit its bytes")
                .with("column", &self.columns[index].name)
                .remedy("delete the disk tier's folder; it is rebuilt from object storage")
        })
    }

    /// Where the end of the varying column before this one stands; `None` for the first.
    fn start_of(&self, index: usize) -> Option<usize> {
        let at = self.offsets[index];
        let first = self.offsets.iter().zip(&self.columns).find(|(_, c)| c.column_type.fixed_width().is_none());
        first.is_none_or(|(first, _)| *first != at).then(|| at - 4)
    }

    /// The bytes of a varying column; `None` where they do not lie in the row.
    fn varying<'a>(&self, start: Option<usize>, at: usize, row: &'a [u8]) -> Option<&'a [u8]> {
        let end_at = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]) as usize;
        let start = start.map_or(0, end_at);
        row.get(self.varying_start + start..self.varying_start + end_at(at))
    }
}

/// The row, where its column is not null.
fn held<R: AsRef<[u8]>>(index: usize, row: Option<&R>) -> Option<&[u8]> {
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
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Float64Array, Int16Array, ListArray, ListBuilder, StringArray, StringBuilder};
    use arrow::datatypes::Int32Type;
    use proptest::prelude::*;

    use super::*;
    use crate::definition::ColumnType;

    fn layout() -> RowLayout {
        RowLayout::new(&[
            Column::nullable("a", ColumnType::Utf8),
            Column::nullable("b", ColumnType::Float64),
            Column::nullable("c", ColumnType::Utf8),
            Column::nullable("d", ColumnType::Int16),
            Column::nullable("e", ColumnType::Boolean),
            Column::nullable("f", ColumnType::List(&ColumnType::Int32)),
            Column::nullable("g", ColumnType::List(&ColumnType::Utf8)),
        ])
    }

    fn header(event: i64, available: i64, position: i64, within: i64) -> RowHeader {
        RowHeader {
            event_time: Timestamp::from_micros(event),
            available_time: Timestamp::from_micros(available),
            written: WriteOrder { position, within },
        }
    }

    type Lists = (Option<Vec<Option<i32>>>, Option<Vec<Option<String>>>);
    type Values = (Option<String>, Option<f64>, Option<String>, Option<i16>, Option<bool>, Lists);

    fn arrays(rows: &[Values]) -> Vec<ArrayRef> {
        vec![
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.0.clone()))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.1))),
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.2.clone()))),
            Arc::new(Int16Array::from_iter(rows.iter().map(|row| row.3))),
            Arc::new(BooleanArray::from_iter(rows.iter().map(|row| row.4))),
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows.iter().map(|row| row.5.0.clone()))),
            texts(rows),
        ]
    }

    fn texts(rows: &[Values]) -> ArrayRef {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for (.., (_, list)) in rows {
            lists.append_option(list.clone());
        }
        Arc::new(lists.finish())
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_bit_for_bit(rows in proptest::collection::vec(any::<Values>(), 1..20)) {
            let columns = arrays(&rows);
            let packed = layout().encode(&vec![header(1, 2, 3, 4); rows.len()], &columns).expect("typed");
            let unpacked = layout().decode(&packed.iter().map(Some).collect::<Vec<_>>()).expect("own bytes");
            for (before, after) in columns.iter().zip(&unpacked) {
                prop_assert_eq!(before.to_data(), after.to_data());
            }
            prop_assert_eq!(RowHeader::read(&packed[0]), Some(header(1, 2, 3, 4)));
        }

        #[test]
        fn rows_compare_as_rule_t5_orders_them(a in any::<(i64, i64, i64, i64)>(), b in any::<(i64, i64, i64, i64)>()) {
            let columns = arrays(&[Values::default(), Values::default()]);
            let rows = layout().encode(&[header(a.0, a.1, a.2, a.3), header(b.0, b.1, b.2, b.3)], &columns).expect("typed");
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
            other.encode(&[header(0, 0, 0, 0)], &[Arc::new(Float64Array::from(vec![1.0])) as ArrayRef]).expect("typed");
        let error = layout().decode(&[Some(&rows[0])]).expect_err("another schema");
        assert_eq!(error.kind(), crate::ErrorKind::Damaged);
    }
}
