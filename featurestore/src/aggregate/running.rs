//! Windows that run along with time: for one entity, asked at times that never go back. Pure.
//!
//! Where [`super::EntityTiles`] puts each window together anew from the tiles that it covers, here each window keeps what
//! it holds: tiles that its tail has passed are taken away from it, those that have come are added. Sums are exact, so
//! taking away leaves what would have been there without; the least and the greatest are kept as queues in which each
//! candidate waits for the better ones before it to leave. So an event costs the same in a window of any length, and
//! events that come and go between two questions cost nothing.
//!
//! Events come in order of event time. What cannot be taken away (distinct values, sketches, first and last values) has
//! no place here: [`RunningWindows::serves`]; [`super::StackedWindows`] has one for it.

use std::collections::VecDeque;

use super::{Extremes, Parts, Summaries, TileLayout, Value};
use crate::encoding::RowHeader;
use crate::time::Timestamp;

/// The windows of one entity.
#[derive(Debug, Default)]
pub struct RunningWindows {
    /// The finest tiles that hold events of some window, in order of time.
    tiles: VecDeque<RunningTile>,
    /// How many tiles were forgotten before the first.
    forgotten: usize,
    windows: Vec<Running>,
    newest: Option<(Timestamp, Timestamp)>,
    /// Summaries to be used again.
    spare: Vec<Summaries>,
}

#[derive(Debug)]
struct RunningTile {
    index: i64,
    summaries: Summaries,
}

/// One window: what the tiles from `first` to before `end` hold, both counted from the entity's first tile.
#[derive(Debug, Default)]
struct Running {
    first: usize,
    end: usize,
    held: Summaries,
    extremes: Vec<RunningExtremes>,
}

/// The candidates for the least and the greatest of a summary, each with its tile.
#[derive(Debug, Default)]
struct RunningExtremes {
    least: VecDeque<(usize, i64)>,
    greatest: VecDeque<(usize, i64)>,
}

impl RunningExtremes {
    fn add(&mut self, tile: usize, of: Extremes) {
        let (Some(least), Some(greatest)) = (of.least(), of.greatest()) else { return };
        while self.least.back().is_some_and(|(_, held)| *held >= least) {
            self.least.pop_back();
        }
        self.least.push_back((tile, least));
        while self.greatest.back().is_some_and(|(_, held)| *held <= greatest) {
            self.greatest.pop_back();
        }
        self.greatest.push_back((tile, greatest));
    }

    fn forget_before(&mut self, tile: usize) {
        for candidates in [&mut self.least, &mut self.greatest] {
            while candidates.front().is_some_and(|(of, _)| *of < tile) {
                candidates.pop_front();
            }
        }
    }

    fn ends(&self) -> Extremes {
        let mut ends = Extremes::default();
        for candidates in [&self.least, &self.greatest] {
            if let Some((_, value)) = candidates.front() {
                ends.add(*value);
            }
        }
        ends
    }
}

impl RunningWindows {
    /// Whether windows of this layout can run.
    pub fn serves(layout: &TileLayout) -> bool {
        !layout.parts().any(|parts| parts.any(Parts::DETAIL))
    }

    /// Begins with another entity.
    pub fn clear(&mut self) {
        while let Some(tile) = self.tiles.pop_front() {
            self.spare.push(tile.summaries);
        }
        self.forgotten = 0;
        for window in &mut self.windows {
            window.restart(0);
        }
        self.newest = None;
    }

    /// Adds an event, which is not older than those before it: when it happened and was known, and the values of its arguments.
    /// When it was written does not count.
    pub fn add<'a>(&mut self, layout: &TileLayout, at: RowHeader, value_of: impl Fn(usize) -> Option<Value<'a>>) {
        let index = layout.tiles().tile_of(0, at.event_time).index;
        if self.tiles.back().is_none_or(|last| last.index != index) {
            let mut summaries = self.spare.pop().unwrap_or_else(|| layout.empty());
            summaries.fill_with(super::Summary::default);
            self.tiles.push_back(RunningTile { index, summaries });
        }
        if let Some(last) = self.tiles.back_mut() {
            layout.add(&mut last.summaries, at, value_of);
        }
        self.newest = self.newest.max(Some(at.times()));
    }

    /// The event time and available time of the newest event; `None` where there is none.
    pub fn newest(&self) -> Option<(Timestamp, Timestamp)> {
        self.newest
    }

    /// What the windows hold as of a time that is not before the last one asked for.
    pub fn windows(&mut self, layout: &TileLayout, as_of: Timestamp, answer: &mut Vec<Summaries>) {
        if self.windows.is_empty() {
            self.windows.resize_with(layout.windows().len(), || Running::new(layout));
        }
        answer.resize_with(layout.windows().len(), || layout.empty());
        // Later events may still go into the last tile.
        let closed = self.forgotten + self.tiles.len().saturating_sub(1);
        let mut needed = usize::MAX;
        for ((of, window), answer) in layout.windows().iter().zip(&mut self.windows).zip(answer) {
            // Tiles up to this one have ended by the window's tail.
            let passed = layout.tiles().tile_of(0, of.tail(as_of)).index;
            let left = self.tiles.iter().skip(window.first - self.forgotten);
            let first = window.first + left.take_while(|tile| tile.index <= passed).count();
            window.advance(layout, &self.tiles, self.forgotten, first.min(closed), closed);
            answer.clone_from(&window.held);
            for (summary, extremes) in answer.iter_mut().zip(&window.extremes) {
                summary.set_extremes(extremes.ends());
            }
            if let Some(last) = self.tiles.back().filter(|last| last.index > passed) {
                layout.merge(answer, &last.summaries);
            }
            needed = needed.min(window.first);
        }
        while self.forgotten < needed && self.tiles.len() > 1 {
            self.spare.extend(self.tiles.pop_front().map(|tile| tile.summaries));
            self.forgotten += 1;
        }
    }
}

