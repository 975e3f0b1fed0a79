//! The predict API: the Open Inference Protocol over gRPC.
//!
//! A model's name is a contract's name; its input tensors are the `REQUEST` columns, shapes `[rows]` or `[rows, 1]`.
//! Tensors know no null: a nullable column may be left out (all rows null), or come with a `BOOL` tensor
//! `column@null` that says which rows are null. Times are `INT64` microseconds since 1970 in UTC, or RFC 3339 in
//! `BYTES`; dates are `INT32` days. A request with raw contents is answered with raw contents, one with typed contents
//! with typed ones.
//!
//! The answer's parameters: `springhouse_contract_version`, `springhouse_package`, `springhouse_prediction_id`,
//! `springhouse_fresh_rows` (how many rows had every view fresh), and for each view that was not
//! `springhouse_view_NAME`: its status, the rule applied, and the number of rows.

mod client;
mod grpc;
mod tensor;

pub use client::{PredictClient, Prediction, TextColumn};
pub(crate) use grpc::MOST_REQUEST_BYTES;
pub use grpc::PredictService;
pub(crate) use tensor::too_many_rows;
pub use tensor::{TensorData, columns_to_tensors, datatype, request_columns};

use crate::generated::inference::ModelInferRequest;

/// Decodes a request as a server does that has got it whole.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] for one that would take far more memory than it has bytes, or that is
/// malformed.
pub fn decode_request(message: &[u8]) -> springhouse_featurestore::Result<ModelInferRequest> {
    crate::decoding::decode_whole(message)
}
