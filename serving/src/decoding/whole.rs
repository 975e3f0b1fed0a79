//! The walk through a message that lies there whole, as a predict request does: in one pass over its tags, without keeping
//! anything. It finds what [`super::Walk`] finds.

use springhouse_featurestore::Result;

use super::{Shape, Varint, malformed, too_large};

/// Walks through a message, and returns how many bytes it takes beside its own once it is decoded.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] for a message that would take more than `most`, or that is malformed.
pub(super) fn walk_whole(shape: &'static Shape, message: &[u8], most: u64) -> Result<u64> {
    if shape.is_plain() {
        return Ok(0);
    }
    let mut whole = Whole { message, at: 0, taken: 0, most };
    whole.walk(shape, message.len())?;
    Ok(whole.taken)
}

struct Whole<'a> {
    message: &'a [u8],
    at: usize,
    taken: u64,
    most: u64,
}

impl Whole<'_> {
    /// Walks up to where a message ends. Shapes nest no deeper than they are written down.
    fn walk(&mut self, shape: &'static Shape, end: usize) -> Result<()> {
        while self.at < end {
            let tag = self.number(end)?;
            let growth = shape.growth(tag >> 3);
            if let Some(growth) = growth {
                self.grow(growth.each)?;
            }
            match tag & 7 {
                0 => {
                    self.number(end)?;
                }
                1 => self.at = self.end_of(8, end)?,
                5 => self.at = self.end_of(4, end)?,
                2 => {
                    let length = self.number(end)?;
                    let contents_end = self.end_of(length, end)?;
                    if let Some(growth) = growth {
                        self.grow(growth.packed.saturating_mul(length))?;
                        if let Some(inside) = growth.inside {
                            self.walk(inside, contents_end)?;
                        }
                    }
                    self.at = contents_end;
                }
                // Groups are of protocols that are older than these.
                _ => return Err(malformed("a field is of a kind that no message here has")),
            }
        }
        Ok(())
    }

    /// The next number: most have one byte.
    #[inline]
    fn number(&mut self, end: usize) -> Result<u64> {
        match self.message.get(self.at) {
            Some(&byte) if byte < 0x80 && self.at < end => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_number(end),
        }
    }

    fn long_number(&mut self, end: usize) -> Result<u64> {
        let mut number = Varint::default();
        for &byte in self.message.get(self.at..end).unwrap_or_default() {
            self.at += 1;
            if let Some(value) = number.take(byte)? {
                return Ok(value);
            }
        }
        Err(malformed("a message ends within a field"))
    }

    /// Where so many bytes end, which the message that they are in must have.
    fn end_of(&self, bytes: u64, end: usize) -> Result<usize> {
        let place = usize::try_from(bytes).ok().and_then(|bytes| self.at.checked_add(bytes));
        place.filter(|place| *place <= end).ok_or_else(|| malformed("a field is longer than its message"))
    }

    fn grow(&mut self, by: u64) -> Result<()> {
        self.taken = self.taken.saturating_add(by);
        if self.taken <= self.most { Ok(()) } else { Err(too_large(self.most, self.at as u64)) }
    }
}
