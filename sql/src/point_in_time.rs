//! The point-in-time join: for each row of a spine the feature row that was known at its time.
//!
//! Of an entity's rows with event time <= T and available time <= T the one with the greatest event time, then the
//! greatest available time, then the one that was written last (rules T3 and T5). One pass over both sides:
//!
//! ```text
//! spine rows -> by hash of key -> sorted by key, time ----------------------------+
//!                                                                                 +-> merge -> spine rows + feature row
//! view rows  -> by hash of key -> sorted by key, visible time, event, ..., values +
//! ```
//!
//! For a windowed view the rows are events, and the answer is what its windows hold as of the spine's time (rule T4): the
//! same sweep, with the key's windows, which move along, in the place of the candidate. Windows put events of one time in order
//! themselves, by the place in the order of writes that each event brings along where an aggregate asks for it.
//!
//! *Visible time* is the later of event time and available time: a sweep in that order keeps one candidate per key.
//! Where rows are visible a fixed time after they happened, data files lie in that order, and few of them are merged
//! rather than sorted. Sorting spills to disk beyond the session's memory; the merge itself holds a few batches.

mod exec;
mod key_time;
mod keys;
mod latest;
mod merge;
mod sides;
mod windows;

use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{Field, FieldRef};
use datafusion::error::Result as QueryResult;
use datafusion::functions::core::expr_fn::greatest;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, ScalarFunctionExpr};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::{Column, ColumnType, FeatureView, RowTime};
use springhouse_featurestore::freshness::ServingHistory;
use springhouse_featurestore::lookup::{event_time_column, feature_column};
use springhouse_featurestore::tier::{AVAILABLE_TIME, EVENT_TIME, WRITE_POSITION, WRITE_WITHIN};

pub use exec::PointInTimeExec;

use self::key_time::key_time;
use self::keys::Integers;
use crate::session::{exact, query_error};

/// The visible-time column inside the join.
const VISIBLE_TIME: &str = "@visible_time";

/// The column by which a spine with keys of one integer is sorted.
const KEY_TIME: &str = "@key_time";

/// The columns that the join of a view adds: `view.feature` for each feature, then `view@event_time`.
pub fn added_fields(view: &FeatureView) -> Vec<FieldRef> {
    let features = view
        .features
        .iter()
        .map(|feature| Field::new(feature_column(&view.name, &feature.name), feature.column_type.to_arrow(), true));
    let event = Field::new(event_time_column(&view.name), ColumnType::Timestamp.to_arrow(), true);
    features.chain([event]).map(Arc::new).collect()
}

/// Which of a view's rows count at a time (rule T3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowsAsOf {
    /// Those that were known by then.
    Known,
    /// Those that had happened by then, known or not: what nobody could have served.
    EventTime,
    /// Those that serving had by then.
    Served(Arc<ServingHistory>),
}

impl RowsAsOf {
    fn served(&self) -> Option<Arc<ServingHistory>> {
        match self {
            Self::Served(history) => Some(Arc::clone(history)),
            Self::Known | Self::EventTime => None,
        }
    }
}

/// Spreads a spine by its keys and sorts each part by key and time, as [`join`] wants it.
///
/// # Errors
/// When a column is missing.
pub fn arrange_spine(
    spine: Arc<dyn ExecutionPlan>,
    keys: &[&str],
    time: &str,
    partitions: usize,
) -> QueryResult<Arc<dyn ExecutionPlan>> {
    let schema = spine.schema();
    let types = keys.iter().map(|name| Ok(schema.field_with_name(name)?.data_type().clone()));
    if !Integers::are(&types.collect::<QueryResult<Vec<_>>>()?) {
        let order: Vec<&str> = keys.iter().copied().chain([time]).collect();
        return arrange(spine, keys, &order, partitions);
    }
    let column = |name: &str| -> QueryResult<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(PhysicalColumn::new_with_schema(name, &schema)?))
    };
    let spread = Partitioning::Hash(keys.iter().map(|name| column(name)).collect::<QueryResult<_>>()?, partitions);
    let spread = Arc::new(RepartitionExec::try_new(spine, spread)?);
    let own = schema.fields().iter().map(|field| Ok((column(field.name())?, field.name().clone())));
    let own = own.collect::<QueryResult<Vec<_>>>()?;
    let arguments = vec![column(keys[0])?, column(time)?];
    let key_time = ScalarFunctionExpr::try_new(key_time(), arguments, &schema, Arc::default())?;
    let mut with_order = own.clone();
    with_order.push((Arc::new(key_time), KEY_TIME.to_owned()));
    let spine: Arc<dyn ExecutionPlan> = Arc::new(ProjectionExec::try_new(with_order, spread)?);
    let order: Arc<dyn PhysicalExpr> = Arc::new(PhysicalColumn::new_with_schema(KEY_TIME, &spine.schema())?);
    let order = LexOrdering::from([PhysicalSortExpr::new(order, ascending())]);
    let sorted = SortExec::new(order, spine).with_preserve_partitioning(true);
    Ok(Arc::new(ProjectionExec::try_new(own, Arc::new(sorted))?))
}

