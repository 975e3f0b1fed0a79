//! Backfills of a view as they get on, so that one that was cut off goes on where it was.
//!
//! ```text
//! views/airport_weather/3f2a9c1d0b4e/backfill/000000000004.json     begun, a range done, or committed
//! ```
//!
//! The ranges' files lie among the view's data; no reader looks at them before the commit that names them all.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::object::{DataFile, HistoryFiles};
use super::set_aside::Beyond;
use crate::Result;
use crate::catalog::{CommitLog, Signature};
use crate::definition::Pinned;
use crate::time::{Span, Timestamp};

/// What a backfill is to do, decided when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillPlan {
    /// What was asked for; the rest follows from it and from how the view stood.
    pub asked: BackfillAsked,
    /// The least event time of the rows that it computes anew.
    pub from: Timestamp,
    /// The event time before which they lie.
    pub until: Timestamp,
    /// What history had by this time is what they are computed from.
    pub known: Timestamp,
    /// The view's commit whose rows it replaces.
    pub base: u64,
    /// The position up to which pushes are among them, whatever their times.
    pub pushed: u64,
    /// The files that it reads, by table.
    pub history: HistoryFiles,
    /// The ranges that have rows, in order, where it was looked which have; else the stretch is cut evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Vec<(Timestamp, Timestamp)>>,
    /// The pushed events that it leaves out, since they are set aside and the view's query still fails on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Beyond>,
    /// Of one that sets back how far the view has got to what is known: who wanted it, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Signature>,
}

/// What a backfill was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillAsked {
    /// From the least event time where none is given.
    pub from: Option<Timestamp>,
    /// To the view's watermark where none is given.
    pub until: Option<Timestamp>,
    /// The length of the ranges that are computed by themselves.
    pub every: Span,
}

impl BackfillAsked {
    /// Whether it is everything that there is, not a stretch that somebody named.
    pub fn is_whole(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }
}

impl BackfillPlan {
    /// Whether it computes everything that there is, not a stretch that somebody named.
    pub fn is_whole(&self) -> bool {
        self.asked.is_whole()
    }

    /// How many ranges the stretch has when it is cut evenly.
    pub fn even_ranges(&self) -> u64 {
        let micros = self.until.since(self.from).micros().cast_unsigned();
        micros.div_ceil(self.asked.every.micros().max(1).cast_unsigned())
    }

    /// The ranges, each from one event time to before another, in order; no two have a time in common.
    pub fn ranges(&self) -> Vec<(Timestamp, Timestamp)> {
        if let Some(cut) = &self.cut {
            return cut.clone();
        }
        let (mut ranges, mut from) = (Vec::new(), self.from);
        while from < self.until {
            let until = (from + self.asked.every).min(self.until);
            ranges.push((from, until));
            from = until;
        }
        ranges
    }
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Begun(BackfillPlan),
    Done { range: usize, file: Option<DataFile> },
    Committed { commit: u64 },
}

/// A backfill that has begun and is not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backfill {
    /// What it does.
    pub plan: BackfillPlan,
    /// The number of the record with which it began: its name.
    pub number: u64,
    /// The ranges that are done, each with its file unless it has no rows.
    pub done: BTreeMap<usize, Option<DataFile>>,
    /// The newest record.
    newest: u64,
}

/// The backfills of a view version.
#[derive(Debug)]
pub struct BackfillLog {
    log: CommitLog<Record>,
}

impl BackfillLog {
    /// The backfills of a view version on a store.
    pub fn new(store: Arc<dyn ObjectStore>, view: &Pinned) -> Self {
        let prefix = Path::from_iter(["views", &view.name, view.version.as_str(), "backfill"]);
        Self { log: CommitLog::new(store, prefix) }
    }

    /// The backfill that was begun last, if it has not been committed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] names a damaged record.
    pub async fn begun(&self) -> Result<Option<Backfill>> {
        let mut open: Option<Backfill> = None;
        for (number, record) in self.log.read_after(0).await? {
            match (record, &mut open) {
                (Record::Begun(plan), _) => {
                    open = Some(Backfill { plan, number, done: BTreeMap::new(), newest: number });
                }
                (Record::Done { range, file }, Some(open)) => {
                    open.done.insert(range, file);
                    open.newest = number;
                }
                (Record::Committed { .. }, _) => open = None,
                (Record::Done { .. }, None) => {}
            }
        }
        Ok(open)
    }

    /// Begins one; whatever was begun before is given up.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Conflict`] when another process writes to the same log.
    pub async fn begin(&self, plan: BackfillPlan) -> Result<Backfill> {
        let number = self.log.read_after(0).await?.last().map_or(1, |(number, _)| number + 1);
        self.log.append(number, &Record::Begun(plan.clone())).await.map_err(another)?;
        Ok(Backfill { plan, number, done: BTreeMap::new(), newest: number })
    }

    /// Notes that a range is done.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn done(&self, backfill: &mut Backfill, range: usize, file: Option<DataFile>) -> Result<()> {
        let number = backfill.newest + 1;
        self.log.append(number, &Record::Done { range, file: file.clone() }).await.map_err(another)?;
        backfill.newest = number;
        backfill.done.insert(range, file);
        Ok(())
    }

    /// Notes that the view's commit `commit` has its rows.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn committed(&self, backfill: &Backfill, commit: u64) -> Result<()> {
        self.log.append(backfill.newest + 1, &Record::Committed { commit }).await.map_err(another)
    }
}

fn another(error: crate::Error) -> crate::Error {
    error.remedy("another backfill of the same view is running: let it end, or stop it")
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::ErrorKind;
    use crate::conformance;

    fn plan(from: i64, until: i64) -> BackfillPlan {
        let at = |hours: i64| Timestamp::from_micros(hours * 3_600_000_000);
        let asked = BackfillAsked { from: Some(at(from)), until: None, every: Span::from_secs(7_200) };
        BackfillPlan {
            asked,
            from: at(from),
            until: at(until),
            known: at(until),
            base: 0,
            pushed: 0,
            history: HistoryFiles::new(),
            cut: None,
            left_out: Vec::new(),
            reset: None,
        }
    }

    #[test]
    fn ranges_cover_the_whole_and_do_not_overlap() {
        let ranges = plan(0, 5).ranges();
        assert_eq!(ranges.len(), 3);
        assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0));
        assert_eq!(ranges.last().map(|range| range.1), Some(plan(0, 5).until));
        assert!(plan(5, 5).ranges().is_empty());
        assert_eq!([plan(0, 5), plan(0, 4), plan(5, 5)].map(|plan| plan.even_ranges()), [3, 2, 0]);
        // Where it was looked which have rows, those alone.
        let cut = vec![ranges[0], ranges[2]];
        assert_eq!(BackfillPlan { cut: Some(cut.clone()), ..plan(0, 5) }.ranges(), cut);
    }

    #[tokio::test]
    async fn what_is_done_stays_done_until_it_is_committed() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let log = BackfillLog::new(Arc::clone(&store), &conformance::view("seen"));
        assert_eq!(log.begun().await.expect("empty"), None);
        let mut backfill = log.begin(plan(0, 5)).await.expect("free");
        log.done(&mut backfill, 1, None).await.expect("free");
        assert_eq!(log.begun().await.expect("readable"), Some(backfill.clone()));
        // Another process that goes on with it comes second.
        let mut other = log.begun().await.expect("readable").expect("open");
        log.done(&mut other, 0, None).await.expect("free");
        let error = log.done(&mut backfill, 2, None).await.expect_err("another writer");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        log.committed(&other, 7).await.expect("free");
        assert_eq!(log.begun().await.expect("readable"), None);
    }
}
