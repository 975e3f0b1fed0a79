//! Crashes: an object store that fails at every step in turn leaves the old state or the new one, never a mixture.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::object_storage::api::{
    self as object_storage, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use springhouse_featurestore::tier::{
    DataFile, DiskTier, OnlineTier, ViewCommit, ViewCommitKind, ViewLog, ViewLogState, catch_up,
};

use crate::project::{DEFINITIONS, TestProject, at, write_events};

/// Fails every call after the first few, as a process that was killed makes no more calls.
#[derive(Debug)]
pub struct DyingStore {
    pub inner: Arc<dyn ObjectStore>,
    pub calls_left: AtomicI64,
}

impl DyingStore {
    fn live(&self) -> object_storage::Result<()> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(object_storage::Error::Generic { store: "dying", source: "killed".into() })
    }
}

impl fmt::Display for DyingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dying store")
    }
}

#[async_trait]
impl ObjectStore for DyingStore {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> object_storage::Result<PutResult> {
        self.live()?;
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_storage::Result<Box<dyn MultipartUpload>> {
        self.live()?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_storage::Result<GetResult> {
        self.live()?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_storage::Result<Path>>,
    ) -> BoxStream<'static, object_storage::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_storage::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_storage::Result<ListResult> {
        self.live()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_storage::Result<()> {
        self.live()?;
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_refresh_that_dies_at_any_step_leaves_the_old_state_or_the_new_one() {
    let mut outcomes = Vec::new();
    for calls in 0..40 {
        let project = TestProject::new(&[("ann", 10, 10, Some(1.0)), ("bob", 20, 20, Some(2.0))]);
        let state = project.apply(DEFINITIONS).await.expect("valid definitions");
        let view = state.live_views()[0];
        project.clock.set(at(60));
        project.jobs().refresh(&state, view).await.expect("a whole store");
        let old = project.jobs().log(view).state().await.expect("readable");
        write_events(
            &project.folder.path().join("payments.parquet"),
            &[("ann", 10, 10, Some(1.0)), ("bob", 20, 20, Some(2.0)), ("ann", 70, 70, Some(3.0))],
        );
        project.clock.set(at(120));
        let dying: Arc<dyn ObjectStore> =
            Arc::new(DyingStore { inner: Arc::clone(&project.store), calls_left: AtomicI64::new(calls) });
        let survived = project.jobs_on(&dying).refresh(&state, view).await.is_ok();
        let new = project.jobs().log(view).state().await.expect("readable after a crash");
        assert_eq!(survived, new.number == old.number + 1, "after {calls} calls");
        if !survived {
            assert_eq!(new, old, "after {calls} calls");
        }
        // Whatever happened, the next refresh finds the same end.
        project.jobs().refresh(&state, view).await.expect("a whole store");
        let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
        let mark = catch_up(&disk, &project.jobs().log(view), view, &()).await.expect("readable");
        assert_eq!(mark.watermark, Some(at(120)));
        assert_eq!(disk.mark(&view.pinned()).expect("readable"), mark);
        outcomes.push(survived);
    }
    assert!(outcomes.contains(&true) && outcomes.contains(&false), "{outcomes:?}");
}

#[tokio::test]
async fn of_two_refreshes_at_once_one_commits_and_the_other_sees_it() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    let view = state.live_views()[0];
    project.clock.set(at(60));
    let (one, other) = (project.jobs(), project.jobs());
    let (one, other) = tokio::join!(one.refresh(&state, view), other.refresh(&state, view));
    let committed = [one.expect("refreshes"), other.expect("refreshes")].iter().filter(|done| done.committed).count();
    let log = project.jobs().log(view).state().await.expect("readable");
    assert_eq!((committed, log.number), (1, 1));
}

#[tokio::test]
async fn what_many_commits_add_up_to_is_read_from_few() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    let view = state.live_views()[0];
    let counting = Arc::new(DyingStore { inner: Arc::clone(&project.store), calls_left: AtomicI64::new(1_000_000) });
    let store: Arc<dyn ObjectStore> = Arc::clone(&counting) as _;
    // Each read is that of a process that has just started: jobs remember what they have seen.
    let (log, mut whole) = (ViewLog::new(Arc::clone(&store), &view.pinned()), ViewLogState::default());
    for number in 1..=300 {
        let file = DataFile { path: format!("data/{number}"), rows: number, bytes: 1, ..DataFile::default() };
        // Now and then one that replaces what was before it.
        let kind = if number % 90 == 0 { ViewCommitKind::Backfill } else { ViewCommitKind::Refresh };
        let commit = ViewCommit {
            late: number % 3,
            files: vec![file],
            ..ViewCommit::new(at(0), kind, at(number.cast_signed()))
        };
        log.commit(&mut whole, commit).await.expect("nobody else commits");
        counting.calls_left.store(100, Ordering::SeqCst);
        assert_eq!(log.state().await.expect("within so many calls"), whole, "{number}");
        counting.calls_left.store(1_000_000, Ordering::SeqCst);
    }
    // Without checkpoints it is the same, from all commits.
    let folder = project.folder.path().join(format!("store/views/{}/{}/state", view.name, view.version.as_str()));
    std::fs::remove_dir_all(folder).expect("there are some");
    assert_eq!(log.state().await.expect("readable"), whole);
    // Two that are lost are not taken for the end of the log.
    for number in [299, 300] {
        std::fs::remove_file(project.folder.path().join("store").join(log.log().path(number).as_ref())).expect("there");
    }
    let error = log.state().await.expect_err("damaged");
    assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains("000000000299"), "{error}");
}
