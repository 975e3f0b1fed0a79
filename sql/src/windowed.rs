//! A windowed view's query taken apart: `SELECT key, avg(x) AS a FROM s GROUP BY key` is a way to say which events it
//! is about (the rows of `FROM` and `WHERE`), what is taken from each (the aggregates' arguments), and what is computed
//! of them over every window.

pub(crate) mod udaf;

use arrow::datatypes::DataType;
use datafusion::common::{Column as LogicalColumn, ScalarValue};
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::expr::{AggregateFunctionParams, NullTreatment};
use datafusion::logical_expr::{Aggregate as AggregatePlan, Expr, ExprSchemable, LogicalPlan, Projection, lit, when};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::aggregate::{MOST_LAST, MOST_TOP};
use springhouse_featurestore::definition::{Aggregate, AggregateFunction, Column, ColumnType};

use crate::session::{Session, with_places};

/// A query taken apart.
#[derive(Debug, Clone)]
pub struct EventQuery {
    /// The rows of `FROM` and `WHERE`.
    pub events: LogicalPlan,
    /// The grouping columns, by their names in the output.
    pub keys: Vec<(String, Expr)>,
    /// The arguments of the aggregates, and their types.
    pub arguments: Vec<(Expr, ColumnType)>,
    /// The aggregates, as they are written.
    pub aggregates: Vec<Aggregate>,
}

fn refused<T>(message: impl Into<String>) -> QueryResult<T> {
    Err(DataFusionError::Plan(message.into()))
}

/// The name of an argument's column among a view's event rows.
pub fn argument_name(index: usize) -> String {
    format!("argument_{index}")
}

impl EventQuery {
    /// Takes a planned query apart.
    ///
    /// # Errors
    /// A `Plan` error that says what a windowed view's query may be.
    pub fn take_apart(plan: &LogicalPlan) -> QueryResult<Self> {
        let LogicalPlan::Projection(Projection { expr: outputs, input, .. }) = plan else {
            return refused(SHAPE);
        };
        let LogicalPlan::Aggregate(aggregate) = input.as_ref() else { return refused(SHAPE) };
        let mut query = Self {
            events: aggregate.input.as_ref().clone(),
            keys: Vec::new(),
            arguments: Vec::new(),
            aggregates: Vec::new(),
        };
        for output in outputs {
            query.add_output(aggregate, output)?;
        }
        if query.keys.len() != aggregate.group_expr.len() {
            return refused("the query groups by more than its keys, or selects a key twice");
        }
        Ok(query)
    }

    fn add_output(&mut self, plan: &AggregatePlan, output: &Expr) -> QueryResult<()> {
        let name = match output {
            Expr::Alias(alias) => alias.name.clone(),
            other => other.qualified_name().1,
        };
        let inner = output.clone().unalias_nested().data;
        let Expr::Column(column) = inner else {
            return refused(format!(
                "the output '{name}' is neither a key nor one aggregate: put expressions inside the aggregate, and \
                 arithmetic over several into the contract's INPUTS"
            ));
        };
        let index = plan.schema.index_of_column(&column)?;
        match plan.group_expr.get(index) {
            Some(Expr::GroupingSet(_)) => refused("a windowed view groups by its keys alone"),
            Some(key) => {
                self.keys.push((name, key.clone()));
                Ok(())
            }
            None => self.add_aggregate(name, &plan.aggr_expr[index - plan.group_expr.len()]),
        }
    }

