//! Pushed events: what producers send live, beside the history that a source's query reads.
//!
//! ```text
//! producer -> EventSink -> PushLog (this host, synced) -> tiles and rows in the tiers -> acknowledged
//!                             | flush, by size or time
//!                             v
//!                          PushHistory (object storage: Parquet + numbered commits), and a commit of each view's rows
//! ```
//!
//! An event has a *position*: the log numbers pushes from 1, and a view's mark says up to which position it has them.
//! So a push is applied once to every view, whatever crashes between: what a tier lacks is replayed from the log, and a
//! commit of rows that it has already is passed over.

mod corrections;
mod history;
mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use corrections::Corrections;
pub use history::{
    Claim, Flush, KnownProducer, NoLonger, PushCommit, PushCommitKind, PushHistory, PushHistoryState, RememberedPushes,
    Runs, SaidByProducer, Taken, Taker,
};
pub use log::{
    EventPlace, LogPiece, LogReach, NameInUse, OldestHeld, Push, PushEntry, PushLog, PushOrigin, SetAsidePlaces,
    WhySetAside,
};

use crate::Result;
use crate::catalog::Signature;
use crate::definition::{FeatureView, Source};
use crate::tier::{DataFile, KeyedRow, Mark, ViewCommit, places_of, tells_places};
use crate::time::Timestamp;

/// What a producer says about a batch of events: the JSON in the `app_metadata` of a Flight message. All of it is
/// optional; without a producer and a sequence a batch that is sent again counts again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushHeader {
    /// Who sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Grows with every batch of the producer; a batch whose sequence is not greater than the last is passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The producer has sent every event up to this time. A batch without rows that says so is a heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark: Option<Timestamp>,
}

/// What is known of a producer of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerState {
    /// The source's name.
    pub source: String,
    /// The producer's; empty for all that name none.
    pub producer: String,
    /// The sequence of its last batch; its next batch must have a greater one.
    pub sequence: Option<u64>,
    /// Up to which time it has sent every event, as it said.
    pub watermark: Option<Timestamp>,
    /// When it was last heard of.
    pub heard: Option<Timestamp>,
    /// When it was retired, if it has not said how far it is since.
    pub retired: Option<Timestamp>,
    /// Whether it is left out of the source's watermark because it says nothing any more.
    pub silent: bool,
    /// What a person changed about it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<ProducerCorrection>,
    /// The caller whose name it is; none where callers were not asked who they are, until a person hands it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What a person changes about a producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProducerChange {
    /// The source's watermark does not wait for it any more, until it says again how far it is.
    Retire,
    /// It has got only so far, whatever it said.
    Watermark(Timestamp),
    /// Its next batch is the one after this sequence, whatever it sent: what is sent again above it counts again.
    Sequence(u64),
    /// Its name is another caller's.
    HandOver(String),
}

/// What a person changed about a producer, and who that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerCorrection {
    /// What.
    pub change: ProducerChange,
    /// Who, when and why, by the clock.
    pub by: Signature,
    /// Where it comes among the corrections of its producer; absent where the clock tells that. A clock that was ahead of an
    /// earlier one does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Timestamp>,
}

impl ProducerCorrection {
    /// One that comes where the clock tells.
    pub fn new(change: ProducerChange, by: Signature) -> Self {
        Self { change, by, order: None }
    }

    /// Where it comes among the corrections of its producer: the greater is the later one.
    pub fn order(&self) -> Timestamp {
        self.order.unwrap_or(self.by.at)
    }
}

/// The answer to a batch, once it is durable and every view shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushAck {
    /// The events taken; 0 for a batch that was sent before.
    pub rows: u64,
    /// Those among them that no view counts: known later than the source's `LATENESS` allows.
    #[serde(default)]
    pub late: u64,
    /// The events of the batch that had been pushed before, as their source's `DISTINCT ON` tells: they count once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeated: u64,
    /// Whether it was sent before.
    pub duplicate: bool,
    /// Views of the source that cannot show it now, though it is durable: they have it later, and say in their status why
    /// they lag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<String>,
    /// The position of the newest push in the log.
    pub position: u64,
    /// Every event of the source up to this time has been pushed: the least of its producers' watermarks.
    pub watermark: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde hands over")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How many events of a batch their source rejects: those that became known later than its `LATENESS` allows.
