//! Files of a folder store that were being written when their process was killed: under names that listing passes over (`#`
//! and digits), so that nobody else ever meets them.
//!
//! Others may be writing such files now. One that nobody has written to for long is nobody's.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::time::{Span, Timestamp};
use crate::{Error, Result};

/// A file that was cut off, or that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutOffFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was written to last, by the host's clock.
    pub written: Timestamp,
}

impl CutOffFile {
    /// Those below the folder of a store that nobody has written to for at least so long.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the folder cannot be read.
    pub async fn list(folder: &Path, age: Span, now: Timestamp) -> Result<Vec<Self>> {
        let folder = folder.to_owned();
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            find(&folder, &mut found).map_err(|error| failed(&folder, error))?;
            Ok::<_, Error>(found)
        });
        let mut found = listed.await.map_err(|error| Error::internal("listing a folder panicked").source(error))??;
        found.retain(|file| now.since(file.written) >= age);
        found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when that cannot be.
    pub async fn remove(&self) -> Result<()> {
        let path = self.path.clone();
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_file(&path) {
            // Whoever wrote it has gone on, and given it its name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| failed(&path, error)),
        });
        removed.await.map_err(|error| Error::internal("removing a file panicked").source(error))?
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::unavailable("files that were cut off cannot be found or removed").with("path", path.display()).source(error)
}

/// Whether a name is one of a file that is being written.
fn is_staged(name: &str) -> bool {
    let number = name.rsplit_once('#').filter(|(name, _)| !name.is_empty()).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

fn find(folder: &Path, found: &mut Vec<CutOffFile>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = match entry.file_type() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            kind => kind?,
        };
        if kind.is_dir() {
            find(&entry.path(), found)?;
        } else if kind.is_file() && is_staged(&name.to_string_lossy()) {
            let metadata = match entry.metadata() {
                // It has been given its name meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
            found.push(CutOffFile {
                path: entry.path(),
                bytes: metadata.len(),
                written: Timestamp::from_micros(micros),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_files_that_nobody_writes_any_more_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("pushes/data/paid");
        std::fs::create_dir_all(&below).expect("a folder");
        for name in ["1.parquet", "1.parquet#1", "2.parquet#12", "3.parquet#", "4#a", "#5"] {
            std::fs::write(below.join(name), "rows").expect("writable");
        }
        let second = |second: i64| Timestamp::from_micros(second * 1_000_000);
        for (name, at) in [("1.parquet#1", 1_000), ("2.parquet#12", 5_000)] {
            let file = std::fs::File::options().write(true).open(below.join(name)).expect("there");
            file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(at)).expect("settable");
        }
        let hour = Span::from_secs(3_600);
        let found = CutOffFile::list(folder.path(), hour, second(5_000)).await.expect("readable");
        let expected = CutOffFile { path: below.join("1.parquet#1"), bytes: 4, written: second(1_000) };
        assert_eq!(found, [expected]);
        found[0].remove().await.expect("removable");
        found[0].remove().await.expect("it is gone already");
        let found = CutOffFile::list(folder.path(), hour, second(9_000)).await.expect("readable");
        assert_eq!(found.iter().map(|file| file.path.clone()).collect::<Vec<_>>(), [below.join("2.parquet#12")]);
    }
}
