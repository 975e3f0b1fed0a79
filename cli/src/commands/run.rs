//! `run`: every view refreshed by its `REFRESH EVERY`, until it is stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use springhouse_featurestore::Result;
use springhouse_featurestore::freshness::lag;
use springhouse_featurestore::time::{Clock, SystemClock, Timestamp};
use springhouse_materializer::Jobs;
use springhouse_materializer::schedule::TurnDone;
use springhouse_serving::http;
use springhouse_serving::metrics::{Metrics, of_pinned, unix_seconds};

use super::serve::listen_http;
use crate::project::Project;
use crate::render::{complain, note};

/// How often the catalog is looked at for new views.
const POLL: Duration = Duration::from_secs(1);

/// Refresh every view by its REFRESH EVERY, until stopped.
#[derive(Debug, Args)]
pub struct Run {
    /// Where it answers HTTP (/metrics: refreshes, failures and lag by view); nowhere when it is not given
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Stop by itself after this long
    #[arg(long, value_parser = super::parse_span)]
    stop_after: Option<springhouse_featurestore::time::Span>,
}

/// What became of a view's turns.
#[derive(Debug, Default, Clone)]
struct Turns {
    refreshes: u64,
    failures: u64,
    failed_in_a_row: u32,
    rows: u64,
    late: u64,
    watermark: Option<Timestamp>,
}

type ByView = Arc<Mutex<BTreeMap<String, Turns>>>;

impl Run {
    /// Runs it; a running store loads what is committed by itself.
    pub async fn run(&self, project: &Project) -> Result<()> {
        let jobs = project.jobs()?;
        let seed = SystemClock.now().micros().cast_unsigned();
        let turns = before_turns(project, &jobs).await?;
        let answering = self.answer(project, &turns).await?;
        note("refreshing views by their REFRESH EVERY; stop with Ctrl-C");
        let schedule = jobs.run_schedule(seed, POLL, |done| {
            turns.lock().unwrap_or_else(PoisonError::into_inner).entry(done.view.to_string()).or_default().count(done);
            told(done);
        });
        let over = async {
            match self.stop_after {
                Some(span) => tokio::time::sleep(Duration::from_secs_f64(span.as_secs_f64())).await,
                None => std::future::pending().await,
            }
        };
        // A refresh that is cut off has changed nothing that a reader sees.
        tokio::select! {
            ended = schedule => ended,
            failed = answering => failed,
            _ = tokio::signal::ctrl_c() => Ok(()),
            () = over => Ok(()),
        }
    }

    /// Answers HTTP, if it is to, for as long as it is waited for.
    async fn answer(&self, project: &Project, turns: &ByView) -> Result<impl Future<Output = Result<()>>> {
        let listener = match self.http {
            Some(address) => Some(listen_http(address).await?),
            None => None,
        };
        let (turns, clock) = (Arc::clone(turns), Arc::clone(project.clock()));
        let measure: http::Measure = Arc::new(move || {
            let turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(measured(&turns, clock.now()))
        });
        Ok(async move {
            match listener {
                Some(listener) => http::serve(listener, measure, std::future::pending()).await,
                None => std::future::pending().await,
            }
        })
    }
}

/// Views as they stand before their first turn.
async fn before_turns(project: &Project, jobs: &Jobs) -> Result<ByView> {
    let (_, catalog) = project.catalog().await?;
    let mut turns = BTreeMap::new();
    for view in catalog.live_views() {
        let watermark = jobs.log(view).state().await?.watermark;
        turns.insert(view.pinned().to_string(), Turns { watermark, ..Turns::default() });
    }
    Ok(Arc::new(Mutex::new(turns)))
}

impl Turns {
    fn count(&mut self, done: &TurnDone) {
        self.failed_in_a_row = done.failures;
        match &done.result {
            Ok(refreshed) => {
                self.refreshes += 1;
                self.rows += refreshed.rows;
                self.late += refreshed.late;
                self.watermark = Some(refreshed.watermark);
            }
            Err(_) => self.failures += 1,
        }
    }
}

fn measured(turns: &BTreeMap<String, Turns>, now: Timestamp) -> Metrics {
    let mut metrics = Metrics::default();
    let each = || turns.iter().map(|(view, turns)| (of_pinned("view", view), turns));
    metrics.counters("refreshes", "Refreshes that were committed", each().map(|(view, of)| (view, of.refreshes)));
    metrics.counters("refresh_failures", "Refreshes that failed", each().map(|(view, of)| (view, of.failures)));
    metrics.counters("refreshed_rows", "Rows that refreshes added", each().map(|(view, of)| (view, of.rows)));
    metrics.counters(
        "late_events",
        "Events that came later than LATENESS allows",
        each().map(|(view, of)| (view, of.late)),
    );
    metrics.gauges(
        "refresh_failures_in_a_row",
        "Refreshes that failed since the last that did not",
        each().map(|(view, of)| (view, f64::from(of.failed_in_a_row))),
    );
    metrics.gauges(
        "view_watermark_timestamp_seconds",
        "Every event up to this time is committed",
        each().filter_map(|(view, of)| Some((view, unix_seconds(of.watermark?)))),
    );
    metrics.gauges(
        "view_lag_seconds",
        "Now less the watermark",
        each().filter_map(|(view, of)| of.watermark.map(|watermark| (view, lag(now, Some(watermark)).as_secs_f64()))),
    );
    metrics
}

fn told(done: &TurnDone) {
    match &done.result {
        Ok(refreshed) => {
            note(&format!("{:30} {:>8} rows, watermark {}", done.view.name, refreshed.rows, refreshed.watermark));
        }
        Err(error) => complain(&format!("{}, {} in a row: {}", done.view.name, done.failures, error.chain())),
    }
}
