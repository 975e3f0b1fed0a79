//! `local AT TIME ZONE 'zone'` in queries, by the rule of [`utc_of_local_times`]: DataFusion's own cast ends the query at an
//! hour that comes twice or never.

use std::sync::Arc;

use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef};
use chrono_tz::Tz;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use super::utc_of_local_times;

/// Replaces casts of times without a zone to times of a named one.
#[derive(Debug)]
pub(super) struct LocalCasts;

impl AnalyzerRule for LocalCasts {
    fn name(&self) -> &'static str {
        "local_casts"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> QueryResult<LogicalPlan> {
        let replaced = plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expression| {
                let name = names.save(&expression);
                let replaced = expression.transform_up(|part| Ok(replace(part, &schema)))?;
                Ok(if replaced.transformed {
                    replaced.update_data(|expression| name.restore(expression))
                } else {
                    replaced
                })
            })
        });
        Ok(replaced?.data)
    }
}

fn replace(part: Expr, schema: &DFSchema) -> Transformed<Expr> {
    let Expr::Cast(Cast { expr, field }) = part else { return Transformed::no(part) };
    if let DataType::Timestamp(_, Some(zone)) = field.data_type()
        && zone.parse::<Tz>().is_ok_and(|zone| zone != Tz::UTC)
        && matches!(expr.get_type(schema), Ok(DataType::Timestamp(_, None)))
    {
        let function = OfLocal {
            zone: zone.to_string(),
            wanted: field.data_type().clone(),
            signature: Signature::any(1, Volatility::Immutable),
        };
        return Transformed::yes(ScalarUDF::new_from_impl(function).call(vec![*expr]));
    }
    Transformed::no(Expr::Cast(Cast { expr, field }))
}

/// Times of a zone, from what its clocks showed.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OfLocal {
    zone: String,
    wanted: DataType,
    signature: Signature,
}

impl ScalarUDFImpl for OfLocal {
    fn name(&self) -> &'static str {
        "at_time_zone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> QueryResult<DataType> {
        Ok(self.wanted.clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> QueryResult<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), self.wanted.clone(), arguments.arg_fields[0].is_nullable())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> QueryResult<ColumnarValue> {
        let local = ColumnarValue::values_to_arrays(&arguments.args)?;
        let utc = utc_of_local_times(&local[0], &self.zone);
        let utc = utc.map_err(|error| DataFusionError::External(Box::new(error)))?;
        let options = CastOptions { safe: false, ..CastOptions::default() };
        Ok(ColumnarValue::Array(cast_with_options(&utc, &self.wanted, &options)?))
    }
}
