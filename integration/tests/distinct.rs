//! Events that their source tells apart count once, by push and in history, whichever way each came first (rule T12):
//! random steps against an oracle that holds each event once, and after each step what is looked up and what a training set
//! gives; the log of pushes over days, and two processes that took the same event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Float64Type, Int64Type};
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::push::{EventSink, PushAck, PushHeader};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::backfill::asked;
use crate::meanwhile::{Call, Meddled};
use crate::project::{TestProject, at};
use crate::push::{Server, closed};
use crate::seeded::Seeded;
use crate::windows::number;

const DEFINITIONS: &str = "
CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments/';
CREATE SOURCE paid EVENT TIME paid_at DISTINCT ON (id) AS SELECT id, user_name, paid_at, amount FROM payments;
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW spending ENTITY user_account WINDOWS ('10 minutes', '1 day') STEP '1 minute' REFRESH EVERY '1 minute'
  AS SELECT user_name, count(*) AS n, sum(amount) AS total FROM paid GROUP BY user_name;
CREATE FEATURE VIEW latest ENTITY user_account REFRESH EVERY '1 minute' AS SELECT user_name, paid_at, id FROM paid;
CREATE FEATURE VIEW at_once ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 minute'
  AS SELECT user_name, paid_at, count(*) AS n FROM paid GROUP BY user_name, paid_at;
CREATE FEATURE VIEW lately ENTITY user_account REFRESH EVERY '1 minute' LOOKBACK '1 hour'
  AS SELECT user_name, paid_at,
            count(*) OVER (PARTITION BY user_name ORDER BY paid_at RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS n
     FROM paid;
CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR)
  FEATURES (spending FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT,
            latest FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT,
            at_once FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT,
            lately FRESH WITHIN '2 minutes' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(spending.n_10m, -1) AS n) OUTPUT (limit FLOAT);
";

const USERS: [&str; 3] = ["ann", "bob", "nobody"];

/// The second at which a test begins.
const BEGINS: i64 = 300_000;

const DAY: i64 = 86_400;

/// An event: what tells it apart, its user, its second. No two of a user are of one second.
type Paid = (i64, &'static str, i64);

fn batch(events: &[Paid]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(events.iter().map(|event| event.0)));
    let users: ArrayRef = Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.1)));
    let times = events.iter().map(|event| event.2 * 1_000_000);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"));
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter_values(events.iter().map(amount)));
    RecordBatch::try_from_iter_with_nullable([
        ("id", ids, true),
        ("user_name", users, true),
        ("paid_at", times, true),
        ("amount", amounts, true),
    ])
    .expect("four columns")
}

fn amount(event: &Paid) -> f64 {
    f64::from(i32::try_from(event.0).expect("small")) / 2.0
}

/// The store, who takes pushes for it, and what it should hold.
struct World {
    random: Seeded,
    project: TestProject,
    state: CatalogState,
    server: Option<Server>,
    now: i64,
    files: u32,
    /// All events that views have, each once.
    events: BTreeSet<Paid>,
    /// Whether views whose rows rest on several events are looked at. Nothing that reaches back may wait in the log then
    /// when history grows.
    reaching_back: bool,
    /// The numbers of those that were pushed.
    pushed: BTreeSet<i64>,
    /// All steps so far.
    steps: Vec<String>,
}

impl World {
    async fn new(seed: u64, reaching_back: bool) -> Self {
        let project = TestProject::new(&[]);
        std::fs::create_dir(project.folder.path().join("payments")).expect("writable");
        let mut world = Self {
            random: Seeded::new(seed),
            state: project.state().await,
            project,
            server: None,
            now: BEGINS,
            files: 0,
            events: BTreeSet::new(),
            reaching_back,
            pushed: BTreeSet::new(),
            steps: Vec::new(),
        };
        world.project.clock.set(at(BEGINS));
        let first = world.fresh(8);
        world.write(&first);
        world.state = world.project.apply(DEFINITIONS).await.expect("valid definitions");
        world.refresh().await;
        world.start().await;
        world.events.extend(first);
        world
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("running")
    }

