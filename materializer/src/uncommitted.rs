//! What is flushed and has not come to a view: its flush ended before it had come to it, or could not commit to it. How far
//! producers say that they are holds for a view that has all of their pushes, and for no other (rule T6).

use std::collections::{BTreeMap, BTreeSet};

use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{PushHistoryState, PushedEvents};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_sql::view_rows::oldest_event;

use crate::Jobs;

/// The sources of which a view lacks flushed pushes, each with the time up to which that is no harm.
pub(crate) type Lacking = BTreeMap<String, Timestamp>;

impl Jobs {
    /// The sources of a view that has pushes up to a position and lacks some after it. Whatever they are, it stays where it has
    /// got: `since`. A source whose producers have said no more than that is not asked.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] when a file of pushed events cannot be read.
    pub(crate) async fn lacking(
        &self,
        view: &FeatureView,
        history: &PushHistoryState,
        after: u64,
        since: Option<Timestamp>,
    ) -> Result<Lacking> {
        let mut lacking = Lacking::new();
        let says_more = |source: &str| history.watermarks.get(source).is_some_and(|said| Some(*said) > since);
        for source in view.sources.iter().filter(|source| says_more(&source.name)) {
            // Positions of a file are those of its flush, which may have had events of others behind the last of these.
            if may_have(history, &source.name, after) {
                let of = BTreeSet::from([source.name.as_str()]);
                let (first, _) = self.pushed().first_entries(history, &of, (after, history.until), 1).await?;
                if !first.is_empty() {
                    lacking.insert(source.name.clone(), since.unwrap_or(Timestamp::MIN));
                }
            }
        }
        Ok(lacking)
    }

    /// The same for a view that nobody knows how far it had got: what it lacks begins after these times. All of it is read.
    ///
    /// # Errors
    /// As [`Self::lacking`].
    pub(crate) async fn lacking_from(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        history: &PushHistoryState,
        after: u64,
    ) -> Result<Lacking> {
        let mut lacking = Lacking::new();
        for source in view.sources.iter().filter(|source| may_have(history, &source.name, after)) {
            let of = BTreeSet::from([source.name.as_str()]);
            let (mut reached, mut oldest) = (after, Timestamp::MAX);
            while reached < history.until {
                let range = (reached, history.until);
                let (entries, until) = self.pushed().first_entries(history, &of, range, self.piece_bytes()).await?;
                oldest = oldest.min(oldest_event(catalog, view, &PushedEvents::of_entries(&entries))?);
                reached = until;
            }
            if oldest < Timestamp::MAX {
                lacking.insert(source.name.clone(), oldest - Span::from_micros(1));
            }
        }
        Ok(lacking)
    }
}

/// Whether pushes of a source may have been flushed after a position.
fn may_have(history: &PushHistoryState, source: &str, after: u64) -> bool {
    history.files_of(source).iter().any(|file| file.positions.is_none_or(|range| range.until > after))
}
