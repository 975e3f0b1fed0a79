//! Push: events that producers send live.
//!
//! One push's way: checked against its source ([`accept`]), and tried against the queries of its views ([`tried`]);
//! written to the log with all others that wait, in one synced write; applied to every view of its source ([`apply`]), while
//! the next are written; acknowledged. What a view lacks comes to it beside them ([`lacking`]). By size or time the
//! log is flushed to object storage ([`flush`]), as events beside the history and as a commit of each view's rows.
//!
//! Producers that are faster than the disk wait: a queue of a few pushes is all that is held here, and what comes over the
//! wire has room for so many bytes.

mod accept;
mod apply;
mod distinct;
mod due;
mod fence;
mod flush;
mod lacking;
mod left_out;
mod producers;
mod set_aside;
mod tried;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::{Column, Definition, FeatureView, Pinned, Source};
use springhouse_featurestore::encoding::bytes_of_rows;
use springhouse_featurestore::push::{
    EventSink, Lacking, LogReach, NameInUse, PendingAck, ProducerChange, ProducerState, Push, PushAck, PushEntry,
    PushHeader, PushHistoryState, PushLog, late_events,
};
use springhouse_featurestore::tier::{KeyedRow, Mark, OnlineTier, Packer, ViewCommit};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::pushed::PushedQuery;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use self::accept::Now;
use self::distinct::{Asked, ToldApart};
use self::due::Early;
use self::fence::Fence;
use self::set_aside::SetAsideHere;
use crate::Jobs;
use crate::panics::caught;

/// Pushes that wait at once; a producer beyond them waits for a place.
const QUEUE_PUSHES: usize = 256;

/// The most events of one synced write.
const GROUP_ROWS: usize = 64 << 10;

/// A log of more bytes than this is flushed at once.
const FLUSH_BYTES: u64 = 32 << 20;

/// A log of more bytes than this takes no more: object storage has been out of reach for long.
const FULL_BYTES: u64 = 1 << 30;

/// How far ahead of the clock a producer's clock may be, where nothing else is set: clocks that are kept by NTP differ by
/// far less, and nobody waits longer for an answer.
pub const CLOCK_TOLERANCE: Span = Span::from_secs(5);

/// How long a push stays in the log alone.
const FLUSH_EVERY: Duration = Duration::from_secs(60);

/// What is told of the catalog: its newest state that the tiers follow.
pub type FollowedCatalog = dyn Fn() -> Arc<CatalogState> + Send + Sync;

/// Takes pushes for a store whose tiers this process owns.
#[derive(Debug)]
pub struct Pushes {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Waiting>,
    clock_tolerance: Span,
    /// What waits for its time.
    early: Early,
}

/// Whom to tell of a push.
type Answer = oneshot::Sender<Result<PushAck>>;

/// A push and whom to tell.
struct Waiting {
    push: Push,
    /// The events that were sent, those that had been pushed before too.
    sent: usize,
    answer: Answer,
    /// Its producer's, which it has in use until it is in the log.
    name: Option<NameInUse>,
    /// Whether they had been is known for as long as this is held.
    asked: Option<Asked>,
}

/// A group of pushes that is in the log and not yet in the views.
struct Appended {
    /// What each is told when it is.
    acks: Vec<PushAck>,
    entries: Vec<PushEntry>,
    /// How far the log has got by them.
    reach: LogReach,
    answers: Vec<Answer>,
}

/// Tells all of a group that it failed.
fn refuse(answers: Vec<Answer>, error: &Error) {
    for answer in answers {
        drop(answer.send(Err(Error::new(error.kind(), error.chain()))));
    }
}

/// What applying pushes to a view needs.
struct Prepared {
    packer: Packer,
    /// Its query over new events, planned; none where that cannot be.
    query: Option<PushedQuery>,
}

