//! What a simulation's views should say: each question is answered from all events, in the order in which they were written.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use springhouse_featurestore::parquet_file::ParquetFileWriter;

use super::faults::{Fault, Faults};
use crate::project::Event;
use crate::windows;

/// An event of the source `seen`: known when it happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    pub user: &'static str,
    /// The second at which it happened.
    pub at: i64,
    pub amount: Option<f64>,
    /// A number by which it is told from others at its time.
    pub mark: i64,
}

const HOUR: i64 = 3_600;

/// The TTL of `last_payment`.
const TTL: i64 = 3_600;

/// A second source, which is known when it happens, with views that stand by themselves.
const SEEN: &str = "
CREATE EXTERNAL TABLE seen_before STORED AS PARQUET LOCATION 'seen/';
CREATE SOURCE seen EVENT TIME seen_at AS SELECT user_name, seen_at, amount, mark FROM seen_before;
CREATE FEATURE VIEW last_seen ENTITY user_account REFRESH EVERY '1 minute'
  AS SELECT user_name, seen_at, amount, mark FROM seen;
CREATE FEATURE VIEW visits ENTITY user_account WINDOWS ('10 minutes', '1 day') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS n, sum(amount) AS total FROM seen GROUP BY user_name;
";

/// A third source, which tells its events apart by their mark.
const BILLS: &str = "
CREATE EXTERNAL TABLE bills_before STORED AS PARQUET LOCATION 'bills/';
CREATE SOURCE bills EVENT TIME seen_at DISTINCT ON (mark) AS SELECT user_name, seen_at, amount, mark FROM bills_before;
CREATE FEATURE VIEW last_bill ENTITY user_account REFRESH EVERY '1 minute'
  AS SELECT user_name, seen_at, amount, mark FROM bills;
CREATE FEATURE VIEW billed ENTITY user_account WINDOWS ('10 minutes', '1 day') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS n, sum(amount) AS total FROM bills GROUP BY user_name;
";

/// Views whose rows are made of several events: of one time, of an hour before it, and of a join.
const TOGETHER: &str = "
CREATE FEATURE VIEW at_once ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 minute'
  AS SELECT user_name, seen_at, count(*) AS n, sum(amount) AS total FROM seen GROUP BY user_name, seen_at;
