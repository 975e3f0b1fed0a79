//! Entries as they are read back from the files of pushed events: by position, however many flushes or compactions wrote them.
//!
//! Files are read batch by batch, and no further than entries are taken: whoever wants so many bytes opens no file beyond them,
//! and reads of one that holds many times as much the groups of rows alone that have them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use futures::TryStreamExt;
use parquet::arrow::async_reader::ParquetRecordBatchStream;

use super::files::{damaged, positions_of};
use super::{PushEntry, PushHistory, PushHistoryState};
use crate::Result;
use crate::push::PushOrigin;
use crate::tier::{DataFile, ObjectReader, WRITE_POSITION, WRITE_WITHIN};

impl PushHistory {
    /// The flushed entries of some sources after a position and up to another, by position. They have no origin.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when a file cannot be read.
    pub async fn entries(
        &self,
        state: &PushHistoryState,
        sources: &BTreeSet<&str>,
        range: (u64, u64),
    ) -> Result<Vec<PushEntry>> {
        Ok(self.first_entries(state, sources, range, u64::MAX).await?.0)
    }

    /// The first of them, whose events need no more than so many bytes of memory, or the very first alone; and the position up to
    /// which these are all.
    ///
    /// # Errors
    /// As [`Self::entries`].
    pub async fn first_entries(
        &self,
        state: &PushHistoryState,
        sources: &BTreeSet<&str>,
        (after, until): (u64, u64),
        most_bytes: u64,
    ) -> Result<(Vec<PushEntry>, u64)> {
        let mut found = Entries::new(self, state, sources, (after, until));
        let (mut entries, mut bytes, mut reached) = (Vec::new(), 0_u64, after);
        while let Some(entry) = found.next().await? {
            bytes = bytes.saturating_add(entry.events_bytes());
            if bytes > most_bytes && !entries.is_empty() {
                return Ok((entries, reached));
            }
            reached = entry.position;
            entries.push(entry);
        }
        Ok((entries, until))
    }

    /// The positions of those among some entries that were flushed as they are: the store holds the same events of the same
    /// source at the same position.
    ///
    /// # Errors
    /// As [`Self::entries`].
    pub async fn flushed_among(&self, state: &PushHistoryState, entries: &[PushEntry]) -> Result<BTreeSet<u64>> {
        let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(BTreeSet::new()) };
        let by_place: BTreeMap<(u64, &str), &PushEntry> =
            entries.iter().map(|entry| ((entry.position, entry.source.as_str()), entry)).collect();
        let sources = entries.iter().map(|entry| entry.source.as_str()).collect();
        let mut flushed = Entries::new(self, state, &sources, (first.position.saturating_sub(1), last.position));
        let mut same = BTreeSet::new();
        while let Some(held) = flushed.next().await? {
            let entry = by_place.get(&(held.position, held.source.as_str()));
            if entry.is_some_and(|entry| entry.events.columns() == held.events.columns()) {
                same.insert(held.position);
            }
        }
        Ok(same)
    }
}

/// The flushed entries of some sources in a stretch of positions, by position.
struct Entries<'a> {
    of_sources: Vec<EntriesOf<'a>>,
}

impl<'a> Entries<'a> {
    fn new(
        history: &'a PushHistory,
        state: &'a PushHistoryState,
        sources: &BTreeSet<&'a str>,
        stretch: (u64, u64),
    ) -> Self {
        let of_source = |source: &'a str| EntriesOf {
            history,
            source,
            files: state.files_of(source).iter(),
            stretch,
            open: None,
            read: VecDeque::new(),
        };
        Self { of_sources: sources.iter().copied().map(of_source).collect() }
    }

    async fn next(&mut self) -> Result<Option<PushEntry>> {
        let mut first: Option<(u64, usize)> = None;
        for (index, of_source) in self.of_sources.iter_mut().enumerate() {
            if let Some(position) = of_source.next_position().await? {
                first = Some(first.map_or((position, index), |first| first.min((position, index))));
            }
        }
        match first {
            Some((_, index)) => self.of_sources[index].take(),
            None => Ok(None),
        }
    }
}

/// The same of one source, file by file.
struct EntriesOf<'a> {
    history: &'a PushHistory,
    source: &'a str,
    files: std::slice::Iter<'a, DataFile>,
    /// After a position, and up to another.
    stretch: (u64, u64),
    /// The file that is being read, and the position of its events where it does not keep them.
    open: Option<(&'a DataFile, u64, ParquetRecordBatchStream<ObjectReader>)>,
    /// What has been read of it and not taken, by position. The last may go on in the next batch.
    read: VecDeque<(u64, Vec<RecordBatch>)>,
}

impl EntriesOf<'_> {
    /// The position of the next entry, which has then been read to its end.
    async fn next_position(&mut self) -> Result<Option<u64>> {
        let (after, until) = self.stretch;
        while self.read.len() < 2 {
            if let Some((file, position, batches)) = &mut self.open {
                let batch = batches.try_next().await.map_err(|error| damaged(&file.path, error))?;
                let parts = batch.map(|batch| parts_of(&batch, *position)).transpose()?;
                let is_over =
                    parts.as_ref().is_none_or(|parts| parts.last().is_some_and(|(position, _)| *position > until));
                for part in parts.into_iter().flatten().filter(|(position, _)| after < *position && *position <= until)
                {
                    self.add(part);
                }
                if is_over {
                    self.open = None;
                }
            } else if !self.read.is_empty() {
                break;
            } else if let Some(file) = self.files.next() {
                if let Some(range) = file.positions.filter(|range| range.after < until && range.until > after) {
                    self.open = Some((file, range.until, self.history.read(file, Some(self.stretch)).await?));
                }
            } else {
                break;
            }
        }
        Ok(self.read.front().map(|(position, _)| *position))
    }

    fn add(&mut self, (position, events): (u64, RecordBatch)) {
        match self.read.back_mut().filter(|(last, _)| *last == position) {
            Some((_, parts)) => parts.push(events),
            None => self.read.push_back((position, vec![events])),
        }
    }

    fn take(&mut self) -> Result<Option<PushEntry>> {
        let Some((position, parts)) = self.read.pop_front() else { return Ok(None) };
        let events = match parts.as_slice() {
            [whole] => whole.clone(),
            parts => concat_batches(&parts[0].schema(), parts)?,
        };
        PushEntry::new(position, self.source.to_owned(), events, PushOrigin::default()).map(Some)
    }
}

/// The events of a batch of a file, which has them by position. Those of a file from before positions were kept have one.
fn parts_of(batch: &RecordBatch, position: u64) -> Result<Vec<(u64, RecordBatch)>> {
    let schema = batch.schema();
    let own = |name: &str| name != WRITE_POSITION && name != WRITE_WITHIN;
    let columns: Vec<usize> = (0..schema.fields().len()).filter(|index| own(schema.field(*index).name())).collect();
    let events = batch.project(&columns)?;
    let Some(positions) = positions_of(batch) else { return Ok(vec![(position, events)]) };
    let (mut parts, mut start) = (Vec::new(), 0);
    for run in positions.values().chunk_by(|one, other| one == other) {
        parts.push((run[0].cast_unsigned(), events.slice(start, run.len())));
        start += run.len();
    }
    Ok(parts)
}
