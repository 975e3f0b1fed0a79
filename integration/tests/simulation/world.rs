//! A store, who takes pushes for it, and what it should hold.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::TimestampMicrosecondType;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{BackfillAsked, ObjectStore};
use springhouse_featurestore::time::{DrivenClock, Span, Timestamp};
use springhouse_featurestore::{ErrorKind, Result};

use super::faults::{Fault, Faults, Step};
use super::oracle::{
    Seen, VIEWS_OF_PAID, check_paid, check_seen, definitions, seen_batch, views_of_bills, views_of_seen,
};
use crate::faulty_store::FaultyStore;
use crate::project::{Event, TestProject, at};
use crate::push::{Server, batch, events_before};
use crate::seeded::Seeded;
use crate::windows::number;

pub const USERS: [Option<&str>; 5] = [Some("ann"), Some("bob"), Some("cid"), Some("nobody"), None];

/// The second at which a simulation begins.
const BEGINS: i64 = 150_000;

/// How many seconds a producer's clock may be ahead of the store's.
const AHEAD: i64 = 5;

/// What happened, step by step; read by others when something is wrong.
pub type Trace = Arc<Mutex<Vec<String>>>;

/// How many events there are of each source.
pub type Counts = [usize; 3];

/// Pushed events of all sources, each in the order in which they were taken.
#[derive(Debug, Clone, Default)]
pub struct Pushed {
    pub paid: Vec<Event>,
    pub seen: Vec<Seen>,
    /// Each once.
    pub bills: Vec<Seen>,
}

impl Pushed {
    pub fn counts(&self) -> Counts {
        [self.paid.len(), self.seen.len(), self.bills.len()]
    }

    pub fn is_empty(&self) -> bool {
        self.counts() == Counts::default()
    }

    pub fn extend(&mut self, more: Self) {
        self.paid.extend(more.paid);
        self.seen.extend(more.seen);
        for bill in more.bills {
            if !self.bills.contains(&bill) {
                self.bills.push(bill);
            }
        }
    }

    /// The latest second of an event; of none the least there is.
    fn latest(&self) -> i64 {
        let paid = self.paid.iter().map(|event| event.1);
        paid.chain(self.seen.iter().chain(&self.bills).map(|event| event.at)).max().unwrap_or(i64::MIN / 2)
    }

    /// Lets events that have an available time be known at a second.
    pub fn known_at(&mut self, second: i64) {
        for event in &mut self.paid {
            event.2 = second;
        }
    }

    /// Takes away all but the first.
    pub fn split_off(&mut self, [paid, seen, bills]: Counts) -> Self {
        let (paid, seen) = (self.paid.split_off(paid), self.seen.split_off(seen));
        Self { paid, seen, bills: self.bills.split_off(bills) }
    }
}

/// A batch, as it is sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub source: &'static str,
    pub batch: RecordBatch,
    pub header: PushHeader,
    pub events: Pushed,
}

/// A process that takes pushes, when it runs.
pub struct Taker {
    /// Where its disk tier and its log are.
    pub folder: PathBuf,
    /// Object storage as it sees it.
    pub store: Arc<FaultyStore>,
    pub clock: Arc<DrivenClock>,
    /// How far its clock is off, in seconds.
    pub skew: i64,
    pub server: Option<Server>,
    /// What it acknowledged, and had not flushed when another became the owner of the store.
    pub parked: Pushed,
}

