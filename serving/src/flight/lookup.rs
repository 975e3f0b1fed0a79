//! `DoExchange` with a lookup command: the hot path. The command comes once; then every batch of keys is answered by
//! one batch of features, row for row, in order.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::Error;
use springhouse_featurestore::lookup::{LookupPlan, MOST_ROWS};
use tonic::{Status, Streaming};

use super::bounds::{Bounds, bounded, check_unpacked};
use super::command::Command;
use super::malformed;
use crate::features::FeatureServer;
use crate::status::to_status;

/// Writes answers as messages, each as one: a client pairs them with its questions by counting. `arrow-flight`'s own writer
/// sends nothing for a batch without rows.
struct Answers {
    generator: IpcDataGenerator,
    /// Answers have no dictionaries.
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(false),
            options: IpcWriteOptions::default(),
            context: IpcWriteContext::default(),
        }
    }
}

impl Answers {
    fn write(&mut self, answer: &RecordBatch) -> Result<FlightData, Status> {
        let written = self.generator.encode(answer, &mut self.dictionaries, &self.options, &mut self.context);
        written.map(|(_, answer)| answer.into()).map_err(|error| to_status(error.into()))
    }
}

/// The answers to an exchange.
pub(super) async fn exchange(
    server: Arc<FeatureServer>,
    mut incoming: Streaming<FlightData>,
) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
    let first = incoming.message().await?.ok_or_else(|| Status::invalid_argument("the exchange sent nothing"))?;
    let descriptor = first.flight_descriptor.clone().unwrap_or_default();
    let plan = plan_for(&server, &descriptor)?;
    // Some clients send the descriptor alone, others with the schema.
    let opening = (!first.data_header.is_empty()).then_some(Ok(first));
    let keys = stream::iter(opening).chain(incoming.map_err(|status| FlightError::Tonic(Box::new(status))));
    let keys = bounded(keys, Bounds::new("keys", MOST_ROWS));
    let mut writer = Answers::default();
    let schema = FlightData::from(SchemaAsIpc::new(plan.schema(), &writer.options));
    let answers = FlightRecordBatchStream::new_from_flight_data(keys).map(move |batch| {
        let batch = batch.map_err(|error| malformed("keys", &error))?;
        check_unpacked(&batch)?;
        writer.write(&server.lookup_with(&plan, &batch).map_err(to_status)?)
    });
    Ok(stream::iter([Ok(schema)]).chain(answers).boxed())
}

fn plan_for(server: &FeatureServer, descriptor: &FlightDescriptor) -> Result<Arc<LookupPlan>, Status> {
    match Command::parse(&descriptor.cmd).map_err(to_status)? {
        Command::Lookup(lookup) => server.plan(&lookup.contract).map_err(to_status),
        Command::Package(_) | Command::TrainingSet(_) => {
            Err(to_status(Error::invalid("DoExchange answers lookups; this command is for DoGet")))
        }
        Command::Push(_) => Err(to_status(Error::invalid("DoExchange answers lookups; this command is for DoPut"))),
    }
}
