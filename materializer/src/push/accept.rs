//! Checks a batch of events against its source, and gives it the source's columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Available, Column, ColumnType, Definition, EventTime, Source};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::utc_of_local_times;

/// The source that takes the pushes of a name.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::NotFound`] with the sources that there are,
/// [`springhouse_featurestore::ErrorKind::Invalid`] for one that takes none.
pub(super) fn source_of<'a>(catalog: &'a CatalogState, name: &str) -> Result<&'a Source> {
    let source = super::current_source(catalog, name).ok_or_else(|| {
        let names: Vec<&str> = catalog
            .definitions()
            .filter_map(|definition| match definition.as_ref() {
                Definition::Source(source) => Some(source.name.as_str()),
                _ => None,
            })
            .collect();
        Error::not_found("no such source").with("source", name).with("sources", names.join(", "))
    })?;
    let refused = |why: &str, remedy: &str| Err(Error::invalid(why).with("source", name).remedy(remedy));
    match (&source.event_time, &source.available) {
        (EventTime::Static, _) => refused("a STATIC source takes no pushes", "put its rows into its table and refresh"),
        (_, Available::Delay(_)) => refused(
            "a source with DELAY takes no pushes: they are known when they come",
            "declare AVAILABLE AT column instead; a push is stamped with the time at which it came",
        ),
        _ => Ok(source),
    }
}

/// The batch with the source's columns. Events are known no earlier than `now`.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] names the column, the row and the value.
pub(super) fn accept(source: &Source, events: &RecordBatch, now: Timestamp) -> Result<RecordBatch> {
    let schema = Column::to_schema(source.columns.iter());
    if events.num_rows() == 0 {
        return Ok(RecordBatch::new_empty(schema));
    }
    let expected = || source.columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for field in events.schema_ref().fields() {
        if !source.columns.iter().any(|column| &column.name == field.name()) {
            return Err(Error::invalid("an event's column is not one of the source's")
                .with("source", &source.name)
                .with("column", field.name())
                .remedy(format!("send the columns {}", expected())));
        }
    }
    let mut columns = Vec::with_capacity(source.columns.len());
    for column in &source.columns {
        let given = events.column_by_name(&column.name).ok_or_else(|| {
            Error::invalid("a column of the source is missing")
                .with("source", &source.name)
                .with("column", &column.name)
                .remedy(format!("send the columns {}", expected()))
        });
        let array = match (&source.event_time, &source.available) {
            (EventTime::Column { column: event, zone }, _) if *event == column.name => {
                event_times(source, given?, zone.as_deref(), now)?
            }
            // The time at which it came is known better here.
            (_, Available::Column(available)) if *available == column.name => stamped(source, given.ok(), events, now)?,
            _ => typed(source, column, given?)?,
        };
        columns.push(array);
    }
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// A column in its type; a value that does not fit is an error.
fn typed(source: &Source, column: &Column, given: &ArrayRef) -> Result<ArrayRef> {
    let wanted = column.column_type.to_arrow();
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(given, &wanted, &options).map_err(|error| {
        Error::invalid("an event's column has the wrong type")
            .with("source", &source.name)
            .with("column", &column.name)
            .with("expected", column.column_type)
            .with("given", given.data_type())
            .source(error)
    })
}

fn event_times(source: &Source, given: &ArrayRef, zone: Option<&str>, now: Timestamp) -> Result<ArrayRef> {
    let EventTime::Column { column, .. } = &source.event_time else {
        return Err(Error::internal("a static source has no event times").with("source", &source.name));
    };
    let wrong = |what: &str| Error::invalid(what).with("source", &source.name).with("column", column);
    let given = match (given.data_type(), zone) {
        (DataType::Timestamp(_, None), None) => {
            return Err(wrong("event times have no zone").remedy("send timestamps with a zone, such as UTC"));
        }
        (DataType::Timestamp(_, None), Some(zone)) => utc_of_local_times(given, zone)
            .map_err(|error| error.with("source", &source.name).with("column", column))?,
        _ => typed(source, &Column::nullable(column, ColumnType::Timestamp), given)?,
    };
    let times = given.as_primitive::<TimestampMicrosecondType>();
    if let Some(row) = times.nulls().and_then(|nulls| nulls.iter().position(|valid| !valid)) {
        return Err(wrong("an event has no event time").with("row", row));
    }
    if let Some(row) = times.values().iter().position(|time| *time > now.micros()) {
        return Err(wrong("an event lies in the future")
            .with("row", row)
            .with("value", Timestamp::from_micros(times.value(row)))
            .with("now", now)
            .remedy("send an event when it has happened; check the producer's clock"));
    }
    Ok(given)
}

/// Available times: what is given, but no earlier than now.
fn stamped(source: &Source, given: Option<&ArrayRef>, events: &RecordBatch, now: Timestamp) -> Result<ArrayRef> {
    if let (Some(given), Available::Column(column)) = (given, &source.available) {
        let given = typed(source, &Column::nullable(column, ColumnType::Timestamp), given)?;
        let times = given.as_primitive::<TimestampMicrosecondType>();
        if let Some(row) = (0..times.len()).find(|row| times.is_valid(*row) && times.value(*row) > now.micros()) {
            return Err(Error::invalid("an event is said to be known in the future")
                .with("source", &source.name)
                .with("column", column)
                .with("row", row)
                .with("value", Timestamp::from_micros(times.value(row)))
                .with("now", now));
        }
    }
    Ok(Arc::new(TimestampMicrosecondArray::from_value(now.micros(), events.num_rows()).with_timezone("UTC")))
}
