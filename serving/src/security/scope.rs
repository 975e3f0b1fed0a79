//! Scopes: what a caller may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use springhouse_featurestore::Error;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look features up, and read training sets, packages and how things stand.
    Read,
    /// Ask for predictions.
    Predict,
    /// Push events.
    Push,
    /// Run SQL and read files by name: an engineer's.
    Query,
    /// Change definitions.
    Define,
    /// Change what is deployed.
    Deploy,
    /// Set the clock, flush, follow.
    Operate,
    /// Approve what others propose.
    Approve,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Read, Self::Predict, Self::Push, Self::Query, Self::Define, Self::Deploy, Self::Operate, Self::Approve];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Predict => "predict",
            Self::Push => "push",
            Self::Query => "query",
            Self::Define => "define",
            Self::Deploy => "deploy",
            Self::Operate => "operate",
            Self::Approve => "approve",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|scope| scope.as_str()).collect();
            Error::invalid("there is no such scope")
                .with("scope", text)
                .remedy(format!("the scopes are: {}", names.join(", ")))
        })
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope.
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether a scope is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & bit(scope) != 0
    }
}

fn bit(scope: Scope) -> u8 {
    1 << scope as u8
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | bit(scope)))
    }
}

/// `read, push`, as messages name several.
pub(crate) fn any_of(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" or ")
}
