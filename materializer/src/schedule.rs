//! The schedule: every live view refreshed by its `REFRESH EVERY`, its small files merged after each turn, those of pushed
//! events every ten minutes, and garbage removed every day, for as long as somebody wants it.
//!
//! Views are refreshed beside each other, a few at once. One that fails or panics, or whose log cannot be read, is tried
//! again after a second, then two, four and so on up to its own interval, and keeps nobody else waiting; a catalog that
//! cannot be read is tried again in the same way, while the views of the one that was read last go on. Waits vary at
//! random by a tenth, so that views with one interval, and schedulers that were started together, do not all come at the
//! same moment. What only keeps the store small, and fails or panics, is told in the log, and is done the next time.
//!
//! The clock may be set back. What was planned by one that was ahead lies further ahead than its interval: it is due at once.
//!
//! What has not ended after very long is given up, as a failure with a name: it hangs, and its place is another's. That is real
//! time, whatever the clock says: a past week that is replayed in an hour waits for storage as long as any.

#[cfg(test)]
mod tests;
mod turn;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use self::turn::{Turn, is_due};
use crate::Jobs;
use crate::garbage::GRACE;
use crate::panics::said;
use crate::refresh::Refreshed;

/// Views that are refreshed at once: each has the memory of a query of its own.
const AT_ONCE: usize = 2;

/// How often the files of pushed events are merged: about so many flushes make something to merge.
const PUSHES_EVERY: Span = Span::from_secs(600);

/// How often garbage is collected.
const GARBAGE_EVERY: Span = Span::from_secs(24 * 3_600);

/// The longest wait for a catalog that cannot be read.
const CATALOG_RETRY: Span = Span::from_secs(60);

/// A view's turn, or the merging of its files, is given up after so many of its intervals, but within these bounds: a first
/// refresh may take hours where later ones take seconds.
const INTERVALS: u32 = 20;
const PATIENCE: [Duration; 2] = [Duration::from_secs(3_600), Duration::from_secs(24 * 3_600)];

/// Reading the catalog is given up after so long.
const CATALOG_PATIENCE: Duration = Duration::from_secs(600);

/// What happened to a view in its turn.
#[derive(Debug)]
pub struct TurnDone {
    /// The view.
    pub view: Pinned,
    /// What the refresh did.
    pub result: Result<Refreshed>,
    /// How often it has now failed in a row.
    pub failures: u32,
}

/// What a schedule tells of itself.
#[expect(clippy::large_enum_variant, reason = "one is told at a time, and a turn is what is told nearly always")]
#[derive(Debug)]
pub enum Told {
    /// A view had its turn.
    Turn(TurnDone),
    /// The catalog could not be read; the views that are known go on, and it is tried again.
    CatalogFailed {
        /// Why.
        error: Error,
        /// How often in a row.
        failures: u32,
    },
    /// The catalog was read again after it had failed.
    CatalogRead,
}

/// What a schedule does: the jobs', or what a test puts in their place.
#[async_trait]
trait Work: Clone + Send + Sync + 'static {
    /// The time by which views are due.
    fn now(&self) -> Timestamp;

    /// The catalog after its newest commit; `None` when that is the one given.
    async fn follow(&self, catalog: &CatalogState) -> Result<Option<CatalogState>>;

    /// Until when a view's history has been read.
    async fn read_until(&self, view: &FeatureView) -> Result<Option<Timestamp>>;

    /// Refreshes a view.
    async fn refresh(&self, catalog: &CatalogState, view: &FeatureView) -> Result<Refreshed>;

    /// Merges a view's small files.
    async fn compact(&self, view: &FeatureView) -> Result<()>;

    /// Merges the small files of pushed events.
    async fn compact_pushes(&self) -> Result<()>;

    /// Removes what no commit names.
    async fn collect_garbage(&self) -> Result<()>;
}

#[async_trait]
impl Work for Jobs {
    fn now(&self) -> Timestamp {
        self.clock().now()
    }

    async fn follow(&self, catalog: &CatalogState) -> Result<Option<CatalogState>> {
        if catalog.number() == 0 {
            let whole = self.catalog().state().await?;
            return Ok((whole.number() > 0).then_some(whole));
        }
        let mut newer = catalog.clone();
        Ok(self.catalog().follow(&mut newer).await?.then_some(newer))
    }

    async fn read_until(&self, view: &FeatureView) -> Result<Option<Timestamp>> {
        Ok(self.log(view).state().await?.read_until)
    }

    async fn refresh(&self, catalog: &CatalogState, view: &FeatureView) -> Result<Refreshed> {
        Self::refresh(self, catalog, view).await
    }