CREATE FEATURE VIEW lately ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, seen_at,
            count(*) OVER (PARTITION BY user_name ORDER BY seen_at RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS n,
            sum(amount) OVER (PARTITION BY user_name ORDER BY seen_at RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS total
     FROM seen;
CREATE FEATURE VIEW at_branch ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 minute'
  AS SELECT user_name, seen_at, branch, count(*) AS n FROM seen JOIN branches ON customer = user_name
     GROUP BY user_name, seen_at, branch;
";

/// A view of windows that go by the order of events, those of one time among them.
const TURNS: &str = "
CREATE FEATURE VIEW turns ENTITY user_account WINDOWS ('10 minutes', '1 day') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, first_value(mark) AS opening, last_value(amount) IGNORE NULLS AS latest, array_agg(mark LIMIT 3) AS marks
     FROM seen GROUP BY user_name;
";

/// A view whose rows hold from the end of their hour on.
const HOURLY: &str = "
CREATE FEATURE VIEW hourly ENTITY user_account EVENT TIME hour_end REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, date_trunc('hour', seen_at) + INTERVAL '1 hour' AS hour_end, count(*) AS n, sum(amount) AS total
     FROM seen GROUP BY user_name, date_trunc('hour', seen_at);
";

/// A view whose query fails on a mark of 0.
const SHARES: &str = "
CREATE FEATURE VIEW shares ENTITY user_account REFRESH EVERY '1 minute'
  AS SELECT user_name, seen_at, 1000 / mark AS share FROM seen;
";

/// The mark of events on which the queries of [`SPREADS`] fail, and that of a view that comes later. None is tried before a push is
/// taken: their rows rest on several events, or on another table.
pub const FAILS: i64 = 1_000;

/// Views of which refreshes read again what was pushed.
const SPREADS: &str = "
CREATE FEATURE VIEW spread ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, seen_at, count(1000 / (mark - 1000)) AS n, sum(amount) AS total FROM seen GROUP BY user_name, seen_at;
CREATE FEATURE VIEW hourly_spread ENTITY user_account EVENT TIME hour_end REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, date_trunc('hour', seen_at) + INTERVAL '1 hour' AS hour_end, count(1000 / (mark - 1000)) AS n,
            sum(amount) AS total FROM seen GROUP BY user_name, date_trunc('hour', seen_at);
";

/// Views that do without the events on which they fail.
const DO_WITHOUT: [&str; 3] = ["spread", "hourly_spread", "later_spread"];

/// Views that come later, by name.
const NEWCOMERS: [(&str, &str); 3] = [
    (
        "later_spread",
        "CREATE FEATURE VIEW later_spread ENTITY user_account WINDOWS ('2 days') STEP '1 minute' REFRESH EVERY '1 minute'
           AS SELECT user_name, count(1000 / (mark - 1000)) AS n, sum(amount) AS total FROM seen JOIN branches ON customer = user_name
              GROUP BY user_name;",
    ),
    (
        "newcomer",
        "CREATE FEATURE VIEW newcomer ENTITY user_account WINDOWS ('2 days') STEP '1 minute' REFRESH EVERY '1 minute'
           AS SELECT user_name, count(*) AS n, sum(amount) AS total FROM seen GROUP BY user_name;",
    ),
    (
        "newest",
        "CREATE FEATURE VIEW newest ENTITY user_account REFRESH EVERY '1 minute'
           AS SELECT user_name, seen_at, amount, mark FROM seen;",
    ),
];

/// How many views may come later.
pub const MOST_NEWCOMERS: usize = NEWCOMERS.len();

/// The name of a view that came later.
pub fn newcomer(index: usize) -> &'static str {
    NEWCOMERS[index].0
}

/// The views over `seen`, some of those that come later among them.
pub fn views_of_seen(faults: &Faults, newcomers: usize) -> Vec<&'static str> {
    let mut views = vec!["last_seen", "visits"];
    if faults.has(Fault::Ties) {
        views.extend(["at_once", "lately", "at_branch", "turns"]);
    }
    if faults.has(Fault::Hours) {
        views.push("hourly");
    }
    if faults.has(Fault::Poison) {
        views.push("shares");
    }
    if faults.has(Fault::SetAside) {
        views.extend(["spread", "hourly_spread"]);
    }
    views.extend(NEWCOMERS[..newcomers].iter().map(|(name, _)| *name));
    views
}

/// The views over `paid`.
pub const VIEWS_OF_PAID: [&str; 2] = ["spending", "last_payment"];

/// The views over `bills`.
pub fn views_of_bills(faults: &Faults) -> &'static [&'static str] {
    if faults.has(Fault::Twice) { &["last_bill", "billed"] } else { &[] }
}

/// All definitions, and a contract over all views.
pub fn definitions(faults: &Faults, newcomers: usize) -> String {
    let together = if faults.has(Fault::Ties) { format!("{TOGETHER}{TURNS}") } else { String::new() };
    let hourly = if faults.has(Fault::Hours) { HOURLY } else { "" };
    let shares = if faults.has(Fault::Poison) { SHARES } else { "" };
    let spreads = if faults.has(Fault::SetAside) { SPREADS } else { "" };
    let later: String = NEWCOMERS[..newcomers].iter().map(|(_, text)| *text).collect();
    let bills = if faults.has(Fault::Twice) { BILLS } else { "" };
    let views = VIEWS_OF_PAID.into_iter().chain(views_of_seen(faults, newcomers));
    let views = views.chain(views_of_bills(faults).iter().copied());
    let rules = views.map(|view| format!("{view} FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT"));
    let rules = rules.collect::<Vec<_>>().join(", ");
    format!(
        "{}{SEEN}{together}{hourly}{shares}{spreads}{bills}{later}
         CREATE CONTRACT everything TIER interactive REQUEST (user_name VARCHAR) FEATURES ({rules})
           INPUTS (coalesce(visits.n_10m, -1) AS visits) OUTPUT (limit FLOAT);",
        windows::definitions()
    )
}

