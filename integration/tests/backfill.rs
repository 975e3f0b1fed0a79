//! Backfills, events that are too late, and history that is not what it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{BackfillAsked, DiskTier, ObjectStore, catch_up};
use springhouse_featurestore::time::{Span, Timestamp};

use crate::crash::DyingStore;
use crate::project::{DEFINITIONS, Event, TestProject, at, write_events};
use crate::push::{Server, batch, refresh_all};
use crate::seeded::Seeded;
use crate::windows::{USERS, number};

/// A view of rows and one of windows over the same events.
pub fn definitions() -> String {
    format!(
        "{DEFINITIONS}
        CREATE FEATURE VIEW spent ENTITY user_account WINDOWS ('1 hour') STEP '1 minute' REFRESH EVERY '1 minute'
          AS SELECT user_name, sum(amount) AS total FROM paid GROUP BY user_name;"
    )
}

fn write(project: &TestProject, events: &[Event]) {
    write_events(&project.folder.path().join("payments.parquet"), events);
}

pub fn asked(from: Option<i64>, until: Option<i64>, every: i64) -> BackfillAsked {
    BackfillAsked { from: from.map(at), until: until.map(at), every: Span::from_secs(every) }
}

/// An event as a view's committed rows have it: user, times, amount in cents.
pub type Row = (String, i64, i64, Option<i64>);

pub fn rows_of(events: &[Event]) -> Vec<Row> {
    let cents = |amount: f64| format!("{:.0}", amount * 100.0).parse().expect("a whole number");
    let mut rows: Vec<Row> =
        events.iter().map(|event| (event.0.to_owned(), event.1, event.2, event.3.map(cents))).collect();
    rows.sort();
    rows
}

/// The rows that a view has committed.
pub async fn committed(project: &TestProject, view: &FeatureView) -> Vec<Row> {
    let log = project.jobs().log(view);
    let mut rows = Vec::new();
    for (_, file) in log.state().await.expect("readable").files {
        let batches: Vec<_> = log.read(&file).await.expect("there").try_collect().await.expect("readable");
        assert_eq!(batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>(), file.rows);
        for batch in batches {
            let times = |column: usize| batch.column(column).as_primitive::<TimestampMicrosecondType>();
            let amounts = batch.column(1).as_primitive::<Float64Type>();
            for row in 0..batch.num_rows() {
                let user = batch.column(0).as_string::<i32>().value(row).to_owned();
                let cents = |amount: f64| format!("{:.0}", amount * 100.0).parse().expect("a whole number");
                let amount = amounts.is_valid(row).then(|| cents(amounts.value(row)));
                let second = |column: usize| times(column).value(row) / 1_000_000;
                rows.push((user, second(2), second(3), amount));
            }
        }
    }
    rows.sort();
    rows
}

/// Events at different seconds, known up to a while later.
fn events(random: &mut Seeded, most: u64, until: i64) -> Vec<Event> {
    let mut seconds = BTreeSet::new();
    (0..most)
        .filter_map(|_| {
            let event = number(random.below(until.cast_unsigned()));
            let known = event + random.pick(&[0, 0, 50, 5_000]);
            let amount = (random.below(8) > 0).then(|| f64::from(i32::try_from(random.below(900)).expect("small")));
            seconds.insert(event).then(|| (random.pick(&USERS[..3]), event, known, amount))
        })
        .collect()
}

#[tokio::test]
async fn late_events_count_nowhere_and_can_be_queried() {
    let text = DEFINITIONS.replace("AVAILABLE AT known_at", "AVAILABLE AT known_at LATENESS '1 minute'");
    let project = TestProject::new(&[("ann", 10, 70, Some(1.0)), ("ann", 20, 81, Some(2.0)), ("bob", 5, 90, None)]);
    let state = project.apply(&text).await.expect("valid definitions");
    let view = state.live_views()[0];
    project.clock.set(at(85));
    let done = project.jobs().refresh(&state, view).await.expect("refreshes");
    assert_eq!((done.rows, done.late), (1, 1));
    assert_eq!(committed(&project, view).await, rows_of(&[("ann", 10, 70, Some(1.0))]));
    project.clock.set(at(100));
    let done = project.jobs().refresh(&state, view).await.expect("refreshes");
    assert_eq!((done.rows, done.late), (0, 1));
    assert_eq!(project.jobs().log(view).state().await.expect("readable").late, 2);
    let session = project.jobs().full_session(&state).await.expect("valid sources");
    let counts = "SELECT (SELECT count(*) FROM paid) AS counted, count(*) AS rejected FROM paid_rejects";
    let counts = session.query(counts).await.expect("runs");
    let count = |column: usize| counts[0].column(column).as_primitive::<Int64Type>().value(0);
    assert_eq!((count(0), count(1)), (1, 2));
    // What it rejects is a source's own: without LATENESS the events count.
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    let view = state.live_views()[0];
    let done = project.jobs().refresh(&state, view).await.expect("refreshes");
    assert_eq!((done.rows, done.late), (3, 0));
}