    async fn start(&mut self) {
        self.server = Some(Server::start_in(self.project.folder.path(), self.project.jobs(), 1 << 20).await);
    }

    /// Ends the process, and with it what it has in memory.
    async fn stop(&mut self) {
        self.server = None;
        for folder in ["disk", "log"] {
            closed(&self.project.folder.path().join(folder)).await;
        }
    }

    /// Events that nobody has yet.
    fn fresh(&mut self, most: u64) -> Vec<Paid> {
        let mut fresh: Vec<Paid> = Vec::new();
        for _ in 0..=self.random.below(most) {
            let back = self.random.pick(&[20, 700, 4_000, 90_000]);
            let event = (0, self.random.pick(&USERS[..2]), self.now - number(self.random.below(back)));
            let mut others = self.events.iter().chain(&fresh);
            if !others.any(|other| (other.1, other.2) == (event.1, event.2)) {
                let id = i64::try_from(self.events.len() + fresh.len()).expect("few");
                fresh.push((
                    1_000 * i64::from(self.files) + id + number(self.random.below(7)) * 100_000,
                    event.1,
                    event.2,
                ));
            }
        }
        fresh.retain(|event| self.events.iter().all(|other| other.0 != event.0));
        let mut ids = BTreeSet::new();
        fresh.retain(|event| ids.insert(event.0));
        fresh
    }

    /// Some events that views have already.
    fn repeated(&mut self, most: u64) -> Vec<Paid> {
        let known: Vec<Paid> = self.events.iter().copied().collect();
        (0..self.random.below(most)).map(|_| self.random.pick(&known)).collect()
    }

    fn write(&mut self, events: &[Paid]) {
        self.files += 1;
        self.write_anew(self.files, events);
    }

    /// Puts a file in the place of one that was there.
    fn write_anew(&self, file: u32, events: &[Paid]) {
        let (batch, unseen) = (batch(events), self.project.folder.path().join("unseen.parquet"));
        let mut writer = ParquetFileWriter::create(&unseen, batch.schema(), &BTreeMap::new()).expect("writable");
        writer.write(&batch).expect("writable");
        writer.finish().expect("writable");
        std::fs::rename(unseen, self.project.folder.path().join(format!("payments/{file}.parquet"))).expect("writable");
    }

    async fn push(&mut self, events: &[Paid]) -> PushAck {
        let pushed = self.server().pushes.push("paid", batch(events), PushHeader::default()).await;
        let ack = pushed.unwrap_or_else(|error| panic!("{}: {:?}", error.chain(), self.steps));
        let before = self.pushed.len();
        self.pushed.extend(events.iter().map(|event| event.0));
        let new = (self.pushed.len() - before) as u64;
        assert_eq!((ack.rows, ack.repeated), (new, events.len() as u64 - new), "{:?}", self.steps);
        assert!(ack.behind.is_empty() && !ack.duplicate, "{ack:?}");
        self.events.extend(events);
        ack
    }

    /// Refreshes all views; those that say that history is another are backfilled.
    async fn refresh(&mut self) {
        let jobs = self.project.jobs();
        for view in self.state.live_views() {
            let done = jobs.refresh(&self.state, view).await.expect("refreshes");
            if done.restated.is_some() {
                assert!(view.reaches_back(), "{} takes late events in: {:?}, {:?}", view.name, done, self.steps);
                jobs.backfill(&self.state, view, asked(None, None, 100_000), &()).await.expect("backfills");
            }
        }
        if let Some(server) = &self.server {
            server.features.follow(&()).await.expect("follows");
        }
    }

    /// Refreshes all views, whatever they say of history.
    async fn refresh_naming(&self) {
        let jobs = self.project.jobs();
        for view in self.state.live_views() {
            jobs.refresh(&self.state, view).await.expect("refreshes");
        }
        self.server().features.follow(&()).await.expect("follows");
    }

