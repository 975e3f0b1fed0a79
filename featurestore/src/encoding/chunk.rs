//! Chunks: the tiles of an entity as the online tiers hold them, a day of steps and hours or a month of days together,
//! so that a window of any length is read with a few point gets.
//!
//! An entity of a windowed view has several entries, whose keys begin with the entity's own:
//!
//! | key | value |
//! |---|---|
//! | entity, `00` | a packed row without columns: the times of the newest event |
//! | entity, `01`, chunk | tiles of the levels below the top: those of a day |
//! | entity, `02`, chunk | tiles of the top level: 32 days |
//!
//! Where the windows are short enough for their steps, a chunk holds the tiles of all levels over several days, and there
//! are none of the other kind.
//!
//! ```text
//! chunk: tag FF | number of summaries | their parts, 1 byte each | tiles in order: slot (2) | length (4) | summaries
//! ```
//!
//! Two chunks of one key merge to one that holds the events of both ([`merge_values`]); a packed row never begins with
//! the tag, since no event happens after the year 280,000.

use bytes::Bytes;

use crate::aggregate::{EntityTiles, Parts, Summaries, Summary, TileLayout};
use crate::time::{Tile, Timestamp};
use crate::{Error, Result};

/// The first byte of a chunk.
const TAG: u8 = 0xFF;

/// Tiles of the top level in a chunk of that level alone.
const TOP_TILES: i64 = 32;

/// About as many tiles of all levels are in one chunk: more would be read for nothing.
const JOINED_TILES: i64 = 512;

/// The bytes that an entity's key ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    /// 0: the newest event's times; 1: below the top level; 2: the top level.
    kind: u8,
    index: i64,
}

impl ChunkId {
    /// The entry of the newest event's times.
    pub const NEWEST: Self = Self { kind: 0, index: 0 };

    /// The entity's key, of the key of its newest event's times. Every change of an entity writes that one.
    pub fn entity_of_newest(key: &[u8]) -> &[u8] {
        key.strip_suffix(&[Self::NEWEST.kind]).unwrap_or(key)
    }

    /// Appends it to an entity's key.
    pub fn write(self, key: &mut Vec<u8>) {
        key.push(self.kind);
        if self.kind > 0 {
            key.extend_from_slice(&super::ordered(self.index));
        }
    }
}

/// How tiles lie in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkLayout {
    levels: Vec<LevelPlace>,
    header: Vec<u8>,
}

/// How the tiles of a level lie in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LevelPlace {
    kind: u8,
    /// Tiles in a chunk.
    tiles: i64,
    /// The slot of the first.
    first_slot: i64,
}

impl ChunkLayout {
    /// The layout for a view's tiles.
    pub fn new(layout: &TileLayout) -> Self {
        let lengths = layout.tiles().levels();
        let top = lengths[lengths.len() - 1].micros();
        // What one tile of the top level covers, in tiles of all levels.
        let per_top: i64 = lengths.iter().map(|length| top / length.micros()).sum();
        let tops = (JOINED_TILES / per_top).max(1);
        let longest = layout.windows().iter().map(|window| window.length().micros()).max().unwrap_or(0);
        let joined = lengths.len() == 1 || longest <= tops * top;
        let (mut levels, mut next) = (Vec::with_capacity(lengths.len()), 0);
        for length in lengths.iter().map(|length| length.micros()) {
            levels.push(if !joined && length == top {
                LevelPlace { kind: 2, tiles: TOP_TILES, first_slot: 0 }
            } else {
                let tiles = top / length * if joined { tops } else { 1 };
                LevelPlace { kind: 1, tiles, first_slot: next }
            });
            next += levels[levels.len() - 1].tiles;
        }
        let mut header = vec![TAG, u8::try_from(layout.parts().len()).unwrap_or(u8::MAX)];
        header.extend(layout.parts().map(Parts::bits));
        Self { levels, header }
    }

    /// Where a tile lies.
    pub fn place(&self, tile: Tile) -> (ChunkId, u16) {
        let LevelPlace { kind, tiles, first_slot } = self.levels[tile.level];
        let slot = first_slot + tile.index.rem_euclid(tiles);
        (ChunkId { kind, index: tile.index.div_euclid(tiles) }, u16::try_from(slot).unwrap_or(u16::MAX))
    }

    /// An entity's tiles as chunks.
    pub fn encode(&self, layout: &TileLayout, tiles: &EntityTiles) -> Vec<(ChunkId, Vec<u8>)> {
        let mut placed: Vec<((ChunkId, u16), &Summaries)> =
            tiles.iter().map(|(tile, summaries)| (self.place(tile), summaries)).collect();
        placed.sort_unstable_by_key(|(place, _)| *place);
        let mut chunks: Vec<(ChunkId, Vec<u8>)> = Vec::new();
        let mut state = Vec::new();
        for ((chunk, slot), summaries) in placed {
            if chunks.last().is_none_or(|(last, _)| *last != chunk) {
                chunks.push((chunk, self.header.clone()));
            }
            state.clear();
            layout.parts().zip(summaries).for_each(|(parts, summary)| summary.encode(parts, &mut state));
            if let Some((_, bytes)) = chunks.last_mut() {
                put_tile(bytes, slot, &state);
            }
        }
        chunks
    }
}

