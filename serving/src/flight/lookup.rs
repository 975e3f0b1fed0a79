//! `DoExchange` with a lookup command: the hot path. The command comes once; then every batch of keys is answered by
//! one batch of features, row for row, in order.

use std::sync::Arc;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::Error;
use springhouse_featurestore::lookup::LookupPlan;
use tonic::{Status, Streaming};

use super::command::Command;
use super::malformed;
use crate::features::FeatureServer;
use crate::status::to_status;

/// Answers are never split: a client pairs them with its questions by counting.
const WHOLE_BATCHES: usize = usize::MAX;

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
    let schema = Arc::clone(plan.schema());
    let answers = FlightRecordBatchStream::new_from_flight_data(keys.boxed()).map(move |batch| {
        let batch = batch.map_err(|error| FlightError::Tonic(Box::new(malformed("keys", &error))))?;
        server.lookup_with(&plan, &batch).map_err(|error| FlightError::Tonic(Box::new(to_status(error))))
    });
    let encoded = FlightDataEncoderBuilder::new()
        .with_max_flight_data_size(WHOLE_BATCHES)
        .with_schema(schema)
        .build(answers)
        .map_err(Status::from);
    Ok(encoded.boxed())
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
