//! The HTTP port: `/metrics` for Prometheus.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use springhouse_featurestore::Result;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::server::Connected;
use tower::ServiceExt;

use crate::connections::{self, TurnedAway};
use crate::metrics::Metrics;
use crate::security::{Peer, Protocol, Security};

/// The media type of the `OpenMetrics` text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a caller may take to send a request's headers, and to send another on the same connection. Who scrapes more seldom
/// connects again.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// How long the port rests when the system has no room for another connection.
const REST: Duration = Duration::from_millis(200);

/// Measures a process, each time that somebody asks.
pub type Measure = Arc<dyn Fn() -> Result<Metrics> + Send + Sync>;

/// Answers those whom the layer lets past, until the future ends; encrypted where there are certificates.
///
/// # Errors
/// None yet: a listener that fails is tried again.
pub async fn serve(
    listener: TcpListener,
    measure: Measure,
    security: &Security,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    serve_counted(listener, measure, security, &TurnedAway::default(), stopped).await
}

/// The same of a process with other ports, whose connections that are turned away it measures too.
pub(crate) async fn serve_counted(
    listener: TcpListener,
    measure: Measure,
    security: &Security,
    turned_away: &TurnedAway,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let counted = turned_away.clone();
    let metrics = move || std::future::ready(answer(measure.as_ref(), &counted));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here; /metrics has the metrics\n") })
        .layer(security.layer());
    let incoming = connections::http_incoming(listener, turned_away);
    match security.tls() {
        None => answered(incoming, |_| Peer::default(), router, stopped).await,
        Some(tls) => answered(tls.incoming(incoming, Protocol::Http), Connected::connect_info, router, stopped).await,
    }
    Ok(())
}

/// Answers connections until the future ends, and then those that are asked something still. Nothing but HTTP/1 is spoken: a
/// connection has one answer at a time.
async fn answered<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    incoming: impl Stream<Item = io::Result<IO>> + Send,
    peer_of: impl Fn(&IO) -> Peer,
    router: Router,
    stopped: impl Future<Output = ()> + Send + 'static,
) {
    let (stop, stopping) = watch::channel(false);
    let (mut incoming, mut stopped, mut open) = (pin!(incoming), pin!(stopped), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            Some(_) = open.join_next() => continue,
            () = &mut stopped => break,
        };
        match accepted {
            Some(Ok(io)) => {
                let peer = peer_of(&io);
                open.spawn(connection(io, peer, router.clone(), stopping.clone()));
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(REST).await;
            }
            None => break,
        }
    }
    stop.send_replace(true);
    while open.join_next().await.is_some() {}
}

/// Answers one connection, whose caller has so long for each request's headers.
async fn connection<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    io: IO,
    peer: Peer,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let told = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the HTTP port ended");
    }
}

fn answer(measure: &(dyn Fn() -> Result<Metrics> + Send + Sync), turned_away: &TurnedAway) -> Response {
    let text = measure().and_then(|mut metrics| {
        metrics.add_connections(turned_away);
        metrics.text()
    });
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(error = %error.chain(), "metrics cannot be measured");
            // Whoever reads metrics is not shown paths and values.
            (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be measured; the server's log says why\n")
                .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    async fn said(to: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
        to.write_all(bytes).await.expect("open");
        let mut heard = Vec::new();
        to.read_to_end(&mut heard).await.expect("it ends");
        heard
    }

    #[tokio::test]
    async fn the_port_speaks_http_1_alone_and_waits_for_headers_no_longer_than_it_says() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            serve(listener, Arc::new(|| Ok(Metrics::default())), &Security::open(), stopped).await
        });
        let connect = || TcpStream::connect(address);
        let get = b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
        let heard = said(&mut connect().await.expect("listens"), get).await;
        assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let heard = said(&mut connect().await.expect("listens"), preface).await;
        assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 4"), "{heard:?}");
        // Headers that never end.
        let begin = tokio::time::Instant::now();
        let mut slow = connect().await.expect("listens");
        said(&mut slow, b"GET /metrics HTTP/1.1\r\nhost: h").await;
        assert!(begin.elapsed() < 2 * HEADERS_WITHIN);
        // One that is asked nothing keeps no server from its end.
        let _idle = connect().await.expect("listens");
        stop.send(()).expect("it runs");
        tokio::time::timeout(HEADERS_WITHIN, served).await.expect("drained").expect("no panic").expect("right");
    }
}
