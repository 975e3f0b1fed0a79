//! Rules T2 to T7 against an oracle that filters all events: what a refresh and a lookup give online, and what a
//! training set gives offline, over generated histories with late rows, ties, nulls and expiry.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{DiskTier, MemoryTier, catch_up};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource, SpineSubset};

use crate::project::{DEFINITIONS, Event, TestProject, at, write_events};
use crate::push::Server;
use crate::seeded::Seeded;

const USERS: [&str; 4] = ["ann", "bob", "cid", "nobody"];

/// The view's TTL, the contract's MAX AGE and FRESH WITHIN, in seconds.
const TTL: i64 = 3600;
const MAX_AGE: i64 = 1800;
const FRESH: i64 = 120;

fn history(random: &mut Seeded) -> Vec<Event> {
    (0..random.below(60))
        .map(|_| {
            let event = i64::try_from(random.below(6000)).expect("small");
            let late = if random.below(3) == 0 { random.below(3000) } else { 0 };
            let amount = if random.below(8) == 0 {
                None
            } else {
                Some(f64::from(u32::try_from(random.below(50)).expect("small")))
            };
            (random.pick(&USERS[..3]), event, event + i64::try_from(late).expect("small"), amount)
        })
        .collect()
}

/// What holds for a user as of `known`, asked at `now`: event second and amount. Of rows with equal times the greatest
/// amount holds, null least.
fn oracle(events: &[Event], user: &str, known: i64, now: i64) -> Option<(i64, Option<f64>)> {
    let row = events
        .iter()
        .filter(|(of, event, available, _)| *of == user && *event <= known && *available <= known)
        .max_by(|a, b| (a.1, a.2).cmp(&(b.1, b.2)).then(a.3.partial_cmp(&b.3).expect("no NaN")))?;
    (now - row.1 <= TTL).then_some((row.1, row.3))
}

fn expected_status(row: Option<(i64, Option<f64>)>, now: i64, watermark: i64) -> &'static str {
    match row {
        None => "missing",
        Some((event, _)) if now - event > MAX_AGE => "expired",
        Some(_) if now - watermark > FRESH => "stale",
        Some(_) => "fresh",
    }
}

