//! Whether a row's event time may lie before events that the row is made of: then a value as of a time would be made of
//! events after it, or would change afterwards, and online and offline would differ (rule T3).
//!
//! Each node of a view's plan is asked of which events its rows are made, scan by scan of a source, and of each of its columns
//! by how much it may precede those. A column of a source that is a time, be it the event time or another, is taken for
//! the own time of its event. What cannot be told counts as before.

mod reach;

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, ScalarValue};
use datafusion::logical_expr::builder::build_join_schema;
use datafusion::logical_expr::expr::{AggregateFunction, Between, WindowFunction};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Distinct, Expr, Join, LogicalPlan, Operator, Union, Window, WindowFrameBound,
    WindowFunctionDefinition,
};

use reach::{Reach, reach};

/// A source of events, and how it is planned.
pub(super) struct TimedSource {
    /// Its name.
    pub(super) name: String,
    /// The plan behind it.
    pub(super) plan: LogicalPlan,
}

/// How a column of a view's rows lies to the events that they are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lies {
    /// It is a time at which one of them happened, and none after it.
    With,
    /// It is not before any of them, and may be after all.
    After,
    /// It may be before events of these sources.
    Before(Vec<String>),
}

/// How a column lies to the events of sources that a plan's rows are made of.
pub(super) fn lies(plan: &LogicalPlan, sources: &[TimedSource], column: &str) -> Lies {
    let mut walk = Walk { sources, scans: Vec::new(), outer: Vec::new() };
    let rows = walk.rows(plan);
    let index = plan.schema().fields().iter().position(|field| field.name() == column);
    let time = index.and_then(|index| rows.columns.get(index)).cloned().unwrap_or_default();
    let before = rows.made_of.iter().filter(|scan| time.behind.get(scan).is_none_or(|behind| *behind > 0));
    let mut before: BTreeSet<String> = before.map(|scan| walk.scans[*scan].clone()).collect();
    // One that is read in a place that is not walked through.
    before.extend(sources.iter().map(|source| source.name.clone()).filter(|name| !walk.scans.contains(name)));
    match (before.is_empty(), time.happened) {
        (false, _) => Lies::Before(before.into_iter().collect()),
        (true, true) => Lies::With,
        (true, false) => Lies::After,
    }
}

/// What is known of a node's rows.
#[derive(Debug, Clone, Default)]
struct Rows {
    columns: Vec<Reach>,
    /// The scans whose events a row may be made of.
    made_of: BTreeSet<usize>,
}

/// What a column of an outer query follows, by a condition in a subquery.
type OuterBound = (Column, BTreeMap<usize, i64>);

struct Walk<'a> {
    sources: &'a [TimedSource],
    /// The source of each scan: one that is read twice stands for two events.
    scans: Vec<String>,
    outer: Vec<OuterBound>,
}

