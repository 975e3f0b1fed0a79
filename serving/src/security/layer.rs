//! The layer before every service, gRPC's and HTTP's alike: it knows the caller, or answers itself.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{Extensions, HeaderValue, Request, Response, StatusCode};
use futures::future::{Either, Ready, ready};
use http_body_util::Limited;
use pin_project_lite::pin_project;
use springhouse_featurestore::{Error, ErrorKind, Result};
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};

use super::caller::{Caller, Callers};
use super::scope::any_of;
use super::table::{Need, of_path};
use super::tls::Peer;
use crate::connections::host_of;
use crate::decoding::{CallPlace, Calls, MOST_BYTES_OF_NOBODY, Unread};
use crate::status::to_status;

/// Lets past whom the table lets, with a [`super::Caller`] in the request's extensions, and no more than what calls may send.
#[derive(Debug, Clone)]
pub(crate) struct Authenticate {
    callers: Arc<Callers>,
    calls: Calls,
}

impl Authenticate {
    pub(super) fn new(callers: Arc<Callers>, calls: Calls) -> Self {
        Self { callers, calls }
    }
}

impl<S> Layer<S> for Authenticate {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated { callers: Arc::clone(&self.callers), calls: self.calls.clone(), inner }
    }
}

/// A service behind the layer.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated<S> {
    callers: Arc<Callers>,
    calls: Calls,
    inner: S,
}

/// A body that can say no, in its protocol.
pub(crate) trait Refusal: Sized {
    /// The answer for an error.
    fn refusal(error: Error) -> Response<Self>;

    /// The same body, which fails beyond what nobody in particular may send.
    fn limited(self, calls: &Calls) -> Self;

    /// The same body, whose messages are within the bounds of what a path takes.
    fn bounded(self, calls: &Calls, path: &str, caller: &Caller) -> Self;

    /// The same answer, of which a caller leaves no more unread than it may.
    fn answered(self, unread: Unread) -> Self;
}

impl Refusal for tonic::body::Body {
    fn refusal(error: Error) -> Response<Self> {
        to_status(error).into_http()
    }

    fn limited(self, calls: &Calls) -> Self {
        Self::new(Limited::new(calls.of_nobody(self), MOST_BYTES_OF_NOBODY))
    }

    fn bounded(self, calls: &Calls, path: &str, caller: &Caller) -> Self {
        calls.bounded(path, caller.account(), self)
    }

    fn answered(self, unread: Unread) -> Self {
        unread.bounded(self)
    }
}

impl Refusal for axum::body::Body {
    fn refusal(error: Error) -> Response<Self> {
        let status = match error.kind() {
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        };
        let mut response = Response::new(Self::from(format!("{}\n", error.chain())));
        *response.status_mut() = status;
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn limited(self, _: &Calls) -> Self {
        Self::new(Limited::new(self, MOST_BYTES_OF_NOBODY))
    }

    /// Nothing on the HTTP port reads a body.
    fn bounded(self, calls: &Calls, _: &str, _: &Caller) -> Self {
        self.limited(calls)
    }

    /// It speaks HTTP/1: a connection has one answer at a time, and the port has few connections.
    fn answered(self, _: Unread) -> Self {
        self
    }
}

impl<S, B, R> Service<Request<B>> for Authenticated<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Refusal,
    R: Refusal,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<R>, S::Error>>, Answering<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.admit(request) {
            Ok((request, unread)) => {
                Either::Right(Answering { answer: self.inner.call(request), unread: Some(unread) })
            }
            Err(error) => Either::Left(ready(Ok(R::refusal(error)))),
        }
    }
}

impl<S> Authenticated<S> {
    /// The request with its caller and within its bounds, for those behind the layer, and the bounds of its answer; nobody of
    /// them sees the token.
    fn admit<B: Refusal>(&self, mut request: Request<B>) -> Result<(Request<B>, Unread)> {
        let caller = known(&self.callers, &request).inspect_err(|error| {
            tracing::debug!(path = request.uri().path(), error = %error, "refused");
        })?;
        request.headers_mut().remove(AUTHORIZATION);
        let (mut parts, body) = request.into_parts();
        let Some(caller) = caller else {
            let place = self.calls.place_of_nobody(host(&parts.extensions))?;
            let unread = self.calls.answers().unread(None, CallPlace::of_nobody(place));
            return Ok((Request::from_parts(parts, body.limited(&self.calls)), unread));
        };
        let place = CallPlace::of(caller.open()?);
        let body = body.bounded(&self.calls, parts.uri.path(), &caller);
        let unread = self.calls.answers().unread(caller.account(), place);
        parts.extensions.insert(caller);
        Ok((Request::from_parts(parts, body), unread))
    }
}

pin_project! {
    /// The answer of the service behind the layer, within its bounds once it comes.
    pub(crate) struct Answering<F> {
        #[pin]
        answer: F,
        unread: Option<Unread>,
    }
}

impl<F: Future<Output = Result<Response<R>, E>>, R: Refusal, E> Future for Answering<F> {
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(context));
        let unread = this.unread.take();
        Poll::Ready(answer.map(|answer| match unread {
            Some(unread) => answer.map(|body| body.answered(unread)),
            None => answer,
        }))
    }
}

/// The host that a request comes from, if that is another: of a connection that is encrypted, and of one that is not.
fn host(extensions: &Extensions) -> Option<IpAddr> {
    match extensions.get::<Peer>() {
        Some(peer) => peer.host(),
        None => extensions.get::<TcpConnectInfo>()?.remote_addr().and_then(|address| host_of(address.ip())),
    }
}

/// Who calls, where anybody in particular must.
fn known<B>(callers: &Callers, request: &Request<B>) -> Result<Option<Caller>> {
    let need = of_path(request.uri().path());
    if need == Need::Nothing {
        return Ok(None);
    }
    let caller =
        callers.of_request(request.headers(), request.extensions().get::<Peer>()).map_err(|error| match need {
            Need::OneOf(scopes) => error.with("needs scope", any_of(scopes)),
            Need::Known | Need::Nothing => error,
        })?;
    if let Need::OneOf(scopes) = need {
        caller.require_one_of(scopes)?;
    }
    Ok(Some(caller))
}
