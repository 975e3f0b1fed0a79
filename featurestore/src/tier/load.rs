//! Bringing an online tier up to object storage: what is new commit by commit, or everything anew.

mod pack;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use tokio::sync::{Mutex, MutexGuard};

pub use self::pack::Packer;
use super::object::{DataFile, ViewCommit, ViewCommitKind, ViewLog, ViewLogState};
use super::{Generation, KeyedRow, Mark, OnlineTier, merge_rows};
use crate::definition::FeatureView;
use crate::push::{EventSink, Lacking};
use crate::{Error, Result};

/// More rows than this are loaded as sorted files: beyond it sorting beats single writes.
const APPLY_AT_MOST_ROWS: u64 = 200_000;

/// How often the rows of pushes that come during a load are read beside them; each time there are fewer. From then on they
/// pass the view over ([`EventSink::hold_back`]), and it is read as often again.
const ROUNDS_BESIDE_PUSHES: usize = 10;

/// Told how a load gets on; the command line draws a bar from it.
pub trait Progress: Send + Sync + Debug {
    /// A load of this many rows begins.
    fn begin(&self, what: &str, rows: u64);
    /// So many more rows are done.
    fn advance(&self, rows: u64);
    /// It is over.
    fn end(&self);
}

/// Nobody is told.
impl Progress for () {
    fn begin(&self, _what: &str, _rows: u64) {}
    fn advance(&self, _rows: u64) {}
    fn end(&self) {}
}

/// Brings a view in `tier` up to its log's newest commit. Returns the mark reached.
///
/// A tier that holds nothing, that holds a commit which the log does not have (another store's folder), or that is
/// behind by a replacement or by very many commits, is loaded anew. Else the rows of the commits that it lacks are added to
/// those that it has, few as writes, many as sorted files; in either case together with the mark, once.
///
/// # Errors
/// Those of the log and of the tier; the tier is then at a mark that it has had.
pub async fn catch_up(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    view: &FeatureView,
    progress: &dyn Progress,
) -> Result<Mark> {
    catch_up_with(tier, log, view, progress, None).await
}

/// Those who change a tier beside the one who follows commits.
#[derive(Debug, Clone, Copy)]
pub struct Pushing<'a> {
    /// Who takes pushes.
    pub sink: &'a dyn EventSink,
    /// Held by whoever changes the tier, for as long as that takes, and not for reading storage.
    pub changing: &'a Mutex<()>,
}

/// As [`catch_up`], beside pushes: a view that is loaded anew has what the sink holds of its pushes before it is seen, and
/// storage is read without keeping pushes from the tier. One at a time may follow a view.
///
/// # Errors
/// As [`catch_up`].
pub async fn catch_up_with(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    view: &FeatureView,
    progress: &dyn Progress,
    pushing: Option<Pushing<'_>>,
) -> Result<Mark> {
    let packer = Packer::new(view)?;
    'anew: loop {
        let mark = tier.mark(log.view())?;
        if mark.commit == 0 {
            // It needs what counts now, and not the commits by which that came to be.
            let state = log.state().await?;
            if state.number == 0 {
                return Ok(mark);
            }
            return load_state(tier, log, state, (view, &packer), progress, pushing).await;
        }
        let Some(commits) = log.commits_unless_many(mark.commit).await? else {
            return load_anew(tier, log, (view, &packer), progress, pushing).await;
        };
        let unknown = !log.has(mark).await?;
        if commits.is_empty() && !unknown {
            return Ok(mark);
        }
        let mut lacks = Lacks::of(view, mark, &commits);
        lacks.anew = lacks.anew || unknown || brings_again(pushing, view, (0, mark), &commits).await?;
        let files = if lacks.anew { None } else { lacks.files(log, mark, &commits).await? };
        let Some(files) = files else { return load_anew(tier, log, (view, &packer), progress, pushing).await };
        let rows = files.iter().map(|(_, file)| file.rows).sum::<u64>();
        let read = if rows <= APPLY_AT_MOST_ROWS {
            Added::Few(read_few(log, &packer, (&lacks, &files), progress).await?)
        } else {
            Added::Many(read_many(tier, log, &packer, (&lacks, &files), progress).await?)
        };
        let (mut looked_at, mut round) = (mark, 1);
        loop {
            let changing = lock(pushing).await;
            // Pushes may have come meanwhile: what it lacks of the same commits may be less, and the mark is to keep them.
            let now = tier.mark(log.view())?;
            let still = Lacks::of(view, now, &commits);
            if now.commit != mark.commit || still.anew || still.wanted != lacks.wanted {
                continue 'anew;
            }
            if may_bring_again(pushing, view, (looked_at.pushed, now), &commits)? {
                // Nobody who pushes waits while storage is read.
                keep_pace(pushing, view, round)?;
                drop(changing);
                if brings_again(pushing, view, (looked_at.pushed, now), &commits).await? {
                    continue 'anew;
                }
                (looked_at, round) = (now, round + 1);
                continue;
            }
            match read {
                Added::Few(rows) => tier.apply(log.view(), rows, still.reached)?,
                Added::Many(addition) => addition.finish(still.reached)?,
            }
            return Ok(still.reached);
        }
    }
}

