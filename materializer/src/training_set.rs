//! Training sets: a contract's inputs for each row of a spine, as of its time (rules T2 to T5).
//!
//! The contract's rules and input expressions are applied by the code that serves predictions, at lag zero unless the set
//! is to be as served: an expired or missing value is null where the rule says `DEFAULT`. Where a rule says `FAIL`, serving would not have answered;
//! the row keeps what there is. Batches stream through; nothing holds the whole result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringBuilder};
use arrow::compute::{is_null, nullif};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Contract, FeatureRule, FeatureView};
use springhouse_featurestore::enforce::Enforcer;
use springhouse_featurestore::freshness::{ServingHistory, alive, status};
use springhouse_featurestore::lookup::{event_time_column, feature_column, status_column};
use springhouse_featurestore::tier::{DataFile, ViewCommitKind};
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_sql::inputs::CompiledInputs;
use springhouse_sql::point_in_time::RowsAsOf;
use springhouse_sql::session::EventRange;
use springhouse_sql::spine::{ROW, Spine, SpineFeatures, SpineOrder, SpineSource, SpineSubset, TIME};
use springhouse_sql::view_rows::{RowStream, Sources, visible_in};

use crate::Jobs;
use crate::jobs::views_of;

/// Where the feature rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowsFrom {
    /// What refreshes have committed.
    Committed,
    /// Computed from the sources now, in one pass and without the store.
    Sources,
}

/// Which rows of a view count at a time of the spine (rule T3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AsOf {
    /// Those that were known by then.
    #[default]
    Known,
    /// Those that had happened by then, known or not: values that nobody could have served.
    EventTime,
    /// Those that serving had by then: before the system ran, those that it would have had under each view's
    /// `REFRESH EVERY`. A view's lag counts too, for the rules of the contract.
    Served,
}

impl AsOf {
    fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known_at",
            Self::EventTime => "event_time",
            Self::Served => "served",
        }
    }
}

/// What training set is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingSetRequest {
    /// The spine.
    pub spine: SpineSource,
    /// Where the feature rows come from.
    pub rows: RowsFrom,
    /// Which of them count at a row's time.
    pub as_of: AsOf,
    /// Whether features, statuses and event times stand beside the inputs.
    pub with_features: bool,
    /// The order of the rows.
    pub order: SpineOrder,
}

/// Batches that are shaped at once, while the one before them is taken.
const SHAPED_AT_ONCE: usize = 2;

/// A planned training set.
pub struct TrainingSet {
    features: SpineFeatures,
    latest: Option<Timestamp>,
    shaper: Arc<Shaper>,
    metadata: BTreeMap<String, String>,
}

/// So many commits of a view are read at once; of each two times are kept.
const COMMITS_AT_ONCE: usize = 256;

impl Jobs {
    /// Plans the training set of a contract.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when the spine lacks columns, or reaches beyond what the views
    /// have been refreshed to.
    pub async fn training_set(
        &self,
        catalog: &CatalogState,
        contract: &Contract,
        request: &TrainingSetRequest,
    ) -> Result<TrainingSet> {
        self.training_set_of(catalog, contract, request, SpineSubset::Whole).await
    }

    /// Plans the training set of a contract for some rows of its spine.
    ///
    /// # Errors
    /// As [`Self::training_set`].
    pub async fn training_set_of(
        &self,
        catalog: &CatalogState,
        contract: &Contract,
        request: &TrainingSetRequest,
        subset: SpineSubset,
    ) -> Result<TrainingSet> {
        self.planned_training_set(catalog, contract, request, subset, true).await
    }

    /// The columns of the training set of a contract. It is planned alone: the spine is not read, so how far it reaches is
    /// not checked.
    ///
    /// # Errors
    /// As [`Self::training_set`].
    pub async fn training_set_schema(
        &self,
        catalog: &CatalogState,
        contract: &Contract,
        request: &TrainingSetRequest,
    ) -> Result<SchemaRef> {
        let planned = self.planned_training_set(catalog, contract, request, SpineSubset::Whole, false).await?;
        Ok(Arc::clone(planned.schema()))
    }

