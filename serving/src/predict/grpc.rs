//! The protocol's service over the contracts that this process serves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use springhouse_featurestore::definition::{Column, Contract};
use springhouse_featurestore::time::Clock;
use springhouse_featurestore::{Error, Result};
use tonic::{Request, Response, Status};

use super::tensor::{TensorData, columns_to_tensors, datatype, request_columns};
use crate::generated::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use crate::generated::inference::infer_parameter::ParameterChoice;
use crate::generated::inference::model_infer_response::InferOutputTensor;
use crate::generated::inference::model_metadata_response::TensorMetadata;
use crate::generated::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use crate::security::Caller;
use crate::status::to_status;
use crate::worker::{Answer, Contracts, Question};

/// The largest request: 4,096 rows of 500 numbers. A few bytes of a request can become hundreds in memory before anything of it
/// can be looked at.
pub(crate) const MOST_REQUEST_BYTES: usize = 16 << 20;

/// The most bytes of a request's id, which the answer carries too.
const MOST_ID_BYTES: usize = 1 << 10;

/// The service.
#[derive(Debug, Clone)]
pub struct PredictService {
    contracts: Arc<Contracts>,
    /// Tells this process's predictions from those of others: when it started.
    incarnation: i64,
}

impl PredictService {
    /// A service over the contracts of this process.
    pub fn new(contracts: Arc<Contracts>, clock: &dyn Clock) -> Self {
        Self { contracts, incarnation: clock.now().micros() }
    }

    /// As a tonic service.
    pub fn into_service(self) -> GrpcInferenceServiceServer<Self> {
        GrpcInferenceServiceServer::new(self)
            .max_decoding_message_size(MOST_REQUEST_BYTES)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
    }

    async fn infer(
        &self,
        mut request: ModelInferRequest,
        deadline: Option<Instant>,
        caller: Option<Arc<str>>,
    ) -> Result<ModelInferResponse> {
        if request.id.len() > MOST_ID_BYTES {
            return Err(Error::invalid("the request's id is too long: it is sent back")
                .with("bytes", request.id.len())
                .with("most", MOST_ID_BYTES)
                .remedy("send a shorter id"));
        }
        let worker = self.contracts.worker(&request.model_name, &request.model_version)?;
        let contract = worker.contract();
        let outputs = wanted_outputs(&contract.output, &request)?;
        let (columns, rows) = request_columns(&contract.request, &request, worker.most_rows())
            .map_err(|error| error.with("contract", contract.pinned()))?;
        let (id, raw) = (std::mem::take(&mut request.id), !request.raw_input_contents.is_empty());
        // While it waits in the queue it has no more than its columns.
        drop(request);
        let answer = worker.ask(Question { columns, rows, deadline, caller }).await?;
        self.response((id, raw), &answer, &outputs, rows)
    }

    fn response(
        &self,
        (id, raw): (String, bool),
        answer: &Answer,
        wanted: &[usize],
        rows: usize,
    ) -> Result<ModelInferResponse> {
        let contract = answer.worker.contract();
        let columns: Vec<_> = wanted.iter().map(|&index| Arc::clone(&answer.columns[index])).collect();
        let mut response = ModelInferResponse {
            model_name: contract.name.clone(),
            model_version: contract.version.to_string(),
            id,
            parameters: self.parameters(answer),
            outputs: Vec::new(),
            raw_output_contents: Vec::new(),
        };
        for (&index, data) in wanted.iter().zip(columns_to_tensors(&columns, raw)?) {
            let column = &contract.output[index];
            let contents = match data {
                TensorData::Raw(bytes) => {
                    response.raw_output_contents.push(bytes);
                    None
                }
                TensorData::Typed(contents) => Some(contents),
            };
            response.outputs.push(InferOutputTensor {
                name: column.name.clone(),
                datatype: datatype(column.column_type).to_owned(),
                shape: vec![i64::try_from(rows).unwrap_or(i64::MAX)],
                parameters: HashMap::new(),
                contents,
            });
        }
        Ok(response)
    }

