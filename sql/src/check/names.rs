//! Names: each defined once, and what the catalog adds where the files are silent.

use std::collections::{BTreeMap, BTreeSet};

use springhouse_featurestore::Result;
use springhouse_featurestore::definition::{Definition, DefinitionKind};

use super::{Checker, Placed};
use crate::diagnostic::Position;
use crate::parse::Statement;

impl Checker<'_> {
    /// Reports names that are defined twice and removes the later statements. Tables and sources share their names, as
    /// both stand behind FROM.
    pub(super) fn refuse_duplicates(&mut self, statements: &mut Vec<Placed<'_>>) {
        let mut seen: BTreeMap<(DefinitionKind, String), (String, Position)> = BTreeMap::new();
        let mut later = Vec::new();
        statements.retain(|placed| {
            let Some((kind, name, at)) = named(&placed.statement) else { return true };
            let space = if kind == DefinitionKind::Source { DefinitionKind::Table } else { kind };
            if let Some((file, first)) = seen.get(&(space, name.clone())) {
                later.push((placed.file, at, format!("'{name}' is defined twice; first in {file}:{}", first.line)));
                return false;
            }
            seen.insert((space, name), (placed.file.name.clone(), at));
            true
        });
        for (file, at, message) in later {
            self.fault(file, at, message, Some("give one of them another name".to_owned()));
        }
    }

    /// Takes over what the catalog defines and the files neither define anew nor drop. Tables of the catalog whose files
    /// cannot be read here matter only where the files' definitions need them.
    pub(super) async fn add_from_catalog(&mut self, statements: &[Placed<'_>]) -> Result<()> {
        let spoken: BTreeSet<(DefinitionKind, String)> = statements
            .iter()
            .filter_map(|placed| match &placed.statement {
                Statement::Drop(dropped) => Some((dropped.kind, dropped.name.value.clone())),
                statement => named(statement).map(|(kind, name, _)| (kind, name)),
            })
            .collect();
        for definition in self.catalog.definitions() {
            if spoken.contains(&(definition.kind(), definition.name().to_owned())) {
                continue;
            }
            match definition.as_ref() {
                Definition::Table(table) => {
                    self.unread.extend(self.session.add_table(table).await.err());
                    self.tables.insert(table.name.clone(), table.clone());
                }
                Definition::Source(source) => {
                    self.unread.extend(self.session.add_source(source, None).await.err());
                    self.sources.insert(source.name.clone(), source.clone());
                }
                Definition::Entity(entity) => {
                    self.entities.insert(entity.name.clone(), entity.clone());
                }
                Definition::FeatureView(view) => {
                    self.views.insert(view.name.clone(), view.clone());
                }
                Definition::Contract(_) => {}
                Definition::Spine(spine) => {
                    self.spines.insert(spine.name.clone(), spine.clone());
                }
            }
        }
        Ok(())
    }
}

/// The kind, name and place of what a statement defines.
fn named(statement: &Statement) -> Option<(DefinitionKind, String, Position)> {
    let (kind, name) = match statement {
        Statement::Table(table) => (DefinitionKind::Table, &table.name),
        Statement::Source(source) => (DefinitionKind::Source, &source.name),
        Statement::Entity(entity) => (DefinitionKind::Entity, &entity.name),
        Statement::View(view) => (DefinitionKind::FeatureView, &view.name),
        Statement::Contract(contract) => (DefinitionKind::Contract, &contract.name),
        Statement::Spine(spine) => (DefinitionKind::Spine, &spine.name),
        Statement::Drop(_) => return None,
    };
    Some((kind, name.value.clone(), name.at))
}
