//! Compaction, garbage and check: fewer files, the same rows to the bit, whatever happens between; and what is wrong is named.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use arrow::array::{ArrayRef, StringArray};
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::KeyCodec;
use springhouse_featurestore::object_storage::api::memory::InMemory;
use springhouse_featurestore::tier::{
    BackfillAsked, COMMIT, DiskTier, KeyedRow, Mark, ObjectStore, OnlineTier, Progress, ReferenceTier, ViewCommit,
    ViewCommitKind, ViewLogState, catch_up, open_store,
};
use springhouse_featurestore::time::Span;
use springhouse_materializer::check::Checked;
use springhouse_serving::FeatureServer;

use crate::crash::DyingStore;
use crate::faulty_store::FaultyStore;
use crate::project::{DEFINITIONS, Event, TestProject, at, write_events};

const USERS: [&str; 5] = ["ann", "bob", "cid", "dee", "eve"];

/// So many refreshes, each of a few events, late ones and such of equal times among them.
async fn refreshed(rounds: i64) -> (TestProject, CatalogState) {
    let project = TestProject::new(&[]);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    let mut events: Vec<Event> = Vec::new();
    for round in 1..=rounds {
        for number in 0..round % 4 {
            let user = USERS[usize::try_from((round * 3 + number) % 5).expect("small")];
            let event = if number == 2 { 60 * round - 90 } else { 60 * round - 30 };
            #[expect(clippy::cast_precision_loss, reason = "small")]
            events.push((user, event.max(1), 60 * round - 10, Some((round * 10 + number) as f64)));
        }
        write_events(&project.folder.path().join("payments.parquet"), &events);
        project.clock.set(at(60 * round));
        project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    }
    (project, state)
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copied(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}

/// The project's store, copied.
pub fn copy_of(project: &TestProject, name: &str) -> Arc<dyn ObjectStore> {
    let to = project.folder.path().join(name);
    copied(&project.folder.path().join("store"), &to);
    open_store(&to.to_string_lossy(), []).expect("a store")
}

/// What a tier answers, rows to the bit.
fn answers(tier: &dyn OnlineTier, view: &FeatureView) -> Vec<Option<Vec<u8>>> {
    let users: ArrayRef = Arc::new(StringArray::from(USERS.to_vec()));
    let keys = KeyCodec::new(&view.keys).expect("keys").encode(&[users]).expect("keys");
    let keys: Vec<&[u8]> = keys.iter().flatten().collect();
    let read = tier.read(&view.pinned(), &keys).expect("readable");
    read.rows.into_iter().map(|row| row.map(|row| row.to_vec())).collect()
}

/// What a tier that is loaded from a store answers.
async fn loaded(
    project: &TestProject,
    store: &Arc<dyn ObjectStore>,
    view: &FeatureView,
) -> (Vec<Option<Vec<u8>>>, Mark) {
    let tier = ReferenceTier::default();
    let mark = catch_up(&tier, &project.jobs_on(store).log(view), view, &()).await.expect("loads");
    (answers(&tier, view), mark)
}

/// What files hold, in any number of them.
pub fn sum(state: &ViewLogState) -> (u64, u64) {
    let rows = state.files.iter().map(|(_, file)| file.rows).sum();
    let fingerprints = state.files.iter().map(|(_, file)| file.fingerprint.expect("it has one"));
    (rows, fingerprints.fold(0, u64::wrapping_add))
}

pub fn wrong(checked: &[Checked]) -> Vec<&String> {
    checked.iter().flat_map(|of| &of.wrong).collect()
}

#[tokio::test]
async fn a_compaction_changes_no_answer_and_keeps_which_commit_wrote_a_row() {
    let (project, state) = refreshed(40).await;
    let view = state.live_views()[0];
    let log = project.jobs().log(view);
    let before = log.state().await.expect("readable");
    let (expected, _) = loaded(&project, &project.store, view).await;
    let done = project.jobs().compact(view).await.expect("compacts");
    assert!(done.merged > 8 && done.files < before.files.len() / 2, "{done:?}");
    let after = log.state().await.expect("readable");
    assert_eq!(sum(&after), sum(&before));
    assert_eq!((after.watermark, after.read_until, after.pushed), (before.watermark, before.read_until, before.pushed));
    assert_eq!(loaded(&project, &project.store, view).await.0, expected);
    for (_, file) in after.files.iter().filter(|(_, file)| file.first_commit.is_some()) {
        let batches: Vec<_> = log.read(file).await.expect("there").try_collect().await.expect("readable");
        assert!(batches.iter().all(|batch| batch.column_by_name(COMMIT).is_some()));
    }
    assert_eq!(project.jobs().compact(view).await.expect("compacts").merged, 0, "there is nothing left to merge");
    let checked = project.jobs().check(&state, None, true).await.expect("checks");
    assert!(wrong(&checked).is_empty(), "{checked:?}");
    // What is computed anew takes the place of merged rows too.
    let asked = BackfillAsked { from: None, until: None, every: Span::from_secs(86_400) };
    project.jobs().backfill(&state, view, asked, &()).await.expect("backfills");
    assert_eq!(sum(&log.state().await.expect("readable")).0, sum(&before).0);
}

#[tokio::test]
async fn a_tier_that_has_the_commits_before_a_compaction_reads_nothing_of_it() {
    let (project, state) = refreshed(20).await;
    let view = state.live_views()[0];
    let behind = ReferenceTier::default();
    let (whole, log) = (ReferenceTier::default(), project.jobs().log(view));
    let expected = loaded(&project, &project.store, view).await.0;
    catch_up(&whole, &log, view, &()).await.expect("loads");
    // One that had got to the fifth commit.
    let early = copy_of(&project, "early");
    for number in 6..=20 {
        let path = format!("early/views/{}/{}/log/{number:012}.json", view.name, view.version);
        std::fs::remove_file(project.folder.path().join(path)).expect("there");
    }
    // Nor has anybody told of the later ones there.
    std::fs::remove_dir_all(project.folder.path().join("early/heads")).expect("there");
    let mark = catch_up(&behind, &project.jobs_on(&early).log(view), view, &()).await.expect("loads");
    assert_eq!(mark.commit, 5);
    project.jobs().compact(view).await.expect("compacts");
    let newest = log.state().await.expect("readable");
    // The files that gave way are gone, as garbage is after its time.
    let data = project.folder.path().join(format!("store/views/{}/{}/data", view.name, view.version));
    for entry in std::fs::read_dir(&data).expect("readable") {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("readable");
        if !newest.files.iter().any(|(_, file)| file.path.ends_with(&*name.to_string_lossy())) {
            std::fs::remove_file(path).expect("removed");
        }
    }
    let mark = catch_up(&behind, &log, view, &()).await.expect("follows");
    assert_eq!((mark.commit, answers(&behind, view)), (newest.number, expected.clone()));
    std::fs::remove_dir_all(&data).expect("removed");
    let mark = catch_up(&whole, &log, view, &()).await.expect("there is nothing to read");
    assert_eq!((mark.commit, answers(&whole, view)), (newest.number, expected));
}

#[tokio::test]
async fn a_compaction_that_dies_at_any_step_leaves_the_old_files_or_the_new_ones() {
    let (project, state) = refreshed(16).await;
    let view = state.live_views()[0];
    let before = project.jobs().log(view).state().await.expect("readable");
    let expected = loaded(&project, &project.store, view).await.0;
    let mut outcomes = Vec::new();
    for calls in 0.. {
        let store = copy_of(&project, &format!("copy-{calls}"));
        let dying: Arc<dyn ObjectStore> =
            Arc::new(DyingStore { inner: Arc::clone(&store), calls_left: AtomicI64::new(calls) });
        outcomes.push(project.jobs_on(&dying).compact(view).await.is_ok());
        let after = project.jobs_on(&store).log(view).state().await.expect("readable after a crash");
        assert_eq!(sum(&after), sum(&before), "after {calls} calls");
        assert_eq!(loaded(&project, &store, view).await.0, expected, "after {calls} calls");
        // Whatever happened, the next one finds the same end, and what was left is garbage.
        project.jobs_on(&store).compact(view).await.expect("a whole store");
        assert_eq!(loaded(&project, &store, view).await.0, expected, "after {calls} calls");
        let checked = project.jobs_on(&store).check(&state, None, true).await.expect("checks");
        assert!(wrong(&checked).is_empty(), "after {calls} calls: {checked:?}");
        std::fs::remove_dir_all(project.folder.path().join(format!("copy-{calls}"))).expect("there");
        if outcomes.last() == Some(&true) {
            break;
        }
    }
    assert!(outcomes.len() > 40, "it took {} calls", outcomes.len());
}

#[tokio::test]
async fn a_file_that_is_added_while_others_are_merged_stays() {
    let (project, state) = refreshed(16).await;
    let view = state.live_views()[0];
    let before = project.jobs().log(view).state().await.expect("readable");
    project.clock.set(at(60 * 17));
    let (one, other, third) = (project.jobs(), project.jobs(), project.jobs());
    let (one, other, refreshed) = tokio::join!(one.compact(view), other.compact(view), third.refresh(&state, view));
    let (one, other) = (one.expect("compacts"), other.expect("compacts"));
    assert!(one.written + other.written >= 1, "{one:?} {other:?}");
    let after = project.jobs().log(view).state().await.expect("readable");
    assert_eq!(sum(&after).0, sum(&before).0 + refreshed.expect("refreshes").rows);
    assert_eq!(after.watermark, Some(at(60 * 17)));
}

#[tokio::test]
async fn garbage_is_collected_after_its_time_and_what_is_damaged_is_named() {
    let (project, state) = refreshed(20).await;
    let view = state.live_views()[0];
    let jobs = project.jobs();
    let commits = jobs.log(view).commits_after(0).await.expect("readable").len();
    let done = jobs.compact(view).await.expect("compacts");
    // Files are as old as the machine's clock says.
    let day = Span::from_secs(86_400);
    project.clock.set(at(4_000_000_000));
    let first = jobs.collect_garbage(&state, day).await.expect("collects");
    assert_eq!((first.removed, first.waiting), (0, done.merged));
    project.clock.set(at(4_000_000_000) + day);
    let second = jobs.collect_garbage(&state, day).await.expect("collects");
    assert_eq!((second.removed, second.waiting), (done.merged, 0));
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    catch_up(&disk, &jobs.log(view), view, &()).await.expect("loads");
    let checked = jobs.check(&state, Some(&disk), true).await.expect("checks");
    let of_view = checked.iter().find(|of| of.what == view.pinned().to_string()).expect("it is checked");
    assert!(wrong(&checked).is_empty() && of_view.commits > commits as u64, "{checked:?}");
    assert_eq!(of_view.keys, Some(USERS.len()));
    // A tier that has another row.
    let log = jobs.log(view).state().await.expect("readable");
    let users: ArrayRef = Arc::new(StringArray::from(vec![USERS[0]]));
    let key = KeyCodec::new(&view.keys).expect("keys").encode(&[users]).expect("keys");
    let row = (key.get(0).expect("a key").to_vec().into(), vec![0xFE; 40].into());
    let mark = disk.mark(&view.pinned()).expect("readable");
    disk.apply(&view.pinned(), vec![row], mark).expect("writable");
    let checked = jobs.check(&state, Some(&disk), false).await.expect("checks");
    assert!(wrong(&checked).iter().any(|wrong| wrong.starts_with("disk tier: 1 of")), "{checked:?}");
    // A file that is cut off, one that is gone, and a commit that is.
    let store = project.folder.path().join("store");
    let cut = store.join(&log.files[0].1.path);
    let bytes = std::fs::read(&cut).expect("there");
    std::fs::write(&cut, &bytes[..bytes.len() - 1]).expect("writable");
    let checked = jobs.check(&state, None, false).await.expect("checks");
    assert!(wrong(&checked).iter().any(|wrong| wrong.contains(&log.files[0].1.path)), "{checked:?}");
    std::fs::remove_file(&cut).expect("there");
    let checked = jobs.check(&state, None, true).await.expect("checks");
    assert!(wrong(&checked).iter().any(|wrong| wrong.ends_with("is gone")), "{checked:?}");
    let commit = format!("views/{}/{}/log/{:012}.json", view.name, view.version, 3);
    std::fs::remove_file(store.join(commit)).expect("there");
    let checked = jobs.check(&state, None, false).await.expect("checks");
    assert!(wrong(&checked).iter().any(|wrong| wrong.contains("000000000003")), "{checked:?}");
}

#[tokio::test]
async fn a_server_that_follows_heads_sees_what_others_commit_and_what_lost_its_head() {
    let (project, state) = refreshed(3).await;
    let view = state.live_views()[0];
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let features = FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone());
    let watermark = || features.status().expect("readable").views[0].watermark;
    features.follow_heads(&()).await.expect("follows");
    assert_eq!(features.state().number(), 1, "the first look reads the catalog");
    features.follow_heads(&()).await.expect("follows");
    assert_eq!(watermark(), Some(at(180)));
    project.clock.set(at(240));
    project.jobs().refresh(&state, view).await.expect("refreshes");
    features.follow_heads(&()).await.expect("follows");
    assert_eq!(watermark(), Some(at(240)), "its head tells it");
    // A process that died after its commit, before it wrote the head.
    let head = project.folder.path().join(format!("store/heads/views/{}/{}", view.name, view.version));
    let kept = project.folder.path().join("head");
    std::fs::rename(&head, &kept).expect("moved");
    project.clock.set(at(300));
    project.jobs().refresh(&state, view).await.expect("refreshes");
    std::fs::rename(&kept, &head).expect("moved back: the same object as before");
    for _ in 0..2 {
        features.follow_heads(&()).await.expect("follows");
    }
    assert_eq!(watermark(), Some(at(300)), "each log has its turn");
}

