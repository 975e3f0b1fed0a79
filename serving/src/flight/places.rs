//! How many streams and queries there may be at once, of all callers and of one: nobody takes all places while others wait.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use springhouse_featurestore::Result;

use super::command::Command;
use crate::security::Caller;
use crate::shares::{Share, Shares};

/// The most exchanges of lookups that are open at once. A worker has one for each contract, or two.
const MOST_LOOKUPS: usize = 4096;

/// The most streams of pushes that are open at once. Each may hold a batch that waits for room.
const MOST_PUSHES: usize = 1024;

/// The most packages that are sent at once: each lies in memory meanwhile. Workers load one for each contract that they serve,
/// and try again a second later.
const MOST_PACKAGES: usize = 16;

/// Bytes of the spines that have come as batches, of all training sets that are being made: they lie on disk until their set
/// has been read. A caller's half is the most that one may have.
const SPINE_BYTES: usize = 8 << 30;

/// Bytes of the dictionaries of all streams that are open.
const DICTIONARY_BYTES: usize = 256 << 20;

/// Acknowledgements of pushes that are not read, of all streams: some hundred megabytes.
const MOST_UNREAD_ACKS: usize = 1 << 20;

/// A place, for as long as it lives.
pub(super) type Place = Share<Arc<str>>;

/// The places of a server.
#[derive(Debug, Clone)]
pub(super) struct Places {
    lookups: Arc<Shares<Arc<str>>>,
    pushes: Arc<Shares<Arc<str>>>,
    queries: Arc<Shares<Arc<str>>>,
    packages: Arc<Shares<Arc<str>>>,
    spines: Arc<Shares<Arc<str>>>,
    dictionaries: Arc<Shares<Arc<str>>>,
    acks: Arc<Shares<Arc<str>>>,
}

impl Places {
    /// Those of a server that makes so many training sets at once. That there are no more, who makes them says.
    pub(super) fn new(queries: usize) -> Self {
        Self {
            lookups: Shares::halves(MOST_LOOKUPS),
            pushes: Shares::halves(MOST_PUSHES),
            queries: Shares::new(usize::MAX, queries.div_ceil(2)),
            packages: Shares::halves(MOST_PACKAGES),
            spines: Shares::halves(SPINE_BYTES),
            dictionaries: Shares::halves(DICTIONARY_BYTES),
            acks: Shares::halves(MOST_UNREAD_ACKS),
        }
    }

    /// What a stream's acknowledgements that are not read are taken from; none are yet.
    pub(super) fn acks(&self, caller: &Caller) -> Share<Arc<str>> {
        self.acks.nothing(caller.account())
    }

    /// What a stream's dictionaries are taken from; none are yet.
    pub(super) fn dictionaries(&self, caller: &Caller) -> Share<Arc<str>> {
        self.dictionaries.nothing(caller.account())
    }

    /// What a spine is taken from, as it comes; nothing yet.
    pub(super) fn spine(&self, caller: &Caller) -> Share<Arc<str>> {
        self.spines.nothing(caller.account())
    }

    /// A place for what a command asks.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] names the caller that has its share, or says that all are taken.
    pub(super) fn take(&self, caller: &Caller, command: &Command) -> Result<Option<Place>> {
        let (places, what) = match command {
            Command::Lookup(_) => (&self.lookups, "exchanges of lookups"),
            Command::Push(_) => (&self.pushes, "streams of pushes"),
            Command::TrainingSet(_) => (&self.queries, "training sets that are being made"),
            Command::Package(_) => (&self.packages, "packages that are being sent"),
        };
        let taken = places.take(caller.account(), 1);
        taken.map(Some).map_err(|full| full.error(what, caller.account().map(AsRef::as_ref)))
    }
}

/// A stream that holds a place until it ends.
pub(super) fn held<T: Send + 'static>(stream: BoxStream<'static, T>, place: Option<Place>) -> BoxStream<'static, T> {
    let Some(place) = place else { return stream };
    stream
        .map(move |item| {
            // Moved in, and given back with the stream.
            let _held = &place;
            item
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::stream;

    use super::*;

    #[test]
    fn a_caller_has_half_of_the_places_and_others_have_the_rest() {
        let places = Places::new(8);
        let command = Command::lookup("fraud");
        let (ann, bob) = (Caller::named("ann"), Caller::named("bob"));
        let open = |caller: &Caller| {
            let place = places.take(caller, &command)?;
            Ok::<_, springhouse_featurestore::Error>(held(stream::pending::<u8>().boxed(), place))
        };
        let mut streams: Vec<_> = (0..MOST_LOOKUPS / 2).map(|_| open(&ann).expect("less than half")).collect();
        let error = open(&ann).map(|_| ()).expect_err("more than half");
        assert_eq!(error.kind(), springhouse_featurestore::ErrorKind::Busy);
        assert!(error.to_string().contains("caller: ann") && error.to_string().contains("lookups"), "{error}");
        let others = open(&bob).expect("the rest is for others");
        assert!(streams[0].next().now_or_never().is_none(), "it holds its place while it waits");
        streams.pop();
        streams.push(open(&ann).expect("given back with the stream"));
        drop((streams, others));
        // Who is not asked who they are have all of them.
        let anybody = Caller::anybody();
        let all: Vec<_> = (0..MOST_LOOKUPS).map(|_| open(&anybody).expect("all of them")).collect();
        let error = open(&ann).map(|_| ()).expect_err("all are taken");
        assert!(error.to_string().contains("as many exchanges of lookups"), "{error}");
        drop(all);
    }

    #[test]
    fn a_package_that_is_not_read_holds_a_place() {
        let places = Places::new(8);
        let package = Command::Package("sha256:0".to_owned());
        let (ann, bob) = (Caller::named("ann"), Caller::named("bob"));
        let open = |caller: &Caller| {
            Ok::<_, springhouse_featurestore::Error>(held(
                stream::pending::<u8>().boxed(),
                places.take(caller, &package)?,
            ))
        };
        let unread: Vec<_> = (0..MOST_PACKAGES / 2).map(|_| open(&ann).expect("less than half")).collect();
        let error = open(&ann).map(|_| ()).expect_err("more than half");
        assert!(error.to_string().contains("packages that are being sent"), "{error}");
        open(&bob).map(|_| ()).expect("the rest is for others");
        drop(unread);
        open(&ann).map(|_| ()).expect("given back");
    }
}
