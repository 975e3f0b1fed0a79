//! Time: instants and spans as newtypes of UTC microseconds, and UTC of local times (rule T1), windows and their tiles (rule T4), and the injected
//! clock (rule T9).

mod clock;
mod instant;
mod local;
mod span;
mod window;

pub use clock::{Clock, DrivenClock, SystemClock};
pub use instant::{Timestamp, Written};
pub use local::{utc_of_local, utc_of_local_until};
pub use span::Span;
pub use window::{Cover, Tile, Tiles, Window, floor};
