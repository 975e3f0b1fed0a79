//! A call's body on its way in: how large each message may be, what it grows to, and how much of all of them is on its way.
//!
//! gRPC puts five bytes before each message: whether it is compressed, and its length. Whoever reads it makes room for all of
//! that length at once, and keeps it until it is whole; so the length that a message declares is counted before those five bytes
//! are handed on, and until its reader asks for more: a stream whose reader waits has a message lying there. A caller has a share
//! of what there is for that. A message that comes in one piece takes part in none of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use springhouse_featurestore::{Error, Result};
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

/// The most bytes of a Flight call's one message: a command with the SQL text of a spine.
const MOST_COMMAND_BYTES: usize = 4 << 20;

/// The most bytes of every other message: names, and whether one is there.
const MOST_SMALL_BYTES: usize = 64 << 10;

/// What a message of Flight may take beside its own bytes: a path of tens of thousands of steps, where ours have none.
const MOST_GROWTH: u64 = 1 << 20;

const DESCRIPTOR: Shape = Shape(&[(3, Growth::element(size_of::<String>()))]);

const DATA: Shape = Shape(&[(1, Growth::messages(0, &DESCRIPTOR))]);

/// The most bytes of a message of a call, and what of it grows.
fn bounds_of(path: &str) -> (usize, &'static Shape) {
    match path {
        "/arrow.flight.protocol.FlightService/DoPut" | "/arrow.flight.protocol.FlightService/DoExchange" => {
            (max_message_bytes(), &DATA)
        }
        "/arrow.flight.protocol.FlightService/DoGet" | "/arrow.flight.protocol.FlightService/DoAction" => {
            (MOST_COMMAND_BYTES, &PLAIN)
        }
        // What it grows to is looked at when it is decompressed: by its codec.
        "/inference.GRPCInferenceService/ModelInfer" => (MOST_REQUEST_BYTES, &PLAIN),
        // Those that are asked with a descriptor, and those that are asked with less.
        flight if flight.starts_with("/arrow.flight.protocol.FlightService/") => (MOST_COMMAND_BYTES, &DESCRIPTOR),
        _ => (MOST_SMALL_BYTES, &PLAIN),
    }
}

/// The bounds of what calls send, and of what they are sent, of all calls together.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    waiting: Arc<Shares<Arc<str>>>,
    answers: Answers,
}

impl Default for Calls {
    fn default() -> Self {
        Self { waiting: Shares::halves(WAITING_BYTES), answers: Answers::default() }
    }
}

impl Calls {
    /// The same body, until a message of it is refused.
    pub(crate) fn bounded(&self, path: &str, who: Option<&Arc<str>>, body: Body) -> Body {
        Body::new(BoundedBody { inner: body, messages: Messages::new(bounds_of(path), self.waiting.nothing(who)) })
    }

