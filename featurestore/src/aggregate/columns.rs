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

/// Builds the feature columns of a windowed view, a row of windows at a time.
#[derive(Debug)]
pub struct FeatureBuilder<'a> {
    /// Each aggregate over each window, in the order of the features.
    columns: Vec<FeatureColumn<'a>>,
}

#[derive(Debug)]
struct FeatureColumn<'a> {
    aggregate: &'a Aggregate,
    window: usize,
    summary: usize,
    values: Values,
}

/// Finished values.
#[derive(Debug)]
enum Values {
    Integers(Vec<Option<i64>>),
    Unsigned(Vec<Option<u64>>),
    Floats(Vec<Option<f64>>),
}

impl<'a> FeatureBuilder<'a> {
    /// No rows yet.
    pub fn new(windowed: &'a Windowed, layout: &TileLayout) -> Self {
        let mut columns = Vec::with_capacity(windowed.aggregates.len() * windowed.windows.len());
        for (index, aggregate) in windowed.aggregates.iter().enumerate() {
            let argument = aggregate.argument.map(|argument| windowed.arguments[argument].column_type);
            for window in 0..windowed.windows.len() {
                let (summary, values) = (layout.summary_of(index), Values::of(aggregate.function, argument));
                columns.push(FeatureColumn { aggregate, window, summary, values });
            }
        }
        Self { columns }
    }

    /// Adds the summaries of each window of an entity; nulls where the entity does not exist.
    pub fn append(&mut self, windows: Option<&[Summaries]>) {
        for column in &mut self.columns {
            let summary = windows.map(|windows| &windows[column.window][column.summary]);
            column.values.append(column.aggregate.function, summary);
        }
    }

    /// The columns.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when values do not fit the features' types.
    pub fn finish(self) -> Result<Vec<ArrayRef>> {
        self.columns.into_iter().map(FeatureColumn::finish).collect()
    }
}

impl FeatureColumn<'_> {
    fn finish(self) -> Result<ArrayRef> {
        let values: ArrayRef = match self.values {
            Values::Integers(values) => Arc::new(Int64Array::from(values)),
            Values::Unsigned(values) => Arc::new(UInt64Array::from(values)),
            Values::Floats(values) => Arc::new(Float64Array::from(values)),
        };
        let output = self.aggregate.output;
        // Days are 32 bits wide.
        let values = if output == ColumnType::Date { cast(&values, &DataType::Int32)? } else { values };
        Ok(cast(&values, &output.to_arrow())?)
    }
}

impl Values {
    fn of(function: AggregateFunction, argument: Option<ColumnType>) -> Self {
        let float = matches!(argument, Some(ColumnType::Float32 | ColumnType::Float64));
        let unsigned =
            matches!(argument, Some(ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64));
        match function {
            AggregateFunction::Count => Self::Integers(Vec::new()),
            AggregateFunction::Least | AggregateFunction::Greatest if unsigned => Self::Unsigned(Vec::new()),
            AggregateFunction::Sum | AggregateFunction::Least | AggregateFunction::Greatest if !float => {
                Self::Integers(Vec::new())
            }
            _ => Self::Floats(Vec::new()),
        }
    }

    fn append(&mut self, function: AggregateFunction, summary: Option<&Summary>) {
        let end = |summary: &Summary| match function {
            AggregateFunction::Least => summary.extremes().least(),
            _ => summary.extremes().greatest(),
        };
        match self {
            Self::Integers(values) => values.push(summary.and_then(|summary| match function {
                // No window has 2^63 events: null cannot stand for such a count.
                AggregateFunction::Count => i64::try_from(summary.count()).ok(),
                // Beyond BIGINT a sum is null, as it is of nothing.
                AggregateFunction::Sum => {
                    summary.total().integer().filter(|_| summary.count() > 0).and_then(|sum| i64::try_from(sum).ok())
                }
                _ => end(summary),
            })),
            Self::Unsigned(values) => {
                values.push(summary.and_then(end).map(|order| order.cast_unsigned() ^ 1 << 63));
            }
            Self::Floats(values) => values.push(summary.and_then(|summary| match function {
                AggregateFunction::Sum => (summary.count() > 0).then(|| summary.total().sum()),
                AggregateFunction::VarianceSample | AggregateFunction::VariancePopulation => {
                    summary.variance(function.divisor())
                }
                AggregateFunction::DeviationSample | AggregateFunction::DeviationPopulation => {
                    summary.deviation(function.divisor())
                }
                AggregateFunction::Least | AggregateFunction::Greatest => end(summary).map(float_of),
                AggregateFunction::Mean | AggregateFunction::Count => summary.mean(),
            })),
        }
    }
}
