//! The Flight service over a feature server.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use springhouse_featurestore::catalog::Signature;
use springhouse_featurestore::push::EventSink;
use springhouse_featurestore::time::{DrivenClock, Timestamp};
use springhouse_featurestore::training_set::{Batches, TrainingSets};
use springhouse_featurestore::{Error, Result};
use tonic::{Request, Response, Status, Streaming};

use super::command::{Command, ProducersCommand};
use super::exchange::exchange;
use super::places::{Place, Places, held};
use super::push::{Room, put};
use super::training_set::encode;
use crate::features::{FeatureServer, FeatureSource, FeatureStatus, in_words};
use crate::security::{Caller, Scope, table};
use crate::status::to_status;

/// The service.
#[derive(Debug, Clone)]
pub struct FlightServer {
    features: Arc<FeatureServer>,
    training_sets: Arc<dyn TrainingSets>,
    /// The clock that the `clock` action sets; `None` when the server runs at the machine's time.
    driven: Option<Arc<DrivenClock>>,
    sink: Option<Arc<dyn EventSink>>,
    /// For the pushes of all producers.
    room: Room,
    places: Places,
}

/// Actions and what they do.
const ACTIONS: [(&str, &str); 7] = [
    ("contracts", "the deployed contracts with their views and packages, as JSON"),
    ("status", "what exactly is served: versions, watermarks, lags, as JSON"),
    ("follow", "load now what was committed since"),
    ("flush", "move what was pushed to object storage now"),
    ("producers", "the producers of a source and how far each has got, as JSON: {\"source\": \"name\"}"),
    (
        "change_producer",
        "retire a producer, set its watermark or its sequence back, or hand its name over: {\"source\": \"name\", \"change\": \
         [\"producer\", \"retire\"]} or [\"producer\", {\"watermark\": \"2013-12-01T05:00:00Z\"}], {\"sequence\": 7} or \
         {\"hand_over\": \"caller\"}",
    ),
    ("clock", "set the clock of a server that was started with --clock: a time such as 2013-12-01T05:00:00Z"),
];

impl FlightServer {
    /// A service over a feature server.
    pub fn new(
        features: Arc<FeatureServer>,
        training_sets: Arc<dyn TrainingSets>,
        driven: Option<Arc<DrivenClock>>,
    ) -> Self {
        let places = Places::new(training_sets.places());
        Self { features, training_sets, driven, sink: None, room: Room::default(), places }
    }

    /// As a tonic service.
    pub fn into_service(self) -> FlightServiceServer<Self> {
        FlightServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The same service, which takes events too.
    #[must_use]
    pub fn with_sink(mut self, sink: Arc<dyn EventSink>) -> Self {
        self.sink = Some(sink);
        self
    }

    fn sink(&self) -> Result<Arc<dyn EventSink>> {
        self.sink.clone().ok_or_else(|| Error::invalid("this server takes no pushes"))
    }

    async fn act(&self, action: &Action, caller: &Caller) -> Result<Vec<u8>> {
        match action.r#type.as_str() {
            "contracts" => json(&self.features.deployments().await?),
            "status" => json(&self.status_for(caller)?),
            "follow" => {
                self.features.follow(&()).await.map_err(|error| without_values(error, caller))?;
                json(&self.status_for(caller)?)
            }
            "flush" => {
                let until = self.sink()?.flush().await.map_err(|error| without_values(error, caller))?;
                self.features.follow(&()).await.map_err(|error| without_values(error, caller))?;
                json(&until)
            }
            "producers" => json(&self.sink()?.producers(&producers(action)?.source).await?),
            "change_producer" => {
                let ProducersCommand { source, change, who, why } = producers(action)?;
                let (producer, change) = change.ok_or_else(|| Error::invalid("no change to a producer is named"))?;
                let by = Signature { at: self.features.clock().now(), who: caller.signs(&who), why };
                let changed = self.sink()?.change_producer(&source, &producer, change, by).await;
                let changed = changed.map_err(|error| without_values(error, caller))?;
                self.features.follow(&()).await.map_err(|error| without_values(error, caller))?;
                json(&changed)
            }
            "clock" => {
                let clock = self.driven.as_ref().ok_or_else(|| {
                    Error::invalid("this server runs at the machine's time")
                        .remedy("start it with --clock TIME to drive it")
                })?;
                clock.set(Timestamp::parse(&String::from_utf8_lossy(&action.body))?);
                json(&self.features.clock().now())
            }
            other => Err(Error::invalid("no such action")
                .with("action", other)
                .remedy(format!("there are: {}", ACTIONS.map(|(name, _)| name).join(", ")))),
        }
    }

