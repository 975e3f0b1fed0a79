//! Whether the times of a column are ones that events may have (rule T1).

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::TimestampMicrosecondType;

use crate::Result;
use crate::time::Timestamp;

/// Refuses a column of times, or of lists of times, with one outside of the years 1 to 9999. Columns of other types pass.
///
/// # Errors
/// [`crate::ErrorKind::Invalid`] with the row, counted from 0, and the value.
pub fn check_dated(column: &ArrayRef) -> Result<()> {
    let refuse = |row: usize, time: Timestamp| match time.dated() {
        Ok(_) => Ok(()),
        Err(error) => Err(error.with("row", row)),
    };
    if let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() {
        return undated(times).map_or(Ok(()), |(row, time)| refuse(row, time));
    }
    let Some(lists) = column.as_list_opt::<i32>() else { return Ok(()) };
    let Some(all) = lists.values().as_primitive_opt::<TimestampMicrosecondType>() else { return Ok(()) };
    if undated(all).is_none() {
        return Ok(());
    }
    for row in (0..lists.len()).filter(|row| lists.is_valid(*row)) {
        let list = lists.value(row);
        if let Some((_, time)) = list.as_primitive_opt().and_then(undated) {
            return refuse(row, time);
        }
    }
    Ok(())
}

/// The first time that is none of an event.
fn undated(times: &TimestampMicrosecondArray) -> Option<(usize, Timestamp)> {
    let mut values = times.values().iter().map(|micros| Timestamp::from_micros(*micros)).enumerate();
    values.find(|(row, time)| !time.is_dated() && times.is_valid(*row))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, ListArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Field;

    use super::*;

    fn times(micros: Vec<Option<i64>>) -> TimestampMicrosecondArray {
        TimestampMicrosecondArray::from(micros)
    }

    #[test]
    fn a_time_outside_of_the_years_is_named_with_its_row() {
        let good: ArrayRef = Arc::new(times(vec![Some(0), None, Some(Timestamp::LAST.micros())]));
        check_dated(&good).expect("dated");
        let wrong: ArrayRef = Arc::new(times(vec![Some(0), None, Some(-i64::MAX)]));
        let error = check_dated(&wrong).expect_err("DuckDB's -infinity").to_string();
        assert!(error.contains("row: 2") && error.contains("value: -9223372036854775807 us"), "{error}");
        let others: ArrayRef = Arc::new(Int64Array::from(vec![i64::MIN]));
        check_dated(&others).expect("no times");
    }

    #[test]
    fn lists_are_looked_into_and_what_no_list_shows_is_not() {
        let values = times(vec![Some(i64::MAX), Some(1), Some(2), Some(i64::MIN)]);
        let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([1, 2, 1]);
        let all: ArrayRef = Arc::new(ListArray::new(field, offsets, Arc::new(values), None));
        assert!(check_dated(&all).expect_err("the first").to_string().contains("row: 0"));
        assert!(check_dated(&all.slice(1, 2)).expect_err("the last").to_string().contains("row: 1"));
        check_dated(&all.slice(1, 1)).expect("dated");
    }
}