/// Events as they are pushed.
pub fn seen_batch(events: &[Seen]) -> RecordBatch {
    let times = events.iter().map(|event| event.at * 1_000_000);
    let columns: [(&str, ArrayRef, bool); 4] = [
        ("user_name", Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.user))), true),
        ("seen_at", Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")), true),
        ("amount", Arc::new(Float64Array::from_iter(events.iter().map(|event| event.amount))), true),
        ("mark", Arc::new(Int64Array::from_iter_values(events.iter().map(|event| event.mark))), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).expect("four columns")
}

/// Writes events as a file of a table in this folder, which appears as a whole.
pub fn write_seen(project: &Path, folder: &str, name: &str, events: &[Seen]) {
    let (batch, unseen) = (seen_batch(events), project.join("unseen.parquet"));
    let mut file = ParquetFileWriter::create(&unseen, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
    std::fs::create_dir_all(project.join(folder)).expect("writable");
    std::fs::rename(unseen, project.join(folder).join(name)).expect("writable");
}

/// An expected value.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Integer(i64),
    Float(Option<f64>),
    Text(&'static str),
    /// One of the marks, if there is one.
    Mark(Option<i64>),
    /// Several of them; none where there is no list.
    Marks(Vec<i64>),
}

impl Value {
    fn is_null(&self) -> bool {
        matches!(self, Self::Float(None) | Self::Mark(None)) || *self == Self::Marks(Vec::new())
    }
}

/// A view's row: the second of its event time, and its features.
type Row = (i64, Vec<(String, Value)>);

fn total<'a>(events: impl IntoIterator<Item = &'a Seen>) -> Value {
    let known: Vec<f64> = events.into_iter().filter_map(|event| event.amount).collect();
    // Halves of small numbers: exact in any order.
    Value::Float((!known.is_empty()).then(|| known.iter().sum::<f64>() + 0.0))
}

fn count_and_total(suffix: &str, events: &[&Seen]) -> Vec<(String, Value)> {
    let count = i64::try_from(events.len()).expect("few");
    let total = total(events.iter().copied());
    vec![(format!("n{suffix}"), Value::Integer(count)), (format!("total{suffix}"), total)]
}

/// What goes by the order of events: of those at one time the one that was written later is the later.
fn in_turn(suffix: &str, events: &[&Seen]) -> Vec<(String, Value)> {
    let mut events = events.to_vec();
    events.sort_by_key(|event| event.at);
    let marks: Vec<i64> = events.iter().map(|event| event.mark).collect();
    vec![
        (format!("opening{suffix}"), Value::Mark(marks.first().copied())),
        (format!("latest{suffix}"), Value::Float(events.iter().rev().find_map(|event| event.amount))),
        (format!("marks{suffix}"), Value::Marks(marks[marks.len().saturating_sub(3)..].to_vec())),
    ]
}

/// What windows of some events have, by the ending of their names.
type Features = fn(&str, &[&Seen]) -> Vec<(String, Value)>;

/// The row of a user in a view over `seen` as of a second, from the events in the order in which they were written.
fn row_of(view: &str, events: &[Seen], user: &str, now: i64) -> Option<Row> {
    let counts = |event: &Seen| event.mark != FAILS || !DO_WITHOUT.contains(&view);
    let known: Vec<&Seen> =
        events.iter().filter(|event| event.user == user && event.at <= now && counts(event)).collect();
    let newest = known.iter().map(|event| event.at).max()?;
    let since = |first: i64| -> Vec<&Seen> { known.iter().copied().filter(|event| event.at >= first).collect() };
    let over = |windows: &[(&str, i64)], features: Features| {
        let of = |(name, length): &(&str, i64)| {
            let tail = (now - length).div_euclid(60) * 60;
            features(&format!("_{name}"), &since(tail + 1))
        };
        windows.iter().flat_map(of).collect::<Vec<_>>()
    };
    let features = match view {
        "last_seen" | "newest" | "last_bill" => {
            // Of those at one time the one that was written last.
            let last = known.iter().rev().find(|event| event.at == newest)?;
            vec![("amount".to_owned(), Value::Float(last.amount)), ("mark".to_owned(), Value::Integer(last.mark))]
        }
        "shares" => {
            let last = known.iter().rev().find(|event| event.at == newest)?;
            vec![("share".to_owned(), Value::Integer(1_000 / last.mark))]
        }
        "visits" | "billed" => over(&[("10m", 600), ("1d", 86_400)], count_and_total),
        "newcomer" | "later_spread" => over(&[("2d", 172_800)], count_and_total),
        "turns" => over(&[("10m", 600), ("1d", 86_400)], in_turn),
        "at_once" | "spread" => count_and_total("", &since(newest)),
        "lately" => count_and_total("", &since(newest - HOUR)),
        "at_branch" => {
            let branch = if user == "bob" { "south" } else { "north" };
            let mut features = count_and_total("", &since(newest));
            features[1] = ("branch".to_owned(), Value::Text(branch));
            features
        }
        "hourly" | "hourly_spread" => {
            let end = known.iter().map(|event| hour_end(event.at)).filter(|end| *end <= now).max()?;
            let of_hour: Vec<&Seen> = known.into_iter().filter(|event| hour_end(event.at) == end).collect();
            return Some((end, count_and_total("", &of_hour)));
        }
        other => panic!("no such view: {other}"),
    };
    Some((newest, features))
}

