//! Changes to producers by the will of a person (rule T10): one that is gone is retired, one that said too much is set back,
//! one whose sequences were used up by somebody begins anew after its own, and a name is handed over.
//!
//! The log has the change first; a batch without events that comes after it carries it through all steps, as a heartbeat would.
//! Then it is flushed, and views that had got further than their producers now say are set back by a commit that says so.

use std::sync::Arc;

use arrow::array::RecordBatch;
use springhouse_featurestore::catalog::{CatalogState, Signature};
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{
    EventSink, NameInUse, ProducerChange, ProducerState, PushHeader, PushHistoryState,
};
use springhouse_featurestore::tier::{ViewCommit, ViewCommitKind};
use springhouse_featurestore::{Error, ErrorKind, Result};

use super::{Pushes, Shared};
use crate::jobs::until_first;

impl Pushes {
    /// Changes a producer, in the log, in what is flushed and in the views.
    pub(super) async fn change(
        &self,
        source: &str,
        producer: &str,
        change: ProducerChange,
        by: Signature,
    ) -> Result<ProducerState> {
        let shared = &self.shared;
        if matches!(change, ProducerChange::Sequence(_)) {
            // What was sent above it is on the store's record before that is set back. Whether each view can have its rows does
            // not matter for that, here and below.
            shared.flush_whole().await?;
        }
        let changed = shared.log.change(source, producer, change.clone(), by.clone())?;
        tracing::warn!(source, producer, ?change, who = %by.who, why = %by.why, "a producer was changed");
        let nothing = RecordBatch::new_empty(self.schema(source).await?);
        self.push(source, nothing, PushHeader::default()).await?;
        shared.flush_whole().await?;
        if matches!(change, ProducerChange::Watermark(_)) {
            shared.set_back(source, &by).await?;
        }
        Ok(changed)
    }
}

impl Shared {
    /// Lets a push in under a producer's name, as [`springhouse_featurestore::push::PushLog::admit`] does; where there are as many
    /// as there may be, those leave that have nothing to say.
    pub(super) async fn admit(&self, source: &str, producer: &str, caller: Option<&str>) -> Result<NameInUse> {
        let error = match self.log.admit(source, producer, caller) {
            Err(error) if error.kind() == ErrorKind::Busy => error,
            admitted => return admitted,
        };
        let (log, of) = (Arc::clone(&self.log), source.to_owned());
        let gone = tokio::task::spawn_blocking(move || log.let_silent_names_go(&of))
            .await
            .map_err(|error| Error::internal("the log's writer panicked").source(error))??;
        if gone == 0 { Err(error) } else { self.log.admit(source, producer, caller) }
    }

    /// Sets the watermarks of a source's views back to what its producers say, where they are further.
    async fn set_back(&self, source: &str, by: &Signature) -> Result<()> {
        let _one = self.flushing.lock().await;
        let (catalog, history) = ((self.catalog)(), self.history());
        let mut failed = None;
        for (view, sources) in self.views_of_pushed(&catalog) {
            if sources.contains(source)
                && let Err(error) = until_first(view, || self.set_view_back(&catalog, view, &history, by)).await
            {
                failed.get_or_insert(error.with("view", &view.name));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn set_view_back(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        history: &PushHistoryState,
        by: &Signature,
    ) -> Result<()> {
        let log = self.jobs.log(view);
        let mut state = log.state().await?;
        let told = self.watermark_of(catalog, view, state.watermark, &history.watermarks)?;
        let Some(watermark) = told.filter(|told| Some(*told) < state.watermark) else { return Ok(()) };
        let commit = ViewCommit {
            read_until: state.read_until,
            signed: Some(by.clone()),
            ..ViewCommit::new(self.jobs.clock().now(), ViewCommitKind::Correct, watermark)
        };
        log.commit(&mut state, commit).await?;
        tracing::warn!(view = %view.name, watermark = %watermark, "the view's watermark was set back");
        Ok(())
    }
}
