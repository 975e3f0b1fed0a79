//! Windows of any aggregates that move along with time: for one entity, asked at times that never go back. Pure.
//!
//! Distinct values, sketches and the like cannot be taken away again as sums can ([`super::RunningWindows`]), and put
//! together anew for each question they cost what the window holds. So a window is kept in two parts, as a queue is made
//! of two stacks. Behind the *split*, towards the past, stands what may leave: for the places that the tail comes by
//! there are summaries of everything from there up to the split, so that to leave is to go on to the next of them. After
//! the split everything is in one summary, to which tiles are added as they come. Where the tail has passed the split,
//! it is put at the newest tile again.
//!
//! A summary for each place up to the split would be too many: a month has 8,640 tiles of five minutes. So places are told
//! by blocks, as a time is by day, hour and minute: 8 tiles are a block, 8 of those a block of the next level, and so on.
//! On each level only the block that the tail is in is open, with a summary for each of the (at most 8) places in it; a
//! block is opened where the tail enters it, from its tiles:
//!
//! ```text
//!               tail                                     split                    newest tile
//! level 0          |--->|>|                                 |                          .
//! level 1                 |------------>|------->|--->|     |                          .
//! level 2                                             |---->|                          .
//! after the split                                           |------------------------->|.|
//! ```
//!
//! A question merges what the tail's place on each level holds, what is after the split, and the newest tile, which is still
//! being filled. What the levels above the lowest hold together is kept from question to question, so these are four
//! summaries in nearly all cases, and none at all where neither the tail has moved nor an event has come.
//!
//! **Cost.** An event is added to one tile. A tile is merged once when a newer one has come, and once on each level while it
//! is behind the split, however many questions there are; `n` tiles have `log8(n)` levels. A question costs a few merges,
//! each bounded by the size of a summary, and so nothing that grows with the events in the window. An event that comes
//! late is added to each summary that covers it, of one level at most 8.
//!
//! **Memory**, for each window: at most 8 summaries and one more a level, and three more; for 30 days of five-minute tiles
//! there are 5 levels, and so fewer than 48. A summary with every part over one argument takes at most some 280 KB (quantiles
//! 128 KB while values lie within 32 powers of two, a count-min sketch 32 KB, its candidates, 1,024 distinct and twice as
//! many last values; texts add their lengths). Beside this, shared by all windows, stand the tiles of the longest one:
//! each takes what its events' values do, and never more than such a summary.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Summaries, Summary, TileLayout, Value};
use crate::encoding::RowHeader;
use crate::time::Timestamp;

/// So many tiles are a block, and so many blocks are one of the next level, as a power of two. With fewer there are more
/// levels, each of which merges every tile; with more there are more summaries.
const BLOCK_BITS: u32 = 3;
const BLOCK: i64 = 1 << BLOCK_BITS;

/// The windows of one entity.
#[derive(Debug, Default)]
pub struct StackedWindows {
    /// The finest tiles that hold events of some window, by their index.
    tiles: BTreeMap<i64, Summaries>,
    windows: Vec<Stacked>,
    newest: Option<(Timestamp, Timestamp)>,
    /// Whether an event came since the last question.
    changed: bool,
    answer: Vec<Summaries>,
}

/// One window; its places are indices of tiles.
#[derive(Debug)]
struct Stacked {
    /// Its first tile, as of the last question.
    first: i64,
    /// The tiles from the first to before this one are in the levels, ...
    split: i64,
    /// ... and those from there to before this one in `after`; the rest have not been merged yet.
    end: i64,
    /// The lowest first; none while the first tile is the split.
    levels: Vec<Level>,
    /// What the levels below this one hold together with those above them is to be found anew.
    stale: usize,
    after: Summaries,
}

/// The blocks of one level that follow those of the level below, up to the end of the block that they are in.
#[derive(Debug)]
struct Level {
    /// The tile before which they end.
    end: i64,
    /// For each block that holds events, what it holds together with those after it: the last block first.
    suffixes: Vec<Suffix>,
    /// The first block's suffix together with the levels above; none where there is no such block, and in the lowest level.
    whole: Option<Summaries>,
}

#[derive(Debug)]
struct Suffix {
    block: i64,
    holds: Summaries,
}

