//! Refresh: the rows of a view that became visible since its watermark, as one commit of data and watermark.
//!
//! A refresh at time T of a view with watermark W commits the rows with visible time in (W, T] and the watermark T.
//! Run again at T it finds nothing to do. Cut off anywhere before the commit's conditional put it has changed nothing
//! that a reader sees; of two that race one wins and the other looks again.

use futures::TryStreamExt;
use serde::Serialize;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::{DataFile, ViewCommit, ViewCommitKind, ViewLog, ViewLogState};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::view_rows::view_rows;

use crate::Jobs;

/// How often a refresh looks again after another writer came first.
const ATTEMPTS: usize = 5;

/// What a refresh did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refreshed {
    /// The view, `name@version`.
    pub view: String,
    /// The rows that it added.
    pub rows: u64,
    /// The watermark before.
    pub since: Option<Timestamp>,
    /// The watermark now.
    pub watermark: Timestamp,
    /// Whether there was anything to do.
    pub committed: bool,
}

impl Jobs {
    /// Refreshes a view up to the clock's time.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] names the source file or column that is wrong; the old state then still holds.
    pub async fn refresh(&self, catalog: &CatalogState, view: &FeatureView) -> Result<Refreshed> {
        let log = self.log(view);
        for attempt in 1..=ATTEMPTS {
            match self.try_refresh(catalog, view, &log).await {
                Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => {
                    tracing::info!(view = %view.name, attempt, "another writer came first; looking again");
                }
                done => return done,
            }
        }
        Err(Error::conflict("other writers came first every time").with("view", view.pinned()))
    }

    async fn try_refresh(&self, catalog: &CatalogState, view: &FeatureView, log: &ViewLog) -> Result<Refreshed> {
        let mut state = log.state().await?;
        let (since, now) = (state.watermark, self.clock().now());
        let mut done = Refreshed { view: view.pinned().to_string(), rows: 0, since, watermark: now, committed: false };
        if let Some(watermark) = since.filter(|mark| *mark >= now) {
            done.watermark = watermark;
            return Ok(done);
        }
        let files = self.write_rows(catalog, view, log, &state, now).await?;
        done.rows = files.iter().map(|file| file.rows).sum();
        let kind = if view.is_static() { ViewCommitKind::Replace } else { ViewCommitKind::Refresh };
        log.commit(&mut state, ViewCommit { at: now, kind, watermark: now, files }).await?;
        done.committed = true;
        tracing::info!(view = %view.name, rows = done.rows, watermark = %now, "refreshed");
        Ok(done)
    }

    /// Computes and writes the new rows; without any there is no file.
    async fn write_rows(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        log: &ViewLog,
        state: &ViewLogState,
        now: Timestamp,
    ) -> Result<Vec<DataFile>> {
        let session = self.session()?;
        let mut rows = view_rows(&session, catalog, view, state.watermark, now).await?;
        let mut writer = None;
        while let Some(batch) = rows.try_next().await? {
            if writer.is_none() {
                writer = Some(log.write(view, state.number + 1, self.writer())?);
            }
            if let Some(writer) = &mut writer {
                writer.write(&batch).await?;
            }
        }
        match writer {
            Some(writer) => Ok(vec![writer.finish().await?]),
            None => Ok(Vec::new()),
        }
    }
}
