//! The order of writes (rule T5) carried through a view's query.
//!
//! Pushed events tell their place in it in two columns that no query names. Where each row of a view is one event they are
//! added to what the nodes of its query pass on; a row of several events has the place that its session gives it. The events of
//! a windowed view have theirs where one of its aggregates goes by their order.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Column as LogicalColumn, DFSchema, ScalarValue};
use datafusion::error::Result as QueryResult;
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Union, lit};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::tier::{WRITE_POSITION, WRITE_WITHIN};

/// The two columns.
const ORDER: [&str; 2] = [WRITE_POSITION, WRITE_WITHIN];

/// Whether the events of a view's sources are to tell their place: each of its rows is one of them, and it counts.
pub(crate) fn tells_order(view: &FeatureView) -> bool {
    view.keeps_order() && !view.reaches_back() && !view.is_static()
}

/// A source's columns, and those two.
pub(crate) fn with_order(schema: &SchemaRef) -> SchemaRef {
    let order = ORDER.map(|name| Arc::new(Field::new(name, DataType::Int64, true)));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain(order).collect::<Vec<_>>()))
}

/// The two columns of events that do not tell their place.
pub(super) fn no_order() -> [Expr; 2] {
    ORDER.map(|name| lit(ScalarValue::Int64(None)).alias(name))
}

/// The two columns by name.
pub(super) fn order_names() -> [Expr; 2] {
    ORDER.map(super::exact)
}

/// A query that passes the two columns on where its tables have them, and each of its rows is one of theirs.
pub(super) fn carrying(frame: DataFrame) -> QueryResult<DataFrame> {
    let (state, plan) = frame.into_parts();
    Ok(DataFrame::new(state, carried(&plan)?.unwrap_or(plan)))
}

/// A plan that passes the two columns on as [`carrying`] does; and them, where it has them.
pub(crate) fn with_places(plan: LogicalPlan) -> QueryResult<(LogicalPlan, Option<[Expr; 2]>)> {
    let plan = carried(&plan)?.unwrap_or(plan);
    let order = order_of(plan.schema());
    Ok((plan, order.map(|[position, within]| [position.alias(WRITE_POSITION), within.alias(WRITE_WITHIN)])))
}

/// The two columns of a view's rows: their own, or those of whoever writes them. Of events of windows that cannot tell their
/// own nobody knows the place, so that it is the same however they came.
pub(super) fn order_columns(view: &FeatureView, frame: &DataFrame, written: WriteOrder) -> [Expr; 2] {
    let own = order_of(frame.schema());
    if own.is_none() && view.windowed.is_some() {
        return no_order();
    }
    let otherwise = [written.position, written.within];
    std::array::from_fn(|index| {
        let otherwise = lit(otherwise[index]);
        let column = own.as_ref().map(|own| coalesce(vec![own[index].clone(), otherwise.clone()]));
        column.unwrap_or(otherwise).alias(ORDER[index])
    })
}

/// The two columns in a schema, if both are there and clear.
fn order_of(schema: &DFSchema) -> Option<[Expr; 2]> {
    let column = |name: &str| match schema.qualified_fields_with_unqualified_name(name).as_slice() {
        [(qualifier, _)] => Some(Expr::Column(LogicalColumn::new(qualifier.map(Clone::clone), name))),
        _ => None,
    };
    Some([column(WRITE_POSITION)?, column(WRITE_WITHIN)?])
}

/// The plan with the two columns in its result; none where a node makes rows of several others that have them, or of none.
fn carried(plan: &LogicalPlan) -> QueryResult<Option<LogicalPlan>> {
    if order_of(plan.schema()).is_some() {
        return Ok(Some(plan.clone()));
    }
    if let LogicalPlan::Join(_) = plan {
        return carried_join(plan);
    }
    let mut inputs = Vec::new();
    for input in plan.inputs() {
        let Some(input) = carried(input)? else { return Ok(None) };
        inputs.push(input);
    }
    match plan {
        LogicalPlan::Projection(projection) if inputs.len() == 1 => {
            let input = inputs.remove(0);
            let Some(order) = order_of(input.schema()) else { return Ok(None) };
            let columns = projection.expr.iter().cloned().chain(order).collect();
            Ok(Some(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?)))
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.with_new_exprs(plan.expressions(), inputs).map(Some)
        }
        LogicalPlan::Union(_) if !inputs.is_empty() => {
            let inputs = inputs.into_iter().map(Arc::new).collect();
            Ok(Some(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?)))
        }
        _ => Ok(None),
    }
}

/// A join of events with rows that hold at every time has the events' two columns.
fn carried_join(plan: &LogicalPlan) -> QueryResult<Option<LogicalPlan>> {
    let (mut inputs, mut carrying) = (Vec::new(), 0);
    for input in plan.inputs() {
        let own = carried(input)?;
        carrying += usize::from(own.is_some());
        inputs.push(own.unwrap_or_else(|| input.clone()));
    }
    if carrying != 1 {
        return Ok(None);
    }
    let joined = plan.with_new_exprs(plan.expressions(), inputs)?;
    Ok(order_of(joined.schema()).is_some().then_some(joined))
}
