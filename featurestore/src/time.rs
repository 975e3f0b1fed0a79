//! Time: instants and spans as newtypes of UTC microseconds (rule T1), windows and their tiles (rule T4), and the injected
//! clock (rule T9).

mod clock;
mod instant;
mod span;
mod window;

pub use clock::{Clock, DrivenClock, SystemClock};
pub use instant::Timestamp;
pub use span::Span;
pub use window::{Cover, Tile, Tiles, Window, floor};
