//! Training sets for those who ask over the wire: on threads of their own, so that no query starves lookups, in places that
//! are counted, out of memory that they share.
//!
//! A spine that comes as batches is written to a temporary file first, since it is read more than once, and may be larger
//! than memory. What is computed waits for its reader; a client that neither sends nor reads for long loses its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition;
use springhouse_featurestore::encoding::bytes_of_rows;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::time::Span;
use springhouse_featurestore::training_set::{Batches, CommandSpine, TrainingSetCommand, TrainingSets};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::nesting::STACK_BYTES;
use springhouse_sql::spine::{SpineOrder, SpineSource, SpineSubset};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::Jobs;
use crate::training_set::{AsOf, RowsFrom, TrainingSetRequest};

/// Training sets that are made at once: the parts of one that eight readers take, each with an eighth of the memory.
pub const PLACES: usize = 8;

/// The most bytes of a spine that comes as batches, as Arrow holds them.
const MOST_SPINE_BYTES: usize = 4 << 30;

/// How long a client may leave its next batch unsent, or an answer unread.
const IDLE: Duration = Duration::from_secs(60);

/// Batches that are computed before their reader takes them.
const AHEAD: usize = 2;

/// Makes training sets for those who ask over the wire.
#[derive(Debug)]
pub struct WireQueries {
    jobs: Jobs,
    places: Arc<Semaphore>,
    /// Always there until it is dropped.
    runtime: Option<Runtime>,
}

/// A batch, or the end: a stream that stops without it was cut off, and its reader must not take it for whole.
enum Computed {
    Batch(RecordBatch),
    End,
}

impl WireQueries {
    /// Starts as many threads as a job of these uses; all queries together have the memory of one.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when the threads cannot be started.
    pub fn start(jobs: Jobs) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(jobs.threads())
            .thread_name("springhouse-query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| Error::unavailable("the threads of queries cannot be started").source(error))?;
        let places = Arc::new(Semaphore::new(PLACES));
        Ok(Self { jobs: jobs.shared_by(PLACES), places, runtime: Some(runtime) })
    }

    fn handle(&self) -> Result<&Handle> {
        let runtime = self.runtime.as_ref();
        runtime.map(Runtime::handle).ok_or_else(|| Error::unavailable("the server is stopping"))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::busy("as many training sets are being made as there are places for")
                .with("places", PLACES)
                .remedy("try again when one has ended, or make it with: springhouse training-set")
        })
    }
}

impl Drop for WireQueries {
    fn drop(&mut self) {
        // To wait for its threads here would block one of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl TrainingSets for WireQueries {
    fn places(&self) -> usize {
        PLACES
    }

    async fn schema(&self, command: &TrainingSetCommand) -> Result<SchemaRef> {
        let place = self.place()?;
        let (jobs, command) = (self.jobs.clone(), command.clone());
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let _place = place;
                let state = jobs.catalog().state().await?;
                let contract = state.current_contract(&command.contract)?;
                command.wanted()?;
                jobs.training_set_schema(&state, contract, &request(named_spine(&state, &command)?)).await
            },
            self.handle()?,
        );
        match task.join_next().await {
            Some(Ok(planned)) => planned,
            Some(Err(error)) => Err(Error::internal("planning a training set panicked").source(error)),
            None => Err(Error::internal("a task that was spawned is not there")),
        }
    }

    async fn training_set(&self, command: &TrainingSetCommand, spine: Option<Batches>) -> Result<Batches> {
        let place = self.place()?;
        let (jobs, command) = (self.jobs.clone(), command.clone());
        let (opened, opening) = oneshot::channel();
        let (computed, taken) = mpsc::channel(AHEAD);
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let _place = place;
                make(jobs, command, spine, opened, computed).await;
            },
            self.handle()?,
        );
        let schema = opening.await.map_err(|_| Error::internal("a training set ended before it began"))??;
        // The task ends with its reader: a set of tasks ends those that it holds when it is dropped.
        let batches = stream::try_unfold(Some((taken, task)), |reading| async move {
            let Some((mut taken, task)) = reading else { return Ok(None) };
            match taken.recv().await {
                Some(Ok(Computed::Batch(batch))) => Ok(Some((batch, Some((taken, task))))),
                Some(Ok(Computed::End)) => Ok(None),
                Some(Err(error)) => Err(error),
                None => Err(Error::unavailable("the training set was cut off")
                    .remedy("ask again, and read what comes: a reader that waits for long loses its place")),
            }
        });
        Ok((schema, batches.boxed()))
    }
}

