//! Aggregates whose states merge: what a window of time adds up to, from the states of its parts.
//!
//! A state is updated by values in any order and merged in any grouping, and gives the same bits (promise 1): sums of
//! floats are exact until they are read. So a refresh, a live stream, an online read and a training set agree, however
//! each came to its tiles.
//!
//! | state | answers | can a part be taken away again |
//! |---|---|---|
//! | [`Total`] | `sum` and `avg` of floats | yes |
//! | [`Extremes`] | `min` and `max` | no |
//! | [`Summary`] | of these, a count and the sum of squares what the aggregates over one argument need | no |
//!
//! A view's [`TileLayout`] says which summaries its tiles hold; [`EntityTiles`] puts windows together from them.
//!
//! Laws, which every state's tests check: merging is associative and commutative, a new state is its identity, and what
//! is encoded reads back with the same bytes.

mod columns;
mod distinct;
mod dyadic;
mod ends;
mod extremes;
mod hyper_log_log;
mod quantiles;
mod running;
mod summary;
mod tiles;
mod total;
mod value;
mod variance;

pub use columns::{Arguments, FeatureBuilder};
pub use distinct::{Distinct, MOST_DISTINCT};
pub use dyadic::Dyadic;
pub use ends::Ends;
pub use extremes::{Extremes, float_of, order_of};
pub use hyper_log_log::HyperLogLog;
pub use quantiles::Quantiles;
pub use running::RunningWindows;
pub use summary::{Parts, Summary};
pub use tiles::{EntityTiles, Summaries, TileLayout};
pub use total::Total;
pub use value::{Held, Value};
use value::{read_array, read_number};
pub use variance::Divisor;
