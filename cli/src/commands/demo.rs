//! `demo`: the whole chain on the flights example, in one command, with real processes and no stand-ins.
//!
//! 1. Apply the definitions.
//! 2. Refresh through November.
//! 3. Training set of January to October.
//! 4. Train; AUC on November with features and with the request's columns alone.
//! 5. Package and deploy.
//! 6. The freshness curve.
//! 7. Start a store and a worker as two processes.
//! 8. Replay two December days at their own time: push departures and landings as they happen, refresh the weather when
//!    it is due, predict every flight over gRPC when it is scheduled; on the second day the weather stops for some hours.
//! 9. Audit the two days.
//! 10. Status.

mod replay;
mod servers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::time::{DrivenClock, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_serving::model::neural::{TrainOptions, area_under_curve, train};
use springhouse_serving::model::{self};
use springhouse_serving::package::Package;
use springhouse_sql::spine::{SpineOrder, SpineSource, SpineSubset};

use super::freshness_curve::FreshnessCurve;
use super::refresh::chosen;
use super::{apply, deploy, status, train as training, training_set};
use crate::project::Project;
use crate::render::{Bar, say};
use replay::Replay;
use servers::Servers;

/// The example's contract.
const CONTRACT: &str = "arrival_delay";

/// When the replay begins, and live events with it.
const FIRST_DAY: &str = "2013-12-03T05:00:00Z";

/// The spine's label: arrives 15 or more minutes late; null for flights that never arrived.
const LABEL: &str = "late";

/// The whole chain on the flights example.
#[derive(Debug, Args)]
pub struct Demo {
    /// The folder of the flights example
    #[arg(long, default_value = "sql/flights")]
    example: PathBuf,
    /// Where the demo works; emptied first
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Leave the servers up
    #[arg(long)]
    stay: bool,
}

/// All flights scheduled in a stretch of time, as a spine.
fn spine(from: &str, until: &str) -> SpineSource {
    let from_sql = format!(
        "SELECT origin, dest, carrier, tailnum, distance, scheduled_at, arr_delay >= 15 AS {LABEL} FROM flights \
         WHERE scheduled_at >= TIMESTAMP '{from}' AND scheduled_at < TIMESTAMP '{until}'"
    );
    SpineSource { from: from_sql, time: "scheduled_at".to_owned(), lag: springhouse_featurestore::time::Span::ZERO }
}

impl Demo {
    /// Runs it.
    pub async fn run(&self, _project: &Project) -> Result<()> {
        let mut steps = Steps::new();
        let temporary;
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => {
                temporary =
                    tempfile::tempdir().map_err(|error| Error::unavailable("no temporary folder").source(error))?;
                temporary.path().to_owned()
            }
        };
        copy_example(&self.example, &folder)?;
        end_history(&folder)?;
        let clock = Arc::new(DrivenClock::still(Timestamp::parse("2013-12-01T05:00:00Z")?));
        let project = Project::open(&folder, None)?.at(Arc::clone(&clock));

        steps.begin("Apply the definitions");
        apply::Apply::because("the flights example").run(&project, false).await?;

        steps.begin("Refresh every view through November");
        refresh_all(&project).await?;

        steps.begin("Training set: every flight from January to October, as of its scheduled time");
        let (october, november) = (folder.join("january-october.parquet"), folder.join("november.parquet"));
        let rows =
            training_set::write(&project, CONTRACT, &request(spine("2013-01-01", "2013-11-01")), &october).await?;
        let held_out =
            training_set::write(&project, CONTRACT, &request(spine("2013-11-01", "2013-12-01")), &november).await?;
        say(&format!("{rows} rows to train on, {held_out} of November held out"));

        steps.begin("Train, and measure on November");
        let package = train_and_compare(&project, &october, &november).await?;
        as_served(&project, &package, &folder.join("november-as-served.parquet")).await?;

        steps.begin("Package and deploy");
        let record = deploy::push(&project, &package).await?;
        deploy::deploy(&project, CONTRACT, &record.digest, "the first model").await?;
        say(&format!("{} answers {}", record.digest, record.contract));

        steps.begin("What staleness costs: the same package on features as of some hours before");
        let november_spine = spine("2013-11-01", "2013-12-01");
        let plot = folder.join("freshness-curve.svg");
        FreshnessCurve::of(CONTRACT, &record.digest, &november_spine.from, &november_spine.time, LABEL, plot)
            .run(&project, false)
            .await?;

        steps.begin("Start a store and a worker, two processes");
        let servers = Servers::start(&folder, FIRST_DAY).await?;
        say(&format!("store at {}, worker at {}", servers.store, servers.worker));

        steps.begin(
            "Replay 3 and 4 December at their own time: departures and landings are pushed as they happen; on the 4th the \
             weather stops from 14:00 to 19:00 UTC",
        );
        Replay::new(&project, &clock, &servers, CONTRACT).await?.run().await?;

        steps.begin("Audit: every flight of the two days, online against offline, value by value");
        let (_, state) = project.catalog().await?;
        let contract = state.current_contract(CONTRACT)?;
        let days = spine("2013-12-03 05:00:00", "2013-12-05 05:00:00");
        let report = project.jobs()?.audit(&state, contract, (&days, SpineSubset::Whole), &Bar::default()).await?;
        say(&report.to_string());

        steps.begin("Status");
        let report = status::report(&project, Some(&servers.store), Some(&servers.worker)).await?;
        say(&status::shown(&report));
        steps.end();
        if self.stay { servers.stay(&folder).await } else { Ok(()) }
    }
}

/// The titles of the steps, with the seconds that each took.
struct Steps {
    number: usize,
    began: Instant,
    step: Instant,
}

