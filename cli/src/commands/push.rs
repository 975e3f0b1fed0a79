//! `push`: events of a file or a query to a source of the running store.

use std::pin::pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use clap::Args;
use futures::{Stream, TryStreamExt};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Definition, Source};
use springhouse_featurestore::push::{PushAck, PushHeader};
use springhouse_featurestore::tier::Progress;
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::RemoteFeatures;
use springhouse_sql::session::query_error;
use springhouse_sql::spine::{EventFrame, read_events};

use super::parse_time;
use super::producers::producers_of;
use crate::project::Project;
use crate::render::{Bar, show};
use crate::sent::{Content, Sent};

/// Rows of a batch. What is remembered of pushes counts batches, so that it must not change.
const BATCH_ROWS: usize = 8192;

/// Push events to a source of the running store.
#[derive(Debug, Args)]
pub struct Push {
    /// The source's name
    source: String,
    /// A Parquet or CSV file, or a SELECT over the project's tables
    #[arg(long)]
    from: String,
    /// Who sends: its batches are numbered on from its last, and to push the same file or query again changes nothing
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
        let latest = project.clock().now() + project.settings().clock_tolerance;
        // Of a source that this project does not know the server says which there are.
        let events = read_events(&session, &self.from, source_of(&catalog, &self.source), latest).await?;
        let schema = Arc::clone(events.schema().inner());
        let store = project.remote_store(self.store.as_ref())?;
        let mut pusher = store.pusher(&self.source, Arc::clone(&schema)).await?;
        let mut numbers = match &self.producer {
            Some(producer) => Some(self.numbers(project, producer, &store, &events).await?),
            None => None,
        };
        let bar = Bar::default();
        bar.begin(&format!("pushing to {}", self.source), 0);
        let mut done = Pushed::default();
        let mut batches = pin!(in_batches(events).await?);
        while let Some(batch) = batches.try_next().await? {
            let header = match numbers.as_mut().map(Numbers::next) {
                // The server has it from before.
                Some(None) => {
                    done.duplicates += 1;
                    continue;
                }
                Some(sequence) => PushHeader { producer: self.producer.clone(), sequence, watermark: None },
                None => PushHeader::default(),
            };
            let acked = pusher.send(&batch, &header).await?;
            bar.advance(batch.num_rows() as u64);
            if let Some(ack) = acked {
                done.note(&ack)?;
            }
        }
        if self.watermark.is_some() {
            // A heartbeat has no number: to say it again changes nothing.
            let header = PushHeader { producer: self.producer.clone(), sequence: None, watermark: self.watermark };
            let acked = pusher.send(&RecordBatch::new_empty(schema), &header).await?;
            if let Some(ack) = acked {
                done.note(&ack)?;
            }
        }
        while pusher.waiting() > 0 {
            done.note(&pusher.ack().await?)?;
        }
        if let Some(numbers) = numbers {
            numbers.end()?;
        }
        bar.end();
        show(json, &done, || {
            let watermark = done.watermark.map_or_else(|| "none".to_owned(), |watermark| watermark.to_string());
            let repeated = match done.repeated {
                0 => String::new(),
                repeated => format!(", {repeated} events pushed before"),
            };
            format!(
                "{} events taken{repeated}, {} batches sent before; watermark {watermark}",
                done.rows, done.duplicates
            )
        })
    }

    /// How the producer's batches are numbered: on from the last that the server has.
    async fn numbers(
        &self,
        project: &Project,
        producer: &str,
        store: &RemoteFeatures,
        events: &EventFrame,
    ) -> Result<Numbers> {
        let known = producers_of(store, &self.source).await?;
        let last = known.into_iter().find(|of| of.producer == producer).and_then(|of| of.sequence).unwrap_or(0);
        let content = Content::of(events.schema().inner(), pin!(in_batches(events.clone()).await?)).await?;
        let mut sent = Sent::open(project.folder(), &self.source, producer, last)?;
        let skipped = sent.begin(&content, last)?;
        Ok(Numbers { sent, sequence: last, skipped, batches: 0 })
    }
}

/// The numbers of the batches of one run.
struct Numbers {
    sent: Sent,
    /// The last number given.
    sequence: u64,
    /// The batches at the beginning that the server has.
    skipped: u64,
    /// The batches so far, those too.
    batches: u64,
}

impl Numbers {
    /// The next batch's number; `None` for one that the server has.
    fn next(&mut self) -> Option<u64> {
        self.batches += 1;
        (self.batches > self.skipped).then(|| {
            self.sequence += 1;
            self.sequence
        })
    }

    /// Notes that all were taken.
    fn end(mut self) -> Result<()> {
        self.sent.end(self.batches)
    }
}

/// The current version of a source.
fn source_of<'a>(catalog: &'a CatalogState, name: &str) -> Option<&'a Source> {
    catalog.definitions().find_map(|definition| match definition.as_ref() {
        Definition::Source(source) if source.name == name => Some(source),
        _ => None,
    })
}

/// Rows of a query in batches that are the same each time, however they are computed.
async fn in_batches(events: EventFrame) -> Result<impl Stream<Item = Result<RecordBatch>>> {
    let schema = Arc::clone(events.schema().inner());
    let rows = events.execute_stream().await.map_err(query_error)?;
    let batches = BatchCoalescer::new(schema, BATCH_ROWS);
    Ok(futures::stream::try_unfold((rows, batches, false), |(mut rows, mut batches, mut ended)| async move {
        loop {
            if let Some(batch) = batches.next_completed_batch() {
                return Ok::<_, Error>(Some((batch, (rows, batches, ended))));
            }
            if ended {
                return Ok(None);
            }
            match rows.try_next().await.map_err(query_error)? {
                Some(batch) => batches.push_batch(batch)?,
                None => {
                    batches.finish_buffered_batch()?;
                    ended = true;
                }
            }
        }
    }))
}

/// What was pushed.
#[derive(Debug, Default, serde::Serialize)]
struct Pushed {
    rows: u64,
    /// Events that had been pushed before, as the source's `DISTINCT ON` tells.
    repeated: u64,
    duplicates: u64,
    watermark: Option<Timestamp>,
}

impl Pushed {
    fn note(&mut self, ack: &PushAck) -> Result<()> {
        if ack.duplicate {
            return Err(Error::conflict("somebody else pushes as this producer at the same time").remedy(
                "push again when that has ended, and give each its own --producer: what was not taken is taken then",
            ));
        }
        self.rows += ack.rows;
        self.repeated += ack.repeated;
        self.watermark = ack.watermark;
        Ok(())
    }
}
