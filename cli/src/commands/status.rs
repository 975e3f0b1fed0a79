//! `status`: what exactly is running.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use springhouse_featurestore::freshness::lag;
use springhouse_featurestore::tier::ViewLogState;
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_serving::features::{FeatureStatus, Trouble, ViewState, ViewStatus};

use super::refresh::told;
use crate::project::Project;
use crate::render::{show, table};

/// What exactly is running.
#[derive(Debug, Args)]
pub struct StatusCommand {
    /// The store's address; the settings' when it is not given
    #[arg(long)]
    store: Option<String>,
    /// The worker's address; the settings' when it is not given
    #[arg(long)]
    worker: Option<String>,
}

/// How everything stands.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether a store is being served.
    serving: bool,
    /// Whether a worker answers.
    answering: bool,
    features: FeatureStatus,
    /// Per deployed contract, the worker's version, package and counts.
    workers: BTreeMap<String, BTreeMap<String, String>>,
}

impl StatusCommand {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let report = report(project, self.store.as_ref(), self.worker.as_ref()).await?;
        show(json, &report, || shown(&report))
    }
}

/// Asks the running processes; where no store runs, reads the store itself.
pub async fn report(project: &Project, store: Option<&String>, worker: Option<&String>) -> Result<Report> {
    let remote = project.remote_store(store)?;
    let (serving, features) = match remote.act_json::<FeatureStatus>("status", "").await {
        Ok(status) => (true, status),
        Err(error) if error.kind() == ErrorKind::Unavailable => (false, from_store(project).await?),
        Err(error) => return Err(error),
    };
    let client = project.remote_worker(worker)?;
    let (mut workers, mut answering) = (BTreeMap::new(), false);
    for contract in features.deployments.keys() {
        let name = contract.split('@').next().unwrap_or(contract);
        match client.metadata(name).await {
            Ok(metadata) => {
                answering = true;
                workers.insert(name.to_owned(), metadata.properties.into_iter().collect());
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Report { serving, answering, features, workers })
}

async fn from_store(project: &Project) -> Result<FeatureStatus> {
    let (_, state) = project.catalog().await?;
    let (jobs, now) = (project.jobs()?, project.clock().now());
    let mut views = Vec::new();
    for view in state.live_views() {
        let (ViewLogState { watermark, restated, set_aside, .. }, state) = match jobs.log(view).state().await {
            Ok(log) => (log, ViewState::Following),
            Err(error) => {
                let trouble = Trouble::new(now, &error);
                (ViewLogState::default(), ViewState::Unavailable(trouble))
            }
        };
        views.push(ViewStatus {
            state,
            view: view.pinned().to_string(),
            watermark,
            lag_seconds: watermark.map(|_| lag(now, watermark).as_secs_f64()),
            refresh_every: view.refresh_every.to_string(),
            restated,
            set_aside: set_aside.events,
        });
    }
    let deployed = state.deployments().values().filter_map(|deployment| state.packages().get(&deployment.digest));
    Ok(FeatureStatus {
        now,
        catalog_commit: state.number(),
        deployments: deployed.map(|record| (record.contract.to_string(), record.digest.clone())).collect(),
        contracts: state.contracts().map(|contract| contract.pinned().to_string()).collect(),
        views,
        memory_hits: 0,
        memory_reads: 0,
        silent_producers: Vec::new(),
    })
}

/// The report as people read it.
pub fn shown(report: &Report) -> String {
    let features = &report.features;
    let running = |yes, what: &str| if yes { format!("{what} is running") } else { format!("{what} is not running") };
    let mut text = format!(
        "{}, {}; time {}, catalog commit {}\n",
        running(report.serving, "store"),
        running(report.answering, "worker"),
        features.now,
        features.catalog_commit
    );
    let contracts: Vec<Vec<String>> = features
        .contracts
        .iter()
        .map(|contract| {
            let name = contract.split('@').next().unwrap_or(contract);
            let counts = report.workers.get(name);
            let count =
                |what: &str| counts.and_then(|counts| counts.get(what)).cloned().unwrap_or_else(|| "-".to_owned());
            vec![
                contract.clone(),
                features
                    .deployments
                    .get(contract)
                    .map_or_else(|| "not deployed".to_owned(), |digest| digest[..19].to_owned()),
                count("requests"),
                count("rows"),
                not_fresh_share(counts),
                count("refused"),
            ]
        })
        .collect();
    text += "\n";
    text += &table(&["contract", "package", "requests", "rows", "not fresh", "refused"], &contracts);
    text += "\n";
    let views: Vec<Vec<String>> = features
        .views
        .iter()
        .map(|view| {
            let watermark = view.watermark.map_or_else(|| "never refreshed".to_owned(), |mark| mark.to_string());
            let lag = view.lag_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.1} min", seconds / 60.0));
            let set_aside = if view.set_aside > 0 { view.set_aside.to_string() } else { "-".to_owned() };
            vec![view.view.clone(), watermark, lag, view.refresh_every.clone(), set_aside]
        })
        .collect();
    let header = ["view", "watermark", "lag", "refresh every", "set aside"];
    let mut parts = vec![text, "\n".to_owned(), table(&header, &views)];
    for view in &features.views {
        let what = if view.state.is_unavailable() { "unavailable" } else { "behind" };
        if let Some(trouble) = view.state.trouble() {
            parts.push(format!("\n{} is {what} since {}: {}\n", view.view, trouble.since, trouble.told()));
        }
        if view.set_aside > 0 {
            let name = view.view.split('@').next().unwrap_or(&view.view);
            parts.push(format!(
                "\n{}: its query fails on {} pushed events, which it does without: springhouse set-aside {name}\n",
                view.view, view.set_aside
            ));
        }
        if let Some(restated) = &view.restated {
            parts.push(format!("\n{}\n", told(&view.view, restated)));
        }
    }
    if !features.silent_producers.is_empty() {
        let silent = features.silent_producers.join(", ");
        parts.push(format!("\n\nsilent producers, left out of watermarks: {silent}"));
    }
    parts.concat()
}

fn not_fresh_share(counts: Option<&BTreeMap<String, String>>) -> String {
    let count = |what: &str| counts.and_then(|counts| counts.get(what)).and_then(|text| text.parse::<f64>().ok());
    match (count("rows"), count("fresh_rows")) {
        (Some(rows), Some(fresh)) if rows > 0.0 => format!("{:.1} %", 100.0 * (1.0 - fresh / rows)),
        _ => "-".to_owned(),
    }
}
