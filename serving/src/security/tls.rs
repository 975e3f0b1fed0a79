//! TLS of the server's side: certificates that are read again as their files change, and connections that know whose
//! certificate they bear.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use springhouse_featurestore::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

pub(crate) use super::trust::Peer;
use super::trust::{Trust, Verifier};
use crate::connections::{Bounded, OfHost};

/// How long a client may take to agree on a connection.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Connections that are agreed on at once; more wait to be accepted. As many as a port has: one address, which has a quarter of
/// those, keeps nobody else from agreeing.
const MOST_HANDSHAKES: usize = 1024;

/// After so many looks at the files, one a second, the certificates of open connections are looked at though nothing changed:
/// their own time may be over.
const LOOKS_OF_CONNECTIONS: u64 = 60;

/// After a connection that could not be accepted: most often there are no file descriptors left.
const REST: Duration = Duration::from_millis(100);

/// The files of a server's certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of clients' certificates; without them clients show none.
    pub client_ca: Option<PathBuf>,
}

/// What is spoken over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// gRPC, which is HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Http,
}

/// What was read of the files.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// A server's side of TLS.
pub struct Tls {
    files: TlsFiles,
    /// `None` after they could not be read.
    contents: Mutex<Option<Contents>>,
    config: RwLock<Arc<ServerConfig>>,
    /// Whom clients' certificates are believed of.
    trust: Arc<Trust>,
    looks: AtomicU64,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The one provider of cryptography here.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// The certificates of a PEM file's contents.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] when there are none.
pub(super) fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = || Error::invalid("a file of certificates is not right").with("file", file.display());
    let remedy = "it holds one or more, each from -----BEGIN CERTIFICATE----- on";
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(read) if read.is_empty() => Err(wrong().remedy(remedy)),
        Ok(read) => Ok(read),
        Err(error) => Err(wrong().with("what", error).remedy(remedy)),
    }
}

pub(super) fn authorities(pem: &[u8], file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, file)? {
        roots.add(certificate).map_err(|error| {
            Error::invalid("a certificate is no authority's").with("file", file.display()).source(error)
        })?;
    }
    Ok(roots)
}

/// A private key of a PEM file's contents; errors never quote them.
pub(super) fn private_key(pem: &[u8], file: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        Error::invalid("a file holds no private key that can be read")
            .with("file", file.display())
            .remedy("it holds one, unencrypted, from -----BEGIN PRIVATE KEY----- on")
    })
}

pub(super) fn read_file(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file)
        .map_err(|error| Error::invalid("a file of TLS cannot be read").with("file", file.display()).source(error))
}

impl TlsFiles {
    fn read(&self) -> Result<Contents> {
        Ok(Contents {
            certificate: read_file(&self.certificate)?,
            key: read_file(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read_file).transpose()?,
        })
    }

