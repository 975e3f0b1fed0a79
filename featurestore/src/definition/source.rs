//! Tables and sources: where events come from, when they happened and when they could first be known (rule T2).

use serde::{Deserialize, Serialize};

use super::{Column, Pinned, Version};
use crate::time::Span;

/// `CREATE EXTERNAL TABLE`: DataFusion's own statement, kept as text.
///
/// Where history lies is not what it means: a source's version does not change when its table's location does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Canonical text.
    pub text: String,
    /// File or folder, relative to the project folder unless it is absolute or a URL.
    pub location: String,
    /// Columns as they were when the definition was checked.
    pub columns: Vec<TableColumn>,
}

/// A column of a table, typed as Arrow prints it: tables may hold types that features may not.
pub type TableColumn = (String, String);

/// When a source's events happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventTime {
    /// The rows hold at every time, past ones too.
    Static,
    /// A column, and the zone of its clock where the column itself names none.
    Column {
        /// The column's name.
        column: String,
        /// An IANA zone name.
        zone: Option<String>,
    },
}

/// When a source's events could first be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Available {
    /// At their event time.
    AtEventTime,
    /// At the time in a column.
    Column(String),
    /// This long after their event time.
    Delay(Span),
}

/// How a source tells events that became known too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejects<'a> {
    /// The event-time column.
    pub event_time: &'a str,
    /// The available-time column.
    pub available_time: &'a str,
    /// The most that the second may lie after the first.
    pub lateness: Span,
}

/// `CREATE SOURCE`: an append-only stream of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Canonical text.
    pub text: String,
    /// When events happened.
    pub event_time: EventTime,
    /// When they could first be known.
    pub available: Available,
    /// The zone of the clock by which the available-time column was written, where the column itself names none: an IANA
    /// zone name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_zone: Option<String>,
    /// How long after it happened an event may become known and still count; later ones are rejects. Told from the
    /// event's own two times, so every path rejects the same events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lateness: Option<Span>,
    /// The columns of `DISTINCT ON`: events that agree in them and in their event time are one. Empty where each event counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distinct: Vec<String>,
    /// The query over tables that yields the history; none where all events are pushed.
    pub query: Option<String>,
    /// The tables it reads.
    pub tables: Vec<String>,
    /// The columns that it yields.
    pub columns: Vec<Column>,
}

impl Source {
    /// The source at its version.
    pub fn pinned(&self) -> Pinned {
        Pinned::new(&self.name, self.version.clone())
    }

    /// The zones of its time columns' clocks, by column, where the columns themselves name none.
    pub fn zones(&self) -> Vec<(&str, &str)> {
        zones_of(&self.event_time, &self.available, self.available_zone.as_deref())
    }

    /// Its event-time column, unless it is static.
    pub fn event_column(&self) -> Option<&str> {
        match &self.event_time {
            EventTime::Static => None,
            EventTime::Column { column, .. } => Some(column),
        }
    }

    /// The columns that tell its events apart, the event time first; none where each event counts.
    pub fn identity(&self) -> Option<Vec<&Column>> {
        let event_time = self.event_column().filter(|_| !self.distinct.is_empty())?;
        let others = self.distinct.iter().map(String::as_str).filter(|name| *name != event_time);
        let columns = std::iter::once(event_time).chain(others);
        columns.map(|name| self.columns.iter().find(|column| column.name == name)).collect()
    }

    /// Its two time columns and how far apart they may be, where it rejects events that became known too late.
    pub fn rejects(&self) -> Option<Rejects<'_>> {
        match (&self.event_time, &self.available, self.lateness) {
            (EventTime::Column { column, .. }, Available::Column(available), Some(lateness)) => {
                Some(Rejects { event_time: column, available_time: available, lateness })
            }
            _ => None,
        }
    }
}

/// The zones that a source declares, by time column.
pub fn zones_of<'a>(
    event_time: &'a EventTime,
    available: &'a Available,
    available_zone: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let mut zones = Vec::new();
    if let EventTime::Column { column, zone: Some(zone) } = event_time {
        zones.push((column.as_str(), zone.as_str()));
    }
    if let (Available::Column(column), Some(zone)) = (available, available_zone) {
        zones.push((column.as_str(), zone));
    }
    zones
}
