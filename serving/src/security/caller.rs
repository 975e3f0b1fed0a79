//! Callers: who there is, and who a request is from.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use springhouse_featurestore::time::{Clock, SystemClock, Timestamp};
use springhouse_featurestore::{Error, Result};
use subtle::ConstantTimeEq;

use super::scope::{Scope, Scopes, any_of};
use super::tls::Peer;
use super::token::{CallersFile, KnownCertificate, KnownToken, Token};

/// The most calls of one caller that are open at once: a worker has an exchange for each contract, and a prediction for each
/// of those who wait for it.
const MOST_OPEN_CALLS: usize = 4096;

/// Who calls, and what they may. It is in the extensions of every request that came past the layer.
#[derive(Debug, Clone)]
pub struct Caller {
    name: Arc<str>,
    scopes: Scopes,
    /// Whether what it showed still holds; streams that stay open ask again.
    standing: Arc<Standing>,
    /// The connection whose certificate says who it is.
    peer: Option<Peer>,
}

/// Whether what a caller showed still holds.
#[derive(Debug)]
struct Standing {
    /// Whether it is one of those who are known, and not just anybody.
    known: bool,
    revoked: AtomicBool,
    /// Calls that are open of whoever has this name, by all of its tokens and certificates.
    open: Arc<AtomicUsize>,
    /// From when on it holds no more, by which clock.
    expires: Option<(Timestamp, Arc<dyn Clock>)>,
}

impl Standing {
    fn new(known: bool, expires: Option<(Timestamp, Arc<dyn Clock>)>, open: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { known, revoked: AtomicBool::new(false), open, expires })
    }
}

