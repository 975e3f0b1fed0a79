//! Pushes over Flight, acknowledged when durable and visible, against the log's own synced write of the same batches.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use springhouse_featurestore::definition::{Column, Definition, Source};
use springhouse_featurestore::push::{Push, PushHeader, PushLog};
use springhouse_featurestore::time::Clock;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::{Pusher, RemoteFeatures};

use crate::house::{House, Memory};
use crate::load::{CALLERS, Caller, compare, say};

/// The source that is pushed to; one view with two windows reads it.
const SOURCE: &str = "departures";

/// Sends a batch again and again.
struct Producer {
    pusher: Pusher,
    events: RecordBatch,
}

impl Caller for Producer {
    async fn call(&mut self) -> Result<()> {
        self.pusher.send(&self.events, &PushHeader::default()).await?;
        self.pusher.ack().await.map(|_| ())
    }
}

/// Writes a batch to a log again and again.
struct Writer {
    log: Arc<PushLog>,
    events: RecordBatch,
}

impl Caller for Writer {
    async fn call(&mut self) -> Result<()> {
        let (log, events) = (Arc::clone(&self.log), self.events.clone());
        let push = Push { source: SOURCE.to_owned(), events, header: PushHeader::default() };
        let written = tokio::task::spawn_blocking(move || log.append(vec![push])).await;
        written.map_err(|error| Error::internal("the writer panicked").source(error))?.map(|_| ())
    }
}

/// So many departures of the last hours before the clock's time.
fn events(source: &Source, rows: usize, now: i64) -> Result<RecordBatch> {
    let airports = ["EWR", "JFK", "LGA"];
    let times = (0..rows).map(|row| now - i64::try_from(row % 7_200).unwrap_or(0) * 1_000_000);
    let delays = (0..rows).map(|row| f64::from(u32::try_from(row % 90).unwrap_or(0)));
    let schema = Column::to_schema(source.columns.iter());
    let columns: Vec<ArrayRef> = vec![
        Arc::new((0..rows).map(|row| Some(airports[row % 3])).collect::<StringArray>()),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        cast(&Float64Array::from_iter_values(delays), schema.field(2).data_type())?,
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// Measures batches of 1, 100 and 10,000 events.
pub async fn measure(house: &House) -> Result<()> {
    let address = house.serve("pushed", Memory::Warm).await?;
    let store = RemoteFeatures::new(&format!("http://{address}"))?;
    let source = house.state.definitions().find_map(|definition| match definition.as_ref() {
        Definition::Source(source) if source.name == SOURCE => Some(source.clone()),
        _ => None,
    });
    let source = source.ok_or_else(|| Error::internal("the example has no departures"))?;
    for rows in [1, 100, 10_000] {
        let events = events(&source, rows, house.clock.now().micros())?;
        let log = Arc::new(PushLog::open(&house.folder.path().join(format!("bare-{rows}")))?);
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..CALLERS {
            let pusher = store.pusher(SOURCE, events.schema()).await?;
            ours.push(Producer { pusher, events: events.clone() });
            peer.push(Writer { log: Arc::clone(&log), events: events.clone() });
        }
        let (compared, latencies) = compare(ours, peer).await?;
        say(&compared.row(
            &format!("push of {rows} events, durable and in every view, peer: the log's synced write alone"),
            "batches/s",
            &latencies,
        ));
    }
    Ok(())
}
