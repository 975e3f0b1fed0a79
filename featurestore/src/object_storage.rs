//! Object storage as everything here uses it: a folder that survives a power cut, and puts whose outcome is known.
//!
//! A store may act and then answer an error: a time-out after the fact, or a retry that meets its own first attempt. What
//! came of such a put is found out in one place, [`put_once`], for every commit of every log.

mod cut_off;
mod folder;
mod open;

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

pub use cut_off::CutOffFile;
pub use folder::{DurableFolder, create_folder};
pub use open::{folder_of, open_store};

use crate::Error;
use crate::time::Timestamp;

/// What stores for tests are made of.
#[cfg(feature = "test-util")]
pub mod api {
    pub use object_store::*;
}

/// Why an object was not written.
#[derive(Debug)]
pub enum NotPut {
    /// Another object is there.
    Taken(Error),
    /// The store failed; the object may be there later all the same, or never.
    Failed(Error),
}

/// Writes an object that must not be there yet, and finds out what came of it: an object of the same bytes is this put,
/// whatever the store answered. Bytes that two writers could both write without meaning the same must name their writer.
///
/// # Errors
/// [`NotPut`] says which of the two it was.
pub async fn put_once(store: &Arc<dyn ObjectStore>, path: &Path, bytes: Bytes) -> Result<(), NotPut> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let Err(error) = store.put_opts(path, PutPayload::from(bytes.clone()), options).await else { return Ok(()) };
    let taken = matches!(error, object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. });
    let held = match store.get(path).await {
        Ok(object) => object.bytes().await,
        Err(error) => Err(error),
    };
    match held {
        Ok(held) if held == bytes => {
            tracing::warn!(%path, error = %error, "a put succeeded although the store answered an error");
            Ok(())
        }
        Ok(_) => Err(NotPut::Taken(error.into())),
        Err(_) if taken => Err(NotPut::Taken(error.into())),
        Err(_) => Err(NotPut::Failed(error.into())),
    }
}

/// When an object was written, by the store's own clock.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] or [`crate::ErrorKind::Unavailable`].
pub async fn written_at(store: &Arc<dyn ObjectStore>, path: &Path) -> crate::Result<Timestamp> {
    Ok(Timestamp::from_micros(store.head(path).await?.last_modified.timestamp_micros()))
}

#[cfg(test)]
mod tests;
