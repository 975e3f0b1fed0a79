//! Micro-benchmarks of windows that move along: a skewed key's month of events, asked 1,000 times. What distinct counts,
//! sketches and top-k cost beside sums alone, and beside windows that are put together from tiles for each question.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use springhouse_featurestore::aggregate::{EntityTiles, RunningWindows, StackedWindows, Summaries, TileLayout, Value};
use springhouse_featurestore::definition::{
    Aggregate, AggregateFunction, Column, ColumnType, ViewWindow, WindowLength, Windowed,
};
use springhouse_featurestore::encoding::RowHeader;
use springhouse_featurestore::time::{Span, Timestamp};

/// A key that has a third of 300,000 events in 30 days.
const EVENTS: i64 = 100_000;
const QUESTIONS: i64 = 1_000;
const MONTH: i64 = 30 * 86_400_000_000;

fn layout(functions: &[AggregateFunction]) -> TileLayout {
    let step = Span::from_secs(300);
    let aggregate = |function: &AggregateFunction| Aggregate {
        alias: "a".to_owned(),
        function: *function,
        argument: Some(0),
        output: ColumnType::Float64,
    };
    let window = |text: &&str| ViewWindow { length: WindowLength::parse(text).expect("valid"), step };
    TileLayout::new(&Windowed {
        step,
        windows: ["1 day", "7 days", "30 days"].iter().map(window).collect(),
        arguments: vec![Column::nullable("argument_0", ColumnType::Int64)],
        aggregates: functions.iter().map(aggregate).collect(),
    })
    .expect("valid")
}

/// Events in order, of values some of which are much more frequent than others.
fn events() -> Vec<(Timestamp, i64)> {
    let mut mixed = 1_u64;
    (0..EVENTS)
        .map(|number| {
            mixed = mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = i64::try_from(mixed >> 33).expect("31 bits");
            let value = if draw % 4 == 0 { draw % 11 } else { draw % 20_000 };
            (Timestamp::from_micros(number * (MONTH / EVENTS)), value)
        })
        .collect()
}

/// What is kept of a key.
trait Kept: Default {
    fn add(&mut self, layout: &TileLayout, at: Timestamp, value: i64);
    fn ask(&mut self, layout: &TileLayout, as_of: Timestamp);
}

#[derive(Default)]
struct Running(RunningWindows, Vec<Summaries>);

impl Kept for Running {
    fn add(&mut self, layout: &TileLayout, at: Timestamp, value: i64) {
        self.0.add(layout, RowHeader::of_times(at, at), |_| Some(Value::Signed(value)));
    }

    fn ask(&mut self, layout: &TileLayout, as_of: Timestamp) {
        self.0.windows(layout, as_of, &mut self.1);
        black_box(&self.1);
    }
}

impl Kept for StackedWindows {
    fn add(&mut self, layout: &TileLayout, at: Timestamp, value: i64) {
        self.add(layout, RowHeader::of_times(at, at), |_| Some(Value::Signed(value)));
    }

    fn ask(&mut self, layout: &TileLayout, as_of: Timestamp) {
        black_box(self.windows(layout, as_of));
    }
}

impl Kept for EntityTiles {
    fn add(&mut self, layout: &TileLayout, at: Timestamp, value: i64) {
        self.add(layout, RowHeader::of_times(at, at), |_| Some(Value::Signed(value)));
    }

    fn ask(&mut self, layout: &TileLayout, as_of: Timestamp) {
        black_box(self.windows(layout, as_of));
    }
}

/// Adds the events, and asks between them.
fn sweep<K: Kept>(layout: &TileLayout, events: &[(Timestamp, i64)]) -> K {
    let mut kept = K::default();
    let between = usize::try_from(EVENTS / QUESTIONS).expect("small");
    for (number, some) in (1..).zip(events.chunks(between)) {
        for (at, value) in some {
            Kept::add(&mut kept, layout, *at, *value);
        }
        kept.ask(layout, Timestamp::from_micros(number * (MONTH / QUESTIONS)));
    }
    kept
}

fn windows(criterion: &mut Criterion) {
    use AggregateFunction::{AboutDistinct, AboutQuantile, AboutTop, CountDistinct, LastValues, Mean, Sum};
    let sums = layout(&[Sum, Mean]);
    let sketches = layout(&[
        Sum,
        CountDistinct,
        AboutDistinct,
        AboutQuantile { millionths: 500_000 },
        AboutTop { most: 5 },
        LastValues { most: 10, nulls: false },
    ]);
    let events = events();
    let mut group = criterion.benchmark_group("1,000 questions about 100,000 events in 3 windows");
    group.sample_size(10);
    group.bench_function("sums, running", |bencher| {
        bencher.iter(|| sweep::<Running>(&sums, black_box(&events)));
    });
    group.bench_function("sums, in stacks", |bencher| {
        bencher.iter(|| sweep::<StackedWindows>(&sums, black_box(&events)));
    });
    group.bench_function("sketches, in stacks", |bencher| {
        bencher.iter(|| sweep::<StackedWindows>(&sketches, black_box(&events)));
    });
    group.bench_function("sketches, from tiles", |bencher| {
        bencher.iter(|| sweep::<EntityTiles>(&sketches, black_box(&events)));
    });
    group.finish();
}

criterion_group!(benches, windows);
criterion_main!(benches);
