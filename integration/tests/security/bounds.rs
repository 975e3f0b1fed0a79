//! What callers may send and leave unread: bounded before anything is made room for, and by caller.

use arrow_flight::FlightDescriptor;
use arrow_flight::flight_service_client::FlightServiceClient;
use springhouse_serving::generated::inference::ModelInferRequest;
use springhouse_serving::generated::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use springhouse_serving::generated::inference::model_infer_request::InferInputTensor;
use springhouse_serving::predict::{PredictClient, TextColumn};
use springhouse_serving::security::Security;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;

use super::Running;
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