/// Whether newer commits of a view may bring from history what a tier has of pushes that were not committed: while nobody takes
/// pushes nobody can tell which. It is then to be loaded anew ([`load_again`]), and the pushes are applied again.
///
/// # Errors
/// Those of the log and of the tier.
pub async fn brings_unseen(tier: &dyn OnlineTier, log: &ViewLog) -> Result<bool> {
    let mark = tier.mark(log.view())?;
    if mark.commit == 0 {
        return Ok(false);
    }
    let Some(commits) = log.commits_unless_many(mark.commit).await? else { return Ok(true) };
    if !commits.iter().any(|(_, commit)| commit.kind == ViewCommitKind::Refresh) {
        return Ok(false);
    }
    let first = commits.iter().find_map(|(_, commit)| commit.pushed).map(|range| range.after);
    let committed = match first {
        Some(committed) => committed,
        None => log.state().await?.pushed,
    };
    Ok(mark.pushed > committed)
}

/// The rows that a tier lacks, read and not yet in it.
enum Added<'a> {
    /// To be written one by one.
    Few(Vec<KeyedRow>),
    /// Sorted files.
    Many(Box<dyn Generation + 'a>),
}

async fn read_few(
    log: &ViewLog,
    packer: &Packer,
    (lacks, files): (&Lacks, &[(u64, DataFile)]),
    progress: &dyn Progress,
) -> Result<Vec<KeyedRow>> {
    let wanted = |number| lacks.wanted.contains(&number);
    let mut held = BTreeMap::new();
    for (number, file) in files {
        let added = packer.read(log, *number, file, &wanted, |read, rows| {
            progress.advance(read);
            merge_rows(&mut held, rows)
        });
        added.await?;
    }
    Ok(held.into_iter().collect())
}

async fn read_many<'a>(
    tier: &'a dyn OnlineTier,
    log: &ViewLog,
    packer: &Packer,
    (lacks, files): (&Lacks, &[(u64, DataFile)]),
    progress: &dyn Progress,
) -> Result<Box<dyn Generation + 'a>> {
    let wanted = |number| lacks.wanted.contains(&number);
    progress
        .begin(&format!("loading what is new of {}", log.view().name), files.iter().map(|(_, file)| file.rows).sum());
    let mut addition = tier.begin_addition(log.view())?;
    for (number, file) in files {
        let added = packer.read(log, *number, file, &wanted, |read, rows| {
            progress.advance(read);
            addition.add(rows)
        });
        added.await?;
    }
    addition.settle()?;
    progress.end();
    Ok(addition)
}