/// A store, who takes pushes for it, and what it should hold.
pub struct World {
    pub seed: u64,
    pub random: Seeded,
    pub faults: Faults,
    pub steps: Vec<Step>,
    pub project: TestProject,
    pub state: CatalogState,
    pub takers: [Taker; 2],
    /// Which of them owns the store.
    pub owner: usize,
    /// Object storage as jobs of other processes see it.
    pub worker: Arc<FaultyStore>,
    /// History, which every view has read.
    pub paid_before: Vec<Event>,
    pub seen_before: Vec<Seen>,
    /// What the owner has to show beside it.
    pub pushed: Pushed,
    /// How much of it is on object storage for certain.
    pub flushed: Counts,
    /// Views that came later.
    pub newcomers: usize,
    pub now: i64,
    /// Until when history was read, by the clock of who did.
    pub refreshed: i64,
    /// The greatest watermark that producers of `paid`, of `seen` and of `bills` have rightly said.
    pub told: [i64; 3],
    pub sequence: u64,
    pub last: Option<Sent>,
    pub files: u32,
    /// All bills that there ever were, and those that history has, as its files have them and each once.
    pub bills: Vec<Seen>,
    pub bills_before: Vec<Seen>,
    pub bill_files: Vec<Vec<Seen>>,
    /// A file of history that nobody sees yet.
    pub withheld: Vec<Seen>,
    /// How far the clock of who refreshes is ahead of the others, in seconds.
    pub apart: i64,
    pub trace: Trace,
}

impl World {
    pub async fn new(seed: u64, faults: &Faults, trace: &Trace) -> Self {
        let mut random = Seeded::new(seed);
        // Rows of one query with equal times have no order in which they were written: history has none such.
        let mut paid_before = events_before(&mut random, BEGINS - 100, 30);
        let mut times = std::collections::BTreeSet::new();
        paid_before.retain(|event| times.insert((event.0, event.1)));
        let project = TestProject::new(&paid_before);
        let mut taker = |index: usize| {
            let folder = project.folder.path().join(format!("taker-{index}"));
            std::fs::create_dir(&folder).expect("new");
            let skew = if faults.has(Fault::Clock) { -number(random.below(4)) } else { 0 };
            let clock = Arc::new(DrivenClock::still(at(BEGINS + skew)));
            let store = FaultyStore::new(Arc::clone(&project.store));
            Taker { folder, store, clock, skew, server: None, parked: Pushed::default() }
        };
        let takers = [taker(0), taker(1)];
        let worker = FaultyStore::new(Arc::clone(&project.store));
        let mut world = Self {
            seed,
            random,
            faults: faults.clone(),
            steps: faults.steps(),
            state: CatalogState::default(),
            takers,
            owner: 0,
            worker,
            paid_before,
            seen_before: Vec::new(),
            pushed: Pushed::default(),
            flushed: Counts::default(),
            newcomers: 0,
            now: BEGINS,
            refreshed: BEGINS,
            told: [0; 3],
            sequence: 0,
            last: None,
            files: 0,
            bills: Vec::new(),
            bills_before: Vec::new(),
            bill_files: Vec::new(),
            withheld: Vec::new(),
            apart: 0,
            trace: Arc::clone(trace),
            project,
        };
        world.grow(10, (0, BEGINS - 10));
        if faults.has(Fault::Twice) {
            world.first_bills(BEGINS - 10);
        }
        world.state = world.project.apply(&definitions(faults, 0)).await.expect("valid definitions");
        world.moves_on(0);
        world.refresh_all().await;
        world.start(0).await;
        world.check();
        world
    }

