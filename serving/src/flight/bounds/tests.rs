//! Messages as a library writes them pass; what a client could declare beside the truth is refused before it is believed.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeListArray, Float64Array, Int32Array, Int64Array, ListArray,
    NullArray, RecordBatch, StringArray, StringViewArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int8Type, Int32Type, Schema};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::SchemaAsIpc;

use super::*;

const LONG: &str = "a text that is longer than the twelve bytes that a view holds by itself";

/// The messages of a batch, the schema first, the batch last.
fn messages(columns: Vec<(&str, ArrayRef)>, codec: Option<CompressionType>) -> Vec<FlightData> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, of)| (name, of, true)));
    let batch = batch.expect("columns of one length");
    let options = IpcWriteOptions::default().try_with_compression(codec).expect("supported");
    let mut tracker = DictionaryTracker::new(false);
    let generator = IpcDataGenerator::default();
    let schema = generator.schema_to_bytes_with_dictionary_tracker(batch.schema_ref(), &mut tracker, &options);
    let mut context = IpcWriteContext::default();
    let (dictionaries, batch) = generator.encode(&batch, &mut tracker, &options, &mut context).expect("encodes");
    [schema].into_iter().chain(dictionaries).chain([batch]).map(FlightData::from).collect()
}

fn check_all(messages: &[FlightData]) -> Result<()> {
    let mut bounds = Bounds::new("keys", 1000);
    messages.iter().try_for_each(|message| bounds.check(message))
}

fn refused(messages: &[FlightData], expected: &str) {
    let error = check_all(messages).expect_err(expected).to_string();
    assert!(error.contains(expected) && error.contains("; "), "{error}");
}

/// Replaces a number of a header wherever it stands.
fn declare(message: &mut FlightData, truth: i64, lie: i64) {
    let mut header = message.data_header.to_vec();
    let mut found = 0;
    for place in (0..header.len().saturating_sub(7)).step_by(4) {
        if header[place..place + 8] == truth.to_le_bytes() {
            header[place..place + 8].copy_from_slice(&lie.to_le_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{truth} stands nowhere");
    message.data_header = header.into();
}

fn last(messages: &mut [FlightData]) -> &mut FlightData {
    messages.last_mut().expect("a batch")
}

fn all_kinds() -> Vec<(&'static str, ArrayRef)> {
    let words: DictionaryArray<Int8Type> = [Some("a"), None, Some(LONG)].into_iter().collect();
    let lists = [Some(vec![Some(1.5), None]), None, Some(vec![])];
    let fixed = [Some(vec![Some(1), None]), None, Some(vec![Some(2), Some(3)])];
    vec![
        ("number", Arc::new(Int64Array::from(vec![Some(7), None, Some(9)]))),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("text", Arc::new(StringArray::from(vec![Some("a"), None, Some(LONG)]))),
        ("view", Arc::new(StringViewArray::from(vec![Some("a"), None, Some(LONG)]))),
        ("word", Arc::new(words)),
        ("nothing", Arc::new(NullArray::new(3))),
        ("list", Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists))),
        ("pair", Arc::new(FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(fixed, 2))),
    ]
}

#[test]
fn what_a_library_writes_passes_compressed_or_not() {
    for codec in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        check_all(&messages(all_kinds(), codec)).unwrap_or_else(|error| panic!("{codec:?}: {error}"));
        let none: Vec<_> = all_kinds().into_iter().map(|(name, of)| (name, of.slice(0, 0))).collect();
        check_all(&messages(none, codec)).unwrap_or_else(|error| panic!("no rows, {codec:?}: {error}"));
        let zeros: ArrayRef = Arc::new(Float64Array::from(vec![0.0; 1000]));
        check_all(&messages(vec![("zero", zeros)], codec)).unwrap_or_else(|error| panic!("zeros, {codec:?}: {error}"));
    }
    check_all(&[FlightData::default()]).expect("metadata alone is the decoder's");
}

