//! What a store costs that grows for a year: requests and bytes to object storage of following 1, 100 and 1,000 views that are
//! flushed every minute, and of a flush; now, and by listing each view's log as it was done before.
//!
//! Nothing is computed: the commits are those of flushes without their files. A month of them is written; after it nothing grows
//! but the log itself.

use std::sync::Arc;

use futures::TryStreamExt;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{Checkpoints, Heads, HeadsSeen};
use springhouse_featurestore::definition::{Pinned, Version};
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::tier::{
    DataFile, ObjectStore, RememberedStates, ViewCommit, ViewCommitKind, ViewLog, ViewLogState, get_object,
};
use springhouse_featurestore::time::Timestamp;
use springhouse_materializer::compact::groups;

use crate::counting::CountingStore;
use crate::load::say;

/// Seconds that are followed, a look each.
const SECONDS: u64 = 120;

/// Flushes of a month and of a year.
const MONTH: u64 = 30 * 24 * 60;
const YEAR: u64 = 365 * 24 * 60;

/// Commits between two checkpoints.
const CHECKPOINT_EVERY: u64 = 64;

/// Measures both.
pub async fn measure() -> Result<()> {
    say("\n| following | before: requests/s, bytes/s | now: requests/s, bytes/s |");
    say("|---|---|---|");
    for views in [1, 100, 1_000] {
        let (before, now) = (followed(views, true).await?, followed(views, false).await?);
        say(&format!("| {views} views, each flushed every minute | {} | {} |", shown(before), shown(now)));
    }
    flushes().await
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn shown((requests, bytes): (u64, u64)) -> String {
    format!("{:.1}, {:.0}", requests as f64 / SECONDS as f64, bytes as f64 / SECONDS as f64)
}

fn view(number: u64) -> Pinned {
    Pinned::new(format!("view_{number:04}"), Version::from_text("0123456789ab"))
}

fn file(number: u64, name: &str, rows: u64) -> DataFile {
    DataFile {
        path: format!("views/view_0000/0123456789ab/data/{name}{number:012}-1234567890abcdef.parquet"),
        rows,
        bytes: 4_000 + 10 * rows,
        fingerprint: Some(number.wrapping_mul(0x9E37_79B1_85EB_CA87)),
        event_times: Some((at(number), at(number + 1))),
        ..DataFile::default()
    }
}

fn at(minutes: u64) -> Timestamp {
    Timestamp::from_micros(minutes.cast_signed() * 60_000_000)
}

fn commit(number: u64, kind: ViewCommitKind, replaced: Vec<String>, files: Vec<DataFile>) -> ViewCommit {
    ViewCommit { replaced, files, ..ViewCommit::new(at(number), kind, at(number)) }
}

/// A view that is flushed and followed.
struct Followed {
    view: Pinned,
    log: ViewLog,
    state: ViewLogState,
    /// The newest commit that the follower has.
    mark: u64,
}

impl Followed {
    async fn flush(&mut self) -> Result<()> {
        let number = self.state.number + 1;
        self.log
            .commit(&mut self.state, commit(number, ViewCommitKind::Push, Vec::new(), vec![file(number, "", 20)]))
            .await
    }

    /// Reads what is new.
    async fn read(&mut self) -> Result<()> {
        self.log.commit_at(self.mark).await?;
        let new = self.log.commits_after(self.mark).await?;
        self.mark = new.last().map_or(self.mark, |(number, _)| *number);
        Ok(())
    }

    /// The same with lists: of the records from the mark on, and of those after it.
    async fn read_by_lists(&mut self, store: &Arc<dyn ObjectStore>) -> Result<()> {
        let path = |number: u64| self.log.log().path(number);
        let folder = Path::from(format!("views/{}/{}/log", self.view.name, self.view.version));
        let mut newest = self.mark;
        for after in [self.mark - 1, self.mark] {
            let listed: Vec<_> = store.list_with_offset(Some(&folder), &path(after)).try_collect().await?;
            newest = after + listed.len() as u64;
            for number in after + 1..=newest {
                get_object(store, path(number).as_ref()).await?;
            }
        }
        self.mark = newest;
        Ok(())
    }
}

/// Requests and bytes of following some views for a while, a look each second.
async fn followed(views: u64, by_lists: bool) -> Result<(u64, u64)> {
    let counting = CountingStore::default();
    let store: Arc<dyn ObjectStore> = Arc::new(counting.clone());
    let mut all = Vec::new();
    for number in 0..views {
        let view = view(number);
        let log = ViewLog::new(Arc::clone(&store), &view);
        let mut followed = Followed { view, log, state: ViewLogState::default(), mark: 1 };
        followed.flush().await?;
        all.push(followed);
    }
    let names: Vec<Pinned> = all.iter().map(|of| of.view.clone()).collect();
    let mut seen = HeadsSeen::default();
    let first = seen.look(Heads::now(&store).await?, &names);
    for name in &names {
        seen.view_was_read(&first, name);
    }
    seen.catalog_was_read(&first);
    let (mut requests, mut bytes) = (0, 0);
    for second in 0..SECONDS {
        for (_, of) in (0_u64..).zip(&mut all).filter(|(index, _)| index % 60 == second % 60) {
            of.flush().await?;
        }
        counting.take();
        if by_lists {
            for of in &mut all {
                of.read_by_lists(&store).await?;
            }
        } else {
            let look = seen.look(Heads::now(&store).await?, &names);
            for of in &mut all {
                if seen.view_is_due(&look, &of.view) {
                    of.read().await?;
                    seen.view_was_read(&look, &of.view);
                }
            }
        }
        let (some, of_these) = counting.take();
        (requests, bytes) = (requests + some, bytes + of_these);
    }
    Ok((requests, bytes))
}

/// What a flush costs, and what is left of all of them.
async fn flushes() -> Result<()> {
    let counting = CountingStore::default();
    let store: Arc<dyn ObjectStore> = Arc::new(counting.clone());
    let log = ViewLog::new(Arc::clone(&store), &view(0)).remembering(&RememberedStates::default());
    for _ in 0..MONTH {
        let mut state = flush(&log).await?;
        for group in groups(&state.files).into_iter().take(1) {
            let number = state.number + 1;
            let rows = group.iter().map(|(_, file)| file.rows).sum();
            let replaced = group.iter().map(|(_, file)| file.path.clone()).collect();
            let merged = vec![file(number, "compact-", rows)];
            log.commit(&mut state, commit(number, ViewCommitKind::Compact, replaced, merged)).await?;
        }
    }
    let now = per_flush(counting.take(), MONTH);
    let state = log.state().await?;
    // A process that remembers nothing of a view reads its newest checkpoint and all commits since.
    let fresh = ViewLog::new(Arc::clone(&store), &view(0));
    counting.take();
    for _ in 0..2 * CHECKPOINT_EVERY {
        flush(&fresh).await?;
    }
    let before = per_flush(counting.take(), 2 * CHECKPOINT_EVERY);
    let year: Vec<(u64, DataFile)> = (1..=YEAR).map(|number| (number, file(number, "", 20))).collect();
    let without = state_bytes(&ViewLogState { files: year, ..state.clone() }).await?;
    say("\n| a view that is flushed every minute | before | now |");
    say("|---|---|---|");
    say(&format!("| data files after a year | {YEAR} | {} |", state.files.len()));
    say(&format!(
        "| bytes of its state, read by who starts and written every 64 commits | {without} | {} |",
        state_bytes(&state).await?
    ));
    say(&format!(
        "| requests, bytes of a flush beside the data (before: without what the state has grown to) | {before} | {now} |"
    ));
    Ok(())
}

/// Commits one more flush, as who looks at the newest state first. Returns the state after it.
async fn flush(log: &ViewLog) -> Result<ViewLogState> {
    let mut state = log.state().await?;
    let number = state.number + 1;
    log.commit(&mut state, commit(number, ViewCommitKind::Push, Vec::new(), vec![file(number, "", 20)])).await?;
    Ok(state)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_flush((requests, bytes): (u64, u64), flushes: u64) -> String {
    format!("{:.1}, {}", requests as f64 / flushes as f64, bytes / flushes)
}

/// The size of a checkpoint.
async fn state_bytes(state: &ViewLogState) -> Result<u64> {
    let counting = CountingStore::default();
    Checkpoints::new(Arc::new(counting.clone()), Path::from("state")).write(64, state).await;
    Ok(counting.take().1)
}
