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
//! *Views that reach back* (`LOOKBACK`) need nothing more. A refresh lists history before it looks which pushes there are. A
//! flush that it does not know of computes the rows of its pushes after that, from no less history, and its rows win.
//!
//! *Views whose rows lie ahead of their events* have pushes by their refreshes alone, and no flush commits to them. Such a
//! refresh says from which position it took them; a flush that came between all the same (of a process that knows no such
//! views) would have moved that, so the refresh is computed anew.

use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::{ViewCommit, ViewCommitKind, ViewLog, ViewLogState};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};

/// How often a commit is tried again on top of others. Each time costs a few requests, and flushes are many of these apart:
/// whoever comes second so often has no luck but something wrong.
pub(crate) const ATTEMPTS_ON_TOP: usize = 64;

/// What was computed, as far as the commits of others could make it wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Computed {
    /// Whether pushes are part of it;
    takes_pushes: bool,
    /// and whether its rows reach back to other events.
    reaches_back: bool,
}

/// Whether what was computed before these commits is still right after them.
fn leave_right(Computed { takes_pushes, reaches_back }: Computed, commits: &[(u64, ViewCommit)]) -> bool {
    commits.iter().all(|(_, commit)| match commit.kind {
        ViewCommitKind::Compact | ViewCommitKind::Drop => true,
        ViewCommitKind::Push => !takes_pushes,
        ViewCommitKind::Retry => !takes_pushes && !reaches_back,
        ViewCommitKind::Refresh | ViewCommitKind::Replace | ViewCommitKind::Backfill | ViewCommitKind::Correct => false,
    })
}

/// A refresh's commit as it follows a state that is newer than the one which it was computed from: no watermark goes back
/// (rule T6), and history has been read until `now`, no further.
fn following(commit: &ViewCommit, state: &ViewLogState, now: Timestamp) -> ViewCommit {
    let watermark = state.watermark.map_or(commit.watermark, |reached| reached.max(commit.watermark));
    let read_until = (watermark != now).then_some(now);
    ViewCommit { watermark, read_until, ..commit.clone() }
}

/// Commits what a refresh has computed from `state` of history up to `now`; on top of flushes and compactions that have been
/// committed since.
///
/// # Errors
/// [`ErrorKind::Conflict`] when it is to be computed anew; those of the store.
pub(crate) async fn commit_on_top(
    (view, log): (&FeatureView, &ViewLog),
    state: &mut ViewLogState,
    mut commit: ViewCommit,
    now: Timestamp,
) -> Result<()> {
    let base = state.number;
    for _ in 1..ATTEMPTS_ON_TOP {
        let conflict = match log.commit(state, commit.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict => error,
            done => return done,
        };
        let computed = Computed { takes_pushes: commit.pushed.is_some(), reaches_back: view.reaches_back() };
        let Some(newest) = newest_right(log, base, computed).await? else { return Err(conflict) };
        tracing::info!(view = %view.name, commits = newest.number - base, "others have committed meanwhile; going on after them");
        commit = following(&commit, &newest, now);
        *state = newest;
    }
    log.commit(state, commit).await
}

/// The newest state of a view, where what was computed after the commit `base` is still right; there is none where it is not.
async fn newest_right(log: &ViewLog, base: u64, computed: Computed) -> Result<Option<ViewLogState>> {
    if base == 0 {
        // Of two that are the first both have the same rows.
        return Ok(None);
    }
    let newest = log.state().await?;
    if newest.number <= base {
        return Err(Error::internal("a commit was refused as if another were there").with("view", log.view()));
    }
    // At least those that the state has: what has come since is no harm to look at.
    Ok(leave_right(computed, &log.commits_after(base).await?).then_some(newest))
}

#[cfg(test)]
mod tests {
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
        let right = |takes_pushes, kinds: &[ViewCommitKind]| {
            let commits: Vec<_> = (8..).zip(kinds.iter().map(|kind| commit(*kind, at(1)))).collect();
            leave_right(Computed { takes_pushes, ..Computed::default() }, &commits)
        };
        assert!(right(false, &[]) && right(false, &[Push, Compact, Drop, Retry, Push]));
        for kind in [Backfill, Correct, Refresh, Replace] {
            assert!(!right(false, &[Push, kind, Push]) && !right(true, &[Compact, kind]), "{kind:?}");
        }
        // What takes pushes itself has taken them from where the view had them.
        assert!(right(true, &[Compact, Drop, Compact]) && !right(true, &[Compact, Push]) && !right(true, &[Retry]));
        // Two rows of several events would say the same place in the order of writes.
        let reaches_back = Computed { reaches_back: true, ..Computed::default() };
        assert!(!leave_right(reaches_back, &[(8, commit(Retry, at(1)))]));
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
