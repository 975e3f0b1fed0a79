//! Events that their source tells apart (rule T12), as they are pushed: an event counts once, whichever way it came first.
//!
//! Of events that were pushed before the log has an index of the last day; of older ones the flushed files are asked, before
//! a push is in line ([`Shared::not_flushed`]). Of those that a view has got from its history, which are at most as late as
//! its last read, the files that it read are asked, when the events are applied and when they are committed, and its rows
//! where a file may hold what was only named ([`Jobs::not_from_history`]). A refresh may bring what the tiers have of a push
//! that is not committed: the view is then loaded anew ([`Shared::brings_again`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{FeatureView, Pinned, Source};
use springhouse_featurestore::push::{LogReach, PushEntry, PushHistoryState, PushLog};
use springhouse_featurestore::tier::{Mark, ViewCommit};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, RwLockWriteGuard, Semaphore};

use super::Shared;
use super::lacking::Piece;
use crate::Jobs;
use crate::distinct::{Got, before, times_of, told_apart};

/// How far the log's index is filled back before the newest flushed event.
const LEARNT: Span = Span::from_secs(24 * 60 * 60);

/// While somebody holds it the log's index keeps what it has: events were looked up that are to be appended.
pub(super) type Asked = OwnedRwLockReadGuard<()>;

/// What those who push, flush and follow share of events that are told apart.
#[derive(Debug, Default)]
pub(super) struct ToldApart {
    /// Held from when flushed files are asked about old events, by those whose turn it is, until these are in the log.
    asking: Arc<RwLock<()>>,
    /// Held from when events are found to be young enough for the index until they are in the log.
    in_line: Arc<RwLock<()>>,
    /// How many cuts of the log's index have given way to those who ask since the last that did not.
    gave_way: AtomicU32,
    /// Whose turn it is to read flushed files for old events.
    reading: Turns,
    /// How far views had got by commits that were looked at last.
    got: std::sync::Mutex<HashMap<Pinned, VecDeque<Got>>>,
}

/// How long a cut of the log's index waits for those who ask about old events; each that gives way lets the next wait twice as
/// long, so that it comes to its turn however slowly they are answered.
const CUT_WAITS: Duration = Duration::from_secs(1);

/// How often that doubles.
const CUT_WAITS_TWICE: u32 = 3;

impl ToldApart {
    /// Waits until nobody asks flushed files about old events, for a time; nobody begins to meanwhile, and while what it gives is
    /// held.
    async fn nobody_asks(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let doubled = self.gave_way.load(Ordering::Relaxed).min(CUT_WAITS_TWICE);
        let nobody = tokio::time::timeout(CUT_WAITS * (1 << doubled), self.asking.write()).await.ok();
        self.gave_way.store(if nobody.is_some() { 0 } else { doubled + 1 }, Ordering::Relaxed);
        nobody
    }
}

/// The most batches for whose old events flushed files are read at once: each takes as much memory as its events and theirs.
const READING_AT_ONCE: usize = 2;

/// Turns at something slow of which few happen at once: a caller has one at a time, however many streams it has, and the others'
/// wait for each other alone. So one caller never takes all of them.
#[derive(Debug)]
struct Turns {
    all: Arc<Semaphore>,
    /// Each caller's own, while it has any that waits.
    own: std::sync::Mutex<HashMap<Option<String>, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(READING_AT_ONCE)), own: std::sync::Mutex::default() }
    }
}

/// A turn, until it is dropped.
type Turn = (OwnedMutexGuard<()>, OwnedSemaphorePermit);

impl Turns {
    async fn wait(&self, caller: Option<&str>) -> Result<Turn> {
        let own = {
            let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            let caller = caller.map(ToOwned::to_owned);
            all.get(&caller).and_then(Weak::upgrade).unwrap_or_else(|| {
                all.retain(|_, own| own.strong_count() > 0);
                let own = Arc::default();
                all.insert(caller, Arc::downgrade(&own));
                own
            })
        };
        // In the line of all there is no more than one of a caller.
        let own = own.lock_owned().await;
        let turn = Arc::clone(&self.all).acquire_owned().await;
        Ok((own, turn.map_err(|error| Error::internal("nobody gives turns").source(error))?))
    }
}

