//! One bad thing stays one bad thing: events on which a view's query fails, and object storage that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, Int64Type};
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::Signature;
use springhouse_featurestore::object_storage::api::ObjectStoreExt;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{ObjectStore, reasons_of};

use crate::faulty_store::FaultyStore;
use crate::project::{Event, TestProject, at, write_events};
use crate::push::{Server, batch, refresh_all};
use crate::windows::definitions;

/// A view whose query fails on an amount of 0, and a contract over it.
const SHARES: &str = "
CREATE FEATURE VIEW shares ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK_CLAUSE
  AS SELECT user_name, paid_at, QUERY;
CREATE CONTRACT sharing TIER interactive
  REQUEST (user_name VARCHAR)
  FEATURES (shares FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(shares.share, -1) AS share)
  OUTPUT (fraud_probability FLOAT);
";

/// The usual definitions, of a source whose events are known when they happen, and that view.
fn with_shares(lookback: &str, query: &str) -> String {
    let usual = definitions().replace(" AVAILABLE AT known_at", "").replace(", known_at", "");
    usual + &SHARES.replace("LOOKBACK_CLAUSE", lookback).replace("QUERY", query)
}

fn header(sequence: u64) -> PushHeader {
    PushHeader { producer: Some("till".to_owned()), sequence: Some(sequence), watermark: None }
}

/// The share that a view has for a user.
fn share_of(server: &Server, user: &str) -> Option<i64> {
    let users: ArrayRef = Arc::new(StringArray::from(vec![user]));
    let keys = RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
    let plan = server.features.plan("sharing").expect("defined");
    let answer = server.features.lookup_with(&plan, &keys).expect("looks up");
    answer["shares.share"].as_primitive::<Int64Type>().iter().next().flatten()
}

/// What a user has spent within two days.
fn total_of(server: &Server, user: &str) -> f64 {
    server.lookup(&[Some(user)])["spending.total_2d"].as_primitive::<Float64Type>().value(0)
}

#[tokio::test]
async fn an_event_on_which_a_view_fails_is_refused_and_costs_nobody_else_anything() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let text = with_shares("", "100 / CAST(amount AS BIGINT) AS share FROM paid");
    let state = project.apply(&text).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    let poison = batch(&[("ann", 900, 900, Some(5.0)), ("bob", 901, 901, Some(0.0)), ("cid", 902, 902, Some(1.0))]);
    let error = server.pushes.push("paid", poison, header(1)).await.expect_err("refused");
    let text = error.chain();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
    assert!(text.contains("row: 1") && text.contains("view: shares") && text.contains("Divide by zero"), "{text}");
    assert!((total_of(&server, "ann") - 4.0).abs() < 1e-9, "nothing of the batch was taken");
    // Corrected and sent again it is no duplicate.
    let corrected = batch(&[("ann", 900, 900, Some(5.0)), ("bob", 901, 901, Some(20.0))]);
    let ack = server.pushes.push("paid", corrected, header(1)).await.expect("taken");
    assert!(!ack.duplicate && ack.behind.is_empty(), "{ack:?}");
    assert_eq!((share_of(&server, "ann"), share_of(&server, "bob")), (Some(20), Some(5)));
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
}

#[tokio::test]
async fn what_a_view_fails_on_later_is_set_aside_for_it_alone() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let query = "sum(100 / CAST(amount AS BIGINT)) AS share FROM paid GROUP BY user_name, paid_at";
    let state = project.apply(&with_shares("LOOKBACK '1 minute'", query)).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    // Its rows rest on several events: it is not tried before.
    let poison = batch(&[("bob", 900, 900, Some(0.0))]);
    server.pushes.push("paid", poison, header(1)).await.expect("durable, and in the other views");
    server.pushes.push("paid", batch(&[("ann", 990, 990, Some(50.0))]), header(2)).await.expect("taken");
    assert!((total_of(&server, "ann") - 54.0).abs() < 1e-9);
    assert_eq!(share_of(&server, "ann"), Some(2), "what comes after it is not its victim");
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    let view = state.live_views().into_iter().find(|view| view.name == "shares").expect("defined").clone();
    let log = project.jobs().log(&view).state().await.expect("readable");
    assert_eq!(log.set_aside.events, 1);
    let aside = project.jobs().set_aside(&view).await.expect("readable");
    let whys = reasons_of(&aside["paid"]).expect("told");
    assert!(whys[0].reason.contains("Divide by zero"), "{whys:?}");
    // Its cause is in the event: it stays.
    let by = Signature { at: at(2_000), who: "test".to_owned(), why: String::new() };
    let done = project.jobs().retry_set_aside(&state, &view, &by).await.expect("tried");
    assert_eq!((done.counted, done.left), (0, 1));
    drop(server);
    let server = Server::start_on(&project, &project.store, 0).await;
    assert_eq!((share_of(&server, "ann"), share_of(&server, "bob")), (Some(2), None));
    assert!((total_of(&server, "bob")).abs() < 1e-9);
}

