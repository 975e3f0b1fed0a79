//! `DoExchange` with a lookup command: the hot path. The command comes once; then every batch of keys is answered by
//! one batch of features, row for row, in order.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::{FlightData, SchemaAsIpc};
use futures::{Stream, StreamExt, stream};
use tonic::Status;

use super::bounds::check_unpacked;
use super::command::LookupCommand;
use super::exchange::Answers;
use super::malformed;
use crate::features::FeatureServer;
use crate::security::{Caller, Scope};
use crate::status::to_status;

/// Writes answers as messages, each as one: a client pairs them with its questions by counting. `arrow-flight`'s own writer
/// sends nothing for a batch without rows.
struct Writer {
    generator: IpcDataGenerator,
    /// Answers have no dictionaries.
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(false),
            options: IpcWriteOptions::default(),
            context: IpcWriteContext::default(),
        }
    }
}

impl Writer {
    fn write(&mut self, answer: &RecordBatch) -> Result<FlightData, Status> {
        let written = self.generator.encode(answer, &mut self.dictionaries, &self.options, &mut self.context);
        written.map(|(_, answer)| answer.into()).map_err(|error| to_status(error.into()))
    }
}

/// The answers to an exchange of lookups, of messages with keys that are within their bounds.
pub(super) fn exchange(
    server: Arc<FeatureServer>,
    caller: Caller,
    command: &LookupCommand,
    keys: impl Stream<Item = arrow_flight::error::Result<FlightData>> + Send + 'static,
) -> Result<Answers, Status> {
    let plan = server.plan(&command.contract).map_err(to_status)?;
    let mut writer = Writer::default();
    let schema = FlightData::from(SchemaAsIpc::new(plan.schema(), &writer.options));
    let answers = FlightRecordBatchStream::new_from_flight_data(keys).map(move |batch| {
        let batch = batch.map_err(|error| malformed("keys", &error))?;
        // An exchange may stay open for longer than its caller is known.
        caller.require(Scope::Read).map_err(to_status)?;
        check_unpacked(&batch)?;
        writer.write(&server.lookup_with(&plan, &batch).map_err(to_status)?)
    });
    Ok(stream::iter([Ok(schema)]).chain(answers).boxed())
}
