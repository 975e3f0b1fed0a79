//! The HTTP port: `/metrics` for Prometheus.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use springhouse_featurestore::{Error, Result};
use tokio::net::TcpListener;

use crate::connections::{self, HttpListener, TurnedAway};
use crate::metrics::Metrics;
use crate::security::{Peer, Protocol, Security};

/// The media type of the `OpenMetrics` text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Measures a process, each time that somebody asks.
pub type Measure = Arc<dyn Fn() -> Result<Metrics> + Send + Sync>;

/// Answers those whom the layer lets past, until the future ends; encrypted where there are certificates.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Unavailable`] when the listener fails.
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
    let served = match security.tls() {
        None => axum::serve(HttpListener::new(listener, turned_away), router).with_graceful_shutdown(stopped).await,
        Some(tls) => {
            let router = router.into_make_service_with_connect_info::<Peer>();
            let incoming = tls.incoming(connections::http_incoming(listener, turned_away), Protocol::Http);
            axum::serve(incoming, router).with_graceful_shutdown(stopped).await
        }
    };
    served.map_err(|error| Error::unavailable("the HTTP port failed").source(error))
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
