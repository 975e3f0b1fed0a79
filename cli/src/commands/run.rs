//! `run`: every view refreshed by its `REFRESH EVERY`, until it is stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::freshness::lag;
use springhouse_featurestore::time::{Clock, SystemClock, Timestamp};
use springhouse_materializer::Jobs;
use springhouse_materializer::schedule::{Told, TurnDone};
use springhouse_serving::http;
use springhouse_serving::metrics::{Labels, Metrics, of_pinned, unix_seconds};

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
    #[command(flatten)]
    waived: super::WaivedArgs,
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

/// What became of a schedule.
#[derive(Debug, Default)]
struct Counts {
    views: BTreeMap<String, Turns>,
    catalog_failures: u64,
    catalog_failed_in_a_row: u32,
}

type Shared = Arc<Mutex<Counts>>;

impl Run {
    /// Runs it; a running store loads what is committed by itself.
    pub async fn run(&self, project: &Project) -> Result<()> {
        let jobs = project.jobs()?;
        let seed = SystemClock.now().micros().cast_unsigned();
        let counts = before_turns(project, &jobs).await;
        let answering = self.answer(project, &counts).await?;
        note("refreshing views by their REFRESH EVERY; stop with Ctrl-C");
        let schedule = jobs.run_schedule(seed, POLL, |happened| {
            counts.lock().unwrap_or_else(PoisonError::into_inner).count(&happened);
            tell(&happened);
        });
        let over = async {
            match self.stop_after {
                Some(span) => tokio::time::sleep(Duration::from_secs_f64(span.as_secs_f64())).await,
                None => std::future::pending().await,
            }
        };
        // A refresh that is cut off has changed nothing that a reader sees.
        tokio::select! {
            never = schedule => match never {},
            failed = answering => failed,
            _ = tokio::signal::ctrl_c() => Ok(()),
            () = over => Ok(()),
        }
    }

    /// Answers HTTP, if it is to, for as long as it is waited for.
    async fn answer(&self, project: &Project, counts: &Shared) -> Result<impl Future<Output = Result<()>>> {
        let security = project.security()?;
        let listener = match self.http {
            Some(address) => Some(listen_http(address, &security, self.waived.into()).await?),
            None => None,
        };
        let (counts, clock) = (Arc::clone(counts), Arc::clone(project.clock()));
        let measure: http::Measure = Arc::new(move || {
            let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(measured(&counts, clock.now()))
        });
        Ok(async move {
            match listener {
                Some(listener) => tokio::select! {
                    served = http::serve(listener, measure, &security, std::future::pending()) => served,
                    () = security.follow() => Ok(()),
                },
                None => std::future::pending().await,
            }
        })
    }
}

/// Views as they stand before their first turn; those that cannot be read yet are known from their first turn on.
async fn before_turns(project: &Project, jobs: &Jobs) -> Shared {
    let mut counts = Counts::default();
    let catalog = match project.catalog().await {
        Ok((_, catalog)) => catalog,
        Err(error) => {
            complain(&format!("the catalog cannot be read yet: {}", error.chain()));
            CatalogState::default()
        }
    };
    for view in catalog.live_views() {
        let watermark = match jobs.log(view).state().await {
            Ok(state) => state.watermark,
            Err(error) => {
                complain(&format!("{}: its log cannot be read yet: {}", view.name, error.chain()));
                None
            }
        };
        counts.views.insert(view.pinned().to_string(), Turns { watermark, ..Turns::default() });
    }
    Arc::new(Mutex::new(counts))
}

impl Counts {
    fn count(&mut self, happened: &Told) {
        match happened {
            Told::Turn(done) => self.views.entry(done.view.to_string()).or_default().count(done),
            Told::CatalogFailed { failures, .. } => {
                self.catalog_failures += 1;
                self.catalog_failed_in_a_row = *failures;
            }
            Told::CatalogRead => self.catalog_failed_in_a_row = 0,
        }
    }
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

fn measured(counts: &Counts, now: Timestamp) -> Metrics {
    let mut metrics = Metrics::default();
    let each = || counts.views.iter().map(|(view, turns)| (of_pinned("view", view), turns));
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
    metrics.counters(
        "catalog_failures",
        "Times that the catalog could not be read",
        [(Labels::new(), counts.catalog_failures)],
    );
    metrics.gauges(
        "catalog_failures_in_a_row",
        "Times that the catalog could not be read since it last was",
        [(Labels::new(), f64::from(counts.catalog_failed_in_a_row))],
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

fn tell(happened: &Told) {
    match happened {
        Told::Turn(TurnDone { view, result: Ok(refreshed), .. }) => {
            note(&format!("{:30} {:>8} rows, watermark {}", view.name, refreshed.rows, refreshed.watermark));
        }
        Told::Turn(TurnDone { view, result: Err(error), failures }) => {
            complain(&format!("{}, {failures} in a row: {}", view.name, error.chain()));
        }
        Told::CatalogFailed { error, failures } => {
            complain(&format!("the catalog cannot be read, {failures} in a row: {}", error.chain()));
        }
        Told::CatalogRead => note("the catalog can be read again"),
    }
}