    fn add_aggregate(&mut self, alias: String, expression: &Expr) -> QueryResult<()> {
        if !alias.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return refused(format!("the aggregate '{alias}' needs a plain name: {alias} AS name"));
        }
        let Expr::AggregateFunction(call) = expression.clone().unalias_nested().data else {
            return refused(format!("the output '{alias}' is not an aggregate"));
        };
        let name = call.func.name().to_lowercase();
        let function = function_of(&name, &call.params)?;
        let value = call.params.args[0].clone();
        let every = matches!(&value, Expr::Literal(literal, _) if !literal.is_null());
        let argument = match call.params.filter {
            None if function == AggregateFunction::Count && every => None,
            None => Some(self.argument(value)?),
            Some(_)
                if matches!(
                    function,
                    AggregateFunction::First { nulls: true }
                        | AggregateFunction::Last { nulls: true }
                        | AggregateFunction::LastValues { nulls: true, .. }
                ) =>
            {
                return refused(format!(
                    "'{name}' of a window takes FILTER only with IGNORE NULLS: the output '{alias}'"
                ));
            }
            // Nulls count for nothing in any of the others.
            Some(filter) => {
                let value = if every { lit(1_i64) } else { value };
                Some(self.argument(when(*filter, value).end()?)?)
            }
        };
        let given = argument.map(|index| self.arguments[index].1);
        let Some(output) = function.output(given) else {
            let given = given.map_or_else(|| "nothing".to_owned(), |given| given.to_string());
            return refused(format!("'{name}' of a window does not take {given}: the output '{alias}'"));
        };
        self.aggregates.push(Aggregate { alias, function, argument, output });
        Ok(())
    }

    /// The index of an argument, which is added when no aggregate has it yet.
    fn argument(&mut self, expression: Expr) -> QueryResult<usize> {
        if let Some(index) = self.arguments.iter().position(|(known, _)| *known == expression) {
            return Ok(index);
        }
        let data_type = expression.get_type(self.events.schema())?;
        let column_type =
            ColumnType::from_arrow(&data_type).map_err(|error| DataFusionError::Plan(error.to_string()))?;
        self.arguments.push((expression, column_type));
        Ok(self.arguments.len() - 1)
    }

    /// The arguments as columns of event rows.
    pub fn argument_columns(&self) -> Vec<Column> {
        let column = |(index, (_, kind)): (usize, &(Expr, ColumnType))| Column::nullable(argument_name(index), *kind);
        self.arguments.iter().enumerate().map(column).collect()
    }

    /// The events: keys, arguments, columns of the query's input that are passed through, and the events' place in the order of
    /// writes where its tables have that.
    ///
    /// # Errors
    /// A `Plan` error when such a column is not there, or is not clear.
    pub fn frame(self, session: &Session, passed: &[&str]) -> QueryResult<DataFrame> {
        let (events, order) = with_places(self.events)?;
        let keys = self.keys.into_iter().map(|(name, key)| key.alias(name));
        let arguments = self.arguments.into_iter().enumerate();
        let mut columns: Vec<Expr> =
            keys.chain(arguments.map(|(index, (argument, _))| argument.alias(argument_name(index)))).collect();
        for name in passed {
            let found = events.schema().qualified_fields_with_unqualified_name(name);
            match found.as_slice() {
                [(qualifier, _)] => {
                    let column = LogicalColumn::new(qualifier.map(Clone::clone), *name);
                    columns.push(Expr::Column(column).alias(*name));
                }
                [] => return refused(format!("'{name}' is not visible where the view's aggregates are")),
                _ => return refused(format!("'{name}' is not clear where the view's aggregates are")),
            }
        }
        columns.dedup();
        columns.extend(order.into_iter().flatten());
        let plan = LogicalPlanBuilder::from(events).project(columns)?.build()?;
        Ok(DataFrame::new(session.context().state(), plan))
    }
}

