//! Statements as written, with the places of their parts; and the readers of the short ones.

use datafusion::sql::parser::{CreateExternalTable, DFParserBuilder, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::{Expr, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;
use springhouse_featurestore::definition::{
    Availability, Available, ColumnType, DefinitionKind, EventTime, Latency, RuleAction, WindowLength,
};
use springhouse_featurestore::time::Span;

use super::cursor::Cursor;
use super::view::once;
use super::{HelpBoxed, Parse};
use crate::diagnostic::{Diagnostic, Position, SourceFile};

/// A part of a statement and its place. Places do not count when parts are compared.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The part.
    pub value: T,
    /// Its place.
    pub at: Position,
}

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// One statement of a definition file.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `CREATE EXTERNAL TABLE`
    Table(TableStatement),
    /// `CREATE SOURCE`
    Source(SourceStatement),
    /// `CREATE ENTITY`
    Entity(EntityStatement),
    /// `CREATE FEATURE VIEW`
    View(Box<ViewStatement>),
    /// `CREATE CONTRACT`
    Contract(Box<ContractStatement>),
    /// `CREATE SPINE`
    Spine(SpineStatement),
    /// `DROP`
    Drop(DropStatement),
}

/// `CREATE EXTERNAL TABLE name STORED AS format LOCATION 'place'`, and DataFusion's other clauses.
#[derive(Debug, Clone, PartialEq)]
pub struct TableStatement {
    /// The table's name.
    pub name: Located<String>,
    /// DataFusion's own statement.
    pub create: Box<CreateExternalTable>,
}

/// `CREATE SOURCE name EVENT TIME column | STATIC [DISTINCT ON (column, ...)] ... AS query`.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceStatement {
    /// The source's name.
    pub name: Located<String>,
    /// When events happened.
    pub event_time: Located<EventTime>,
    /// When they could be known.
    pub available: Located<Available>,
    /// The zone of the clock by which the available-time column was written.
    pub available_zone: Option<Located<String>>,
    /// How much later than they happened they may become known and still count.
    pub lateness: Option<Located<Span>>,
    /// The columns in which copies of one event agree; none where each event counts.
    pub distinct: Vec<Located<String>>,
    /// Where they come from.
    pub events: Events,
}

/// Where a source's events come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Events {
    /// `AS query` over tables; pushed ones come beside them.
    Query(Located<Box<Query>>),
    /// `AS PUSHED (column type, ...)`: all are pushed.
    Pushed(Vec<PushedColumn>),
}

/// A column of pushed events, and its type.
pub type PushedColumn = (Located<String>, ColumnType);

/// `CREATE ENTITY name KEY (column type, ...)`.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityStatement {
    /// The entity's name.
    pub name: Located<String>,
    /// The key columns.
    pub keys: Vec<(Located<String>, ColumnType)>,
}

/// `WINDOWS ('2 hours', '30 days' STEP '1 day') STEP '5 minutes'`.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowsClause {
    /// The windows.
    pub windows: Vec<WrittenWindow>,
    /// The step of those that have none of their own.
    pub step: Located<Span>,
}

/// One window.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenWindow {
    /// Its length.
    pub length: Located<WindowLength>,
    /// Its own step.
    pub step: Option<Located<Span>>,
}

/// `CREATE FEATURE VIEW name ENTITY entity ... AS query`.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewStatement {
    /// The view's name.
    pub name: Located<String>,
    /// The entity's name.
    pub entity: Located<String>,
    /// The event-time column, where the query does not pass its source's through.
    pub event_time: Option<Located<String>>,
    /// The windows of its aggregates.
    pub windows: Option<WindowsClause>,
    /// How often it is to be refreshed.
    pub refresh_every: Located<Span>,
    /// How long a row counts.
    pub ttl: Option<Located<Span>>,
    /// How far back one row's value may reach.
    pub lookback: Option<Located<Span>>,
    /// The query over sources.
    pub query: Located<Box<Query>>,
}

/// One view of a contract's `FEATURES`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleStatement {
    /// The view's name.
    pub view: Located<String>,
    /// The greatest lag of a fresh value.
    pub fresh_within: Located<Span>,
    /// The greatest age of a value that has not expired.
    pub max_age: Option<Located<Span>>,
    /// `ON STALE`
    pub on_stale: Option<Located<RuleAction>>,
    /// `ON EXPIRED`
    pub on_expired: Option<Located<RuleAction>>,
    /// `ON MISSING`
    pub on_missing: Option<Located<RuleAction>>,
}

/// One expression of a contract's `INPUTS`.
#[derive(Debug, Clone, PartialEq)]
pub struct InputStatement {
    /// Its name: the alias, or the column's own.
    pub name: Located<String>,
    /// The expression.
    pub expression: Located<Expr>,
}