fn put_tile(bytes: &mut Vec<u8>, slot: u16, state: &[u8]) {
    bytes.extend_from_slice(&slot.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(state.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(state);
}

fn damaged() -> Error {
    Error::damaged("a stored chunk of tiles is cut off")
        .remedy("delete the disk tier's folder; it is rebuilt from object storage")
}

/// The tiles of a chunk, read one after another.
struct ReadTiles<'a> {
    parts: Vec<Parts>,
    rest: &'a [u8],
}

impl<'a> ReadTiles<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        let (&[tag, count], rest) = bytes.split_first_chunk::<2>().ok_or_else(damaged)?;
        let (parts, rest) = rest.split_at_checked(usize::from(count)).ok_or_else(damaged)?;
        if tag != TAG {
            return Err(damaged());
        }
        Ok(Self { parts: parts.iter().copied().map(Parts::of_bits).collect(), rest })
    }

    /// The next tile's slot and state.
    fn next(&mut self) -> Result<Option<(u16, &'a [u8])>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (head, rest) = self.rest.split_first_chunk::<6>().ok_or_else(damaged)?;
        let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (state, rest) = rest.split_at_checked(length).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(Some((u16::from_be_bytes([head[0], head[1]]), state)))
    }

    fn summaries(&self, state: &[u8]) -> Result<Summaries> {
        let mut summaries = Summaries::with_capacity(self.parts.len());
        self.read_into(state, &mut summaries)?;
        Ok(summaries)
    }

    fn read_into(&self, mut state: &[u8], summaries: &mut Summaries) -> Result<()> {
        summaries.clear();
        for parts in &self.parts {
            summaries.push(Summary::decode(*parts, &mut state)?);
        }
        Ok(())
    }
}

