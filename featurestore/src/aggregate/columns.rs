//! Between Arrow columns and summaries: the values of events going in, the features of windows coming out.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, ListArray, PrimitiveArray, StringArray,
    UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, Float64Type, Int64Type, UInt64Type};

use super::{Held, Summaries, Summary, TileLayout, Value, float_of};
use crate::definition::{Aggregate, AggregateFunction, ColumnType, Windowed};
use crate::{Error, Result};

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
    /// [`crate::ErrorKind::Invalid`] when a column is of another type than its argument; lists are refused where a view is
    /// checked.
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
                ColumnType::List(_) => return Err(Error::internal("an aggregate's argument is a list")),
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
    /// Where each list ends, and `None` where there is none; then the elements of all lists.
    Lists(Vec<Option<usize>>, Kind, Box<Self>),
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
        self.values.finish(self.aggregate.output)
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

    /// A value as it is kept, of one that is named by its order.
    fn held_of(self, value: &Held) -> Held {
        match (self, value) {
            (Self::Float, Held::Number(order)) => Held::Number(float_of(*order).to_bits().cast_signed()),
            (Self::Unsigned, Held::Number(order)) => Held::Number((order.cast_unsigned() ^ 1 << 63).cast_signed()),
            _ => value.clone(),
        }
    }
}

impl Values {
    fn of(function: AggregateFunction, argument: Option<ColumnType>) -> Self {
        use AggregateFunction as Function;
        let kind = argument.map_or(Kind::Integer, Kind::of);
        match function {
            Function::Count | Function::CountDistinct | Function::AboutDistinct => Self::new(Kind::Integer),
            Function::Least | Function::Greatest | Function::First { .. } | Function::Last { .. } => Self::new(kind),
            Function::LastValues { .. } | Function::AboutTop { .. } => {
                Self::Lists(Vec::new(), kind, Box::new(Self::new(kind)))
            }
            Function::Sum if !matches!(kind, Kind::Float) => Self::new(Kind::Integer),
            _ => Self::new(Kind::Float),
        }
    }

    fn new(kind: Kind) -> Self {
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
            Self::Booleans(_) | Self::Texts(_) => self.push(summary.and_then(|summary| held(function, summary))),
            Self::Lists(ends, kind, elements) => {
                let some = summary.and_then(|summary| elements.append_list(function, *kind, summary));
                ends.push(some.map(|()| elements.len()));
            }
        }
    }

    /// Adds the elements of a list; `None` where there is no list.
    fn append_list(&mut self, function: AggregateFunction, kind: Kind, summary: &Summary) -> Option<()> {
        match function {
            AggregateFunction::LastValues { most, nulls: true } => {
                summary.last_values_of_rows(most)?.for_each(|value| self.push(value));
            }
            AggregateFunction::LastValues { most, nulls: false } => {
                summary.last_values(most)?.for_each(|value| self.push(value));
            }
            AggregateFunction::AboutTop { most } => {
                for value in summary.top(most)? {
                    self.push(Some(&kind.held_of(value)));
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Adds a value as it is kept.
    fn push(&mut self, value: Option<&Held>) {
        let number = match value {
            Some(Held::Number(number)) => Some(*number),
            _ => None,
        };
        match self {
            Self::Integers(values) => values.push(number),
            Self::Unsigned(values) => values.push(number.map(i64::cast_unsigned)),
            Self::Floats(values) => values.push(number.map(|bits| f64::from_bits(bits.cast_unsigned()))),
            Self::Booleans(values) => values.push(number.map(|value| value != 0)),
            Self::Texts(values) => values.push(match value {
                Some(Held::Text(text)) => Some(text.clone()),
                _ => None,
            }),
            // Lists have no lists in them.
            Self::Lists(ends, ..) => ends.push(None),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Integers(values) => values.len(),
            Self::Unsigned(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Booleans(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Lists(ends, ..) => ends.len(),
        }
    }

    /// As a column of this type.
    fn finish(self, output: ColumnType) -> Result<ArrayRef> {
        let values: ArrayRef = match self {
            Self::Integers(values) => Arc::new(Int64Array::from(values)),
            Self::Unsigned(values) => Arc::new(UInt64Array::from(values)),
            Self::Floats(values) => Arc::new(Float64Array::from(values)),
            Self::Booleans(values) => Arc::new(BooleanArray::from(values)),
            Self::Texts(values) => Arc::new(values.into_iter().collect::<StringArray>()),
            Self::Lists(ends, _, elements) => return finish_lists(&ends, *elements, output),
        };
        // Days are 32 bits wide.
        let values = if output == ColumnType::Date { cast(&values, &DataType::Int32)? } else { values };
        Ok(cast(&values, &output.to_arrow())?)
    }
}

fn finish_lists(ends: &[Option<usize>], elements: Values, output: ColumnType) -> Result<ArrayRef> {
    let ColumnType::List(element) = output else {
        return Err(Error::internal("lists of what is no list").with("type", output));
    };
    let mut start = 0;
    let lengths = ends.iter().map(|end| end.map_or(0, |end| end - std::mem::replace(&mut start, end)));
    let offsets = OffsetBuffer::from_lengths(lengths);
    let nulls: NullBuffer = ends.iter().map(Option::is_some).collect();
    let field = Arc::new(Field::new_list_field(element.to_arrow(), true));
    Ok(Arc::new(ListArray::try_new(field, offsets, elements.finish(*element)?, Some(nulls))?))
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
