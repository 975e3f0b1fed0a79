//! Whether history is still what it was: the files that a view's sources read, compared with those that its last commit
//! saw, and where they differ the rows that they give compared with those committed.
//!
//! A file that only grew gives the same rows up to the watermark, and nothing is said. One that was replaced by other
//! values is named: a refresh reads what is new and leaves what was committed as it is, until a backfill.

use futures::TryStreamExt;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::{PushHistoryState, PushedEvents};
use springhouse_featurestore::tier::{Fingerprint, HistoryFiles, Restated, ViewLogState, data_schema};
use springhouse_sql::view_rows::{Sources, view_rows};

use crate::Jobs;

impl Jobs {
    /// The files that a view's sources read now.
    pub(crate) async fn history_files(&self, catalog: &CatalogState, view: &FeatureView) -> Result<HistoryFiles> {
        let session = self.session()?;
        let mut files = HistoryFiles::new();
        for pinned in &view.sources {
            for table in &catalog.source(pinned)?.tables {
                files.insert(table.clone(), session.table_files(catalog.table(table)?).await?);
            }
        }
        Ok(files)
    }

    /// What was found of the files as they are `now`, against those of the last commit. A static view has no past that
    /// could change.
    pub(crate) async fn restated(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        now: &HistoryFiles,
        pushed: &PushHistoryState,
    ) -> Result<Option<Restated>> {
        let files = changed(&state.history, now);
        let (false, false, Some(until)) = (view.is_static(), files.is_empty(), state.read_until) else {
            return Ok(None);
        };
        let rows_before = state.files.iter().map(|(_, file)| file.rows).sum();
        if view.sources.iter().any(|source| pushed.knows(&source.name)) {
            return Ok(Some(Restated { files, rows_before, rows_now: None }));
        }
        let committed = state.files.iter().try_fold(0_u64, |sum, (_, file)| Some(sum.wrapping_add(file.fingerprint?)));
        let none = PushedEvents::default();
        let sources = Sources { catalog, store: self.store(), pushed: &none };
        let mut rows = view_rows(&self.session()?, &sources, view, None, until).await?;
        let mut found = Fingerprint::new(&data_schema(view))?;
        while let Some(batch) = rows.try_next().await? {
            found.add(&batch)?;
        }
        let same = committed == Some(found.sum()) && found.rows() == rows_before;
        Ok((!same).then(|| Restated { files, rows_before, rows_now: Some(found.rows()) }))
    }
}

/// The files that were there and are not any more as they were; those that came anew change nothing of the past.
fn changed(before: &HistoryFiles, now: &HistoryFiles) -> Vec<String> {
    let mut changed = Vec::new();
    for (table, files) in before {
        for file in files {
            if !now.get(table).is_some_and(|now| now.contains(file)) {
                changed.push(format!("{table}: {}", file.path));
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::tier::HistoryFile;

    use super::*;

    #[test]
    fn files_that_changed_or_are_gone_are_named_and_new_ones_are_not() {
        let file = |path: &str, state: &str| HistoryFile { path: path.to_owned(), bytes: 1, state: state.to_owned() };
        let files = |files: &[HistoryFile]| HistoryFiles::from([("flights".to_owned(), files.to_vec())]);
        let before = files(&[file("a", "1"), file("b", "1"), file("c", "1")]);
        let now = files(&[file("a", "1"), file("b", "2"), file("d", "1")]);
        assert_eq!(changed(&before, &now), ["flights: b", "flights: c"]);
        assert!(changed(&HistoryFiles::new(), &now).is_empty());
    }
}
