//! Windows of time (rule T4), and the tiles that they are put together from. Pure.
//!
//! A window of length `w` with step `s` as of `T` covers the event times in `(floor_s(T - w), T]`: its tail sits on a
//! boundary of the step, its head is exact. Time is cut into tiles on each of a few levels (the step, an hour, a day);
//! a tile is open on the left and closed on the right as windows are, `(k L, (k + 1) L]` for a level of length `L`, and
//! every level divides the next. So a window is some whole tiles, the coarsest that fit, and a head:
//!
//! ```text
//!            tail                                                        T
//! steps        |--|--|                                        |--|--|--|  .
//! hours              |-----------|---------|----------|-------|           .
//!                                                                      |--| head
//! ```

use super::{Span, Timestamp};
use crate::{Error, Result};

/// An hour and a day: levels above the step, where they fit.
const COARSER: [Span; 2] = [Span::from_secs(3_600), Span::from_secs(86_400)];

/// The greatest multiple of `step` (counted from 1970 in UTC) that is not after `time`.
pub fn floor(time: Timestamp, step: Span) -> Timestamp {
    let below = time.micros().rem_euclid(step.micros().max(1));
    Timestamp::from_micros(time.micros().saturating_sub(below))
}

/// A window's length and the step that its tail keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    length: Span,
    step: Span,
}

impl Window {
    /// A window.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when the length or the step is not positive, or the step is longer than the window.
    pub fn new(length: Span, step: Span) -> Result<Self> {
        if step.micros() <= 0 || length < step {
            return Err(Error::invalid("a window is at least one step long, and a step is positive")
                .with("window", length)
                .with("step", step));
        }
        Ok(Self { length, step })
    }

    /// Its length; it covers up to one step more.
    pub fn length(self) -> Span {
        self.length
    }

    /// The step of its tail.
    pub fn step(self) -> Span {
        self.step
    }

    /// Where it begins as of a time: events after this one and up to `as_of` are in it.
    pub fn tail(self, as_of: Timestamp) -> Timestamp {
        floor(Timestamp::from_micros(as_of.micros().saturating_sub(self.length.micros())), self.step)
    }

    /// Whether an event is in the window as of a time.
    pub fn contains(self, as_of: Timestamp, event: Timestamp) -> bool {
        self.tail(as_of) < event && event <= as_of
    }
}

/// A tile: the `index`-th of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// The level, 0 for the step's.
    pub level: usize,
    /// Which one: it covers `(index * L, (index + 1) * L]`.
    pub index: i64,
}

/// The levels of tiles of one step: the step, then an hour and a day where they are longer and multiples of the level
/// before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    levels: Vec<Span>,
}

/// What a window is put together from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    /// Whole tiles, in order of time.
    pub tiles: Vec<Tile>,
    /// Events after this time, up to the window's end, stand in no whole tile.
    pub head_after: Timestamp,
}

impl Tiles {
    /// The levels for windows of this step.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when it is not positive.
    pub fn of_step(step: Span) -> Result<Self> {
        if step.micros() <= 0 {
            return Err(Error::invalid("a step is positive").with("step", step));
        }
        let mut levels = vec![step];
        for coarser in COARSER {
            let last = levels[levels.len() - 1];
            if coarser > last && coarser.micros() % last.micros() == 0 {
                levels.push(coarser);
            }
        }
        Ok(Self { levels })
    }

    /// The lengths of the levels, the step first.
    pub fn levels(&self) -> &[Span] {
        &self.levels
    }

    /// The tile of a level that an event at this time is in.
    pub fn tile_of(&self, level: usize, event: Timestamp) -> Tile {
        let length = self.levels[level].micros();
        // The right end belongs to the tile.
        Tile { level, index: event.micros().saturating_sub(1).div_euclid(length) }
    }

    /// The time after which a tile begins.
    pub fn begin(&self, tile: Tile) -> Timestamp {
        Timestamp::from_micros(tile.index.saturating_mul(self.levels[tile.level].micros()))
    }

    /// The last time of a tile.
    pub fn end(&self, tile: Tile) -> Timestamp {
        Timestamp::from_micros(tile.index.saturating_add(1).saturating_mul(self.levels[tile.level].micros()))
    }

    /// As [`Self::cover`], with neighbouring tiles of a level joined to ranges, and with the tile that the head is in.
    pub fn ranges(&self, tail: Timestamp, as_of: Timestamp) -> Vec<std::ops::RangeInclusive<Tile>> {
        let Cover { tiles, head_after } = self.cover(tail, as_of);
        let head = (head_after < as_of).then(|| self.tile_of(0, as_of));
        let mut ranges: Vec<std::ops::RangeInclusive<Tile>> = Vec::new();
        for tile in tiles.into_iter().chain(head) {
            match ranges.last_mut() {
                Some(range) if range.end().level == tile.level && range.end().index + 1 == tile.index => {
                    *range = *range.start()..=tile;
                }
                _ => ranges.push(tile..=tile),
            }
        }
        ranges
    }

