//! The feature store: what people declare, how values are laid out in bytes, and where they are kept.
//!
//! It is the floor that the other crates stand on: `sql` turns text into these definitions and computes features,
//! `materializer` commits them, `serving` looks them up. It is not a query engine, and it knows no network protocol:
//! it builds without DataFusion, tonic and candle.
//!
//! The way through it:
//!
//! 1. [`time`] — instants, spans and the injected clock.
//! 2. [`definition`] — entities, sources, feature views, contracts and their versions, as plain types.
//! 3. [`freshness`] — lag, age and the one status that a value has; what a contract's rules make of it.
//! 4. [`encoding`] — bytes of keys (in order) and of rows (packed).
//!    [`aggregate`] — states of aggregates that merge in any order to the same bits.
//! 5. [`catalog`] — numbered commits on object storage: who, when, why, what.
//! 6. [`tier`] — memory (moka), disk (RocksDB) and object storage (Parquet), behind small traits.
//! 7. [`lookup`] — keys in, features with their statuses out, over all views of a contract at once.
//! 8. [`enforce`] — the contract's rules on what was looked up (rule T8).
//! 9. [`push`] — events that producers send live: the log that makes them durable, and the trait that takes them.
//! 10. [`training_set`] — the trait through which serving asks jobs for training sets.
//!
//! Rules of time are named T1 to T9 throughout; `docs/time.md` states them.

pub mod aggregate;
pub mod catalog;
#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod definition;
pub mod encoding;
pub mod enforce;
mod error;
pub mod freshness;
pub mod lookup;
pub mod object_storage;
pub mod parquet_file;
pub mod push;
pub mod tier;
pub mod time;
pub mod training_set;

pub use error::{Error, ErrorKind, Result};
