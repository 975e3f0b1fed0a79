//! Stacked windows against a filter over all events.

use proptest::prelude::*;

use super::*;
use crate::aggregate::EntityTiles;
use crate::aggregate::tiles::MERGES;
use crate::definition::{Aggregate, AggregateFunction, Column, ColumnType, ViewWindow, WindowLength, Windowed};
use crate::encoding::WriteOrder;
use crate::time::Span;

/// An event: the second in which it happened, how much later it was known, a number and a text; and the place of its write.
type Event = (i64, i64, Option<f64>, Option<String>, i64);

/// What is known of an entity, in the order in which it becomes known, and when it is asked about.
type Entity = (Vec<Event>, Vec<i64>);

/// Every part, over a number and over a text; and the events themselves.
fn everything() -> Vec<(Option<usize>, AggregateFunction)> {
    use AggregateFunction::{
        AboutDistinct, AboutQuantile, AboutTop, Count, CountDistinct, First, Greatest, Last, LastValues, Sum,
        VarianceSample,
    };
    let of_both = [
        CountDistinct,
        AboutDistinct,
        AboutTop { most: 5 },
        First { nulls: true },
        Last { nulls: false },
        LastValues { most: 3, nulls: false },
        LastValues { most: 6, nulls: true },
    ];
    let of_numbers = [Sum, VarianceSample, Greatest, AboutQuantile { millionths: 500_000 }];
    let mut all = vec![(None, Count)];
    all.extend(of_both.iter().map(|function| (Some(1), *function)));
    all.extend(of_both.iter().chain(&of_numbers).map(|function| (Some(0), *function)));
    all
}

fn layout(step: i64, windows: &[(&str, i64)], aggregates: &[(Option<usize>, AggregateFunction)]) -> TileLayout {
    let aggregate = |(argument, function): &(Option<usize>, AggregateFunction)| Aggregate {
        alias: "a".to_owned(),
        function: *function,
        argument: *argument,
        output: ColumnType::Float64,
    };
    let window = |(text, steps): &(&str, i64)| ViewWindow {
        length: WindowLength::parse(text).expect("valid"),
        step: Span::from_secs(steps * step),
    };
    TileLayout::new(&Windowed {
        step: Span::from_secs(step),
        windows: windows.iter().map(window).collect(),
        arguments: vec![
            Column::nullable("argument_0", ColumnType::Float64),
            Column::nullable("argument_1", ColumnType::Utf8),
        ],
        aggregates: aggregates.iter().map(aggregate).collect(),
    })
    .expect("valid")
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

/// When an event happened, was known and was written.
fn at(event: &Event) -> RowHeader {
    let written = WriteOrder { position: event.4, within: 0 };
    RowHeader { written, ..RowHeader::of_times(second(event.0), second(event.0 + event.1)) }
}

fn value_of<'a>(event: &'a Event) -> impl Fn(usize) -> Option<Value<'a>> {
    move |argument| if argument == 0 { event.2.map(Value::Float) } else { event.3.as_deref().map(Value::Text) }
}

/// Rule T4 said plainly: all events of each window, added one by one.
fn oracle(layout: &TileLayout, events: &[Event], as_of: Timestamp) -> Vec<Summaries> {
    let of = |window: &crate::time::Window| {
        let mut total = layout.empty();
        for event in events.iter().filter(|event| window.contains(as_of, second(event.0))) {
            layout.add(&mut total, at(event), value_of(event));
        }
        total
    };
    layout.windows().iter().map(of).collect()
}

fn bytes(layout: &TileLayout, windows: &[Summaries]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (summary, parts) in windows.iter().flat_map(|summaries| summaries.iter().zip(layout.parts())) {
        summary.encode(parts, &mut bytes);
    }
    bytes
}

/// No more is kept than the page says.
fn is_within_bounds(held: &StackedWindows, layout: &TileLayout, as_of: Timestamp) -> bool {
    let covered = layout.windows().iter().map(|window| window.tail(as_of)).min();
    let few = held.windows.iter().all(|window| window.levels.iter().all(|level| level.suffixes.len() <= 8));
    few && held.tiles.keys().all(|index| covered.is_some_and(|tail| layout.tiles().tile_of(0, tail).index < *index))
}