impl Walk<'_> {
    fn rows(&mut self, plan: &LogicalPlan) -> Rows {
        match plan {
            LogicalPlan::SubqueryAlias(of) => {
                // A source is planned as its query under its name; a query may use the name for something else.
                let is_source =
                    |source: &&TimedSource| source.name == of.alias.table() && source.plan == *of.input.as_ref();
                match self.sources.iter().find(is_source) {
                    Some(source) => self.scan(&source.name, plan.schema()),
                    None => self.rows(&of.input),
                }
            }
            LogicalPlan::Projection(of) => {
                let input = self.input(plan, &of.input);
                let columns = of.expr.iter().map(|part| reach(part, &input.columns, of.input.schema())).collect();
                Rows { columns, made_of: input.made_of }
            }
            LogicalPlan::Filter(of) => {
                let mut input = self.input(plan, &of.input);
                self.bound(&of.predicate, &mut input, of.input.schema());
                input
            }
            LogicalPlan::Sort(of) if of.fetch.is_none() => self.input(plan, &of.input),
            LogicalPlan::Distinct(Distinct::All(input)) => self.rows(input),
            LogicalPlan::Repartition(of) => self.rows(&of.input),
            LogicalPlan::Subquery(of) => self.rows(&of.subquery),
            LogicalPlan::Aggregate(of) => self.grouped(plan, of),
            LogicalPlan::Window(of) => self.windowed(plan, of),
            LogicalPlan::Join(of) => self.joined(plan, of),
            LogicalPlan::Union(of) => self.united(of),
            LogicalPlan::Unnest(of) => {
                let input = self.rows(&of.input);
                let (given, schema) = (of.input.schema(), plan.schema());
                // What is not taken apart keeps its name and its type.
                let column = |(qualifier, field): (Option<&_>, &FieldRef)| {
                    let index = given.index_of_column_by_name(qualifier, field.name())?;
                    (given.field(index).data_type() == field.data_type()).then(|| input.columns[index].clone())
                };
                let columns = schema.iter().map(|of| column(of).unwrap_or_default()).collect();
                Rows { columns, made_of: input.made_of }
            }
            // Which of the rows are there may depend on any event: of their columns nothing is known.
            other => {
                let inputs: Vec<Rows> = other.inputs().into_iter().map(|input| self.rows(input)).collect();
                let made_of = inputs.into_iter().flat_map(|input| input.made_of).collect();
                Rows { columns: unknown(other), made_of }
            }
        }
    }

    fn scan(&mut self, source: &str, schema: &DFSchema) -> Rows {
        let scan = self.scans.len();
        self.scans.push(source.to_owned());
        let columns = schema.fields().iter().map(|field| Reach::own(scan, field.data_type())).collect();
        Rows { columns, made_of: BTreeSet::from([scan]) }
    }

    /// The rows of a node's only input, with the events of the subqueries in the node's expressions.
    fn input(&mut self, plan: &LogicalPlan, input: &LogicalPlan) -> Rows {
        let mut rows = self.rows(input);
        self.subqueries(&plan.expressions(), &mut rows, input.schema());
        rows
    }

    /// All rows of a group are of one value of its keys: what is not before a row of it is not before any.
    fn grouped(&mut self, plan: &LogicalPlan, of: &Aggregate) -> Rows {
        let input = self.input(plan, &of.input);
        if of.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
            return Rows { columns: unknown(plan), made_of: input.made_of };
        }
        let schema = of.input.schema();
        let keys = of.group_expr.iter().map(|key| reach(key, &input.columns, schema));
        let values = of.aggr_expr.iter().map(|value| greatest_of(value, &input.columns, schema));
        let columns = keys.chain(values).collect();
        Rows { columns, made_of: input.made_of }
    }

    /// A row is made of all rows of its window: of what is known before, that stays which holds of each of them.
    fn windowed(&mut self, plan: &LogicalPlan, of: &Window) -> Rows {
        let mut input = self.input(plan, &of.input);
        for expression in &of.window_expr {
            let kept = kept_of(expression, of.input.schema());
            for (index, column) in input.columns.iter_mut().enumerate() {
                if !kept.contains(&index) {
                    *column = Reach::default();
                }
            }
        }
        input.columns.resize(plan.schema().fields().len(), Reach::default());
        input
    }

    fn joined(&mut self, plan: &LogicalPlan, of: &Join) -> Rows {
        let (left, right) = (self.rows(&of.left), self.rows(&of.right));
        let width = left.columns.len();
        let mut rows = Rows {
            columns: left.columns.into_iter().chain(right.columns).collect(),
            made_of: left.made_of.into_iter().chain(right.made_of).collect(),
        };
        if let Ok(schema) = build_join_schema(of.left.schema(), of.right.schema(), &JoinType::Inner) {
            self.subqueries(&plan.expressions(), &mut rows, &schema);
            for (left, right) in &of.on {
                self.follow(left, right, &mut rows, &schema);
                self.follow(right, left, &mut rows, &schema);
            }
            if let Some(filter) = &of.filter {
                self.bound(filter, &mut rows, &schema);
            }
        }
        match of.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {}
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => drop(rows.columns.drain(..width)),
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => rows.columns.truncate(width),
        }
        rows.columns.resize(plan.schema().fields().len(), Reach::default());
        rows
    }

    /// A row is one of one input, and made of its scans alone.
    fn united(&mut self, of: &Union) -> Rows {
        let mut united = Rows { columns: vec![Reach::default(); of.schema.fields().len()], made_of: BTreeSet::new() };
        for (number, input) in of.inputs.iter().enumerate() {
            let rows = self.rows(input);
            for (column, given) in united.columns.iter_mut().zip(rows.columns) {
                column.join_other(given, number == 0);
            }
            united.made_of.extend(rows.made_of);
        }
        united
    }

    /// Adds the events that subqueries are made of, and what their conditions say of the outer query's columns.
    fn subqueries(&mut self, expressions: &[Expr], rows: &mut Rows, schema: &DFSchema) {
        for expression in expressions {
            let looked_at = expression.apply(|part| {
                let subquery = match part {
                    Expr::ScalarSubquery(subquery) => subquery,
                    Expr::Exists(of) => &of.subquery,
                    Expr::InSubquery(of) => &of.subquery,
                    Expr::SetComparison(of) => &of.subquery,
                    _ => return Ok(TreeNodeRecursion::Continue),
                };
                let before = std::mem::take(&mut self.outer);
                let inner = self.rows(&subquery.subquery);
                rows.made_of.extend(inner.made_of);
                for (column, behind) in std::mem::replace(&mut self.outer, before) {
                    match schema.maybe_index_of_column(&column).and_then(|index| rows.columns.get_mut(index)) {
                        Some(known) => known.follows(&behind),
                        None => self.outer.push((column, behind)),
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            });
            looked_at.expect("nothing here fails");
        }
    }

    /// Takes over what a condition says of columns that are not less than other values.
    fn bound(&mut self, condition: &Expr, rows: &mut Rows, schema: &DFSchema) {
        for part in split_conjunction(condition) {
            match part {
                Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                    if matches!(op, Operator::Lt | Operator::LtEq | Operator::Eq) {
                        self.follow(left, right, rows, schema);
                    }
                    if matches!(op, Operator::Gt | Operator::GtEq | Operator::Eq) {
                        self.follow(right, left, rows, schema);
                    }
                }
                Expr::Between(Between { expr, negated: false, low, high }) => {
                    self.follow(expr, high, rows, schema);
                    self.follow(low, expr, rows, schema);
                }
                _ => {}
            }
        }
    }

    /// The greater value, where it is a column, follows what the lesser does.
    fn follow(&mut self, lesser: &Expr, greater: &Expr, rows: &mut Rows, schema: &DFSchema) {
        match greater {
            Expr::Column(column) => {
                let lesser = reach(lesser, &rows.columns, schema).behind;
                let index = schema.maybe_index_of_column(column);
                if let Some(known) = index.and_then(|index| rows.columns.get_mut(index)) {
                    known.follows(&lesser);
                }
            }
            Expr::OuterReferenceColumn(_, column) => {
                self.outer.push((column.clone(), reach(lesser, &rows.columns, schema).behind));
            }
            _ => {}
        }
    }
}

