//! Tables, sources and entities.

use std::collections::BTreeSet;

use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement};
use springhouse_featurestore::definition::{
    Available, Column, ColumnType, Definition, Entity, EventTime, Source, Table, Version, zones_of,
};
use springhouse_featurestore::{ErrorKind, Result};

use super::Checker;
use crate::diagnostic::{Position, SourceFile, suggest};
use crate::parse::{EntityStatement, Events, Located, PushedColumn, SourceStatement, Statement, TableStatement};
use crate::print::print;
use crate::session::columns_of;

/// A source's query, the tables that it reads, and the columns that it yields.
type SourceEvents = (Option<String>, Vec<String>, Vec<Column>);

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
        let read = match &source.events {
            Events::Query(query) => self.check_history(file, source, query).await?,
            Events::Pushed(columns) => self.check_pushed(file, source, columns),
        };
        let Some((query, tables, columns)) = read else { return Ok(()) };
        if !self.check_times(file, source, &columns) || !self.check_distinct(file, source, &columns) {
            return Ok(());
        }
        let text = print(statement);
        let checked = Source {
            name: source.name.value.clone(),
            version: Version::of(&text, []),
            text,
            event_time: source.event_time.value.clone(),
            available: source.available.value.clone(),
            available_zone: source.available_zone.as_ref().map(|zone| zone.value.clone()),
            lateness: source.lateness.as_ref().map(|span| span.value),
            distinct: source.distinct.iter().map(|column| column.value.clone()).collect(),
            query,
            tables,
            columns,
        };
        self.session.add_source(&checked, None).await?;
        self.sources.insert(checked.name.clone(), checked.clone());
        self.checked.definitions.push(Definition::Source(checked));
        Ok(())
    }

    /// The query, tables and columns of a source that has a history; `None` after reporting what is wrong.
    async fn check_history(
        &mut self,
        file: &SourceFile,
        source: &SourceStatement,
        query: &Located<Box<Query>>,
    ) -> Result<Option<SourceEvents>> {
        let names: Vec<String> = self.tables.keys().cloned().collect();
        let Some(tables) = self.relations(file, query, "table", &names) else { return Ok(None) };
        let (text, at) = (query.value.to_string(), query.at);
        if let Err(error) = self.session.plan(&text).await {
            self.query_fault(file, at, &error);
            return Ok(None);
        }
        let zone = source.available_zone.as_ref().map(|zone| zone.value.as_str());
        let zones = zones_of(&source.event_time.value, &source.available.value, zone);
        match self.session.source_frame(&text, &zones).await {
            Ok(frame) => Ok(Some((Some(text), tables, columns_of(&frame)?))),
            Err(error) => {
                self.error_fault(file, at, &error);
                Ok(None)
            }
        }
    }

    /// The same of a source whose events are all pushed.
    fn check_pushed(
        &mut self,
        file: &SourceFile,
        source: &SourceStatement,
        columns: &[PushedColumn],
    ) -> Option<SourceEvents> {
        let mut seen = BTreeSet::new();
        for (name, _) in columns {
            if !seen.insert(&name.value) {
                self.fault(file, name.at, format!("the column '{}' is given twice", name.value), None);
                return None;
            }
        }
        if source.event_time.value == EventTime::Static || matches!(source.available.value, Available::Delay(_)) {
            let help = "name the column that says when an event happened: EVENT TIME column, and AVAILABLE AT column \
                        where pushes are to be stamped as they come";
            self.fault(file, source.event_time.at, "pushed events have times of their own", Some(help.to_owned()));
            return None;
        }
        let columns = columns.iter().map(|(name, kind)| Column::nullable(&name.value, *kind)).collect();
        Some((None, Vec::new(), columns))
    }

    /// Whether the source's time columns are there and are times.
    fn check_times(&mut self, file: &SourceFile, source: &SourceStatement, columns: &[Column]) -> bool {
        let mut wanted = Vec::new();
        let mut zones: Vec<(&str, Position)> = Vec::new();
        if let EventTime::Column { column, zone } = &source.event_time.value {
            wanted.push((column, source.event_time.at, "event-time"));
            zones.extend(zone.as_deref().map(|zone| (zone, source.event_time.at)));
        }
        zones.extend(source.available_zone.as_ref().map(|zone| (zone.value.as_str(), zone.at)));
        if let Some((zone, at)) = zones.into_iter().find(|(zone, _)| zone.parse::<chrono_tz::Tz>().is_err()) {
            let help = Some("name it as the IANA does: 'America/New_York'".to_owned());
            self.fault(file, at, format!("there is no time zone '{zone}'"), help);
            return false;
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

    /// Whether the columns that tell events apart are the source's own, and can tell them apart.
    fn check_distinct(&mut self, file: &SourceFile, source: &SourceStatement, columns: &[Column]) -> bool {
        let (mut seen, before) = (BTreeSet::new(), self.faults.len());
        for name in &source.distinct {
            let Some(column) = columns.iter().find(|column| column.name == name.value) else {
                self.unknown(file, name, "column", columns.iter().map(|column| column.name.as_str()));
                continue;
            };
            if !seen.insert(&name.value) {
                self.fault(file, name.at, format!("the column '{}' is given twice", name.value), None);
            }
            let kind = column.column_type;
            if matches!(kind, ColumnType::Float32 | ColumnType::Float64) || kind.is_list() {
                let help = "name an integer, VARCHAR, DATE or TIMESTAMP that every copy of the event has";
                let message = format!("the column '{}' is {kind}, which does not tell events apart", name.value);
                self.fault(file, name.at, message, Some(help.to_owned()));
            }
            if matches!(&source.available.value, Available::Column(available) if *available == name.value) {
                let help = "copies of one event become known at different times: name what all of them have";
                let message = format!("the available-time column '{}' does not tell events apart", name.value);
                self.fault(file, name.at, message, Some(help.to_owned()));
            }
        }
        self.faults.len() == before
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
            } else if kind.is_list() {
                let help = Some("give the entity several key columns".to_owned());
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
