//! Puts whose outcome is known, and a folder that keeps the contract of an object store.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutResult, Result as StoreResult,
};

use super::*;

/// A store that writes, and then answers that it timed out.
#[derive(Debug, Default)]
struct ActsThenFails {
    inner: InMemory,
    failing: AtomicBool,
}

impl fmt::Display for ActsThenFails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ActsThenFails")
    }
}

#[async_trait]
impl ObjectStore for ActsThenFails {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        let done = self.inner.put_opts(location, payload, options).await?;
        if self.failing.load(Ordering::SeqCst) {
            return Err(StoreError::Generic { store: "test", source: "timed out".into() });
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_put_that_succeeded_and_answered_an_error_has_succeeded() {
    let failing = Arc::new(ActsThenFails::default());
    let store: Arc<dyn ObjectStore> = failing.clone();
    failing.failing.store(true, Ordering::SeqCst);
    let path = Path::from("log/1");
    put_once(&store, &path, "ours".into()).await.expect("it is there");
    // Sent again, as a client does that tries again by itself.
    put_once(&store, &path, "ours".into()).await.expect("it is there");
    let taken = put_once(&store, &path, "theirs".into()).await.expect_err("taken");
    assert!(matches!(taken, NotPut::Taken(_)), "{taken:?}");
}

async fn listed(store: &dyn ObjectStore) -> Vec<String> {
    let mut names: Vec<String> =
        store.list(None).map_ok(|object| object.location.to_string()).try_collect().await.expect("readable");
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_writes_whole_objects_and_never_replaces_what_must_not_be_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = DurableFolder::new(folder.path()).expect("there");
    let (path, other) = (Path::from("a/b/one"), Path::from("a/two"));
    let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(&path, "1".into(), create()).await.expect("written");
    let error = store.put_opts(&path, "2".into(), create()).await.expect_err("there");
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    store.put(&path, "3".into()).await.expect("replaced");
    let mut upload = store.put_multipart(&other).await.expect("begun");
    let parts = ["ab", "", "cdef"].map(|part| upload.put_part(part.into()));
    futures::future::try_join_all(parts).await.expect("written");
    assert_eq!(listed(&store).await, ["a/b/one"]);
    upload.complete().await.expect("completed");
    let mut given_up = store.put_multipart(&Path::from("a/three")).await.expect("begun");
    given_up.put_part("x".into()).await.expect("written");
    drop(given_up);
    assert_eq!(listed(&store).await, ["a/b/one", "a/two"]);
    assert_eq!(std::fs::read_dir(folder.path().join("a")).expect("readable").count(), 2);
    for (path, bytes) in [(path, "3"), (other, "abcdef")] {
        assert_eq!(store.get(&path).await.expect("there").bytes().await.expect("readable"), bytes);
    }
}
