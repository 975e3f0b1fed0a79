//! Events of one time (rule T5): the later write is the later one in windows too, whichever way it came and wherever it is read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{
    BackfillAsked, DataFile, ReferenceTier, ViewCommit, ViewCommitKind, ViewLog, WRITE_POSITION, WRITE_WITHIN, catch_up,
};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource, SpineSubset};

use crate::project::{Event, TestProject, at, write_events};
use crate::push::{Server, batch, closed, heartbeat, refresh_all};
use crate::seeded::Seeded;
use crate::windows::{USERS, by_values, check, definitions, number};

/// The second at which all events of a test come to be known.
const NOW: i64 = 10_000;

/// The second at which training sets are asked for; nothing comes after `NOW`.
const LATER: i64 = 10_100;

/// The events of the view in a query of their own, which does not name their places.
const WITHIN: &str =
    "FROM (SELECT user_name, paid_at, known_at, amount FROM paid WHERE coalesce(amount, 0) > -1000) AS p JOIN";

/// Events of few users at few times.
fn crowded(random: &mut Seeded, most: u64) -> Vec<Event> {
    (0..=random.below(most))
        .map(|_| {
            let amount = f64::from(i32::try_from(random.below(40)).expect("small") - 20) / 2.0;
            let amount = (random.below(6) > 0).then_some(amount);
            (random.pick(&USERS[..2]), random.pick(&[9_000, 9_030, 9_960]), NOW, amount)
        })
        .collect()
}

fn check_lookups(server: &Server, events: &[Event], now: i64, place: &str) {
    let answer = server.lookup(&USERS.map(Some));
    for (row, user) in USERS.into_iter().enumerate() {
        check(&answer, row, events, Some(user), now, now, &format!("{place}, {user}"));
    }
}

/// Stops a server and starts it again, maybe without its disk tier.
async fn started_again(project: &TestProject, server: Server, without_disk_tier: bool) -> Server {
    drop(server);
    let (disk, log) = (project.folder.path().join("disk"), project.folder.path().join("log"));
    closed(&disk).await;
    closed(&log).await;
    if without_disk_tier {
        std::fs::remove_dir_all(&disk).expect("removable");
    }
    Server::start_on(project, &project.store, 1 << 20).await
}

/// A training set as of `LATER`, made both ways; and the audit.
async fn check_offline(project: &TestProject, state: &CatalogState, events: &[Event], place: &str) {
    let asked: Vec<Event> = USERS.iter().map(|user| (*user, LATER, 0, None)).collect();
    write_events(&project.folder.path().join("spine.parquet"), &asked);
    let spine = SpineSource { from: "spine.parquet".to_owned(), time: "paid_at".to_owned(), lag: Span::ZERO };
    let contract = state.current_contract("limits").expect("defined");
    for rows in [RowsFrom::Committed, RowsFrom::Sources] {
        let all = training_set(project, state, spine.clone(), rows).await;
        for (row, user) in USERS.into_iter().enumerate() {
            check(&all, row, events, Some(user), LATER, LATER, &format!("{place}, {rows:?}, {user}"));
        }
    }
    let report = project.jobs().audit(state, contract, (&spine, SpineSubset::Whole), &()).await.expect("audits");
    assert_eq!(report.mismatches, 0, "{place}: {report}");
}

async fn training_set(project: &TestProject, state: &CatalogState, spine: SpineSource, rows: RowsFrom) -> RecordBatch {
    let contract = state.current_contract("limits").expect("defined");
    let request =
        TrainingSetRequest { spine, rows, as_of: AsOf::Known, with_features: true, order: SpineOrder::AsGiven };
    let set = project.jobs().training_set(state, contract, &request).await.expect("plans");
    let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
    concat_batches(set.schema(), &batches).expect("one schema")
}

