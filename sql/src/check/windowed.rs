//! Views with `WINDOWS`.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use springhouse_featurestore::definition::{Column, ColumnType, Entity, EventTime, Source, ViewWindow, Windowed};
use springhouse_featurestore::time::Span;

use super::Checker;
use crate::diagnostic::SourceFile;
use crate::parse::{ViewStatement, WindowsClause};
use crate::windowed::EventQuery;

/// The finest step: below it a day has more tiles than a chunk has places.
const LEAST_STEP: Span = Span::from_secs(10);

/// The most windows of a view: a tile's are named by the bits of one word.
const MOST_WINDOWS: usize = 64;

/// The most arguments of a view: a chunk counts what it summarises in a byte.
const MOST_ARGUMENTS: usize = 200;

impl Checker<'_> {
    /// Checks the windows and the query's shape; gives them with the columns that are visible below the aggregates, and the
    /// plan that has those.
    pub(super) fn windowed(
        &mut self,
        file: &SourceFile,
        view: &ViewStatement,
        clause: &WindowsClause,
        entity: &Entity,
        sources: &[Source],
        plan: &LogicalPlan,
    ) -> Option<(Windowed, Vec<Column>, LogicalPlan)> {
        let faults = self.faults.len();
        if let Some(lookback) = &view.lookback {
            let message = "LOOKBACK has no meaning beside WINDOWS: every event stands by itself";
            self.fault(file, lookback.at, message, Some("leave it out".to_owned()));
        }
        let windows = self.windows(file, clause);
        let taken = EventQuery::take_apart(plan).and_then(|query| {
            refuse_stateful(&query.events, sources)?;
            Ok(query)
        });
        let query = match taken {
            Ok(query) => query,
            Err(error) => {
                self.query_fault(file, view.query.at, &error);
                return None;
            }
        };
        for (name, _) in query.keys.iter().filter(|(name, _)| !entity.keys.iter().any(|key| key.name == *name)) {
            let message = format!("the query groups by '{name}', which is not a key of entity {}", entity.name);
            self.fault(file, view.query.at, message, Some("a view has one row for each entity".to_owned()));
        }
        if query.aggregates.is_empty() {
            let message = "the view yields no features: its query has no aggregate";
            self.fault(file, view.query.at, message, Some("add one, such as count(*) AS events".to_owned()));
        }
        let visible =
            query.events.schema().fields().iter().filter_map(|field| {
                Some(Column::nullable(field.name(), ColumnType::from_arrow(field.data_type()).ok()?))
            });
        let visible = visible.collect();
        let windowed = Windowed {
            step: clause.step.value,
            windows,
            arguments: query.argument_columns(),
            aggregates: query.aggregates,
        };
        if windowed.arguments.len() > MOST_ARGUMENTS {
            let message = format!("the view's aggregates have more than {MOST_ARGUMENTS} different arguments");
            self.fault(file, view.query.at, message, Some("make two views of it".to_owned()));
        }
        self.name_clashes(file, view, entity, &windowed);
        (self.faults.len() == faults).then_some((windowed, visible, query.events))
    }

    fn windows(&mut self, file: &SourceFile, clause: &WindowsClause) -> Vec<ViewWindow> {
        let step = clause.step.value;
        if step < LEAST_STEP {
            let help = Some(format!("the finest step is '{LEAST_STEP}'"));
            self.fault(file, clause.step.at, format!("the step '{step}' is too fine"), help);
        }
        if clause.windows.len() > MOST_WINDOWS {
            let message = format!("the view has more than {MOST_WINDOWS} windows");
            self.fault(file, clause.windows[MOST_WINDOWS].length.at, message, None);
        }
        let mut windows = Vec::with_capacity(clause.windows.len());
        for written in &clause.windows {
            let own = written.step.as_ref().map_or(step, |own| own.value);
            if let Some(own) = written.step.as_ref().filter(|own| own.value.micros() % step.micros() != 0) {
                let message = format!("the window's step '{}' is not a multiple of the view's, '{step}'", own.value);
                self.fault(file, own.at, message, None);
            }
            if written.length.value.span() < own {
                let message = format!("the window '{}' is shorter than its step, '{own}'", written.length.value);
                self.fault(file, written.length.at, message, None);
            }
            windows.push(ViewWindow { length: written.length.value, step: own });
        }
        windows
    }

    fn name_clashes(&mut self, file: &SourceFile, view: &ViewStatement, entity: &Entity, windowed: &Windowed) {
        let features = windowed.features();
        for (index, feature) in features.iter().enumerate() {
            if features[..index].iter().any(|other| other.name == feature.name) {
                let message = format!("two features are called '{}'", feature.name);
                self.fault(file, view.query.at, message, Some("give the aggregates other names".to_owned()));
            } else if entity.keys.iter().any(|key| key.name == feature.name) {
                let message = format!("the feature '{}' is called as a key is", feature.name);
                self.fault(file, view.query.at, message, Some("give the aggregate another name".to_owned()));
            }
        }
    }
}

/// Refuses what makes an event's row depend on other events. What a source does in its own query is its own.
fn refuse_stateful(events: &LogicalPlan, sources: &[Source]) -> Result<(), DataFusionError> {
    let mut timed = 0;
    events.apply_with_subqueries(|node| match node {
        LogicalPlan::Window(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Limit(_) => {
            Err(DataFusionError::Plan(
                "below a windowed view's aggregates every event stands by itself: no window functions, groups, DISTINCT \
                 or LIMIT in FROM"
                    .to_owned(),
            ))
        }
        // A source is planned as its query under its name.
        LogicalPlan::SubqueryAlias(of) => match sources.iter().find(|source| source.name == of.alias.table()) {
            Some(source) => {
                timed += usize::from(source.event_time != EventTime::Static);
                Ok(TreeNodeRecursion::Jump)
            }
            None => Ok(TreeNodeRecursion::Continue),
        },
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    if timed == 1 {
        return Ok(());
    }
    Err(DataFusionError::Plan(
        "a windowed view reads one source of events, once, and any number of STATIC ones: joined with another event, an \
         event would not stand by itself"
            .to_owned(),
    ))
}
