//! Pushes: what is wrong is named, what another system computes is held, and what was acknowledged survives kills. What
//! happens to pushes between flushes, refreshes and crashes is the simulation's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::push::{EventSink, PushHeader, PushLog};
use springhouse_featurestore::tier::{DiskTier, ObjectStore};
use springhouse_featurestore::time::Span;
use springhouse_materializer::Jobs;
use springhouse_materializer::push::Pushes;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::{FeatureServer, FeatureSource};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{Event, TestProject, at, write_events};
use crate::seeded::Seeded;
use crate::windows::{USERS, check, definitions, number};

/// A store that takes pushes.
pub struct Server {
    pub features: Arc<FeatureServer>,
    pub pushes: Arc<Pushes>,
}

impl Server {
    async fn start(project: &TestProject, cache_bytes: u64) -> Self {
        Self::start_on(project, &project.store, cache_bytes).await
    }

    /// A server that sees the project's object storage through `store`.
    pub async fn start_on(project: &TestProject, store: &Arc<dyn ObjectStore>, cache_bytes: u64) -> Self {
        Self::start_in(project.folder.path(), project.jobs_on(store), cache_bytes).await
    }

    /// A server with its disk tier and its log in a folder, with the store and the clock of its jobs.
    pub async fn start_in(folder: &Path, jobs: Jobs, cache_bytes: u64) -> Self {
        Self::start_with(folder, jobs, cache_bytes, || {}).await
    }

    /// The same; `looks` is called whenever pushes look at the catalog.
    pub async fn start_with(
        folder: &Path,
        jobs: Jobs,
        cache_bytes: u64,
        looks: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let disk = opened(&folder.join("disk"), DiskTier::open).await;
        let log = opened(&folder.join("log"), PushLog::open).await;
        let (store, clock) = (Arc::clone(jobs.store()), Arc::clone(jobs.clock()));
        let features = Arc::new(FeatureServer::new(store, disk, cache_bytes, clock));
        features.follow(&()).await.expect("follows");
        let (tier, changing) = features.tier();
        let followed = features.followed();
        let catalog = Box::new(move || {
            looks();
            followed()
        });
        let pushes = Pushes::start(jobs, log, tier, changing, catalog).await.expect("starts");
        let pushes = Arc::new(pushes);
        features.push_to(Arc::clone(&pushes) as _);
        features.follow(&()).await.expect("replays");
        Self { features, pushes }
    }

    pub fn lookup(&self, users: &[Option<&str>]) -> RecordBatch {
        let users: ArrayRef = Arc::new(StringArray::from(users.to_vec()));
        let keys = RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
        self.features.lookup_with(&self.features.plan("limits").expect("defined"), &keys).expect("looks up")
    }
}

/// A server that was dropped lets go of its folders when its tasks have ended.
pub async fn opened<T>(folder: &Path, open: fn(&Path) -> springhouse_featurestore::Result<T>) -> T {
    for _ in 0..500 {
        match open(folder) {
            Err(error) if error.kind() == ErrorKind::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
            opened => return opened.expect("opens"),
        }
    }
    panic!("{} stays in use", folder.display());
}

/// Waits until nobody has a server's folder open.
pub async fn closed(folder: &Path) {
    if folder.ends_with("log") {
        drop(opened(folder, PushLog::open).await);
    } else {
        drop(opened(folder, DiskTier::open).await);
    }
}

pub fn batch(events: &[Event]) -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.0)));
    let times = events.iter().map(|event| event.1 * 1_000_000);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"));
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter(events.iter().map(|event| event.3)));
    RecordBatch::try_from_iter_with_nullable([
        ("user_name", users, true),
        ("paid_at", times, true),
        ("amount", amounts, true),
    ])
    .expect("three columns")
}

pub fn events_before(random: &mut Seeded, now: i64, most: u64) -> Vec<Event> {
    let amount = |random: &mut Seeded| match random.below(12) {
        0 => None,
        1 => Some(f64::NAN),
        _ => Some(f64::from(i32::try_from(random.below(200)).expect("small") - 100) / 2.0),
    };
    (0..random.below(most))
        .map(|_| {
            let back = random.pick(&[60, 4_000, 100_000]);
            let event = (now - number(random.below(back))).max(0);
            let event = if random.below(2) == 0 { event - event % 60 } else { event };
            (random.pick(&USERS[..3]), event, now, amount(random))
        })
        .collect()
}

pub async fn refresh_all(project: &TestProject, state: &CatalogState) {
    for view in state.live_views() {
        project.jobs().refresh(state, view).await.expect("refreshes");
    }
}

