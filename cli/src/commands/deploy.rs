//! `package push` and `deploy`: artifacts into the store, and which of them answers.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use springhouse_featurestore::catalog::{CatalogState, Change, PackageRecord};
use springhouse_featurestore::{Error, Result};
use springhouse_serving::package::Package;

use crate::project::Project;
use crate::render::show;

/// Work with packages.
#[derive(Debug, Subcommand)]
pub enum PackageCommand {
    /// Put a package into the store
    Push {
        /// The folder that train wrote
        folder: PathBuf,
    },
    /// List the packages in the store
    List,
}

/// Let a package answer for its contract.
#[derive(Debug, Args)]
pub struct Deploy {
    /// The contract's name
    contract: String,
    /// The package's digest, or its first digits
    digest: String,
    /// Why: it stands in the history
    #[arg(short, long)]
    message: String,
}

#[derive(Serialize)]
struct Deployed {
    commit: Option<u64>,
    contract: String,
    package: String,
}

impl PackageCommand {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        match self {
            Self::Push { folder } => {
                let package = Package::read(folder)?;
                let record = push(project, &package).await?;
                show(json, &record, || format!("{} for {}", record.digest, record.contract))
            }
            Self::List => {
                let (_, state) = project.catalog().await?;
                let records: Vec<&PackageRecord> = state.packages().values().collect();
                show(json, &records, || {
                    records.iter().map(|r| format!("{} for {}", r.digest, r.contract)).collect::<Vec<_>>().join("\n")
                })
            }
        }
    }
}

/// Stores a package and records it in the catalog.
pub async fn push(project: &Project, package: &Package) -> Result<PackageRecord> {
    let contract = package.manifest()?.contract;
    let record = PackageRecord { digest: package.digest().to_owned(), contract };
    package.store(&project.store()?).await?;
    let added = record.clone();
    project
        .commit("push a package", async |state: &CatalogState| {
            state.contract(&added.contract).map_err(|error| {
                error.remedy("the package was made for a contract version that this catalog does not have")
            })?;
            let known = state.packages().contains_key(&added.digest);
            Ok(if known { Vec::new() } else { vec![Change::Package(added.clone())] })
        })
        .await?;
    Ok(record)
}

/// Makes a package answer for a contract.
pub async fn deploy(project: &Project, contract: &str, digest: &str, why: &str) -> Result<(Option<u64>, String)> {
    let mut full = String::new();
    let commit = project
        .commit(why, async |state: &CatalogState| {
            let record = state.package(digest)?;
            if record.contract.name != contract {
                return Err(Error::invalid("the package is for another contract")
                    .with("package", &record.contract)
                    .with("contract", contract));
            }
            full.clone_from(&record.digest);
            let same = state.deployment(contract).is_some_and(|now| now.digest == record.digest);
            let change = Change::Deploy { contract: contract.to_owned(), digest: record.digest.clone() };
            Ok(if same { Vec::new() } else { vec![change] })
        })
        .await?;
    Ok((commit, full))
}

impl Deploy {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let (commit, package) = deploy(project, &self.contract, &self.digest, &self.message).await?;
        let deployed = Deployed { commit, contract: self.contract.clone(), package };
        show(json, &deployed, || match deployed.commit {
            Some(number) => format!("{} is answered by {} since commit {number}", deployed.contract, deployed.package),
            None => "nothing to change: it is deployed already".to_owned(),
        })
    }
}
