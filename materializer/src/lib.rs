//! The jobs: refresh, backfill, pushes, training sets, consistency audit.
//!
//! This crate decides *what to run when* and commits results; `sql` decides *how to compute*, `featurestore` holds
//! the results. It knows nothing of serving: the two meet in the store.
//!
//! The way through it:
//!
//! 1. [`Jobs`] — what every job needs: store, catalog, session options, clock.
//! 2. [`due`] — which views are due.
//! 3. [`refresh`] — the rows of a view that became visible since its watermark, as one commit.
//!    [`backfill`] — the rows of a stretch of time computed anew, in ranges, as one commit.
//!    [`compact`] — small data files merged into larger ones; [`garbage`] — what no commit names is removed after a time;
//!    [`check`] — whether everything that commits name is there and whole.
//! 4. [`push`] — events that producers send live: durable, in every view, flushed to object storage.
//!    [`set_aside`] — those on which a view's query fails: listed, tried again, let go.
//! 5. [`training_set`] — a contract's inputs for each row of a spine, as of its time.
//!    [`wire_queries`] — the same for those who ask over the wire, on threads of their own.
//! 6. [`schedule`] — every view refreshed by its `REFRESH EVERY`.
//! 7. [`audit`] — the same rows looked up online at their own time, compared value by value.

mod at_fault;
pub mod audit;
pub mod backfill;
pub mod check;
pub mod compact;
mod distinct;
pub mod due;
pub mod garbage;
mod history;
mod jobs;
mod on_top;
mod panics;
pub mod push;
pub mod refresh;
pub mod schedule;
mod separate;
pub mod set_aside;
pub mod training_set;
mod uncommitted;
pub mod wire_queries;

pub use jobs::Jobs;
