//! `DoExchange` with a training-set command: the batches of a spine go up, and when it has ended those of the training set
//! come down. Its rows are data, so no client names a file or writes a query for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use springhouse_featurestore::encoding::bytes_of_rows;
use springhouse_featurestore::training_set::{Batches, TrainingSetCommand, TrainingSets};
use springhouse_featurestore::{Error, Result};
use tonic::Status;

use super::bounds::check_unpacked;
use super::command::Command;
use super::exchange::Answers;
use super::malformed;
use crate::security::{Caller, Scope, table};
use crate::shares::Share;
use crate::status::{from_status, to_status};

/// What the batches of a spine are, for messages.
pub(super) const ROWS: &str = "rows of the spine";

/// How long a spine may take to come, however steadily it does.
const SPINE_WITHIN: Duration = Duration::from_secs(60 * 60);

/// What a spine has taken of what its caller may have on disk.
type SpineRoom = Arc<Mutex<Share<Arc<str>>>>;

/// The training set for a spine that comes as batches, in messages that are within their bounds.
pub(super) async fn exchange(
    training_sets: Arc<dyn TrainingSets>,
    caller: Caller,
    command: TrainingSetCommand,
    messages: impl Stream<Item = arrow_flight::error::Result<FlightData>> + Send + 'static,
    taken: Share<Arc<str>>,
) -> Result<Answers, Status> {
    if command.spine.is_some() {
        let error = Error::invalid("the spine is given twice: named in the command, and as batches of the exchange");
        return Err(to_status(error.remedy("leave it out of the command, or call DoGet")));
    }
    let room = Arc::new(Mutex::new(taken));
    let spine = spine(caller.clone(), messages, Arc::clone(&room)).await?;
    let batches = training_sets.training_set(&command, Some(spine)).await.map_err(to_status)?;
    let answers = encode(batches, caller, table::of_command(&Command::TrainingSet(command)));
    // The spine lies on disk until its set has been read.
    Ok(answers
        .map(move |answer| {
            let _held = &room;
            answer
        })
        .boxed())
}

/// Batches on the wire, for as long as their caller is known and has one of these scopes: they may take hours.
pub(super) fn encode((schema, batches): Batches, caller: Caller, scopes: &'static [Scope]) -> Answers {
    let batches = batches.map(move |batch| caller.require_one_of(scopes).and(batch));
    let batches = batches.map_err(|error| FlightError::Tonic(Box::new(to_status(error))));
    FlightDataEncoderBuilder::new().with_schema(schema).build(batches).map_err(Status::from).boxed()
}

/// Takes what the next batch of a spine has.
fn take_room(room: &SpineRoom, batch: &RecordBatch) -> Result<()> {
    let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = room.amount().saturating_add(bytes_of_rows(batch));
    let taken = room.resize(bytes);
    taken.map_err(|full| full.error("bytes of spines that came as batches", room.who().map(AsRef::as_ref)))
}

async fn spine(
    caller: Caller,
    messages: impl Stream<Item = arrow_flight::error::Result<FlightData>> + Send + 'static,
    room: SpineRoom,
) -> Result<Batches, Status> {
    let until = tokio::time::Instant::now() + SPINE_WITHIN;
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
    let first = batches.try_next().await.map_err(|error| malformed(ROWS, &error))?;
    if let Some(first) = &first {
        check_unpacked(first)?;
        take_room(&room, first).map_err(to_status)?;
    }
    let schema = batches.schema().cloned().ok_or_else(|| {
        let error = Error::invalid("the spine did not come");
        to_status(error.remedy("send its schema and its batches in the exchange, and end them (done_writing)"))
    })?;
    let rest = batches.map(move |batch| {
        caller.require(Scope::Read)?;
        let batch = batch.map_err(|error| from_status(&malformed(ROWS, &error)))?;
        check_unpacked(&batch).map_err(|status| from_status(&status))?;
        if until <= tokio::time::Instant::now() {
            return Err(Error::expired("the spine took too long to come")
                .with("seconds", SPINE_WITHIN.as_secs())
                .remedy("send it in several"));
        }
        take_room(&room, &batch)?;
        Ok(batch)
    });
    Ok((schema, stream::iter(first.map(Ok)).chain(rest).boxed()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;
    use crate::shares::Shares;

    #[test]
    fn a_spine_takes_of_what_its_caller_may_have_on_disk() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7; 1000]));
        let batch = RecordBatch::try_from_iter([("number", numbers)]).expect("one column");
        let shares = Shares::halves(5 * batch.get_array_memory_size());
        let room = |who: &str| Arc::new(Mutex::new(shares.nothing(Some(&who.into()))));
        let (first, second) = (room("ann"), room("ann"));
        take_room(&first, &batch).expect("less than half");
        take_room(&second, &batch).expect("less than half");
        let error = take_room(&first, &batch).expect_err("more than half");
        assert!(error.to_string().contains("caller: ann"), "{error}");
        take_room(&room("bob"), &batch).expect("the rest is for others");
        drop(second);
        take_room(&first, &batch).expect("given back");
    }

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
