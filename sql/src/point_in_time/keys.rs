//! How the join compares keys: one integer as it is, anything else as Arrow's rows.

use std::cmp::Ordering;

use arrow::array::{ArrayRef, AsArray};
use arrow::buffer::ScalarBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use datafusion::error::Result;

/// The keys of a batch.
pub(super) trait Keys: Send + Sync + Sized + 'static {
    /// Makes them of columns.
    type Converter: Send;
    /// One of them.
    type Key<'a>: Copy + Send;
    /// One of them that outlives its batch.
    type Owned: Send;

    fn converter(fields: &[SortField]) -> Result<Self::Converter>;
    fn convert(converter: &Self::Converter, columns: &[ArrayRef]) -> Result<Self>;
    fn key(&self, row: usize) -> Self::Key<'_>;
    fn own(key: Self::Key<'_>) -> Self::Owned;
    fn is(owned: &Self::Owned, key: Self::Key<'_>) -> bool;
    fn compare(one: Self::Key<'_>, other: Self::Key<'_>) -> Ordering;
}

/// Keys of any columns.
impl Keys for Rows {
    type Converter = RowConverter;
    type Key<'a> = Row<'a>;
    type Owned = OwnedRow;

    fn converter(fields: &[SortField]) -> Result<RowConverter> {
        Ok(RowConverter::new(fields.to_vec())?)
    }

    fn convert(converter: &RowConverter, columns: &[ArrayRef]) -> Result<Self> {
        Ok(converter.convert_columns(columns)?)
    }

    fn key(&self, row: usize) -> Row<'_> {
        self.row(row)
    }

    fn own(key: Row<'_>) -> OwnedRow {
        key.owned()
    }

    fn is(owned: &OwnedRow, key: Row<'_>) -> bool {
        owned.row() == key
    }

    fn compare(one: Row<'_>, other: Row<'_>) -> Ordering {
        one.cmp(&other)
    }
}

/// Keys of one column of integers, dates or times. What stands for a null is not a key: nobody asks for it.
pub(super) struct Integers(ScalarBuffer<i64>);

/// The values of a column of integers, dates or times.
pub(super) fn integers(column: &ArrayRef) -> Result<ScalarBuffer<i64>> {
    let column = match column.data_type() {
        DataType::Date32 => cast(column, &DataType::Int32)?,
        _ => ArrayRef::clone(column),
    };
    Ok(cast(&column, &DataType::Int64)?.as_primitive::<Int64Type>().values().clone())
}

impl Integers {
    /// Whether keys of these columns are such.
    pub(super) fn are(columns: &[DataType]) -> bool {
        let [kind] = columns else { return false };
        let fits = kind.is_integer() && *kind != DataType::UInt64;
        fits || matches!(kind, DataType::Date32 | DataType::Timestamp(..))
    }
}

impl Keys for Integers {
    type Converter = ();
    type Key<'a> = i64;
    type Owned = i64;

    fn converter(_fields: &[SortField]) -> Result<()> {
        Ok(())
    }

    fn convert((): &(), columns: &[ArrayRef]) -> Result<Self> {
        Ok(Self(integers(&columns[0])?))
    }

    fn key(&self, row: usize) -> i64 {
        self.0[row]
    }

    fn own(key: i64) -> i64 {
        key
    }

    fn is(owned: &i64, key: i64) -> bool {
        *owned == key
    }

    fn compare(one: i64, other: i64) -> Ordering {
        one.cmp(&other)
    }
}
