//! The difference between checked definitions and the catalog: what `plan` shows and `apply` commits.

use std::fmt;

use serde::Serialize;
use similar::{ChangeTag, TextDiff};
use springhouse_featurestore::catalog::{CatalogState, Change};
use springhouse_featurestore::definition::{Contract, Definition, DefinitionKind};

use crate::check::Checked;

/// What happens to one definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It did not exist.
    Create,
    /// It gets a new version beside the old one.
    Change,
    /// Its version stays, with its data and packages; what changes holds at once.
    Policy,
    /// Its text is the same, but something that it depends on has a new version.
    Repin,
    /// It is no longer current.
    Drop,
}

/// One line of the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanItem {
    /// What happens.
    pub action: Action,
    /// To a definition of this kind.
    pub kind: DefinitionKind,
    /// And this name.
    pub name: String,
    /// The version that is current now.
    pub old_version: Option<String>,
    /// The version that will be.
    pub new_version: Option<String>,
    /// The text's lines with ` `, `-` or `+` before them; empty where the text stays.
    pub diff: Vec<String>,
    /// The contracts that it reaches.
    pub contracts: Vec<String>,
    /// The packages that were made for the contract versions it replaces.
    pub packages: Vec<String>,
}

/// The whole difference.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChangePlan {
    /// What changes, in order of dependence.
    pub items: Vec<PlanItem>,
    /// How many definitions stay as they are.
    pub unchanged: usize,
    /// The sources whose pushed events count again when they are read in history.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counted_twice: Vec<String>,
}

impl ChangePlan {
    /// Compares.
    pub fn new(checked: &Checked, catalog: &CatalogState) -> Self {
        let mut plan = Self::default();
        for definition in &checked.definitions {
            let old = catalog.current(definition.kind(), definition.name()).map(AsRef::as_ref);
            if old.is_some_and(|old| is_same(old, definition)) {
                plan.unchanged += 1;
                continue;
            }
            plan.items.push(item(definition, old, checked, catalog));
        }
        for (kind, name) in &checked.drops {
            let old = catalog.current(*kind, name).map(AsRef::as_ref);
            plan.items.push(PlanItem {
                action: Action::Drop,
                kind: *kind,
                name: name.clone(),
                old_version: old.map(|old| old.version().to_string()),
                new_version: None,
                diff: diff(old.map_or("", Definition::text), ""),
                contracts: Vec::new(),
                packages: packages(
                    catalog,
                    std::iter::once(name.as_str()).filter(|_| *kind == DefinitionKind::Contract),
                ),
            });
        }
        plan
    }

