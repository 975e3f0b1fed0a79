//! A call's answers on their way out: what has been written and its caller has not read.
//!
//! HTTP/2 asks for the next piece of an answer when its caller has room for a single byte of the one before; that one then lies
//! in a buffer of the connection until it is read, however large it is. So a piece is handed on with what counts it, and counts
//! until the connection lets go of its bytes. A caller that asks for much on many streams and reads none of it has a share of what
//! there is for that; the answer that would be too much ends with an error. What is small takes part in none of it.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::security::OpenCall;
use crate::shares::{Full, Share, Shares};
use crate::status::to_status;

/// Bytes of answers that nobody has read, of all calls.
const UNREAD_BYTES: usize = 512 << 20;

/// So many bytes of a call are handed on without a look at what becomes of them: most answers have no more.
const FREE_BYTES: usize = 4 << 10;

/// No more than this of a call is not counted: a frame of HTTP/2 has as many, of which each stream has one anyway.
const SMALL_BYTES: usize = 12 << 10;

/// What a caller has a share of, for answers.
const UNREAD: &str = "bytes of answers that are not read";

/// The bounds of what callers leave unread, of all calls together.
#[derive(Debug, Clone)]
pub(crate) struct Answers(Arc<Shares<Arc<str>>>);

impl Default for Answers {
    fn default() -> Self {
        Self(Shares::halves(UNREAD_BYTES))
    }
}

impl Answers {
    /// What one call leaves unread: nothing yet.
    pub(crate) fn unread(&self, who: Option<&Arc<str>>, place: CallPlace) -> Unread {
        Unread { share: self.0.nothing(who), place }
    }
}

/// What a call holds for as long as it is open.
#[derive(Debug, Default)]
pub(crate) struct CallPlace {
    _of_caller: Option<OpenCall>,
    _of_nobody: Option<Share<IpAddr>>,
}

impl CallPlace {
    /// That of a caller who is known; none where nobody is asked who they are.
    pub(crate) fn of(call: Option<OpenCall>) -> Self {
        Self { _of_caller: call, _of_nobody: None }
    }

    /// That of a call which needs no caller.
    pub(crate) fn of_nobody(place: Share<IpAddr>) -> Self {
        Self { _of_caller: None, _of_nobody: Some(place) }
    }
}

/// What one call leaves unread.
#[derive(Debug)]
pub(crate) struct Unread {
    share: Share<Arc<str>>,
    place: CallPlace,
}

impl Unread {
    /// The same body, until it is too much.
    pub(crate) fn bounded(self, body: Body) -> Body {
        let Self { share, place } = self;
        let counting = Counting::Not(Some(share));
        Body::new(BoundedAnswer { inner: body, free: FREE_BYTES, counting, ended: false, _place: place })
    }
}

/// The bytes of a call that the connection holds, beside those that are free.
#[derive(Debug)]
struct Held(Mutex<(usize, Share<Arc<str>>)>);

impl Held {
    fn locked(&self) -> MutexGuard<'_, (usize, Share<Arc<str>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted of so many bytes.
    fn counted(bytes: usize) -> usize {
        if bytes > SMALL_BYTES { bytes } else { 0 }
    }

    /// Counts so many bytes more; else says why not, and of whom.
    fn take(&self, bytes: usize) -> Result<(), (Full, Option<Arc<str>>)> {
        let mut held = self.locked();
        let (before, share) = &mut *held;
        let now = before.saturating_add(bytes);
        share.resize(Self::counted(now)).map_err(|full| (full, share.who().cloned()))?;
        *before = now;
        Ok(())
    }

    fn give(&self, bytes: usize) {
        let mut held = self.locked();
        let (before, share) = &mut *held;
        *before = before.saturating_sub(bytes);
        share.shrink(Self::counted(*before));
    }
}

/// A piece of an answer, which counts until its last byte is let go of.
struct Counted {
    bytes: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.give(self.bytes.len());
    }
}

/// Whether a call's bytes are counted.
enum Counting {
    /// Not yet; what they will be taken from.
    Not(Option<Share<Arc<str>>>),
    Since(Arc<Held>),
}

struct BoundedAnswer {
    inner: Body,
    /// Bytes that are handed on uncounted still.
    free: usize,
    counting: Counting,
    ended: bool,
    _place: CallPlace,
}

