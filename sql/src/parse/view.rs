//! `CREATE FEATURE VIEW`.
//!
//! `AS PUSHED (column type, ...)` is short for a source of the view's name whose events are all pushed, and
//! `AS SELECT` of its columns.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use springhouse_featurestore::definition::{Available, EventTime, WindowLength};
use springhouse_featurestore::time::Span;

use super::cursor::Cursor;
use super::statement::{pushed_columns, zone};
use super::{
    Events, HelpBoxed, Located, Parse, PushedColumn, SourceStatement, ViewStatement, WindowsClause, WrittenWindow,
};
use crate::print::quoted;

/// How often a pushed view is refreshed where it does not say: a refresh begins it, and follows its producers' watermark.
const PUSHED_REFRESH: Span = Span::from_secs(60);

#[derive(Default)]
struct Clauses {
    entity: Option<Located<String>>,
    event_time: Option<Located<String>>,
    windows: Option<Located<WindowsClause>>,
    refresh_every: Option<Located<Span>>,
    ttl: Option<Located<Span>>,
    lookback: Option<Located<Span>>,
    available: Option<Located<String>>,
    event_zone: Option<Located<String>>,
    available_zone: Option<Located<String>>,
    lateness: Option<Located<Span>>,
}

/// Sets a clause that may be given once.
pub(super) fn once<T>(cursor: &Cursor<'_>, name: &str, slot: &mut Option<Located<T>>, given: Located<T>) -> Parse<()> {
    if slot.is_some() {
        return Err(cursor.fault(given.at, format!("{name} is given twice")));
    }
    *slot = Some(given);
    Ok(())
}

/// A view, and the source that a pushed one stands on.
pub(super) fn parse_view(cursor: &mut Cursor<'_>) -> Parse<(Option<SourceStatement>, Box<ViewStatement>)> {
    let name = cursor.name("the view's name")?;
    let mut clauses = Clauses::default();
    while !cursor.take_word("AS") {
        parse_clause(cursor, &mut clauses)?;
    }
    let at = cursor.position();
    let (source, query) = if cursor.take_word("PUSHED") {
        let columns = pushed_columns(cursor)?;
        let text: Vec<String> = columns.iter().map(|(name, _)| quoted(&name.value)).collect();
        let text = format!("SELECT {} FROM {}", text.join(", "), quoted(&name.value));
        let query = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query());
        let query = query.map_err(|error| super::cursor::sql_fault(cursor.file(), at, &error))?;
        (Some(pushed_source(cursor, &name, &mut clauses, columns)?), Located { value: query, at })
    } else {
        if let Some(at) = clauses.available.as_ref().map(|of| of.at).or(clauses.lateness.as_ref().map(|of| of.at)) {
            return Err(cursor
                .fault(at, "AVAILABLE AT and LATENESS belong to the source of a view's events")
                .help_boxed("a view has them only where it is AS PUSHED (column type, ...)"));
        }
        if let Some(zone) = &clauses.event_zone {
            return Err(cursor
                .fault(zone.at, "the zone of a view's event time is that of its source")
                .help_boxed("name it in the source: EVENT TIME column AT TIME ZONE 'zone'"));
        }
        (None, cursor.query()?)
    };
    let missing = |clause: &str, example: &str| {
        Err(cursor.fault(name.at, format!("the view has no {clause}")).help_boxed(format!("add {example}")))
    };
    let Some(entity) = clauses.entity else { return missing("ENTITY", "ENTITY and the name of an entity") };
    let Some(refresh_every) = clauses.refresh_every else {
        return missing("REFRESH EVERY", "REFRESH EVERY '10 minutes', or as often as its contracts need");
    };
    let view = ViewStatement {
        name,
        entity,
        event_time: clauses.event_time,
        windows: clauses.windows.map(|windows| windows.value),
        refresh_every,
        ttl: clauses.ttl,
        lookback: clauses.lookback,
        query,
    };
    Ok((source, Box::new(view)))
}