fn unknown(plan: &LogicalPlan) -> Vec<Reach> {
    vec![Reach::default(); plan.schema().fields().len()]
}

/// What is known of an aggregate: of the greatest time of all rows what is known of each.
fn greatest_of(aggregate: &Expr, columns: &[Reach], schema: &DFSchema) -> Reach {
    match aggregate {
        Expr::Alias(alias) => greatest_of(&alias.expr, columns, schema),
        Expr::AggregateFunction(AggregateFunction { func, params }) => match params.args.as_slice() {
            [time] if func.name() == "max" && params.filter.is_none() => reach(time, columns, schema),
            _ => Reach::default(),
        },
        _ => Reach::default(),
    }
}

/// The columns whose value is not less in a row than in all rows of its window: those by which they are parted, and the
/// one by which they are ordered where none comes after the row.
fn kept_of(expression: &Expr, schema: &DFSchema) -> Vec<usize> {
    let window = match expression {
        Expr::Alias(alias) => return kept_of(&alias.expr, schema),
        Expr::WindowFunction(window) => window,
        _ => return Vec::new(),
    };
    let order = window.params.order_by.first().filter(|order| order.asc && looks_back(window));
    let kept = window.params.partition_by.iter().chain(order.map(|order| &order.expr));
    kept.filter_map(|column| match column {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        _ => None,
    })
    .collect()
}

/// Whether a function over a window reads no row after its own.
fn looks_back(window: &WindowFunction) -> bool {
    let name = match &window.fun {
        WindowFunctionDefinition::AggregateUDF(_) => "",
        WindowFunctionDefinition::WindowUDF(function) => function.name(),
    };
    match name {
        "row_number" | "rank" | "dense_rank" => true,
        "lag" => match window.params.args.get(1) {
            None => true,
            Some(Expr::Literal(ScalarValue::Int64(Some(rows)), _)) => *rows >= 0,
            Some(_) => false,
        },
        "lead" | "ntile" | "percent_rank" | "cume_dist" => false,
        _ => !matches!(window.params.window_frame.end_bound, WindowFrameBound::Following(_)),
    }
}

#[cfg(test)]
mod tests;
