//! An entity: a named key of one or more typed columns.

use serde::{Deserialize, Serialize};

use super::{Column, Version};

/// `CREATE ENTITY route KEY (origin VARCHAR, dest VARCHAR)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Canonical text.
    pub text: String,
    /// The key columns, in order; never null, never floating point.
    pub keys: Vec<Column>,
}
