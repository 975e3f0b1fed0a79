//! The events that are set aside as tables of SQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use springhouse_featurestore::Result;
use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition::{Column, ColumnType, Definition, EventTime, Source};
use springhouse_featurestore::tier::{REASON, SET_ASIDE_AT, SetAsideEvents, WRITE_POSITION, WRITE_WITHIN};
use springhouse_sql::session::OnDemand;

use crate::Jobs;

/// The source of an event, among those of several.
pub(super) const SOURCE: &str = "@source";

/// The schema `set_aside` of queries that people write: of each current view a table of its events that are set aside.
#[derive(Debug)]
pub(crate) struct SetAsideTables {
    jobs: Jobs,
    catalog: CatalogState,
}

impl SetAsideTables {
    pub(crate) fn of(jobs: Jobs, catalog: &CatalogState) -> Self {
        Self { jobs, catalog: catalog.clone() }
    }
}

#[async_trait]
impl OnDemand for SetAsideTables {
    fn names(&self) -> Vec<String> {
        let names = self.catalog.definitions().filter_map(|definition| match definition.as_ref() {
            Definition::FeatureView(view) => Some(view.name.clone()),
            _ => None,
        });
        names.collect()
    }

    async fn read(&self, name: &str) -> Result<Option<RecordBatch>> {
        let view = self.catalog.definitions().find_map(|definition| match definition.as_ref() {
            Definition::FeatureView(view) if view.name == name => Some(view.clone()),
            _ => None,
        });
        let Some(view) = view else { return Ok(None) };
        let table = self.jobs.set_aside(&view).await?;
        let sources = view.sources.iter().map(|pinned| self.catalog.source(pinned)).collect::<Result<Vec<_>>>()?;
        let timed = sources.into_iter().filter(|source| source.event_time != EventTime::Static);
        one_table(&timed.collect::<Vec<_>>(), &table).map(Some)
    }
}

/// The events of several sources as one table: [`SOURCE`], the columns of all sources, and what tells of each event. A column that
/// two sources have in different types is that of the first; the other's is called `source.column`.
pub(super) fn one_table(sources: &[&Source], table: &SetAsideEvents) -> Result<RecordBatch> {
    let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new(SOURCE, DataType::Utf8, false))];
    let mut named: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for source in sources {
        for column in &source.columns {
            let field = Column::to_field(column).with_nullable(true);
            let known = fields.iter().find(|other| other.name() == field.name());
            let name = match known {
                Some(other) if other.data_type() != field.data_type() => format!("{}.{}", source.name, column.name),
                _ => column.name.clone(),
            };
            if !fields.iter().any(|other| *other.name() == name) {
                fields.push(Arc::new(field.with_name(&name)));
            }
            named.insert((&source.name, &column.name), name);
        }
    }
    let told = [
        (WRITE_POSITION, DataType::Int64),
        (WRITE_WITHIN, DataType::Int64),
        (SET_ASIDE_AT, ColumnType::Timestamp.to_arrow()),
        (REASON, DataType::Utf8),
    ];
    fields.extend(told.map(|(name, kind)| Arc::new(Field::new(name, kind, true))));
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let mut batches = vec![RecordBatch::new_empty(Arc::clone(&schema))];
    for (source, events) in table {
        let rows = events.num_rows();
        let mut columns: BTreeMap<String, ArrayRef> = BTreeMap::new();
        columns.insert(SOURCE.to_owned(), Arc::new(StringArray::from_iter_values(std::iter::repeat_n(source, rows))));
        for (field, array) in events.schema_ref().fields().iter().zip(events.columns()) {
            let name = named.get(&(source.as_str(), field.name().as_str())).unwrap_or(field.name());
            columns.insert(name.clone(), Arc::clone(array));
        }
        let column = |field: &FieldRef| match columns.get(field.name()) {
            Some(array) => Arc::clone(array),
            None => new_null_array(field.data_type(), rows),
        };
        batches.push(RecordBatch::try_new(Arc::clone(&schema), schema.fields().iter().map(column).collect())?);
    }
    Ok(concat_batches(&schema, &batches)?)
}
