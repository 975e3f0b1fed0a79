//! `DoExchange` with a training-set command: the batches of a spine go up, and when it has ended those of the training set
//! come down. Its rows are data, so no client names a file or writes a query for it.

use std::sync::Arc;

use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use springhouse_featurestore::Error;
use springhouse_featurestore::training_set::{Batches, TrainingSetCommand, TrainingSets};
use tonic::Status;

use super::bounds::check_unpacked;
use super::command::Command;
use super::exchange::Answers;
use super::malformed;
use crate::security::{Caller, Scope, table};
use crate::status::{from_status, to_status};

/// What the batches of a spine are, for messages.
pub(super) const ROWS: &str = "rows of the spine";

/// The training set for a spine that comes as batches, in messages that are within their bounds.
pub(super) async fn exchange(
    training_sets: Arc<dyn TrainingSets>,
    caller: Caller,
    command: TrainingSetCommand,
    messages: impl Stream<Item = arrow_flight::error::Result<FlightData>> + Send + 'static,
) -> Result<Answers, Status> {
    if command.spine.is_some() {
        let error = Error::invalid("the spine is given twice: named in the command, and as batches of the exchange");
        return Err(to_status(error.remedy("leave it out of the command, or call DoGet")));
    }
    let spine = spine(caller.clone(), messages).await?;
    let batches = training_sets.training_set(&command, Some(spine)).await.map_err(to_status)?;
    Ok(encode(batches, caller, table::of_command(&Command::TrainingSet(command))))
}

/// Batches on the wire, for as long as their caller is known and has one of these scopes: they may take hours.
pub(super) fn encode((schema, batches): Batches, caller: Caller, scopes: &'static [Scope]) -> Answers {
    let batches = batches.map(move |batch| caller.require_one_of(scopes).and(batch));
    let batches = batches.map_err(|error| FlightError::Tonic(Box::new(to_status(error))));
    FlightDataEncoderBuilder::new().with_schema(schema).build(batches).map_err(Status::from).boxed()
}

async fn spine(
    caller: Caller,
    messages: impl Stream<Item = arrow_flight::error::Result<FlightData>> + Send + 'static,
) -> Result<Batches, Status> {
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
    let first = batches.try_next().await.map_err(|error| malformed(ROWS, &error))?;
    first.as_ref().map_or(Ok(0), check_unpacked)?;
    let schema = batches.schema().cloned().ok_or_else(|| {
        let error = Error::invalid("the spine did not come");
        to_status(error.remedy("send its schema and its batches in the exchange, and end them (done_writing)"))
    })?;
    let rest = batches.map(move |batch| {
        caller.require(Scope::Read)?;
        let batch = batch.map_err(|error| from_status(&malformed(ROWS, &error)))?;
        check_unpacked(&batch).map_err(|status| from_status(&status))?;
        Ok(batch)
    });
    Ok((schema, stream::iter(first.map(Ok)).chain(rest).boxed()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch};

    use super::*;

    #[tokio::test]
    async fn a_training_set_ends_when_its_caller_is_known_no_more() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let batch = RecordBatch::try_from_iter(BTreeMap::from([("number", numbers)])).expect("one column");
        let caller = Caller::named("ann");
        let standing = caller.clone();
        // Revoked when the second batch is made.
        let batches = stream::iter(0..3).map(move |number| {
            if number == 1 {
                standing.revoke();
            }
            Ok(batch.clone())
        });
        let schema = Arc::new(arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new(
            "number",
            arrow::datatypes::DataType::Int64,
            true,
        )]));
        let sent: Vec<_> = encode((schema, batches.boxed()), caller, &[Scope::Read]).collect().await;
        let codes: Vec<_> = sent.iter().map(|sent| sent.as_ref().err().map(Status::code)).collect();
        assert_eq!(codes, [None, None, Some(tonic::Code::Unauthenticated)], "the schema, a batch, and the end");
    }
}
