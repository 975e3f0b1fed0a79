//! Edges: what comes in is of its declared type and zone and of a time that there is, or is refused and named; clocks of
//! producers may differ a little; what a producer said too much is set back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, TimestampMicrosecondArray};
use arrow::array::{ArrayRef, AsArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::push::{EventSink, ProducerChange, PushHeader};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::session::{Session, SessionOptions};
use springhouse_sql::spine::{SpineOrder, SpineSource, read_events};

use crate::project::{DEFINITIONS, TestProject, at};
use crate::push::{Server, batch, refresh_all};
use crate::windows::definitions;

fn utc(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a time")
}

fn header(producer: &str, watermark: Option<Timestamp>) -> PushHeader {
    PushHeader { producer: Some(producer.to_owned()), sequence: None, watermark }
}

fn session(folder: &Path, partitions: usize) -> Session {
    Session::new(&SessionOptions { project: folder.to_owned(), memory_bytes: 64 << 20, partitions }).expect("a session")
}

/// What a query answers of rows `g`, `s`, `d` of a group, a 32-bit and a 64-bit float.
async fn answered(partitions: usize, sql: &str, values: &[Option<f64>]) -> String {
    let session = session(Path::new("."), partitions);
    let groups: ArrayRef = Arc::new(Int64Array::from_iter_values(values.iter().map(|_| 7)));
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    let single = Float32Array::from_iter(values.iter().map(|value| value.map(|value| value as f32)));
    let double: ArrayRef = Arc::new(Float64Array::from_iter(values.iter().copied()));
    let columns = [("g", groups, true), ("s", Arc::new(single) as ArrayRef, true), ("d", double, true)];
    let whole = RecordBatch::try_from_iter_with_nullable(columns).expect("three columns");
    // One row in a batch, so that partitions have some each.
    let rows = (0..values.len()).map(|row| whole.slice(row, 1)).collect::<Vec<_>>();
    session.add_view("t", session.context().read_batches(rows).expect("readable")).expect("added");
    let batches = session.query(sql).await.expect("runs");
    arrow::util::pretty::pretty_format_batches(&batches).expect("printable").to_string()
}

#[tokio::test]
async fn extremes_of_floats_do_not_depend_on_the_order_of_rows() {
    let values = [Some(f64::NAN), Some(2.5), None, Some(-1.0), Some(f64::INFINITY), Some(-f64::NAN), Some(0.0)];
    for sql in [
        "SELECT g, min(s), max(s), min(d), max(d) FROM t GROUP BY g",
        "SELECT min(s), max(s), min(d), max(d) FROM t",
        "SELECT g, min(d) FILTER (WHERE g = 7), max(d) FILTER (WHERE g > 6) FROM t GROUP BY g",
    ] {
        for partitions in [1, 3] {
            let first = answered(partitions, sql, &values).await;
            assert!(first.contains("NaN") && first.contains("-1.0"), "{sql}: {first}");
            let mut turned = values;
            for _ in 0..values.len() {
                turned.rotate_left(1);
                assert_eq!(answered(partitions, sql, &turned).await, first, "{sql}");
                turned.reverse();
                assert_eq!(answered(partitions, sql, &turned).await, first, "{sql}");
            }
        }
    }
    let nans = answered(1, "SELECT min(d) AS least, max(d) AS most FROM t", &[Some(f64::NAN), None]).await;
    assert_eq!(nans.matches("NaN").count(), 2, "{nans}");
    let none = answered(1, "SELECT g, min(d) IS NULL AS a, max(s) IS NULL AS b FROM t GROUP BY g", &[None]).await;
    assert_eq!(none.matches("true").count(), 2, "{none}");
    let frame = "SELECT max(d) OVER (ORDER BY d ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS most FROM t";
    let sliding = answered(1, frame, &[Some(1.0), Some(f64::NAN), Some(2.0)]).await;
    assert_eq!((sliding.matches("NaN").count(), sliding.matches("2.0").count()), (1, 1), "{sliding}");
}

/// Writes users, times of any kind and amounts.
fn write_payments(path: &Path, times: &[(&str, ArrayRef)]) {
    let rows = times[0].1.len();
    let users: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| ["ann", "bob", "cid"][row % 3])));
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter_values((0..rows).map(|_| 1.5)));
    let times = times.iter().map(|(name, times)| (*name, Arc::clone(times), true));
    let columns = times.chain([("user_name", users, true), ("amount", amounts, true)]);
    let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("columns");
    let mut file = ParquetFileWriter::create(path, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
}

