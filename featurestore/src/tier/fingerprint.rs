//! What a set of rows adds up to: the sum of the hashes of its rows, the same in any order, and of two sets together the
//! sum of both. It tells whether rows that were committed once would be the same today.

use std::hash::Hasher;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use twox_hash::XxHash64;

use super::object::EVENT_TIME;
use crate::time::Timestamp;
use crate::{Error, Result};

/// Adds rows up.
#[derive(Debug)]
pub struct Fingerprint {
    rows_as_bytes: RowConverter,
    rows: u64,
    sum: u64,
    event_times: Option<(Timestamp, Timestamp)>,
}

impl Fingerprint {
    /// Of no rows yet, with the columns of a view's data files.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] for columns that have no bytes.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Self { rows_as_bytes: RowConverter::new(fields)?, rows: 0, sum: 0, event_times: None })
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when the batch has other columns.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = self.rows_as_bytes.convert_columns(batch.columns())?;
        for row in &rows {
            let mut hash = XxHash64::with_seed(0);
            hash.write(row.as_ref());
            self.sum = self.sum.wrapping_add(hash.finish());
        }
        self.rows += batch.num_rows() as u64;
        let times = batch
            .column_by_name(EVENT_TIME)
            .and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>())
            .ok_or_else(|| Error::internal("a batch of view rows lacks its event times"))?;
        if let (Some(least), Some(greatest)) = (arrow::compute::min(times), arrow::compute::max(times)) {
            let (least, greatest) = (Timestamp::from_micros(least), Timestamp::from_micros(greatest));
            self.event_times = Some(
                self.event_times.map_or((least, greatest), |(from, until)| (from.min(least), until.max(greatest))),
            );
        }
        Ok(())
    }

    /// The rows added.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What they add up to.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The least and the greatest event time among them.
    pub fn event_times(&self) -> Option<(Timestamp, Timestamp)> {
        self.event_times
    }
}
