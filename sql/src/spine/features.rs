//! The join of a spine with the views of a contract: one entity after another, each with the whole of the memory.
//!
//! ```text
//! spine -> in the order wanted -+-(key, @time, @row)--> join the views of entity 1 -> by @row -> disk --+
//!                               v                                                                       |
//!                              disk --(key, @time, @row)--> join the views of entity 2 -> by @row ------+
//!                               |                                                                       v
//!                               +--------------------------------------------------------------------- zip
//! ```
//!
//! Only an entity's keys pass through its sorts, never the whole spine; the results are laid beside each other row
//! for row. So memory does not grow with the number of views. A spine that is read as it lies is written to disk
//! while the first join reads it; the last join's rows are never on disk.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::error::Result as QueryResult;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, displayable, execute_stream};
use datafusion::prelude::DataFrame;
use futures::{StreamExt, TryStreamExt, stream};
use springhouse_featurestore::definition::{Column, FeatureView};
use springhouse_featurestore::{Error, Result};

use super::{ROW, SpineOrder, TIME};
use crate::point_in_time::{self, RowsAsOf, ascending};
use crate::session::{Session, query_error};
use crate::spill::{Pieces, Spilled, SpilledColumns, Tee, Written};
use crate::view_rows::RowStream;

/// A planned join of a spine with the views of a contract.
#[derive(Debug, Clone)]
pub struct SpineFeatures {
    spine: Arc<dyn ExecutionPlan>,
    order: SpineOrder,
    entities: Vec<EntityViews>,
    schema: SchemaRef,
    session: Session,
}

/// The views that have the same keys, with their rows.
#[derive(Debug, Clone)]
struct EntityViews {
    keys: Vec<Column>,
    views: Vec<(FeatureView, DataFrame, RowsAsOf)>,
    /// Where the views' columns stand in the whole result.
    places: Vec<usize>,
}

impl SpineFeatures {
    /// Plans the join; `rows` gives the rows of each view.
    pub(super) async fn plan(
        spine: &DataFrame,
        views: &[&FeatureView],
        rows: Vec<(DataFrame, RowsAsOf)>,
        order: SpineOrder,
        session: &Session,
    ) -> Result<Self> {
        let spine = spine.clone().create_physical_plan().await.map_err(query_error)?;
        let mut fields: Vec<_> = spine.schema().fields().iter().cloned().collect();
        let mut entities: Vec<EntityViews> = Vec::new();
        for (view, (rows, as_of)) in views.iter().zip(rows) {
            let columns = point_in_time::added_fields(view);
            let places = fields.len()..fields.len() + columns.len();
            fields.extend(columns);
            let entity = match entities.iter_mut().find(|entity| entity.keys == view.keys) {
                Some(entity) => entity,
                None => {
                    entities.push(EntityViews { keys: view.keys.clone(), views: Vec::new(), places: Vec::new() });
                    entities.last_mut().ok_or_else(|| Error::internal("an entity was just added"))?
                }
            };
            entity.views.push(((*view).clone(), rows, as_of));
            entity.places.extend(places);
        }
        let planned = Self { spine, order, entities, schema: Arc::new(Schema::new(fields)), session: session.clone() };
        for entity in &planned.entities {
            planned.key_columns(entity)?;
        }
        Ok(planned)
    }

