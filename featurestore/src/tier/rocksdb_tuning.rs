//! All RocksDB tuning in one place, each choice with its reason.

use std::sync::{Arc, PoisonError, RwLock};

use rocksdb::compaction_filter::Decision;
use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DataBlockIndexType, MergeOperands, Options};

use super::expiry::Cutoff;
use crate::encoding::merge_values;

/// Memory for decompressed blocks; the memory tier above holds what is hot, so this stays small.
const BLOCK_CACHE_BYTES: usize = 32 << 20;

/// Memory for single values, over all column families. A read that finds its value here takes a third of the time of one
/// that goes through index, filter and block; it holds many more hot values than as many bytes of blocks do.
const ROW_CACHE_BYTES: usize = 32 << 20;

/// Memory for fresh writes of one column family before they are flushed.
const WRITE_BUFFER_BYTES: usize = 16 << 20;

/// Larger blocks than RocksDB's 4 KiB: a sorted batch finds more of its keys in each, and a smaller index stays hot. A
/// hash index has room for 253 keys of a block.
const BLOCK_BYTES: usize = 8 << 10;

/// Bits of bloom filter per key: about 1 % false positives, so that an absent key costs no block read.
const BLOOM_BITS_PER_KEY: f64 = 10.0;

/// Options of the database as a whole.
pub(super) fn database() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    // The write-ahead log holds rows and mark together: a crash replays to a mark that has been.
    options.set_atomic_flush(true);
    options.set_keep_log_file_num(4);
    // Not the lock-free cache that holds the blocks: with values as entries it takes four times as long.
    options.set_row_cache(&Cache::new_lru_cache(ROW_CACHE_BYTES));
    options
}

/// What a view's column family lets go of when its files are written again; nothing until it is told.
pub(super) type Past = Arc<RwLock<Option<Cutoff>>>;

/// Files that were not written again for so long are, for the sake of what is past in them.
const WRITTEN_AGAIN_SECONDS: u64 = 7 * 86_400;

/// Options of a view's column family, which lets go of what is past.
pub(super) fn view_with(cache: &Cache, past: &Past) -> Options {
    let (mut options, past) = (view(cache), Arc::clone(past));
    options.set_periodic_compaction_seconds(WRITTEN_AGAIN_SECONDS);
    options.set_compaction_filter("springhouse.expiry", move |_, key: &[u8], value: &[u8]| {
        let past = past.read().unwrap_or_else(PoisonError::into_inner);
        // The empty key is no entity's.
        if !key.is_empty() && past.as_ref().is_some_and(|past| past.is_past(key, value)) {
            Decision::Remove
        } else {
            Decision::Keep
        }
    });
    options
}

/// Options of a view's column family, and of the files that are ingested into it.
pub(super) fn view(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Reads are of single keys: a hash index inside the block saves the binary search, and with every key a restart
    // point it leads to the key itself. Both together save a third of a batched read.
    blocks.set_block_size(BLOCK_BYTES);
    blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    blocks.set_block_restart_interval(1);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // Upper levels are rewritten often and want speed; the last level holds nearly everything and wants density.
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_merge_operator_associative("springhouse.merge", merge);
    options
}

/// The block cache that all column families share.
pub(super) fn cache() -> Cache {
    // Without locks; 0 lets it find out how large blocks are.
    Cache::new_hyper_clock_cache(BLOCK_CACHE_BYTES, 0)
}

/// [`merge_values`] as a merge operator: writes need no read and may come in any order. What cannot be merged is
/// reported by RocksDB as corrupt when it is read.
fn merge(_key: &[u8], held: Option<&[u8]>, given: &MergeOperands) -> Option<Vec<u8>> {
    let mut values = held.into_iter().chain(given.iter());
    let first = values.next()?.to_vec();
    values.try_fold(first, |held, value| merge_values(&held, value).ok().map(Vec::from))
}
