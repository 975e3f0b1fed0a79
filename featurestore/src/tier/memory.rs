//! The memory tier: a cache of entities' rows, bounded in bytes, over another tier.
//!
//! An entry holds an entity's rows in a *group*: the views that are read together; or, for a view whose rows are computed
//! (the features of windows), the computed row with the epoch that it holds for. A change of a view takes the view's
//! lock for writing: it changes the tier below, drops the entries that it touched in every group of the view (or, for
//! a new generation, starts new incarnations of those groups), and only then lets readers in again. A reader holds
//! the locks of all its views until its answer is made. So no answer mixes two states of a view, and none is older
//! than the last acknowledged change.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use foldhash::fast::RandomState;
use moka::sync::Cache;

use super::{ComputeRows, EachRow, EntityRead, EntityRows, Expiry, Generation, KeyedRow, Mark, OnlineTier, ViewRead};
use crate::Result;
use crate::definition::Pinned;
use crate::time::Timestamp;

/// What the cache itself needs for an entry, beside key and row (measured for moka 0.12; it is a weight, not a promise).
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// A bounded cache over another tier. Absent rows are remembered too.
#[derive(Debug)]
pub struct MemoryTier<T> {
    below: T,
    cache: Cache<Box<[u8]>, Entry, RandomState>,
    /// Whether nothing is kept.
    off: bool,
    views: RwLock<HashMap<Pinned, Arc<ViewSlot>, RandomState>>,
    groups: RwLock<HashMap<Vec<Pinned>, Arc<Group>, RandomState>>,
    next_incarnation: AtomicU32,
    next_slot: AtomicU32,
    hits: AtomicU64,
    reads: AtomicU64,
}

/// What is known of an entity.
#[derive(Debug, Clone)]
enum Entry {
    Rows(EntityRows),
    Computed { epoch: Bytes, row: Option<Bytes> },
}

#[derive(Debug)]
struct ViewSlot {
    /// Locks of several slots are taken in this order, lest a waiting writer stand between two readers for ever.
    number: u32,
    state: RwLock<SlotState>,
}

#[derive(Debug)]
struct SlotState {
    mark: Mark,
    /// The groups that the view is in.
    groups: Vec<Arc<Group>>,
}

/// Views that are read together.
#[derive(Debug)]
struct Group {
    /// In the order of their locks.
    slots: Vec<Arc<ViewSlot>>,
    /// Where each view stands among the slots.
    places: Vec<usize>,
    /// Begins the cache keys of the group; changes only under the write lock of one of its views.
    incarnation: AtomicU32,
}

/// The bytes that an entry counts for.
#[expect(clippy::borrowed_box, reason = "the cache hands over references to what it holds")]
fn weight(key: &Box<[u8]>, entry: &Entry) -> u32 {
    let of_row = |row: &Option<Bytes>| size_of::<Option<Bytes>>() + row.as_ref().map_or(0, Bytes::len);
    let rows: usize = match entry {
        Entry::Rows(rows) => rows.iter().map(of_row).sum(),
        Entry::Computed { row, .. } => of_row(row),
    };
    u32::try_from(key.len() + rows + ENTRY_OVERHEAD_BYTES).unwrap_or(u32::MAX)
}

impl Group {
    fn new(views: &[Arc<ViewSlot>], incarnation: u32) -> Self {
        let mut slots = views.to_vec();
        slots.sort_unstable_by_key(|slot| slot.number);
        slots.dedup_by_key(|slot| slot.number);
        let places = views.iter().map(|view| slots.partition_point(|slot| slot.number < view.number)).collect();
        Self { slots, places, incarnation: AtomicU32::new(incarnation) }
    }