#[tokio::test]
async fn online_values_are_those_of_the_oracle_at_every_refresh_and_between() {
    let mut random = Seeded::new(11);
    for case in 0..25 {
        let events = history(&mut random);
        let project = TestProject::new(&events);
        let state = project.apply(DEFINITIONS).await.expect("valid definitions");
        let view = state.live_views()[0].clone();
        let contract = state.current_contract("fraud").expect("defined");
        let plan = LookupPlan::new(contract, std::slice::from_ref(&view)).expect("its view");
        let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
        let tier = MemoryTier::new(disk, if case % 2 == 0 { 1 << 20 } else { 0 });
        let keys: Vec<ArrayRef> = vec![Arc::new(StringArray::from(
            USERS.map(Some).into_iter().chain([None, Some("ann")]).collect::<Vec<_>>(),
        ))];
        let mut watermark = 0;
        while watermark < 9000 {
            watermark += 1 + i64::try_from(random.below(1500)).expect("small");
            project.clock.set(at(watermark));
            project.jobs().refresh(&state, &view).await.expect("refreshes");
            catch_up(&tier, &project.jobs().log(&view), &view, &()).await.expect("loads");
            for later in [0, FRESH, FRESH + 1, 2000] {
                let now = watermark + later;
                let answer = plan.lookup(&tier, &keys, at(now)).expect("looks up");
                let amounts = answer["last_payment.amount"].as_primitive::<Float64Type>();
                let statuses = answer["last_payment@status"].as_string::<i32>();
                let times = answer["last_payment@event_time"].as_primitive::<TimestampMicrosecondType>();
                for (row, user) in USERS.iter().map(|user| Some(*user)).chain([None, Some("ann")]).enumerate() {
                    let expected = user.and_then(|user| oracle(&events, user, watermark, now));
                    let place = format!("case {case}, {user:?} at {now}, watermark {watermark}");
                    assert_eq!(statuses.value(row), expected_status(expected, now, watermark), "{place}");
                    assert_eq!(
                        amounts.is_valid(row).then(|| amounts.value(row)),
                        expected.and_then(|row| row.1),
                        "{place}"
                    );
                    assert_eq!(
                        times.is_valid(row).then(|| times.value(row)),
                        expected.map(|row| row.0 * 1_000_000),
                        "{place}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn training_sets_are_those_of_the_oracle_from_commits_and_from_sources() {
    let mut random = Seeded::new(23);
    for case in 0..25 {
        let events = history(&mut random);
        let project = TestProject::new(&events);
        let spine: Vec<Event> = (0..40)
            .map(|_| (random.pick(&USERS), i64::try_from(random.below(10_000)).expect("small"), 0, None))
            .collect();
        write_events(&project.folder.path().join("spine.parquet"), &spine);
        let table = "CREATE EXTERNAL TABLE spine STORED AS PARQUET LOCATION 'spine.parquet';";
        let state = project.apply(&format!("{DEFINITIONS}{table}")).await.expect("valid definitions");
        let view = state.live_views()[0].clone();
        for second in [2000, 2001, 5000, 10_000] {
            project.clock.set(at(second));
            project.jobs().refresh(&state, &view).await.expect("refreshes");
        }
        for rows in [RowsFrom::Committed, RowsFrom::Sources] {
            let request = TrainingSetRequest {
                spine: SpineSource {
                    from: "SELECT user_name, 'NL' AS country, paid_at AS as_of FROM spine".to_owned(),
                    time: "as_of".to_owned(),
                    lag: Span::ZERO,
                },
                rows,
                as_of: AsOf::Known,
                with_features: true,
                order: SpineOrder::AsGiven,
            };
            let contract = state.current_contract("fraud").expect("defined");
            let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
            let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
            let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
            assert_eq!(all.num_rows(), spine.len());
            let (amounts, inputs) =
                (all["last_payment.amount"].as_primitive::<Float64Type>(), all["amount"].as_primitive::<Float64Type>());
            let statuses = all["last_payment@status"].as_string::<i32>();
            for (row, (user, now, ..)) in spine.iter().enumerate() {
                let expected = oracle(&events, user, *now, *now);
                let place = format!("case {case}, {rows:?}, {user} at {now}");
                assert_eq!(
                    amounts.is_valid(row).then(|| amounts.value(row)),
                    expected.and_then(|row| row.1),
                    "{place}"
                );
                let status = expected_status(expected, *now, *now);
                assert_eq!(statuses.value(row), status, "{place}");
                let input = expected.filter(|_| status == "fresh").and_then(|row| row.1).unwrap_or(-1.0);
                assert_eq!(inputs.value(row).to_bits(), input.to_bits(), "{place}");
            }
        }
    }
}

/// Events of a source that writes what clocks in New York showed, around both changes of 2013.
const LOCAL: &str = "
CREATE SOURCE paid EVENT TIME paid_at AT TIME ZONE 'America/New_York' AS SELECT * FROM (VALUES
  ('ann', TIMESTAMP '2013-03-10 01:59:30'), ('ann', TIMESTAMP '2013-03-10 03:00:30'),
  ('bob', TIMESTAMP '2013-11-03 00:59:30'), ('bob', TIMESTAMP '2013-11-03 01:30:00'),
  ('cid', TIMESTAMP '2013-03-10 02:30:00')) AS shown (user_name, paid_at);
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW spending ENTITY user_account WINDOWS ('90 seconds') STEP '30 seconds' REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS payments FROM paid GROUP BY user_name;
CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (spending FRESH WITHIN '1 minute' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(spending.payments_90s, -1) AS payments) OUTPUT (limit FLOAT);";

/// Users, the times as of which they are asked for, and their payments in the 90 seconds before; -1 for none ever.
type Asked<'a> = &'a [(&'a str, &'a str, i64)];

/// Compares a training set with what is expected, and online with offline.
async fn check_local(project: &TestProject, state: &CatalogState, expected: Asked<'_>) {
    let row = |(user, at, _): &(&str, &str, i64)| format!("('{user}', TIMESTAMP '{at}' AT TIME ZONE 'UTC')");
    let rows: Vec<String> = expected.iter().map(row).collect();
    let from = format!("SELECT * FROM (VALUES {}) AS asked (user_name, asked_at)", rows.join(", "));
    let spine = SpineSource { from, time: "asked_at".to_owned(), lag: Span::ZERO };
    let contract = state.current_contract("limits").expect("defined");
    let request = TrainingSetRequest {
        spine: spine.clone(),
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: false,
        order: SpineOrder::AsGiven,
    };
    let set = project.jobs().training_set(state, contract, &request).await.expect("plans");
    let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
    let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
    let payments = all["payments"].as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(payments, expected.iter().map(|(.., payments)| *payments).collect::<Vec<_>>());
    let report = project.jobs().audit(state, contract, (&spine, SpineSubset::Whole), &()).await.expect("audits");
    assert_eq!((report.rows, report.mismatches), (expected.len() as u64, 0), "{report}");
}

#[tokio::test]
async fn local_times_are_told_apart_across_the_changes_of_their_zone() {
    let project = TestProject::new(&[]);
    let state = project.apply(LOCAL).await.expect("valid definitions");
    project.clock.set(at(1_388_534_400));
    project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    // A minute apart, though the clocks show an hour more; the hour that comes twice is the second; the one that never
    // comes is counted on. DuckDB's timezone() gives the same times.
    let refreshed = [
        ("ann", "2013-03-10T07:00:45Z", 2),
        ("bob", "2013-11-03T04:59:30Z", 1),
        ("bob", "2013-11-03T05:30:00Z", 0),
        ("bob", "2013-11-03T06:30:00Z", 1),
        ("cid", "2013-03-10T07:29:59Z", -1),
        ("cid", "2013-03-10T07:30:00Z", 1),
    ];
    check_local(&project, &state, &refreshed).await;
    // Pushed, the same clocks mean the same times: half past one, and the hour that never came.
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    let users: ArrayRef = Arc::new(StringArray::from(vec!["dan", "dan"]));
    let shown: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1_383_442_200_000_000, 1_362_882_600_000_000]));
    let events = RecordBatch::try_from_iter([("user_name", users), ("paid_at", shown)]).expect("two columns");
    server.pushes.push("paid", events, PushHeader::default()).await.expect("taken");
    server.pushes.flush().await.expect("flushes");
    let pushed =
        [("dan", "2013-03-10T07:30:00Z", 1), ("dan", "2013-11-03T05:30:00Z", 0), ("dan", "2013-11-03T06:30:00Z", 1)];
    check_local(&project, &state, &pushed).await;
}
