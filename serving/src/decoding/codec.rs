//! The codec of the predict API: as `tonic-prost`'s, of messages that have been walked through before.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use springhouse_featurestore::Result;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::{Growth, PLAIN, Shape, malformed, walk_whole};
use crate::generated::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::generated::inference::model_infer_response::InferOutputTensor;
use crate::generated::inference::model_metadata_response::TensorMetadata;
use crate::generated::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use crate::status::to_status;

/// What a message may take beside its own bytes: a text of each of 500 columns of 4,096 rows just fits. Lists that grow as
/// they are filled take up to twice that for a moment.
const MOST_GROWTH: u64 = 64 << 20;

/// What an entry of a map takes beside its key and its value's own bytes: both of them, and a place of a table that is a
/// quarter empty.
const MAP_ENTRY: usize = (size_of::<String>() + size_of::<InferParameter>()) * 2;

/// A message of the predict API, and which of its fields grow.
pub trait Grows: Message + Default + Send + 'static {
    /// Its fields that grow.
    const SHAPE: &'static Shape = &PLAIN;
}

impl Grows for ServerLiveRequest {}
impl Grows for ServerLiveResponse {}
impl Grows for ServerReadyRequest {}
impl Grows for ServerReadyResponse {}
impl Grows for ModelReadyRequest {}
impl Grows for ModelReadyResponse {}
impl Grows for ServerMetadataRequest {}
impl Grows for ModelMetadataRequest {}

impl Grows for ServerMetadataResponse {
    const SHAPE: &'static Shape = &Shape(&[(3, Growth::element(size_of::<String>()))]);
}

impl Grows for ModelMetadataResponse {
    const SHAPE: &'static Shape = &Shape(&[
        (2, Growth::element(size_of::<String>())),
        (4, Growth::messages(size_of::<TensorMetadata>(), &METADATA)),
        (5, Growth::messages(size_of::<TensorMetadata>(), &METADATA)),
        (6, Growth::element(4 * size_of::<String>())),
    ]);
}

impl Grows for ModelInferRequest {
    const SHAPE: &'static Shape = &Shape(&[
        (4, Growth::element(MAP_ENTRY)),
        (5, Growth::messages(size_of::<InferInputTensor>(), &TENSOR)),
        (6, Growth::messages(size_of::<InferRequestedOutputTensor>(), &WANTED)),
        (7, Growth::element(size_of::<Bytes>())),
    ]);
}

impl Grows for ModelInferResponse {
    const SHAPE: &'static Shape = &Shape(&[
        (4, Growth::element(MAP_ENTRY)),
        (5, Growth::messages(size_of::<InferOutputTensor>(), &TENSOR)),
        (6, Growth::element(size_of::<Bytes>())),
    ]);
}

const METADATA: Shape = Shape(&[(3, Growth::numbers(8))]);

const WANTED: Shape = Shape(&[(2, Growth::element(MAP_ENTRY))]);

/// An input's tensor, and an output's.
const TENSOR: Shape =
    Shape(&[(3, Growth::numbers(8)), (4, Growth::element(MAP_ENTRY)), (5, Growth::messages(0, &CONTENTS))]);

const CONTENTS: Shape = Shape(&[
    (1, Growth::numbers(1)),
    (2, Growth::numbers(4)),
    (3, Growth::numbers(8)),
    (4, Growth::numbers(4)),
    (5, Growth::numbers(8)),
    // These are as large on the wire.
    (6, Growth::element(4)),
    (7, Growth::element(8)),
    (8, Growth::element(size_of::<Bytes>())),
]);

fn decoded<U: Grows>(message: impl Buf) -> Result<U> {
    U::decode(message).map_err(|error| malformed(&error.to_string()))
}

/// Decodes a message that lies there whole, as it is when it has come over the wire.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] for a message that would take too much memory, or that is malformed.
pub(crate) fn decode_whole<U: Grows>(message: &[u8]) -> Result<U> {
    walk_whole(U::SHAPE, message, MOST_GROWTH)?;
    decoded(message)
}

/// The codec.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::new())
    }
}

impl<T: Message + Send + 'static, U: Grows> Codec for BoundedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// Decodes what has been walked through.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Grows> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The buffer is one piece; what else there were would not have been looked at.
        if message.chunk().len() < message.remaining() {
            return Err(Status::internal("a message lies in several pieces"));
        }
        walk_whole(U::SHAPE, message.chunk(), MOST_GROWTH).map_err(to_status)?;
        decoded(message).map(Some).map_err(to_status)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
