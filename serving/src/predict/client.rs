//! A small client of the predict API, for the command line and the demo.

use std::collections::HashMap;
use std::time::Duration;

use springhouse_featurestore::{Error, Result};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, TimeoutExpired};

use crate::flight::max_message_bytes;
use crate::generated::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use crate::generated::inference::infer_parameter::ParameterChoice;
use crate::generated::inference::model_infer_request::InferInputTensor;
use crate::generated::inference::{
    InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelMetadataResponse,
};
use crate::network;
use crate::security::Access;
use crate::status::from_status;

/// How long an answer may take unless another time is given.
const WITHIN: Duration = Duration::from_secs(30);

/// A connection to a worker.
#[derive(Debug, Clone)]
pub struct PredictClient {
    client: GrpcInferenceServiceClient<Channel>,
    access: Access,
    address: String,
    within: Duration,
}

/// A request column as text; it is sent in the datatype that the contract's metadata names.
pub type TextColumn = (String, Vec<Option<String>>);

/// An answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// The outputs by name, as 64-bit numbers.
    pub outputs: HashMap<String, Vec<f64>>,
    /// The parameters as text.
    pub parameters: HashMap<String, String>,
}

impl PredictClient {
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
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| {
            Error::invalid("not an address of a worker")
                .with("address", address)
                .remedy("write http://127.0.0.1:7602")
                .source(error)
        })?;
        let channel = access.channel(&network::patient(endpoint))?;
        let client = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(max_message_bytes());
        Ok(Self { client, access, address: address.to_owned(), within: WITHIN })
    }

    /// The same with this deadline for each answer, which the worker is told.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// A request that shows the token, and the deadline.
    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        request.set_timeout(self.within);
        self.access.sign(request.metadata_mut())?;
        Ok(request)
    }

    fn failed(&self, status: &Status) -> Error {
        if is_over(status) {
            return Error::expired("the deadline passed before an answer came")
                .with("worker", &self.address)
                .with("milliseconds", self.within.as_millis());
        }
        let error = from_status(status).with("worker", &self.address);
        let unreachable = status.code() == tonic::Code::Unavailable;
        if unreachable { error.remedy("start one: springhouse serve") } else { error }
    }

    /// A contract's columns and counts.
    ///
    /// # Errors
    /// The server's own.
    pub async fn metadata(&self, contract: &str) -> Result<ModelMetadataResponse> {
        let request = ModelMetadataRequest { name: contract.to_owned(), version: String::new() };
        let answer = self.client.clone().model_metadata(self.request(request)?).await;
        Ok(answer.map_err(|status| self.failed(&status))?.into_inner())
    }

    /// Predicts for rows given as text columns.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for text that is not of the column's datatype; the server's own;
    /// `Expired` when no answer came in time.
    pub async fn infer(&self, metadata: &ModelMetadataResponse, columns: &[TextColumn]) -> Result<Prediction> {
        let mut inputs = Vec::new();
        for (name, values) in columns {
            let declared = metadata.inputs.iter().find(|tensor| &tensor.name == name);
            let datatype = declared.map_or("BYTES", |tensor| tensor.datatype.as_str());
            inputs.extend(tensors(name, datatype, values)?);
        }
        let request = ModelInferRequest { model_name: metadata.name.clone(), inputs, ..ModelInferRequest::default() };
        let answer = self.client.clone().model_infer(self.request(request)?).await;
        let answer = answer.map_err(|status| self.failed(&status))?.into_inner();
        let outputs =
            answer.outputs.into_iter().map(|tensor| (tensor.name, numbers(&tensor.contents.unwrap_or_default())));
        let parameters = answer.parameters.into_iter().map(|(name, value)| (name, text(value.parameter_choice)));
        Ok(Prediction { outputs: outputs.collect(), parameters: parameters.collect() })
    }
}

/// Whether a status was made here when the time that was given had passed.
fn is_over(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A column's tensor, and the tensor of its nulls where it has any.
fn tensors(name: &str, datatype: &str, values: &[Option<String>]) -> Result<Vec<InferInputTensor>> {
    let tensor = |name: String, datatype: &str, contents| InferInputTensor {
        name,
        datatype: datatype.to_owned(),
        shape: vec![i64::try_from(values.len()).unwrap_or(i64::MAX)],
        parameters: HashMap::new(),
        contents: Some(contents),
    };
    // Times may be sent as text.
    let as_text = datatype == "INT64" && values.iter().flatten().any(|value| value.parse::<i64>().is_err());
    let datatype = if as_text { "BYTES" } else { datatype };
    let mut tensors = vec![tensor(name.to_owned(), datatype, contents(name, datatype, values)?)];
    if values.iter().any(Option::is_none) {
        let nulls = InferTensorContents {
            bool_contents: values.iter().map(Option::is_none).collect(),
            ..InferTensorContents::default()
        };
        tensors.push(tensor(format!("{name}@null"), "BOOL", nulls));
    }
    Ok(tensors)
}

fn contents(name: &str, datatype: &str, values: &[Option<String>]) -> Result<InferTensorContents> {
    fn parsed<T: std::str::FromStr + Default>(name: &str, datatype: &str, values: &[Option<String>]) -> Result<Vec<T>> {
        let parse = |value: &Option<String>| match value {
            None => Ok(T::default()),
            Some(text) => text.parse().map_err(|_| {
                Error::invalid("a value is not of its column's type")
                    .with("column", name)
                    .with("value", text)
                    .with("datatype", datatype)
            }),
        };
        values.iter().map(parse).collect()
    }
    let mut contents = InferTensorContents::default();
    match datatype {
        "BOOL" => contents.bool_contents = parsed(name, datatype, values)?,
        "INT8" | "INT16" | "INT32" => contents.int_contents = parsed(name, datatype, values)?,
        "INT64" => contents.int64_contents = parsed(name, datatype, values)?,
        "UINT8" | "UINT16" | "UINT32" => contents.uint_contents = parsed(name, datatype, values)?,
        "UINT64" => contents.uint64_contents = parsed(name, datatype, values)?,
        "FP32" => contents.fp32_contents = parsed(name, datatype, values)?,
        "FP64" => contents.fp64_contents = parsed(name, datatype, values)?,
        _ => {
            contents.bytes_contents =
                values.iter().map(|v| v.clone().unwrap_or_default().into_bytes().into()).collect();
        }
    }
    Ok(contents)
}

#[expect(clippy::cast_precision_loss, reason = "answers are shown to people")]
fn numbers(contents: &InferTensorContents) -> Vec<f64> {
    let InferTensorContents { bool_contents, int_contents, int64_contents, uint_contents, uint64_contents, .. } =
        contents;
    let whole = int_contents.iter().map(|v| f64::from(*v)).chain(uint_contents.iter().map(|v| f64::from(*v)));
    let long = int64_contents.iter().map(|v| *v as f64).chain(uint64_contents.iter().map(|v| *v as f64));
    let flags = bool_contents.iter().map(|v| f64::from(u8::from(*v)));
    let floats = contents.fp32_contents.iter().map(|v| f64::from(*v)).chain(contents.fp64_contents.iter().copied());
    flags.chain(whole).chain(long).chain(floats).collect()
}

fn text(choice: Option<ParameterChoice>) -> String {
    match choice {
        Some(ParameterChoice::BoolParam(value)) => value.to_string(),
        Some(ParameterChoice::Int64Param(value)) => value.to_string(),
        Some(ParameterChoice::Uint64Param(value)) => value.to_string(),
        Some(ParameterChoice::DoubleParam(value)) => value.to_string(),
        Some(ParameterChoice::StringParam(value)) => value,
        None => String::new(),
    }
}
