//! The DataFusion operator around the sweeps.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::row::{Rows, SortField};
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
use springhouse_featurestore::freshness::ServingHistory;
use springhouse_featurestore::lookup::event_time_column;

use super::keys::{Integers, Keys};
use super::latest::LatestRows;
use super::sides::{Columns, RowSide, SpineSide};
use super::windows::WindowSums;
use super::{
    AVAILABLE_TIME, RowsAsOf, VISIBLE_TIME, WRITE_POSITION, WRITE_WITHIN, added_fields, ascending, in_event_order,
};

/// Joins two sides that are spread by key and sorted: see the module's page.
#[derive(Debug)]
pub struct PointInTimeExec {
    spine: Arc<dyn ExecutionPlan>,
    rows: Arc<dyn ExecutionPlan>,
    columns: Columns,
    /// What is answered: the newest row, or windows over the rows.
    windowed: Option<Arc<Windowed>>,
    /// Whether rows come in the order in which they happened.
    in_event_order: bool,
    /// What serving knew at a time; without it, everything that was known.
    served: Option<Arc<ServingHistory>>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl PointInTimeExec {
    /// A join of a view's `rows` to `spine`; both must have as many partitions, spread by the view's keys, and be sorted
    /// by (keys, time) and (keys, visible time, event time, available time, values), the visible time left out where it
    /// is in the order of the event time.
    ///
    /// # Errors
    /// When a column is missing.
    pub fn try_new(
        spine: Arc<dyn ExecutionPlan>,
        rows: Arc<dyn ExecutionPlan>,
        view: &FeatureView,
        time: &str,
        payload: &[&str],
        as_of: &RowsAsOf,
    ) -> Result<Self> {
        let keys: Vec<&str> = view.keys.iter().map(|key| key.name.as_str()).collect();
        let keys = keys.as_slice();
        let event = &event_time_column(&view.name);
        let (left, right) = (spine.schema(), rows.schema());
        let all = |schema: &SchemaRef, names: &[&str]| -> Result<Vec<usize>> {
            Ok(names.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?)
        };
        // The newest row is known by the order of rows, the events of windows are put in order there.
        let written = match &view.windowed {
            Some(windowed) if windowed.keeps_order() => {
                Some([right.index_of(WRITE_POSITION)?, right.index_of(WRITE_WITHIN)?])
            }
            _ => None,
        };
        let columns = Columns {
            spine_keys: all(&left, keys)?,
            spine_time: left.index_of(time)?,
            row_keys: all(&right, keys)?,
            visible: right.index_of(VISIBLE_TIME)?,
            event: right.index_of(event)?,
            available: right.index_of(AVAILABLE_TIME)?,
            written,
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
        let (in_event_order, served) = (in_event_order(view, as_of), as_of.served());
        Ok(Self { spine, rows, columns, windowed, in_event_order, served, schema, properties })
    }
}

impl DisplayAs for PointInTimeExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spine = self.spine.schema();
        let keys: Vec<&str> = self.columns.spine_keys.iter().map(|&i| spine.field(i).name().as_str()).collect();
        let time = spine.field(self.columns.spine_time).name();
        let what = self.windowed.as_ref().map(|windowed| format!(", windows={}", windowed.windows.len()));
        let served = if self.served.is_some() { ", as served" } else { "" };
        write!(f, "PointInTimeExec: keys=[{}], time={time}{}{served}", keys.join(", "), what.unwrap_or_default())
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
            in_event_order: self.in_event_order,
            served: self.served.clone(),
            schema: Arc::clone(&self.schema),
            properties: Arc::clone(&self.properties),
        }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let spine = self.spine.execute(partition, Arc::clone(&context))?;
        let rows = self.rows.execute(partition, context)?;
        let schema = self.rows.schema();
        let keys: Vec<DataType> =
            self.columns.row_keys.iter().map(|&index| schema.field(index).data_type().clone()).collect();
        if Integers::are(&keys) { self.join::<Integers>(spine, rows) } else { self.join::<Rows>(spine, rows) }
    }
}

impl PointInTimeExec {
    fn join<K: Keys>(
        &self,
        spine: SendableRecordBatchStream,
        rows: SendableRecordBatchStream,
    ) -> Result<SendableRecordBatchStream> {
        let spine = SpineSide::<K>::new(spine, &self.columns, self.served.clone())?;
        let rows = RowSide::<K>::new(rows, &self.columns)?;
        let schema = Arc::clone(&self.schema);
        let batches = match &self.windowed {
            Some(windowed) => {
                let sums = WindowSums::new(spine, rows, &self.columns, windowed, self.in_event_order, schema)?;
                stream::try_unfold(sums, |mut sums| async move { Ok(sums.next().await?.map(|batch| (batch, sums))) })
                    .boxed()
            }
            None => {
                let latest = LatestRows::new(spine, rows, &self.columns, schema);
                stream::try_unfold(latest, |mut of| async move { Ok(of.next().await?.map(|batch| (batch, of))) })
                    .boxed()
            }
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }
}
