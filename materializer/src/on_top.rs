//! Committing what took long to compute on top of what others have committed meanwhile.
//!
//! A refresh rests on how its view stood when it began. A flush that commits while it computes adds rows of its own, and
//! a compaction moves rows to other files: neither changes what history gave, nor what the refresh was to add. So its files
//! are committed as they are, after those commits. Only where another refresh, a backfill or a correction came between, what
//! was read is not what counts any more, and it is computed anew.
//!
//! *The order of writes* (rule T5) stays that of reading. A computed row says that it comes after the pushes which its refresh
//! knew; a row that was pushed later says a later position, and wins over it before and after either commit.
//!
//! *Events that had been set aside* and are tried again come like those of a flush, at the places of their pushes; those that are
//! dropped had no rows. But rows of a view that reaches back say that they come after the pushes which were known, a retry's as the
//! refresh's do, and could say the same place: the refresh is computed anew.
//!
//! *A refresh that sets events aside* tells of all that are: where others have changed that meanwhile it is computed anew.
//!
//! *Views that reach back* (`LOOKBACK`) need nothing more. A refresh lists history before it looks which pushes there are. A
//! flush that it does not know of computes the rows of its pushes after that, from no less history, and its rows win.
//!
//! *Views whose rows lie ahead of their events* have pushes by their refreshes alone, and no flush commits to them. Such a
//! refresh says from which position it took them; a flush that came between all the same (of a process that knows no such
//! views) would have moved that, so the refresh is computed anew.
//!
//! *Sources that tell their events apart* (`DISTINCT ON`, rule T12): a flush that came between may have committed an event which
//! the refresh has read in history too. What was flushed is then looked for in what was read; where some of it is there, the
//! refresh is computed anew, without it.

use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::{ViewCommit, ViewCommitKind, ViewLog, ViewLogState};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};

use crate::Jobs;
use crate::distinct::Got;

/// How often a commit is tried again on top of others. Each time costs a few requests, and flushes are many of these apart:
/// whoever comes second so often has no luck but something wrong.
pub(crate) const ATTEMPTS_ON_TOP: usize = 64;

/// What was computed, as far as the commits of others could make it wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Computed {
    /// Whether pushes are part of it;
    takes_pushes: bool,
    /// whether its rows reach back to other events;
    reaches_back: bool,
    /// and whether it says which events are set aside.
    sets_aside: bool,
}

/// What commits leave of what was computed before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// It is still right.
    Right,
    /// It is where none of the events that have been flushed meanwhile, up to this position, were read in history too.
    UnlessRead(u64),
    /// Other rows count now.
    Nothing,
}

/// What these commits leave of it.
fn left_by(Computed { takes_pushes, reaches_back, sets_aside }: Computed, commits: &[(u64, ViewCommit)]) -> Left {
    if sets_aside && commits.iter().any(|(_, commit)| commit.set_aside.is_some()) {
        return Left::Nothing;
    }
    let leaves = |kind| match kind {
        ViewCommitKind::Compact | ViewCommitKind::Drop => true,
        ViewCommitKind::Push => !takes_pushes,
        ViewCommitKind::Retry => !takes_pushes && !reaches_back,
        ViewCommitKind::Refresh | ViewCommitKind::Replace | ViewCommitKind::Backfill | ViewCommitKind::Correct => false,
    };
    if !commits.iter().all(|(_, commit)| leaves(commit.kind)) {
        return Left::Nothing;
    }
    let flushed = commits.iter().filter_map(|(_, commit)| commit.pushed);
    flushed.map(|range| range.until).max().map_or(Left::Right, Left::UnlessRead)
}

/// A refresh's commit as it follows a state that is newer than the one which it was computed from: no watermark goes back
/// (rule T6), and history has been read until `now`, no further.
fn following(commit: &ViewCommit, state: &ViewLogState, now: Timestamp) -> ViewCommit {
    let watermark = state.watermark.map_or(commit.watermark, |reached| reached.max(commit.watermark));
    let read_until = (watermark != now).then_some(now);
    ViewCommit { watermark, read_until, ..commit.clone() }
}

impl Jobs {
    /// Commits what a refresh has computed from `state` of history up to `now`; on top of flushes and compactions that have been
    /// committed since.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when it is to be computed anew; those of the store, and of reading what was flushed meanwhile.
    pub(crate) async fn commit_on_top(
        &self,
        catalog: &CatalogState,
        (view, log): (&FeatureView, &ViewLog),
        state: &mut ViewLogState,
        mut commit: ViewCommit,
        now: Timestamp,
    ) -> Result<()> {
        let base = Got::of(state);
        let read = Got { by_files: true, ..base.clone().after(&[(base.commit + 1, commit.clone())]) };
        for _ in 1..ATTEMPTS_ON_TOP {
            let conflict = match log.commit(state, commit.clone()).await {
                Err(error) if error.kind() == ErrorKind::Conflict => error,
                done => return done,
            };
            let (takes_pushes, sets_aside) = (commit.pushed.is_some(), commit.set_aside.is_some());
            let computed = Computed { takes_pushes, reaches_back: view.reaches_back(), sets_aside };
            let newest = self.newest_right(catalog, (view, log), (&base, &read), computed).await?;
            let Some(newest) = newest else { return Err(conflict) };
            let commits = newest.number - base.commit;
            tracing::info!(view = %view.name, commits, "others have committed meanwhile; going on after them");
            commit = following(&commit, &newest, now);
            *state = newest;
        }
        log.commit(state, commit).await
    }