    fn parameters(&self, answer: &Answer) -> HashMap<String, InferParameter> {
        let deployed = answer.worker.deployed();
        let text = |value: String| InferParameter { parameter_choice: Some(ParameterChoice::StringParam(value)) };
        let fresh = ParameterChoice::Int64Param(i64::try_from(answer.fresh_rows).unwrap_or(i64::MAX));
        let fresh = InferParameter { parameter_choice: Some(fresh) };
        let mut parameters = HashMap::from([
            ("springhouse_policy_version".to_owned(), text(policy_of(&deployed.contract))),
            ("springhouse_contract_version".to_owned(), text(deployed.contract.version.to_string())),
            ("springhouse_package".to_owned(), text(deployed.digest.clone())),
            ("springhouse_prediction_id".to_owned(), text(format!("{:x}-{}", self.incarnation, answer.prediction))),
            ("springhouse_fresh_rows".to_owned(), fresh),
        ]);
        let mut views: HashMap<&str, Vec<String>> = HashMap::new();
        for finding in &answer.findings {
            let said = format!("{} rule={} rows={}", finding.status, finding.rule, finding.rows);
            views.entry(&finding.view).or_default().push(said);
        }
        parameters
            .extend(views.into_iter().map(|(view, said)| (format!("springhouse_view_{view}"), text(said.join("; ")))));
        parameters
    }
}

/// The version of a contract's policy; empty where it was applied before the two were told apart.
fn policy_of(contract: &Contract) -> String {
    contract.policy.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// Which of the contract's outputs are asked for; all when none is named.
fn wanted_outputs(outputs: &[Column], request: &ModelInferRequest) -> Result<Vec<usize>> {
    if request.outputs.is_empty() {
        return Ok((0..outputs.len()).collect());
    }
    let index_of = |name: &str| {
        outputs.iter().position(|column| column.name == name).ok_or_else(|| {
            let names: Vec<&str> = outputs.iter().map(|column| column.name.as_str()).collect();
            Error::invalid("the contract has no such output")
                .with("output", name)
                .remedy(format!("the outputs are: {}", names.join(", ")))
        })
    };
    let mut wanted: Vec<usize> = Vec::new();
    for output in &request.outputs {
        let index = index_of(&output.name)?;
        if wanted.contains(&index) {
            return Err(Error::invalid("an output is asked for twice").with("output", &output.name));
        }
        wanted.push(index);
    }
    Ok(wanted)
}

/// What is left of a caller's time for the answer to reach it: so it hears why, and not only that its time is over.
fn way_back(span: Duration) -> Duration {
    (span / 10).min(Duration::from_millis(5))
}

/// By when a caller is to be answered, of the deadline that it set: gRPC's own header, `1500m` for 1.5 seconds.
#[expect(clippy::disallowed_methods, reason = "a caller's deadline runs in real time")]
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    let span = timeout(request.metadata().get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(span.saturating_sub(way_back(span)))
}

/// The span that such a header gives.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn tensors(columns: &[Column]) -> Vec<TensorMetadata> {
    let tensor = |column: &Column| TensorMetadata {
        name: column.name.clone(),
        datatype: datatype(column.column_type).to_owned(),
        shape: vec![-1],
    };
    columns.iter().map(tensor).collect()
}

#[tonic::async_trait]
impl GrpcInferenceService for PredictService {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: !self.contracts.all().is_empty() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        Ok(Response::new(ModelReadyResponse { ready: self.contracts.worker(&name, &version).is_ok() }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "springhouse".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: Vec::new(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let worker = self.contracts.worker(&name, &version).map_err(to_status)?;
        let contract = worker.contract();
        let counters = serde_json::to_value(worker.counters()).unwrap_or_default();
        let mut properties: HashMap<String, String> = HashMap::from([
            ("contract_version".to_owned(), contract.version.to_string()),
            ("policy_version".to_owned(), policy_of(contract)),
            ("package".to_owned(), worker.deployed().digest.clone()),
            ("tier".to_owned(), contract.tier.clone()),
        ]);
        for (name, count) in counters.as_object().into_iter().flatten() {
            properties.insert(name.clone(), count.to_string());
        }
        Ok(Response::new(ModelMetadataResponse {
            name: contract.name.clone(),
            versions: vec![contract.version.to_string()],
            platform: "springhouse".to_owned(),
            inputs: tensors(&contract.request),
            outputs: tensors(&contract.output),
            properties,
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let deadline = deadline(&request);
        let caller = request.extensions().get::<Caller>().and_then(Caller::account).cloned();
        self.infer(request.into_inner(), deadline, caller).await.map(Response::new).map_err(to_status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read_in_every_unit() {
        let spans = [
            ("2H", Some(7_200_000)),
            ("3M", Some(180_000)),
            ("4S", Some(4_000)),
            ("1500m", Some(1_500)),
            ("7000u", Some(7)),
            ("8000000n", Some(8)),
            ("", None),
            ("5", None),
            ("xm", None),
            ("5x", None),
            ("99999999999999999999H", None),
        ];
        for (text, millis) in spans {
            assert_eq!(timeout(text), millis.map(Duration::from_millis), "{text}");
        }
        assert_eq!(way_back(Duration::from_millis(20)), Duration::from_millis(2));
        assert_eq!(way_back(Duration::from_secs(60)), Duration::from_millis(5));
    }
}
