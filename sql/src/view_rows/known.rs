//! A view's rows of what is known: of its history by a time, and of what was pushed by a position.
//!
//! A pushed event is committed when it has come, which may be after the time until which history was read: of those that a
//! caller gives every one counts, whatever its times.

use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{EventTime, FeatureView, Pinned, Source};
use springhouse_featurestore::push::PushedEvents;
use springhouse_featurestore::tier::data_schema;
use springhouse_featurestore::time::Timestamp;

use super::{DataFrame, RowStream, Sources, conform, in_order, visible_in};
use crate::barrier::as_it_comes;
use crate::session::{EventRange, Session, query_error};

/// All rows of `view`: of its history those that were visible by `known`, and those of all pushed events that `sources`
/// names; a windowed view's in no order, others as [`super::view_rows`] gives them.
///
/// # Errors
/// As [`super::view_rows`].
pub async fn known_rows(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    known: Timestamp,
) -> Result<RowStream> {
    let range = EventRange { pushed: Timestamp::MAX, ..EventRange::known_by(known) };
    let rows = frame(session, sources, view, EventRange { until: Timestamp::MAX, ..range }).await?;
    if view.windowed.is_none() {
        return in_order(session, rows, view).await;
    }
    let schema = data_schema(view);
    let batches = session.stream(rows).await?;
    Ok(batches.map_err(query_error).map(move |batch| conform(&batch?, &schema)).boxed())
}

/// The same in no order and not yet each once, of events in a range.
pub(super) async fn frame(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    range: EventRange,
) -> Result<DataFrame> {
    let rows = whenever(session, sources, view, range).await?;
    // A row that lies ahead of its events does not hold before its own time.
    if view.ahead { visible_in(rows, view, None, range.known) } else { Ok(rows) }
}

async fn whenever(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    range: EventRange,
) -> Result<DataFrame> {
    if !view.sources.iter().any(|source| sources.pushed.has(&source.name)) {
        sources.add(session, view, range).await?;
        return visible_in(session.view_frame(view).await?, view, None, range.known);
    }
    let apart = |pinned: &Pinned| Ok(sources.catalog.source(pinned)?.identity().is_some());
    let apart = view.sources.iter().map(apart).collect::<Result<Vec<bool>>>()?.contains(&true);
    if apart || one_source(sources.catalog, view)?.is_none() {
        // An event of both counts once, and the range alone says which events of the history are known.
        // A row that rests on several events is committed with the pushes that bring one of them, whatever its own time.
        sources.add(session, view, range).await?;
        return session.view_frame(view).await;
    }
    let none = PushedEvents::default();
    Sources { pushed: &none, ..*sources }.add(session, view, range).await?;
    let history = visible_in(session.view_frame(view).await?, view, None, range.known)?;
    for pinned in &view.sources {
        let source = sources.catalog.source(pinned)?;
        session.forget(source)?;
        let is_static = source.event_time == EventTime::Static;
        sources.add_one(session, (view, source), Some(range), is_static, sources.pushed).await?;
    }
    let both = history.union(session.view_frame(view).await?).map_err(query_error)?;
    as_it_comes(session, both).await
}

/// The one source whose events are a view's rows, each by itself; none where a row may rest on several events.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::NotFound`] when the catalog lacks a source.
pub fn one_source<'a>(catalog: &'a CatalogState, view: &FeatureView) -> Result<Option<&'a Source>> {
    if view.reaches_back() {
        return Ok(None);
    }
    let mut one = None;
    for pinned in &view.sources {
        let source = catalog.source(pinned)?;
        if source.event_time != EventTime::Static && one.replace(source).is_some() {
            return Ok(None);
        }
    }
    Ok(one)
}
