//! Statements against the catalog, in full, to definitions. Nothing is applied when anything is wrong, and all that
//! is wrong is reported at once.
//!
//! Kinds are checked in the order in which one may depend on another: tables, sources, entities, views, contracts,
//! spines, then drops. A definition may depend on another of the files or, where the files do not speak of it, of the catalog.

mod contract;
mod drop;
mod event_time;
mod names;
mod source;
mod spine;
mod version;
mod view;
mod windowed;

use std::collections::BTreeMap;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Definition, DefinitionKind, Entity, FeatureView, Source, Spine, Table};
use springhouse_featurestore::{Error, Result};

use crate::diagnostic::{Diagnostic, Diagnostics, Position, SourceFile, suggest};
use crate::parse::{Located, Statement, parse};
use crate::session::Session;

/// What the files say, checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checked {
    /// All definitions, in the order in which one may depend on another.
    pub definitions: Vec<Definition>,
    /// What is dropped.
    pub drops: Vec<(DefinitionKind, String)>,
}

/// Reads and checks definition files against a catalog. `session` must be new; its tables are filled here.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] with all [`Diagnostics`]; others when storage fails.
pub async fn check(files: &[SourceFile], catalog: &CatalogState, session: &Session) -> Result<Checked> {
    let mut checker = Checker {
        session,
        catalog,
        faults: Vec::new(),
        tables: BTreeMap::new(),
        sources: BTreeMap::new(),
        entities: BTreeMap::new(),
        views: BTreeMap::new(),
        spines: BTreeMap::new(),
        unread: Vec::new(),
        checked: Checked::default(),
    };
    let mut statements = Vec::new();
    for file in files {
        let parsed = parse(file);
        checker.faults.extend(parsed.faults);
        statements.extend(parsed.statements.into_iter().map(|statement| Placed { file, statement }));
    }
    checker.refuse_duplicates(&mut statements);
    checker.add_from_catalog(&statements).await?;
    for kind in [Kind::Table, Kind::Source, Kind::Entity, Kind::View, Kind::Contract, Kind::Spine, Kind::Drop] {
        for placed in statements.iter().filter(|placed| Kind::of(&placed.statement) == kind) {
            checker.check_statement(placed).await?;
        }
    }
    match Diagnostics::of(checker.faults) {
        // It may be why the rest does not fit.
        Some(faults) => Err(checker.unread.into_iter().next().unwrap_or_else(|| faults.into())),
        None => Ok(checker.checked),
    }
}

/// A statement and its file.
struct Placed<'a> {
    file: &'a SourceFile,
    statement: Statement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Source,
    Entity,
    View,
    Contract,
    Spine,
    Drop,
}

impl Kind {
    fn of(statement: &Statement) -> Self {
        match statement {
            Statement::Table(_) => Self::Table,
            Statement::Source(_) => Self::Source,
            Statement::Entity(_) => Self::Entity,
            Statement::View(_) => Self::View,
            Statement::Contract(_) => Self::Contract,
            Statement::Spine(_) => Self::Spine,
            Statement::Drop(_) => Self::Drop,
        }
    }
}

/// The state of a check: what is known so far, and what is wrong so far.
struct Checker<'a> {
    session: &'a Session,
    catalog: &'a CatalogState,
    faults: Vec<Diagnostic>,
    tables: BTreeMap<String, Table>,
    sources: BTreeMap<String, Source>,
    entities: BTreeMap<String, Entity>,
    views: BTreeMap<String, FeatureView>,
    spines: BTreeMap<String, Spine>,
    /// What of the catalog cannot be read here.
    unread: Vec<Error>,
    checked: Checked,
}

impl Checker<'_> {
    async fn check_statement(&mut self, placed: &Placed<'_>) -> Result<()> {
        let file = placed.file;
        match &placed.statement {
            Statement::Table(table) => self.check_table(file, &placed.statement, table).await,
            Statement::Source(source) => self.check_source(file, &placed.statement, source).await,
            Statement::Entity(entity) => {
                self.check_entity(file, &placed.statement, entity);
                Ok(())
            }
            Statement::View(view) => self.check_view(file, &placed.statement, view).await,
            Statement::Contract(contract) => {
                self.check_contract(file, &placed.statement, contract);
                Ok(())
            }
            Statement::Spine(spine) => self.check_spine(file, &placed.statement, spine).await,
            Statement::Drop(dropped) => {
                self.check_drop(file, dropped);
                Ok(())
            }
        }
    }

    fn fault(&mut self, file: &SourceFile, at: Position, message: impl Into<String>, help: Option<String>) {
        let mut fault = Diagnostic::new(file, at, message);
        fault.help = help;
        self.faults.push(fault);
    }

    /// A name that is not there: what it is, and what it might have been.
    fn unknown<'n>(
        &mut self,
        file: &SourceFile,
        name: &Located<String>,
        what: &str,
        names: impl IntoIterator<Item = &'n str>,
    ) {
        let help = suggest(&name.value, names);
        self.fault(file, name.at, format!("there is no {what} '{}'", name.value), help);
    }

    /// A fault that DataFusion found in a query or expression that begins at `from`.
    fn query_fault(&mut self, file: &SourceFile, from: Position, error: &DataFusionError) {
        let (word, message, help) = explain(error);
        let at = word.and_then(|word| find_word(file, from, &word)).unwrap_or(from);
        self.fault(file, at, message, help);
    }

    /// A fault of ours that concerns a column named in its context.
    fn error_fault(&mut self, file: &SourceFile, at: Position, error: &Error) {
        self.fault(file, at, error.to_string(), None);
    }
}

/// The word that DataFusion's error is about, the message, and what would be accepted.
fn explain(error: &DataFusionError) -> (Option<String>, String, Option<String>) {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
                let full: Vec<String> = valid_fields.iter().map(datafusion::common::Column::flat_name).collect();
                let help = match (&field.relation, suggest(&field.name, names)) {
                    (Some(_), _) => suggest(&field.flat_name(), full.iter().map(String::as_str)),
                    (None, help) => help,
                };
                (Some(field.name.clone()), format!("there is no column '{}'", field.flat_name()), help)
            }
            other => (None, other.to_string(), None),
        },
        DataFusionError::Plan(message) => {
            let word = message.split_once("()").map(|(name, _)| name.to_owned());
            let word = word.or_else(|| message.split('\'').nth(1).map(str::to_owned));
            (word, message.clone(), None)
        }
        other => (None, other.strip_backtrace(), None),
    }
}

/// The first place of a whole word at or after a place.
fn find_word(file: &SourceFile, from: Position, word: &str) -> Option<Position> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    for (index, line) in file.text.lines().enumerate() {
        let number = index as u64 + 1;
        if number < from.line {
            continue;
        }
        let skip = if number == from.line { usize::try_from(from.column.saturating_sub(1)).unwrap_or(0) } else { 0 };
        let start = line.char_indices().nth(skip).map_or(line.len(), |(at, _)| at);
        for (at, _) in line[start..].to_lowercase().match_indices(&word.to_lowercase()) {
            let (before, after) = (&line[..start + at], &line[(start + at + word.len()).min(line.len())..]);
            if !before.ends_with(is_part) && !after.starts_with(is_part) {
                return Some(Position { line: number, column: before.chars().count() as u64 + 1 });
            }
        }
    }
    None
}
