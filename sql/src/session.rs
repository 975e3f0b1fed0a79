//! The DataFusion session in which a project's tables, sources and views are queries.
//!
//! ```text
//! tables (files) -> sources (normalised: our types, UTC, optionally a range of events) -> views (keys, features, times)
//! ```

mod checked;
mod distinct;
mod extremes;
mod left_out;
mod listing;
mod local_casts;
mod local_time;
mod on_demand;
mod sources;
mod write_order;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{Expr, SortExpr, cast, col, ident, lit};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use datafusion::prelude::{DataFrame, ParquetReadOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::{CreateExternalTable, DFParser, Statement};
use futures::{StreamExt, TryStreamExt};
use springhouse_featurestore::definition::{Column, ColumnType, FeatureView, RowTime, Table};
use springhouse_featurestore::encoding::WriteOrder;
use springhouse_featurestore::tier::{AVAILABLE_TIME, COMMIT, DataFile, EVENT_TIME, HistoryFile, ObjectStore};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};

pub(crate) use checked::{Rule, ruled};
pub use distinct::{NewEvents, TakenEvents};
pub use local_time::{utc_of_local_times, utc_of_local_times_until};
pub use on_demand::OnDemand;
pub use sources::EventRange;

use self::write_order::{carrying, order_columns};
pub(crate) use self::write_order::{tells_order, with_order, with_places};
use crate::nesting::check_text;
use crate::view_rows::RowStream;
use crate::windowed::{EventQuery, udaf};

/// Where view data is found by DataFusion.
const STORE_URL: &str = "springhouse://store/";

/// Rows of a batch: enough to amortise per-batch work, small enough to stay in the second-level cache.
pub(crate) const BATCH_ROWS: usize = 8192;

/// What a sort of one column sorts in one piece, before pieces are merged: within the third-level cache.
const SORTED_AT_ONCE_BYTES: usize = 16 << 20;

/// More data files than this are not merged as they lie: a batch of each would be held at once.
const MOST_MERGED_FILES: usize = 16;

/// What a session needs.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The folder that relative locations of tables are relative to.
    pub project: PathBuf,
    /// Memory for sorting and grouping; beyond it DataFusion spills to disk.
    pub memory_bytes: usize,
    /// How many threads one query uses.
    pub partitions: usize,
}

/// Memory that the queries of several sessions share.
#[derive(Debug, Clone)]
pub struct QueryPool(Arc<dyn MemoryPool>);

impl QueryPool {
    /// A pool of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(FairSpillPool::new(bytes)))
    }
}

