//! Pushes over Flight, acknowledged when durable and visible, against the log's own synced write of the same batches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use springhouse_featurestore::definition::{Column, Definition, Source};
use springhouse_featurestore::push::{Push, PushHeader, PushLog};
use springhouse_featurestore::time::{Clock, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::{Pusher, RemoteFeatures};

use crate::house::{House, Memory};
use crate::load::{CALLERS, Caller, bursts, compare, say};

/// The source that is pushed to; one view with two windows reads it.
const SOURCE: &str = "departures";

/// As many bytes of events are held before the log lets go of them.
const FLUSH_BYTES: u64 = 32 << 20;

/// A burst whose events are fewer than make the log flush.
const BURST: Duration = Duration::from_millis(100);

/// Batches of an hour, one after another; then the hour begins again.
const BATCHES: usize = 64;

/// An hour's batches, and the next of them.
#[derive(Clone)]
struct Hour {
    batches: Arc<Vec<RecordBatch>>,
    next: usize,
}

impl Hour {
    fn next(&mut self) -> RecordBatch {
        self.next += 1;
        self.batches[self.next % BATCHES].clone()
    }
}

/// Sends batches, each when the one before was acknowledged.
pub struct Producer {
    pusher: Pusher,
    hour: Hour,
}

impl Caller for Producer {
    async fn call(&mut self) -> Result<()> {
        self.pusher.send(&self.hour.next(), &PushHeader::default()).await?;
        self.pusher.ack().await.map(|_| ())
    }
}

/// Writes batches to a log.
struct Writer {
    log: Arc<PushLog>,
    hour: Hour,
}

impl Caller for Writer {
    async fn call(&mut self) -> Result<()> {
        let (log, events) = (Arc::clone(&self.log), self.hour.next());
        let at = Timestamp::from_micros(0);
        let push = Push { source: SOURCE.to_owned(), events, header: PushHeader::default(), at };
        let write = move || {
            let (_, reach) = log.append(vec![push])?;
            // Ours lets go of what it has flushed: without that the peer's files would be written again meanwhile.
            if log.bytes() > FLUSH_BYTES { log.trim(reach.last) } else { Ok(()) }
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|error| Error::internal("the writer panicked").source(error))?
    }
}

/// So many departures in order of time, the batch with this number of the hour before the clock's time.
fn events(source: &Source, rows: usize, number: usize, now: i64) -> Result<RecordBatch> {
    let airports = ["EWR", "JFK", "LGA"];
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let apart = 3_600_000_000 / count(rows * BATCHES);
    let times = (0..rows).map(|row| now - 3_600_000_000 + count(number * rows + row) * apart);
    let delays = (0..rows).map(|row| f64::from(u32::try_from(row % 90).unwrap_or(0)));
    let schema = Column::to_schema(source.columns.iter());
    let columns: Vec<ArrayRef> = vec![
        Arc::new((0..rows).map(|row| Some(airports[row % 3])).collect::<StringArray>()),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        cast(&Float64Array::from_iter_values(delays), schema.field(2).data_type())?,
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// Producers on connections of their own, of batches of so many events.
pub async fn producers(house: &House, address: SocketAddr, rows: usize) -> Result<Vec<Producer>> {
    let store = RemoteFeatures::new(&format!("http://{address}"))?;
    let hour = hour(house, rows)?;
    let mut producers = Vec::new();
    for _ in 0..CALLERS {
        let pusher = store.pusher(SOURCE, hour.batches[0].schema()).await?;
        producers.push(Producer { pusher, hour: hour.clone() });
    }
    Ok(producers)
}

/// An hour's batches of so many events.
fn hour(house: &House, rows: usize) -> Result<Hour> {
    let source = house.state.definitions().find_map(|definition| match definition.as_ref() {
        Definition::Source(source) if source.name == SOURCE => Some(source.clone()),
        _ => None,
    });
    let source = source.ok_or_else(|| Error::internal("the example has no departures"))?;
    let now = house.clock.now().micros();
    let batches = (0..BATCHES).map(|number| events(&source, rows, number, now)).collect::<Result<Vec<_>>>()?;
    Ok(Hour { batches: Arc::new(batches), next: 0 })
}

/// Callers on both sides: producers on connections of their own, and writers of one log.
async fn callers(
    house: &House,
    address: SocketAddr,
    rows: usize,
    log: &Arc<PushLog>,
) -> Result<(Vec<Producer>, Vec<Writer>)> {
    let ours = producers(house, address, rows).await?;
    let peer = ours.iter().map(|producer| Writer { log: Arc::clone(log), hour: producer.hour.clone() }).collect();
    Ok((ours, peer))
}

/// Measures batches of 1, 100 and 10,000 events.
pub async fn measure(house: &House) -> Result<()> {
    let address = house.serve("pushed", Memory::Warm).await?;
    let store = RemoteFeatures::new(&format!("http://{address}"))?;
    for rows in [1, 100, 10_000] {
        let log = Arc::new(PushLog::open(&house.folder.path().join(format!("bare-{rows}")))?);
        let (ours, peer) = callers(house, address, rows, &log).await?;
        let (compared, latencies) = compare(ours, peer).await?;
        say(&compared.row(
            &format!("push of {rows} events, durable and in every view, peer: the log's synced write alone"),
            "batches/s",
            &latencies,
        ));
        if rows == 10_000 {
            // What the log holds at once, without the moves to object storage that go on all the time above.
            let (ours, peer) = callers(house, address, rows, &log).await?;
            let compared = bursts(ours, peer, BURST, async || store.act("flush", "").await.map(|_| ())).await?;
            say(&compared.row("the same, in bursts of 0.1 s that the log holds", "batches/s", &[]));
        }
    }
    Ok(())
}
