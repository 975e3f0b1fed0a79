//! Aggregates whose states merge: what a window of time adds up to, from the states of its parts.
//!
//! A state is updated by values in any order and merged in any grouping, and gives the same bits (promise 1): sums of
//! floats are exact until they are read. So a refresh, a live stream, an online read and a training set agree, however
//! each came to its tiles.
//!
//! | state | answers | can a part be taken away again |
//! |---|---|---|
//! | [`Total`] | `sum`, `avg`, and with squares `variance` and `stddev` | yes |
//! | [`Extremes`] | `min` and `max` | no |
//! | [`Ends`] | `first_value` and `last_value` | no |
//! | [`LastValues`] | `array_agg` of the last values | no |
//! | [`Distinct`] | `count(DISTINCT x)` | no |
//! | [`HyperLogLog`] | `approx_distinct` | no |
//! | [`Quantiles`] | `approx_percentile_cont` and `approx_median` | no |
//! | [`TopValues`] | `approx_top_k` | no |
//! | [`Summary`] | of these, with a count, what the aggregates over one argument need | no |
//!
//! A view's [`TileLayout`] says which summaries its tiles hold; [`EntityTiles`] puts windows together from them. Where one
//! entity is asked at times that never go back, its windows move along instead: [`RunningWindows`] takes away what has passed,
//! where all parts can be taken away; [`StackedWindows`] serves every part.
//!
//! Laws, which every state's tests check: merging is associative and commutative, a new state is its identity, and what
//! is encoded reads back with the same bytes.

mod columns;
mod distinct;
mod dyadic;
mod ends;
mod extremes;
mod hyper_log_log;
mod last_values;
mod quantiles;
mod running;
mod seen;
mod sorted;
mod stacked;
mod summary;
mod tiles;
mod top_values;
mod total;
mod value;
mod variance;

pub use columns::{Arguments, FeatureBuilder};
pub use distinct::{Distinct, MOST_DISTINCT};
pub use dyadic::Dyadic;
pub use ends::Ends;
pub use extremes::{Extremes, float_of, order_of};
pub use hyper_log_log::HyperLogLog;
pub use last_values::{LastValues, MOST_LAST};
pub use quantiles::Quantiles;
pub use running::RunningWindows;
pub use stacked::StackedWindows;
pub use summary::{Parts, Summary};
pub use tiles::{EntityTiles, Summaries, TileLayout};
pub use top_values::{MOST_COUNTED, MOST_TOP, TopValues};
pub use total::Total;
pub use value::{Held, Value};
use value::{read_array, read_number};
pub use variance::Divisor;