/// A column of a contract's answer, and its type.
pub type OutputColumn = (Located<String>, ColumnType);

/// `CREATE CONTRACT name ...`.
#[derive(Debug, Clone, PartialEq)]
pub struct ContractStatement {
    /// The contract's name.
    pub name: Located<String>,
    /// The tier's name.
    pub tier: Located<String>,
    /// Request columns: name, type, whether it may be null.
    pub request: Vec<(Located<String>, ColumnType, bool)>,
    /// The views and their rules.
    pub features: Vec<RuleStatement>,
    /// The model inputs.
    pub inputs: Vec<InputStatement>,
    /// The columns of an answer.
    pub output: Vec<OutputColumn>,
    /// The latency promise.
    pub latency: Option<Located<Latency>>,
    /// The availability promise.
    pub availability: Option<Located<Availability>>,
}

/// `CREATE SPINE name EVENT TIME column AS query`.
#[derive(Debug, Clone, PartialEq)]
pub struct SpineStatement {
    /// The spine's name.
    pub name: Located<String>,
    /// The time column, where it is not called `as_of`.
    pub time: Option<Located<String>>,
    /// The zone of the clock by which the time was written.
    pub zone: Option<Located<String>>,
    /// The query over tables and sources.
    pub query: Located<Box<Query>>,
}

/// `DROP kind name`.
#[derive(Debug, Clone, PartialEq)]
pub struct DropStatement {
    /// The kind.
    pub kind: DefinitionKind,
    /// The name.
    pub name: Located<String>,
}

pub(super) fn parse_drop(cursor: &mut Cursor<'_>) -> Parse<DropStatement> {
    let kinds: [(&[&str], DefinitionKind); 7] = [
        (&["EXTERNAL", "TABLE"], DefinitionKind::Table),
        (&["TABLE"], DefinitionKind::Table),
        (&["SOURCE"], DefinitionKind::Source),
        (&["ENTITY"], DefinitionKind::Entity),
        (&["FEATURE", "VIEW"], DefinitionKind::FeatureView),
        (&["CONTRACT"], DefinitionKind::Contract),
        (&["SPINE"], DefinitionKind::Spine),
    ];
    let kind = kinds.into_iter().find(|(words, _)| cursor.take_words(words)).map(|(_, kind)| kind);
    let kind = kind.ok_or_else(|| cursor.unexpected("TABLE, SOURCE, ENTITY, FEATURE VIEW, CONTRACT or SPINE"))?;
    let name = cursor.name("a name")?;
    cursor.expect_end()?;
    Ok(DropStatement { kind, name })
}

pub(super) fn parse_table(file: &SourceFile, tokens: &[TokenWithSpan]) -> Parse<TableStatement> {
    let at = Cursor::new(file, tokens).position();
    let fault = |error: datafusion::error::DataFusionError| match error {
        datafusion::error::DataFusionError::SQL(error, _) => super::cursor::sql_fault(file, at, &error),
        other => Box::new(Diagnostic::new(file, at, other.strip_backtrace())),
    };
    let parsed = DFParserBuilder::new(tokens.to_vec())
        .with_dialect(&GenericDialect {})
        .build()
        .and_then(|mut parser| parser.parse_statement())
        .map_err(fault)?;
    let DataFusionStatement::CreateExternalTable(create) = parsed else {
        return Err(Box::new(Diagnostic::new(file, at, "expected CREATE EXTERNAL TABLE")));
    };
    if create.locations.len() != 1 {
        return Err(Box::new(Diagnostic::new(file, at, "a table has exactly one LOCATION")));
    }
    let name = create.name.to_string().to_lowercase();
    Ok(TableStatement { name: Located { value: name, at }, create: Box::new(create) })
}

pub(super) fn parse_entity(cursor: &mut Cursor<'_>) -> Parse<EntityStatement> {
    let name = cursor.name("the entity's name")?;
    cursor.expect_words(&["KEY"])?;
    let keys = cursor.list(|cursor| {
        let column = cursor.name("a key column")?;
        let column_type = cursor.column_type()?;
        Ok((column, column_type))
    })?;
    Ok(EntityStatement { name, keys })
}

/// The clauses of a source, in whatever order they come.
#[derive(Default)]
struct SourceClauses {
    event_time: Option<Located<EventTime>>,
    available: Option<Located<Available>>,
    available_zone: Option<Located<String>>,
    lateness: Option<Located<Span>>,
    distinct: Option<Located<Vec<Located<String>>>>,
}

