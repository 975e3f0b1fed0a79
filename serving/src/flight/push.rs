//! `DoPut` with a push command: batches of events in, an acknowledgement for each, in order, once it is durable and
//! every view of the source shows it.
//!
//! A message's `app_metadata` may hold a [`PushHeader`] as JSON; a message without events but with a watermark is a
//! heartbeat. The answer's `app_metadata` is a [`springhouse_featurestore::push::PushAck`] as JSON.
//!
//! Producers that are faster than the disk wait: all of them together have room for so many bytes, and a stream whose next
//! batch does not fit is not read from, which HTTP/2's flow control tells its producer. One caller has at most half of the
//! room: its streams wait for each other while those of others go on. A batch has all of its room before it is decoded: its header
//! says what it takes then, and that was checked; what its dictionaries stand for is known only then, so it has room for as much as
//! that may be, and gives back what is too much. Until then its bytes as they were sent are part of what its caller may have on
//! its way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, PutResult};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use springhouse_featurestore::Error;
use springhouse_featurestore::push::{EventSink, PushHeader};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::bounds::{Bounds, MOST_PUSHED_ROWS, check_unpacked};
use super::command::Command;
use super::malformed;
use super::places::{Places, held};
use crate::security::{Caller, Scope};
use crate::shares::Share;
use crate::status::to_status;

/// An acknowledgement, or what went wrong.
type Answer = Result<PutResult, Status>;

/// Batches of one producer that are under way at once: they share synced writes.
const PIPELINED: usize = 64;

/// The most acknowledgements of a producer that wait to be read; those of all streams of a caller are counted too,
const MOST_UNREAD: usize = 64 << 10;

/// by so many: fewer than that of a stream are not.
const COUNTED_ACKS: usize = 1 << 10;

/// Bytes of batches that are under way at once, of all producers together.
const UNDER_WAY_BYTES: usize = 64 << 20;

/// Those of one caller, whoever it is: half, so that another finds room.
const OWN_BYTES: usize = UNDER_WAY_BYTES / 2;

/// The most bytes of a push header: a producer's name is kept with each of its words.
const MOST_METADATA_BYTES: usize = 4 << 10;

/// What a place in the room stands for.
const PLACE_BYTES: usize = 1 << 10;

/// Room for the batches that are under way.
#[derive(Debug, Clone)]
pub(super) struct Room {
    whole: Arc<Semaphore>,
    /// What of it each caller may have, while it has streams.
    own: Arc<Mutex<HashMap<Arc<str>, Weak<Semaphore>>>>,
}

impl Default for Room {
    fn default() -> Self {
        Self { whole: Arc::new(Semaphore::new(UNDER_WAY_BYTES / PLACE_BYTES)), own: Arc::default() }
    }
}

impl Room {
    /// The room of a caller's stream.
    fn of(&self, caller: &Caller) -> RoomOfOne {
        let own = caller.account().map(|name| {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
                own.retain(|_, semaphore| semaphore.strong_count() > 0);
                let new = Arc::new(Semaphore::new(OWN_BYTES / PLACE_BYTES));
                own.insert(Arc::clone(name), Arc::downgrade(&new));
                new
            })
        });
        RoomOfOne { whole: Arc::clone(&self.whole), own }
    }
}

/// Room for the batches of one caller.
#[derive(Debug, Clone)]
struct RoomOfOne {
    whole: Arc<Semaphore>,
    own: Option<Arc<Semaphore>>,
}