/// Asks about events in the order in which they are known.
fn check(layout: &TileLayout, held: &mut StackedWindows, events: &[Event], asked: &[i64]) -> Result<(), TestCaseError> {
    held.clear();
    let mut next = 0;
    for time in asked {
        while next < events.len() && events[next].0 + events[next].1 <= *time {
            let event = &events[next];
            held.add(layout, at(event), value_of(event));
            next += 1;
        }
        let expected = oracle(layout, &events[..next], second(*time));
        let newest = events[..next].iter().map(|event| at(event).times()).max();
        prop_assert_eq!(held.newest(), newest);
        let answer = held.windows(layout, second(*time));
        prop_assert_eq!(answer, expected.as_slice(), "at {}", time);
        prop_assert_eq!(bytes(layout, answer), bytes(layout, &expected), "at {}", time);
        prop_assert!(is_within_bounds(held, layout, second(*time)));
    }
    Ok(())
}

/// Times that crowd, are equal, lie on boundaries, or are far apart.
fn times(step: i64, most: usize) -> impl Strategy<Value = Vec<i64>> {
    let gap = prop_oneof![
        3 => Just(0_i64),
        4 => 0..step,
        3 => Just(step),
        3 => 0..20 * step,
        1 => 0..100 * step,
        1 => 0..900 * step,
    ];
    let start = prop_oneof![Just(0_i64), -2_000 * step..2_000 * step, Just(1_386_000_000)];
    (start, proptest::collection::vec(gap, 0..most)).prop_map(|(start, gaps)| {
        let mut at = start;
        gaps.iter()
            .map(|gap| {
                at += gap;
                at
            })
            .collect()
    })
}

fn events(step: i64, most: usize) -> impl Strategy<Value = Vec<Event>> {
    let late = prop_oneof![6 => Just(0_i64), 3 => 0..step, 2 => 0..15 * step, 1 => 0..700 * step];
    let number = prop_oneof![
        6 => (-20_i32..20).prop_map(|tenths| f64::from(tenths) / 10.0),
        1 => prop_oneof![Just(1e300), Just(f64::NAN), Just(f64::NEG_INFINITY), Just(-0.0)],
    ];
    let values = (late, proptest::option::of(number), proptest::option::of("[a-c]{1,2}"), 0_i64..4);
    (times(step, most), proptest::collection::vec(values, most)).prop_map(|(times, values)| {
        let event = |(at, (late, number, text, position))| (at, late, number, text, position);
        times.into_iter().zip(values).map(event).collect()
    })
}

/// A step in seconds, events in order of the times when they were known, and questions, for a few entities.
fn histories(in_event_order: bool) -> impl Strategy<Value = (i64, Vec<Entity>)> {
    prop_oneof![Just(60_i64), Just(300), Just(420), Just(3_600)].prop_flat_map(move |step| {
        let entity = (events(step, 60), times(step, 40), any::<bool>()).prop_map(move |(mut events, asked, near)| {
            if in_event_order {
                for event in &mut events {
                    event.1 = 0;
                }
            }
            events.sort_by_key(|event| (event.0 + event.1, event.0));
            // As often as not, questions begin with the events.
            let moved = events.first().zip(asked.first()).filter(|_| near).map_or(0, |(event, at)| event.0 - at);
            let asked: Vec<i64> = asked.into_iter().map(|at| at + moved).collect();
            (events, asked)
        });
        (Just(step), proptest::collection::vec(entity, 1..4))
    })
}

const WINDOWS: [(&str, i64); 4] = [("1 hour", 1), ("7 hours", 1), ("50 hours", 3), ("12 days", 24)];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn windows_hold_what_a_filter_over_all_events_does((step, entities) in histories(true)) {
        let layout = layout(step, &WINDOWS, &everything());
        let mut held = StackedWindows::default();
        for (events, asked) in &entities {
            check(&layout, &mut held, events, asked)?;
        }
    }

    #[test]
    fn an_event_that_comes_late_counts_where_it_happened((step, entities) in histories(false)) {
        let layout = layout(step, &WINDOWS, &everything());
        let mut held = StackedWindows::default();
        for (events, asked) in &entities {
            check(&layout, &mut held, events, asked)?;
        }
    }
}