#[tokio::test]
async fn restated_history_is_named_until_a_backfill() {
    let old = [("ann", 10, 10, Some(1.0)), ("bob", 20, 20, Some(2.0))];
    let project = TestProject::new(&old);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    for view in state.live_views() {
        let refresh = async |second: i64| {
            project.clock.set(at(second));
            project.jobs().refresh(&state, view).await.expect("refreshes")
        };
        write(&project, &old);
        assert_eq!(refresh(60).await.restated, None);
        // A file that grew is another file with the same past.
        write(&project, &[old[0], old[1], ("ann", 70, 70, Some(3.0))]);
        assert_eq!(refresh(120).await.restated, None);
        let new = [("ann", 10, 10, Some(1.5)), old[1], ("ann", 70, 70, Some(3.0)), ("ann", 130, 130, None)];
        write(&project, &new);
        let found = refresh(180).await.restated.expect("an amount has changed");
        assert_eq!((found.rows_before, found.rows_now, found.rows_changed), (3, Some(3), Some(1)));
        assert!(found.files[0].starts_with("payments: ") && found.files[0].ends_with("payments.parquet"), "{found:?}");
        // It is named by every refresh until it is mended; what is new is there all the same.
        for second in [180, 240] {
            assert_eq!(refresh(second).await.restated.as_ref(), Some(&found));
        }
        let log = project.jobs().log(view);
        assert_eq!(log.state().await.expect("readable").restated, Some(found));
        assert!(committed(&project, view).await.contains(&("ann".to_owned(), 10, 10, Some(100))));
        let done = project.jobs().backfill(&state, view, asked(None, None, 3_600), &()).await.expect("backfills");
        assert_eq!((done.rows, done.from), (4, at(10)));
        assert_eq!(log.state().await.expect("readable").restated, None);
        assert_eq!(committed(&project, view).await, rows_of(&new));
        assert_eq!(refresh(300).await.restated, None);
    }
}

/// What a backfill of a stretch leaves: in it what the new file says, outside what was committed from the old one.
fn mixed(old: &[Event], new: &[Event], from: i64, until: i64, known: i64) -> Vec<Event> {
    let inside = |event: &&Event| (from..until).contains(&event.1);
    let seen = |event: &&Event| event.1.max(event.2) <= known;
    let kept = old.iter().filter(seen).filter(|event| !inside(event));
    kept.chain(new.iter().filter(seen).filter(inside)).copied().collect()
}

#[tokio::test]
async fn a_backfill_replaces_the_rows_of_its_stretch_and_no_others() {
    for case in 0..12 {
        let mut random = Seeded::new(case);
        let (old, new) = (events(&mut random, 60, 20_000), events(&mut random, 60, 20_000));
        let project = TestProject::new(&old);
        let state = project.apply(&definitions()).await.expect("valid definitions");
        let (first, now) = (10_000, 22_000);
        for view in state.live_views() {
            write(&project, &old);
            for second in [first, now] {
                project.clock.set(at(second));
                project.jobs().refresh(&state, view).await.expect("refreshes");
            }
            write(&project, &new);
            let from = number(random.below(15_000));
            let until = from + 1 + number(random.below(10_000));
            let every = random.pick(&[700, 5_000, 90_000]);
            let before = project.jobs().log(view).state().await.expect("readable");
            let done = project.jobs().backfill(&state, view, asked(Some(from), Some(until), every), &()).await;
            let done = done.expect("backfills");
            let expected = mixed(&old, &new, from, until, now);
            assert_eq!(committed(&project, view).await, rows_of(&expected), "case {case}, {from} to {until}");
            let after = project.jobs().log(view).state().await.expect("readable");
            assert_eq!((after.watermark, after.read_until), (before.watermark, before.read_until));
            assert_eq!(u64::try_from(mixed(&[], &new, from, until, now).len()), Ok(done.rows));
            // Again with nothing changed, the rows are the same.
            project.jobs().backfill(&state, view, asked(Some(from), Some(until), every), &()).await.expect("backfills");
            assert_eq!(committed(&project, view).await, rows_of(&expected), "case {case}, again");
            let disk = DiskTier::open(&project.folder.path().join(format!("disk-{}", view.name))).expect("a folder");
            let mark = catch_up(&disk, &project.jobs().log(view), view, &()).await.expect("readable");
            assert_eq!((mark.commit, mark.watermark), (after.number + 1, after.watermark));
        }
    }
}

