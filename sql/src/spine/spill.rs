//! Batches on disk: written once, read as often as wanted, gone when nobody holds them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result as QueryResult;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{EmptyRecordBatchStream, SpillManager};
use futures::{StreamExt, TryStreamExt};

/// Batches in a temporary file of the session.
#[derive(Clone)]
pub(super) struct Spilled {
    manager: Arc<SpillManager>,
    /// Absent when there were no rows.
    file: Option<Arc<dyn SpillFile>>,
    schema: SchemaRef,
    /// The greatest size of a batch in memory.
    batch_bytes: usize,
}

impl std::fmt::Debug for Spilled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spilled").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Spilled {
    /// Writes a stream to its end.
    pub(super) async fn write(mut batches: SendableRecordBatchStream, env: Arc<RuntimeEnv>) -> QueryResult<Self> {
        let schema = batches.schema();
        let metrics = SpillMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
        let manager = Arc::new(SpillManager::new(env, metrics, Arc::clone(&schema)));
        let mut writing = manager.create_in_progress_file("writing a spine")?;
        let mut batch_bytes = 0;
        while let Some(batch) = batches.try_next().await? {
            if batch.num_rows() > 0 {
                batch_bytes = batch_bytes.max(writing.append_batch(&batch)?);
            }
        }
        Ok(Self { manager, file: writing.finish()?, schema, batch_bytes })
    }

    /// Reads from the start.
    pub(super) fn read(&self) -> QueryResult<SendableRecordBatchStream> {
        match &self.file {
            None => Ok(Box::pin(EmptyRecordBatchStream::new(Arc::clone(&self.schema)))),
            Some(file) => self.manager.read_spill_as_stream(Arc::clone(file), Some(self.batch_bytes)),
        }
    }
}

/// Some columns of spilled batches, as the source of a plan.
#[derive(Debug)]
pub(super) struct SpilledColumns {
    spilled: Spilled,
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl SpilledColumns {
    /// These columns of the batches.
    pub(super) fn new(spilled: &Spilled, columns: Vec<usize>) -> QueryResult<Self> {
        let schema = Arc::new(spilled.schema.project(&columns)?);
        Ok(Self { spilled: spilled.clone(), columns, schema })
    }
}

impl PartitionStream for SpilledColumns {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let columns = self.columns.clone();
        let batches = match self.spilled.read() {
            Ok(batches) => batches.map(move |batch| Ok(batch?.project(&columns)?)).boxed(),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

/// Reads spilled batches in pieces of any length.
pub(super) struct Pieces {
    batches: SendableRecordBatchStream,
    current: Option<RecordBatch>,
}

impl Pieces {
    /// From the start.
    pub(super) fn new(spilled: &Spilled) -> QueryResult<Self> {
        Ok(Self { batches: spilled.read()?, current: None })
    }

    /// The next rows, fewer only at the end.
    pub(super) async fn next(&mut self, rows: usize) -> QueryResult<RecordBatch> {
        let mut pieces = Vec::new();
        let mut wanted = rows;
        while wanted > 0 {
            let Some(batch) = self.current.take().filter(|batch| batch.num_rows() > 0) else {
                self.current = self.batches.try_next().await?;
                if self.current.is_none() {
                    break;
                }
                continue;
            };
            let taken = batch.num_rows().min(wanted);
            pieces.push(batch.slice(0, taken));
            self.current = Some(batch.slice(taken, batch.num_rows() - taken));
            wanted -= taken;
        }
        match pieces.as_slice() {
            [whole] => Ok(whole.clone()),
            _ => Ok(arrow::compute::concat_batches(&self.batches.schema(), &pieces)?),
        }
    }
}
