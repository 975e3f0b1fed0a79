//! A spine, and the features of all views of a contract as of its times: the whole of way 5 but for the rules.

mod features;
mod given;
mod sample;
mod strict;

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::error::DataFusionError;
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, cast, lit};
use datafusion::prelude::{CsvReadOptions, DataFrame, ParquetReadOptions};
use datafusion::scalar::ScalarValue;
use springhouse_featurestore::definition::{Column, ColumnType, Contract, FeatureView, Source};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::training_set::SpinePart;
use springhouse_featurestore::{Error, Result};

pub use features::SpineFeatures;

use crate::point_in_time::RowsAsOf;
use crate::session::{Rule, Session, exact, query_error, ruled};

/// The position of a row in the spine, counted from 1.
pub const ROW: &str = "@row";

/// The time as of which a row's features are wanted.
pub const TIME: &str = "@time";

/// The most characters of a query that an error shows.
const SHOWN: usize = 200;

/// Where a spine comes from, and which of its columns is the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpineSource {
    /// A Parquet or CSV file, or a SQL query over the project's tables and sources.
    pub from: String,
    /// The time column.
    pub time: String,
    /// Features are wanted as of the row's time less this.
    pub lag: Span,
}

/// In what order rows come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpineOrder {
    /// As they stand in the spine.
    AsGiven,
    /// By time.
    ByTime,
}

/// Which rows of a spine are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SpineSubset {
    /// All.
    Whole,
    /// One of several parts.
    Part(SpinePart),
    /// A share from 0 to 1, chosen by a hash of the keys: all rows of a key, or none.
    Sample {
        /// The share.
        share: f64,
    },
}

/// A spine in our types, ready to be joined.
#[derive(Debug, Clone)]
pub struct Spine {
    frame: DataFrame,
    /// Its times alone: to number the rows is not needed for them.
    times: DataFrame,
    session: Session,
}

impl Spine {
    /// Opens a spine for a contract: every request column must be there. The session must hold the tables that a query
    /// reads.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the file, or the column that is missing or of a type that
    /// cannot be used.
    pub async fn open(session: &Session, source: &SpineSource, contract: &Contract) -> Result<Self> {
        let ordered = session.ordered();
        let frame = read_as(&ordered, &source.from, &contract.request).await?;
        let has = |name: &str| frame.schema().has_column_with_unqualified_name(name);
        let missing: Vec<&str> = contract
            .request
            .iter()
            .map(|column| column.name.as_str())
            .chain([source.time.as_str()])
            .filter(|name| !has(name))
            .collect();
        if !missing.is_empty() {
            let given: Vec<&str> = frame.schema().fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::invalid("the spine lacks columns that the contract's requests have, or the time")
                .with("missing", missing.join(", "))
                .with("given", given.join(", "))
                .remedy("select them in the spine; name the time column with --time"));
        }
        let mut columns: Vec<Expr> = Vec::new();
        for field in frame.schema().fields() {
            let name = field.name();
            if name.contains('@') {
                return Err(Error::invalid("a spine column has '@' in its name")
                    .with("column", name)
                    .remedy("rename it: such names are the system's own"));
            }
            let wanted = contract.request.iter().find(|column| &column.name == name);
            columns.push(typed(name, field.data_type(), wanted, &source.time)?);
        }
        let micros = lit(ScalarValue::new_interval_mdn(0, 0, source.lag.micros().saturating_mul(1_000)));
        let time = exact(&source.time);
        let time = if source.lag == Span::ZERO { time } else { time - micros };
        let time = cast(time, ColumnType::Timestamp.to_arrow());
        let given = frame.schema().fields().iter().position(|field| *field.name() == source.time);
        let times = frame.clone().select(given.map(|index| columns[index].clone())).map_err(query_error)?;
        let times = times.select(vec![time.clone().alias(TIME)]).map_err(query_error)?;
        columns.push(exact(ROW));
        // Numbered before anything is read in its type: a value that is refused is named by its row.
        let frame =
            frame.with_column(ROW, row_number()).and_then(|frame| frame.select(columns)).map_err(query_error)?;
        let frame = frame.with_column(TIME, time).map_err(query_error)?;
        Ok(Self { frame, times, session: session.clone() })
    }

    /// Some of its rows, in order and with the positions that they have in the whole; `keys` are its key columns.
    ///
    /// # Errors
    /// Those of planning.
    pub fn subset(self, subset: SpineSubset, keys: &[&str]) -> Result<Self> {
        let wanted = match subset {
            SpineSubset::Whole => return Ok(self),
            SpineSubset::Part(SpinePart { index, of }) => {
                let position = exact(ROW) - lit(1_u64);
                (position % lit(of as u64)).eq(lit(index as u64))
            }
            SpineSubset::Sample { share } => sample::is_sampled(keys.iter().copied().map(exact).collect(), share),
        };
        Ok(Self { frame: self.frame.filter(wanted).map_err(query_error)?, ..self })
    }

    /// The latest time, of a subset that of the whole; `None` for a spine without rows.
    ///
    /// # Errors
    /// Those of reading the spine.
    pub async fn latest(&self) -> Result<Option<Timestamp>> {
        let latest = self.times.clone().aggregate(Vec::new(), vec![max(exact(TIME))]).map_err(query_error)?;
        let batches = latest.collect().await.map_err(query_error)?;
        let value = batches.first().map(|batch| ScalarValue::try_from_array(batch.column(0), 0)).transpose();
        Ok(match value.map_err(query_error)? {
            Some(ScalarValue::TimestampMicrosecond(Some(micros), _)) => Some(Timestamp::from_micros(micros)),
            _ => None,
        })
    }

    /// Plans the join of all views, in order; `rows` gives the rows of each.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn join(
        &self,
        views: &[&FeatureView],
        rows: Vec<(DataFrame, RowsAsOf)>,
        order: SpineOrder,
    ) -> Result<SpineFeatures> {
        SpineFeatures::plan(&self.frame, views, rows, order, &self.session).await
    }
}

