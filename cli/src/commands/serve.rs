//! `serve`: features (store), predictions (worker), or both in one process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_serving::FeatureSource;
use springhouse_serving::app::{App, StorePart, WorkerPart, bind, direct};
use springhouse_serving::flight::FlightServer;
use springhouse_serving::security::{Security, Waived};
use springhouse_serving::worker::{Contracts, WorkerOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{WaivedArgs, parse_span};
use crate::project::Project;
use crate::render::{Bar, note};

/// What a process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Features and predictions, with direct calls between them.
    Both,
    /// Features.
    Store,
    /// Predictions, with features from a store elsewhere.
    Worker,
}

/// Serve features (store) and predictions (worker).
#[derive(Debug, Args)]
pub struct Serve {
    /// What this process serves
    #[arg(long, value_enum, default_value_t = Role::Both)]
    role: Role,
    /// Where it listens; the settings' addresses of its roles when it is not given
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where it answers HTTP (/metrics); the settings' address of its role when neither this nor --listen is given
    #[arg(long)]
    http: Option<SocketAddr>,
    /// A Unix socket for workers on this host (store)
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The store to get features from: `http://host:port` or `unix:///path` (worker)
    #[arg(long)]
    store: Option<String>,
    /// Stop by itself after this long
    #[arg(long, value_parser = parse_span)]
    stop_after: Option<springhouse_featurestore::time::Span>,
    #[command(flatten)]
    waived: WaivedArgs,
}

impl Serve {
    /// Runs it until it is told to stop.
    pub async fn run(&self, project: &Project) -> Result<()> {
        let (security, waived) = (project.security()?, Waived::from(self.waived));
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        for address in self.addresses(project) {
            security.admits(address.ip(), waived)?;
            let listener = bind(address).await?;
            let address = listener.local_addr().map_err(|error| Error::internal("no local address").source(error))?;
            bound.push(address.to_string());
            listeners.push(listener);
        }
        let store = if self.role == Role::Worker { None } else { Some(self.store_part(project).await?) };
        let worker = match (&store, self.role) {
            (_, Role::Store) => None,
            (Some(part), _) => Some(worker_part(project, direct(&part.features)).await?),
            (None, _) => {
                let remote = project.remote_store(self.store.as_ref())?;
                Some(worker_part(project, Arc::new(remote)).await?)
            }
        };
        let what = match self.role {
            Role::Both => "features and predictions",
            Role::Store => "features",
            Role::Worker => "predictions",
        };
        note(&format!("serving {what} on {}", bound.join(" and ")));
        let http = match self.http_address(project) {
            Some(address) => Some(listen_http(address, &security, waived).await?),
            None => None,
        };
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(wait_for_stop(stop, self.stop_after));
        App { listeners, store, worker, http, security }.run(stopping).await
    }

    /// A process of both roles answers at both addresses, so that nobody needs to know how many processes there are.
    fn addresses(&self, project: &Project) -> Vec<SocketAddr> {
        let settings = project.settings();
        match (self.listen, self.role) {
            (Some(given), _) => vec![given],
            (None, Role::Store) => vec![settings.store_listen],
            (None, Role::Worker) => vec![settings.worker_listen],
            (None, Role::Both) => vec![settings.store_listen, settings.worker_listen],
        }
    }

    fn http_address(&self, project: &Project) -> Option<SocketAddr> {
        let settings = project.settings();
        let usual = match self.role {
            Role::Both | Role::Store => settings.store_http_listen,
            Role::Worker => settings.worker_http_listen,
        };
        self.http.or_else(|| self.listen.is_none().then_some(usual))
    }

    async fn store_part(&self, project: &Project) -> Result<StorePart> {
        let features = Arc::new(project.feature_server()?);
        features.follow(&Bar::default()).await?;
        let training_sets = Arc::new(WireQueries::start(project.jobs()?)?);
        let sink = project.pushes(&features).await?;
        features.push_to(Arc::clone(&sink));
        features.follow(&Bar::default()).await?;
        let flight = FlightServer::new(Arc::clone(&features), training_sets, project.driven().cloned()).with_sink(sink);
        Ok(StorePart { features, flight, socket: self.socket.clone() })
    }
}

/// Binds the HTTP port, where it may listen, and says where.
pub async fn listen_http(address: SocketAddr, security: &Security, waived: Waived) -> Result<TcpListener> {
    security.admits(address.ip(), waived)?;
    let listener = bind(address).await?;
    let bound = listener.local_addr().map_err(|error| Error::internal("no local address").source(error))?;
    let scheme = if security.tls().is_some() { "https" } else { "http" };
    note(&format!("metrics on {scheme}://{bound}/metrics"));
    Ok(listener)
}

async fn worker_part(project: &Project, source: Arc<dyn FeatureSource>) -> Result<WorkerPart> {
    let settings = project.settings();
    let options = WorkerOptions {
        batch_rows: settings.batch_rows,
        queue_rows: settings.queue_rows,
        lookup_within: std::time::Duration::from_millis(settings.lookup_millis),
    };
    let contracts = Arc::new(Contracts::new(source, options)?);
    if let Err(error) = contracts.follow().await {
        // A worker may start before its store, and before anything is deployed: it goes on looking.
        note(&format!("not ready yet: {}", error.chain()));
    }
    Ok(WorkerPart { contracts, clock: Arc::clone(project.clock()) })
}

async fn wait_for_stop(stop: watch::Sender<bool>, after: Option<springhouse_featurestore::time::Span>) {
    let over = async {
        match after {
            Some(span) => tokio::time::sleep(std::time::Duration::from_secs_f64(span.as_secs_f64())).await,
            None => std::future::pending().await,
        }
    };
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(error) => {
                tracing::warn!(error = %error, "SIGTERM cannot be waited for");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
        () = over => {}
    }
    stop.send_replace(true);
    // Keep the sender until everyone has seen it.
    stop.closed().await;
}
