//! `plan`, `apply` and `log`: definitions and their history.

use clap::Args;
use serde::Serialize;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::{CatalogState, Change};
use springhouse_sql::change_plan::{ChangePlan, changes};
use springhouse_sql::check::{Checked, check};

use crate::project::Project;
use crate::render::{note, say, show};

/// Check the project's definitions and commit what changed.
#[derive(Debug, Args)]
pub struct Apply {
    /// Why: it stands in the history
    #[arg(short, long)]
    message: String,
}

async fn checked(project: &Project, state: &CatalogState) -> Result<Checked> {
    check(&project.definition_files()?, state, &project.jobs()?.session()?).await
}

/// Shows what apply would change.
pub async fn plan(project: &Project, json: bool) -> Result<()> {
    let (_, state) = project.catalog().await?;
    let (checked, pushed) = (checked(project, &state).await?, project.jobs()?.pushed().state().await?);
    let plan = ChangePlan::new(&checked, &state).naming_counted_twice(&checked, |source| pushed.knows(source));
    show(json, &plan, || plan.to_string())
}

#[derive(Serialize)]
struct Applied {
    commit: Option<u64>,
    plan: ChangePlan,
}

impl Apply {
    /// An apply with this message.
    pub fn because(message: &str) -> Self {
        Self { message: message.to_owned() }
    }

    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let mut plan = ChangePlan::default();
        let commit = project
            .commit(&self.message, async |state: &CatalogState| {
                let checked = checked(project, state).await?;
                plan = ChangePlan::new(&checked, state);
                Ok(changes(&checked, state))
            })
            .await?;
        let applied = Applied { commit, plan };
        show(json, &applied, || match applied.commit {
            Some(number) => format!("{}\napplied as commit {number}", applied.plan),
            None => "nothing to change".to_owned(),
        })
    }
}

/// Shows the catalog's history.
pub async fn log(project: &Project, json: bool) -> Result<()> {
    let (catalog, _) = project.catalog().await?;
    let history = catalog.history().await?;
    if history.is_empty() {
        note("the catalog is empty: apply some definitions first");
    }
    if json {
        return show(true, &history, String::new);
    }
    for (number, commit) in history.iter().rev() {
        say(&format!("commit {number}  {}  {}\n    {}", commit.at, commit.who, commit.why));
        for change in &commit.changes {
            say(&format!("    {}", described(change)));
        }
    }
    Ok(())
}

fn described(change: &Change) -> String {
    match change {
        Change::Define(definition) => {
            let policy = definition.policy().map(|policy| format!(" with policy {policy}")).unwrap_or_default();
            format!("+ {} {}@{}{policy}", definition.kind(), definition.name(), definition.version())
        }
        Change::Retire { kind, name } => format!("- {kind} {name}"),
        Change::Package(record) => format!("+ package {} for {}", record.digest, record.contract),
        Change::Deploy { contract, digest } => format!("> {contract} is answered by {digest}"),
    }
}
