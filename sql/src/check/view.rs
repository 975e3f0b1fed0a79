//! Feature views.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::DataFrame;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::{
    Available, Column, ColumnType, Definition, DefinitionKind, Entity, EventTime, FeatureView, Pinned, RowTime, Source,
};
use springhouse_featurestore::time::Span;

use super::Checker;
use super::event_time::{Lies, TimedSource, lies};
use super::version::policy_of;
use crate::diagnostic::{SourceFile, suggest};
use crate::inputs::refuse_volatile;
use crate::parse::{Statement, ViewStatement};
use crate::print::print;
use crate::session::columns_of;
use crate::windowed::udaf;

impl Checker<'_> {
    pub(super) async fn check_view(
        &mut self,
        file: &SourceFile,
        statement: &Statement,
        view: &ViewStatement,
    ) -> Result<()> {
        let names: Vec<String> = self.sources.keys().cloned().collect();
        let sources = self.relations(file, &view.query, "source", &names);
        let entity = self.entities.get(&view.entity.value).cloned();
        if entity.is_none() {
            let entities: Vec<String> = self.entities.keys().cloned().collect();
            self.unknown(file, &view.entity, "entity", entities.iter().map(String::as_str));
        }
        let (Some(sources), Some(entity)) = (sources, entity) else { return Ok(()) };
        let sources: Vec<Source> = sources.iter().filter_map(|name| self.sources.get(name).cloned()).collect();
        let Some((query, frame, columns)) = self.planned(file, view).await else { return Ok(()) };
        let faults = self.faults.len();
        self.check_keys(file, view, &entity, &columns);
        let plan = frame.logical_plan();
        let (windowed, visible, stateful, rows) = match &view.windows {
            None => (None, columns.clone(), is_stateful(plan)?, plan.clone()),
            Some(clause) => match self.windowed(file, view, clause, &entity, &sources, plan) {
                Some((windowed, visible, events)) => (Some(windowed), visible, false, events),
                None => return Ok(()),
            },
        };
        let row_time = self.row_time(file, view, &sources, &visible, stateful);
        if !stateful && view.lookback.is_none() {
            self.check_told_apart(file, view, &sources, row_time.as_ref());
        }
        let event_time = row_time.as_ref().and_then(RowTime::event_time);
        let ahead = match event_time {
            Some(event_time) => self.lies_ahead(file, view, &sources, &rows, event_time).await?,
            None => false,
        };
        let features = match &windowed {
            Some(windowed) => windowed.features(),
            None => self.features(file, view, &entity, row_time.as_ref(), &columns),
        };
        let Some(row_time) = row_time.filter(|_| self.faults.len() == faults) else { return Ok(()) };
        let pinned: Vec<Pinned> = sources.iter().map(Source::pinned).collect();
        let entity_pinned = Pinned::new(&entity.name, entity.version.clone());
        let depends_on: Vec<Pinned> = std::iter::once(&entity_pinned).chain(&pinned).cloned().collect();
        let checked = FeatureView {
            name: view.name.value.clone(),
            version: self.version_of(DefinitionKind::FeatureView, &view.name.value, statement, &depends_on),
            policy: policy_of(statement),
            text: print(statement),
            entity: entity_pinned,
            keys: entity.keys,
            sources: pinned,
            query,
            row_time,
            refresh_every: view.refresh_every.value,
            ttl: view.ttl.as_ref().map(|ttl| ttl.value),
            // Where each row depends on one event alone, of its own time, nothing before that needs to be read.
            lookback: view
                .lookback
                .as_ref()
                .map(|span| span.value)
                .or_else(|| (!stateful && !ahead).then_some(Span::ZERO)),
            windowed,
            ahead,
            features,
        };
        self.views.insert(checked.name.clone(), checked.clone());
        self.checked.definitions.push(Definition::FeatureView(checked));
        Ok(())
    }

    /// A view's query as text, planned, and its columns; none where it cannot be planned, which is noted.
    async fn planned(&mut self, file: &SourceFile, view: &ViewStatement) -> Option<(String, DataFrame, Vec<Column>)> {
        let query = match &view.windows {
            Some(_) => udaf::plannable(&view.query.value).to_string(),
            None => view.query.value.to_string(),
        };
        let planned = self.session.plan(&query).await.and_then(|frame| {
            refuse_volatile_plan(frame.logical_plan())?;
            if view.windows.is_none() {
                udaf::refuse(frame.logical_plan())?;
            }
            Ok(frame)
        });
        let frame = match planned {
            Ok(frame) => frame,
            Err(error) => {
                self.query_fault(file, view.query.at, &error);
                return None;
            }
        };
        match columns_of(&frame) {
            Ok(columns) => Some((query, frame, columns)),
            Err(error) => {
                self.error_fault(file, view.query.at, &error);
                None
            }
        }
    }

    /// Whether rows' event time may lie after the events that they are made of; one that may lie before them is refused (T3).
    async fn lies_ahead(
        &mut self,
        file: &SourceFile,
        view: &ViewStatement,
        sources: &[Source],
        rows: &LogicalPlan,
        event_time: &str,
    ) -> Result<bool> {
        let (mut timed, mut own) = (Vec::new(), None);
        for source in sources {
            let EventTime::Column { column, .. } = &source.event_time else { continue };
            own.get_or_insert(column);
            let provider = self.session.context().table_provider(source.name.as_str()).await;
            let provider = provider.map_err(crate::session::query_error)?;
            if let Some(plan) = provider.get_logical_plan() {
                timed.push(TimedSource { name: source.name.clone(), plan: plan.into_owned() });
            }
        }
        let at = super::find_word(file, view.query.at, event_time).unwrap_or(view.query.at);
        let own = own.map_or("the event time", String::as_str);
        match lies(rows, &timed, event_time) {
            Lies::With => Ok(false),
            Lies::After if view.windows.is_none() => Ok(true),
            Lies::After => {
                let message = format!("the event time '{event_time}' of the windows' events may lie after them");
                let help = format!(
                    "let it be {own}; where events are known later than they happen, say so in the source: DELAY"
                );
                self.fault(file, at, message, Some(help));
                Ok(false)
            }
            Lies::Before(of) => {
                let message = format!(
                    "the event time '{event_time}' may lie before events of {} that a row is made of: as of a time in \
                     between the row would tell of later events",
                    of.join(" and ")
                );
                let help = format!(
                    "let it be the events' own time (GROUP BY {own}, or max({own})) or the end of their group \
                     (date_trunc('hour', {own}) + INTERVAL '1 hour'); of a join greatest(...), or a condition that the other \
                     event came before; or count over WINDOWS"
                );
                self.fault(file, at, message, Some(help));
                Ok(false)
            }
        }
    }

    fn check_keys(&mut self, file: &SourceFile, view: &ViewStatement, entity: &Entity, columns: &[Column]) {
        for key in &entity.keys {
            match columns.iter().find(|column| column.name == key.name) {
                None => {
                    let message =
                        format!("the query does not yield the key column '{}' of entity {}", key.name, entity.name);
                    let help = suggest(&key.name, columns.iter().map(|column| column.name.as_str()));
                    self.fault(file, view.query.at, message, help);
                }
                Some(column) if column.column_type != key.column_type => {
                    let message = format!(
                        "the key column '{}' is {}, but entity {} says {}",
                        key.name, column.column_type, entity.name, key.column_type
                    );
                    let help = Some(format!("CAST({} AS {})", key.name, key.column_type));
                    self.fault(file, view.query.at, message, help);
                }
                Some(_) => {}
            }
        }
    }

    /// How rows get their times, from the view's clause or from what its sources' columns are called.
    fn row_time(
        &mut self,
        file: &SourceFile,
        view: &ViewStatement,
        sources: &[Source],
        columns: &[Column],
        stateful: bool,
    ) -> Option<RowTime> {
        let timed: Vec<&Source> = sources.iter().filter(|source| source.event_time != EventTime::Static).collect();
        if timed.is_empty() {
            if let Some(column) = &view.event_time {
                self.fault(file, column.at, "all sources are STATIC: their rows have no event time", None);
                return None;
            }
            return Some(RowTime::Static);
        }
        let event_time = self.event_time(file, view, &timed, columns)?;
        let available: Vec<&String> = timed
            .iter()
            .filter_map(|source| match &source.available {
                Available::Column(column) => Some(column),
                Available::AtEventTime | Available::Delay(_) => None,
            })
            .collect();
        let Some(available_time) = available.first() else {
            let delay = timed.iter().map(|source| match source.available {
                Available::Delay(delay) => delay,
                Available::AtEventTime | Available::Column(_) => Span::ZERO,
            });
            return Some(RowTime::Delayed { event_time, delay: delay.max().unwrap_or_default() });
        };
        if stateful || timed.len() > 1 {
            let message = "a view over a source with AVAILABLE AT must take each row by itself: a value made of several \
                           rows would mix what was known at different times";
            let help = Some("use DELAY in the source, or select rows without windows, groups and joins".to_owned());
            self.fault(file, view.query.at, message, help);
            return None;
        }
        if !columns.iter().any(|column| &&column.name == available_time) {
            let message =
                format!("the query does not pass its source's available-time column '{available_time}' through");
            self.fault(file, view.query.at, message, Some(format!("add {available_time} to its SELECT")));
            return None;
        }
        Some(RowTime::Columns { event_time, available_time: (*available_time).clone() })
    }

    /// Refuses rows that each are an event and have another time than it, where the source tells its events apart by theirs:
    /// whether a view has got an event is told from the event's time.
    fn check_told_apart(
        &mut self,
        file: &SourceFile,
        view: &ViewStatement,
        sources: &[Source],
        row_time: Option<&RowTime>,
    ) {
        let Some(event_time) = row_time.and_then(RowTime::event_time) else { return };
        let mut told_apart = sources.iter().filter(|source| source.identity().is_some());
        let Some(source) = told_apart.find(|source| source.event_column() != Some(event_time)) else { return };
        let at = view.event_time.as_ref().map_or(view.query.at, |clause| clause.at);
        let message = format!(
            "the source '{}' has DISTINCT ON: a view of its events has their event time, not '{event_time}'",
            source.name
        );
        let help = source.event_column().map(|column| format!("EVENT TIME {column}, and {column} in its SELECT"));
        self.fault(file, at, message, help);
    }

    fn event_time(
        &mut self,
        file: &SourceFile,
        view: &ViewStatement,
        timed: &[&Source],
        columns: &[Column],
    ) -> Option<String> {
        let (name, at) = if let Some(clause) = &view.event_time {
            (clause.value.clone(), clause.at)
        } else {
            let mut candidates: Vec<&String> = timed
                .iter()
                .filter_map(|source| match &source.event_time {
                    EventTime::Column { column, .. } => Some(column),
                    EventTime::Static => None,
                })
                .filter(|name| columns.iter().any(|column| &&column.name == name))
                .collect();
            candidates.dedup();
            match candidates.as_slice() {
                [one] => ((*one).clone(), view.query.at),
                several => {
                    let message = if several.is_empty() {
                        "the view has no event time: its query passes no source's event-time column through"
                    } else {
                        "the view's event time is not clear: its query passes several event-time columns through"
                    };
                    let help = Some("add EVENT TIME column to the view, or the column to its SELECT".to_owned());
                    self.fault(file, view.query.at, message, help);
                    return None;
                }
            }
        };
        match columns.iter().find(|column| column.name == name) {
            Some(column) if column.column_type == ColumnType::Timestamp => Some(name),
            Some(column) => {
                let message = format!("the event-time column '{name}' is {}, not a TIMESTAMP", column.column_type);
                self.fault(file, at, message, None);
                None
            }
            None => {
                let help = suggest(&name, columns.iter().map(|column| column.name.as_str()));
                self.fault(file, at, format!("the query does not yield the event-time column '{name}'"), help);
                None
            }
        }
    }

    fn features(
        &mut self,
        file: &SourceFile,
        view: &ViewStatement,
        entity: &Entity,
        row_time: Option<&RowTime>,
        columns: &[Column],
    ) -> Vec<Column> {
        let is_time = |name: &str| match row_time {
            Some(RowTime::Columns { event_time, available_time }) => name == event_time || name == available_time,
            Some(RowTime::Delayed { event_time, .. }) => name == event_time,
            Some(RowTime::Static) | None => false,
        };
        let features: Vec<Column> = columns
            .iter()
            .filter(|column| !entity.keys.iter().any(|key| key.name == column.name) && !is_time(&column.name))
            .cloned()
            .collect();
        if let Some(odd) = features.iter().find(|feature| feature.name.contains(['@', '.'])) {
            let message = format!("the feature '{}' has '@' or '.' in its name", odd.name);
            self.fault(file, view.query.at, message, Some("give it an alias: expression AS name".to_owned()));
        }
        if features.is_empty() && row_time.is_some() {
            let message = "the view yields no features: its query selects only keys and times";
            self.fault(file, view.query.at, message, Some("add the value columns to its SELECT".to_owned()));
        }
        features
    }
}

/// Whether a row of the plan's result may depend on several events.
fn is_stateful(plan: &LogicalPlan) -> Result<bool> {
    use datafusion::common::tree_node::TreeNode;
    let mut stateful = false;
    plan.apply(|node| {
        if matches!(
            node,
            LogicalPlan::Window(_)
                | LogicalPlan::Aggregate(_)
                | LogicalPlan::Join(_)
                | LogicalPlan::Distinct(_)
                | LogicalPlan::Limit(_)
        ) {
            stateful = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(crate::session::query_error)?;
    Ok(stateful)
}

pub(super) fn refuse_volatile_plan(plan: &LogicalPlan) -> Result<(), DataFusionError> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            refuse_volatile(expression)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .map(|_| ())
}