#[tokio::test]
async fn many_new_rows_are_added_to_those_that_a_tier_has() {
    let (project, state) = refreshed(3).await;
    let view = state.live_views()[0];
    let log = project.jobs().log(view);
    let disk = |name: &str| DiskTier::open(&project.folder.path().join(name)).expect("a folder");
    let (followed, pushed, anew) = (disk("followed"), disk("pushed"), disk("anew"));
    for tier in [&followed, &pushed] {
        catch_up(tier, &log, view, &()).await.expect("loads");
    }
    // Beyond what is written row by row.
    let events: Vec<Event> = (0..200_100_i64)
        .map(|number| {
            let user = USERS[usize::try_from(number % 4).expect("small")];
            (user, 200 + number / 4, 60_000, Some(f64::from(i32::try_from(number).expect("small"))))
        })
        .collect();
    write_events(&project.folder.path().join("payments.parquet"), &events);
    project.clock.set(at(60_000));
    let done = project.jobs().refresh(&state, view).await.expect("refreshes");
    assert!(done.rows > 200_000, "{done:?}");
    let commits = log.commits_after(0).await.expect("readable");
    assert!(commits.iter().all(|(_, commit)| commit.kind == ViewCommitKind::Refresh));
    let mark = catch_up(&followed, &log, view, &()).await.expect("follows");
    assert_eq!(catch_up(&anew, &log, view, &()).await.expect("loads"), mark);
    assert_eq!(answers(&followed, view), answers(&anew, view));
    // What is pushed while they are read stays, and so does how far that was.
    let users: ArrayRef = Arc::new(StringArray::from(vec!["zoe"]));
    let keys = KeyCodec::new(&view.keys).expect("keys").encode(&[users]).expect("keys");
    let key = keys.get(0).expect("a key");
    let row: KeyedRow = (key.to_vec().into(), vec![0xFE; 40].into());
    let meanwhile = PushedMeanwhile { tier: &pushed, view, row: row.clone(), done: AtomicBool::new(false) };
    let reached = catch_up(&pushed, &log, view, &meanwhile).await.expect("follows");
    assert_eq!(reached, Mark { pushed: 7, log: 3, watermark: Some(at(70_000)), ..mark });
    assert_eq!(pushed.mark(&view.pinned()).expect("readable"), reached);
    assert_eq!(answers(&pushed, view), answers(&anew, view));
    let read = pushed.read(&view.pinned(), &[key]).expect("readable");
    assert_eq!(read.rows, [Some(row.1)]);
}

