//! Reading windows: which chunks of tiles they are put together from as of now, and what they add up to.

use bytes::Bytes;

use crate::aggregate::{FeatureBuilder, Summaries, TileLayout};
use crate::definition::{Pinned, Windowed};
use crate::encoding::{ChunkId, ChunkLayout, ChunkReads, RowHeader, RowLayout, read_chunk};
use crate::tier::{OnlineTier, ReadRows, ViewRead};
use crate::time::Timestamp;
use crate::{Error, Result};

/// How a view's windows are read.
#[derive(Debug, Clone)]
pub(super) struct WindowReads {
    windowed: Windowed,
    layout: TileLayout,
    chunks: ChunkLayout,
}

impl WindowReads {
    pub(super) fn new(windowed: &Windowed) -> Result<Self> {
        let layout = TileLayout::new(windowed)?;
        Ok(Self { windowed: windowed.clone(), chunks: ChunkLayout::new(&layout), layout })
    }

    /// The features of entities as of `now`, as packed rows with the times of each entity's newest event; nothing for an
    /// entity without events.
    pub(super) fn read(
        &self,
        tier: &dyn OnlineTier,
        view: &Pinned,
        packed: &RowLayout,
        entities: &[&[u8]],
        now: Timestamp,
    ) -> Result<ViewRead> {
        let newest: Vec<Vec<u8>> = entities.iter().map(|entity| chunk_key(entity, ChunkId::NEWEST)).collect();
        let newest: Vec<&[u8]> = newest.iter().map(Vec::as_slice).collect();
        tier.read_computed(view, &self.layout.epoch(now), &newest, &|read, newest| {
            let reads = ChunkReads::new(&self.layout, &self.chunks, now);
            self.compute(read, packed, &reads, newest).map_err(|error| error.with("view", view))
        })
    }

    /// `newest` are the keys of the entities' newest events.
    fn compute(
        &self,
        read: &ReadRows<'_>,
        packed: &RowLayout,
        reads: &ChunkReads,
        newest: &[&[u8]],
    ) -> Result<ViewRead> {
        let entries = reads.chunks.len() + 1;
        let mut keys = Vec::with_capacity(newest.len() * entries);
        for key in newest {
            keys.push(key.to_vec());
            let entity = ChunkId::entity_of_newest(key);
            keys.extend(reads.chunks.iter().map(|(chunk, _)| chunk_key(entity, *chunk)));
        }
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let ViewRead { rows, mark } = read(&keys)?;
        let mut headers = Vec::with_capacity(newest.len());
        let mut features = FeatureBuilder::new(&self.windowed, &self.layout);
        for (entity, key) in rows.chunks(entries).zip(newest) {
            let Some(times) = &entity[0] else { continue };
            headers.push(RowHeader::read(times).ok_or_else(|| {
                Error::damaged("the times of an entity's newest event are cut off")
                    .with("key", crate::definition::hex(key))
                    .remedy("delete the disk tier's folder; it is rebuilt from object storage")
            })?);
            features.append(Some(&self.windows(reads, &entity[1..])?));
        }
        let mut packed = packed.encode(&headers, &features.finish()?)?.into_iter();
        let of_entity = |entity: &[Option<Bytes>]| entity[0].as_ref().and_then(|_| packed.next()).map(Bytes::from);
        Ok(ViewRead { rows: rows.chunks(entries).map(of_entity).collect(), mark })
    }

    fn windows(&self, reads: &ChunkReads, chunks: &[Option<Bytes>]) -> Result<Vec<Summaries>> {
        let mut windows = vec![self.layout.empty(); self.layout.windows().len()];
        for ((_, wanted), chunk) in reads.chunks.iter().zip(chunks) {
            let Some(chunk) = chunk else { continue };
            read_chunk(chunk, wanted, |mask, summaries| {
                for (index, window) in windows.iter_mut().enumerate() {
                    if mask >> index & 1 == 1 {
                        self.layout.merge(window, summaries);
                    }
                }
            })?;
        }
        Ok(windows)
    }
}

fn chunk_key(entity: &[u8], chunk: ChunkId) -> Vec<u8> {
    let mut key = Vec::with_capacity(entity.len() + 9);
    key.extend_from_slice(entity);
    chunk.write(&mut key);
    key
}
