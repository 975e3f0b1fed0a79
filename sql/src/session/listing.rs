//! Which files a session's tables consist of.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use datafusion::datasource::listing::ListingTableUrl;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::Table;
use springhouse_featurestore::tier::{HistoryFiles, OnlyFiles};

use super::{Session, query_error};

impl Session {
    /// Lets tables that are added from now on consist of these files alone, whatever comes to their folders meanwhile.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for a location that nothing serves.
    pub fn see_only<'a>(&self, tables: impl IntoIterator<Item = &'a Table>, files: &HistoryFiles) -> Result<()> {
        let paths: Arc<HashSet<String>> = Arc::new(files.values().flatten().map(|file| file.path.clone()).collect());
        let runtime = self.context.runtime_env();
        let mut stores = BTreeSet::new();
        for table in tables {
            let location = ListingTableUrl::parse(self.locate(&table.location)).map_err(query_error)?;
            let url = location.object_store();
            if stores.insert(url.as_str().to_owned()) {
                let store = runtime.object_store(&url).map_err(query_error)?;
                runtime.register_object_store(url.as_ref(), Arc::new(OnlyFiles::new(store, Arc::clone(&paths))));
            }
        }
        Ok(())
    }
}