    /// Everything is computed anew from the sources.
    async fn backfill_all(&self) {
        for view in self.state.live_views() {
            let jobs = self.project.jobs();
            jobs.backfill(&self.state, view, asked(None, None, 100_000), &()).await.expect("backfills");
        }
        self.server().features.follow(&()).await.expect("follows");
    }

    /// The disk tier is lost, and made again from object storage and the log.
    async fn loses_its_disk(&mut self) {
        self.stop().await;
        std::fs::remove_dir_all(self.project.folder.path().join("disk")).expect("it can be deleted");
        self.start().await;
    }

    async fn step(&mut self) {
        let step = self.random.below(10);
        self.steps.push(format!("{}: {step}", self.now));
        match step {
            0..=2 => {
                let mut events = self.repeated(4);
                events.extend(self.fresh(3));
                events.extend(events.first().copied());
                self.random.shuffle(&mut events);
                self.push(&events).await;
            }
            3 | 4 => {
                if self.reaching_back {
                    self.server().pushes.flush().await.expect("flushes");
                }
                let mut events = self.fresh(4);
                let (fresh, repeated) = (events.clone(), self.repeated(5));
                events.extend(repeated);
                events.extend(events.first().copied());
                self.write(&events);
                // Some of it is pushed too, before or after the history is read.
                if self.random.below(2) == 0 && !fresh.is_empty() {
                    self.push(&fresh[..1]).await;
                }
                self.refresh().await;
                self.events.extend(fresh.iter().copied());
                if self.random.below(2) == 0 {
                    self.push(&fresh).await;
                }
            }
            5 => {
                let mut events = self.repeated(6);
                events.extend(events.first().copied());
                if !events.is_empty() {
                    self.write(&events);
                }
            }
            6 => {
                self.server().pushes.flush().await.expect("flushes");
            }
            7 => self.refresh().await,
            8 => {
                self.stop().await;
                if self.random.below(2) == 0 {
                    std::fs::remove_dir_all(self.project.folder.path().join("disk")).expect("it can be deleted");
                }
                self.start().await;
            }
            _ => {
                let views = self.state.live_views();
                let view = views[usize::try_from(self.random.below(views.len() as u64)).expect("small")];
                self.steps.push(format!("backfills {}", view.name));
                self.project
                    .jobs()
                    .backfill(&self.state, view, asked(None, None, 100_000), &())
                    .await
                    .expect("backfills");
                self.server().features.follow(&()).await.expect("follows");
            }
        }
    }

    /// Time passes.
    fn moves_on(&mut self) {
        self.now += self.random.pick(&[0, 1, 40, 500]);
        self.project.clock.set(at(self.now));
    }

    fn check_online(&self) {
        let users = USERS.map(Some);
        let answer = self.server().lookup(&users);
        for (row, user) in USERS.into_iter().enumerate() {
            self.check(&answer, row, user, self.now, "online");
        }
    }

    /// A training set of times up to now agrees too.
    async fn check_training_sets(&mut self) {
        self.server().pushes.flush().await.expect("flushes");
        self.refresh().await;
        self.check_online();
        let times: Vec<i64> = (0..12).map(|_| self.now - number(self.random.below(5_000))).collect();
        let values: Vec<String> =
            times.iter().flat_map(|time| USERS.map(|user| format!("('{user}', {time})"))).collect();
        let spine = format!(
            "SELECT u AS user_name, to_timestamp(s) AT TIME ZONE 'UTC' AS t FROM (VALUES {}) AS v (u, s)",
            values.join(", ")
        );
        for rows in [RowsFrom::Committed, RowsFrom::Sources] {
            let request = TrainingSetRequest {
                spine: SpineSource { from: spine.clone(), time: "t".to_owned(), lag: Span::ZERO },
                rows,
                as_of: AsOf::Known,
                with_features: true,
                order: SpineOrder::AsGiven,
            };
            let contract = self.state.current_contract("limits").expect("defined");
            let set = self.project.jobs().training_set(&self.state, contract, &request).await.expect("plans");
            let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
            let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
            for (row, time) in times.iter().flat_map(|time| [*time; USERS.len()]).enumerate() {
                self.check(&all, row, USERS[row % USERS.len()], time, &format!("{rows:?}"));
            }
        }
    }

