//! `DoExchange`: what its first message's command says.

use std::sync::Arc;

use arrow_flight::FlightData;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use springhouse_featurestore::Error;
use springhouse_featurestore::lookup::MOST_ROWS;
use springhouse_featurestore::training_set::TrainingSets;
use tonic::{Status, Streaming};

use super::bounds::{Bounds, MOST_PUSHED_ROWS, bounded};
use super::command::Command;
use super::places::{Places, held};
use super::{lookup, training_set};
use crate::features::FeatureServer;
use crate::security::{Caller, table};
use crate::status::to_status;

/// What an exchange sends.
pub(super) type Answers = BoxStream<'static, Result<FlightData, Status>>;

/// The answers to an exchange.
pub(super) async fn exchange(
    features: Arc<FeatureServer>,
    training_sets: Arc<dyn TrainingSets>,
    caller: Caller,
    places: &Places,
    mut incoming: Streaming<FlightData>,
) -> Result<Answers, Status> {
    let first = incoming.message().await?.ok_or_else(|| Status::invalid_argument("the exchange sent nothing"))?;
    let command = Command::parse(&first.flight_descriptor.clone().unwrap_or_default().cmd).map_err(to_status)?;
    table::check_command(&caller, &command).map_err(to_status)?;
    // It is held while the spine comes, and until the last answer.
    let place = places.take(&caller, &command).map_err(to_status)?;
    let dictionaries = places.dictionaries(&caller);
    let answers = match command {
        Command::Lookup(lookup) => {
            let bounds = Bounds::new("keys", MOST_ROWS).sharing(dictionaries);
            lookup::exchange(features, caller, &lookup, bounded(messages(first, incoming), bounds))
        }
        Command::TrainingSet(set) => {
            let bounds = Bounds::new(training_set::ROWS, MOST_PUSHED_ROWS).sharing(dictionaries);
            let spine = places.spine(&caller);
            training_set::exchange(training_sets, caller, set, bounded(messages(first, incoming), bounds), spine).await
        }
        Command::Package(_) => Err(to_status(
            Error::invalid("an exchange is of lookups, or of a spine for a training set").remedy("call DoGet"),
        )),
        Command::Push(_) => Err(to_status(
            Error::invalid("an exchange is of lookups, or of a spine for a training set").remedy("call DoPut"),
        )),
    };
    Ok(held(answers?, place))
}

/// Some clients send the descriptor alone, others with the schema.
fn messages(
    first: FlightData,
    incoming: Streaming<FlightData>,
) -> impl Stream<Item = arrow_flight::error::Result<FlightData>> + Send + 'static {
    let opening = (!first.data_header.is_empty()).then_some(Ok(first));
    stream::iter(opening).chain(incoming.map_err(Into::into))
}
