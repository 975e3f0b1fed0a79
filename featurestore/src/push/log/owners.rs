//! Whose a producer's name is: where callers are known by name, the name of a producer of a source is the caller's who uses it
//! first. Else whoever may push could send a great sequence under another's name, and what that one sends then would be
//! passed over as sent before.

use rocksdb::WriteBatch;

use super::PushLog;
use super::format::producer_key;
use crate::{Error, Result};

impl PushLog {
    /// Whether a producer's name is a caller's; false where it is nobody's yet.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Forbidden`] names the caller whose it is.
    pub fn is_owner(&self, source: &str, producer: &str, caller: &str) -> Result<bool> {
        match self.state().owners.get(&(source.to_owned(), producer.to_owned())) {
            None => Ok(false),
            Some(owner) if owner == caller => Ok(true),
            Some(owner) => Err(Error::forbidden("the producer's name is another caller's")
                .with("source", source)
                .with("producer", producer)
                .with("caller", caller)
                .with("belongs to", owner)
                .remedy(format!(
                    "push under a name of your own; or have it handed over: springhouse producers {source} --hand-over \
                     {producer} --to {caller} -m WHY"
                ))),
        }
    }

    /// Takes a producer's name for a caller, if it is nobody's yet; synced.
    ///
    /// # Errors
    /// As [`Self::is_owner`], and [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn claim(&self, source: &str, producer: &str, caller: &str) -> Result<()> {
        let _appending = self.appending();
        if !self.is_owner(source, producer, caller)? {
            let mut batch = WriteBatch::default();
            batch.put(producer_key(b'o', source, producer), caller);
            self.write(batch)?;
            self.state().owners.insert((source.to_owned(), producer.to_owned()), caller.to_owned());
        }
        Ok(())
    }
}
