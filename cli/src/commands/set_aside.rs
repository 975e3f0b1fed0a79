//! `set-aside`: the pushed events that views do without, since their queries fail on them.

use arrow::array::RecordBatch;
use arrow::json::ArrayWriter;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use springhouse_featurestore::catalog::Signature;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::set_aside::{SettledNow, taken_apart};

use crate::project::{Project, who};
use crate::render::{show, table};

/// Show the pushed events that views do without, and why; try those of a view again, or let them go. As tables for SQL:
/// `springhouse query 'SELECT "@reason", count(*) FROM set_aside.VIEW GROUP BY 1'`.
#[derive(Debug, Args)]
pub struct SetAsideCommand {
    /// The view's name; all views when it is not given
    view: Option<String>,
    /// Try them again: those that the view's query takes now count from here on, the others stay
    #[arg(long, requires = "view", conflicts_with = "drop")]
    retry: bool,
    /// Let them go: they stay among what was pushed, and a backfill of everything still counts them
    #[arg(long, requires_all = ["view", "message"])]
    drop: bool,
    /// Why they are let go: it stands in the view's history
    #[arg(short, long, requires = "drop")]
    message: Option<String>,
    /// Commit, and leave this host's disk tier as it is: another host serves
    #[arg(long)]
    no_load: bool,
}

/// An event that a view does without.
#[derive(Debug, Serialize)]
struct Listed {
    /// The view, `name@version`.
    view: String,
    set_aside_at: Timestamp,
    source: String,
    /// The push's position, and the event's row in it.
    position: u64,
    within: u64,
    reason: String,
    /// Its columns.
    event: Map<String, Value>,
}

impl SetAsideCommand {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, state) = project.catalog().await?;
        let jobs = project.jobs()?;
        let named: Vec<String> = self.view.iter().cloned().collect();
        let views = super::refresh::chosen(&state, &named)?;
        if !self.retry && !self.drop {
            let mut listed = Vec::new();
            for view in views {
                for (source, events) in jobs.set_aside(view).await? {
                    listed.extend(listed_of(view, &source, &events)?);
                }
            }
            return show(json, &listed, || shown(&listed));
        }
        let why = self.message.clone().unwrap_or_default();
        let by = Signature { at: project.clock().now(), who: who(), why };
        let mut done = Vec::new();
        for view in views {
            done.push(if self.drop {
                jobs.drop_set_aside(view, &by).await?
            } else {
                jobs.retry_set_aside(&state, view, &by).await?
            });
        }
        if !self.no_load && done.iter().any(|of| of.counted > 0) {
            super::refresh::load_tiers(project).await?;
        }
        show(json, &done, || settled(&done))
    }
}

fn listed_of(view: &FeatureView, source: &str, events: &RecordBatch) -> Result<Vec<Listed>> {
    let (places, own) = taken_apart(events)?;
    let listed = places.into_iter().zip(objects(&own)?).map(|((place, why), event)| Listed {
        view: view.pinned().to_string(),
        set_aside_at: why.at,
        source: source.to_owned(),
        position: place.position,
        within: place.within,
        reason: why.reason,
        event,
    });
    Ok(listed.collect())
}

/// Each row as an object, nulls left out.
fn objects(rows: &RecordBatch) -> Result<Vec<Map<String, Value>>> {
    let mut writer = ArrayWriter::new(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    serde_json::from_slice(&writer.into_inner())
        .map_err(|error| Error::internal("events cannot be written as JSON").source(error))
}

fn shown(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "no events are set aside".to_owned();
    }
    let cells = listed.iter().map(|of| {
        let event = of.event.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
        let place = format!("{} row {}", of.position, of.within);
        let reason = of.reason.replace('\n', " ");
        vec![of.view.clone(), of.set_aside_at.to_string(), of.source.clone(), place, event, reason]
    });
    table(&["view", "set aside at", "source", "push", "event", "reason"], &cells.collect::<Vec<_>>())
}

/// What whoever drops events is to know of their copies.
const DROPPED: &str = "\nWhere their source has a DISTINCT ON, copies of what was dropped do not count for the view either: give corrected \
    values as events of another identity.";

fn settled(done: &[SettledNow]) -> String {
    let cells = done.iter().map(|of| {
        let commit = of.commit.map_or_else(|| "-".to_owned(), |commit| commit.to_string());
        let counts = [of.counted, of.dropped, of.left].map(|count| count.to_string());
        std::iter::once(of.view.clone()).chain(counts).chain([commit]).collect()
    });
    let mut text = table(&["view", "count now", "dropped", "left", "commit"], &cells.collect::<Vec<_>>());
    if done.iter().any(|of| of.dropped > 0) {
        text += DROPPED;
    }
    text
}
