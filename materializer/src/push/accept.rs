//! Checks a batch of events against its source, and gives it the source's columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{
    Available, Column, ColumnType, Definition, EventTime, Source, check_dated, strict_cast,
};
use springhouse_featurestore::push::PushHeader;
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::session::utc_of_local_times_until;

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

/// How far the clock's time is from what a producer may say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// The clock's time.
    pub(super) at: Timestamp,
    /// How far beyond it a producer's clock may be.
    pub(super) tolerance: Span,
}

impl Now {
    /// The latest time that a producer may speak of.
    fn latest(self) -> Timestamp {
        self.at + self.tolerance
    }
}

/// The batch with the source's columns. Events are known no earlier than `now`. With it the greatest of their event times,
/// which may lie as far ahead of the clock as it tolerates; the events are not to count before it.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] names the column, the row and the value. Of a source that has no history
/// a column that may be null may be left out.
pub(super) fn accept(source: &Source, events: &RecordBatch, now: Now) -> Result<(RecordBatch, Option<Timestamp>)> {
    let schema = Column::to_schema(source.columns.iter());
    if events.num_rows() == 0 {
        return Ok((RecordBatch::new_empty(schema), None));
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
    let mut greatest = None;
    let mut columns = Vec::with_capacity(source.columns.len());
    for column in &source.columns {
        let given = events.column_by_name(&column.name).ok_or_else(|| {
            Error::invalid("a column of the source is missing")
                .with("source", &source.name)
                .with("column", &column.name)
                .remedy(format!("send the columns {}", expected()))
        });
        let array = match (&source.event_time, &source.available) {
            (EventTime::Column { column: event, .. }, _) if *event == column.name => {
                let times = event_times(source, column, given?, now)?;
                greatest = arrow::compute::max(times.as_primitive::<TimestampMicrosecondType>());
                times
            }
            // The time at which it came is known better here.
            (_, Available::Column(available)) if *available == column.name => {
                stamped(source, column, given.ok(), events, now)?
            }
            // A source of pushes may have gained it since its producers began.
            _ if given.is_err() && source.query.is_none() && column.nullable => {
                new_null_array(&column.column_type.to_arrow(), events.num_rows())
            }
            _ => typed(source, column, given?, now)?,
        };
        columns.push(array);
    }
    Ok((RecordBatch::try_new(schema, columns)?, greatest.map(Timestamp::from_micros)))
}

/// Refuses a producer's watermark that no event could have, or that lies beyond what is tolerated.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] with the value and the clock's time.
pub(super) fn check_watermark(source: &Source, header: &PushHeader, now: Now) -> Result<()> {
    let Some(watermark) = header.watermark else { return Ok(()) };
    let of =
        |error: Error| error.with("source", &source.name).with("producer", header.producer.as_deref().unwrap_or(""));
    watermark.dated().map_err(of)?;
    if watermark <= now.latest() {
        return Ok(());
    }
    Err(of(Error::invalid("a watermark lies in the future"))
        .with("value", watermark)
        .with("now", now.at)
        .remedy("say up to which time every event has been sent; check the producer's clock"))
}

/// A column in its type; a value that is not of it is an error (rule T12).
fn typed(source: &Source, column: &Column, given: &ArrayRef, now: Now) -> Result<ArrayRef> {
    let of = |error: Error| error.with("source", &source.name).with("column", &column.name);
    let local =
        matches!(given.data_type(), DataType::Timestamp(_, None)) && column.column_type == ColumnType::Timestamp;
    let zone = source.zones().into_iter().find(|(name, _)| *name == column.name).map(|(_, zone)| zone);
    let array = match (local, zone) {
        (true, None) => {
            return Err(of(Error::invalid("times have no zone")).remedy(
                "send timestamps with a zone, such as UTC, or let the source name it: column AT TIME ZONE 'Europe/Berlin'",
            ));
        }
        (true, Some(zone)) => utc_of_local_times_until(given, zone, now.latest()),
        (false, _) => strict_cast(column, given),
    };
    let array = array.map_err(of)?;
    check_dated(&array).map_err(of)?;
    Ok(array)
}

fn event_times(source: &Source, column: &Column, given: &ArrayRef, now: Now) -> Result<ArrayRef> {
    let wrong = |what: &str| Error::invalid(what).with("source", &source.name).with("column", &column.name);
    let given = typed(source, column, given, now)?;
    let times = given.as_primitive::<TimestampMicrosecondType>();
    if let Some(row) = times.nulls().and_then(|nulls| nulls.iter().position(|valid| !valid)) {
        return Err(wrong("an event has no event time").with("row", row));
    }
    let latest = now.latest().micros();
    if let Some(row) = times.values().iter().position(|time| *time > latest) {
        return Err(wrong("an event lies in the future")
            .with("row", row)
            .with("value", Timestamp::from_micros(times.value(row)))
            .with("now", now.at)
            .remedy("send an event when it has happened; check the producer's clock"));
    }
    Ok(given)
}

/// Available times: that at which they came. What is given for them may lie ahead of the clock only as far as it tolerates.
fn stamped(
    source: &Source,
    column: &Column,
    given: Option<&ArrayRef>,
    events: &RecordBatch,
    now: Now,
) -> Result<ArrayRef> {
    if let Some(given) = given {
        let given = typed(source, column, given, now)?;
        let times = given.as_primitive::<TimestampMicrosecondType>();
        let latest = now.latest().micros();
        if let Some(row) = (0..times.len()).find(|row| times.is_valid(*row) && times.value(*row) > latest) {
            return Err(Error::invalid("an event is said to be known in the future")
                .with("source", &source.name)
                .with("column", &column.name)
                .with("row", row)
                .with("value", Timestamp::from_micros(times.value(row)))
                .with("now", now.at));
        }
    }
    Ok(Arc::new(TimestampMicrosecondArray::from_value(now.at.micros(), events.num_rows()).with_timezone("UTC")))
}
