//! Reading windows: which chunks of tiles they are put together from as of now, and what they add up to.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::aggregate::{FeatureBuilder, Summary, TileLayout};
use crate::definition::{Pinned, Windowed};
use crate::encoding::{ChunkId, ChunkLayout, ChunkReads, RowHeader, RowLayout, add_chunk};
use crate::tier::{OnlineTier, ReadRows, ViewRead};
use crate::time::Timestamp;
use crate::{Error, Result};

/// How a view's windows are read.
#[derive(Debug, Clone)]
pub(super) struct WindowReads {
    windowed: Windowed,
    layout: TileLayout,
    chunks: ChunkLayout,
    /// The reads of the last epoch asked for: nearly always the next one's too.
    last: Arc<Mutex<Option<EpochReads>>>,
}

#[derive(Debug, Clone)]
struct EpochReads {
    epoch: Vec<u8>,
    reads: Arc<ChunkReads>,
}

impl WindowReads {
    pub(super) fn new(windowed: &Windowed) -> Result<Self> {
        let layout = TileLayout::new(windowed)?;
        let chunks = ChunkLayout::new(&layout);
        Ok(Self { windowed: windowed.clone(), chunks, layout, last: Arc::default() })
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
        let epoch = self.layout.epoch(now);
        tier.read_computed(view, &epoch, &newest, &|read, newest| {
            self.compute(read, packed, &self.reads(&epoch, now), newest).map_err(|error| error.with("view", view))
        })
    }

    fn reads(&self, epoch: &[u8], now: Timestamp) -> Arc<ChunkReads> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = last.as_ref().filter(|known| known.epoch == epoch) {
            return Arc::clone(&known.reads);
        }
        let reads = Arc::new(ChunkReads::new(&self.layout, &self.chunks, now));
        *last = Some(EpochReads { epoch: epoch.to_vec(), reads: Arc::clone(&reads) });
        reads
    }

    /// `newest` are the keys of the entities' newest events.
    fn compute(
        &self,
        read: &ReadRows<'_>,
        packed: &RowLayout,
        reads: &ChunkReads,
        newest: &[&[u8]],
    ) -> Result<ViewRead> {
        let keys = EntryKeys::new(reads, newest);
        let mut headers = Vec::with_capacity(newest.len());
        let mut exists = vec![false; newest.len()];
        let mut features = FeatureBuilder::new(&self.windowed, &self.layout);
        let mut totals = vec![self.layout.empty(); reads.totals.len()];
        let mark = read(&keys.slices(), &mut |index, entry| {
            let (entity, chunk) = (index / keys.per_entity, index % keys.per_entity);
            if chunk == 0 {
                for total in &mut totals {
                    total.fill(Summary::default());
                }
                if let Some(times) = entry {
                    headers.push(RowHeader::read(times).ok_or_else(|| {
                        Error::damaged("the times of an entity's newest event are cut off")
                            .with("key", crate::definition::hex(newest[entity]))
                            .remedy("delete the disk tier's folder; it is rebuilt from object storage")
                    })?);
                    exists[entity] = true;
                }
            } else if let Some(entry) = entry {
                add_chunk(entry, &reads.chunks[chunk - 1].1, &mut totals)?;
            }
            if chunk + 1 == keys.per_entity && exists[entity] {
                features.append(Some(&reads.windows(&self.layout, &totals)));
            }
            Ok(())
        })?;
        let mut packed = packed.encode(&headers, &features.finish()?)?.into_iter();
        let rows = exists.iter().map(|exists| exists.then(|| packed.next()).flatten().map(Bytes::from)).collect();
        Ok(ViewRead { rows, mark })
    }
}

/// The keys of all entries that are read for some entities, one after another in one buffer.
struct EntryKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Entries of an entity: its newest event's times, then its chunks.
    per_entity: usize,
}

impl EntryKeys {
    fn new(reads: &ChunkReads, newest: &[&[u8]]) -> Self {
        let per_entity = reads.chunks.len() + 1;
        let mut keys = Self { bytes: Vec::new(), ends: Vec::with_capacity(newest.len() * per_entity), per_entity };
        for key in newest {
            keys.bytes.extend_from_slice(key);
            keys.ends.push(keys.bytes.len());
            for (chunk, _) in &reads.chunks {
                keys.bytes.extend_from_slice(ChunkId::entity_of_newest(key));
                chunk.write(&mut keys.bytes);
                keys.ends.push(keys.bytes.len());
            }
        }
        keys
    }

    fn slices(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[*start..*end]).collect()
    }
}

fn chunk_key(entity: &[u8], chunk: ChunkId) -> Vec<u8> {
    let mut key = Vec::with_capacity(entity.len() + 9);
    key.extend_from_slice(entity);
    chunk.write(&mut key);
    key
}
