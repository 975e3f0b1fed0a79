//! Whether history is still what it was: the files that a view's sources read, compared with those that its last commit
//! saw, and where they differ what they give compared with what is committed (rule T11).
//!
//! - New files alone, of a source whose events are a view's rows each by itself: the rows that had been known by the last
//!   read are taken in. An older event never replaces a newer one (rule T5), and windows add it to its tile.
//! - New files of another view: events that had been known by the last read are counted. Where there are some, the rows
//!   that history gives are compared with those committed.
//! - Files that changed or are gone: the same comparison. A file that only grew gives the same rows, and nothing is said.
//!
//! What is not as it was is named, with counts, at every refresh: what was committed stays until a backfill.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{EventTime, FeatureView, Source, Table};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::push::{PushHistoryState, PushedEvents};
use springhouse_featurestore::tier::{
    DataFile, Fingerprint, HistoryFile, HistoryFiles, Restated, ViewLog, ViewLogState, data_schema,
};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_sql::session::{EventRange, Session, query_error};
use springhouse_sql::view_rows::{Sources, changed_rows, known_rows, one_source, view_rows};

use crate::Jobs;
use crate::distinct::NewIn;
use crate::jobs::write_file;

/// What stands for the content of a file that nobody has seen whole: the next refresh compares.
const UNSEEN: &str = "";

/// What is found of the past when history is read again.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// Rows of new files that had been known by the last read, to be committed.
    pub(crate) appeared: Option<DataFile>,
    /// The events among those files' that their source rejects.
    pub(crate) late: u64,
    /// What is not what was committed, and stays until a backfill.
    pub(crate) restated: Option<Restated>,
}

impl Jobs {
    /// The files that a view's sources read now.
    pub(crate) async fn history_files(&self, catalog: &CatalogState, view: &FeatureView) -> Result<HistoryFiles> {
        let session = self.session()?;
        let mut files = HistoryFiles::new();
        for table in tables_of(catalog, view)? {
            files.insert(table.name.clone(), session.table_files(table).await?);
        }
        Ok(files)
    }

    /// The same session, in which a view's tables consist of these files alone: what comes while it reads waits for the
    /// next refresh, and counts once.
    #[expect(clippy::unused_self, reason = "sessions are made by jobs")]
    pub(crate) fn seeing(
        &self,
        session: Session,
        catalog: &CatalogState,
        view: &FeatureView,
        files: &HistoryFiles,
    ) -> Result<Session> {
        session.see_only(tables_of(catalog, view)?, files)?;
        Ok(session)
    }

    /// What is found of the past in the files as they are `now`, against those of the last commit. A static view has no
    /// past that could change.
    pub(crate) async fn past(
        &self,
        catalog: &CatalogState,
        (view, log): (&FeatureView, &ViewLog),
        state: &ViewLogState,
        now: &HistoryFiles,
        pushed: &PushHistoryState,
    ) -> Result<Past> {
        let (changed, new) = (changed(&state.history, now), appeared(&state.history, now));
        let (false, Some(until)) = (view.is_static() || changed.is_empty() && new.is_empty(), state.read_until) else {
            return Ok(Past::default());
        };
        let mut late_events = 0;
        if changed.is_empty() {
            if let Some(source) = self.taken_as_it_comes(catalog, view).await?
                && new.keys().all(|table| source.tables.contains(table))
            {
                return self.take_in(catalog, (view, log), state, (&with(now, &new), until)).await;
            }
            match self.late_events(catalog, view, state, (now, &new), until).await? {
                Some(0) => return Ok(Past::default()),
                some => late_events = some.unwrap_or(0),
            }
        }
        let is_pushed = view.sources.iter().any(|source| pushed.knows(&source.name));
        let rows_before = state.files.iter().map(|(_, file)| file.rows).sum();
        let compared = match self.compared(catalog, view, state, now, pushed, until).await {
            // Of pushed events on which the view's query fails now it cannot be told.
            Err(error) if error.kind() == ErrorKind::Invalid && is_pushed => Compared::Unknown,
            compared => compared?,
        };
        let (rows_now, rows_changed) = match compared {
            Compared::Same => return Ok(Past::default()),
            Compared::Other { rows, changed } => (Some(rows), Some(changed)),
            Compared::Unknown => (None, None),
        };
        let names = new.iter().flat_map(|(table, files)| files.iter().map(move |file| name(table, file)));
        let files = changed.into_iter().chain(names).collect();
        let found = Restated { files, rows_before, rows_now, rows_changed, late_events };
        Ok(Past { restated: Some(found.after(state.restated.as_ref())), ..Past::default() })
    }