    async fn compact(&self, view: &FeatureView) -> Result<()> {
        Self::compact(self, view).await.map(drop)
    }

    async fn compact_pushes(&self) -> Result<()> {
        Self::compact_pushes(self).await.map(drop)
    }

    async fn collect_garbage(&self) -> Result<()> {
        // Of the newest catalog: what one that is behind does not name may be named.
        let catalog = self.catalog().state().await?;
        Self::collect_garbage(self, &catalog, GRACE).await.map(drop)
    }
}

impl Jobs {
    /// Refreshes all live views by their intervals and keeps the store small, until the future is dropped. `seed` makes the waits; `poll` is how
    /// often the catalog and the clock are looked at. Nothing that fails ends it: all of that is told, and tried again.
    pub async fn run_schedule(&self, seed: u64, poll: Duration, told: impl FnMut(Told)) -> Infallible {
        Schedule::new(self.clone(), seed).run(poll, told).await
    }
}

/// What a task is about.
#[derive(Debug)]
enum Task {
    /// Reading the catalog.
    Catalog,
    /// A view's turn, and when it began.
    View(Box<FeatureView>, Timestamp),
    /// Merging a view's small files.
    Compaction(Box<FeatureView>),
    /// Merging the small files of pushed events.
    Pushes,
    /// Removing what no commit names.
    Garbage,
}

/// What a task gave.
#[derive(Debug)]
enum Done {
    Catalog(Result<Option<CatalogState>>),
    View(Result<Attempt>),
    Tidied(Result<()>),
}

/// What a view's turn came to.
#[derive(Debug)]
enum Attempt {
    /// It had been refreshed before this schedule began, and is not due before then.
    NotBefore(Timestamp),
    Refreshed(Box<Refreshed>),
}

struct Schedule<W> {
    work: W,
    random: ChaCha8Rng,
    catalog: Arc<CatalogState>,
    catalog_turn: Turn,
    turns: HashMap<Pinned, Turn>,
    /// When the files of pushed events were merged last,
    pushes_merged: Option<Timestamp>,
    /// and when garbage was collected.
    collected: Option<Timestamp>,
    running: JoinSet<Done>,
    tasks: HashMap<Id, Begun>,
    /// After how long each task is given up.
    patience: fn(&Task) -> Duration,
}

/// A task that is under way.
#[derive(Debug)]
struct Begun {
    task: Task,
    handle: AbortHandle,
    /// When it is given up.
    until: Instant,
}

impl<W: Work> Schedule<W> {
    fn new(work: W, seed: u64) -> Self {
        Self {
            patience,
            work,
            random: ChaCha8Rng::seed_from_u64(seed),
            catalog: Arc::default(),
            catalog_turn: Turn::unknown(),
            turns: HashMap::new(),
            pushes_merged: None,
            collected: None,
            running: JoinSet::new(),
            tasks: HashMap::new(),
        }
    }

