//! `refresh`: bring views up to the clock's time.

use std::process::ExitCode;

use clap::Args;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::tier::Restated;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_materializer::due::is_due;
use springhouse_materializer::refresh::{HeldBack, Refreshed};

use crate::project::Project;
use crate::render::{Bar, complain, note, show, table};

/// Bring views up to the clock's time.
#[derive(Debug, Args)]
pub struct Refresh {
    /// Views by name; all that are in use when none is named
    views: Vec<String>,
    /// Only those that are due under their REFRESH EVERY
    #[arg(long)]
    due: bool,
    /// Commit, and leave this host's disk tier as it is: another host serves
    #[arg(long)]
    no_load: bool,
}

impl Refresh {
    /// Runs it: a view that fails does not stop the others, but the command fails.
    pub async fn run(&self, project: &Project, json: bool) -> Result<ExitCode> {
        let (_, state) = project.catalog().await?;
        let jobs = project.jobs()?;
        let mut done: Vec<Refreshed> = Vec::new();
        let mut failed = false;
        for view in chosen(&state, &self.views)? {
            let watermark = jobs.log(view).state().await?.watermark;
            if self.due && !is_due(view, watermark, project.clock().now()) {
                continue;
            }
            match jobs.refresh(&state, view).await {
                Ok(refreshed) => {
                    if let Some(restated) = &refreshed.restated {
                        note(&told(&refreshed.view, restated));
                    }
                    if refreshed.set_aside > 0 {
                        let name = &view.name;
                        note(&format!(
                            "warning: {name}: its query fails on {} pushed events, which it does without: springhouse set-aside {name}",
                            refreshed.set_aside
                        ));
                    }
                    if let Some(held_back) = &refreshed.held_back {
                        note(&waits(&refreshed, held_back));
                    }
                    if let Some(ahead) = refreshed.clock_ahead {
                        note(&format!(
                            "warning: this machine's clock is {ahead} ahead of object storage's: if it is wrong, set it right, and \
                             {} says that it has seen what it has not: springhouse check",
                            refreshed.view
                        ));
                    }
                    done.push(refreshed);
                }
                Err(error) => {
                    complain(&error.with("view", view.pinned()).chain());
                    failed = true;
                }
            }
        }
        if !self.no_load {
            load_tiers(project).await?;
        }
        if json || !failed || !done.is_empty() {
            show(json, &done, || shown(&done))?;
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Loads the tiers of this project; a running store loads them itself.
pub async fn load_tiers(project: &Project) -> Result<()> {
    match project.feature_server() {
        Ok(server) => server.follow(&Bar::default()).await,
        Err(error) if error.kind() == ErrorKind::Busy => {
            note("the store is being served: it loads what was committed by itself");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whom a view's watermark waits for, and what to do.
fn waits(refreshed: &Refreshed, HeldBack { source, producer, lacks_pushes }: &HeldBack) -> String {
    if *lacks_pushes {
        return format!(
            "{}: what was pushed to {source} has been flushed and has not all come to the view, which stays at {}: the next \
             flush of springhouse serve brings it, or says why it cannot",
            refreshed.view, refreshed.watermark
        );
    }
    let who = match producer {
        Some(producer) if producer.is_empty() => format!("a producer without a name has pushed to {source}"),
        Some(producer) => format!("the producer {producer} of {source} has pushed"),
        None => format!("nobody has said how far {source} has been pushed; it stays"),
    };
    format!("{}: {who} up to {}: springhouse producers {source}", refreshed.view, refreshed.watermark)
}

/// What was found about history, and what to do.
pub(super) fn told(view: &str, restated: &Restated) -> String {
    let Restated { files, rows_before, rows_now, rows_changed, late_events } = restated;
    let now = rows_now.map_or_else(String::new, |now| format!(", and now gives {now}"));
    let changed = rows_changed.map_or_else(String::new, |rows| format!("; {rows} rows are not what is committed"));
    let late = match late_events {
        0 => String::new(),
        events => format!("; {events} events came late, in new files"),
    };
    let name = view.split('@').next().unwrap_or(view);
    format!(
        "warning: history has changed under {view}: it gave {rows_before} rows{now}{changed}{late}\n  changed, gone or new: \
         {}\n  what was committed stays; to compute it anew: springhouse backfill {name}",
        files.join(", ")
    )
}

fn shown(done: &[Refreshed]) -> String {
    let cells = |refreshed: &Refreshed| {
        vec![
            refreshed.view.clone(),
            match (refreshed.committed, refreshed.appeared) {
                (false, _) => "up to date".to_owned(),
                (true, 0) => refreshed.rows.to_string(),
                (true, late) => format!("{}, {late} of them from new files of the past", refreshed.rows),
            },
            if refreshed.late > 0 { refreshed.late.to_string() } else { "-".to_owned() },
            refreshed.watermark.to_string(),
        ]
    };
    table(&["view", "rows", "too late", "watermark"], &done.iter().map(cells).collect::<Vec<_>>())
}

/// The live views of these names; all when none is named.
pub fn chosen<'a>(state: &'a CatalogState, names: &[String]) -> Result<Vec<&'a FeatureView>> {
    let live = state.live_views();
    if live.is_empty() {
        return Err(Error::invalid("no feature views are defined").remedy("springhouse apply -m MESSAGE"));
    }
    for name in names {
        if !live.iter().any(|view| &view.name == name) {
            let all: Vec<&str> = live.iter().map(|view| view.name.as_str()).collect();
            return Err(Error::not_found("no such feature view").with("view", name).with("views", all.join(", ")));
        }
    }
    Ok(live.into_iter().filter(|view| names.is_empty() || names.contains(&view.name)).collect())
}
