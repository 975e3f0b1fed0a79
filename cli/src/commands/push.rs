//! `push`: events of a file or a query to a source of the running store.

use clap::Args;
use futures::TryStreamExt;
use springhouse_featurestore::Result;
use springhouse_featurestore::push::{PushAck, PushHeader};
use springhouse_featurestore::tier::Progress;
use springhouse_featurestore::time::Timestamp;
use springhouse_serving::flight::RemoteFeatures;
use springhouse_sql::spine::read_events;

use super::lookup::store_address;
use super::parse_time;
use crate::project::Project;
use crate::render::{Bar, show};

/// Push events to a source of the running store.
#[derive(Debug, Args)]
pub struct Push {
    /// The source's name
    source: String,
    /// A Parquet or CSV file, or a SELECT over the project's tables
    #[arg(long)]
    from: String,
    /// Who sends: batches are numbered, and to send the same again changes nothing
    #[arg(long)]
    producer: Option<String>,
    /// Every event up to this time has then been sent: what the source's views go by for their lag
    #[arg(long, value_parser = parse_time)]
    watermark: Option<Timestamp>,
    /// The store's address; the settings' when it is not given
    #[arg(long)]
    store: Option<String>,
}

impl Push {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, catalog) = project.catalog().await?;
        let session = project.jobs()?.full_session(&catalog).await?.ordered();
        let frame = read_events(&session, &self.from, None, Timestamp::MAX).await?;
        let schema = std::sync::Arc::clone(frame.schema().inner());
        let mut batches = frame.execute_stream().await.map_err(springhouse_sql::session::query_error)?;
        let store = RemoteFeatures::new(&store_address(project, self.store.as_ref()))?;
        let mut pusher = store.pusher(&self.source, std::sync::Arc::clone(&schema)).await?;
        let bar = Bar::default();
        bar.begin(&format!("pushing to {}", self.source), 0);
        let mut done = Pushed::default();
        let mut sequence = 0;
        let mut header = |watermark| {
            sequence += 1;
            PushHeader {
                producer: self.producer.clone(),
                sequence: self.producer.as_ref().map(|_| sequence),
                watermark,
            }
        };
        while let Some(batch) = batches.try_next().await.map_err(springhouse_sql::session::query_error)? {
            let acked = pusher.send(&batch, &header(None)).await?;
            bar.advance(batch.num_rows() as u64);
            if let Some(ack) = acked {
                done.note(&ack);
            }
        }
        if self.watermark.is_some() {
            let heartbeat = arrow::array::RecordBatch::new_empty(schema);
            let acked = pusher.send(&heartbeat, &header(self.watermark)).await?;
            if let Some(ack) = acked {
                done.note(&ack);
            }
        }
        while pusher.waiting() > 0 {
            done.note(&pusher.ack().await?);
        }
        bar.end();
        show(json, &done, || {
            let watermark = done.watermark.map_or_else(|| "none".to_owned(), |watermark| watermark.to_string());
            format!("{} events taken, {} batches sent before; watermark {watermark}", done.rows, done.duplicates)
        })
    }
}

/// What was pushed.
#[derive(Debug, Default, serde::Serialize)]
struct Pushed {
    rows: u64,
    duplicates: u64,
    watermark: Option<Timestamp>,
}

impl Pushed {
    fn note(&mut self, ack: &PushAck) {
        self.rows += ack.rows;
        self.duplicates += u64::from(ack.duplicate);
        self.watermark = ack.watermark;
    }
}
