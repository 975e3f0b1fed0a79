//! A call's body on its way in: how large each message may be, what it grows to, and how much of all of them is on its way.
//!
//! gRPC puts five bytes before each message: whether it is compressed, and its length. Whoever reads it makes room for all of
//! that length at once, and keeps it until it is whole; so the length that a message declares is counted before those five bytes
//! are handed on, and until its reader asks for more: a stream whose reader waits has a message lying there. A caller has a share
//! of what there is for that. A message that comes in one piece takes part in none of it.
//!
//! A call that takes one message ends with it: whoever reads it has it decoded by then, and does not wait for a caller that
//! never says that nothing follows. A caller that begins a call and sends no first message is waited for so long, and no longer.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use springhouse_featurestore::{Error, Result};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::answers::Answers;
use super::{Growth, PLAIN, Shape, Walk, walk_whole};
use crate::flight::max_message_bytes;
use crate::predict::MOST_REQUEST_BYTES;
use crate::shares::{Share, Shares};
use crate::status::to_status;

/// What precedes a message: whether it is compressed (1), and its length (4).
const PREFIX_BYTES: usize = 5;

/// Bytes of messages that are on their way, of all calls: as many as eight of the largest have.
const WAITING_BYTES: usize = 512 << 20;

/// A message of no more bytes is not counted: its reader has a buffer of that order for each stream anyway.
const SMALL_BYTES: usize = 16 << 10;

/// The most bytes of a message of nobody in particular: whether a process is alive is asked in a few.
pub(crate) const MOST_BYTES_OF_NOBODY: usize = 4 << 10;

/// How long a call that needs no caller may take to send its message.
const NOBODY_WITHIN: Duration = Duration::from_secs(10);

/// How long a stream may take to send its first message.
const FIRST_WITHIN: Duration = Duration::from_secs(300);

/// Calls that need no caller and are open at once.
const MOST_OF_NOBODY: usize = 1024;

/// The part of those that one host may have, unless it is this one.
const ONE_HOST_OF: usize = 4;

/// The most bytes of a Flight call's one message: a command with the SQL text of a spine.
const MOST_COMMAND_BYTES: usize = 4 << 20;

/// The most bytes of every other message: names, and whether one is there.
const MOST_SMALL_BYTES: usize = 64 << 10;

/// What a message of Flight may take beside its own bytes: a path of tens of thousands of steps, where ours have none.
const MOST_GROWTH: u64 = 1 << 20;

const DESCRIPTOR: Shape = Shape(&[(3, Growth::element(size_of::<String>()))]);

const DATA: Shape = Shape(&[(1, Growth::messages(0, &DESCRIPTOR))]);

/// An action names a producer at most, and holds its message while it waits.
const ACTION: &str = "/arrow.flight.protocol.FlightService/DoAction";

/// The most bytes of a message of a call, and what of it grows.
fn bounds_of(path: &str) -> (usize, &'static Shape) {
    match path {
        "/arrow.flight.protocol.FlightService/DoPut" | "/arrow.flight.protocol.FlightService/DoExchange" => {
            (max_message_bytes(), &DATA)
        }
        "/arrow.flight.protocol.FlightService/DoGet" => (MOST_COMMAND_BYTES, &PLAIN),
        // What it grows to is looked at when it is decompressed: by its codec.
        "/inference.GRPCInferenceService/ModelInfer" => (MOST_REQUEST_BYTES, &PLAIN),
        // Those that are asked with a descriptor, and those that are asked with less.
        flight if flight.starts_with("/arrow.flight.protocol.FlightService/") && flight != ACTION => {
            (MOST_COMMAND_BYTES, &DESCRIPTOR)
        }
        _ => (MOST_SMALL_BYTES, &PLAIN),
    }
}

/// Whether a call takes any number of messages. Every other takes one.
fn takes_many(path: &str) -> bool {
    let flight = path.strip_prefix("/arrow.flight.protocol.FlightService/");
    flight.is_some_and(|method| matches!(method, "DoPut" | "DoExchange" | "Handshake"))
        || path.starts_with("/grpc.reflection.")
}

/// The bounds of what calls send, and of what they are sent, of all calls together.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    waiting: Arc<Shares<Arc<str>>>,
    /// Calls that need no caller, by the host that they come from.
    of_nobody: Arc<Shares<IpAddr>>,
    answers: Answers,
}

impl Default for Calls {
    fn default() -> Self {
        let of_nobody = Shares::new(MOST_OF_NOBODY, MOST_OF_NOBODY / ONE_HOST_OF);
        Self { waiting: Shares::halves(WAITING_BYTES), of_nobody, answers: Answers::default() }
    }
}

impl Calls {
    /// The same body, until a message of it is refused.
    pub(crate) fn bounded(&self, path: &str, who: Option<&Arc<str>>, body: Body) -> Body {
        let messages = Messages::new(bounds_of(path), self.waiting.nothing(who));
        let many = takes_many(path);
        let within = many.then(|| Box::pin(tokio::time::sleep(FIRST_WITHIN)));
        Body::new(BoundedBody { inner: body, messages, many, within })
    }

    /// The same body of a call that needs no caller. None of it is counted: nobody in particular takes anything from those who are
    /// known.
    pub(crate) fn of_nobody(&self, body: Body) -> Body {
        let messages = Messages::new((MOST_BYTES_OF_NOBODY, &PLAIN), self.waiting.nothing(None));
        let within = Some(Box::pin(tokio::time::sleep(NOBODY_WITHIN)));
        Body::new(BoundedBody { inner: body, messages, many: false, within })
    }