/// What all steps need.
struct Shared {
    jobs: Jobs,
    log: Arc<PushLog>,
    fence: Fence,
    tier: Arc<dyn OnlineTier>,
    catalog: Box<FollowedCatalog>,
    /// Held by whoever changes the tiers.
    changing: Arc<Mutex<()>>,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// What has been flushed.
    history: RwLock<Arc<PushHistoryState>>,
    prepared: std::sync::Mutex<HashMap<Pinned, Arc<Prepared>>>,
    told_apart: ToldApart,
    /// What of the log has been applied to the tiers since the start; none before the first time.
    applied: std::sync::Mutex<Option<LogReach>>,
    /// The views that lack some of it, and why: each is brought up by itself.
    behind: std::sync::Mutex<BTreeMap<Pinned, String>>,
    /// Those that have what they lacked but for what is in the log, which the next push to them takes with it.
    with_rest: std::sync::Mutex<BTreeSet<Pinned>>,
    /// The events that views do without, until commits tell of them.
    set_aside: SetAsideHere,
    /// Wakes the flush before its time.
    full: Arc<Notify>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Pushes {
    /// Begins to take pushes, in the place of whoever did before. `changing` is the lock of those who change `tier`; views
    /// that are to be loaded anew are when the store is followed next.
    ///
    /// # Errors
    /// Those of reading and taking over what has been flushed.
    pub async fn start(
        jobs: Jobs,
        log: PushLog,
        tier: Arc<dyn OnlineTier>,
        changing: Arc<Mutex<()>>,
        catalog: Box<FollowedCatalog>,
    ) -> Result<Self> {
        let log = Arc::new(log);
        // Before it is forgotten in the place of whoever took pushes meanwhile.
        SetAsideHere::of(&log)?.distrust(tier.as_ref())?;
        let history = fence::take_over(&jobs, &log, tier.as_ref(), catalog.as_ref()).await?;
        let set_aside = SetAsideHere::of(&log)?;
        let shared = Arc::new(Shared {
            jobs,
            log,
            fence: Fence::new(history.taker),
            tier,
            catalog,
            changing,
            flushing: Mutex::default(),
            history: RwLock::new(Arc::new(history)),
            prepared: std::sync::Mutex::default(),
            told_apart: ToldApart::default(),
            applied: std::sync::Mutex::default(),
            behind: std::sync::Mutex::default(),
            with_rest: std::sync::Mutex::default(),
            set_aside,
            full: Arc::default(),
        });
        let (queue, waiting) = mpsc::channel(QUEUE_PUSHES);
        tokio::spawn(Arc::clone(&shared).ingest(waiting));
        tokio::spawn(flush_by_time(Arc::downgrade(&shared), Arc::clone(&shared.full)));
        tokio::spawn(fence::watch(Arc::downgrade(&shared)));
        Ok(Self { shared, queue, clock_tolerance: CLOCK_TOLERANCE, early: Early::default() })
    }

    /// The same, with another tolerance of producers' clocks that are ahead of this one.
    #[must_use]
    pub fn tolerating(self, clock_tolerance: Span) -> Self {
        Self { clock_tolerance, ..self }
    }

    /// The same, with producers left out of watermarks that say nothing for longer than this while others do.
    #[must_use]
    pub fn leaving_out_after(self, silence: Option<Span>) -> Self {
        self.shared.log.leave_out_after(silence);
        self
    }

    /// What is taken of a caller's push: checked, and not before its greatest event time and its watermark.
    async fn accepted(
        &self,
        caller: Option<&str>,
        source: &Source,
        events: &RecordBatch,
        header: &PushHeader,
    ) -> Result<RecordBatch> {
        let clock = self.shared.jobs.clock();
        let now = |at| Now { at, tolerance: self.clock_tolerance };
        let mut at = clock.now();
        loop {
            accept::check_watermark(source, header, now(at))?;
            let (accepted, greatest) = accept::accept(source, events, now(at))?;
            match greatest.max(header.watermark).filter(|due| *due > at) {
                None => return Ok(accepted),
                // Once it is due they are known from that time on.
                Some(due) => {
                    let _place = self.early.place(caller, bytes_of_rows(events), due.since(at))?;
                    at = due::wait_until(clock.as_ref(), due, self.clock_tolerance).await?;
                }
            }
        }
    }
}

/// The bytes of a batch's values: columns of one message share its memory.
/// Flushes until nobody takes pushes any more.
async fn flush_by_time(shared: Weak<Shared>, full: Arc<Notify>) {
    loop {
        tokio::select! { () = tokio::time::sleep(FLUSH_EVERY) => {}, () = full.notified() => {} }
        let Some(shared) = shared.upgrade() else { break };
        if shared.fence.is_lost() {
            break;
        }
        if let Err(error) = caught("a flush", shared.flush()).await {
            tracing::error!(error = %error.chain(), "what was pushed cannot be moved to object storage; it stays in the log");
        }
    }
}

#[async_trait]
impl EventSink for Pushes {
    async fn schema(&self, source: &str) -> Result<SchemaRef> {
        let catalog = (self.shared.catalog)();
        Ok(Column::to_schema(accept::source_of(&catalog, source)?.columns.iter()))
    }