#[expect(clippy::disallowed_methods, reason = "how long the demo takes is real time")]
fn real_now() -> Instant {
    Instant::now()
}

impl Steps {
    fn new() -> Self {
        Self { number: 0, began: real_now(), step: real_now() }
    }

    fn begin(&mut self, title: &str) {
        if self.number > 0 {
            say(&format!("   ({:.1} s)", self.step.elapsed().as_secs_f64()));
        }
        self.number += 1;
        self.step = real_now();
        say(&format!("\n{}. {title}", self.number));
    }

    fn end(&self) {
        say(&format!(
            "   ({:.1} s)\n\nThe whole chain took {:.0} s.",
            self.step.elapsed().as_secs_f64(),
            self.began.elapsed().as_secs_f64()
        ));
    }
}

fn request(spine: SpineSource) -> TrainingSetRequest {
    TrainingSetRequest {
        spine,
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: false,
        order: SpineOrder::AsGiven,
    }
}

/// The example in a folder of its own, so that nothing of it is written to.
fn copy_example(example: &Path, folder: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::invalid("the flights example cannot be copied")
            .with("example", example.display())
            .with("folder", folder.display())
            .remedy("run the demo from the repository's root")
            .source(error)
    };
    if folder.join(".springhouse").exists() {
        std::fs::remove_dir_all(folder.join(".springhouse")).map_err(failed)?;
    }
    for part in ["", "data"] {
        std::fs::create_dir_all(folder.join(part)).map_err(failed)?;
        for entry in std::fs::read_dir(example.join(part)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                std::fs::copy(entry.path(), folder.join(part).join(entry.file_name())).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// Ends what the demo's sources read before the days that are replayed: what happens later is pushed to them.
fn end_history(folder: &Path) -> Result<()> {
    let path = folder.join("sources.sql");
    let failed = |error: std::io::Error| {
        Error::unavailable("the demo's definitions cannot be changed").with("file", path.display()).source(error)
    };
    let mut text = std::fs::read_to_string(&path).map_err(failed)?;
    for column in ["departed_at", "landed_at"] {
        text =
            text.replace(&format!("WHERE {column} IS NOT NULL"), &format!("WHERE {column} <= TIMESTAMP '{FIRST_DAY}'"));
    }
    std::fs::write(&path, text).map_err(failed)
}

/// Refreshes all views at the project's time.
async fn refresh_all(project: &Project) -> Result<()> {
    let (_, state): (_, CatalogState) = project.catalog().await?;
    let jobs = project.jobs()?;
    for view in chosen(&state, &[])? {
        let refreshed = jobs.refresh(&state, view).await?;
        say(&format!("{:30} {:>8} rows, watermark {}", view.name, refreshed.rows, refreshed.watermark));
    }
    Ok(())
}

/// Trains with all inputs and with the request's columns alone; shows what features are worth.
async fn train_and_compare(project: &Project, october: &Path, november: &Path) -> Result<Package> {
    let (_, state) = project.catalog().await?;
    let contract = state.current_contract(CONTRACT)?;
    let options = TrainOptions::default();
    let package = training::train_package(contract, october, LABEL, &options)?;
    let names = package.manifest()?.inputs;
    let (inputs, labels) = training::read_labelled(november, &names, LABEL, Some(&contract.pinned()))?;
    let with_features = area_under_curve(&scores(&*model::load(&package, contract)?, &inputs)?, &labels);

    let is_feature =
        |expression: &str| contract.features.iter().any(|rule| expression.contains(&format!("{}.", rule.view.name)));
    let mut alone = contract.clone();
    alone.inputs.retain(|input| !is_feature(&input.expression));
    let names: Vec<String> = alone.inputs.iter().map(|input| input.name.clone()).collect();
    let (inputs, labels_alone) = training::read_labelled(october, &names, LABEL, None)?;
    let trained = train(&inputs, &names, &labels_alone, &options, |_, _| {})?;
    let (inputs, labels) = {
        let (inputs, _) = training::read_labelled(november, &names, LABEL, None)?;
        (inputs, labels)
    };
    let bare = model::neural::NeuralModel::load(&trained.weights, &names, &options.hidden, &alone)?;
    let request_only = area_under_curve(&scores(&bare, &inputs)?, &labels);
    say(&format!(
        "AUC on November: {with_features:.3} with features, {request_only:.3} with the request's columns alone ({} flights)",
        labels.len()
    ));
    Ok(package)
}

/// Measures the same package on features as serving would have had them: refreshed every so often, not at every row.
async fn as_served(project: &Project, package: &Package, file: &Path) -> Result<()> {
    let (_, state) = project.catalog().await?;
    let contract = state.current_contract(CONTRACT)?;
    let served = TrainingSetRequest { as_of: AsOf::Served, ..request(spine("2013-11-01", "2013-12-01")) };
    training_set::write(project, CONTRACT, &served, file).await?;
    let names = package.manifest()?.inputs;
    let (inputs, labels) = training::read_labelled(file, &names, LABEL, Some(&contract.pinned()))?;
    let auc = area_under_curve(&scores(&*model::load(package, contract)?, &inputs)?, &labels);
    say(&format!("AUC on November: {auc:.3} with features as serving has them, refreshed every 10 minutes to 1 hour"));
    Ok(())
}

fn scores(model: &dyn model::Model, inputs: &arrow::array::RecordBatch) -> Result<Vec<f32>> {
    use arrow::array::AsArray;
    let predicted = arrow::compute::cast(&model.predict(inputs)?[0], &arrow::datatypes::DataType::Float32)?;
    Ok(predicted.as_primitive::<arrow::datatypes::Float32Type>().values().to_vec())
}
