//! The tiers: memory over disk for online reads, object storage as the truth.
//!
//! ```text
//! refresh -> ViewLog (object storage: Parquet + numbered commits)
//!               | catch_up
//!               v
//!            DiskTier (RocksDB) <- MemoryTier (moka) <- lookup
//! ```
//!
//! Everything but object storage can be deleted: [`catch_up`] rebuilds it.

mod backfill;
mod disk;
mod expiry;
mod fingerprint;
mod garbage;
mod load;
mod memory;
mod object;
mod object_reader;
mod only_files;
mod reference;
mod retired;
mod rocksdb_tuning;
mod set_aside;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use backfill::{Backfill, BackfillAsked, BackfillLog, BackfillPlan};
pub use disk::DiskTier;
pub use expiry::Expiry;
pub use fingerprint::Fingerprint;
pub use garbage::{Collected, DataFolder, StoredFile};
pub use load::{Packer, Progress, Pushing, brings_unseen, catch_up, catch_up_with, load_again};
pub use memory::MemoryTier;
pub use object::{
    AVAILABLE_TIME, COMMIT, DataFile, EVENT_TIME, HistoryFile, HistoryFiles, PushedRange, RememberedStates, Restated,
    ViewCommit, ViewCommitKind, ViewLog, ViewLogState, ViewWriter, WRITE_POSITION, WRITE_WITHIN, data_schema,
    get_object, list_objects, put_object, read_data_file,
};
pub(crate) use object_reader::ObjectReader;
pub use object_store::ObjectStore;
pub use only_files::OnlyFiles;
pub use reference::ReferenceTier;
pub use retired::Retired;
pub use set_aside::{
    Beyond, MOST_BEYOND, MOST_SET_ASIDE, REASON, SET_ASIDE_AT, SetAside, SetAsideEvents, places_of, read_set_aside,
    reasons_of, tells_places, with_reasons, write_set_aside,
};

pub use crate::object_storage::open_store;

use crate::Result;
use crate::definition::Pinned;
use crate::encoding::merge_values;
use crate::time::Timestamp;

/// How far a tier has got with a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The number of the view's newest commit that is in the tier; 0 for none.
    pub commit: u64,
    /// Every event up to this time is in the tier: the commit's watermark, or a later one of what was pushed since.
    pub watermark: Option<Timestamp>,
    /// The commit's own watermark.
    #[serde(default)]
    pub committed: Option<Timestamp>,
    /// The position up to which pushed events are in the tier.
    #[serde(default)]
    pub pushed: u64,
    /// The log whose position that is: beyond what was committed, positions are a log's own.
    #[serde(default)]
    pub log: u64,
}

impl Mark {
    /// The mark of a commit, without pushes.
    pub fn of_commit(commit: u64, watermark: Option<Timestamp>) -> Self {
        Self { commit, watermark, committed: watermark, pushed: 0, log: 0 }
    }
}

/// A key and its packed row, as [`crate::encoding`] writes them.
pub type KeyedRow = (Bytes, Bytes);

/// Adds rows to those held, as [`crate::encoding::merge_values`] merges two of one key.
///
/// # Errors
/// [`crate::ErrorKind::Damaged`] for a value that is neither a row nor a chunk.
pub fn merge_rows(held: &mut BTreeMap<Bytes, Bytes>, rows: Vec<KeyedRow>) -> Result<()> {
    for (key, row) in rows {
        match held.entry(key) {
            Entry::Vacant(place) => {
                place.insert(row);
            }
            Entry::Occupied(mut place) => {
                let merged = merge_values(place.get(), &row)?;
                place.insert(merged);
            }
        }
    }
    Ok(())
}

/// The answer to a read: a row or nothing for each key, all as of one mark.
#[derive(Debug, Clone)]
pub struct ViewRead {
    /// Row for key.
    pub rows: Vec<Option<Bytes>>,
    /// How far the view had got.
    pub mark: Mark,
}

/// An entity's rows in several views, in the order in which the views were asked for.
pub type EntityRows = Arc<[Option<Bytes>]>;

/// The answer to a read of several views of one entity.
#[derive(Debug, Clone)]
pub struct EntityRead {
    /// Entity for key.
    pub entities: Vec<EntityRows>,
    /// How far each view had got: its rows are all as of its mark.
    pub marks: Vec<Mark>,
}

/// Told the row of a key, by the key's place among those asked for.
pub type EachRow<'a> = dyn FnMut(usize, Option<&[u8]>) -> Result<()> + 'a;

/// Reads rows of one view, and tells how far the view had got.
pub type ReadRows<'a> = dyn Fn(&[&[u8]], &mut EachRow<'_>) -> Result<Mark> + 'a;

/// Makes the rows of several keys of one view from what it reads.
pub type ComputeRows<'a> = dyn Fn(&ReadRows<'_>, &[&[u8]]) -> Result<ViewRead> + 'a;