    /// The newest state of a view, where what was computed after the commit of `base`, of the history that `read` tells of, is
    /// still right; there is none where it is not.
    async fn newest_right(
        &self,
        catalog: &CatalogState,
        (view, log): (&FeatureView, &ViewLog),
        (base, read): (&Got, &Got),
        computed: Computed,
    ) -> Result<Option<ViewLogState>> {
        if base.commit == 0 {
            // Of two that are the first both have the same rows.
            return Ok(None);
        }
        let newest = log.state().await?;
        if newest.number <= base.commit {
            return Err(Error::internal("a commit was refused as if another were there").with("view", log.view()));
        }
        // At least those that the state has: what has come since is no harm to look at.
        let right = match left_by(computed, &log.commits_after(base.commit).await?) {
            Left::Right => true,
            Left::UnlessRead(until) => !self.flushed_meanwhile(catalog, view, (base, read), until).await?,
            Left::Nothing => false,
        };
        Ok(right.then_some(newest))
    }
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::tier::{PushedRange, SetAside};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn commit(kind: ViewCommitKind, watermark: Timestamp) -> ViewCommit {
        ViewCommit::new(at(0), kind, watermark)
    }

    #[test]
    fn flushes_and_compactions_leave_right_what_was_computed_and_nothing_else_does() {
        use ViewCommitKind::{Backfill, Compact, Correct, Drop, Push, Refresh, Replace, Retry};
        let left = |takes_pushes, kinds: &[ViewCommitKind]| {
            let commits: Vec<_> = (8..).zip(kinds.iter().map(|kind| commit(*kind, at(1)))).collect();
            left_by(Computed { takes_pushes, ..Computed::default() }, &commits)
        };
        assert_eq!((left(false, &[]), left(false, &[Push, Compact, Drop, Retry, Push])), (Left::Right, Left::Right));
        for kind in [Backfill, Correct, Refresh, Replace] {
            let nothing = (Left::Nothing, Left::Nothing);
            assert_eq!((left(false, &[Push, kind, Push]), left(true, &[Compact, kind])), nothing, "{kind:?}");
        }
        // What takes pushes itself has taken them from where the view had them.
        let both = (left(true, &[Compact, Drop, Compact]), left(true, &[Compact, Push]));
        assert_eq!(both, (Left::Right, Left::Nothing));
        assert_eq!(left(true, &[Retry]), Left::Nothing);
        // Two rows of several events would say the same place in the order of writes.
        let reaches_back = Computed { reaches_back: true, ..Computed::default() };
        assert_eq!(left_by(reaches_back, &[(8, commit(Retry, at(1)))]), Left::Nothing);
        // Two tables of what is set aside would be one.
        let flush = ViewCommit { set_aside: Some(SetAside::default()), ..commit(Push, at(1)) };
        let sets_aside = Computed { sets_aside: true, ..Computed::default() };
        assert_eq!(left_by(sets_aside, &[(8, flush)]), Left::Nothing);
        assert_eq!(left_by(sets_aside, &[(8, commit(Push, at(1)))]), Left::Right);
    }

    #[test]
    fn events_that_were_flushed_meanwhile_are_looked_for_in_what_was_read() {
        let flush = |after, until| {
            let pushed = Some(PushedRange { after, until, log: 1 });
            ViewCommit { pushed, ..commit(ViewCommitKind::Push, at(1)) }
        };
        let told = commit(ViewCommitKind::Push, at(2));
        let commits = [(8, flush(3, 5)), (9, commit(ViewCommitKind::Compact, at(1))), (10, flush(5, 9)), (11, told)];
        assert_eq!(left_by(Computed::default(), &commits), Left::UnlessRead(9));
        assert_eq!(
            left_by(Computed::default(), &commits[3..]),
            Left::Right,
            "it says how far producers are, and has no events"
        );
        let anew = [(12, commit(ViewCommitKind::Refresh, at(1)))];
        assert_eq!(left_by(Computed::default(), &[&commits[..], &anew].concat()), Left::Nothing);
    }

    #[test]
    fn a_commit_that_follows_flushes_sets_no_watermark_back_and_says_how_far_history_was_read() {
        let made = commit(ViewCommitKind::Refresh, at(100));
        let state = |watermark| ViewLogState { watermark: Some(watermark), ..ViewLogState::default() };
        let after = following(&made, &state(at(60)), at(100));
        assert_eq!((after.watermark, after.read_until), (at(100), None));
        // Producers have got further than the refresh, which began before.
        let after = following(&made, &state(at(160)), at(100));
        assert_eq!((after.watermark, after.read_until), (at(160), Some(at(100))));
    }
}
