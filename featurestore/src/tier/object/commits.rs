//! Reading some of a view's commits: whoever has none of them, or few, reads what they add up to.

use super::{ViewCommit, ViewLog};
use crate::Result;

/// So many commits are read at once: about as many as there are between checkpoints.
const FEW_COMMITS: usize = 64;

/// Who lacks so many commits reads what they add up to: they would be read before anything else, however slow the store is.
const MANY_COMMITS: u64 = 1_024;

impl ViewLog {
    /// The first commits after `number`: all, where there are fewer than `enough`, and else about as many.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn some_commits_after(&self, number: u64, enough: usize) -> Result<Vec<(u64, ViewCommit)>> {
        self.log.read_some_after(number, enough).await
    }

    /// The commits after `number`; none where there are so many that whoever lacks them had better read what they add up to.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn commits_unless_many(&self, number: u64) -> Result<Option<Vec<(u64, ViewCommit)>>> {
        let mut commits = self.some_commits_after(number, FEW_COMMITS).await?;
        if let Some(last) = commits.last().map(|(last, _)| *last).filter(|_| commits.len() >= FEW_COMMITS) {
            if self.log.read(number.saturating_add(MANY_COMMITS)).await?.is_some() {
                return Ok(None);
            }
            commits.extend(self.commits_after(last).await?);
        }
        Ok(Some(commits))
    }
}