    /// The source whose new files' rows are taken in as they come: each row of the view is one of its events by itself, and
    /// each event one row of its table.
    pub(crate) async fn taken_as_it_comes<'a>(
        &self,
        catalog: &'a CatalogState,
        view: &FeatureView,
    ) -> Result<Option<&'a Source>> {
        let Some(source) = one_source(catalog, view)? else { return Ok(None) };
        let elsewhere = view.sources.iter().filter(|pinned| pinned.name != source.name);
        for pinned in elsewhere {
            if catalog.source(pinned)?.tables.iter().any(|table| source.tables.contains(table)) {
                return Ok(None);
            }
        }
        let session = self.session()?;
        for table in &source.tables {
            session.add_table(catalog.table(table)?).await?;
        }
        Ok(session.row_by_row(source).await?.then_some(source))
    }

    /// Writes the rows of some files that had been known by the last read.
    async fn take_in(
        &self,
        catalog: &CatalogState,
        (view, log): (&FeatureView, &ViewLog),
        state: &ViewLogState,
        (files, until): (&HistoryFiles, Timestamp),
    ) -> Result<Past> {
        let none = PushedEvents::default();
        let late = self.count_rejected(catalog, view, &none, files, (None, until)).await?;
        let written = WriteOrder::of_commit(state.pushed, state.number + 1);
        let session = self.seeing(self.session()?, catalog, view, files)?.writing(written);
        let new_in = NewIn { files, since: None, until, read: &state.history };
        let session = self.seeing_new(session, catalog, view, state, new_in).await?;
        let sources = Sources { catalog, store: self.store(), pushed: &none };
        let rows = view_rows(&session, &sources, view, None, until).await?;
        let file = format!("{:012}-{}-appeared", state.number + 1, self.mark());
        Ok(Past { appeared: write_file(log, view, &file, rows, &()).await?, late, restated: None })
    }

    /// How many events of new files had been known by the last read; none where that cannot be told from these files alone.
    async fn late_events(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        (now, new): (&HistoryFiles, &HistoryFiles),
        until: Timestamp,
    ) -> Result<Option<u64>> {
        let (mut late, none) = (0, PushedEvents::default());
        for pinned in &view.sources {
            let source = catalog.source(pinned)?;
            if !source.tables.iter().any(|table| new.contains_key(table)) {
                continue;
            }
            let files = with(now, new);
            let session = self.with_tables(catalog, view, source, &files).await?;
            if source.event_time == EventTime::Static || !session.row_by_row(source).await? {
                return Ok(None);
            }
            // Copies of what it has got are nothing new.
            let new_in = NewIn { files: &files, since: None, until, read: &state.history };
            let session = self.seeing_new(session, catalog, view, state, new_in).await?;
            let known = Some(EventRange::known_by(until));
            session.add_events(source, known, true, &none, self.store()).await?;
            let events = session.context().table(source.name.as_str()).await.map_err(query_error)?;
            late += events.count().await.map_err(query_error)? as u64;
        }
        Ok(Some(late))
    }

    /// Compares what the sources give, of what had been known by the last read and of the pushes that are committed, with
    /// what is committed.
    async fn compared(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        state: &ViewLogState,
        now: &HistoryFiles,
        pushed: &PushHistoryState,
        until: Timestamp,
    ) -> Result<Compared> {
        let mut events = PushedEvents::default();
        if view.sources.iter().any(|source| pushed.knows(&source.name)) {
            if one_source(catalog, view)?.is_none() {
                // What a push found when it came is not what would be found today.
                return Ok(Compared::Unknown);
            }
            let left_out = self.left_out(&state.set_aside).await?;
            events = self.pushed().events_until(state.pushed).await?.leaving_out(&left_out);
        }
        let sources = Sources { catalog, store: self.store(), pushed: &events };
        let session = self.seeing(self.session()?, catalog, view, now)?;
        let mut rows = known_rows(&session, &sources, view, until).await?;
        let mut found = Fingerprint::new(&data_schema(view))?;
        while let Some(batch) = rows.try_next().await? {
            found.add(&batch)?;
        }
        let committed: Vec<DataFile> = state.files.iter().map(|(_, file)| file.clone()).collect();
        let sum = committed.iter().try_fold(0_u64, |sum, file| Some(sum.wrapping_add(file.fingerprint?)));
        let before: u64 = committed.iter().map(|file| file.rows).sum();
        if sum == Some(found.sum()) && found.rows() == before {
            return Ok(Compared::Same);
        }
        let session = self.seeing(self.session()?, catalog, view, now)?;
        let changed = changed_rows(&session, &sources, view, until, &committed).await?;
        // Rows that were committed twice, as they came twice, stand for one.
        Ok(if changed == 0 { Compared::Same } else { Compared::Other { rows: found.rows(), changed } })
    }

    /// The events of some files, and of pushes, that became known after one time (all, where it is `None`) and by another,
    /// and later than their sources allow.
    pub(crate) async fn count_rejected(
        &self,
        catalog: &CatalogState,
        view: &FeatureView,
        pushed: &PushedEvents,
        files: &HistoryFiles,
        (since, until): (Option<Timestamp>, Timestamp),
    ) -> Result<u64> {
        let mut late = 0;
        for pinned in &view.sources {
            let source = catalog.source(pinned)?;
            if source.rejects().is_none() {
                continue;
            }
            let session = self.seeing(self.session()?, catalog, view, files)?;
            for table in &source.tables {
                session.add_table(catalog.table(table)?).await?;
            }
            let rejected = session.rejected_events(source, pushed, self.store(), since, until).await?;
            if let Some(rejected) = rejected {
                late += rejected.count().await.map_err(query_error)? as u64;
            }
        }
        Ok(late)
    }
}

