//! The layer before every service, gRPC's and HTTP's alike: it knows the caller, or answers itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::ConnectInfo;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use futures::future::{Either, Ready, ready};
use http_body_util::Limited;
use springhouse_featurestore::{Error, ErrorKind, Result};
use tower::{Layer, Service};

use super::caller::Callers;
use super::scope::any_of;
use super::table::{Need, of_path};
use super::tls::Peer;
use crate::status::to_status;

/// Lets past whom the table lets, with a [`super::Caller`] in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct Authenticate {
    callers: Arc<Callers>,
}

impl Authenticate {
    pub(super) fn new(callers: Arc<Callers>) -> Self {
        Self { callers }
    }
}

impl<S> Layer<S> for Authenticate {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated { callers: Arc::clone(&self.callers), inner }
    }
}

/// A service behind the layer.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated<S> {
    callers: Arc<Callers>,
    inner: S,
}

/// The most bytes of a request that needs no caller: whether a process is alive is asked in a few.
const MOST_BYTES_OF_NOBODY: usize = 4 << 10;

/// A body that can say no, in its protocol.
pub(crate) trait Refusal: Sized {
    /// The answer for an error.
    fn refusal(error: Error) -> Response<Self>;

    /// The same body, which fails beyond what nobody in particular may send.
    fn limited(self) -> Self;
}

impl Refusal for tonic::body::Body {
    fn refusal(error: Error) -> Response<Self> {
        to_status(error).into_http()
    }

    fn limited(self) -> Self {
        Self::new(Limited::new(self, MOST_BYTES_OF_NOBODY))
    }
}

impl Refusal for axum::body::Body {
    fn refusal(error: Error) -> Response<Self> {
        let forbidden = error.kind() == ErrorKind::Forbidden;
        let mut response = Response::new(Self::from(format!("{}\n", error.chain())));
        *response.status_mut() = if forbidden { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        if !forbidden {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn limited(self) -> Self {
        Self::new(Limited::new(self, MOST_BYTES_OF_NOBODY))
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
    type Future = Either<Ready<Result<Response<R>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match admit(&self.callers, &mut request) {
            Ok(()) if of_path(request.uri().path()) == Need::Nothing => {
                Either::Right(self.inner.call(request.map(Refusal::limited)))
            }
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(error) => {
                tracing::debug!(path = request.uri().path(), error = %error, "refused");
                Either::Left(ready(Ok(R::refusal(error))))
            }
        }
    }
}

/// Nobody behind the layer sees the token.
fn admit<B>(callers: &Callers, request: &mut Request<B>) -> Result<()> {
    let need = of_path(request.uri().path());
    if need != Need::Nothing {
        // tonic puts the peer itself there, axum wraps it.
        let extensions = request.extensions();
        let wrapped = || extensions.get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer);
        let peer = extensions.get::<Peer>().or_else(wrapped);
        let caller = callers.of_request(request.headers(), peer).map_err(|error| match need {
            Need::OneOf(scopes) => error.with("needs scope", any_of(scopes)),
            Need::Known | Need::Nothing => error,
        })?;
        if let Need::OneOf(scopes) = need {
            caller.require_one_of(scopes)?;
        }
        request.extensions_mut().insert(caller);
    }
    request.headers_mut().remove(AUTHORIZATION);
    Ok(())
}