/// A view whose values reach back to all events before.
pub const RUNNING: &str = "
    CREATE SOURCE seen EVENT TIME paid_at AS SELECT user_name, paid_at, amount FROM payments;
    CREATE FEATURE VIEW so_far ENTITY user_account REFRESH EVERY '1 minute'
      AS SELECT user_name, paid_at, sum(amount) OVER (PARTITION BY user_name ORDER BY paid_at) AS amount FROM seen;";

/// What it says, an event after another.
pub fn so_far(events: &[Event]) -> Vec<Event> {
    let before = |of: &Event| {
        let mut amounts = events.iter().filter(|event| event.0 == of.0 && event.1 <= of.1).filter_map(|event| event.3);
        amounts.next().map(|first| amounts.fold(first, |total, amount| total + amount))
    };
    events.iter().map(|event| (event.0, event.1, event.1, before(event))).collect()
}

#[tokio::test]
async fn rows_are_the_same_in_however_many_ranges() {
    let mut random = Seeded::new(7);
    let history = events(&mut random, 900, 20_000);
    let project = TestProject::new(&history);
    let state = project.apply(&(definitions() + RUNNING)).await.expect("valid definitions");
    project.clock.set(at(30_000));
    for view in state.live_views() {
        let expected = if view.name == "so_far" { rows_of(&so_far(&history)) } else { rows_of(&history) };
        project.jobs().refresh(&state, view).await.expect("refreshes");
        assert_eq!(committed(&project, view).await, expected, "{}", view.name);
        // More ranges than are split at once, some of them, and one.
        for every in [35, 3_000, 90_000] {
            let done = project.jobs().backfill(&state, view, asked(None, None, every), &()).await.expect("backfills");
            // A view that reads its history anew for each range has no more than so many.
            let many = done.ranges > 200 && (view.reaches_back() == (done.ranges <= 256));
            assert!(many == (every == 35) && (done.ranges == 1) == (every == 90_000), "{done:?}");
            assert_eq!(committed(&project, view).await, expected, "{} by {every}", view.name);
        }
    }
}

#[tokio::test]
async fn ranges_follow_the_data() {
    // An event of each user now and one thirty years ago, and between them 263,000 hours without any.
    let history = [("ann", 10, 10, Some(1.0)), ("bob", 946_000_000, 946_000_000, Some(2.0))];
    let project = TestProject::new(&history);
    let joined = "
        CREATE SOURCE branches STATIC AS SELECT * FROM (VALUES ('ann'), ('bob')) AS v (customer);
        CREATE FEATURE VIEW at_branches ENTITY user_account REFRESH EVERY '1 minute'
          AS SELECT user_name, paid_at, amount FROM seen JOIN branches ON customer = user_name;";
    let state = project.apply(&(definitions() + RUNNING + joined)).await.expect("valid definitions");
    project.clock.set(at(946_000_100));
    for view in state.live_views() {
        project.jobs().refresh(&state, view).await.expect("refreshes");
        let done = project.jobs().backfill(&state, view, asked(None, None, 3_600), &()).await.expect("backfills");
        assert_eq!((done.ranges, done.rows), (2, 2), "{}", view.name);
        assert_eq!(committed(&project, view).await, rows_of(&history), "{}", view.name);
        // A stretch without any rows is one without any work.
        let between = asked(Some(1_000), Some(945_000_000), 1);
        let done = project.jobs().backfill(&state, view, between, &()).await.expect("backfills");
        assert_eq!((done.ranges, done.rows), (0, 0), "{}", view.name);
        assert_eq!(committed(&project, view).await, rows_of(&history), "{}", view.name);
    }
}

/// The rows that a view has, those that were committed again once.
async fn distinct(project: &TestProject, view: &FeatureView) -> Vec<Row> {
    let mut rows = committed(project, view).await;
    if view.reaches_back() {
        rows.dedup();
    }
    rows
}

/// Views over history and pushes of one source: of rows, of windows, of groups and of all events before.
fn over_pushes() -> String {
    let groups = "
        CREATE FEATURE VIEW at_once ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 minute'
          AS SELECT user_name, paid_at, sum(amount) AS amount FROM seen GROUP BY user_name, paid_at;";
    definitions() + RUNNING + groups
}

/// Pushes events to both sources, and flushes them.
async fn push(server: &Server, events: &[Event]) {
    for source in ["paid", "seen"] {
        server.pushes.push(source, batch(events), PushHeader::default()).await.expect("taken");
    }
    server.pushes.flush().await.expect("flushes");
}

