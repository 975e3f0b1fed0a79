//! Lookup: keys in, features with their statuses out, over all views of a contract at once.
//!
//! A [`LookupPlan`] is compiled once per contract version. One lookup then reads each view once for the distinct keys
//! of the whole batch, and decodes packed rows straight into Arrow columns, row for row as asked:
//!
//! | column | what |
//! |---|---|
//! | `view.feature` | the value; null when it is null or missing |
//! | `view@status` | `fresh`, `stale`, `expired` or `missing` (rule T7) |
//! | `view@event_time` | when the row's event happened; null when missing or static |
//! | `view@as_of` | the time as of which the value holds: the lesser of now and the view's watermark, or the time at which its row was there if that is later |
//!
//! Up to the watermark nothing is missing. What was pushed is answered before its view's watermark has come to it: rule T3 lets
//! such a row into no answer as of a time before it happened or could be known, so that is the least time that can be said.
//! Whether others are still to come from before it is what the status tells, which goes by the watermark alone.

mod windows;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, NullBufferBuilder, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use foldhash::fast::RandomState;

use crate::definition::{Column, Contract, FeatureRule, FeatureView, Pinned, strict_cast, timestamp_type};
use crate::encoding::{EncodedKeys, KeyCodec, RowHeader, RowLayout};
use crate::freshness::{Status, alive, lag, status};
use crate::tier::{EntityRead, Mark, OnlineTier};
use crate::time::{Span, Timestamp};
use crate::{Error, Result};
use windows::WindowReads;

/// The name of a view's status column.
pub fn status_column(view: &str) -> String {
    format!("{view}@status")
}

/// The name of a view's event-time column.
pub fn event_time_column(view: &str) -> String {
    format!("{view}@event_time")
}

/// The name of a view's as-of column.
pub fn as_of_column(view: &str) -> String {
    format!("{view}@as_of")
}

/// The name of a feature column.
pub fn feature_column(view: &str, feature: &str) -> String {
    format!("{view}.{feature}")
}

/// The most rows of one lookup: an answer of some hundred columns then stays below a hundred megabytes, and a caller who asks
/// for more gains nothing over several batches.
pub const MOST_ROWS: usize = 100_000;

/// The most bytes of one view's values in an answer: one text for 100,000 rows is 100,000 texts there.
const MOST_VIEW_BYTES: usize = 256 << 20;

/// What a lookup for one contract version does, compiled once.
#[derive(Debug, Clone)]
pub struct LookupPlan {
    contract: Contract,
    keys: Vec<Column>,
    /// The views' entities; views of one entity share a set.
    key_sets: Vec<KeySet>,
    views: Vec<PlannedView>,
    schema: SchemaRef,
}

/// How an entity's keys are made from the plan's key columns.
#[derive(Debug, Clone)]
struct KeySet {
    codec: KeyCodec,
    /// Where the codec's columns stand among the plan's keys.
    indices: Vec<usize>,
    /// The entity's views of rows, in the order of the contract's rules.
    views: Vec<Pinned>,
}

#[derive(Debug, Clone)]
struct PlannedView {
    rule: FeatureRule,
    /// Which of the plan's key sets is its entity's.
    key_set: usize,
    layout: RowLayout,
    values: Values,
    ttl: Option<Span>,
}

/// How a view's values are read.
#[derive(Debug, Clone)]
enum Values {
    /// From the entity's row in the view; which of the key set's views it is.
    Row(usize),
    /// From the entity's tiles.
    Windows(Box<WindowReads>),
}