    /// Says what is about to happen.
    pub fn say(&self, what: impl Into<String>) {
        let line = format!("{}: {}", self.now, what.into());
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    pub fn chance(&mut self, of: u64) -> bool {
        self.random.below(of) == 0
    }

    /// The time of the owner's clock.
    pub fn at(&self) -> i64 {
        self.now + self.takers[self.owner].skew
    }

    /// Time passes, on all clocks.
    pub fn moves_on(&mut self, seconds: i64) {
        self.now += seconds;
        self.project.clock.set(at(self.now_of_refreshes()));
        for taker in &self.takers {
            taker.clock.set(at(self.now + taker.skew));
        }
    }

    pub fn server(&self) -> &Server {
        self.takers[self.owner].server.as_ref().expect("running")
    }

    /// Starts a taker; from then on it owns the store.
    pub async fn start(&mut self, index: usize) {
        let taker = &self.takers[index];
        let store = Arc::clone(&taker.store) as Arc<dyn ObjectStore>;
        let jobs = self.project.jobs_of(&store, &taker.clock, 100 + index as u64);
        let cache_bytes = if self.seed.is_multiple_of(2) { 1 << 20 } else { 0 };
        let server = Server::start_in(&taker.folder, jobs, cache_bytes).await;
        self.takers[index].server = Some(server);
        self.owner = index;
    }

    pub async fn follow(&self) {
        self.server().features.follow(&()).await.expect("follows");
    }

    /// Refreshes all views. Each takes what is new in history, or says that there is something, and is backfilled.
    pub async fn refresh_all(&mut self) {
        let (from, until) = (Some(at(0)), Some(at(self.now + 1)));
        let all = BackfillAsked { from, until, every: Span::from_secs(100_000) };
        let jobs = self.project.jobs();
        for view in self.views() {
            let before = jobs.log(&view).state().await.expect("readable").watermark;
            let done = jobs.refresh(&self.state, &view).await.expect("refreshes");
            self.check_promise(&view, before).await;
            if done.restated.is_some() {
                self.say(format!("{} says that history is another, and is backfilled", view.name));
                jobs.backfill(&self.state, &view, all, &()).await.expect("backfills");
            }
        }
        self.was_read();
    }

    /// A refresh has left a view where it was that lacks flushed pushes of producers who say how far they are (rule T6).
    async fn check_promise(&self, view: &FeatureView, before: Option<Timestamp>) {
        let jobs = self.project.jobs();
        let state = jobs.log(view).state().await.expect("readable");
        let history = jobs.pushed().state().await.expect("readable");
        let sources = view.sources.iter().map(|source| source.name.as_str());
        let sources = sources.filter(|source| history.watermarks.contains_key(*source)).collect();
        let lacked = jobs.pushed().entries(&history, &sources, (state.pushed, history.until)).await.expect("readable");
        assert!(
            lacked.is_empty() || state.watermark == before,
            "{} went from {before:?} to {:?} without {} flushed pushes",
            view.name,
            state.watermark,
            lacked.len()
        );
    }

    /// All views that there are.
    pub fn views(&self) -> Vec<FeatureView> {
        self.state.live_views().into_iter().cloned().collect()
    }

    pub fn any_view(&mut self) -> FeatureView {
        let views = self.views();
        let index = self.random.below(views.len() as u64);
        views.into_iter().nth(usize::try_from(index).expect("small")).expect("there are some")
    }

    /// An event of `seen` at a second. No view fails on its mark.
    pub fn seen_at(&mut self, second: i64) -> Seen {
        let amount = number(self.random.below(200)) - 100;
        let amount = f64::from(i32::try_from(amount).expect("small")) / 2.0;
        let amount = (!self.chance(10)).then_some(amount);
        Seen {
            user: self.random.pick(&["ann", "bob", "cid"]),
            at: second,
            amount,
            mark: 1 + number(self.random.below(999)),
        }
    }

    /// Events of `seen` for a taker: each has odd seconds of its own.
    pub fn seen_events(&mut self, taker: usize, now: i64, may_be_ahead: bool) -> Vec<Seen> {
        let own = 1 + 2 * number(taker as u64);
        let mut events: Vec<Seen> = Vec::new();
        for _ in 0..self.random.below(6) {
            let ahead = if may_be_ahead && self.chance(6) { AHEAD + 1 } else { 0 };
            let back = self.random.pick(&[30_u64, 4_000, 100_000]);
            let second = now + ahead - number(self.random.below(back));
            let mut event = self.seen_at(second - second.rem_euclid(4) - 4 + own);
            let others = self.pushed.seen.iter().chain(&self.takers[taker].parked.seen).chain(&events);
            let others: Vec<Seen> = others.filter(|other| other.at.rem_euclid(4) == own).copied().collect();
            if self.faults.has(Fault::Ties) {
                if !others.is_empty() && self.chance(2) {
                    let other = self.random.pick(&others);
                    (event.user, event.at) = (other.user, other.at);
                }
            } else if others.iter().any(|other| (other.user, other.at) == (event.user, event.at)) {
                continue;
            }
            events.push(event);
        }
        events
    }

    /// Events of `paid`.
    fn paid_events(&mut self, now: i64, may_be_ahead: bool) -> Vec<Event> {
        let mut events = events_before(&mut self.random, now, 6);
        if may_be_ahead && self.chance(6) {
            for event in events.iter_mut().take(1) {
                event.1 = now + AHEAD - 1;
            }
        }
        if self.faults.has(Fault::Ties) {
            let before = self.pushed.paid.iter().rev().find(|event| event.2 == now).copied();
            if let (Some(before), Some(event)) = (before, events.first_mut()) {
                (event.0, event.1) = (before.0, before.1);
            }
            return events;
        }
        let mut times: std::collections::BTreeSet<_> =
            self.pushed.paid.iter().map(|event| (event.0, event.1, event.2)).collect();
        events.retain(|event| times.insert((event.0, event.1, event.2)));
        events
    }

    /// A batch for a taker, which nobody has sent yet.
    pub fn next_batch(&mut self, taker: usize) -> Sent {
        self.batch_of(taker, false)
    }

    /// The same; its events may be ahead of the taker's clock.
    fn batch_of(&mut self, taker: usize, may_be_ahead: bool) -> Sent {
        self.sequence += 1;
        let now = self.now + self.takers[taker].skew;
        let of_bills = self.faults.has(Fault::Twice) && self.chance(3);
        let of_seen = !of_bills && self.chance(2);
        let watermark = self.chance(3).then(|| at(now));
        if watermark.is_some() {
            let told = &mut self.told[if of_bills { 2 } else { usize::from(of_seen) }];
            *told = now.max(*told);
        }
        let sequence = Some(self.sequence);
        let header = |producer: &str| PushHeader { producer: Some(producer.to_owned()), sequence, watermark };
        if of_bills {
            let (header, bills) = (header("desk"), self.some_bills(4, now));
            let batch = seen_batch(&bills);
            return Sent { source: "bills", batch, header, events: Pushed { bills, ..Pushed::default() } };
        }
        if of_seen {
            let header = header("gate");
            let seen = self.seen_events(taker, now, may_be_ahead);
            let batch = seen_batch(&seen);
            return Sent { source: "seen", batch, header, events: Pushed { seen, ..Pushed::default() } };
        }
        let header = header("till");
        let paid = self.paid_events(now, may_be_ahead);
        Sent { source: "paid", batch: batch(&paid), header, events: Pushed { paid, ..Pushed::default() } }
    }

    /// Pushes some batches, one behind the other, before the first is acknowledged.
    pub async fn push(&mut self) {
        let (mut sent, may_be_ahead) = (Vec::new(), self.faults.has(Fault::Clock));
        let before = self.pushed.counts();
        for _ in 0..=self.random.below(3) {
            let next = self.batch_of(self.owner, may_be_ahead);
            self.pushed.extend(next.events.clone());
            sent.push(next);
        }
        let now = self.at();
        let ahead = sent.iter().map(|sent| sent.events.latest() - now).max().unwrap_or_default().max(0);
        self.pushed.split_off(before);
        let mut waits = false;
        for sent in &mut sent {
            // It waits until the clock has come to its events, those behind it with it, and they are known from then on.
            waits |= sent.events.latest() > now;
            if waits {
                sent.events.known_at(now + ahead);
            }
            self.pushed.extend(sent.events.clone());
        }
        let events: Vec<String> = sent.iter().map(|sent| format!("{:?}", sent.events)).collect();
        self.say(format!("pushes {}", events.join(", ")));
        self.last = sent.last().cloned();
        let pushes = &self.server().pushes;
        let taken = async {
            let mut acks = Vec::new();
            for Sent { source, batch, header, .. } in sent {
                acks.push(pushes.submit(source, batch, header).await.expect("taken"));
            }
            futures::future::join_all(acks).await
        };
        let clocks =
            self.takers.iter().map(|taker| (&taker.clock, taker.skew)).chain([(&self.project.clock, self.apart)]);
        let time = async {
            if ahead > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                clocks.for_each(|(clock, skew)| clock.set(at(self.now + ahead + skew)));
            }
        };
        let (acks, ()) = tokio::join!(taken, time);
        for ack in acks {
            assert!(!ack.expect("taken").duplicate, "it was not sent before");
        }
        self.moves_on(ahead);
    }

