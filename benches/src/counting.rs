//! An object store in memory that counts requests and bytes, as one that is paid by the request would.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use springhouse_featurestore::object_storage::api::memory::InMemory;
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::object_storage::api::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Objects in one page of a list.
const PAGE: u64 = 1_000;

/// About what a list says of an object beside its path.
const LISTED_BYTES: u64 = 250;

/// What was counted.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// The store.
#[derive(Debug, Default, Clone)]
pub struct CountingStore {
    inner: Arc<InMemory>,
    counts: Arc<Counts>,
}

impl CountingStore {
    /// Requests and bytes since the last call.
    pub fn take(&self) -> (u64, u64) {
        (self.counts.requests.swap(0, Ordering::Relaxed), self.counts.bytes.swap(0, Ordering::Relaxed))
    }

    fn count(&self, bytes: u64) {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn counted(&self, listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count(0);
        let counts = Arc::clone(&self.counts);
        let counted = listed.enumerate().map(move |(index, object)| {
            let index = index as u64;
            counts.requests.fetch_add(u64::from(index > 0 && index.is_multiple_of(PAGE)), Ordering::Relaxed);
            let path = object.as_ref().map_or(0, |object| object.location.as_ref().len() as u64);
            counts.bytes.fetch_add(path + LISTED_BYTES, Ordering::Relaxed);
            object
        });
        counted.boxed()
    }
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting store")
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.count(bytes.content_length() as u64);
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.count(0);
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let found = self.inner.get_opts(path, options).await;
        self.count(found.as_ref().map_or(0, |found| found.range.end - found.range.start));
        found
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let counts = Arc::clone(&self.counts);
        let counted = paths.inspect(move |_| {
            counts.requests.fetch_add(1, Ordering::Relaxed);
        });
        self.inner.delete_stream(counted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counted(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counted(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.count(0);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.count(0);
        self.inner.copy_opts(from, to, options).await
    }
}
