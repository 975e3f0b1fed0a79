//! Between Arrow columns and summaries: the values of events going in, the features of windows coming out.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, PrimitiveArray, StringArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float64Type, Int64Type, UInt64Type};

use super::{Held, Summaries, Summary, TileLayout, Value, float_of};
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
    Boolean(BooleanArray),
    Text(StringArray),
}

fn widened<T: ArrowPrimitiveType>(array: &ArrayRef) -> Result<PrimitiveArray<T>> {
    Ok(cast(array, &T::DATA_TYPE)?.as_primitive::<T>().clone())
}

fn value_of<T: ArrowPrimitiveType>(
    array: &PrimitiveArray<T>,
    row: usize,
    of: impl Fn(T::Native) -> Value<'static>,
) -> Option<Value<'static>> {
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
                ColumnType::Boolean => Argument::Boolean(cast(array, &DataType::Boolean)?.as_boolean().clone()),
                ColumnType::Utf8 => Argument::Text(cast(array, &DataType::Utf8)?.as_string::<i32>().clone()),
            })
        };
        Ok(Self { columns: windowed.arguments.iter().zip(arrays).map(column).collect::<Result<_>>()? })
    }

    /// An argument's value for an event; `None` when it is null.
    pub fn value(&self, argument: usize, row: usize) -> Option<Value<'_>> {
        match &self.columns[argument] {
            Argument::Signed(array) => value_of(array, row, Value::Signed),
            Argument::Unsigned(array) => value_of(array, row, Value::Unsigned),
            Argument::Float(array) => value_of(array, row, Value::Float),
            Argument::Moment(array) => value_of(array, row, Value::Moment),
            Argument::Boolean(array) => array.is_valid(row).then(|| Value::Boolean(array.value(row))),
            Argument::Text(array) => array.is_valid(row).then(|| Value::Text(array.value(row))),
        }
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
    Booleans(Vec<Option<bool>>),
    Texts(Vec<Option<Box<str>>>),
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
            Values::Booleans(values) => Arc::new(BooleanArray::from(values)),
            Values::Texts(values) => Arc::new(values.into_iter().collect::<StringArray>()),
        };
        let output = self.aggregate.output;
        // Days are 32 bits wide.
        let values = if output == ColumnType::Date { cast(&values, &DataType::Int32)? } else { values };
        Ok(cast(&values, &output.to_arrow())?)
    }
}

/// How a kept value of the argument's type lies.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Integer,
    Unsigned,
    Float,
    Boolean,
    Text,
}

impl Kind {
    fn of(column_type: ColumnType) -> Self {
        match column_type {
            ColumnType::Float32 | ColumnType::Float64 => Self::Float,
            ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => Self::Unsigned,
            ColumnType::Boolean => Self::Boolean,
            ColumnType::Utf8 => Self::Text,
            _ => Self::Integer,
        }
    }
}

impl Values {
    fn of(function: AggregateFunction, argument: Option<ColumnType>) -> Self {
        use AggregateFunction as Function;
        let kind = argument.map_or(Kind::Integer, Kind::of);
        let kind = match function {
            Function::Count | Function::CountDistinct | Function::AboutDistinct => Kind::Integer,
            Function::Least | Function::Greatest | Function::First { .. } | Function::Last { .. } => kind,
            Function::Sum if !matches!(kind, Kind::Float) => Kind::Integer,
            _ => Kind::Float,
        };
        match kind {
            Kind::Integer => Self::Integers(Vec::new()),
            Kind::Unsigned => Self::Unsigned(Vec::new()),
            Kind::Float => Self::Floats(Vec::new()),
            Kind::Boolean => Self::Booleans(Vec::new()),
            Kind::Text => Self::Texts(Vec::new()),
        }
    }

    fn append(&mut self, function: AggregateFunction, summary: Option<&Summary>) {
        match self {
            Self::Integers(values) => values.push(summary.and_then(|summary| integer(function, summary))),
            Self::Unsigned(values) => values.push(summary.and_then(|summary| match held(function, summary) {
                Some(Held::Number(bits)) => Some(bits.cast_unsigned()),
                Some(Held::Text(_)) => None,
                None => extreme(function, summary).map(|order| order.cast_unsigned() ^ 1 << 63),
            })),
            Self::Floats(values) => values.push(summary.and_then(|summary| float(function, summary))),
            Self::Booleans(values) => values.push(summary.and_then(|summary| match held(function, summary) {
                Some(Held::Number(value)) => Some(*value != 0),
                _ => None,
            })),
            Self::Texts(values) => values.push(summary.and_then(|summary| match held(function, summary) {
                Some(Held::Text(text)) => Some(text.clone()),
                _ => None,
            })),
        }
    }
}

/// The least or the greatest value, by its order.
fn extreme(function: AggregateFunction, summary: &Summary) -> Option<i64> {
    match function {
        AggregateFunction::Least => summary.extremes().least(),
        AggregateFunction::Greatest => summary.extremes().greatest(),
        _ => None,
    }
}

/// The first or the last value.
fn held(function: AggregateFunction, summary: &Summary) -> Option<&Held> {
    match function {
        AggregateFunction::First { nulls: true } => summary.first_of_rows(),
        AggregateFunction::First { nulls: false } => summary.first(),
        AggregateFunction::Last { nulls: true } => summary.last_of_rows(),
        AggregateFunction::Last { nulls: false } => summary.last(),
        _ => None,
    }
}

fn integer(function: AggregateFunction, summary: &Summary) -> Option<i64> {
    match function {
        // No window has 2^63 events: null cannot stand for such a count.
        AggregateFunction::Count => i64::try_from(summary.count()).ok(),
        AggregateFunction::CountDistinct => summary.distinct().and_then(|count| i64::try_from(count).ok()),
        AggregateFunction::AboutDistinct => i64::try_from(summary.about_distinct()).ok(),
        // Beyond BIGINT a sum is null, as it is of nothing.
        AggregateFunction::Sum => {
            summary.total().integer().filter(|_| summary.count() > 0).and_then(|sum| i64::try_from(sum).ok())
        }
        _ => match held(function, summary) {
            Some(Held::Number(value)) => Some(*value),
            _ => extreme(function, summary),
        },
    }
}

fn float(function: AggregateFunction, summary: &Summary) -> Option<f64> {
    match function {
        AggregateFunction::Sum => (summary.count() > 0).then(|| summary.total().sum()),
        AggregateFunction::VarianceSample | AggregateFunction::VariancePopulation => {
            summary.variance(function.divisor())
        }
        AggregateFunction::DeviationSample | AggregateFunction::DeviationPopulation => {
            summary.deviation(function.divisor())
        }
        AggregateFunction::AboutQuantile { millionths } => summary.quantile(millionths),
        AggregateFunction::Least | AggregateFunction::Greatest => extreme(function, summary).map(float_of),
        AggregateFunction::Mean => summary.mean(),
        _ => match held(function, summary) {
            Some(Held::Number(bits)) => Some(f64::from_bits(bits.cast_unsigned())),
            _ => None,
        },
    }
}
