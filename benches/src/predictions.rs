//! Predictions over gRPC against a bare tonic echo of equal-sized messages.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use springhouse_featurestore::{Error, Result};
use springhouse_serving::generated::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use springhouse_serving::generated::inference::model_infer_request::InferInputTensor;
use springhouse_serving::generated::inference::{ModelInferRequest, ModelInferResponse};
use tonic::transport::Channel;

use crate::echo;
use crate::house::{CONTRACT, House, Memory, plain_session};
use crate::load::{CALLERS, Caller, compare, say};

/// A request of flights of the last November day, in raw tensors.
pub async fn request(house: &House, rows: usize) -> Result<ModelInferRequest> {
    let session = plain_session(house).await?;
    let sql = format!(
        "SELECT origin, dest, carrier, tailnum, distance, CAST(scheduled_at AS BIGINT) AS scheduled_at FROM flights \
         WHERE scheduled_at >= TIMESTAMP '2013-11-30' AND tailnum IS NOT NULL ORDER BY scheduled_at, flight_id LIMIT {rows}"
    );
    let batches = session.query(&sql).await?;
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches)?;
    let mut request = ModelInferRequest { model_name: CONTRACT.to_owned(), ..ModelInferRequest::default() };
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let (datatype, bytes): (&str, Vec<u8>) = match field.name().as_str() {
            "distance" => {
                ("INT32", column.as_primitive::<Int32Type>().values().iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            "scheduled_at" => {
                ("INT64", column.as_primitive::<Int64Type>().values().iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            _ => {
                let texts = column.as_string::<i32>();
                let element = |row: usize| {
                    let text = texts.value(row).as_bytes();
                    let length = u32::try_from(text.len()).unwrap_or(0).to_le_bytes();
                    length.into_iter().chain(text.iter().copied()).collect::<Vec<u8>>()
                };
                ("BYTES", (0..texts.len()).flat_map(element).collect())
            }
        };
        request.inputs.push(InferInputTensor {
            name: field.name().clone(),
            datatype: datatype.to_owned(),
            shape: vec![i64::try_from(rows).unwrap_or(0)],
            parameters: HashMap::new(),
            contents: None,
        });
        request.raw_input_contents.push(bytes.into());
    }
    Ok(request)
}

async fn ask(
    client: &mut GrpcInferenceServiceClient<Channel>,
    request: &ModelInferRequest,
) -> Result<ModelInferResponse> {
    let answer = client.model_infer(request.clone()).await;
    Ok(answer.map_err(|status| Error::unavailable(status.message().to_owned()))?.into_inner())
}

/// A client on a connection of its own.
pub fn client(address: std::net::SocketAddr) -> Result<GrpcInferenceServiceClient<Channel>> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::internal("no address").source(error))?;
    Ok(GrpcInferenceServiceClient::new(endpoint.tcp_nodelay(true).connect_lazy()))
}

/// Asks the same again and again.
struct Asker {
    client: GrpcInferenceServiceClient<Channel>,
    request: ModelInferRequest,
}

impl Caller for Asker {
    async fn call(&mut self) -> Result<()> {
        ask(&mut self.client, &self.request).await.map(|_| ())
    }
}

/// Measures 1, 10 and 100 rows.
pub async fn measure(house: &House) -> Result<()> {
    let address = house.serve("predict", Memory::Warm).await?;
    for rows in [1, 10, 100] {
        let request = request(house, rows).await?;
        let mut one = client(address)?;
        let answer = ask(&mut one, &request).await?;
        let bare = echo::infer(answer).await?;
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..CALLERS {
            ours.push(Asker { client: client(address)?, request: request.clone() });
            peer.push(Asker { client: client(bare)?, request: request.clone() });
        }
        let (compared, latencies) = compare(ours, peer).await?;
        say(&compared.row(&format!("ModelInfer of {rows} rows, features looked up in process"), "/s", &latencies));
    }
    Ok(())
}
