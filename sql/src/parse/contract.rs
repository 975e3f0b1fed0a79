//! `CREATE CONTRACT`.

use datafusion::sql::sqlparser::ast::Expr;
use springhouse_featurestore::definition::{Availability, ColumnType, Latency, RuleAction};

use super::cursor::Cursor;
use super::view::once;
use super::{ContractStatement, HelpBoxed, InputStatement, Located, OutputColumn, Parse, RuleStatement};

/// A request column's name, its type, and whether it may be null.
type RequestColumn = (Located<String>, ColumnType, bool);

#[derive(Default)]
struct Clauses {
    tier: Option<Located<String>>,
    request: Option<Located<Vec<RequestColumn>>>,
    features: Option<Located<Vec<RuleStatement>>>,
    inputs: Option<Located<Vec<InputStatement>>>,
    output: Option<Located<Vec<OutputColumn>>>,
    latency: Option<Located<Latency>>,
    availability: Option<Located<Availability>>,
}

pub(super) fn parse_contract(cursor: &mut Cursor<'_>) -> Parse<Box<ContractStatement>> {
    let name = cursor.name("the contract's name")?;
    let mut clauses = Clauses::default();
    while parse_clause(cursor, &mut clauses)? {}
    if !cursor.is_at_end() {
        return Err(cursor.unexpected("TIER, REQUEST, FEATURES, INPUTS, OUTPUT, LATENCY, AVAILABILITY or ';'"));
    }
    let missing = |clause: &str, example: &str| {
        Err(cursor.fault(name.at, format!("the contract has no {clause}")).help_boxed(format!("add {example}")))
    };
    let Some(tier) = clauses.tier else { return missing("TIER", "TIER interactive, or another tier's name") };
    let Some(request) = clauses.request else { return missing("REQUEST", "REQUEST (column TYPE [NOT NULL], ...)") };
    let Some(inputs) = clauses.inputs else { return missing("INPUTS", "INPUTS (expression AS name, ...)") };
    let Some(output) = clauses.output else { return missing("OUTPUT", "OUTPUT (name FLOAT)") };
    Ok(Box::new(ContractStatement {
        name,
        tier,
        request: request.value,
        features: clauses.features.map(|features| features.value).unwrap_or_default(),
        inputs: inputs.value,
        output: output.value,
        latency: clauses.latency,
        availability: clauses.availability,
    }))
}

fn parse_clause(cursor: &mut Cursor<'_>, clauses: &mut Clauses) -> Parse<bool> {
    let at = cursor.position();
    if cursor.take_word("TIER") {
        let tier = cursor.name("a tier's name")?;
        once(cursor, "TIER", &mut clauses.tier, tier)?;
    } else if cursor.take_word("REQUEST") {
        let value = cursor.list(parse_request_column)?;
        once(cursor, "REQUEST", &mut clauses.request, Located { value, at })?;
    } else if cursor.take_word("FEATURES") {
        let value = cursor.list(parse_rule)?;
        once(cursor, "FEATURES", &mut clauses.features, Located { value, at })?;
    } else if cursor.take_word("INPUTS") {
        let value = cursor.list(parse_input)?;
        once(cursor, "INPUTS", &mut clauses.inputs, Located { value, at })?;
    } else if cursor.take_word("OUTPUT") {
        let value = cursor.list(|cursor| Ok((cursor.name("an output's name")?, cursor.column_type()?)))?;
        once(cursor, "OUTPUT", &mut clauses.output, Located { value, at })?;
    } else if cursor.take_word("LATENCY") {
        let within = cursor.interval()?.value;
        cursor.expect_words(&["AT"])?;
        let value = Latency { within, quantile: share(cursor)? };
        once(cursor, "LATENCY", &mut clauses.latency, Located { value, at })?;
    } else if cursor.take_word("AVAILABILITY") {
        let share = share(cursor)?;
        cursor.expect_words(&["OVER"])?;
        let value = Availability { share, over: cursor.interval()?.value };
        once(cursor, "AVAILABILITY", &mut clauses.availability, Located { value, at })?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// A number between 0 and 1, both excluded.
fn share(cursor: &mut Cursor<'_>) -> Parse<f64> {
    let number = cursor.number("a number between 0 and 1, such as 0.99")?;
    if number.value <= 0.0 || number.value >= 1.0 {
        return Err(cursor
            .fault(number.at, format!("{} is not between 0 and 1", number.value))
            .help_boxed("such as 0.99"));
    }
    Ok(number.value)
}

fn parse_request_column(cursor: &mut Cursor<'_>) -> Parse<(Located<String>, ColumnType, bool)> {
    let name = cursor.name("a request column")?;
    let column_type = cursor.column_type()?;
    let required = cursor.take_words(&["NOT", "NULL"]);
    Ok((name, column_type, !required))
}

fn parse_rule(cursor: &mut Cursor<'_>) -> Parse<RuleStatement> {
    let view = cursor.name("a feature view's name")?;
    let (mut fresh_within, mut max_age) = (None, None);
    let (mut on_stale, mut on_expired, mut on_missing) = (None, None, None);
    loop {
        if cursor.take_words(&["FRESH", "WITHIN"]) {
            let span = cursor.interval()?;
            once(cursor, "FRESH WITHIN", &mut fresh_within, span)?;
        } else if cursor.take_words(&["MAX", "AGE"]) {
            let span = cursor.interval()?;
            once(cursor, "MAX AGE", &mut max_age, span)?;
        } else if cursor.take_words(&["ON", "STALE"]) {
            let action = parse_action(cursor)?;
            once(cursor, "ON STALE", &mut on_stale, action)?;
        } else if cursor.take_words(&["ON", "EXPIRED"]) {
            let action = parse_action(cursor)?;
            once(cursor, "ON EXPIRED", &mut on_expired, action)?;
        } else if cursor.take_words(&["ON", "MISSING"]) {
            let action = parse_action(cursor)?;
            once(cursor, "ON MISSING", &mut on_missing, action)?;
        } else {
            break;
        }
    }
    let Some(fresh_within) = fresh_within else {
        return Err(cursor
            .fault(view.at, format!("{} has no FRESH WITHIN", view.value))
            .help_boxed("say how far the view may lag: FRESH WITHIN '20 minutes'"));
    };
    Ok(RuleStatement { view, fresh_within, max_age, on_stale, on_expired, on_missing })
}

fn parse_action(cursor: &mut Cursor<'_>) -> Parse<Located<RuleAction>> {
    let at = cursor.position();
    let actions = [RuleAction::Serve, RuleAction::Default, RuleAction::Fail];
    match actions.into_iter().find(|action| cursor.take_word(&action.to_string())) {
        Some(value) => Ok(Located { value, at }),
        None => Err(cursor.unexpected("SERVE, DEFAULT or FAIL")),
    }
}

fn parse_input(cursor: &mut Cursor<'_>) -> Parse<InputStatement> {
    let expression = cursor.expression()?;
    if cursor.take_word("AS") {
        return Ok(InputStatement { name: cursor.name("the input's name")?, expression });
    }
    let at = expression.at;
    let last = match &expression.value {
        Expr::Identifier(name) => Some(name),
        Expr::CompoundIdentifier(names) => names.last(),
        _ => None,
    };
    let Some(name) = last else {
        return Err(cursor
            .fault(at, format!("the input '{}' has no name", expression.value))
            .help_boxed("give it one: expression AS name"));
    };
    let value = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() };
    Ok(InputStatement { name: Located { value, at }, expression })
}