impl LookupPlan {
    /// Compiles a contract with the views that it pins, in the order of its rules.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when the views are not those of the contract.
    pub fn new(contract: &Contract, views: &[FeatureView]) -> Result<Self> {
        let mut keys: Vec<Column> = Vec::new();
        let mut key_sets: Vec<KeySet> = Vec::new();
        let mut planned = Vec::with_capacity(views.len());
        for (rule, view) in contract.features.iter().zip(views) {
            if rule.view != view.pinned() {
                return Err(Error::invalid("a contract's view is another than the one given")
                    .with("contract", &rule.view)
                    .with("given", view.pinned()));
            }
            let indices: Vec<usize> = view.keys.iter().map(|key| index_of(&mut keys, key)).collect();
            let codec = KeyCodec::new(&view.keys)?;
            let known = key_sets.iter().position(|set| set.indices == indices && set.codec == codec);
            let key_set = known.unwrap_or(key_sets.len());
            if known.is_none() {
                key_sets.push(KeySet { codec, indices, views: Vec::new() });
            }
            let values = match &view.windowed {
                Some(windowed) => Values::Windows(Box::new(WindowReads::new(windowed)?)),
                None => {
                    let siblings = &mut key_sets[key_set].views;
                    siblings.push(view.pinned());
                    Values::Row(siblings.len() - 1)
                }
            };
            let layout = RowLayout::new(&view.features);
            planned.push(PlannedView { rule: rule.clone(), key_set, layout, values, ttl: view.ttl });
        }
        let fields: Vec<Field> = planned.iter().flat_map(PlannedView::fields).collect();
        Ok(Self { contract: contract.clone(), keys, key_sets, views: planned, schema: Arc::new(Schema::new(fields)) })
    }

    /// The contract.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// The key columns of all views, each once.
    pub fn keys(&self) -> &[Column] {
        &self.keys
    }

    /// The answer's columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Takes the key columns out of a batch that a caller asks with: no more rows than a lookup may have, and no column
    /// that is not a key, which would be passed over in silence.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] names the column; and those of [`Self::take_keys`].
    pub fn take_asked_keys(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        if batch.num_rows() > MOST_ROWS {
            return Err(Error::invalid("a lookup has more rows than one may have")
                .with("contract", &self.contract.name)
                .with("rows", batch.num_rows())
                .with("limit", MOST_ROWS)
                .remedy("send several batches"));
        }
        let keys = self.take_keys(batch)?;
        let wrong = |message: &str, name: &str| {
            Error::invalid(message).with("contract", &self.contract.name).with("column", name).remedy(self.wanted())
        };
        let mut seen: Vec<&str> = Vec::with_capacity(keys.len());
        for name in batch.schema_ref().fields().iter().map(|field| field.name().as_str()) {
            if !self.keys.iter().any(|key| key.name == name) {
                return Err(wrong("a column is not a key of the contract's views", name));
            }
            if seen.contains(&name) {
                return Err(wrong("a key column is given twice", name));
            }
            seen.push(name);
        }
        Ok(keys)
    }

    /// What a batch of keys has.
    fn wanted(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(Column::to_string).collect();
        format!("send the columns {}", keys.join(", "))
    }

    /// Takes the key columns out of a batch, by name, in the keys' types.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] names a column that is missing, or the row and the value that is not of its type.
    pub fn take_keys(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.keys
            .iter()
            .map(|key| {
                let array = batch.column_by_name(&key.name).ok_or_else(|| {
                    let given: Vec<&str> = batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
                    Error::invalid("a key column is missing")
                        .with("contract", &self.contract.name)
                        .with("column", &key.name)
                        .with("given", given.join(", "))
                        .remedy(self.wanted())
                })?;
                strict_cast(key, array).map_err(|error| error.with("contract", &self.contract.name))
            })
            .collect()
    }

