//! Between Arrow columns and summaries: the values of events going in, the features of windows coming out.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, PrimitiveArray, UInt64Array};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float64Type, Int64Type, UInt64Type};

use super::{Summaries, Summary, TileLayout, Value, float_of};
use crate::Result;
use crate::definition::{Aggregate, AggregateFunction, ColumnType, Windowed};

/// The argument columns of a batch of events.
#[derive(Debug)]
pub struct Arguments {
    columns: Vec<Argument>,
}

#[derive(Debug)]
enum Argument {
    Signed(Int64Array),
    Unsigned(UInt64Array),
    Float(Float64Array),
    Moment(Int64Array),
    Present(Option<NullBuffer>),
}

fn widened<T: ArrowPrimitiveType>(array: &ArrayRef) -> Result<PrimitiveArray<T>> {
    Ok(cast(array, &T::DATA_TYPE)?.as_primitive::<T>().clone())
}

fn value_of<T: ArrowPrimitiveType>(
    array: &PrimitiveArray<T>,
    row: usize,
    of: impl Fn(T::Native) -> Value,
) -> Option<Value> {
    array.is_valid(row).then(|| of(array.value(row)))
}

impl Arguments {
    /// Of the columns that a view's events have, in the order of its arguments.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when a column is of another type than its argument.
    pub fn new(windowed: &Windowed, arrays: &[ArrayRef]) -> Result<Self> {
        let column = |(argument, array): (&crate::definition::Column, &ArrayRef)| {
            Ok(match argument.column_type {
                ColumnType::Int8 | ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
                    Argument::Signed(widened::<Int64Type>(array)?)
                }
                ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => {
                    Argument::Unsigned(widened::<UInt64Type>(array)?)
                }
                ColumnType::Float32 | ColumnType::Float64 => Argument::Float(widened::<Float64Type>(array)?),
                ColumnType::Date => Argument::Moment(widened::<Int64Type>(&cast(array, &DataType::Int32)?)?),
                ColumnType::Timestamp => Argument::Moment(widened::<Int64Type>(array)?),
                ColumnType::Boolean | ColumnType::Utf8 => Argument::Present(array.logical_nulls()),
            })
        };
        Ok(Self { columns: windowed.arguments.iter().zip(arrays).map(column).collect::<Result<_>>()? })
    }

    /// The values of an event.
    pub fn of_row(&self, row: usize, values: &mut Vec<Option<Value>>) {
        values.clear();
        values.extend(self.columns.iter().map(|column| match column {
            Argument::Signed(array) => value_of(array, row, Value::Signed),
            Argument::Unsigned(array) => value_of(array, row, Value::Unsigned),
            Argument::Float(array) => value_of(array, row, Value::Float),
            Argument::Moment(array) => value_of(array, row, Value::Moment),
            Argument::Present(nulls) => {
                nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)).then_some(Value::Present)
            }
        }));
    }
}

/// The feature columns of rows of windows: for each row the summaries of each window, or nothing where there is no row.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] when the summaries are not the layout's.
pub fn feature_columns(
    windowed: &Windowed,
    layout: &TileLayout,
    rows: &[Option<Vec<Summaries>>],
) -> Result<Vec<ArrayRef>> {
    let mut columns = Vec::with_capacity(windowed.aggregates.len() * windowed.windows.len());
    for (index, aggregate) in windowed.aggregates.iter().enumerate() {
        let summary = layout.summary_of(index);
        let argument = aggregate.argument.map(|argument| windowed.arguments[argument].column_type);
        for window in 0..windowed.windows.len() {
            let of_row = |row: &Option<Vec<Summaries>>| row.as_ref().map(|windows| windows[window][summary].clone());
            columns.push(column(aggregate, argument, rows.iter().map(of_row))?);
        }
    }
    Ok(columns)
}

fn column(
    aggregate: &Aggregate,
    argument: Option<ColumnType>,
    summaries: impl Iterator<Item = Option<Summary>>,
) -> Result<ArrayRef> {
    let values: ArrayRef = match (aggregate.function, argument) {
        (AggregateFunction::Count, _) => {
            let count = |summary: Summary| i64::try_from(summary.count()).ok();
            Arc::new(Int64Array::from_iter(summaries.map(|of| of.and_then(count))))
        }
        (AggregateFunction::Sum, Some(ColumnType::Float32 | ColumnType::Float64)) => {
            let sum = |summary: Summary| (summary.count() > 0).then(|| summary.total().sum());
            Arc::new(Float64Array::from_iter(summaries.map(|of| of.and_then(sum))))
        }
        (AggregateFunction::Sum, _) => {
            let sum = |summary: Summary| (summary.count() > 0).then(|| summary.total().integer()).flatten();
            Arc::new(Int64Array::from_iter(summaries.map(|of| of.and_then(sum).and_then(|sum| sum.try_into().ok()))))
        }
        (AggregateFunction::Least | AggregateFunction::Greatest, argument) => {
            let least = aggregate.function == AggregateFunction::Least;
            let end = move |summary: Summary| {
                if least { summary.extremes().least() } else { summary.extremes().greatest() }
            };
            extremes(argument, summaries.map(|of| of.and_then(end)))?
        }
        (AggregateFunction::Mean, _) => Arc::new(Float64Array::from_iter(summaries.map(|of| of?.mean()))),
        (AggregateFunction::VarianceSample | AggregateFunction::VariancePopulation, _) => {
            let divisor = aggregate.function.divisor();
            Arc::new(Float64Array::from_iter(summaries.map(|of| of?.variance(divisor))))
        }
        (AggregateFunction::DeviationSample | AggregateFunction::DeviationPopulation, _) => {
            let divisor = aggregate.function.divisor();
            Arc::new(Float64Array::from_iter(summaries.map(|of| of?.deviation(divisor))))
        }
    };
    let wanted = aggregate.output.to_arrow();
    Ok(if values.data_type() == &wanted { values } else { cast(&values, &wanted)? })
}

/// The least or greatest values of an argument, from the integers that stand for them.
fn extremes(argument: Option<ColumnType>, orders: impl Iterator<Item = Option<i64>>) -> Result<ArrayRef> {
    Ok(match argument {
        Some(ColumnType::Float32 | ColumnType::Float64) => {
            Arc::new(Float64Array::from_iter(orders.map(|order| order.map(float_of))))
        }
        Some(ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64) => {
            Arc::new(UInt64Array::from_iter(orders.map(|order| order.map(|order| order.cast_unsigned() ^ 1 << 63))))
        }
        Some(ColumnType::Date) => cast(&(Arc::new(Int64Array::from_iter(orders)) as ArrayRef), &DataType::Int32)?,
        _ => Arc::new(Int64Array::from_iter(orders)),
    })
}
