//! The commands, one file each.

mod apply;
mod audit;
mod backfill;
mod demo;
mod deploy;
mod freshness_curve;
mod lookup;
mod maintain;
mod predict;
mod producers;
mod push;
mod query;
mod refresh;
mod run;
mod serve;
mod set_aside;
mod status;
mod token;
mod train;
mod training_set;

pub use freshness_curve::CurvePoint;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_serving::security::{Access, Waived};
use springhouse_sql::spine::SpineSource;

use crate::project::Project;

/// SQL feature definitions to fresh, point-in-time-correct features, and models served on them under a contract.
#[derive(Debug, Parser)]
#[command(name = "springhouse", version)]
pub struct Cli {
    /// The project folder
    #[arg(long, global = true, default_value = ".")]
    project: PathBuf,
    /// Run at this time instead of the machine's: 2013-12-01T05:00:00Z; it moves as real time does
    #[arg(long, global = true, value_parser = parse_time)]
    clock: Option<Timestamp>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
    #[command(subcommand)]
    command: Command,
}

/// What this process shows to servers, and which it believes.
#[derive(Debug, Args)]
struct AccessArgs {
    /// A file with the token to show to servers; `SPRINGHOUSE_TOKEN_FILE` names it too
    #[arg(long, global = true)]
    token_file: Option<PathBuf>,
    /// The authorities of servers' certificates, in PEM, else the system's; `SPRINGHOUSE_CA` names it too
    #[arg(long, global = true)]
    ca: Option<PathBuf>,
    /// A certificate to show to servers, in PEM; `SPRINGHOUSE_CERTIFICATE` names it too
    #[arg(long, global = true)]
    certificate: Option<PathBuf>,
    /// That certificate's private key, in PEM; `SPRINGHOUSE_KEY` names it too
    #[arg(long, global = true)]
    key: Option<PathBuf>,
}

impl AccessArgs {
    fn chosen(self) -> Result<Access> {
        let or_named = |given: Option<PathBuf>, variable: &str| {
            given.or_else(|| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from))
        };
        let certificate = or_named(self.certificate, "SPRINGHOUSE_CERTIFICATE");
        let certificate = match (certificate, or_named(self.key, "SPRINGHOUSE_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(Error::invalid("a certificate and its key belong together")
                    .remedy("give both --certificate and --key, or neither"));
            }
        };
        let token_file = or_named(self.token_file, "SPRINGHOUSE_TOKEN_FILE");
        Ok(Access { token_file, ca: or_named(self.ca, "SPRINGHOUSE_CA"), certificate })
    }
}

/// What a server may lack off loopback, by name alone.
#[derive(Debug, Clone, Copy, Args)]
struct WaivedArgs {
    /// Listen where others reach it although nobody is asked who they are: everybody may do everything
    #[arg(long)]
    without_authentication: bool,
    /// Listen where others reach it although connections are not encrypted: tokens can be read on their way
    #[arg(long)]
    without_encryption: bool,
}

impl From<WaivedArgs> for Waived {
    fn from(given: WaivedArgs) -> Self {
        Self { authentication: given.without_authentication, encryption: given.without_encryption }
    }
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|error| error.to_string())
}

fn parse_span(text: &str) -> Result<Span, String> {
    Span::parse(text).map_err(|error| error.to_string())
}