pub fn late_events(source: &Source, events: &RecordBatch) -> u64 {
    let Some(rejects) = source.rejects() else { return 0 };
    let times =
        |name: &str| events.column_by_name(name).and_then(|of| of.as_primitive_opt::<TimestampMicrosecondType>());
    let (Some(event), Some(known)) = (times(rejects.event_time), times(rejects.available_time)) else { return 0 };
    let late = event.iter().zip(known).filter(|times| match times {
        (Some(event), Some(known)) => known.saturating_sub(*event) > rejects.lateness.micros(),
        _ => false,
    });
    late.count() as u64
}

/// The answer to a batch that is in line.
pub type PendingAck = BoxFuture<'static, Result<PushAck>>;

/// Takes events for sources. What serving asks of jobs: the binary wires one to the other.
#[async_trait]
pub trait EventSink: Send + Sync + std::fmt::Debug {
    /// The columns that events of a source have.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for an unknown source, [`crate::ErrorKind::Invalid`] for one that takes no pushes.
    async fn schema(&self, source: &str) -> Result<SchemaRef>;

    /// Puts a batch in line, behind those that were submitted before. What it gives ends when the batch is durable, and the
    /// next lookup of every view of the source shows it; nobody needs to wait for it.
    ///
    /// The name of a producer of a source is the caller's who uses it first, where callers are known by name; one that pushed
    /// before they were is nobody's until a person hands it over.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] names the column, row and value that is wrong, [`crate::ErrorKind::Forbidden`] the caller whose
    /// name the producer's is; nothing of the batch is then taken.
    async fn submit_by(
        &self,
        caller: Option<&str>,
        source: &str,
        events: RecordBatch,
        header: PushHeader,
    ) -> Result<PendingAck>;

    /// The same of nobody in particular.
    ///
    /// # Errors
    /// As [`Self::submit_by`].
    async fn submit(&self, source: &str, events: RecordBatch, header: PushHeader) -> Result<PendingAck> {
        self.submit_by(None, source, events, header).await
    }

    /// Submits a batch, and waits until it is taken.
    ///
    /// # Errors
    /// As [`Self::submit`], and those of the log and of the views.
    async fn push(&self, source: &str, events: RecordBatch, header: PushHeader) -> Result<PushAck> {
        self.submit(source, events, header).await?.await
    }

    /// Moves what was pushed to object storage. Returns the position up to which it is there.
    ///
    /// # Errors
    /// Those of the store; what was pushed stays in the log.
    async fn flush(&self) -> Result<u64>;

    /// The producers of a source that are known, in order of name.
    ///
    /// # Errors
    /// As [`Self::schema`].
    async fn producers(&self, source: &str) -> Result<Vec<ProducerState>>;

    /// Retires a producer, corrects its watermark to an earlier one, and with it those of the source and its views, sets its
    /// sequence back, or gives its name to another caller; durable and committed when it returns, with who wanted it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for a producer that is not known, [`crate::ErrorKind::Invalid`] for a watermark or a sequence
    /// that is not earlier, and those of the log and the store.
    async fn change_producer(
        &self,
        source: &str,
        producer: &str,
        change: ProducerChange,
        by: Signature,
    ) -> Result<ProducerState>;

    /// The producers of all sources that are left out of watermarks because they say nothing any more.
    fn silent_producers(&self) -> Vec<ProducerState>;

    /// The rows of a view that a tier at this mark lacks of what was pushed, or the first of them: a view that is loaded anew
    /// has them from the start. Storage may be read.
    ///
    /// # Errors
    /// Those of the log, of storage and of the view's query.
    async fn rows_after(&self, view: &FeatureView, mark: Mark) -> Result<Lacking>;

    /// All that a tier at this mark lacks, and the mark with it, where no storage is to be read for that; else nothing. The
    /// caller holds the lock that keeps others from changing the tiers.
    ///
    /// # Errors
    /// As [`Self::rows_after`].
    async fn rows_at_hand(&self, view: &FeatureView, mark: Mark) -> Result<Option<(Vec<KeyedRow>, Mark)>>;

