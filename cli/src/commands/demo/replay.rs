//! Two days at their own time: departures and landings pushed as they happen, the weather refreshed when it is due,
//! every flight predicted when it is scheduled.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::push::PushHeader;
use springhouse_featurestore::time::{DrivenClock, Span, Timestamp};
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_materializer::Jobs;
use springhouse_materializer::due::is_due;
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::model::neural::area_under_curve;
use springhouse_serving::predict::{PredictClient, Prediction, TextColumn};
use springhouse_sql::session::Session;

use super::LABEL;
use super::servers::Servers;
use crate::project::Project;
use crate::render::say;

/// Refreshes that are due run this often.
const STEP: Span = Span::from_secs(600);

/// A line of the table is shown this often.
const SHOW_EVERY: Span = Span::from_secs(2 * 3600);

/// The request columns as text, and the label.
const COLUMNS: [&str; 6] = ["origin", "dest", "carrier", "tailnum", "distance", "scheduled_at"];

/// The replay.
pub struct Replay<'a> {
    clock: &'a DrivenClock,
    state: CatalogState,
    jobs: Jobs,
    store: RemoteFeatures,
    worker: PredictClient,
    metadata: springhouse_serving::generated::inference::ModelMetadataResponse,
    /// What happens to the sources that are pushed.
    live: Vec<Live>,
    /// Flights by scheduled time.
    flights: BTreeMap<Timestamp, Vec<Flight>>,
    seen: Seen,
}

struct Flight {
    values: Vec<Option<String>>,
    late: Option<bool>,
}

/// The events of a source that are yet to happen, in order of time.
struct Live {
    source: &'static str,
    time: &'static str,
    events: RecordBatch,
    pushed: usize,
    sequence: u64,
}

impl Live {
    async fn open(session: &Session, source: &'static str, columns: &str, time: &'static str) -> Result<Self> {
        let batches = session
            .query(&format!(
                "SELECT {columns} FROM flights WHERE {time} > TIMESTAMP '{}' ORDER BY {time}, flight_id",
                super::FIRST_DAY
            ))
            .await?;
        let schema = batches.first().map(RecordBatch::schema).ok_or_else(|| Error::internal("no live events"))?;
        let events = arrow::compute::concat_batches(&schema, &batches)?;
        Ok(Self { source, time, events, pushed: 0, sequence: 0 })
    }

    /// The next events, up to a time.
    fn until(&mut self, now: Timestamp) -> Result<RecordBatch> {
        let times = cast(named(&self.events, self.time)?, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        let happened = times.values().partition_point(|time| *time <= now.micros());
        let events = self.events.slice(self.pushed, happened - self.pushed);
        self.pushed = happened;
        Ok(events)
    }
}

#[derive(Default)]
struct Seen {
    flights: usize,
    predicted: usize,
    refused: usize,
    fresh: usize,
    scores: Vec<f32>,
    labels: Vec<f32>,
    /// What the answers said since the last line.
    said: BTreeMap<String, usize>,
}

fn at(text: &str) -> Result<Timestamp> {
    Timestamp::parse(text)
}

impl<'a> Replay<'a> {
    /// Reads the two days' flights and connects.
    pub async fn new(
        project: &Project,
        clock: &'a Arc<DrivenClock>,
        servers: &Servers,
        contract: &str,
    ) -> Result<Self> {
        let (_, state) = project.catalog().await?;
        let jobs = project.jobs()?;
        let session = jobs.full_session(&state).await?;
        let worker = PredictClient::new(&servers.worker)?;
        Ok(Self {
            clock,
            state,
            jobs,
            store: RemoteFeatures::new(&servers.store)?,
            metadata: worker.metadata(contract).await?,
            worker,
            live: vec![
                Live::open(&session, "departures", "origin, departed_at, dep_delay", "departed_at").await?,
                Live::open(&session, "landings", "origin, dest, carrier, tailnum, landed_at, arr_delay", "landed_at")
                    .await?,
            ],
            flights: read_flights(&session).await?,
            seen: Seen::default(),
        })
    }

    /// Runs both days.
    pub async fn run(mut self) -> Result<()> {
        say("time (UTC)        flights  predicted  refused  all fresh  AUC so far  answers said");
        let (mut now, end) = (at(super::FIRST_DAY)?, at("2013-12-05T05:00:00Z")?);
        // What history there is until then; from here on departures and landings are pushed.
        self.set_clock(now).await?;
        for view in self.state.live_views() {
            self.jobs.refresh(&self.state, view).await?;
        }
        self.store.act("follow", "").await?;
        let (stop, start) = (at("2013-12-04T14:00:00Z")?, at("2013-12-04T19:00:00Z")?);
        while now < end {
            if now == stop {
                say("                  the weather stops");
            } else if now == start {
                say("                  the weather is back");
            }
            self.refresh_due(now, now >= stop && now < start).await?;
            let next = now + STEP;
            self.predict_until(now, next).await?;
            now = next;
            if now.micros() % SHOW_EVERY.micros() == 0 {
                self.show(now);
            }
        }
        self.set_clock(end).await?;
        self.push_until(end).await?;
        self.store.act("flush", "").await?;
        for view in self.state.live_views() {
            self.jobs.refresh(&self.state, view).await?;
        }
        let rows: usize = self.live.iter().map(|live| live.pushed).sum();
        say(&format!("{rows} departures and landings were pushed, and are now on object storage"));
        self.store.act("follow", "").await.map(|_| ())
    }

