//! Bodies on their way in: what is refused, what counts and for how long, and when they end.

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

/// A body of these pieces, whose caller never says that it has ended.
fn open_body(pieces: Vec<Vec<u8>>) -> Body {
    use futures::StreamExt;
    let pieces = pieces.into_iter().map(|piece| Ok::<_, Status>(Frame::data(Bytes::from(piece))));
    Body::new(http_body_util::StreamBody::new(futures::stream::iter(pieces).chain(futures::stream::pending())))
}

/// The bytes of the next piece, the code of the error that there is instead, or nothing at the end; at once.
fn next(body: &mut Body) -> Poll<Option<Result<usize, tonic::Code>>> {
    use futures::FutureExt;
    use http_body_util::BodyExt;
    let Some(frame) = body.frame().now_or_never() else { return Poll::Pending };
    let read = |frame: Frame<Bytes>| frame.data_ref().map_or(0, Bytes::len);
    Poll::Ready(frame.map(|frame| frame.map(read).map_err(|error| error.code())))
}

const GET: &str = "/arrow.flight.protocol.FlightService/DoGet";

#[tokio::test]
async fn a_call_of_one_message_has_ended_when_it_came_whole_though_its_caller_never_says_so() {
    let message = framed(&arrow_flight::Ticket::new(vec![7; 100]));
    let (first, second) = message.split_at(50);
    let pieces = || vec![first.to_vec(), second.to_vec()];
    let infer = "/inference.GRPCInferenceService/ModelInfer";
    let came = |bytes: usize| Poll::Ready(Some(Ok(bytes)));
    for path in [GET, infer, "/inference.GRPCInferenceService/ModelReady", "/else"] {
        let mut body = Calls::default().bounded(path, None, open_body(pieces()));
        assert_eq!((next(&mut body), next(&mut body)), (came(50), came(second.len())));
        assert_eq!(next(&mut body), Poll::Ready(None), "{path}");
        let mut half = Calls::default().bounded(path, None, open_body(vec![first.to_vec()]));
        assert_eq!((next(&mut half), next(&mut half)), (came(50), Poll::Pending), "{path}: it has not come whole");
    }
    let mut asked = Calls::default().of_nobody(open_body(vec![vec![0; PREFIX_BYTES]]));
    assert_eq!((next(&mut asked), next(&mut asked)), (came(PREFIX_BYTES), Poll::Ready(None)));
    let mut stream = Calls::default().bounded(PUT, None, open_body(vec![vec![0; PREFIX_BYTES]]));
    assert_eq!((next(&mut stream), next(&mut stream)), (came(PREFIX_BYTES), Poll::Pending), "a stream goes on");
    let mut two = Calls::default().bounded(GET, None, open_body(vec![message.repeat(2)]));
    assert_eq!(next(&mut two), Poll::Ready(Some(Err(tonic::Code::InvalidArgument))));
}

#[tokio::test]
async fn a_first_message_that_does_not_come_is_not_waited_for_for_ever() {
    use http_body_util::BodyExt;
    let calls = Calls::default();
    let body = |pieces, many, within| BoundedBody {
        inner: open_body(pieces),
        messages: Messages::new(bounds_of(PUT), calls.waiting.nothing(None)),
        many,
        within: Some(Box::pin(tokio::time::sleep(within))),
    };
    let short = Duration::from_millis(20);
    for many in [false, true] {
        let mut silent = body(vec![vec![0; PREFIX_BYTES - 1]], many, short);
        silent.frame().await.expect("one").expect("right");
        let late = silent.frame().await.expect("not the end").expect_err("its time is over");
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }
    // The second of a stream may come whenever it likes.
    let mut stream = body(vec![vec![0; PREFIX_BYTES]], true, short);
    stream.frame().await.expect("one").expect("right");
    tokio::time::timeout(10 * short, stream.frame()).await.expect_err("it waits");
    // Calls that need nobody, and streams, have such a time; the message of another call may be long on its way.
    for path in [PUT, "/arrow.flight.protocol.FlightService/DoExchange", "/grpc.reflection.v1.ServerReflection/Info"] {
        assert!(takes_many(path), "{path}");
    }
    assert!(!takes_many(GET) && !takes_many("/inference.GRPCInferenceService/ModelInfer"));
}

#[test]
fn one_host_has_a_quarter_of_the_calls_that_name_no_caller() {
    let calls = Calls::default();
    let host = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
    let held: Vec<_> =
        (0..MOST_OF_NOBODY / ONE_HOST_OF).map(|_| calls.place_of_nobody(host(1)).expect("free")).collect();
    assert_eq!(calls.place_of_nobody(host(1)).expect_err("its part").kind(), ErrorKind::Busy);
    calls.place_of_nobody(host(2)).expect("the rest is for others");
    drop(held);
    calls.place_of_nobody(host(1)).expect("given back");
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
