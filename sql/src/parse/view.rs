//! `CREATE FEATURE VIEW`.

use springhouse_featurestore::definition::WindowLength;
use springhouse_featurestore::time::Span;

use super::cursor::Cursor;
use super::{HelpBoxed, Located, Parse, ViewStatement, WindowsClause, WrittenWindow};

#[derive(Default)]
struct Clauses {
    entity: Option<Located<String>>,
    event_time: Option<Located<String>>,
    windows: Option<Located<WindowsClause>>,
    refresh_every: Option<Located<Span>>,
    ttl: Option<Located<Span>>,
    lookback: Option<Located<Span>>,
}

/// Sets a clause that may be given once.
pub(super) fn once<T>(cursor: &Cursor<'_>, name: &str, slot: &mut Option<Located<T>>, given: Located<T>) -> Parse<()> {
    if slot.is_some() {
        return Err(cursor.fault(given.at, format!("{name} is given twice")));
    }
    *slot = Some(given);
    Ok(())
}

pub(super) fn parse_view(cursor: &mut Cursor<'_>) -> Parse<Box<ViewStatement>> {
    let name = cursor.name("the view's name")?;
    let mut clauses = Clauses::default();
    while !cursor.take_word("AS") {
        parse_clause(cursor, &mut clauses)?;
    }
    let query = cursor.query()?;
    let missing = |clause: &str, example: &str| {
        Err(cursor.fault(name.at, format!("the view has no {clause}")).help_boxed(format!("add {example}")))
    };
    let Some(entity) = clauses.entity else { return missing("ENTITY", "ENTITY and the name of an entity") };
    let Some(refresh_every) = clauses.refresh_every else {
        return missing("REFRESH EVERY", "REFRESH EVERY '10 minutes', or as often as its contracts need");
    };
    Ok(Box::new(ViewStatement {
        name,
        entity,
        event_time: clauses.event_time,
        windows: clauses.windows.map(|windows| windows.value),
        refresh_every,
        ttl: clauses.ttl,
        lookback: clauses.lookback,
        query,
    }))
}

fn parse_clause(cursor: &mut Cursor<'_>, clauses: &mut Clauses) -> Parse<()> {
    let at = cursor.position();
    if cursor.take_word("ENTITY") {
        let entity = cursor.name("the entity's name")?;
        once(cursor, "ENTITY", &mut clauses.entity, entity)
    } else if cursor.take_words(&["EVENT", "TIME"]) {
        let column = cursor.name("the event-time column")?;
        once(cursor, "EVENT TIME", &mut clauses.event_time, column)
    } else if cursor.take_words(&["REFRESH", "EVERY"]) {
        let span = cursor.interval()?;
        once(cursor, "REFRESH EVERY", &mut clauses.refresh_every, span)
    } else if cursor.take_word("TTL") {
        let span = cursor.interval()?;
        once(cursor, "TTL", &mut clauses.ttl, span)
    } else if cursor.take_word("LOOKBACK") {
        let span = cursor.interval()?;
        once(cursor, "LOOKBACK", &mut clauses.lookback, span)
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