impl RoomOfOne {
    /// Waits for room for so many bytes; a batch larger than all of it has it alone. Its own is waited for first: in the line of
    /// all, no more of one caller stands than may be under way.
    async fn take(self, bytes: usize) -> Result<Taken, Status> {
        let places = |most: usize| u32::try_from(bytes.min(most) / PLACE_BYTES);
        let wrong = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let own = match self.own {
            None => None,
            Some(own) => {
                let places = places(OWN_BYTES).map_err(|error| wrong(&error))?;
                Some(own.acquire_many_owned(places).await.map_err(|error| wrong(&error))?)
            }
        };
        // A batch that is larger than its caller's share has no more of all than that.
        let most = if own.is_some() { OWN_BYTES } else { UNDER_WAY_BYTES };
        let places = places(most).map_err(|error| wrong(&error))?;
        let whole = self.whole.acquire_many_owned(places).await.map_err(|error| wrong(&error))?;
        Ok(Taken { bytes, own, whole })
    }
}

/// Room that is taken, until it is dropped.
#[derive(Debug)]
struct Taken {
    bytes: usize,
    own: Option<OwnedSemaphorePermit>,
    whole: OwnedSemaphorePermit,
}

impl Taken {
    /// Gives back what is more than so many bytes need.
    fn narrow(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
        for permit in self.own.iter_mut().chain([&mut self.whole]) {
            let more = permit.num_permits().saturating_sub(bytes / PLACE_BYTES);
            drop(permit.split(more));
        }
    }
}

/// The room of a batch that is being decoded.
#[derive(Debug)]
struct Decoded {
    /// What it takes whatever its dictionaries stand for.
    least: usize,
    taken: Taken,
}

/// Where a batch's room lies while it is decoded.
type TakenNext = Arc<Mutex<Option<Decoded>>>;

/// A stream's messages, each batch once there is room for what it is decoded to.
fn in_room(
    messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
    bounds: Bounds,
    room: RoomOfOne,
    next: TakenNext,
) -> impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static {
    let refused = |status: Status| FlightError::Tonic(Box::new(status));
    stream::try_unfold((messages.boxed(), bounds), move |(mut messages, mut bounds)| {
        let (room, next) = (room.clone(), Arc::clone(&next));
        async move {
            let Some(message) = messages.try_next().await? else { return Ok(None) };
            bounds.check(&message).map_err(|error| refused(to_status(error)))?;
            let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
            let decoded = bytes(bounds.decoded_bytes());
            if decoded > 0 {
                let least = decoded.max(message.data_body.len());
                let taken = room.take(least.max(bytes(bounds.unpacked_bytes()))).await.map_err(refused)?;
                *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Decoded { least, taken });
            }
            Ok(Some((message, (messages, bounds))))
        }
    })
}

/// What a producer sends.
struct Incoming {
    messages: FlightDataDecoder,
    sink: Arc<dyn EventSink>,
    source: String,
    schema: SchemaRef,
    /// The room of the batch that was decoded last.
    taken: TakenNext,
    caller: Caller,
}

impl Incoming {
    /// Submits the next batch, once there is room for it: one after another, since a batch that overtakes another makes that
    /// one a duplicate. After one that is refused none is taken.
    async fn submit(mut self) -> Result<Option<(BoxFuture<'static, Answer>, Self)>, Status> {
        while let Some(message) = self.messages.next().await {
            let message = message.map_err(|error| malformed("events", &error))?;
            let metadata = message.inner.app_metadata;
            let events = match message.payload {
                DecodedPayload::RecordBatch(batch) => batch,
                DecodedPayload::Schema(_) => continue,
                DecodedPayload::None if metadata.is_empty() => continue,
                DecodedPayload::None => RecordBatch::new_empty(Arc::clone(&self.schema)),
            };
            // A stream may stay open for longer than its caller is known.
            self.caller.require(Scope::Push).map_err(to_status)?;
            // What dictionaries stand for is beside what they and their keys are.
            let unpacked = usize::try_from(check_unpacked(&events)?).unwrap_or(usize::MAX);
            let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).take();
            let taken = taken.map(|Decoded { least, mut taken }| {
                taken.narrow(least.max(unpacked));
                taken
            });
            let (caller, header) = (self.caller.account().map(AsRef::as_ref), header(&metadata)?);
            let ack = self.sink.submit_by(caller, &self.source, events, header).await.map_err(to_status)?;
            let answer = async move {
                let ack = ack.await.map_err(to_status)?;
                drop(taken);
                let body = serde_json::to_vec(&ack).map_err(|error| Status::internal(error.to_string()))?;
                Ok(PutResult { app_metadata: body.into() })
            };
            return Ok(Some((answer.boxed(), self)));
        }
        Ok(None)
    }
}

