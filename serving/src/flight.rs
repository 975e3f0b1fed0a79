//! Arrow Flight: features, packages and training sets on the wire.
//!
//! Commands are small JSON objects, so that any Flight client in any language can speak them without generated code:
//!
//! | call | command | what comes back |
//! |---|---|---|
//! | `DoExchange` | `{"lookup": {"contract": "arrival_delay"}}` | for each batch of keys a batch of features, in order |
//! | `DoGet` | `{"package": "sha256:..."}` | the package's files: `name`, `bytes` |
//! | `DoGet` | `{"training_set": {"contract": "...", "spine": "...", "time": "..."}}` | the training set |
//! | `DoAction` | `contracts`, `status`, `follow`, `flush`, `producers`, `change_producer`, `clock` | JSON |
//! | `GetFlightInfo`, `ListFlights` | a command, or nothing | schemas and tickets; a ticket is its command |

mod bounds;
mod client;
mod command;
mod lookup;
mod push;
mod pusher;
mod reconnection;
mod server;

pub use client::RemoteFeatures;
pub use command::{Command, ProducersCommand};
pub use pusher::Pusher;
pub use server::FlightServer;

/// The largest message taken on any service.
pub(crate) const fn max_message_bytes() -> usize {
    server::MAX_MESSAGE_BYTES
}

/// Bytes that are not Arrow are the caller's fault, not the server's.
fn malformed(what: &str, error: &arrow_flight::error::FlightError) -> tonic::Status {
    match error {
        arrow_flight::error::FlightError::Tonic(status) => status.as_ref().clone(),
        other => tonic::Status::invalid_argument(format!("the {what} are not record batches: {other}")),
    }
}
