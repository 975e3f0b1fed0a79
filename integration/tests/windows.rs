//! Windowed views against an oracle that filters all events for each question (rules T3, T4 and T7): what refreshes and
//! lookups give online, and what a training set gives offline, over generated histories with ties, late events, empty
//! windows, times exactly on steps, nulls, NaN and infinities. Equal bit for bit.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::tier::{DiskTier, MemoryTier, catch_up};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{DEFINITIONS, Event, TestProject, at, write_events};
use crate::seeded::Seeded;

pub const USERS: [&str; 4] = ["ann", "bob", "cid", "nobody"];

/// The view's windows: what they are called, their length and their step in seconds.
const WINDOWS: [(&str, i64, i64); 4] = [("90s", 90, 60), ("10m", 600, 60), ("3h", 10_800, 3_600), ("2d", 172_800, 60)];

const TTL: i64 = 86_400;

const VIEW: &str = "
CREATE SOURCE branches STATIC AS SELECT * FROM (VALUES ('ann', 'north'), ('bob', 'south'), ('cid', 'north')) AS v (customer, branch);
CREATE FEATURE VIEW spending ENTITY user_account
  WINDOWS ('90 seconds', '10 minutes', '3 hours' STEP '1 hour', '2 days') STEP '1 minute'
  REFRESH EVERY '1 minute' TTL '1 day'
  AS SELECT user_name, count(*) AS payments, count(amount) AS known, sum(amount) AS total, avg(amount) AS mean,
            min(amount) AS least, max(amount) AS most, var_samp(amount) AS variance, stddev_pop(amount) AS spread,
            count(*) FILTER (WHERE amount > 20) AS large, sum(CAST(floor(amount) AS BIGINT)) FILTER (WHERE amount > -1000 AND amount < 1000) AS whole,
            count(*) FILTER (WHERE branch = 'north') AS northern, count(DISTINCT amount) AS kinds,
            first_value(amount) AS opening, last_value(amount) IGNORE NULLS AS latest, last_value(branch) AS place,
            approx_distinct(amount) AS about, approx_percentile_cont(amount, 0.25) AS quarter, approx_median(floor(amount)) AS middle,
            array_agg(amount LIMIT 3) AS recent, array_agg(amount IGNORE NULLS LIMIT 2) AS paid, approx_top_k(floor(amount), 2) AS usual,
            array_agg(branch LIMIT 2) AS places
     FROM paid JOIN branches ON customer = user_name WHERE user_name <> 'test' GROUP BY user_name;
CREATE CONTRACT limits TIER interactive
  REQUEST (user_name VARCHAR)
  FEATURES (spending FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(spending.payments_10m, -1) AS payments)
  OUTPUT (fraud_probability FLOAT);
";

pub fn number(value: u64) -> i64 {
    i64::try_from(value).expect("small")
}

fn history(random: &mut Seeded) -> Vec<Event> {
    let on_steps = random.below(2) == 0;
    let range = random.pick(&[4_000, 40_000, 200_000]);
    (0..random.below(70))
        .map(|_| {
            let event = number(random.below(range));
            let event = if on_steps { event - event % 60 } else { event };
            let late = if random.below(3) == 0 { number(random.below(range / 2)) } else { 0 };
            let amount = match random.below(20) {
                0 | 1 => None,
                2 => Some(f64::NAN),
                3 if random.below(3) == 0 => Some(random.pick(&[f64::INFINITY, f64::NEG_INFINITY])),
                _ => Some(f64::from(i32::try_from(random.below(200)).expect("small") - 100) / 2.0),
            };
            (random.pick(&USERS[..3]), event, event + late, amount)
        })
        .collect()
}

/// Puts events in the order that stands for that of their writes where one query brings them: null, then by the bits of their
/// values, as the docs say.
pub fn by_values<T>(events: &mut [T], amount: impl Fn(&T) -> Option<f64>) {
    events.sort_by_key(|event| amount(event).map(|value| value.to_bits().cast_signed()));
}