/// A heartbeat alone moves a view's watermark.
pub async fn heartbeat(server: &Server, now: i64) {
    let header = PushHeader { producer: Some("till".to_owned()), sequence: None, watermark: Some(at(now)) };
    server.pushes.push("paid", batch(&[]), header).await.expect("a heartbeat");
    let answer = server.lookup(&[Some("ann")]);
    assert_eq!(answer["spending@as_of"].as_primitive::<TimestampMicrosecondType>().value(0), now * 1_000_000);
    assert_ne!(answer["spending@status"].as_string::<i32>().value(0), "stale");
}

pub async fn training_sets(
    project: &TestProject,
    state: &CatalogState,
    events: &[Event],
    until: i64,
    random: &mut Seeded,
    case: u64,
) {
    let spine: Vec<Event> =
        (0..60).map(|_| (random.pick(&USERS), until - number(random.below(200_000)), 0, None)).collect();
    write_events(&project.folder.path().join("spine.parquet"), &spine);
    let contract = state.current_contract("limits").expect("defined");
    for rows in [RowsFrom::Committed, RowsFrom::Sources] {
        let source = SpineSource { from: "spine.parquet".to_owned(), time: "paid_at".to_owned(), lag: Span::ZERO };
        let request = TrainingSetRequest {
            spine: source,
            rows,
            as_of: AsOf::Known,
            with_features: true,
            order: SpineOrder::AsGiven,
        };
        let set = project.jobs().training_set(state, contract, &request).await.expect("plans");
        let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
        let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
        for (row, (user, now, ..)) in spine.iter().enumerate() {
            check(&all, row, events, Some(user), *now, *now, &format!("case {case}, {rows:?}, {user} at {now}"));
        }
    }
}

#[tokio::test]
async fn an_event_counts_as_served_from_when_it_came_and_not_from_its_flush() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    let server = Server::start(&project, 0).await;
    project.clock.set(at(1_005));
    let header = PushHeader { producer: Some("till".to_owned()), sequence: Some(1), watermark: Some(at(1_004)) };
    server.pushes.push("paid", batch(&[("ann", 1_003, 0, Some(2.0))]), header).await.expect("taken");
    project.clock.set(at(1_060));
    heartbeat(&server, 1_060).await;
    server.pushes.flush().await.expect("flushes");
    refresh_all(&project, &state).await;
    let spine = "SELECT 'ann' AS user_name, to_timestamp(s) AT TIME ZONE 'UTC' AS t \
                 FROM (VALUES (1002), (1004), (1006), (1059)) AS v (s)";
    let request = TrainingSetRequest {
        spine: SpineSource { from: spine.to_owned(), time: "t".to_owned(), lag: Span::ZERO },
        rows: RowsFrom::Committed,
        as_of: AsOf::Served,
        with_features: true,
        order: SpineOrder::AsGiven,
    };
    let contract = state.current_contract("limits").expect("defined");
    let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
    let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
    let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
    let counted: Vec<_> = all["spending.payments_2d"].as_primitive::<Int64Type>().iter().flatten().collect();
    assert_eq!(counted, [1, 1, 2, 2]);
}

