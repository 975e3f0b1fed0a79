//! The client that workers use: actions, packages, and lookups over exchanges that stay open.
//!
//! Lookups have a connection of their own, which notices within seconds that the server has gone. A lookup that its caller
//! gives up takes its exchange along: an answer that comes late never meets another question. A server that cannot be
//! reached is tried again after a wait; until then lookups are refused at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch, new_null_array};
use arrow::datatypes::{Field, Schema, SchemaRef};
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
use springhouse_featurestore::time::{Clock, SystemClock};
use springhouse_featurestore::{Error, ErrorKind, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::command::Command;
use super::pusher::Pusher;
use super::reconnection::Reconnection;
use super::server::MAX_MESSAGE_BYTES;
use crate::features::{DeployedContract, FeatureSource};
use crate::network;
use crate::package::Package;
use crate::security::Access;
use crate::status::{from_status, is_of_connection};

/// How long a worker waits for the deployments, and for each part of a package.
const PART_WITHIN: Duration = Duration::from_secs(30);

/// A feature server elsewhere: `http://host:port`, `https://host:port` or `unix:///path`.
#[derive(Debug)]
pub struct RemoteFeatures {
    address: String,
    /// For lookups.
    lookups: Channel,
    /// For all else.
    others: Channel,
    reconnection: Reconnection,
    access: Access,
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
    /// Connects when it is first used, without a token or a certificate.
    ///
    /// # Errors
    /// As [`Self::with_access`].
    pub fn new(address: &str) -> Result<Self> {
        Self::with_access(address, Access::default())
    }

    /// Connects when it is first used.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for text that is no address, and for files that are not right.
    pub fn with_access(address: &str, access: Access) -> Result<Self> {
        // Processes differ in when they began, whatever time their projects show.
        Self::connected(address, access, SystemClock.now().micros().cast_unsigned())
    }

    /// As [`Self::new`] does, with waits between attempts to connect that `seed` makes.
    ///
    /// # Errors
    /// As [`Self::with_access`].
    pub fn seeded(address: &str, seed: u64) -> Result<Self> {
        Self::connected(address, Access::default(), seed)
    }

    fn connected(address: &str, access: Access, seed: u64) -> Result<Self> {
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| {
            Error::invalid("not an address of a feature server")
                .with("address", address)
                .remedy("write http://127.0.0.1:7601, https://host:7601 or unix:///path/to/socket")
                .source(error)
        })?;
        Ok(Self {
            address: address.to_owned(),
            lookups: access.channel(&network::brisk(endpoint.clone()))?,
            others: access.channel(&network::patient(endpoint))?,
            access,
            reconnection: Reconnection::new(seed),
            idle: Mutex::default(),
        })
    }

    fn client(&self) -> Result<FlightClient> {
        self.client_on(&self.others)
    }

    fn client_on(&self, channel: &Channel) -> Result<FlightClient> {
        let inner = FlightServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut client = FlightClient::new_from_inner(inner);
        self.access.sign(client.metadata_mut())?;
        Ok(client)
    }

    fn failed(&self, error: FlightError) -> Error {
        match error {
            FlightError::Tonic(status) if !is_of_connection(&status) => {
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
        let mut client = self.client()?;
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
        Pusher::open(self.client()?, source, schema).await
    }

    /// Waits, but not for ever, for what comes at once unless the server is stuck.
    async fn in_time<T>(&self, part: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(PART_WITHIN, part).await.unwrap_or_else(|_| {
            Err(Error::unavailable("the feature server did not answer in time")
                .with("address", &self.address)
                .with("seconds", PART_WITHIN.as_secs())
                .remedy("look whether it is overloaded: springhouse status"))
        })
    }

    /// Opens an exchange. The schema goes out at once: a server answers an exchange only after its first message.
    async fn open(&self, contract: &Pinned, keys: SchemaRef) -> Result<Exchange> {
        if let Some(wait) = self.reconnection.wait() {
            return Err(Error::unavailable("the feature server could not be reached")
                .with("address", &self.address)
                .remedy(format!("it is tried again in {} ms; start one: springhouse serve", wait.as_millis() + 1)));
        }
        let (questions, asked) = mpsc::channel(1);
        let descriptor = FlightDescriptor::new_cmd(Command::lookup(contract.to_string()).to_bytes());
        let encoded = FlightDataEncoderBuilder::new()
            .with_max_flight_data_size(usize::MAX)
            .with_flight_descriptor(Some(descriptor))
            .with_schema(keys)
            .build(ReceiverStream::new(asked));
        let mut client = self.client_on(&self.lookups)?;
        let answers = client.do_exchange(encoded).await.map_err(|error| {
            if of_connection(&error) {
                self.reconnection.failed();
            }
            self.failed(error)
        })?;
        self.reconnection.reached();
        Ok(Exchange { questions, answers })
    }

    fn take_idle(&self, contract: &Pinned) -> Option<Exchange> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).get_mut(contract)?.pop()
    }

    /// Asks on an exchange; one that fails, or that is given up before it has answered, is not used again.
    async fn ask(&self, contract: &Pinned, mut exchange: Exchange, keys: RecordBatch) -> Result<RecordBatch> {
        let closed = || Error::unavailable("the feature server closed the exchange").with("address", &self.address);
        exchange.questions.send(Ok(keys)).await.map_err(|_| closed())?;
        let answer = exchange.answers.next().await.ok_or_else(closed)?.map_err(|error| {
            if of_connection(&error) {
                // The others were on the same connection.
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            self.failed(error)
        })?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(contract.clone()).or_default().push(exchange);
        Ok(answer)
    }
}

/// Whether the connection failed, and not what was asked.
fn of_connection(error: &FlightError) -> bool {
    matches!(error, FlightError::Tonic(status) if is_of_connection(status))
}

#[async_trait]
impl FeatureSource for RemoteFeatures {
    async fn deployments(&self) -> Result<Vec<DeployedContract>> {
        self.in_time(self.act_json("contracts", "")).await
    }

    async fn package(&self, digest: &str) -> Result<Package> {
        let ticket = Ticket::new(Command::Package(digest.to_owned()).to_bytes());
        let mut client = self.client()?;
        let mut parts = self.in_time(async { client.do_get(ticket).await.map_err(|error| self.failed(error)) }).await?;
        let mut files = BTreeMap::new();
        loop {
            let part = async { parts.try_next().await.map_err(|error| self.failed(error)) };
            let Some(batch) = self.in_time(part).await? else { break };
            let (names, bytes) = (batch.column(0).as_string::<i32>(), batch.column(1).as_binary::<i32>());
            for row in 0..names.len() {
                files.insert(names.value(row).to_owned(), Bytes::copy_from_slice(bytes.value(row)));
            }
        }
        Package::verified(files, digest)
    }

    async fn lookup(&self, contract: &Pinned, keys: RecordBatch) -> Result<RecordBatch> {
        if keys.num_rows() == 0 {
            // The writer of questions sends nothing for a batch without rows: one of nulls has the same columns.
            let schema = keys.schema();
            let nulls = schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
            let nullable = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
            let one = RecordBatch::try_new(Arc::new(Schema::new(nullable.collect::<Vec<Field>>())), nulls)?;
            return Ok(self.lookup(contract, one).await?.slice(0, 0));
        }
        if let Some(exchange) = self.take_idle(contract) {
            // The server may have been restarted since, or the token exchanged under which it was opened; a lookup changes
            // nothing, so it may be asked again.
            match self.ask(contract, exchange, keys.clone()).await {
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unauthenticated) => {}
                answered => return answered,
            }
        }
        let exchange = self.open(contract, keys.schema()).await?;
        self.ask(contract, exchange, keys).await
    }
}
