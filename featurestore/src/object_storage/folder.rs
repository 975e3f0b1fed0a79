//! A folder as an object store whose puts survive a power cut: an object's bytes are on the disk before its name is, and its
//! name before the put is answered.
//!
//! `object_store`'s own folder syncs nothing. What is read, listed and deleted goes through it all the same; a deletion that
//! a power cut undoes brings back what nobody names any more.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Names this store in errors.
const STORE: &str = "folder";

/// A folder of objects.
#[derive(Debug)]
pub struct DurableFolder {
    files: LocalFileSystem,
}

impl fmt::Display for DurableFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Durable{}", self.files)
    }
}

impl DurableFolder {
    /// The objects below a folder that is there.
    ///
    /// # Errors
    /// When the folder is not there.
    pub fn new(folder: &FilePath) -> Result<Self> {
        Ok(Self { files: LocalFileSystem::new_with_prefix(folder)? })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn failed(path: &FilePath, error: io::Error) -> Error {
    Error::Generic { store: STORE, source: format!("{}: {error}", path.display()).into() }
}

/// Runs what waits for the disk where waiting is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|source| Error::JoinError { source })?
}

/// Makes the names in a folder last.
fn sync_folder(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a folder and those above it that are not there, and their names last. A folder that is there may have been made
/// just now by another: its name is made to last all the same.
///
/// # Errors
/// Those of the disk.
pub fn create_folder(folder: &FilePath) -> io::Result<()> {
    let above = match folder.parent() {
        Some(above) if above.as_os_str().is_empty() => FilePath::new("."),
        Some(above) => above,
        None => return Ok(()),
    };
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create_folder(above)?;
            return create_folder(folder);
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    sync_folder(above)
}

/// A file under a name that listing passes over (`#` and digits), until all of it is on the disk.
#[derive(Debug)]
struct Staged {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn create(target: PathBuf) -> Result<Self> {
        for number in 1_u64.. {
            let mut path = target.clone().into_os_string();
            path.push(format!("#{number}"));
            let path = PathBuf::from(path);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, path, target }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if let Some(folder) = target.parent() {
                        create_folder(folder).map_err(|error| failed(folder, error))?;
                    }
                }
                Err(error) => return Err(failed(&path, error)),
            }
        }
        Err(Error::Generic { store: STORE, source: "there is no free name for a file that is being written".into() })
    }

    /// Gives the file its name, and makes both last.
    fn publish(self, mode: &PutMode) -> Result<PutResult> {
        let done = self.named(mode);
        if done.is_err() {
            // It may have its name already: then there is nothing to remove.
            drop(std::fs::remove_file(&self.path));
        }
        done
    }

    fn named(&self, mode: &PutMode) -> Result<PutResult> {
        self.file.sync_all().map_err(|error| failed(&self.path, error))?;
        if matches!(mode, PutMode::Create) {
            std::fs::hard_link(&self.path, &self.target).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { path: self.target.display().to_string(), source: error.into() }
                }
                _ => failed(&self.target, error),
            })?;
            std::fs::remove_file(&self.path).map_err(|error| failed(&self.path, error))?;
        } else {
            std::fs::rename(&self.path, &self.target).map_err(|error| failed(&self.target, error))?;
        }
        if let Some(folder) = self.target.parent() {
            sync_folder(folder).map_err(|error| {
                // Whoever looks must not take it for written.
                if matches!(mode, PutMode::Create) {
                    drop(std::fs::remove_file(&self.target));
                }
                failed(folder, error)
            })?;
        }
        Ok(PutResult { e_tag: None, version: None })
    }
}

#[async_trait]
impl ObjectStore for DurableFolder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            return self.files.put_opts(location, payload, options).await;
        }
        let target = self.files.path_to_filesystem(location)?;
        blocking(move || {
            let mut staged = Staged::create(target)?;
            let written = payload.iter().try_for_each(|bytes| staged.file.write_all(bytes));
            if let Err(error) = written {
                drop(std::fs::remove_file(&staged.path));
                return Err(failed(&staged.path, error));
            }
            staged.publish(&options.mode)
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.files.path_to_filesystem(location)?;
        let staged = blocking(move || Staged::create(target)).await?;
        Ok(Box::new(DurableUpload { staged: Some(Arc::new(staged)), offset: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await?;
        let target = self.files.path_to_filesystem(to)?;
        blocking(move || {
            File::open(&target).and_then(|file| file.sync_all()).map_err(|error| failed(&target, error))?;
            target.parent().map_or(Ok(()), sync_folder).map_err(|error| failed(&target, error))
        })
        .await
    }
}

/// A file that comes in parts.
#[derive(Debug)]
struct DurableUpload {
    staged: Option<Arc<Staged>>,
    offset: u64,
}

impl DurableUpload {
    fn over() -> Error {
        Error::Generic { store: STORE, source: "the upload is over".into() }
    }
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let mut offset = self.offset;
        self.offset += data.content_length() as u64;
        let Some(staged) = self.staged.clone() else { return async { Err(Self::over()) }.boxed() };
        blocking(move || {
            for bytes in &data {
                staged.file.write_all_at(bytes, offset).map_err(|error| failed(&staged.path, error))?;
                offset += bytes.len() as u64;
            }
            Ok(())
        })
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().ok_or_else(Self::over)?;
        blocking(move || staged.named(&PutMode::Overwrite)).await
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = self.staged.take().ok_or_else(Self::over)?;
        blocking(move || std::fs::remove_file(&staged.path).map_err(|error| failed(&staged.path, error))).await
    }
}

impl Drop for DurableUpload {
    fn drop(&mut self) {
        // An upload that was given up leaves nothing; what cannot be removed has a name that nobody lists.
        if let Some(staged) = self.staged.take() {
            drop(std::fs::remove_file(&staged.path));
        }
    }
}