    /// The spine's columns, `@row`, `@time`, then each view's `view.feature` columns and `view@event_time`.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The plan as text: how the spine is read, then the join of each entity's views.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn explain(&self) -> Result<String> {
        let mut text = format!("Spine\n{}", displayable(self.ordered_spine()?.as_ref()).indent(false));
        let thin = |entity| -> Result<Arc<dyn ExecutionPlan>> {
            let columns = self.key_columns(entity)?.into_iter().map(|index| {
                let name = self.spine.schema().field(index).name().clone();
                (Arc::new(PhysicalColumn::new(&name, index)) as Arc<dyn PhysicalExpr>, name)
            });
            Ok(Arc::new(ProjectionExec::try_new(columns, Arc::clone(&self.spine)).map_err(query_error)?))
        };
        for entity in &self.entities {
            let names: Vec<&str> = entity.views.iter().map(|(view, ..)| view.name.as_str()).collect();
            let plan = self.join(entity, thin(entity)?).await?;
            write!(text, "\n{}\n{}", names.join(", "), displayable(plan.as_ref()).indent(false))
                .map_err(|error| Error::internal("a plan cannot be shown").source(error))?;
        }
        Ok(text)
    }

    /// Runs it.
    pub fn execute(&self) -> RowStream {
        let planned = self.clone();
        stream::once(async move { planned.run().await }).try_flatten().boxed()
    }

    async fn run(self) -> Result<RowStream> {
        let spine = self.ordered_spine()?;
        let task = self.session.task_of(&spine);
        let spine = execute_stream(spine, task).map_err(query_error)?;
        let parts = self.join_all(spine).await?;
        let rows = self.session.context().copied_config().batch_size();
        let batches = stream::try_unfold((self, parts), move |(planned, mut parts)| async move {
            Ok(planned.zip(&mut parts, rows).await?.map(|batch| (batch, (planned, parts))))
        });
        Ok(batches.boxed())
    }

    /// The spine, then what the join of each entity adds to it.
    async fn join_all(&self, spine: SendableRecordBatchStream) -> Result<Vec<Pieces>> {
        let env = self.session.context().runtime_env();
        let Some((first, others)) = self.entities.split_first() else { return Ok(vec![Pieces::of(spine)]) };
        let written = Written::default();
        let keys = self.key_columns(first)?;
        let keys = if holds_little(&self.spine) && self.order == SpineOrder::AsGiven {
            let tee = Tee::new(spine, keys, Arc::clone(&env), Arc::clone(&written));
            tee.and_then(scan).map_err(query_error)?
        } else {
            // What makes the spine has the whole of the memory, and gives it back.
            let spine = Spilled::write(spine, Arc::clone(&env)).await.map_err(query_error)?;
            let spine = written.get_or_init(|| spine);
            SpilledColumns::new(spine, keys).and_then(scan).map_err(query_error)?
        };
        let written = || written.get().ok_or_else(|| Error::internal("a join ends before its spine"));
        let mut joined = self.run_join(first, keys).await?;
        let mut parts = Vec::with_capacity(self.entities.len() + 1);
        for entity in others {
            let before = Spilled::write(joined, Arc::clone(&env)).await.map_err(query_error)?;
            parts.push(Pieces::new(&before).map_err(query_error)?);
            let keys = SpilledColumns::new(written()?, self.key_columns(entity)?).map_err(query_error)?;
            joined = self.run_join(entity, scan(keys).map_err(query_error)?).await?;
        }
        let mut last = Pieces::of(joined);
        // Its rows are sorted: with the first of them here, the spine has been read to its end.
        last.begin().await.map_err(query_error)?;
        parts.push(last);
        parts.insert(0, Pieces::new(written()?).map_err(query_error)?);
        Ok(parts)
    }

    async fn run_join(&self, entity: &EntityViews, keys: Arc<dyn ExecutionPlan>) -> Result<SendableRecordBatchStream> {
        let plan = self.join(entity, keys).await?;
        let task = self.session.task_of(&plan);
        execute_stream(plan, task).map_err(query_error)
    }

    /// The next rows of all parts, side by side.
    async fn zip(&self, parts: &mut [Pieces], rows: usize) -> Result<Option<RecordBatch>> {
        let mut columns: Vec<Option<ArrayRef>> = vec![None; self.schema.fields().len()];
        let mut length = 0;
        for (index, part) in parts.iter_mut().enumerate() {
            let batch = part.next(rows).await.map_err(query_error)?;
            if index == 0 {
                length = batch.num_rows();
                columns.iter_mut().zip(batch.columns()).for_each(|(place, column)| *place = Some(Arc::clone(column)));
            } else if batch.num_rows() == length {
                let places = &self.entities[index - 1].places;
                places.iter().zip(batch.columns()).for_each(|(&at, column)| columns[at] = Some(Arc::clone(column)));
            } else {
                return Err(Error::internal("a join has lost rows of the spine")
                    .with("expected", length)
                    .with("found", batch.num_rows()));
            }
        }
        if length == 0 {
            return Ok(None);
        }
        let columns = columns.into_iter().flatten().collect();
        let options = RecordBatchOptions::new().with_row_count(Some(length));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?))
    }

    fn ordered_spine(&self) -> Result<Arc<dyn ExecutionPlan>> {
        match self.order {
            SpineOrder::AsGiven => Ok(Arc::clone(&self.spine)),
            SpineOrder::ByTime => sorted(Arc::clone(&self.spine), self.order).map_err(query_error),
        }
    }

    /// Where the columns stand in the spine that an entity's join reads.
    fn key_columns(&self, entity: &EntityViews) -> Result<Vec<usize>> {
        let schema = self.spine.schema();
        let names = entity.keys.iter().map(|key| key.name.as_str()).chain([TIME, ROW]);
        names
            .map(|name| {
                schema.index_of(name).map_err(|error| {
                    let views: Vec<&str> = entity.views.iter().map(|(view, ..)| view.name.as_str()).collect();
                    Error::invalid("the spine lacks a column that a view needs")
                        .with("views", views.join(", "))
                        .source(error)
                })
            })
            .collect()
    }

    /// The columns of an entity's views for each row of a spine of keys, in the order wanted.
    async fn join(&self, entity: &EntityViews, keys: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = self.session.context().copied_config().target_partitions();
        let names: Vec<&str> = entity.keys.iter().map(|key| key.name.as_str()).collect();
        let mut plan = point_in_time::arrange_spine(keys, &names, TIME, partitions).map_err(query_error)?;
        for (view, rows, as_of) in &entity.views {
            plan = point_in_time::join(plan, TIME, rows.clone(), view, as_of, partitions).await?;
        }
        let plan = sorted(plan, self.order).map_err(query_error)?;
        let (schema, first) = (plan.schema(), entity.keys.len() + 2);
        let added = (first..schema.fields().len()).map(|index| {
            let name = schema.field(index).name();
            (Arc::new(PhysicalColumn::new(name, index)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(added, plan).map_err(query_error)?))
    }
}

/// Whether a plan passes rows on as they come: it reads files, and takes rows one by one.
fn holds_little(plan: &Arc<dyn ExecutionPlan>) -> bool {
    const PASSING: [&str; 7] = [
        "DataSourceExec",
        "ProjectionExec",
        "FilterExec",
        "BoundedWindowAggExec",
        "CoalesceBatchesExec",
        "CoalescePartitionsExec",
        "CooperativeExec",
    ];
    PASSING.contains(&plan.name()) && plan.children().into_iter().all(holds_little)
}

fn scan(columns: impl PartitionStream + 'static) -> QueryResult<Arc<dyn ExecutionPlan>> {
    let schema = Arc::clone(columns.schema());
    Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(columns)], None, [], false, None)?))
}

fn sorted(plan: Arc<dyn ExecutionPlan>, order: SpineOrder) -> QueryResult<Arc<dyn ExecutionPlan>> {
    let names: &[&str] = match order {
        SpineOrder::AsGiven => &[ROW],
        SpineOrder::ByTime => &[TIME, ROW],
    };
    let schema = plan.schema();
    let sort = names
        .iter()
        .map(|name| Ok(PhysicalSortExpr::new(Arc::new(PhysicalColumn::new_with_schema(name, &schema)?), ascending())))
        .collect::<QueryResult<Vec<_>>>()?;
    let Some(sort) = LexOrdering::new(sort) else { return Ok(plan) };
    let parts = SortExec::new(sort.clone(), plan).with_preserve_partitioning(true);
    Ok(Arc::new(SortPreservingMergeExec::new(sort, Arc::new(parts))))
}
