//! What serving asks of jobs: training sets. `serving` and `materializer` know nothing of each other; they meet in
//! this trait, and the binary wires one to the other.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{Error, Result};

/// Batches of a table, and their columns.
pub type Batches = (SchemaRef, BoxStream<'static, Result<RecordBatch>>);

/// Which training set: the JSON of a Flight command, or the arguments of a command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSetCommand {
    /// The contract's name.
    pub contract: String,
    /// The spine. Without it the spine comes as batches, in the exchange that the command opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spine: Option<CommandSpine>,
    /// The spine's time column: that of its definition, else `as_of`, where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// In how many parts it is wanted: `GetFlightInfo` answers with an endpoint for each, to be read at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<usize>,
    /// Which of the parts, counted from 0: every `parts`-th row of the spine from this one on, in its order; all rows where
    /// it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<usize>,
}

/// A spine that does not come as batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CommandSpine {
    /// A SQL query over the project's tables and sources, or a file of the project: for engineers alone.
    Written(String),
    /// `{"name": "landings"}`: one that the project defines, for all who read.
    Defined(DefinedSpine),
}

/// A spine that the project defines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct DefinedSpine {
    /// Its name.
    pub name: String,
}

/// A list of one text is no spine, though it would read as this structure.
impl TryFrom<BTreeMap<String, String>> for DefinedSpine {
    type Error = &'static str;

    fn try_from(mut fields: BTreeMap<String, String>) -> std::result::Result<Self, Self::Error> {
        match (fields.remove("name"), fields.is_empty()) {
            (Some(name), true) => Ok(Self { name }),
            _ => Err("a defined spine is {\"name\": NAME}"),
        }
    }
}

impl CommandSpine {
    /// A spine that the project defines.
    pub fn defined(name: impl Into<String>) -> Self {
        Self::Defined(DefinedSpine { name: name.into() })
    }

    /// The bytes that it has in a ticket.
    fn bytes(&self) -> usize {
        match self {
            Self::Written(text) => text.len(),
            Self::Defined(spine) => spine.name.len(),
        }
    }
}

/// The most parts of a training set.
pub const MOST_PARTS: usize = 1_024;

/// The most bytes of the tickets of all parts: each holds the spine.
const MOST_TICKET_BYTES: usize = 16 << 20;

impl TrainingSetCommand {
    /// The commands of the parts; this one alone where it names its part or wants none.
    pub fn endpoints(&self) -> Vec<Self> {
        match (self.parts, self.part) {
            (Some(parts), None) => (0..parts).map(|part| Self { part: Some(part), ..self.clone() }).collect(),
            _ => vec![self.clone()],
        }
    }

    /// Which rows are wanted: every `of`-th from `index` on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for a part that is not among the parts.
    pub fn wanted(&self) -> Result<Option<SpinePart>> {
        let of = self.parts.unwrap_or(1);
        let index = self.part.unwrap_or(0);
        if of == 0 || of > MOST_PARTS || index >= of {
            return Err(Error::invalid("no such part of a training set")
                .with("parts", of)
                .with("part", index)
                .remedy(format!("ask for 1 to {MOST_PARTS} parts, counted from 0")));
        }
        let spine = self.spine.as_ref().map_or(0, CommandSpine::bytes);
        if self.part.is_none() && spine.saturating_mul(of) > MOST_TICKET_BYTES {
            return Err(Error::invalid("the spine is too long to be repeated in the ticket of each part")
                .with("bytes", spine)
                .with("parts", of)
                .remedy("ask for fewer parts, or define it in the project: CREATE SPINE name AS SELECT ..."));
        }
        Ok(self.part.map(|index| SpinePart { index, of }))
    }
}

/// A part of a spine: every `of`-th row from `index` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpinePart {
    /// The first row, counted from 0.
    pub index: usize,
    /// How many parts there are.
    pub of: usize,
}

/// Makes training sets for those who ask over the wire.
#[async_trait]
pub trait TrainingSets: Send + Sync + std::fmt::Debug {
    /// The columns of a training set whose spine the command names. It is planned, and nothing of it is run.
    ///
    /// # Errors
    /// As [`Self::training_set`].
    async fn schema(&self, command: &TrainingSetCommand) -> Result<SchemaRef>;

    /// Begins a training set whose spine the command names, or comes as batches.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for a spine that is not right, missing, or given twice;
    /// [`crate::ErrorKind::NotFound`] for a contract that the catalog lacks; [`crate::ErrorKind::Busy`] when as many
    /// are made as there are places for.
    async fn training_set(&self, command: &TrainingSetCommand, spine: Option<Batches>) -> Result<Batches>;

    /// How many it makes at once.
    fn places(&self) -> usize;
}