    /// Looks up rows of keys (as [`Self::take_keys`] gives them) at `now`, all views once.
    ///
    /// # Errors
    /// Those of the tier.
    pub fn lookup(&self, tier: &dyn OnlineTier, keys: &[ArrayRef], now: Timestamp) -> Result<RecordBatch> {
        let rows = keys.first().map_or(0, Array::len);
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        let encoded = self.key_sets.iter().map(|set| set.encode(keys)).collect::<Result<Vec<_>>>()?;
        let reads =
            self.key_sets.iter().zip(&encoded).map(|(set, keys)| set.read(tier, keys)).collect::<Result<Vec<_>>>()?;
        for view in &self.views {
            view.answer(tier, &reads[view.key_set], now, &mut columns)?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// The time as of which a row's value holds, where everything is there up to `processed`: no earlier than the row itself was
/// there, which rule T3 would keep out else.
fn as_of(processed: Timestamp, header: Option<RowHeader>) -> Timestamp {
    header.map_or(processed, |header| processed.max(header.event_time).max(header.available_time))
}

fn index_of(keys: &mut Vec<Column>, key: &Column) -> usize {
    keys.iter().position(|known| known.name == key.name).unwrap_or_else(|| {
        keys.push(key.clone());
        keys.len() - 1
    })
}

/// What was read for the keys of a batch.
struct BatchRead<'a> {
    /// The distinct keys.
    keys: Vec<&'a [u8]>,
    read: EntityRead,
    /// Which of the read entities each row asks for.
    of_row: Vec<Option<usize>>,
}

/// The distinct keys of a batch, and which of them each row asks for.
fn distinct(keys: &EncodedKeys) -> (Vec<&[u8]>, Vec<Option<usize>>) {
    if keys.len() == 1 {
        let only: Vec<&[u8]> = keys.iter().flatten().collect();
        let of_row = vec![(!only.is_empty()).then_some(0)];
        return (only, of_row);
    }
    let mut seen: HashMap<&[u8], usize, RandomState> =
        HashMap::with_capacity_and_hasher(keys.len(), RandomState::default());
    let mut distinct = Vec::with_capacity(keys.len());
    let mut index_of = |key| {
        *seen.entry(key).or_insert_with(|| {
            distinct.push(key);
            distinct.len() - 1
        })
    };
    let of_row = keys.iter().map(|key| key.map(&mut index_of)).collect();
    (distinct, of_row)
}

/// A status column.
fn status_words(statuses: &[Status]) -> StringArray {
    match statuses.first() {
        // Nearly always all are the same.
        Some(first) if statuses.iter().all(|status| status == first) => {
            StringArray::new_repeated(first.as_str(), statuses.len())
        }
        _ => StringArray::from_iter_values(statuses.iter().map(|status| status.as_str())),
    }
}

impl KeySet {
    fn encode(&self, keys: &[ArrayRef]) -> Result<EncodedKeys> {
        let own: Vec<ArrayRef> = self.indices.iter().map(|&index| Arc::clone(&keys[index])).collect();
        self.codec.encode(&own)
    }

    fn read<'a>(&self, tier: &dyn OnlineTier, keys: &'a EncodedKeys) -> Result<BatchRead<'a>> {
        let (keys, of_row) = distinct(keys);
        let read = if self.views.is_empty() {
            EntityRead { entities: Vec::new(), marks: Vec::new() }
        } else {
            tier.read_entities(&self.views, &keys)?
        };
        Ok(BatchRead { keys, read, of_row })
    }
}

impl PlannedView {
    fn fields(&self) -> Vec<Field> {
        let name = &self.rule.view.name;
        let features = self
            .layout
            .columns()
            .iter()
            .map(|column| Field::new(feature_column(name, &column.name), column.column_type.to_arrow(), true));
        let facts = [
            Field::new(status_column(name), DataType::Utf8, false),
            Field::new(event_time_column(name), timestamp_type(), true),
            Field::new(as_of_column(name), timestamp_type(), true),
        ];
        features.chain(facts).collect()
    }