    async fn planned_training_set(
        &self,
        catalog: &CatalogState,
        contract: &Contract,
        request: &TrainingSetRequest,
        subset: SpineSubset,
        reads_spine: bool,
    ) -> Result<TrainingSet> {
        let views = views_of(catalog, contract)?;
        let session = self.full_session(catalog).await?;
        let keys: BTreeSet<&str> = views.iter().flat_map(|view| &view.keys).map(|key| key.name.as_str()).collect();
        let spine = Spine::open(&session, &request.spine, contract).await?;
        let spine = spine.subset(subset, &keys.into_iter().collect::<Vec<_>>())?;
        let latest = if reads_spine { spine.latest().await? } else { None };
        let pushed = self.pushed().state().await?.events();
        let mut rows = Vec::with_capacity(views.len());
        let mut histories = Vec::with_capacity(views.len());
        for view in &views {
            let as_of = match request.as_of {
                AsOf::Known => RowsAsOf::Known,
                AsOf::EventTime => RowsAsOf::EventTime,
                AsOf::Served => RowsAsOf::Served(Arc::new(self.serving_history(view).await?)),
            };
            histories.push(if let RowsAsOf::Served(history) = &as_of { Some(Arc::clone(history)) } else { None });
            let frame = match request.rows {
                RowsFrom::Committed => {
                    let state = self.log(view).state().await?;
                    refuse_unprocessed(view, state.watermark, latest)?;
                    let files: Vec<DataFile> = state.files.into_iter().map(|(_, file)| file).collect();
                    session.committed_frame(self.store(), view, &files).await?
                }
                RowsFrom::Sources => {
                    let until = latest.unwrap_or(Timestamp::MIN);
                    let separate = self.session()?;
                    let set_aside = self.log(view).state().await?.set_aside;
                    let pushed = pushed.clone().leaving_out(&self.left_out(&set_aside).await?);
                    let sources = Sources { catalog, store: self.store(), pushed: &pushed };
                    sources.add(&separate, view, EventRange::known_by(until)).await?;
                    let rows = separate.view_frame(view).await?;
                    // Rows that do not hold yet are not made: no refresh has looked at the events that they are made of.
                    if view.ahead { visible_in(rows, view, None, until)? } else { rows }
                }
            };
            rows.push((frame, as_of));
        }
        let features = spine.join(&views, rows, request.order).await?;
        let inputs = CompiledInputs::new(&session, contract, &views)?;
        let shaper =
            Arc::new(Shaper::new(&features.schema(), contract, &views, histories, inputs, request.with_features)?);
        Ok(TrainingSet { features, latest, shaper, metadata: metadata(catalog, contract, request) })
    }

    /// How far a view had got at past times.
    async fn serving_history(&self, view: &FeatureView) -> Result<ServingHistory> {
        let log = self.log(view);
        let (mut told, mut read, mut pushed_from) = (Vec::new(), 0, None);
        // From the first push on everything was known at once: what was committed later tells nothing.
        while pushed_from.is_none() {
            let some = log.some_commits_after(read, COMMITS_AT_ONCE).await?;
            let Some((last, _)) = some.last() else { break };
            read = *last;
            for (_, commit) in some.into_iter().filter(|(_, commit)| commit.kind != ViewCommitKind::Compact) {
                if commit.kind == ViewCommitKind::Push && pushed_from.is_none() {
                    pushed_from = Some(commit.pushed_from.unwrap_or(commit.at));
                }
                told.push((commit.at, commit.watermark));
            }
        }
        Ok(ServingHistory::new(told, pushed_from, view.refresh_every))
    }
}

