//! A contract: what a caller may send, which features are guaranteed how fresh, and what happens when they are not.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Column, Pinned, Version};
use crate::time::Span;

/// What to do with a value that is not fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    /// Give the model the value that there is, and say so in the answer.
    Serve,
    /// Give the input expressions a null, which their own `coalesce` turns into a default, and say so in the answer.
    Default,
    /// Refuse to answer.
    Fail,
}

impl fmt::Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serve => "SERVE",
            Self::Default => "DEFAULT",
            Self::Fail => "FAIL",
        })
    }
}

/// One view of a contract with its freshness rules. An action that is not given is `FAIL`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureRule {
    /// The view, at the version that the contract was checked with.
    pub view: Pinned,
    /// The greatest lag of a fresh value.
    pub fresh_within: Span,
    /// The greatest age of a value that has not expired.
    pub max_age: Option<Span>,
    /// When the lag is over `fresh_within`.
    pub on_stale: RuleAction,
    /// When the age is over `max_age`.
    pub on_expired: RuleAction,
    /// When there is no row for the entity; `Serve` is refused by the checker.
    pub on_missing: RuleAction,
}

/// One model input: an expression over request columns and features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// The expression's canonical text.
    pub expression: String,
    /// Columns are inputs of this type.
    pub column: Column,
}

/// `LATENCY '25 milliseconds' AT 0.99`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The bound.
    pub within: Span,
    /// The share of requests that it holds for.
    pub quantile: f64,
}

/// `AVAILABILITY 0.999 OVER '30 days'`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Availability {
    /// The share of requests that are answered.
    pub share: f64,
    /// The time over which it is counted.
    pub over: Span,
}

/// `CREATE CONTRACT`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// Its name; callers use it as the model name.
    pub name: String,
    /// Its version: of its meaning, which packages are bound to.
    pub version: Version,
    /// The version of its policy, which holds at once: tier, rules, latency and availability. None where the two were not told
    /// apart yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Version>,
    /// Canonical text.
    pub text: String,
    /// The class of criticality.
    pub tier: String,
    /// The columns of a request.
    pub request: Vec<Column>,
    /// The views and their rules.
    pub features: Vec<FeatureRule>,
    /// The model inputs, in the order in which the model reads them.
    pub inputs: Vec<Input>,
    /// The columns of an answer.
    pub output: Vec<Column>,
    /// The latency promise.
    pub latency: Option<Latency>,
    /// The availability promise.
    pub availability: Option<Availability>,
}

impl Contract {
    /// The contract at its version.
    pub fn pinned(&self) -> Pinned {
        Pinned::new(&self.name, self.version.clone())
    }
}
