//! `DROP`: only what exists, and only what nothing current depends on.

use springhouse_featurestore::definition::{Contract, Definition, DefinitionKind, Spine};

use super::Checker;
use crate::diagnostic::SourceFile;
use crate::parse::DropStatement;

impl Checker<'_> {
    pub(super) fn check_drop(&mut self, file: &SourceFile, dropped: &DropStatement) {
        let (kind, name) = (dropped.kind, &dropped.name);
        if self.catalog.current(kind, &name.value).is_none() {
            // Applying the same files twice changes nothing: what is gone may stay dropped in them.
            return;
        }
        let dependants = self.dependants(kind, &name.value);
        if dependants.is_empty() {
            self.checked.drops.push((kind, name.value.clone()));
            return;
        }
        let message = format!("the {kind} '{}' is still used by {}", name.value, dependants.join(", "));
        self.fault(file, name.at, message, Some("drop or change those first, in the same files".to_owned()));
    }

    fn dependants(&self, kind: DefinitionKind, name: &str) -> Vec<String> {
        let sources = self.sources.values().filter(|source| source.tables.iter().any(|table| table == name));
        let views = self.views.values();
        let spine = |spine: &Spine| format!("spine {}", spine.name);
        match kind {
            DefinitionKind::Table => {
                let spines = self.spines.values().filter(|spine| spine.tables.iter().any(|table| table == name));
                sources.map(|source| format!("source {}", source.name)).chain(spines.map(spine)).collect()
            }
            DefinitionKind::Source => {
                let spines = self.spines.values().filter(|spine| spine.sources.iter().any(|of| of.name == name));
                views
                    .filter(|view| view.sources.iter().any(|source| source.name == name))
                    .map(|view| format!("feature view {}", view.name))
                    .chain(spines.map(spine))
                    .collect()
            }
            DefinitionKind::Entity => views
                .filter(|view| view.entity.name == name)
                .map(|view| format!("feature view {}", view.name))
                .collect(),
            DefinitionKind::FeatureView => self
                .contracts()
                .filter(|contract| contract.features.iter().any(|rule| rule.view.name == name))
                .map(|contract| format!("contract {}", contract.name))
                .collect(),
            DefinitionKind::Contract | DefinitionKind::Spine => Vec::new(),
        }
    }

    /// The contracts after the change: those of the files, and those of the catalog that the files are silent about.
    fn contracts(&self) -> impl Iterator<Item = &Contract> {
        let new = self.checked.definitions.iter().filter_map(|definition| match definition {
            Definition::Contract(contract) => Some(contract),
            _ => None,
        });
        let kept = self.catalog.contracts().filter(|old| {
            let key = (DefinitionKind::Contract, old.name.clone());
            !self.checked.drops.contains(&key)
                && !self.checked.definitions.iter().any(|d| d.kind() == key.0 && d.name() == key.1)
        });
        new.chain(kept)
    }
}
