//! A push log that was copied, or restored from a backup: each event that was acknowledged counts exactly once, whoever runs,
//! and in whatever turn.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use springhouse_featurestore::push::{EventSink, Push, PushEntry, PushHeader, PushLog};

use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, closed, refresh_all};
use crate::simulation::steps::copied;
use crate::windows::definitions;

/// A project, and a server's folders in it.
struct House {
    project: TestProject,
    sequence: u64,
}

impl House {
    async fn new() -> Self {
        let project = TestProject::new(&[]);
        let state = project.apply(&definitions()).await.expect("valid definitions");
        project.clock.set(at(1_000));
        refresh_all(&project, &state).await;
        for folder in ["one", "two"] {
            std::fs::create_dir(project.folder.path().join(folder)).expect("new");
        }
        Self { project, sequence: 0 }
    }

    async fn start(&self, folder: &str) -> Server {
        Server::start_in(&self.project.folder.path().join(folder), self.project.jobs(), 0).await
    }

    /// Pushes one event, with a sequence or without.
    async fn push(&mut self, server: &Server, numbered: bool) {
        self.sequence += 1;
        let second = 900 + i64::try_from(self.sequence).expect("small");
        let event: Event = ("ann", second, 0, Some(1.0));
        let producer = numbered.then(|| "till".to_owned());
        let header = PushHeader { producer, sequence: numbered.then_some(self.sequence), watermark: None };
        assert_eq!(server.pushes.push("paid", batch(&[event]), header).await.expect("taken").rows, 1);
    }

    /// Ends a server, and waits until its folders are free.
    async fn end(&self, server: Server, folder: &str) {
        drop(server);
        for of in ["disk", "log"] {
            closed(&self.project.folder.path().join(folder).join(of)).await;
        }
    }

    fn copy(&self, from: &str, to: &str) {
        let folder = self.project.folder.path();
        copied(&folder.join(from), &folder.join(to));
    }

    fn lose(&self, folder: &str) {
        std::fs::remove_dir_all(self.project.folder.path().join(folder)).expect("there");
    }

    fn replace(&self, from: &str, to: &str) {
        self.lose(to);
        let path = |name: &str| self.project.folder.path().join(name);
        std::fs::rename(path(from), path(to)).expect("movable");
    }

    /// How many events there are online, and how many after everything was loaded from object storage.
    async fn counted(&self, server: &Server) -> [i64; 2] {
        server.pushes.flush().await.expect("flushes");
        server.features.follow(&()).await.expect("follows");
        let elsewhere = tempfile::tempdir().expect("a folder");
        let anew = reader(&self.project, elsewhere.path()).await;
        [online(&server.features), online(&anew)]
    }
}

/// A server that takes no pushes.
async fn reader(project: &TestProject, folder: &Path) -> springhouse_serving::FeatureServer {
    let disk = springhouse_featurestore::tier::DiskTier::open(&folder.join("disk")).expect("new");
    let store = std::sync::Arc::clone(&project.store);
    let features = springhouse_serving::FeatureServer::new(store, disk, 0, project.clock.clone());
    features.follow(&()).await.expect("follows");
    features
}

fn online(features: &springhouse_serving::FeatureServer) -> i64 {
    let users: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::StringArray::from(vec!["ann"]));
    let keys = arrow::array::RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
    let answer = features.lookup_with(&features.plan("limits").expect("defined"), &keys).expect("looks up");
    let payments = answer["spending.payments_2d"].as_primitive::<Int64Type>();
    if payments.is_valid(0) { payments.value(0) } else { 0 }
}

