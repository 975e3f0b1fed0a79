//! What a catalog commit says.

use serde::{Deserialize, Serialize};

use crate::definition::{Definition, DefinitionKind, Pinned};
use crate::time::Timestamp;

/// The format of commits that this release writes: 2 tells a definition's policy from its meaning.
pub const FORMAT: u32 = 2;

/// One atomic change of the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogCommit {
    /// The format that it is written in; commits of the first did not say so. One that is newer than [`FORMAT`] is not read: a
    /// process goes on with what it knows, and says that it must be upgraded.
    #[serde(default = "first_format")]
    pub format: u32,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: String,
    /// Why: the message given with `-m`.
    pub why: String,
    /// What.
    pub changes: Vec<Change>,
}

impl CatalogCommit {
    /// A commit of these changes.
    pub fn new(at: Timestamp, who: impl Into<String>, why: impl Into<String>, changes: Vec<Change>) -> Self {
        Self { format: FORMAT, at, who: who.into(), why: why.into(), changes }
    }
}

fn first_format() -> u32 {
    1
}

/// Who changed something by hand, when and why: what else than the catalog is corrected says it in its own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: String,
    /// Why: the message given with `-m`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// One part of a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A new definition, or a new version of one.
    Define(Box<Definition>),
    /// A definition that is no longer current; its versions stay for the contracts that pin them.
    Retire {
        /// Its kind.
        kind: DefinitionKind,
        /// Its name.
        name: String,
    },
    /// A package that now lies in the store.
    Package(PackageRecord),
    /// A package that now answers for its contract.
    Deploy {
        /// The contract's name.
        contract: String,
        /// The package's digest.
        digest: String,
    },
}

/// A package in the store, and what it was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageRecord {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The contract version that it implements.
    pub contract: Pinned,
}