    async fn run(mut self, poll: Duration, mut told: impl FnMut(Told)) -> Infallible {
        let mut polls = tokio::time::interval(poll.max(Duration::from_millis(1)));
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(joined) = self.running.join_next_with_id() => self.end(joined, &mut told),
                _ = polls.tick() => {
                    self.give_up_what_hangs(&mut told);
                    self.look_at_catalog();
                }
            }
            self.start_views();
            self.start_pushes();
            self.start_garbage();
        }
    }

    /// Begins a task.
    fn begin(&mut self, task: Task, work: impl Future<Output = Done> + Send + 'static) {
        let until = Instant::now() + (self.patience)(&task);
        let handle = self.running.spawn(work);
        self.tasks.insert(handle.id(), Begun { task, handle, until });
    }

    /// Ends the tasks whose time is over: their places are free, whether or not they let themselves be stopped.
    fn give_up_what_hangs(&mut self, told: &mut impl FnMut(Told)) {
        let now = Instant::now();
        let over: Vec<Id> = self.tasks.iter().filter(|(_, begun)| begun.until <= now).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(Begun { task, handle, .. }) = self.tasks.remove(&id) {
                handle.abort();
                let after = (self.patience)(&task);
                let error = Error::unavailable("a job of the schedule was given up: it had not ended after very long")
                    .with("seconds", after.as_secs())
                    .remedy("look at what its storage answers; it is tried again, and the others go on");
                // What hung is not asked for more.
                self.end_task(task, Err(error), told);
            }
        }
    }

    /// Begins to read the catalog, unless that is under way or waits after a failure.
    fn look_at_catalog(&mut self) {
        let under_way = self.tasks.values().any(|begun| matches!(begun.task, Task::Catalog));
        if under_way || !self.catalog_turn.is_due(self.work.now(), CATALOG_RETRY) {
            return;
        }
        let (work, catalog) = (self.work.clone(), Arc::clone(&self.catalog));
        self.begin(Task::Catalog, async move { Done::Catalog(work.follow(&catalog).await) });
    }

    /// Begins the turns of the views that are due, as many as there is room for.
    fn start_views(&mut self) {
        let busy: Vec<Pinned> =
            self.tasks.values().filter_map(|begun| begun.task.view()).map(FeatureView::pinned).collect();
        let now = self.work.now();
        let mut due: Vec<(Turn, FeatureView)> = self
            .catalog
            .live_views()
            .into_iter()
            .filter(|view| !busy.contains(&view.pinned()))
            .map(|view| (self.turns.get(&view.pinned()).copied().unwrap_or_else(Turn::unknown), view))
            .filter(|(turn, view)| turn.is_due(now, view.refresh_every))
            .map(|(turn, view)| (turn, view.clone()))
            .collect();
        due.sort_by_key(|(turn, _)| turn.at);
        for (turn, view) in due.into_iter().take(AT_ONCE.saturating_sub(busy.len())) {
            let (work, catalog, task_view) = (self.work.clone(), Arc::clone(&self.catalog), view.clone());
            self.begin(Task::View(Box::new(view), now), async move {
                Done::View(attempt(&work, &catalog, &task_view, turn, now).await)
            });
        }
    }

    /// Begins to merge what refreshes and flushes have written of a view since its last turn.
    fn start_compaction(&mut self, view: &FeatureView) {
        let (work, task_view) = (self.work.clone(), view.clone());
        let task = Task::Compaction(Box::new(view.clone()));
        self.begin(task, async move { Done::Tidied(work.compact(&task_view).await) });
    }

    /// Begins to merge what flushes have written of pushed events, when that is due.
    fn start_pushes(&mut self) {
        let now = self.work.now();
        let is_due = self.pushes_merged.is_none_or(|last| is_due(last + PUSHES_EVERY, now, PUSHES_EVERY));
        let under_way = self.tasks.values().any(|begun| matches!(begun.task, Task::Pushes));
        if !is_due || under_way || self.catalog.number() == 0 {
            return;
        }
        self.pushes_merged = Some(now);
        let work = self.work.clone();
        self.begin(Task::Pushes, async move { Done::Tidied(work.compact_pushes().await) });
    }

    /// Begins to remove garbage, when that is due.
    fn start_garbage(&mut self) {
        let now = self.work.now();
        let is_due = self.collected.is_none_or(|last| is_due(last + GARBAGE_EVERY, now, GARBAGE_EVERY));
        let under_way = self.tasks.values().any(|begun| matches!(begun.task, Task::Garbage));
        if !is_due || under_way || self.catalog.number() == 0 {
            return;
        }
        self.collected = Some(now);
        let work = self.work.clone();
        self.begin(Task::Garbage, async move { Done::Tidied(work.collect_garbage().await) });
    }

    /// Takes what a task gave; one that panicked gave an error.
    fn end(&mut self, joined: Result<(Id, Done), JoinError>, told: &mut impl FnMut(Told)) {
        let (id, done) = match joined {
            Ok((id, done)) => (id, Ok(done)),
            Err(error) => (error.id(), Err(panicked(error))),
        };
        match self.tasks.remove(&id) {
            Some(begun) => {
                let view = begun.task.refreshed().cloned();
                if self.end_task(begun.task, done, told)
                    && let Some(view) = view
                {
                    self.start_compaction(&view);
                }
            }
            None => tracing::info!(?done, "a job of the schedule that was given up has ended"),
        }
    }

    /// Notes what a task came to; says whether a view has had its turn.
    fn end_task(&mut self, task: Task, done: Result<Done>, told: &mut impl FnMut(Told)) -> bool {
        match (task, done) {
            (Task::View(view, began), Ok(Done::View(result))) => return self.end_view(&view, began, result, told),
            (Task::View(view, began), Err(error)) => return self.end_view(&view, began, Err(error), told),
            (Task::Catalog, Ok(Done::Catalog(result))) => self.end_catalog(result, told),
            (Task::Catalog, Err(error)) => self.end_catalog(Err(error), told),
            (Task::Compaction(_) | Task::Pushes | Task::Garbage, Ok(Done::Tidied(Ok(())))) => {}
            (Task::Compaction(view), Ok(Done::Tidied(Err(error))) | Err(error)) => {
                tracing::error!(view = %view.name, error = %error.chain(), "small files cannot be merged");
            }
            (Task::Pushes, Ok(Done::Tidied(Err(error))) | Err(error)) => {
                tracing::error!(error = %error.chain(), "small files of pushed events cannot be merged");
            }
            (Task::Garbage, Ok(Done::Tidied(Err(error))) | Err(error)) => {
                tracing::error!(error = %error.chain(), "garbage cannot be collected; it is tried again tomorrow");
            }
            (task, done) => tracing::error!(?task, ?done, "a task of the schedule is not what it was begun for"),
        }
        false
    }

    fn end_catalog(&mut self, result: Result<Option<CatalogState>>, told: &mut impl FnMut(Told)) {
        let (now, share) = (self.work.now(), self.random.random_range(0.0..1.0));
        match result {
            Ok(newer) => {
                if let Some(newer) = newer {
                    let live: Vec<Pinned> = newer.live_views().into_iter().map(FeatureView::pinned).collect();
                    self.turns.retain(|view, _| live.contains(view));
                    self.catalog = Arc::new(newer);
                }
                let failed = self.catalog_turn.failures > 0;
                self.catalog_turn = Turn::unknown();
                if failed {
                    told(Told::CatalogRead);
                }
            }
            Err(error) => {
                tracing::error!(error = %error.chain(), "the catalog cannot be read; going on with what there is");
                self.catalog_turn = self.catalog_turn.after_failure(now, CATALOG_RETRY, share);
                told(Told::CatalogFailed { error, failures: self.catalog_turn.failures });
            }
        }
    }

    fn end_view(
        &mut self,
        view: &FeatureView,
        began: Timestamp,
        result: Result<Attempt>,
        told: &mut impl FnMut(Told),
    ) -> bool {
        let (pinned, now, share) = (view.pinned(), self.work.now(), self.random.random_range(0.0..1.0));
        let before = self.turns.get(&pinned).copied().unwrap_or_else(Turn::unknown);
        let (turn, result) = match result {
            Ok(Attempt::NotBefore(at)) => {
                self.turns.insert(pinned, Turn::planned(at));
                return false;
            }
            // What came while it ran waits for the next.
            Ok(Attempt::Refreshed(done)) => (Turn::after_success(began, view.refresh_every, share), Ok(*done)),
            Err(error) => (before.after_failure(now, view.refresh_every, share), Err(error)),
        };
        self.turns.insert(pinned.clone(), turn);
        told(Told::Turn(TurnDone { view: pinned, result, failures: turn.failures }));
        true
    }
}

