//! Rewrites of compiled expressions that yield the same values sooner.
//!
//! - `coalesce(x, literal)` compiles to `CASE WHEN x IS NOT NULL THEN x ELSE literal END`, which splits and joins each
//!   batch; where nothing is null, [`FirstNonNull`] hands `x` on as it is.
//! - `date_part` of a time in UTC asks the time-zone database for every value; of a time without a zone it does not,
//!   and the parts are the same.

use std::fmt::{Display, Formatter};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::compute::{is_not_null, kernels::zip::zip};
use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::physical_plan::expressions::{CaseExpr, CastExpr, IsNotNullExpr, Literal};

/// Rewrites a whole expression over columns of `schema`.
///
/// # Errors
/// DataFusion's own.
pub(super) fn rewrite(
    expression: Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let rewritten = expression.transform_up(|node| {
        if let Some(first) = FirstNonNull::of_case(&node) {
            return Ok(Transformed::yes(Arc::new(first) as Arc<dyn PhysicalExpr>));
        }
        if let Some(arguments) = date_part_in_utc(&node, schema)? {
            return node.with_new_children(arguments).map(Transformed::yes);
        }
        Ok(Transformed::no(node))
    })?;
    Ok(rewritten.data)
}

/// The arguments of a `date_part` of a time in UTC, with a time without a zone in its place.
fn date_part_in_utc(
    node: &Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> Result<Option<Vec<Arc<dyn PhysicalExpr>>>, DataFusionError> {
    let Some(call) = node.downcast_ref::<ScalarFunctionExpr>().filter(|call| call.name() == "date_part") else {
        return Ok(None);
    };
    let [part, time] = call.args() else { return Ok(None) };
    let DataType::Timestamp(unit, Some(zone)) = time.data_type(schema)? else { return Ok(None) };
    if !matches!(zone.as_ref(), "UTC" | "+00:00") {
        return Ok(None);
    }
    let local = CastExpr::new(Arc::clone(time), DataType::Timestamp(unit, None), None);
    Ok(Some(vec![Arc::clone(part), Arc::new(local)]))
}

/// A value, or a literal where it is null.
#[derive(Debug, Eq)]
struct FirstNonNull {
    value: Arc<dyn PhysicalExpr>,
    instead: ScalarValue,
}

// Not derived: a derived comparison would move the value out (https://github.com/rust-lang/rust/issues/78808).
impl PartialEq for FirstNonNull {
    fn eq(&self, other: &Self) -> bool {
        self.value.eq(&other.value) && self.instead == other.instead
    }
}

impl std::hash::Hash for FirstNonNull {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.value.hash(state);
        self.instead.hash(state);
    }
}

impl FirstNonNull {
    /// Of `CASE WHEN x IS NOT NULL THEN x ELSE literal END`.
    fn of_case(node: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        let case = node.downcast_ref::<CaseExpr>().filter(|case| case.expr().is_none())?;
        let [(when, then)] = case.when_then_expr() else { return None };
        let tested = when.downcast_ref::<IsNotNullExpr>()?.arg();
        let instead = case.else_expr()?.downcast_ref::<Literal>()?.value();
        (tested == then && !instead.is_null()).then(|| Self { value: Arc::clone(then), instead: instead.clone() })
    }
}

impl Display for FirstNonNull {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.fmt_sql(f)
    }
}

impl PhysicalExpr for FirstNonNull {
    fn data_type(&self, schema: &Schema) -> Result<DataType, DataFusionError> {
        self.value.data_type(schema)
    }

    fn nullable(&self, _schema: &Schema) -> Result<bool, DataFusionError> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue, DataFusionError> {
        let value = self.value.evaluate(batch)?;
        match &value {
            ColumnarValue::Scalar(scalar) if scalar.is_null() => Ok(ColumnarValue::Scalar(self.instead.clone())),
            ColumnarValue::Array(array) if array.null_count() > 0 => {
                let filled = zip(&is_not_null(array)?, array, &self.instead.to_scalar()?)?;
                Ok(ColumnarValue::Array(filled))
            }
            _ => Ok(value),
        }
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.value]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
        let [value] = children.as_slice() else {
            return Err(DataFusionError::Internal("coalesce with a literal has one child".to_owned()));
        };
        Ok(Arc::new(Self { value: Arc::clone(value), instead: self.instead.clone() }))
    }

    fn fmt_sql(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "coalesce({}, {})", self.value, self.instead)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float64Array, TimestampMicrosecondArray};
    use datafusion::common::DFSchema;
    use datafusion::logical_expr::simplify::SimplifyContext;
    use datafusion::optimizer::simplify_expressions::ExprSimplifier;
    use datafusion::prelude::SessionContext;

    use super::*;

    fn both(expression: &str, batch: &RecordBatch) -> (String, [ArrayRef; 2]) {
        let schema = DFSchema::try_from(batch.schema()).expect("distinct names");
        let state = SessionContext::new().state();
        let logical = state.create_logical_expr(expression, &schema).expect("valid");
        let context = SimplifyContext::builder().with_schema(Arc::new(schema.clone())).build();
        let simplifier = ExprSimplifier::new(context);
        let logical = simplifier.simplify(simplifier.coerce(logical, &schema).expect("typed")).expect("simple");
        let plain = state.create_physical_expr(logical, &schema).expect("compiled");
        let rewritten = rewrite(Arc::clone(&plain), batch.schema_ref()).expect("rewritten");
        assert_eq!(
            plain.data_type(batch.schema_ref()).expect("typed"),
            rewritten.data_type(batch.schema_ref()).expect("typed")
        );
        let rows = batch.num_rows();
        let value =
            |of: &Arc<dyn PhysicalExpr>| of.evaluate(batch).and_then(|v| v.into_array(rows)).expect("evaluated");
        (rewritten.to_string(), [value(&plain), value(&rewritten)])
    }

    #[test]
    fn rewritten_expressions_yield_the_same() {
        let times =
            TimestampMicrosecondArray::from(vec![Some(0), None, Some(1_400_000_000_123_456)]).with_timezone("UTC");
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("t", Arc::new(times)),
            ("x", Arc::new(Float64Array::from(vec![Some(1.0), None, Some(f64::NAN)]))),
            ("y", Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]))),
        ];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).expect("batch");
        for (expression, shown) in [
            ("coalesce(x, 7.5)", Some("coalesce(x@1, 7.5)")),
            ("coalesce(y, 7) + 1", Some("coalesce(y@2, 7) + 1")),
            ("coalesce(x, y)", None),
            ("CASE WHEN x IS NOT NULL THEN y ELSE 0.0 END", None),
            ("date_part('hour', t)", None),
            ("date_part('dow', t)", None),
            ("date_part('epoch', t)", None),
        ] {
            let (text, [plain, rewritten]) = both(expression, &batch);
            assert_eq!(&plain, &rewritten, "{expression}");
            assert!(shown.is_none_or(|shown| shown == text), "{text}");
            assert_eq!(expression.starts_with("date_part"), text.contains("CAST"), "{text}");
        }
    }
}
