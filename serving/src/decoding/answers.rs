//! A call's answers on their way out: what has been written and its caller has not read.
//!
//! HTTP/2 hands a piece of an answer on as fast as its caller reads, and asks for the next when it has room for it; until then
//! the piece lies here, however large it is. A caller that asks for much on many streams and reads none of it has a share of what
//! there is for that; the answer that would be too much ends with an error. Small pieces take part in none of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::shares::{Full, Share, Shares};
use crate::status::to_status;

/// Bytes of answers that nobody has read, of all calls.
const UNREAD_BYTES: usize = 512 << 20;

/// Pieces of fewer bytes are not counted: a frame of HTTP/2 has as many, of which each stream has one anyway.
const SMALL_BYTES: usize = 16 << 10;

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
    pub(crate) fn unread(&self, who: Option<&Arc<str>>) -> Unread {
        Unread(self.0.nothing(who))
    }
}

/// What one call leaves unread.
#[derive(Debug)]
pub(crate) struct Unread(Share<Arc<str>>);

impl Unread {
    /// The same body, until it is too much.
    pub(crate) fn bounded(self, body: Body) -> Body {
        Body::new(BoundedAnswer { inner: body, unread: self.0, ended: false })
    }
}

struct BoundedAnswer {
    inner: Body,
    unread: Share<Arc<str>>,
    ended: bool,
}

impl HttpBody for BoundedAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        // There is room for more: what was handed on before has gone.
        this.unread.shrink(0);
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if bytes > SMALL_BYTES
            && let Err(full) = this.unread.resize(bytes)
        {
            this.ended = true;
            return Poll::Ready(Some(refused(full, &this.unread)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The end of an answer that would be too much.
fn refused(full: Full, unread: &Share<Arc<str>>) -> Result<Frame<Bytes>, Status> {
    let error = full.error(UNREAD, unread.who().map(AsRef::as_ref));
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
        answers.unread(Some(&who.into())).bounded(Body::new(Whole::new(Bytes::from(vec![0; bytes]))))
    }

    /// Asks for the next piece: its bytes, or the status that the answer ends with.
    fn next(body: &mut Body) -> Option<Result<usize, String>> {
        let frame = body.frame().now_or_never().expect("at once")?.expect("no error of the body");
        Some(match frame.into_data() {
            Ok(data) => Ok(data.len()),
            Err(frame) => {
                let trailers = frame.into_trailers().expect("nothing else");
                Err(trailers["grpc-status"].to_str().expect("a number").to_owned())
            }
        })
    }

    #[test]
    fn a_caller_that_reads_nothing_of_its_answers_has_half_of_what_may_lie_unread() {
        let answers = Answers(Shares::halves(1 << 20));
        let mut first = answer(&answers, "ann", 400 << 10);
        assert_eq!(next(&mut first), Some(Ok(400 << 10)));
        let mut second = answer(&answers, "ann", 200 << 10);
        assert_eq!(next(&mut second), Some(Err("8".to_owned())), "RESOURCE_EXHAUSTED");
        assert_eq!(next(&mut second), None, "and nothing after it");
        assert_eq!(next(&mut answer(&answers, "ann", 10 << 10)), Some(Ok(10 << 10)), "small ones are not counted");
        assert_eq!(next(&mut answer(&answers, "bob", 500 << 10)), Some(Ok(500 << 10)), "the rest is for others");
        // The next piece is asked for when this one has gone.
        assert_eq!(next(&mut first), None);
        assert_eq!(next(&mut answer(&answers, "ann", 500 << 10)), Some(Ok(500 << 10)));
        // What is larger than a share is had alone.
        assert_eq!(next(&mut answer(&answers, "ann", 1 << 20)), Some(Ok(1 << 20)));
    }
}
