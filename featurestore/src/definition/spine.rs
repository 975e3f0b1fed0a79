//! A spine that a project defines: those who ask for a training set name it, and need to write no query and know no file.

use serde::{Deserialize, Serialize};

use super::{Pinned, Version};

/// `CREATE SPINE name [EVENT TIME column] AS query`: the entity keys and times for which a training set is wanted, and any
/// columns that are to stand beside its features, such as labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spine {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Canonical text.
    pub text: String,
    /// The column as of which features are wanted.
    pub time: String,
    /// The query that yields its rows, with the time in UTC.
    pub query: String,
    /// The tables that it reads.
    pub tables: Vec<String>,
    /// The sources that it was checked with. It is run over the current ones.
    pub sources: Vec<Pinned>,
}

impl Spine {
    /// The time column of spines that name no other.
    pub const TIME: &'static str = "as_of";

    /// The spine at its version.
    pub fn pinned(&self) -> Pinned {
        Pinned::new(&self.name, self.version.clone())
    }
}
