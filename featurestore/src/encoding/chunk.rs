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
//! chunk: tag FF | number of summaries | their parts, 2 bytes each | number of tiles (2)
//!        | for each tile, in order: slot (2), where its summaries end (4) | the summaries of all tiles
//! ```
//!
//! The directory lets a reader go to the tiles that it wants, and read those without making summaries of them.
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

    /// The chunk that a key's end names; of a key that ends so by chance too.
    pub fn read(key: &[u8]) -> Option<Self> {
        let (&kind, index) = key.last_chunk::<9>()?.split_first()?;
        let index = super::from_ordered(index.try_into().ok()?);
        (kind > 0).then_some(Self { kind, index })
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
    /// The parts of each summary.
    parts: Vec<[u8; 2]>,
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
        Self { levels, parts: layout.parts().map(Parts::to_bytes).collect() }
    }

    /// Where a tile lies.
    pub fn place(&self, tile: Tile) -> (ChunkId, u16) {
        let LevelPlace { kind, tiles, first_slot } = self.levels[tile.level];
        let slot = first_slot + tile.index.rem_euclid(tiles);
        (ChunkId { kind, index: tile.index.div_euclid(tiles) }, u16::try_from(slot).unwrap_or(u16::MAX))
    }

    /// The end of a chunk's last tile.
    pub fn end(&self, layout: &TileLayout, id: ChunkId) -> Option<Timestamp> {
        let (level, place) = self.levels.iter().enumerate().find(|(_, place)| place.kind == id.kind)?;
        let index = id.index.checked_add(1)?.checked_mul(place.tiles)?.checked_sub(1)?;
        Some(layout.tiles().end(Tile { level, index }))
    }

    /// An entity's tiles as chunks.
    pub fn encode(&self, layout: &TileLayout, tiles: &EntityTiles) -> Vec<(ChunkId, Vec<u8>)> {
        let mut placed: Vec<((ChunkId, u16), &Summaries)> =
            tiles.iter().map(|(tile, summaries)| (self.place(tile), summaries)).collect();
        placed.sort_unstable_by_key(|(place, _)| *place);
        let chunks = placed.chunk_by(|((one, _), _), ((other, _), _)| one == other);
        chunks
            .map(|tiles| {
                let mut chunk = ChunkBuilder::new(&self.parts);
                for ((_, slot), summaries) in tiles {
                    chunk.put(*slot, |out| {
                        layout.parts().zip(*summaries).for_each(|(parts, summary)| summary.encode(parts, out));
                    });
                }
                (tiles[0].0.0, chunk.finish())
            })
            .collect()
    }
}

/// Bytes of a directory's entry.
const ENTRY_BYTES: usize = 6;

/// Puts a chunk together, tile by tile in the order of their slots.
struct ChunkBuilder<'a> {
    parts: &'a [[u8; 2]],
    directory: Vec<u8>,
    states: Vec<u8>,
}

impl<'a> ChunkBuilder<'a> {
    fn new(parts: &'a [[u8; 2]]) -> Self {
        Self { parts, directory: Vec::new(), states: Vec::new() }
    }

    fn put(&mut self, slot: u16, state: impl FnOnce(&mut Vec<u8>)) {
        state(&mut self.states);
        self.directory.extend_from_slice(&slot.to_be_bytes());
        self.directory.extend_from_slice(&u32::try_from(self.states.len()).unwrap_or(u32::MAX).to_be_bytes());
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * self.parts.len() + self.directory.len() + self.states.len() + 4);
        bytes.extend_from_slice(&[TAG, u8::try_from(self.parts.len()).unwrap_or(u8::MAX)]);
        bytes.extend_from_slice(self.parts.as_flattened());
        let tiles = self.directory.len() / ENTRY_BYTES;
        bytes.extend_from_slice(&u16::try_from(tiles).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(&self.directory);
        bytes.extend_from_slice(&self.states);
        bytes
    }
}

fn damaged() -> Error {
    Error::damaged("a stored chunk of tiles is cut off")
        .remedy("delete the disk tier's folder; it is rebuilt from object storage")
}

/// A chunk as it lies.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    parts: &'a [[u8; 2]],
    directory: &'a [[u8; ENTRY_BYTES]],
    states: &'a [u8],
}

impl<'a> Chunk<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        let (&[tag, count], rest) = bytes.split_first_chunk::<2>().ok_or_else(damaged)?;
        let (parts, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(damaged)?;
        let (tiles, rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
        let entries = usize::from(u16::from_be_bytes(*tiles)) * ENTRY_BYTES;
        let (directory, states) = rest.split_at_checked(entries).ok_or_else(damaged)?;
        let chunk = Self { parts: parts.as_chunks().0, directory: directory.as_chunks().0, states };
        let end = chunk.directory.last().copied().map_or(0, end_of);
        if tag != TAG || end != states.len() {
            return Err(damaged());
        }
        Ok(chunk)
    }

    fn slot(&self, index: usize) -> Option<u16> {
        self.directory.get(index).copied().map(slot_of)
    }

    fn state(&self, index: usize) -> Result<&'a [u8]> {
        let start = index.checked_sub(1).map_or(0, |before| end_of(self.directory[before]));
        self.states.get(start..end_of(self.directory[index])).ok_or_else(damaged)
    }
}

