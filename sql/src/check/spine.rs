//! Spines.

use arrow::datatypes::DataType;
use chrono_tz::Tz;
use datafusion::prelude::DataFrame;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::{ColumnType, Definition, Pinned, Source, Spine, Version};

use super::Checker;
use super::view::refuse_volatile_plan;
use crate::diagnostic::{SourceFile, suggest};
use crate::parse::{SpineStatement, Statement};
use crate::print::print;
use crate::windowed::udaf;

impl Checker<'_> {
    pub(super) async fn check_spine(
        &mut self,
        file: &SourceFile,
        statement: &Statement,
        spine: &SpineStatement,
    ) -> Result<()> {
        let names: Vec<String> = self.tables.keys().chain(self.sources.keys()).cloned().collect();
        let Some(relations) = self.relations(file, &spine.query, "table or source", &names) else { return Ok(()) };
        let written = spine.query.value.to_string();
        let planned = self.session.plan(&written).await.and_then(|frame| {
            // It is run once for each part of a training set: those are parts of one spine.
            refuse_volatile_plan(frame.logical_plan())?;
            udaf::refuse(frame.logical_plan())?;
            Ok(frame)
        });
        let frame = match planned {
            Ok(frame) => frame,
            Err(error) => {
                self.query_fault(file, spine.query.at, &error);
                return Ok(());
            }
        };
        let time = spine.time.as_ref().map_or(Spine::TIME, |time| time.value.as_str()).to_owned();
        let (fits, local) = (self.check_names(file, spine, &frame), self.check_time(file, spine, &frame, &time));
        let Some(is_local) = local.filter(|_| fits) else { return Ok(()) };
        let query = match spine.zone.as_ref().filter(|_| is_local) {
            None => written,
            Some(zone) => in_utc(&frame, &time, &zone.value, &written),
        };
        if let Err(error) = self.session.plan(&query).await {
            self.query_fault(file, spine.query.at, &error);
            return Ok(());
        }
        let text = print(statement);
        let sources: Vec<Pinned> =
            relations.iter().filter_map(|name| self.sources.get(name)).map(Source::pinned).collect();
        let checked = Spine {
            name: spine.name.value.clone(),
            version: Version::of(&text, &sources),
            text,
            time,
            query,
            tables: relations.into_iter().filter(|name| self.tables.contains_key(name)).collect(),
            sources,
        };
        self.spines.insert(checked.name.clone(), checked.clone());
        self.checked.definitions.push(Definition::Spine(checked));
        Ok(())
    }

    /// Whether each column has a name of its own.
    fn check_names(&mut self, file: &SourceFile, spine: &SpineStatement, frame: &DataFrame) -> bool {
        let fields = frame.schema().fields();
        for (index, field) in fields.iter().enumerate() {
            let name = field.name();
            if name.contains('@') {
                let message = format!("the spine's column '{name}' has '@' in its name, as the system's own do");
                self.fault(file, spine.query.at, message, Some("give it an alias: expression AS name".to_owned()));
                return false;
            }
            if fields[..index].iter().any(|other| other.name() == name) {
                let message = format!("two columns of the spine are called '{name}'");
                self.fault(file, spine.query.at, message, Some("give one of them another name".to_owned()));
                return false;
            }
        }
        true
    }

    /// Whether the spine's time is one without a zone, whose zone is named; `None` after reporting what is wrong with it.
    fn check_time(&mut self, file: &SourceFile, spine: &SpineStatement, frame: &DataFrame, time: &str) -> Option<bool> {
        if let Some(zone) = spine.zone.as_ref().filter(|zone| zone.value.parse::<Tz>().is_err()) {
            let help = Some("name it as the IANA does: 'America/New_York'".to_owned());
            self.fault(file, zone.at, format!("there is no time zone '{}'", zone.value), help);
            return None;
        }
        let at = spine.time.as_ref().map_or(spine.query.at, |time| time.at);
        let fields = frame.schema().fields();
        let Some(field) = fields.iter().find(|field| field.name() == time) else {
            let help = suggest(time, fields.iter().map(|field| field.name().as_str()));
            let unnamed = "name the column as of which features are wanted: EVENT TIME column before AS";
            let help = if spine.time.is_none() { Some(unnamed.to_owned()) } else { help };
            self.fault(file, at, format!("the query does not yield the time column '{time}'"), help);
            return None;
        };
        match field.data_type() {
            DataType::Timestamp(_, Some(_)) => Some(false),
            DataType::Timestamp(_, None) if spine.zone.is_some() => Some(true),
            DataType::Timestamp(_, None) => {
                let help = format!("name it: EVENT TIME {time} AT TIME ZONE 'UTC', or another zone");
                self.fault(file, at, format!("the time column '{time}' has no time zone"), Some(help));
                None
            }
            other => {
                let shown = ColumnType::from_arrow(other).map_or_else(|_| other.to_string(), |known| known.to_string());
                self.fault(file, at, format!("the time column '{time}' is {shown}, not a TIMESTAMP"), None);
                None
            }
        }
    }
}

/// The query with its time in UTC, of a clock of a zone.
fn in_utc(frame: &DataFrame, time: &str, zone: &str, query: &str) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let column = |name: &String| {
        let name_quoted = quoted(name);
        if name != time {
            return name_quoted;
        }
        format!("{name_quoted} AT TIME ZONE '{}' AS {name_quoted}", zone.replace('\'', "''"))
    };
    let columns: Vec<String> = frame.schema().fields().iter().map(|field| column(field.name())).collect();
    format!("SELECT {} FROM ({query}) AS spine", columns.join(", "))
}
