//! The catalog's state: the fold of its commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CatalogCommit, Change, PackageRecord};
use crate::definition::{Contract, Definition, DefinitionKind, FeatureView, Pinned, Source, Spine, Table, Version};
use crate::time::Timestamp;
use crate::{Error, Result};

/// A package that answers for a contract, and the commit that made it so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The package's digest.
    pub digest: String,
    /// The commit's number.
    pub commit: u64,
    /// When.
    pub at: Timestamp,
}

/// Everything that is defined, packaged and deployed after some commit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Stored", from = "Stored")]
pub struct CatalogState {
    number: u64,
    current: BTreeMap<(DefinitionKind, String), Version>,
    versions: BTreeMap<(DefinitionKind, Pinned), Arc<Definition>>,
    packages: BTreeMap<String, PackageRecord>,
    deployments: BTreeMap<String, Deployment>,
}

/// A state as a checkpoint has it.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    number: u64,
    /// The current version of each kind and name.
    current: Vec<(DefinitionKind, Pinned)>,
    /// All versions.
    definitions: Vec<Definition>,
    packages: Vec<PackageRecord>,
    deployments: BTreeMap<String, Deployment>,
}

impl From<CatalogState> for Stored {
    fn from(state: CatalogState) -> Self {
        // All parts by name: one that is added is not forgotten here.
        let CatalogState { number, current, versions, packages, deployments } = state;
        Self {
            number,
            current: current.into_iter().map(|((kind, name), version)| (kind, Pinned::new(name, version))).collect(),
            definitions: versions.into_values().map(Arc::unwrap_or_clone).collect(),
            packages: packages.into_values().collect(),
            deployments,
        }
    }
}

impl From<Stored> for CatalogState {
    fn from(stored: Stored) -> Self {
        let Stored { number, current, definitions, packages, deployments } = stored;
        let of_version = |definition: Definition| {
            let pinned = Pinned::new(definition.name(), definition.version().clone());
            ((definition.kind(), pinned), Arc::new(definition))
        };
        Self {
            number,
            current: current.into_iter().map(|(kind, of)| ((kind, of.name), of.version)).collect(),
            versions: definitions.into_iter().map(of_version).collect(),
            packages: packages.into_iter().map(|record| (record.digest.clone(), record)).collect(),
            deployments,
        }
    }
}

impl CatalogState {
    /// The number of the newest commit; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Applies the next commit.
    pub fn apply(&mut self, number: u64, commit: CatalogCommit) {
        self.number = number;
        for change in commit.changes {
            match change {
                Change::Define(definition) => self.define(Arc::from(definition)),
                Change::Retire { kind, name } => {
                    self.current.remove(&(kind, name));
                }
                Change::Package(record) => {
                    self.packages.insert(record.digest.clone(), record);
                }
                Change::Deploy { contract, digest } => {
                    self.deployments.insert(contract, Deployment { digest, commit: number, at: commit.at });
                }
            }
        }
    }

    fn define(&mut self, definition: Arc<Definition>) {
        let (kind, name, version) = (definition.kind(), definition.name().to_owned(), definition.version().clone());
        self.versions.insert((kind, Pinned::new(name.clone(), version.clone())), definition);
        self.current.insert((kind, name), version);
    }

    /// The current definition of this kind and name.
    pub fn current(&self, kind: DefinitionKind, name: &str) -> Option<&Arc<Definition>> {
        let version = self.current.get(&(kind, name.to_owned()))?;
        self.versions.get(&(kind, Pinned::new(name, version.clone())))
    }

    /// All current definitions, by kind and name.
    pub fn definitions(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.current
            .iter()
            .filter_map(|((kind, name), version)| self.versions.get(&(*kind, Pinned::new(name, version.clone()))))
    }

    /// The definition at exactly this version.
    pub fn at_version(&self, kind: DefinitionKind, pinned: &Pinned) -> Option<&Arc<Definition>> {
        self.versions.get(&(kind, pinned.clone()))
    }

    /// All versions that a kind and name ever had.
    pub fn versions<'a>(&'a self, kind: DefinitionKind, name: &'a str) -> impl Iterator<Item = &'a Definition> {
        let of_name = self.versions.range((kind, Pinned::new(name, Version::from_text("")))..);
        of_name.take_while(move |((of, pinned), _)| *of == kind && pinned.name == name).map(|(_, of)| of.as_ref())
    }