    /// How the store stands, as far as a caller may know: what a view's query said may quote values of events.
    fn status_for(&self, caller: &Caller) -> Result<FeatureStatus> {
        let status = self.features.status()?;
        Ok(if caller.require(Scope::Query).is_ok() { status } else { status.without_reasons() })
    }

    /// A place for a training set, also where only its schema is asked for: that is planned like all of it.
    fn query_place(&self, caller: &Caller, command: &Command) -> Result<Option<Place>, Status> {
        match command {
            Command::TrainingSet(_) => self.places.take(caller, command).map_err(to_status),
            _ => Ok(None),
        }
    }

    async fn batches(&self, command: &Command) -> Result<Batches> {
        match command {
            Command::TrainingSet(command) => self.training_sets.training_set(command, None).await,
            Command::Package(digest) => {
                let package = self.features.package(digest).await?;
                let names = StringArray::from_iter_values(package.files().keys());
                let bytes = BinaryArray::from_iter_values(package.files().values());
                let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(bytes)];
                let batch = RecordBatch::try_new(package_schema(), columns)?;
                Ok((package_schema(), stream::iter([Ok(batch)]).boxed()))
            }
            Command::Lookup(_) => Err(Error::invalid("a lookup is an exchange of batches").remedy("call DoExchange")),
            Command::Push(_) => Err(Error::invalid("a push sends batches").remedy("call DoPut")),
        }
    }

    async fn schema_of(&self, command: &Command) -> Result<SchemaRef> {
        Ok(match command {
            Command::Lookup(lookup) => Arc::clone(self.features.plan(&lookup.contract)?.schema()),
            Command::Package(_) => package_schema(),
            Command::TrainingSet(command) => self.training_sets.schema(command).await?,
            Command::Push(push) => self.sink()?.schema(&push.source).await?,
        })
    }

    async fn info(&self, command: &Command) -> Result<FlightInfo> {
        let schema = self.schema_of(command).await?;
        let parts = match command {
            Command::TrainingSet(set) => set.endpoints().into_iter().map(Command::TrainingSet).collect(),
            other => vec![other.clone()],
        };
        let mut info = FlightInfo::new()
            .try_with_schema(&schema)?
            .with_ordered(false)
            .with_descriptor(FlightDescriptor::new_cmd(command.to_bytes()));
        // Without a place: tickets hold all that is needed, and any replica answers them.
        for part in parts {
            info = info.with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new(part.to_bytes())));
        }
        Ok(info)
    }
}

/// Who calls; the layer before this service has put it there.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| to_status(Error::internal("a request came past the layer that knows its caller")))
}

/// A request's command, which its caller may send.
fn allowed<T>(request: &Request<T>, command: &[u8]) -> Result<(Caller, Command), Status> {
    let (caller, command) = (caller(request)?, Command::parse(command).map_err(to_status)?);
    table::check_command(&caller, &command).map_err(to_status)?;
    Ok((caller, command))
}

/// An error of a view for a caller: its kind and the view, unless the caller may run queries. What the view's query said may quote
/// values of events.
fn without_values(error: Error, caller: &Caller) -> Error {
    match error.context("view") {
        Some(view) if caller.require(Scope::Query).is_err() => {
            Error::new(error.kind(), format!("a view failed: {}", in_words(error.kind())))
                .with("view", view)
                .remedy("the server's log, or the same by a caller with the scope query, has the reason")
        }
        _ => error,
    }
}

/// The largest message taken: a batch of keys, or of a request's tensors.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

fn package_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, false), Field::new("bytes", DataType::Binary, false)]))
}