    fn check(&self, answer: &RecordBatch, row: usize, user: &str, now: i64, how: &str) {
        let known: Vec<&Paid> = self.events.iter().filter(|event| event.1 == user && event.2 <= now).collect();
        let newest = known.iter().max_by_key(|event| event.2);
        let since = |second: i64| known.iter().filter(move |event| event.2 >= second);
        let count = |second: i64| newest.map(|_| number(since(second).count() as u64));
        let tail = |length: i64| (now - length).div_euclid(60) * 60 + 1;
        let integers = [
            ("spending.n_10m", count(tail(600))),
            ("spending.n_1d", count(tail(DAY))),
            ("latest.id", newest.map(|event| event.0)),
            ("at_once.n", newest.map(|_| 1)),
            ("lately.n", newest.and_then(|event| count(event.2 - 3_600))),
        ];
        let place = || format!("{how}, {user} at {now} of {known:?} after {:?}", self.steps);
        for (name, expected) in integers.into_iter().take(if self.reaching_back { 5 } else { 3 }) {
            let column = answer[name].as_primitive::<Int64Type>();
            assert_eq!(column.is_valid(row).then(|| column.value(row)), expected, "{name}: {}", place());
        }
        let total = since(tail(DAY)).map(|event| amount(event)).reduce(|sum, amount| sum + amount);
        let column = answer["spending.total_1d"].as_primitive::<Float64Type>();
        assert_eq!(column.is_valid(row).then(|| column.value(row)), total, "spending.total_1d: {}", place());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_counts_once_whichever_way_it_came_first() {
    for seed in 1..=8 {
        let mut world = World::new(seed, seed % 2 == 0).await;
        world.steps.push(format!("seed {seed}"));
        world.check_online();
        for _ in 0..25 {
            world.moves_on();
            world.step().await;
            world.check_online();
        }
        world.check_training_sets().await;
        // From object storage alone.
        world.stop().await;
        std::fs::remove_dir_all(world.project.folder.path().join("disk")).expect("it can be deleted");
        world.start().await;
        world.check_online();
        for view in world.state.live_views() {
            world
                .project
                .jobs()
                .backfill(&world.state, view, asked(None, None, 100_000), &())
                .await
                .expect("backfills");
        }
        world.server().features.follow(&()).await.expect("follows");
        world.check_online();
        world.check_training_sets().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_event_that_is_pushed_again_is_found_among_the_flushed_ones() {
    let mut world = World::new(1, true).await;
    let (old, new) = ((7_000_001, "ann", world.now - 2 * DAY), (7_000_002, "bob", world.now));
    let ack = world.push(&[old, new]).await;
    assert_eq!((ack.rows, ack.repeated), (2, 0));
    world.server().pushes.flush().await.expect("flushes");
    // The log's index has let go of it; so it has when the log is lost.
    world.push(&[old, new, (7_000_003, "ann", world.now - 2 * DAY - 1)]).await;
    world.server().pushes.flush().await.expect("flushes");
    world.stop().await;
    std::fs::remove_dir_all(world.project.folder.path().join("log")).expect("it can be deleted");
    world.start().await;
    world.push(&[new, old, (7_000_004, "bob", world.now - 3 * DAY)]).await;
    world.check_online();
    world.check_training_sets().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_processes_took_counts_once_when_the_first_comes_back() {
    let mut world = World::new(2, true).await;
    let (one, other) = ((8_000_001, "ann", world.now - 5), (8_000_002, "bob", world.now - 6));
    world.push(&[one]).await;
    world.stop().await;
    // It had not flushed; another process is sent the same.
    let elsewhere = world.project.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("writable");
    let second = Server::start_in(&elsewhere, world.project.jobs(), 1 << 20).await;
    let ack = second.pushes.push("paid", batch(&[one, other]), PushHeader::default()).await.expect("taken");
    assert_eq!((ack.rows, ack.repeated), (2, 0));
    second.pushes.flush().await.expect("flushes");
    drop(second);
    world.events.insert(other);
    world.pushed.insert(other.0);
    world.start().await;
    world.check_online();
    world.push(&[one, other]).await;
    world.check_training_sets().await;
}

/// A flush commits an event while a refresh computes which has read the event in history too: as one that happened since the
/// last refresh, and as one that came late in a new file. What of history is read alone is computed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_flushed_while_a_refresh_reads_it_counts_once() {
    for (since_begin, both) in [(100, true), (100, false), (-400, true), (-400, false)] {
        let mut world = World::new(3, false).await;
        (world.now, world.files) = (BEGINS + 120, 9);
        world.project.clock.set(at(world.now));
        let free = |second: &i64| !world.events.iter().any(|event| event.2 == *second || event.2 == second - 1);
        let second = (BEGINS + since_begin..BEGINS + 400).find(free).expect("some second");
        let (event, other) = ((9_000_001, "ann", second), (9_000_002, "bob", second - 1));
        world.push(&[event]).await;
        let in_history = [other, event];
        world.write(if both { &in_history } else { &in_history[..1] });
        let (sink, puts) = (Arc::clone(&world.server().pushes), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&puts);
        let store = Meddled::of(&world.project.store, move |call, path| {
            let (sink, counted) = (Arc::clone(&sink), Arc::clone(&counted));
            let own = call == Call::Put && path.starts_with("views/spending/") && path.contains("/data/");
            Box::pin(async move {
                if own && counted.fetch_add(1, Ordering::SeqCst) == 0 {
                    sink.flush().await.expect("flushes");
                }
                Ok(())
            })
        });
        let view = world.state.live_views().into_iter().find(|view| view.name == "spending").expect("defined");
        let done = world.project.jobs_on(&store).refresh(&world.state, view).await.expect("refreshes");
        drop(store);
        let place = format!("{since_begin}, {both}: {done:?}");
        assert!(done.committed && done.rows == 1, "{place}");
        assert_eq!(puts.load(Ordering::SeqCst), if both { 2 } else { 1 }, "{place}");
        world.steps.push(place);
        world.events.insert(other);
        world.refresh().await;
        world.check_online();
        world.check_training_sets().await;
        world.stop().await;
        std::fs::remove_dir_all(world.project.folder.path().join("disk")).expect("it can be deleted");
        world.start().await;
        world.check_online();
    }
}

/// What happens around the push of an event that came late in a file which had been read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Around {
    Grows,
    Refresh,
    Push,
    Flush,
    LosesDisk,
}

/// A file of history is written anew, with an old event beside those that it had. Views name it, and do not take it; its push
/// they take, and none of what they had. It counts once then, whatever came in which order, and after a backfill too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_event_of_a_file_that_grew_counts_once_from_its_push_on() {
    use Around::{Flush, Grows, LosesDisk, Push, Refresh};
    let orders: [&[Around]; 7] = [
        &[Grows, Refresh, Push, Flush],
        &[Grows, Refresh, Push, LosesDisk, Flush],
        &[Grows, Push, Refresh, Flush],
        &[Grows, Push, Flush, Refresh],
        &[Push, Grows, Flush, Refresh],
        &[Push, Grows, Refresh, LosesDisk, Flush],
        &[Push, Flush, Grows, Refresh],
    ];
    for order in orders {
        let mut world = World::new(4, false).await;
        world.steps.push(format!("{order:?}"));
        let had: Vec<Paid> = world.events.iter().copied().collect();
        let free = |second: &i64| !had.iter().any(|event| event.2 == *second);
        let second = (BEGINS - 400..BEGINS).find(free).expect("some second");
        let late = (9_100_001, "ann", second);
        for step in order.iter().chain(&[Refresh, LosesDisk, Refresh]) {
            world.now += 1;
            world.project.clock.set(at(world.now));
            match step {
                Grows => world.write_anew(1, &[had.as_slice(), &[late]].concat()),
                Refresh => world.refresh_naming().await,
                Push => {
                    // With one of the same file that views have.
                    world.push(&[late, had[0]]).await;
                }
                Flush => {
                    world.server().pushes.flush().await.expect("flushes");
                }
                LosesDisk => world.loses_its_disk().await,
            }
            world.check_online();
        }
        world.backfill_all().await;
        world.check_online();
        world.check_training_sets().await;
    }
}

/// Files grow by old events again and again; of these, of those that views have and of new ones some are pushed at any time.
/// What was never pushed counts from the backfill on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_late_counts_from_its_push_on_and_all_of_it_after_a_backfill() {
    for seed in 21..=26 {
        let mut world = World::new(seed, false).await;
        world.steps.push(format!("seed {seed}"));
        let mut files: Vec<Vec<Paid>> = vec![world.events.iter().copied().collect()];
        let (mut named, mut read_until) = (BTreeSet::<Paid>::new(), world.now);
        for number in 0..24_i64 {
            world.moves_on();
            let step = world.random.below(8);
            world.steps.push(format!("{}: {step}", world.now));
            match step {
                0 | 1 => {
                    let second = read_until - number_below(&mut world.random, 5_000);
                    let event = (9_200_000 + number, world.random.pick(&USERS[..2]), second);
                    let mut others = world.events.iter().chain(&named);
                    if others.any(|other| (other.1, other.2) == (event.1, event.2)) {
                        continue;
                    }
                    let file = usize::try_from(world.random.below(files.len() as u64)).expect("small");
                    files[file].push(event);
                    named.insert(event);
                    world.write_anew(u32::try_from(file + 1).expect("few"), &files[file]);
                }
                2..=4 => {
                    let known: Vec<Paid> = world.events.iter().chain(&named).copied().collect();
                    let late: Vec<Paid> = named.iter().copied().collect();
                    let mut events = vec![world.random.pick(&known)];
                    if !late.is_empty() {
                        events.push(world.random.pick(&late));
                    }
                    world.push(&events).await;
                    named.retain(|event| !events.contains(event));
                }
                5 => {
                    world.server().pushes.flush().await.expect("flushes");
                }
                6 => {
                    world.refresh_naming().await;
                    read_until = world.now;
                }
                _ => world.loses_its_disk().await,
            }
            world.check_online();
        }
        world.server().pushes.flush().await.expect("flushes");
        world.refresh_naming().await;
        world.check_online();
        world.backfill_all().await;
        world.events.extend(named);
        world.check_online();
        world.check_training_sets().await;
    }
}

fn number_below(random: &mut Seeded, end: u64) -> i64 {
    number(random.below(end))
}

/// A tier that lacks a commit is asked what its view had before, of a view that has many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_view_is_followed_without_its_first_commits() {
    let mut world = World::new(5, false).await;
    world.now += 100;
    world.project.clock.set(at(world.now));
    for number in 0..70 {
        world.push(&[(9_300_000 + number, "ann", BEGINS + 1 + number)]).await;
        world.server().pushes.flush().await.expect("flushes");
    }
    world.server().features.follow(&()).await.expect("follows");
    world.stop().await;
    let asked_for: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&asked_for);
    let store = Meddled::of(&world.project.store, move |call, path| {
        if call == Call::Get {
            noted.lock().expect("no panic").push(path);
        }
        Box::pin(async { Ok(()) })
    });
    let jobs = world.project.jobs_on(&store);
    world.server = Some(Server::start_in(world.project.folder.path(), jobs, 1 << 20).await);
    world.now += 10;
    world.project.clock.set(at(world.now));
    world.refresh().await;
    world.check_online();
    let asked_for = asked_for.lock().expect("no panic").clone();
    let commits = asked_for.iter().filter_map(|path| {
        let (_, number) = path.strip_prefix("views/spending/")?.split_once("/log/")?;
        number.strip_suffix(".json")?.parse::<u64>().ok()
    });
    let commits: BTreeSet<u64> = commits.collect();
    assert!(commits.last() > Some(&70) && commits.first() > Some(&60), "{commits:?}");
}