    pub async fn send_again(&mut self) {
        let Some(Sent { source, batch, header, .. }) = self.last.clone() else { return };
        self.say("sends the last batch again");
        let ack = self.server().pushes.push(source, batch, header).await.expect("taken");
        assert!(ack.duplicate, "it was sent before");
    }

    pub async fn flush(&mut self) {
        self.say("flushes");
        self.server().pushes.flush().await.expect("flushes");
        self.flushed = self.pushed.counts();
        self.follow().await;
    }

    /// After a flush of which nobody knows how it ended: all that was pushed is on object storage, or what was before.
    pub async fn settle(&mut self) {
        let history = self.project.jobs().pushed().state().await.expect("readable");
        let rows = history.files.values().flatten().map(|file| file.rows).sum::<u64>();
        let [all, before] = [self.pushed.counts(), self.flushed].map(|counts| counts.iter().sum::<usize>() as u64);
        assert!(rows == all || rows == before, "{rows} pushed events on object storage, not {before} and not {all}");
        if rows == all {
            self.flushed = self.pushed.counts();
        }
        self.say(format!("{rows} pushed events are on object storage"));
    }

    fn lookup(&self) -> Result<RecordBatch> {
        let features = &self.server().features;
        let users: ArrayRef = Arc::new(StringArray::from(USERS.to_vec()));
        let keys = RecordBatch::try_from_iter_with_nullable([("user_name", users, true)]).expect("keys");
        features.lookup_with(&features.plan("everything").expect("defined"), &keys)
    }