#[tokio::test]
async fn of_pushes_of_one_time_the_later_is_the_later_in_windows_on_every_path() {
    let mut random = Seeded::new(83);
    for case in 0..10 {
        // Known before pushes come: a backfill reads history anew, and so after them.
        let mut events = crowded(&mut random, 4);
        for event in &mut events {
            event.2 = NOW - 1;
        }
        let project = TestProject::new(&events);
        by_values(&mut events, |event| event.3);
        let from = if case % 2 == 0 { "FROM paid JOIN" } else { WITHIN };
        let text = definitions().replace("FROM paid JOIN", from);
        let state = project.apply(&text).await.expect("valid definitions");
        project.clock.set(at(NOW));
        refresh_all(&project, &state).await;
        let mut server = Server::start_on(&project, &project.store, if case % 2 == 0 { 0 } else { 1 << 20 }).await;
        for round in 0..9 {
            let pushed = crowded(&mut random, 5);
            server.pushes.push("paid", batch(&pushed), PushHeader::default()).await.expect("taken");
            events.extend(pushed);
            let place = format!("case {case}, round {round}");
            check_lookups(&server, &events, NOW, &place);
            match random.below(5) {
                0 | 1 => {
                    server.pushes.flush().await.expect("flushes");
                    server.features.follow(&()).await.expect("follows");
                }
                2 => server = started_again(&project, server, false).await,
                3 => server = started_again(&project, server, true).await,
                _ => refresh_all(&project, &state).await,
            }
            check_lookups(&server, &events, NOW, &format!("{place}, afterwards"));
        }
        project.clock.set(at(LATER));
        heartbeat(&server, LATER).await;
        server.pushes.flush().await.expect("flushes");
        refresh_all(&project, &state).await;
        check_offline(&project, &state, &events, &format!("case {case}")).await;
        for view in state.live_views() {
            project.jobs().compact(view).await.expect("compacts");
        }
        check_offline(&project, &state, &events, &format!("case {case}, compacted")).await;
        server = started_again(&project, server, true).await;
        check_lookups(&server, &events, LATER, &format!("case {case}, compacted and loaded anew"));
        for view in state.live_views() {
            let all = BackfillAsked { from: None, until: None, every: Span::from_secs(500) };
            project.jobs().backfill(&state, view, all, &()).await.expect("backfills");
        }
        check_offline(&project, &state, &events, &format!("case {case}, backfilled")).await;
        server.features.follow(&()).await.expect("follows");
        check_lookups(&server, &events, LATER, &format!("case {case}, backfilled"));
        let (tier, _) = server.features.tier();
        let checked = project.jobs().check(&state, Some(tier.as_ref()), true).await.expect("checks");
        assert!(checked.iter().all(|of| of.wrong.is_empty()), "case {case}: {checked:?}");
    }
}

const TAPS: &str = "
CREATE EXTERNAL TABLE taps STORED AS PARQUET LOCATION 'taps/';
CREATE SOURCE tapped EVENT TIME tapped_at AS SELECT user_name, tapped_at, mark FROM taps;
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW turns ENTITY user_account WINDOWS ('2 hours') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, first_value(mark) AS opening, last_value(mark) AS latest, array_agg(mark LIMIT 4) AS marks
     FROM tapped GROUP BY user_name;
CREATE FEATURE VIEW counts ENTITY user_account WINDOWS ('2 hours') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS n, sum(mark) AS total, max(mark) AS most, approx_top_k(mark, 2) AS usual
     FROM tapped GROUP BY user_name;
CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (turns FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT,
            counts FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(turns.latest_2h, 0) AS latest, coalesce(counts.n_2h, 0) AS n) OUTPUT (limit FLOAT);";

/// The second of all taps.
const TAPPED: i64 = 9_000;

