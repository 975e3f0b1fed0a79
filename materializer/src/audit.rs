//! The consistency audit: promise 1 by measurement.
//!
//! Offline, the features of a spine are computed from the sources in one pass, without the store. Online, the views'
//! committed rows are replayed in the order in which they became visible into tiers made for the audit, and every spine
//! row is looked up at its own time, with all rows applied that were visible by then and none that were not. The two
//! must agree value by value, bit for bit.

use std::collections::BTreeMap;
use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Contract, FeatureView};
use springhouse_featurestore::lookup::{LookupPlan, event_time_column, feature_column, status_column};
use springhouse_featurestore::tier::{DataFile, DiskTier, Mark, MemoryTier, OnlineTier, Packer, Progress};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::Session;
use springhouse_sql::spine::{SpineOrder, SpineSource, SpineSubset, TIME};
use springhouse_sql::view_rows::{RowStream, by_visible_time, times_of};

use crate::Jobs;
use crate::jobs::views_of;
use crate::training_set::{AsOf, RowsFrom, TrainingSetRequest, refuse_unprocessed};

/// Memory of the audit's own cache: small, so that both tiers are exercised.
const MEMORY_BYTES: u64 = 4 << 20;

/// How many differences are shown; all are counted.
const SHOWN: usize = 10;

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Spine rows.
    pub rows: u64,
    /// Values compared: features, statuses and event times of all views.
    pub values: u64,
    /// Values that differ, those that one side lacks included.
    pub mismatches: u64,
    /// What differs, by column.
    pub columns: BTreeMap<String, Differences>,
    /// The first of them.
    pub examples: Vec<String>,
}

/// How the values of a column differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Both sides have a value, and not the same.
    pub mismatch: u64,
    /// Offline there is a value, online null.
    pub missing: u64,
    /// Online there is a value, offline null.
    pub extra: u64,
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows {}, values compared {}, mismatches {}", self.rows, self.values, self.mismatches)?;
        for (column, Differences { mismatch, missing, extra }) in &self.columns {
            write!(f, "\n  {column}: {mismatch} mismatched, {missing} missing online, {extra} extra online")?;
        }
        self.examples.iter().try_for_each(|example| write!(f, "\n  {example}"))
    }
}

impl Jobs {
    /// Audits a contract on a spine, or on some rows of it.
    ///
    /// # Errors
    /// Those of computing and looking up; a difference is no error but a finding.
    pub async fn audit(
        &self,
        catalog: &CatalogState,
        contract: &Contract,
        (spine, subset): (&SpineSource, SpineSubset),
        progress: &dyn Progress,
    ) -> Result<AuditReport> {
        let request = TrainingSetRequest {
            spine: spine.clone(),
            rows: RowsFrom::Sources,
            as_of: AsOf::Known,
            with_features: true,
            order: SpineOrder::ByTime,
        };
        let views: Vec<FeatureView> = views_of(catalog, contract)?.into_iter().cloned().collect();
        let offline = self.training_set_of(catalog, contract, &request, subset).await?;
        for view in &views {
            refuse_unprocessed(view, self.log(view).state().await?.watermark, offline.latest())?;
        }
        let mut batches = offline.execute();
        let mut replay = Replay::new(self, contract, &views).await?;
        let mut report = AuditReport::default();
        progress.begin("auditing", 0);
        while let Some(batch) = batches.try_next().await? {
            replay.compare(&batch, &mut report).await?;
            progress.advance(batch.num_rows() as u64);
        }
        progress.end();
        Ok(report)
    }
}

/// The online side: views being replayed into tiers, at a time that only moves forward.
struct Replay {
    plan: LookupPlan,
    views: Vec<ReplayedView>,
    tier: MemoryTier<DiskTier>,
    columns: Vec<String>,
    /// Holds the disk tier's folder; removed when the audit is over.
    _folder: tempfile::TempDir,
}

impl Replay {
    async fn new(jobs: &Jobs, contract: &Contract, views: &[FeatureView]) -> Result<Self> {
        let folder = tempfile::tempdir()
            .map_err(|error| Error::unavailable("no folder for the audit's disk tier").source(error))?;
        let session = jobs.session()?;
        let mut replayed = Vec::with_capacity(views.len());
        for view in views {
            replayed.push(ReplayedView::new(jobs, &session, view).await?);
        }
        let columns = views.iter().flat_map(compared_columns).collect();
        Ok(Self {
            plan: LookupPlan::new(contract, views)?,
            views: replayed,
            tier: MemoryTier::new(DiskTier::open(folder.path())?, MEMORY_BYTES),
            columns,
            _folder: folder,
        })
    }