fn slot_of(entry: [u8; ENTRY_BYTES]) -> u16 {
    u16::from_be_bytes([entry[0], entry[1]])
}

fn end_of(entry: [u8; ENTRY_BYTES]) -> usize {
    u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]) as usize
}

/// Adds the tiles of a chunk that `wanted` names to the totals that it names beside them.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] when the bytes are not a chunk.
pub fn add_chunk(bytes: &[u8], wanted: &[(u16, usize)], totals: &mut [Summaries]) -> Result<()> {
    let chunk = Chunk::new(bytes)?;
    let Some((first, _)) = wanted.first() else { return Ok(()) };
    let mut index = chunk.directory.partition_point(|entry| slot_of(*entry) < *first);
    for (slot, total) in wanted {
        // Where few tiles hold events and many are wanted, and the other way round: both runs are gone along once.
        while chunk.slot(index).is_some_and(|held| held < *slot) {
            index += 1;
        }
        match chunk.slot(index) {
            None => break,
            Some(held) if held == *slot => {
                let mut state = chunk.state(index)?;
                for (summary, parts) in totals[*total].iter_mut().zip(chunk.parts) {
                    summary.merge_encoded(Parts::from_bytes(*parts), &mut state)?;
                }
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
    let (ours, theirs) = (Chunk::new(held)?, Chunk::new(given)?);
    if ours.parts != theirs.parts {
        return Err(damaged());
    }
    let mut merged = ChunkBuilder::new(ours.parts);
    let (mut our, mut their) = (0, 0);
    loop {
        let (slot, both) = match (ours.slot(our), theirs.slot(their)) {
            (None, None) => return Ok(merged.finish()),
            (Some(slot), Some(other)) => (slot.min(other), slot == other),
            (slot, other) => (slot.or(other).unwrap_or_default(), false),
        };
        if both {
            let (mut state, mut more) = (ours.state(our)?, theirs.state(their)?);
            let mut summaries = Summaries::with_capacity(ours.parts.len());
            for parts in ours.parts.iter().copied().map(Parts::from_bytes) {
                let mut summary = Summary::decode(parts, &mut state)?;
                summary.merge_encoded(parts, &mut more)?;
                summaries.push(summary);
            }
            merged.put(slot, |out| {
                summaries
                    .iter()
                    .zip(ours.parts)
                    .for_each(|(summary, parts)| summary.encode(Parts::from_bytes(*parts), out));
            });
            (our, their) = (our + 1, their + 1);
        } else if ours.slot(our) == Some(slot) {
            let state = ours.state(our)?;
            merged.put(slot, |out| out.extend_from_slice(state));
            our += 1;
        } else {
            let state = theirs.state(their)?;
            merged.put(slot, |out| out.extend_from_slice(state));
            their += 1;
        }
    }
}

/// A chunk, and its slots in order with the total that each is added to.
pub type ChunkRead = (ChunkId, Vec<(u16, usize)>);

/// Which chunks of an entity the windows of a view read as of a time, and which of their tiles for which windows.
///
/// Tiles that the same windows cover are added to one total: where windows overlap, as those of one view do, each tile
/// is added once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkReads {
    /// Chunks in order, each with what is read of it.
    pub chunks: Vec<ChunkRead>,
    /// For each total the windows (bits) that it is part of.
    pub totals: Vec<u64>,
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
        let (mut reads, mut totals) = (Vec::<ChunkRead>::new(), Vec::new());
        for ((chunk, slot), windows) in slots {
            let total = totals.iter().position(|known| *known == windows).unwrap_or_else(|| {
                totals.push(windows);
                totals.len() - 1
            });
            match reads.last_mut() {
                Some((last, wanted)) if *last == chunk => wanted.push((slot, total)),
                _ => reads.push((chunk, vec![(slot, total)])),
            }
        }
        Self { chunks: reads, totals }
    }

    /// The windows that the totals add up to.
    pub fn windows(&self, layout: &TileLayout, totals: &[Summaries]) -> Vec<Summaries> {
        let mut windows = vec![layout.empty(); layout.windows().len()];
        for (total, of) in totals.iter().zip(&self.totals) {
            for (_, window) in windows.iter_mut().enumerate().filter(|(index, _)| of >> index & 1 == 1) {
                layout.merge(window, total);
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::Value;
    use crate::definition::{Aggregate, AggregateFunction, Column, ColumnType, ViewWindow, WindowLength, Windowed};
    use crate::encoding::{RowHeader, WriteOrder};
    use crate::time::Span;

    /// An event that was known when it happened, in this second, and was brought by the push of a position.
    fn at(second: i64, position: i64) -> RowHeader {
        let at = Timestamp::from_micros(second * 1_000_000);
        RowHeader { written: WriteOrder { position, within: 0 }, ..RowHeader::of_times(at, at) }
    }

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
                aggregate(AggregateFunction::First { nulls: false }, Some(0)),
                aggregate(AggregateFunction::LastValues { most: 3, nulls: true }, Some(0)),
                aggregate(AggregateFunction::AboutDistinct, Some(0)),
                aggregate(AggregateFunction::AboutQuantile { millionths: 500_000 }, Some(0)),
            ],
        })
        .expect("valid")
    }

    proptest! {
        #[test]
        fn windows_read_from_merged_chunks_are_those_of_the_tiles(
            parts in proptest::collection::vec(
                proptest::collection::vec(
                    (prop_oneof![0_i64..6_000_000, Just(3_000_000_i64)], proptest::option::of(-50_i32..50), 0_i64..3),
                    0..12,
                ),
                1..6,
            ),
            step in prop_oneof![Just(60_i64), Just(300), Just(420), Just(3_600), Just(86_400)],
            windows in prop_oneof![Just(["2 hours", "3 days", "40 days"]), Just(["2 hours", "6 hours", "1 day"])],
            later in 0_i64..3_000_000,
        ) {
            let layout = layout(if step == 86_400 { 3_600 } else { step }, windows);
            let chunks = ChunkLayout::new(&layout);
            let (mut whole, mut stored) = (EntityTiles::default(), std::collections::BTreeMap::<ChunkId, Bytes>::new());
            for events in &parts {
                let mut part = EntityTiles::default();
                for (second, tenths, position) in events {
                    let value = tenths.map(|t| Value::Float(f64::from(t) / 10.0));
                    part.add(&layout, at(*second, *position), |_| value);
                    whole.add(&layout, at(*second, *position), |_| value);
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
            let mut totals = vec![layout.empty(); reads.totals.len()];
            for (id, wanted) in &reads.chunks {
                let Some(bytes) = stored.get(id) else { continue };
                add_chunk(bytes, wanted, &mut totals).expect("own bytes");
            }
            prop_assert_eq!(reads.windows(&layout, &totals), whole.windows(&layout, as_of));
        }
    }

    proptest! {
        #[test]
        fn damaged_chunks_are_named_or_read_and_never_panic(
            events in proptest::collection::vec((0_i64..6_000_000, proptest::option::of(-50_i32..50)), 1..12),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let layout = layout(60, ["2 hours", "3 days", "40 days"]);
            let chunks = ChunkLayout::new(&layout);
            let mut tiles = EntityTiles::default();
            for (second, tenths) in events {
                let value = tenths.map(|t| Value::Float(f64::from(t)));
                tiles.add(&layout, at(second, 1), |_| value);
            }
            let reads = ChunkReads::new(&layout, &chunks, Timestamp::from_micros(6_000_000_000_000));
            for (id, whole) in chunks.encode(&layout, &tiles) {
                let mut bytes = whole.clone();
                for (place, byte) in &changes {
                    *place.get_mut(&mut bytes) = *byte;
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(whole.len()));
                }
                let merged = merge_values(&whole, &bytes);
                let mut totals = vec![layout.empty(); reads.totals.len()];
                for (_, wanted) in reads.chunks.iter().filter(|(read, _)| *read == id) {
                    // Either is an answer; what is read of a damaged chunk goes on to the windows.
                    let read = add_chunk(&bytes, wanted, &mut totals);
                    prop_assert!(read.is_ok() || read.is_err_and(|error| error.kind() == crate::ErrorKind::Damaged));
                }
                reads.windows(&layout, &totals);
                prop_assert!(merged.is_ok() || merged.is_err_and(|error| error.kind() == crate::ErrorKind::Damaged));
            }
        }
    }

    #[test]
    fn of_two_rows_the_greater_holds_and_damage_is_named() {
        assert_eq!(merge_values(b"a", b"b").expect("rows"), b"b".as_slice());
        assert_eq!(merge_values(b"b", b"a").expect("rows"), b"b".as_slice());
        let chunk = [TAG, 1, 0, 0, 0, 1, 0, 5, 0, 0, 0, 1, 7];
        assert_eq!(merge_values(&chunk, &chunk).expect("chunks")[12], 14);
        assert!(merge_values(&chunk, &chunk[..12]).is_err() && merge_values(&[TAG, 9], &chunk).is_err());
    }
}
