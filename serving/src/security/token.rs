//! Tokens, and the file of those who may call: TOML, of tokens only hashes.
//!
//! A token is `springhouse_ID_SECRET`: 8 and 32 random bytes in hexadecimal. The id is public and names it in the file, in
//! `token list` and to `token revoke`; the whole text is shown once and hashed with SHA-256. A secret of 256 random bits
//! needs no slow hash: there is nothing to guess.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, Result};

use super::scope::Scope;

const PREFIX: &[u8] = b"springhouse_";

/// A token, whole: what its holder shows. It is printed once, and never by `Debug`.
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A new one, of the operating system's randomness.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when that gives none.
    pub fn new() -> Result<Self> {
        let mut bytes = [0_u8; 40];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::unavailable("the operating system gives no randomness").with("reason", error))?;
        let (id, secret) = bytes.split_at(8);
        Ok(Self(format!("springhouse_{}_{}", hex(id), hex(secret))))
    }

    /// Its text, to be given to its holder.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The public part of what may be a token.
    pub(super) fn id_of(token: &[u8]) -> Option<&str> {
        let rest = token.strip_prefix(PREFIX)?;
        let end = rest.iter().position(|byte| *byte == b'_')?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |text, byte| text + &format!("{byte:02x}"))
}

/// A token as the file knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownToken {
    /// Its public part.
    pub id: String,
    /// Who shows it.
    pub caller: String,
    /// What they may.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is known no more; for ever known where it is not given, as in files from before tokens expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The SHA-256 of its whole text, in hexadecimal.
    sha256: String,
}

impl KnownToken {
    pub(super) fn hash(&self) -> Result<[u8; 32]> {
        let pairs = self.sha256.as_bytes().chunks(2);
        let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|text| u8::from_str_radix(text, 16).ok());
        let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
            Error::invalid("a token's sha256 is not 64 hexadecimal digits")
                .with("token", &self.id)
                .remedy("make it anew: springhouse token create")
        })
    }
}

/// A client certificate as the file knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownCertificate {
    /// A name that it has: `dns:` or `uri:` and a subject alternative name, or `cn:` and its subject's common name.
    pub name: String,
    /// Who shows it.
    pub caller: String,
    /// What they may.
    pub scopes: Vec<Scope>,
}

/// The file of those who may call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallersFile {
    /// By token.
    #[serde(rename = "token", skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<KnownToken>,
    /// By certificate.
    #[serde(rename = "certificate", skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<KnownCertificate>,
}

const HEADING: &str = "# Who may call. Written by `springhouse token`, which keeps no comments; [[certificate]] entries are added by hand.\n\n";

impl CallersFile {
    /// Reads a file; one that does not exist yet is empty.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the line that is not right.
    pub fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Self::unreadable(path, error)),
        }
    }

    pub(super) fn unreadable(path: &Path, error: std::io::Error) -> Error {
        Error::invalid("the file of those who may call cannot be read")
            .with("file", path.display())
            .remedy("make it with: springhouse token create --caller NAME --scope SCOPE")
            .source(error)
    }

    /// The message of the parser alone: it would quote the line, and somebody may have written a token there.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |line: usize, what: &str| {
            Error::invalid("the file of those who may call is not right")
                .with("file", path.display())
                .with("line", line)
                .with("what", what)
                .remedy("docs/security.md shows one")
        };
        let file: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text[..start].matches('\n').count() + 1;
            wrong(line, "no [[token]] or [[certificate]] entry with the fields and scopes that there are")
        })?;
        for certificate in &file.certificates {
            if !["dns:", "uri:", "cn:"].iter().any(|kind| certificate.name.starts_with(kind)) {
                return Err(wrong(1, "a certificate's name begins with dns:, uri: or cn:")
                    .with("certificate", &certificate.name));
            }
        }
        Ok(file)
    }

    /// Adds a token for a caller, and gives it.
    ///
    /// # Errors
    /// As [`Token::new`].
    pub fn create(&mut self, caller: &str, scopes: &[Scope], now: Timestamp) -> Result<Token> {
        self.create_until(caller, scopes, now, None)
    }

    /// Adds a token that expires at a time, where one is given.
    ///
    /// # Errors
    /// As [`Token::new`].
    pub fn create_until(
        &mut self,
        caller: &str,
        scopes: &[Scope],
        now: Timestamp,
        expires: Option<Timestamp>,
    ) -> Result<Token> {
        let token = Token::new()?;
        let id = Token::id_of(token.0.as_bytes()).unwrap_or_default().to_owned();
        let sha256 = hex(&Sha256::digest(token.0.as_bytes()));
        let scopes = Scope::ALL.into_iter().filter(|scope| scopes.contains(scope)).collect();
        self.tokens.push(KnownToken { id, caller: caller.to_owned(), scopes, created: now, expires, sha256 });
        Ok(token)
    }

    /// Takes a token away.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`] for an id that is not there.
    pub fn revoke(&mut self, id: &str) -> Result<KnownToken> {
        let position = self.tokens.iter().position(|token| token.id == id).ok_or_else(|| {
            Error::not_found("there is no such token").with("id", id).remedy("springhouse token list shows all")
        })?;
        Ok(self.tokens.remove(position))
    }

    /// Changes a file: nobody else does meanwhile, its owner alone may read it, and readers see the old or the new.
    ///
    /// # Errors
    /// The change's own; [`springhouse_featurestore::ErrorKind::Busy`] while another changes it.
    pub fn change<T>(path: &Path, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let next = PathBuf::from(format!("{}.new", path.display()));
        let failed = |error: std::io::Error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                return Error::busy("another command is changing the callers, or was killed while it did")
                    .with("file", next.display())
                    .remedy("try again; delete that file if nobody does");
            }
            Error::unavailable("the callers cannot be written").with("file", next.display()).source(error)
        };
        let mut writing = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next).map_err(failed)?;
        let written = Self::read(path).and_then(|mut file| {
            let done = change(&mut file)?;
            let text = toml::to_string(&file)
                .map_err(|error| Error::internal("the callers cannot be written as TOML").source(error))?;
            writing.write_all(format!("{HEADING}{text}").as_bytes()).map_err(failed)?;
            // Who serves reads it, whoever changes it.
            if let Ok(before) = std::fs::metadata(path) {
                std::os::unix::fs::fchown(&writing, Some(before.uid()), Some(before.gid())).map_err(failed)?;
            }
            writing.sync_all().map_err(failed)?;
            std::fs::rename(&next, path).map_err(failed)?;
            Ok(done)
        });
        if written.is_err() {
            // Its own error says more than one of this.
            drop(std::fs::remove_file(&next));
        }
        written
    }
}
