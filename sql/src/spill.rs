//! Batches on disk: written once, read as often as wanted, gone when nobody holds them.

use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{EmptyRecordBatchStream, SpillManager};
use futures::stream::Fuse;
use futures::{Stream, StreamExt, TryStreamExt, stream};

/// Batches in a temporary file of the session.
#[derive(Clone)]
pub(crate) struct Spilled {
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
    pub(crate) async fn write(batches: SendableRecordBatchStream, env: Arc<RuntimeEnv>) -> QueryResult<Self> {
        let written = Written::default();
        let mut passing = pin!(spilling(batches, env, Arc::clone(&written))?);
        while passing.try_next().await?.is_some() {}
        written.get().cloned().ok_or_else(|| DataFusionError::Internal("a stream has no end".to_owned()))
    }

    /// What a manager has written to a file of batches of a schema, the greatest of them of so many bytes.
    pub(crate) fn new(
        manager: Arc<SpillManager>,
        file: Option<Arc<dyn SpillFile>>,
        schema: SchemaRef,
        batch_bytes: usize,
    ) -> Self {
        Self { manager, file, schema, batch_bytes }
    }

    /// The batches' columns.
    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Reads from the start.
    pub(crate) fn read(&self) -> QueryResult<SendableRecordBatchStream> {
        match &self.file {
            None => Ok(Box::pin(EmptyRecordBatchStream::new(Arc::clone(&self.schema)))),
            Some(file) => self.manager.read_spill_as_stream(Arc::clone(file), Some(self.batch_bytes)),
        }
    }
}

/// Where what was written is found, once the stream has ended.
pub(crate) type Written = Arc<OnceLock<Spilled>>;

/// Passes batches on, and writes them to disk meanwhile.
fn spilling(
    input: SendableRecordBatchStream,
    env: Arc<RuntimeEnv>,
    written: Written,
) -> QueryResult<impl Stream<Item = QueryResult<RecordBatch>> + Send> {
    let schema = input.schema();
    let metrics = SpillMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
    let manager = Arc::new(SpillManager::new(env, metrics, Arc::clone(&schema)));
    let file = manager.create_in_progress_file("writing a spine")?;
    Ok(stream::try_unfold((input, file, 0), move |(mut input, mut file, mut batch_bytes)| {
        let (manager, schema, written) = (Arc::clone(&manager), Arc::clone(&schema), Arc::clone(&written));
        async move {
            let Some(batch) = input.try_next().await? else {
                let spilled = Spilled { manager, file: file.finish()?, schema, batch_bytes };
                written.set(spilled).map_err(|_| DataFusionError::Internal("a stream ends twice".to_owned()))?;
                return Ok(None);
            };
            if batch.num_rows() > 0 {
                batch_bytes = file.append_batch(&batch)?.max(batch_bytes);
            }
            Ok(Some((batch, (input, file, batch_bytes))))
        }
    }))
}

/// Some columns of a stream as the source of a plan; the whole of it is written to disk as it passes.
pub(crate) struct Tee {
    /// Taken when the plan runs.
    input: Mutex<Option<SendableRecordBatchStream>>,
    env: Arc<RuntimeEnv>,
    columns: Vec<usize>,
    schema: SchemaRef,
    written: Written,
}

impl Tee {
    /// These columns of a stream; it is in `written` when it has been read to its end.
    pub(crate) fn new(
        input: SendableRecordBatchStream,
        columns: Vec<usize>,
        env: Arc<RuntimeEnv>,
        written: Written,
    ) -> QueryResult<Self> {
        let schema = Arc::new(input.schema().project(&columns)?);
        Ok(Self { input: Mutex::new(Some(input)), env, columns, schema, written })
    }

    fn spilling(&self) -> QueryResult<impl Stream<Item = QueryResult<RecordBatch>> + Send + use<>> {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let input = input.ok_or_else(|| DataFusionError::Internal("a spine is read twice".to_owned()))?;
        spilling(input, Arc::clone(&self.env), Arc::clone(&self.written))
    }
}

impl std::fmt::Debug for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tee").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl PartitionStream for Tee {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        projected(&self.schema, &self.columns, self.spilling())
    }
}

/// Some columns of batches, or what went wrong before them.
fn projected(
    schema: &SchemaRef,
    columns: &[usize],
    batches: QueryResult<impl Stream<Item = QueryResult<RecordBatch>> + Send + 'static>,
) -> SendableRecordBatchStream {
    let columns = columns.to_vec();
    let batches = match batches {
        Ok(batches) => batches.map(move |batch| Ok(batch?.project(&columns)?)).boxed(),
        Err(error) => stream::once(async { Err(error) }).boxed(),
    };
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), batches))
}

/// Some columns of spilled batches, as the source of a plan.
#[derive(Debug)]
pub(crate) struct SpilledColumns {
    spilled: Spilled,
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl SpilledColumns {
    /// All columns of the batches.
    pub(crate) fn whole(spilled: &Spilled) -> Self {
        let columns = (0..spilled.schema.fields().len()).collect();
        Self { spilled: spilled.clone(), columns, schema: spilled.schema() }
    }

    /// These columns of the batches.
    pub(crate) fn new(spilled: &Spilled, columns: Vec<usize>) -> QueryResult<Self> {
        let schema = Arc::new(spilled.schema.project(&columns)?);
        Ok(Self { spilled: spilled.clone(), columns, schema })
    }
}

impl PartitionStream for SpilledColumns {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        projected(&self.schema, &self.columns, self.spilled.read())
    }
}

/// Reads batches in pieces of any length.
pub(crate) struct Pieces {
    batches: Fuse<SendableRecordBatchStream>,
    schema: SchemaRef,
    current: Option<RecordBatch>,
}

impl Pieces {
    /// Of batches on disk, from the start.
    pub(crate) fn new(spilled: &Spilled) -> QueryResult<Self> {
        Ok(Self::of(spilled.read()?))
    }

    /// Of batches as they come.
    pub(crate) fn of(batches: SendableRecordBatchStream) -> Self {
        Self { schema: batches.schema(), batches: batches.fuse(), current: None }
    }

    /// Waits for the first batch.
    pub(crate) async fn begin(&mut self) -> QueryResult<()> {
        self.current = self.batches.try_next().await?;
        Ok(())
    }

    /// The next rows, fewer only at the end.
    pub(crate) async fn next(&mut self, rows: usize) -> QueryResult<RecordBatch> {
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
            _ => Ok(arrow::compute::concat_batches(&self.schema, &pieces)?),
        }
    }
}
