//! An entity's events in tiles: what windows are put together from, as of any time (rule T4). Pure.
//!
//! Each event is added to its tile on every level. Since what is added has event times up to the time of asking (an
//! event is not visible before it has happened, rule T3), the partly filled tile at the head needs no special care.

use std::collections::BTreeMap;

use super::{Parts, Summary, Value};
use crate::Result;
use crate::definition::{ViewWindow, Windowed};
use crate::encoding::RowHeader;
use crate::time::{Tile, Tiles, Timestamp, Window};

/// What the summaries of a view hold: one for each argument that an aggregate reads, one for the events themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileLayout {
    tiles: Tiles,
    windows: Vec<Window>,
    /// The argument of each summary (none: the events), with what is kept of it.
    summaries: Vec<(Option<usize>, Parts)>,
    /// Which summary each aggregate reads.
    of_aggregate: Vec<usize>,
}

/// The summaries of a tile or a window, in the layout's order.
pub type Summaries = Vec<Summary>;

impl TileLayout {
    /// The layout of a view.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when a window is shorter than its step.
    pub fn new(windowed: &Windowed) -> Result<Self> {
        let mut summaries: Vec<(Option<usize>, Parts)> = Vec::new();
        let mut of_aggregate = Vec::with_capacity(windowed.aggregates.len());
        for aggregate in &windowed.aggregates {
            let parts = aggregate.function.parts();
            let known = summaries.iter().position(|(argument, _)| *argument == aggregate.argument);
            match known {
                Some(index) => summaries[index].1 = summaries[index].1.or(parts),
                None => summaries.push((aggregate.argument, parts)),
            }
            of_aggregate.push(known.unwrap_or(summaries.len() - 1));
        }
        Ok(Self {
            tiles: windowed.tiles()?,
            windows: windowed.windows.iter().map(ViewWindow::window).collect::<Result<_>>()?,
            summaries,
            of_aggregate,
        })
    }

    /// The levels of tiles.
    pub fn tiles(&self) -> &Tiles {
        &self.tiles
    }

