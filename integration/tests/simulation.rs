//! A seeded simulation of a store's life: a clock, pushes in any order and again, refreshes, backfills, flushes, restarts,
//! object storage that dies in the middle, and crashes of the process. After each step every lookup is what the oracle says.
//!
//! The same seed gives the same trace. `SPRINGHOUSE_SEEDS` says which seeds are run: `5000`, or `246..247`; the first
//! thousand are by default.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arrow::array::RecordBatch;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{BackfillAsked, ObjectStore};
use springhouse_featurestore::time::Span;

use crate::crash::DyingStore;
use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, events_before, heartbeat, refresh_all, training_sets};
use crate::seeded::Seeded;
use crate::windows::{check, definitions, number};

/// Seeds of a run without `SPRINGHOUSE_SEEDS`.
const SEEDS: u64 = 1_000;

/// Steps of a seed, and of a long one.
const STEPS: [u32; 2] = [6, 40];

/// Of so many seeds one is long, and ends with training sets, which take longer than a few steps.
const LONG: u64 = 50;

/// A store and what it should hold.
struct World {
    seed: u64,
    random: Seeded,
    project: TestProject,
    state: CatalogState,
    /// The object store as the server and its jobs see it.
    store: Arc<DyingStore>,
    server: Option<Server>,
    events: Vec<Event>,
    now: i64,
    sequence: u64,
    last: Option<(RecordBatch, PushHeader)>,
    trace: Vec<String>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let now = 150_000;
        let events = events_before(&mut random, now, 30);
        let project = TestProject::new(&events);
        let state = project.apply(&definitions()).await.expect("valid definitions");
        project.clock.set(at(now));
        refresh_all(&project, &state).await;
        let store = Arc::new(DyingStore { inner: Arc::clone(&project.store), calls_left: AtomicI64::new(i64::MAX) });
        let (sequence, last, trace) = (0, None, Vec::new());
        let mut world = Self { seed, random, project, state, store, server: None, events, now, sequence, last, trace };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let store = Arc::clone(&self.store) as Arc<dyn ObjectStore>;
        let cache_bytes = if self.seed.is_multiple_of(2) { 1 << 20 } else { 0 };
        self.server = Some(Server::start_on(&self.project, &store, cache_bytes).await);
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("running")
    }

    /// Lets object storage die after a few calls.
    fn doom(&mut self) -> u64 {
        let calls = self.random.below(8);
        self.store.calls_left.store(number(calls), Ordering::SeqCst);
        calls
    }

    fn revive(&self) {
        self.store.calls_left.store(i64::MAX, Ordering::SeqCst);
    }

    async fn step(&mut self) {
        self.now += 1 + number(self.random.below(3_000));
        self.project.clock.set(at(self.now));
        let what = match self.random.below(18) {
            0 => {
                self.server().pushes.flush().await.expect("flushes");
                self.server().features.follow(&()).await.expect("follows");
                "flushed".to_owned()
            }
            1 => {
                refresh_all(&self.project, &self.state).await;
                self.server().features.follow(&()).await.expect("follows");
                "refreshed".to_owned()
            }
            2 => {
                let calls = self.doom();
                let flushed = self.server().pushes.flush().await.is_ok();
                self.revive();
                self.server().features.follow(&()).await.expect("follows");
                format!("object storage died after {calls} calls of a flush, which succeeded: {flushed}")
            }
            3 => {
                let calls = self.doom();
                let view = self.state.live_views()[0];
                let store = Arc::clone(&self.store) as Arc<dyn ObjectStore>;
                let refreshed = self.project.jobs_on(&store).refresh(&self.state, view).await.is_ok();
                self.revive();
                self.server().features.follow(&()).await.expect("follows");
                format!("object storage died after {calls} calls of a refresh, which succeeded: {refreshed}")
            }
            4 => {
                self.server = None;
                self.start().await;
                "restarted".to_owned()
            }
            5 | 6 => self.crash().await,
            7 => match self.last.clone() {
                Some((sent, header)) => {
                    let ack = self.server().pushes.push("paid", sent, header).await.expect("taken");
                    assert!(ack.duplicate, "seed {}, sent again", self.seed);
                    "sent again".to_owned()
                }
                None => "nothing to send again".to_owned(),
            },
            8 => {
                // A backfill of history that has not changed: every tier loads the view anew, and nothing is other.
                let from = number(self.random.below(150_000));
                let until = from + 1 + number(self.random.below(150_000));
                let asked =
                    BackfillAsked { from: Some(at(from)), until: Some(at(until)), every: Span::from_secs(50_000) };
                let view = self.state.live_views()[0];
                self.project.jobs().backfill(&self.state, view, asked, &()).await.expect("backfills");
                self.server().features.follow(&()).await.expect("follows");
                format!("backfilled from {from} until {until}")
            }
            _ => self.push().await,
        };
        let answer = self.server().lookup(&USERS);
        let mut hash = DefaultHasher::new();
        for column in answer.columns() {
            format!("{column:?}").hash(&mut hash);
        }
        self.trace.push(format!("{} {what}: {:x}", self.now, hash.finish()));
        for (row, user) in USERS.into_iter().enumerate() {
            let place = format!("seed {}, {user:?}\n{}", self.seed, self.trace.join("\n"));
            check(&answer, row, &self.events, user, self.now, self.now, &place);
        }
    }

    async fn push(&mut self) -> String {
        let mut sent = Vec::new();
        for _ in 0..=self.random.below(3) {
            self.sequence += 1;
            let pushed = events_before(&mut self.random, self.now, 6);
            let watermark = (self.random.below(3) == 0).then(|| at(self.now));
            self.events.extend(&pushed);
            let producer = Some("till".to_owned());
            sent.push((batch(&pushed), PushHeader { producer, sequence: Some(self.sequence), watermark }));
        }
        self.last = sent.last().cloned();
        let what = format!("pushed {} batches", sent.len());
        let acks = sent.into_iter().map(|(batch, header)| self.server().pushes.push("paid", batch, header));
        for ack in futures::future::join_all(acks).await {
            assert!(!ack.expect("taken").duplicate, "seed {}", self.seed);
        }
        what
    }

    /// What is on disk now is all that there is after it: the running process's folders are taken as they lie, as after
    /// a kill. Sometimes the disk tier is lost too.
    async fn crash(&mut self) -> String {
        let folder = self.project.folder.path().to_owned();
        for name in ["disk", "log"] {
            copied(&folder.join(name), &folder.join(format!("{name}-crashed")));
        }
        self.server = None;
        let lost = self.random.below(3) == 0;
        for name in ["disk", "log"] {
            crate::push::closed(&folder.join(name)).await;
            std::fs::remove_dir_all(folder.join(name)).expect("removable");
            std::fs::rename(folder.join(format!("{name}-crashed")), folder.join(name)).expect("movable");
        }
        if lost {
            std::fs::remove_dir_all(folder.join("disk")).expect("removable");
        }
        self.start().await;
        if lost { "crashed, and lost its disk tier".to_owned() } else { "crashed".to_owned() }
    }

    /// What was flushed is in training sets, with the times at which it was known.
    async fn train(&mut self) {
        self.now += 60;
        self.project.clock.set(at(self.now));
        heartbeat(self.server(), self.now).await;
        self.server().pushes.flush().await.expect("flushes");
        refresh_all(&self.project, &self.state).await;
        training_sets(&self.project, &self.state, &self.events, self.now, &mut self.random, self.seed).await;
    }
}