    /// Pushes what has happened by now, and says that it is all.
    async fn push_until(&mut self, now: Timestamp) -> Result<()> {
        for live in &mut self.live {
            let events = live.until(now)?;
            let mut pusher = self.store.pusher(live.source, events.schema()).await?;
            live.sequence += 1;
            let header =
                PushHeader { producer: Some("demo".to_owned()), sequence: Some(live.sequence), watermark: Some(now) };
            pusher.send(&events, &header).await?;
            pusher.ack().await?;
        }
        Ok(())
    }

    async fn set_clock(&self, now: Timestamp) -> Result<()> {
        self.clock.set(now);
        self.store.act("clock", &now.to_string()).await.map(|_| ())
    }

    async fn refresh_due(&mut self, now: Timestamp, without_weather: bool) -> Result<()> {
        self.set_clock(now).await?;
        self.push_until(now).await?;
        let pushed = |view: &FeatureView| {
            view.sources.iter().any(|source| self.live.iter().any(|live| live.source == source.name))
        };
        let wanted = |view: &&FeatureView| !(pushed(view) || without_weather && view.name == "airport_weather");
        for view in self.state.live_views().into_iter().filter(wanted) {
            if is_due(view, self.jobs.log(view).state().await?.watermark, now) {
                self.jobs.refresh(&self.state, view).await?;
            }
        }
        self.store.act("follow", "").await.map(|_| ())
    }

    async fn predict_until(&mut self, from: Timestamp, until: Timestamp) -> Result<()> {
        let times: Vec<Timestamp> = self.flights.range(from..until).map(|(time, _)| *time).collect();
        for time in times {
            let Some(flights) = self.flights.remove(&time) else { continue };
            self.set_clock(time).await?;
            let column = |index: usize| flights.iter().map(|flight| flight.values[index].clone()).collect();
            let columns: Vec<TextColumn> =
                COLUMNS.iter().enumerate().map(|(index, name)| ((*name).to_owned(), column(index))).collect();
            let answer = self.worker.infer(&self.metadata, &columns).await;
            self.seen.note(&flights, answer)?;
        }
        Ok(())
    }

    fn show(&mut self, now: Timestamp) {
        let seen = &mut self.seen;
        let said: Vec<String> =
            std::mem::take(&mut seen.said).into_iter().map(|(what, rows)| format!("{what}: {rows}")).collect();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand flights")]
        let share = 100.0 * seen.fresh as f64 / seen.predicted.max(1) as f64;
        let auc = area_under_curve(&seen.scores, &seen.labels);
        let time = now.to_string().replace('T', " ").replace(":00Z", "");
        say(&format!(
            "{time:16}  {:>7}  {:>9}  {:>7}  {share:>7.1} %  {:>10}  {}",
            seen.flights,
            seen.predicted,
            seen.refused,
            if auc.is_nan() { "-".to_owned() } else { format!("{auc:.3}") },
            said.join("; ")
        ));
    }
}

impl Seen {
    fn note(&mut self, flights: &[Flight], answer: Result<Prediction>) -> Result<()> {
        self.flights += flights.len();
        let prediction = match answer {
            Ok(prediction) => prediction,
            Err(error) if error.kind() == ErrorKind::Refused => {
                self.refused += flights.len();
                let what = if error.to_string().contains("stale") { "stale" } else { "not fresh" };
                *self.said.entry(format!("refused, weather {what}")).or_default() += flights.len();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.predicted += flights.len();
        let scores = prediction.outputs.into_values().next().unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "scores are 32 bits wide on the wire")]
        for (flight, score) in flights.iter().zip(scores) {
            if let Some(late) = flight.late {
                self.scores.push(score as f32);
                self.labels.push(f32::from(u8::from(late)));
            }
        }
        for (name, value) in &prediction.parameters {
            let Some(view) = name.strip_prefix("springhouse_view_") else { continue };
            for part in value.split("; ") {
                let rows = part.split("rows=").nth(1).and_then(|rows| rows.parse().ok()).unwrap_or(0);
                let what = part.split(" rows=").next().unwrap_or(part).replace("rule=", "");
                *self.said.entry(format!("{view} {what}")).or_default() += rows;
            }
        }
        let fresh = prediction.parameters.get("springhouse_fresh_rows").and_then(|rows| rows.parse().ok());
        self.fresh += fresh.unwrap_or(0_usize);
        Ok(())
    }
}

async fn read_flights(session: &Session) -> Result<BTreeMap<Timestamp, Vec<Flight>>> {
    let spine = super::spine("2013-12-03 05:00:00", "2013-12-05 05:00:00");
    let mut flights: BTreeMap<Timestamp, Vec<Flight>> = BTreeMap::new();
    for batch in session.query(&spine.from).await? {
        let texts: Vec<_> = COLUMNS.iter().map(|name| text(&batch, name)).collect::<Result<_>>()?;
        let late = named(&batch, LABEL)?.as_boolean().clone();
        let times = cast(named(&batch, "scheduled_at")?, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let values =
                texts.iter().map(|column| column.is_valid(row).then(|| column.value(row).to_owned())).collect();
            let late = late.is_valid(row).then(|| late.value(row));
            flights.entry(Timestamp::from_micros(times.value(row))).or_default().push(Flight { values, late });
        }
    }
    Ok(flights)
}

fn named<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a arrow::array::ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::internal("the flights lack a column").with("column", name))
}

fn text(batch: &RecordBatch, name: &str) -> Result<arrow::array::StringArray> {
    Ok(cast(named(batch, name)?, &DataType::Utf8)?.as_string::<i32>().clone())
}
