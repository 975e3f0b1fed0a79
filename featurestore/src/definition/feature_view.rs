//! A feature view: a query over sources that yields features per entity over time.

use serde::{Deserialize, Serialize};

use super::{Column, Pinned, Version, Windowed};
use crate::time::Span;

/// How a view's rows get their event time and available time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowTime {
    /// The rows hold at every time.
    Static,
    /// The event time is a column; the row is available `delay` later.
    Delayed {
        /// The event-time column of the query's output.
        event_time: String,
        /// The greatest delay of the sources.
        delay: Span,
    },
    /// Both times are columns of the query's output.
    Columns {
        /// The event-time column.
        event_time: String,
        /// The available-time column.
        available_time: String,
    },
}

impl RowTime {
    /// The columns of the query that it reads.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            Self::Static => Vec::new(),
            Self::Delayed { event_time, .. } => vec![event_time],
            Self::Columns { event_time, available_time } => vec![event_time, available_time],
        }
    }

    /// The event-time column, unless the view is static.
    pub fn event_time(&self) -> Option<&str> {
        match self {
            Self::Static => None,
            Self::Delayed { event_time, .. } | Self::Columns { event_time, .. } => Some(event_time),
        }
    }
}

/// `CREATE FEATURE VIEW`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureView {
    /// Its name.
    pub name: String,
    /// Its version: of its meaning, which its data is bound to.
    pub version: Version,
    /// The version of its policy, which holds at once: how often it is refreshed. None where the two were not told apart yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Version>,
    /// Canonical text.
    pub text: String,
    /// Its entity.
    pub entity: Pinned,
    /// The entity's key columns.
    pub keys: Vec<Column>,
    /// The sources that it was checked with.
    pub sources: Vec<Pinned>,
    /// The query over them.
    pub query: String,
    /// How its rows get their times.
    pub row_time: RowTime,
    /// How often it is to be refreshed.
    pub refresh_every: Span,
    /// Rows older than this are as if they had never been.
    pub ttl: Option<Span>,
    /// How far back one row's value may reach: zero where each row stands by itself, none for as far as there is history.
    pub lookback: Option<Span>,
    /// What is computed over windows; absent where each row of the query is a feature row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windowed: Option<Windowed>,
    /// Whether a row's event time may lie after the events that it is made of, as the end of an hour does: then it holds from
    /// that time on, and pushes come to it by refreshes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ahead: bool,
    /// The features.
    pub features: Vec<Column>,
}

impl FeatureView {
    /// The view at its version.
    pub fn pinned(&self) -> Pinned {
        Pinned::new(&self.name, self.version.clone())
    }

    /// The value columns of its committed rows: the features, or the arguments of the aggregates over windows.
    pub fn row_columns(&self) -> &[Column] {
        self.windowed.as_ref().map_or(&self.features, |windowed| &windowed.arguments)
    }

    /// Whether a row's value depends on other events than its own.
    pub fn reaches_back(&self) -> bool {
        self.windowed.is_none() && self.lookback != Some(Span::ZERO)
    }

    /// Whether it counts which of two rows was written later: it does for rows of one entity and time, and for the events of
    /// windows where an aggregate goes by their order.
    pub fn keeps_order(&self) -> bool {
        self.windowed.as_ref().is_none_or(Windowed::keeps_order)
    }

    /// Whether its refreshes read again what was pushed: rows of several events are computed of all of them, and rows that lie
    /// ahead of their events come by refreshes alone.
    pub fn reads_pushes_again(&self) -> bool {
        self.reaches_back() || self.ahead
    }

    /// Whether its rows hold at every time.
    pub fn is_static(&self) -> bool {
        self.row_time == RowTime::Static
    }
}
