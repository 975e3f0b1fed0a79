//! The physical limit: bare servers that answer every message with one made before, over the same transports.

use std::net::SocketAddr;

use arrow::array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::{Error, Result};
use springhouse_serving::generated::inference as api;
use springhouse_serving::generated::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Answers each batch of an exchange with the same batch.
struct FlightEcho(RecordBatch);

/// Answers each inference with the same response.
struct InferEcho(api::ModelInferResponse);

async fn listen() -> Result<(SocketAddr, TcpIncoming)> {
    let failed = |error: std::io::Error| Error::unavailable("no free port").source(error);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    Ok((listener.local_addr().map_err(failed)?, TcpIncoming::from(listener).with_nodelay(Some(true))))
}

/// Starts a Flight echo.
pub async fn flight(answer: RecordBatch) -> Result<SocketAddr> {
    let (address, incoming) = listen().await?;
    let service = FlightServiceServer::new(FlightEcho(answer));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    Ok(address)
}

/// Starts an inference echo.
pub async fn infer(answer: api::ModelInferResponse) -> Result<SocketAddr> {
    let (address, incoming) = listen().await?;
    let service = GrpcInferenceServiceServer::new(InferEcho(answer));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    Ok(address)
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = BoxStream<'static, Result<T, Status>>;

fn only_echoes<T>() -> Answer<T> {
    Err(Status::unimplemented("an echo"))
}

#[tonic::async_trait]
impl FlightService for FlightEcho {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        let answer = self.0.clone();
        let incoming = request.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let schema = answer.schema();
        let answers = FlightRecordBatchStream::new_from_flight_data(incoming).map_ok(move |_| answer.clone());
        let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(answers).map_err(Status::from);
        Ok(Response::new(encoded.boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        only_echoes()
    }
    async fn list_flights(&self, _: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        only_echoes()
    }
    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        only_echoes()
    }
    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        only_echoes()
    }
    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        only_echoes()
    }
    async fn do_get(&self, _: Request<Ticket>) -> Answer<Self::DoGetStream> {
        only_echoes()
    }
    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        only_echoes()
    }
    async fn do_action(&self, _: Request<Action>) -> Answer<Self::DoActionStream> {
        only_echoes()
    }
    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        only_echoes()
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for InferEcho {
    async fn model_infer(&self, _: Request<api::ModelInferRequest>) -> Answer<api::ModelInferResponse> {
        Ok(Response::new(self.0.clone()))
    }

    async fn server_live(&self, _: Request<api::ServerLiveRequest>) -> Answer<api::ServerLiveResponse> {
        only_echoes()
    }
    async fn server_ready(&self, _: Request<api::ServerReadyRequest>) -> Answer<api::ServerReadyResponse> {
        only_echoes()
    }
    async fn model_ready(&self, _: Request<api::ModelReadyRequest>) -> Answer<api::ModelReadyResponse> {
        only_echoes()
    }
    async fn server_metadata(&self, _: Request<api::ServerMetadataRequest>) -> Answer<api::ServerMetadataResponse> {
        only_echoes()
    }
    async fn model_metadata(&self, _: Request<api::ModelMetadataRequest>) -> Answer<api::ModelMetadataResponse> {
        only_echoes()
    }
}