    /// The table of this name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn table(&self, name: &str) -> Result<&Table> {
        match self.current(DefinitionKind::Table, name).map(AsRef::as_ref) {
            Some(Definition::Table(table)) => Ok(table),
            _ => Err(unknown(DefinitionKind::Table, name)),
        }
    }

    /// The source at exactly this version.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn source(&self, pinned: &Pinned) -> Result<&Source> {
        match self.at_version(DefinitionKind::Source, pinned).map(AsRef::as_ref) {
            Some(Definition::Source(source)) => Ok(source),
            _ => Err(unknown(DefinitionKind::Source, &pinned.to_string())),
        }
    }

    /// The view at exactly this version.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn view(&self, pinned: &Pinned) -> Result<&FeatureView> {
        match self.at_version(DefinitionKind::FeatureView, pinned).map(AsRef::as_ref) {
            Some(Definition::FeatureView(view)) => Ok(view),
            _ => Err(unknown(DefinitionKind::FeatureView, &pinned.to_string())),
        }
    }

    /// The contract at exactly this version.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`].
    pub fn contract(&self, pinned: &Pinned) -> Result<&Contract> {
        match self.at_version(DefinitionKind::Contract, pinned).map(AsRef::as_ref) {
            Some(Definition::Contract(contract)) => Ok(contract),
            _ => Err(unknown(DefinitionKind::Contract, &pinned.to_string())),
        }
    }

    /// The current version of a contract.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] with the names that there are.
    pub fn current_contract(&self, name: &str) -> Result<&Contract> {
        match self.current(DefinitionKind::Contract, name).map(AsRef::as_ref) {
            Some(Definition::Contract(contract)) => Ok(contract),
            _ => {
                let names: Vec<&str> = self.contracts().map(|contract| contract.name.as_str()).collect();
                let names = if names.is_empty() { "there are none yet".to_owned() } else { names.join(", ") };
                Err(unknown(DefinitionKind::Contract, name).with("contracts", names))
            }
        }
    }

    /// All current contracts.
    pub fn contracts(&self) -> impl Iterator<Item = &Contract> {
        self.definitions().filter_map(|definition| match definition.as_ref() {
            Definition::Contract(contract) => Some(contract),
            _ => None,
        })
    }

    /// The current version of a spine.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] with the names that there are.
    pub fn current_spine(&self, name: &str) -> Result<&Spine> {
        match self.current(DefinitionKind::Spine, name).map(AsRef::as_ref) {
            Some(Definition::Spine(spine)) => Ok(spine),
            _ => {
                let names: Vec<&str> = self.spines().map(|spine| spine.name.as_str()).collect();
                let names = if names.is_empty() { "there are none yet".to_owned() } else { names.join(", ") };
                Err(unknown(DefinitionKind::Spine, name).with("spines", names))
            }
        }
    }

    /// All current spines.
    pub fn spines(&self) -> impl Iterator<Item = &Spine> {
        self.definitions().filter_map(|definition| match definition.as_ref() {
            Definition::Spine(spine) => Some(spine),
            _ => None,
        })
    }

    /// The views to keep fresh: the current ones, and those that a deployed contract version pins.
    pub fn live_views(&self) -> Vec<&FeatureView> {
        let mut views: BTreeMap<Pinned, &FeatureView> = BTreeMap::new();
        for definition in self.definitions() {
            if let Definition::FeatureView(view) = definition.as_ref() {
                views.insert(view.pinned(), view);
            }
        }
        for contract in self.deployments.values().filter_map(|deployment| self.deployed_contract(deployment)) {
            for view in contract.features.iter().filter_map(|rule| self.view(&rule.view).ok()) {
                views.insert(view.pinned(), view);
            }
        }
        views.into_values().collect()
    }

    /// The view versions that somebody may look up: those to keep fresh, and those that a current contract pins.
    pub fn needed_views(&self) -> BTreeSet<Pinned> {
        let live = self.live_views().into_iter().map(FeatureView::pinned);
        let pinned = self.contracts().flat_map(|contract| contract.features.iter().map(|rule| rule.view.clone()));
        live.chain(pinned).collect()
    }

    /// All view versions that were ever defined.
    pub fn all_views(&self) -> impl Iterator<Item = &FeatureView> {
        self.versions.values().filter_map(|definition| match definition.as_ref() {
            Definition::FeatureView(view) => Some(view),
            _ => None,
        })
    }

    fn deployed_contract(&self, deployment: &Deployment) -> Option<&Contract> {
        self.contract(&self.packages.get(&deployment.digest)?.contract).ok()
    }

    /// The deployment of a contract, if it has one.
    pub fn deployment(&self, contract: &str) -> Option<&Deployment> {
        self.deployments.get(contract)
    }

    /// All deployments by contract name.
    pub fn deployments(&self) -> &BTreeMap<String, Deployment> {
        &self.deployments
    }

    /// All packages by digest.
    pub fn packages(&self) -> &BTreeMap<String, PackageRecord> {
        &self.packages
    }

    /// The package whose digest begins so.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when none does, [`crate::ErrorKind::Invalid`] when several do.
    pub fn package(&self, prefix: &str) -> Result<&PackageRecord> {
        let digits = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        let found: Vec<&PackageRecord> =
            self.packages.values().filter(|record| record.digest["sha256:".len()..].starts_with(digits)).collect();
        match found.as_slice() {
            [record] => Ok(record),
            [] => Err(Error::not_found("no such package")
                .with("digest", prefix)
                .remedy("push it first: springhouse package push DIR")),
            several => Err(Error::invalid("several packages begin so")
                .with("digest", prefix)
                .with("packages", several.len())
                .remedy("give more digits")),
        }
    }
}

fn unknown(kind: DefinitionKind, name: &str) -> Error {
    Error::not_found(format!("no such {kind}")).with("name", name)
}