/// A training row must not rest on a view that has not seen all events up to the row's time.
pub(crate) fn refuse_unprocessed(
    view: &FeatureView,
    watermark: Option<Timestamp>,
    latest: Option<Timestamp>,
) -> Result<()> {
    let Some(latest) = latest else { return Ok(()) };
    if view.is_static() && watermark.is_some() || watermark.is_some_and(|mark| mark >= latest) {
        return Ok(());
    }
    let mark = watermark.map_or_else(|| "never refreshed".to_owned(), |mark| mark.to_string());
    Err(Error::invalid("the spine reaches beyond what a view has processed")
        .with("view", view.pinned())
        .with("watermark", mark)
        .with("latest spine time", latest)
        .remedy(format!("refresh the view (springhouse refresh {}), or end the spine earlier", view.name)))
}

fn metadata(catalog: &CatalogState, contract: &Contract, request: &TrainingSetRequest) -> BTreeMap<String, String> {
    let views: Vec<String> = contract.features.iter().map(|rule| rule.view.to_string()).collect();
    let spine = format!("{}\0{}\0{}", request.spine.from, request.spine.time, request.spine.lag);
    let digest =
        Sha256::digest(spine.as_bytes()).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let defined = catalog.spines().find(|spine| spine.query == request.spine.from && spine.time == request.spine.time);
    let defined = defined.map(|spine| ("springhouse.spine_definition".to_owned(), spine.pinned().to_string()));
    let told = [
        ("springhouse.contract".to_owned(), contract.pinned().to_string()),
        ("springhouse.views".to_owned(), views.join(",")),
        ("springhouse.catalog_commit".to_owned(), catalog.number().to_string()),
        ("springhouse.as_of".to_owned(), request.as_of.as_str().to_owned()),
        ("springhouse.spine".to_owned(), request.spine.from.clone()),
        ("springhouse.spine_fingerprint".to_owned(), format!("sha256:{digest}")),
    ];
    told.into_iter().chain(defined).collect()
}

impl TrainingSet {
    /// Its columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.shaper.schema
    }

    /// What a file of it says about itself.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The latest time of the spine; `None` for a spine without rows.
    pub fn latest(&self) -> Option<Timestamp> {
        self.latest
    }

    /// Its plan as text.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn explain(&self) -> Result<String> {
        self.features.explain().await
    }

    /// Runs it.
    pub fn execute(&self) -> RowStream {
        let shaper = Arc::clone(&self.shaper);
        let rows = self.features.execute().map(move |batch| {
            let shaper = Arc::clone(&shaper);
            async move {
                let batch = batch?;
                let done = tokio::task::spawn_blocking(move || shaper.shape(&batch)).await;
                done.map_err(|error| Error::internal("shaping rows panicked").source(error))?
            }
        });
        rows.buffered(SHAPED_AT_ONCE).boxed()
    }
}

/// Turns joined batches into rows of the training set.
struct Shaper {
    contract: Contract,
    views: Vec<FeatureView>,
    /// What serving knew of each view, where that is asked for.
    histories: Vec<Option<Arc<ServingHistory>>>,
    /// The columns that a lookup at each row's time would have answered.
    answer: SchemaRef,
    enforcer: Enforcer,
    inputs: CompiledInputs,
    with_features: bool,
    /// The spine's columns that stay beside the inputs.
    spine: Vec<usize>,
    schema: SchemaRef,
}

impl Shaper {
    fn new(
        joined: &SchemaRef,
        contract: &Contract,
        views: &[&FeatureView],
        histories: Vec<Option<Arc<ServingHistory>>>,
        inputs: CompiledInputs,
        with_features: bool,
    ) -> Result<Self> {
        let first_added = joined.index_of(ROW)?;
        let spine: Vec<usize> =
            (0..first_added).filter(|&i| inputs.schema().field_with_name(joined.field(i).name()).is_err()).collect();
        let mut fields: Vec<Field> = spine.iter().map(|&index| joined.field(index).clone()).collect();
        fields.extend(inputs.schema().fields().iter().map(|field| field.as_ref().clone()));
        let answer: Vec<Field> =
            views.iter().map(|view| answer_fields(view, joined)).collect::<Result<Vec<_>>>()?.concat();
        if with_features {
            fields.push(joined.field_with_name(TIME)?.clone());
            fields.extend(answer.iter().cloned());
        }
        let answer: SchemaRef = Arc::new(Schema::new(answer));
        Ok(Self {
            contract: contract.clone(),
            enforcer: Enforcer::new(contract, views, &answer)?,
            answer,
            views: views.iter().map(|view| (*view).clone()).collect(),
            histories,
            inputs,
            with_features,
            spine,
            schema: Arc::new(Schema::new(fields)),
        })
    }

