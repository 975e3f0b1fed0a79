//! Which version a definition gets: that of its meaning, and beside it that of its policy.
//!
//! Versions of stores that were written before the two were told apart are hashes of whole texts. They go on: a definition that
//! means the same as a version that there is, whatever that one's name was made of, has that version, and with it its data and
//! packages.

use springhouse_featurestore::definition::{Definition, DefinitionKind, Pinned, Version};

use super::Checker;
use crate::diagnostic::SourceFile;
use crate::parse::{Statement, parse};
use crate::print::{print_meaning, print_policy};

impl Checker<'_> {
    /// The version of a statement that was checked with these others.
    pub(super) fn version_of(
        &self,
        kind: DefinitionKind,
        name: &str,
        statement: &Statement,
        depends_on: &[Pinned],
    ) -> Version {
        let meaning = print_meaning(statement);
        let version = Version::of(&meaning, depends_on);
        let same = |old: &&Definition| {
            *old.version() == version
                || old.depends_on().into_iter().eq(depends_on) && meaning_of(old.text()).as_ref() == Some(&meaning)
        };
        // Several old versions may mean the same: the one that holds goes on.
        if let Some(current) = self.catalog.current(kind, name).map(AsRef::as_ref).filter(same) {
            return current.version().clone();
        }
        if self.catalog.at_version(kind, &Pinned::new(name, version.clone())).is_some() {
            return version;
        }
        self.catalog.versions(kind, name).find(same).map_or(version, |old| old.version().clone())
    }
}

/// The version of a statement's policy, if its kind has one.
pub(super) fn policy_of(statement: &Statement) -> Option<Version> {
    print_policy(statement).map(|text| Version::of(&text, []))
}

/// The text of the meaning of a canonical text.
fn meaning_of(text: &str) -> Option<String> {
    let file = SourceFile { name: String::new(), text: text.to_owned() };
    match parse(&file).statements.as_slice() {
        [statement] => Some(print_meaning(statement)),
        _ => None,
    }
}
