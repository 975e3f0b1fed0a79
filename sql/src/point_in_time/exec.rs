//! The DataFusion operator around the sweep: pulls sorted batches from both sides, and gathers the answers.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::{StreamExt, stream};

use springhouse_featurestore::definition::{FeatureView, Windowed};
use springhouse_featurestore::lookup::event_time_column;

use super::merge::Sweep;
use super::windows::WindowMerging;
use super::{AVAILABLE_TIME, VISIBLE_TIME, added_fields, ascending};

/// Joins two sides that are spread by key and sorted: see the module's page.
#[derive(Debug)]
pub struct PointInTimeExec {
    spine: Arc<dyn ExecutionPlan>,
    rows: Arc<dyn ExecutionPlan>,
    columns: Columns,
    /// What is answered: the newest row, or windows over the rows.
    windowed: Option<Arc<Windowed>>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

/// Where the columns stand that the join reads.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) spine_keys: Vec<usize>,
    pub(super) spine_time: usize,
    pub(super) row_keys: Vec<usize>,
    pub(super) visible: usize,
    pub(super) event: usize,
    pub(super) available: usize,
    pub(super) payload: Vec<usize>,
    pub(super) sort_fields: Vec<SortField>,
}

impl PointInTimeExec {
    /// A join of a view's `rows` to `spine`; both must have as many partitions, spread by the view's keys, and be sorted
    /// by (keys, time) and (keys, visible time, event time, available time, values).
    ///
    /// # Errors
    /// When a column is missing.
    pub fn try_new(
        spine: Arc<dyn ExecutionPlan>,
        rows: Arc<dyn ExecutionPlan>,
        view: &FeatureView,
        time: &str,
        payload: &[&str],
    ) -> Result<Self> {
        let keys: Vec<&str> = view.keys.iter().map(|key| key.name.as_str()).collect();
        let keys = keys.as_slice();
        let event = &event_time_column(&view.name);
        let (left, right) = (spine.schema(), rows.schema());
        let all = |schema: &SchemaRef, names: &[&str]| -> Result<Vec<usize>> {
            Ok(names.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?)
        };
        let columns = Columns {
            spine_keys: all(&left, keys)?,
            spine_time: left.index_of(time)?,
            row_keys: all(&right, keys)?,
            visible: right.index_of(VISIBLE_TIME)?,
            event: right.index_of(event)?,
            available: right.index_of(AVAILABLE_TIME)?,
            payload: all(&right, payload)?,
            sort_fields: all(&right, keys)?
                .into_iter()
                .map(|index| SortField::new_with_options(right.field(index).data_type().clone(), ascending()))
                .collect(),
        };
        let fields = left.fields().iter().map(|field| field.as_ref().clone());
        let added = added_fields(view).into_iter().map(|field| field.as_ref().clone());
        let schema: SchemaRef = Arc::new(Schema::new(fields.chain(added).collect::<Vec<_>>()));
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(spine.output_partitioning().partition_count()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let windowed = view.windowed.clone().map(Arc::new);
        Ok(Self { spine, rows, columns, windowed, schema, properties })
    }
}

impl DisplayAs for PointInTimeExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spine = self.spine.schema();
        let keys: Vec<&str> = self.columns.spine_keys.iter().map(|&i| spine.field(i).name().as_str()).collect();
        let time = spine.field(self.columns.spine_time).name();
        let what = self.windowed.as_ref().map(|windowed| format!(", windows={}", windowed.windows.len()));
        write!(f, "PointInTimeExec: keys=[{}], time={time}{}", keys.join(", "), what.unwrap_or_default())
    }
}