/// Events before they are read.
pub type EventFrame = DataFrame;

/// Reads events to push to a source: a Parquet or CSV file, or a query over the session's tables. A CSV file is read by the
/// source's columns where there is one; its times without a zone are of the zones that the source names, and of an hour that comes twice the
/// first is meant while the second lies after `latest`.
///
/// # Errors
/// As [`read_as`].
pub async fn read_events(
    session: &Session,
    from: &str,
    source: Option<&Source>,
    latest: Timestamp,
) -> Result<EventFrame> {
    let Some(source) = source else { return read_as(session, from, &[]).await };
    let frame = read_as(session, from, &source.columns).await?;
    let zones = source.zones();
    let column = |field: &FieldRef| {
        let name = field.name();
        let is_time = |column: &Column| column.name == *name && column.column_type == ColumnType::Timestamp;
        if !is_text(field.data_type()) || !source.columns.iter().any(is_time) {
            return exact(name);
        }
        let zone = zones.iter().find(|(column, _)| column == name).map(|(_, zone)| (*zone).to_owned());
        ruled(exact(name), ("source", &source.name), name, Rule::Times { zone, latest }).alias(name)
    };
    let columns: Vec<Expr> = frame.schema().fields().iter().map(column).collect();
    frame.select(columns).map_err(query_error)
}

/// Reads a Parquet or CSV file, or a query over the session's tables. The columns that are `declared` of a CSV file are read
/// as what they are, so that `00123` stays text where text is wanted; their times stay text. Others are what they look like.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] for a file that is not there, or not of these kinds, or a query that does
/// not plan.
async fn read_as(session: &Session, from: &str, declared: &[Column]) -> Result<DataFrame> {
    let context = session.context();
    let trimmed = from.trim_start().to_lowercase();
    if trimmed.starts_with("select") || trimmed.starts_with("with") || trimmed.starts_with('(') {
        let start: String = from.chars().take(SHOWN).collect();
        return session.plan(from).await.map_err(|error| query_error(error).with("query", start));
    }
    let place = session.locate(from);
    if !Path::new(&place).exists() && !place.contains("://") {
        return Err(Error::invalid("the file does not exist")
            .with("file", place)
            .remedy("give a Parquet or CSV file, or a SELECT"));
    }
    let is = |kind: &str| Path::new(&place).extension().is_some_and(|extension| extension.eq_ignore_ascii_case(kind));
    if is("json") || is("ndjson") || is("jsonl") {
        return Err(Error::invalid("JSON files are not read here")
            .with("file", place)
            .remedy("give a Parquet or CSV file, or CREATE EXTERNAL TABLE name STORED AS JSON and a SELECT over it"));
    }
    let frame = if is("csv") {
        read_csv(session, &place, declared).await
    } else {
        context.read_parquet(place.as_str(), ParquetReadOptions::default().file_extension("")).await
    };
    frame.map_err(|error| query_error(error).with("file", place))
}

/// Times in CSV stay text until they are made times by [`Rule::Times`]: read as times they would lose the zone that they
/// are written with.
async fn read_csv(session: &Session, place: &str, declared: &[Column]) -> Result<DataFrame, DataFusionError> {
    let context = session.context();
    let inferred = context.read_csv(place, CsvReadOptions::default()).await?;
    let read = |field: &FieldRef| {
        let declared = declared.iter().find(|column| column.name == *field.name());
        let data_type = match declared.map_or_else(|| field.data_type().clone(), |column| column.column_type.to_arrow())
        {
            DataType::Timestamp(..) => DataType::Utf8,
            // What no value of one column can be: its type is named when it is used.
            DataType::List(_) => field.data_type().clone(),
            other => other,
        };
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    };
    let schema = Schema::new(inferred.schema().fields().iter().map(read).collect::<Vec<_>>());
    context.read_csv(place, CsvReadOptions::default().schema(&schema)).await
}

/// Whether values are text.
fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A spine column in the type that the contract's request, or the time, wants; others as they are.
fn typed(name: &str, data_type: &DataType, wanted: Option<&Column>, time: &str) -> Result<Expr> {
    let expression = exact(name);
    let declared = match wanted {
        Some(column) => column.clone(),
        None if name == time => Column::nullable(name, ColumnType::Timestamp),
        None => {
            return Ok(match ColumnType::from_arrow(data_type).map(ColumnType::to_arrow) {
                Ok(known) if known != *data_type => cast(expression, known).alias(name),
                _ => expression,
            });
        }
    };
    let zoned = |error: Error| error.with("spine column", name);
    if declared.column_type != ColumnType::Timestamp {
        let same = *data_type == declared.column_type.to_arrow();
        return Ok(if same { expression } else { strict::strict_cast(&declared, expression, exact(ROW)).alias(name) });
    }
    if matches!(data_type, DataType::Timestamp(_, None)) {
        ColumnType::from_arrow(data_type).map_err(zoned)?;
    }
    if data_type.is_numeric() || *data_type == DataType::Boolean {
        return Err(zoned(Error::invalid("a time is not a TIMESTAMP"))
            .with("given", data_type)
            .remedy("make it one: to_timestamp_micros(column) AT TIME ZONE 'UTC', or another unit or zone"));
    }
    let rule = if is_text(data_type) {
        Rule::Times { zone: None, latest: Timestamp::MAX }
    } else {
        Rule::Typed(ColumnType::Timestamp)
    };
    Ok(ruled(expression, ("of", "the spine"), name, rule).alias(name))
}