#[tokio::test]
async fn a_panic_beside_all_views_refuses_the_pushes_that_it_met_and_the_next_are_taken() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let until_panic = Arc::new(AtomicI64::new(i64::MAX));
    let left = Arc::clone(&until_panic);
    let looks = move || assert!(left.fetch_sub(1, Ordering::SeqCst) != 1, "the catalog is out of its mind");
    let server = Server::start_with(project.folder.path(), project.jobs(), 0, looks).await;
    server.pushes.push("paid", batch(&[("ann", 900, 1_000, Some(1.0))]), header(1)).await.expect("taken");
    // It is looked at when a push is checked, when it is in the log, and when it is made visible.
    until_panic.store(3, Ordering::SeqCst);
    let event = || batch(&[("ann", 901, 1_000, Some(2.0))]);
    let error = server.pushes.push("paid", event(), header(2)).await.expect_err("it panics");
    assert!(error.kind() == ErrorKind::Internal && error.chain().contains("out of its mind"), "{}", error.chain());
    // It is durable, and comes to the views before what follows it.
    server.pushes.push("paid", batch(&[("ann", 902, 1_000, Some(8.0))]), header(3)).await.expect("taken");
    assert!((total_of(&server, "ann") - 15.0).abs() < 1e-9);
    assert!(server.pushes.push("paid", event(), header(2)).await.expect("taken").duplicate);
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    assert!((total_of(&server, "ann") - 15.0).abs() < 1e-9);
}

#[tokio::test]
async fn pushes_are_acknowledged_while_object_storage_stands_still_or_is_away() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let store = FaultyStore::new(Arc::clone(&project.store));
    let server = Server::start_on(&project, &(Arc::clone(&store) as Arc<dyn ObjectStore>), 0).await;
    let soon = Duration::from_secs(20);
    // Whoever follows the store, loads a view anew or flushes waits for it; whoever pushes does not.
    for call in 0..6 {
        store.stops_at(call);
        let features = Arc::clone(&server.features);
        let following = tokio::spawn(async move { features.follow(&()).await });
        let stopped = tokio::time::timeout(Duration::from_millis(300), store.stopped()).await.is_ok();
        let event = ("ann", 900 + i64::try_from(call).expect("small"), 1_000, Some(1.0));
        let pushed = server.pushes.push("paid", batch(&[event]), header(call + 1));
        tokio::time::timeout(soon, pushed).await.expect("at once").expect("taken");
        store.is_whole();
        if stopped {
            store.goes_on();
        }
        tokio::time::timeout(soon, following).await.expect("goes on").expect("no panic").expect("follows");
    }
    store.dies_after(0);
    let pushed = server.pushes.push("paid", batch(&[("ann", 950, 1_000, Some(1.0))]), header(9));
    tokio::time::timeout(soon, pushed).await.expect("at once").expect("taken");
    assert!((total_of(&server, "ann") - 11.0).abs() < 1e-9);
    assert!(server.pushes.flush().await.is_err());
    store.is_whole();
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    assert!((total_of(&server, "ann") - 11.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_catalog_record_that_cannot_be_read_keeps_no_view_from_being_followed() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    let record = project.jobs().catalog().log().path(state.number() + 1);
    project.store.put(&record, "damaged".into()).await.expect("writable");
    for (second, total, heads) in [(2_000, 6.0, false), (3_000, 8.0, true)] {
        let events = [(10, 4.0), (1_500, 2.0), (2_500, 2.0)].map(|(at, amount)| ("ann", at, at, Some(amount)));
        let events: Vec<Event> = events.into_iter().filter(|event| event.1 < second).collect();
        write_events(&project.folder.path().join("payments.parquet"), &events);
        project.clock.set(at(second));
        refresh_all(&project, &state).await;
        let followed = if heads { server.features.follow_heads(&()).await } else { server.features.follow(&()).await };
        let error = followed.expect_err("the catalog cannot be read");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
        assert!((total_of(&server, "ann") - total).abs() < 1e-9, "what was refreshed by {second} is answered");
    }
}

#[tokio::test]
async fn a_source_of_pushes_gains_a_column_and_its_producers_go_on() {
    let clicks = |columns: &str, selected: &str| {
        format!(
            "CREATE ENTITY user_account KEY (user_name VARCHAR);
             CREATE SOURCE clicks EVENT TIME clicked_at AS PUSHED (user_name VARCHAR, clicked_at TIMESTAMP{columns});
             CREATE FEATURE VIEW last_click ENTITY user_account REFRESH EVERY '1 minute' AS SELECT {selected} FROM clicks;"
        )
    };
    let project = TestProject::new(&[]);
    let before = clicks(", amount DOUBLE", "user_name, clicked_at, amount");
    let state = project.apply(&before).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let events = |second: i64| {
        let clicked: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![second * 1_000_000]).with_timezone("UTC"));
        let columns: [(&str, ArrayRef); 3] = [
            ("user_name", Arc::new(StringArray::from(vec!["ann"]))),
            ("clicked_at", clicked),
            ("amount", Arc::new(Float64Array::from(vec![7.0]))),
        ];
        RecordBatch::try_from_iter(columns).expect("three columns")
    };
    {
        let server = Server::start_on(&project, &project.store, 0).await;
        server.pushes.push("clicks", events(900), header(1)).await.expect("taken");
        server.pushes.flush().await.expect("flushes");
    }
    let after = clicks(", amount DOUBLE, page VARCHAR", "user_name, clicked_at, amount, page");
    let state = project.apply(&after).await.expect("valid definitions");
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    // The producer does not know of it yet.
    server.pushes.push("clicks", events(950), header(2)).await.expect("taken");
    let time_is_needed = events(960).project(&[0, 2]).expect("two columns");
    assert!(server.pushes.push("clicks", time_is_needed, header(3)).await.is_err());
    server.pushes.flush().await.expect("flushes");
    let view = state.live_views().into_iter().find(|view| view.name == "last_click" && view.features.len() == 2);
    let log = project.jobs().log(view.expect("the new version")).state().await.expect("readable");
    assert_eq!(log.files.iter().map(|(_, file)| file.rows).sum::<u64>(), 2, "both events, of either width");
}
