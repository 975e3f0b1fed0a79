//! Statements to canonical text: one layout, one order of clauses, one spelling. Reading it back gives the same
//! statement. The text of its meaning alone is what a definition's version is the hash of, that of its policy alone its
//! policy's.

use std::fmt::Write;

use datafusion::sql::parser::CreateExternalTable;
use springhouse_featurestore::definition::{Available, DefinitionKind, EventTime};

use crate::parse::{
    ContractStatement, DropStatement, EntityStatement, Events, Located, RuleStatement, SourceStatement, SpineStatement,
    Statement, ViewStatement, WrittenWindow,
};

/// Which clauses of a statement are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clauses {
    All,
    Meaning,
    Policy,
}

impl Clauses {
    fn meaning(self) -> bool {
        self != Self::Policy
    }

    fn policy(self) -> bool {
        self != Self::Meaning
    }
}

/// The canonical text of a statement, without the closing semicolon.
pub fn print(statement: &Statement) -> String {
    print_clauses(statement, Clauses::All)
}

/// The text of what data and packages are bound to. That of a statement without clauses of policy is the whole text.
pub fn print_meaning(statement: &Statement) -> String {
    print_clauses(statement, Clauses::Meaning)
}

/// The text of what holds at once; `None` of a statement that has no such clauses.
pub fn print_policy(statement: &Statement) -> Option<String> {
    matches!(statement, Statement::View(_) | Statement::Contract(_)).then(|| print_clauses(statement, Clauses::Policy))
}

fn print_clauses(statement: &Statement, clauses: Clauses) -> String {
    match statement {
        Statement::Table(table) => print_table(&table.create),
        Statement::Source(source) => print_source(source),
        Statement::Entity(entity) => print_entity(entity),
        Statement::View(view) => print_view(view, clauses),
        Statement::Contract(contract) => print_contract(contract, clauses),
        Statement::Spine(spine) => print_spine(spine),
        Statement::Drop(DropStatement { kind, name }) => {
            let kind = match kind {
                DefinitionKind::Table => "EXTERNAL TABLE",
                DefinitionKind::Source => "SOURCE",
                DefinitionKind::Entity => "ENTITY",
                DefinitionKind::FeatureView => "FEATURE VIEW",
                DefinitionKind::Contract => "CONTRACT",
                DefinitionKind::Spine => "SPINE",
            };
            format!("DROP {kind} {}", quoted(&name.value))
        }
    }
}

/// DataFusion's own printer leaves columns, partitions and options out; all of them are printed here.
fn print_table(create: &CreateExternalTable) -> String {
    let mut text = format!("CREATE EXTERNAL TABLE {}", create.name);
    if !create.columns.is_empty() {
        let columns: Vec<String> = create.columns.iter().map(ToString::to_string).collect();
        put(&mut text, format_args!(" ({})", columns.join(", ")));
    }
    put(&mut text, format_args!(" STORED AS {}", create.file_type));
    if !create.table_partition_cols.is_empty() {
        put(&mut text, format_args!(" PARTITIONED BY ({})", create.table_partition_cols.join(", ")));
    }
    if !create.order_exprs.is_empty() {
        let order: Vec<String> = create.order_exprs.iter().flatten().map(ToString::to_string).collect();
        put(&mut text, format_args!(" WITH ORDER ({})", order.join(", ")));
    }
    for location in &create.locations {
        put(&mut text, format_args!(" LOCATION '{}'", location.replace('\'', "''")));
    }
    if !create.options.is_empty() {
        let options = create.options.iter().map(|(name, value)| format!("'{}' {value}", name.replace('\'', "''")));
        put(&mut text, format_args!(" OPTIONS ({})", options.collect::<Vec<_>>().join(", ")));
    }
    text
}