    async fn submit_by(
        &self,
        caller: Option<&str>,
        source: &str,
        events: RecordBatch,
        header: PushHeader,
    ) -> Result<PendingAck> {
        self.shared.fence.hold()?;
        let name = match &header.producer {
            Some(producer) => Some(self.shared.admit(source, producer, caller).await?),
            None => None,
        };
        let catalog = (self.shared.catalog)();
        let accepting = accept::source_of(&catalog, source)?;
        let (events, sent) = (self.accepted(caller, accepting, &events, &header).await?, events.num_rows());
        caught("a view's query", self.shared.try_events(&catalog, source, &events)).await?;
        let (events, asked) = self.shared.not_flushed(caller, accepting, events).await?;
        if self.shared.log.bytes() > FULL_BYTES {
            return Err(Error::busy("the push log is full: it cannot be flushed to object storage fast enough")
                .with("bytes", self.shared.log.bytes())
                .remedy("send the batch again later; nothing of it was taken"));
        }
        let (answer, told) = oneshot::channel();
        let stopped = || Error::unavailable("pushes are not taken any more").remedy("send the batch again later");
        let at = self.shared.jobs.clock().now();
        let push = Push { source: source.to_owned(), events, header, at };
        let waiting = Waiting { push, sent, answer, name, asked };
        self.queue.send(waiting).await.map_err(|_| stopped())?;
        Ok(Box::pin(async move { told.await.map_err(|_| stopped())? }))
    }

    async fn flush(&self) -> Result<u64> {
        caught("a flush", self.shared.flush()).await
    }

    async fn producers(&self, source: &str) -> Result<Vec<ProducerState>> {
        let catalog = (self.shared.catalog)();
        accept::source_of(&catalog, source)?;
        Ok(self.shared.log.producers(Some(source)))
    }

    async fn change_producer(
        &self,
        source: &str,
        producer: &str,
        change: ProducerChange,
        by: Signature,
    ) -> Result<ProducerState> {
        let catalog = (self.shared.catalog)();
        accept::source_of(&catalog, source)?;
        self.change(source, producer, change, by).await
    }

    fn silent_producers(&self) -> Vec<ProducerState> {
        self.shared.log.silent_producers()
    }

    async fn rows_after(&self, view: &FeatureView, mark: Mark) -> Result<Lacking> {
        caught("what brings pushes to the view", self.shared.rows_after(view, mark)).await
    }

    async fn rows_at_hand(&self, view: &FeatureView, mark: Mark) -> Result<Option<(Vec<KeyedRow>, Mark)>> {
        caught("what brings pushes to the view", self.shared.rows_at_hand(view, mark)).await
    }

    async fn brings_again(
        &self,
        view: &FeatureView,
        pushes: (u64, Mark),
        commits: &[(u64, ViewCommit)],
    ) -> Result<bool> {
        self.shared.brings_again(view, pushes, commits).await
    }

