use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::prelude::SessionContext;
use futures::executor::block_on;

use super::*;

const SOURCES: [&str; 2] = ["seen", "paid"];

/// A context with two sources and a table that holds at every time.
fn context() -> SessionContext {
    let context = SessionContext::new();
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    for name in ["seen", "paid", "people"] {
        let mut fields = vec![Field::new("who", DataType::Utf8, true), Field::new("amount", DataType::Float64, true)];
        if SOURCES.contains(&name) {
            fields.extend([Field::new("t", time.clone(), true), Field::new("other", time.clone(), true)]);
        }
        let none = RecordBatch::new_empty(Arc::new(Schema::new(fields)));
        let frame = context.read_batch(none).expect("a table");
        context.register_table(name, frame.into_view()).expect("a new name");
    }
    context
}

async fn of_query(query: &str) -> Lies {
    let context = context();
    let mut sources = Vec::new();
    for name in SOURCES.into_iter().filter(|name| query.contains(&format!(" {name}"))) {
        let provider = context.table_provider(name).await.expect("registered");
        let plan = provider.get_logical_plan().expect("a query").into_owned();
        sources.push(TimedSource { name: name.to_owned(), plan });
    }
    let frame = context.sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    lies(frame.logical_plan(), &sources, "e")
}

fn all(queries: &[&str], expected: impl Fn(&Lies) -> bool) {
    for query in queries {
        let lies = block_on(of_query(query));
        assert!(expected(&lies), "{query}: {lies:?}");
    }
}

fn seen(lies: &Lies) -> bool {
    *lies == Lies::Before(vec!["seen".to_owned()])
}

#[test]
fn times_of_the_events_themselves_lie_with_them() {
    let queries = [
        "SELECT who, t AS e, amount FROM seen",
        "SELECT who, other AS e, amount FROM seen",
        "SELECT s.who, s.t AS e FROM seen AS s WHERE amount > 1",
        "SELECT who, t AS e, max(amount) FROM seen GROUP BY who, t",
        "SELECT who, max(t) AS e, sum(amount) FROM seen GROUP BY who",
        "SELECT who, max(t) AS e, sum(amount) FROM seen GROUP BY who, date_trunc('hour', t) HAVING count(*) > 1",
        "SELECT who, greatest(t, other) AS e FROM seen",
        "SELECT who, coalesce(other, t) AS e FROM seen",
        "SELECT DISTINCT who, t AS e FROM seen",
        "SELECT who, t AS e FROM seen UNION ALL SELECT who, other FROM paid",
        "SELECT s.who, s.t AS e, count(*) FROM seen s JOIN people p ON p.who = s.who GROUP BY s.who, s.t",
        "WITH seen AS (SELECT who, t AS e FROM seen) SELECT * FROM seen",
    ];
    all(&queries, |lies| *lies == Lies::With);
}

#[test]
fn the_end_of_a_group_lies_after_its_events() {
    let queries = [
        "SELECT who, date_trunc('hour', t) + INTERVAL '1 hour' AS e, count(*) FROM seen GROUP BY who, date_trunc('hour', t)",
        "SELECT who, INTERVAL '60 minutes' + date_trunc('hour', t) AS e, count(*) FROM seen GROUP BY who, 2",
        "SELECT who, h + INTERVAL '1 day' AS e FROM (SELECT who, date_trunc('day', t) AS h FROM seen GROUP BY who, h)",
        "SELECT who, date_trunc('month', t) + INTERVAL '1 month' AS e, count(*) FROM seen GROUP BY who, date_trunc('month', t)",
        "SELECT who, date_trunc('quarter', t) + INTERVAL '3 months' AS e FROM seen",
        "SELECT who, date_trunc('month', t) + INTERVAL '31 days' AS e FROM seen",
        "SELECT who, date_bin(INTERVAL '15 minutes', t) + INTERVAL '15 minutes' AS e, count(*) FROM seen GROUP BY who, 2",
        "SELECT who, t + INTERVAL '0 hours' AS e FROM seen",
        "SELECT who, greatest(date_trunc('hour', t), t) AS e FROM seen",
        "SELECT who, max(t) + INTERVAL '5 minutes' AS e, sum(amount) FROM seen GROUP BY who",
        "SELECT who, date_trunc('hour', t + INTERVAL '1 hour') AS e FROM seen",
    ];
    all(&queries, |lies| *lies == Lies::After);
}