/// The source that a view `AS PUSHED` stands on.
fn pushed_source(
    cursor: &Cursor<'_>,
    name: &Located<String>,
    clauses: &mut Clauses,
    columns: Vec<PushedColumn>,
) -> Parse<SourceStatement> {
    let Some(event_time) = clauses.event_time.take() else {
        return Err(cursor
            .fault(name.at, "the view has no EVENT TIME")
            .help_boxed("add EVENT TIME and the pushed column that says when a row began to hold"));
    };
    let windows = clauses.windows.as_ref().map(|of| of.at);
    if let Some(at) = windows.or(clauses.lookback.as_ref().map(|of| of.at)) {
        return Err(cursor
            .fault(at, "WINDOWS and LOOKBACK are for views that are computed; this one is pushed")
            .help_boxed("declare CREATE SOURCE name ... AS PUSHED (...), and a view with a query over it"));
    }
    clauses.refresh_every.get_or_insert(Located { value: PUSHED_REFRESH, at: name.at });
    let at = name.at;
    let available = clauses.available.take();
    let lateness = clauses.lateness.take();
    if let (None, Some(lateness)) = (&available, &lateness) {
        return Err(cursor.fault(lateness.at, "LATENESS needs AVAILABLE AT column"));
    }
    let zone = clauses.event_zone.take().map(|zone| zone.value);
    Ok(SourceStatement {
        name: name.clone(),
        event_time: Located { value: EventTime::Column { column: event_time.value, zone }, at: event_time.at },
        available: available.map_or(Located { value: Available::AtEventTime, at }, |column| Located {
            value: Available::Column(column.value),
            at: column.at,
        }),
        available_zone: clauses.available_zone.take(),
        lateness,
        distinct: Vec::new(),
        events: Events::Pushed(columns),
    })
}

fn parse_clause(cursor: &mut Cursor<'_>, clauses: &mut Clauses) -> Parse<()> {
    let at = cursor.position();
    if cursor.take_word("ENTITY") {
        let entity = cursor.name("the entity's name")?;
        once(cursor, "ENTITY", &mut clauses.entity, entity)
    } else if cursor.take_words(&["EVENT", "TIME"]) {
        let column = cursor.name("the event-time column")?;
        once(cursor, "EVENT TIME", &mut clauses.event_time, column)?;
        clauses.event_zone = zone(cursor)?;
        Ok(())
    } else if cursor.take_words(&["REFRESH", "EVERY"]) {
        let span = cursor.interval()?;
        once(cursor, "REFRESH EVERY", &mut clauses.refresh_every, span)
    } else if cursor.take_word("TTL") {
        let span = cursor.interval()?;
        once(cursor, "TTL", &mut clauses.ttl, span)
    } else if cursor.take_word("LOOKBACK") {
        let span = cursor.interval()?;
        once(cursor, "LOOKBACK", &mut clauses.lookback, span)
    } else if cursor.take_words(&["AVAILABLE", "AT"]) {
        let column = cursor.name("the available-time column")?;
        once(cursor, "AVAILABLE AT", &mut clauses.available, column)?;
        clauses.available_zone = zone(cursor)?;
        Ok(())
    } else if cursor.take_word("LATENESS") {
        let span = cursor.interval()?;
        once(cursor, "LATENESS", &mut clauses.lateness, span)
    } else if cursor.take_word("WINDOWS") {
        let windows = parse_windows(cursor)?;
        once(cursor, "WINDOWS", &mut clauses.windows, Located { value: windows, at })
    } else {
        Err(cursor.unexpected("ENTITY, EVENT TIME, WINDOWS, REFRESH EVERY, TTL, LOOKBACK or AS"))
    }
}

fn parse_windows(cursor: &mut Cursor<'_>) -> Parse<WindowsClause> {
    let windows = cursor.list(parse_window)?;
    let at = cursor.position();
    if !cursor.take_word("STEP") {
        return Err(cursor.fault(at, "WINDOWS has no STEP").help_boxed(
            "add STEP '5 minutes', or how far a window's old end may lie behind; the new end is always exact",
        ));
    }
    Ok(WindowsClause { windows, step: cursor.interval()? })
}

fn parse_window(cursor: &mut Cursor<'_>) -> Parse<WrittenWindow> {
    let text = cursor.text("a window such as '2 hours'")?;
    let length = WindowLength::parse(&text.value).map_err(|error| cursor.fault(text.at, error.to_string()))?;
    let step = if cursor.take_word("STEP") { Some(cursor.interval()?) } else { None };
    Ok(WrittenWindow { length: Located { value: length, at: text.at }, step })
}