impl Shared {
    /// What of a batch that is to be pushed was not flushed before, of events that the log does not know any more. What it
    /// gives beside them is held until they are in the log.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when object storage is asked and does not answer.
    pub(super) async fn not_flushed(
        &self,
        caller: Option<&str>,
        source: &Source,
        events: RecordBatch,
    ) -> Result<(RecordBatch, Option<Asked>)> {
        if source.identity().is_none() || events.num_rows() == 0 {
            return Ok((events, None));
        }
        loop {
            let told_from = self.told_from(source).await?;
            let old = before(source, &events, told_from);
            let is_old = old.contains(&true);
            // Whoever waits for a turn is in nobody's way.
            let turn = if is_old { Some(self.told_apart.reading.wait(caller).await?) } else { None };
            let lock = if is_old { &self.told_apart.asking } else { &self.told_apart.in_line };
            let asked = Arc::clone(lock).read_owned().await;
            if self.log.told_from(source)? != Some(told_from) {
                continue;
            }
            if !is_old {
                return Ok((events, Some(asked)));
            }
            let unavailable = |error: Error| {
                Error::unavailable(
                    "it cannot be told whether old events were pushed before: flushed files cannot be read",
                )
                .with("source", &source.name)
                .remedy("send the batch again later; nothing of it was taken")
                .source(error)
            };
            let copies = self.flushed_copies(source, &events, &old).await.map_err(unavailable)?;
            drop(turn);
            return Ok((without(&events, &copies)?, Some(asked)));
        }
    }

    /// Which of the old events of a batch have been flushed.
    async fn flushed_copies(&self, source: &Source, events: &RecordBatch, old: &[bool]) -> Result<Vec<bool>> {
        let olds = filter_record_batch(events, &BooleanArray::from(old.to_vec()))?;
        let none = vec![false; events.num_rows()];
        let Some(times) = times_of(source, &olds) else { return Ok(none) };
        let (session, flushed) = (self.jobs.session()?, self.history().events());
        let taken = session.taken_of_pushes(source, times, (&flushed, u64::MAX), self.jobs.store()).await?;
        let Some(taken) = taken else { return Ok(none) };
        let mut copies = session.copies(source, &olds, &taken).await?.into_iter();
        Ok(old.iter().map(|old| *old && copies.next().unwrap_or(false)).collect())
    }

    /// From which event time on the log knows all pushes of a source.
    async fn told_from(&self, source: &Source) -> Result<Timestamp> {
        if let Some(from) = self.log.told_from(source)? {
            return Ok(from);
        }
        // What is flushed meanwhile would be neither in the files that are read nor in the log.
        let _flushing = self.flushing.lock().await;
        if self.log.told_from(source)?.is_none() {
            learn(&self.jobs, &self.log, source, &self.history(), false).await?;
        }
        let learnt = self.log.told_from(source)?;
        learnt.ok_or_else(|| Error::internal("the log does not know what it learnt").with("source", &source.name))
    }

    /// Lets the log's index go of what it need not have. It gives way to those whose turn it is to ask flushed files about old
    /// events, but not for ever: who comes meanwhile waits behind it. Others who push wait only for what has come while it
    /// was looked how old the log's events are.
    pub(super) async fn cut_events(&self) -> Result<()> {
        let oldest = on_log(&self.log, PushLog::oldest_held).await?;
        let Some(_nobody_asks) = self.told_apart.nobody_asks().await else { return Ok(()) };
        let _nobody_is_in_line = self.told_apart.in_line.write().await;
        let now = self.jobs.clock().now();
        on_log(&self.log, move |log| log.cut_events(oldest, now)).await
    }

    /// The entries that a tier at a commit is to have, without the events that it has of the history.
    ///
    /// # Errors
    /// As [`Jobs::not_from_history`], and those of the view's log.
    pub(super) async fn new_to(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        commit: u64,
        entries: Vec<PushEntry>,
    ) -> Result<Vec<PushEntry>> {
        if entries.is_empty() || view.reaches_back() || told_apart(catalog, view)?.is_empty() {
            return Ok(entries);
        }
        let got = match self.got_by(view, commit).await? {
            Some(got) => got,
            // The tier has soon what the newest commit says that it has.
            None => Got::of(&self.jobs.log(view).state().await?),
        };
        self.jobs.not_from_history(catalog, view, &got, entries).await
    }

