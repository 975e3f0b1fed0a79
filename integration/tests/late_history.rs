//! History that appears late: a new file with events of before the last refresh is taken in or named, never passed over
//! (rule T11); what is named stays named until a backfill has made it right.

use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{DiskTier, OnlineTier, Restated, catch_up};
use springhouse_materializer::refresh::Refreshed;

use crate::backfill::{RUNNING, asked, committed, definitions, rows_of, so_far};
use crate::project::{Event, TestProject, at, write_events};
use crate::push::{Server, batch};

/// The definitions of backfills over a folder of files.
fn over_a_folder(text: &str) -> String {
    let text = text.replace("LOCATION 'payments.parquet'", "LOCATION 'payments/'");
    assert!(text.contains("'payments/'"));
    text
}

/// A project whose table is a folder with one file.
fn project(events: &[Event]) -> TestProject {
    let project = TestProject::new(&[]);
    std::fs::create_dir(project.folder.path().join("payments")).expect("writable");
    write(&project, "1", events);
    project
}

fn write(project: &TestProject, file: &str, events: &[Event]) {
    write_events(&project.folder.path().join(format!("payments/{file}.parquet")), events);
}

async fn refresh(project: &TestProject, state: &CatalogState, view: &FeatureView, second: i64) -> Refreshed {
    project.clock.set(at(second));
    project.jobs().refresh(state, view).await.expect("refreshes")
}

const OLD: [Event; 2] = [("ann", 10, 10, Some(1.0)), ("bob", 20, 20, Some(2.0))];

/// One event of long before, one that became known just at the last refresh, and one of after it.
const NEW: [Event; 3] = [("ann", 5, 5, Some(9.0)), ("bob", 30, 60, Some(3.0)), ("bob", 70, 70, Some(4.0))];

#[tokio::test]
async fn old_events_in_a_new_file_are_taken_in_once() {
    let project = project(&OLD);
    let state = project.apply(&over_a_folder(&definitions())).await.expect("valid definitions");
    let all: Vec<Event> = OLD.into_iter().chain(NEW).collect();
    for view in state.live_views() {
        drop(std::fs::remove_file(project.folder.path().join("payments/2.parquet")));
        let disk = DiskTier::open(&project.folder.path().join(format!("disk-{}", view.name))).expect("a folder");
        let log = project.jobs().log(view);
        refresh(&project, &state, view, 60).await;
        catch_up(&disk, &log, view, &()).await.expect("readable");
        write(&project, "2", &NEW);
        let done = refresh(&project, &state, view, 120).await;
        assert_eq!((done.rows, done.appeared, done.restated), (3, 2, None), "{}", view.name);
        assert_eq!(committed(&project, view).await, rows_of(&all), "{}", view.name);
        let done = refresh(&project, &state, view, 180).await;
        assert_eq!((done.rows, done.appeared, done.restated), (0, 0, None), "{}", view.name);
        // The tiers have them as if they had been there from the first.
        catch_up(&disk, &log, view, &()).await.expect("readable");
        let fresh = DiskTier::open(&project.folder.path().join(format!("fresh-{}", view.name))).expect("a folder");
        project.jobs().backfill(&state, view, asked(None, None, 3_600), &()).await.expect("backfills");
        assert_eq!(committed(&project, view).await, rows_of(&all), "{}", view.name);
        catch_up(&fresh, &log, view, &()).await.expect("readable");
        let marks = [&disk, &fresh].map(|tier| tier.mark(&view.pinned()).expect("readable").watermark);
        assert_eq!(marks, [Some(at(180)); 2]);
    }
}