/// Readers and producers race; each reader compares with what was acknowledged before it asked, and sent when it was
/// answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lookup_that_begins_after_an_acknowledgement_shows_its_events() {
    let project = TestProject::new(&[]);
    project.clock.set(at(1_000));
    let state = project.apply(&definitions()).await.expect("valid definitions");
    refresh_all(&project, &state).await;
    let server = Arc::new(Server::start(&project, 1 << 20).await);
    let [sent, acknowledged, asked] = [(); 3].map(|()| Arc::new(AtomicI64::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (server, done, asked) = (Arc::clone(&server), Arc::clone(&done), Arc::clone(&asked));
            let (sent, acknowledged) = (Arc::clone(&sent), Arc::clone(&acknowledged));
            tokio::task::spawn_blocking(move || {
                while !done.load(Ordering::SeqCst) {
                    let least = acknowledged.load(Ordering::SeqCst);
                    let answer = server.lookup(&[Some("ann")]);
                    let most = sent.load(Ordering::SeqCst);
                    let payments = answer["spending.payments_2d"].as_primitive::<Int64Type>();
                    let seen = if payments.is_valid(0) { payments.value(0) } else { 0 };
                    assert!((least..=most).contains(&seen), "{least} acknowledged, {seen} seen, {most} sent");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let producers = (0..3).map(|producer| {
        let (server, sent, acknowledged) = (Arc::clone(&server), Arc::clone(&sent), Arc::clone(&acknowledged));
        async move {
            for round in 0..100 {
                let events: Vec<Event> = (0..=round % 3).map(|_| ("ann", 900 + producer, 0, Some(1.0))).collect();
                let count = i64::try_from(events.len()).expect("small");
                sent.fetch_add(count, Ordering::SeqCst);
                server.pushes.push("paid", batch(&events), PushHeader::default()).await.expect("acknowledged");
                acknowledged.fetch_add(count, Ordering::SeqCst);
            }
        }
    });
    futures::future::join_all(producers).await;
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.expect("no reader has seen too little or too much");
    }
    assert!(asked.load(Ordering::SeqCst) > 100, "the readers were there");
}

#[tokio::test]
async fn a_wrong_push_is_named_and_nothing_of_it_is_taken() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(100));
    refresh_all(&project, &state).await;
    let server = Server::start(&project, 1 << 20).await;
    let good = batch(&[("ann", 50, 0, Some(2.0))]);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["much"]));
    let naive: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![50_000_000]));
    let without: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![None]).with_timezone("UTC"));
    let replaced = |name: &str, array: &ArrayRef| {
        let columns = good.schema_ref().fields().iter().zip(good.columns()).map(|(field, column)| {
            (field.name().clone(), if field.name() == name { Arc::clone(array) } else { Arc::clone(column) }, true)
        });
        RecordBatch::try_from_iter_with_nullable(columns.collect::<Vec<_>>()).expect("a batch")
    };
    let more = RecordBatch::try_from_iter_with_nullable(
        good.schema_ref()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .zip(good.columns().iter().cloned())
            .chain([("tip".to_owned(), Arc::clone(good.column(2)))])
            .map(|(n, c)| (n, c, true)),
    )
    .expect("a batch");
    for (source, events, expected) in [
        (
            "paid",
            good.project(&[0, 1]).expect("two columns"),
            "a column of the source is missing [source: paid, column: amount]",
        ),
        ("paid", more, "column: tip"),
        ("paid", replaced("amount", &text), "expected: DOUBLE"),
        ("paid", replaced("paid_at", &naive), "times have no zone"),
        ("paid", replaced("paid_at", &without), "an event has no event time"),
        ("paid", batch(&[("ann", 106, 0, None)]), "an event lies in the future"),
        ("spent", good.clone(), "no such source"),
        ("branches", good.clone(), "a STATIC source takes no pushes"),
    ] {
        let error = server.pushes.push(source, events, PushHeader::default()).await.expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let ack = server.pushes.push("paid", good, PushHeader::default()).await.expect("taken");
    assert_eq!((ack.rows, ack.position, ack.watermark), (1, 1, None));
}

#[tokio::test]
async fn a_pushed_view_holds_what_another_system_computed() {
    let project = TestProject::new(&[]);
    let text = "
        CREATE ENTITY user_account KEY (user_name VARCHAR);
        CREATE FEATURE VIEW risk ENTITY user_account EVENT TIME paid_at AVAILABLE AT known_at LATENESS '1 hour'
          AS PUSHED (user_name VARCHAR, paid_at TIMESTAMP, known_at TIMESTAMP, amount DOUBLE);
        CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR)
          FEATURES (risk FRESH WITHIN '1 minute' ON STALE SERVE ON MISSING DEFAULT)
          INPUTS (coalesce(risk.amount, 0) AS risk) OUTPUT (limit FLOAT);";
    let state = project.apply(text).await.expect("valid definitions");
    project.clock.set(at(10_000));
    refresh_all(&project, &state).await;
    let server = Server::start(&project, 1 << 20).await;
    let risk = |server: &Server| {
        let answer = server.lookup(&[Some("ann")]);
        let risk = answer["risk.amount"].as_primitive::<arrow::datatypes::Float64Type>();
        let risk = Array::is_valid(risk, 0).then(|| format!("{}", risk.value(0)));
        (risk, answer["risk@status"].as_string::<i32>().value(0).to_owned())
    };
    assert_eq!(risk(&server), (None, "missing".to_owned()));
    let header = |watermark| PushHeader { producer: Some("flink".to_owned()), sequence: None, watermark };
    let push = async |events: &[Event], watermark| {
        server.pushes.push("risk", batch(events), header(watermark)).await.expect("taken")
    };
    // Nobody has said how far the other system has got.
    push(&[("ann", 9_000, 0, Some(0.5))], None).await;
    assert_eq!(risk(&server), (Some("0.5".to_owned()), "stale".to_owned()));
    push(&[], Some(at(9_990))).await;
    assert_eq!(risk(&server).1, "fresh");
    // An older score does not replace a newer one, nor does one that came too late.
    let ack = push(&[("ann", 8_000, 0, Some(0.1)), ("ann", 1, 0, Some(0.2))], None).await;
    assert_eq!((ack.rows, ack.late), (2, 1));
    assert_eq!(risk(&server).0.as_deref(), Some("0.5"));
    push(&[("ann", 9_500, 0, Some(0.75))], None).await;
    assert_eq!(risk(&server).0.as_deref(), Some("0.75"));
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    assert_eq!(risk(&server).0.as_deref(), Some("0.75"));
    project.clock.set(at(10_100));
    refresh_all(&project, &state).await;
    let view = state.live_views()[0];
    let log = project.jobs().log(view).state().await.expect("readable");
    assert_eq!((log.late, log.watermark), (1, Some(at(9_990))));
    assert_eq!(risk(&server).1, "stale", "the other system says nothing any more");
}

