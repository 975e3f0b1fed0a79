//! The client's side: which token or certificate it shows, and which servers it believes.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use springhouse_featurestore::{Error, Result};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

use super::tls::{authorities, certificates, private_key, provider, read_file};

/// The port of addresses that name none.
const HTTPS_PORT: u16 = 443;

/// What a client shows, and whom it believes. Tokens are read anew for each call, so that they can be exchanged under a
/// client that runs; what is of TLS, for each new client.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// The authorities of servers' certificates, in PEM; those of the system where it is not given.
    pub ca: Option<PathBuf>,
    /// A certificate and its key, in PEM, to be shown to servers.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Access {
    /// A channel to a server, which connects when it is first used: encrypted for an `https` address.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the file that is not right.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Result<Channel> {
        if endpoint.uri().scheme_str() != Some("https") {
            let host = endpoint.uri().host().unwrap_or_default();
            if self.token_file.is_some() && endpoint.uri().scheme_str() == Some("http") && !is_loopback(host) {
                return Err(Error::refused("a token would be sent unencrypted")
                    .with("address", endpoint.uri())
                    .remedy("connect to an https address, or leave the token's file out"));
            }
            return Ok(endpoint.connect_lazy());
        }
        let connector = TlsConnector::from(Arc::new(self.config()?));
        let connect = tower::service_fn(move |uri: Uri| connect(connector.clone(), uri));
        Ok(endpoint.connect_with_connector_lazy(connect))
    }

    fn config(&self) -> Result<ClientConfig> {
        let roots = match &self.ca {
            Some(file) => authorities(&read_file(file)?, file)?,
            None => of_system()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal("TLS has no versions").source(error))?
            .with_root_certificates(roots);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(&read_file(certificate)?, certificate)?;
                builder.with_client_auth_cert(chain, private_key(&read_file(key)?, key)?).map_err(|error| {
                    Error::invalid("the client's certificate and key do not fit")
                        .with("certificate", certificate.display())
                        .with("key", key.display())
                        .source(error)
                })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Shows the token, if there is one.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the file that is missing or holds no token.
    pub(crate) fn sign(&self, metadata: &mut MetadataMap) -> Result<()> {
        if let Some(file) = &self.token_file {
            metadata.insert("authorization", authorization(file)?);
        }
        Ok(())
    }
}

/// Whether a host is this one, so that nobody is on the way.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The errors never hold what the file does.
fn authorization(file: &Path) -> Result<MetadataValue<Ascii>> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Error::invalid("the token's file cannot be read").with("file", file.display()).source(error)
    })?;
    let token = text.trim();
    let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>().ok();
    let mut value = value.filter(|_| !token.is_empty()).ok_or_else(|| {
        Error::invalid("the token's file does not hold a token")
            .with("file", file.display())
            .remedy("it holds nothing but what `springhouse token create` printed")
    })?;
    // Libraries below then neither log it nor keep it in a table of headers.
    value.set_sensitive(true);
    Ok(value)
}

fn of_system() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Error::invalid("the system knows no authorities of certificates")
            .remedy("name the server's with --ca FILE"));
    }
    Ok(roots)
}

async fn connect(connector: TlsConnector, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(HTTPS_PORT))).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    Ok(TokioIo::new(connector.connect(name, stream).await?))
}
