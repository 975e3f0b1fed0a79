//! The schedule: views are refreshed when they are due, and one that fails keeps nobody else waiting.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use springhouse_materializer::schedule::Told;

use crate::project::{DEFINITIONS, TestProject, at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_fails_is_tried_again_and_keeps_nobody_waiting() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    std::fs::copy(project.folder.path().join("payments.parquet"), project.folder.path().join("more.parquet"))
        .expect("copied");
    let text = format!(
        "{DEFINITIONS}
        CREATE EXTERNAL TABLE more STORED AS PARQUET LOCATION 'more.parquet';
        CREATE SOURCE extra EVENT TIME paid_at AS SELECT user_name, paid_at, amount FROM more;
        CREATE FEATURE VIEW failing ENTITY user_account REFRESH EVERY '1 minute' AS SELECT user_name, paid_at, amount FROM extra;"
    );
    let state = project.apply(&text).await.expect("valid definitions");
    std::fs::rename(project.folder.path().join("more.parquet"), project.folder.path().join("gone.parquet"))
        .expect("moved");
    project.clock.set(at(100));
    let seen: Arc<Mutex<Vec<(String, bool, u32)>>> = Arc::default();
    let (jobs, told) = (project.jobs(), Arc::clone(&seen));
    let schedule = tokio::spawn(async move {
        let tell = |happened| {
            if let Told::Turn(done) = happened {
                let turn = (done.view.name.clone(), done.result.is_ok(), done.failures);
                told.lock().expect("not poisoned").push(turn);
            }
        };
        jobs.run_schedule(1, Duration::from_millis(5), tell).await
    });
    let wait_for = async |wanted: &[(&str, bool, u32)]| {
        for _ in 0..1_000 {
            let seen = seen.lock().expect("not poisoned").clone();
            if wanted.iter().all(|w| seen.contains(&(w.0.to_owned(), w.1, w.2))) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{wanted:?} of {:?}", seen.lock().expect("not poisoned"));
    };
    wait_for(&[("last_payment", true, 0), ("failing", false, 1)]).await;
    project.clock.set(at(101));
    wait_for(&[("failing", false, 2)]).await;
    project.clock.set(at(161));
    wait_for(&[("failing", false, 3)]).await;
    std::fs::rename(project.folder.path().join("gone.parquet"), project.folder.path().join("more.parquet"))
        .expect("moved back");
    project.clock.set(at(300));
    wait_for(&[("failing", true, 0)]).await;
    for view in state.live_views() {
        for _ in 0..1_000 {
            if project.jobs().log(view).state().await.expect("readable").watermark == Some(at(300)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    schedule.abort();
    // Never more than one turn for each time that was due.
    let seen = seen.lock().expect("not poisoned").clone();
    let turns = |name: &str| seen.iter().filter(|turn| turn.0 == name).count();
    assert!((2..=3).contains(&turns("last_payment")) && turns("failing") == 4, "{seen:?}");
    for view in state.live_views() {
        assert_eq!(project.jobs().log(view).state().await.expect("readable").watermark, Some(at(300)), "{}", view.name);
    }
}
