//! What takes long while others go on: refreshes under flushes, loads under pushes, views that are far behind or slow to
//! read, and a clock that is set back.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::object_storage::api::{
    self as object_storage, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{DiskTier, ReferenceTier, ViewCommitKind, catch_up};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_serving::FeatureServer;
use tokio::sync::{Notify, watch};

use crate::project::{Event, TestProject, at, write_events};
use crate::push::{Server, batch, refresh_all};
use crate::windows::{USERS, check, definitions};

/// Whatever is waited for comes sooner, or never.
const SOON: Duration = Duration::from_secs(30);

/// What a call of a store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Put,
    Get,
}

/// What is done before a call is carried out; an error is the answer.
type Before = dyn Fn(Call, String) -> BoxFuture<'static, object_storage::Result<()>> + Send + Sync;

/// A store before which something is done with each call.
pub struct Meddled {
    inner: Arc<dyn ObjectStore>,
    before: Box<Before>,
}

impl Meddled {
    pub fn of(
        inner: &Arc<dyn ObjectStore>,
        before: impl Fn(Call, String) -> BoxFuture<'static, object_storage::Result<()>> + Send + Sync + 'static,
    ) -> Arc<dyn ObjectStore> {
        Arc::new(Self { inner: Arc::clone(inner), before: Box::new(before) })
    }
}

impl fmt::Debug for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meddled").finish_non_exhaustive()
    }
}

impl fmt::Display for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("meddled store")
    }
}

#[async_trait]
impl ObjectStore for Meddled {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> object_storage::Result<PutResult> {
        (self.before)(Call::Put, path.to_string()).await?;
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_storage::Result<Box<dyn MultipartUpload>> {
        (self.before)(Call::Put, path.to_string()).await?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_storage::Result<GetResult> {
        (self.before)(Call::Get, path.to_string()).await?;
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
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_storage::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Lets those through who come to it, and keeps them while it is closed.
struct Gate {
    closed: watch::Sender<bool>,
    reached: Notify,
    passed: AtomicU64,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { closed: watch::Sender::new(false), reached: Notify::new(), passed: AtomicU64::new(0) })
    }

    /// A store whose gets of paths that hold all these words come to it.
    fn before(self: &Arc<Self>, store: &Arc<dyn ObjectStore>, words: &'static [&'static str]) -> Arc<dyn ObjectStore> {
        let gate = Arc::clone(self);
        Meddled::of(store, move |call, path| {
            let gate = Arc::clone(&gate);
            Box::pin(async move {
                if call == Call::Get && words.iter().all(|word| path.contains(word)) {
                    gate.pass().await;
                }
                Ok(())
            })
        })
    }

    async fn pass(&self) {
        self.passed.fetch_add(1, Ordering::SeqCst);
        let mut closed = self.closed.subscribe();
        if *closed.borrow_and_update() {
            self.reached.notify_one();
            closed.wait_for(|closed| !closed).await.expect("the gate is there");
        }
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }

    fn open(&self) {
        self.closed.send_replace(false);
    }