    /// The same body of a call that needs no caller. None of it is counted: nobody in particular takes anything from those who are
    /// known.
    pub(crate) fn of_nobody(&self, body: Body) -> Body {
        let messages = Messages::new((MOST_BYTES_OF_NOBODY, &PLAIN), self.waiting.nothing(None));
        Body::new(BoundedBody { inner: body, messages })
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
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.messages.read_on();
        Poll::Ready(match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
            Some(Ok(frame)) => {
                let checked = frame.data_ref().map_or(Ok(()), |data| this.messages.take(data));
                Some(checked.map(|()| frame).map_err(to_status))
            }
            ended => ended,
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
}

impl Messages {
    fn new((most_bytes, shape): (usize, &'static Shape), held: Share<Arc<str>>) -> Self {
        let prefix = [0; PREFIX_BYTES];
        Self { most_bytes, shape, prefix, prefix_bytes: 0, walk: None, length: 0, left: 0, unread: 0, held }
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
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use springhouse_featurestore::ErrorKind;

    use super::*;

    fn framed(message: &impl Message) -> Vec<u8> {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("small");
        [&[0][..], &length.to_be_bytes(), message.as_slice()].concat()
    }

    impl Messages {
        fn held_bytes(&self) -> usize {
            self.held.amount()
        }
    }

    fn messages(path: &str, calls: &Calls, who: Option<&str>) -> Messages {
        let who: Option<Arc<str>> = who.map(Into::into);
        Messages::new(bounds_of(path), calls.waiting.nothing(who.as_ref()))
    }

    const PUT: &str = "/arrow.flight.protocol.FlightService/DoPut";

    #[test]
    fn a_descriptors_path_of_a_million_steps_is_refused_however_it_is_cut() {
        let path = |steps: usize| arrow_flight::FlightDescriptor::new_path(vec![String::new(); steps]);
        let data = |steps: usize| {
            let flight_descriptor = Some(path(steps));
            framed(&arrow_flight::FlightData { flight_descriptor, ..arrow_flight::FlightData::default() })
        };
        for chunk in [1, 3, 1000, 1 << 24] {
            let take = |bytes: &[u8]| {
                let mut messages = messages(PUT, &Calls::default(), None);
                bytes.chunks(chunk).try_for_each(|part| messages.take(part))
            };
            take(&[data(10), data(100)].concat()).expect("as people may write it");
            let error = take(&data(1_000_000)).expect_err("24 MB of a message of 2 MB");
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("too much memory"), "{error}");
        }
        let mut schema = messages("/arrow.flight.protocol.FlightService/GetSchema", &Calls::default(), None);
        schema.take(&framed(&path(1_000_000))).expect_err("the same of a descriptor alone");
    }

    #[test]
    fn a_message_that_declares_too_much_is_refused_by_its_first_bytes() {
        for (path, limit) in
            [(PUT, 64_u32 << 20), ("/arrow.flight.protocol.FlightService/DoGet", 4 << 20), ("/else", 1 << 16)]
        {
            let declared = |bytes: u32| [&[0][..], &bytes.to_be_bytes()].concat();
            messages(path, &Calls::default(), None).take(&declared(limit)).expect("as many as there may be");
            let error = messages(path, &Calls::default(), None).take(&declared(limit + 1)).expect_err("one more");
            assert!(error.to_string().contains("too large"), "{path}: {error}");
        }
    }

    /// A message's prefix and its first bytes: contents of a field of Flight's data.
    fn begun(length: u32) -> Vec<u8> {
        [&[0][..], &length.to_be_bytes(), &[0x12, 0x80, 0x80, 0x80, 0x04]].concat()
    }

    #[test]
    fn what_a_message_declares_is_taken_before_any_of_it_comes_and_given_back_when_its_reader_goes_on() {
        let calls = Calls { waiting: Shares::halves(64 << 20), ..Calls::default() };
        let prefix = begun(24 << 20);
        let mut first = messages(PUT, &calls, Some("ann"));
        first.take(&prefix[..5]).expect("less than half");
        let error = messages(PUT, &calls, Some("ann")).take(&prefix[..5]).expect_err("five bytes that declare more");
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("caller: ann"), "{error}");
        messages(PUT, &calls, Some("bob")).take(&prefix).expect("the rest is for others");
        // A small one in one piece takes part in none of it.
        messages(PUT, &calls, Some("ann")).take(&framed(&arrow_flight::FlightData::default())).expect("small");
        first.take(&prefix[5..]).expect("it goes on");
        first.read_on();
        assert_eq!(first.held_bytes(), 24 << 20, "it has not come whole");
        let contents = vec![0; (24 << 20) - 5];
        contents.chunks(1 << 20).try_for_each(|part| first.take(part)).expect("it comes");
        messages(PUT, &calls, Some("ann")).take(&prefix).expect_err("it is whole, and lies there");
        first.read_on();
        assert_eq!(first.held_bytes(), 0);
        messages(PUT, &calls, Some("ann")).take(&prefix).expect("given back");
        first.take(&prefix).expect("the next of the stream");
        drop(first);
        messages(PUT, &calls, Some("ann")).take(&prefix).expect("given back with the body");
    }

    #[test]
    fn a_message_counts_until_it_is_read_though_the_next_has_begun() {
        let calls = Calls::default();
        let mut stream = messages(PUT, &calls, None);
        let message = framed(&arrow_flight::FlightData { data_body: vec![7; 40 << 10].into(), ..Default::default() });
        let (length, next) = (message.len() - 5, 100 << 10);
        stream.take(&message[..50]).expect("a part");
        assert_eq!(stream.held_bytes(), length);
        stream.take(&[&message[50..], &begun(next)[..5]].concat()).expect("the rest of it, and the next");
        assert_eq!(stream.held_bytes(), length + next as usize);
        stream.read_on();
        assert_eq!(stream.held_bytes(), next as usize);
        // One that is small is not counted, however it is cut.
        let mut stream = messages(PUT, &calls, None);
        stream.take(&begun(10 << 10)[..5]).expect("small");
        assert_eq!(stream.held_bytes(), 0);
    }

    #[test]
    fn nobody_in_particular_declares_no_more_than_a_question_whether_a_process_is_alive_has() {
        let mut asked = Messages::new((MOST_BYTES_OF_NOBODY, &PLAIN), Calls::default().waiting.nothing(None));
        let declared = |bytes: u32| [&[0][..], &bytes.to_be_bytes()].concat();
        asked.take(&declared(4 << 10)).expect("as many as there may be");
        let mut asked = Messages::new((MOST_BYTES_OF_NOBODY, &PLAIN), Calls::default().waiting.nothing(None));
        asked.take(&declared(4 << 20)).expect_err("its reader would make room for them");
    }

    /// Bytes of a body: messages of Flight, whole, cut off, or no messages at all.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let message = (0..40_usize, 0..40_000_usize).prop_map(|(steps, bytes)| {
            let flight_descriptor = Some(arrow_flight::FlightDescriptor::new_path(vec![String::new(); steps]));
            let data_body = vec![7; bytes].into();
            framed(&arrow_flight::FlightData { flight_descriptor, data_body, ..Default::default() })
        });
        let noise = prop::collection::vec(any::<u8>(), 0..60);
        let part = prop_oneof![4 => message, 1 => noise, 1 => (0..=64_u32 << 20).prop_map(begun)];
        prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_body_however_it_is_cut_takes_what_it_declares_at_most_and_gives_all_of_it_back(
            body in bodies(),
            pieces in prop::collection::vec(1..20_000_usize, 1..20),
        ) {
            let calls = Calls::default();
            let mut stream = messages(PUT, &calls, Some("ann"));
            let (mut left, mut came) = (body.as_slice(), 0);
            for piece in pieces.into_iter().cycle() {
                let (part, rest) = left.split_at(piece.min(left.len()));
                if part.is_empty() || stream.take(part).is_err() {
                    break;
                }
                (left, came) = (rest, came + part.len());
                // The message that comes, and what came since its reader asked for more.
                prop_assert!(stream.held_bytes() <= stream.coming() + came);
                stream.read_on();
                prop_assert_eq!(stream.held_bytes(), stream.coming());
            }
            drop(stream);
            prop_assert!(calls.waiting.take(Some(&"ann".into()), WAITING_BYTES / 2).is_ok());
            prop_assert!(calls.waiting.take(Some(&"bob".into()), WAITING_BYTES).is_ok());
        }
    }
}