    fn shape(&self, joined: &RecordBatch) -> Result<RecordBatch> {
        let answer = self.answer(joined)?;
        let enforced = self.enforcer.enforce(&answer)?;
        let request: Vec<ArrayRef> =
            self.contract.request.iter().map(|column| named(joined, &column.name)).collect::<Result<_>>()?;
        let inputs = self.inputs.evaluate(&request, &enforced.features, joined.num_rows())?;
        let mut columns: Vec<ArrayRef> = self.spine.iter().map(|&index| Arc::clone(joined.column(index))).collect();
        columns.extend(inputs.columns().iter().cloned());
        if self.with_features {
            columns.push(named(joined, TIME)?);
            columns.extend(answer.columns().iter().cloned());
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// The joined rows as a lookup at each row's time would have answered, without lag unless that is asked for.
    fn answer(&self, joined: &RecordBatch) -> Result<RecordBatch> {
        let times = named(joined, TIME)?;
        let mut columns = Vec::new();
        for ((rule, view), history) in self.contract.features.iter().zip(&self.views).zip(&self.histories) {
            answer_columns(rule, view, history.as_deref(), joined, &times, &mut columns)?;
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(joined.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.answer), columns, &options)?)
    }
}

fn answer_fields(view: &FeatureView, joined: &SchemaRef) -> Result<Vec<Field>> {
    let features = view.features.iter().map(|feature| {
        let name = feature_column(&view.name, &feature.name);
        Ok(joined.field_with_name(&name)?.clone())
    });
    let mut fields = features.collect::<Result<Vec<_>>>()?;
    fields.push(Field::new(status_column(&view.name), DataType::Utf8, false));
    fields.push(joined.field_with_name(&event_time_column(&view.name))?.clone());
    Ok(fields)
}

/// A view's columns of the answer: values, status, event time. A row beyond its TTL is as if it had never been.
fn answer_columns(
    rule: &FeatureRule,
    view: &FeatureView,
    history: Option<&ServingHistory>,
    joined: &RecordBatch,
    times: &ArrayRef,
    columns: &mut Vec<ArrayRef>,
) -> Result<()> {
    let event_column = named(joined, &event_time_column(&view.name))?;
    let events = event_column.as_primitive::<TimestampMicrosecondType>();
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let mut statuses = StringBuilder::new();
    let mut gone = Vec::with_capacity(joined.num_rows());
    for row in 0..joined.num_rows() {
        let time = Timestamp::from_micros(if times.is_valid(row) { times.value(row) } else { i64::MIN });
        let event = events.is_valid(row).then(|| Timestamp::from_micros(events.value(row)));
        let event = event.filter(|event| alive(time, *event, view.ttl));
        gone.push(event.is_none());
        let lag = history.map_or(Span::ZERO, |history| time.since(history.known_at(time)));
        statuses.append_value(status(rule, lag, time, event).as_str());
    }
    let gone = BooleanArray::from(gone);
    for feature in &view.features {
        columns.push(nullif(&named(joined, &feature_column(&view.name, &feature.name))?, &gone)?);
    }
    columns.push(Arc::new(statuses.finish()));
    let always: BooleanArray = events.iter().map(|event| Some(event == Some(i64::MIN))).collect();
    let hidden = arrow::compute::or(&gone, &always)?;
    columns.push(if is_null(&event_column)?.false_count() == 0 {
        event_column
    } else {
        nullif(&event_column, &hidden)?
    });
    Ok(())
}

fn named(batch: &RecordBatch, name: &str) -> Result<ArrayRef> {
    batch
        .column_by_name(name)
        .cloned()
        .ok_or_else(|| Error::internal("a joined batch lacks a column").with("column", name))
}