fn times(micros: &[i64]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(micros.to_vec()).with_timezone("UTC"))
}

fn local_times(micros: &[i64]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(micros.to_vec()))
}

#[tokio::test]
async fn a_time_that_no_event_may_have_is_named_by_the_refresh_that_reads_it_and_nothing_is_committed() {
    let project = TestProject::new(&[]);
    let grouped = "
        CREATE FEATURE VIEW totals ENTITY user_account EVENT TIME last_paid REFRESH EVERY '1 minute' LOOKBACK '1 day'
          AS SELECT user_name, max(paid_at) AS last_paid, sum(amount) AS total FROM paid GROUP BY user_name;";
    let text = definitions().replace(" AVAILABLE AT known_at", "").replace(", known_at", "") + grouped;
    let path = project.folder.path().join("payments.parquet");
    let known = times(&[5, 5, 5]);
    write_payments(&path, &[("paid_at", times(&[10, 20, 30])), ("known_at", Arc::clone(&known))]);
    let state = project.apply(&text).await.expect("valid definitions");
    project.clock.set(at(1_000));
    // What DuckDB writes for -infinity, and the last microsecond before the year 1.
    for bad in [-i64::MAX, i64::MIN, Timestamp::FIRST.micros() - 1] {
        write_payments(&path, &[("paid_at", times(&[10, bad, 30])), ("known_at", Arc::clone(&known))]);
        for view in state.live_views() {
            let error = project.jobs().refresh(&state, view).await.expect_err("refused");
            let (text, value) = (error.chain(), Timestamp::from_micros(bad).to_string());
            assert!(text.contains("outside of the years 1 to 9999") && text.contains(&value), "{}: {text}", view.name);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert_eq!(project.jobs().log(view).state().await.expect("readable").number, 0);
        }
    }
    write_payments(&path, &[("paid_at", times(&[10, 20, 30])), ("known_at", known)]);
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    assert_ne!(server.lookup(&[Some("bob")])["spending@status"].as_string::<i32>().value(0), "missing");
    // Nor is one taken as a push, or as a producer's watermark.
    let old = RecordBatch::try_from_iter_with_nullable([
        ("user_name", Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef, true),
        ("paid_at", times(&[40, i64::MIN]), true),
        ("amount", Arc::new(Float64Array::from(vec![1.0, 1.0])) as ArrayRef, true),
    ])
    .expect("a batch");
    let error = server.pushes.push("paid", old, PushHeader::default()).await.expect_err("refused").to_string();
    assert!(error.contains("row: 1") && error.contains("value: -infinity"), "{error}");
    let none = batch(&[]);
    let error = server.pushes.push("paid", none, header("till", Some(Timestamp::MAX))).await.expect_err("refused");
    assert!(error.to_string().contains("value: infinity"), "{error}");
}

