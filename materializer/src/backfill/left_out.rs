//! Pushed events that a backfill leaves out: the view's query fails on them.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::{Backfill, BackfillLog, BackfillPlan, Beyond, Progress, ViewLogState, places_of};
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::view_rows::{Sources, rows_between};
use tokio::sync::Mutex;

use crate::Jobs;
use crate::at_fault::AtFault;

impl Jobs {
    /// A backfill with all of its ranges. Where the view's query fails on pushed events that it has taken before, they are left
    /// out, and its commit tells that they are set aside.
    pub(super) async fn computed(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (log, backfill): (&BackfillLog, Backfill),
        progress: &dyn Progress,
    ) -> Result<Backfill> {
        let plan = backfill.plan.clone();
        let backfill = Mutex::new(backfill);
        let error = match self.compute(catalog, view, (log, &backfill), progress).await {
            Err(error) if error.kind() == ErrorKind::Invalid && plan.pushed > 0 => error,
            done => return done.map(|()| backfill.into_inner()),
        };
        let done = backfill.lock().await.done.keys().copied().collect();
        let left_out = self.more_left_out(catalog, view, (&plan, &done), error).await?;
        tracing::warn!(view = %view.name, "the backfill begins anew, without pushed events on which the view's query fails");
        let backfill = Mutex::new(log.begin(BackfillPlan { left_out, ..plan }).await?);
        self.compute(catalog, view, (log, &backfill), progress).await?;
        Ok(backfill.into_inner())
    }

    /// What a backfill leaves out that has failed, with the pushed events on which it did.
    async fn more_left_out(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (plan, done): (&BackfillPlan, &BTreeSet<usize>),
        error: Error,
    ) -> Result<Vec<Beyond>> {
        let mut history = self.pushed().state().await?;
        history.until = history.until.min(plan.pushed);
        let left_out = Arc::new(plan.left_out.iter().flat_map(Beyond::places).collect());
        let mut found = AtFault { left_out, aside: Vec::new() };
        // In one range after another: an attempt computes that range alone.
        for (_, (from, until)) in plan.ranges().into_iter().enumerate().filter(|(index, _)| !done.contains(index)) {
            let attempt = move |pushed: PushedEvents| async move {
                let position = pushed.until.map_or(plan.pushed, |until| until.min(plan.pushed));
                let pushed = PushedEvents { until: Some(position), ..pushed };
                let sources = Sources { catalog, store: self.store(), pushed: &pushed };
                let session = self.seeing(self.session()?, catalog, view, &plan.history)?;
                let rows = rows_between(&session, &sources, view, (from, until), plan.known).await?;
                rows.try_for_each(|_| std::future::ready(Ok(()))).await
            };
            match attempt(history.events().leaving_out(&found.left_out)).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    found = self.at_fault(view, &history, (found, error), attempt).await?;
                }
                Err(error) => return Err(error),
            }
        }
        if found.aside.is_empty() {
            // Each range by itself is taken now.
            return Err(error);
        }
        let mut left_out = plan.left_out.clone();
        for (source, (events, _)) in &found.aside {
            places_of(events)?.into_iter().for_each(|place| Beyond::add(&mut left_out, source, place));
        }
        Ok(left_out)
    }

    /// The events that are set aside and stay so: those on which the view's query fails now, and those of which the table has
    /// the places alone. In a backfill of everything what was let go of counts again, and in no other; nor in another what is set
    /// aside of a view that reaches back, since rows beyond the stretch rest on it too.
    pub(super) async fn left_out_of_backfill(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        (state, is_whole): (&ViewLogState, bool),
    ) -> Result<Vec<Beyond>> {
        let mut left_out = state.set_aside.beyond.clone();
        if !is_whole {
            left_out.extend(state.set_aside.let_go.iter().cloned());
        }
        if state.set_aside.events == 0 {
            return Ok(left_out);
        }
        let table = self.set_aside(view).await?;
        if view.reaches_back() && !is_whole {
            for (source, events) in &table {
                places_of(events)?.into_iter().for_each(|place| Beyond::add(&mut left_out, source, place));
            }
        } else {
            let history = self.pushed().state().await?;
            let found = self.tried_again(catalog, view, (&history, state), &table).await?;
            found.failed.iter().for_each(|failed| Beyond::add(&mut left_out, &failed.source, failed.place));
        }
        Ok(left_out)
    }
}