/// A DataFusion session over a project.
#[derive(Clone)]
pub struct Session {
    context: SessionContext,
    project: PathBuf,
    memory_bytes: usize,
    /// The place in the order of writes of rows that do not tell it themselves.
    written: WriteOrder,
    /// What is new of sources that tell their events apart, where nothing else is to be seen of them.
    new_events: Option<Arc<NewEvents>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("project", &self.project).finish_non_exhaustive()
    }
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Internal`] when DataFusion refuses the options.
    pub fn new(options: &SessionOptions) -> Result<Self> {
        Self::sharing(options, &QueryPool::new(options.memory_bytes))
    }

    /// An empty session whose queries share a pool with those of others; the options' memory is what it may count on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn sharing(options: &SessionOptions, pool: &QueryPool) -> Result<Self> {
        let runtime =
            RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&pool.0)).build_arc().map_err(query_error)?;
        let config = SessionConfig::new()
            .with_target_partitions(options.partitions.max(1))
            .with_batch_size(BATCH_ROWS)
            // A column whose least and greatest are equal would be taken for a constant, and its NaN, which statistics
            // leave out, for that constant too.
            .with_collect_statistics(false)
            .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
            .set_bool("datafusion.execution.parquet.pushdown_filters", true)
            .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
        let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
        let state = state.with_analyzer_rule(Arc::new(local_casts::LocalCasts)).build();
        let context = SessionContext::new_with_state(state);
        udaf::register(&context);
        extremes::register(&context);
        let (project, memory_bytes) = (options.project.clone(), options.memory_bytes);
        Ok(Self { context, project, memory_bytes, written: WriteOrder::default(), new_events: None })
    }

    /// The same, in which rows that do not tell their place in the order of writes have this one.
    #[must_use]
    pub fn writing(mut self, written: WriteOrder) -> Self {
        self.written = written;
        self
    }

    /// The same tables and memory, with one partition: rows keep their files' order.
    #[must_use]
    pub fn ordered(&self) -> Self {
        // The catalog is shared: building a default one would hide the tables.
        let config =
            self.context.copied_config().with_target_partitions(1).with_create_default_catalog_and_schema(false);
        let state = SessionStateBuilder::new_from_existing(self.context.state()).with_config(config).build();
        Self { context: SessionContext::new_with_state(state), ..self.clone() }
    }

    /// What a plan runs in. To merge what it holds, and what it has spilled, a sort needs about as much memory as it has
    /// filled: each of the plan's sorts keeps half of its share back for that.
    pub(crate) fn task_of(&self, plan: &Arc<dyn ExecutionPlan>) -> Arc<TaskContext> {
        let reserve = self.memory_bytes / (2 * sorts_in(plan) + 2);
        let config = self.context.copied_config().with_sort_spill_reservation_bytes(reserve);
        let config = config.with_sort_in_place_threshold_bytes(SORTED_AT_ONCE_BYTES.min(reserve));
        let runtime = self.context.runtime_env();
        Arc::new(TaskContext::default().with_session_config(config).with_runtime(runtime))
    }

    /// Runs a query that may sort more than memory holds.
    ///
    /// # Errors
    /// Those of planning; the stream gives those of running.
    pub(crate) async fn stream(&self, frame: DataFrame) -> Result<SendableRecordBatchStream> {
        let plan = frame.create_physical_plan().await.map_err(query_error)?;
        let task = self.task_of(&plan);
        execute_stream(plan, task).map_err(query_error)
    }

    /// The memory of its queries, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// DataFusion's own context.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Adds a table that was declared with this canonical text.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names the file that is missing or not of its format.
    pub async fn add_table(&self, table: &Table) -> Result<()> {
        check_text(&table.text).map_err(query_error)?;
        let parsed = DFParser::parse_sql(&table.text).map_err(query_error)?;
        match parsed.into_iter().next() {
            Some(Statement::CreateExternalTable(create)) => {
                let schema = self.add_external_table(create).await?;
                check_columns(table, &schema)
            }
            _ => {
                Err(Error::damaged("a stored table definition is not CREATE EXTERNAL TABLE").with("table", &table.name))
            }
        }
    }

    /// The files of a table as they are now.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Unavailable`] when they cannot be listed.
    pub async fn table_files(&self, table: &Table) -> Result<Vec<HistoryFile>> {
        let url = ListingTableUrl::parse(self.locate(&table.location)).map_err(query_error)?;
        let store = self.context.runtime_env().object_store(url.object_store()).map_err(query_error)?;
        let state = self.context.state();
        let listed = url.list_all_files(&state, &store, "").await.map_err(query_error)?;
        let mut files: Vec<HistoryFile> = listed
            .map_ok(|file| HistoryFile {
                path: file.location.to_string(),
                bytes: file.size,
                state: file.e_tag.unwrap_or_else(|| file.last_modified.to_rfc3339()),
            })
            .try_collect()
            .await
            .map_err(query_error)?;
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }

    /// Adds a table by DataFusion's statement; a relative location is taken from the project's folder.
    ///
    /// # Errors
    /// As [`Self::add_table`].
    pub async fn add_external_table(&self, mut create: CreateExternalTable) -> Result<SchemaRef> {
        let name = create.name.to_string();
        let written = create.locations.first().cloned().unwrap_or_default();
        let location = self.locate(&written);
        let wrong = |error: DataFusionError| {
            Error::invalid("a table's file cannot be read")
                .with("table", &name)
                .with("location", &location)
                .remedy("check that it exists and is of the declared format")
                .source(error)
        };
        if !location.contains("://") && !Path::new(&location).exists() {
            return Err(Error::invalid("a table's file does not exist")
                .with("table", &name)
                .with("location", &location)
                .remedy("LOCATION is relative to the project folder: correct it, or put the file there"));
        }
        create.locations = vec![location.clone()];
        create.or_replace = true;
        let statement = Statement::CreateExternalTable(create);
        let plan = self.context.state().statement_to_plan(statement).await.map_err(wrong)?;
        self.context.execute_logical_plan(plan).await.map_err(wrong)?;
        let table = self.context.table(name.as_str()).await.map_err(wrong)?;
        Ok(Arc::clone(table.schema().inner()))
    }

    /// Plans a query, within the bounds of [`crate::nesting`]: the one way from text to a plan.
    ///
    /// # Errors
    /// DataFusion's own; [`query_error`] makes them ours.
    pub async fn plan(&self, sql: &str) -> Result<DataFrame, DataFusionError> {
        check_text(sql)?;
        let reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        self.context.sql_with_options(sql, reads).await
    }

    /// Runs a query that people wrote and holds its whole result.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for a query that does not plan or run.
    pub async fn query(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        let frame = self.plan(sql).await.map_err(query_error)?;
        frame.collect().await.map_err(query_error)
    }

    /// A table's place: absolute paths and URLs as they are, others below the project folder.
    pub fn locate(&self, location: &str) -> String {
        if location.contains("://") || Path::new(location).is_absolute() {
            location.to_owned()
        } else {
            self.project.join(location).to_string_lossy().into_owned()
        }
    }

    /// Adds a query under a name that nothing has yet.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Internal`] when DataFusion refuses the name.
    pub fn add_view(&self, name: &str, frame: DataFrame) -> Result<()> {
        if !self.context.table_exist(name).map_err(query_error)? {
            self.context.register_table(name, frame.into_view()).map_err(query_error)?;
        }
        Ok(())
    }

    /// A view's rows as data files hold them ([`springhouse_featurestore::tier::data_schema`]). Rows without a key or a time
    /// are left out. Its sources must have been added.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when the query no longer plans.
    pub async fn view_frame(&self, view: &FeatureView) -> Result<DataFrame> {
        let failed = |error: DataFusionError| {
            Error::invalid("a view's query does not run").with("view", &view.name).source(error)
        };
        let mut frame = self.plan(&view.query).await.map_err(failed)?;
        if view.windowed.is_some() {
            let events = EventQuery::take_apart(frame.logical_plan()).map_err(failed)?;
            frame = events.frame(self, &view.row_time.columns()).map_err(failed)?;
        } else if tells_order(view) {
            frame = carrying(frame).map_err(failed)?;
        }
        let typed = |column: &Column| cast(ident(&column.name), column.column_type.to_arrow()).alias(&column.name);
        let moment = |column: &str| cast(ident(column), ColumnType::Timestamp.to_arrow());
        let (event, available) = match &view.row_time {
            RowTime::Static => (lit(timestamp(Timestamp::MIN)), lit(timestamp(Timestamp::MIN))),
            RowTime::Delayed { event_time, delay } => {
                let event = moment(event_time);
                // Adding nothing costs a conversion to calendar time and back for every row.
                if *delay == Span::ZERO {
                    (event.clone(), event)
                } else {
                    let micros = lit(ScalarValue::new_interval_mdn(0, 0, delay.micros().saturating_mul(1_000)));
                    (event.clone(), cast(event + micros, ColumnType::Timestamp.to_arrow()))
                }
            }
            RowTime::Columns { event_time, available_time } => (moment(event_time), moment(available_time)),
        };
        let mut columns: Vec<Expr> = view.keys.iter().chain(view.row_columns()).map(typed).collect();
        columns.extend([event.alias(EVENT_TIME), available.alias(AVAILABLE_TIME)]);
        if view.keeps_order() {
            columns.extend(order_columns(view, &frame, self.written));
        }
        let whole = view
            .keys
            .iter()
            .map(|key| ident(&key.name).is_not_null())
            .chain([ident(EVENT_TIME).is_not_null(), ident(AVAILABLE_TIME).is_not_null()])
            .reduce(Expr::and);
        let frame = frame.select(columns).map_err(query_error)?;
        match whole {
            Some(whole) => frame.filter(whole).map_err(query_error),
            None => Ok(frame),
        }
    }

    /// A view's rows from committed data files; of few files each is read in its order, by keys, times and values.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Damaged`] when a file cannot be read.
    pub async fn committed_frame(
        &self,
        store: &Arc<dyn ObjectStore>,
        view: &FeatureView,
        files: &[DataFile],
    ) -> Result<DataFrame> {
        let schema = springhouse_featurestore::tier::data_schema(view);
        if files.is_empty() {
            let empty = RecordBatch::new_empty(schema);
            return self.context.read_batch(empty).map_err(query_error);
        }
        let named = |error: Error| error.with("view", &view.name);
        if files.len() > MOST_MERGED_FILES {
            return self.data_files(store, files, &schema, &[]).await.map_err(named);
        }
        let order = crate::view_rows::row_order(view);
        let mut whole: Option<DataFrame> = None;
        for file in files {
            let file = self.data_files(store, std::slice::from_ref(file), &schema, &order).await.map_err(named)?;
            whole = Some(match whole {
                Some(whole) => whole.union(file).map_err(query_error)?,
                None => file,
            });
        }
        whole.ok_or_else(|| Error::internal("a view has no data files").with("view", &view.name))
    }

    /// The rows of a view's data files together, in the order of each: by keys, times and values. They have the columns of
    /// `further` beside the view's own, which all of the files have too, and [`COMMIT`] at the end: the number of the commit
    /// that wrote them first, as the file has it for each row, else as it is told for the file.
    ///
    /// # Errors
    /// As [`Self::committed_frame`]; the stream gives those of reading.
    pub async fn merged_rows(
        &self,
        store: &Arc<dyn ObjectStore>,
        view: &FeatureView,
        files: &[(u64, DataFile)],
        further: &[FieldRef],
    ) -> Result<(SchemaRef, RowStream)> {
        let own = springhouse_featurestore::tier::data_schema(view);
        let commit: FieldRef = Arc::new(Field::new(COMMIT, DataType::Int64, false));
        let columns: Vec<FieldRef> = own.fields().iter().chain(further).chain([&commit]).cloned().collect();
        let (merged, alone) = (Schema::new(columns.clone()), Schema::new(columns[..columns.len() - 1].to_vec()));
        let (merged, alone) = (Arc::new(merged), Arc::new(alone));
        let order = crate::view_rows::row_order(view);
        let mut whole: Option<DataFrame> = None;
        for (number, file) in files {
            let has_commits = file.first_commit.is_some();
            let schema = if has_commits { &merged } else { &alone };
            let rows = self.data_files(store, std::slice::from_ref(file), schema, &order).await?;
            let mut wanted: Vec<Expr> = alone.fields().iter().map(|column| exact(column.name())).collect();
            wanted.push(if has_commits { exact(COMMIT) } else { lit(number.cast_signed()).alias(COMMIT) });
            let rows = rows.select(wanted).map_err(query_error)?;
            whole = Some(match whole {
                Some(whole) => whole.union(rows).map_err(query_error)?,
                None => rows,
            });
        }
        let whole = whole.ok_or_else(|| Error::internal("there are no files to merge").with("view", &view.name))?;
        let batches = self.stream(whole.sort(order).map_err(query_error)?).await?;
        let schema = Arc::clone(&merged);
        let rows = batches.map(move |batch| {
            Ok(RecordBatch::try_new(Arc::clone(&schema), batch.map_err(query_error)?.columns().to_vec())?)
        });
        Ok((merged, rows.boxed()))
    }

    async fn data_files(
        &self,
        store: &Arc<dyn ObjectStore>,
        files: &[DataFile],
        schema: &SchemaRef,
        order: &[SortExpr],
    ) -> Result<DataFrame> {
        let url = ObjectStoreUrl::parse(STORE_URL).map_err(query_error)?;
        self.context.register_object_store(url.as_ref(), Arc::clone(store));
        let paths: Vec<String> = files.iter().map(|file| format!("{STORE_URL}{}", file.path)).collect();
        let order = if order.is_empty() { Vec::new() } else { vec![order.to_vec()] };
        let options = ParquetReadOptions::default().schema(schema).file_sort_order(order);
        let read = self.context.read_parquet(paths, options).await;
        read.map_err(|error| Error::damaged("data files of the store cannot be read").source(error))
    }
}