    fn lock(&self) -> Vec<RwLockReadGuard<'_, SlotState>> {
        self.slots.iter().map(|slot| slot.state.read().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

impl<T: OnlineTier> MemoryTier<T> {
    /// A cache of at most `max_bytes` over `below`; 0 turns it off.
    pub fn new(below: T, max_bytes: u64) -> Self {
        let cache = Cache::builder().max_capacity(max_bytes).weigher(weight).build_with_hasher(RandomState::default());
        Self {
            below,
            cache,
            off: max_bytes == 0,
            views: RwLock::default(),
            groups: RwLock::default(),
            next_incarnation: AtomicU32::new(0),
            next_slot: AtomicU32::new(0),
            hits: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        }
    }

    /// The tier below.
    pub fn below(&self) -> &T {
        &self.below
    }

    /// Entities answered from memory, and entities asked for, since the start.
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
        let state = SlotState { mark: self.below.mark(view)?, groups: Vec::new() };
        let number = self.next_slot.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(ViewSlot { number, state: RwLock::new(state) });
        views.insert(view.clone(), Arc::clone(&slot));
        Ok(slot)
    }

    fn group(&self, views: &[Pinned]) -> Result<Arc<Group>> {
        if let Some(group) = self.groups.read().unwrap_or_else(PoisonError::into_inner).get(views) {
            return Ok(Arc::clone(group));
        }
        let slots = views.iter().map(|view| self.slot(view)).collect::<Result<Vec<_>>>()?;
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(views) {
            return Ok(Arc::clone(group));
        }
        let group = Arc::new(Group::new(&slots, self.next_incarnation.fetch_add(1, Ordering::Relaxed)));
        for slot in &group.slots {
            slot.state.write().unwrap_or_else(PoisonError::into_inner).groups.push(Arc::clone(&group));
        }
        groups.insert(views.to_vec(), Arc::clone(&group));
        Ok(group)
    }

    /// The values of keys: those that `known` takes out of the cache, and those that `load` gives for the others, which
    /// are kept as `entry` says.
    fn through<V: Clone>(
        &self,
        incarnation: u32,
        keys: &[&[u8]],
        known: impl Fn(Entry) -> Option<V>,
        load: impl FnOnce(&[&[u8]]) -> Result<Vec<V>>,
        entry: impl Fn(V) -> Entry,
    ) -> Result<Vec<V>> {
        let mut values = Vec::with_capacity(keys.len());
        let mut missed = Vec::new();
        let mut cache_key = Vec::with_capacity(64);
        for (index, key) in keys.iter().enumerate() {
            set_cache_key(&mut cache_key, incarnation, key);
            values.push(self.cache.get(cache_key.as_slice()).and_then(&known));
            if values[index].is_none() {
                missed.push(index);
            }
        }
        self.reads.fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.hits.fetch_add((keys.len() - missed.len()) as u64, Ordering::Relaxed);
        if !missed.is_empty() {
            let missed_keys: Vec<&[u8]> = missed.iter().map(|&index| keys[index]).collect();
            for (index, value) in missed.into_iter().zip(load(&missed_keys)?) {
                set_cache_key(&mut cache_key, incarnation, keys[index]);
                self.cache.insert(cache_key.clone().into_boxed_slice(), entry(value.clone()));
                values[index] = Some(value);
            }
        }
        Ok(values.into_iter().flatten().collect())
    }
}

fn set_cache_key(out: &mut Vec<u8>, incarnation: u32, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&incarnation.to_be_bytes());
    out.extend_from_slice(key);
}

impl<T: OnlineTier> OnlineTier for MemoryTier<T> {
    fn read(&self, view: &Pinned, keys: &[&[u8]]) -> Result<ViewRead> {
        let read = self.read_entities(std::slice::from_ref(view), keys)?;
        let mark = read.marks.first().copied().unwrap_or_default();
        Ok(ViewRead { rows: read.entities.iter().map(|entity| entity[0].clone()).collect(), mark })
    }

