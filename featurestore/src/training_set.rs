//! What serving asks of jobs: training sets. `serving` and `materializer` know nothing of each other; they meet in
//! this trait, and the binary wires one to the other.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::Result;

/// Batches of a table, and their columns.
pub type Batches = (SchemaRef, BoxStream<'static, Result<RecordBatch>>);

/// Which training set: the JSON of a Flight command, or the arguments of a command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSetCommand {
    /// The contract's name.
    pub contract: String,
    /// A SQL query over the project's tables and sources, or a file of the project.
    pub spine: String,
    /// The spine's time column.
    pub time: String,
}

/// Makes training sets for those who ask over the wire.
#[async_trait]
pub trait TrainingSets: Send + Sync + std::fmt::Debug {
    /// Begins a training set; nothing is computed before the first batch is asked for.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for a spine that is not right, [`crate::ErrorKind::NotFound`] for a contract that
    /// the catalog lacks.
    async fn training_set(&self, command: &TrainingSetCommand) -> Result<Batches>;
}