    async fn is_reached(&self) {
        soon(self.reached.notified()).await;
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("soon")
}

/// A view that reaches back, and a contract over the views of rows.
const LATELY: &str = "
CREATE FEATURE VIEW lately ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, paid_at,
            count(*) OVER (PARTITION BY user_name ORDER BY paid_at RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS n
     FROM paid;
CREATE CONTRACT latest TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (lately FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT,
            last_payment FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(lately.n, -1) AS n) OUTPUT (fraud_probability FLOAT);
";

/// The usual definitions, of a source whose events are known when they happen, and that view.
fn with_lately() -> String {
    definitions().replace(" AVAILABLE AT known_at", "").replace(", known_at", "") + LATELY
}

/// An event that is known when it happens.
fn event(user: &'static str, second: i64, amount: f64) -> Event {
    (user, second, second, Some(amount))
}

fn view_of(state: &CatalogState, name: &str) -> FeatureView {
    state.live_views().into_iter().find(|view| view.name == name).expect("defined").clone()
}

fn keys() -> ArrayRef {
    Arc::new(StringArray::from(USERS.to_vec()))
}

fn ask(server: &Server, contract: &str) -> RecordBatch {
    let keys = RecordBatch::try_from_iter_with_nullable([("user_name", keys(), true)]).expect("keys");
    server.features.lookup_with(&server.features.plan(contract).expect("defined"), &keys).expect("looks up")
}

/// What a tier answers that has everything from object storage.
async fn ask_anew(project: &TestProject, state: &CatalogState, contract: &str, now: i64) -> RecordBatch {
    let contract = state.current_contract(contract).expect("defined");
    let views: Vec<FeatureView> =
        contract.features.iter().map(|rule| state.view(&rule.view).expect("pinned").clone()).collect();
    let tier = ReferenceTier::default();
    for view in &views {
        catch_up(&tier, &project.jobs().log(view), view, &()).await.expect("loads");
    }
    LookupPlan::new(contract, &views).expect("its views").lookup(&tier, &[keys()], at(now)).expect("looks up")
}

/// Checks the answers of all views against a count of all events.
fn check_all(windows: &RecordBatch, rows: &RecordBatch, events: &[Event], now: i64, place: &str) {
    for (row, user) in USERS.into_iter().enumerate() {
        check(windows, row, events, Some(user), now, now, place);
        let of_user: Vec<&Event> = events.iter().filter(|event| event.0 == user && event.1 <= now).collect();
        let newest = of_user.iter().max_by_key(|event| event.1);
        let lately = newest.map(|newest| of_user.iter().filter(|event| newest.1 - 3_600 <= event.1).count());
        let counts = rows["lately.n"].as_primitive::<Int64Type>();
        let found = counts.is_valid(row).then(|| usize::try_from(counts.value(row)).expect("a count"));
        assert_eq!(found, lately, "lately of {user}, {place}: {of_user:?}");
        let last = newest.filter(|newest| now - newest.1 <= 3_600).and_then(|newest| newest.3);
        let amounts = rows["last_payment.amount"].as_primitive::<Float64Type>();
        assert_eq!(amounts.is_valid(row).then(|| amounts.value(row)), last, "last_payment of {user}, {place}");
    }
}

/// Pushes an event and flushes it, as often as it is left to.
struct Meddler {
    server: Server,
    left: AtomicU64,
    pushed: Mutex<Vec<Event>>,
}

impl Meddler {
    async fn meddle(&self) {
        let less = |left: u64| left.checked_sub(1);
        let Ok(left) = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) else { return };
        let new = event("ann", 19_000 + i64::try_from(left).expect("small"), 0.5);
        self.server.pushes.push("paid", batch(&[new]), PushHeader::default()).await.expect("taken");
        self.server.pushes.flush().await.expect("flushes");
        self.pushed.lock().expect("not poisoned").push(new);
    }
}

/// A flush commits before the refresh's data file is there, and before each of its commits is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_under_flushes_is_computed_once_and_loses_nothing() {
    for name in ["spending", "last_payment", "lately"] {
        let before = [
            event("ann", 100, 1.0),
            event("bob", 200, 2.0),
            event("ann", 15_000, 3.0),
            event("ann", 18_500, 4.0),
            event("bob", 19_500, 5.0),
            event("cid", 19_990, 6.0),
        ];
        let project = TestProject::new(&before);
        let state = project.apply(&with_lately()).await.expect("valid definitions");
        project.clock.set(at(10_000));
        refresh_all(&project, &state).await;
        let server = Server::start_on(&project, &project.store, 0).await;
        project.clock.set(at(20_000));
        let meddler = Arc::new(Meddler { server, left: AtomicU64::new(12), pushed: Mutex::default() });
        let computed = Arc::new(AtomicU64::new(0));
        let store = {
            let (meddler, computed) = (Arc::clone(&meddler), Arc::clone(&computed));
            let folder = format!("views/{name}/");
            Meddled::of(&project.store, move |call, path| {
                let (meddler, computed) = (Arc::clone(&meddler), Arc::clone(&computed));
                let own = call == Call::Put && path.starts_with(&folder);
                Box::pin(async move {
                    if own && path.contains("/data/") {
                        computed.fetch_add(1, Ordering::SeqCst);
                        meddler.meddle().await;
                    } else if own && path.contains("/log/") {
                        meddler.meddle().await;
                    }
                    Ok(())
                })
            })
        };
        let view = view_of(&state, name);
        let done = project.jobs_on(&store).refresh(&state, &view).await.expect("refreshes");
        assert!(done.committed && done.watermark == at(20_000), "{done:?}");
        assert_eq!(meddler.left.load(Ordering::SeqCst), 0, "it was meddled with");
        assert_eq!(computed.load(Ordering::SeqCst), 1, "{name} is computed once");
        let kinds: Vec<ViewCommitKind> = {
            let commits = project.jobs().log(&view).commits_after(0).await.expect("readable");
            commits.into_iter().map(|(_, commit)| commit.kind).collect()
        };
        assert!(kinds.len() >= 12 && kinds.last() == Some(&ViewCommitKind::Refresh), "{kinds:?}");
        refresh_all(&project, &state).await;
        meddler.server.features.follow(&()).await.expect("follows");
        let mut events = before.to_vec();
        events.extend(meddler.pushed.lock().expect("not poisoned").iter());
        let place = format!("after a refresh of {name}");
        check_all(&ask(&meddler.server, "limits"), &ask(&meddler.server, "latest"), &events, 20_000, &place);
        let windows = ask_anew(&project, &state, "limits", 20_000).await;
        check_all(&windows, &ask_anew(&project, &state, "latest", 20_000).await, &events, 20_000, "from storage");
    }
}

/// History grows between a push and its flush: what rests on both is in the flush's rows, and not in those of the push.
#[tokio::test]
async fn what_a_flush_computes_again_reaches_the_tiers() {
    let before = [event("ann", 100, 1.0)];
    let project = TestProject::new(&before);
    let state = project.apply(&with_lately()).await.expect("valid definitions");
    project.clock.set(at(10_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    project.clock.set(at(20_000));
    let pushed = event("ann", 19_000, 2.0);
    server.pushes.push("paid", batch(&[pushed]), PushHeader::default()).await.expect("taken");
    let grown = [before[0], event("ann", 18_900, 3.0)];
    write_events(&project.folder.path().join("payments.parquet"), &grown);
    refresh_all(&project, &state).await;
    server.pushes.flush().await.expect("flushes");
    project.clock.set(at(20_060));
    refresh_all(&project, &state).await;
    server.features.follow(&()).await.expect("follows");
    let events = [grown[0], grown[1], pushed];
    check_all(&ask(&server, "limits"), &ask(&server, "latest"), &events, 20_060, "online");
    let windows = ask_anew(&project, &state, "limits", 20_060).await;
    check_all(&windows, &ask_anew(&project, &state, "latest", 20_060).await, &events, 20_060, "from storage");
}

/// A store to which views' commits cannot be written while that is so.
fn without_commits(store: &Arc<dyn ObjectStore>, so: &Arc<AtomicBool>) -> Arc<dyn ObjectStore> {
    let so = Arc::clone(so);
    Meddled::of(store, move |call, path| {
        let fails =
            call == Call::Put && path.starts_with("views/") && path.contains("/log/") && so.load(Ordering::SeqCst);
        Box::pin(async move {
            let failed = || object_storage::Error::Generic { store: "meddled", source: "no answer".into() };
            if fails { Err(failed()) } else { Ok(()) }
        })
    })
}

/// What a user has spent within two days.
fn total_of_ann(server: &Server) -> f64 {
    server.lookup(&[Some("ann")])["spending.total_2d"].as_primitive::<Float64Type>().value(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_are_acknowledged_while_a_load_reads_what_was_flushed() {
    let project = TestProject::new(&[event("ann", 10, 4.0)]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let (gate, no_commits) = (Gate::new(), Arc::new(AtomicBool::new(false)));
    let store = without_commits(&gate.before(&project.store, &["pushes/data/"]), &no_commits);
    let server = Server::start_on(&project, &store, 0).await;
    let push = async |second: i64, amount: f64| {
        let pushed = server.pushes.push("paid", batch(&[event("ann", second, amount)]), PushHeader::default());
        soon(pushed).await.expect("taken")
    };
    push(900, 8.0).await;
    no_commits.store(true, Ordering::SeqCst);
    server.pushes.flush().await.expect_err("the events are flushed, and no view has them");
    no_commits.store(false, Ordering::SeqCst);
    // A generation is lost: what is loaded lacks that push, which is on object storage alone.
    server.features.tier().0.forget(&view_of(&state, "spending").pinned()).expect("forgets");
    gate.close();
    let features = Arc::clone(&server.features);
    let following = tokio::spawn(async move { features.follow(&()).await });
    gate.is_reached().await;
    let ack = push(950, 16.0).await;
    assert_eq!((ack.rows, ack.behind), (1, Vec::new()));
    gate.open();
    soon(following).await.expect("no panic").expect("follows");
    assert!((total_of_ann(&server) - 28.0).abs() < 1e-9, "{}", total_of_ann(&server));
    push(960, 32.0).await;
    assert!((total_of_ann(&server) - 60.0).abs() < 1e-9, "{}", total_of_ann(&server));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_reads_slow_storage_for_its_rows_is_behind_alone() {
    let before = [event("ann", 18_000, 1.0)];
    let project = TestProject::new(&before);
    let state = project.apply(&with_lately()).await.expect("valid definitions");
    project.clock.set(at(20_000));
    refresh_all(&project, &state).await;
    let gate = Gate::new();
    let server = Server::start_on(&project, &gate.before(&project.store, &["pushes/data/"]), 0).await;
    let mut events = before.to_vec();
    let push = async |second: i64| {
        let pushed = server.pushes.push("paid", batch(&[event("ann", second, 2.0)]), PushHeader::default());
        soon(pushed).await.expect("taken")
    };
    push(19_000).await;
    server.pushes.flush().await.expect("flushes");
    gate.close();
    assert_eq!(push(19_100).await.behind, ["lately"]);
    // It is known to be behind: nobody waits for it again.
    assert_eq!(push(19_200).await.behind, ["lately"]);
    events.extend([19_000, 19_100, 19_200].map(|second| event("ann", second, 2.0)));
    check(&server.lookup(&[Some("ann")]), 0, &events, Some("ann"), 20_000, 20_000, "the others have it");
    gate.open();
    server.features.follow(&()).await.expect("follows");
    check_all(&ask(&server, "limits"), &ask(&server, "latest"), &events, 20_000, "afterwards");
    assert_eq!(push(19_300).await.behind, Vec::<String>::new());
}

/// A push waits for several views that read slow storage no longer than for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_read_slow_storage_keep_a_push_waiting_together() {
    let others = [2, 3, 4].map(|hours| {
        let view = LATELY.split_once(';').expect("the view").0.replace("lately", &format!("lately_{hours}"));
        view.replace("'1 hour'", &format!("'{hours} hours'")) + ";"
    });
    let project = TestProject::new(&[event("ann", 18_000, 1.0)]);
    let state = project.apply(&(with_lately() + &others.concat())).await.expect("valid definitions");
    project.clock.set(at(20_000));
    refresh_all(&project, &state).await;
    let gate = Gate::new();
    let server = Server::start_on(&project, &gate.before(&project.store, &["pushes/data/"]), 0).await;
    let push = async |second: i64| {
        let pushed = server.pushes.push("paid", batch(&[event("ann", second, 2.0)]), PushHeader::default());
        soon(pushed).await.expect("taken")
    };
    push(19_000).await;
    server.pushes.flush().await.expect("flushes");
    gate.close();
    let began = tokio::time::Instant::now();
    assert_eq!(push(19_100).await.behind, ["lately", "lately_2", "lately_3", "lately_4"]);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    gate.open();
    server.features.follow(&()).await.expect("follows");
    assert_eq!(push(19_200).await.behind, Vec::<String>::new());
}

#[tokio::test]
async fn a_view_that_is_far_behind_is_caught_up_piece_by_piece() {
    catches_up_piece_by_piece(false).await;
}

#[tokio::test]
async fn pieces_end_within_a_file_that_was_merged_of_many() {
    catches_up_piece_by_piece(true).await;
}

async fn catches_up_piece_by_piece(merged: bool) {
    let project = TestProject::new(&[event("ann", 10, 4.0)]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let no_commits = Arc::new(AtomicBool::new(true));
    let store = without_commits(&project.store, &no_commits);
    let server = Server::start_in(project.folder.path(), project.jobs_on(&store).in_pieces_of(1), 0).await;
    project.clock.set(at(2_000));
    for number in 0..6 {
        let header =
            PushHeader { producer: Some("till".to_owned()), sequence: None, watermark: Some(at(1_500 + number)) };
        let new = [event("ann", 1_900 + number, 1.0), event("bob", 1_900 + number, 1.0)];
        server.pushes.push("paid", batch(&new), header).await.expect("taken");
        server.pushes.flush().await.expect_err("no view can have it");
    }
    if merged {
        let (jobs, now) = (project.jobs(), at(2_000));
        let files = jobs.pushed().state().await.expect("readable").files_of("paid").to_vec();
        let file = jobs.pushed().merge("paid", "merged", &files).await.expect("merged");
        assert!(jobs.pushed().replace("paid", &files, &file, now).await.expect("committed"));
        // It looks at what was merged; what that was made of is gone.
        server.pushes.flush().await.expect_err("no view can have it");
        jobs.collect_garbage(&state, Span::ZERO).await.expect("collects");
    }
    no_commits.store(false, Ordering::SeqCst);
    server.pushes.flush().await.expect("flushes");
    for name in ["spending", "last_payment"] {
        let commits = project.jobs().log(&view_of(&state, name)).commits_after(1).await.expect("readable");
        let ranges: Vec<(u64, u64)> =
            commits.iter().filter_map(|(_, commit)| commit.pushed).map(|range| (range.after, range.until)).collect();
        assert_eq!(ranges, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)], "{name}");
        // No watermark is ahead of what is there: what producers say comes with the last piece.
        let watermarks: BTreeSet<Timestamp> = commits[..5].iter().map(|(_, commit)| commit.watermark).collect();
        assert_eq!((watermarks, commits[5].1.watermark), (BTreeSet::from([at(1_000)]), at(1_505)), "{name}");
    }
    assert!((total_of_ann(&server) - 10.0).abs() < 1e-9);
    // A tier that has nothing takes what was committed and what was not in pieces too.
    let new = [event("ann", 1_950, 1.0)];
    no_commits.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        server.pushes.push("paid", batch(&new), PushHeader::default()).await.expect("taken");
        server.pushes.flush().await.expect_err("no view can have it");
    }
    server.features.tier().0.forget(&view_of(&state, "spending").pinned()).expect("forgets");
    server.features.follow(&()).await.expect("follows");
    assert!((total_of_ann(&server) - 13.0).abs() < 1e-9, "{}", total_of_ann(&server));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_back_leaves_the_answers_until_all_is_loaded_again() {
    let project = TestProject::new(&[event("bob", 9_000, 7.0)]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(10_000));
    refresh_all(&project, &state).await;
    let gate = Gate::new();
    let store = gate.before(&project.store, &["views/last_payment/", "/data/"]);
    let server = Server::start_on(&project, &store, 1 << 20).await;
    // Rows of before are past: they may leave the disk.
    project.clock.set(at(20_000));
    server.features.follow(&()).await.expect("follows");
    project.clock.set(at(10_000));
    let amount = || {
        let answer = ask(&server, "fraud");
        let amounts = answer["last_payment.amount"].as_primitive::<Float64Type>();
        amounts.is_valid(1).then(|| amounts.value(1))
    };
    gate.close();
    let features = Arc::clone(&server.features);
    let following = tokio::spawn(async move { features.follow(&()).await });
    gate.is_reached().await;
    assert_eq!(amount(), Some(7.0), "while it is loaded again");
    let new = [event("bob", 9_500, 8.0)];
    soon(server.pushes.push("paid", batch(&new), PushHeader::default())).await.expect("taken");
    assert_eq!(amount(), Some(8.0), "what is pushed meanwhile is answered");
    gate.open();
    soon(following).await.expect("no panic").expect("follows");
    assert_eq!(amount(), Some(8.0), "and stays");
    let read = gate.passed.load(Ordering::SeqCst);
    server.features.follow(&()).await.expect("follows");
    assert_eq!(gate.passed.load(Ordering::SeqCst), read, "once is enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_takes_long_to_load_keeps_no_other_from_being_followed() {
    let project = TestProject::new(&[event("ann", 10, 4.0), event("ann", 1_500, 5.0), event("ann", 2_500, 6.0)]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let gate = Gate::new();
    let store = gate.before(&project.store, &["views/spending/", "/data/"]);
    let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
    let features = Arc::new(FeatureServer::new(store, disk, 1 << 20, project.clock.clone()));
    features.follow_heads(&()).await.expect("follows");
    let watermark = |name: &str| {
        let status = features.status().expect("readable");
        status.views.iter().find(|view| view.view.starts_with(name)).expect("defined").watermark
    };
    gate.close();
    project.clock.set(at(2_000));
    refresh_all(&project, &state).await;
    let slow = tokio::spawn({
        let features = Arc::clone(&features);
        async move { features.follow_heads(&()).await }
    });
    gate.is_reached().await;
    project.clock.set(at(3_000));
    refresh_all(&project, &state).await;
    for _ in 0..1_000 {
        soon(features.follow_heads(&())).await.expect("follows");
        if watermark("last_payment") == Some(at(3_000)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((watermark("last_payment"), watermark("spending")), (Some(at(3_000)), Some(at(1_000))));
    gate.open();
    soon(slow).await.expect("no panic").expect("follows");
    features.follow_heads(&()).await.expect("follows");
    assert_eq!(watermark("spending"), Some(at(3_000)), "what came meanwhile is seen by the next look");
}

#[tokio::test]
async fn no_answer_is_as_of_a_time_before_its_row_was_there() {
    let project = TestProject::new(&[event("bob", 900, 1.0)]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start_on(&project, &project.store, 0).await;
    project.clock.set(at(1_100));
    let header = PushHeader { producer: Some("till".to_owned()), sequence: None, watermark: Some(at(1_050)) };
    server.pushes.push("paid", batch(&[event("ann", 1_090, 2.0)]), header).await.expect("taken");
    for (contract, view) in [("fraud", "last_payment"), ("limits", "spending")] {
        let answer = ask(&server, contract);
        let second = |column: &str, row: usize| {
            let times = answer[format!("{view}@{column}").as_str()].as_primitive::<TimestampMicrosecondType>();
            times.is_valid(row).then(|| times.value(row) / 1_000_000)
        };
        // It came at 1,100, and is known since.
        assert_eq!((second("event_time", 0), second("as_of", 0)), (Some(1_090), Some(1_100)), "{view}");
        // All that the others rest on is there up to the watermark.
        assert_eq!((second("event_time", 1), second("as_of", 1)), (Some(900), Some(1_050)), "{view}");
        assert_eq!((second("event_time", 3), second("as_of", 3)), (None, Some(1_050)), "{view}");
    }
}
