//! What callers may send and leave unread: bounded before anything is made room for, and by caller.

use std::future::poll_fn;
use std::path::Path;
use std::time::Duration;

use arrow_flight::FlightDescriptor;
use arrow_flight::flight_service_client::FlightServiceClient;
use futures::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use springhouse_serving::generated::inference::ModelInferRequest;
use springhouse_serving::generated::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use springhouse_serving::generated::inference::model_infer_request::InferInputTensor;
use springhouse_serving::predict::{PredictClient, TextColumn};
use springhouse_serving::security::{Scope, Security};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::codegen::{Bytes, Service, http};
use tonic::transport::Channel;

use super::{Running, token, with_tokens};
use crate::wire::deployed;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_would_take_a_hundredfold_is_refused_before_it_is_decoded() {
    let (project, _) = deployed().await;
    let server = Running::start(&project, Security::open(), None).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).expect("an address").connect_lazy();
    // Two bytes each on the wire.
    let inputs = vec![InferInputTensor::default(); 400_000];
    let request = ModelInferRequest { model_name: "fraud".to_owned(), inputs, ..ModelInferRequest::default() };
    let predict = GrpcInferenceServiceClient::new(channel.clone());
    let packed = GrpcInferenceServiceClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
    for mut client in [predict, packed] {
        let error = client.model_infer(request.clone()).await.expect_err("would take 100 MB");
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        assert!(error.message().contains("too much memory") && error.message().contains("fewer rows"), "{error}");
    }
    let path = FlightDescriptor::new_path(vec![String::new(); 1_000_000]);
    let error = FlightServiceClient::new(channel).get_schema(path).await.expect_err("would take 24 MB");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    assert!(error.message().contains("too much memory"), "{error}");
    // Who sends what people send is answered.
    let client = PredictClient::new(&format!("http://{}", server.address)).expect("an address");
    let metadata = client.metadata("fraud").await.expect("answers");
    let text = |value: &str| vec![Some(value.to_owned())];
    let columns: Vec<TextColumn> = vec![("user_name".to_owned(), text("ann")), ("country".to_owned(), text("NL"))];
    client.infer(&metadata, &columns).await.expect("answers");
    server.stop().await;
}

/// Opens a stream of pushes as whoever has this token, with the five bytes that declare a message of so many, and nothing of it.
/// Gives the status when the server ends it.
async fn declare(address: &str, token: &Path, bytes: u32) -> String {
    let mut channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    let prefix = Bytes::from([&[0][..], &bytes.to_be_bytes()].concat());
    let body = stream::iter([Ok::<_, tonic::Status>(Frame::data(prefix))]).chain(stream::pending());
    let shown = std::fs::read_to_string(token).expect("there");
    let request = http::Request::post("/arrow.flight.protocol.FlightService/DoPut")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", shown.trim()))
        .body(Body::new(StreamBody::new(body)))
        .expect("a request");
    poll_fn(|context| channel.poll_ready(context)).await.expect("connects");
    let answer = channel.call(request).await.expect("an answer");
    answer.headers()["grpc-status"].to_str().expect("a number").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_bytes_on_many_streams_make_room_for_no_more_than_their_callers_share() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let (ann, bob) = (token(&folder, "ann", &[Scope::Push]), token(&folder, "bob", &[Scope::Push]));
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let waits = async |token: &Path| {
        tokio::time::timeout(Duration::from_millis(700), declare(&server.address, token, 64 << 20)).await
    };
    // Half of what may be on its way, of all callers together.
    let held: Vec<JoinHandle<String>> = (0..4)
        .map(|_| {
            let (address, ann) = (server.address.clone(), ann.clone());
            tokio::spawn(async move { declare(&address, &ann, 64 << 20).await })
        })
        .collect();
    let mut refused = None;
    for _ in 0..20 {
        // The others may not have come yet.
        if let Ok(status) = waits(&ann).await {
            refused = Some(status);
            break;
        }
    }
    assert_eq!(refused.as_deref(), Some("8"), "RESOURCE_EXHAUSTED");
    assert!(waits(&bob).await.is_err(), "another is not refused: the rest of its message is waited for");
    held.iter().for_each(JoinHandle::abort);
    for _ in 0..50 {
        // It is given back with the stream.
        if waits(&ann).await.is_err() {
            server.stop().await;
            return;
        }
    }
    panic!("what was declared is held though its streams have ended");
}
