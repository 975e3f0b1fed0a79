//! Reading windows: which chunks of tiles they are put together from as of now, and what they add up to.

use arrow::array::ArrayRef;
use bytes::Bytes;

use crate::aggregate::{Summaries, TileLayout, feature_columns};
use crate::definition::{Pinned, Windowed};
use crate::encoding::{ChunkId, ChunkLayout, ChunkReads, RowHeader, RowLayout, read_chunk};
use crate::tier::{OnlineTier, ViewRead};
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
        let reads = ChunkReads::new(&self.layout, &self.chunks, now);
        tier.read_computed(view, &reads.epoch, entities, &|tier, entities| {
            self.compute(tier, view, packed, &reads, entities)
        })
    }

    fn compute(
        &self,
        tier: &dyn OnlineTier,
        view: &Pinned,
        packed: &RowLayout,
        reads: &ChunkReads,
        entities: &[&[u8]],
    ) -> Result<ViewRead> {
        let ids: Vec<ChunkId> =
            [ChunkId::NEWEST].into_iter().chain(reads.chunks.iter().map(|(chunk, _)| *chunk)).collect();
        let mut keys = Vec::with_capacity(entities.len() * ids.len());
        for entity in entities {
            for id in &ids {
                let mut key = Vec::with_capacity(entity.len() + 9);
                key.extend_from_slice(entity);
                id.write(&mut key);
                keys.push(key);
            }
        }
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let read = tier.read(view, &keys)?;
        let mut headers = Vec::with_capacity(entities.len());
        let mut windows = Vec::with_capacity(entities.len());
        for (entity, key) in read.rows.chunks(ids.len()).zip(entities) {
            let Some(newest) = &entity[0] else { continue };
            headers.push(RowHeader::read(newest).ok_or_else(|| {
                Error::damaged("the times of an entity's newest event are cut off")
                    .with("view", view)
                    .with("key", crate::definition::hex(key))
                    .remedy("delete the disk tier's folder; it is rebuilt from object storage")
            })?);
            windows.push(Some(self.windows(reads, &entity[1..])?));
        }
        let features: Vec<ArrayRef> = feature_columns(&self.windowed, &self.layout, &windows)?;
        let mut rows = packed.encode(&headers, &features)?.into_iter();
        let of_entity = |entity: &[Option<Bytes>]| entity[0].as_ref().and_then(|_| rows.next()).map(Bytes::from);
        Ok(ViewRead { rows: read.rows.chunks(ids.len()).map(of_entity).collect(), mark: read.mark })
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