    fn may_bring_again(&self, view: &FeatureView, pushes: (u64, Mark), commits: &[(u64, ViewCommit)]) -> Result<bool> {
        self.shared.may_bring_again(view, pushes, commits)
    }

    fn hold_back(&self, view: &FeatureView) {
        self.shared.note(view, Err(Error::busy("pushes come to the view faster than it can be loaded")));
    }

    async fn replay(&self) -> Result<()> {
        self.shared.apply_missing(&(self.shared.catalog)()).await
    }
}

impl Shared {
    /// Takes what waits, again and again: groups of pushes are written to the log in one step and applied in the next,
    /// so that a group is on its way to the disk while the one before it is on its way to the views.
    async fn ingest(self: Arc<Self>, mut waiting: mpsc::Receiver<Waiting>) {
        let (next, appended) = mpsc::channel(1);
        let applying = tokio::spawn(Arc::clone(&self).apply_in_turn(appended));
        while let Some(first) = waiting.recv().await {
            let mut rows = first.push.events.num_rows();
            let mut group = vec![first];
            while rows < GROUP_ROWS
                && let Ok(next) = waiting.try_recv()
            {
                rows += next.push.events.num_rows();
                group.push(next);
            }
            let (mut pushes, mut sent, mut answers, mut held) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for of in group {
                pushes.push(of.push);
                sent.push(of.sent as u64);
                answers.push(of.answer);
                held.push((of.name, of.asked));
            }
            let appended = self.append(pushes, &sent).await;
            drop(held);
            match appended {
                Ok((acks, entries, reach)) => {
                    if next.send(Appended { acks, entries, reach, answers }).await.is_err() {
                        break;
                    }
                }
                Err(error) => refuse(answers, &error),
            }
            if self.log.bytes() > FLUSH_BYTES {
                self.full.notify_one();
            }
        }
        drop(next);
        if let Err(error) = applying.await {
            tracing::error!(error = %error, "what was pushed is in the log and not in the views: it is when the store starts again");
        }
    }

    /// Makes pushes durable. Gives what is to be told of each once it is visible.
    async fn append(&self, pushes: Vec<Push>, sent: &[u64]) -> Result<(Vec<PushAck>, Vec<PushEntry>, LogReach)> {
        let catalog = (self.catalog)();
        let sources: Vec<String> = pushes.iter().map(|push| push.source.clone()).collect();
        let log = Arc::clone(&self.log);
        let (appended, reach) = tokio::task::spawn_blocking(move || log.append(pushes))
            .await
            .map_err(|error| Error::internal("the log's writer panicked").source(error))??;
        let acks = sources.iter().zip(&appended).zip(sent).map(|((source, entry), sent)| PushAck {
            rows: entry.as_ref().map_or(0, |entry| entry.events.num_rows() as u64),
            repeated: entry.as_ref().map_or(0, |entry| sent - entry.events.num_rows() as u64),
            late: entry.as_ref().map_or(0, |entry| {
                current_source(&catalog, source).map_or(0, |source| late_events(source, &entry.events))
            }),
            duplicate: entry.is_none(),
            behind: Vec::new(),
            position: reach.last,
            watermark: self.watermark(source, &reach.watermarks),
        });
        Ok((acks.collect(), appended.into_iter().flatten().collect(), reach))
    }

    /// Makes what is in the log visible, group by group, and acknowledges it.
    async fn apply_in_turn(self: Arc<Self>, mut appended: mpsc::Receiver<Appended>) {
        while let Some(Appended { acks, entries, reach, answers }) = appended.recv().await {
            let visible = caught("what makes pushes visible", self.make_visible(&entries, reach)).await;
            if visible.is_err() {
                // What this group did not bring to the views is brought to them before the next one's.
                *self.applied() = None;
            }
            match visible.and_then(|behind| self.fence.hold().map(|()| behind)) {
                Ok(behind) => {
                    for (answer, ack) in answers.into_iter().zip(acks) {
                        let ack = PushAck { behind: behind.clone(), ..ack };
                        // A producer that went away does not hear it.
                        drop(answer.send(Ok(ack)));
                    }
                }
                Err(error) => refuse(answers, &error),
            }
        }
    }

