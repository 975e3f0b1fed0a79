//! Builds everything, listens, drains.
//!
//! A process is a store (Flight), a worker (predict), or both in one with direct calls between them. Each port that it
//! listens on carries all of its services; a store also listens on a Unix socket for workers on the same host.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use springhouse_featurestore::time::Clock;
use springhouse_featurestore::{Error, Result};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::connections::{self, Bounded, TurnedAway};
use crate::features::{FeatureServer, FeatureSource};
use crate::flight::FlightServer;
use crate::generated::DESCRIPTORS;
use crate::generated::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::http::{self, Measure};
use crate::metrics::Metrics;
use crate::predict::PredictService;
use crate::security::{Authenticate, Protocol, Security};
use crate::worker::Contracts;

/// How often the store looks for commits and the worker for deployments, unless they are told.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// Looks at the store that are under way at once, when some wait for views that take long.
const LOOKS_AT_ONCE: usize = 8;

/// How long a stopping server waits for answers that are on their way.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// The store's part of a process.
#[derive(Debug, Clone)]
pub struct StorePart {
    /// The opened store.
    pub features: Arc<FeatureServer>,
    /// Its Flight service.
    pub flight: FlightServer,
    /// A Unix socket to listen on beside the port.
    pub socket: Option<PathBuf>,
}

/// The worker's part of a process.
#[derive(Debug, Clone)]
pub struct WorkerPart {
    /// The contracts that it serves.
    pub contracts: Arc<Contracts>,
    /// For prediction ids.
    pub clock: Arc<dyn Clock>,
}

/// A process that serves.
#[derive(Debug)]
pub struct App {
    /// The ports' listeners, bound; each carries all services of the process.
    pub listeners: Vec<TcpListener>,
    /// Its store, if it has one.
    pub store: Option<StorePart>,
    /// Its worker, if it has one.
    pub worker: Option<WorkerPart>,
    /// The HTTP port's listener, bound, if it has one.
    pub http: Option<TcpListener>,
    /// Who may call, and how connections are protected.
    pub security: Security,
}

/// All services of a port, behind the layer that knows the caller.
type Guarded = Router<Stack<Authenticate, Identity>>;

/// Binds a port.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Busy`] when it is in use.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Error::busy("the address cannot be listened on")
            .with("address", address)
            .remedy("stop the process that uses it, or choose another with --listen (of HTTP: --http)")
            .source(error)
    })
}

impl App {
    /// Serves until `stop` turns true, then lets answers that are on their way go out.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when a listener fails.
    pub async fn run(self, stop: watch::Receiver<bool>) -> Result<()> {
        let (mut tasks, turned_away) = (JoinSet::new(), TurnedAway::default());
        if let Some(StorePart { features, flight, socket }) = &self.store {
            tasks.spawn(follow_store(Arc::clone(features), stop.clone()));
            if let Some(path) = socket {
                let listener = listen_socket(path).await?;
                let (security, turned_away) = (self.security.clone(), turned_away.clone());
                tasks.spawn(serve_socket(flight.clone(), listener, security, turned_away, stop.clone()));
            }
        }
        if let Some(WorkerPart { contracts, .. }) = &self.worker {
            tasks.spawn(follow_deployments(Arc::clone(contracts), stop.clone()));
        }
        let router = self.router().await?;
        let security = self.security;
        if let Some(listener) = self.http {
            let measure = measure_of(self.store.as_ref(), self.worker.as_ref());
            tasks.spawn(serve_http(listener, measure, security.clone(), turned_away.clone(), stop.clone()));
        }
        tasks.spawn({
            let (security, stop) = (security.clone(), stop.clone());
            async move {
                tokio::select! { () = security.follow() => {}, () = stopped(stop) => {} }
            }
        });
        let served = self.listeners.into_iter().map(|listener| {
            let incoming = connections::incoming(listener, &turned_away);
            drain(serve_port(router.clone(), incoming, security.clone(), stop.clone()), stop.clone())
        });
        futures::future::try_join_all(served).await?;
        tasks.shutdown().await;
        Ok(())
    }

    async fn router(&self) -> Result<Guarded> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| Error::internal("reflection cannot be built").source(error))?;
        let predict = self
            .worker
            .as_ref()
            .map(|part| PredictService::new(Arc::clone(&part.contracts), part.clock.as_ref()).into_service());
        if predict.is_some() {
            health.set_serving::<GrpcInferenceServiceServer<PredictService>>().await;
        }
        let flight = self.store.as_ref().map(|part| part.flight.clone().into_service());
        Ok(connections::server()
            .layer(self.security.layer())
            .add_service(health_service)
            .add_service(reflection)
            .add_optional_service(predict)
            .add_optional_service(flight))
    }
}