    /// Covers the event times after `tail`, which is a multiple of the step, up to and with `as_of`.
    pub fn cover(&self, tail: Timestamp, as_of: Timestamp) -> Cover {
        let whole_until = floor(as_of, self.levels[0]);
        let (mut tiles, mut at) = (Vec::new(), tail);
        while at < whole_until {
            let fits = |length: &Span| {
                at.micros() % length.micros() == 0
                    && at.micros().saturating_add(length.micros()) <= whole_until.micros()
            };
            let Some(level) = self.levels.iter().rposition(fits) else { break };
            let tile = Tile { level, index: at.micros().div_euclid(self.levels[level].micros()) };
            at = self.end(tile);
            tiles.push(tile);
        }
        Cover { tiles, head_after: at }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn steps() -> impl Strategy<Value = Span> {
        prop_oneof![
            (1_i64..4_000).prop_map(Span::from_secs),
            Just(Span::from_secs(60)),
            Just(Span::from_secs(300)),
            Just(Span::from_secs(3_600)),
            Just(Span::from_secs(86_400)),
            (1_i64..1_000_000).prop_map(Span::from_micros),
        ]
    }

    #[test]
    fn the_tail_sits_on_a_step_and_both_ends_are_as_rule_t4_says() {
        let minute = 60_000_000;
        let window = Window::new(Span::from_secs(600), Span::from_secs(300)).expect("positive");
        let now = at(17 * minute + 5);
        assert_eq!(window.tail(now), at(5 * minute));
        assert!(!window.contains(now, at(5 * minute)) && window.contains(now, at(5 * minute + 1)));
        assert!(window.contains(now, now) && !window.contains(now, at(now.micros() + 1)));
        // As of a boundary the tail is exactly the window's length away.
        assert_eq!(window.tail(at(20 * minute)), at(10 * minute));
        // Before 1970 the same rule holds.
        assert_eq!(window.tail(at(-1)), at(-15 * minute));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        let seconds = Span::from_secs;
        assert!(Window::new(seconds(10), seconds(0)).is_err());
        assert!(Window::new(seconds(10), seconds(11)).is_err());
        assert!(Window::new(seconds(10), seconds(10)).is_ok());
        assert!(Tiles::of_step(Span::ZERO).is_err());
    }

    #[test]
    fn a_month_of_five_minute_steps_is_a_few_dozen_tiles() {
        let step = Span::from_secs(300);
        let tiles = Tiles::of_step(step).expect("positive");
        let window = Window::new(Span::from_secs(30 * 86_400), step).expect("positive");
        for minute in 0..3_000 {
            let now = at(1_386_000_000_000_000 + minute * 60_000_000);
            let cover = tiles.cover(window.tail(now), now);
            assert!(cover.tiles.len() <= 2 * (11 + 23) + 30, "{}", cover.tiles.len());
        }
    }

    proptest! {
        #[test]
        fn an_event_in_the_window_is_in_one_tile_or_the_head_and_another_is_in_none(
            step in steps(),
            times in 1_i64..2_000,
            now in -4_000_000_000_000_i64..4_000_000_000_000,
            ago in -1_000_000_i64..9_000_000_000_000,
        ) {
            let window = Window::new(Span::from_micros(step.micros() * times), step).expect("positive");
            let tiles = Tiles::of_step(step).expect("positive");
            let (now, event) = (at(now), at(now - ago));
            let cover = tiles.cover(window.tail(now), now);
            let holding = cover.tiles.iter().filter(|tile| tiles.begin(**tile) < event && event <= tiles.end(**tile));
            let in_head = cover.head_after < event && event <= now;
            prop_assert_eq!(holding.count() + usize::from(in_head), usize::from(window.contains(now, event)));
            prop_assert!(now.since(cover.head_after) < step);
        }

        #[test]
        fn an_event_is_in_the_tile_that_is_said(step in steps(), event in any::<i32>(), level in 0_usize..3) {
            let tiles = Tiles::of_step(step).expect("positive");
            let level = level.min(tiles.levels().len() - 1);
            let event = at(i64::from(event) * 1_000);
            let tile = tiles.tile_of(level, event);
            prop_assert!(tiles.begin(tile) < event && event <= tiles.end(tile));
            // A coarser tile holds the whole of the finer one.
            let finer = tiles.tile_of(0, event);
            prop_assert!(tiles.begin(tile) <= tiles.begin(finer) && tiles.end(finer) <= tiles.end(tile));
        }
    }
}