    /// Makes entries visible in every view that can have them; gives the names of those that cannot have them now. They are
    /// durable: those views have them later.
    async fn make_visible(&self, entries: &[PushEntry], reach: LogReach) -> Result<Vec<String>> {
        self.fence.hold()?;
        let catalog = (self.catalog)();
        // Views that are behind are brought up beside pushes, not before them.
        if self.applied().is_none() {
            self.apply_missing(&catalog).await?;
        }
        self.apply(&catalog, entries, &reach).await?;
        *self.applied() = Some(reach);
        let touched: BTreeSet<&str> = entries.iter().map(|entry| entry.source.as_str()).collect();
        let behind = self.behind();
        let lacking = self.pushed_views(&catalog).into_iter();
        let lacking =
            lacking.filter(|(view, sources)| !sources.is_disjoint(&touched) && behind.contains_key(&view.pinned()));
        Ok(lacking.map(|(view, _)| view.name.clone()).collect())
    }

    fn applied(&self) -> MutexGuard<'_, Option<LogReach>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behind(&self) -> MutexGuard<'_, BTreeMap<Pinned, String>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether a view has what was applied to it.
    fn note(&self, view: &FeatureView, applied: Result<()>) {
        match applied {
            Ok(()) => {
                if self.behind().remove(&view.pinned()).is_some() {
                    tracing::info!(view = %view.name, "the view has all pushes again");
                }
            }
            Err(error) => {
                if self.behind().insert(view.pinned(), error.chain()).is_none() {
                    tracing::error!(view = %view.name, error = %error.chain(), "a view cannot have pushes now; others go on");
                }
            }
        }
    }

    /// What of the log is to be flushed: what has been applied; before anything was, everything.
    async fn flushable(&self) -> LogReach {
        let _changing = self.changing.lock().await;
        self.applied().clone().unwrap_or_else(|| self.log.reach())
    }

    fn history(&self) -> Arc<PushHistoryState> {
        Arc::clone(&self.history.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether events of a source have been pushed.
    fn knows(&self, source: &str) -> bool {
        self.log.knows(source) || self.history().knows(source)
    }

    /// How far a source's producers have got: as the log said at a time, or as was flushed before.
    fn watermark(&self, source: &str, log: &BTreeMap<String, Timestamp>) -> Option<Timestamp> {
        log.get(source).copied().max(self.history().watermarks.get(source).copied())
    }

    /// The views to which pushes come as they are taken, each with the names of its pushed sources. Rows that lie ahead of
    /// their events do not hold yet when these come: such a view has them by its refreshes.
    fn pushed_views<'a>(&self, catalog: &'a CatalogState) -> Vec<(&'a FeatureView, BTreeSet<&'a str>)> {
        let mut views = self.views_of_pushed(catalog);
        views.retain(|(view, _)| !view.ahead);
        views
    }

    /// The views that read pushed sources, each with the names of those.
    fn views_of_pushed<'a>(&self, catalog: &'a CatalogState) -> Vec<(&'a FeatureView, BTreeSet<&'a str>)> {
        let mut views = Vec::new();
        for view in catalog.live_views() {
            let names = view.sources.iter().map(|source| source.name.as_str());
            let pushed: BTreeSet<&str> = names.filter(|name| self.knows(name)).collect();
            if !pushed.is_empty() {
                views.push((view, pushed));
            }
        }
        views
    }
}

/// The current versions of all sources.
fn current_sources(catalog: &CatalogState) -> impl Iterator<Item = &Source> {
    catalog.definitions().filter_map(|definition| match definition.as_ref() {
        Definition::Source(source) => Some(source),
        _ => None,
    })
}

/// The current version of a source.
fn current_source<'a>(catalog: &'a CatalogState, name: &str) -> Option<&'a Source> {
    current_sources(catalog).find(|source| source.name == name)
}