    /// A place for a call that needs no caller, of a host if it comes from another.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] when there is none.
    pub(crate) fn place_of_nobody(&self, host: Option<IpAddr>) -> Result<Share<IpAddr>> {
        let name = host.map(|host| host.to_string());
        self.of_nobody.take(host.as_ref(), 1).map_err(|full| full.error("calls that name no caller", name.as_deref()))
    }

    /// What its answers may leave unread.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }
}

/// A body whose messages are looked at as they come.
struct BoundedBody {
    inner: Body,
    messages: Messages,
    /// Whether there may be more than one.
    many: bool,
    /// By when the first must have come whole, until it has.
    within: Option<Pin<Box<Sleep>>>,
}

impl BoundedBody {
    fn take(&mut self, data: &[u8]) -> Result<()> {
        self.messages.take(data)?;
        if self.messages.any {
            self.within = None;
            if !self.many && self.messages.more {
                return Err(Error::invalid("a call that takes one message has more").remedy("make a call for each"));
            }
        }
        Ok(())
    }

    /// Whether the first message has not come in time.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        self.within.as_mut().is_some_and(|within| within.as_mut().poll(context).is_ready())
    }
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.messages.read_on();
        Poll::Ready(match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let checked = frame.data_ref().map_or(Ok(()), |data| this.take(data));
                Some(checked.map(|()| frame).map_err(to_status))
            }
            Poll::Ready(ended) => ended,
            // Its one message is there: that nothing follows need not be said.
            Poll::Pending if !this.many && this.messages.any => None,
            Poll::Pending if this.is_late(context) => {
                this.within = None;
                let error = Error::expired("a call began, and its first message did not come in time");
                Some(Err(to_status(error.remedy("send it with the call"))))
            }
            Poll::Pending => return Poll::Pending,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What is counted of a message's length.
fn counted(length: usize) -> usize {
    if length > SMALL_BYTES { length } else { 0 }
}

/// What a caller has a share of, for messages.
const WAITING: &str = "bytes of messages that are on their way or wait for their turn";

/// The messages of one body.
#[derive(Debug)]
struct Messages {
    most_bytes: usize,
    shape: &'static Shape,
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// The message that comes, and how many of its bytes are still to come.
    walk: Option<Walk>,
    length: usize,
    left: usize,
    /// Bytes of messages that came in pieces, are whole now, and are not known to have been read.
    unread: usize,
    /// What is taken for both.
    held: Share<Arc<str>>,
    /// Whether a message has come whole, and whether anything came behind it.
    any: bool,
    more: bool,
}

impl Messages {
    fn new((most_bytes, shape): (usize, &'static Shape), held: Share<Arc<str>>) -> Self {
        let prefix = [0; PREFIX_BYTES];
        let (walk, any, more) = (None, false, false);
        Self { most_bytes, shape, prefix, prefix_bytes: 0, walk, length: 0, left: 0, unread: 0, held, any, more }
    }

    /// Its reader asks for more: it is done with what had come.
    fn read_on(&mut self) {
        if self.unread > 0 {
            self.unread = 0;
            self.held.shrink(self.coming());
        }
    }

    /// What the message takes that has not come whole.
    fn coming(&self) -> usize {
        if self.left == 0 { 0 } else { counted(self.length) }
    }

    /// Takes the next bytes of the body.
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.left > 0 {
            bytes = self.go_on(bytes)?;
        }
        while !bytes.is_empty() {
            self.more |= self.any;
            let (prefix, rest) = bytes.split_at((PREFIX_BYTES - self.prefix_bytes).min(bytes.len()));
            self.prefix[self.prefix_bytes..self.prefix_bytes + prefix.len()].copy_from_slice(prefix);
            self.prefix_bytes += prefix.len();
            bytes = if self.prefix_bytes < PREFIX_BYTES { rest } else { self.begin(rest)? };
        }
        let held = self.unread + self.coming();
        // Most messages come in one piece, and nobody else is asked about those.
        self.held.resize(held).map_err(|full| full.error(WAITING, self.held.who().map(AsRef::as_ref)))
    }

    /// Goes on with a message that began before; gives what is left.
    fn go_on<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let (part, rest) = bytes.split_at(self.left.min(bytes.len()));
        if let Some(walk) = &mut self.walk {
            walk.take(part)?;
        }
        self.left -= part.len();
        if self.left == 0 {
            self.any = true;
            self.unread += counted(self.length);
        }
        Ok(rest)
    }

    /// Begins the message whose prefix has come; gives what is left behind it.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let [compressed, length @ ..] = self.prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.most_bytes {
            return Err(Error::invalid("a message is too large for its call")
                .with("bytes", length)
                .with("limit", self.most_bytes)
                .remedy("send several smaller ones"));
        }
        (self.prefix_bytes, self.length) = (0, length);
        // What is compressed is looked at by those who decompress it; of Flight nothing is.
        let is_walked = compressed == 0 && !self.shape.is_plain();
        if let Some((message, rest)) = bytes.split_at_checked(length) {
            if is_walked {
                walk_whole(self.shape, message, MOST_GROWTH)?;
            }
            self.any = true;
            return Ok(rest);
        }
        self.walk = is_walked.then(|| Walk::new(self.shape, length as u64, MOST_GROWTH));
        if let Some(walk) = &mut self.walk {
            walk.take(bytes)?;
        }
        self.left = length - bytes.len();
        Ok(&[])
    }
}

#[cfg(test)]
mod tests;
