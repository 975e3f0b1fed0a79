//! Views that reach back: their rows are computed of what was pushed before too, but of what is left out. That is what is noted in
//! the log of pushes that no commit tells of yet, and what the view's commits tell of: a refresh may have set it aside, or a retry
//! have counted it.

use std::sync::Arc;

use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{EventPlace, EventPlaces, PushEntry};
use springhouse_featurestore::tier::ViewLogState;
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

    /// The places of the events that a view does without which reaches back: those that its commits tell of, and those that are
    /// noted of pushes that no commit has told of yet. What is noted of others may have been counted by a retry since.
    ///
    /// # Errors
    /// Those of the view's log, where it is not known of what it tells.
    pub(super) async fn left_out(&self, view: &FeatureView) -> Result<Arc<EventPlaces>> {
        let pinned = view.pinned();
        let (noted, _) = self.set_aside.places(&pinned);
        let known = self.set_aside.told().get(&pinned).cloned();
        let told = match known {
            // What nothing was set aside of can have nothing counted after all.
            Some(told) if told.places.is_empty() && noted.keys().all(|place| told.leaves_to_notes(place)) => told,
            _ => self.look_at_told(view).await?,
        };
        let untold: Vec<EventPlace> = noted.keys().filter(|place| told.leaves_to_notes(place)).copied().collect();
        if untold.is_empty() {
            return Ok(told.places);
        }
        Ok(Arc::new(untold.into_iter().chain(told.places.iter().copied()).collect()))
    }

    /// What its commits tell of now.
    async fn look_at_told(&self, view: &FeatureView) -> Result<Told> {
        let state = self.jobs.log(view).state().await?;
        self.saw_told(view, &state).await
    }

    /// A view that reaches back is seen to be at this commit; gives the newest of what is known of it.
    ///
    /// # Errors
    /// Those of reading its table of events that are set aside.
    pub(super) async fn saw_told(&self, view: &FeatureView, state: &ViewLogState) -> Result<Told> {
        let pinned = view.pinned();
        let known = self.set_aside.told().get(&pinned).cloned();
        let places = match known {
            Some(known) if known.commit >= state.number => return Ok(known),
            Some(known) if known.table == state.set_aside => known.places,
            _ => self.jobs.left_out(&state.set_aside).await?,
        };
        let seen = Told { commit: state.number, pushed: state.pushed, table: state.set_aside.clone(), places };
        let mut told = self.set_aside.told();
        let newest = told.entry(pinned).or_insert_with(|| seen.clone());
        // Somebody else may have seen a later commit meanwhile.
        if newest.commit < seen.commit {
            *newest = seen;
        }
        Ok(newest.clone())
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