/// The acknowledgements of a stream of pushes.
pub(super) async fn put(
    sink: Arc<dyn EventSink>,
    room: &Room,
    places: &Places,
    caller: Caller,
    mut incoming: Streaming<FlightData>,
) -> Result<BoxStream<'static, Answer>, Status> {
    let first = incoming.message().await?.ok_or_else(|| Status::invalid_argument("the put sent nothing"))?;
    let command = first.flight_descriptor.clone().unwrap_or_default().cmd;
    let command = Command::parse(&command).map_err(to_status)?;
    let Command::Push(push) = &command else {
        let error = Error::invalid("DoPut takes pushes").remedy(r#"send {"push": {"source": "name"}}"#);
        return Err(to_status(error));
    };
    caller.require(Scope::Push).map_err(to_status)?;
    let place = places.take(&caller, &command).map_err(to_status)?;
    let schema = sink.schema(&push.source).await.map_err(to_status)?;
    // Some clients send the descriptor alone, others with the schema.
    let opening = (!first.data_header.is_empty()).then_some(Ok(first));
    let messages = stream::iter(opening).chain(incoming.map_err(|status| FlightError::Tonic(Box::new(status))));
    let bounds = Bounds::new("events", MOST_PUSHED_ROWS).sharing(places.dictionaries(&caller));
    let unread = places.acks(&caller);
    let (room, taken) = (room.of(&caller), TakenNext::default());
    let messages = FlightDataDecoder::new(in_room(messages, bounds, room, Arc::clone(&taken)));
    let incoming = Incoming { messages, sink, source: push.source.clone(), schema, taken, caller };
    let answers = stream::try_unfold(incoming, Incoming::submit);
    let answers = answers.map(|submitted| async move { submitted?.await }).buffered(PIPELINED);
    let (told, acknowledgements) = mpsc::channel(MOST_UNREAD);
    tokio::spawn(take(held(answers.boxed(), place), told, unread));
    Ok(ReceiverStream::new(acknowledgements).boxed())
}

/// Takes pushes whether or not their acknowledgements are read: many producers send everything and listen then, and what
/// is under way has room that others wait for. What is not read is counted until it is, or until nobody listens.
async fn take(mut answers: BoxStream<'static, Answer>, told: mpsc::Sender<Answer>, mut counted: Share<Arc<str>>) {
    while let Some(answer) = answers.next().await {
        let unread = told.max_capacity() - told.capacity();
        let within_share = counted.resize(unread - unread % COUNTED_ACKS).is_ok();
        match told.try_send(answer) {
            Ok(()) if within_share => {}
            Err(TrySendError::Closed(_)) => return,
            Ok(()) | Err(TrySendError::Full(_)) => {
                drop(answers);
                let error = Error::busy("the acknowledgements of pushes are not read")
                    .with("unread", unread)
                    .remedy("read one for each batch, and send what has none again");
                // Whoever has gone meanwhile does not hear it.
                drop(told.send(Err(to_status(error))).await);
                break;
            }
        }
    }
    // All of it is free when all was read; nobody listens where it never is.
    drop(told.reserve_many(told.max_capacity()).await);
}

