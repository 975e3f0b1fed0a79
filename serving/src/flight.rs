//! Arrow Flight: features, packages and training sets on the wire.
//!
//! Commands are small JSON objects, so that any Flight client in any language can speak them without generated code:
//!
//! | call | command | what comes back |
//! |---|---|---|
//! | `DoExchange` | `{"lookup": {"contract": "arrival_delay"}}` | for each batch of keys a batch of features, in order |
//! | `DoGet` | `{"package": "sha256:..."}` | the package's files: `name`, `bytes` |
//! | `DoExchange` | `{"training_set": {"contract": "...", "time": "..."}}` | for the batches of a spine the training set |
//! | `DoGet` | the same with `"spine": "SELECT ..."`, or a file's name | the training set; for engineers alone |
//! | `DoAction` | `contracts`, `status`, `follow`, `flush`, `producers`, `change_producer`, `clock` | JSON |
//! | `GetSchema`, `GetFlightInfo`, `ListFlights` | a command, or nothing | schemas and tickets; a ticket is its command |
//!
//! Each needs a scope, whichever call it comes by: `security::table` lists them.

mod bounds;
mod client;
mod command;
mod exchange;
mod lookup;
mod places;
mod push;
mod pusher;
mod reconnection;
mod server;
mod training_set;

use springhouse_featurestore::Error;

use crate::status::to_status;
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
        other => to_status(Error::invalid(format!("the {what} are not record batches: {other}"))),
    }
}
