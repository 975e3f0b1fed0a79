//! What this project's folder remembers of what was pushed from it, so that a file or query that is pushed again after a crash
//! goes on where it broke off, and one that was pushed whole is not pushed twice.
//!
//! A producer's batches are numbered on from its last, which the server tells. For each producer of a source one file holds,
//! by the content of what was pushed, how many of its batches the server has. A run that broke off does not know that; the
//! next run of the producer does: the server's last number less the number that the run began after.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamWriter;
use futures::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use springhouse_featurestore::{Error, Result};

/// Where it is, in the project's folder.
const FOLDER: &str = ".springhouse/sent";

/// What one producer of one source has sent.
#[derive(Debug)]
pub struct Sent {
    path: PathBuf,
    record: Record,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    source: String,
    producer: String,
    /// By content: the batches of it that the server has.
    taken: BTreeMap<String, u64>,
    /// The last run, if it is not known to have ended.
    running: Option<Run>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    content: String,
    /// The producer's sequence before it.
    after: u64,
    /// Batches of the content that it left out, since the server had them.
    skipped: u64,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What tells some events apart from others: a digest of all of their batches.
#[derive(Default)]
pub struct Content(Sha256);

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Content {
    /// That of events as they stream.
    pub async fn of(
        schema: &SchemaRef,
        mut batches: impl Stream<Item = Result<RecordBatch>> + Unpin,
    ) -> Result<String> {
        let mut writer = StreamWriter::try_new(Self::default(), schema)?;
        while let Some(batch) = batches.try_next().await? {
            writer.write(&batch)?;
        }
        Ok(hex(&writer.into_inner()?.0.finalize()))
    }
}

impl Sent {
    /// What is remembered of a producer, in a project's folder; `last` is its last sequence as the server has it.
    pub fn open(project: &Path, source: &str, producer: &str, last: u64) -> Result<Self> {
        let name = hex(&Sha256::digest(format!("{source}\0{producer}").as_bytes()));
        let path = project.join(FOLDER).join(format!("{}.json", &name[..32]));
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::unavailable("what was pushed before cannot be read")
                .with("file", path.display())
                .remedy("remove the file, and push nothing again that was pushed before")
                .source(error)
        };
        let mut record = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(failed(error.into())),
        };
        (record.source, record.producer) = (source.to_owned(), producer.to_owned());
        if let Some(run) = record.running.take() {
            record.taken.insert(run.content, run.skipped + last.saturating_sub(run.after));
        }
        Ok(Self { path, record })
    }

    /// Notes that a content is about to be sent, numbered on after a sequence. Returns how many of its batches the server has.
    pub fn begin(&mut self, content: &str, after: u64) -> Result<u64> {
        let skipped = self.record.taken.get(content).copied().unwrap_or(0);
        self.record.running = Some(Run { content: content.to_owned(), after, skipped });
        self.write()?;
        Ok(skipped)
    }

    /// Notes that all of the content's batches were taken.
    pub fn end(&mut self, batches: u64) -> Result<()> {
        if let Some(run) = self.record.running.take() {
            self.record.taken.insert(run.content, batches);
        }
        self.write()
    }

    /// Writes beside, then renames: what is there is whole.
    fn write(&self) -> Result<()> {
        let failed = |error: std::io::Error| {
            Error::unavailable("what is pushed cannot be noted").with("file", self.path.display()).source(error)
        };
        let folder = self.path.parent().ok_or_else(|| Error::internal("a file in a folder has one"))?;
        std::fs::create_dir_all(folder).map_err(failed)?;
        let bytes = serde_json::to_vec_pretty(&self.record)
            .map_err(|error| Error::internal("what is pushed cannot be written as JSON").source(error))?;
        let beside = self.path.with_extension("new");
        std::fs::write(&beside, bytes).map_err(failed)?;
        std::fs::File::open(&beside).and_then(|file| file.sync_all()).map_err(failed)?;
        std::fs::rename(&beside, &self.path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_on_where_it_broke_off_whatever_was_pushed_between() {
        let project = tempfile::tempdir().expect("a folder");
        let open = |last| Sent::open(project.path(), "paid", "till", last).expect("readable");
        assert_eq!(open(0).begin("a", 0).expect("written"), 0);
        // Three batches of it were taken, then it was killed; another file follows.
        let mut sent = open(3);
        assert_eq!(sent.begin("b", 3).expect("written"), 0);
        sent.end(2).expect("written");
        let mut sent = open(5);
        assert_eq!(sent.begin("a", 5).expect("written"), 3);
        // Killed again, after one more.
        let mut sent = open(6);
        assert_eq!(sent.begin("a", 6).expect("written"), 4);
        sent.end(7).expect("written");
        assert_eq!((open(9).begin("a", 9).expect("written"), open(9).begin("b", 9).expect("written")), (7, 2));
        assert_eq!(Sent::open(project.path(), "paid", "other", 0).expect("new").begin("a", 0).expect("written"), 0);
    }
}
