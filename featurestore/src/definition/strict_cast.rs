//! Columns from outside in their declared types: a value that is not of its column's type is refused, never changed (rule T12).
//!
//! | declared | taken, besides the type itself |
//! |---|---|
//! | an integer type | any integer type, where every value fits |
//! | `FLOAT`, `DOUBLE` | floats and integers, where no digit of any value is lost |
//! | `VARCHAR` | text in Arrow's other layouts |
//! | `DATE` | milliseconds of whole days |
//! | `TIMESTAMP` | timestamps of other units and zones, where whole microseconds hold every value; text with a zone |
//! | a list | lists in Arrow's other layouts, of what the elements' type takes |
//!
//! Dictionaries are taken for what they stand for, and nulls are of every type.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use arrow::util::display::array_value_to_string;
use chrono::DateTime;

use super::{Column, ColumnType};
use crate::time::Timestamp;
use crate::{Error, Result};

/// The most characters of a value that an error shows.
const SHOWN: usize = 100;

/// The column in its declared type, value for value.
///
/// # Errors
/// [`crate::ErrorKind::Invalid`] names the column, the first row (from 0) that is not of the type, and its value.
pub fn strict_cast(column: &Column, given: &ArrayRef) -> Result<ArrayRef> {
    strict_cast_of_rows(column, given, |row| row as u64)
}

/// As [`strict_cast`], for rows that have numbers of their own: `number` gives the one that an error names.
///
/// # Errors
/// As [`strict_cast`].
pub fn strict_cast_of_rows(column: &Column, given: &ArrayRef, number: impl Fn(usize) -> u64) -> Result<ArrayRef> {
    convert(column.column_type, given).map_err(|misfit| misfit.error(column, given.data_type(), number))
}

/// The column from texts that a person wrote for its values: `7` for a `BIGINT`, `2013-12-01T05:00:00Z` for a `TIMESTAMP`.
///
/// # Errors
/// As [`strict_cast`].
pub fn values_of_texts(column: &Column, texts: &StringArray) -> Result<ArrayRef> {
    let given: ArrayRef = Arc::new(texts.clone());
    let read = match column.column_type {
        ColumnType::Utf8 | ColumnType::Timestamp | ColumnType::List(_) => convert(column.column_type, &given),
        kind => cast_with_options(&given, &kind.to_arrow(), &SAFE).map_err(Misfit::Arrow).and_then(|read| {
            match (0..given.len()).find(|row| given.is_valid(*row) && read.is_null(*row)) {
                Some(row) => Err(Misfit::at(row, &given, Why::OtherType)),
                None => Ok(read),
            }
        }),
    };
    read.map_err(|misfit| misfit.error(column, given.data_type(), |row| row as u64))
}

/// What cannot be cast becomes null, and is found by that.
const SAFE: CastOptions<'static> =
    CastOptions { safe: true, format_options: arrow::util::display::FormatOptions::new() };

/// Why a value is not of a type.
#[derive(Debug, Clone, Copy)]
enum Why {
    /// Its own type is another.
    OtherType,
    /// Digits of it would be lost.
    Lossy,
    /// A time that does not say of which zone.
    NoZone,
}

/// What is wrong with a column.
#[derive(Debug)]
enum Misfit {
    /// A value.
    Value { row: usize, value: String, why: Why },
    /// Arrow's own refusal, such as texts beyond 2 GiB.
    Arrow(ArrowError),
}

impl Misfit {
    fn at(row: usize, given: &dyn Array, why: Why) -> Self {
        let value = array_value_to_string(given, row).unwrap_or_else(|_| "one that cannot be shown".to_owned());
        let value = match value.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}...", &value[..end]),
            None => value,
        };
        Self::Value { row, value, why }
    }

    fn error(self, column: &Column, given: &DataType, number: impl Fn(usize) -> u64) -> Error {
        let kind = column.column_type;
        let error = |message: &str| {
            Error::invalid(message).with("column", &column.name).with("expected", kind).with("given", given)
        };
        match self {
            Self::Arrow(source) => error("a column cannot be read in its declared type").source(source),
            Self::Value { row, value, why } => {
                let (message, remedy) = match why {
                    Why::OtherType => ("a value is not of its column's type", format!("send {kind}")),
                    Why::Lossy => (
                        "a value does not fit its column's type",
                        format!("send {kind}: no value is rounded or cut off"),
                    ),
                    Why::NoZone => (
                        "a time has no time zone",
                        "send timestamps with a zone, or text such as 2013-12-01T05:00:00Z".to_owned(),
                    ),
                };
                error(message).with("row", number(row)).with("value", value).remedy(remedy)
            }
        }
    }
}

