//! Tables, sources and entities.

use std::collections::BTreeSet;

use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement};
use springhouse_featurestore::definition::{
    Available, Column, ColumnType, Definition, Entity, EventTime, Source, Table, Version,
};
use springhouse_featurestore::{ErrorKind, Result};

use super::Checker;
use crate::diagnostic::{SourceFile, suggest};
use crate::parse::{EntityStatement, Located, SourceStatement, Statement, TableStatement};
use crate::print::print;
use crate::session::columns_of;

impl Checker<'_> {
    pub(super) async fn check_table(
        &mut self,
        file: &SourceFile,
        statement: &Statement,
        table: &TableStatement,
    ) -> Result<()> {
        let schema = match self.session.add_external_table((*table.create).clone()).await {
            Ok(schema) => schema,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                self.fault(file, table.name.at, error.chain(), None);
                return Ok(());
            }
        };
        let text = print(statement);
        let columns = schema.fields().iter().map(|f| (f.name().clone(), f.data_type().to_string())).collect();
        let checked = Table {
            name: table.name.value.clone(),
            version: Version::of(&text, []),
            text,
            location: table.create.locations.first().cloned().unwrap_or_default(),
            columns,
        };
        self.tables.insert(checked.name.clone(), checked.clone());
        self.checked.definitions.push(Definition::Table(checked));
        Ok(())
    }

    pub(super) async fn check_source(
        &mut self,
        file: &SourceFile,
        statement: &Statement,
        source: &SourceStatement,
    ) -> Result<()> {
        let names: Vec<String> = self.tables.keys().cloned().collect();
        let Some(tables) = self.relations(file, &source.query, "table", &names) else { return Ok(()) };
        let query = source.query.value.to_string();
        if let Err(error) = self.session.context().sql(&query).await {
            self.query_fault(file, source.query.at, &error);
            return Ok(());
        }
        let columns = match self.session.source_frame(&query, &source.event_time.value).await {
            Ok(frame) => columns_of(&frame)?,
            Err(error) => {
                self.error_fault(file, source.query.at, &error);
                return Ok(());
            }
        };
        if !self.check_times(file, source, &columns) {
            return Ok(());
        }
        let text = print(statement);
        let checked = Source {
            name: source.name.value.clone(),
            version: Version::of(&text, []),
            text,
            event_time: source.event_time.value.clone(),
            available: source.available.value.clone(),
            query,
            tables,
            columns,
        };
        self.session.add_source(&checked, None).await?;
        self.sources.insert(checked.name.clone(), checked.clone());
        self.checked.definitions.push(Definition::Source(checked));
        Ok(())
    }

    /// Whether the source's time columns are there and are times.
    fn check_times(&mut self, file: &SourceFile, source: &SourceStatement, columns: &[Column]) -> bool {
        let mut wanted = Vec::new();
        if let EventTime::Column { column, zone } = &source.event_time.value {
            wanted.push((column, source.event_time.at, "event-time"));
            if let Some(zone) = zone.as_ref().filter(|zone| zone.parse::<chrono_tz::Tz>().is_err()) {
                let help = Some("name it as the IANA does: 'America/New_York'".to_owned());
                self.fault(file, source.event_time.at, format!("there is no time zone '{zone}'"), help);
                return false;
            }
        }
        if let Available::Column(column) = &source.available.value {
            wanted.push((column, source.available.at, "available-time"));
        }
        let mut good = true;
        for (name, at, what) in wanted {
            match columns.iter().find(|column| &column.name == name) {
                Some(column) if column.column_type == ColumnType::Timestamp => continue,
                Some(column) => {
                    let message = format!("the {what} column '{name}' is {}, not a TIMESTAMP", column.column_type);
                    self.fault(file, at, message, None);
                }
                None => {
                    let help = suggest(name, columns.iter().map(|column| column.name.as_str()));
                    self.fault(file, at, format!("the query does not yield the {what} column '{name}'"), help);
                }
            }
            good = false;
        }
        good
    }

    pub(super) fn check_entity(&mut self, file: &SourceFile, statement: &Statement, entity: &EntityStatement) {
        let mut seen = BTreeSet::new();
        for (name, kind) in &entity.keys {
            if !seen.insert(&name.value) {
                self.fault(file, name.at, format!("the key column '{}' is given twice", name.value), None);
            }
            if matches!(kind, ColumnType::Float32 | ColumnType::Float64) {
                let help = Some(
                    "use an integer, VARCHAR, DATE or TIMESTAMP: equal floats are not always one number".to_owned(),
                );
                self.fault(file, name.at, format!("the key column '{}' cannot be {kind}", name.value), help);
            }
        }
        let text = print(statement);
        let checked = Entity {
            name: entity.name.value.clone(),
            version: Version::of(&text, []),
            text,
            keys: entity.keys.iter().map(|(name, kind)| Column::required(&name.value, *kind)).collect(),
        };
        self.entities.insert(checked.name.clone(), checked.clone());
        self.checked.definitions.push(Definition::Entity(checked));
    }

    /// The relations that a query reads, all of which must be among `names`; `None` after reporting the others.
    pub(super) fn relations(
        &mut self,
        file: &SourceFile,
        query: &Located<Box<Query>>,
        what: &str,
        names: &[String],
    ) -> Option<Vec<String>> {
        let statement = DataFusionStatement::Statement(Box::new(SqlStatement::Query(query.value.clone())));
        let references = match self.session.context().state().resolve_table_references(&statement) {
            Ok(references) => references,
            Err(error) => {
                self.query_fault(file, query.at, &error);
                return None;
            }
        };
        let mut found: Vec<String> = references.iter().map(|reference| reference.table().to_owned()).collect();
        found.sort();
        found.dedup();
        let missing: Vec<String> = found.iter().filter(|name| !names.contains(name)).cloned().collect();
        for name in &missing {
            let at = super::find_word(file, query.at, name).unwrap_or(query.at);
            self.unknown(file, &Located { value: name.clone(), at }, what, names.iter().map(String::as_str));
        }
        missing.is_empty().then_some(found)
    }
}
