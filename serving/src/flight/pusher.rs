//! The client's side of pushes: one stream of batches of one producer, each acknowledged in order.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::error::FlightError;
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightClient, FlightData, FlightDescriptor, PutResult};
use futures::StreamExt;
use futures::stream::BoxStream;
use springhouse_featurestore::push::{PushAck, PushHeader};
use springhouse_featurestore::{Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::command::Command;

/// Batches on their way at once; sending more waits.
const IN_FLIGHT: usize = 64;

/// An open stream of pushes to one source.
pub struct Pusher {
    schema: SchemaRef,
    messages: mpsc::Sender<Result<FlightData, FlightError>>,
    acks: BoxStream<'static, Result<PutResult, FlightError>>,
    /// Batches sent and not yet acknowledged.
    waiting: usize,
}

impl std::fmt::Debug for Pusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pusher").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

fn lost(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("the stream of pushes is broken")
        .remedy("send what was not acknowledged again, with the same producer and sequences")
        .source(error)
}

impl Pusher {
    pub(super) async fn open(mut client: FlightClient, source: &str, schema: SchemaRef) -> Result<Self> {
        let (messages, sent) = mpsc::channel(IN_FLIGHT);
        let mut opening = batches_to_flight_data(&schema, Vec::new())?.into_iter().next().unwrap_or_default();
        opening.flight_descriptor = Some(FlightDescriptor::new_cmd(Command::push(source).to_bytes()));
        messages.send(Ok(opening)).await.map_err(lost)?;
        let acks = client.do_put(ReceiverStream::new(sent)).await.map_err(|error| match error {
            FlightError::Tonic(status) => crate::status::from_status(&status),
            other => lost(other),
        })?;
        Ok(Self { schema, messages, acks: acks.boxed(), waiting: 0 })
    }

    /// Sends a batch of the stream's schema; [`Self::ack`] tells when it was taken. With many on their way, the oldest's
    /// acknowledgement is waited for and given.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn send(&mut self, events: &RecordBatch, header: &PushHeader) -> Result<Option<PushAck>> {
        let encoded = batches_to_flight_data(&self.schema, vec![events.clone()])?;
        let mut message = encoded.into_iter().nth(1).unwrap_or_default();
        let header = serde_json::to_vec(header)
            .map_err(|error| Error::internal("a push header cannot be written as JSON").source(error))?;
        message.app_metadata = header.into();
        let acked = if self.waiting >= IN_FLIGHT { Some(self.ack().await?) } else { None };
        self.messages.send(Ok(message)).await.map_err(lost)?;
        self.waiting += 1;
        Ok(acked)
    }

    /// Waits for the oldest acknowledgement that was not given yet.
    ///
    /// # Errors
    /// The server's own for a batch that it refused; [`springhouse_featurestore::ErrorKind::Unavailable`] when the stream
    /// breaks. Nothing after that batch was taken, or it may have been without being acknowledged.
    pub async fn ack(&mut self) -> Result<PushAck> {
        let answer =
            self.acks.next().await.ok_or_else(|| lost("the server closed it"))?.map_err(|error| match error {
                FlightError::Tonic(status) if status.code() != tonic::Code::Unavailable => {
                    crate::status::from_status(&status)
                }
                other => lost(other),
            })?;
        self.waiting = self.waiting.saturating_sub(1);
        serde_json::from_slice(&answer.app_metadata)
            .map_err(|error| Error::internal("the feature server is of another version").source(error))
    }

    /// Batches sent and not yet acknowledged.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}