#[tokio::test]
async fn local_times_in_queries_and_of_available_times_go_by_the_rule_of_local_times() {
    let micros = |text: &str| utc(text).micros();
    // On clocks in Berlin: an hour that never comes, one that comes twice, and one of a summer beyond the tables.
    let shown = [micros("2025-03-30T02:30:00Z"), micros("2025-10-26T02:30:00Z"), micros("2150-07-01T12:00:00Z")];
    let meant = ["2025-03-30T01:30:00Z", "2025-10-26T01:30:00Z", "2150-07-01T10:00:00Z"].map(utc);
    let berlin = "AT TIME ZONE 'Europe/Berlin'";
    let clauses = format!("EVENT TIME paid_at {berlin} AVAILABLE AT known_at {berlin}");
    let by_clause = DEFINITIONS.replace("EVENT TIME paid_at AVAILABLE AT known_at", &clauses);
    let by_query = DEFINITIONS.replace(
        "AS SELECT user_name, paid_at, known_at, amount FROM payments",
        "AS SELECT user_name, paid_at AT TIME ZONE 'Europe/Berlin' AS paid_at, \
         known_at AT TIME ZONE 'Europe/Berlin' AS known_at, amount FROM payments",
    );
    for text in [by_clause, by_query] {
        let project = TestProject::new(&[]);
        let path = project.folder.path().join("payments.parquet");
        write_payments(&path, &[("paid_at", local_times(&shown)), ("known_at", local_times(&shown))]);
        let state = project.apply(&text).await.expect("valid definitions");
        project.clock.set(utc("2151-01-01T00:00:00Z"));
        let view = state.live_views()[0].clone();
        project.jobs().refresh(&state, &view).await.expect("refreshes");
        let session = project.jobs().full_session(&state).await.expect("a session");
        let batches = session.query("SELECT paid_at, known_at FROM paid ORDER BY user_name").await.expect("runs");
        let all = arrow::compute::concat_batches(&batches[0].schema(), &batches).expect("one schema");
        for column in all.columns() {
            let found = column.as_primitive::<TimestampMicrosecondType>().values();
            assert_eq!(found.to_vec(), meant.map(Timestamp::micros), "{text}");
        }
    }
}

#[tokio::test]
async fn the_zone_of_an_available_time_is_checked() {
    let project = TestProject::new(&[]);
    let wrong =
        ("AVAILABLE AT known_at", "AVAILABLE AT known_at AT TIME ZONE 'Berlin'", "there is no time zone 'Berlin'");
    project.check_faults(DEFINITIONS, &[wrong]).await;
    project.check(&DEFINITIONS.replace(wrong.0, &wrong.1.replace("Berlin", "Europe/Berlin"))).await.expect("a zone");
}

const KEYED: &str = "
    CREATE SOURCE seen EVENT TIME seen_at AT TIME ZONE 'Europe/Berlin'
      AS PUSHED (code VARCHAR, seen_at TIMESTAMP, amount DOUBLE);
    CREATE SOURCE told EVENT TIME told_at AS PUSHED (code VARCHAR, told_at TIMESTAMP, pieces INT);
    CREATE ENTITY item KEY (code VARCHAR);
    CREATE FEATURE VIEW last_seen ENTITY item REFRESH EVERY '1 minute' AS SELECT code, seen_at, amount FROM seen;
    CREATE FEATURE VIEW last_told ENTITY item REFRESH EVERY '1 minute' AS SELECT code, told_at, pieces FROM told;
    CREATE CONTRACT limits TIER interactive REQUEST (code VARCHAR NOT NULL, size BIGINT)
      FEATURES (last_seen FRESH WITHIN '1 day' ON STALE SERVE ON MISSING DEFAULT)
      INPUTS (coalesce(last_seen.amount, 0) AS amount) OUTPUT (score FLOAT);";

async fn keyed(now: &str) -> (TestProject, CatalogState, Server) {
    let project = TestProject::new(&[]);
    let state = project.apply(KEYED).await.expect("valid definitions");
    project.clock.set(utc(now));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    (project, state, server)
}

async fn events_of(
    project: &TestProject,
    state: &CatalogState,
    source: &str,
    csv: &str,
) -> Result<RecordBatch, String> {
    std::fs::write(project.folder.path().join("events.csv"), csv).expect("writable");
    let session = project.jobs().full_session(state).await.expect("a session").ordered();
    let source = state.definitions().find_map(|definition| match definition.as_ref() {
        springhouse_featurestore::definition::Definition::Source(found) if found.name == source => Some(found.clone()),
        _ => None,
    });
    let frame = read_events(&session, "events.csv", source.as_ref(), Timestamp::MAX).await.map_err(|e| e.chain())?;
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.map_err(|error| error.to_string())?;
    Ok(arrow::compute::concat_batches(&schema, &batches).expect("one schema"))
}