    /// Whether commits after a tier's mark bring events of the history that it has of pushes already, which their source's
    /// `DISTINCT ON` calls the same: the view is then loaded anew. Of the pushes those are looked at that are beyond the
    /// position `after`: up to there the caller knows. Storage may be read: nobody calls it with the lock that keeps others
    /// from changing the tiers.
    ///
    /// # Errors
    /// Those of the log and of reading the history.
    async fn brings_again(
        &self,
        view: &FeatureView,
        (after, mark): (u64, Mark),
        commits: &[(u64, ViewCommit)],
    ) -> Result<bool>;

    /// Whether storage is to be read to tell that: else they bring none, for what came beyond `after`.
    ///
    /// # Errors
    /// As [`Self::schema`].
    fn may_bring_again(&self, view: &FeatureView, pushes: (u64, Mark), commits: &[(u64, ViewCommit)]) -> Result<bool>;

    /// Lets pushes pass a view over from here on, which is named behind, until [`Self::replay`] has brought it up: they come
    /// faster than whoever loads it can look at them. The caller holds the lock that keeps others from changing the tiers.
    fn hold_back(&self, view: &FeatureView);

    /// Applies what the tiers lack of the log, each view by itself. It takes the lock that keeps others from changing the tiers
    /// where it changes them.
    ///
    /// # Errors
    /// Those of the log.
    async fn replay(&self) -> Result<()>;
}

/// What a tier lacks of a view's pushes, or the first of it.
#[derive(Debug)]
pub struct Lacking {
    /// The rows.
    pub rows: Vec<KeyedRow>,
    /// Where a tier is when it has them.
    pub mark: Mark,
    /// Whether there is more.
    pub more: bool,
}

/// The places of some events.
pub type EventPlaces = BTreeSet<EventPlace>;

/// Pushed events by their source: those on object storage, and those that are only in the log. Whoever reads what was pushed
/// for a view leaves out what is set aside of it, here and nowhere else.
#[derive(Debug, Clone, Default)]
pub struct PushedEvents {
    /// Data files.
    pub files: BTreeMap<String, Vec<DataFile>>,
    /// The position of the last event in them that counts; all count where there is none.
    pub until: Option<u64>,
    /// Batches.
    pub batches: BTreeMap<String, Vec<RecordBatch>>,
    /// The places of events among them that do not count.
    pub left_out: Arc<EventPlaces>,
}

impl PushedEvents {
    /// The position after which a file's events do not count, if there are such.
    pub fn cut(&self, file: &DataFile) -> Option<u64> {
        self.until.filter(|until| file.positions.is_some_and(|range| *until < range.until))
    }

    /// The same, without the events at some places.
    #[must_use]
    pub fn leaving_out(self, left_out: &Arc<EventPlaces>) -> Self {
        Self { left_out: Arc::clone(left_out), ..self }
    }

    /// Whether some of a file's events do not count because of their places.
    pub fn leaves_out_of(&self, file: &DataFile) -> bool {
        let place = |position, within| EventPlace { position, within };
        let Some(range) = file.positions else { return !self.left_out.is_empty() };
        self.left_out.range(place(range.after.saturating_add(1), 0)..=place(range.until, u64::MAX)).next().is_some()
    }

    /// Those of a batch's events that count. A batch whose events do not tell their places has no others.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when some of the places are not told.
    pub fn counted_of(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        if self.left_out.is_empty() || !tells_places(batch) {
            return Ok(batch.clone());
        }
        let counted: BooleanArray =
            places_of(batch)?.iter().map(|place| Some(!self.left_out.contains(place))).collect();
        Ok(filter_record_batch(batch, &counted)?)
    }

    /// Whether there are any of a source.
    pub fn has(&self, source: &str) -> bool {
        self.files.contains_key(source) || self.batches.contains_key(source)
    }

    /// Those of some entries of the log, with their place in the order of writes.
    pub fn of_entries<'a>(entries: impl IntoIterator<Item = &'a PushEntry>) -> Self {
        let mut batches: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        for entry in entries {
            batches.entry(entry.source.clone()).or_default().push(entry.ordered_events().clone());
        }
        Self { batches, ..Self::default() }
    }
}