/// An event of a window: its event time, its available time, its place in the order of writes, and its amount.
type Happened = (i64, i64, usize, Option<f64>);

/// The events in a window as of `now` that were known by `known`, of all in the order in which they were written.
fn in_window(events: &[Event], user: &str, known: i64, now: i64, (_, length, step): (&str, i64, i64)) -> Vec<Happened> {
    let tail = (now - length).div_euclid(step) * step;
    events
        .iter()
        .enumerate()
        .filter(|(_, (of, event, available, _))| {
            *of == user && *available <= known && *event <= known && tail < *event && *event <= now
        })
        .map(|(written, event)| (event.1, event.2, written, event.3))
        .collect()
}

/// The event second of the newest event, if it is within the TTL.
fn newest(events: &[Event], user: &str, known: i64, now: i64) -> Option<i64> {
    let of_user = events.iter().filter(|(of, event, available, _)| *of == user && *event.max(available) <= known);
    of_user.map(|event| event.1).max().filter(|event| now - event <= TTL)
}

/// An expected value.
#[derive(Debug, Clone)]
enum Expected {
    Integer(Option<i64>),
    Float(Option<f64>),
    Text(Option<&'static str>),
    /// Within three standard errors of a sketch.
    About(i64),
    /// Within 0.4 %.
    Near(Option<f64>),
    Floats(Vec<Option<f64>>),
    Texts(Vec<&'static str>),
}

fn last<T: Clone>(values: &[T], most: usize) -> Vec<T> {
    values[values.len().saturating_sub(most)..].to_vec()
}

/// A list's elements; none where there is no list.
fn elements(column: &ArrayRef, row: usize) -> Option<ArrayRef> {
    let lists = column.as_list::<i32>();
    assert!(lists.is_null(row) || !lists.value(row).is_empty(), "a list of nothing is null");
    lists.is_valid(row).then(|| lists.value(row))
}

fn length<T>(values: &[T]) -> i64 {
    i64::try_from(values.len()).expect("small")
}

/// All features of a window by their aliases. The amounts are halves of small integers, so plain arithmetic is exact
/// up to the last operation.
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
fn aggregates(events: &[Happened], northern: bool) -> [(&'static str, Expected); 22] {
    let amounts: Vec<Option<f64>> = events.iter().map(|event| event.3).collect();
    let known: Vec<f64> = amounts.iter().flatten().copied().collect();
    let above =
        |a: &f64, b: &f64| a.is_nan().cmp(&b.is_nan()).then(a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    // Rule T5.
    let in_time = |a: &&Happened, b: &&Happened| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2));
    let mut sorted = known.clone();
    sorted.sort_by(above);
    let quarter = sorted.get(sorted.len().saturating_sub(1) / 4).copied();
    let middle = sorted.get(sorted.len().saturating_sub(1) / 2).map(|value| value.floor());
    let mut kinds: Vec<String> = sorted.iter().map(|value| (value + 0.0).to_string()).collect();
    kinds.dedup();
    let place = if northern { "north" } else { "south" };
    let n = f64::from(u32::try_from(known.len()).expect("small"));
    let sum = known.iter().sum::<f64>() + 0.0;
    let squares: f64 = known.iter().map(|value| value * value).sum();
    let finite = known.iter().all(|value| value.is_finite());
    let numerator = if finite { n * squares - sum * sum } else { f64::NAN };
    let large: Vec<f64> = known.iter().copied().filter(|value| value.is_nan() || *value > 20.0).collect();
    let mut in_order: Vec<&Happened> = events.iter().collect();
    in_order.sort_by(in_time);
    let recent: Vec<Option<f64>> = in_order.iter().map(|event| event.3).collect();
    let paid: Vec<Option<f64>> = recent.iter().copied().flatten().map(Some).collect();
    let mut usual: Vec<(usize, f64)> = Vec::new();
    for value in sorted.iter().map(|value| value.floor()) {
        match usual.last_mut().filter(|(_, last)| above(last, &value).is_eq()) {
            Some((count, _)) => *count += 1,
            None => usual.push((1, value)),
        }
    }
    usual.sort_by(|a, b| b.0.cmp(&a.0).then(above(&a.1, &b.1)));
    let some = |count: usize, value: f64| (known.len() >= count).then_some(value);
    let whole: Vec<i64> = known.iter().filter(|value| value.is_finite()).map(|value| value.floor() as i64).collect();
    [
        ("payments", Expected::Integer(Some(length(&amounts)))),
        ("known", Expected::Integer(Some(length(&known)))),
        ("total", Expected::Float(some(1, sum))),
        ("mean", Expected::Float(some(1, sum / n))),
        ("least", Expected::Float(known.iter().copied().min_by(above).map(|value| value + 0.0))),
        ("most", Expected::Float(known.iter().copied().max_by(above).map(|value| value + 0.0))),
        ("variance", Expected::Float(some(2, numerator / (n * (n - 1.0))))),
        ("spread", Expected::Float(some(1, (numerator / (n * n)).sqrt()))),
        ("large", Expected::Integer(Some(length(&large)))),
        ("northern", Expected::Integer(Some(if northern { length(&amounts) } else { 0 }))),
        ("kinds", Expected::Integer(Some(length(&kinds)))),
        ("about", Expected::About(length(&kinds))),
        ("opening", Expected::Float(events.iter().min_by(in_time).and_then(|event| event.3))),
        (
            "latest",
            Expected::Float(events.iter().filter(|event| event.3.is_some()).max_by(in_time).and_then(|event| event.3)),
        ),
        ("place", Expected::Text((!events.is_empty()).then_some(place))),
        ("quarter", Expected::Near(quarter)),
        ("middle", Expected::Near(middle)),
        ("whole", Expected::Integer((!whole.is_empty()).then(|| whole.iter().sum()))),
        ("recent", Expected::Floats(last(&recent, 3))),
        ("paid", Expected::Floats(last(&paid, 2))),
        ("usual", Expected::Floats(usual.iter().take(2).map(|(_, value)| Some(*value)).collect())),
        ("places", Expected::Texts(vec![place; events.len().min(2)])),
    ]
}

/// Checks a user's features of `spending` as of `now`, of the events known by `known`, which are given in the order in which they
/// were written.
pub fn check(
    answer: &RecordBatch,
    row: usize,
    events: &[Event],
    user: Option<&str>,
    known: i64,
    now: i64,
    place: &str,
) {
    let newest = user.and_then(|user| newest(events, user, known, now));
    let times = answer["spending@event_time"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.is_valid(row).then(|| times.value(row)), newest.map(|second| second * 1_000_000), "{place}");
    for window in WINDOWS {
        let amounts = user.map(|user| in_window(events, user, known, now, window)).unwrap_or_default();
        for (alias, expected) in aggregates(&amounts, user != Some("bob")) {
            let name = format!("spending.{alias}_{}", window.0);
            let column = &answer[name.as_str()];
            let found = format!("{name} {place}: {amounts:?}");
            if newest.is_none() {
                assert!(column.is_null(row), "{found}");
                continue;
            }
            match expected {
                Expected::Integer(expected) => {
                    let values = column.as_primitive::<Int64Type>();
                    assert_eq!(values.is_valid(row).then(|| values.value(row)), expected, "{found}");
                }
                Expected::Text(expected) => {
                    let values = column.as_string::<i32>();
                    assert_eq!(values.is_valid(row).then(|| values.value(row)), expected, "{found}");
                }
                Expected::Floats(expected) => {
                    let list = elements(column, row);
                    let values: Vec<Option<f64>> =
                        list.iter().flat_map(|list| list.as_primitive::<Float64Type>().iter()).collect();
                    let bits = |values: &[Option<f64>]| -> Vec<Option<u64>> {
                        values
                            .iter()
                            .map(|value| value.map(|v| if v.is_nan() { f64::NAN } else { v }.to_bits()))
                            .collect()
                    };
                    assert_eq!(bits(&values), bits(&expected), "{found}: {values:?}, expected {expected:?}");
                }
                Expected::Texts(expected) => {
                    let list = elements(column, row);
                    let values: Vec<Option<&str>> =
                        list.iter().flat_map(|list| list.as_string::<i32>().iter()).collect();
                    assert_eq!(values, expected.into_iter().map(Some).collect::<Vec<_>>(), "{found}");
                }
                Expected::About(expected) => {
                    let value = column.as_primitive::<Int64Type>().value(row);
                    assert!((value - expected).abs() <= 1 + expected / 20, "{found}: {value}, expected {expected}");
                }
                Expected::Near(expected) => {
                    let values = column.as_primitive::<Float64Type>();
                    let near = match (values.is_valid(row).then(|| values.value(row)), expected) {
                        (Some(value), Some(expected)) => {
                            (value - expected).abs() <= expected.abs() / 256.0
                                || value.to_bits() == expected.to_bits()
                                || value.is_nan() && expected.is_nan()
                        }
                        (value, expected) => value.is_none() && expected.is_none(),
                    };
                    assert!(near, "{found}: {values:?} {expected:?}");
                }
                Expected::Float(expected) => {
                    let values = column.as_primitive::<Float64Type>();
                    let value = values.is_valid(row).then(|| values.value(row));
                    let same = match (value, expected) {
                        (Some(value), Some(expected)) => {
                            value.to_bits() == expected.to_bits()
                                || value.is_nan() && expected.is_nan()
                                // A root of a rounded quotient is rounded twice; ours is rounded once.
                                || alias == "spread" && (value - expected).abs() <= 1e-15 * expected.abs()
                        }
                        (value, expected) => value.is_none() && expected.is_none(),
                    };
                    assert!(same, "{found}: {value:?}, expected {expected:?}");
                }
            }
        }
    }
}

pub fn definitions() -> String {
    format!("{DEFINITIONS}{VIEW}")
}

#[tokio::test]
async fn windows_online_are_those_of_the_oracle_at_every_time() {
    let mut random = Seeded::new(41);
    for case in 0..40 {
        let mut events = history(&mut random);
        let project = TestProject::new(&events);
        by_values(&mut events, |event| event.3);
        let state = project.apply(&definitions()).await.expect("valid definitions");
        let contract = state.current_contract("limits").expect("defined");
        let view = state.view(&contract.features[0].view).expect("pinned").clone();
        let plan = LookupPlan::new(contract, std::slice::from_ref(&view)).expect("its view");
        let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
        let tier = MemoryTier::new(disk, if case % 2 == 0 { 1 << 20 } else { 0 });
        let users = USERS.map(Some).into_iter().chain([None, Some("ann")]);
        let keys: Vec<ArrayRef> = vec![Arc::new(StringArray::from(users.clone().collect::<Vec<_>>()))];
        let mut watermark = 0;
        while watermark < 300_000 {
            watermark += 1 + number(random.below(60_000));
            if random.below(2) == 0 {
                watermark -= watermark % 60;
            }
            project.clock.set(at(watermark));
            project.jobs().refresh(&state, &view).await.expect("refreshes");
            catch_up(&tier, &project.jobs().log(&view), &view, &()).await.expect("loads");
            for later in [0, 1, 60, 3_599, 100_000] {
                let now = watermark + later;
                let answer = plan.lookup(&tier, &keys, at(now)).expect("looks up");
                for (row, user) in users.clone().enumerate() {
                    let place = format!("case {case}, {user:?} at {now}, watermark {watermark}");
                    check(&answer, row, &events, user, watermark, now, &place);
                }
            }
        }
    }
}

#[tokio::test]
async fn windows_in_training_sets_are_those_of_the_oracle() {
    let mut random = Seeded::new(43);
    for case in 0..40 {
        let mut events = history(&mut random);
        let project = TestProject::new(&events);
        by_values(&mut events, |event| event.3);
        let spine: Vec<Event> = (0..60)
            .map(|_| {
                let now = number(random.below(300_000));
                (random.pick(&USERS), if random.below(2) == 0 { now - now % 60 } else { now }, 0, None)
            })
            .collect();
        write_events(&project.folder.path().join("spine.parquet"), &spine);
        let state = project.apply(&definitions()).await.expect("valid definitions");
        let contract = state.current_contract("limits").expect("defined");
        let view = state.view(&contract.features[0].view).expect("pinned").clone();
        let refreshes = [2_000, 2_001, 50_000, 400_000];
        for second in refreshes {
            project.clock.set(at(second));
            project.jobs().refresh(&state, &view).await.expect("refreshes");
        }
        let cases = [
            (RowsFrom::Committed, AsOf::Known),
            (RowsFrom::Sources, AsOf::Known),
            (RowsFrom::Committed, AsOf::Served),
            (RowsFrom::Committed, AsOf::EventTime),
        ];
        for (rows, as_of) in cases {
            let spine_source =
                SpineSource { from: "spine.parquet".to_owned(), time: "paid_at".to_owned(), lag: Span::ZERO };
            let request = TrainingSetRequest {
                spine: spine_source,
                rows,
                as_of,
                with_features: true,
                order: SpineOrder::AsGiven,
            };
            let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
            let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
            let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
            assert_eq!(all.num_rows(), spine.len());
            for (row, (user, now, ..)) in spine.iter().enumerate() {
                let place = format!("case {case}, {rows:?}, {as_of:?}, {user} at {now}");
                match as_of {
                    AsOf::Known => check(&all, row, &events, Some(user), *now, *now, &place),
                    AsOf::Served => {
                        let last = refreshes.iter().filter(|second| *second <= now).max();
                        let known = last.copied().unwrap_or(now - now % 60);
                        check(&all, row, &events, Some(user), known, *now, &place);
                    }
                    AsOf::EventTime => {
                        let happened: Vec<Event> = events.iter().filter(|event| event.1 <= *now).copied().collect();
                        check(&all, row, &happened, Some(user), i64::MAX, *now, &place);
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn spines_from_csv_and_sql_are_answered_row_for_row_whatever_is_in_them() {
    let events = [("ann", 100, 100, Some(1.0)), ("bob", 150, 400, Some(3.0)), ("ann", 200, 200, Some(2.0))];
    let project = TestProject::new(&events);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    let contract = state.current_contract("limits").expect("defined");
    let view = state.view(&contract.features[0].view).expect("pinned").clone();
    project.clock.set(at(10_000));
    project.jobs().refresh(&state, &view).await.expect("refreshes");
    // Out of order, twice, without a key, of nobody, before all data, before and after a late event was known.
    let rows = [
        (Some("ann"), 200),
        (None, 200),
        (Some("ann"), 50),
        (Some("bob"), 399),
        (Some("ann"), 200),
        (Some("nobody"), 300),
        (Some("bob"), 400),
        (Some("ann"), 9_999),
    ];
    let lines = rows.iter().map(|(user, now)| format!("{},{}\n", user.unwrap_or_default(), at(*now)));
    let csv = "user_name,paid_at\n".to_owned() + &lines.collect::<String>();
    std::fs::write(project.folder.path().join("spine.csv"), csv).expect("writable");
    let values = rows.iter().map(|(user, now)| {
        let user = user.map_or_else(|| "NULL".to_owned(), |user| format!("'{user}'"));
        format!("({user}, TIMESTAMP '{}' AT TIME ZONE 'UTC')", at(*now))
    });
    let sql = format!(
        "SELECT column1 AS user_name, column2 AS paid_at FROM (VALUES {}) AS v",
        values.collect::<Vec<_>>().join(", ")
    );
    let request = |from: &str| TrainingSetRequest {
        spine: SpineSource { from: from.to_owned(), time: "paid_at".to_owned(), lag: Span::ZERO },
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: true,
        order: SpineOrder::AsGiven,
    };
    for from in ["spine.csv", &sql] {
        let set = project.jobs().training_set(&state, contract, &request(from)).await.expect("plans");
        let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
        let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
        assert_eq!(all.num_rows(), rows.len(), "{from}");
        for (row, (user, now)) in rows.iter().enumerate() {
            check(&all, row, &events, *user, *now, *now, &format!("{from}, {user:?} at {now}"));
        }
    }
    let future = sql.replace(&at(9_999).to_string(), &at(10_001).to_string());
    let error = project.jobs().training_set(&state, contract, &request(&future)).await.err().expect("too late");
    assert!(error.to_string().contains("the spine reaches beyond what a view has processed"), "{error}");
}

/// What is changed in the windowed view, and what the error must then say.
const FAULTS: [(&str, &str, &str); 30] = [
    ("'90 seconds'", "'90 months'", "not an interval"),
    ("'90 seconds'", "'1 hour 30 minutes'", "not a window's length"),
    ("'90 seconds'", "'30 seconds'", "the window '30 seconds' is shorter than its step, '1 minute'"),
    ("STEP '1 hour'", "STEP '61 seconds'", "is not a multiple of the view's, '1 minute'"),
    ("STEP '1 minute'", "STEP '2 seconds'", "the finest step is '10 seconds'"),
    ("'10 minutes'", "'90 s'", "two features are called 'payments_90s'"),
    ("count(amount) AS known", "count(amount) AS payments", "unique expression names"),
    ("count(amount) AS known", "count(amount) + 1 AS known", "the output 'known' is neither a key nor one aggregate"),
    ("count(amount) AS known", "count(amount)", "needs a plain name"),
    ("count(amount) AS known", "sum(DISTINCT amount) AS known", "'sum' DISTINCT is not an aggregate of windows"),
    ("count(amount) AS known", "last_value(amount ORDER BY amount) AS known", "events are in order of event time"),
    ("count(amount) AS known", "first_value(amount) FILTER (WHERE amount > 1) AS known", "only with IGNORE NULLS"),
    ("count(amount) AS known", "approx_percentile_cont(amount, 1.5) AS known", "1.5"),
    ("count(amount) AS known", "approx_percentile_cont(user_name, 0.5) AS known", "approx_percentile_cont"),
    ("count(amount) AS known", "median(amount) AS known", "'median' is not an aggregate of windows"),
    ("count(amount) AS known", "array_agg(amount) AS known", "array_agg(x LIMIT 10)"),
    ("count(amount) AS known", "array_agg(amount LIMIT 5000) AS known", "a number from 1 to 1024"),
    ("count(amount) AS known", "array_agg(amount LIMIT payments) AS known", "payments"),
    ("count(amount) AS known", "array_agg(amount ORDER BY amount LIMIT 2) AS known", "'array_agg' over windows"),
    ("count(amount) AS known", "approx_top_k(amount, 0) AS known", "a number from 1 to 100"),
    ("count(amount) AS known", "min(array_agg(amount LIMIT 2)) AS known", "array_agg"),
    ("count(amount) AS known", "min(user_name) AS known", "'min' of a window does not take VARCHAR"),
    ("count(amount) AS known", "sum(amont) AS known", "did you mean 'amount'?"),
    ("GROUP BY user_name", "GROUP BY user_name, known_at", "the query groups by more than its keys"),
    ("GROUP BY user_name", "GROUP BY user_name HAVING count(*) > 1", "without HAVING, ORDER BY or LIMIT"),
    ("FROM paid JOIN", "FROM (SELECT user_name, amount FROM paid) AS p JOIN", "no event time"),
    (
        "FROM paid JOIN",
        "FROM paid JOIN (SELECT paid_at AS other FROM paid) AS o ON true JOIN",
        "reads one source of events, once",
    ),
    (
        "= user_name WHERE",
        "= user_name WHERE amount > (SELECT max(amount) FROM paid) AND",
        "every event stands by itself",
    ),
    ("FROM paid JOIN", "FROM (SELECT DISTINCT * FROM paid) AS p JOIN", "every event stands by itself"),
    ("TTL '1 day'", "LOOKBACK '1 day'", "LOOKBACK has no meaning beside WINDOWS"),
];

#[tokio::test]
async fn every_fault_of_a_windowed_view_is_named() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let good = definitions();
    project.check(&good).await.expect("good definitions");
    for (part, bad, expected) in FAULTS {
        assert!(VIEW.contains(part), "{part}");
        let text = format!("{DEFINITIONS}{}", VIEW.replacen(part, bad, 1));
        let error = project.check(&text).await.expect_err(bad).to_string();
        assert!(error.contains(expected), "{bad}\n{error}");
        assert!(error.contains("--> definitions.sql:") && error.contains('^'), "{error}");
    }
}

/// Views over the same events, known when they happen: one whose windows run along in a training set, and one that holds
/// the distinct values too and so reads tiles, as lookups do.
const RUNNING: &str = "
CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments.parquet';
CREATE SOURCE paid EVENT TIME paid_at DELAY '90 seconds' AS SELECT user_name, paid_at, amount FROM payments;
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW running ENTITY user_account WINDOWS ('2 hours', '1 day' STEP '1 hour', '3 days') STEP '1 minute'
  REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS n, sum(amount) AS total, avg(amount) AS mean, min(amount) AS least,
       max(amount) AS most, stddev_samp(amount) AS spread FROM paid GROUP BY user_name;
CREATE FEATURE VIEW tiled ENTITY user_account WINDOWS ('2 hours', '1 day' STEP '1 hour', '3 days') STEP '1 minute'
  REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS n, sum(amount) AS total, avg(amount) AS mean, min(amount) AS least,
       max(amount) AS most, stddev_samp(amount) AS spread, count(DISTINCT amount) AS kinds FROM paid GROUP BY user_name;
CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (running FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT,
            tiled FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (running.n_2h AS n, tiled.kinds_1d AS kinds) OUTPUT (limit FLOAT);";

#[tokio::test]
async fn windows_that_run_along_are_those_of_tiles() {
    let mut random = Seeded::new(47);
    for case in 0..40 {
        let events = history(&mut random);
        let project = TestProject::new(&events);
        let spine: Vec<Event> =
            (0..120).map(|_| (random.pick(&USERS), number(random.below(500_000)), 0, None)).collect();
        write_events(&project.folder.path().join("spine.parquet"), &spine);
        let state = project.apply(RUNNING).await.expect("valid definitions");
        let contract = state.current_contract("limits").expect("defined");
        // Case by case one data file or several, that are merged as they lie.
        for second in if case % 2 == 0 { vec![600_000] } else { vec![2_000, 30_000, 90_000, 600_000] } {
            project.clock.set(at(second));
            for view in state.live_views() {
                project.jobs().refresh(&state, view).await.expect("refreshes");
            }
        }
        for (rows, as_of) in [
            (RowsFrom::Committed, AsOf::Known),
            (RowsFrom::Sources, AsOf::Known),
            (RowsFrom::Committed, AsOf::Served),
            (RowsFrom::Committed, AsOf::EventTime),
        ] {
            let spine = SpineSource { from: "spine.parquet".to_owned(), time: "paid_at".to_owned(), lag: Span::ZERO };
            let request = TrainingSetRequest { spine, rows, as_of, with_features: true, order: SpineOrder::AsGiven };
            let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
            if rows == RowsFrom::Committed && !events.is_empty() {
                let plan = set.explain().await.expect("plans");
                let sorts = plan.matches("SortExec: expr=[user_name").count();
                assert_eq!(sorts, 1, "the spine is sorted, and no view's rows:\n{plan}");
            }
            let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
            let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
            for feature in state.live_views()[0].features.iter().map(|feature| &feature.name) {
                let (running, tiled) =
                    (&all[format!("running.{feature}").as_str()], &all[format!("tiled.{feature}").as_str()]);
                assert!(running.to_data() == tiled.to_data(), "case {case}, {rows:?}, {as_of:?}, {feature}");
            }
        }
    }
}
