//! Object storage at its worst, one fault at a time and when it is asked for: it dies, it acts and then answers an error, it
//! acts later than it answers, or it stops in the middle of what somebody does until others have done something else.
//!
//! Which call or change it is comes from whoever asks, so that the same seed has the same faults.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use springhouse_featurestore::object_storage::api::path::Path;
use springhouse_featurestore::object_storage::api::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Notify;

/// What is to happen. Numbers count from 0: 0 is the next one.
#[derive(Debug, Default)]
struct Plan {
    /// After so many calls none is answered any more.
    dies_after: Option<u64>,
    /// The call that waits until somebody says go on.
    stops_at: Option<u64>,
    /// The change that is made, and answered with an error.
    ambiguous: Option<u64>,
    /// The put that is answered with an error, and made when somebody lets it arrive.
    late: Option<u64>,
    /// Those that are still on their way.
    on_their_way: Vec<(Path, PutPayload, PutOptions)>,
}

/// A store with faults before another.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: Mutex<Plan>,
    requests: AtomicU64,
    stopped: Notify,
    going_on: Notify,
}

/// Counts down; says whether it is this one.
fn is_due(count: &mut Option<u64>) -> bool {
    match count {
        Some(0) => {
            *count = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

/// What a client says when it has waited for long: the request may have been carried out, or not, or it may be yet.
fn timed_out() -> Error {
    Error::Generic { store: "faulty", source: "no answer in time".into() }
}

impl FaultyStore {
    /// No faults until they are asked for.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        let (plan, requests, stopped, going_on) = Default::default();
        Arc::new(Self { inner, plan, requests, stopped, going_on })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it was asked for something since this was asked last; a list counts as one.
    pub fn requests(&self) -> u64 {
        self.requests.swap(0, Ordering::Relaxed)
    }

    /// It dies after some calls.
    pub fn dies_after(&self, calls: u64) {
        self.plan().dies_after = Some(calls);
    }

    /// A change is made, and whoever asked for it hears an error.
    pub fn acts_and_fails(&self, change: u64) {
        self.plan().ambiguous = Some(change);
    }

    /// A put is answered with an error, and made only when it arrives.
    pub fn is_late(&self, put: u64) {
        self.plan().late = Some(put);
    }

    /// A call waits, and with it whoever makes it.
    pub fn stops_at(&self, call: u64) {
        self.plan().stops_at = Some(call);
    }

    /// Ends when a call has come to where it waits.
    pub async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// Lets the call that waits go on.
    pub fn goes_on(&self) {
        self.going_on.notify_one();
    }

    /// There are no faults any more; what is on its way stays so.
    pub fn is_whole(&self) {
        let mut plan = self.plan();
        *plan = Plan { on_their_way: std::mem::take(&mut plan.on_their_way), ..Plan::default() };
    }

    /// What was on its way is carried out now, as it was asked for then. Nobody hears how it went. Says how much it was.
    pub async fn arrives(&self) -> usize {
        let puts = std::mem::take(&mut self.plan().on_their_way);
        let count = puts.len();
        for (path, bytes, options) in puts {
            drop(self.inner.put_opts(&path, bytes, options).await);
        }
        count
    }

    fn is_dead(&self) -> bool {
        self.plan().dies_after == Some(0)
    }

    /// What happens before a call.
    async fn call(&self) -> Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let stops = {
            let mut plan = self.plan();
            match &mut plan.dies_after {
                Some(0) => return Err(Error::Generic { store: "faulty", source: "out of reach".into() }),
                Some(left) => *left -= 1,
                None => {}
            }
            is_due(&mut plan.stops_at)
        };
        if stops {
            self.stopped.notify_one();
            self.going_on.notified().await;
        }
        Ok(())
    }

    /// What is answered after a change.
    fn answer<T>(&self, done: Result<T>) -> Result<T> {
        if is_due(&mut self.plan().ambiguous) { Err(timed_out()) } else { done }
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty store")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.call().await?;
        {
            let mut plan = self.plan();
            if is_due(&mut plan.late) {
                plan.on_their_way.push((path.clone(), bytes, options));
                return Err(timed_out());
            }
        }
        let done = self.inner.put_opts(path, bytes, options).await;
        self.answer(done)
    }

    // What is uploaded in parts is more than a test writes: it has no faults but those of every call.
    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.call().await?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.call().await?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let deleted = self.inner.delete_stream(paths);
        if is_due(&mut self.plan().ambiguous) {
            return deleted.map(|path| path.and_then(|_| Err(timed_out()))).boxed();
        }
        deleted
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.is_dead() {
            return futures::stream::once(async { Err(timed_out()) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.call().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.call().await?;
        let done = self.inner.copy_opts(from, to, options).await;
        self.answer(done)
    }
}

#[tokio::test]
async fn a_faulty_store_does_what_it_is_asked_for_and_nothing_else() {
    use springhouse_featurestore::object_storage::api::ObjectStoreExt;
    use springhouse_featurestore::object_storage::api::memory::InMemory;

    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let path = Path::from("here");
    let read = async || {
        let found = store.get(&path).await.ok()?;
        Some(String::from_utf8_lossy(&found.bytes().await.expect("whole")).into_owned())
    };
    store.acts_and_fails(1);
    store.put(&path, "first".into()).await.expect("the next one is not due");
    store.put(&path, "second".into()).await.expect_err("no answer");
    assert_eq!(read().await.as_deref(), Some("second"), "it was made all the same");
    store.is_late(0);
    store.put(&path, "third".into()).await.expect_err("no answer");
    store.put(&path, "fourth".into()).await.expect("the next one");
    assert_eq!(read().await.as_deref(), Some("fourth"));
    assert_eq!((store.arrives().await, store.arrives().await), (1, 0));
    assert_eq!(read().await.as_deref(), Some("third"), "it came after the later one");
    store.stops_at(0);
    let (found, ()) = tokio::join!(read(), async {
        store.stopped().await;
        store.put(&path, "fifth".into()).await.expect("others go on");
        store.goes_on();
    });
    assert_eq!(found.as_deref(), Some("fifth"));
    store.dies_after(1);
    assert_eq!((read().await.is_some(), read().await.is_some()), (true, false));
    store.is_whole();
    assert!(read().await.is_some());
}
