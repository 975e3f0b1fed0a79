//! The query of a view over new events, planned once and run for every push.
//!
//! Where each row of a view stands by itself and the view reads one source alone, its plan is the same for all pushes:
//! its leaf is a slot into which the next events are put.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result as QueryResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::TryStreamExt;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Column, EventTime, FeatureView};
use springhouse_featurestore::push::PushedEvents;

use crate::session::{Session, query_error, tells_order, with_order};
use crate::view_rows::{RowStream, each_once, unique_order};

/// Where a plan finds the events that it is run for.
#[derive(Debug)]
struct Slot {
    schema: SchemaRef,
    events: Mutex<Vec<RecordBatch>>,
}

impl PartitionStream for Slot {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        match MemoryStream::try_new(events, Arc::clone(&self.schema), None) {
            Ok(stream) => Box::pin(stream),
            Err(error) => {
                let failed = futures::stream::once(async { Err(error) });
                Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), failed))
            }
        }
    }
}

/// A batch with other columns: those of a source's version, taken by name from events of another. What was not pushed
/// then is null.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Internal`] when a column cannot be of its new type.
pub(crate) fn of_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let column = |field: &FieldRef| match batch.column_by_name(field.name()) {
        Some(array) => Ok(cast(array, field.data_type())?),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<_>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// A planned query.
#[derive(Debug)]
pub struct PushedQuery {
    view: FeatureView,
    source: String,
    slot: Arc<Slot>,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    /// Whether it may fail on some events.
    may_fail: bool,
    /// One run fills the slot at a time.
    running: Mutex<()>,
}

impl PushedQuery {
    /// Plans a view's query in a session of its own; `None` where its rows depend on more than the new events.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn plan(session: &Session, catalog: &CatalogState, view: &FeatureView) -> Result<Option<Self>> {
        let [pinned] = view.sources.as_slice() else { return Ok(None) };
        let source = catalog.source(pinned)?;
        if view.reaches_back() || source.event_time == EventTime::Static {
            return Ok(None);
        }
        let session = session.ordered();
        let mut schema = Column::to_schema(source.columns.iter());
        if tells_order(view) {
            schema = with_order(&schema);
        }
        let slot = Arc::new(Slot { schema: Arc::clone(&schema), events: Mutex::default() });
        let table = StreamingTable::try_new(schema, vec![Arc::clone(&slot) as Arc<dyn PartitionStream>]);
        let table = Arc::new(table.map_err(query_error)?);
        let events = session.context().read_table(table).map_err(query_error)?;
        session.register(source, events, None)?;
        let mut frame = session.view_frame(view).await?;
        if view.windowed.is_none() {
            frame = unique_order(frame, view)?;
        }
        let may_fail = may_fail(frame.logical_plan()).map_err(query_error)?;
        let context = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await.map_err(query_error)?;
        Ok(Some(Self {
            view: view.clone(),
            source: source.name.clone(),
            slot,
            plan,
            context,
            may_fail,
            running: Mutex::default(),
        }))
    }

    /// Whether the query may fail on some events.
    pub fn may_fail(&self) -> bool {
        self.may_fail
    }

    /// The view's rows of new events, as [`crate::view_rows::pushed_rows`] gives them, though a windowed view's in no order.
    ///
    /// # Errors
    /// Those of running the query.
    pub fn run(&self, new: &PushedEvents) -> Result<RowStream> {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let events = new.batches.get(&self.source).map_or_else(Vec::new, Clone::clone);
        let events = events.iter().map(|batch| of_schema(batch, &self.slot.schema)).collect::<Result<Vec<_>>>()?;
        *self.slot.events.lock().unwrap_or_else(PoisonError::into_inner) = events;
        let batches = self.plan.execute(0, Arc::clone(&self.context)).map_err(query_error)?;
        each_once(Box::pin(batches.map_err(query_error)), &self.view)
    }
}

/// Whether some node of a plan computes what not every event has a value for.
fn may_fail(plan: &LogicalPlan) -> QueryResult<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        let mut schema = DFSchema::empty();
        for input in node.inputs() {
            schema.merge(input.schema());
        }
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                found |= !is_total(part, &schema);
                Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    })?;
    Ok(found)
}

/// Whether an expression has a value, or null, for whatever its parts are.
fn is_total(expression: &Expr, schema: &DFSchema) -> bool {
    let floats = |one: &Expr| one.get_type(schema).is_ok_and(|kind| kind.is_floating());
    match expression {
        Expr::Column(_)
        | Expr::Literal(..)
        | Expr::Alias(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::Not(_)
        | Expr::Between(_)
        | Expr::InList(_)
        | Expr::Case(_)
        | Expr::TryCast(_) => true,
        Expr::BinaryExpr(binary) => {
            binary.op.supports_propagation()
                || matches!(binary.op, Operator::And | Operator::Or)
                || floats(&binary.left) && floats(&binary.right)
        }
        // The view's own: a column in the type that it has.
        Expr::Cast(cast) => cast.expr.get_type(schema).is_ok_and(|kind| kind == *cast.field.data_type()),
        Expr::ScalarFunction(call) => matches!(call.name(), "coalesce" | "nullif"),
        _ => false,
    }
}
