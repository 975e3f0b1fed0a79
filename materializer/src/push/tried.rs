//! Events that are to be pushed, tried against the queries of their source's views: where one fails the push is refused with the
//! row, the view and the reason.

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::push::{PushEntry, PushOrigin, PushedEvents};
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::pushed::PushedQuery;

use super::{Prepared, Shared};

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
}

/// Runs a planned query on events alone.
async fn runs(prepared: &Prepared, source: &str, events: &RecordBatch) -> Result<()> {
    let Some(query) = &prepared.query else { return Ok(()) };
    let entry = PushEntry::new(0, source.to_owned(), events.clone(), PushOrigin::default())?;
    let new = PushedEvents::of_entries([&entry]);
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