fn header(metadata: &[u8]) -> Result<PushHeader, Status> {
    if metadata.is_empty() {
        return Ok(PushHeader::default());
    }
    if metadata.len() > MOST_METADATA_BYTES {
        return Err(to_status(
            Error::invalid("a batch's metadata is longer than a push header may be")
                .with("bytes", metadata.len())
                .with("limit", MOST_METADATA_BYTES)
                .remedy("name producers shortly: their names are kept for ever"),
        ));
    }
    serde_json::from_slice(metadata).map_err(|error| {
        to_status(
            Error::invalid("a batch's metadata is not a push header")
                .with("given", String::from_utf8_lossy(&metadata[..metadata.len().min(200)]))
                .remedy(r#"send JSON such as {"producer": "p1", "sequence": 7, "watermark": "2013-12-01T05:00:00Z"}"#)
                .source(error),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::array::{ArrayRef, DictionaryArray, Int8Array, Int64Array, StringArray};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
    use arrow_flight::SchemaAsIpc;

    use super::*;
    use crate::shares::Shares;

    const LARGE: usize = 8 << 20;

    #[tokio::test]
    async fn a_caller_that_pushes_all_it_can_leaves_room_for_others() {
        let room = Room::default();
        let (ann, bob) = (Caller::named("ann"), Caller::named("bob"));
        let mut under_way = Vec::new();
        for _ in 0..OWN_BYTES / LARGE {
            under_way.push(room.of(&ann).take(LARGE).now_or_never().expect("less than half").expect("open"));
        }
        // As many streams as it likes: none of them gets in the way of others.
        let mut waiting: Vec<_> = (0..50).map(|_| Box::pin(room.of(&ann).take(LARGE))).collect();
        assert!(waiting.iter_mut().all(|stream| stream.now_or_never().is_none()), "they have half");
        let other = room.of(&bob).take(LARGE).now_or_never().expect("room is left").expect("open");
        drop(under_way.pop());
        drop(waiting[0].as_mut().now_or_never().expect("its turn").expect("open"));
        drop((other, under_way, waiting));
        // A batch of more than there is comes in alone, and whoever is not asked who they are have all of it.
        for (caller, bytes) in [(&ann, 1 << 30), (&Caller::anybody(), UNDER_WAY_BYTES), (&bob, LARGE)] {
            drop(room.of(caller).take(bytes).now_or_never().expect("all of it is free").expect("open"));
        }
        assert_eq!(room.own.lock().expect("no panic").len(), 1, "who has gone is not kept in mind");
    }

    /// A schema, and a batch of few bytes that becomes many.
    fn compressed(rows: usize) -> [FlightData; 2] {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7; rows]));
        let batch = RecordBatch::try_from_iter([("number", numbers)]).expect("one column");
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).expect("supported");
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let encoded = generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default());
        [SchemaAsIpc::new(batch.schema_ref(), &options).into(), encoded.expect("encodes").1.into()]
    }

    #[tokio::test]
    async fn a_batch_that_waits_for_room_is_not_decoded_yet() {
        let room = Room::default();
        let ann = Caller::named("ann");
        let messages = compressed(LARGE / 8);
        assert!(messages[1].data_body.len() < LARGE / 100, "it is small as it comes");
        let next = TakenNext::default();
        let sent = stream::iter(messages.into_iter().map(Ok));
        let within = in_room(sent, Bounds::new("events", MOST_PUSHED_ROWS), room.of(&ann), Arc::clone(&next));
        let mut within = Box::pin(within);
        let first = within.next().now_or_never().expect("a schema needs none").expect("one").expect("right");
        assert!(first.data_body.is_empty() && next.lock().expect("no panic").is_none());
        let all = room.of(&ann).take(OWN_BYTES).now_or_never().expect("free").expect("open");
        assert!(within.next().now_or_never().is_none(), "the batch takes more than it has bytes");
        drop(all);
        within.next().now_or_never().expect("room").expect("one").expect("right");
        let Decoded { least, taken } = next.lock().expect("no panic").take().expect("its room");
        assert!(least >= LARGE && taken.bytes == least, "{least} bytes of {}", taken.bytes);
    }

    #[tokio::test]
    async fn a_batch_has_room_for_all_that_its_dictionaries_may_stand_for_before_it_is_decoded() {
        let (room, ann) = (Room::default(), Caller::named("ann"));
        let texts = StringArray::from(vec!["x".repeat(1 << 20), "y".to_owned()]);
        let keys = Int8Array::from(vec![1; 64]);
        let column: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(texts)));
        let batch = RecordBatch::try_from_iter([("text", column)]).expect("one column");
        let options = IpcWriteOptions::default();
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let schema = generator.schema_to_bytes_with_dictionary_tracker(batch.schema_ref(), &mut tracker, &options);
        let schema = FlightData { data_header: schema.ipc_message.into(), ..FlightData::default() };
        let encoded = generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default());
        let (dictionaries, batch) = encoded.expect("encodes");
        let sent = [schema].into_iter().chain(dictionaries.into_iter().map(Into::into)).chain([batch.into()]);
        let next = TakenNext::default();
        let bounds = Bounds::new("events", MOST_PUSHED_ROWS);
        let mut within = Box::pin(in_room(stream::iter(sent.map(Ok)), bounds, room.of(&ann), Arc::clone(&next)));
        let other = room.of(&ann).take(LARGE).now_or_never().expect("free").expect("open");
        for _ in 0..2 {
            within.next().now_or_never().expect("a schema and a dictionary need none").expect("one").expect("right");
        }
        assert!(within.next().now_or_never().is_none(), "each of its texts may be the longest");
        drop(other);
        within.next().now_or_never().expect("room").expect("one").expect("right");
        let Decoded { least, mut taken } = next.lock().expect("no panic").take().expect("its room");
        assert!(least < PLACE_BYTES * 4 && taken.bytes >= OWN_BYTES, "{least} of {}", taken.bytes);
        room.of(&ann).take(PLACE_BYTES).now_or_never().map(|_| ()).ok_or(()).expect_err("it has all of it");
        // What it turned out not to need is others'.
        taken.narrow(least);
        room.of(&ann).take(OWN_BYTES - LARGE).now_or_never().expect("given back").map(|_| ()).expect("open");
    }

    #[tokio::test]
    async fn a_caller_that_reads_no_acknowledgements_has_half_of_those_that_may_wait() {
        let shares = Shares::halves(4 * COUNTED_ACKS);
        let push = |caller: &str, batches: usize| {
            let answers = stream::iter((0..batches).map(|_| Ok(PutResult::default()))).boxed();
            let (told, heard) = mpsc::channel(MOST_UNREAD);
            (tokio::spawn(take(answers, told, shares.nothing(Some(&caller.into())))), heard)
        };
        let settle = || tokio::time::sleep(Duration::from_millis(50));
        let (taking, mut heard) = push("ann", 2 * COUNTED_ACKS + 1);
        settle().await;
        assert!(!taking.is_finished(), "they count until they are read");
        let read = async |heard: &mut mpsc::Receiver<Answer>| {
            let (mut acks, mut refused) = (0, None);
            while let Some(answer) = heard.recv().await {
                answer.map_or_else(|status| refused = Some(status.code()), |_| acks += 1);
            }
            (acks, refused)
        };
        let (_, mut second) = push("ann", 2 * COUNTED_ACKS);
        let (_, mut other) = push("bob", 2 * COUNTED_ACKS);
        settle().await;
        assert_eq!(read(&mut second).await, (COUNTED_ACKS + 1, Some(tonic::Code::ResourceExhausted)));
        assert_eq!(read(&mut other).await, (2 * COUNTED_ACKS, None), "the rest is for others");
        assert_eq!(read(&mut heard).await, (2 * COUNTED_ACKS + 1, None));
        taking.await.expect("no panic");
        let (_, mut again) = push("ann", 2 * COUNTED_ACKS);
        settle().await;
        assert_eq!(read(&mut again).await, (2 * COUNTED_ACKS, None), "given back");
    }
}