/// Writes a file of the history of taps: Ann's, of one time.
fn write_taps(project: &Path, name: &str, marks: &[i64]) {
    let times = std::iter::repeat_n(TAPPED * 1_000_000, marks.len());
    let columns: [(&str, ArrayRef); 3] = [
        ("user_name", Arc::new(StringArray::from_iter_values(marks.iter().map(|_| "ann")))),
        ("tapped_at", Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))),
        ("mark", Arc::new(Int64Array::from(marks.to_vec()))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("three columns");
    std::fs::create_dir_all(project.join("taps")).expect("writable");
    let path = project.join("taps").join(name);
    let mut file = ParquetFileWriter::create(&path, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
}

fn view_of(state: &CatalogState, name: &str) -> FeatureView {
    state.live_views().into_iter().find(|view| view.name == name).expect("defined").clone()
}

/// Ann's row of `turns`, of an answer or of a training set.
fn is_in_turn(answer: &RecordBatch, marks: &[i64], place: &str) {
    let value = |name: &str| answer[name].as_primitive::<Int64Type>().value(0);
    assert_eq!(Some(&value("turns.opening_2h")), marks.first(), "{place}");
    assert_eq!(Some(&value("turns.latest_2h")), marks.last(), "{place}");
    let listed = answer["turns.marks_2h"].as_list::<i32>().value(0);
    assert_eq!(listed.as_primitive::<Int64Type>().values(), &marks[marks.len().saturating_sub(4)..], "{place}");
    assert_eq!(value("counts.n_2h"), number(marks.len() as u64), "{place}");
}

/// What a tier that is loaded anew and a training set of committed rows say of Ann at a second.
async fn check_turns(project: &TestProject, state: &CatalogState, marks: &[i64], now: i64, place: &str) {
    let contract = state.current_contract("limits").expect("defined");
    let (tier, views) = (ReferenceTier::default(), [view_of(state, "turns"), view_of(state, "counts")]);
    for view in &views {
        catch_up(&tier, &project.jobs().log(view), view, &()).await.expect("loads");
    }
    let plan = LookupPlan::new(contract, &views).expect("its views");
    let keys: Vec<ArrayRef> = vec![Arc::new(StringArray::from(vec!["ann"]))];
    is_in_turn(&plan.lookup(&tier, &keys, at(now)).expect("looks up"), marks, &format!("{place}, online"));
    let from = format!("SELECT 'ann' AS user_name, TIMESTAMP '{}' AT TIME ZONE 'UTC' AS asked_at", at(now));
    let spine = SpineSource { from, time: "asked_at".to_owned(), lag: Span::ZERO };
    let all = training_set(project, state, spine, RowsFrom::Committed).await;
    is_in_turn(&all, marks, &format!("{place}, offline"));
}

#[tokio::test]
async fn of_events_of_one_time_in_several_files_those_of_the_later_commit_are_the_later() {
    let project = TestProject::new(&[]);
    let mut marks = vec![7_i64];
    write_taps(project.folder.path(), "0.parquet", &marks);
    let state = project.apply(TAPS).await.expect("valid definitions");
    for (file, mark) in (1..).zip([-3, 100, 5, 5, -80, 42, 0, 1, 99, -1]) {
        project.clock.set(at(NOW + file));
        refresh_all(&project, &state).await;
        check_turns(&project, &state, &marks, NOW + file, &format!("{file} files")).await;
        write_taps(project.folder.path(), &format!("{file}.parquet"), &[mark]);
        marks.push(mark);
    }
    project.clock.set(at(LATER));
    refresh_all(&project, &state).await;
    check_turns(&project, &state, &marks, LATER, "all files").await;
    for view in state.live_views() {
        let done = project.jobs().compact(view).await.expect("compacts");
        assert!(done.merged >= 8, "{done:?}");
    }
    check_turns(&project, &state, &marks, LATER, "merged").await;
    // Those that one refresh reads are in the order of their values.
    write_taps(project.folder.path(), "more.parquet", &[6, -6]);
    project.clock.set(at(LATER + 1));
    refresh_all(&project, &state).await;
    marks.extend([-6, 6]);
    check_turns(&project, &state, &marks, LATER + 1, "two of one file").await;
}

/// The data files of a view, with what they hold.
async fn data_of(log: &ViewLog) -> Vec<(DataFile, RecordBatch)> {
    let mut data = Vec::new();
    for (_, file) in log.state().await.expect("readable").files {
        let batches: Vec<_> = log.read(&file).await.expect("there").try_collect().await.expect("readable");
        data.push((file, concat_batches(&batches[0].schema(), &batches).expect("one schema")));
    }
    data
}

/// The columns that tell a row's place in the order of writes.
const PLACES: [&str; 2] = [WRITE_POSITION, WRITE_WITHIN];

fn has_places(rows: &RecordBatch) -> bool {
    PLACES.iter().any(|name| rows.column_by_name(name).is_some())
}

#[tokio::test]
async fn only_views_whose_aggregates_go_by_the_order_carry_it() {
    let project = TestProject::new(&[]);
    write_taps(project.folder.path(), "0.parquet", &[7, 8]);
    let state = project.apply(TAPS).await.expect("valid definitions");
    project.clock.set(at(NOW));
    refresh_all(&project, &state).await;
    for (name, carries) in [("turns", true), ("counts", false)] {
        let data = data_of(&project.jobs().log(&view_of(&state, name))).await;
        assert!(!data.is_empty() && data.iter().all(|(_, rows)| has_places(rows) == carries), "{name}: {data:?}");
    }
}

/// Puts files without places in the stead of a view's files, as they were written before places were kept.
async fn as_of_before(log: &ViewLog, view: &FeatureView) {
    let (mut files, mut replaced) = (Vec::new(), Vec::new());
    for (index, (file, rows)) in data_of(log).await.into_iter().enumerate() {
        let is_place = |column: &usize| PLACES.contains(&rows.schema_ref().field(*column).name().as_str());
        let kept: Vec<usize> = (0..rows.num_columns()).filter(|column| !is_place(column)).collect();
        let rows = rows.project(&kept).expect("its columns");
        let mut writer = log.write_columns(view, &format!("before-{index}"), rows.schema()).expect("begins");
        writer.write(&rows).await.expect("writes");
        let written = writer.finish().await.expect("finishes");
        assert_eq!((written.rows, written.fingerprint), (file.rows, file.fingerprint), "the place is no part of a row");
        files.push(written);
        replaced.push(file.path);
    }
    let mut state = log.state().await.expect("readable");
    let watermark = state.watermark.expect("refreshed");
    let commit = ViewCommit {
        read_until: state.read_until,
        replaced,
        files,
        ..ViewCommit::new(watermark, ViewCommitKind::Compact, watermark)
    };
    log.commit(&mut state, commit).await.expect("commits");
}

#[tokio::test]
async fn files_of_before_places_were_kept_are_read_and_what_comes_later_is_the_later() {
    let project = TestProject::new(&[]);
    write_taps(project.folder.path(), "0.parquet", &[9]);
    let state = project.apply(TAPS).await.expect("valid definitions");
    for (file, mark) in (1..).zip([4, 12, 3]) {
        project.clock.set(at(NOW + file));
        refresh_all(&project, &state).await;
        write_taps(project.folder.path(), &format!("{file}.parquet"), &[mark]);
    }
    let view = view_of(&state, "turns");
    as_of_before(&project.jobs().log(&view), &view).await;
    // The values of those of before decide, and 3 has come since.
    let mut marks = vec![4, 9, 12, 3];
    project.clock.set(at(LATER));
    refresh_all(&project, &state).await;
    check_turns(&project, &state, &marks, LATER, "some of before").await;
    for (file, mark) in (4..).zip([5, -7, 20, 1, 2, 8]) {
        write_taps(project.folder.path(), &format!("{file}.parquet"), &[mark]);
        project.clock.set(at(LATER + file));
        refresh_all(&project, &state).await;
        marks.push(mark);
    }
    assert!(project.jobs().compact(&view).await.expect("compacts").merged >= 8);
    check_turns(&project, &state, &marks, LATER + 9, "merged with those of before").await;
    let checked = project.jobs().check(&state, None, true).await.expect("checks");
    assert!(checked.iter().all(|of| of.wrong.is_empty()), "{checked:?}");
}
