//! Loads that pushes outpace: nobody who pushes waits while it is looked what has come, and every load ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::push::{EventSink, Lacking, PendingAck, ProducerChange, ProducerState, PushHeader};
use springhouse_featurestore::tier::{
    KeyedRow, Mark, OnlineTier, Pushing, ReferenceTier, ViewCommit, catch_up, catch_up_with, load_again,
};
use tokio::sync::Mutex;

use crate::project::{TestProject, at};
use crate::windows::definitions;

/// Pushes come to a view whenever somebody has looked what there is, until they pass the view over.
#[derive(Debug)]
struct Restless {
    tier: Arc<ReferenceTier>,
    view: Pinned,
    changing: Mutex<()>,
    held_back: AtomicBool,
    looks: AtomicU64,
}

impl Restless {
    /// Looks, which reads storage and takes as long as that does; gives what the tier had before.
    fn look(&self) -> Mark {
        assert!(self.changing.try_lock().is_ok(), "who pushes waits while it is looked what has come");
        self.looks.fetch_add(1, Ordering::SeqCst);
        let mark = self.tier.mark(&self.view).expect("readable");
        if !self.held_back.load(Ordering::SeqCst) {
            self.tier.apply(&self.view, Vec::new(), Mark { pushed: mark.pushed + 1, ..mark }).expect("writable");
        }
        mark
    }

    fn is_locked(&self) {
        assert!(self.changing.try_lock().is_err(), "the caller holds the lock");
    }
}

#[async_trait]
impl EventSink for Restless {
    async fn schema(&self, _source: &str) -> Result<SchemaRef> {
        unreachable!("nobody asks")
    }

    async fn submit_by(
        &self,
        _caller: Option<&str>,
        _source: &str,
        _events: RecordBatch,
        _header: PushHeader,
    ) -> Result<PendingAck> {
        unreachable!("nobody pushes")
    }

    async fn flush(&self) -> Result<u64> {
        unreachable!("nobody flushes")
    }

    async fn producers(&self, _source: &str) -> Result<Vec<ProducerState>> {
        unreachable!("nobody asks")
    }

    async fn change_producer(
        &self,
        _source: &str,
        _producer: &str,
        _change: ProducerChange,
        _by: Signature,
    ) -> Result<ProducerState> {
        unreachable!("nobody changes one")
    }

    fn silent_producers(&self) -> Vec<ProducerState> {
        Vec::new()
    }

    async fn rows_after(&self, _view: &FeatureView, mark: Mark) -> Result<Lacking> {
        let pushed = self.look().pushed.max(mark.pushed);
        Ok(Lacking { rows: Vec::new(), mark: Mark { pushed, ..mark }, more: false })
    }

    async fn rows_at_hand(&self, _view: &FeatureView, _mark: Mark) -> Result<Option<(Vec<KeyedRow>, Mark)>> {
        self.is_locked();
        Ok(None)
    }

    async fn brings_again(
        &self,
        _view: &FeatureView,
        _pushes: (u64, Mark),
        _commits: &[(u64, ViewCommit)],
    ) -> Result<bool> {
        self.look();
        Ok(false)
    }

    fn may_bring_again(
        &self,
        _view: &FeatureView,
        _pushes: (u64, Mark),
        _commits: &[(u64, ViewCommit)],
    ) -> Result<bool> {
        self.is_locked();
        Ok(true)
    }

    fn hold_back(&self, _view: &FeatureView) {
        self.is_locked();
        self.held_back.store(true, Ordering::SeqCst);
    }

    async fn replay(&self) -> Result<()> {
        unreachable!("nobody is behind")
    }
}

/// A view that a tier has, and who pushes to it.
async fn loaded(project: &TestProject) -> (CatalogState, FeatureView, Restless) {
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    let view = state.live_views().into_iter().find(|view| view.name == "spending").expect("defined").clone();
    project.jobs().refresh(&state, &view).await.expect("refreshes");
    let tier = Arc::new(ReferenceTier::default());
    catch_up(tier.as_ref(), &project.jobs().log(&view), &view, &()).await.expect("loads");
    let pinned = view.pinned();
    let sink = Restless {
        tier,
        view: pinned,
        changing: Mutex::default(),
        held_back: AtomicBool::new(false),
        looks: AtomicU64::new(0),
    };
    (state, view, sink)
}

#[tokio::test]
async fn what_is_committed_is_followed_though_pushes_come_faster_than_they_can_be_looked_at() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0)), ("bob", 1_500, 1_500, Some(1.0))]);
    let (state, view, sink) = loaded(&project).await;
    project.clock.set(at(2_000));
    let done = project.jobs().refresh(&state, &view).await.expect("refreshes");
    let pushing = Pushing { sink: &sink, changing: &sink.changing };
    let log = project.jobs().log(&view);
    let mark = catch_up_with(sink.tier.as_ref(), &log, &view, &(), Some(pushing)).await.expect("follows");
    assert_eq!((mark.commit, mark), (done.commit, sink.tier.mark(&view.pinned()).expect("readable")));
    assert!(sink.held_back.load(Ordering::SeqCst) && mark.pushed >= 10, "{sink:?}");
    assert_eq!(sink.looks.load(Ordering::SeqCst), mark.pushed + 1, "once more than pushes came");
}

#[tokio::test]
async fn a_view_that_is_loaded_again_has_no_fewer_pushes_than_before_though_these_come_faster() {
    let project = TestProject::new(&[("ann", 10, 10, Some(4.0))]);
    let (_, view, sink) = loaded(&project).await;
    let pushing = Pushing { sink: &sink, changing: &sink.changing };
    let log = project.jobs().log(&view);
    let mark = load_again(sink.tier.as_ref(), &log, &view, &(), Some(pushing)).await.expect("loads");
    assert_eq!(mark, sink.tier.mark(&view.pinned()).expect("readable"));
    let came = sink.looks.load(Ordering::SeqCst) - 1;
    assert!(sink.held_back.load(Ordering::SeqCst) && mark.pushed == came, "{sink:?}");
}
