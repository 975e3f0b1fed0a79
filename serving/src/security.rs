//! Who calls, and with which scopes: one layer before every service of every port, and the client's side of it.
//!
//! ```text
//! connection -> tls -> layer: token, else certificate -> Caller {name, scopes} -> table: may the path be called? -> service
//!                                                                                 a Flight command: asked by its handler
//! ```
//!
//! Without a callers file everybody may do everything; [`Security::admits`] keeps such a process off addresses that others
//! can reach. `table` says in one place which path, command and action needs which scope. Files are read again as they
//! change: what was revoked, has expired, or has nobody any more to vouch for it counts no longer from the next message on,
//! on connections and streams that are open too. No secret is in a log, an error or a `Debug`: of a token its public id,
//! and only its hash is stored.

mod access;
mod caller;
mod certificate;
mod layer;
mod scope;
pub(crate) mod table;
mod tls;
mod token;
mod trust;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use springhouse_featurestore::{Error, Result};

use crate::decoding::Calls;
pub use access::Access;
pub(crate) use caller::OpenCall;
pub use caller::{Caller, Callers};
pub(crate) use layer::Authenticate;
pub use scope::{Scope, Scopes};
pub(crate) use tls::{Peer, Protocol};
pub use tls::{Tls, TlsFiles};
pub use token::{CallersFile, KnownCertificate, KnownToken, Token};

/// How often files are looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where a process reads who may do what, and its certificate.
#[derive(Debug, Clone, Default)]
pub struct SecurityFiles {
    /// The callers: tokens and client certificates; without one everybody may do everything.
    pub callers: Option<PathBuf>,
    /// The certificate and its key; without them connections are not encrypted.
    pub tls: Option<TlsFiles>,
}

/// What a start without authentication or encryption was allowed by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waived {
    /// Everybody who reaches the address may do everything.
    pub authentication: bool,
    /// What is sent there, tokens too, can be read on its way.
    pub encryption: bool,
}

/// Who may call a process, and how its connections are protected.
#[derive(Debug, Clone)]
pub struct Security {
    callers: Arc<Callers>,
    tls: Option<Arc<Tls>>,
    /// What calls may send, on all ports together.
    calls: Calls,
}

impl Security {
    /// Everybody may do everything, unencrypted: for addresses that only this host reaches.
    pub fn open() -> Self {
        Self { callers: Arc::new(Callers::everybody()), tls: None, calls: Calls::default() }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the file that is missing or not right, and clients'
    /// certificates that nobody is mapped from.
    pub fn read(files: SecurityFiles) -> Result<Self> {
        let for_nobody = files.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) && files.callers.is_none();
        if for_nobody {
            return Err(Error::invalid("clients' certificates are asked for, and no file says who they are")
                .remedy("set callers to a file with [[certificate]] entries; docs/security.md shows one"));
        }
        let callers = files.callers.map_or_else(|| Ok(Callers::everybody()), Callers::read)?;
        let tls = files.tls.map(Tls::read).transpose()?.map(Arc::new);
        Ok(Self { callers: Arc::new(callers), tls, calls: Calls::default() })
    }

    /// Whether a process may listen there: on loopback always, elsewhere when callers are known and connections encrypted,
    /// or the lack of it was asked for by name.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Refused`] with what to set up, or to waive.
    pub fn admits(&self, address: IpAddr, waived: Waived) -> Result<()> {
        if address.to_canonical().is_loopback() {
            return Ok(());
        }
        if self.callers.are_everybody() && !waived.authentication {
            return Err(Error::refused("others can reach this address, and nobody would be asked who they are")
                .with("address", address)
                .remedy(
                    "set callers (springhouse token create), listen on 127.0.0.1, or say --without-authentication",
                ));
        }
        if self.tls.is_none() && !waived.encryption {
            return Err(Error::refused("others can reach this address, and connections would not be encrypted")
                .with("address", address)
                .remedy("set tls_certificate and tls_key, listen on 127.0.0.1, or say --without-encryption"));
        }
        Ok(())
    }

    /// The callers.
    pub fn callers(&self) -> &Arc<Callers> {
        &self.callers
    }

    /// Encryption, if there is any.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// The layer for a service.
    pub(crate) fn layer(&self) -> Authenticate {
        Authenticate::new(Arc::clone(&self.callers), self.calls.clone())
    }

    /// Reads files again as they change, for as long as it is waited for; where one is not right the former holds.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            told("callers", self.callers.reload());
            if let Some(tls) = &self.tls {
                told("certificates", tls.reload());
            }
        }
    }
}

fn told(what: &str, read: Result<bool>) {
    match read {
        Ok(true) => tracing::info!(what, "read again"),
        Ok(false) => {}
        Err(error) => tracing::error!(what, error = %error.chain(), "cannot be read again; the former hold"),
    }
}