    /// All events of `paid` and of `seen` that the owner has to show.
    pub fn events(&self) -> (Vec<Event>, Vec<Seen>) {
        let paid = self.paid_before.iter().chain(&self.pushed.paid).copied().collect();
        (paid, self.seen_before.iter().chain(&self.pushed.seen).copied().collect())
    }

    /// Every lookup is what the oracle says.
    pub fn check(&mut self) {
        let answer = self.lookup().expect("looks up");
        self.check_answer(&answer);
    }

    /// The same, unless it is refused as long as a view is not available.
    pub fn check_if_answered(&self) {
        match self.lookup() {
            Ok(answer) => self.check_answer(&answer),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain()),
        }
    }

    fn check_answer(&self, answer: &RecordBatch) {
        let mut hash = DefaultHasher::new();
        for column in answer.columns() {
            format!("{column:?}").hash(&mut hash);
        }
        self.say(format!("answers {:x}", hash.finish()));
        let (now, mut views) = (self.at(), views_of_seen(&self.faults, self.newcomers));
        // They have pushes by their refreshes; training sets tell whether they have all of them.
        views.retain(|view| !["hourly", "hourly_spread"].contains(view));
        let ((paid, seen), bills) = (self.events(), self.known_bills());
        for (row, user) in USERS.into_iter().enumerate() {
            check_paid(answer, row, &paid, (user, now), "online");
            check_seen(answer, row, &views, &seen, (user, now), "online");
            check_seen(answer, row, views_of_bills(&self.faults), &bills, (user, now), "online");
        }
        // No answer is as of a later time than is known to be processed, or than its own row was there.
        let there = |of: &str, known: i64| (Some(of) == USERS[0] && known <= now).then_some(known);
        let paid_there = paid.iter().filter_map(|event| there(event.0, event.1.max(event.2))).max();
        let seen_there = seen.iter().filter_map(|event| there(event.user, event.at)).max();
        let bills_there = bills.iter().filter_map(|event| there(event.user, event.at)).max();
        let of_views = [
            (&VIEWS_OF_PAID[..], self.told[0], paid_there),
            (&views[..], self.told[1], seen_there),
            (views_of_bills(&self.faults), self.told[2], bills_there),
        ];
        for (views, told, there) in of_views {
            for view in views {
                let as_of = answer[format!("{view}@as_of").as_str()].as_primitive::<TimestampMicrosecondType>();
                let most = told.max(self.refreshed).max(there.unwrap_or_default()) * 1_000_000;
                assert!(as_of.is_null(0) || as_of.value(0) <= most, "{view} is as of {as_of:?}, at most {most}");
            }
        }
    }
}