#[tokio::test]
async fn a_backfill_keeps_what_was_pushed_after_the_last_refresh() {
    let history = [("ann", 10, 10, Some(1.0)), ("bob", 20, 20, Some(2.0)), ("ann", 80, 80, Some(8.0))];
    for (from, until) in [(None, None), (Some(0), Some(1_000)), (Some(25), Some(96)), (None, Some(40))] {
        let project = TestProject::new(&history);
        let state = project.apply(&over_pushes()).await.expect("valid definitions");
        project.clock.set(at(60));
        refresh_all(&project, &state).await;
        let server = Server::start_on(&project, &project.store, 1 << 20).await;
        // One of before the last refresh, which becomes known after it, and two that happened after it.
        project.clock.set(at(100));
        let pushed = [("ann", 30, 100, Some(3.0)), ("bob", 95, 100, Some(5.0)), ("ann", 95, 100, None)];
        push(&server, &pushed).await;
        for view in state.live_views() {
            let place = format!("{} from {from:?} until {until:?}", view.name);
            let log = project.jobs().log(view);
            let (before, held) = (log.state().await.expect("readable"), distinct(&project, view).await);
            for every in [40, 90_000] {
                let wanted = asked(from, until, every);
                project.jobs().backfill(&state, view, wanted, &()).await.expect("backfills");
                let after = log.state().await.expect("readable");
                assert_eq!(distinct(&project, view).await, held, "{place} by {every}");
                assert_eq!((after.watermark, after.read_until), (before.watermark, before.read_until), "{place}");
                assert_eq!(after.pushed, before.pushed, "{place}");
            }
            // What history had after the last refresh comes once.
            project.clock.set(at(200));
            project.jobs().refresh(&state, view).await.expect("refreshes");
            let mut expected: Vec<Event> = history.into_iter().chain(pushed).collect();
            if view.name == "so_far" {
                expected = so_far(&expected);
            } else if view.name == "at_once" {
                for event in &mut expected {
                    event.2 = event.1;
                }
            }
            assert_eq!(distinct(&project, view).await, rows_of(&expected), "{place}");
            project.clock.set(at(100));
        }
    }
}

#[tokio::test]
async fn what_is_pushed_while_a_backfill_runs_stays_and_wins() {
    let history: Vec<Event> = (0..20).map(|index| ("ann", 10 + index, 10 + index, Some(1.0))).collect();
    for calls in [12, 18, 24, 30] {
        let project = TestProject::new(&history);
        let state = project.apply(&over_pushes()).await.expect("valid definitions");
        project.clock.set(at(60));
        refresh_all(&project, &state).await;
        let server = Server::start_on(&project, &project.store, 1 << 20).await;
        project.clock.set(at(100));
        push(&server, &[("ann", 15, 100, Some(3.0))]).await;
        for view in state.live_views() {
            let log = project.jobs().log(view);
            let base = log.state().await.expect("readable").number;
            let wanted = asked(Some(0), Some(50), 10);
            let dying: Arc<dyn ObjectStore> =
                Arc::new(DyingStore { inner: Arc::clone(&project.store), calls_left: AtomicI64::new(calls) });
            let survived = project.jobs_on(&dying).backfill(&state, view, wanted, &()).await.is_ok();
            push(&server, &[("ann", 15, 100, Some(4.0))]).await;
            let held = log.state().await.expect("readable");
            let done = project.jobs().backfill(&state, view, wanted, &()).await.expect("backfills");
            let after = log.state().await.expect("readable");
            let place = format!("{} after {calls} calls, {survived}, {done:?}", view.name);
            let pushed = &held.files.last().expect("pushed").1.path;
            assert!(
                survived || done.resumed == 0 || after.files.iter().any(|(_, file)| &file.path == pushed),
                "{place}"
            );
            // The order in which rows were written is that in which their commits knew of them.
            let backfilled = after.files.iter().filter(|(_, file)| file.path.contains("/backfill-"));
            let greatest = backfilled.map(|(number, _)| *number).max().expect("backfilled");
            assert!(greatest <= if done.resumed > 0 { base } else { held.number }, "{place}, {greatest}");
            if !view.reaches_back() {
                let of_pushes = committed(&project, view).await.iter().filter(|row| row.3 == Some(400)).count();
                assert!(of_pushes > 0, "{place}");
            }
        }
    }
}

