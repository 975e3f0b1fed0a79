//! Rows that lie ahead of their events: what an hour adds up to holds from its end on (rule T3).

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, refresh_all};

const HOURLY: &str = "
CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments.parquet';
CREATE SOURCE paid EVENT TIME paid_at AS SELECT user_name, paid_at, amount FROM payments;
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW hourly ENTITY user_account EVENT TIME ended_at REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, date_trunc('hour', paid_at) + INTERVAL '1 hour' AS ended_at, count(*) AS n
     FROM paid GROUP BY user_name, date_trunc('hour', paid_at);
CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (hourly FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(hourly.n, 0) AS n) OUTPUT (limit FLOAT);";

/// The same of single events, which hold an hour later.
const LATER: &str = "
CREATE FEATURE VIEW later ENTITY user_account EVENT TIME holds_at REFRESH EVERY '1 minute'
  AS SELECT user_name, paid_at + INTERVAL '1 hour' AS holds_at, amount FROM paid;";

#[tokio::test]
async fn an_event_that_holds_later_is_committed_once_it_does_however_often_it_was_read_before() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0)), ("ann", 1_900, 1_900, Some(2.0))]);
    let state = project.apply(&format!("{HOURLY}{LATER}")).await.expect("valid definitions");
    let view = state.live_views().into_iter().find(|view| view.name == "later").expect("defined");
    for (now, rows) in [(2_000, 0), (3_609, 0), (3_610, 1), (5_400, 0), (5_500, 1)] {
        project.clock.set(at(now));
        let refreshed = project.jobs().refresh(&state, view).await.expect("refreshes");
        assert_eq!(refreshed.rows, rows, "at {now}");
    }
}

/// The second of the row's time and its count, of the lookup now.
fn shown(server: &Server) -> Option<(i64, i64)> {
    let answer = server.lookup(&[Some("ann")]);
    let times = answer["hourly@event_time"].as_primitive::<TimestampMicrosecondType>();
    let counts = answer["hourly.n"].as_primitive::<Int64Type>();
    times.is_valid(0).then(|| (times.value(0) / 1_000_000, counts.value(0)))
}

async fn push(server: &Server, seconds: &[i64]) {
    let events: Vec<Event> = seconds.iter().map(|second| ("ann", *second, 0, Some(1.0))).collect();
    server.pushes.push("paid", batch(&events), PushHeader::default()).await.expect("taken");
}

/// Moves what was pushed to object storage, refreshes, and follows.
async fn brought_up(project: &TestProject, state: &CatalogState, server: &Server) {
    server.pushes.flush().await.expect("flushes");
    refresh_all(project, state).await;
    server.features.follow(&()).await.expect("follows");
}

#[tokio::test]
async fn an_hour_holds_from_its_end_on_with_all_that_was_pushed() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(HOURLY).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    push(&server, &[900, 950]).await;
    assert_eq!(shown(&server), None, "the hour is not over");
    brought_up(&project, &state, &server).await;
    assert_eq!(shown(&server), None, "nor is it when its pushes are on object storage");

    project.clock.set(at(3_600));
    brought_up(&project, &state, &server).await;
    assert_eq!(shown(&server), Some((3_600, 3)));
    // One that comes late, and one of the next hour.
    project.clock.set(at(3_700));
    push(&server, &[2_000, 3_650]).await;
    assert_eq!(shown(&server), Some((3_600, 3)), "pushes come by refreshes");
    brought_up(&project, &state, &server).await;
    assert_eq!(shown(&server), Some((3_600, 4)));
    project.clock.set(at(7_200));
    brought_up(&project, &state, &server).await;
    assert_eq!(shown(&server), Some((7_200, 1)));

    let spine = "SELECT 'ann' AS user_name, to_timestamp(s) AT TIME ZONE 'UTC' AS t \
                 FROM (VALUES (1000), (3599), (3600), (7199), (7200)) AS v (s)";
    let contract = state.current_contract("limits").expect("defined");
    for rows in [RowsFrom::Committed, RowsFrom::Sources] {
        let request = TrainingSetRequest {
            spine: SpineSource { from: spine.to_owned(), time: "t".to_owned(), lag: Span::ZERO },
            rows,
            as_of: AsOf::Known,
            with_features: false,
            order: SpineOrder::AsGiven,
        };
        let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
        let batches: Vec<RecordBatch> = set.execute().try_collect().await.expect("runs");
        let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
        assert_eq!(all["n"].as_primitive::<Int64Type>().values(), &[0, 0, 4, 4, 1], "{rows:?}");
    }
}
