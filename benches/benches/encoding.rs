//! Micro-benchmarks of the bytes: keys and packed rows, per batch of 100.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
use criterion::{Criterion, criterion_group, criterion_main};
use springhouse_featurestore::definition::{Column, ColumnType};
use springhouse_featurestore::encoding::{KeyCodec, RowHeader, RowLayout, WriteOrder};
use springhouse_featurestore::time::Timestamp;

fn encoding(criterion: &mut Criterion) {
    let columns = [Column::required("origin", ColumnType::Utf8), Column::required("number", ColumnType::Int64)];
    let codec = KeyCodec::new(&columns).expect("valid columns");
    let keys: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..100).map(|i| format!("K{i:03}")))),
        Arc::new(Int64Array::from_iter_values(0..100)),
    ];
    criterion.bench_function("encode 100 composite keys", |bencher| {
        bencher.iter(|| codec.encode(black_box(&keys)).expect("typed"));
    });
    let features: Vec<Column> = (0..10).map(|i| Column::nullable(format!("f{i}"), ColumnType::Float64)).collect();
    let layout = RowLayout::new(&features);
    let values: Vec<ArrayRef> = (0..10)
        .map(|i| Arc::new(Float64Array::from_iter_values((0..100).map(|j| f64::from(i * j)))) as ArrayRef)
        .collect();
    let time = Timestamp::from_micros(1);
    let headers = vec![RowHeader { event_time: time, available_time: time, written: WriteOrder::of_commit(0, 1) }; 100];
    let packed = layout.encode(&headers, &values).expect("typed");
    let rows: Vec<Option<&Vec<u8>>> = packed.iter().map(Some).collect();
    criterion.bench_function("decode 100 rows of 10 features into Arrow", |bencher| {
        bencher.iter(|| layout.decode(black_box(&rows)).expect("own bytes"));
    });
}

criterion_group!(benches, encoding);
criterion_main!(benches);