/// The time at which the killed server runs: all events happened before it.
pub const KILLED_AT: i64 = 172_800;

/// The events of a producer's batch: no two of one time.
pub fn batch_of(producer: u64, sequence: u64) -> Vec<Event> {
    let mut random = Seeded::new(producer << 32 | sequence);
    (0..=random.below(4))
        .map(|index| {
            let event = KILLED_AT - 1 - number(producer + 3 * (4 * sequence + index));
            let amount = f64::from(i32::try_from(random.below(100)).expect("small")) / 2.0;
            (random.pick(&USERS[..3]), event, event, Some(amount))
        })
        .collect()
}

/// Sends all batches; what was not acknowledged when the server went away is sent again.
pub async fn produce(address: String, producer: u64, batches: u64) {
    let mut acked = 0;
    while acked < batches {
        let store = RemoteFeatures::new(&address).expect("an address");
        let Ok(mut pusher) = store.pusher("paid", batch(&[]).schema()).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut sent = acked;
        loop {
            while sent < batches && pusher.waiting() < 8 {
                let header =
                    PushHeader { producer: Some(producer.to_string()), sequence: Some(sent + 1), watermark: None };
                if pusher.send(&batch(&batch_of(producer, sent + 1)), &header).await.is_err() {
                    break;
                }
                sent += 1;
            }
            match pusher.ack().await {
                Ok(_) => acked += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    break;
                }
            }
            if acked == batches {
                return;
            }
        }
    }
}

fn serve(project: &TestProject, port: u16) -> std::process::Child {
    std::process::Command::new(crate::flights::binary())
        .arg("--project")
        .arg(project.folder.path())
        .args(["--clock", &at(KILLED_AT).to_string(), "serve", "--role", "store", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts")
}

/// Every event is there once, in a store that was started with a clock: before what is in its log is flushed, and after.
pub async fn all_are_there(address: &str, state: &CatalogState, events: &[Event], place: &str) {
    let store = RemoteFeatures::new(address).expect("an address");
    let contract = state.current_contract("limits").expect("defined").pinned();
    let users: ArrayRef = Arc::new(StringArray::from(USERS.to_vec()));
    let keys = RecordBatch::try_from_iter([("user_name", users)]).expect("keys");
    for flushed in [false, true] {
        if flushed {
            store.act("flush", "").await.expect("flushes");
        }
        let now = KILLED_AT + 90;
        store.act("clock", &at(now).to_string()).await.expect("set");
        let answer = store.lookup(&contract, keys.clone()).await.expect("looks up");
        for (row, user) in USERS.into_iter().enumerate() {
            let place = format!("{user} {place}, flushed: {flushed}");
            check(&answer, row, events, Some(user), now, now, &place);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_once_after_kills() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    std::fs::write(project.folder.path().join("springhouse.toml"), "store = \"store\"\n").expect("writable");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("free").port();
    let address = format!("http://127.0.0.1:{port}");
    let batches = 3_000;
    let producers: Vec<_> = (0..3).map(|producer| tokio::spawn(produce(address.clone(), producer, batches))).collect();
    let (mut random, mut kills) = (Seeded::new(77), 0);
    let mut child = serve(&project, port);
    while producers.iter().any(|producer| !producer.is_finished()) {
        tokio::time::sleep(Duration::from_millis(50 + random.below(250))).await;
        if producers.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
        child.kill().expect("running");
        child.wait().expect("ended");
        kills += 1;
        if kills % 3 == 0 {
            std::fs::remove_dir_all(project.folder.path().join(".springhouse/disk")).expect("removable");
        }
        child = serve(&project, port);
        // With each kill there is a little more time, so that the end is reached.
        tokio::time::sleep(Duration::from_millis(100 * kills)).await;
    }
    for producer in producers {
        producer.await.expect("no panic");
    }
    let mut events: Vec<Event> = vec![("ann", 10, 10, Some(1.0))];
    events.extend((0..3).flat_map(|producer| (1..=batches).flat_map(move |sequence| batch_of(producer, sequence))));
    all_are_there(&address, &state, &events, &format!("after {kills} kills")).await;
    child.kill().expect("running");
    child.wait().expect("ended");
    assert!(kills >= 3, "{kills} kills");
}
