//! The client that workers use: actions, packages, and lookups over exchanges that stay open.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightClient, FlightDescriptor, Ticket};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use springhouse_featurestore::definition::Pinned;
use springhouse_featurestore::{Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::command::Command;
use super::pusher::Pusher;
use super::server::MAX_MESSAGE_BYTES;
use crate::features::{DeployedContract, FeatureSource};
use crate::package::Package;
use crate::status::from_status;

/// A feature server elsewhere: `http://host:port` or `unix:///path`.
#[derive(Debug)]
pub struct RemoteFeatures {
    address: String,
    channel: Channel,
    /// Open exchanges that nobody uses at the moment, by contract.
    idle: Mutex<HashMap<Pinned, Vec<Exchange>>>,
}

/// An open exchange: one question is answered before the next is asked.
struct Exchange {
    questions: mpsc::Sender<Result<RecordBatch, FlightError>>,
    answers: FlightRecordBatchStream,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exchange")
    }
}

impl RemoteFeatures {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for text that is no address.
    pub fn new(address: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| {
            Error::invalid("not an address of a feature server")
                .with("address", address)
                .remedy("write http://127.0.0.1:7601 or unix:///path/to/socket")
                .source(error)
        })?;
        let endpoint = endpoint.tcp_nodelay(true);
        Ok(Self { address: address.to_owned(), channel: endpoint.connect_lazy(), idle: Mutex::default() })
    }

    fn client(&self) -> FlightClient {
        let inner = FlightServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        FlightClient::new_from_inner(inner)
    }

    fn failed(&self, error: FlightError) -> Error {
        match error {
            FlightError::Tonic(status) if status.code() != tonic::Code::Unavailable => {
                from_status(&status).with("feature server", &self.address)
            }
            other => Error::unavailable("the feature server cannot be reached")
                .with("address", &self.address)
                .remedy("start one: springhouse serve")
                .source(other),
        }
    }

    /// Calls an action.
    ///
    /// # Errors
    /// The server's own, and [`springhouse_featurestore::ErrorKind::Unavailable`] when it cannot be reached.
    pub async fn act(&self, name: &str, body: &str) -> Result<Bytes> {
        let action = Action::new(name, Bytes::from(body.to_owned()));
        let mut client = self.client();
        let results = client.do_action(action).await.map_err(|error| self.failed(error))?;
        let results: Vec<Bytes> = results.try_collect().await.map_err(|error| self.failed(error))?;
        results.into_iter().next().ok_or_else(|| Error::internal("an action answered nothing").with("action", name))
    }

    /// Calls an action that answers JSON.
    ///
    /// # Errors
    /// As [`Self::act`].
    pub async fn act_json<T: DeserializeOwned>(&self, name: &str, body: &str) -> Result<T> {
        serde_json::from_slice(&self.act(name, body).await?).map_err(|error| {
            Error::internal("the feature server is of another version").with("action", name).source(error)
        })
    }

    /// Opens a stream of pushes of events with this schema.
    ///
    /// # Errors
    /// The server's own, and [`springhouse_featurestore::ErrorKind::Unavailable`] when it cannot be reached.
    pub async fn pusher(&self, source: &str, schema: SchemaRef) -> Result<Pusher> {
        Pusher::open(self.client(), source, schema).await
    }

    /// Opens an exchange. The schema goes out at once: a server answers an exchange only after its first message.
    async fn open(&self, contract: &Pinned, keys: SchemaRef) -> Result<Exchange> {
        let (questions, asked) = mpsc::channel(1);
        let descriptor = FlightDescriptor::new_cmd(Command::lookup(contract.to_string()).to_bytes());
        let encoded = FlightDataEncoderBuilder::new()
            .with_max_flight_data_size(usize::MAX)
            .with_flight_descriptor(Some(descriptor))
            .with_schema(keys)
            .build(ReceiverStream::new(asked));
        let answers = self.client().do_exchange(encoded).await.map_err(|error| self.failed(error))?;
        Ok(Exchange { questions, answers })
    }

    fn take_idle(&self, contract: &Pinned) -> Option<Exchange> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).get_mut(contract)?.pop()
    }

    /// Asks on an exchange; one that fails is not used again.
    async fn ask(&self, contract: &Pinned, mut exchange: Exchange, keys: RecordBatch) -> Result<RecordBatch> {
        let closed = || Error::unavailable("the feature server closed the exchange").with("address", &self.address);
        exchange.questions.send(Ok(keys)).await.map_err(|_| closed())?;
        let answer = exchange.answers.next().await.ok_or_else(closed)?.map_err(|error| self.failed(error))?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(contract.clone()).or_default().push(exchange);
        Ok(answer)
    }
}

#[async_trait]
impl FeatureSource for RemoteFeatures {
    async fn deployments(&self) -> Result<Vec<DeployedContract>> {
        self.act_json("contracts", "").await
    }

    async fn package(&self, digest: &str) -> Result<Package> {
        let ticket = Ticket::new(Command::Package(digest.to_owned()).to_bytes());
        let stream = self.client().do_get(ticket).await.map_err(|error| self.failed(error))?;
        let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(|error| self.failed(error))?;
        let mut files = BTreeMap::new();
        for batch in &batches {
            let (names, bytes) = (batch.column(0).as_string::<i32>(), batch.column(1).as_binary::<i32>());
            for row in 0..names.len() {
                files.insert(names.value(row).to_owned(), Bytes::copy_from_slice(bytes.value(row)));
            }
        }
        Package::verified(files, digest)
    }

    async fn lookup(&self, contract: &Pinned, keys: RecordBatch) -> Result<RecordBatch> {
        if let Some(exchange) = self.take_idle(contract) {
            // The server may have been restarted since; a lookup changes nothing, so it may be asked again.
            match self.ask(contract, exchange, keys.clone()).await {
                Err(error) if error.kind() == springhouse_featurestore::ErrorKind::Unavailable => {}
                answered => return answered,
            }
        }
        let exchange = self.open(contract, keys.schema()).await?;
        self.ask(contract, exchange, keys).await
    }
}