#[tokio::test]
async fn what_cannot_be_taken_in_is_named_with_its_counts_until_a_backfill() {
    let project = project(&OLD);
    let distinct = "
        CREATE SOURCE once EVENT TIME paid_at AS SELECT DISTINCT user_name, paid_at, amount FROM payments;
        CREATE FEATURE VIEW last_once ENTITY user_account REFRESH EVERY '1 minute' AS SELECT user_name, paid_at, amount FROM once;";
    let state = project.apply(&over_a_folder(&(definitions() + RUNNING + distinct))).await.expect("valid definitions");
    let all: Vec<Event> = OLD.into_iter().chain(NEW).map(|event| (event.0, event.1, event.1, event.3)).collect();
    for (name, expected, changed, late) in [("so_far", so_far(&all), 3, 2), ("last_once", all.clone(), 2, 0)] {
        drop(std::fs::remove_file(project.folder.path().join("payments/2.parquet")));
        let view = state.live_views().into_iter().find(|view| view.name == name).expect("defined");
        refresh(&project, &state, view, 60).await;
        write(&project, "2", &NEW);
        let found = refresh(&project, &state, view, 120).await.restated.expect("old events");
        assert_eq!((found.rows_before, found.rows_now, found.late_events), (2, Some(4), late), "{name}");
        assert_eq!(found.rows_changed, Some(changed), "{name}");
        assert!(found.files[0].starts_with("payments: ") && found.files[0].ends_with("2.parquet"), "{found:?}");
        assert_eq!(refresh(&project, &state, view, 180).await.restated.as_ref(), Some(&found), "{name}");
        assert_eq!(project.jobs().log(view).state().await.expect("readable").restated, Some(found), "{name}");
        project.jobs().backfill(&state, view, asked(None, None, 3_600), &()).await.expect("backfills");
        assert_eq!(committed(&project, view).await, rows_of(&expected), "{name}");
        assert_eq!(refresh(&project, &state, view, 240).await.restated, None, "{name}");
    }
}

#[tokio::test]
async fn a_new_file_of_new_events_is_nothing_to_name() {
    let project = project(&OLD);
    let state = project.apply(&over_a_folder(&(definitions() + RUNNING))).await.expect("valid definitions");
    for view in state.live_views() {
        drop(std::fs::remove_file(project.folder.path().join("payments/2.parquet")));
        refresh(&project, &state, view, 60).await;
        write(&project, "2", &NEW[2..]);
        let done = refresh(&project, &state, view, 120).await;
        assert_eq!((done.rows, done.appeared, done.restated), (1, 0, None), "{}", view.name);
    }
}

#[tokio::test]
async fn old_events_in_a_file_that_grew_are_named() {
    let project = project(&OLD);
    let state = project.apply(&over_a_folder(&definitions())).await.expect("valid definitions");
    for view in state.live_views() {
        write(&project, "1", &OLD);
        refresh(&project, &state, view, 60).await;
        write(&project, "1", &[OLD[0], OLD[1], NEW[0], NEW[2]]);
        let done = refresh(&project, &state, view, 120).await;
        let found = done.restated.expect("an old event");
        assert_eq!((done.rows, done.appeared), (1, 0), "{}", view.name);
        assert_eq!((found.rows_before, found.rows_now, found.rows_changed), (2, Some(3), Some(1)), "{}", view.name);
    }
}

#[tokio::test]
async fn old_events_that_came_too_late_are_counted_as_such() {
    let project = project(&OLD);
    let text = definitions().replace("AVAILABLE AT known_at", "AVAILABLE AT known_at LATENESS '20 seconds'");
    let state = project.apply(&over_a_folder(&text)).await.expect("valid definitions");
    let view = state.live_views()[0];
    refresh(&project, &state, view, 60).await;
    write(&project, "2", &NEW);
    let done = refresh(&project, &state, view, 120).await;
    assert_eq!((done.rows, done.appeared, done.late), (2, 1, 1));
}

#[tokio::test]
async fn a_backfill_and_the_refresh_after_it_count_a_new_file_once() {
    for (from, until) in [(None, None), (Some(0), Some(50)), (Some(15), Some(100))] {
        let project = project(&OLD);
        let state = project.apply(&over_a_folder(&definitions())).await.expect("valid definitions");
        let all: Vec<Event> = OLD.into_iter().chain(NEW).collect();
        for view in state.live_views() {
            drop(std::fs::remove_file(project.folder.path().join("payments/2.parquet")));
            refresh(&project, &state, view, 60).await;
            write(&project, "2", &NEW);
            project.jobs().backfill(&state, view, asked(from, until, 20), &()).await.expect("backfills");
            assert_eq!(committed(&project, view).await, rows_of(&OLD), "{}", view.name);
            let done = refresh(&project, &state, view, 120).await;
            assert_eq!((done.rows, done.appeared, done.restated), (3, 2, None), "{}", view.name);
            assert_eq!(committed(&project, view).await, rows_of(&all), "{}", view.name);
        }
    }
}