impl StackedWindows {
    /// Begins with another entity.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds an event, in whatever order they come: when it happened, was known and was written, and the values of its
    /// arguments.
    pub fn add<'a>(&mut self, layout: &TileLayout, at: RowHeader, value_of: impl Fn(usize) -> Option<Value<'a>>) {
        self.newest = self.newest.max(Some(at.times()));
        let index = layout.tiles().tile_of(0, at.event_time).index;
        // No window will ever cover it, as they only move on.
        if !self.windows.is_empty() && self.windows.iter().all(|window| index < window.first) {
            return;
        }
        self.changed = true;
        let tile = self.tiles.entry(index).or_insert_with(|| layout.empty());
        layout.add(tile, at, &value_of);
        if self.windows.iter().any(|window| window.has_merged(index)) {
            let mut late = layout.empty();
            layout.add(&mut late, at, &value_of);
            for window in &mut self.windows {
                window.add_late(layout, index, &late);
            }
        }
    }

    /// The event time and available time of the newest event; `None` where there is none.
    pub fn newest(&self) -> Option<(Timestamp, Timestamp)> {
        self.newest
    }

    /// What the windows hold as of a time that is not before the last one asked for, nor before the event time of an event
    /// that was added.
    pub fn windows(&mut self, layout: &TileLayout, as_of: Timestamp) -> &[Summaries] {
        if self.windows.is_empty() {
            self.windows.resize_with(layout.windows().len(), || Stacked::new(layout));
            self.answer.resize_with(layout.windows().len(), || layout.empty());
        }
        let newest = self.tiles.last_key_value();
        let mut needed = i64::MAX;
        for ((of, window), answer) in layout.windows().iter().zip(&mut self.windows).zip(&mut self.answer) {
            // The tile that ends at the window's tail is the last that is not in it.
            let first = layout.tiles().tile_of(0, of.tail(as_of)).index.saturating_add(1);
            needed = needed.min(first);
            if !self.changed && first == window.first {
                continue;
            }
            // More events may come in the newest tile.
            let (closed, open) = match newest {
                Some((index, tile)) if *index >= first => (*index, Some(tile)),
                _ => (first, None),
            };
            window.advance(layout, &self.tiles, first, closed);
            window.answer(layout, open, answer);
        }
        self.changed = false;
        while let Some(entry) = self.tiles.first_entry()
            && *entry.key() < needed
        {
            entry.remove();
        }
        &self.answer
    }

    /// What was answered last.
    pub fn answer(&self) -> &[Summaries] {
        &self.answer
    }
}

impl Stacked {
    fn new(layout: &TileLayout) -> Self {
        let (first, split, end) = (i64::MIN, i64::MIN, i64::MIN);
        Self { first, split, end, levels: Vec::new(), stale: 0, after: layout.empty() }
    }

    /// Whether a tile was merged into some summary.
    fn has_merged(&self, index: i64) -> bool {
        self.first <= index && index < self.end
    }

    /// Adds what came in a tile after it was merged.
    fn add_late(&mut self, layout: &TileLayout, index: i64, late: &Summaries) {
        if !self.has_merged(index) {
            return;
        }
        if index >= self.split {
            layout.merge(&mut self.after, late);
            return;
        }
        let mut bits = 0;
        // The levels lie one after another.
        for (next, level) in (1..).zip(&mut self.levels) {
            if index < level.end {
                level.add(layout, index >> bits, late);
                self.stale = self.stale.max(next);
                return;
            }
            bits += BLOCK_BITS;
        }
    }

    /// Moves to the tiles from `first` to before `closed`.
    fn advance(&mut self, layout: &TileLayout, tiles: &BTreeMap<i64, Summaries>, first: i64, closed: i64) {
        self.first = first;
        if first > self.split {
            self.levels.clear();
            self.stale = 0;
            if first >= self.end {
                // All have left; often there is but one question in the time of a window.
                self.after.fill_with(Summary::default);
                (self.split, self.end) = (first, first);
            } else if tiles.range(self.split..first).next().is_none() {
                self.split = first;
            } else {
                self.split_at(closed);
            }
        }
        for (_, tile) in tiles.range(self.end..closed.max(self.end)) {
            layout.merge(&mut self.after, tile);
        }
        self.end = closed.max(self.end);
        self.open_blocks(layout, tiles);
    }

