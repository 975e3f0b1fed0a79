//! Packages: self-describing, content-addressed model artifacts.
//!
//! A package is a few files, `manifest.json` among them. Its digest is the SHA-256 of the list of its files in order
//! of name, a line `sha256-of-bytes name` each; so the same files have the same digest anywhere. In a store it lies
//! below `packages/` and the digest's digits.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use springhouse_featurestore::definition::{Contract, Pinned};
use springhouse_featurestore::tier::{ObjectStore, get_object, list_objects, put_object};
use springhouse_featurestore::{Error, Result};

/// The file that describes the package.
pub const MANIFEST: &str = "manifest.json";

/// The file of a network's weights.
const WEIGHTS: &str = "weights.safetensors";

/// What a package is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The contract version that it implements.
    pub contract: Pinned,
    /// The view versions that the contract pins.
    pub views: Vec<Pinned>,
    /// The inputs, in the order in which the model reads them.
    pub inputs: Vec<String>,
    /// The kind of model and its shape.
    pub model: crate::model::ModelKind,
    /// The file with its weights.
    pub weights: String,
    /// What it was trained on, and how.
    pub training: Training,
}

/// How a package's model was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// `sha256:` of the training set's file.
    pub training_set: String,
    /// Rows with a label.
    pub rows: usize,
    /// The label column.
    pub label: String,
    /// The seed.
    pub seed: u64,
    /// Measurements on the training set.
    pub metrics: BTreeMap<String, f64>,
}

/// A package's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    files: BTreeMap<String, Bytes>,
    digest: String,
}

impl Package {
    /// A package of these files.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] without a readable manifest, or without the weights it names.
    pub fn new(files: BTreeMap<String, Bytes>) -> Result<Self> {
        let digest = digest_of(&files);
        let package = Self { files, digest };
        let manifest = package.manifest()?;
        package.file(&manifest.weights)?;
        Ok(package)
    }

    /// A package of a trained perceptron for a contract, with the manifest that describes it; `inputs` are in the order
    /// in which the network reads them.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_perceptron(
        contract: &Contract,
        inputs: Vec<String>,
        hidden: Vec<usize>,
        weights: Vec<u8>,
        training: Training,
    ) -> Result<Self> {
        let manifest = Manifest {
            contract: contract.pinned(),
            views: contract.features.iter().map(|rule| rule.view.clone()).collect(),
            inputs,
            model: crate::model::ModelKind::MultiLayerPerceptron { hidden },
            weights: WEIGHTS.to_owned(),
            training,
        };
        let manifest = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::internal("the manifest cannot be written").source(error))?;
        Self::new(BTreeMap::from([(WEIGHTS.to_owned(), weights.into()), (MANIFEST.to_owned(), manifest.into())]))
    }

    /// Reads a package from a folder.
    ///
    /// # Errors
    /// As [`Self::new`]; [`springhouse_featurestore::ErrorKind::Unavailable`] when a file cannot be read.
    pub fn read(folder: &FilePath) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::invalid("not a package folder")
                .with("folder", folder.display())
                .remedy("give the folder that springhouse train wrote")
                .source(error)
        };
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                let bytes = std::fs::read(entry.path()).map_err(failed)?;
                files.insert(entry.file_name().to_string_lossy().into_owned(), Bytes::from(bytes));
            }
        }
        Self::new(files)
    }

    /// Writes the files to a folder.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when it cannot be written.
    pub fn write(&self, folder: &FilePath) -> Result<()> {
        let failed = |error: std::io::Error| {
            Error::unavailable("the package's folder cannot be written").with("folder", folder.display()).source(error)
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        self.files.iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).map_err(failed))
    }

    /// `sha256:` and 64 digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The files by name.
    pub fn files(&self) -> &BTreeMap<String, Bytes> {
        &self.files
    }

    /// One file.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when it is not there.
    pub fn file(&self, name: &str) -> Result<&Bytes> {
        self.files
            .get(name)
            .ok_or_else(|| Error::invalid("the package lacks a file").with("package", &self.digest).with("file", name))
    }

    /// What it is.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when the manifest is missing or of another format.
    pub fn manifest(&self) -> Result<Manifest> {
        serde_json::from_slice(self.file(MANIFEST)?).map_err(|error| {
            Error::invalid("the package's manifest cannot be read").with("package", &self.digest).source(error)
        })
    }

    /// Stores the package; one that is there already is left as it is.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn store(&self, store: &Arc<dyn ObjectStore>) -> Result<()> {
        let folder = folder_of(&self.digest)?;
        // The manifest last: a package that is only half there cannot be read.
        for (name, bytes) in self.files.iter().filter(|(name, _)| *name != MANIFEST) {
            put_object(store, &format!("{folder}/{name}"), bytes.clone()).await?;
        }
        put_object(store, &format!("{folder}/{MANIFEST}"), self.file(MANIFEST)?.clone()).await
    }

    /// Reads a package from a store and verifies it.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`], or [`springhouse_featurestore::ErrorKind::Damaged`] when its bytes do not have this digest.
    pub async fn load(store: &Arc<dyn ObjectStore>, digest: &str) -> Result<Self> {
        let folder = folder_of(digest)?;
        let mut files = BTreeMap::new();
        for path in list_objects(store, &folder).await? {
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            files.insert(name, get_object(store, &path).await?);
        }
        if files.is_empty() {
            return Err(Error::not_found("no such package in the store")
                .with("digest", digest)
                .remedy("push it: springhouse package push DIR"));
        }
        Self::verified(files, digest)
    }

    /// A package of files that must have this digest.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] when they do not.
    pub fn verified(files: BTreeMap<String, Bytes>, digest: &str) -> Result<Self> {
        let found = digest_of(&files);
        if found != digest {
            return Err(Error::damaged("a package is damaged: its bytes do not match its digest")
                .with("expected", digest)
                .with("found", found)
                .remedy("push the package again, or deploy another"));
        }
        Self::new(files)
    }
}

/// `sha256:` of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn digest_of(files: &BTreeMap<String, Bytes>) -> String {
    let list = files.iter().fold(String::new(), |list, (name, bytes)| list + &sha256(bytes) + " " + name + "\n");
    sha256(list.as_bytes())
}

fn folder_of(digest: &str) -> Result<String> {
    let digits = digest
        .strip_prefix("sha256:")
        .filter(|digits| digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let digits = digits.ok_or_else(|| {
        Error::invalid("not a package digest").with("digest", digest).remedy("write sha256: and 64 hexadecimal digits")
    })?;
    Ok(format!("packages/{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_another_digest() {
        let files = BTreeMap::from([("a".to_owned(), Bytes::from_static(b"1"))]);
        let other = BTreeMap::from([("a".to_owned(), Bytes::from_static(b"2"))]);
        assert_ne!(digest_of(&files), digest_of(&other));
        let error = Package::verified(other, &digest_of(&files)).expect_err("damaged");
        assert_eq!(error.kind(), springhouse_featurestore::ErrorKind::Damaged);
    }

    #[test]
    fn a_digest_that_would_leave_the_folder_is_refused() {
        assert!(folder_of("sha256:../../etc").is_err());
    }
}
