//! `token`: the tokens that callers show. Only their hashes are kept, so each is printed once.

use clap::{Args, Subcommand};
use serde::Serialize;
use springhouse_featurestore::Result;
use springhouse_featurestore::time::{Clock, SystemClock, Timestamp};
use springhouse_serving::security::{CallersFile, KnownToken, Scope};

use crate::project::Project;
use crate::render::{note, show, table};

/// Make, list and revoke the tokens that callers show.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, this once
    Create(Create),
    /// List tokens and certificates: who shows them, and what they may
    List,
    /// Take a token away; running servers know within a second
    Revoke(Revoke),
}

/// Make a token and print it, this once.
#[derive(Debug, Args)]
pub struct Create {
    /// Who is to show it, as messages name them
    #[arg(long)]
    caller: String,
    /// What they may: read, predict, push, query, define, deploy, operate or approve; once for each
    #[arg(long = "scope", required = true)]
    scopes: Vec<Scope>,
}

/// Take a token away; running servers know within a second.
#[derive(Debug, Args)]
pub struct Revoke {
    /// Its id, as `token list` shows it
    id: String,
}

#[derive(Serialize)]
struct Created<'a> {
    caller: &'a str,
    token: &'a str,
}

#[derive(Serialize)]
struct Listed<'a> {
    /// A token's id, or a certificate's name.
    shows: &'a str,
    caller: &'a str,
    scopes: String,
    created: Option<Timestamp>,
}

impl TokenCommand {
    /// Runs it.
    pub fn run(&self, project: &Project, json: bool) -> Result<()> {
        let path = project.callers_file()?;
        match self {
            Self::Create(create) => {
                let now = SystemClock.now();
                let make = |file: &mut CallersFile| file.create(&create.caller, &create.scopes, now);
                let token = CallersFile::change(&path, make)?;
                note("the token is shown this once; keep it in a file that its caller alone can read");
                show(json, &Created { caller: &create.caller, token: token.reveal() }, || token.reveal().to_owned())
            }
            Self::List => list(&CallersFile::read(&path)?, json),
            Self::Revoke(revoke) => {
                let revoked: KnownToken = CallersFile::change(&path, |file| file.revoke(&revoke.id))?;
                let listed = listed(&revoked.id, &revoked.caller, &revoked.scopes, Some(revoked.created));
                show(json, &listed, || format!("revoked {} of {}", revoked.id, revoked.caller))
            }
        }
    }
}

fn listed<'a>(shows: &'a str, caller: &'a str, scopes: &[Scope], created: Option<Timestamp>) -> Listed<'a> {
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    Listed { shows, caller, scopes: scopes.join(" "), created }
}

fn list(file: &CallersFile, json: bool) -> Result<()> {
    let tokens = file.tokens.iter().map(|token| listed(&token.id, &token.caller, &token.scopes, Some(token.created)));
    let certificates = &file.certificates;
    let certificates = certificates.iter().map(|known| listed(&known.name, &known.caller, &known.scopes, None));
    let all: Vec<Listed<'_>> = tokens.chain(certificates).collect();
    show(json, &all, || {
        let row = |one: &Listed<'_>| {
            let created = one.created.map_or_else(|| "-".to_owned(), |time| time.to_string());
            vec![one.shows.to_owned(), one.caller.to_owned(), one.scopes.clone(), created]
        };
        table(&["token or certificate", "caller", "scopes", "made"], &all.iter().map(row).collect::<Vec<_>>())
    })
}
