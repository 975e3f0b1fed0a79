//! Rules T2 to T7 against an oracle that filters all events: what a refresh and a lookup give online, and what a
//! training set gives offline, over generated histories with late rows, ties, nulls and expiry.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::tier::{DiskTier, MemoryTier, catch_up};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{DEFINITIONS, Event, TestProject, at, write_events};
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
