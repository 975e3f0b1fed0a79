//! `token`: the tokens that callers show. Only their hashes are kept, so each is printed once.

use clap::{Args, Subcommand};
use serde::Serialize;
use springhouse_featurestore::Result;
use springhouse_featurestore::time::{Clock, Span, SystemClock, Timestamp};
use springhouse_serving::security::{CallersFile, KnownToken, Scope};

use super::parse_span;
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
    /// For how long it is known, such as '90 days'; until it is revoked when it is not given
    #[arg(long, value_parser = parse_span)]
    expires: Option<Span>,
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
    expires: Option<Timestamp>,
    expired: bool,
}

impl TokenCommand {
    /// Runs it.
    pub fn run(&self, project: &Project, json: bool) -> Result<()> {
        let path = project.callers_file()?;
        match self {
            Self::Create(create) => {
                let now = SystemClock.now();
                let expires = create.expires.map(|after| (now + after).dated()).transpose()?;
                let make = |file: &mut CallersFile| file.create_until(&create.caller, &create.scopes, now, expires);
                let token = CallersFile::change(&path, make)?;
                note("the token is shown this once; keep it in a file that its caller alone can read");
                show(json, &Created { caller: &create.caller, token: token.reveal() }, || token.reveal().to_owned())
            }
            Self::List => list(&CallersFile::read(&path)?, json),
            Self::Revoke(revoke) => {
                let revoked: KnownToken = CallersFile::change(&path, |file| file.revoke(&revoke.id))?;
                let listed = listed_token(&revoked, SystemClock.now());
                show(json, &listed, || format!("revoked {} of {}", revoked.id, revoked.caller))
            }
        }
    }
}

fn listed<'a>(shows: &'a str, caller: &'a str, scopes: &[Scope]) -> Listed<'a> {
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    Listed { shows, caller, scopes: scopes.join(" "), created: None, expires: None, expired: false }
}

fn listed_token(token: &KnownToken, now: Timestamp) -> Listed<'_> {
    Listed {
        created: Some(token.created),
        expires: token.expires,
        expired: token.expires.is_some_and(|at| at <= now),
        ..listed(&token.id, &token.caller, &token.scopes)
    }
}

fn list(file: &CallersFile, json: bool) -> Result<()> {
    let now = SystemClock.now();
    let tokens = file.tokens.iter().map(|token| listed_token(token, now));
    let certificates = file.certificates.iter().map(|known| listed(&known.name, &known.caller, &known.scopes));
    let all: Vec<Listed<'_>> = tokens.chain(certificates).collect();
    show(json, &all, || {
        let row = |one: &Listed<'_>| {
            let time = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
            let until = if one.expired { format!("expired at {}", time(one.expires)) } else { time(one.expires) };
            vec![one.shows.to_owned(), one.caller.to_owned(), one.scopes.clone(), time(one.created), until]
        };
        table(
            &["token or certificate", "caller", "scopes", "made", "expires"],
            &all.iter().map(row).collect::<Vec<_>>(),
        )
    })
}