/// How many sorts a plan runs, each on every partition counted.
fn sorts_in(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let own = if plan.name() == "SortExec" { plan.output_partitioning().partition_count() } else { 0 };
    own + plan.children().into_iter().map(sorts_in).sum::<usize>()
}

/// A time as a DataFusion literal.
pub fn timestamp(at: Timestamp) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(at.micros()), Some(Arc::from("UTC")))
}

/// The columns of a frame in our types.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] names the column whose type cannot be carried.
pub fn columns_of(frame: &DataFrame) -> Result<Vec<Column>> {
    frame
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let column_type =
                ColumnType::from_arrow(field.data_type()).map_err(|error| error.with("column", field.name()))?;
            Ok(Column::nullable(field.name(), column_type))
        })
        .collect()
}

fn check_columns(table: &Table, schema: &SchemaRef) -> Result<()> {
    for (name, expected) in &table.columns {
        let found = schema.field_with_name(name).ok().map(|field| field.data_type().to_string());
        if found.as_ref() != Some(expected) {
            return Err(Error::invalid("a table's column is gone or of another type")
                .with("table", &table.name)
                .with("file", &table.location)
                .with("column", name)
                .with("expected", expected)
                .with("found", found.unwrap_or_else(|| "nothing".to_owned()))
                .remedy("restore the file, or apply the definitions again to accept its new columns"));
        }
    }
    Ok(())
}

/// A DataFusion error in ours: faults of the query are the caller's, failing storage is not.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub fn query_error(error: DataFusionError) -> Error {
    let message = error.strip_backtrace();
    match error.find_root() {
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => Error::unavailable(message),
        DataFusionError::ResourcesExhausted(_) => {
            Error::unavailable(message).remedy("give more memory: query_bytes in springhouse.toml")
        }
        DataFusionError::Internal(_) => Error::internal(message),
        // One of ours that went through DataFusion.
        DataFusionError::External(own) => match own.downcast_ref::<Error>() {
            Some(own) => Error::new(own.kind(), own.to_string()),
            None => Error::invalid(message),
        },
        _ => Error::invalid(message),
    }
}

/// A column by its exact name.
pub(crate) fn exact(name: &str) -> Expr {
    col(datafusion::common::Column::new_unqualified(name))
}
