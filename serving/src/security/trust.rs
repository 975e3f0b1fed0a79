//! Whom clients' certificates are believed of, now: a connection may stay open for longer than its certificate's authority is
//! one of ours, or than the certificate is valid. So a connection's certificate is looked at again after each change, before
//! the next request on it, and a connection whose certificate nobody vouches for any more ends.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use springhouse_featurestore::time::{Clock, SystemClock};
use springhouse_featurestore::{Error, Result};
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

use super::certificate;

/// Who vouches for clients; none where clients show no certificates.
pub(super) type Verifier = Option<Arc<dyn ClientCertVerifier>>;

/// A connection's certificate that nobody vouches for any more. There are not so many changes.
const LOST: u64 = u64::MAX;

/// The authorities of clients' certificates, as they are exchanged.
#[derive(Debug)]
pub(super) struct Trust {
    verifier: RwLock<Verifier>,
    /// Counts the changes: what was looked at since the last needs no other look.
    changes: watch::Sender<u64>,
}

impl Trust {
    pub(super) fn new(verifier: Verifier) -> Arc<Self> {
        Arc::new(Self { verifier: RwLock::new(verifier), changes: watch::Sender::new(0) })
    }

    /// Believes others from here on.
    pub(super) fn exchange(&self, verifier: Verifier) {
        *self.verifier.write().unwrap_or_else(PoisonError::into_inner) = verifier;
        self.look_again();
    }

    /// Has the certificates of all connections looked at again.
    pub(super) fn look_again(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// How many changes there were. Whoever agrees on a connection asks before: a change meanwhile is then seen after.
    pub(super) fn changes(&self) -> u64 {
        *self.changes.borrow()
    }

    fn vouches_for(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some((own, between)) = chain.split_first() else { return false };
        let verifier = self.verifier.read().unwrap_or_else(PoisonError::into_inner).clone();
        let seconds = u64::try_from(SystemClock.now().micros() / 1_000_000).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier.is_some_and(|verifier| verifier.verify_client_cert(own, between, now).is_ok())
    }
}

/// Where a connection comes from, and whose certificate it bears.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    host: Option<IpAddr>,
    shown: Option<Arc<Shown>>,
}

/// A certificate that was shown, with those between it and its authority.
#[derive(Debug)]
struct Shown {
    names: Vec<String>,
    chain: Vec<CertificateDer<'static>>,
    trust: Arc<Trust>,
    /// The change after which it was looked at last, or [`LOST`].
    looked: AtomicU64,
}

impl Peer {
    /// That of a connection that was agreed on after so many changes.
    pub(super) fn new(
        host: Option<IpAddr>,
        chain: Option<&[CertificateDer<'static>]>,
        trust: &Arc<Trust>,
        changes: u64,
    ) -> Self {
        let shown = chain.and_then(|chain| {
            let names = certificate::names(chain.first()?);
            let (chain, trust, looked) = (chain.to_vec(), Arc::clone(trust), AtomicU64::new(changes));
            Some(Arc::new(Shown { names, chain, trust, looked }))
        });
        Self { host, shown }
    }

    /// The host that it is on, if that is another.
    pub(super) fn host(&self) -> Option<IpAddr> {
        self.host
    }

    /// Its names; none without a certificate.
    pub(super) fn names(&self) -> &[String] {
        self.shown.as_ref().map(|shown| shown.names.as_slice()).unwrap_or_default()
    }

    /// Whether a certificate was shown.
    pub(super) fn has_certificate(&self) -> bool {
        self.shown.is_some()
    }

    /// Whether its certificate is believed now.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unauthenticated`] names the certificate.
    pub(super) fn stand(&self) -> Result<()> {
        if self.shown.as_ref().is_none_or(|shown| shown.is_believed()) {
            return Ok(());
        }
        Err(Error::unauthenticated("nobody vouches for the client's certificate any more")
            .with("certificate", self.names().join(", "))
            .remedy(
                "connect again with a certificate that is valid, of an authority in tls_client_ca; or show a token",
            ))
    }

    /// Ends when its certificate is believed no more.
    pub(super) async fn lost(self) {
        let Some(shown) = self.shown else { return std::future::pending().await };
        let mut changes = shown.trust.changes.subscribe();
        while shown.is_believed() {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl Shown {
    fn is_believed(&self) -> bool {
        let changes = self.trust.changes();
        match self.looked.load(Ordering::Relaxed) {
            LOST => false,
            looked if looked == changes => true,
            _ => {
                let believed = self.trust.vouches_for(&self.chain);
                self.looked.store(if believed { changes } else { LOST }, Ordering::Relaxed);
                if !believed {
                    tracing::info!(certificate = %self.names.join(", "), "nobody vouches for a connection's certificate any more: it ends");
                }
                believed
            }
        }
    }
}