/// A name as it must be written to be read back: in quotes unless it is a plain lower-case word.
pub fn quoted(name: &str) -> String {
    let plain = name
        .chars()
        .enumerate()
        .all(|(index, c)| c.is_ascii_lowercase() || c == '_' || (index > 0 && c.is_ascii_digit()));
    if plain && !name.is_empty() { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn put(text: &mut String, part: std::fmt::Arguments<'_>) {
    text.write_fmt(part).expect("writing to a String cannot fail");
}

fn print_source(source: &SourceStatement) -> String {
    let mut text = format!("CREATE SOURCE {}", quoted(&source.name.value));
    match &source.event_time.value {
        EventTime::Static => text.push_str(" STATIC"),
        EventTime::Column { column, zone } => {
            put(&mut text, format_args!(" EVENT TIME {}", quoted(column)));
            if let Some(zone) = zone {
                put(&mut text, format_args!(" AT TIME ZONE '{}'", zone.replace('\'', "''")));
            }
        }
    }
    match &source.available.value {
        Available::AtEventTime => {}
        Available::Column(column) => {
            put(&mut text, format_args!(" AVAILABLE AT {}", quoted(column)));
            if let Some(zone) = &source.available_zone {
                put(&mut text, format_args!(" AT TIME ZONE '{}'", zone.value.replace('\'', "''")));
            }
        }
        Available::Delay(span) => put(&mut text, format_args!(" DELAY '{span}'")),
    }
    if let Some(span) = &source.lateness {
        put(&mut text, format_args!(" LATENESS '{}'", span.value));
    }
    if !source.distinct.is_empty() {
        let columns: Vec<String> = source.distinct.iter().map(|column| quoted(&column.value)).collect();
        put(&mut text, format_args!(" DISTINCT ON ({})", columns.join(", ")));
    }
    match &source.events {
        Events::Query(query) => put(&mut text, format_args!("\n  AS {}", query.value)),
        Events::Pushed(columns) => {
            let columns: Vec<String> =
                columns.iter().map(|(name, kind)| format!("{} {kind}", quoted(&name.value))).collect();
            put(&mut text, format_args!("\n  AS PUSHED ({})", columns.join(", ")));
        }
    }
    text
}

fn print_entity(entity: &EntityStatement) -> String {
    let keys: Vec<String> = entity.keys.iter().map(|(name, kind)| format!("{} {kind}", quoted(&name.value))).collect();
    format!("CREATE ENTITY {} KEY ({})", quoted(&entity.name.value), keys.join(", "))
}

fn print_view(view: &ViewStatement, clauses: Clauses) -> String {
    let every = format!("\n  REFRESH EVERY '{}'", view.refresh_every.value);
    if !clauses.meaning() {
        return every;
    }
    let mut text = format!("CREATE FEATURE VIEW {}\n  ENTITY {}", quoted(&view.name.value), quoted(&view.entity.value));
    if let Some(column) = &view.event_time {
        put(&mut text, format_args!("\n  EVENT TIME {}", quoted(&column.value)));
    }
    if let Some(clause) = &view.windows {
        let windows: Vec<String> = clause.windows.iter().map(print_window).collect();
        put(&mut text, format_args!("\n  WINDOWS ({}) STEP '{}'", windows.join(", "), clause.step.value));
    }
    if clauses.policy() {
        text.push_str(&every);
    }
    for (clause, span) in [("TTL", &view.ttl), ("LOOKBACK", &view.lookback)] {
        if let Some(span) = span {
            put(&mut text, format_args!("\n  {clause} '{}'", span.value));
        }
    }
    put(&mut text, format_args!("\n  AS {}", view.query.value));
    text
}

fn print_window(window: &WrittenWindow) -> String {
    let step = window.step.as_ref().map(|step| format!(" STEP '{}'", step.value));
    format!("'{}'{}", window.length.value, step.unwrap_or_default())
}

/// The views of a contract are of its meaning, their rules of its policy.
fn print_contract(contract: &ContractStatement, clauses: Clauses) -> String {
    let mut text = format!("CREATE CONTRACT {}", quoted(&contract.name.value));
    if clauses.policy() {
        put(&mut text, format_args!("\n  TIER {}", quoted(&contract.tier.value)));
    }
    if clauses.meaning() {
        let request = contract.request.iter().map(|(name, kind, nullable)| {
            format!("{} {kind}{}", quoted(&name.value), if *nullable { "" } else { " NOT NULL" })
        });
        print_list(&mut text, "REQUEST", request);
    }
    if !contract.features.is_empty() {
        print_list(&mut text, "FEATURES", contract.features.iter().map(|rule| print_rule(rule, clauses)));
    }
    if clauses.meaning() {
        let inputs =
            contract.inputs.iter().map(|input| format!("{} AS {}", input.expression.value, quoted(&input.name.value)));
        print_list(&mut text, "INPUTS", inputs);
        let output = contract.output.iter().map(|(name, kind)| format!("{} {kind}", quoted(&name.value)));
        print_list(&mut text, "OUTPUT", output);
    }
    if clauses.policy() {
        print_objectives(&mut text, contract);
    }
    text
}

fn print_objectives(text: &mut String, contract: &ContractStatement) {
    if let Some(Located { value, .. }) = &contract.latency {
        put(text, format_args!("\n  LATENCY '{}' AT {}", value.within, value.quantile));
    }
    if let Some(Located { value, .. }) = &contract.availability {
        put(text, format_args!("\n  AVAILABILITY {} OVER '{}'", value.share, value.over));
    }
}

fn print_spine(spine: &SpineStatement) -> String {
    let mut text = format!("CREATE SPINE {}", quoted(&spine.name.value));
    if let Some(time) = &spine.time {
        put(&mut text, format_args!(" EVENT TIME {}", quoted(&time.value)));
        if let Some(zone) = &spine.zone {
            put(&mut text, format_args!(" AT TIME ZONE '{}'", zone.value.replace('\'', "''")));
        }
    }
    put(&mut text, format_args!("\n  AS {}", spine.query.value));
    text
}

fn print_list(text: &mut String, clause: &str, items: impl Iterator<Item = String>) {
    let items: Vec<String> = items.collect();
    put(text, format_args!("\n  {clause} (\n    {})", items.join(",\n    ")));
}

fn print_rule(rule: &RuleStatement, clauses: Clauses) -> String {
    let mut text = quoted(&rule.view.value);
    if !clauses.policy() {
        return text;
    }
    put(&mut text, format_args!(" FRESH WITHIN '{}'", rule.fresh_within.value));
    if let Some(span) = &rule.max_age {
        put(&mut text, format_args!(" MAX AGE '{}'", span.value));
    }
    for (clause, action) in
        [("ON STALE", &rule.on_stale), ("ON EXPIRED", &rule.on_expired), ("ON MISSING", &rule.on_missing)]
    {
        if let Some(action) = action {
            put(&mut text, format_args!(" {clause} {}", action.value));
        }
    }
    text
}