#[tokio::test]
async fn a_csv_file_is_read_by_the_types_and_zones_that_are_declared() {
    let (project, state, server) = keyed("2025-07-01T18:00:00Z").await;
    let csv = "code,seen_at,amount\n00123,2025-07-01 19:00:00,1\n7,2025-07-01 20:00:00+02:00,2\n";
    let events = events_of(&project, &state, "seen", csv).await.expect("readable");
    assert_eq!(events["code"].as_string::<i32>().value(0), "00123");
    server.pushes.push("seen", events, PushHeader::default()).await.expect("taken");
    let csv = "code,pieces,told_at\n00123,7,2025-07-01 19:00:00\n";
    let error = events_of(&project, &state, "told", csv).await.expect_err("no zone");
    assert!(error.contains("a time without a time zone") && error.contains("2025-07-01 19:00:00"), "{error}");
    for wrong in ["2.75", "abc", "3000000000"] {
        let csv = format!("code,pieces,told_at\nA,{wrong},2025-07-01 17:00:00Z\n");
        let error = events_of(&project, &state, "told", &csv).await.expect_err(wrong);
        assert!(error.contains(wrong), "{error}");
    }
    // The same by a spine: the key is the text that it is, and times without a zone are refused.
    std::fs::write(project.folder.path().join("spine.csv"), "code,size,as_of\n00123,1,2025-07-01T17:59:00Z\n")
        .expect("ok");
    let contract = state.current_contract("limits").expect("defined");
    let request = |from: &str| TrainingSetRequest {
        spine: SpineSource { from: from.to_owned(), time: "as_of".to_owned(), lag: Span::ZERO },
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: true,
        order: SpineOrder::AsGiven,
    };
    server
        .pushes
        .push("seen", batch_of_none(&state), header("till", Some(utc("2025-07-01T18:00:00Z"))))
        .await
        .expect("taken");
    server.pushes.flush().await.expect("flushes");
    let set = project.jobs().training_set(&state, contract, &request("spine.csv")).await.expect("plans");
    let batches: Vec<RecordBatch> = set.execute().try_collect().await.expect("runs");
    let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
    assert_eq!(all["last_seen.amount"].as_primitive::<Float64Type>().value(0).to_string(), "1");
    let time = "TIMESTAMP '2025-07-01 17:59:00' AT TIME ZONE 'UTC' AS as_of";
    for (from, expected) in [
        (format!("SELECT '00123' AS code, 1.7 AS size, {time}"), "expected: BIGINT"),
        (format!("SELECT 123 AS code, 1 AS size, {time}"), "expected: VARCHAR"),
        ("SELECT '00123' AS code, 1 AS size, '2025-07-01 17:59:00' AS as_of".to_owned(), "a time without a time zone"),
    ] {
        let error = match project.jobs().training_set(&state, contract, &request(&from)).await {
            Ok(set) => set.execute().try_collect::<Vec<RecordBatch>>().await.expect_err(expected),
            Err(error) => error,
        };
        assert!(error.chain().contains(expected), "{}", error.chain());
    }
}

fn batch_of_none(state: &CatalogState) -> RecordBatch {
    let view = state.live_views().into_iter().find(|view| view.name == "last_seen").expect("defined");
    let source = state.source(&view.sources[0]).expect("defined");
    RecordBatch::new_empty(springhouse_featurestore::definition::Column::to_schema(source.columns.iter()))
}

fn told(count: ArrayRef, told_at: ArrayRef) -> RecordBatch {
    let codes: ArrayRef = Arc::new(StringArray::from_iter_values((0..count.len()).map(|_| "A")));
    RecordBatch::try_from_iter_with_nullable([
        ("code", codes, true),
        ("told_at", told_at, true),
        ("pieces", count, true),
    ])
    .expect("three columns")
}

