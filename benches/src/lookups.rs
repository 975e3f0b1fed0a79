//! Lookups over Flight against a bare Flight echo of equal-sized batches, one exchange on one connection each.

use std::net::SocketAddr;

use arrow::array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightClient, FlightDescriptor};
use futures::StreamExt;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::Command;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::echo;
use crate::house::{CONTRACT, House, Memory, plain_session};
use crate::load::{CALLERS, Caller, Compared, ROUNDS, closed_loop, compare, say};

/// An open exchange.
pub struct Exchange {
    questions: mpsc::Sender<Result<RecordBatch, FlightError>>,
    answers: FlightRecordBatchStream,
}

fn failed(error: FlightError) -> Error {
    Error::unavailable("the exchange failed").source(error)
}

impl Exchange {
    /// Opens an exchange for keys of this schema.
    pub async fn open(address: SocketAddr, keys: &RecordBatch) -> Result<Self> {
        Self::open_for(address, CONTRACT, keys).await
    }

    /// Opens one for another contract.
    pub async fn open_for(address: SocketAddr, contract: &str, keys: &RecordBatch) -> Result<Self> {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Error::internal("no address").source(error))?
            .tcp_nodelay(true)
            .connect_lazy();
        let (questions, asked) = mpsc::channel(1);
        let descriptor = FlightDescriptor::new_cmd(Command::lookup(contract).to_bytes());
        let encoded = FlightDataEncoderBuilder::new()
            .with_schema(keys.schema())
            .with_flight_descriptor(Some(descriptor))
            .build(ReceiverStream::new(asked));
        let mut client = FlightClient::new_from_inner(FlightServiceClient::new(channel));
        let answers = client.do_exchange(encoded).await.map_err(failed)?;
        Ok(Self { questions, answers })
    }

    /// Asks once.
    pub async fn ask(&mut self, keys: &RecordBatch) -> Result<RecordBatch> {
        let closed = || Error::unavailable("the exchange was closed");
        self.questions.send(Ok(keys.clone())).await.map_err(|_| closed())?;
        self.answers.next().await.ok_or_else(closed)?.map_err(failed)
    }
}

/// Asks for the same keys again and again.
pub struct Asker {
    pub exchange: Exchange,
    pub keys: RecordBatch,
}

impl Caller for Asker {
    async fn call(&mut self) -> Result<()> {
        self.exchange.ask(&self.keys).await.map(|_| ())
    }
}

/// Distinct keys of flights of the last November day.
pub async fn keys(house: &House, rows: usize) -> Result<RecordBatch> {
    let session = plain_session(house).await?;
    let sql = format!(
        "SELECT origin, carrier, dest, tailnum FROM flights WHERE scheduled_at >= TIMESTAMP '2013-11-30' \
         AND tailnum IS NOT NULL ORDER BY scheduled_at, flight_id LIMIT {rows}"
    );
    let batches = session.query(&sql).await?;
    Ok(arrow::compute::concat_batches(&batches[0].schema(), &batches)?)
}

/// Measures 1, 10 and 100 keys.
pub async fn measure(house: &House, memory: Memory) -> Result<()> {
    let (name, what) = match memory {
        Memory::Warm => ("warm", "memory tier"),
        Memory::Off => ("off", "disk tier, memory off"),
    };
    let address = house.serve(name, memory).await?;
    for rows in [1, 10, 100] {
        let keys = keys(house, rows).await?;
        let mut one = Exchange::open(address, &keys).await?;
        let answer = one.ask(&keys).await?;
        let bare = echo::flight(answer).await?;
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..CALLERS {
            ours.push(Asker { exchange: Exchange::open(address, &keys).await?, keys: keys.clone() });
            peer.push(Asker { exchange: Exchange::open(bare, &keys).await?, keys: keys.clone() });
        }
        let (compared, latencies) = compare(ours, peer).await?;
        let views = house.contract.features.len();
        say(&compared.row(&format!("lookup of {rows} keys x {views} views over Flight, {what}"), "/s", &latencies));
    }
    Ok(())
}

/// Measures lookups by direct call, the disk tier against the memory tier: what the wire adds nothing to.
pub async fn measure_direct(house: &House) -> Result<()> {
    let warm = house.features("direct-warm", Memory::Warm).await?;
    let off = house.features("direct-off", Memory::Off).await?;
    let plan = warm.plan(CONTRACT)?;
    for rows in [1, 10, 100] {
        let keys = keys(house, rows).await?;
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let disk = closed_loop(async || off.lookup_with(&plan, &keys).map(|_| ())).await?;
            let memory = closed_loop(async || warm.lookup_with(&plan, &keys).map(|_| ())).await?;
            rounds.push((disk, memory));
        }
        let compared = Compared::of(&rounds);
        let views = house.contract.features.len();
        say(&compared.row(
            &format!("lookup of {rows} keys x {views} views, called directly: disk, peer: memory"),
            "/s",
            &[],
        ));
    }
    Ok(())
}
