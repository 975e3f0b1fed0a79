//! `compact`, `gc` and `check`: what keeps object storage small and whole.

use std::process::ExitCode;

use clap::Args;
use springhouse_featurestore::tier::OnlineTier;
use springhouse_featurestore::time::Span;
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_materializer::garbage::GRACE;

use crate::project::Project;
use crate::render::{complain, note, show, table};

/// Merge the small data files of views, and of what was pushed to sources, into larger ones; `run` does so by itself.
#[derive(Debug, Args)]
pub struct Compact {
    /// Views and pushed sources by name; all that are in use when none is named
    names: Vec<String>,
}

impl Compact {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, state) = project.catalog().await?;
        let jobs = project.jobs()?;
        let pushed = jobs.pushed().state().await?;
        let (sources, views): (Vec<String>, Vec<String>) =
            self.names.iter().cloned().partition(|name| pushed.files.contains_key(name));
        let mut done = Vec::new();
        if sources.is_empty() || !views.is_empty() {
            for view in super::refresh::chosen(&state, &views)? {
                done.push(jobs.compact(view).await?);
            }
        }
        for source in &sources {
            done.push(jobs.compact_pushes_to(source).await?);
        }
        if self.names.is_empty() {
            done.extend(jobs.compact_pushes().await?);
        }
        show(json, &done, || {
            let cells = done.iter().map(|of| {
                let numbers = [of.merged, of.written, of.files].map(|number| number.to_string());
                std::iter::once(of.what.clone()).chain(numbers).collect()
            });
            table(&["", "files merged", "into", "files now"], &cells.collect::<Vec<_>>())
        })
    }
}

/// Remove data files that no commit names; `run` does so every day.
#[derive(Debug, Args)]
pub struct Gc {
    /// How long a file that no commit names is kept; shorter than a refresh or a training set takes, it breaks those that run
    #[arg(long, value_parser = super::parse_span)]
    grace: Option<Span>,
}

impl Gc {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (_, state) = project.catalog().await?;
        let grace = self.grace.unwrap_or(GRACE);
        let collected = project.jobs()?.collect_garbage(&state, grace).await?;
        show(json, &collected, || {
            format!(
                "{} files removed, {} bytes; {} that no commit names are kept until they have been so for {grace}",
                collected.removed, collected.bytes, collected.waiting
            )
        })
    }
}

/// Check the logs, that every file they name is there with its size, and a sample of the disk tier.
#[derive(Debug, Args)]
pub struct Check {
    /// Read every data file, and compare its rows with what its commit tells
    #[arg(long)]
    full: bool,
}

impl Check {
    /// Runs it: it fails when something is wrong.
    pub async fn run(&self, project: &Project, json: bool) -> Result<ExitCode> {
        let (_, state) = project.catalog().await?;
        let disk = match project.disk_tier() {
            Ok(disk) => Some(disk),
            Err(error) if error.kind() == ErrorKind::Busy => {
                note("the store is being served: its disk tier is not looked at");
                None
            }
            Err(error) => return Err(error),
        };
        let tier = disk.as_ref().map(|disk| disk as &dyn OnlineTier);
        let checked = project.jobs()?.check(&state, tier, self.full).await?;
        show(json, &checked, || {
            let cells = checked.iter().map(|of| {
                let keys = of.keys.map_or_else(|| "-".to_owned(), |keys| keys.to_string());
                let wrong = if of.wrong.is_empty() { "-".to_owned() } else { of.wrong.len().to_string() };
                vec![of.what.clone(), of.commits.to_string(), of.files.to_string(), of.rows.to_string(), keys, wrong]
            });
            table(&["", "commits", "files", "rows", "keys compared", "wrong"], &cells.collect::<Vec<_>>())
        })?;
        let mut code = ExitCode::SUCCESS;
        for (of, wrong) in checked.iter().flat_map(|of| of.wrong.iter().map(|wrong| (&of.what, wrong))) {
            complain(&format!("{of}: {wrong}"));
            code = ExitCode::FAILURE;
        }
        for cut_off in checked.iter().flat_map(|of| &of.cut_off) {
            note(cut_off);
        }
        Ok(code)
    }
}