#[test]
fn what_may_lie_before_an_event_is_told_and_what_cannot_be_told_is_taken_for_it() {
    let queries = [
        "SELECT who, date_trunc('hour', t) AS e, count(*) FROM seen GROUP BY who, date_trunc('hour', t)",
        "SELECT who, date_trunc('hour', t) AS e, amount FROM seen",
        "SELECT who, date_trunc('hour', t) + INTERVAL '59 minutes' AS e FROM seen",
        "SELECT who, date_trunc('month', t) + INTERVAL '30 days' AS e FROM seen",
        "SELECT who, date_bin(INTERVAL '15 minutes', t) AS e, count(*) FROM seen GROUP BY who, 2",
        "SELECT who, t - INTERVAL '1 hour' AS e FROM seen",
        "SELECT who, t + INTERVAL '-1 hour' AS e FROM seen",
        "SELECT who, min(t) AS e, sum(amount) FROM seen GROUP BY who",
        "SELECT who, max(t) FILTER (WHERE amount > 1) AS e, sum(amount) FROM seen GROUP BY who",
        "SELECT who, least(t, date_trunc('day', t)) AS e FROM seen",
        "SELECT who, CAST(CAST(t AS DATE) AS TIMESTAMP) AS e FROM seen",
        "SELECT who, TIMESTAMP '2013-01-01 00:00:00' AS e FROM seen",
        "WITH seen AS (SELECT who, date_trunc('hour', t) AS e FROM seen) SELECT * FROM seen",
        "SELECT s.who, date_trunc('hour', s.t) AS e FROM seen s JOIN people p ON p.who = s.who",
        "SELECT who, t AS e FROM seen UNION ALL SELECT who, date_trunc('hour', t) FROM seen",
    ];
    all(&queries, seen);
}

#[test]
fn windows_over_rows_look_back_or_are_told() {
    let backward = [
        "SELECT who, t AS e, sum(amount) OVER (PARTITION BY who ORDER BY t) FROM seen",
        "SELECT who, t AS e, sum(amount) OVER (PARTITION BY who ORDER BY t RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) FROM seen",
        "SELECT who, t AS e, lag(amount) OVER (PARTITION BY who ORDER BY t), row_number() OVER (PARTITION BY who ORDER BY t) FROM seen",
        "SELECT who, t AS e, sum(amount) OVER (PARTITION BY who, t) FROM seen",
    ];
    all(&backward, |lies| *lies == Lies::With);
    let forward = [
        "SELECT who, t AS e, sum(amount) OVER (PARTITION BY who) FROM seen",
        "SELECT who, t AS e, sum(amount) OVER (PARTITION BY who ORDER BY t DESC) FROM seen",
        "SELECT who, t AS e, lead(amount) OVER (PARTITION BY who ORDER BY t) FROM seen",
        "SELECT who, t AS e, avg(amount) OVER (ORDER BY t ROWS BETWEEN CURRENT ROW AND 1 FOLLOWING) FROM seen",
        "SELECT who, e FROM (SELECT who, t AS e, row_number() OVER (PARTITION BY who ORDER BY t DESC) AS n FROM seen) WHERE n = 1",
        "SELECT who, t AS e FROM seen ORDER BY t DESC LIMIT 1",
        "SELECT who, h + INTERVAL '1 month' AS e FROM \
           (SELECT who, h, sum(amount) OVER (PARTITION BY who) FROM (SELECT who, amount, date_trunc('month', t) AS h FROM seen))",
    ];
    all(&forward, seen);
}

#[test]
fn of_two_events_the_time_is_that_of_the_later() {
    let told = [
        "SELECT s.who, s.t AS e, p.amount FROM seen s JOIN paid p ON p.who = s.who AND p.t <= s.t",
        "SELECT s.who, s.t AS e, p.amount FROM seen s LEFT JOIN paid p ON p.who = s.who AND s.t >= p.t",
        "SELECT s.who, s.t AS e, p.amount FROM seen s, paid p WHERE p.who = s.who AND p.t BETWEEN s.t - INTERVAL '1 day' AND s.t",
        "SELECT s.who, greatest(s.t, p.t) AS e, p.amount FROM seen s JOIN paid p ON p.who = s.who",
        "SELECT s.who, s.t AS e FROM seen s JOIN paid p ON p.who = s.who AND p.t = s.t",
        "SELECT s.who, s.t AS e, count(*) FROM seen s JOIN seen b ON b.who = s.who AND b.t <= s.t GROUP BY s.who, s.t",
        "SELECT who, t AS e, (SELECT count(*) FROM paid p WHERE p.who = s.who AND p.t <= s.t) AS n FROM seen s",
        "SELECT who, t AS e FROM seen s WHERE EXISTS (SELECT 1 FROM paid p WHERE p.who = s.who AND p.t <= s.t)",
        "SELECT who, t AS e FROM seen s WHERE NOT EXISTS (SELECT 1 FROM paid p WHERE p.who = s.who AND p.t <= s.t)",
    ];
    all(&told, |lies| *lies == Lies::With);
    let untold = [
        "SELECT s.who, s.t AS e, p.amount FROM seen s JOIN paid p ON p.who = s.who",
        "SELECT s.who, s.t AS e, p.amount FROM seen s JOIN paid p ON p.who = s.who AND p.t > s.t",
        "SELECT who, t AS e, (SELECT max(amount) FROM paid) AS n FROM seen",
        "SELECT who, t AS e FROM seen s WHERE NOT EXISTS (SELECT 1 FROM paid p WHERE p.who = s.who)",
    ];
    all(&untold, |lies| *lies == Lies::Before(vec!["paid".to_owned()]));
}
