//! The events of pushes that a view does without, since its query fails on them: a table beside its rows.
//!
//! A commit that changes the table names how many there are and the Parquet files that have all of them, one of each source:
//! the events' own columns, and after them
//!
//! | column | what |
//! |---|---|
//! | `@position`, `@within` | the event's place among all pushes |
//! | `@set_aside_at` | when it was set aside, by the writer's clock |
//! | `@reason` | what the query failed with, when it was tried last |
//!
//! There are at most [`MOST_SET_ASIDE`], so that the files are written anew each time. Of events beyond them the commit tells the
//! places alone ([`Beyond`]): they are read from where all pushes are, when they are tried again.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use serde::{Deserialize, Deserializer, Serialize};

use super::object::{DataFile, WRITE_POSITION, WRITE_WITHIN, put_object, read_data_file};
use crate::definition::timestamp_type;
use crate::push::{EventPlace, WhySetAside};
use crate::{Error, Result};

/// When an event was set aside.
pub const SET_ASIDE_AT: &str = "@set_aside_at";

/// What the view's query failed with.
pub const REASON: &str = "@reason";

/// The most events of one view that its table has; of more the places are told alone.
pub const MOST_SET_ASIDE: u64 = 10_000;

/// The most stretches of such places: beyond them a view's pushes are not committed until some are tried again or dropped.
pub const MOST_BEYOND: usize = 10_000;

/// Events of one push, one row after another, that are set aside and have no room in the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beyond {
    /// Their source.
    pub source: String,
    /// The push's position.
    pub position: u64,
    /// The first of its rows,
    pub first: u64,
    /// and the last.
    pub last: u64,
}

impl Beyond {
    /// How many they are.
    pub fn events(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Adds the place of an event of a source, which comes after those that are there.
    pub fn add(stretches: &mut Vec<Self>, source: &str, EventPlace { position, within }: EventPlace) {
        let follows =
            |of: &&mut Self| of.source == source && of.position == position && of.last.checked_add(1) == Some(within);
        match stretches.last_mut().filter(follows) {
            Some(of) => of.last = within,
            None => stretches.push(Self { source: source.to_owned(), position, first: within, last: within }),
        }
    }

    /// Their places.
    pub fn places(&self) -> impl Iterator<Item = EventPlace> + use<> {
        let position = self.position;
        (self.first..=self.last).map(move |within| EventPlace { position, within })
    }
}

/// The most characters of a reason that are kept.
pub const REASON_CHARS: usize = 1_000;

/// A view's events that are set aside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// How many in all.
    #[serde(default)]
    pub events: u64,
    /// The files that have them, by source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, DataFile>,
    /// Those of them that have no room there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beyond: Vec<Beyond>,
    /// Events that were let go of: whoever reads again what was pushed does without them, until everything is backfilled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub let_go: Vec<Beyond>,
    /// The newest commit that counted some after all; 0 before the first.
    #[serde(default)]
    pub counted_by: u64,
}

/// Before events had a table, commits told of them in a list, which had none of the events: a backfill counts those.
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    Table(SetAside),
    List(#[expect(dead_code, reason = "that it is a list is all there is to know")] Vec<serde::de::IgnoredAny>),
}

/// Reads what a commit says of events that are set aside.
///
/// # Errors
/// Those of the deserializer, for what is neither a table nor a list.
pub(super) fn table_told_of<'a, D: Deserializer<'a>>(told: D) -> std::result::Result<Option<SetAside>, D::Error> {
    Option::<Told>::deserialize(told).map(|told| match told? {
        Told::Table(table) => Some(table),
        Told::List(_) => None,
    })
}

/// Reads what a state says of them.
///
/// # Errors
/// As [`table_told_of`].
pub(super) fn table_or_none<'a, D: Deserializer<'a>>(told: D) -> std::result::Result<SetAside, D::Error> {
    table_told_of(told).map(Option::unwrap_or_default)
}

/// Events with their places, by source, and beside each when and why it was set aside.
pub type SetAsideEvents = BTreeMap<String, RecordBatch>;