    /// How far a view had got by a commit; `None` where that takes too long to tell.
    async fn got_by(&self, view: &FeatureView, commit: u64) -> Result<Option<Got>> {
        let known = self.got_of(&view.pinned());
        if let Some(known) = known.iter().find(|known| known.commit == commit) {
            return Ok(Some(known.clone()));
        }
        let got = match known.into_iter().filter(|known| known.commit < commit).max_by_key(|known| known.commit) {
            Some(earlier) => {
                let mut commits = self.jobs.log(view).commits_after(earlier.commit).await?;
                commits.retain(|(number, _)| *number <= commit);
                Some(earlier.after(&commits))
            }
            None => self.jobs.got_at(view, commit).await?,
        };
        if let Some(got) = &got {
            self.keep(&view.pinned(), got);
        }
        Ok(got)
    }

    fn got_of(&self, view: &Pinned) -> VecDeque<Got> {
        self.told_apart.got.lock().unwrap_or_else(PoisonError::into_inner).get(view).cloned().unwrap_or_default()
    }

    fn keep(&self, view: &Pinned, got: &Got) {
        let mut all = self.told_apart.got.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.entry(view.clone()).or_default();
        kept.retain(|known| known.commit != got.commit);
        kept.push_back(got.clone());
        // The one that a tier is at, and the one that it is brought to.
        while kept.len() > 2 {
            kept.pop_front();
        }
    }

    /// Whether the history must be read to tell which events of entries a tier at a commit is to have.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`] when the catalog lacks a source.
    pub(super) fn asks_history(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        commit: u64,
        entries: &[PushEntry],
    ) -> Result<bool> {
        let sources = if view.reaches_back() { Vec::new() } else { told_apart(catalog, view)? };
        if sources.is_empty() {
            return Ok(false);
        }
        let known = self.got_of(&view.pinned()).into_iter().find(|known| known.commit == commit);
        Ok(known.is_none_or(|got| sources.iter().any(|source| entries.iter().any(|entry| got.may_have(source, entry)))))
    }

    /// Whether commits after a tier's mark bring events from the history that it has of pushes which were not committed then;
    /// of those beyond a position.
    ///
    /// # Errors
    /// Those of the log and of reading the files of the history.
    pub(super) async fn brings_again(
        &self,
        view: &FeatureView,
        (looked_until, mark): (u64, Mark),
        commits: &[(u64, ViewCommit)],
    ) -> Result<bool> {
        let catalog = (self.catalog)();
        let sources = told_apart(&catalog, view)?;
        if sources.is_empty() || view.reaches_back() || mark.commit == 0 {
            return Ok(false);
        }
        let Some(before_them) = self.got_by(view, mark.commit).await? else { return Ok(true) };
        let after_them = before_them.clone().after(commits);
        self.keep(&view.pinned(), &before_them);
        self.keep(&view.pinned(), &after_them);
        if after_them.is_of_the_same_history(&before_them) {
            return Ok(false);
        }
        let names = sources.iter().map(|source| source.name.as_str()).collect();
        let reach = LogReach { last: mark.pushed, ..LogReach::default() };
        let mut after = before_them.pushed.max(looked_until);
        while after < mark.pushed {
            let Piece { entries, until, .. } = self.missing(&names, after, &reach).await?;
            if self.jobs.has_of_both(&catalog, view, (&before_them, &after_them), entries).await? {
                return Ok(true);
            }
            after = until;
        }
        Ok(false)
    }

    /// Whether storage is to be read to tell that of pushes beyond a position; it was told before of those up to there.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`] when the catalog lacks a source.
    pub(super) fn may_bring_again(
        &self,
        view: &FeatureView,
        (looked_until, mark): (u64, Mark),
        commits: &[(u64, ViewCommit)],
    ) -> Result<bool> {
        let catalog = (self.catalog)();
        let sources = told_apart(&catalog, view)?;
        let (false, Some((last, _))) = (sources.is_empty() || view.reaches_back() || mark.commit == 0, commits.last())
        else {
            return Ok(false);
        };
        let known = self.got_of(&view.pinned());
        let by = |commit: u64| known.iter().find(|got| got.commit == commit);
        let (Some(before_them), Some(after_them)) = (by(mark.commit), by(*last)) else { return Ok(true) };
        if after_them.is_of_the_same_history(before_them) {
            return Ok(false);
        }
        let after = before_them.pushed.max(looked_until);
        // In this order: what leaves the log between the two has been flushed.
        let Some(entries) = self.log.recent_entries_after(after) else { return Ok(true) };
        let mut entries = entries.iter().take_while(|entry| entry.position <= mark.pushed);
        let may_have = |entry: &PushEntry| sources.iter().any(|source| after_them.may_have(source, entry));
        Ok(self.history().until > after || entries.any(may_have))
    }
}

