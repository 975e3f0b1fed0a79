//! Contracts.

use std::collections::BTreeSet;

use springhouse_featurestore::definition::{
    Column, Contract, Definition, DefinitionKind, FeatureRule, FeatureView, Input, Pinned, RuleAction,
};

use super::Checker;
use super::version::policy_of;
use crate::diagnostic::SourceFile;
use crate::inputs::Scope;
use crate::parse::{ContractStatement, Located, RuleStatement, Statement};
use crate::print::print;

impl Checker<'_> {
    pub(super) fn check_contract(&mut self, file: &SourceFile, statement: &Statement, contract: &ContractStatement) {
        let faults = self.faults.len();
        let request = self.request_columns(file, contract);
        let views = self.contract_views(file, contract, &request);
        self.refuse_repeated(file, "output", contract.output.iter().map(|(name, _)| name));
        for (name, kind) in &contract.output {
            if !kind.is_numeric() {
                let help = Some("a model answers numbers: FLOAT, DOUBLE, an integer type or BOOLEAN".to_owned());
                self.fault(file, name.at, format!("the output '{}' cannot be {kind}", name.value), help);
            }
        }
        // Inputs are only judged against views that are all there: else every one of them would be reported twice.
        let inputs = match views {
            Some(ref views) => self.inputs(file, contract, &request, views),
            None => Vec::new(),
        };
        if self.faults.len() > faults {
            return;
        }
        let views = views.unwrap_or_default();
        let pinned: Vec<Pinned> = views.iter().map(FeatureView::pinned).collect();
        let features = contract.features.iter().zip(&pinned).map(|(rule, view)| feature_rule(rule, view)).collect();
        self.checked.definitions.push(Definition::Contract(Contract {
            name: contract.name.value.clone(),
            version: self.version_of(DefinitionKind::Contract, &contract.name.value, statement, &pinned),
            policy: policy_of(statement),
            text: print(statement),
            tier: contract.tier.value.clone(),
            request,
            features,
            inputs,
            output: contract.output.iter().map(|(name, kind)| Column::required(&name.value, *kind)).collect(),
            latency: contract.latency.as_ref().map(|latency| latency.value),
            availability: contract.availability.as_ref().map(|availability| availability.value),
        }));
    }

    fn request_columns(&mut self, file: &SourceFile, contract: &ContractStatement) -> Vec<Column> {
        self.refuse_repeated(file, "request column", contract.request.iter().map(|(name, _, _)| name));
        for (name, kind, _) in contract.request.iter().filter(|(_, kind, _)| kind.is_list()) {
            let help = Some("send one value a row, or several columns; lists are for features".to_owned());
            self.fault(file, name.at, format!("the request column '{}' cannot be {kind}", name.value), help);
        }
        let column = |(name, kind, nullable): &(Located<String>, _, bool)| Column {
            name: name.value.clone(),
            column_type: *kind,
            nullable: *nullable,
        };
        contract.request.iter().map(column).collect()
    }

    fn refuse_repeated<'n>(&mut self, file: &SourceFile, what: &str, names: impl Iterator<Item = &'n Located<String>>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(&name.value) {
                self.fault(file, name.at, format!("the {what} '{}' is given twice", name.value), None);
            }
        }
    }

    /// The views of the rules; `None` after reporting those that are not there.
    fn contract_views(
        &mut self,
        file: &SourceFile,
        contract: &ContractStatement,
        request: &[Column],
    ) -> Option<Vec<FeatureView>> {
        self.refuse_repeated(file, "view", contract.features.iter().map(|rule| &rule.view));
        let mut views = Vec::with_capacity(contract.features.len());
        for rule in &contract.features {
            self.check_rule(file, rule);
            let Some(view) = self.views.get(&rule.view.value).cloned() else {
                let names: Vec<String> = self.views.keys().cloned().collect();
                self.unknown(file, &rule.view, "feature view", names.iter().map(String::as_str));
                continue;
            };
            for key in &view.keys {
                self.check_key(file, rule, key, request);
            }
            views.push(view);
        }
        (views.len() == contract.features.len()).then_some(views)
    }

    fn check_key(&mut self, file: &SourceFile, rule: &RuleStatement, key: &Column, request: &[Column]) {
        match request.iter().find(|column| column.name == key.name) {
            Some(column) if column.column_type == key.column_type => {}
            Some(column) => {
                let message = format!(
                    "the request's '{}' is {}, but the key of {} is {}",
                    key.name, column.column_type, rule.view.value, key.column_type
                );
                self.fault(file, rule.view.at, message, None);
            }
            None => {
                let message = format!("the request has no column '{}', the key of {}", key.name, rule.view.value);
                let help = Some(format!("add {} {} to REQUEST", key.name, key.column_type));
                self.fault(file, rule.view.at, message, help);
            }
        }
    }

    fn check_rule(&mut self, file: &SourceFile, rule: &RuleStatement) {
        if let Some(action) = rule.on_missing.as_ref().filter(|action| action.value == RuleAction::Serve) {
            let help = Some("ON MISSING DEFAULT or ON MISSING FAIL".to_owned());
            self.fault(file, action.at, "a missing value cannot be served", help);
        }
        if let (Some(action), None) = (&rule.on_expired, &rule.max_age) {
            let help = Some("add MAX AGE '3 hours', or remove ON EXPIRED".to_owned());
            self.fault(file, action.at, "without MAX AGE nothing ever expires", help);
        }
    }

    fn inputs(
        &mut self,
        file: &SourceFile,
        contract: &ContractStatement,
        request: &[Column],
        views: &[FeatureView],
    ) -> Vec<Input> {
        self.refuse_repeated(file, "input", contract.inputs.iter().map(|input| &input.name));
        let scope = match Scope::new(request, &views.iter().collect::<Vec<_>>()) {
            Ok(scope) => scope,
            Err(error) => {
                self.error_fault(file, contract.name.at, &error);
                return Vec::new();
            }
        };
        let mut inputs = Vec::with_capacity(contract.inputs.len());
        for input in &contract.inputs {
            let expression = input.expression.value.to_string();
            match scope.compile(self.session, &expression) {
                Err(error) => self.query_fault(file, input.expression.at, &error),
                Ok((_, column_type)) if !column_type.is_numeric() => {
                    let message =
                        format!("the input '{}' is {column_type}, which a model cannot read", input.name.value);
                    let help = if column_type.is_list() {
                        "make it a number or a BOOLEAN: one element list[1], array_length(list) or array_has(list, value)"
                    } else {
                        "make it a number or a BOOLEAN"
                    };
                    let help = Some(help.to_owned());
                    self.fault(file, input.expression.at, message, help);
                }
                Ok((_, column_type)) => inputs.push(Input {
                    name: input.name.value.clone(),
                    expression,
                    column: Column::nullable(&input.name.value, column_type),
                }),
            }
        }
        inputs
    }
}

/// Actions that are not given are the strictest: FAIL.
fn feature_rule(rule: &RuleStatement, view: &Pinned) -> FeatureRule {
    let action = |given: &Option<Located<RuleAction>>| given.as_ref().map_or(RuleAction::Fail, |given| given.value);
    FeatureRule {
        view: view.clone(),
        fresh_within: rule.fresh_within.value,
        max_age: rule.max_age.as_ref().map(|age| age.value),
        on_stale: action(&rule.on_stale),
        on_expired: action(&rule.on_expired),
        on_missing: action(&rule.on_missing),
    }
}
