//! Serving: features over Arrow Flight, predictions over the Open Inference Protocol, and the worker between them.
//!
//! ```text
//! caller -> predict (gRPC) -> worker: queue -> batch -> FeatureSource -> enforce -> inputs -> model -> answer
//!                                                        |  same process: FeatureServer
//!                                                        |  elsewhere:    RemoteFeatures -> Flight -> FeatureServer
//! ```
//!
//! The way through it:
//!
//! 1. [`features`] — the feature server: the store's catalog and tiers, followed as they change; the lookup.
//! 2. [`flight`] — that server on the wire, and the client that workers use.
//! 3. [`package`] — content-addressed model artifacts; [`model`] — what is loaded from them.
//! 4. [`worker`] — one request's way, step by step.
//! 5. [`predict`] — the edge: tensors to columns, columns to tensors.
//! 6. [`http`] — the HTTP port, with what [`metrics`] measures.
//! 7. [`security`] — who calls, and with which scopes: the layer before all of these, and the client's side.
//! 8. [`app`] — builds everything, listens, drains; `network` — connections that notice silence.
//! 9. `decoding` and `shares` — what a message may take in memory, and a caller of what there is only so much of.
//!
//! It never runs a refresh and never reads a source: `materializer` does, and the two meet in the store.

pub mod app;
mod connections;
mod decoding;
pub mod features;
pub mod flight;
#[expect(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated from proto/inference.proto")]
pub mod generated {
    //! Generated protocol code, checked in; a test regenerates it and fails on a difference.
    #[rustfmt::skip]
    pub mod inference;
    /// The protocol's file descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
}
pub mod http;
pub mod metrics;
pub mod model;
mod network;
pub mod package;
pub mod predict;
pub mod security;
mod shares;
mod status;
pub mod worker;

pub use features::{DeployedContract, FeatureServer, FeatureSource};