/// Events without some of them.
fn without(events: &RecordBatch, copies: &[bool]) -> Result<RecordBatch> {
    if !copies.contains(&true) {
        return Ok(events.clone());
    }
    let kept: BooleanArray = copies.iter().map(|copy| Some(!copy)).collect();
    Ok(filter_record_batch(events, &kept)?)
}

/// Tells a log which events of a source have been flushed lately. `drop_copies` is whether its own copies of those go.
///
/// # Errors
/// Those of reading what has been flushed, and of the log.
pub(super) async fn learn(
    jobs: &Jobs,
    log: &Arc<PushLog>,
    source: &Source,
    history: &PushHistoryState,
    drop_copies: bool,
) -> Result<()> {
    let (session, flushed) = (jobs.session()?, history.events());
    log.forget_events_of(source)?;
    let newest = session.newest_pushed_event(source, &flushed, jobs.store()).await?;
    // One event of a clock that was ahead makes no other old; and what the log holds, however old, is told from what was flushed.
    let of = source.clone();
    let oldest = on_log(log, move |log| log.oldest_held_of(&of)).await?;
    let from = newest.map_or(Timestamp::MIN, |newest| newest.min(jobs.clock().now()) - LEARNT);
    let from = oldest.map_or(from, |oldest| from.min(oldest));
    if let Some(newest) = newest {
        let mut events = session.pushed_events(source, (from, newest), &flushed, jobs.store()).await?;
        while let Some(events) = events.try_next().await? {
            log.learn_flushed(source, &events)?;
        }
    }
    let source = source.clone();
    on_log(log, move |log| log.learn_held(&source, from, drop_copies)).await
}

/// Does with the log what takes long, off the threads that others need.
///
/// # Errors
/// Those of what is done.
pub(super) async fn on_log<T: Send + 'static>(
    log: &Arc<PushLog>,
    job: impl FnOnce(&PushLog) -> Result<T> + Send + 'static,
) -> Result<T> {
    let log = Arc::clone(log);
    tokio::task::spawn_blocking(move || job(&log))
        .await
        .map_err(|error| Error::internal("the log's reader panicked").source(error))?
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_caller_with_many_batches_of_old_events_leaves_a_turn_to_others() {
        let turns = Turns::default();
        let first = turns.wait(Some("ann")).now_or_never().expect("free").expect("open");
        let mut waiting: Vec<_> = (0..50).map(|_| Box::pin(turns.wait(Some("ann")))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()), "one at a time");
        let other = turns.wait(Some("bob")).now_or_never().expect("a turn is left").expect("open");
        let mut third = Box::pin(turns.wait(None));
        assert!(third.as_mut().now_or_never().is_none(), "as many as there may be");
        drop(first);
        // Whoever waits for a turn is no later than those of the caller that had one.
        drop(third.now_or_never().expect("its turn").expect("open"));
        drop((waiting, other));
        drop(turns.wait(Some("cid")).now_or_never().expect("free").expect("open"));
        assert_eq!(turns.own.lock().expect("no panic").len(), 1, "who has gone is not kept in mind");
    }

    #[tokio::test]
    async fn a_cut_comes_to_its_turn_however_many_ask_about_old_events() {
        let of = ToldApart::default();
        let ask = || Arc::clone(&of.asking).read_owned();
        let first = ask().now_or_never().expect("nobody cuts");
        let mut cut = Box::pin(of.nobody_asks());
        assert!(cut.as_mut().now_or_never().is_none(), "it waits for who asks");
        let mut next = Box::pin(ask());
        assert!(next.as_mut().now_or_never().is_none(), "who comes meanwhile waits behind it");
        drop(first);
        drop(cut.now_or_never().expect("its turn").expect("in time"));
        let slow = next.now_or_never().expect("it has cut");
        // One that is answered slowly keeps nobody waiting for long; the next cut is more patient.
        assert!(of.nobody_asks().await.is_none());
        drop(ask().now_or_never().expect("it waits no more"));
        assert_eq!(of.gave_way.load(Ordering::Relaxed), 1);
        drop(slow);
        assert!(of.nobody_asks().await.is_some());
        assert_eq!(of.gave_way.load(Ordering::Relaxed), 0);
    }
}
