//! The definition language, and the DataFusion session with Springhouse's own operators.
//!
//! It knows how to compute, never when: `materializer` decides what to run and commits results; `serving` runs the
//! compiled inputs. It stores nothing.
//!
//! The way through it:
//!
//! 1. [`nesting`] — how much text is taken at all. [`parse`] — text to statements with positions; [`print`] — statements to canonical text, which is what versions hash.
//! 2. [`check`] — statements against the catalog, in full, to definitions; errors are [`diagnostic::Diagnostics`].
//! 3. [`change_plan`] — the difference between definitions and the catalog, for people.
//! 4. [`session`] — the DataFusion session in which tables, sources and views are queries.
//! 5. [`view_rows`] — the rows of a view that became visible in a stretch of time: what a refresh commits.
//!    [`windowed`] — a windowed view's query taken apart into events and aggregates.
//! 6. [`point_in_time`] — for each row of a spine the feature row that was known at its time (rules T3 to T5).
//! 7. [`spine`] — a spine, and the features of all views of a contract as of its times.
//! 8. [`inputs`] — a contract's input expressions, compiled once, used by training and serving.

mod barrier;
pub mod change_plan;
pub mod check;
pub mod diagnostic;
pub mod inputs;
pub mod nesting;
pub mod parse;
pub mod point_in_time;
pub mod print;
pub mod pushed;
pub mod session;
mod spill;
pub mod spine;
pub mod view_rows;
pub mod windowed;