impl BoundedAnswer {
    /// The same bytes, counted where they are not the first few of a call.
    fn count(&mut self, bytes: Bytes) -> Result<Bytes, (Full, Option<Arc<str>>)> {
        if let Some(free) = self.free.checked_sub(bytes.len()) {
            self.free = free;
            return Ok(bytes);
        }
        let held = match &mut self.counting {
            Counting::Since(held) => Arc::clone(held),
            Counting::Not(share) => {
                let share = share.take().expect("it is taken once, for what is put in its place");
                let held = Arc::new(Held(Mutex::new((0, share))));
                self.counting = Counting::Since(Arc::clone(&held));
                held
            }
        };
        held.take(bytes.len())?;
        Ok(Bytes::from_owner(Counted { bytes, held }))
    }
}

impl HttpBody for BoundedAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        Poll::Ready(Some(match frame.into_data() {
            Ok(bytes) => this.count(bytes).map(Frame::data).or_else(|(full, who)| {
                this.ended = true;
                refused(full, who.as_deref())
            }),
            Err(other) => Ok(other),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The end of an answer that would be too much.
fn refused(full: Full, who: Option<&str>) -> Result<Frame<Bytes>, Status> {
    let error = full.error(UNREAD, who);
    let mut trailers = HeaderMap::new();
    to_status(error).add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::{BodyExt, Full as Whole};

    use super::*;

    fn answer(answers: &Answers, who: &str, bytes: usize) -> Body {
        answers
            .unread(Some(&who.into()), CallPlace::default())
            .bounded(Body::new(Whole::new(Bytes::from(vec![0; bytes]))))
    }

    /// Asks for the next piece, which a connection holds: its bytes, or the status that the answer ends with.
    fn next(body: &mut Body) -> Option<Result<Bytes, String>> {
        let frame = body.frame().now_or_never().expect("at once")?.expect("no error of the body");
        Some(match frame.into_data() {
            Ok(data) => Ok(data),
            Err(frame) => {
                let trailers = frame.into_trailers().expect("nothing else");
                Err(trailers["grpc-status"].to_str().expect("a number").to_owned())
            }
        })
    }

    fn piece(body: &mut Body) -> Bytes {
        next(body).expect("not the end").expect("within its share")
    }

    #[test]
    fn a_caller_that_reads_nothing_of_its_answers_has_half_of_what_may_lie_unread() {
        let answers = Answers(Shares::halves(1 << 20));
        let mut first = answer(&answers, "ann", 400 << 10);
        let lies = piece(&mut first);
        assert_eq!(lies.len(), 400 << 10);
        let mut second = answer(&answers, "ann", 200 << 10);
        assert_eq!(next(&mut second), Some(Err("8".to_owned())), "RESOURCE_EXHAUSTED");
        assert_eq!(next(&mut second), None, "and nothing after it");
        assert_eq!(piece(&mut answer(&answers, "ann", 10 << 10)).len(), 10 << 10, "small ones are not counted");
        let other = piece(&mut answer(&answers, "bob", 500 << 10));
        drop(other);
        drop(lies);
        // What is larger than a share is had alone.
        assert_eq!(piece(&mut answer(&answers, "ann", 1 << 20)).len(), 1 << 20);
    }

    #[test]
    fn a_piece_counts_until_the_connection_lets_go_of_it_though_the_next_is_asked_for_and_the_answer_has_ended() {
        let answers = Answers(Shares::halves(1 << 20));
        let mut first = answer(&answers, "ann", 400 << 10);
        let mut lies = piece(&mut first);
        assert_eq!(next(&mut first), None);
        drop(first);
        let refused = |bytes| matches!(next(&mut answer(&answers, "ann", bytes)), Some(Err(_)));
        assert!(refused(200 << 10));
        // A part of it is written: all of its bytes are there still.
        drop(lies.split_to(300 << 10));
        assert!(refused(200 << 10));
        drop(lies);
        assert!(!refused(500 << 10));
    }

    #[test]
    fn many_small_pieces_of_a_call_count_once_they_are_much_together() {
        let answers = Answers(Shares::halves(1 << 20));
        let pieces = (0..1000).map(|_| Ok::<_, Status>(Frame::data(Bytes::from(vec![0; 1 << 10]))));
        let stream = http_body_util::StreamBody::new(futures::stream::iter(pieces));
        let mut body = answers.unread(Some(&"ann".into()), CallPlace::default()).bounded(Body::new(stream));
        let mut lie = Vec::new();
        while let Some(Ok(piece)) = next(&mut body) {
            lie.push(piece);
        }
        assert_eq!(lie.len(), 512 + FREE_BYTES / 1024, "half of them, beside those that are free");
        drop((lie, body));
        assert_eq!(answers.0.take(Some(&"ann".into()), 1 << 20).map(|all| all.amount()), Ok(1 << 20), "given back");
    }
}
