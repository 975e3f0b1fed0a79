//! What a set of rows adds up to: the sum of the hashes of its rows, the same in any order, and of two sets together the
//! sum of both. It tells whether rows that were committed once would be the same today.
//!
//! A row's hash is made of the bytes of its values as packed rows have them, column by column: it stands in commits, and
//! must be the same with every version of every library. Of up to eight bytes it is their number times an odd constant, of
//! more their XXH64.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use twox_hash::XxHash64;

use super::object::{EVENT_TIME, WRITE_POSITION};
use crate::definition::ColumnType;
use crate::encoding::write_values;
use crate::time::Timestamp;
use crate::{Error, Result};

/// Odd numbers without a pattern: those of XXH64.
const MIX: [u64; 2] = [0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F];

/// What stands for a null.
const NULL: u64 = 0x1656_67B1_9E37_79F9;

/// Adds rows up.
#[derive(Debug)]
pub struct Fingerprint {
    columns: Vec<ColumnType>,
    /// Whether the rows have the event times of data files.
    of_view: bool,
    rows: u64,
    sum: u64,
    event_times: Option<(Timestamp, Timestamp)>,
}

fn hash(bytes: &[u8]) -> u64 {
    if bytes.len() > 8 {
        return XxHash64::oneshot(0, bytes);
    }
    let mut number = [0; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    (u64::from_le_bytes(number) ^ bytes.len() as u64).wrapping_mul(MIX[0])
}

fn add_value(row: &mut u64, value: u64) {
    let mixed = (*row ^ value).wrapping_mul(MIX[1]);
    *row = mixed ^ mixed >> 29;
}

/// Lets every bit count for every other, since hashes are added.
fn finished(row: u64) -> u64 {
    let mixed = (row ^ row >> 32).wrapping_mul(MIX[0]);
    mixed ^ mixed >> 32
}

impl Fingerprint {
    /// Of no rows yet, with the columns of a view's data files. When a row was written does not count.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for columns that features cannot have.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        Self::of_columns(schema, true)
    }

    /// The same of pushed events, as their files have them.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_events(schema: &SchemaRef) -> Result<Self> {
        Self::of_columns(schema, false)
    }

    fn of_columns(schema: &SchemaRef, of_view: bool) -> Result<Self> {
        let own = schema.fields().iter().take_while(|field| field.name() != WRITE_POSITION);
        let columns = own.map(|field| ColumnType::from_arrow(field.data_type())).collect::<Result<_>>()?;
        Ok(Self { columns, of_view, rows: 0, sum: 0, event_times: None })
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when the batch has other columns.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut rows = vec![MIX[0]; batch.num_rows()];
        for (kind, column) in self.columns.iter().zip(batch.columns()) {
            if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
                for (row, _) in rows.iter_mut().zip(nulls).filter(|(_, valid)| !valid) {
                    add_value(row, NULL);
                }
            }
            write_values(*kind, column, |row, bytes| add_value(&mut rows[row], hash(bytes)));
        }
        self.sum = rows.into_iter().map(finished).fold(self.sum, u64::wrapping_add);
        self.rows += batch.num_rows() as u64;
        if !self.of_view {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, StringArray, TimestampMicrosecondArray};
    use proptest::prelude::*;

    use super::*;

    type Row = (Option<f64>, Option<String>, i64);

    fn fingerprint(rows: &[Row]) -> u64 {
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.2)).with_timezone("UTC");
        let columns: [(&str, ArrayRef, bool); 3] = [
            ("amount", Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.0))), true),
            ("shop", Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1.clone()))), true),
            (EVENT_TIME, Arc::new(times), false),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("three columns");
        let mut fingerprint = Fingerprint::new(&batch.schema()).expect("columns of features");
        fingerprint.add(&batch).expect("its columns");
        fingerprint.sum()
    }

    proptest! {
        #[test]
        fn it_is_the_same_in_any_order_and_another_for_other_rows(
            rows in proptest::collection::vec(any::<Row>(), 1..20),
            other in any::<Row>(),
            at in any::<prop::sample::Index>(),
        ) {
            let whole = fingerprint(&rows);
            let (one, rest) = rows.split_at(at.index(rows.len()));
            prop_assert_eq!(whole, fingerprint(&[rest, one].concat()));
            prop_assert_eq!(whole, fingerprint(one).wrapping_add(fingerprint(rest)));
            let mut changed = rows.clone();
            let place = at.index(rows.len());
            let bits = |row: &Row| (row.0.map(f64::to_bits), row.1.clone(), row.2);
            let same = bits(&changed[place]) == bits(&other);
            changed[place] = other;
            prop_assert_eq!(whole == fingerprint(&changed), same);
        }
    }

    #[test]
    fn what_stands_in_commits_never_changes() {
        let rows = [
            (Some(1.5), Some("a shop in a street".to_owned()), 7),
            (None, Some("tea".to_owned()), 8),
            (Some(-0.0), None, 9),
        ];
        // As an implementation in Python gives it.
        assert_eq!(fingerprint(&rows), 0x1ea9_f8e2_cc07_ad19);
    }
}