/// What a comparison found.
enum Compared {
    /// The committed rows.
    Same,
    /// So many rows, and so many of them other than the committed ones.
    Other { rows: u64, changed: u64 },
    /// That it cannot be told.
    Unknown,
}

/// The tables that a view's sources read, each once.
fn tables_of<'a>(catalog: &'a CatalogState, view: &FeatureView) -> Result<Vec<&'a Table>> {
    let mut tables: Vec<&Table> = Vec::new();
    for pinned in &view.sources {
        for table in &catalog.source(pinned)?.tables {
            let table = catalog.table(table)?;
            if !tables.iter().any(|other| other.name == table.name) {
                tables.push(table);
            }
        }
    }
    Ok(tables)
}

/// How a file is named.
fn name(table: &str, file: &HistoryFile) -> String {
    format!("{table}: {}", file.path)
}

/// Files of which some tables have others.
fn with(files: &HistoryFiles, of_tables: &HistoryFiles) -> HistoryFiles {
    let mut files = files.clone();
    files.extend(of_tables.iter().map(|(table, files)| (table.clone(), files.clone())));
    files
}

/// The files that were there and are not any more as they were.
pub(crate) fn changed(before: &HistoryFiles, now: &HistoryFiles) -> Vec<String> {
    let gone = before.iter().flat_map(|(table, files)| {
        let now = now.get(table).into_iter().flatten();
        let now: HashMap<&str, &HistoryFile> = now.map(|file| (file.path.as_str(), file)).collect();
        files.iter().filter(move |file| now.get(file.path.as_str()) != Some(file)).map(move |file| name(table, file))
    });
    gone.collect()
}

/// The files of tables that had been read, and that were not there then, by table.
fn appeared(before: &HistoryFiles, now: &HistoryFiles) -> HistoryFiles {
    let new = before.iter().filter_map(|(table, before)| {
        let known: HashSet<&str> = before.iter().map(|file| file.path.as_str()).collect();
        let now = now.get(table)?.iter();
        let new: Vec<HistoryFile> = now.filter(|file| !known.contains(file.path.as_str())).cloned().collect();
        (!new.is_empty()).then(|| (table.clone(), new))
    });
    new.collect()
}

/// The files that a backfill reads, of those that there are `now`: of tables whose new files the next refresh takes in
/// anyway, those alone that a commit, or the backfill that goes on, has seen.
pub(crate) fn without_new(now: HistoryFiles, seen: &HistoryFiles, taken: &[String]) -> HistoryFiles {
    let mut files = now;
    for (table, new) in appeared(seen, &files) {
        if taken.contains(&table)
            && let Some(of_table) = files.get_mut(&table)
        {
            of_table.retain(|file| !new.contains(file));
        }
    }
    files
}