/// What a process that was killed had been writing is named by a check, and goes with the garbage; what is written now stays.
#[tokio::test]
async fn files_of_a_folder_that_were_cut_off_are_named_and_removed() {
    let (project, state) = refreshed(3).await;
    let store = project.folder.path().join("store");
    let view = state.live_views()[0];
    let data = store.join(project.jobs().log(view).folder().to_string()).join("data");
    let (old, new) = (data.join("000000000009-1.parquet#1"), data.join("000000000009-2.parquet#1"));
    for (path, second) in [(&old, 200_000), (&new, 399_000)] {
        std::fs::write(path, "half of it").expect("writable");
        let file = std::fs::File::options().write(true).open(path).expect("there");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(second)).expect("settable");
    }
    project.clock.set(at(400_000));
    let jobs = project.jobs().in_folder(Some(store));
    let checked = jobs.check(&state, None, true).await.expect("checks");
    assert!(wrong(&checked).is_empty(), "{checked:?}");
    let named: Vec<_> = checked.iter().flat_map(|of| &of.cut_off).collect();
    assert!(named.len() == 1 && named[0].contains("000000000009-1.parquet#1: 10 bytes"), "{named:?}");
    let collected = jobs.collect_garbage(&state, Span::from_secs(86_400)).await.expect("collects");
    assert_eq!((collected.removed, collected.bytes), (1, 10));
    assert!(!old.exists() && new.exists());
    assert!(wrong(&jobs.check(&state, None, true).await.expect("checks")).is_empty());
}