/// Answers a port, encrypted where there are certificates.
async fn serve_port(
    router: Guarded,
    incoming: impl Stream<Item = std::io::Result<Bounded<TcpStream>>> + Send + 'static,
    security: Security,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    if let Some(tls) = security.tls() {
        let encrypted = tls.incoming(incoming, Protocol::Grpc);
        return router.serve_with_incoming_shutdown(encrypted, stopped(stop)).await;
    }
    router.serve_with_incoming_shutdown(incoming, stopped(stop)).await
}

/// Listens on a Unix socket. One that a killed process left is replaced; nothing else is.
async fn listen_socket(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |error: std::io::Error| {
        Error::busy("the Unix socket cannot be listened on").with("socket", path.display()).source(error)
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::invalid("there is something else where the Unix socket is to be")
                .with("socket", path.display())
                .remedy("give --socket a path that nothing has"));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            answered => {
                let error = Error::busy("another process listens on the Unix socket")
                    .with("socket", path.display())
                    .remedy("stop it, or give --socket another path");
                return Err(match answered {
                    Ok(_) => error,
                    Err(cause) => error.source(cause),
                });
            }
        },
    }
    UnixListener::bind(path).map_err(failed)
}

/// What a process of these parts measures.
fn measure_of(store: Option<&StorePart>, worker: Option<&WorkerPart>) -> Measure {
    let features = store.map(|part| Arc::clone(&part.features));
    let contracts = worker.map(|part| Arc::clone(&part.contracts));
    Arc::new(move || {
        let mut metrics = Metrics::default();
        if let Some(features) = &features {
            metrics.add_features(&features.status()?);
        }
        if let Some(contracts) = &contracts {
            metrics.add_contracts(contracts);
        }
        Ok(metrics)
    })
}

async fn serve_http(
    listener: TcpListener,
    measure: Measure,
    security: Security,
    turned_away: TurnedAway,
    stop: watch::Receiver<bool>,
) {
    if let Err(error) = http::serve_counted(listener, measure, &security, &turned_away, stopped(stop)).await {
        tracing::error!(error = %error.chain(), "the HTTP port failed");
    }
}

async fn serve_socket(
    flight: FlightServer,
    listener: UnixListener,
    security: Security,
    turned_away: TurnedAway,
    stop: watch::Receiver<bool>,
) {
    let incoming = connections::socket_incoming(UnixListenerStream::new(listener), &turned_away);
    let served = connections::server()
        .layer(security.layer())
        .add_service(flight.into_service())
        .serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
    if let Err(error) = drain(served, stop).await {
        tracing::error!(error = %error, "the Unix socket failed");
    }
}

/// Waits for a server to end; once it is told to stop, not for longer than the drain.
async fn drain(
    served: impl Future<Output = Result<(), tonic::transport::Error>>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let too_long = async {
        stopped(stop).await;
        tokio::time::sleep(DRAIN_WITHIN).await;
    };
    tokio::select! {
        ended = served => ended.map_err(|error| Error::unavailable("the server failed").source(error)),
        () = too_long => {
            tracing::warn!("some callers kept their connections open; stopping without them");
            Ok(())
        }
    }
}

/// Returns when `stop` turns true, or its sender has gone.
async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        tracing::debug!("nobody is left to stop this server");
    }
}

/// Looks at the store again and again. A look that waits for one view keeps the next from nothing but that view.
async fn follow_store(features: Arc<FeatureServer>, stop: watch::Receiver<bool>) {
    let follow = async {
        let mut looks: JoinSet<()> = JoinSet::new();
        loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            while let Some(ended) = looks.try_join_next() {
                if let Err(error) = ended {
                    tracing::error!(%error, "a look at the store panicked; the next goes on");
                }
            }
            if looks.len() < LOOKS_AT_ONCE {
                let features = Arc::clone(&features);
                looks.spawn(async move {
                    if let Err(error) = features.follow_heads(&()).await {
                        tracing::error!(error = %error.chain(), "the store cannot be followed; serving what there is");
                    }
                });
            }
        }
    };
    tokio::select! { () = follow => {}, () = stopped(stop) => {} }
}

async fn follow_deployments(contracts: Arc<Contracts>, stop: watch::Receiver<bool>) {
    let follow = async {
        loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            if let Err(error) = contracts.follow().await {
                tracing::error!(error = %error.chain(), "deployments cannot be followed; serving what there is");
            }
        }
    };
    tokio::select! { () = follow => {}, () = stopped(stop) => {} }
}

/// Workers in the same process as the store call it directly.
pub fn direct(features: &Arc<FeatureServer>) -> Arc<dyn FeatureSource> {
    Arc::clone(features) as Arc<dyn FeatureSource>
}