/// A tier that answers online reads: the newest row of each entity, per view version.
///
/// Contract, which `conformance` checks on every implementation:
///
/// - Of all rows given for a key the one whose bytes are greatest holds (rule T5), in whatever order, however often and
///   in whatever grouping they are given. Chunks of tiles given for a key are merged, each time that they are given:
///   marks see to it that a commit is given once.
/// - [`apply`](Self::apply) and [`Generation::finish`] are atomic: a read sees all of a change with its mark, or none.
/// - A view that was never written reads as nothing, with the default mark.
/// - Versions of a view know nothing of each other.
/// - After a crash the tier is at some mark that it has had, with exactly that mark's rows.
pub trait OnlineTier: Send + Sync + Debug {
    /// Reads the rows of several keys at one instant.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] or [`crate::ErrorKind::Unavailable`] from the storage below.
    fn read(&self, view: &Pinned, keys: &[&[u8]]) -> Result<ViewRead>;

    /// Reads the rows of several keys at one instant and hands each over where it lies, in the keys' order.
    ///
    /// # Errors
    /// As [`Self::read`], and those of `each`.
    fn read_each(&self, view: &Pinned, keys: &[&[u8]], each: &mut EachRow<'_>) -> Result<Mark> {
        let ViewRead { rows, mark } = self.read(view, keys)?;
        rows.iter().enumerate().try_for_each(|(index, row)| each(index, row.as_deref()))?;
        Ok(mark)
    }

    /// Reads the rows of several keys in several views of their entity, each view at one instant.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_entities(&self, views: &[Pinned], keys: &[&[u8]]) -> Result<EntityRead> {
        let reads = views.iter().map(|view| self.read(view, keys)).collect::<Result<Vec<_>>>()?;
        let marks = reads.iter().map(|read| read.mark).collect();
        let mut rows: Vec<_> = reads.into_iter().map(|read| read.rows.into_iter()).collect();
        let entities = keys.iter().map(|_| rows.iter_mut().map(|of| of.next().flatten()).collect()).collect();
        Ok(EntityRead { entities, marks })
    }

    /// Reads rows that are computed from other rows of the view, such as the features of windows, all at one instant.
    /// The row of a key holds until that key is written, a new generation is finished, or `epoch` is another: a tier may
    /// keep it so long.
    ///
    /// # Errors
    /// As [`Self::read`], and those of `compute`.
    fn read_computed(
        &self,
        view: &Pinned,
        epoch: &[u8],
        keys: &[&[u8]],
        compute: &ComputeRows<'_>,
    ) -> Result<ViewRead> {
        // There is no need to keep anything.
        let _ = epoch;
        compute(&|keys, each| self.read_each(view, keys, each), keys)
    }

    /// How far the tier has got with a view.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn mark(&self, view: &Pinned) -> Result<Mark>;

    /// Adds rows and moves the mark.
    ///
    /// # Errors
    /// As [`Self::read`]; the old state then still holds.
    fn apply(&self, view: &Pinned, rows: Vec<KeyedRow>, mark: Mark) -> Result<()>;

    /// Begins a new generation of a view, which replaces the present one when it is finished, and leaves nothing when
    /// it is dropped before.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn begin_generation(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>>;

    /// Begins to add many rows to a view, as one change: nothing of it is seen before it is finished, and nothing is left when
    /// it is dropped before. What others apply meanwhile stays; whoever finishes it gives a mark that has that too.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn begin_addition(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>>;

    /// The view versions that it holds something of.
    fn views(&self) -> Vec<Pinned>;

    /// Lets go of what no read at `now` or later asks for, in its own time ([`Expiry`]). `false`: at a later time it was told
    /// to let go of more, and the clock was set back; it lets go of nothing until a new generation is finished, which it
    /// lacks. What it has is answered until then.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn expire(&self, view: &Pinned, expiry: &Expiry, now: Timestamp) -> Result<bool> {
        // A tier may keep everything.
        let _ = (view, expiry, now);
        Ok(true)
    }

    /// Forgets a view version.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn forget(&self, view: &Pinned) -> Result<()>;
}

/// The rows of a load that [`OnlineTier::apply`] adds when it is finished: for tiers that hold little.
pub(crate) struct HeldAddition<'a, T: OnlineTier> {
    tier: &'a T,
    view: Pinned,
    rows: BTreeMap<Bytes, Bytes>,
}

impl<'a, T: OnlineTier> HeldAddition<'a, T> {
    /// Of no rows yet.
    pub(crate) fn new(tier: &'a T, view: &Pinned) -> Self {
        Self { tier, view: view.clone(), rows: BTreeMap::new() }
    }
}

impl<T: OnlineTier> Generation for HeldAddition<'_, T> {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        merge_rows(&mut self.rows, rows)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, mark: Mark) -> Result<()> {
        self.tier.apply(&self.view, self.rows.into_iter().collect(), mark)
    }
}

/// A whole load of a view, or an addition to it, that readers do not see until it is finished.
pub trait Generation: Send {
    /// Adds rows.
    ///
    /// # Errors
    /// As [`OnlineTier::read`].
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()>;

    /// Does all that there is to do for what was added, so that [`finish`](Self::finish) is short; a few rows may be added
    /// after it.
    ///
    /// # Errors
    /// As [`OnlineTier::read`].
    fn settle(&mut self) -> Result<()>;

    /// Makes it the one that is read.
    ///
    /// # Errors
    /// As [`OnlineTier::read`]; the old generation then still holds.
    fn finish(self: Box<Self>, mark: Mark) -> Result<()>;
}