#[tokio::test]
async fn a_pushed_value_that_is_not_of_its_columns_type_is_refused_and_not_cast() {
    let (_project, _state, server) = keyed("2025-07-01T18:00:00Z").await;
    let time = times(&[utc("2025-07-01T17:00:00Z").micros()]);
    for (count, told_at, expected) in [
        (Arc::new(Float64Array::from(vec![2.75])) as ArrayRef, Arc::clone(&time), "expected: INT"),
        (Arc::new(Int64Array::from(vec![1 << 40])) as ArrayRef, Arc::clone(&time), "value: 1099511627776"),
        (Arc::new(StringArray::from(vec!["2"])) as ArrayRef, Arc::clone(&time), "expected: INT"),
        (Arc::new(Int64Array::from(vec![2])) as ArrayRef, local_times(&[5]), "times have no zone"),
    ] {
        let pushed = server.pushes.push("told", told(count, told_at), PushHeader::default()).await;
        let error = pushed.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let good = told(Arc::new(Int64Array::from(vec![2])), time);
    server.pushes.push("told", good, PushHeader::default()).await.expect("a narrower integer is the same");
}

#[tokio::test]
async fn of_an_hour_that_comes_twice_a_push_means_the_one_that_is_not_in_the_future() {
    let shown = local_times(&[utc("2025-10-26T02:30:00Z").micros()]);
    let seen = |shown: &ArrayRef| {
        let code: ArrayRef = Arc::new(StringArray::from(vec!["A"]));
        let amount: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        let columns = [("code", code, true), ("seen_at", Arc::clone(shown), true), ("amount", amount, true)];
        RecordBatch::try_from_iter_with_nullable(columns).expect("three columns")
    };
    // In the first of the two hours, and in the second.
    for now in ["2025-10-26T00:30:00Z", "2025-10-26T01:30:00Z"] {
        let (_project, state, server) = keyed(now).await;
        server.pushes.push("seen", seen(&shown), PushHeader::default()).await.expect("taken");
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["A"]));
        let keys = RecordBatch::try_from_iter([("code", keys)]).expect("keys");
        let contract = &state.current_contract("limits").expect("defined").name;
        let plan = server.features.plan(contract).expect("defined");
        let answer = server.features.lookup_with(&plan, &keys).expect("looks up");
        let event = answer["last_seen@event_time"].as_primitive::<TimestampMicrosecondType>().value(0);
        assert_eq!(Timestamp::from_micros(event), utc(now));
    }
}

