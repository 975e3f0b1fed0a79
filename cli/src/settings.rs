//! Settings: `springhouse.toml` in the project folder. Every one has a default that is right for a laptop.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use serde::Deserialize;
use springhouse_featurestore::time::Span;
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::push::CLOCK_TOLERANCE;

/// All settings; `docs/settings.md` documents them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Object storage: a folder (relative to the project) or a URL such as `s3://bucket/prefix`.
    pub store: String,
    /// The disk tier's folder, relative to the project.
    pub disk: String,
    /// The push log's folder, relative to the project. It cannot be rebuilt: it holds what was pushed and not yet flushed.
    pub log: String,
    /// Bytes of the memory tier; 0 turns it off.
    pub cache_bytes: u64,
    /// Bytes for sorting and grouping in queries; beyond them they spill to disk.
    pub query_bytes: usize,
    /// Threads of one query; 0 for as many as there are.
    pub query_threads: usize,
    /// Where the store listens.
    pub store_listen: SocketAddr,
    /// Where the worker listens.
    pub worker_listen: SocketAddr,
    /// Where a process with a store listens for HTTP.
    pub store_http_listen: SocketAddr,
    /// Where a process with a worker alone listens for HTTP.
    pub worker_http_listen: SocketAddr,
    /// How far ahead of this machine's clock a producer's clock may be.
    pub clock_tolerance: Span,
    /// How long a producer may be silent while others of its source speak, before the source's watermark waits for it no
    /// more; for ever where it is not given.
    pub producer_silence: Option<Span>,
    /// The file of those who may call, relative to the project: tokens and certificates. Without it everybody may do
    /// everything, and only this host is listened to.
    pub callers: Option<String>,
    /// The certificate of this host's servers, in PEM, relative to the project; with it connections are encrypted.
    pub tls_certificate: Option<String>,
    /// That certificate's private key, in PEM.
    pub tls_key: Option<String>,
    /// The authorities of clients' certificates, in PEM; without it clients show none.
    pub tls_client_ca: Option<String>,
    /// The most rows of one request, and of one batch.
    pub batch_rows: usize,
    /// The most rows that wait for one contract.
    pub queue_rows: usize,
    /// Milliseconds that a worker waits for a lookup.
    pub lookup_millis: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            store: ".springhouse/store".to_owned(),
            disk: ".springhouse/disk".to_owned(),
            log: ".springhouse/log".to_owned(),
            cache_bytes: 256 << 20,
            query_bytes: 1 << 30,
            query_threads: 0,
            store_listen: local(7601),
            worker_listen: local(7602),
            store_http_listen: local(7603),
            worker_http_listen: local(7604),
            clock_tolerance: CLOCK_TOLERANCE,
            producer_silence: None,
            callers: None,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
            batch_rows: 4096,
            queue_rows: 16_384,
            lookup_millis: 2_000,
        }
    }
}

impl Settings {
    /// Reads `springhouse.toml` of a project; without one the defaults hold.
    pub fn read(project: &Path) -> Result<Self> {
        let path = project.join("springhouse.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(Error::invalid("the settings cannot be read").with("file", path.display()).source(error));
            }
        };
        toml::from_str(&text).map_err(|error| {
            Error::invalid("the settings are not right")
                .with("file", path.display())
                .remedy("docs/settings.md lists all settings")
                .source(error)
        })
    }
}