async fn lock(pushing: Option<Pushing<'_>>) -> Option<MutexGuard<'_, ()>> {
    match pushing {
        Some(pushing) => Some(pushing.changing.lock().await),
        None => None,
    }
}

/// Whether commits bring events that a tier at a mark has of pushes already, of those beyond a position.
async fn brings_again(
    pushing: Option<Pushing<'_>>,
    view: &FeatureView,
    pushes: (u64, Mark),
    commits: &[(u64, ViewCommit)],
) -> Result<bool> {
    match pushing {
        Some(pushing) => pushing.sink.brings_again(view, pushes, commits).await,
        None => Ok(false),
    }
}

/// Whether storage is to be read to tell that of pushes that have come since.
fn may_bring_again(
    pushing: Option<Pushing<'_>>,
    view: &FeatureView,
    (after, mark): (u64, Mark),
    commits: &[(u64, ViewCommit)],
) -> Result<bool> {
    match pushing.filter(|_| after < mark.pushed) {
        Some(pushing) => pushing.sink.may_bring_again(view, (after, mark), commits),
        None => Ok(false),
    }
}

/// After many rounds in which pushes came faster than they could be looked at they pass the view over. The caller holds the
/// lock that keeps others from changing the tiers.
///
/// # Errors
/// [`crate::ErrorKind::Busy`] when that is no help: the view is followed by a later look.
fn keep_pace(pushing: Option<Pushing<'_>>, view: &FeatureView, round: usize) -> Result<()> {
    if round >= 2 * ROUNDS_BESIDE_PUSHES {
        return Err(Error::busy("pushes come to the view faster than it can be loaded")
            .with("view", &view.name)
            .remedy("nothing is lost; it is tried again at the next look at the store"));
    }
    if round >= ROUNDS_BESIDE_PUSHES
        && let Some(pushing) = pushing
    {
        pushing.sink.hold_back(view);
    }
    Ok(())
}

impl Mark {
    /// The mark with a commit.
    fn after(self, number: u64, commit: &ViewCommit) -> Self {
        let reached = commit.pushed.filter(|range| range.until > self.pushed);
        let (pushed, log) = reached.map_or((self.pushed, self.log), |range| (range.until, range.log));
        let watermark = match commit.kind {
            ViewCommitKind::Correct => Some(commit.watermark),
            _ => Some(commit.watermark).max(self.watermark),
        };
        Self { commit: number, watermark, committed: Some(commit.watermark), pushed, log }
    }
}

/// What a tier lacks of the commits after its mark.
#[derive(Debug)]
struct Lacks {
    /// The commits whose rows it lacks.
    wanted: BTreeSet<u64>,
    /// Whether that cannot be said, or a commit replaced what it has.
    anew: bool,
    /// Whether files of these commits have given way to others.
    compacted: bool,
    /// Where it is when it has them.
    reached: Mark,
}

impl Lacks {
    fn of(view: &FeatureView, mark: Mark, commits: &[(u64, ViewCommit)]) -> Self {
        let mut lacks = Self { wanted: BTreeSet::new(), anew: false, compacted: false, reached: mark };
        for (number, commit) in commits {
            match PushedRows::of(view, commit, lacks.reached) {
                PushedRows::Held => {}
                PushedRows::Wanted => {
                    lacks.wanted.insert(*number);
                }
                PushedRows::Mixed => lacks.anew = true,
            }
            lacks.anew |= commit.kind.replaces();
            lacks.compacted |= commit.kind == ViewCommitKind::Compact;
            lacks.reached = lacks.reached.after(*number, commit);
        }
        lacks
    }

    /// The files that have the rows; `None` when a commit has replaced them since.
    async fn files(
        &self,
        log: &ViewLog,
        mark: Mark,
        commits: &[(u64, ViewCommit)],
    ) -> Result<Option<Vec<(u64, DataFile)>>> {
        if !self.compacted {
            let wanted = commits.iter().filter(|(number, _)| self.wanted.contains(number));
            let files = wanted.flat_map(|(number, commit)| commit.files.iter().map(|file| (*number, file.clone())));
            return Ok(Some(files.collect()));
        }
        if self.wanted.is_empty() {
            return Ok(Some(Vec::new()));
        }
        // Files of these commits have given way to others, and may be gone.
        let state = log.state().await?;
        if state.replaced > mark.commit {
            return Ok(None);
        }
        let holds = |(number, file): &(u64, DataFile)| {
            let (first, last) = file.commits(*number);
            self.wanted.range(first..=last).next().is_some()
        };
        Ok(Some(state.files.into_iter().filter(holds).collect()))
    }
}

/// What a tier has of a commit's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PushedRows {
    /// All of them: they were pushed, and applied before they were committed; or the commit has no rows of its own.
    Held,
    /// None.
    Wanted,
    /// Some, or nobody knows.
    Mixed,
}

