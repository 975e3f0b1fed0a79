//! Heads: which logs have changed, for who follows many of them.
//!
//! ```text
//! heads/catalog                                  the number of the catalog's newest commit, as text
//! heads/views/airport_weather/3f2a9c1d0b4e       the same of a view version
//! ```
//!
//! Whoever commits writes the log's head afterwards; whoever follows lists the heads, which is one request for a thousand logs,
//! and reads the logs whose heads are others than before. So following costs the same whether ten views are followed or
//! a thousand, and a quiet store costs one request a look.
//!
//! A head is advice, and nobody takes its number for the newest: it is overwritten without a condition, by the slower of two
//! writers too, and a process that dies after its commit does not write it. It is never ahead of its log: a log that ends before
//! its head has lost records. Therefore every look also reads one log whose head has not
//! changed, each in its turn: a head that was lost costs a delay of as many looks as there are logs, and nothing else. A
//! follower reads the heads before the logs: what is committed between is seen in the log or in the next look's heads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::Result;
use crate::definition::Pinned;

/// The folder of all heads.
const FOLDER: &str = "heads";

/// The head of the catalog.
const CATALOG: &str = "heads/catalog";

/// The path of a view's head.
fn of_view(view: &Pinned) -> Path {
    Path::from_iter([FOLDER, "views", &view.name, view.version.as_str()])
}

/// One log's head.
#[derive(Debug, Clone)]
pub struct Head {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl Head {
    /// The catalog's.
    pub fn of_catalog(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, path: Path::from(CATALOG) }
    }

    /// A view's.
    pub fn of_view(store: Arc<dyn ObjectStore>, view: &Pinned) -> Self {
        Self { store, path: of_view(view) }
    }

    /// The number of a commit that the log has, or had: nobody tells of one before it is there. It may have more.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn told(&self) -> Result<Option<u64>> {
        match self.store.get(&self.path).await {
            Ok(object) => {
                Ok(std::str::from_utf8(&object.bytes().await?).ok().and_then(|text| text.trim().parse().ok()))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells that the log has a new commit. Where that fails, who follows finds it later.
    pub async fn tell(&self, number: u64) {
        if let Err(error) = self.store.put(&self.path, number.to_string().into()).await {
            tracing::warn!(path = %self.path, %error, "a head cannot be written; the commit is seen later");
        }
    }
}

/// The heads of a store at one moment.
#[derive(Debug, Clone, Default)]
pub struct Heads(HashMap<Path, String>);

impl Heads {
    /// As they are now.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn now(store: &Arc<dyn ObjectStore>) -> Result<Self> {
        let listed = store.list(Some(&Path::from(FOLDER)));
        Ok(Self(listed.map_ok(|object| (object.location.clone(), state_of(&object))).try_collect().await?))
    }
}

impl Heads {
    /// Removes the heads of views other than these: nobody follows them any more.
    ///
    /// # Errors
    /// As [`Self::now`].
    pub async fn keep(store: &Arc<dyn ObjectStore>, views: &[Pinned]) -> Result<()> {
        let kept: HashSet<Path> = views.iter().map(of_view).chain([Path::from(CATALOG)]).collect();
        for path in Self::now(store).await?.0.into_keys().filter(|path| !kept.contains(path)) {
            match store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What changes whenever an object is written.
fn state_of(object: &ObjectMeta) -> String {
    object.e_tag.clone().unwrap_or_else(|| format!("{} {}", object.last_modified.to_rfc3339(), object.size))
}

/// What a follower has seen of heads.
#[derive(Debug, Default)]
pub struct HeadsSeen {
    /// The head with which each log was read last; none where it had none.
    read: HashMap<Path, Option<String>>,
    turn: usize,
}

/// The logs that one look reads.
#[derive(Debug)]
pub struct Look {
    heads: Heads,
    /// A log that is read whatever its head says.
    in_turn: Option<Path>,
}

impl HeadsSeen {
    /// Begins a look at the catalog and these views.
    pub fn look(&mut self, heads: Heads, views: &[Pinned]) -> Look {
        self.turn = self.turn.wrapping_add(1) % (views.len() + 1);
        let in_turn = views.get(self.turn).map_or_else(|| Path::from(CATALOG), of_view);
        Look { heads, in_turn: Some(in_turn) }
    }

    /// Whether the catalog is to be read.
    pub fn catalog_is_due(&self, look: &Look) -> bool {
        self.is_due(look, &Path::from(CATALOG))
    }

    /// Whether a view's log is to be read.
    pub fn view_is_due(&self, look: &Look, view: &Pinned) -> bool {
        self.is_due(look, &of_view(view))
    }

    /// Notes that the catalog was read.
    pub fn catalog_was_read(&mut self, look: &Look) {
        self.was_read(look, Path::from(CATALOG));
    }

    /// Notes that a view's log was read, and what is new in it is loaded.
    pub fn view_was_read(&mut self, look: &Look, view: &Pinned) {
        self.was_read(look, of_view(view));
    }

    fn is_due(&self, look: &Look, path: &Path) -> bool {
        look.in_turn.as_ref() == Some(path) || self.read.get(path).map(Option::as_ref) != Some(look.heads.0.get(path))
    }

    fn was_read(&mut self, look: &Look, path: Path) {
        let head = look.heads.0.get(&path).cloned();
        self.read.insert(path, head);
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn a_look_reads_what_changed_and_one_more_in_turn() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let views: Vec<Pinned> = (0..9).map(|number| conformance::view(&format!("v{number}"))).collect();
        let mut seen = HeadsSeen::default();
        let read = async |seen: &mut HeadsSeen| {
            let look = seen.look(Heads::now(&store).await.expect("lists"), &views);
            let mut read = Vec::new();
            if seen.catalog_is_due(&look) {
                seen.catalog_was_read(&look);
                read.push("catalog".to_owned());
            }
            for view in views.iter().filter(|view| seen.view_is_due(&look, view)).collect::<Vec<_>>() {
                seen.view_was_read(&look, view);
                read.push(view.name.clone());
            }
            read
        };
        assert_eq!(read(&mut seen).await.len(), 10, "the first look reads all");
        let mut in_turn = Vec::new();
        for _ in 0..10 {
            let read = read(&mut seen).await;
            assert_eq!(read.len(), 1);
            in_turn.extend(read);
        }
        in_turn.sort();
        in_turn.dedup();
        assert_eq!(in_turn.len(), 10, "after as many looks as there are logs each was read: {in_turn:?}");
        Head::of_view(Arc::clone(&store), &views[4]).tell(1).await;
        Head::of_catalog(Arc::clone(&store)).tell(1).await;
        let changed = read(&mut seen).await;
        assert!(changed.contains(&"catalog".to_owned()) && changed.contains(&"v4".to_owned()), "{changed:?}");
        // The same number again is another head: the store tells that it was written.
        Head::of_view(Arc::clone(&store), &views[4]).tell(1).await;
        assert!(read(&mut seen).await.contains(&"v4".to_owned()));
        assert_eq!(read(&mut seen).await.len(), 1);
    }
}