    fn answer(
        &self,
        tier: &dyn OnlineTier,
        batch: &BatchRead<'_>,
        now: Timestamp,
        columns: &mut Vec<ArrayRef>,
    ) -> Result<()> {
        let computed;
        let (rows, mark): (Vec<Option<&Bytes>>, Mark) = match &self.values {
            Values::Row(place) => {
                (batch.read.entities.iter().map(|entity| entity[*place].as_ref()).collect(), batch.read.marks[*place])
            }
            Values::Windows(reads) => {
                computed = reads.read(tier, &self.rule.view, &self.layout, &batch.keys, now)?;
                (computed.rows.iter().map(Option::as_ref).collect(), computed.mark)
            }
        };
        let held: Vec<Option<(RowHeader, &Bytes)>> =
            rows.into_iter().map(|row| row.and_then(|row| self.visible(row, now))).collect();
        let of_row = || batch.of_row.iter().map(|index| index.and_then(|index| held[index]));
        let packed: Vec<Option<&Bytes>> = of_row().map(|row| row.map(|(_, bytes)| bytes)).collect();
        let bytes: usize = packed.iter().flatten().map(|row| row.len()).sum();
        if bytes > MOST_VIEW_BYTES {
            return Err(Error::invalid("the answer is too large: values of many rows")
                .with("view", &self.rule.view)
                .with("rows", packed.len())
                .with("bytes", bytes)
                .with("limit", MOST_VIEW_BYTES)
                .remedy("ask for fewer rows at once"));
        }
        columns.extend(self.layout.decode(&packed)?);
        let headers = of_row().map(|row| row.map(|(header, _)| header));
        self.facts(headers, packed.len(), mark.watermark, now, columns);
        Ok(())
    }

    /// The row's times, if it exists at `now`: known by then (rule T3) and within the view's TTL.
    fn visible<'a>(&self, row: &'a Bytes, now: Timestamp) -> Option<(RowHeader, &'a Bytes)> {
        let header = RowHeader::read(row)?;
        let known = header.event_time <= now && header.available_time <= now;
        (known && alive(now, header.event_time, self.ttl)).then_some((header, row))
    }

    fn facts(
        &self,
        headers: impl Iterator<Item = Option<RowHeader>>,
        rows: usize,
        watermark: Option<Timestamp>,
        now: Timestamp,
        columns: &mut Vec<ArrayRef>,
    ) {
        let lag = lag(now, watermark);
        let mut statuses = Vec::with_capacity(rows);
        let (mut times, mut nulls) = (Vec::with_capacity(rows), NullBufferBuilder::new(rows));
        let processed = watermark.map(|mark| mark.min(now));
        let mut as_ofs = Vec::with_capacity(rows);
        for header in headers {
            let event = header.map(|header| header.event_time);
            statuses.push(status(&self.rule, lag, now, event));
            let time = event.filter(|event| *event != Timestamp::MIN);
            times.push(time.map_or(0, Timestamp::micros));
            nulls.append(time.is_some());
            as_ofs.push(processed.map_or(0, |processed| as_of(processed, header).micros()));
        }
        let times = TimestampMicrosecondArray::new(times.into(), nulls.finish());
        let as_ofs = match processed {
            Some(_) => TimestampMicrosecondArray::new(as_ofs.into(), None),
            None => TimestampMicrosecondArray::new_null(rows),
        };
        columns.extend([
            Arc::new(status_words(&statuses)) as ArrayRef,
            Arc::new(times.with_data_type(timestamp_type())) as ArrayRef,
            Arc::new(as_ofs.with_data_type(timestamp_type())) as ArrayRef,
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::WriteOrder;

    #[test]
    fn no_answer_holds_as_of_a_time_before_its_row_was_there() {
        let at = Timestamp::from_micros;
        let row =
            |event_time, available_time| Some(RowHeader { event_time, available_time, written: WriteOrder::default() });
        assert_eq!(as_of(at(120), None), at(120));
        assert_eq!(as_of(at(120), row(at(90), at(100))), at(120), "the watermark has passed it");
        assert_eq!(as_of(at(120), row(at(145), at(145))), at(145), "pushed, and later than the watermark");
        assert_eq!(as_of(at(120), row(at(90), at(150))), at(150), "it could not be known before");
        assert_eq!(as_of(at(120), row(Timestamp::MIN, Timestamp::MIN)), at(120), "a static row has no time");
    }
}
