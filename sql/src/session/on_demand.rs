//! Tables that are read when a query names them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use springhouse_featurestore::{Error, Result};

use super::{Session, query_error};

/// Small tables, each read as a whole when a query names it.
#[async_trait]
pub trait OnDemand: Send + Sync + std::fmt::Debug {
    /// Their names.
    fn names(&self) -> Vec<String>;

    /// The rows of the table of a name; `None` where there is no such table.
    ///
    /// # Errors
    /// Those of reading it.
    async fn read(&self, name: &str) -> Result<Option<RecordBatch>>;
}

/// The tables as DataFusion asks for them.
#[derive(Debug)]
struct Tables(Arc<dyn OnDemand>);

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.0.names()
    }

    async fn table(&self, name: &str) -> std::result::Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let read = self.0.read(name).await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        let Some(rows) = read else { return Ok(None) };
        Ok(Some(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.names().iter().any(|known| known == name)
    }
}

impl Session {
    /// Adds tables below the name of a schema: `SELECT * FROM schema.table`.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Internal`] when DataFusion refuses the name.
    pub fn add_schema(&self, schema: &str, tables: Arc<dyn OnDemand>) -> Result<()> {
        let options = self.context.copied_config();
        let name = &options.options().catalog.default_catalog;
        let catalog = self.context.catalog(name);
        let catalog = catalog.ok_or_else(|| Error::internal("the session has no catalog").with("catalog", name))?;
        catalog.register_schema(schema, Arc::new(Tables(tables))).map_err(query_error)?;
        Ok(())
    }
}
