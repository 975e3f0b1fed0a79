//! `producers`: who pushes to a source, and how far each has got.

use clap::Args;
use springhouse_featurestore::push::{ProducerChange, ProducerCorrection, ProducerState};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::{ProducersCommand, RemoteFeatures};

use super::parse_time;
use crate::project::{Project, who};
use crate::render::{show, table};

/// Show the producers of a source, retire one, or set the watermark back that one has said.
#[derive(Debug, Args)]
pub struct Producers {
    /// The source's name
    source: String,
    /// A producer that is gone: the source's watermark does not wait for it any more
    #[arg(long, value_name = "NAME", conflicts_with = "watermark")]
    retire: Option<String>,
    /// A producer that has said too much, and the time up to which it has sent every event: NAME=TIME
    #[arg(long, value_name = "NAME=TIME", value_parser = parse_watermark)]
    watermark: Option<(String, Timestamp)>,
    /// Why, for the record
    #[arg(long, short, default_value = "", hide_default_value = true)]
    message: String,
    /// The store's address; the settings' when it is not given
    #[arg(long)]
    store: Option<String>,
}

fn parse_watermark(text: &str) -> Result<(String, Timestamp), String> {
    let (producer, time) = text.rsplit_once('=').ok_or_else(|| "write NAME=TIME".to_owned())?;
    Ok((producer.to_owned(), parse_time(time)?))
}

impl Producers {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let store = project.remote_store(self.store.as_ref())?;
        let retired = self.retire.clone().map(|producer| (producer, ProducerChange::Retire));
        let corrected = self.watermark.clone().map(|(producer, at)| (producer, ProducerChange::Watermark(at)));
        if let Some(change) = retired.or(corrected) {
            let (source, why) = (self.source.clone(), self.message.clone());
            let command = ProducersCommand { source, change: Some(change), who: who(), why };
            let _: ProducerState = store.act_json("change_producer", &body(&command)?).await?;
        }
        let producers = producers_of(&store, &self.source).await?;
        show(json, &producers, || shown(&producers))
    }
}

fn body(command: &ProducersCommand) -> Result<String> {
    serde_json::to_string(command).map_err(|error| Error::internal("a command cannot be written as JSON").source(error))
}

/// The producers of a source, as its server knows them.
pub async fn producers_of(store: &RemoteFeatures, source: &str) -> Result<Vec<ProducerState>> {
    let (who, why) = (String::new(), String::new());
    let command = ProducersCommand { source: source.to_owned(), change: None, who, why };
    store.act_json("producers", &body(&command)?).await
}

/// What was changed, by whom, when and why.
fn told(ProducerCorrection { change, by }: &ProducerCorrection) -> String {
    let change = match change {
        ProducerChange::Retire => "retired".to_owned(),
        ProducerChange::Watermark(watermark) => format!("set back to {watermark}"),
    };
    let why = if by.why.is_empty() { String::new() } else { format!(": {}", by.why) };
    format!("{change} by {} at {}{why}", by.who, by.at)
}

fn shown(producers: &[ProducerState]) -> String {
    let time = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let row = |producer: &ProducerState| {
        let how = match (producer.retired, producer.silent) {
            (Some(at), _) => format!("retired at {at}"),
            (None, true) => "silent: left out".to_owned(),
            (None, false) if producer.watermark.is_none() => "says no watermark".to_owned(),
            (None, false) => "counts".to_owned(),
        };
        let sequence = producer.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string());
        let corrected = producer.corrected.as_ref().map_or_else(|| "-".to_owned(), told);
        vec![producer.producer.clone(), sequence, time(producer.watermark), time(producer.heard), how, corrected]
    };
    table(
        &["producer", "last sequence", "watermark", "last heard", "in the source's watermark", "changed last"],
        &producers.iter().map(row).collect::<Vec<_>>(),
    )
}