/// A view of so many commits costs a replica what came since the last checkpoint, and not a request for each of them.
#[tokio::test]
async fn a_first_load_of_a_view_of_many_commits_reads_what_they_add_up_to() {
    let mut project = TestProject::new(&[("ann", 30, 30, Some(1.0)), ("bob", 40, 40, Some(2.0))]);
    let counting = FaultyStore::new(Arc::new(InMemory::new()));
    project.store = Arc::clone(&counting) as _;
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    let view = state.live_views()[0];
    project.clock.set(at(60));
    project.jobs().refresh(&state, view).await.expect("refreshes");
    let log = project.jobs().log(view);
    let mut last = log.state().await.expect("readable");
    let commit = async |last: &mut ViewLogState| {
        let second = at(60 + i64::try_from(last.number).expect("small"));
        log.commit(last, ViewCommit::new(second, ViewCommitKind::Refresh, second)).await.expect("committed");
    };
    while last.number < 500 {
        commit(&mut last).await;
    }
    let tier = ReferenceTier::default();
    let load = async || {
        let log = project.jobs().log(view);
        counting.requests();
        let mark = catch_up(&tier, &log, view, &()).await.expect("loads");
        (mark.commit, counting.requests())
    };
    let (reached, requests) = load().await;
    assert!(reached == 500 && requests < 100, "{requests} requests up to {reached}");
    assert_eq!(answers(&tier, view).iter().flatten().count(), 2);
    // Of a few commits each is read, and of many what they add up to.
    for _ in 0..100 {
        commit(&mut last).await;
    }
    let (reached, requests) = load().await;
    assert!(reached == 600 && requests < 150, "{requests} requests up to {reached}");
    for _ in 0..1_200 {
        commit(&mut last).await;
    }
    let (reached, requests) = load().await;
    assert!(reached == 1_800 && requests < 250, "{requests} requests up to {reached}");
    assert_eq!(answers(&tier, view).iter().flatten().count(), 2);
}

/// Applies a push to a tier while the rows that it lacks are read.
#[derive(Debug)]
struct PushedMeanwhile<'a> {
    tier: &'a DiskTier,
    view: &'a FeatureView,
    row: KeyedRow,
    done: AtomicBool,
}

impl Progress for PushedMeanwhile<'_> {
    fn begin(&self, _: &str, _: u64) {}

    fn advance(&self, _: u64) {
        if !self.done.swap(true, Ordering::Relaxed) {
            let view = self.view.pinned();
            let mark = self.tier.mark(&view).expect("readable");
            let reached = Mark { pushed: 7, log: 3, watermark: Some(at(70_000)), ..mark };
            self.tier.apply(&view, vec![self.row.clone()], reached).expect("writable");
        }
    }

    fn end(&self) {}
}
