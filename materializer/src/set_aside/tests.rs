//! Tables of events that are set aside: read, added to and taken apart.

use arrow::array::{Array, Int64Array, StringArray};
use springhouse_featurestore::definition::{Available, ColumnType, Version};

use super::tables::{SOURCE, one_table};
use super::*;

fn source(name: &str, columns: Vec<Column>) -> Source {
    Source {
        name: name.to_owned(),
        version: Version::from_text("1"),
        text: String::new(),
        event_time: EventTime::Column { column: "at".to_owned(), zone: None },
        available: Available::AtEventTime,
        available_zone: None,
        lateness: None,
        distinct: Vec::new(),
        query: None,
        tables: Vec::new(),
        columns,
    }
}

/// Two events at two places of a push, with these columns.
fn aside(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let numbers = |values: [i64; 2]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let places = [(WRITE_POSITION, numbers([4, 4])), (WRITE_WITHIN, numbers([0, 7]))];
    let events = RecordBatch::try_from_iter(columns.into_iter().chain(places)).expect("columns");
    let why = WhySetAside { at: Timestamp::from_micros(1), reason: "Divide by zero".to_owned() };
    with_reasons(&events, &[why.clone(), why]).expect("as many reasons")
}

fn texts(values: [&str; 2]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn numbers(values: [i64; 2]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

#[test]
fn events_of_sources_with_other_columns_are_one_table() {
    let paid = aside(vec![("amount", numbers([5, 6]))]);
    let clicked = aside(vec![("amount", texts(["five", "six"])), ("page", texts(["home", "shop"]))]);
    let column = |name: &str, kind| Column::nullable(name, kind);
    let sources = [
        source("clicked", vec![column("amount", ColumnType::Utf8), column("page", ColumnType::Utf8)]),
        source("paid", vec![column("amount", ColumnType::Int64)]),
    ];
    let table = SetAsideEvents::from([("clicked".to_owned(), clicked), ("paid".to_owned(), paid)]);
    let all = one_table(&sources.iter().collect::<Vec<_>>(), &table).expect("one table");
    let names: Vec<&str> = all.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
    let told = [WRITE_POSITION, WRITE_WITHIN, SET_ASIDE_AT, REASON];
    assert_eq!(names, [&[SOURCE, "amount", "page", "paid.amount"][..], &told[..]].concat());
    assert_eq!((all.num_rows(), all["page"].null_count(), all["paid.amount"].null_count()), (4, 2, 2));
}

#[test]
fn what_was_pushed_before_a_source_gained_a_column_lacks_it() {
    let column = |name: &str, kind| Column::nullable(name, kind);
    let wider = source("paid", vec![column("amount", ColumnType::Int64), column("page", ColumnType::Utf8)]);
    let events = of_source(&wider, &aside(vec![("amount", numbers([5, 6]))])).expect("wider");
    assert_eq!((events.num_columns(), events["page"].null_count()), (4, 2));
    assert_eq!(places_of(&events).expect("told").iter().map(|place| place.within).collect::<Vec<_>>(), [0, 7]);
}

#[test]
fn events_of_one_push_are_tried_again_as_parts_of_it() {
    let table = SetAsideEvents::from([("paid".to_owned(), aside(vec![("amount", numbers([5, 6]))]))]);
    let pushes = pushes_of(&table).expect("pushes");
    assert_eq!((pushes.len(), pushes[0].position, pushes[0].events.num_columns()), (1, 4, 3));
    assert_eq!(places_of(pushes[0].ordered_events()).expect("told")[1].within, 7);
}
