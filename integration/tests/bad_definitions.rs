//! Bad definitions: every fault is named with its place and what would be accepted, all of a file at once.

use springhouse_featurestore::definition::Definition;

use crate::project::{DEFINITIONS, TestProject};

/// What is changed in good definitions, and what the error must then say.
const FAULTS: [(&str, &str, &str); 37] = [
    (
        "SELECT user_name, paid_at, known_at, amount FROM payments",
        "SELECT user_nam, paid_at, known_at, amount FROM payments",
        "did you mean 'user_name'?",
    ),
    ("FROM payments", "FROM payment", "did you mean 'payments'?"),
    ("LOCATION 'payments.parquet'", "LOCATION 'nowhere.parquet'", "does not exist"),
    ("EVENT TIME paid_at", "EVENT TIME payed_at", "did you mean 'paid_at'?"),
    ("EVENT TIME paid_at", "EVENT TIME amount", "is DOUBLE, not a TIMESTAMP"),
    ("EVENT TIME paid_at", "EVENT TIME paid_at AT TIME ZONE 'Mars/Olympus'", "there is no time zone 'Mars/Olympus'"),
    ("KEY (user_name VARCHAR)", "KEY (user_name DOUBLE)", "cannot be DOUBLE"),
    ("KEY (user_name VARCHAR)", "KEY (user_name BIGINT)", "entity user_account says BIGINT"),
    ("ENTITY user_account REFRESH", "ENTITY user_acount REFRESH", "did you mean 'user_account'?"),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM paid",
        "AS SELECT paid_at, known_at, amount FROM paid",
        "does not yield the key column 'user_name'",
    ),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM paid",
        "AS SELECT user_name, amount FROM paid",
        "no event time",
    ),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM paid",
        "AS SELECT user_name, paid_at, known_at FROM paid",
        "yields no features",
    ),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM paid",
        "AS SELECT user_name, paid_at, amount FROM paid",
        "available-time column 'known_at'",
    ),
    ("known_at, amount FROM paid", "known_at, random() AS amount FROM paid", "random() gives another value"),
    (
        "known_at, amount FROM paid",
        "known_at, sum(amount) OVER (PARTITION BY user_name ORDER BY paid_at) AS amount FROM paid",
        "must take each row by itself",
    ),
    ("REFRESH EVERY '1 minute'", "REFRESH EVERY '0 minutes'", "is not positive"),
    ("REFRESH EVERY '1 minute'", "REFRESH EVERY 'soon'", "not an interval"),
    ("REFRESH EVERY '1 minute'", "WINDOWS ('2 hours') REFRESH EVERY '1 minute'", "WINDOWS has no STEP"),
    (
        "REFRESH EVERY '1 minute'",
        "WINDOWS ('2 hours') STEP '5 minutes' REFRESH EVERY '1 minute'",
        "a view with WINDOWS selects its keys and aggregates",
    ),
    ("FEATURES (last_payment FRESH", "FEATURES (lost_payment FRESH", "did you mean 'last_payment'?"),
    ("ON MISSING DEFAULT", "ON MISSING SERVE", "a missing value cannot be served"),
    ("last_payment.amount, -1", "last_payment.amont, -1", "there is no column 'last_payment.amont'"),
    ("country = 'NL' AS domestic", "country AS domestic", "is VARCHAR, which a model cannot read"),
    ("country = 'NL' AS domestic", "country = 'NL'", "has no name"),
    ("OUTPUT (fraud_probability FLOAT)", "OUTPUT (fraud_probability)", "expected a type"),
    ("AVAILABLE AT known_at", "DELAY '1 minute' LATENESS '1 day'", "LATENESS needs AVAILABLE AT column"),
    ("REFRESH EVERY '1 minute'", "REFRESH EVERY '1 minute' LATENESS '1 day'", "belong to the source"),
    ("AVAILABLE AT known_at", "AVAILABLE AT known_at DISTINCT ON (user_nam)", "did you mean 'user_name'?"),
    ("AVAILABLE AT known_at", "DISTINCT ON (user_name, user_name)", "the column 'user_name' is given twice"),
    ("AVAILABLE AT known_at", "DISTINCT ON (amount)", "is DOUBLE, which does not tell events apart"),
    ("AVAILABLE AT known_at", "AVAILABLE AT known_at DISTINCT ON (known_at)", "does not tell events apart"),
    ("AVAILABLE AT known_at", "DISTINCT ON (user_name) DISTINCT ON (user_name)", "DISTINCT ON is given twice"),
    ("AVAILABLE AT known_at", "DISTINCT ON ()", "expected a column that tells events apart"),
    (
        "EVENT TIME paid_at AVAILABLE AT known_at",
        "STATIC DISTINCT ON (user_name)",
        "has no events that could come twice",
    ),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM payments",
        "AS PUSHED (user_name VARCHAR, paid_at TIMESTAMP, amount DOUBLE)",
        "available-time column 'known_at'",
    ),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM payments",
        "AS PUSHED (user_name VARCHAR, paid_at TIMESTAMP, known_at TIMESTAMP, amount DOUBLE, amount INT)",
        "'amount' is given twice",
    ),
    (
        "AS SELECT user_name, paid_at, known_at, amount FROM paid",
        "AS PUSHED (user_name VARCHAR, amount DOUBLE)",
        "the view has no EVENT TIME",
    ),
];