#[tokio::test]
async fn what_a_backfill_of_a_stretch_leaves_is_named_again() {
    let old = [("ann", 10, 10, Some(1.0)), ("bob", 5_000, 5_000, Some(2.0)), ("bob", 7_000, 7_000, Some(3.0))];
    let new = [("ann", 10, 10, Some(1.5)), ("bob", 5_000, 5_000, Some(2.5)), old[2]];
    let project = project(&old);
    let state = project.apply(&over_a_folder(&(definitions() + RUNNING))).await.expect("valid definitions");
    for (index, view) in state.live_views().into_iter().enumerate() {
        // Whether a refresh saw the change before the backfill did is all the same.
        for seen in [false, true] {
            let now = 10_000 * (2 * i64::try_from(index).expect("few") + i64::from(seen) + 1);
            let place = format!("{}, {seen}", view.name);
            write(&project, "1", &old);
            refresh(&project, &state, view, now).await;
            project.jobs().backfill(&state, view, asked(None, None, 90_000), &()).await.expect("backfills");
            write(&project, "1", &new);
            let changed = if view.name == "so_far" { 3 } else { 2 };
            if seen {
                let found = refresh(&project, &state, view, now + 60).await.restated.expect("two amounts changed");
                assert_eq!(found.rows_changed, Some(changed), "{place}");
            }
            let stretch = asked(Some(4_000), Some(8_000), 90_000);
            project.jobs().backfill(&state, view, stretch, &()).await.expect("backfills");
            let found = refresh(&project, &state, view, now + 120).await.restated.expect("one is left");
            assert_eq!(found.rows_changed, Some(1), "{place}");
            let stretch = asked(Some(0), Some(100), 90_000);
            project.jobs().backfill(&state, view, stretch, &()).await.expect("backfills");
            assert_eq!(refresh(&project, &state, view, now + 180).await.restated, None, "{place}");
            let expected = if view.name == "so_far" { so_far(&new) } else { new.to_vec() };
            assert_eq!(committed(&project, view).await, rows_of(&expected), "{place}");
        }
    }
}

#[tokio::test]
async fn history_beside_pushes_is_compared_too() {
    let project = project(&OLD);
    let state = project.apply(&over_a_folder(&definitions())).await.expect("valid definitions");
    for view in state.live_views() {
        refresh(&project, &state, view, 60).await;
    }
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    project.clock.set(at(100));
    // The same event twice, in two flushes: windows count both, and of rows one stands for both.
    for _ in 0..2 {
        let sent = batch(&[("ann", 40, 100, Some(5.0)), ("bob", 90, 100, Some(6.0))]);
        server.pushes.push("paid", sent, PushHeader::default()).await.expect("taken");
        server.pushes.flush().await.expect("flushes");
    }
    // A file that only grew is nothing to name.
    write(&project, "1", &[OLD[0], OLD[1], ("bob", 110, 110, Some(7.0))]);
    for view in state.live_views() {
        let done = refresh(&project, &state, view, 120).await;
        assert_eq!((done.rows, done.restated), (1, None), "{}", view.name);
    }
    // A new file of old events is taken in.
    write(&project, "2", &NEW[..1]);
    for view in state.live_views() {
        let done = refresh(&project, &state, view, 180).await;
        assert_eq!((done.rows, done.appeared, done.restated), (1, 1, None), "{}", view.name);
    }
    // Another value is named.
    write(&project, "1", &[OLD[0], ("bob", 20, 20, Some(2.5)), ("bob", 110, 110, Some(7.0))]);
    for view in state.live_views() {
        let found = refresh(&project, &state, view, 240).await.restated.expect("an amount has changed");
        assert_eq!(found.rows_changed, Some(1), "{}", view.name);
        assert_eq!(status(&server, view).await, Some(found), "{}", view.name);
        project.jobs().backfill(&state, view, asked(None, None, 90_000), &()).await.expect("backfills");
        assert_eq!(refresh(&project, &state, view, 300).await.restated, None, "{}", view.name);
        assert_eq!(status(&server, view).await, None, "{}", view.name);
    }
}

/// What the running store says of a view's history.
async fn status(server: &Server, view: &FeatureView) -> Option<Restated> {
    server.features.follow(&()).await.expect("follows");
    let status = server.features.status().expect("readable");
    status.views.into_iter().find(|of| of.view == view.pinned().to_string()).expect("served").restated
}
