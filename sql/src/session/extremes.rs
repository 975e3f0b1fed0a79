//! `min` and `max` of floats in queries: in the order of windows, with NaN above everything and one zero.
//!
//! DataFusion's own compare floats as the processor does: a NaN is neither above nor below another value, so which value
//! stands depends on the order of the rows. Here a float is compared as the integer that orders as it does
//! ([`order_of`]); every other type goes to DataFusion's own.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float32Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Float64Type, Int64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use datafusion::prelude::SessionContext;
use springhouse_featurestore::aggregate::{float_of, order_of};

/// `min` or `max`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Extreme {
    /// DataFusion's own.
    inner: Arc<AggregateUDF>,
}

/// Makes them what queries mean by `min` and `max`.
pub(super) fn register(context: &SessionContext) {
    for inner in [min_udaf(), max_udaf()] {
        context.register_udaf(AggregateUDF::new_from_impl(Extreme { inner }));
    }
}

/// Which floats there are, if any.
#[derive(Debug, Clone, Copy)]
enum Floats {
    Single,
    Double,
}

impl Floats {
    fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Float32 => Some(Self::Single),
            DataType::Float64 => Some(Self::Double),
            _ => None,
        }
    }

    fn orders(values: &ArrayRef) -> Result<ArrayRef> {
        match values.data_type() {
            DataType::Float32 => Ok(Arc::new(
                values.as_primitive::<Float32Type>().unary::<_, Int64Type>(|value| order_of(f64::from(value))),
            )),
            DataType::Float64 => Ok(Arc::new(values.as_primitive::<Float64Type>().unary::<_, Int64Type>(order_of))),
            other => Err(DataFusionError::Internal(format!("the extremes of {other} are not of floats"))),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "it was a 32-bit float before")]
    fn single(order: i64) -> f32 {
        float_of(order) as f32
    }

    fn array(self, orders: &ArrayRef) -> ArrayRef {
        let orders = orders.as_primitive::<Int64Type>();
        match self {
            Self::Single => Arc::new(Float32Array::from_iter(orders.iter().map(|order| order.map(Self::single)))),
            Self::Double => Arc::new(orders.unary::<_, Float64Type>(float_of)),
        }
    }

    fn scalar(self, order: &ScalarValue) -> Result<ScalarValue> {
        let ScalarValue::Int64(order) = order else {
            return Err(DataFusionError::Internal("the extreme of floats is not held as an integer".to_owned()));
        };
        Ok(match self {
            Self::Single => ScalarValue::Float32(order.map(Self::single)),
            Self::Double => ScalarValue::Float64(order.map(float_of)),
        })
    }
}

/// The same arguments for integers.
#[expect(clippy::needless_pass_by_value, reason = "the trait hands them over")]
fn of_integers(arguments: AccumulatorArgs<'_>) -> AccumulatorArgs<'_> {
    let field = Field::new(arguments.return_field.name(), DataType::Int64, true);
    AccumulatorArgs { return_field: Arc::new(field), ..arguments }
}

impl AggregateUDFImpl for Extreme {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match Floats::of(arguments.return_field.data_type()) {
            Some(floats) => Ok(Box::new(OfFloats { floats, inner: self.inner.accumulator(of_integers(arguments))? })),
            None => self.inner.accumulator(arguments),
        }
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match Floats::of(arguments.return_field.data_type()) {
            Some(floats) => {
                let inner = self.inner.create_sliding_accumulator(of_integers(arguments))?;
                Ok(Box::new(OfFloats { floats, inner }))
            }
            None => self.inner.create_sliding_accumulator(arguments),
        }
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if Floats::of(arguments.return_field.data_type()).is_none() {
            return self.inner.state_fields(arguments);
        }
        Ok(vec![Arc::new(Field::new(format_state_name(arguments.name, "value"), DataType::Int64, true))])
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match Floats::of(arguments.return_field.data_type()) {
            Some(floats) => {
                let inner = self.inner.create_groups_accumulator(of_integers(arguments))?;
                Ok(Box::new(GroupsOfFloats { floats, inner }))
            }
            None => self.inner.create_groups_accumulator(arguments),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

/// An extreme of floats, held as integers.
#[derive(Debug)]
struct OfFloats {
    floats: Floats,
    inner: Box<dyn Accumulator>,
}

impl Accumulator for OfFloats {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(&values.iter().map(Floats::orders).collect::<Result<Vec<_>>>()?)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(&values.iter().map(Floats::orders).collect::<Result<Vec<_>>>()?)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.floats.scalar(&self.inner.evaluate()?)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}

/// The extremes of groups of floats, held as integers.
struct GroupsOfFloats {
    floats: Floats,
    inner: Box<dyn GroupsAccumulator>,
}

impl GroupsAccumulator for GroupsOfFloats {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        let orders = values.iter().map(Floats::orders).collect::<Result<Vec<_>>>()?;
        self.inner.update_batch(&orders, groups, filter, count)
    }

    fn evaluate(&mut self, emitted: EmitTo) -> Result<ArrayRef> {
        Ok(self.floats.array(&self.inner.evaluate(emitted)?))
    }

    fn state(&mut self, emitted: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emitted)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.inner.merge_batch(states, groups, count)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let orders = values.iter().map(Floats::orders).collect::<Result<Vec<_>>>()?;
        self.inner.convert_to_state(&orders, filter)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}
