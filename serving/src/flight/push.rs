//! `DoPut` with a push command: batches of events in, an acknowledgement for each, in order, once it is durable and
//! every view of the source shows it.
//!
//! A message's `app_metadata` may hold a [`PushHeader`] as JSON; a message without events but with a watermark is a
//! heartbeat. The answer's `app_metadata` is a [`springhouse_featurestore::push::PushAck`] as JSON.
//!
//! Producers that are faster than the disk wait: all of them together have room for so many bytes, and a stream whose next
//! batch does not fit is not read from, which HTTP/2's flow control tells its producer.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_flight::decode::{DecodedFlightData, DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, PutResult};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::Error;
use springhouse_featurestore::push::{EventSink, PushHeader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

use super::command::Command;
use super::malformed;
use crate::status::to_status;

/// Batches of one producer that are under way at once: they share synced writes.
const PIPELINED: usize = 64;

/// Bytes of batches that are under way at once, of all producers together.
const UNDER_WAY_BYTES: usize = 64 << 20;

/// What a place in the room stands for.
const PLACE_BYTES: usize = 1 << 10;

/// Room for the batches that are under way.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UNDER_WAY_BYTES / PLACE_BYTES)))
    }
}

impl Room {
    /// Waits for room for so many bytes; a batch larger than all of it has it alone.
    async fn take(self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let places = bytes.min(UNDER_WAY_BYTES) / PLACE_BYTES;
        let places = u32::try_from(places).map_err(|error| Status::internal(error.to_string()))?;
        self.0.acquire_many_owned(places).await.map_err(|error| Status::internal(error.to_string()))
    }
}

/// A batch as it came, once there is room for it.
async fn with_room(
    message: Result<DecodedFlightData, FlightError>,
    room: Room,
) -> Result<(DecodedFlightData, OwnedSemaphorePermit), Status> {
    let message = message.map_err(|error| malformed("events", &error))?;
    let permit = room.take(message.inner.data_body.len()).await?;
    Ok((message, permit))
}

/// The acknowledgements of a stream of pushes.
pub(super) async fn put(
    sink: Arc<dyn EventSink>,
    room: Room,
    mut incoming: Streaming<FlightData>,
) -> Result<BoxStream<'static, Result<PutResult, Status>>, Status> {
    let first = incoming.message().await?.ok_or_else(|| Status::invalid_argument("the put sent nothing"))?;
    let command = first.flight_descriptor.clone().unwrap_or_default().cmd;
    let Command::Push(push) = Command::parse(&command).map_err(to_status)? else {
        let error = Error::invalid("DoPut takes pushes").remedy(r#"send {"push": {"source": "name"}}"#);
        return Err(to_status(error));
    };
    let schema = sink.schema(&push.source).await.map_err(to_status)?;
    // Some clients send the descriptor alone, others with the schema.
    let opening = (!first.data_header.is_empty()).then_some(Ok(first));
    let messages = stream::iter(opening).chain(incoming.map_err(|status| FlightError::Tonic(Box::new(status))));
    let source: Arc<str> = push.source.into();
    let answers = FlightDataDecoder::new(messages)
        .then(move |message| with_room(message, room.clone()))
        .map(move |message| {
            let taken = message.and_then(|(message, permit)| {
                let metadata = message.inner.app_metadata.clone();
                let events = match message.payload {
                    DecodedPayload::RecordBatch(batch) => batch,
                    DecodedPayload::Schema(_) => return Ok(None),
                    DecodedPayload::None if metadata.is_empty() => return Ok(None),
                    DecodedPayload::None => RecordBatch::new_empty(Arc::clone(&schema)),
                };
                Ok(Some((events, header(&metadata)?, permit)))
            });
            let (sink, source) = (Arc::clone(&sink), Arc::clone(&source));
            async move {
                let Some((events, header, permit)) = taken? else { return Ok(None) };
                let ack = sink.push(&source, events, header).await.map_err(to_status)?;
                drop(permit);
                let body = serde_json::to_vec(&ack).map_err(|error| Status::internal(error.to_string()))?;
                Ok(Some(PutResult { app_metadata: body.into() }))
            }
        })
        .buffered(PIPELINED)
        .try_filter_map(|answer| std::future::ready(Ok(answer)));
    Ok(answers.boxed())
}

fn header(metadata: &[u8]) -> Result<PushHeader, Status> {
    if metadata.is_empty() {
        return Ok(PushHeader::default());
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