/// How the values of an Arrow type become a column type's.
enum Way {
    /// Every value can.
    Always,
    /// Those can that are the same when they are cast back.
    ThereAndBack,
    /// None can.
    Never(Why),
}

fn way(from: &DataType, to: ColumnType) -> Way {
    let text = matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match to {
        ColumnType::Utf8 if text => Way::Always,
        // A float is no integer, a whole one neither: whether a stream works must not depend on what comes next.
        ColumnType::Int8
        | ColumnType::Int16
        | ColumnType::Int32
        | ColumnType::Int64
        | ColumnType::UInt8
        | ColumnType::UInt16
        | ColumnType::UInt32
        | ColumnType::UInt64
            if from.is_integer() =>
        {
            Way::ThereAndBack
        }
        ColumnType::Float32 | ColumnType::Float64 if from.is_integer() || from.is_floating() => Way::ThereAndBack,
        ColumnType::Date if *from == DataType::Date64 => Way::ThereAndBack,
        ColumnType::Timestamp => match from {
            DataType::Timestamp(_, Some(_)) => Way::ThereAndBack,
            DataType::Timestamp(_, None) => Way::Never(Why::NoZone),
            _ => Way::Never(Why::OtherType),
        },
        _ => Way::Never(Why::OtherType),
    }
}

fn convert(kind: ColumnType, given: &ArrayRef) -> Result<ArrayRef, Misfit> {
    let wanted = kind.to_arrow();
    if *given.data_type() == wanted {
        return Ok(Arc::clone(given));
    }
    if given.logical_null_count() == given.len() {
        return Ok(new_null_array(&wanted, given.len()));
    }
    match (given.data_type(), kind) {
        (DataType::Dictionary(_, values), _) => {
            let values = values.as_ref().clone();
            return convert(kind, &cast(given, &values).map_err(Misfit::Arrow)?);
        }
        (
            DataType::List(element) | DataType::LargeList(element) | DataType::FixedSizeList(element, _),
            ColumnType::List(wanted),
        ) => return lists(*wanted, element.data_type(), given),
        (DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View, ColumnType::Timestamp) => return times(given),
        _ => {}
    }
    match way(given.data_type(), kind) {
        Way::Always => cast(given, &wanted).map_err(Misfit::Arrow),
        Way::ThereAndBack => there_and_back(&wanted, given),
        Way::Never(why) => {
            let nulls = given.logical_nulls();
            let row = (0..given.len()).find(|row| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*row)));
            Err(Misfit::at(row.unwrap_or_default(), given, why))
        }
    }
}

/// The values in another type, if each of them is the same when it comes back.
fn there_and_back(wanted: &DataType, given: &ArrayRef) -> Result<ArrayRef, Misfit> {
    let there = cast_with_options(given, wanted, &SAFE).map_err(Misfit::Arrow)?;
    let back = cast_with_options(&there, given.data_type(), &SAFE).map_err(Misfit::Arrow)?;
    let same = not_distinct(&back, given).map_err(Misfit::Arrow)?;
    match same.values().iter().position(|same| !same) {
        Some(row) => Err(Misfit::at(row, given, Why::Lossy)),
        None => Ok(there),
    }
}

/// Times from texts that name their zone.
fn times(given: &ArrayRef) -> Result<ArrayRef, Misfit> {
    let texts = cast(given, &DataType::Utf8).map_err(Misfit::Arrow)?;
    let texts = texts.as_string::<i32>();
    let mut times = Vec::with_capacity(texts.len());
    for (row, text) in texts.iter().enumerate() {
        let unread = |text| Timestamp::parse(text).map_or(Why::OtherType, |_| Why::NoZone);
        let time = text.map(|text| DateTime::parse_from_rfc3339(text).map_err(|_| unread(text))).transpose();
        let time = time.map_err(|why| Misfit::at(row, given, why))?;
        if time.is_some_and(|time| time.timestamp_subsec_nanos() % 1_000 != 0) {
            return Err(Misfit::at(row, given, Why::Lossy));
        }
        times.push(time.map(|time| time.timestamp_micros()));
    }
    Ok(Arc::new(TimestampMicrosecondArray::from(times).with_data_type(ColumnType::Timestamp.to_arrow())))
}