impl Task {
    /// The view whose turn it is.
    fn refreshed(&self) -> Option<&FeatureView> {
        if let Self::View(view, _) = self { Some(view) } else { None }
    }

    /// The view that it keeps busy.
    fn view(&self) -> Option<&FeatureView> {
        match self {
            Self::Catalog | Self::Pushes | Self::Garbage => None,
            Self::View(view, _) | Self::Compaction(view) => Some(view),
        }
    }
}

/// After how long a task is given up.
fn patience(task: &Task) -> Duration {
    let Some(view) = task.view() else {
        return if matches!(task, Task::Catalog) { CATALOG_PATIENCE } else { PATIENCE[1] };
    };
    let every = Duration::from_micros(view.refresh_every.micros().max(0).cast_unsigned());
    every.saturating_mul(INTERVALS).clamp(PATIENCE[0], PATIENCE[1])
}

/// A view's turn. Its first finds out when its last refresh was, and leaves it when that is no older than it may be.
async fn attempt<W: Work>(
    work: &W,
    catalog: &CatalogState,
    view: &FeatureView,
    turn: Turn,
    now: Timestamp,
) -> Result<Attempt> {
    if !turn.planned {
        let read_until = work.read_until(view).await?;
        let due = read_until.map(|read| read + view.refresh_every);
        if let Some(due) = due.filter(|due| !is_due(*due, now, view.refresh_every)) {
            return Ok(Attempt::NotBefore(due));
        }
    }
    work.refresh(catalog, view).await.map(|done| Attempt::Refreshed(Box::new(done)))
}

/// What a task's panic said, as an error.
fn panicked(error: JoinError) -> Error {
    let text = match error.try_into_panic() {
        Ok(panic) => said(panic.as_ref()),
        Err(error) => error.to_string(),
    };
    Error::internal("a job of the schedule panicked")
        .with("it said", text)
        .remedy("please report it; the job is tried again, and the others go on")
}
