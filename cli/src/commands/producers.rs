//! `producers`: who pushes to a source, how far each has got, and whose its name is.

use clap::Args;
use springhouse_featurestore::push::{ProducerChange, ProducerCorrection, ProducerState};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::{ProducersCommand, RemoteFeatures};

use super::parse_time;
use crate::project::{Project, who};
use crate::render::{note, show, table};

/// Show the producers of a source, retire one, set back what one has said, or hand its name over to another caller.
#[derive(Debug, Args)]
pub struct Producers {
    /// The source's name
    source: String,
    /// A producer that is gone: the source's watermark does not wait for it any more
    #[arg(long, value_name = "NAME", group = "change")]
    retire: Option<String>,
    /// A producer that has said too much, and the time up to which it has sent every event: NAME=TIME
    #[arg(long, value_name = "NAME=TIME", value_parser = parse_watermark, group = "change")]
    watermark: Option<(String, Timestamp)>,
    /// A producer whose sequences somebody used up, and the last that is its own: NAME=NUMBER. What was sent above it and is
    /// sent again counts again
    #[arg(long, value_name = "NAME=NUMBER", value_parser = parse_sequence, group = "change")]
    sequence: Option<(String, u64)>,
    /// A producer whose name is another caller's from here on; several for several
    #[arg(long, value_name = "NAME", requires = "to", group = "change")]
    hand_over: Vec<String>,
    /// The caller who may push under those names, as `springhouse token list` has them
    #[arg(long, value_name = "CALLER", requires = "hand_over")]
    to: Option<String>,
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

fn parse_sequence(text: &str) -> Result<(String, u64), String> {
    let (producer, number) = text.rsplit_once('=').ok_or_else(|| "write NAME=NUMBER".to_owned())?;
    Ok((producer.to_owned(), number.parse().map_err(|_| format!("'{number}' is not a sequence: write NAME=NUMBER"))?))
}

impl Producers {
    /// What is to be changed, of which producers.
    fn changes(&self) -> Vec<(String, ProducerChange)> {
        let retired = self.retire.clone().map(|producer| (producer, ProducerChange::Retire));
        let corrected = self.watermark.clone().map(|(producer, at)| (producer, ProducerChange::Watermark(at)));
        let set_back = self.sequence.clone().map(|(producer, last)| (producer, ProducerChange::Sequence(last)));
        let to = self.to.iter().flat_map(|caller| self.hand_over.iter().map(move |producer| (producer, caller)));
        let handed_over = to.map(|(producer, caller)| (producer.clone(), ProducerChange::HandOver(caller.clone())));
        retired.or(corrected).or(set_back).into_iter().chain(handed_over).collect()
    }

    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let store = project.remote_store(self.store.as_ref())?;
        for change in self.changes() {
            if let (producer, ProducerChange::Sequence(last)) = &change {
                note(&format!(
                    "batches of {producer} with a sequence above {last} that are sent again count again; what was taken of \
                     them stays"
                ));
            }
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
fn told(ProducerCorrection { change, by, .. }: &ProducerCorrection) -> String {
    let change = match change {
        ProducerChange::Retire => "retired".to_owned(),
        ProducerChange::Watermark(watermark) => format!("set back to {watermark}"),
        ProducerChange::Sequence(sequence) => format!("set back to sequence {sequence}"),
        ProducerChange::HandOver(caller) => format!("handed over to {caller}"),
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
        let owner = producer.owner.clone().unwrap_or_else(|| "-".to_owned());
        vec![producer.producer.clone(), owner, sequence, time(producer.watermark), time(producer.heard), how, corrected]
    };
    table(
        &[
            "producer",
            "belongs to",
            "last sequence",
            "watermark",
            "last heard",
            "in the source's watermark",
            "changed last",
        ],
        &producers.iter().map(row).collect::<Vec<_>>(),
    )
}