    fn read_entities(&self, views: &[Pinned], keys: &[&[u8]]) -> Result<EntityRead> {
        if self.off {
            return self.below.read_entities(views, keys);
        }
        let group = self.group(views)?;
        let locks = group.lock();
        let known = |entry| if let Entry::Rows(rows) = entry { Some(rows) } else { None };
        let load = |keys: &[&[u8]]| self.below.read_entities(views, keys).map(|read| read.entities);
        let entities = self.through(group.incarnation.load(Ordering::Acquire), keys, known, load, Entry::Rows)?;
        Ok(EntityRead { entities, marks: group.places.iter().map(|&place| locks[place].mark).collect() })
    }

    fn read_computed(
        &self,
        view: &Pinned,
        epoch: &[u8],
        keys: &[&[u8]],
        compute: &ComputeRows<'_>,
    ) -> Result<ViewRead> {
        if self.off {
            return self.below.read_computed(view, epoch, keys, compute);
        }
        let group = self.group(std::slice::from_ref(view))?;
        let locks = group.lock();
        let known = |entry| match entry {
            Entry::Computed { epoch: of, row } if of == epoch => Some(row),
            Entry::Computed { .. } | Entry::Rows(_) => None,
        };
        let read_below = |keys: &[&[u8]], each: &mut EachRow<'_>| self.below.read_each(view, keys, each);
        let load = |keys: &[&[u8]]| compute(&read_below, keys).map(|read| read.rows);
        let kept = LazyCell::new(|| Bytes::copy_from_slice(epoch));
        let entry = |row| Entry::Computed { epoch: Bytes::clone(&kept), row };
        let rows = self.through(group.incarnation.load(Ordering::Acquire), keys, known, load, entry)?;
        Ok(ViewRead { rows, mark: locks.first().map(|state| state.mark).unwrap_or_default() })
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
        for group in &state.groups {
            let incarnation = group.incarnation.load(Ordering::Acquire);
            for key in &keys {
                set_cache_key(&mut cache_key, incarnation, key);
                self.cache.invalidate(cache_key.as_slice());
            }
        }
        state.mark = mark;
        Ok(())
    }

    fn begin_generation(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        let below = self.below.begin_generation(view)?;
        Ok(Box::new(MemoryGeneration { slot: self.slot(view)?, incarnations: &self.next_incarnation, below }))
    }

    fn begin_addition(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        // Nobody keeps the keys of so many rows: all that is known of the view is asked for anew.
        let below = self.below.begin_addition(view)?;
        Ok(Box::new(MemoryGeneration { slot: self.slot(view)?, incarnations: &self.next_incarnation, below }))
    }

    fn views(&self) -> Vec<Pinned> {
        self.below.views()
    }

    fn expire(&self, view: &Pinned, expiry: &Expiry, now: Timestamp) -> Result<bool> {
        // What is kept here leaves by itself.
        self.below.expire(view, expiry, now)
    }

    fn forget(&self, view: &Pinned) -> Result<()> {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        for (_, group) in groups.extract_if(|views, _| views.contains(view)) {
            for slot in &group.slots {
                let mut state = slot.state.write().unwrap_or_else(PoisonError::into_inner);
                state.groups.retain(|of| !Arc::ptr_eq(of, &group));
            }
        }
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(view);
        drop(groups);
        self.below.forget(view)
    }
}

struct MemoryGeneration<'a> {
    slot: Arc<ViewSlot>,
    incarnations: &'a AtomicU32,
    below: Box<dyn Generation + 'a>,
}

impl Generation for MemoryGeneration<'_> {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        self.below.add(rows)
    }

    fn settle(&mut self) -> Result<()> {
        self.below.settle()
    }

    fn finish(mut self: Box<Self>, mark: Mark) -> Result<()> {
        // Nobody reads the view while the lock below is held.
        self.below.settle()?;
        let Self { slot, incarnations, below } = *self;
        let mut state = slot.state.write().unwrap_or_else(PoisonError::into_inner);
        below.finish(mark)?;
        for group in &state.groups {
            group.incarnation.store(incarnations.fetch_add(1, Ordering::Relaxed), Ordering::Release);
        }
        state.mark = mark;
        Ok(())
    }
}