impl Running {
    fn new(layout: &TileLayout) -> Self {
        let mut extremes = Vec::new();
        extremes.resize_with(layout.parts().len(), RunningExtremes::default);
        Self { first: 0, end: 0, held: layout.empty(), extremes }
    }

    fn restart(&mut self, at: usize) {
        (self.first, self.end) = (at, at);
        self.held.fill_with(super::Summary::default);
        for extremes in &mut self.extremes {
            extremes.least.clear();
            extremes.greatest.clear();
        }
    }

    /// Moves to the tiles from `first` to before `end`; `tiles` begins with the one of number `forgotten`.
    fn advance(
        &mut self,
        layout: &TileLayout,
        tiles: &VecDeque<RunningTile>,
        forgotten: usize,
        first: usize,
        end: usize,
    ) {
        if first >= self.end || first - self.first > end - first {
            // Less is to be added than to be taken away.
            self.restart(first);
        } else {
            for tile in tiles.range(self.first - forgotten..first - forgotten) {
                for ((held, gone), parts) in self.held.iter_mut().zip(&tile.summaries).zip(layout.parts()) {
                    held.subtract(gone, parts);
                }
            }
            self.first = first;
            for extremes in &mut self.extremes {
                extremes.forget_before(first);
            }
        }
        for (number, tile) in (self.end..end).zip(tiles.range(self.end - forgotten..end - forgotten)) {
            for (index, ((held, new), parts)) in
                self.held.iter_mut().zip(&tile.summaries).zip(layout.parts()).enumerate()
            {
                held.merge_sums(new, parts);
                if parts.any(Parts::EXTREMES) {
                    self.extremes[index].add(number, new.extremes());
                }
            }
        }
        self.end = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::EntityTiles;
    use crate::definition::{Aggregate, AggregateFunction, Column, ColumnType, ViewWindow, WindowLength, Windowed};
    use crate::time::Span;

    fn layout(step: i64, functions: &[AggregateFunction]) -> TileLayout {
        let aggregate = |function: &AggregateFunction| Aggregate {
            alias: "a".to_owned(),
            function: *function,
            argument: Some(0),
            output: ColumnType::Float64,
        };
        let window = |(text, own): (&str, i64)| ViewWindow {
            length: WindowLength::parse(text).expect("valid"),
            step: Span::from_secs(own),
        };
        TileLayout::new(&Windowed {
            step: Span::from_secs(step),
            windows: [("2 hours", step), ("30 hours", step), ("3 days", 5 * step)].map(window).to_vec(),
            arguments: vec![Column::nullable("argument_0", ColumnType::Float64)],
            aggregates: functions.iter().map(aggregate).collect(),
        })
        .expect("valid")
    }

    #[test]
    fn what_cannot_be_taken_away_does_not_run() {
        use AggregateFunction::{Count, CountDistinct, Greatest, Last, Mean, VarianceSample};
        assert!(RunningWindows::serves(&layout(60, &[Count, Mean, VarianceSample, Greatest])));
        assert!(!RunningWindows::serves(&layout(60, &[Count, CountDistinct])));
        assert!(!RunningWindows::serves(&layout(60, &[Last { nulls: true }])));
    }

    proptest! {
        #[test]
        fn running_windows_hold_what_tiles_do(
            entities in proptest::collection::vec(
                (proptest::collection::vec((0_i64..400_000, proptest::option::of(-50_i32..50)), 0..90),
                 proptest::collection::vec(0_i64..700_000, 0..20)),
                1..4),
            step in prop_oneof![Just(60_i64), Just(300), Just(420), Just(3_600)],
            odd in prop_oneof![Just(0.1), Just(1e300), Just(f64::NAN), Just(f64::NEG_INFINITY)],
        ) {
            use AggregateFunction::{Count, Greatest, Least, Sum, VarianceSample};
            let layout = layout(step, &[Count, Sum, VarianceSample, Least, Greatest]);
            let (mut running, mut answer) = (RunningWindows::default(), Vec::new());
            for (mut events, mut asked) in entities {
                events.sort_unstable();
                asked.sort_unstable();
                running.clear();
                let (mut tiles, mut next) = (EntityTiles::default(), 0);
                for second in asked {
                    let as_of = Timestamp::from_micros(second * 1_000_000);
                    while next < events.len() && events[next].0 <= second {
                        let at = Timestamp::from_micros(events[next].0 * 1_000_000);
                        let value = events[next].1.map(|tenths| if tenths == 7 { odd } else { f64::from(tenths) / 10.0 });
                        running.add(&layout, RowHeader::of_times(at, at), |_| value.map(Value::Float));
                        tiles.add(&layout, RowHeader::of_times(at, at), |_| value.map(Value::Float));
                        next += 1;
                    }
                    running.windows(&layout, as_of, &mut answer);
                    prop_assert_eq!(&answer, &tiles.windows(&layout, as_of));
                    prop_assert_eq!(running.newest(), tiles.newest());
                }
            }
        }
    }
}
