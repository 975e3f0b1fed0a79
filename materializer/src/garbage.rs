//! Garbage: what lies on object storage and no commit names is removed after a grace time.
//!
//! Named are the files of a view's newest state, its table of events that are set aside among them, those of a backfill that has
//! begun, the flushed pushes, and nothing else. In a folder what was being written when its process was killed is garbage too.
//! How a
//! file that is being written, or read, is told from one that nobody needs: [`springhouse_featurestore::tier::DataFolder`].

use std::collections::HashSet;

use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{CatalogState, Heads};
use springhouse_featurestore::definition::{FeatureView, Pinned};
use springhouse_featurestore::object_storage::CutOffFile;
use springhouse_featurestore::push::PushHistory;
use springhouse_featurestore::tier::{BackfillLog, Collected, DataFolder};
use springhouse_featurestore::time::Span;

use crate::Jobs;

/// How long a file that no commit names is kept: longer than any refresh, flush or training set takes.
pub const GRACE: Span = Span::from_secs(24 * 3_600);

impl Jobs {
    /// Removes what no commit has named for `grace`, of all view versions and of the flushed pushes.
    ///
    /// # Errors
    /// Those of the store and of its logs; what was not removed is the next time.
    pub async fn collect_garbage(&self, catalog: &CatalogState, grace: Span) -> Result<Collected> {
        let mut collected = Collected::default();
        let mut failed = None;
        for view in catalog.all_views() {
            match self.collect_garbage_of(view, grace).await {
                Ok(of_view) => collected += of_view,
                Err(error) => {
                    tracing::error!(view = %view.name, error = %error.chain(), "a view's garbage stays; others' goes");
                    failed.get_or_insert(error.with("view", &view.name));
                }
            }
        }
        let folder = DataFolder::list(self.store(), &PushHistory::folder()).await?;
        if !folder.files().is_empty() {
            let history = self.pushed().state().await?;
            let named = history.files.values().flatten().map(|file| file.path.clone()).collect();
            collected += folder.collect(&named, grace, self.clock().now()).await?;
        }
        match self.remove_cut_off(grace).await {
            Ok(cut_off) => collected += cut_off,
            Err(error) => {
                tracing::error!(error = %error.chain(), "files that were cut off stay");
                failed.get_or_insert(error);
            }
        }
        let live: Vec<Pinned> = catalog.live_views().into_iter().map(FeatureView::pinned).collect();
        Heads::keep(self.store(), &live).await?;
        if collected != Collected::default() {
            tracing::info!(
                removed = collected.removed,
                bytes = collected.bytes,
                waiting = collected.waiting,
                "garbage"
            );
        }
        failed.map_or(Ok(collected), Err)
    }

    /// Removes what processes that were killed had been writing, where the store lies in a folder.
    async fn remove_cut_off(&self, grace: Span) -> Result<Collected> {
        let mut collected = Collected::default();
        let Some(folder) = self.folder() else { return Ok(collected) };
        for file in CutOffFile::list(folder, grace, self.clock().now()).await? {
            file.remove().await?;
            collected.removed += 1;
            collected.bytes += file.bytes;
        }
        Ok(collected)
    }

    async fn collect_garbage_of(&self, view: &FeatureView, grace: Span) -> Result<Collected> {
        // Listed before it is asked what is named.
        let folder = DataFolder::list(self.store(), self.log(view).folder()).await?;
        if folder.files().is_empty() {
            return Ok(Collected::default());
        }
        let named = self.named_files(view).await?;
        folder.collect(&named, grace, self.clock().now()).await
    }

    /// The files of a view that count, or will when its backfill is committed.
    async fn named_files(&self, view: &FeatureView) -> Result<HashSet<String>> {
        let begun = BackfillLog::new(std::sync::Arc::clone(self.store()), &view.pinned()).begun().await?;
        let of_backfill = begun.into_iter().flat_map(|backfill| backfill.done.into_values().flatten());
        // The state comes after: a backfill that is committed between is there.
        let of_backfill: Vec<String> = of_backfill.map(|file| file.path).collect();
        let state = self.log(view).state().await?;
        let set_aside = state.set_aside.files.into_values().map(|file| file.path);
        Ok(state.files.into_iter().map(|(_, file)| file.path).chain(of_backfill).chain(set_aside).collect())
    }
}
