//! What decoding a protobuf message may take is bounded before it is decoded.
//!
//! Two bytes of a message can become hundreds in memory: an input tensor without contents is a tag and a length of 0 on the
//! wire, and a structure with a dozen empty lists once it is read. So the wire format is walked first, along the fields that
//! grow, and what they will take beside their own bytes is added up; nothing is decoded of a message that takes too much.
//!
//! ```text
//! body -> calls: whole messages' sizes, what Flight's grow to, how much of a caller's is on its way -> service
//! ModelInfer: -> decompressed -> codec: what it grows to -> decoded
//! service -> answers: how much of a caller's nobody reads -> body
//! ```
//!
//! The walk takes a message in pieces, as they come; one that lies there whole is walked in one pass, without keeping anything
//! ([`walk_whole`]). It costs a look at each tag; contents are skipped.

mod answers;
mod calls;
mod codec;
mod whole;

pub(crate) use answers::{CallPlace, Unread};
pub(crate) use calls::{Calls, MOST_BYTES_OF_NOBODY};
pub use codec::BoundedCodec;
#[cfg(test)]
use codec::Grows;
pub(crate) use codec::decode_whole;
use whole::walk_whole;

use springhouse_featurestore::{Error, Result};

/// The fields of a message that take more in memory than on the wire.
#[derive(Debug)]
pub struct Shape(&'static [(u64, Growth)]);

/// What a field takes beside the bytes of its contents.
#[derive(Debug, Clone, Copy)]
struct Growth {
    /// Bytes for each time that it occurs.
    each: u64,
    /// Bytes for each byte of packed contents.
    packed: u64,
    /// The message that it holds.
    inside: Option<&'static Shape>,
}

impl Growth {
    /// A field whose every occurrence is an element of so many bytes.
    const fn element(each: usize) -> Self {
        Self { each: each as u64, packed: 0, inside: None }
    }

    /// Numbers of so many bytes, packed or one by one: the smallest is one byte on the wire.
    const fn numbers(each: usize) -> Self {
        Self { each: each as u64, packed: each as u64, inside: None }
    }

    /// Messages of so many bytes each beside what is in them; none for a field that is there once.
    const fn messages(each: usize, inside: &'static Shape) -> Self {
        Self { each: each as u64, packed: 0, inside: Some(inside) }
    }
}

/// A message that takes no more in memory than on the wire.
pub(crate) const PLAIN: Shape = Shape(&[]);

impl Shape {
    /// Whether there is nothing to look for.
    fn is_plain(&self) -> bool {
        self.0.is_empty()
    }

    fn growth(&self, field: u64) -> Option<&'static Growth> {
        self.0.iter().find(|(number, _)| *number == field).map(|(_, growth)| growth)
    }
}

/// A number of the wire format, of which some bytes have come.
#[derive(Debug, Clone, Copy, Default)]
struct Varint {
    value: u64,
    bytes: u32,
}

impl Varint {
    /// Takes a byte; the number when it is whole.
    fn take(&mut self, byte: u8) -> Result<Option<u64>> {
        if self.bytes >= 10 {
            return Err(malformed("a number is longer than ten bytes"));
        }
        self.value |= u64::from(byte & 0x7F).checked_shl(7 * self.bytes).unwrap_or(0);
        self.bytes += 1;
        Ok((byte < 0x80).then(|| std::mem::take(self).value))
    }
}

/// What comes next of a message.
#[derive(Debug)]
enum Next {
    Tag,
    /// A number, which is passed over.
    Number,
    /// The length of a field's contents.
    Length(Option<&'static Growth>),
    /// So many bytes that are passed over.
    Contents(u64),
}

/// A walk through a message.
#[derive(Debug)]
pub(crate) struct Walk {
    /// The messages that it is in, outermost first, and where each ends.
    inside: Vec<(&'static Shape, u64)>,
    next: Next,
    number: Varint,
    at: u64,
    taken: u64,
    most: u64,
}

impl Walk {
    /// A walk through a message of so many bytes, which may take `most` more once it is decoded.
    pub(crate) fn new(shape: &'static Shape, bytes: u64, most: u64) -> Self {
        Self { inside: vec![(shape, bytes)], next: Next::Tag, number: Varint::default(), at: 0, taken: 0, most }
    }

    /// Walks on through the next bytes.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for a message that would take too much, or that is malformed.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Next::Contents(left) = self.next {
                let passed = left.min(bytes.len() as u64);
                // It is no more than there is.
                bytes = bytes.get(usize::try_from(passed).unwrap_or(usize::MAX)..).unwrap_or_default();
                self.pass(passed);
                self.next = if left == passed { Next::Tag } else { Next::Contents(left - passed) };
            } else {
                bytes = rest;
                self.pass(1);
                if let Some(number) = self.number.take(byte)? {
                    self.step(number)?;
                }
            }
            self.leave()?;
        }
        Ok(())
    }

    fn pass(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(bytes);
    }

    /// Goes on by a tag, a value or a length.
    fn step(&mut self, number: u64) -> Result<()> {
        self.next = match self.next {
            Next::Tag => {
                let growth = self.inside.last().and_then(|(shape, _)| shape.growth(number >> 3));
                self.grow(growth.map_or(0, |growth| growth.each))?;
                match number & 7 {
                    0 => Next::Number,
                    1 => self.contents(8)?,
                    2 => Next::Length(growth),
                    5 => self.contents(4)?,
                    // Groups are of protocols that are older than these.
                    _ => return Err(malformed("a field is of a kind that no message here has")),
                }
            }
            Next::Length(growth) => {
                let contents = self.contents(number)?;
                self.grow(growth.map_or(0, |growth| growth.packed.saturating_mul(number)))?;
                match growth.and_then(|growth| growth.inside) {
                    Some(shape) => {
                        self.inside.push((shape, self.at.saturating_add(number)));
                        Next::Tag
                    }
                    None if number == 0 => Next::Tag,
                    None => contents,
                }
            }
            Next::Number | Next::Contents(_) => Next::Tag,
        };
        Ok(())
    }

    /// Contents of so many bytes, where the message that they are in has them.
    fn contents(&self, bytes: u64) -> Result<Next> {
        let end = self.inside.last().map_or(0, |(_, end)| *end);
        if end.saturating_sub(self.at) < bytes {
            return Err(malformed("a field is longer than its message"));
        }
        Ok(Next::Contents(bytes))
    }

    fn grow(&mut self, by: u64) -> Result<()> {
        self.taken = self.taken.saturating_add(by);
        if self.taken <= self.most { Ok(()) } else { Err(too_large(self.most, self.at)) }
    }

    /// Leaves the messages that end here.
    fn leave(&mut self) -> Result<()> {
        while let Some((_, end)) = self.inside.last().filter(|_| self.inside.len() > 1) {
            if self.at < *end {
                break;
            }
            if self.at > *end || !matches!(self.next, Next::Tag) || self.number.bytes > 0 {
                return Err(malformed("a message ends within a field"));
            }
            self.inside.pop();
        }
        Ok(())
    }
}

/// A message takes more than `most` bytes beside its own; that is known at the byte `at`.
fn too_large(most: u64, at: u64) -> Error {
    Error::invalid("a message would take too much memory once it is read")
        .with("bytes more than it has", format!("over {most}"))
        .with("read up to byte", at)
        .remedy("send fewer rows, values or parameters at once, and numbers as raw contents")
}

fn malformed(what: &str) -> Error {
    Error::invalid(format!("a message is malformed: {what}")).remedy("send messages as a protobuf library writes them")
}

#[cfg(test)]
mod tests;
