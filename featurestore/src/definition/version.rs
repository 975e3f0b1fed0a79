//! Versions: the first twelve hexadecimal digits of a SHA-256.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of a definition's meaning, a hash of its canonical text and of the versions it depends on; or of its policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(String);

impl Version {
    /// Hashes a definition's canonical text together with the versions that it was checked with, in their order.
    pub fn of<'a>(text: &str, depends_on: impl IntoIterator<Item = &'a Pinned>) -> Self {
        let mut hash = Sha256::new();
        hash.update(text.as_bytes());
        for pinned in depends_on {
            hash.update([0]);
            hash.update(pinned.to_string().as_bytes());
        }
        Self(hex(&hash.finalize())[..12].to_owned())
    }

    /// Takes text that was printed by this type.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A definition at one version, printed `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pinned {
    /// The definition's name.
    pub name: String,
    /// Its version.
    pub version: Version,
}

impl Pinned {
    /// Names a definition at a version.
    pub fn new(name: impl Into<String>, version: Version) -> Self {
        Self { name: name.into(), version }
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