/// Events that tell their places, with when and why each was set aside, in their order.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] when there are not as many reasons as events.
pub fn with_reasons(events: &RecordBatch, whys: &[WhySetAside]) -> Result<RecordBatch> {
    let times = TimestampMicrosecondArray::from_iter_values(whys.iter().map(|why| why.at.micros()));
    let reasons = whys.iter().map(|why| match why.reason.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => &why.reason[..end],
        None => why.reason.as_str(),
    });
    let columns: [(&str, ArrayRef); 2] = [
        (SET_ASIDE_AT, Arc::new(times.with_timezone("UTC"))),
        (REASON, Arc::new(StringArray::from_iter_values(reasons))),
    ];
    let own = events.schema_ref().fields().iter().zip(events.columns());
    let own = own.filter(|(field, _)| ![SET_ASIDE_AT, REASON].contains(&field.name().as_str()));
    let (mut fields, mut arrays): (Vec<FieldRef>, Vec<ArrayRef>) =
        own.map(|(field, array)| (Arc::clone(field), Arc::clone(array))).unzip();
    for (name, column) in columns {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        arrays.push(column);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// Whether events tell their places.
pub fn tells_places(events: &RecordBatch) -> bool {
    [WRITE_POSITION, WRITE_WITHIN].iter().all(|name| events.column_by_name(name).is_some())
}

/// The places of events that tell them.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] when the events have no places.
pub fn places_of(events: &RecordBatch) -> Result<Vec<EventPlace>> {
    let numbers = |name: &str| {
        let column = events.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        column
            .filter(|column| column.null_count() == 0)
            .ok_or_else(|| Error::damaged("events do not tell their places").with("column", name))
    };
    let (positions, within) = (numbers(WRITE_POSITION)?, numbers(WRITE_WITHIN)?);
    let places = positions.values().iter().zip(within.values());
    Ok(places.map(|(at, row)| EventPlace { position: at.cast_unsigned(), within: row.cast_unsigned() }).collect())
}

/// When and why each event of a table was set aside.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] when the table lacks those columns.
pub fn reasons_of(events: &RecordBatch) -> Result<Vec<WhySetAside>> {
    let wrong = |name: &str| Error::damaged("a table of events that are set aside lacks a column").with("column", name);
    let times = events.column_by_name(SET_ASIDE_AT).filter(|times| *times.data_type() == timestamp_type());
    let times = times.ok_or_else(|| wrong(SET_ASIDE_AT))?.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    let reasons = events.column_by_name(REASON).filter(|reasons| *reasons.data_type() == DataType::Utf8);
    let reasons = reasons.ok_or_else(|| wrong(REASON))?.as_string::<i32>();
    let whys = times.values().iter().zip(reasons.iter()).map(|(at, reason)| WhySetAside {
        at: crate::time::Timestamp::from_micros(*at),
        reason: reason.unwrap_or_default().to_owned(),
    });
    Ok(whys.collect())
}

/// Writes one source's events as a data file of this name, below a view's folder; nothing reads it until a commit names it.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] when Parquet refuses the events, [`crate::ErrorKind::Unavailable`] when the store fails.
pub async fn write_set_aside(
    store: &Arc<dyn ObjectStore>,
    folder: &Path,
    name: &str,
    events: &RecordBatch,
) -> Result<DataFile> {
    let path = folder.clone().join("data").join(format!("{name}.parquet")).to_string();
    let failed = |error: ParquetError| {
        Error::internal("events that are set aside cannot be written").with("path", &path).source(error)
    };
    let properties = crate::parquet_file::properties(events.schema_ref()).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), events.schema(), Some(properties)).map_err(failed)?;
    writer.write(events).map_err(failed)?;
    let written = writer.into_inner().map_err(failed)?;
    let (rows, bytes) = (events.num_rows() as u64, written.len() as u64);
    put_object(store, &path, written.into()).await?;
    Ok(DataFile { path, rows, bytes, ..DataFile::default() })
}