impl ExecutionPlan for PointInTimeExec {
    fn name(&self) -> &'static str {
        "PointInTimeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.spine, &self.rows]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [spine, rows]: [_; 2] = children
            .try_into()
            .map_err(|_| DataFusionError::Internal("PointInTimeExec has two children".to_owned()))?;
        Ok(Arc::new(Self {
            spine,
            rows,
            columns: self.columns.clone(),
            windowed: self.windowed.clone(),
            schema: Arc::clone(&self.schema),
            properties: Arc::clone(&self.properties),
        }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let spine = self.spine.execute(partition, Arc::clone(&context))?;
        let rows = RowSide::new(self.rows.execute(partition, context)?, &self.columns)?;
        if let Some(windowed) = &self.windowed {
            let merging =
                WindowMerging::new(spine, rows, &self.columns, Arc::clone(windowed), Arc::clone(&self.schema))?;
            return Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), merging.batches())));
        }
        let merging = Merging {
            spine,
            rows,
            converter: RowConverter::new(self.columns.sort_fields.clone())?,
            sweep: Sweep::new(),
            columns: self.columns.clone(),
            schema: Arc::clone(&self.schema),
        };
        let batches = stream::try_unfold(merging, |mut merging| async move {
            Ok(merging.next().await?.map(|batch| (batch, merging)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }
}

/// Where a row lies: which of the kept batches, and which of its rows.
pub(super) type Place = (usize, usize);

struct Merging {
    spine: SendableRecordBatchStream,
    rows: RowSide,
    converter: RowConverter,
    sweep: Sweep<OwnedRow, Place>,
    columns: Columns,
    schema: SchemaRef,
}

impl Merging {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.spine.next().await.transpose()? else { return Ok(None) };
        let keys = take(&batch, &self.columns.spine_keys);
        let nulls: Vec<&ArrayRef> = keys.iter().filter(|key| key.null_count() > 0).collect();
        let keys_of = self.converter.convert_columns(&keys)?;
        let times = micros(&batch, self.columns.spine_time)?;
        let mut places = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let absent = times.is_null(row) || nulls.iter().any(|key| key.is_null(row));
            places.push(if absent { None } else { self.answer(keys_of.row(row), times.value(row)).await? });
        }
        let gathered = self.gather(&batch, &places)?;
        self.forget_batches();
        Ok(Some(gathered))
    }

    /// Offers all rows that are visible to a key by a time, then asks.
    async fn answer(&mut self, key: Row<'_>, time: i64) -> Result<Option<Place>> {
        while self.rows.fill(self.sweep.held()).await? {
            let Some(current) = self.rows.kept.last() else { break };
            let (at, of) = (self.rows.at, current.keys.row(self.rows.at));
            if (of, current.visible.value(at)) > (key, time) {
                break;
            }
            // Rows of keys that the spine does not ask for are passed over without a copy.
            if of == key {
                let place = (self.rows.kept.len() - 1, at);
                let times = (current.event.value(at), current.available.value(at));
                self.sweep.offer(|held| held.row() == of, || of.owned(), times, place);
            }
            self.rows.at += 1;
        }
        let answer = self.sweep.answer(|held| held.row() == key);
        if let Some((batch, _)) = answer {
            self.rows.kept[batch].answers = true;
        }
        Ok(answer)
    }

    fn gather(&self, spine: &RecordBatch, places: &[Option<Place>]) -> Result<RecordBatch> {
        // Slot 0 is a row of nulls for questions without an answer.
        let indices: Vec<Place> =
            places.iter().map(|place| place.map_or((0, 0), |(batch, row)| (batch + 1, row))).collect();
        let mut columns = spine.columns().to_vec();
        for (&index, field) in self.columns.payload.iter().zip(&self.schema.fields()[columns.len()..]) {
            let nothing = new_null_array(field.data_type(), 1);
            let of_kept =
                |kept: &Kept| kept.batch.as_ref().map_or_else(|| Arc::clone(&nothing), |b| Arc::clone(b.column(index)));
            let arrays: Vec<ArrayRef> =
                std::iter::once(Arc::clone(&nothing)).chain(self.rows.kept.iter().map(of_kept)).collect();
            let values: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
            columns.push(interleave(&values, &indices)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(spine.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// Keeps the batch being read and the one that holds the sweep's candidate.
    fn forget_batches(&mut self) {
        let held = self.sweep.held();
        let last = self.rows.kept.len().saturating_sub(1);
        let keep: Vec<usize> = match held {
            Some((batch, _)) if batch < last => vec![batch, last],
            _ => vec![last],
        };
        let mut index = 0;
        self.rows.kept.retain(|_| {
            index += 1;
            keep.contains(&(index - 1))
        });
        self.rows.kept.iter_mut().for_each(|kept| kept.answers = false);
        if let Some((batch, row)) = held {
            let moved = keep.iter().position(|&kept| kept == batch).unwrap_or(0);
            self.sweep.moved((moved, row));
        }
    }
}

/// The view's side: batches with their keys converted once, and the place of the next row.
pub(super) struct RowSide {
    stream: SendableRecordBatchStream,
    converter: RowConverter,
    columns: Columns,
    /// The last is being read; of those before it only what answers need is kept.
    pub(super) kept: Vec<Kept>,
    pub(super) at: usize,
    over: bool,
}

pub(super) struct Kept {
    /// Gone when no answer needs it.
    pub(super) batch: Option<RecordBatch>,
    /// Whether an answer of the present spine batch is in it.
    answers: bool,
    pub(super) keys: Rows,
    pub(super) visible: Int64Array,
    pub(super) event: Int64Array,
    pub(super) available: Int64Array,
}

impl RowSide {
    fn new(stream: SendableRecordBatchStream, columns: &Columns) -> Result<Self> {
        let converter = RowConverter::new(columns.sort_fields.clone())?;
        Ok(Self { stream, converter, columns: columns.clone(), kept: Vec::new(), at: 0, over: false })
    }

    /// Makes the last kept batch the one that holds the next row, and lets go of a batch that was read to its end
    /// unless it has an answer or the row that is held; `false` at the end.
    pub(super) async fn fill(&mut self, held: Option<Place>) -> Result<bool> {
        while !self.over && self.kept.last().is_none_or(|kept| self.at >= kept.visible.len()) {
            let read = self.kept.len().saturating_sub(1);
            if let Some(last) = self.kept.last_mut().filter(|kept| !kept.answers)
                && held.is_none_or(|(batch, _)| batch != read)
            {
                last.batch = None;
            }
            match self.stream.next().await.transpose()? {
                None => self.over = true,
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => {
                    let keys = self.converter.convert_columns(&take(&batch, &self.columns.row_keys))?;
                    let (visible, event) = (micros(&batch, self.columns.visible)?, micros(&batch, self.columns.event)?);
                    let available = micros(&batch, self.columns.available)?;
                    if let Some(last) = self.kept.last_mut() {
                        last.keys.clear();
                    }
                    self.kept.push(Kept { batch: Some(batch), answers: false, keys, visible, event, available });
                    self.at = 0;
                }
            }
        }
        Ok(!self.over)
    }
}

pub(super) fn take(batch: &RecordBatch, indices: &[usize]) -> Vec<ArrayRef> {
    indices.iter().map(|&index| Arc::clone(batch.column(index))).collect()
}

/// A time column as plain microseconds.
pub(super) fn micros(batch: &RecordBatch, index: usize) -> Result<Int64Array> {
    let plain = arrow::compute::cast(batch.column(index), &arrow::datatypes::DataType::Int64)?;
    Ok(plain.as_primitive::<Int64Type>().clone())
}