/// `512MiB`, `1GiB`, `2GB` or bytes.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c.is_whitespace());
    let unit: usize = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => return Err(format!("there is no unit '{unit}': write 512MiB or 1GiB")),
    };
    let count: usize =
        digits.parse().map_err(|_| format!("'{digits}' is not a number of bytes: write 512MiB or 1GiB"))?;
    count.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(|| format!("'{text}' is not an amount of memory"))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what apply would change
    Plan,
    /// Check the project's definitions and commit what changed
    Apply(apply::Apply),
    /// Show the history of the catalog: who, when, why, what
    Log,
    /// Bring views up to the clock's time
    Refresh(refresh::Refresh),
    /// Compute a view's rows of a stretch of time anew
    Backfill(backfill::Backfill),
    /// Refresh every view by its REFRESH EVERY, until stopped
    Run(run::Run),
    /// Merge the small data files of views into larger ones
    Compact(maintain::Compact),
    /// Remove data files that no commit has named for a day
    Gc(maintain::Gc),
    /// Check that everything that commits name is there and whole
    Check(maintain::Check),
    /// Run SQL over the project's tables and sources, and over what sources reject
    Query(query::Query),
    /// Write a contract's inputs for each row of a spine, as of its time
    TrainingSet(training_set::TrainingSet),
    /// Compare online lookups with the training set, value by value
    Audit(audit::Audit),
    /// Train a small neural network on a training set
    Train(train::Train),
    /// Work with packages
    #[command(subcommand)]
    Package(deploy::PackageCommand),
    /// Let a package answer for its contract
    Deploy(deploy::Deploy),
    /// Serve features (store) and predictions (worker)
    Serve(serve::Serve),
    /// Push events to a source of the running store
    Push(push::Push),
    /// Show who pushes to a source, retire a producer, or set a watermark back
    Producers(producers::Producers),
    /// Show the pushed events that views do without, try them again, or let them go
    SetAside(set_aside::SetAsideCommand),
    /// Look features up from the running store
    Lookup(lookup::Lookup),
    /// Ask the running worker for a prediction
    Predict(predict::Predict),
    /// What exactly is running
    Status(status::StatusCommand),
    /// Make, list and revoke the tokens that callers show
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// What staleness costs: a package's quality on features as of some time earlier
    FreshnessCurve(freshness_curve::FreshnessCurve),
    /// The whole chain on the flights example
    Demo(demo::Demo),
}

/// A spine, as several commands take it.
#[derive(Debug, Clone, Args)]
struct SpineArgs {
    /// A spine of the project by its name, a Parquet or CSV file (./name where it has no ending), or a SELECT over the
    /// project's tables and sources
    #[arg(long)]
    spine: String,
    /// The time column of a file or a query; `as_of` where it is not given
    #[arg(long)]
    time: Option<String>,
}

impl SpineArgs {
    fn source(&self, catalog: &CatalogState) -> Result<SpineSource> {
        SpineSource::given(catalog, &self.spine, self.time.as_deref())
    }
}

/// Runs a command.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    let project = Project::open(&cli.project, cli.clock)?.with_access(cli.access.chosen()?);
    let json = cli.json;
    match cli.command {
        Command::Plan => apply::plan(&project, json).await?,
        Command::Apply(command) => command.run(&project, json).await?,
        Command::Log => apply::log(&project, json).await?,
        Command::Refresh(command) => return command.run(&project, json).await,
        Command::Backfill(command) => command.run(&project, json).await?,
        Command::Compact(command) => command.run(&project, json).await?,
        Command::Gc(command) => command.run(&project, json).await?,
        Command::Check(command) => return command.run(&project, json).await,
        Command::Query(command) => command.run(&project, json).await?,
        Command::Run(command) => command.run(&project).await?,
        Command::TrainingSet(command) => command.run(&project, json).await?,
        Command::Audit(command) => return command.run(&project, json).await,
        Command::Train(command) => command.run(&project, json).await?,
        Command::Package(command) => command.run(&project, json).await?,
        Command::Deploy(command) => command.run(&project, json).await?,
        Command::Serve(command) => command.run(&project).await?,
        Command::Push(command) => command.run(&project, json).await?,
        Command::Producers(command) => command.run(&project, json).await?,
        Command::SetAside(command) => command.run(&project, json).await?,
        Command::Lookup(command) => command.run(&project, json).await?,
        Command::Predict(command) => command.run(&project, json).await?,
        Command::Status(command) => command.run(&project, json).await?,
        Command::Token(command) => command.run(&project, json)?,
        Command::FreshnessCurve(command) => command.run(&project, json).await?,
        Command::Demo(command) => Box::pin(command.run(&project)).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1 GB"), Ok(1_000_000_000));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert!(parse_bytes("1Gib").is_err_and(|error| error.contains("1GiB")));
        assert!(parse_bytes("much").is_err() && parse_bytes("0").is_err());
    }
}