/// A call that is open, for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenCall(Arc<Standing>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Caller {
    /// Anybody, where nobody is asked who they are.
    pub(crate) fn anybody() -> Self {
        let standing = Standing::new(false, None, Arc::default());
        Self { name: "anybody".into(), scopes: Scopes::all(), standing, peer: None }
    }

    /// One of those who are known, until a time where there is one.
    fn known(
        name: &str,
        scopes: &[Scope],
        expires: Option<(Timestamp, Arc<dyn Clock>)>,
        open: Arc<AtomicUsize>,
    ) -> Self {
        let scopes = scopes.iter().copied().collect();
        Self { name: name.into(), scopes, standing: Standing::new(true, expires, open), peer: None }
    }

    /// One of those who are known, with every scope.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self::with_scopes(name, &Scope::ALL)
    }

    /// One of those who are known, with some scopes.
    #[cfg(test)]
    pub(crate) fn with_scopes(name: &str, scopes: &[Scope]) -> Self {
        Self::known(name, scopes, None, Arc::default())
    }

    /// Takes back what it showed.
    #[cfg(test)]
    pub(crate) fn revoke(&self) {
        self.standing.revoked.store(true, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name under which a change of its is recorded: its own; of a caller whom nobody asked who they are, what it says.
    pub fn signs(&self, said: &str) -> String {
        let name = if self.account().is_none() && !said.is_empty() { said } else { &self.name };
        name.to_owned()
    }

    /// The name under which it has shares and producers; none of callers whom nobody asks who they are.
    pub fn account(&self) -> Option<&Arc<str>> {
        self.standing.known.then_some(&self.name)
    }

    /// Opens a call, unless it has as many open as it may; none where nobody is asked who they are. Without a lock: every
    /// call comes by here.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] names the caller.
    pub(crate) fn open(&self) -> Result<Option<OpenCall>> {
        if !self.standing.known {
            return Ok(None);
        }
        let before = self.standing.open.fetch_add(1, Ordering::Relaxed);
        let open = OpenCall(Arc::clone(&self.standing));
        if before < MOST_OPEN_CALLS {
            return Ok(Some(open));
        }
        Err(Error::busy("one caller has its share of calls that are open")
            .with("caller", &self.name)
            .with("share", MOST_OPEN_CALLS)
            .remedy("wait until some of them have ended"))
    }

    /// What it may.
    pub fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// Whether it may do what needs this scope, now.
    ///
    /// # Errors
    /// As [`Self::require_one_of`].
    pub fn require(&self, scope: Scope) -> Result<()> {
        self.require_one_of(&[scope])
    }

    /// Whether what it showed holds now.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unauthenticated`] when it was revoked meanwhile, or has expired.
    fn stand(&self) -> Result<()> {
        if self.standing.revoked.load(Ordering::Relaxed) {
            return Err(Error::unauthenticated("the token or certificate was revoked, or changed, meanwhile")
                .with("caller", &self.name)
                .remedy("begin again, with what is known now"));
        }
        if let Some((expires, clock)) = &self.standing.expires
            && *expires <= clock.now()
        {
            return Err(Error::unauthenticated("the token has expired")
                .with("caller", &self.name)
                .with("expired at", expires)
                .remedy("make another: springhouse token create --caller NAME --scope SCOPE"));
        }
        self.peer.as_ref().map_or(Ok(()), |peer| peer.stand().map_err(|error| error.with("caller", &self.name)))
    }

    /// Whether it may do what needs one of these scopes, now.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Forbidden`] names them;
    /// [`springhouse_featurestore::ErrorKind::Unauthenticated`] when what it showed holds no more: its token was revoked
    /// meanwhile or has expired, or nobody vouches for its certificate any more.
    pub fn require_one_of(&self, scopes: &[Scope]) -> Result<()> {
        self.stand().map_err(|error| error.with("needs scope", any_of(scopes)))?;
        if scopes.iter().any(|scope| self.scopes.has(*scope)) {
            return Ok(());
        }
        Err(Error::forbidden("the caller lacks a scope for this")
            .with("caller", &self.name)
            .with("needs scope", any_of(scopes))
            .remedy("make a token that has it: springhouse token create --caller NAME --scope SCOPE"))
    }
}

/// A token's hash and its caller.
struct HashedToken {
    sha256: [u8; 32],
    caller: Caller,
}

/// Those who are known.
#[derive(Default)]
struct Known {
    /// By a token's public id.
    tokens: HashMap<String, (KnownToken, HashedToken)>,
    /// By a certificate's name.
    certificates: HashMap<String, (KnownCertificate, Caller)>,
}

/// Everybody who may call.
pub struct Callers {
    /// `None`: everybody, and everything.
    file: Option<PathBuf>,
    known: RwLock<Known>,
    /// What the file held when it was last read; `None` when it could not be.
    text: Mutex<Option<String>>,
    everybody: Caller,
    /// Tokens expire by it: the machine's, whatever time a project shows.
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Callers {
    /// Everybody may do everything.
    pub fn everybody() -> Self {
        Self {
            file: None,
            known: RwLock::default(),
            text: Mutex::default(),
            everybody: Caller::anybody(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Those of a file.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when it is missing or not right.
    pub fn read(file: PathBuf) -> Result<Self> {
        Self::read_at(file, Arc::new(SystemClock))
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn read_at(file: PathBuf, clock: Arc<dyn Clock>) -> Result<Self> {
        let callers = Self { file: Some(file), clock, ..Self::everybody() };
        let (text, read) = callers.look()?;
        callers.take(&read)?;
        *callers.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        Ok(callers)
    }

    /// Whether nobody is asked who they are.
    pub fn are_everybody(&self) -> bool {
        self.file.is_none()
    }

    /// Reads the file again if it changed; says whether it did.
    ///
    /// # Errors
    /// As [`Self::read`], once for each change; those who were known stay.
    pub(super) fn reload(&self) -> Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::read_to_string(file) {
            Ok(now) if text.as_ref() == Some(&now) => Ok(false),
            Ok(now) => {
                let read = CallersFile::parse(&now, file);
                *text = Some(now);
                self.take(&read?)?;
                Ok(true)
            }
            Err(_) if text.is_none() => Ok(false),
            Err(error) => {
                *text = None;
                Err(CallersFile::unreadable(file, error))
            }
        }
    }

    fn look(&self) -> Result<(String, CallersFile)> {
        let file = self.file.clone().unwrap_or_default();
        let text = std::fs::read_to_string(&file).map_err(|error| CallersFile::unreadable(&file, error))?;
        let read = CallersFile::parse(&text, &file)?;
        Ok((text, read))
    }

    /// Takes the file's callers for those who are known. Whoever is as before keeps its open streams.
    fn take(&self, file: &CallersFile) -> Result<()> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut now = Known::default();
        let counts = known.callers().map(|caller| (Arc::clone(&caller.name), Arc::clone(&caller.standing.open)));
        let mut counts: HashMap<Arc<str>, Arc<AtomicUsize>> = counts.collect();
        let mut open_of = |name: &str| Arc::clone(counts.entry(name.into()).or_default());
        for token in &file.tokens {
            let caller = match known.tokens.get(&token.id) {
                Some((same, hashed)) if same == token => hashed.caller.clone(),
                _ => {
                    let expires = token.expires.map(|at| (at, Arc::clone(&self.clock)));
                    Caller::known(&token.caller, &token.scopes, expires, open_of(&token.caller))
                }
            };
            let hashed = HashedToken { sha256: token.hash()?, caller };
            now.tokens.insert(token.id.clone(), (token.clone(), hashed));
        }
        for certificate in &file.certificates {
            let caller = match known.certificates.get(&certificate.name) {
                Some((same, caller)) if same == certificate => caller.clone(),
                _ => {
                    let open = open_of(&certificate.caller);
                    Caller::known(&certificate.caller, &certificate.scopes, None, open)
                }
            };
            now.certificates.insert(certificate.name.clone(), (certificate.clone(), caller));
        }
        let kept: Vec<*const Standing> = now.callers().map(|caller| Arc::as_ptr(&caller.standing)).collect();
        for gone in known.callers().filter(|caller| !kept.contains(&Arc::as_ptr(&caller.standing))) {
            gone.standing.revoked.store(true, Ordering::Relaxed);
        }
        *known = now;
        Ok(())
    }

    /// Who sends a request: whom its token names, else whom the connection's certificate does.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unauthenticated`], which never names what was shown.
    pub(super) fn of_request(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller> {
        if self.are_everybody() {
            return Ok(self.everybody.clone());
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = headers.get(AUTHORIZATION) {
            let caller = bearer(shown.as_bytes()).and_then(|token| known.by_token(token)).ok_or_else(|| {
                Error::unauthenticated("the token is not known")
                    .remedy("send `authorization: Bearer TOKEN` with one that `springhouse token create` made")
            })?;
            return caller.stand().map(|()| caller);
        }
        let names = peer.map(Peer::names).unwrap_or_default();
        if let Some((_, caller)) = names.iter().find_map(|name| known.certificates.get(name)) {
            let caller = Caller { peer: peer.cloned(), ..caller.clone() };
            return caller.stand().map(|()| caller);
        }
        let error = Error::unauthenticated("who calls is not said");
        let error = if names.is_empty() { error } else { error.with("unknown certificate", names.join(", ")) };
        Err(error.remedy("send `authorization: Bearer TOKEN` (springhouse: --token-file), or show a known certificate"))
    }
}

impl Known {
    fn callers(&self) -> impl Iterator<Item = &Caller> {
        let tokens = self.tokens.values().map(|(_, hashed)| &hashed.caller);
        tokens.chain(self.certificates.values().map(|(_, caller)| caller))
    }

    /// The time that this takes tells whether an id is known, and nothing about the secret.
    fn by_token(&self, token: &[u8]) -> Option<Caller> {
        let (_, known) = self.tokens.get(Token::id_of(token)?)?;
        let shown: [u8; 32] = Sha256::digest(token).into();
        bool::from(known.sha256.ct_eq(&shown)).then(|| known.caller.clone())
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}
