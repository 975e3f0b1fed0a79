//! What of a view no read asks for any more, so that a tier may let go of it.
//!
//! A row whose event is older than the view's TTL is not answered, and a window never looks before its tail. So rows go by the
//! TTL, and chunks of tiles by the longest window. Times are the injected clock's (rule T9), which may be set back: a tier
//! lets go of what was past an hour ago, and remembers how far it went.

use crate::Result;
use crate::aggregate::TileLayout;
use crate::definition::FeatureView;
use crate::encoding::{ChunkId, ChunkLayout, RowHeader, is_chunk};
use crate::time::{Span, Timestamp, floor};

/// What is past is kept so much longer, and looked at again as often.
const MARGIN: Span = Span::from_secs(3_600);

/// How long what a view's entries hold is asked for.
#[derive(Debug, Clone)]
pub struct Expiry {
    ttl: Option<Span>,
    tiles: Option<(TileLayout, ChunkLayout)>,
}

impl Expiry {
    /// Of a view.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when its windows cannot be.
    pub fn new(view: &FeatureView) -> Result<Self> {
        let tiles = match &view.windowed {
            None => None,
            Some(windowed) => {
                let layout = TileLayout::new(windowed)?;
                let chunks = ChunkLayout::new(&layout);
                Some((layout, chunks))
            }
        };
        Ok(Self { ttl: if view.is_static() { None } else { view.ttl }, tiles })
    }

    /// Of rows alone.
    #[cfg(test)]
    pub(super) fn of_ttl(ttl: Span) -> Self {
        Self { ttl: Some(ttl), tiles: None }
    }

    /// Whether a tier may have let go of an entry at `now`.
    pub fn is_past(&self, key: &[u8], value: &[u8], now: Timestamp) -> bool {
        self.cutoff(now).is_past(key, value)
    }

    /// What is past at a time.
    pub(super) fn cutoff(&self, now: Timestamp) -> Cutoff {
        let rows = self.ttl.map(|ttl| now - ttl);
        let tiles = self.tiles.as_ref().and_then(|(layout, chunks)| {
            let tails = layout.windows().iter().map(|window| window.tail(now));
            Some((tails.min()?, layout.clone(), chunks.clone()))
        });
        Cutoff { rows, tiles }
    }

    /// The time whose past a tier may let go of at `now`.
    pub(super) fn until(now: Timestamp) -> Timestamp {
        floor(now, MARGIN) - MARGIN
    }

    /// Whether anything is ever past.
    pub(super) fn is_some(&self) -> bool {
        self.ttl.is_some() || self.tiles.is_some()
    }
}

/// What is past at one time.
#[derive(Debug)]
pub(super) struct Cutoff {
    /// Rows of events before this time.
    rows: Option<Timestamp>,
    /// Chunks whose last tile ends by this time.
    tiles: Option<(Timestamp, TileLayout, ChunkLayout)>,
}

impl Cutoff {
    /// Whether an entry is past.
    pub(super) fn is_past(&self, key: &[u8], value: &[u8]) -> bool {
        if is_chunk(value) {
            let Some((until, layout, chunks)) = &self.tiles else { return false };
            return ChunkId::read(key).and_then(|id| chunks.end(layout, id)).is_some_and(|end| end <= *until);
        }
        // Rows that hold at every time have no event.
        let of_event = RowHeader::read(value).map(|header| header.event_time).filter(|of| *of != Timestamp::MIN);
        self.rows.zip(of_event).is_some_and(|(before, event)| event < before)
    }
}
