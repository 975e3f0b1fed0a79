//! A call's body on its way in: how large each message may be, what it grows to, and how much waits to be whole.
//!
//! gRPC puts five bytes before each message: whether it is compressed, and its length. A message is kept until it is whole,
//! so whoever sends parts of many at once takes memory by them; a caller has a share of what there is for that.

use std::sync::Arc;

use futures::TryStreamExt;
use http_body_util::{BodyStream, StreamBody};
use springhouse_featurestore::{Error, Result};
use tonic::body::Body;

use super::{Growth, PLAIN, Shape, Walk};
use crate::flight::max_message_bytes;
use crate::predict::MOST_REQUEST_BYTES;
use crate::shares::{Share, Shares};
use crate::status::to_status;

/// What precedes a message: whether it is compressed (1), and its length (4).
const PREFIX_BYTES: usize = 5;

/// Bytes of messages that wait to be whole, of all calls: as many as eight of the largest have.
const WAITING_BYTES: usize = 512 << 20;

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

/// The bounds of what calls send, of all calls together.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    waiting: Arc<Shares<Arc<str>>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { waiting: Shares::halves(WAITING_BYTES) }
    }
}

impl Calls {
    /// The same body, until a message of it is refused.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] when there is nothing left for who calls.
    pub(crate) fn bounded(&self, path: &str, who: Option<&Arc<str>>, body: Body) -> Result<Body> {
        let mut messages = Messages::new(bounds_of(path), self.share(who)?);
        let frames = BodyStream::new(body).and_then(move |frame| {
            let checked = frame.data_ref().map_or(Ok(()), |data| messages.take(data));
            std::future::ready(checked.map(|()| frame).map_err(to_status))
        });
        Ok(Body::new(StreamBody::new(frames)))
    }

    fn share(&self, who: Option<&Arc<str>>) -> Result<Share<Arc<str>>> {
        self.waiting.take(who, 0).map_err(|full| full.error(WAITING, who.map(AsRef::as_ref)))
    }
}

/// What a caller has a share of, for messages.
const WAITING: &str = "bytes of messages that have not come whole";

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
    waiting: Share<Arc<str>>,
}

impl Messages {
    fn new((most_bytes, shape): (usize, &'static Shape), waiting: Share<Arc<str>>) -> Self {
        let prefix = [0; PREFIX_BYTES];
        Self { most_bytes, shape, prefix, prefix_bytes: 0, walk: None, length: 0, left: 0, waiting }
    }

    /// Takes the next bytes of the body.
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let wanted = (PREFIX_BYTES - self.prefix_bytes).min(bytes.len());
                let (prefix, rest) = bytes.split_at(wanted);
                self.prefix[self.prefix_bytes..self.prefix_bytes + wanted].copy_from_slice(prefix);
                self.prefix_bytes += wanted;
                bytes = rest;
                if self.prefix_bytes == PREFIX_BYTES {
                    self.begin()?;
                }
            } else {
                let (part, rest) = bytes.split_at(self.left.min(bytes.len()));
                if let Some(walk) = &mut self.walk {
                    walk.take(part)?;
                }
                self.left -= part.len();
                bytes = rest;
            }
        }
        // A small message comes whole, and nobody else is asked about it.
        let waits = if self.left == 0 { 0 } else { self.length - self.left };
        self.waiting.resize(waits).map_err(|full| full.error(WAITING, self.waiting.who().map(AsRef::as_ref)))
    }

    /// Begins the message whose prefix has come.
    fn begin(&mut self) -> Result<()> {
        let [compressed, length @ ..] = self.prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.most_bytes {
            return Err(Error::invalid("a message is too large for its call")
                .with("bytes", length)
                .with("limit", self.most_bytes)
                .remedy("send several smaller ones"));
        }
        (self.prefix_bytes, self.length, self.left) = (0, length, length);
        // What is compressed is looked at by those who decompress it; of Flight nothing is.
        self.walk = (compressed == 0).then(|| Walk::new(self.shape, length as u64, MOST_GROWTH));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use springhouse_featurestore::ErrorKind;

    use super::*;

    fn framed(message: &impl Message) -> Vec<u8> {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("small");
        [&[0][..], &length.to_be_bytes(), message.as_slice()].concat()
    }

    fn messages(path: &str, calls: &Calls, who: Option<&str>) -> Messages {
        let who: Option<Arc<str>> = who.map(Into::into);
        Messages::new(bounds_of(path), calls.share(who.as_ref()).expect("room"))
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

    #[test]
    fn a_caller_has_half_of_what_waits_to_be_whole_and_gives_it_back() {
        let calls = Calls { waiting: Shares::halves(1 << 20) };
        let begun = |messages: &mut Messages, bytes: usize| {
            let begin = [&[0][..], &(1_u32 << 24).to_be_bytes(), &[0x12, 0x80, 0x80, 0x80, 0x04]].concat();
            messages.take(&begin).and_then(|()| messages.take(&vec![0; bytes]))
        };
        let mut first = messages(PUT, &calls, Some("ann"));
        begun(&mut first, 500 << 10).expect("less than half");
        let error = begun(&mut messages(PUT, &calls, Some("ann")), 100 << 10).expect_err("more than half");
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("caller: ann"), "{error}");
        begun(&mut messages(PUT, &calls, Some("bob")), 400 << 10).expect("the rest is for others");
        drop(first);
        begun(&mut messages(PUT, &calls, Some("ann")), 400 << 10).expect("given back");
    }
}
