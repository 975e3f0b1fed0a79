//! Names for the aggregates of windows that DataFusion does not have, so that queries with them can be planned. They are
//! taken apart before anything runs: windows compute them, plain queries refuse them.

use std::ops::ControlFlow;

use arrow::datatypes::{DataType, Field};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Expr, LogicalPlan, Signature, Volatility};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{
    Expr as Written, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident, ObjectName, Query,
    visit_expressions_mut,
};

/// What `array_agg(x LIMIT n)` is planned as: `last_values(x, n)`.
pub(crate) const LAST_VALUES: &str = "last_values";

/// The values that occur most often.
pub(crate) const TOP_K: &str = "approx_top_k";

/// An aggregate with a value and a number that yields a list of values.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OfWindows {
    name: &'static str,
    signature: Signature,
}

impl AggregateUDFImpl for OfWindows {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let element = arguments.first().cloned().unwrap_or(DataType::Null);
        Ok(DataType::List(Field::new_list_field(element, true).into()))
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.name == LAST_VALUES
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Err(only_windows(self.name))
    }
}

fn only_windows(name: &str) -> DataFusionError {
    let name = if name == LAST_VALUES { "array_agg(x LIMIT n)" } else { name };
    DataFusionError::Plan(format!("'{name}' is an aggregate of windows: give the view WINDOWS (...) STEP ..."))
}

/// Makes the names known.
pub(crate) fn register(context: &SessionContext) {
    for name in [LAST_VALUES, TOP_K] {
        let signature = Signature::any(2, Volatility::Immutable);
        context.register_udaf(AggregateUDF::new_from_impl(OfWindows { name, signature }));
    }
}

/// Refuses them where there are no windows.
///
/// # Errors
/// A `Plan` error that names the aggregate.
pub(crate) fn refuse(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        for expression in node.expressions() {
            expression.apply(|part| match part {
                Expr::AggregateFunction(call) if [LAST_VALUES, TOP_K].contains(&call.func.name()) => {
                    Err(only_windows(call.func.name()))
                }
                _ => Ok(TreeNodeRecursion::Continue),
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// A windowed view's query as it is planned: `array_agg(x LIMIT n)`, which DataFusion's planner does not take, becomes
/// `last_values(x, n)`.
pub(crate) fn plannable(query: &Query) -> Query {
    let mut query = query.clone();
    let visited: ControlFlow<()> = visit_expressions_mut(&mut query, |expression| {
        if let Written::Function(call) = expression
            && call.name.to_string().eq_ignore_ascii_case("array_agg")
            && let FunctionArguments::List(arguments) = &mut call.args
            && let Some(place) =
                arguments.clauses.iter().position(|clause| matches!(clause, FunctionArgumentClause::Limit(_)))
            && let FunctionArgumentClause::Limit(most) = arguments.clauses.remove(place)
        {
            arguments.args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(most)));
            call.name = ObjectName::from(vec![Ident::new(LAST_VALUES)]);
        }
        ControlFlow::Continue(())
    });
    debug_assert!(visited.is_continue(), "nothing breaks off");
    query
}
