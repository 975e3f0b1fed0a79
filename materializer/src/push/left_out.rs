//! Views that reach back: their rows are computed of what was pushed before too, but of what is left out. That is what is noted in
//! the log, and what the view's commits tell of: a refresh may have set it aside, or a retry have counted it.

use std::sync::Arc;

use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{EventPlaces, PushEntry};
use springhouse_featurestore::tier::SetAside;
use springhouse_featurestore::{Error, ErrorKind, Result};

use super::Shared;
use super::set_aside::{Told, drained};
use crate::separate::{Limits, Separated, places_of_all, separate};

impl Shared {
    /// Tells the events apart on which the view's query fails: each is tried with those before it that were taken, and these are
    /// one group.
    ///
    /// # Errors
    /// Those that say nothing about the events; [`ErrorKind::Unavailable`] where the query fails without any of them.
    pub(super) async fn separated_reaching_back(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        entries: Vec<PushEntry>,
        limits: Limits,
    ) -> Result<Separated> {
        // What others have set aside since may be all that is wrong.
        self.look_at_told(view).await?;
        let mut tried = EventPlaces::clone(&*self.left_out(view).await?);
        let (known, new) = (tried.clone(), places_of_all(&entries)?);
        tried.extend(new);
        let (tried, known) = (&tried, &known);
        let none_of_them = Arc::new(tried.clone());
        let before = self.rows_of(catalog, view, (&entries, &none_of_them), WriteOrder::when_pushed);
        if let Err(error) = drained(before.await).await {
            return Err(rests_on_failing(view, error));
        }
        let attempt = move |taken: Vec<PushEntry>, some: Vec<PushEntry>| async move {
            let some = [taken, some].concat();
            let counts = places_of_all(&some)?;
            let left_out = tried.iter().filter(|place| known.contains(place) || !counts.contains(place)).copied();
            let left_out = Arc::new(left_out.collect());
            drained(self.rows_of(catalog, view, (&some, &left_out), WriteOrder::when_pushed).await).await
        };
        let mut found = separate(entries, limits, attempt).await?;
        if !found.good.is_empty() {
            found.good = vec![found.good.concat()];
        }
        Ok(found)
    }

    /// The places of the events that a view does without which reaches back: those that are noted, and those that its commits
    /// tell of.
    ///
    /// # Errors
    /// Those of the view's log, where it is not known of what it tells.
    pub(super) async fn left_out(&self, view: &FeatureView) -> Result<Arc<EventPlaces>> {
        let pinned = view.pinned();
        let known = self.set_aside.told().get(&pinned).cloned();
        let told = match known {
            // What nothing was set aside of can have nothing counted after all.
            Some(known) if known.places.is_empty() => known.places,
            _ => self.look_at_told(view).await?,
        };
        let (noted, _) = self.set_aside.places(&pinned);
        if noted.is_empty() {
            return Ok(told);
        }
        Ok(Arc::new(noted.keys().chain(told.iter()).copied().collect()))
    }

    /// The same of what its commits tell of now.
    async fn look_at_told(&self, view: &FeatureView) -> Result<Arc<EventPlaces>> {
        let state = self.jobs.log(view).state().await?;
        self.saw_told(view, &state.set_aside).await
    }

    /// A view that reaches back has this table of events that are set aside; gives their places.
    ///
    /// # Errors
    /// Those of reading it.
    pub(super) async fn saw_told(&self, view: &FeatureView, table: &SetAside) -> Result<Arc<EventPlaces>> {
        let pinned = view.pinned();
        if let Some(known) = self.set_aside.told().get(&pinned).filter(|known| known.table == *table) {
            return Ok(Arc::clone(&known.places));
        }
        let places = self.jobs.left_out(table).await?;
        let told = Told { table: table.clone(), places: Arc::clone(&places) };
        self.set_aside.told().insert(pinned, told);
        Ok(places)
    }
}

/// A view's query fails on what came before the events that it is tried on: none of these is at fault.
fn rests_on_failing(view: &FeatureView, error: Error) -> Error {
    if error.kind() != ErrorKind::Invalid {
        return error;
    }
    Error::unavailable("a view's query fails on events that its rows reach back to, and that it has taken before")
        .with("view", &view.name)
        .remedy("its next refresh sets them aside, or names the row of history; what was pushed is durable, and it has that then")
        .source(error)
}