/// Many events of one entity, with more values than are kept one by one, some of them much more frequent than others.
fn dense(count: i64, apart: i64, late: i64) -> Vec<Event> {
    let mut mixed = 1_u64;
    let mut events: Vec<Event> = (0..count)
        .map(|number| {
            mixed = mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = mixed >> 33;
            let value = if draw.is_multiple_of(3) { draw % 7 } else { draw % 2_500 };
            let delay = if late > 0 { i64::try_from(draw).expect("31 bits") % late } else { 0 };
            let number_of = u32::try_from(value).expect("small");
            (number * apart, delay, Some(f64::from(number_of) / 8.0), Some(format!("v{value}")), 0)
        })
        .collect();
    events.sort_by_key(|event| (event.0 + event.1, event.0));
    events
}

#[test]
fn sketches_that_overflow_and_are_left_again_stay_exact() {
    // Ten days, then six without events; windows that hold a few dozen and several thousand values.
    let windows = [("1 hour", 1), ("1 day", 1), ("5 days", 12)];
    let layout = layout(300, &windows, &everything());
    for late in [0, 5_000] {
        let events = dense(8_000, 108, late);
        let asked: Vec<i64> = (1..=64).map(|number| number * 21_700 + number % 7).collect();
        check(&layout, &mut StackedWindows::default(), &events, &asked).expect("the same");
    }
}

#[test]
fn a_question_costs_the_same_in_a_window_of_any_length() {
    let merges = |window: &str, questions: i64| {
        let layout = layout(300, &[(window, 1)], &[(Some(0), AggregateFunction::CountDistinct)]);
        let mut held = StackedWindows::default();
        let before = MERGES.get();
        // Three months of an event in each tile, of which a part is asked about.
        for tile in 0..90 * 288_i64 {
            let at = second(tile * 300 + 1);
            held.add(&layout, RowHeader::of_times(at, at), |_| Some(Value::Signed(tile % 1_000)));
            if tile % (90 * 288 / questions) == 0 {
                held.windows(&layout, at);
            }
        }
        MERGES.get() - before
    };
    for window in ["1 hour", "1 day", "7 days", "30 days"] {
        // For a tile five levels at most, and the summary after the split; for a question three parts of an answer, and
        // what the levels hold together. From tiles it would be up to a hundred for a question.
        assert!(merges(window, 90 * 288) <= 10 * 90 * 288, "{window}");
        assert!(merges(window, 1_000) <= 6 * 90 * 288 + 8 * 1_000, "{window}");
    }
}

#[test]
fn a_month_of_five_minute_tiles_has_five_levels() {
    let layout = layout(300, &[("30 days", 1)], &[(None, AggregateFunction::Count)]);
    let mut held = StackedWindows::default();
    let mut most = 0;
    for at in (0..70 * 86_400_i64).step_by(300) {
        held.add(&layout, RowHeader::of_times(second(at + 1), second(at + 1)), |_| None);
        let expected = (at / 300 + 1).min(30 * 288 + 1);
        assert_eq!(held.windows(&layout, second(at + 1))[0][0].count(), expected.unsigned_abs());
        most = most.max(held.windows[0].levels.len());
        let held_now: usize = held.windows[0].levels.iter().map(|level| level.suffixes.len()).sum();
        assert!(held_now <= 5 * 8 && held.tiles.len() <= 30 * 288 + 1);
    }
    assert_eq!(most, 5);
}

#[test]
fn tiles_and_stacked_windows_agree() {
    let layout = layout(300, &[("3 days", 1), ("9 days", 288)], &everything());
    let (mut tiles, mut held) = (EntityTiles::default(), StackedWindows::default());
    for event in dense(3_000, 600, 0) {
        tiles.add(&layout, at(&event), value_of(&event));
        held.add(&layout, at(&event), value_of(&event));
        if event.0 % 9_000 == 0 {
            let as_of = second(event.0);
            assert_eq!(held.windows(&layout, as_of), tiles.windows(&layout, as_of));
        }
    }
}
