//! A query behind a barrier: what is planned over it knows its columns and nothing of how they are made.
//!
//! A sort over a union is planned as sorts of its sides. Where a side has one column under two names, or a constant, that is
//! left out of its order, and DataFusion then refuses its own plan, since the union's order is not the one that is wanted.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::Result;

use crate::session::{Session, query_error};

/// One partition of a plan.
struct Part {
    plan: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    partition: usize,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {} of {}", self.partition, self.plan.name())
    }
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        self.plan.execute(self.partition, context).unwrap_or_else(|error| {
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
    let plan = frame.create_physical_plan().await.map_err(query_error)?;
    let schema = plan.schema();
    let part = |partition| -> Arc<dyn PartitionStream> {
        Arc::new(Part { plan: Arc::clone(&plan), schema: Arc::clone(&schema), partition })
    };
    let parts = (0..plan.output_partitioning().partition_count()).map(part).collect();
    let table = StreamingTable::try_new(Arc::clone(&schema), parts).map_err(query_error)?;
    session.context().read_table(Arc::new(table)).map_err(query_error)
}