/// Gives each tile of a chunk that `wanted` names (by a mask of windows) to `each`, with its mask.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] when the bytes are not a chunk.
pub fn read_chunk(bytes: &[u8], wanted: &[(u16, u64)], mut each: impl FnMut(u64, &Summaries)) -> Result<()> {
    let mut tiles = ReadTiles::new(bytes)?;
    let mut summaries = Summaries::new();
    let mut wanted = wanted.iter().peekable();
    while let Some((slot, state)) = tiles.next()? {
        while wanted.next_if(|(of, _)| *of < slot).is_some() {}
        match wanted.peek() {
            None => break,
            Some((of, mask)) if *of == slot => {
                tiles.read_into(state, &mut summaries)?;
                each(*mask, &summaries);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether a value is a chunk of tiles; else it is a packed row.
pub fn is_chunk(value: &[u8]) -> bool {
    value.first() == Some(&TAG)
}

/// What a key holds after both values were written to it: of two packed rows the greater (rule T5), of two chunks one
/// with the events of both. In any order, and in any grouping, the same bytes.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] when a chunk is not one.
pub fn merge_values(held: &[u8], given: &[u8]) -> Result<Bytes> {
    match (held.first(), given.first()) {
        (Some(&TAG), Some(&TAG)) => merge_chunks(held, given).map(Bytes::from),
        _ => Ok(Bytes::copy_from_slice(held.max(given))),
    }
}

fn merge_chunks(held: &[u8], given: &[u8]) -> Result<Vec<u8>> {
    let (mut ours, mut theirs) = (ReadTiles::new(held)?, ReadTiles::new(given)?);
    if ours.parts != theirs.parts {
        return Err(damaged());
    }
    let mut merged = Vec::with_capacity(held.len() + given.len());
    merged.extend_from_slice(&held[..ours.parts.len() + 2]);
    let (mut our, mut their) = (ours.next()?, theirs.next()?);
    loop {
        match (our, their) {
            (None, None) => return Ok(merged),
            (Some((slot, state)), Some((other, more))) if slot == other => {
                let (mut summaries, added) = (ours.summaries(state)?, theirs.summaries(more)?);
                let mut bytes = Vec::with_capacity(state.len() + 8);
                for ((summary, other), parts) in summaries.iter_mut().zip(&added).zip(&ours.parts) {
                    summary.merge(other, *parts);
                    summary.encode(*parts, &mut bytes);
                }
                put_tile(&mut merged, slot, &bytes);
                (our, their) = (ours.next()?, theirs.next()?);
            }
            (Some((slot, state)), other) if other.is_none_or(|(other, _)| slot < other) => {
                put_tile(&mut merged, slot, state);
                our = ours.next()?;
            }
            (_, Some((slot, state))) => {
                put_tile(&mut merged, slot, state);
                their = theirs.next()?;
            }
            (Some(_), None) => return Err(damaged()),
        }
    }
}

/// Which chunks of an entity the windows of a view read as of a time, and which of their tiles for which windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkReads {
    /// Chunks in order, each with its slots in order and the mask of windows that each is in.
    pub chunks: Vec<(ChunkId, Vec<(u16, u64)>)>,
}

impl ChunkReads {
    /// The reads as of a time.
    pub fn new(layout: &TileLayout, chunks: &ChunkLayout, as_of: Timestamp) -> Self {
        let mut slots: std::collections::BTreeMap<(ChunkId, u16), u64> = std::collections::BTreeMap::new();
        for (index, window) in layout.windows().iter().enumerate() {
            for range in layout.tiles().ranges(window.tail(as_of), as_of) {
                let level = range.start().level;
                for tile in range.start().index..=range.end().index {
                    *slots.entry(chunks.place(Tile { level, index: tile })).or_default() |= 1 << index;
                }
            }
        }
        let mut reads: Vec<(ChunkId, Vec<(u16, u64)>)> = Vec::new();
        for ((chunk, slot), mask) in slots {
            match reads.last_mut() {
                Some((last, wanted)) if *last == chunk => wanted.push((slot, mask)),
                _ => reads.push((chunk, vec![(slot, mask)])),
            }
        }
        Self { chunks: reads }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::Value;
    use crate::definition::{Aggregate, AggregateFunction, Column, ColumnType, ViewWindow, WindowLength, Windowed};
    use crate::time::Span;

    fn layout(step: i64, windows: [&str; 3]) -> TileLayout {
        let aggregate =
            |function, argument| Aggregate { alias: "a".to_owned(), function, argument, output: ColumnType::Float64 };
        let length = |text| WindowLength::parse(text).expect("valid");
        let step = Span::from_secs(step);
        TileLayout::new(&Windowed {
            step,
            windows: windows.map(|text| ViewWindow { length: length(text), step }).to_vec(),
            arguments: vec![Column::nullable("argument_0", ColumnType::Float64)],
            aggregates: vec![
                aggregate(AggregateFunction::Count, None),
                aggregate(AggregateFunction::VarianceSample, Some(0)),
                aggregate(AggregateFunction::Least, Some(0)),
            ],
        })
        .expect("valid")
    }

    proptest! {
        #[test]
        fn windows_read_from_merged_chunks_are_those_of_the_tiles(
            parts in proptest::collection::vec(
                proptest::collection::vec((0_i64..6_000_000, proptest::option::of(-50_i32..50)), 0..12), 1..6),
            step in prop_oneof![Just(60_i64), Just(300), Just(420), Just(3_600), Just(86_400)],
            windows in prop_oneof![Just(["2 hours", "3 days", "40 days"]), Just(["2 hours", "6 hours", "1 day"])],
            later in 0_i64..3_000_000,
        ) {
            let layout = layout(if step == 86_400 { 3_600 } else { step }, windows);
            let chunks = ChunkLayout::new(&layout);
            let (mut whole, mut stored) = (EntityTiles::default(), std::collections::BTreeMap::<ChunkId, Bytes>::new());
            for events in &parts {
                let mut part = EntityTiles::default();
                for (second, tenths) in events {
                    let (at, value) = (Timestamp::from_micros(second * 1_000_000), tenths.map(|t| Value::Float(f64::from(t) / 10.0)));
                    part.add(&layout, at, at, &[value]);
                    whole.add(&layout, at, at, &[value]);
                }
                for (id, bytes) in chunks.encode(&layout, &part) {
                    let merged = match stored.get(&id) {
                        Some(held) => merge_values(held, &bytes).expect("chunks"),
                        None => Bytes::from(bytes),
                    };
                    stored.insert(id, merged);
                }
            }
            let expected: std::collections::BTreeMap<ChunkId, Bytes> =
                chunks.encode(&layout, &whole).into_iter().map(|(id, bytes)| (id, Bytes::from(bytes))).collect();
            prop_assert_eq!(&stored, &expected);
            let as_of = Timestamp::from_micros((6_000_000 + later) * 1_000_000);
            let reads = ChunkReads::new(&layout, &chunks, as_of);
            prop_assert!(reads.chunks.len() <= if step == 420 { 18 } else { 8 }, "{} chunks", reads.chunks.len());
            let mut windows = vec![layout.empty(); layout.windows().len()];
            for (id, wanted) in &reads.chunks {
                let Some(bytes) = stored.get(id) else { continue };
                read_chunk(bytes, wanted, |mask, summaries| {
                    for (index, window) in windows.iter_mut().enumerate() {
                        if mask >> index & 1 == 1 {
                            layout.merge(window, summaries);
                        }
                    }
                }).expect("own bytes");
            }
            prop_assert_eq!(windows, whole.windows(&layout, as_of));
        }
    }

    #[test]
    fn of_two_rows_the_greater_holds_and_damage_is_named() {
        assert_eq!(merge_values(b"a", b"b").expect("rows"), b"b".as_slice());
        assert_eq!(merge_values(b"b", b"a").expect("rows"), b"b".as_slice());
        let chunk = [TAG, 1, 0, 0, 5, 0, 0, 0, 1, 7];
        assert_eq!(merge_values(&chunk, &chunk).expect("chunks")[9], 14);
        assert!(merge_values(&chunk, &chunk[..9]).is_err() && merge_values(&[TAG, 9], &chunk).is_err());
    }
}
