//! What people declare, as plain types: tables, sources, entities, feature views, contracts and spines.
//!
//! The text form and its checks live in the `sql` crate; these types are what is left once a definition has been
//! checked, and what a catalog commit stores.
//!
//! A definition says two things. Its *meaning* is what data and packages are bound to: a version is the hash of the canonical
//! text of it and of the versions it was checked with, and never changes. Its *policy* (how often a view is refreshed; a
//! contract's tier, rules, latency and availability) holds at once, under the same version, and has a version of its own.

mod column;
mod contract;
mod dated;
mod entity;
mod feature_view;
mod source;
mod spine;
mod strict_cast;
mod version;
mod windowed;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use column::timestamp_type;
pub use column::{Column, ColumnType};
pub use contract::{Availability, Contract, FeatureRule, Input, Latency, RuleAction};
pub use dated::check_dated;
pub use entity::Entity;
pub use feature_view::{FeatureView, RowTime};
pub use source::{Available, EventTime, Rejects, Source, Table, TableColumn, zones_of};
pub use spine::Spine;
pub use strict_cast::{strict_cast, strict_cast_of_rows, values_of_texts};
pub(crate) use version::hex;
pub use version::{Pinned, Version};
pub use windowed::{Aggregate, AggregateFunction, ViewWindow, WindowLength, Windowed};

/// The kinds of definition, in the order in which one may depend on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefinitionKind {
    /// `CREATE EXTERNAL TABLE`.
    Table,
    /// `CREATE SOURCE`.
    Source,
    /// `CREATE ENTITY`.
    Entity,
    /// `CREATE FEATURE VIEW`.
    FeatureView,
    /// `CREATE CONTRACT`.
    Contract,
    /// `CREATE SPINE`.
    Spine,
}

impl fmt::Display for DefinitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "table",
            Self::Source => "source",
            Self::Entity => "entity",
            Self::FeatureView => "feature view",
            Self::Contract => "contract",
            Self::Spine => "spine",
        })
    }
}

/// One checked definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Definition {
    /// A table that DataFusion reads.
    Table(Table),
    /// A stream of events.
    Source(Source),
    /// A named key.
    Entity(Entity),
    /// A query that yields features.
    FeatureView(FeatureView),
    /// What a caller may rely on.
    Contract(Contract),
    /// For what a training set is wanted.
    Spine(Spine),
}

impl Definition {
    /// Its kind.
    pub fn kind(&self) -> DefinitionKind {
        match self {
            Self::Table(_) => DefinitionKind::Table,
            Self::Source(_) => DefinitionKind::Source,
            Self::Entity(_) => DefinitionKind::Entity,
            Self::FeatureView(_) => DefinitionKind::FeatureView,
            Self::Contract(_) => DefinitionKind::Contract,
            Self::Spine(_) => DefinitionKind::Spine,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Table(table) => &table.name,
            Self::Source(source) => &source.name,
            Self::Entity(entity) => &entity.name,
            Self::FeatureView(view) => &view.name,
            Self::Contract(contract) => &contract.name,
            Self::Spine(spine) => &spine.name,
        }
    }

    /// The version of its meaning: what data and packages are bound to.
    pub fn version(&self) -> &Version {
        match self {
            Self::Table(table) => &table.version,
            Self::Source(source) => &source.version,
            Self::Entity(entity) => &entity.version,
            Self::FeatureView(view) => &view.version,
            Self::Contract(contract) => &contract.version,
            Self::Spine(spine) => &spine.version,
        }
    }

    /// The version of its policy, which may change under a version: where it has one, and it was told apart when it was applied.
    pub fn policy(&self) -> Option<&Version> {
        match self {
            Self::FeatureView(view) => view.policy.as_ref(),
            Self::Contract(contract) => contract.policy.as_ref(),
            Self::Table(_) | Self::Source(_) | Self::Entity(_) | Self::Spine(_) => None,
        }
    }

    /// The definitions that it was checked with and is bound to, in their order.
    pub fn depends_on(&self) -> Vec<&Pinned> {
        match self {
            Self::FeatureView(view) => std::iter::once(&view.entity).chain(&view.sources).collect(),
            Self::Contract(contract) => contract.features.iter().map(|rule| &rule.view).collect(),
            Self::Spine(spine) => spine.sources.iter().collect(),
            Self::Table(_) | Self::Source(_) | Self::Entity(_) => Vec::new(),
        }
    }

    /// Its canonical text.
    pub fn text(&self) -> &str {
        match self {
            Self::Table(table) => &table.text,
            Self::Source(source) => &source.text,
            Self::Entity(entity) => &entity.text,
            Self::FeatureView(view) => &view.text,
            Self::Contract(contract) => &contract.text,
            Self::Spine(spine) => &spine.text,
        }
    }
}