/// The end of the hour in which a second lies.
fn hour_end(second: i64) -> i64 {
    (second.div_euclid(HOUR) + 1) * HOUR
}

fn found(column: &ArrayRef, row: usize, like: &Value) -> Value {
    match like {
        Value::Integer(_) => Value::Integer(column.as_primitive::<Int64Type>().value(row)),
        Value::Float(_) => Value::Float(column.is_valid(row).then(|| column.as_primitive::<Float64Type>().value(row))),
        Value::Text(expected) if column.as_string::<i32>().value(row) == *expected => like.clone(),
        Value::Text(_) => Value::Text("another"),
        Value::Mark(_) => Value::Mark(column.is_valid(row).then(|| column.as_primitive::<Int64Type>().value(row))),
        Value::Marks(_) => {
            let list = column.is_valid(row).then(|| column.as_list::<i32>().value(row));
            Value::Marks(list.map_or_else(Vec::new, |list| list.as_primitive::<Int64Type>().values().to_vec()))
        }
    }
}

fn time_of(answer: &RecordBatch, view: &str, row: usize) -> Option<i64> {
    let times = answer[format!("{view}@event_time").as_str()].as_primitive::<TimestampMicrosecondType>();
    times.is_valid(row).then(|| times.value(row))
}

/// Checks a user's features of views over `seen`, or over `bills`, as of a second.
pub fn check_seen(
    answer: &RecordBatch,
    row: usize,
    views: &[&str],
    events: &[Seen],
    (user, now): (Option<&str>, i64),
    place: &str,
) {
    for view in views {
        let expected = user.and_then(|user| row_of(view, events, user, now));
        let of_user: Vec<&Seen> = events.iter().filter(|event| Some(event.user) == user).collect();
        let place = format!("{view} of {user:?} as of {now}, {place}, of {of_user:?}");
        let time = expected.as_ref().map(|(time, _)| time * 1_000_000);
        assert_eq!(time_of(answer, view, row), time, "the event time of {place}");
        for (name, value) in expected.iter().flat_map(|(_, features)| features) {
            let column = &answer[format!("{view}.{name}").as_str()];
            assert!(column.is_valid(row) || value.is_null(), "{name} of {place}");
            assert_eq!(found(column, row, value), *value, "{name} of {place}");
        }
    }
}

/// Checks a user's features of views over `paid`, as of a second. The events are in the order in which they were written.
pub fn check_paid(answer: &RecordBatch, row: usize, events: &[Event], (user, now): (Option<&str>, i64), place: &str) {
    windows::check(answer, row, events, user, now, now, place);
    let known = events.iter().filter(|event| Some(event.0) == user && event.1 <= now && event.2 <= now);
    // Of equal ones the last is the greatest.
    let last = known.max_by_key(|event| (event.1, event.2)).filter(|event| now - event.1 <= TTL);
    let place = format!("last_payment of {user:?} as of {now}, {place}");
    assert_eq!(time_of(answer, "last_payment", row), last.map(|event| event.1 * 1_000_000), "{place}");
    let amounts = answer["last_payment.amount"].as_primitive::<Float64Type>();
    let bits = |amount: f64| if amount.is_nan() { f64::NAN.to_bits() } else { amount.to_bits() };
    let amount = amounts.is_valid(row).then(|| bits(amounts.value(row)));
    assert_eq!(amount, last.and_then(|event| event.3).map(bits), "{place}");
}
