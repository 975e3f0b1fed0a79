//! Time: instants and spans as newtypes of UTC microseconds (rule T1), and the injected clock (rule T9).

mod clock;
mod instant;
mod span;

pub use clock::{Clock, DrivenClock, SystemClock};
pub use instant::Timestamp;
pub use span::Span;