#[tokio::test]
async fn what_was_pushed_before_the_first_refresh_is_not_lost_to_a_backfill() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(&over_pushes()).await.expect("valid definitions");
    project.clock.set(at(60));
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    push(&server, &[("ann", 15, 60, Some(3.0))]).await;
    for view in state.live_views() {
        let error = project.jobs().backfill(&state, view, asked(None, None, 60), &()).await;
        let error = error.expect_err("it would not have what was pushed").to_string();
        assert!(error.contains("it was never refreshed"), "{error}");
        project.jobs().refresh(&state, view).await.expect("refreshes");
        assert_eq!(committed(&project, view).await.len(), 2, "{}", view.name);
    }
}

#[tokio::test]
async fn a_view_that_was_never_refreshed_goes_on_after_its_backfill() {
    let events = [("ann", 10, 10, Some(1.0)), ("bob", 50, 190, Some(2.0)), ("ann", 150, 150, Some(3.0))];
    let project = TestProject::new(&events);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    for view in state.live_views() {
        project.clock.set(at(200));
        let done = project.jobs().backfill(&state, view, asked(None, Some(100), 40), &()).await.expect("backfills");
        // What became known after the stretch is left to the refresh, late events included.
        assert_eq!(done.rows, 1);
        assert_eq!(project.jobs().refresh(&state, view).await.expect("refreshes").rows, 2);
        assert_eq!(committed(&project, view).await, rows_of(&events));
        let error = project.jobs().backfill(&state, view, asked(Some(90), Some(90), 40), &()).await;
        assert_eq!(error.expect_err("an empty stretch").kind(), ErrorKind::Invalid);
    }
}

#[tokio::test]
async fn a_backfill_that_was_cut_off_goes_on_where_it_was() {
    let mut resumed = BTreeSet::new();
    for calls in (4..90).step_by(5) {
        let mut random = Seeded::new(77);
        let (old, new) = (events(&mut random, 40, 20_000), events(&mut random, 40, 20_000));
        let project = TestProject::new(&old);
        let state = project.apply(&definitions()).await.expect("valid definitions");
        let view = state.live_views()[1];
        project.clock.set(at(21_000));
        project.jobs().refresh(&state, view).await.expect("refreshes");
        let before = committed(&project, view).await;
        write(&project, &new);
        let wanted = asked(Some(2_000), Some(18_000), 2_000);
        let dying: Arc<dyn ObjectStore> =
            Arc::new(DyingStore { inner: Arc::clone(&project.store), calls_left: AtomicI64::new(calls) });
        let survived = project.jobs_on(&dying).backfill(&state, view, wanted, &()).await.is_ok();
        let expected = rows_of(&mixed(&old, &new, 2_000, 18_000, 21_000));
        let after = committed(&project, view).await;
        assert!(after == before || after == expected, "a mixture after {calls} calls");
        assert!(!survived || after == expected, "after {calls} calls");
        // A refresh between does not matter.
        project.clock.set(at(23_000));
        project.jobs().refresh(&state, view).await.expect("refreshes");
        let done = project.jobs().backfill(&state, view, wanted, &()).await.expect("backfills");
        resumed.insert(done.resumed);
        let late = new.iter().filter(|event| (21_001..=23_000).contains(&event.1.max(event.2))).copied();
        let mut all = mixed(&old, &new, 2_000, 18_000, 21_000);
        all.extend(late);
        assert_eq!(committed(&project, view).await, rows_of(&all), "after {calls} calls");
    }
    assert!(resumed.contains(&0) && resumed.len() > 3, "{resumed:?}");
}

async fn refuse(state: &CatalogState, project: &TestProject, view: &FeatureView) -> ErrorKind {
    let all = asked(None, None, 60);
    project.jobs().backfill(state, view, all, &()).await.expect_err("nothing to backfill").kind()
}

#[tokio::test]
async fn a_static_view_and_one_without_events_have_nothing_to_backfill() {
    let project = TestProject::new(&[]);
    let text = "
        CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments.parquet';
        CREATE SOURCE people STATIC AS SELECT user_name, amount FROM payments;
        CREATE SOURCE paid EVENT TIME paid_at AS SELECT user_name, paid_at, amount FROM payments;
        CREATE ENTITY user_account KEY (user_name VARCHAR);
        CREATE FEATURE VIEW facts ENTITY user_account REFRESH EVERY '1 day' AS SELECT user_name, amount FROM people;
        CREATE FEATURE VIEW last ENTITY user_account REFRESH EVERY '1 day' AS SELECT user_name, paid_at, amount FROM paid;";
    let state = project.apply(text).await.expect("valid definitions");
    project.clock.set(Timestamp::parse("2013-01-01T00:00:00Z").expect("a time"));
    for view in state.live_views() {
        assert_eq!(refuse(&state, &project, view).await, ErrorKind::Invalid);
    }
}
