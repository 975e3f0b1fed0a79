//! A query behind a barrier: what is planned over it knows its columns and nothing of how they are made.
//!
//! A sort over a union is planned as sorts of its sides. Where a side has one column under two names, or a constant, that is
//! left out of its order, and DataFusion then refuses its own plan, since the union's order is not the one that is wanted.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::DataFrame;
use springhouse_featurestore::Result;

use crate::session::{Session, query_error};

/// A plan of one partition, made ready anew each time that it is run.
struct Source {
    plan: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    /// Where it runs, if not where it is asked for.
    own: Option<Arc<TaskContext>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plan.name())
    }
}

impl PartitionStream for Source {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let context = self.own.clone().unwrap_or(context);
        let run = reset_plan_states(Arc::clone(&self.plan)).and_then(|plan| plan.execute(0, context));
        run.unwrap_or_else(|error| {
            let failed = futures::stream::once(async { Err(error) });
            Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), failed))
        })
    }
}

/// The rows of a query, in no order that a plan could rest on.
///
/// # Errors
/// Those of planning.
pub(crate) async fn as_it_comes(session: &Session, frame: DataFrame) -> Result<DataFrame> {
    let table = table(frame.create_physical_plan().await.map_err(query_error)?, None)?;
    session.context().read_table(table).map_err(query_error)
}

/// The rows of a session's query as a table for any session: it runs where it was planned, with the files that are seen there.
///
/// # Errors
/// Those of planning.
pub(crate) async fn table_of(session: &Session, frame: DataFrame) -> Result<Arc<dyn TableProvider>> {
    let plan = frame.create_physical_plan().await.map_err(query_error)?;
    let own = session.task_of(&plan);
    table(plan, Some(own))
}

fn table(plan: Arc<dyn ExecutionPlan>, own: Option<Arc<TaskContext>>) -> Result<Arc<dyn TableProvider>> {
    let schema = plan.schema();
    let plan: Arc<dyn ExecutionPlan> = Arc::new(CoalescePartitionsExec::new(plan));
    let source: Arc<dyn PartitionStream> = Arc::new(Source { plan, schema: Arc::clone(&schema), own });
    Ok(Arc::new(StreamingTable::try_new(schema, vec![source]).map_err(query_error)?))
}
