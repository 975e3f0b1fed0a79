//! Following the store: what is new in the catalog and in the views' logs, read again and again.
//!
//! Views are followed several at once, and each by one at a time. A look waits for the views that it follows; the next may
//! begin meanwhile and leaves those alone, so one view that takes long keeps no other from being followed.

use std::sync::{Arc, PoisonError};

use futures::{StreamExt, stream};
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{CatalogState, Heads, HeadsSeen, Look};
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::tier::{
    Expiry, Mark, OnlineTier, Progress, Pushing, Retired, ViewLog, brings_unseen, catch_up_with, load_again,
};

use super::watched::Watched;
use super::{FeatureServer, SaidByLog};

/// Views that are followed at once: a load holds some hundred megabytes.
pub(super) const FOLLOWED_AT_ONCE: usize = 4;

/// What was seen by who follows.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// The heads of the logs that were read.
    heads: HeadsSeen,
    /// The versions that nothing names.
    retired: Retired,
}

impl FeatureServer {
    /// Reads what is new in the catalog and loads what is new in the views: all of them are looked at, several at once. A view
    /// that cannot be followed is told of in [`Self::status`], and the others are followed all the same; where the catalog cannot
    /// be read those of the one that was read last are.
    ///
    /// # Errors
    /// Those of reading the catalog, and of applying pushes; what was reached before stays.
    pub async fn follow(&self, progress: &dyn Progress) -> Result<()> {
        let catalog = {
            let _followed = self.following.lock().await;
            self.follow_catalog().await
        };
        let state = self.state();
        let views = state.live_views().into_iter().map(|view| self.follow_in_turn(view, progress));
        all_of(views.collect()).await;
        both(catalog, self.end_look().await)
    }

