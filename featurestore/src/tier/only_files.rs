//! An object store that lists some of its files alone: a query over a folder reads those, whatever has come or comes beside them.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// A store whose listings hold only files of these paths. What is asked for by its path is there as before.
#[derive(Debug, Clone)]
pub struct OnlyFiles {
    inner: Arc<dyn ObjectStore>,
    paths: Arc<HashSet<String>>,
}

impl OnlyFiles {
    /// The files of `inner` with these paths.
    pub fn new(inner: Arc<dyn ObjectStore>, paths: Arc<HashSet<String>>) -> Self {
        Self { inner, paths }
    }
}

impl fmt::Display for OnlyFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files of {}", self.paths.len(), self.inner)
    }
}

#[async_trait]
impl ObjectStore for OnlyFiles {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let paths = Arc::clone(&self.paths);
        let shown = move |file: &ObjectMeta| std::future::ready(paths.contains(file.location.as_ref()));
        self.inner.list(prefix).try_filter(shown).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects.retain(|file| self.paths.contains(file.location.as_ref()));
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn files_that_came_later_are_not_listed_and_can_be_read_by_their_paths() {
        let all: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        for path in ["days/1.parquet", "days/2.parquet"] {
            all.put(&Path::from(path), Bytes::from_static(b"rows").into()).await.expect("writable");
        }
        let some = OnlyFiles::new(Arc::clone(&all), Arc::new(HashSet::from(["days/1.parquet".to_owned()])));
        let days = Path::from("days");
        let listed: Vec<ObjectMeta> = some.list(Some(&days)).try_collect().await.expect("listable");
        assert_eq!(listed.iter().map(|file| file.location.as_ref()).collect::<Vec<_>>(), ["days/1.parquet"]);
        assert_eq!(some.list_with_delimiter(Some(&days)).await.expect("listable").objects, listed);
        assert_eq!(some.head(&Path::from("days/2.parquet")).await.expect("there").size, 4);
    }
}
