//! The memory tier: a cache of rows, bounded in bytes, over another tier.
//!
//! Entries are keyed by an incarnation of a view version and the entity's key. A change of the view takes the view's
//! lock for writing: it changes the tier below, drops the entries that it touched (or, for a new generation, starts
//! a new incarnation), and only then lets readers in again. So no answer mixes two states, and none is older than the
//! last acknowledged change.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use foldhash::fast::RandomState;
use moka::sync::Cache;

use super::{Generation, KeyedRow, Mark, OnlineTier, ViewRead};
use crate::Result;
use crate::definition::Pinned;

/// What the cache itself needs for an entry, beside key and row (measured for moka 0.12; it is a weight, not a promise).
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// A bounded cache over another tier. Absent rows are remembered too.
#[derive(Debug)]
pub struct MemoryTier<T> {
    below: T,
    cache: Cache<Box<[u8]>, Option<Bytes>, RandomState>,
    views: RwLock<HashMap<Pinned, Arc<ViewSlot>>>,
    next_incarnation: AtomicU32,
    hits: AtomicU64,
    reads: AtomicU64,
}

#[derive(Debug)]
struct ViewSlot {
    state: RwLock<SlotState>,
}

#[derive(Debug, Clone, Copy)]
struct SlotState {
    incarnation: u32,
    mark: Mark,
}

/// The bytes that an entry counts for.
#[expect(clippy::borrowed_box, clippy::ref_option, reason = "the cache hands over references to what it holds")]
fn weight(key: &Box<[u8]>, row: &Option<Bytes>) -> u32 {
    let bytes = key.len() + row.as_ref().map_or(0, Bytes::len) + ENTRY_OVERHEAD_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl<T: OnlineTier> MemoryTier<T> {
    /// A cache of at most `max_bytes` over `below`; 0 turns it off.
    pub fn new(below: T, max_bytes: u64) -> Self {
        let cache = Cache::builder().max_capacity(max_bytes).weigher(weight).build_with_hasher(RandomState::default());
        Self {
            below,
            cache,
            views: RwLock::default(),
            next_incarnation: AtomicU32::new(0),
            hits: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        }
    }

    /// The tier below.
    pub fn below(&self) -> &T {
        &self.below
    }

    /// Keys answered from memory, and keys asked for, since the start.
    pub fn hits_of_reads(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.reads.load(Ordering::Relaxed))
    }

    fn slot(&self, view: &Pinned) -> Result<Arc<ViewSlot>> {
        if let Some(slot) = self.views.read().unwrap_or_else(PoisonError::into_inner).get(view) {
            return Ok(Arc::clone(slot));
        }
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = views.get(view) {
            return Ok(Arc::clone(slot));
        }
        let state = SlotState { incarnation: self.incarnation(), mark: self.below.mark(view)? };
        let slot = Arc::new(ViewSlot { state: RwLock::new(state) });
        views.insert(view.clone(), Arc::clone(&slot));
        Ok(slot)
    }

    fn incarnation(&self) -> u32 {
        self.next_incarnation.fetch_add(1, Ordering::Relaxed)
    }

    fn read_through(&self, view: &Pinned, incarnation: u32, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>> {
        let mut rows = vec![None; keys.len()];
        let mut missed = Vec::new();
        let mut cache_key = Vec::with_capacity(64);
        for (index, key) in keys.iter().enumerate() {
            set_cache_key(&mut cache_key, incarnation, key);
            match self.cache.get(cache_key.as_slice()) {
                Some(row) => rows[index] = row,
                None => missed.push(index),
            }
        }
        self.reads.fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.hits.fetch_add((keys.len() - missed.len()) as u64, Ordering::Relaxed);
        if missed.is_empty() {
            return Ok(rows);
        }
        let missed_keys: Vec<&[u8]> = missed.iter().map(|&index| keys[index]).collect();
        for (index, row) in missed.into_iter().zip(self.below.read(view, &missed_keys)?.rows) {
            set_cache_key(&mut cache_key, incarnation, keys[index]);
            self.cache.insert(cache_key.clone().into_boxed_slice(), row.clone());
            rows[index] = row;
        }
        Ok(rows)
    }
}

fn set_cache_key(out: &mut Vec<u8>, incarnation: u32, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&incarnation.to_be_bytes());
    out.extend_from_slice(key);
}

impl<T: OnlineTier> OnlineTier for MemoryTier<T> {
    fn read(&self, view: &Pinned, keys: &[&[u8]]) -> Result<ViewRead> {
        if self.cache.policy().max_capacity() == Some(0) {
            return self.below.read(view, keys);
        }
        let slot = self.slot(view)?;
        let state = slot.state.read().unwrap_or_else(PoisonError::into_inner);
        Ok(ViewRead { rows: self.read_through(view, state.incarnation, keys)?, mark: state.mark })
    }

    fn mark(&self, view: &Pinned) -> Result<Mark> {
        Ok(self.slot(view)?.state.read().unwrap_or_else(PoisonError::into_inner).mark)
    }

    fn apply(&self, view: &Pinned, rows: Vec<KeyedRow>, mark: Mark) -> Result<()> {
        let slot = self.slot(view)?;
        let keys: Vec<Bytes> = rows.iter().map(|(key, _)| key.clone()).collect();
        let mut state = slot.state.write().unwrap_or_else(PoisonError::into_inner);
        self.below.apply(view, rows, mark)?;
        let mut cache_key = Vec::with_capacity(64);
        for key in keys {
            set_cache_key(&mut cache_key, state.incarnation, &key);
            self.cache.invalidate(cache_key.as_slice());
        }
        state.mark = mark;
        Ok(())
    }

    fn begin_generation(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        let below = self.below.begin_generation(view)?;
        Ok(Box::new(MemoryGeneration { slot: self.slot(view)?, incarnation: self.incarnation(), below }))
    }

    fn forget(&self, view: &Pinned) -> Result<()> {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(view);
        self.below.forget(view)
    }
}

struct MemoryGeneration<'a> {
    slot: Arc<ViewSlot>,
    incarnation: u32,
    below: Box<dyn Generation + 'a>,
}

impl Generation for MemoryGeneration<'_> {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        self.below.add(rows)
    }

    fn finish(self: Box<Self>, mark: Mark) -> Result<()> {
        let Self { slot, incarnation, below } = *self;
        let mut state = slot.state.write().unwrap_or_else(PoisonError::into_inner);
        below.finish(mark)?;
        *state = SlotState { incarnation, mark };
        Ok(())
    }
}