/// Lists of elements in their type; what no row holds is left out.
fn lists(wanted: ColumnType, element: &DataType, given: &ArrayRef) -> Result<ArrayRef, Misfit> {
    let plain = DataType::List(Arc::new(Field::new_list_field(element.clone(), true)));
    let plain = cast(given, &plain).map_err(Misfit::Arrow)?;
    let plain = plain.as_list::<i32>();
    let offsets = plain.value_offsets();
    let place = |at: Option<&i32>| at.and_then(|at| usize::try_from(*at).ok()).unwrap_or_default();
    let (start, end) = (place(offsets.first()), place(offsets.last()));
    let ends = OffsetBuffer::<i32>::from_lengths(plain.offsets().lengths());
    let elements =
        convert(wanted, &plain.values().slice(start, end.saturating_sub(start))).map_err(|misfit| match misfit {
            Misfit::Value { row, value, why } => {
                let before = ends.iter().take_while(|end| place(Some(*end)) <= row).count();
                Misfit::Value { row: before.saturating_sub(1), value, why }
            }
            arrow @ Misfit::Arrow(_) => arrow,
        })?;
    let field = Arc::new(Field::new_list_field(wanted.to_arrow(), true));
    let lists = ListArray::try_new(field, ends, elements, plain.nulls().cloned()).map_err(Misfit::Arrow)?;
    Ok(Arc::new(lists))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, Date64Array, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, ListArray,
        NullArray, StringViewArray, TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
    };
    use arrow::datatypes::{Float64Type, Int8Type, Int64Type};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
    fn taken(kind: ColumnType, given: ArrayRef) -> ArrayRef {
        let cast = strict_cast(&Column::nullable("key", kind), &given).expect("of its type");
        assert_eq!((cast.data_type(), cast.len()), (&kind.to_arrow(), given.len()));
        cast
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
    fn refused(kind: ColumnType, given: ArrayRef, row: usize, value: &str) {
        let error = strict_cast(&Column::nullable("key", kind), &given).expect_err("not of its type").to_string();
        for part in ["column: key".to_owned(), format!("row: {row}"), format!("value: {value}")] {
            assert!(error.contains(&part), "{part}\n{error}");
        }
    }

    #[test]
    fn what_loses_nothing_is_taken() {
        let wide = taken(ColumnType::Int64, Arc::new(Int32Array::from(vec![Some(7), None])));
        assert_eq!(wide.as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(7), None]);
        taken(ColumnType::Int32, Arc::new(Int64Array::from(vec![-5, 7])));
        taken(ColumnType::Float64, Arc::new(Int64Array::from(vec![1 << 53])));
        taken(ColumnType::Float32, Arc::new(Float64Array::from(vec![0.5, f64::NAN, f64::INFINITY])));
        taken(ColumnType::Utf8, Arc::new(LargeStringArray::from(vec!["a"])));
        taken(ColumnType::Utf8, Arc::new(StringViewArray::from(vec!["a text of more than twelve letters"])));
        let words: DictionaryArray<Int8Type> = ["a", "b", "a"].into_iter().collect();
        assert_eq!(taken(ColumnType::Utf8, Arc::new(words)).as_string::<i32>().value(2), "a");
        taken(ColumnType::Date, Arc::new(Date64Array::from(vec![86_400_000])));
        taken(ColumnType::Timestamp, Arc::new(TimestampSecondArray::from(vec![5]).with_timezone("+02:00")));
        taken(ColumnType::Timestamp, Arc::new(TimestampNanosecondArray::from(vec![5_000]).with_timezone("UTC")));
        let text = taken(ColumnType::Timestamp, Arc::new(StringArray::from(vec!["1970-01-01T02:00:01+02:00"])));
        assert_eq!(text.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0), 1_000_000);
        assert_eq!(taken(ColumnType::Boolean, Arc::new(NullArray::new(3))).null_count(), 3);
        taken(ColumnType::Int64, Arc::new(Float64Array::new_null(2)));
    }

    #[test]
    fn what_would_be_changed_is_refused_with_its_row_and_value() {
        refused(
            ColumnType::Int64,
            Arc::new(Float64Array::from(vec![None, Some(487_091_308_399.7)])),
            1,
            "487091308399.7",
        );
        refused(ColumnType::Int32, Arc::new(Float64Array::from(vec![2.75])), 0, "2.75");
        refused(ColumnType::Int64, Arc::new(StringArray::from(vec![None, Some("abc")])), 1, "abc");
        refused(ColumnType::Utf8, Arc::new(Int64Array::from(vec![123])), 0, "123");
        refused(ColumnType::Boolean, Arc::new(Int64Array::from(vec![1])), 0, "1");
        refused(ColumnType::Int64, Arc::new(BooleanArray::from(vec![true])), 0, "true");
        refused(ColumnType::Int32, Arc::new(Int64Array::from(vec![1, 1 << 31])), 1, "2147483648");
        refused(ColumnType::Int64, Arc::new(UInt64Array::from(vec![u64::MAX])), 0, "18446744073709551615");
        refused(ColumnType::Float64, Arc::new(Int64Array::from(vec![i64::MAX])), 0, "9223372036854775807");
        refused(ColumnType::Float32, Arc::new(Float64Array::from(vec![0.1])), 0, "0.1");
        refused(ColumnType::Date, Arc::new(Date64Array::from(vec![1])), 0, "1970-01-01");
        refused(ColumnType::Timestamp, Arc::new(TimestampSecondArray::from(vec![5])), 0, "1970-01-01T00:00:05");
        refused(
            ColumnType::Timestamp,
            Arc::new(StringArray::from(vec!["2013-12-01 05:00:00"])),
            0,
            "2013-12-01 05:00:00",
        );
        let nanos = TimestampNanosecondArray::from(vec![5_001]).with_timezone("UTC");
        refused(ColumnType::Timestamp, Arc::new(nanos), 0, "1970-01-01T00:00:00.000005001Z");
        let seconds = TimestampSecondArray::from(vec![i64::MAX]).with_timezone("UTC");
        assert!(strict_cast(&Column::nullable("at", ColumnType::Timestamp), &(Arc::new(seconds) as ArrayRef)).is_err());
    }

    #[test]
    fn a_list_is_taken_by_its_elements_and_refused_with_the_row_that_holds_one() {
        let lists = |values: Vec<Option<Vec<Option<f64>>>>| -> ArrayRef {
            Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(values))
        };
        let floats = ColumnType::Float32.list_of().expect("a scalar");
        let given = lists(vec![Some(vec![Some(0.1)]), None, Some(vec![Some(0.5), None]), Some(vec![])]);
        assert_eq!(taken(floats, given.slice(1, 3)).as_list::<i32>().value(1).len(), 2);
        refused(floats, given.slice(0, 2), 0, "0.1");
        refused(floats, lists(vec![Some(vec![]), None, Some(vec![Some(0.5), Some(0.1)])]), 2, "0.1");
    }

    #[test]
    fn texts_that_people_write_are_read_by_the_type() {
        let read = |kind, text: &str| values_of_texts(&Column::nullable("key", kind), &StringArray::from(vec![text]));
        assert_eq!(read(ColumnType::Int64, "-7").expect("a number").as_primitive::<Int64Type>().value(0), -7);
        assert_eq!(read(ColumnType::Utf8, "00123").expect("text").as_string::<i32>().value(0), "00123");
        assert!(read(ColumnType::Date, "2013-12-01").is_ok() && read(ColumnType::Boolean, "true").is_ok());
        for (kind, wrong) in [(ColumnType::Int64, "abc"), (ColumnType::Int64, "1.5"), (ColumnType::Timestamp, "now")] {
            let error = read(kind, wrong).expect_err("not of its type").to_string();
            assert!(error.contains(&format!("value: {wrong}")), "{error}");
        }
    }
}