pub(super) fn parse_source(cursor: &mut Cursor<'_>) -> Parse<SourceStatement> {
    let name = cursor.name("the source's name")?;
    let begin = cursor.position();
    let mut clauses = SourceClauses::default();
    while !cursor.take_word("AS") {
        if !parse_source_clause(cursor, &mut clauses)? {
            let expected = if clauses.event_time.is_none() {
                "EVENT TIME or STATIC"
            } else {
                "AVAILABLE AT, DELAY, LATENESS, DISTINCT ON or AS"
            };
            return Err(cursor.unexpected(expected));
        }
    }
    let SourceClauses { event_time, available, available_zone, lateness, distinct } = clauses;
    let Some(event_time) = event_time else {
        return Err(cursor
            .fault(begin, "expected EVENT TIME or STATIC, found AS")
            .help_boxed("say which column tells when an event happened, or that the rows hold at every time"));
    };
    let available = available.unwrap_or(Located { value: Available::AtEventTime, at: begin });
    if event_time.value == EventTime::Static {
        if available.value != Available::AtEventTime {
            return Err(cursor.fault(available.at, "a STATIC source holds at every time; it has no available time"));
        }
        if let Some(distinct) = &distinct {
            return Err(cursor
                .fault(distinct.at, "a STATIC source has no events that could come twice")
                .help_boxed("leave DISTINCT ON out, or let the source's query select each row once"));
        }
    }
    if let Some(lateness) = lateness.as_ref().filter(|_| !matches!(available.value, Available::Column(_))) {
        return Err(cursor.fault(lateness.at, "LATENESS needs AVAILABLE AT column").help_boxed(
            "an event's lateness is its available time less its event time: say which column tells when it became known",
        ));
    }
    let events = if cursor.take_word("PUSHED") {
        Events::Pushed(pushed_columns(cursor)?)
    } else {
        Events::Query(cursor.query()?)
    };
    let distinct = distinct.map_or_else(Vec::new, |columns| columns.value);
    Ok(SourceStatement { name, event_time, available, available_zone, lateness, distinct, events })
}

/// Reads a clause before `AS`; whether there was one.
fn parse_source_clause(cursor: &mut Cursor<'_>, clauses: &mut SourceClauses) -> Parse<bool> {
    let at = cursor.position();
    if cursor.take_word("STATIC") {
        once(cursor, "EVENT TIME or STATIC", &mut clauses.event_time, Located { value: EventTime::Static, at })?;
    } else if cursor.take_words(&["EVENT", "TIME"]) {
        let column = cursor.name("the event-time column")?.value;
        let value = EventTime::Column { column, zone: zone(cursor)?.map(|zone| zone.value) };
        once(cursor, "EVENT TIME or STATIC", &mut clauses.event_time, Located { value, at })?;
    } else if cursor.take_words(&["AVAILABLE", "AT"]) {
        let value = Available::Column(cursor.name("the available-time column")?.value);
        once(cursor, "AVAILABLE AT or DELAY", &mut clauses.available, Located { value, at })?;
        clauses.available_zone = zone(cursor)?;
    } else if cursor.take_word("DELAY") {
        let value = Available::Delay(cursor.interval()?.value);
        once(cursor, "AVAILABLE AT or DELAY", &mut clauses.available, Located { value, at })?;
    } else if cursor.take_word("LATENESS") {
        let span = cursor.interval()?;
        once(cursor, "LATENESS", &mut clauses.lateness, span)?;
    } else if cursor.take_words(&["DISTINCT", "ON"]) {
        let value = cursor.list(|cursor| cursor.name("a column that tells events apart"))?;
        once(cursor, "DISTINCT ON", &mut clauses.distinct, Located { value, at })?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

pub(super) fn parse_spine(cursor: &mut Cursor<'_>) -> Parse<SpineStatement> {
    let name = cursor.name("the spine's name")?;
    let (mut time, mut of_time) = (None, None);
    if cursor.take_words(&["EVENT", "TIME"]) {
        time = Some(cursor.name("the time column")?);
        of_time = zone(cursor)?;
    }
    if !cursor.take_word("AS") {
        return Err(cursor.unexpected("EVENT TIME or AS").help_boxed(
            "write CREATE SPINE name EVENT TIME column AS SELECT ..., with the contract's request columns",
        ));
    }
    Ok(SpineStatement { name, time, zone: of_time, query: cursor.query()? })
}

/// `AT TIME ZONE 'zone'` after a time column, if it is there.
pub(super) fn zone(cursor: &mut Cursor<'_>) -> Parse<Option<Located<String>>> {
    if cursor.take_words(&["AT", "TIME", "ZONE"]) { cursor.text("a zone's name in quotes").map(Some) } else { Ok(None) }
}

/// `(column type, ...)` after `AS PUSHED`.
pub(super) fn pushed_columns(cursor: &mut Cursor<'_>) -> Parse<Vec<PushedColumn>> {
    cursor.list(|cursor| Ok((cursor.name("a column")?, cursor.column_type()?)))
}