    /// Compares a batch of offline rows, which come in order of time, with lookups at their times.
    async fn compare(&mut self, offline: &RecordBatch, report: &mut AuditReport) -> Result<()> {
        let times = named(offline, TIME)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let mut start = 0;
        while start < offline.num_rows() {
            let time = times.value(start);
            let length = (start..offline.num_rows()).take_while(|&row| times.value(row) == time).count();
            let rows = offline.slice(start, length);
            self.compare_at(&rows, Timestamp::from_micros(time), report).await?;
            start += length;
        }
        Ok(())
    }

    async fn compare_at(&mut self, offline: &RecordBatch, now: Timestamp, report: &mut AuditReport) -> Result<()> {
        for view in &mut self.views {
            view.advance(&self.tier, now).await?;
        }
        let keys = self.plan.take_keys(offline)?;
        let online = self.plan.lookup(&self.tier, &keys, now)?;
        report.rows += offline.num_rows() as u64;
        for name in &self.columns {
            let (expected, found) = (named(offline, name)?, named(&online, name)?);
            report.values += expected.len() as u64;
            if expected.to_data() != found.to_data() {
                note_differences(name, now, &expected, &found, report);
            }
        }
        Ok(())
    }
}

fn note_differences(name: &str, now: Timestamp, expected: &ArrayRef, found: &ArrayRef, report: &mut AuditReport) {
    for row in 0..expected.len() {
        let (one, other) = (expected.slice(row, 1), found.slice(row, 1));
        if one.to_data() == other.to_data() {
            continue;
        }
        report.mismatches += 1;
        let differences = report.columns.entry(name.to_owned()).or_default();
        match (one.is_null(0), other.is_null(0)) {
            (false, true) => differences.missing += 1,
            (true, false) => differences.extra += 1,
            _ => differences.mismatch += 1,
        }
        if report.examples.len() < SHOWN {
            let text = |array: &ArrayRef| {
                let options = arrow::util::display::FormatOptions::default().with_null("null");
                arrow::util::display::ArrayFormatter::try_new(array, &options)
                    .map_or_else(|_| "?".to_owned(), |values| values.value(0).to_string())
            };
            let (offline, online) = (text(&one), text(&other));
            report.examples.push(format!("{name} at {now}: offline {offline}, online {online}"));
        }
    }
}

fn compared_columns(view: &FeatureView) -> Vec<String> {
    let features = view.features.iter().map(|feature| feature_column(&view.name, &feature.name));
    features.chain([status_column(&view.name), event_time_column(&view.name)]).collect()
}

fn named(batch: &RecordBatch, name: &str) -> Result<ArrayRef> {
    batch.column_by_name(name).cloned().ok_or_else(|| Error::internal("a batch lacks a column").with("column", name))
}

/// A view's committed rows in the order in which they became visible, and how far they have been applied.
struct ReplayedView {
    view: FeatureView,
    packer: Packer,
    rows: RowStream,
    /// Rows that were read but are not visible yet.
    ahead: Option<RecordBatch>,
    applied: u64,
}

impl ReplayedView {
    async fn new(jobs: &Jobs, session: &Session, view: &FeatureView) -> Result<Self> {
        let state = jobs.log(view).state().await?;
        let files: Vec<DataFile> = state.files.into_iter().map(|(_, file)| file).collect();
        let frame = session.committed_frame(jobs.store(), view, &files).await?;
        let rows = by_visible_time(session, frame, view).await?;
        Ok(Self { view: view.clone(), packer: Packer::new(view)?, rows, ahead: None, applied: 0 })
    }

    /// Applies the rows that are visible by `now` and moves the view's watermark there.
    async fn advance(&mut self, tier: &dyn OnlineTier, now: Timestamp) -> Result<()> {
        loop {
            let batch = match self.ahead.take() {
                Some(batch) => batch,
                None => match self.rows.try_next().await? {
                    Some(batch) => batch,
                    None => break,
                },
            };
            let visible = visible_rows(&batch, now)?;
            if visible > 0 {
                self.apply(tier, &batch.slice(0, visible), now)?;
            }
            if visible < batch.num_rows() {
                self.ahead = Some(batch.slice(visible, batch.num_rows() - visible));
                break;
            }
        }
        self.applied += 1;
        tier.apply(&self.view.pinned(), Vec::new(), Mark::of_commit(self.applied, Some(now)))
    }

    fn apply(&mut self, tier: &dyn OnlineTier, batch: &RecordBatch, now: Timestamp) -> Result<()> {
        self.applied += 1;
        let rows = self.packer.pack(batch, 1)?;
        tier.apply(&self.view.pinned(), rows, Mark::of_commit(self.applied, Some(now)))
    }
}

/// How many leading rows of a batch in order of visible time are visible by `now`.
fn visible_rows(batch: &RecordBatch, now: Timestamp) -> Result<usize> {
    let [event, available] = times_of(batch)?;
    let visible = |row: usize| event.value(row).max(available.value(row)) <= now.micros();
    let (mut low, mut high) = (0, batch.num_rows());
    while low < high {
        let middle = usize::midpoint(low, high);
        if visible(middle) { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}