impl PushedRows {
    /// Of a commit, in a tier at a mark. Beyond what was committed a position says something in its own log alone.
    fn of(view: &FeatureView, commit: &ViewCommit, mark: Mark) -> Self {
        match commit.pushed {
            _ if commit.kind == ViewCommitKind::Compact => Self::Held,
            None => Self::Wanted,
            // The flush has computed them again, and from more of history; to have rows twice changes nothing (rule T5).
            Some(_) if view.reaches_back() => Self::Wanted,
            Some(range) if range.after >= mark.pushed => Self::Wanted,
            Some(range)
                if range.until <= mark.pushed && range.log == mark.log && commit.kind == ViewCommitKind::Push =>
            {
                Self::Held
            }
            Some(_) => Self::Mixed,
        }
    }
}

/// Loads a view whole, as a new generation beside the one that is there, which is answered until then: it lacks what it let go
/// of before the clock was set back.
///
/// # Errors
/// As [`catch_up`].
pub async fn load_again(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    view: &FeatureView,
    progress: &dyn Progress,
    pushing: Option<Pushing<'_>>,
) -> Result<Mark> {
    load_anew(tier, log, (view, &Packer::new(view)?), progress, pushing).await
}

async fn load_anew(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    (view, packer): (&FeatureView, &Packer),
    progress: &dyn Progress,
    pushing: Option<Pushing<'_>>,
) -> Result<Mark> {
    load_state(tier, log, log.state().await?, (view, packer), progress, pushing).await
}

async fn load_state(
    tier: &dyn OnlineTier,
    log: &ViewLog,
    ViewLogState { number, watermark, pushed, pushed_log, files, .. }: ViewLogState,
    (view, packer): (&FeatureView, &Packer),
    progress: &dyn Progress,
    pushing: Option<Pushing<'_>>,
) -> Result<Mark> {
    progress.begin(&format!("loading {}", log.view().name), files.iter().map(|(_, file)| file.rows).sum());
    let mut batches = tier.begin_generation(log.view())?;
    for (number, file) in &files {
        packer
            .read(log, *number, file, &|_| true, |read, rows| {
                progress.advance(read);
                batches.add(rows)
            })
            .await?;
    }
    batches.settle()?;
    let mark = Mark { pushed, log: pushed_log, ..Mark::of_commit(number, watermark) };
    let mark = match pushing {
        Some(pushing) => finish_with_pushes(tier, batches, (view, mark), progress, pushing).await?,
        None => batches.finish(mark).map(|()| mark)?,
    };
    progress.end();
    Ok(mark)
}

/// Adds what the sink holds of a view's pushes, and makes the generation the one that is read. Storage is read before the
/// lock is taken; what has come by then is in memory, or is read before the lock is taken again. Where pushes come faster than
/// that they pass the view over, and the generation is read once it has as many as the one before it.
async fn finish_with_pushes(
    tier: &dyn OnlineTier,
    mut batches: Box<dyn Generation + '_>,
    (view, mut mark): (&FeatureView, Mark),
    progress: &dyn Progress,
    pushing: Pushing<'_>,
) -> Result<Mark> {
    let mut round = 1;
    loop {
        mark = add_pushes(batches.as_mut(), view, mark, progress, pushing.sink).await?;
        batches.settle()?;
        let _changing = pushing.changing.lock().await;
        if let Some((rows, reached)) = pushing.sink.rows_at_hand(view, mark).await? {
            batches.add(rows)?;
            batches.finish(reached)?;
            return Ok(reached);
        }
        keep_pace(Some(pushing), view, round)?;
        if round >= ROUNDS_BESIDE_PUSHES && tier.mark(&view.pinned())?.pushed <= mark.pushed {
            batches.finish(mark)?;
            return Ok(mark);
        }
        round += 1;
    }
}

/// Adds the rows of pushes piece by piece up to where the sink had got; gives the mark with them.
async fn add_pushes(
    batches: &mut dyn Generation,
    view: &FeatureView,
    mut mark: Mark,
    progress: &dyn Progress,
    sink: &dyn EventSink,
) -> Result<Mark> {
    loop {
        let Lacking { rows, mark: reached, more } = sink.rows_after(view, mark).await?;
        progress.advance(rows.len() as u64);
        batches.add(rows)?;
        mark = reached;
        if !more {
            return Ok(mark);
        }
    }
}

impl ViewLog {
    /// Whether the log has the commit that a tier says it is at.
    async fn has(&self, mark: Mark) -> Result<bool> {
        Ok(self.commit_at(mark.commit).await?.is_some_and(|commit| Some(commit.watermark) == mark.committed))
    }
}