/// Reads a view's table.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] when a file is not the one that was committed.
pub async fn read_set_aside(store: &Arc<dyn ObjectStore>, table: &SetAside) -> Result<SetAsideEvents> {
    let mut events = SetAsideEvents::new();
    for (source, file) in &table.files {
        let batches: Vec<RecordBatch> = read_data_file(store, file).await?.try_collect().await?;
        let Some(first) = batches.first() else { continue };
        events.insert(source.clone(), concat_batches(first.schema_ref(), &batches)?);
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use object_store::memory::InMemory;

    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn commits_of_before_events_had_a_table_are_read() {
        let old = r#"{"at": "2013-01-01T00:00:00Z", "kind": "push", "watermark": "2013-01-01T00:00:00Z", "files": [],
            "set_aside": [{"source": "paid", "rows": 1, "reason": "Divide by zero"}]}"#;
        let commit: super::super::ViewCommit = serde_json::from_str(old).expect("readable");
        assert_eq!(commit.set_aside, None);
        let now = old.replace(r#"[{"source": "paid", "rows": 1, "reason": "Divide by zero"}]"#, r#"{"events": 2}"#);
        let commit: super::super::ViewCommit = serde_json::from_str(&now).expect("readable");
        assert_eq!(commit.set_aside.map(|table| table.events), Some(2));
    }

    #[tokio::test]
    async fn events_that_are_set_aside_are_read_back_with_their_places_and_reasons() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let numbers = |values: [i64; 2]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
        let columns = [("amount", numbers([0, 7])), (WRITE_POSITION, numbers([4, 9])), (WRITE_WITHIN, numbers([2, 0]))];
        let events = RecordBatch::try_from_iter(columns).expect("three columns");
        let long = "x".repeat(REASON_CHARS + 5);
        let why = |reason: &str| WhySetAside { at: Timestamp::from_micros(5), reason: reason.to_owned() };
        let told = with_reasons(&events, &[why("Divide by zero"), why(&long)]).expect("as many reasons");
        let file =
            write_set_aside(&store, &Path::from("views/v/1"), "000000000003-aside", &told).await.expect("written");
        assert_eq!((file.path.as_str(), file.rows), ("views/v/1/data/000000000003-aside.parquet", 2));
        let table = SetAside { events: 2, files: [("paid".to_owned(), file)].into(), ..SetAside::default() };
        let read = read_set_aside(&store, &table).await.expect("readable");
        assert_eq!(read["paid"], told);
        let place = |position, within| EventPlace { position, within };
        assert_eq!(places_of(&read["paid"]).expect("places"), [place(4, 2), place(9, 0)]);
        let reasons = reasons_of(&read["paid"]).expect("reasons");
        assert_eq!((reasons[0].clone(), reasons[1].reason.len()), (why("Divide by zero"), REASON_CHARS));
        // What is tried again has a new reason in the place of the old one.
        let again = with_reasons(&read["paid"], &[why("a"), why("b")]).expect("as many reasons");
        assert_eq!((again.num_columns(), reasons_of(&again).expect("reasons")[1].reason.as_str()), (5, "b"));
    }

    #[test]
    fn places_one_after_another_of_a_push_are_one_stretch() {
        let mut stretches = Vec::new();
        let places = [(4, 2), (4, 3), (4, 5), (6, 6)].map(|(position, within)| EventPlace { position, within });
        for place in places {
            Beyond::add(&mut stretches, "paid", place);
        }
        assert_eq!(stretches.iter().map(Beyond::events).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(stretches.iter().flat_map(Beyond::places).collect::<Vec<_>>(), places);
        let told = SetAside { events: 4, beyond: stretches, ..SetAside::default() };
        let text = serde_json::to_string(&told).expect("JSON");
        assert_eq!(serde_json::from_str::<SetAside>(&text).expect("readable"), told);
    }

    #[test]
    fn a_table_of_before_it_was_one_is_read_as_nothing() {
        assert_eq!(serde_json::from_str::<SetAside>("[]").expect("a list of nothing"), SetAside::default());
    }
}
