//! A view's rows sorted in memory, as its data files have them: keys, times, their place in the order of writes where it
//! counts, values, nulls first.
//!
//! An engine's sort takes any columns and any size. Rows that are few enough to be held are sorted several times as fast by
//! the rank of their key and their two times; the others are looked at where all of these are equal.

use std::cmp::Ordering;

use arrow::array::{ArrayRef, AsArray, DynComparator, RecordBatch, UInt32Array, make_comparator};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::{KeyCodec, RowsByKey};
use springhouse_featurestore::tier::{AVAILABLE_TIME, EVENT_TIME, WRITE_POSITION, WRITE_WITHIN, data_schema};
use springhouse_featurestore::{Error, Result};

use crate::point_in_time::ascending;
use crate::session::BATCH_ROWS;

/// Sorts a view's rows, which have whole keys and times.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Internal`] for batches without the columns of the view's data files.
pub fn sorted_in_memory(view: &FeatureView, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let rows = concat_batches(&data_schema(view), batches)?;
    let column = |name: &str| {
        rows.column_by_name(name)
            .cloned()
            .ok_or_else(|| Error::internal("a batch of view rows lacks a column").with("column", name))
    };
    let keys = view.keys.iter().map(|key| column(&key.name)).collect::<Result<Vec<ArrayRef>>>()?;
    let encoded = KeyCodec::new(&view.keys)?.encode(&keys)?;
    let by_key = RowsByKey::new(&encoded);
    if by_key.rows() != rows.num_rows() {
        return Err(Error::internal("a view's row has no key").with("view", &view.name));
    }
    let (event, available) = (column(EVENT_TIME)?, column(AVAILABLE_TIME)?);
    let times = |column: &ArrayRef| column.as_primitive::<TimestampMicrosecondType>().values().clone();
    let (event, available) = (times(&event), times(&available));
    let order = [WRITE_POSITION, WRITE_WITHIN].into_iter().filter(|_| view.keeps_order());
    let others = order.chain(view.row_columns().iter().map(|of| of.name.as_str())).map(|name| {
        let column = column(name)?;
        Ok(make_comparator(&column, &column, ascending())?)
    });
    let others = others.collect::<Result<Vec<DynComparator>>>()?;
    let by_rest = |one: u32, other: u32| {
        let (one, other) = (one as usize, other as usize);
        let compared = others.iter().map(|compare| compare(one, other));
        compared.fold(available[one].cmp(&available[other]), Ordering::then)
    };
    let mut order: Vec<(i64, u32)> = Vec::with_capacity(by_key.rows());
    for (_, rows) in by_key.iter() {
        let first = order.len();
        order.extend(rows.iter().map(|row| (event[*row as usize], *row)));
        // Events come nearly in order, or in several such runs, which a stable sort merges.
        order[first..].sort_by(|one, other| one.0.cmp(&other.0).then_with(|| by_rest(one.1, other.1)));
    }
    let taken = order.chunks(BATCH_ROWS).map(|chunk| {
        let indices = UInt32Array::from_iter_values(chunk.iter().map(|(_, row)| *row));
        Ok(take_record_batch(&rows, &indices)?)
    });
    taken.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::row::{RowConverter, SortField};
    use proptest::prelude::*;
    use springhouse_featurestore::definition::{Column, ColumnType, Pinned, RowTime, Version};
    use springhouse_featurestore::time::Span;

    use super::*;

    fn view() -> FeatureView {
        FeatureView {
            name: "spent".to_owned(),
            version: Version::from_text("0"),
            policy: None,
            text: String::new(),
            entity: Pinned::new("account", Version::from_text("0")),
            keys: vec![Column::required("name", ColumnType::Utf8), Column::required("number", ColumnType::Int64)],
            sources: Vec::new(),
            query: String::new(),
            row_time: RowTime::Static,
            refresh_every: Span::ZERO,
            ttl: None,
            lookback: None,
            windowed: None,
            ahead: false,
            features: vec![Column::nullable("amount", ColumnType::Float64)],
        }
    }

    type Row = (&'static str, i64, i64, i64, Option<f64>, i64);

    fn batch(rows: &[Row]) -> RecordBatch {
        let times = |of: fn(&Row) -> i64| {
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(of)).with_timezone("UTC")) as ArrayRef
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.4))),
            times(|row| row.2),
            times(|row| row.3),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.5 / 2))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.5 % 2))),
        ];
        RecordBatch::try_new(data_schema(&view()), columns).expect("the view's columns")
    }

    proptest! {
        #[test]
        fn rows_come_in_the_order_that_arrow_gives_them(
            rows in proptest::collection::vec(
                (
                    proptest::sample::select(vec!["", "a", "ab", "b\0", "b"]), -2_i64..2, 0_i64..3, 0_i64..3,
                    proptest::option::of(proptest::sample::select(vec![0.0, -0.0, 1.0, f64::NAN, f64::NEG_INFINITY])),
                    0_i64..4,
                ),
                0..60,
            ),
            cut in 0_usize..60,
        ) {
            let (one, other) = rows.split_at(cut.min(rows.len()));
            let sorted = sorted_in_memory(&view(), &[batch(one), batch(other)]).expect("sorts");
            let sorted = concat_batches(&data_schema(&view()), &sorted).expect("one schema");
            let as_rows = |batch: &RecordBatch| -> Vec<Vec<u8>> {
                let of = [0, 1, 3, 4, 5, 6, 2].map(|index| Arc::clone(batch.column(index)));
                let fields = of.iter().map(|column| SortField::new(column.data_type().clone())).collect();
                let rows = RowConverter::new(fields).expect("sortable").convert_columns(&of).expect("converts");
                rows.iter().map(|row| row.as_ref().to_vec()).collect()
            };
            let mut expected = as_rows(&batch(&rows));
            expected.sort();
            prop_assert_eq!(as_rows(&sorted), expected);
        }
    }
}