/// The files that a backfill's commit says were read. `read` are those that it has read itself, `state` is how the view
/// stands by then. What it has not made right is marked, so that the next refresh compares: unless it computed everything,
/// files that changed, came or went without a refresh that saw it, and files that were named before; in any case files of
/// the tables in `taken` that a refresh has taken in meanwhile.
pub(crate) fn settled(read: &HistoryFiles, state: &ViewLogState, whole: bool, taken: &[String]) -> HistoryFiles {
    let mut settled = read.clone();
    let unseen = |file: &HistoryFile| HistoryFile { state: UNSEEN.to_owned(), ..file.clone() };
    let named: HashSet<&str> = state.restated.iter().flat_map(|of| &of.files).map(String::as_str).collect();
    if !whole {
        for (table, files) in &mut settled {
            let before = state.history.get(table);
            for file in files {
                if named.contains(name(table, file).as_str()) || !before.is_some_and(|before| before.contains(file)) {
                    *file = unseen(file);
                }
            }
        }
    }
    for (table, before) in &state.history {
        let files = settled.entry(table.clone()).or_default();
        if whole && !taken.contains(table) {
            continue;
        }
        let known: HashSet<String> = files.iter().map(|file| file.path.clone()).collect();
        files.extend(before.iter().filter(|file| !known.contains(&file.path)).map(unseen));
    }
    for (table, path) in named.iter().filter(|_| !whole).filter_map(|of| of.split_once(": ")) {
        // It is gone, and what is committed of it may still be there.
        let files = settled.entry(table.to_owned()).or_default();
        if !files.iter().any(|file| file.path == path) {
            files.push(HistoryFile { path: path.to_owned(), bytes: 0, state: UNSEEN.to_owned() });
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, state: &str) -> HistoryFile {
        HistoryFile { path: path.to_owned(), bytes: 1, state: state.to_owned() }
    }

    fn files(files: &[(&str, &str)]) -> HistoryFiles {
        HistoryFiles::from([("flights".to_owned(), files.iter().map(|(path, state)| file(path, state)).collect())])
    }

    #[test]
    fn files_that_changed_or_are_gone_are_told_from_new_ones() {
        let before = files(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let now = files(&[("a", "1"), ("b", "2"), ("d", "1")]);
        assert_eq!(changed(&before, &now), ["flights: b", "flights: c"]);
        assert_eq!(appeared(&before, &now), files(&[("d", "1")]));
        assert!(changed(&HistoryFiles::new(), &now).is_empty() && appeared(&HistoryFiles::new(), &now).is_empty());
        assert!(appeared(&now, &now).is_empty());
    }

    #[test]
    fn a_backfill_leaves_new_files_to_the_refresh_that_takes_them_in() {
        let (seen, now) = (files(&[("a", "1")]), files(&[("a", "2"), ("b", "1")]));
        assert_eq!(without_new(now.clone(), &seen, &["flights".to_owned()]), files(&[("a", "2")]));
        assert_eq!(without_new(now.clone(), &seen, &[]), now);
        assert_eq!(without_new(now.clone(), &HistoryFiles::new(), &["flights".to_owned()]), now);
    }

    #[test]
    fn what_a_backfill_of_a_stretch_has_not_seen_whole_is_compared_by_the_next_refresh() {
        let restated = Restated {
            files: vec!["flights: a".to_owned(), "flights: lost".to_owned()],
            rows_before: 1,
            rows_now: None,
            rows_changed: None,
            late_events: 0,
        };
        let history = files(&[("a", "1"), ("b", "1"), ("c", "1"), ("gone", "1")]);
        let state = ViewLogState { history, restated: Some(restated), ..ViewLogState::default() };
        let read = files(&[("a", "1"), ("b", "1"), ("c", "2"), ("new", "1")]);
        let taken = ["flights".to_owned()];
        assert_eq!(settled(&read, &state, true, &[]), read);
        let mut found = changed(&settled(&read, &state, false, &[]), &read);
        found.sort();
        assert_eq!(found, ["a", "c", "gone", "lost", "new"].map(|path| format!("flights: {path}")));
        // A file that a refresh took in meanwhile is not new to the next.
        assert_eq!(changed(&settled(&read, &state, true, &taken), &read), ["flights: gone"]);
    }
}