/// A producer that is not the one that is waited for is known to whoever takes over all the same.
#[tokio::test]
async fn a_producer_that_is_ahead_of_others_is_told_by_a_flush_too() {
    let project = TestProject::new(&[]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    for (producer, second) in [("behind", 500), ("ahead", 600)] {
        server.pushes.push("paid", batch(&[]), header(producer, Some(at(second)))).await.expect("taken");
        server.pushes.flush().await.expect("flushes");
    }
    drop(server);
    let other = tempfile::tempdir().expect("a folder");
    let server = Server::start_in(other.path(), project.jobs(), 0).await;
    let producers = server.pushes.producers("paid").await.expect("known");
    let told: Vec<_> = producers.iter().map(|of| (of.producer.as_str(), of.watermark)).collect();
    assert_eq!(told, [("ahead", Some(at(600))), ("behind", Some(at(500)))]);
}

#[tokio::test]
async fn an_event_of_a_clock_that_is_ahead_counts_from_its_own_time_on() {
    let project = TestProject::new(&[]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    let ahead = batch(&[("ann", 1_003, 0, Some(2.0))]);
    let pushes = Arc::clone(&server.pushes);
    let waiting = tokio::spawn(async move { pushes.push("paid", ahead, header("till", Some(at(1_004)))).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The clock jumps back and comes again.
    project.clock.set(at(900));
    tokio::time::sleep(Duration::from_millis(50)).await;
    project.clock.set(at(1_003));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished(), "the watermark has not come");
    assert_eq!(server.lookup(&[Some("ann")])["spending@status"].as_string::<i32>().value(0), "missing");
    project.clock.set(at(1_004));
    let ack = waiting.await.expect("no panic").expect("taken");
    assert_eq!((ack.rows, ack.watermark), (1, Some(at(1_004))));
    assert_ne!(server.lookup(&[Some("ann")])["spending@status"].as_string::<i32>().value(0), "missing");
    // Beyond the tolerance nobody waits.
    for (events, watermark, expected) in [
        (batch(&[("ann", 1_010, 0, None)]), None, "an event lies in the future"),
        (batch(&[]), Some(at(1_010)), "a watermark lies in the future"),
    ] {
        let error =
            server.pushes.push("paid", events, header("till", watermark)).await.expect_err(expected).to_string();
        let named = error.contains(expected)
            && error.contains(&at(1_010).to_string())
            && error.contains(&at(1_004).to_string());
        assert!(named, "{error}");
    }
}

#[tokio::test]
async fn a_watermark_is_set_back_and_a_producer_retired_through_commits_and_restarts() {
    let project = TestProject::new(&[]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    let mark = |server: &Server| {
        let answer = server.lookup(&[Some("ann")]);
        answer["spending@as_of"].as_primitive::<TimestampMicrosecondType>().value(0) / 1_000_000
    };
    server
        .pushes
        .push("paid", batch(&[("ann", 900, 0, Some(2.0))]), header("a", Some(at(1_000))))
        .await
        .expect("taken");
    project.clock.set(at(2_000));
    server.pushes.push("paid", batch(&[]), header("a", Some(at(2_000)))).await.expect("taken");
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    assert_eq!(mark(&server), 2_000);
    let by = |why: &str| Signature { at: at(2_000), who: "dora".to_owned(), why: why.to_owned() };
    let back = || ProducerChange::Watermark(at(1_500));
    let changed = server.pushes.change_producer("paid", "a", back(), by("said too much")).await.expect("earlier");
    assert_eq!((changed.watermark, changed.heard), (Some(at(1_500)), Some(at(2_000))));
    server.features.follow(&()).await.expect("follows");
    assert_eq!(mark(&server), 1_500);
    let later = ProducerChange::Watermark(at(1_501));
    assert!(server.pushes.change_producer("paid", "a", later, by("later")).await.is_err(), "it is no further");
    server
        .pushes
        .change_producer("paid", "a", back(), by("said too much"))
        .await
        .expect("the same once more, as after an error");
    // Another producer is behind, and gone.
    server.pushes.push("paid", batch(&[]), header("b", Some(at(1_600)))).await.expect("taken");
    server.pushes.push("paid", batch(&[]), header("a", Some(at(1_900)))).await.expect("taken");
    assert_eq!(mark(&server), 1_600);
    server.pushes.change_producer("paid", "b", ProducerChange::Retire, by("gone")).await.expect("known");
    assert_eq!(mark(&server), 1_900);
    drop(server);
    let server = Server::start_on(&project, &project.store, 0).await;
    assert_eq!(mark(&server), 1_900);
    let producers = server.pushes.producers("paid").await.expect("known");
    let told: Vec<_> = producers.iter().map(|of| (of.producer.as_str(), of.watermark, of.retired.is_some())).collect();
    assert_eq!(told, [("a", Some(at(1_900)), false), ("b", None, true)]);
    // Who wanted it, and why, is in the log, on object storage, and in the commits that set views back.
    let signed: Vec<_> = producers.iter().map(|of| of.corrected.clone().map(|of| (of.change, of.by))).collect();
    assert_eq!(signed, [Some((back(), by("said too much"))), Some((ProducerChange::Retire, by("gone")))]);
    let flushed = project.jobs().pushed().state().await.expect("readable");
    for producer in &producers {
        assert_eq!(flushed.producers["paid"][&producer.producer].corrected.last(), producer.corrected.as_ref());
    }
    let view = state.live_views().into_iter().find(|view| view.name == "spending").expect("defined");
    let commits = project.jobs().log(view).commits_after(0).await.expect("readable");
    let corrected: Vec<_> = commits.iter().filter_map(|(_, commit)| commit.signed.clone()).collect();
    assert_eq!(corrected, [by("said too much")]);
    refresh_all(&project, &state).await;
    // Without the last of them nobody says how far the source is: there is its history to wait for, and nothing else.
    server.pushes.change_producer("paid", "a", ProducerChange::Retire, by("gone too")).await.expect("known");
    assert!(project.jobs().pushed().state().await.expect("readable").watermarks.is_empty());
    project.clock.set(at(3_000));
    refresh_all(&project, &state).await;
    server.features.follow(&()).await.expect("follows");
    assert_eq!(mark(&server), 3_000);
}