const USERS: [Option<&str>; 5] = [Some("ann"), Some("bob"), Some("cid"), Some("nobody"), None];

/// Copies a folder of plain files; again where it changed meanwhile.
fn copied(from: &Path, to: &Path) {
    let listed = || -> BTreeMap<_, _> {
        let files = std::fs::read_dir(from).expect("readable").filter_map(Result::ok);
        files.filter_map(|file| Some((file.file_name(), file.metadata().ok()?.len()))).collect()
    };
    loop {
        let before = listed();
        drop(std::fs::remove_dir_all(to));
        std::fs::create_dir(to).expect("writable");
        let whole = before.keys().all(|name| std::fs::copy(from.join(name), to.join(name)).is_ok());
        if whole && listed() == before {
            return;
        }
    }
}

async fn simulate(seed: u64) -> Vec<String> {
    let mut world = World::new(seed).await;
    let long = seed.is_multiple_of(LONG);
    for _ in 0..STEPS[usize::from(long)] {
        world.step().await;
    }
    if long {
        world.train().await;
    }
    world.trace
}

fn run(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(simulate(seed))
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 7, LONG] {
        assert_eq!(run(seed), run(seed));
    }
}

#[test]
fn every_lookup_is_right_whatever_happens() {
    let seeds = std::env::var("SPRINGHOUSE_SEEDS").unwrap_or_else(|_| SEEDS.to_string());
    let (first, seeds) = seeds.split_once("..").unwrap_or(("0", &seeds));
    let number = |text: &str| text.parse::<u64>().expect("a number of seeds, or FIRST..END");
    let (next, seeds) = (AtomicU64::new(number(first)), number(seeds));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while next.load(Ordering::Relaxed) < seeds {
                    run(next.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    });
}