#[tokio::test]
async fn every_fault_is_named_with_its_place_and_what_would_be_accepted() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    project.check(DEFINITIONS).await.expect("good definitions");
    project.check_faults(DEFINITIONS, &FAULTS).await;
}

/// A view by the hour over a source whose events are known when they happen.
fn hourly(event_time: &str) -> String {
    let usual =
        DEFINITIONS.replace(" AVAILABLE AT known_at", "").replace(", known_at, amount FROM paid", ", amount FROM paid");
    format!(
        "{usual}CREATE FEATURE VIEW hourly ENTITY user_account EVENT TIME hour_at REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, {event_time} AS hour_at, count(*) AS n FROM paid GROUP BY user_name, date_trunc('hour', paid_at);"
    )
}

#[tokio::test]
async fn an_event_time_before_the_events_of_its_row_is_refused_and_their_end_is_not() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let error =
        project.check(&hourly("date_trunc('hour', paid_at)")).await.expect_err("the hour's beginning").to_string();
    for expected in
        ["the event time 'hour_at' may lie before events of paid", "--> definitions.sql:", "max(paid_at)", "^"]
    {
        assert!(error.contains(expected), "{expected}\n{error}");
    }
    for (event_time, ahead) in [("date_trunc('hour', paid_at) + INTERVAL '1 hour'", true), ("max(paid_at)", false)] {
        let checked = project.check(&hourly(event_time)).await.expect(event_time);
        let view = checked.definitions.iter().find_map(|definition| match definition {
            Definition::FeatureView(view) if view.name == "hourly" => Some(view),
            _ => None,
        });
        assert_eq!(view.map(|view| view.ahead), Some(ahead), "{event_time}");
    }
    let windows = "CREATE FEATURE VIEW counted ENTITY user_account EVENT TIME h WINDOWS ('1 day') STEP '1 hour'
        REFRESH EVERY '1 minute' AS SELECT user_name, count(*) AS n FROM
          (SELECT user_name, date_trunc('hour', paid_at) AS h FROM paid) AS by_hour GROUP BY user_name;";
    let error = project.check(&format!("{}{windows}", hourly("max(paid_at)"))).await.expect_err("before").to_string();
    assert!(error.contains("the event time 'h' may lie before events of paid"), "{error}");
}

#[tokio::test]
async fn a_view_of_events_that_are_told_apart_has_their_event_time() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let text = DEFINITIONS.replace("AVAILABLE AT known_at", "DISTINCT ON (user_name)");
    project.check(&text).await.expect("good definitions");
    let text = text.replace("TTL '1 hour'", "EVENT TIME known_at TTL '1 hour'");
    let error = project.check(&text).await.expect_err("another time").to_string();
    assert!(error.contains("a view of its events has their event time, not 'known_at'"), "{error}");
}

#[tokio::test]
async fn all_faults_of_a_file_are_reported_at_once() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let text = DEFINITIONS
        .replace("EVENT TIME paid_at", "EVENT TIME paid_att")
        .replace("KEY (user_name VARCHAR)", "KEY (user_name FLOAT)")
        .replace("TIER interactive", "TEIR interactive");
    let error = project.check(&text).await.expect_err("three faults").to_string();
    for expected in ["paid_att", "cannot be FLOAT", "'TEIR'", "errors in the definitions; nothing was applied"] {
        assert!(error.contains(expected), "{expected}\n{error}");
    }
}

#[tokio::test]
async fn a_fault_points_at_its_word() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let error = project.check(&DEFINITIONS.replace("last_payment.amount, -1", "last_payment.amont, -1")).await;
    let text = error.expect_err("an unknown feature").to_string();
    let expected = "\
error: there is no column 'last_payment.amont'
  --> definitions.sql:11:33
   |
11 |   INPUTS (coalesce(last_payment.amont, -1) AS amount, country = 'NL' AS domestic)
   |                                 ^
   = help: did you mean 'last_payment.amount'?";
    assert!(text.contains(expected), "{text}");
}

#[tokio::test]
async fn applying_twice_changes_nothing_and_a_used_definition_is_not_dropped() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(DEFINITIONS).await.expect("good definitions");
    let checked = project.check(DEFINITIONS).await.expect("the same");
    assert!(springhouse_sql::change_plan::changes(&checked, &state).is_empty());
    let error = project.check("DROP ENTITY user_account;").await.expect_err("in use").to_string();
    assert!(error.contains("still used by feature view last_payment"), "{error}");
    let changed = DEFINITIONS.replace("TTL '1 hour'", "TTL '2 hours'");
    let checked = project.check(&changed).await.expect("a longer TTL");
    let plan = springhouse_sql::change_plan::ChangePlan::new(&checked, &state).to_string();
    assert!(plan.contains("-   TTL '1 hour'") && plan.contains("+   TTL '2 hours'"), "{plan}");
    assert!(plan.contains("reaches contract fraud"), "{plan}");
    assert!(plan.contains("contract fraud (same text, newer dependencies"), "{plan}");
}
