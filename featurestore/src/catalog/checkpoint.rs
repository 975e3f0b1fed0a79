//! Checkpoints: what a log's records add up to, written now and then, so that reading it costs what came since.
//!
//! ```text
//! views/airport_weather/3f2a9c1d0b4e/state/000000000128.json     as records lie in a log
//! ```
//!
//! The log alone is the truth. A checkpoint that is missing or damaged costs time and nothing else.

use std::marker::PhantomData;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::log::{from_checked, number_of, to_checked};
use crate::Result;

/// After so many records there is another.
const EVERY: u64 = 64;

/// The checkpoints of a log.
#[derive(Debug)]
pub struct Checkpoints<S> {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    states: PhantomData<fn() -> S>,
}

impl<S> Clone for Checkpoints<S> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), prefix: self.prefix.clone(), states: PhantomData }
    }
}

impl<S: Serialize + DeserializeOwned> Checkpoints<S> {
    /// Those below `prefix`.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix, states: PhantomData }
    }

    /// The newest that can be read.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the store fails.
    pub async fn newest(&self) -> Result<Option<S>> {
        let listed = self.store.list(Some(&self.prefix));
        let mut numbers: Vec<u64> =
            listed.try_filter_map(async |object| Ok(number_of(&object.location))).try_collect().await?;
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            let path = self.path(number);
            match self.store.get(&path).await {
                Ok(object) => match from_checked(&object.bytes().await?) {
                    Ok(state) => return Ok(Some(state)),
                    Err(error) => tracing::warn!(%path, error = %error.chain(), "a checkpoint is passed over"),
                },
                // Another writer has written a newer one since, and removed it.
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Writes the state after the record `number` if it is time for a checkpoint, and removes the one before the last.
    pub async fn write(&self, number: u64, state: &S) {
        if number.is_multiple_of(EVERY)
            && let Err(error) = self.replace(number, state).await
        {
            tracing::warn!(path = %self.path(number), error = %error.chain(), "a checkpoint cannot be written");
        }
    }

    async fn replace(&self, number: u64, state: &S) -> Result<()> {
        self.store.put(&self.path(number), to_checked(state)?.into()).await?;
        let Some(old) = number.checked_sub(2 * EVERY).filter(|old| *old > 0) else { return Ok(()) };
        match self.store.delete(&self.path(old)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn path(&self, number: u64) -> Path {
        self.prefix.clone().join(format!("{number:012}.json"))
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn the_newest_that_can_be_read_counts_and_old_ones_go() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let checkpoints: Checkpoints<u64> = Checkpoints::new(Arc::clone(&store), Path::from("state"));
        assert_eq!(checkpoints.newest().await.expect("readable"), None);
        for number in 1..=5 * EVERY {
            checkpoints.write(number, &number).await;
        }
        let left: Vec<_> = store.list(None).try_collect().await.expect("readable");
        assert_eq!(left.len(), 2);
        assert_eq!(checkpoints.newest().await.expect("readable"), Some(5 * EVERY));
        store.put(&checkpoints.path(5 * EVERY), "{}".into()).await.expect("writable");
        assert_eq!(checkpoints.newest().await.expect("readable"), Some(4 * EVERY));
        store.put(&checkpoints.path(4 * EVERY), "{}\n{}".into()).await.expect("writable");
        assert_eq!(checkpoints.newest().await.expect("readable"), None);
    }
}