    /// What a server shows, and whom it believes.
    fn config(&self, contents: &Contents) -> Result<(ServerConfig, Verifier)> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::invalid("the server's certificates cannot be used")
                .with("what", what)
                .with("file", self.certificate.display())
                .with("reason", error)
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal("TLS has no versions").source(error))?;
        let verifier = match (&self.client_ca, &contents.client_ca) {
            (Some(file), Some(pem)) => {
                let roots = Arc::new(authorities(pem, file)?);
                // Whoever shows none shows a token: which of the two a call needs, the layer says.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated();
                Some(verifier.build().map_err(|error| failed("clients' authorities", &error))?)
            }
            _ => None,
        };
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let chain = certificates(&contents.certificate, &self.certificate)?;
        let key = private_key(&contents.key, &self.key)?;
        let config = builder.with_single_cert(chain, key).map_err(|error| failed("certificate and key", &error))?;
        Ok((config, verifier))
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the file that is not right.
    pub fn read(files: TlsFiles) -> Result<Self> {
        let contents = files.read()?;
        let (config, verifier) = files.config(&contents)?;
        Ok(Self {
            files,
            contents: Mutex::new(Some(contents)),
            config: RwLock::new(Arc::new(config)),
            trust: Trust::new(verifier),
            looks: AtomicU64::new(0),
        })
    }

    /// Reads the files again if they changed; says whether they did. Connections that are open stay, but for those whose
    /// certificates nobody vouches for any more.
    ///
    /// # Errors
    /// As [`Self::read`], once for each change; the former certificates stay.
    pub(super) fn reload(&self) -> Result<bool> {
        if self.looks.fetch_add(1, Ordering::Relaxed) % LOOKS_OF_CONNECTIONS == LOOKS_OF_CONNECTIONS - 1 {
            self.trust.look_again();
        }
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.read() {
            Ok(now) if contents.as_ref() == Some(&now) => Ok(false),
            Ok(now) => {
                let config = self.files.config(&now);
                // A certificate that came before its key is told of, and tried again with it.
                *contents = Some(now);
                let (config, verifier) = config?;
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                self.trust.exchange(verifier);
                Ok(true)
            }
            Err(_) if contents.is_none() => Ok(false),
            Err(error) => {
                *contents = None;
                Err(error)
            }
        }
    }

    fn acceptor(&self, protocol: Protocol) -> TlsAcceptor {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = match protocol {
            Protocol::Grpc => vec![b"h2".to_vec()],
            Protocol::Http => vec![b"http/1.1".to_vec()],
        };
        TlsAcceptor::from(Arc::new(config))
    }

    /// Encrypts a port's connections, many at once: one that says nothing holds no other up.
    pub(crate) fn incoming(
        self: &Arc<Self>,
        plain: impl Stream<Item = io::Result<Bounded<TcpStream>>> + Send + 'static,
        protocol: Protocol,
    ) -> Incoming {
        let (agreed, connections) = mpsc::channel(MOST_HANDSHAKES);
        tokio::spawn(accept(Arc::clone(self), plain, protocol, agreed));
        Incoming { connections }
    }
}

async fn accept(
    tls: Arc<Tls>,
    plain: impl Stream<Item = io::Result<Bounded<TcpStream>>> + Send,
    protocol: Protocol,
    agreed: mpsc::Sender<Connection>,
) {
    let mut plain = pin!(plain);
    let places = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = plain.next() => accepted,
            () = agreed.closed() => return,
        };
        let stream = match accepted {
            Some(Ok(stream)) => stream,
            None => return,
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (tls, agreed) = (Arc::clone(&tls), agreed.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_WITHIN, agree(&tls, protocol, stream)).await {
                // A server that stops takes no more.
                Ok(Ok(connection)) => drop(agreed.send(connection).await),
                Ok(Err(error)) => tracing::debug!(%error, "a client and this server do not agree on TLS"),
                Err(_) => tracing::debug!("a client did not begin TLS in time"),
            }
            drop(place);
        });
    }
}

async fn agree(tls: &Tls, protocol: Protocol, stream: Bounded<TcpStream>) -> io::Result<Connection> {
    let changes = tls.trust.changes();
    let host = stream.host();
    let stream = tls.acceptor(protocol).accept(stream).await?;
    let peer = Peer::new(host, stream.get_ref().1.peer_certificates(), &tls.trust, changes);
    let lost = peer.has_certificate().then(|| Box::pin(peer.clone().lost()) as Lost);
    Ok(Connection { stream, peer, lost, is_over: false })
}

/// Ends when a connection's certificate is believed no more.
type Lost = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An encrypted connection.
pub(crate) struct Connection {
    stream: TlsStream<Bounded<TcpStream>>,
    peer: Peer,
    lost: Option<Lost>,
    is_over: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        if self.lost.as_mut().is_some_and(|lost| lost.as_mut().poll(context).is_ready()) {
            (self.lost, self.is_over) = (None, true);
        }
        self.is_over
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, into) {
            // To read nothing is what the end of a connection looks like.
            Poll::Pending if self.is_over(context) => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Connections as they are agreed on.
#[derive(Debug)]
pub(crate) struct Incoming {
    connections: mpsc::Receiver<Connection>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}