/// Makes a training set from its spine to its last batch.
async fn make(
    jobs: Jobs,
    command: TrainingSetCommand,
    spine: Option<Batches>,
    opened: oneshot::Sender<Result<SchemaRef>>,
    computed: mpsc::Sender<Result<Computed>>,
) {
    let begun = begin(&jobs, &command, spine).await;
    // The spine's file, where there is one, stays until the last batch.
    let (_spine, schema, mut batches) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // A reader that has gone does not hear it.
            drop(opened.send(Err(error)));
            return;
        }
    };
    if opened.send(Ok(schema)).is_err() {
        return;
    }
    loop {
        let next = match batches.try_next().await {
            Ok(Some(batch)) => Ok(Computed::Batch(batch)),
            Ok(None) => Ok(Computed::End),
            Err(error) => Err(error),
        };
        let last = !matches!(next, Ok(Computed::Batch(_)));
        if computed.send_timeout(next, IDLE).await.is_err() || last {
            return;
        }
    }
}

/// The file of a spine, the columns, and the batches to come.
type Begun = (Option<tempfile::TempDir>, SchemaRef, springhouse_sql::view_rows::RowStream);

async fn begin(jobs: &Jobs, command: &TrainingSetCommand, spine: Option<Batches>) -> Result<Begun> {
    let subset = command.wanted()?.map_or(SpineSubset::Whole, SpineSubset::Part);
    let state = jobs.catalog().state().await?;
    let contract = state.current_contract(&command.contract)?;
    let (folder, source) = match spine {
        None => (None, named_spine(&state, command)?),
        Some(spine) => {
            let folder = tempfile::tempdir()
                .map_err(|error| Error::unavailable("there is no room for a spine").source(error))?;
            let file = folder.path().join("spine.parquet");
            write_spine(spine, &file).await?;
            (Some(folder), written_spine(command, file.to_string_lossy().into_owned()))
        }
    };
    let set = jobs.training_set_of(&state, contract, &request(source), subset).await?;
    Ok((folder, Arc::clone(set.schema()), set.execute()))
}

/// The spine that a command names, or holds the query of.
fn named_spine(catalog: &CatalogState, command: &TrainingSetCommand) -> Result<SpineSource> {
    match &command.spine {
        Some(CommandSpine::Written(text)) => Ok(written_spine(command, text.clone())),
        Some(CommandSpine::Defined(spine)) => SpineSource::defined(catalog, &spine.name, command.time.as_deref()),
        None => Err(Error::invalid("the command names no spine").remedy(
            "send its batches by DoExchange, or name one that the project defines: \"spine\": {\"name\": ...}; a query or a \
             file's name needs the scope query",
        )),
    }
}

fn written_spine(command: &TrainingSetCommand, from: String) -> SpineSource {
    let time = command.time.clone().unwrap_or_else(|| definition::Spine::TIME.to_owned());
    SpineSource { from, time, lag: Span::ZERO }
}

fn request(spine: SpineSource) -> TrainingSetRequest {
    TrainingSetRequest {
        spine,
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: false,
        order: SpineOrder::AsGiven,
    }
}

/// Writes a spine as it comes.
async fn write_spine((schema, mut batches): Batches, file: &Path) -> Result<()> {
    if schema.fields().is_empty() {
        return Err(
            Error::invalid("the spine has no columns").remedy("send the contract's request columns and the time")
        );
    }
    let refused = |error: Error| {
        Error::invalid("the spine cannot be taken")
            .remedy("send columns of the types that docs/wire.md lists")
            .source(error)
    };
    let mut writer = ParquetFileWriter::create(file, Arc::clone(&schema), &BTreeMap::new()).map_err(refused)?;
    let mut bytes = 0_usize;
    loop {
        let next = tokio::time::timeout(IDLE, batches.try_next()).await.map_err(|_| {
            Error::expired("the next batch of the spine did not come")
                .with("waited", format!("{} s", IDLE.as_secs()))
                .remedy("send the spine without pauses, and end it (done_writing)")
        })?;
        let Some(batch) = next? else { break };
        bytes = bytes.saturating_add(bytes_of_rows(&batch));
        if bytes > MOST_SPINE_BYTES {
            return Err(Error::invalid("the spine is too large for one training set")
                .with("bytes", bytes)
                .with("at most", MOST_SPINE_BYTES)
                .remedy("send it in several"));
        }
        writer.write(&batch).map_err(refused)?;
    }
    writer.finish().map(|_| ())
}