#[tokio::test]
async fn a_log_and_its_copy_that_run_by_turns_lose_nothing_and_count_nothing_twice() {
    for numbered in [true, false] {
        let mut house = House::new().await;
        let one = house.start("one").await;
        house.push(&one, numbered).await;
        one.pushes.flush().await.expect("flushes");
        // This one both will hold.
        house.push(&one, numbered).await;
        house.copy("one/log", "two/log");
        house.push(&one, numbered).await;
        house.end(one, "one").await;
        let two = house.start("two").await;
        house.push(&two, numbered).await;
        house.push(&two, numbered).await;
        assert_eq!(house.counted(&two).await, [4, 4], "numbered: {numbered}");
        house.end(two, "two").await;
        // It comes back with what it alone has.
        let one = house.start("one").await;
        assert_eq!(house.counted(&one).await, [5, 5], "numbered: {numbered}");
        house.push(&one, numbered).await;
        house.end(one, "one").await;
        let two = house.start("two").await;
        house.push(&two, numbered).await;
        assert_eq!(house.counted(&two).await, [6, 6], "numbered: {numbered}");
        house.end(two, "two").await;
        let one = house.start("one").await;
        assert_eq!(house.counted(&one).await, [7, 7], "numbered: {numbered}");
    }
}

#[tokio::test]
async fn a_process_whose_log_was_copied_stops_and_shows_what_is_committed() {
    let mut house = House::new().await;
    let one = house.start("one").await;
    house.push(&one, true).await;
    house.copy("one/log", "two/log");
    let two = house.start("two").await;
    // It does not know yet.
    house.push(&one, true).await;
    house.push(&two, true).await;
    house.push(&two, true).await;
    assert_eq!(house.counted(&two).await, [3, 3]);
    assert!(one.pushes.flush().await.is_err(), "it is passed");
    one.features.follow(&()).await.expect("follows");
    assert_eq!(online(&one.features), 3);
    house.end(two, "two").await;
    house.end(one, "one").await;
    let one = house.start("one").await;
    assert_eq!(house.counted(&one).await, [4, 4]);
}

#[tokio::test]
async fn two_logs_from_before_logs_were_told_apart_lose_nothing() {
    let (mut maker, house) = (House::new().await, House::new().await);
    for folder in ["one", "two"] {
        let server = maker.start(folder).await;
        maker.push(&server, true).await;
        maker.end(server, folder).await;
        // The same push in a log that has no number, at the same position in both.
        let path = |of: &House| of.project.folder.path().join(folder).join("log");
        let made = PushLog::open(&path(&maker)).expect("nobody has it open").entries_after(0).expect("readable");
        let old = PushLog::open(&path(&house)).expect("new");
        for PushEntry { source, events, origin, .. } in made {
            let header = PushHeader { producer: Some(origin.producer), sequence: origin.sequence, watermark: None };
            old.append(vec![Push { source, events, header, at: at(1_000) }]).expect("writable");
        }
        assert_eq!((old.last(), old.incarnation(), old.epoch()), (1, 0, None));
    }
    for (folder, expected) in [("one", 1), ("two", 2), ("one", 2), ("two", 2)] {
        let server = house.start(folder).await;
        assert_eq!(house.counted(&server).await, [expected; 2], "at {folder}");
        house.end(server, folder).await;
    }
}

#[tokio::test]
async fn a_restored_older_log_gives_no_position_twice() {
    for (with_disk, flushed) in [(true, true), (true, false), (false, true), (false, false)] {
        let place = format!("with its disk tier: {with_disk}, flushed after the backup: {flushed}");
        let mut house = House::new().await;
        let one = house.start("one").await;
        house.push(&one, true).await;
        one.pushes.flush().await.expect("flushes");
        house.push(&one, true).await;
        house.copy("one/log", "backup");
        house.push(&one, true).await;
        house.push(&one, false).await;
        if flushed {
            one.pushes.flush().await.expect("flushes");
        }
        house.end(one, "one").await;
        house.replace("backup", "one/log");
        if !with_disk {
            house.lose("one/disk");
        }
        let one = house.start("one").await;
        house.push(&one, true).await;
        house.push(&one, false).await;
        // What was neither in the backup nor flushed is lost with the log.
        let expected = if flushed { 6 } else { 4 };
        assert_eq!(house.counted(&one).await, [expected; 2], "{place}");
        house.end(one, "one").await;
        let one = house.start("one").await;
        assert_eq!(house.counted(&one).await, [expected; 2], "{place}, after another start");
    }
}