    /// Begins with another split, which comes after the first tile, and as many levels as there are to it.
    fn split_at(&mut self, split: i64) {
        self.after.fill_with(Summary::default);
        (self.split, self.end) = (split, split);
        let (mut levels, mut bits) = (1, 0);
        while ((split - 1) >> bits).saturating_sub(self.first >> bits) >= BLOCK {
            levels += 1;
            bits += BLOCK_BITS;
        }
        self.levels.resize_with(levels, Level::new);
    }

    /// Opens the blocks that the first tile is in and closes those before it.
    fn open_blocks(&mut self, layout: &TileLayout, tiles: &BTreeMap<i64, Summaries>) {
        let (mut start, mut bits, highest) = (self.first, 0, self.levels.len());
        for (next, level) in (1..).zip(&mut self.levels) {
            let mut end = self.split;
            if next < highest {
                // Up to the end of the block of the next level.
                let within = !(-1_i64 << (bits + BLOCK_BITS));
                end = end.min((self.first | within).saturating_add(1));
            }
            if level.end == end {
                if level.leave(start, bits) {
                    self.stale = self.stale.max(next);
                }
            } else {
                level.open(layout, tiles, start..end, bits);
                self.stale = self.stale.max(next);
            }
            start = end;
            bits += BLOCK_BITS;
        }
    }

    /// What the window holds, together with the tile that is still open.
    fn answer(&mut self, layout: &TileLayout, open: Option<&Summaries>, answer: &mut Summaries) {
        for number in (1..self.stale).rev() {
            let (below, above) = self.levels.split_at_mut(number + 1);
            below[number].join(layout, above.iter().find_map(|level| level.whole.as_ref()));
        }
        self.stale = 0;
        let mut levels = self.levels.iter();
        let lowest = levels.next().and_then(|level| level.suffixes.last()).map(|suffix| &suffix.holds);
        let above = levels.find_map(|level| level.whole.as_ref());
        let mut parts = [above, lowest, Some(&self.after), open].into_iter().flatten();
        if let Some(part) = parts.next() {
            answer.clone_from(part);
        }
        parts.for_each(|part| layout.merge(answer, part));
    }
}

impl Level {
    fn new() -> Self {
        // No level ends here: it is opened first of all.
        Self { end: i64::MIN, suffixes: Vec::new(), whole: None }
    }

    /// Makes the suffixes of other blocks, of so many bits, up to the end of the range of tiles.
    fn open(&mut self, layout: &TileLayout, tiles: &BTreeMap<i64, Summaries>, range: Range<i64>, bits: u32) {
        self.end = range.end;
        self.suffixes.clear();
        for (index, tile) in tiles.range(range).rev() {
            let block = index >> bits;
            if self.suffixes.last().is_none_or(|last| last.block != block) {
                let holds = self.suffixes.last().map_or_else(|| layout.empty(), |after| after.holds.clone());
                self.suffixes.push(Suffix { block, holds });
            }
            if let Some(suffix) = self.suffixes.last_mut() {
                layout.merge(&mut suffix.holds, tile);
            }
        }
    }

    /// Leaves the blocks that begin before a tile; whether there were any.
    fn leave(&mut self, start: i64, bits: u32) -> bool {
        let held = self.suffixes.len();
        while self.suffixes.last().is_some_and(|suffix| suffix.block << bits < start) {
            self.suffixes.pop();
        }
        self.suffixes.len() < held
    }

    /// Adds what came late in a block to all suffixes that cover it.
    fn add(&mut self, layout: &TileLayout, block: i64, late: &Summaries) {
        let place = self.suffixes.partition_point(|suffix| suffix.block > block);
        if self.suffixes.get(place).is_none_or(|suffix| suffix.block != block) {
            let after = place.checked_sub(1).map(|after| &self.suffixes[after]);
            let holds = after.map_or_else(|| layout.empty(), |after| after.holds.clone());
            self.suffixes.insert(place, Suffix { block, holds });
        }
        for suffix in &mut self.suffixes[place..] {
            layout.merge(&mut suffix.holds, late);
        }
    }

    /// Finds what the first suffix holds together with what the levels above do.
    fn join(&mut self, layout: &TileLayout, above: Option<&Summaries>) {
        self.whole = self.suffixes.last().map(|suffix| match above {
            None => suffix.holds.clone(),
            Some(above) => {
                let mut whole = above.clone();
                layout.merge(&mut whole, &suffix.holds);
                whole
            }
        });
    }
}

#[cfg(test)]
mod tests;