/// The function that a call asks for.
fn function_of(name: &str, call: &AggregateFunctionParams) -> QueryResult<AggregateFunction> {
    let nulls = call.null_treatment != Some(NullTreatment::IgnoreNulls);
    let (function, arguments) = match (name, AggregateFunction::of_name(name)) {
        ("count", _) if call.distinct => (AggregateFunction::CountDistinct, 1),
        ("approx_percentile_cont", _) if !call.distinct => (percentile(call)?, 2),
        (udaf::LAST_VALUES, _) if !call.distinct => {
            let most = number(call, "the LIMIT of 'array_agg'", MOST_LAST)?;
            (AggregateFunction::LastValues { most, nulls }, 2)
        }
        (udaf::TOP_K, _) if !call.distinct => {
            let most = number(call, "the second argument of 'approx_top_k'", MOST_TOP)?;
            (AggregateFunction::AboutTop { most }, 2)
        }
        ("array_agg", _) if !call.distinct => {
            return refused("'array_agg' over windows keeps the last values: say how many, array_agg(x LIMIT 10)");
        }
        (_, Some(AggregateFunction::First { .. })) if !call.distinct => (AggregateFunction::First { nulls }, 1),
        (_, Some(AggregateFunction::Last { .. })) if !call.distinct => (AggregateFunction::Last { nulls }, 1),
        (_, Some(function)) if !call.distinct => (function, 1),
        _ => {
            let names: Vec<&str> = AggregateFunction::ALL.iter().map(|(name, _)| *name).collect();
            let distinct = if call.distinct { "DISTINCT " } else { "" };
            return refused(format!(
                "'{name}' {distinct}is not an aggregate of windows; they are {}, count(DISTINCT ...), \
                 approx_percentile_cont, array_agg(x LIMIT n) and approx_top_k",
                names.join(", ")
            ));
        }
    };
    // The one order that is written is the percentile's own, WITHIN GROUP (ORDER BY x).
    let ordered = !call.order_by.is_empty() && !matches!(function, AggregateFunction::AboutQuantile { .. });
    let by_row = matches!(
        function,
        AggregateFunction::First { .. } | AggregateFunction::Last { .. } | AggregateFunction::LastValues { .. }
    );
    if ordered || call.null_treatment.is_some() && !by_row || call.args.len() != arguments {
        let plural = if arguments == 1 { "one argument" } else { "a value and a number" };
        return refused(format!(
            "'{}' over windows takes {plural}, and no order: events are in order of event time",
            if name == udaf::LAST_VALUES { "array_agg" } else { name }
        ));
    }
    Ok(function)
}

/// How many values a call asks for.
fn number(call: &AggregateFunctionParams, what: &str, most: u16) -> QueryResult<u16> {
    let wrong = || refused(format!("{what} is a number from 1 to {most}"));
    let Some(Expr::Literal(literal, _)) = call.args.get(1) else { return wrong() };
    match literal.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(Some(given))) if literal.data_type().is_integer() => match u16::try_from(given) {
            Ok(given) if (1..=most).contains(&given) => Ok(given),
            _ => wrong(),
        },
        _ => wrong(),
    }
}

/// The percentile of `approx_percentile_cont(x, p)`, also written `approx_percentile_cont(p) WITHIN GROUP (ORDER BY x)`.
fn percentile(call: &AggregateFunctionParams) -> QueryResult<AggregateFunction> {
    let wrong =
        || refused("the percentile of 'approx_percentile_cont' is a number from 0 to 1 with at most six decimals");
    if call.order_by.iter().any(|order| !order.asc) {
        return refused("'approx_percentile_cont' over windows counts from the least: leave DESC out, and take 1 - p");
    }
    let Some(Expr::Literal(literal, _)) = call.args.get(1) else { return wrong() };
    let Ok(ScalarValue::Float64(Some(share))) = literal.cast_to(&DataType::Float64) else { return wrong() };
    let millionths = (share * 1e6).round();
    if !(0.0..=1.0).contains(&share) || (millionths - share * 1e6).abs() > 1e-6 {
        return wrong();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1,000,000")]
    Ok(AggregateFunction::AboutQuantile { millionths: millionths as u32 })
}

/// What a windowed view's query may be.
const SHAPE: &str = "a view with WINDOWS selects its keys and aggregates, and groups by its keys: SELECT key, avg(x) AS \
                     name FROM source WHERE ... GROUP BY key, without HAVING, ORDER BY or LIMIT";
