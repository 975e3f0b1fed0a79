//! Acknowledgements of pushes while object storage takes five seconds for every request, or answers none, against the same
//! house on a store that answers at once. Both follow their store and flush all the time.

use std::fmt;
use std::path::Path as Folder;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::object_storage::api::{
    CopyOptions, Error as StorageError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StorageResult,
};
use springhouse_featurestore::tier::open_store;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::security::Security;

use crate::house::{House, Memory};
use crate::load::{compare, note, say};
use crate::pushes::producers;

/// How long a slow store takes for each request.
const SLOW: Duration = Duration::from_secs(5);

const WHOLE: u8 = 0;
const SLOWED: u8 = 1;
const AWAY: u8 = 2;

/// A store that can be slow or away.
#[derive(Debug, Clone)]
struct FailingStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<AtomicU8>,
}

impl FailingStore {
    async fn answers(&self) -> StorageResult<()> {
        match self.state.load(Ordering::Relaxed) {
            SLOWED => {
                tokio::time::sleep(SLOW).await;
                Ok(())
            }
            AWAY => Err(StorageError::Generic { store: "away", source: "out of reach".into() }),
            _ => Ok(()),
        }
    }

    fn listed(
        &self,
        listed: BoxStream<'static, StorageResult<ObjectMeta>>,
    ) -> BoxStream<'static, StorageResult<ObjectMeta>> {
        let store = self.clone();
        futures::stream::once(async move { store.answers().await.map(|()| listed) }).try_flatten().boxed()
    }
}

impl fmt::Display for FailingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing store")
    }
}

#[async_trait]
impl ObjectStore for FailingStore {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> StorageResult<PutResult> {
        self.answers().await?;
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StorageResult<Box<dyn MultipartUpload>> {
        self.answers().await?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StorageResult<GetResult> {
        self.answers().await?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StorageResult<Path>>) -> BoxStream<'static, StorageResult<Path>> {
        let (store, inner) = (self.clone(), Arc::clone(&self.inner));
        let deleted = paths.and_then(move |path| {
            let store = store.clone();
            async move { store.answers().await.map(|()| path) }
        });
        inner.delete_stream(deleted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StorageResult<ObjectMeta>> {
        self.listed(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StorageResult<ObjectMeta>> {
        self.listed(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StorageResult<ListResult> {
        self.answers().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StorageResult<()> {
        self.answers().await?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Folder, to: &Folder) -> Result<()> {
    let copied = std::process::Command::new("cp").arg("-r").arg(from.join(".")).arg(to).status();
    match copied.map_err(|error| Error::unavailable("cp does not run").source(error))? {
        status if status.success() => Ok(()),
        status => {
            Err(Error::unavailable("a folder cannot be copied").with("folder", from.display()).with("cp", status))
        }
    }
}

/// Measures batches of 1 and 100 events.
pub async fn measure(house: &House) -> Result<()> {
    let (mut addresses, state) = (Vec::new(), Arc::new(AtomicU8::new(WHOLE)));
    for name in ["ill", "well"] {
        // Two takers of one store would take it from each other.
        let folder = house.folder.path().join(format!("{name}-store"));
        std::fs::create_dir(&folder).map_err(|error| Error::unavailable("no folder").source(error))?;
        copy_folder(&house.folder.path().join("store"), &folder)?;
        let mut store = open_store(&folder.to_string_lossy(), [])?;
        if name == "ill" {
            store = Arc::new(FailingStore { inner: store, state: Arc::clone(&state) });
        }
        let address = house.serve_on(&store, name, Memory::Warm, Security::open()).await?;
        addresses.push(address);
        tokio::spawn(flush_all_the_time(format!("http://{address}")));
    }
    for rows in [1, 100] {
        for (now, what) in [(SLOWED, "object storage takes 5 s for each request"), (AWAY, "object storage is away")] {
            let ours = producers(house, addresses[0], rows).await?;
            let peer = producers(house, addresses[1], rows).await?;
            state.store(now, Ordering::Relaxed);
            let (compared, latencies) = compare(ours, peer).await?;
            state.store(WHOLE, Ordering::Relaxed);
            say(&compared.row(
                &format!("push of {rows} events, acknowledged while {what}, peer: while it answers"),
                "batches/s",
                &latencies,
            ));
        }
    }
    Ok(())
}

/// Flushes each second for as long as the benchmark lives, whether or not it can be done.
async fn flush_all_the_time(address: String) {
    let mut waits = false;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let flushed = match RemoteFeatures::new(&address) {
            Ok(store) => store.act("flush", "").await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = &flushed
            && !waits
        {
            note(&format!("flushes wait for storage: {}", error.chain()));
        }
        waits = flushed.is_err();
    }
}