#[test]
fn declared_rows_nulls_and_places_are_bounded() {
    for (lie, expected) in [(1 << 40, "too many rows"), (-3, "negative"), (1001, "too many rows")] {
        let mut nulls = messages(vec![("nothing", Arc::new(NullArray::new(3)))], None);
        declare(last(&mut nulls), 3, lie);
        refused(&nulls, expected);
    }
    // The batch's rows are the truth, its columns' are not.
    let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..1000));
    let inner = FixedSizeListArray::new(Arc::new(Field::new_list_field(DataType::Int32, true)), 500, numbers, None);
    let mut lists = messages(vec![("list", Arc::new(inner))], None);
    declare(last(&mut lists), 1000, 1 << 40);
    refused(&lists, "too many values");
    let mut short = messages(vec![("number", Arc::new(Int64Array::from(vec![5; 77])))], None);
    declare(last(&mut short), 77, 900);
    refused(&short, "shorter than its values");
    for (lie, expected) in [(1 << 40, "outside of its body"), (-1, "outside of its body")] {
        let mut place = messages(vec![("number", Arc::new(Int64Array::from(vec![5; 77])))], None);
        declare(last(&mut place), 77 * 8, lie);
        refused(&place, expected);
    }
    let mut cut = messages(all_kinds(), None);
    last(&mut cut).data_body = last(&mut cut).data_body.slice(0..8);
    refused(&cut, "outside of its body");
}

#[test]
fn declared_decompressed_bytes_are_bounded_and_tried() {
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        for (lie, expected) in [(1_i64 << 47, "too many bytes"), (-2, "negative")] {
            let zeros: ArrayRef = Arc::new(Int64Array::from(vec![0; 1000]));
            let mut compressed = messages(vec![("zero", zeros)], Some(codec));
            let mut body = last(&mut compressed).data_body.to_vec();
            let place = body.windows(8).position(|bytes| bytes == 8000_i64.to_le_bytes()).expect("its length");
            body[place..place + 8].copy_from_slice(&lie.to_le_bytes());
            last(&mut compressed).data_body = body.into();
            refused(&compressed, expected);
        }
    }
    let zeros: ArrayRef = Arc::new(Int64Array::from(vec![0; 1000]));
    let mut compressed = messages(vec![("zero", zeros)], Some(CompressionType::LZ4_FRAME));
    let mut body = last(&mut compressed).data_body.to_vec();
    let place = body.windows(8).position(|bytes| bytes == 8000_i64.to_le_bytes()).expect("its length");
    body[place..place + 8].copy_from_slice(&10_i64.to_le_bytes());
    last(&mut compressed).data_body = body.into();
    refused(&compressed, "longer than it says");
}

#[test]
fn types_that_no_column_can_have_and_too_many_columns_are_refused() {
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let nested = StructArray::from(vec![(Arc::new(Field::new("n", DataType::Int64, true)), Arc::clone(&number))]);
    refused(&messages(vec![("deep", Arc::new(nested))], None), "column: deep");
    let mut deep = DataType::Int64;
    for _ in 0..20 {
        deep = DataType::List(Arc::new(Field::new_list_field(deep, true)));
    }
    let options = IpcWriteOptions::default();
    let schema = Schema::new(vec![Field::new("deep", deep, true)]);
    refused(&[SchemaAsIpc::new(&schema, &options).into()], "no column of ours can have");
    let wide = Schema::new((0..5000).map(|i| Field::new(format!("c{i}"), DataType::Int8, true)).collect::<Vec<_>>());
    refused(&[SchemaAsIpc::new(&wide, &options).into()], "too many");
}

#[test]
fn what_dictionaries_and_views_stand_for_is_bounded() {
    let long = "x".repeat(1 << 20);
    let keys = arrow::array::Int8Array::from(vec![0; 1000]);
    let values: ArrayRef = Arc::new(StringArray::from(vec![long.as_str()]));
    let words: ArrayRef = Arc::new(DictionaryArray::new(keys, values));
    let views: ArrayRef = Arc::new(StringViewArray::from(vec![long.as_str()]));
    let views = arrow::compute::take(&views, &Int32Array::from(vec![0; 1000]), None).expect("one text");
    for column in [words, views] {
        let batch = RecordBatch::try_from_iter([("word", column)]).expect("one column");
        check_unpacked(&batch.slice(0, 10)).expect("ten megabytes");
        let error = check_unpacked(&batch).expect_err("a gigabyte");
        assert!(error.message().contains("dictionaries and views"), "{error}");
    }
}
