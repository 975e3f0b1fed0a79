//! A contract's rules on looked-up rows (rule T8): what the input expressions may see, what is refused, what is said.
//!
//! Training sets and predictions pass through here alike. Pure.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::nullif;
use arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};

use crate::definition::{Contract, FeatureRule, FeatureView, RuleAction};
use crate::freshness::{Status, action};
use crate::lookup::{feature_column, status_column};
use crate::{Error, Result};

/// Looked-up rows under the rules.
#[derive(Debug, Clone)]
pub struct Enforced {
    /// The features, in the order of the contract's rules and of each view's columns; null where a rule says `DEFAULT`.
    pub features: Vec<ArrayRef>,
    views: Vec<EnforcedView>,
}

#[derive(Debug, Clone)]
struct EnforcedView {
    rule: FeatureRule,
    statuses: Vec<Status>,
}

/// A view that was not fresh for some rows of a request, and what its rule made of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The view.
    pub view: String,
    /// The status.
    pub status: Status,
    /// The rule that was applied.
    pub rule: RuleAction,
    /// How many rows.
    pub rows: usize,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}, rule {}, rows {}", self.view, self.status, self.rule, self.rows)
    }
}

/// A contract's rules, compiled for answers of one schema.
#[derive(Debug, Clone)]
pub struct Enforcer {
    answer: SchemaRef,
    views: Vec<ViewColumns>,
}

/// Where a view's columns stand in an answer.
#[derive(Debug, Clone)]
struct ViewColumns {
    rule: FeatureRule,
    status: usize,
    features: Vec<usize>,
}

impl Enforcer {
    /// The rules of a contract on answers with these columns, which [`crate::lookup`] documents.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when a column is not there.
    pub fn new(contract: &Contract, views: &[&FeatureView], answer: &SchemaRef) -> Result<Self> {
        let index_of = |name: &str| {
            answer.index_of(name).map_err(|error| Error::internal("a lookup's answer lacks a column").source(error))
        };
        let views = contract.features.iter().zip(views).map(|(rule, view)| {
            let features = view.features.iter().map(|feature| index_of(&feature_column(&view.name, &feature.name)));
            Ok(ViewColumns {
                rule: rule.clone(),
                status: index_of(&status_column(&view.name))?,
                features: features.collect::<Result<_>>()?,
            })
        });
        Ok(Self { answer: Arc::clone(answer), views: views.collect::<Result<_>>()? })
    }

    /// Applies the rules to an answer.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when the answer has other columns.
    pub fn enforce(&self, answer: &RecordBatch) -> Result<Enforced> {
        if answer.schema_ref().fields() != self.answer.fields() {
            return Err(Error::internal("a lookup's answer has other columns than its contract says")
                .remedy("is the feature server of another version?"));
        }
        let mut enforced = Enforced { features: Vec::new(), views: Vec::with_capacity(self.views.len()) };
        for view in &self.views {
            let statuses = read_statuses(answer.column(view.status))?;
            let hides = |status: &Status| action(&view.rule, *status) == Some(RuleAction::Default);
            let values = view.features.iter().map(|&index| ArrayRef::clone(answer.column(index)));
            if statuses.iter().any(hides) {
                let hidden: BooleanArray = statuses.iter().map(|status| Some(hides(status))).collect();
                for column in values {
                    enforced.features.push(nullif(&column, &hidden)?);
                }
            } else {
                enforced.features.extend(values);
            }
            enforced.views.push(EnforcedView { rule: view.rule.clone(), statuses });
        }
        Ok(enforced)
    }
}

fn read_statuses(column: &ArrayRef) -> Result<Vec<Status>> {
    let words = column.as_string_opt::<i32>().ok_or_else(|| Error::internal("a status column is not text"))?;
    (0..words.len())
        .map(|row| {
            let word = words.value(row);
            Status::parse(word).ok_or_else(|| Error::internal("not a status").with("value", word))
        })
        .collect()
}

impl Enforced {
    /// What was not fresh in these rows, in the order of the rules.
    pub fn findings(&self, rows: &Range<usize>) -> Vec<Finding> {
        let mut findings = Vec::new();
        for view in &self.views {
            let own = &view.statuses[rows.clone()];
            if own.iter().all(|status| *status == Status::Fresh) {
                continue;
            }
            for status in [Status::Stale, Status::Expired, Status::Missing] {
                let count = own.iter().filter(|of| **of == status).count();
                if let Some(rule) = action(&view.rule, status).filter(|_| count > 0) {
                    findings.push(Finding { view: view.rule.view.name.clone(), status, rule, rows: count });
                }
            }
        }
        findings
    }

    /// The error for findings that a `FAIL` rule refuses; `None` where none does.
    pub fn refusal(&self, findings: &[Finding]) -> Option<Error> {
        let refused: Vec<&Finding> = findings.iter().filter(|finding| finding.rule == RuleAction::Fail).collect();
        let first = refused.first()?;
        let rule = &self.views.iter().find(|view| view.rule.view.name == first.view)?.rule;
        let bound = match first.status {
            Status::Stale => format!("FRESH WITHIN '{}' ON STALE FAIL", rule.fresh_within),
            Status::Expired => format!("MAX AGE '{}' ON EXPIRED FAIL", rule.max_age.unwrap_or_default()),
            Status::Fresh | Status::Missing => "ON MISSING FAIL".to_owned(),
        };
        let all: Vec<String> = refused.iter().map(|f| format!("{} {} in {} rows", f.view, f.status, f.rows)).collect();
        Some(
            Error::refused(format!("the contract refuses to answer: {}", all.join("; ")))
                .with("view", &rule.view)
                .with("status", first.status)
                .with("rule", bound)
                .remedy("try again when the view has been refreshed"),
        )
    }

    /// How many of these rows have every view fresh.
    pub fn fresh_rows(&self, rows: &Range<usize>) -> usize {
        rows.clone().filter(|row| self.views.iter().all(|view| view.statuses[*row] == Status::Fresh)).count()
    }
}