    /// The same for those whose heads have changed, for those that could not be followed, and for one more in its turn: what a
    /// process does again and again. It costs few requests whatever the number of views ([`Heads`]). It may be begun again
    /// before it ends: a view that another look is loading still is left to that one, and the others are followed.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub async fn follow_heads(&self, progress: &dyn Progress) -> Result<()> {
        let (look, due, catalog) = self.look_at_heads().await?;
        let state = self.state();
        let due = state.live_views().into_iter().filter(|view| due.contains(&view.pinned()));
        let views = due.map(|view| self.follow_if_free(view, &look, progress));
        all_of(views.collect()).await;
        both(catalog, self.end_look().await)
    }

    /// Looks which logs have changed; gives the look, the views that are to be followed, and whether the catalog could be read
    /// where it has changed.
    async fn look_at_heads(&self) -> Result<(Look, Vec<Pinned>, Result<()>)> {
        let mut followed = self.following.lock().await;
        let heads = Heads::now(&self.store).await?;
        let views: Vec<Pinned> = self.state().live_views().into_iter().map(FeatureView::pinned).collect();
        let look = followed.heads.look(heads, &views);
        let mut catalog = Ok(());
        if followed.heads.catalog_is_due(&look) {
            catalog = self.follow_catalog().await;
            if catalog.is_ok() {
                followed.heads.catalog_was_read(&look);
            }
        }
        let views = self.state().live_views().into_iter().map(FeatureView::pinned).collect::<Vec<_>>().into_iter();
        let in_trouble = |view: &Pinned| self.views.state(view).trouble().is_some();
        let due = views.filter(|view| in_trouble(view) || followed.heads.view_is_due(&look, view)).collect();
        Ok((look, due, catalog))
    }

    /// Follows a view, after whoever is following it.
    async fn follow_in_turn(&self, view: &FeatureView, progress: &dyn Progress) {
        let turn = self.views.turn(&view.pinned());
        let _turn = turn.lock().await;
        self.follow_view(view, progress).await;
    }

    /// Follows a view, unless somebody is.
    async fn follow_if_free(&self, view: &FeatureView, look: &Look, progress: &dyn Progress) {
        let turn = self.views.turn(&view.pinned());
        let Ok(_turn) = turn.try_lock() else { return };
        if self.follow_view(view, progress).await {
            self.following.lock().await.heads.view_was_read(look, &view.pinned());
        }
    }

    async fn follow_catalog(&self) -> Result<()> {
        let mut state = CatalogState::clone(&self.state());
        if state.number() == 0 {
            state = self.catalog.state().await?;
        } else {
            self.catalog.follow(&mut state).await?;
        }
        if state.number() != self.state().number() {
            let live: Vec<Pinned> = state.live_views().into_iter().map(FeatureView::pinned).collect();
            self.views.retain(|view| live.contains(view));
            *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        }
        Ok(())
    }

    /// What is done after each look, whatever it found.
    async fn end_look(&self) -> Result<()> {
        {
            let mut followed = self.following.lock().await;
            let _changing = self.changing.lock().await;
            followed.retired.forget(self.tier.as_ref(), &self.state().needed_views(), self.clock.now())?;
        }
        // Pushes that could not be applied when they came; by one look at a time.
        match (self.sink.get(), self.replaying.try_lock()) {
            (Some(sink), Ok(_one)) => sink.replay().await,
            _ => Ok(()),
        }
    }

    /// Loads what is new in a view, or notes why that cannot be; whether it could. It has its place among those that are
    /// followed at once for as long as something comes of it.
    async fn follow_view(&self, view: &FeatureView, progress: &dyn Progress) -> bool {
        let pinned = view.pinned();
        let watched = Watched::new(progress);
        let followed = async {
            let _place = self.places.acquire().await.expect("nobody closes the semaphore");
            watched.unless_still(self.load_new(view, &watched)).await
        };
        match followed.await {
            Ok(()) => {
                self.views.followed(&pinned);
                true
            }
            Err(error) => {
                let loaded = self.tier.mark(&pinned).is_ok_and(|mark| mark.commit > 0);
                self.views.failed(&pinned, &error, loaded, self.clock.now());
                false
            }
        }
    }

    async fn load_new(&self, view: &FeatureView, progress: &dyn Progress) -> Result<()> {
        let pinned = view.pinned();
        let log = ViewLog::new(Arc::clone(&self.store), &pinned);
        let sink = self.sink.get().map(AsRef::as_ref);
        let pushing = sink.map(|sink| Pushing { sink, changing: &self.changing });
        let tier = self.tier.as_ref();
        let expired = tier.expire(&pinned, &Expiry::new(view)?, self.clock.now())?;
        let mark = if expired && sink.is_none() && self.tells_events_apart(view) && brings_unseen(tier, &log).await? {
            tracing::info!(%pinned, "what was pushed and not committed may have come in history: the view is loaded anew");
            load_again(tier, &log, view, progress, pushing).await?
        } else if expired {
            catch_up_with(tier, &log, view, progress, pushing).await?
        } else {
            // The clock was set back, and what is past now was not then: what there is is answered until all of it is there.
            tracing::info!(%pinned, "the clock was set back: what had left the disk tier is loaded again");
            load_again(tier, &log, view, progress, pushing).await?
        };
        self.note_restated(&log, mark).await
    }

    /// Whether some event of a view may come by push and in history, and count once.
    fn tells_events_apart(&self, view: &FeatureView) -> bool {
        let state = self.state();
        view.sources.iter().any(|source| state.source(source).is_ok_and(|source| !source.distinct.is_empty()))
    }

    /// Keeps what a view's log says of its history and of events that are set aside; a log is read when it has a new commit.
    async fn note_restated(&self, log: &ViewLog, mark: Mark) -> Result<()> {
        let known = self.restated.read().unwrap_or_else(PoisonError::into_inner).get(log.view()).map(|of| of.commit);
        if mark.commit > 0 && known != Some(mark.commit) {
            let state = log.clone().remembering(&self.noted).state().await?;
            let mut all = self.restated.write().unwrap_or_else(PoisonError::into_inner);
            let said = SaidByLog { commit: mark.commit, restated: state.restated, set_aside: state.set_aside.events };
            all.insert(log.view().clone(), said);
        }
        Ok(())
    }
}

/// The first error of what was done in a look; a second one is told in the log.
fn both(catalog: Result<()>, ended: Result<()>) -> Result<()> {
    if let (Err(_), Err(error)) = (&catalog, &ended) {
        tracing::error!(error = %error.chain(), "what is done after each look at the store failed too");
    }
    catalog.and(ended)
}

/// Ends when all views have been followed, several at once.
async fn all_of<F: Future<Output = ()>>(views: Vec<F>) {
    stream::iter(views).buffer_unordered(FOLLOWED_AT_ONCE).for_each(std::future::ready).await;
}