/// Joins the rows of one view to a spine that [`arrange_spine`] has arranged by the view's keys: adds the columns of
/// [`added_fields`], null where there is no row. The spine's rows stay as they are arranged.
///
/// `rows` has the columns of the view's data files; `spine` has the key columns and `time`, in the types of the view.
///
/// # Errors
/// Those of planning.
pub async fn join(
    spine: Arc<dyn ExecutionPlan>,
    time: &str,
    rows: DataFrame,
    view: &FeatureView,
    as_of: &RowsAsOf,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let rows = visible(rows, view, as_of).map_err(query_error)?;
    let rows = rows.create_physical_plan().await.map_err(query_error)?;
    let keys: Vec<&str> = view.keys.iter().map(|key| key.name.as_str()).collect();
    let values: Vec<String> = view.row_columns().iter().map(|column| value_column(view, column)).collect();
    let event = event_time_column(&view.name);
    // Where a row is visible a fixed time after it happened both orders are one, and data files have the second.
    let visible = (!in_event_order(view, as_of)).then_some(VISIBLE_TIME);
    let row_order: Vec<&str> = keys
        .iter()
        .copied()
        .chain(visible)
        .chain([event.as_str(), AVAILABLE_TIME])
        .chain([WRITE_POSITION, WRITE_WITHIN].into_iter().filter(|_| view.windowed.is_none()))
        .chain(values.iter().map(String::as_str).filter(|_| view.windowed.is_none()))
        .collect();
    let rows = arrange(rows, &keys, &row_order, partitions).map_err(query_error)?;
    let event = view.windowed.is_none().then_some(event.as_str());
    let payload: Vec<&str> = values.iter().map(String::as_str).chain(event).collect();
    let join = PointInTimeExec::try_new(spine, rows, view, time, &payload, as_of).map_err(query_error)?;
    Ok(Arc::new(join))
}

/// Whether a view's rows become visible in the order in which they happened.
fn in_event_order(view: &FeatureView, as_of: &RowsAsOf) -> bool {
    *as_of == RowsAsOf::EventTime || !matches!(view.row_time, RowTime::Columns { .. })
}

/// What a value column of the view's rows is called inside the join.
fn value_column(view: &FeatureView, column: &Column) -> String {
    feature_column(&view.name, &column.name)
}

/// Renames a view's columns to their names in the result, and adds the visible time.
fn visible(rows: DataFrame, view: &FeatureView, as_of: &RowsAsOf) -> QueryResult<DataFrame> {
    let event = exact(EVENT_TIME).alias(event_time_column(&view.name));
    let visible = match as_of {
        RowsAsOf::EventTime => exact(EVENT_TIME),
        RowsAsOf::Known | RowsAsOf::Served(_) => greatest(vec![exact(EVENT_TIME), exact(AVAILABLE_TIME)]),
    };
    let visible = visible.alias(VISIBLE_TIME);
    let keys = view.keys.iter().map(|key| exact(&key.name));
    let features = view.row_columns().iter().map(|column| exact(&column.name).alias(value_column(view, column)));
    let written = [WRITE_POSITION, WRITE_WITHIN].into_iter().filter(|_| view.keeps_order()).map(exact);
    let columns: Vec<_> = keys.chain(features).chain([event, exact(AVAILABLE_TIME), visible]).chain(written).collect();
    rows.select(columns)
}

/// Spreads rows by the hash of their keys, and sorts each part where it does not come sorted.
fn arrange(
    plan: Arc<dyn ExecutionPlan>,
    keys: &[&str],
    order: &[&str],
    partitions: usize,
) -> QueryResult<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    let column = |name: &str| -> QueryResult<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(PhysicalColumn::new_with_schema(name, &schema)?))
    };
    let hash: Vec<_> = keys.iter().map(|name| column(name)).collect::<QueryResult<_>>()?;
    let sort: Vec<_> =
        order.iter().map(|name| Ok(PhysicalSortExpr::new(column(name)?, ascending()))).collect::<QueryResult<_>>()?;
    let sorted = plan.equivalence_properties().ordering_satisfy(sort.clone())?;
    let spread = RepartitionExec::try_new(plan, Partitioning::Hash(hash, partitions))?;
    if sorted {
        return Ok(Arc::new(spread.with_preserve_order()));
    }
    let plan: Arc<dyn ExecutionPlan> = Arc::new(spread);
    let Some(sort) = LexOrdering::new(sort) else { return Ok(plan) };
    Ok(Arc::new(SortExec::new(sort, plan).with_preserve_partitioning(true)))
}

/// Nulls first, as the merge compares keys.
pub(crate) fn ascending() -> SortOptions {
    SortOptions { descending: false, nulls_first: true }
}