    /// The same, which names the sources that have a history and, as `is_pushed` says of a name, pushes, and do not tell their
    /// events apart.
    #[must_use]
    pub fn naming_counted_twice(mut self, checked: &Checked, is_pushed: impl Fn(&str) -> bool) -> Self {
        let named = checked.definitions.iter().filter_map(|definition| match definition {
            Definition::Source(source) if source.query.is_some() && source.distinct.is_empty() => Some(&source.name),
            _ => None,
        });
        self.counted_twice = named.filter(|name| is_pushed(name.as_str())).cloned().collect();
        self
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// The changes that a commit makes for a plan of these definitions.
pub fn changes(checked: &Checked, catalog: &CatalogState) -> Vec<Change> {
    let defined = checked.definitions.iter().filter(|definition| {
        catalog.current(definition.kind(), definition.name()).is_none_or(|old| !is_same(old, definition))
    });
    let drops = checked.drops.iter().map(|(kind, name)| Change::Retire { kind: *kind, name: name.clone() });
    defined.map(|definition| Change::Define(Box::new(definition.clone()))).chain(drops).collect()
}

fn is_same(old: &Definition, new: &Definition) -> bool {
    old.version() == new.version() && old.text() == new.text()
}

/// Whether a model sees other inputs by a change of rules.
fn rules_differ(old: Option<&Definition>, new: &Definition) -> bool {
    match (old, new) {
        (Some(Definition::Contract(old)), Definition::Contract(new)) => old.features != new.features,
        _ => false,
    }
}

fn item(definition: &Definition, old: Option<&Definition>, checked: &Checked, catalog: &CatalogState) -> PlanItem {
    let action = match old {
        None => Action::Create,
        Some(old) if old.version() == definition.version() => Action::Policy,
        Some(old) if old.text() == definition.text() => Action::Repin,
        Some(_) => Action::Change,
    };
    let contracts = reached(definition, checked);
    // Of a policy, only the rules reach what packages get.
    let reaches = action != Action::Policy || rules_differ(old, definition);
    let packages_of = contracts.iter().map(String::as_str).filter(|_| reaches);
    PlanItem {
        action,
        kind: definition.kind(),
        name: definition.name().to_owned(),
        old_version: old.map(|old| old.version().to_string()),
        new_version: Some(definition.version().to_string()),
        diff: if action == Action::Repin {
            Vec::new()
        } else {
            diff(old.map_or("", Definition::text), definition.text())
        },
        packages: packages(catalog, packages_of),
        contracts,
    }
}

/// The contracts that read a definition, directly or through others.
fn reached(definition: &Definition, checked: &Checked) -> Vec<String> {
    let views_of = |uses: &dyn Fn(&springhouse_featurestore::definition::FeatureView) -> bool| -> Vec<String> {
        checked
            .definitions
            .iter()
            .filter_map(|other| match other {
                Definition::FeatureView(view) if uses(view) => Some(view.name.clone()),
                _ => None,
            })
            .collect()
    };
    let views = match definition {
        Definition::Contract(contract) => return vec![contract.name.clone()],
        Definition::Spine(_) => return Vec::new(),
        Definition::FeatureView(view) => vec![view.name.clone()],
        Definition::Entity(entity) => views_of(&|view| view.entity.name == entity.name),
        Definition::Source(source) => views_of(&|view| view.sources.iter().any(|used| used.name == source.name)),
        Definition::Table(table) => {
            let sources: Vec<&str> = checked
                .definitions
                .iter()
                .filter_map(|other| match other {
                    Definition::Source(source) if source.tables.contains(&table.name) => Some(source.name.as_str()),
                    _ => None,
                })
                .collect();
            views_of(&|view| view.sources.iter().any(|used| sources.contains(&used.name.as_str())))
        }
    };
    let reads = |contract: &Contract| contract.features.iter().any(|rule| views.contains(&rule.view.name));
    checked
        .definitions
        .iter()
        .filter_map(|other| match other {
            Definition::Contract(contract) if reads(contract) => Some(contract.name.clone()),
            _ => None,
        })
        .collect()
}

fn packages<'a>(catalog: &CatalogState, contracts: impl Iterator<Item = &'a str>) -> Vec<String> {
    contracts
        .flat_map(|name| catalog.packages().values().filter(move |record| record.contract.name == name))
        .map(|record| record.digest.clone())
        .collect()
}

fn diff(old: &str, new: &str) -> Vec<String> {
    TextDiff::from_lines(old, new)
        .iter_all_changes()
        .map(|change| {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            format!("{sign} {}", change.value().trim_end_matches('\n'))
        })
        .collect()
}

impl fmt::Display for ChangePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            let (sign, note) = match item.action {
                Action::Create => ("+", "new"),
                Action::Change => ("~", "changed"),
                Action::Policy => ("~", "policy changed, holds at once"),
                Action::Repin => ("~", "same text, newer dependencies"),
                Action::Drop => ("-", "dropped"),
            };
            let versions = match (&item.old_version, &item.new_version) {
                (Some(old), Some(new)) if old != new => format!("{old} -> {new}"),
                (Some(same), Some(_)) => same.clone(),
                (old, new) => old.iter().chain(new).cloned().collect(),
            };
            writeln!(f, "{sign} {} {} ({note}, {versions})", item.kind, item.name)?;
            if item.action != Action::Create || item.kind == DefinitionKind::Contract {
                item.diff.iter().try_for_each(|line| writeln!(f, "      {line}"))?;
            }
            // What is new reaches nothing that exists.
            let reaches = item.action != Action::Create && item.kind != DefinitionKind::Contract;
            if reaches && !item.contracts.is_empty() {
                writeln!(f, "      reaches contract {}", item.contracts.join(", "))?;
            }
            for digest in &item.packages {
                let how = match item.action {
                    Action::Policy => "its model gets inputs by the new rules from now on",
                    _ => "it goes on with the versions that it was made for",
                };
                writeln!(f, "      reaches package {digest}: {how}")?;
            }
        }
        if !self.counted_twice.is_empty() {
            writeln!(
                f,
                "note: an event that is pushed and later read in history counts twice: {}; DISTINCT ON (column, ...) says what \
                 makes it the same",
                self.counted_twice.join(", ")
            )?;
        }
        let count = |action| self.items.iter().filter(|item| item.action == action).count();
        write!(
            f,
            "{} to create, {} to change, {} to drop, {} unchanged",
            count(Action::Create),
            count(Action::Change) + count(Action::Policy) + count(Action::Repin),
            count(Action::Drop),
            self.unchanged
        )
    }
}
