//! Events on which a view's query fails.
//!
//! A push is tried against the queries of its source's views before it is taken: where one fails the push is refused with
//! the row, the view and the reason. A query that can fail for no event (it reads columns, compares, does arithmetic with
//! floats) is not tried. What fails later all the same (a view that came after the push, one that reads other events too)
//! is set aside for that view alone: its commit names the pushes and the reason, and every other view has them.

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{PushEntry, PushOrigin};
use springhouse_featurestore::tier::SetAside;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::pushed::PushedQuery;

use super::{Prepared, Shared};

/// Names what a view is not to have.
pub(super) fn tell(view: &FeatureView, aside: &[SetAside]) {
    for SetAside { source, position, rows, reason, .. } in aside {
        tracing::error!(
            view = %view.name, %source, position, rows, %reason,
            "the view's query fails on a push: it is set aside for this view"
        );
    }
}

impl Shared {
    /// Tries the queries of a source's views on events that are to be pushed.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the first row that fails, the view and the reason.
    pub(super) async fn try_events(&self, catalog: &CatalogState, source: &str, events: &RecordBatch) -> Result<()> {
        if events.num_rows() == 0 {
            return Ok(());
        }
        for view in catalog.live_views() {
            if !view.sources.iter().any(|of| of.name == source) {
                continue;
            }
            // A view that cannot be planned is in trouble by itself.
            let Ok(prepared) = self.prepared(catalog, view).await else { continue };
            if !prepared.query.as_ref().is_some_and(PushedQuery::may_fail) {
                continue;
            }
            if let Err(error) = runs(&prepared, source, events).await {
                let (row, reason) = first_failing(&prepared, source, events, error).await?;
                return Err(Error::invalid("a view's query fails on an event")
                    .with("source", source)
                    .with("row", row)
                    .with("view", &view.name)
                    .remedy("correct the event, or let the view's query take it: nullif(x, 0), try_cast")
                    .source(reason));
            }
        }
        Ok(())
    }

    /// The entries that a view's query takes, in groups that it takes together, and those on which it fails.
    ///
    /// # Errors
    /// Those that say nothing about the entries.
    pub(super) async fn separated(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: Vec<PushEntry>,
    ) -> Result<(Vec<Vec<PushEntry>>, Vec<SetAside>)> {
        let prepared = self.prepared(catalog, view).await?;
        let (mut good, mut aside) = (Vec::new(), Vec::new());
        let mut left = vec![entries];
        while let Some(mut some) = left.pop() {
            let tried = match self.rows_by(&prepared, catalog, view, &some).await {
                Ok(rows) => rows.try_for_each(|_| std::future::ready(Ok(()))).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(()) => good.push(some),
                Err(error) if error.kind() != ErrorKind::Invalid => return Err(error),
                Err(_) if some.len() > 1 => {
                    let rest = some.split_off(some.len() / 2);
                    left.extend([rest, some]);
                }
                Err(error) => {
                    let (at, reason) = (self.jobs.clock().now(), error.chain());
                    aside.extend(some.into_iter().map(|entry| SetAside {
                        at,
                        source: entry.source,
                        position: entry.position,
                        rows: entry.events.num_rows() as u64,
                        reason: reason.clone(),
                    }));
                }
            }
        }
        Ok((good, aside))
    }
}

/// Runs a planned query on events alone.
async fn runs(prepared: &Prepared, source: &str, events: &RecordBatch) -> Result<()> {
    let Some(query) = &prepared.query else { return Ok(()) };
    let entry = PushEntry::new(0, source.to_owned(), events.clone(), PushOrigin::default())?;
    let new = springhouse_featurestore::push::PushedEvents::of_entries([&entry]);
    query.run(&new)?.try_for_each(|_| std::future::ready(Ok(()))).await
}

/// The first row on which a query fails, and why.
async fn first_failing(
    prepared: &Prepared,
    source: &str,
    events: &RecordBatch,
    error: Error,
) -> Result<(usize, Error)> {
    if error.kind() != ErrorKind::Invalid {
        return Err(error);
    }
    // The least number of rows that fail together ends with it.
    let (mut fine, mut failing, mut reason) = (0, events.num_rows(), error);
    while failing - fine > 1 {
        let middle = fine.midpoint(failing);
        match runs(prepared, source, &events.slice(0, middle)).await {
            Ok(()) => fine = middle,
            Err(error) => (failing, reason) = (middle, error),
        }
    }
    Ok((failing - 1, reason))
}