fn producers(action: &Action) -> Result<ProducersCommand> {
    serde_json::from_slice(&action.body).map_err(|error| {
        Error::invalid("the action's body names no source")
            .with("action", &action.r#type)
            .with("given", String::from_utf8_lossy(&action.body[..action.body.len().min(200)]))
            .remedy(r#"send JSON such as {"source": "departures"}"#)
            .source(error)
    })
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal("an answer cannot be written as JSON").source(error))
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl FlightService for FlightServer {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(&self, _request: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        Err(Status::unimplemented("no handshake is needed"))
    }

    async fn list_flights(&self, _request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        let state = self.features.state();
        let lookups = state.contracts().map(|contract| Command::lookup(&contract.name));
        let packages = state.packages().keys().map(|digest| Command::Package(digest.clone()));
        let mut flights = Vec::new();
        for command in lookups.chain(packages) {
            flights.push(Ok(self.info(&command).await.map_err(to_status)?));
        }
        Ok(Response::new(stream::iter(flights).boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let (caller, command) = allowed(&request, &request.get_ref().cmd)?;
        let _place = self.query_place(&caller, &command)?;
        Ok(Response::new(self.info(&command).await.map_err(to_status)?))
    }

    async fn poll_flight_info(&self, _request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        Err(Status::unimplemented("nothing here takes so long: call GetFlightInfo"))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let (caller, command) = allowed(&request, &request.get_ref().cmd)?;
        let _place = self.query_place(&caller, &command)?;
        let schema = self.schema_of(&command).await.map_err(to_status)?;
        let options = arrow::ipc::writer::IpcWriteOptions::default();
        let result = SchemaAsIpc::new(&schema, &options).try_into();
        Ok(Response::new(result.map_err(|error: arrow::error::ArrowError| to_status(error.into()))?))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let (caller, command) = allowed(&request, &request.get_ref().ticket)?;
        // A package lies in memory until it has been sent.
        let place = match command {
            Command::Package(_) => self.places.take(&caller, &command).map_err(to_status)?,
            _ => self.query_place(&caller, &command)?,
        };
        let batches = self.batches(&command).await.map_err(to_status)?;
        Ok(Response::new(held(encode(batches, caller, table::of_command(&command)), place)))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let caller = caller(&request)?;
        let sink = self.sink().map_err(to_status)?;
        Ok(Response::new(put(sink, &self.room, &self.places, caller, request.into_inner()).await?))
    }

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        let (caller, training_sets) = (caller(&request)?, Arc::clone(&self.training_sets));
        let features = Arc::clone(&self.features);
        let answers = exchange(features, training_sets, caller, &self.places, request.into_inner());
        Ok(Response::new(answers.await?))
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let caller = caller(&request)?;
        caller.require_one_of(table::of_action(&request.get_ref().r#type)).map_err(to_status)?;
        let body = self.act(request.get_ref(), &caller).await.map_err(to_status)?;
        Ok(Response::new(stream::iter([Ok(arrow_flight::Result::new(body))]).boxed()))
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Answer<Self::ListActionsStream> {
        let actions = ACTIONS
            .map(|(name, description)| Ok(ActionType { r#type: name.to_owned(), description: description.to_owned() }));
        Ok(Response::new(stream::iter(actions).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::ErrorKind;

    use super::*;

    #[test]
    fn what_a_views_query_said_is_for_those_who_may_run_queries() {
        let failed = || {
            let cause = Error::invalid("Cannot cast string 'ann@example.com' to value of Int64 type");
            Error::invalid("a view's query fails on one pushed event after another")
                .with("view", "shares")
                .source(cause)
        };
        let operator = Caller::with_scopes("op", &[Scope::Operate, Scope::Read]);
        let told = without_values(failed(), &operator);
        let text = told.chain();
        assert!(told.kind() == ErrorKind::Invalid && text.contains("view: shares") && !text.contains("ann@"), "{text}");
        let engineer = Caller::with_scopes("eng", &[Scope::Query]);
        assert!(without_values(failed(), &engineer).chain().contains("ann@"));
        // What is not about a view is told as it is.
        let other = without_values(Error::unavailable("no store").with("path", "pushes/log"), &operator);
        assert!(other.chain().contains("pushes/log"));
    }
}