    /// The windows.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// What the summaries keep, in their order.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Parts> {
        self.summaries.iter().map(|(_, parts)| *parts)
    }

    /// Which summary an aggregate reads.
    pub fn summary_of(&self, aggregate: usize) -> usize {
        self.of_aggregate[aggregate]
    }

    /// What windows depend on of the time: as long as it is the same they cover the same tiles, and those of an entity
    /// without new events hold the same.
    pub fn epoch(&self, as_of: Timestamp) -> Vec<u8> {
        let tails = self.windows.iter().map(|window| window.tail(as_of).micros());
        tails.chain([self.tiles.tile_of(0, as_of).index]).flat_map(i64::to_be_bytes).collect()
    }

    /// The summaries of nothing.
    pub fn empty(&self) -> Summaries {
        vec![Summary::default(); self.summaries.len()]
    }

    /// Adds an event: when it happened, was known and was written, and the values of its arguments.
    pub fn add<'a>(&self, to: &mut Summaries, at: RowHeader, value_of: impl Fn(usize) -> Option<Value<'a>>) {
        for (summary, (argument, parts)) in to.iter_mut().zip(&self.summaries) {
            let value = argument.map_or(Some(Value::Present), &value_of);
            summary.add(at, value, *parts);
        }
    }

    /// Adds summaries to summaries.
    pub fn merge(&self, to: &mut Summaries, from: &Summaries) {
        #[cfg(test)]
        MERGES.set(MERGES.get() + 1);
        for ((summary, other), (_, parts)) in to.iter_mut().zip(from).zip(&self.summaries) {
            summary.merge(other, *parts);
        }
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has merged summaries: tests count what a question costs.
    pub(super) static MERGES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The tiles of one entity that hold events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EntityTiles {
    tiles: BTreeMap<Tile, Summaries>,
    newest: Option<(Timestamp, Timestamp)>,
}

impl EntityTiles {
    /// Adds an event: when it happened, was known and was written, and the values of its arguments.
    pub fn add<'a>(&mut self, layout: &TileLayout, at: RowHeader, value_of: impl Fn(usize) -> Option<Value<'a>>) {
        for level in 0..layout.tiles.levels().len() {
            let tile = self.tiles.entry(layout.tiles.tile_of(level, at.event_time)).or_insert_with(|| layout.empty());
            layout.add(tile, at, &value_of);
        }
        self.newest = self.newest.max(Some(at.times()));
    }

    /// Adds events on the finest level alone: [`Self::roll_up`] must follow before anything is read. `event_of` says when a
    /// row's event happened, was known and was written, `value_of` the value of one of its arguments. With many events of a
    /// tile one after another this costs much less than [`Self::add`].
    pub fn add_finest<'a>(
        &mut self,
        layout: &TileLayout,
        rows: &[u32],
        event_of: impl Fn(u32) -> RowHeader,
        value_of: impl Fn(usize, u32) -> Option<Value<'a>>,
    ) {
        let tile_of = |row: u32| layout.tiles.tile_of(0, event_of(row).event_time);
        let mut left = rows;
        while let Some(first) = left.first() {
            let tile = tile_of(*first);
            let (run, rest) = left.split_at(left.iter().take_while(|row| tile_of(**row) == tile).count());
            let summaries = self.tiles.entry(tile).or_insert_with(|| layout.empty());
            for row in run {
                let at = event_of(*row);
                layout.add(summaries, at, |argument| value_of(argument, *row));
                self.newest = self.newest.max(Some(at.times()));
            }
            left = rest;
        }
    }

    /// Makes the tiles of every level from those of the finest.
    pub fn roll_up(&mut self, layout: &TileLayout) {
        let levels = layout.tiles.levels();
        for level in 1..levels.len() {
            let per = levels[level].micros() / levels[level - 1].micros();
            let finer = Tile { level: level - 1, index: i64::MIN }..Tile { level, index: i64::MIN };
            let mut coarser: Vec<(Tile, Summaries)> = Vec::new();
            for (tile, summaries) in self.tiles.range(finer) {
                let within = Tile { level, index: tile.index.div_euclid(per) };
                match coarser.last_mut() {
                    Some((last, total)) if *last == within => layout.merge(total, summaries),
                    _ => coarser.push((within, summaries.clone())),
                }
            }
            self.tiles.extend(coarser);
        }
    }

    /// The event time and available time of the newest event; `None` where there is none.
    pub fn newest(&self) -> Option<(Timestamp, Timestamp)> {
        self.newest
    }

    /// The tiles that hold events, in order of level and time.
    pub fn iter(&self) -> impl Iterator<Item = (Tile, &Summaries)> {
        self.tiles.iter().map(|(tile, summaries)| (*tile, summaries))
    }

    /// The windows as of a time.
    pub fn windows(&self, layout: &TileLayout, as_of: Timestamp) -> Vec<Summaries> {
        let of = |window: &Window| {
            let mut total = layout.empty();
            for range in layout.tiles.ranges(window.tail(as_of), as_of) {
                for summaries in self.tiles.range(range).map(|(_, summaries)| summaries) {
                    layout.merge(&mut total, summaries);
                }
            }
            total
        };
        layout.windows.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::definition::{Aggregate, AggregateFunction, Column, ColumnType, WindowLength};
    use crate::time::Span;

    /// The second of an event, which was known when it happened.
    fn at(second: i64) -> RowHeader {
        let at = Timestamp::from_micros(second * 1_000_000);
        RowHeader::of_times(at, at)
    }

    fn windowed(step: Span, windows: &[&str]) -> Windowed {
        let aggregate = |alias: &str, function, argument| Aggregate {
            alias: alias.to_owned(),
            function,
            argument,
            output: ColumnType::Float64,
        };
        Windowed {
            step,
            windows: windows
                .iter()
                .map(|text| ViewWindow { length: WindowLength::parse(text).expect("valid"), step })
                .collect(),
            arguments: vec![Column::nullable("argument_0", ColumnType::Float64)],
            aggregates: vec![
                aggregate("events", AggregateFunction::Count, None),
                aggregate("total", AggregateFunction::Sum, Some(0)),
                aggregate("most", AggregateFunction::Greatest, Some(0)),
                aggregate("latest", AggregateFunction::Last { nulls: true }, Some(0)),
                aggregate("kinds", AggregateFunction::CountDistinct, Some(0)),
            ],
        }
    }

    /// Rule T4 said plainly: a filter over all events.
    fn oracle(layout: &TileLayout, events: &[(i64, Option<f64>)], window: Window, as_of: Timestamp) -> Summaries {
        let mut total = layout.empty();
        for (second, value) in events {
            if window.contains(as_of, at(*second).event_time) {
                layout.add(&mut total, at(*second), |_| value.map(Value::Float));
            }
        }
        total
    }

    proptest! {
        #[test]
        fn windows_are_those_of_a_filter_over_all_events(
            mut events in proptest::collection::vec((0_i64..400_000, proptest::option::of(-50_i32..50)), 0..80),
            step in prop_oneof![Just(60_i64), Just(300), Just(420), Just(3_600), Just(7_200)],
            on_boundaries in any::<bool>(),
            mut asked in proptest::collection::vec(0_i64..500_000, 1..8),
        ) {
            let layout = TileLayout::new(&windowed(Span::from_secs(step), &["2 hours", "30 hours", "3 days"])).expect("valid");
            if on_boundaries {
                for (second, _) in &mut events {
                    *second -= *second % step;
                }
                for second in &mut asked {
                    *second -= *second % step;
                }
            }
            asked.sort_unstable();
            events.sort_unstable_by_key(|(second, _)| *second);
            let events: Vec<(i64, Option<f64>)> =
                events.into_iter().map(|(second, tenths)| (second, tenths.map(|t| f64::from(t) / 10.0))).collect();
            let (mut held, mut next) = (EntityTiles::default(), 0);
            for second in asked {
                while next < events.len() && events[next].0 <= second {
                    held.add(&layout, at(events[next].0), |_| events[next].1.map(Value::Float));
                    next += 1;
                }
                let mut finest = EntityTiles::default();
                let rows: Vec<u32> = (0..).take(next).collect();
                let event_of = |row: u32| at(events[row as usize].0);
                finest.add_finest(&layout, &rows, event_of, |_, row| events[row as usize].1.map(Value::Float));
                finest.roll_up(&layout);
                let as_of = Timestamp::from_micros(second * 1_000_000);
                prop_assert_eq!(finest.windows(&layout, as_of), held.windows(&layout, as_of));
                let expected: Vec<Summaries> =
                    layout.windows().iter().map(|window| oracle(&layout, &events[..next], *window, as_of)).collect();
                prop_assert_eq!(&held.windows(&layout, as_of), &expected);
            }
        }
    }
}
