//! A windowed view's query taken apart: `SELECT key, avg(x) AS a FROM s GROUP BY key` is a way to say which events it
//! is about (the rows of `FROM` and `WHERE`), what is taken from each (the aggregates' arguments), and what is computed
//! of them over every window.

use datafusion::common::Column as LogicalColumn;
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::{Aggregate as AggregatePlan, Expr, ExprSchemable, LogicalPlan, Projection, lit, when};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::definition::{Aggregate, AggregateFunction, Column, ColumnType};

use crate::session::Session;

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
        let Some(function) = AggregateFunction::of_name(&name).filter(|_| !call.params.distinct) else {
            let names: Vec<&str> = AggregateFunction::ALL.iter().map(|(name, _)| *name).collect();
            let distinct = if call.params.distinct { "DISTINCT " } else { "" };
            return refused(format!(
                "'{name}' {distinct}is not yet supported over windows; the aggregates are {}",
                names.join(", ")
            ));
        };
        if !call.params.order_by.is_empty() || call.params.null_treatment.is_some() || call.params.args.len() != 1 {
            return refused(format!("'{name}' over windows takes one argument, and no order"));
        }
        let value = call.params.args[0].clone();
        let every = matches!(&value, Expr::Literal(literal, _) if !literal.is_null());
        let argument = match call.params.filter {
            None if function == AggregateFunction::Count && every => None,
            None => Some(self.argument(value)?),
            // Nulls count for nothing in any of the aggregates.
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

    /// The events: keys, arguments, and columns of the query's input that are passed through.
    ///
    /// # Errors
    /// A `Plan` error when such a column is not there, or is not clear.
    pub fn frame(self, session: &Session, passed: &[&str]) -> QueryResult<DataFrame> {
        let keys = self.keys.into_iter().map(|(name, key)| key.alias(name));
        let arguments = self.arguments.into_iter().enumerate();
        let mut columns: Vec<Expr> =
            keys.chain(arguments.map(|(index, (argument, _))| argument.alias(argument_name(index)))).collect();
        for name in passed {
            let found = self.events.schema().qualified_fields_with_unqualified_name(name);
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
        let plan = LogicalPlanBuilder::from(self.events).project(columns)?.build()?;
        Ok(DataFrame::new(session.context().state(), plan))
    }
}

/// What a windowed view's query may be.
const SHAPE: &str = "a view with WINDOWS selects its keys and aggregates, and groups by its keys: SELECT key, avg(x) AS \
                     name FROM source WHERE ... GROUP BY key, without HAVING, ORDER BY or LIMIT";
