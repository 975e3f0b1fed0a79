//! A project folder: its definition files, its settings, its store and the clock that a command runs at.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use springhouse_featurestore::catalog::{Catalog, CatalogState, Change, Signature};
use springhouse_featurestore::object_storage::{folder_of, open_store};
use springhouse_featurestore::push::{EventSink, PushLog};
use springhouse_featurestore::tier::{DiskTier, ObjectStore};
use springhouse_featurestore::time::{Clock, DrivenClock, SystemClock, Timestamp};
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::Jobs;
use springhouse_materializer::push::Pushes;
use springhouse_serving::FeatureServer;
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::predict::PredictClient;
use springhouse_serving::security::{Access, Security, SecurityFiles, TlsFiles};
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::session::SessionOptions;

use crate::settings::Settings;

/// An opened project.
#[derive(Debug, Clone)]
pub struct Project {
    folder: PathBuf,
    settings: Settings,
    clock: Arc<dyn Clock>,
    driven: Option<Arc<DrivenClock>>,
    access: Access,
}

impl Project {
    /// Opens the project in a folder, at the machine's time or at another.
    pub fn open(folder: &Path, clock: Option<Timestamp>) -> Result<Self> {
        let folder = folder.canonicalize().map_err(|error| {
            Error::invalid("there is no such project folder").with("folder", folder.display()).source(error)
        })?;
        let settings = Settings::read(&folder)?;
        let driven = clock.map(|start| Arc::new(DrivenClock::moving(start)));
        let clock = driven
            .as_ref()
            .map_or_else(|| Arc::new(SystemClock) as Arc<dyn Clock>, |driven| Arc::clone(driven) as Arc<dyn Clock>);
        Ok(Self { folder, settings, clock, driven, access: Access::default() })
    }

    /// The same project, with what its clients show to servers.
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The same project at a clock that somebody drives.
    pub fn at(&self, driven: Arc<DrivenClock>) -> Self {
        Self { clock: Arc::clone(&driven) as Arc<dyn Clock>, driven: Some(driven), ..self.clone() }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The clock that everything of it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The clock, where `--clock` lets somebody drive it.
    pub fn driven(&self) -> Option<&Arc<DrivenClock>> {
        self.driven.as_ref()
    }

    /// Object storage.
    pub fn store(&self) -> Result<Arc<dyn ObjectStore>> {
        open_store(&self.store_location(), [])
    }

    fn store_location(&self) -> String {
        let store = &self.settings.store;
        if store.contains("://") { store.clone() } else { self.folder.join(store).to_string_lossy().into_owned() }
    }

    /// Everything that jobs need.
    pub fn jobs(&self) -> Result<Jobs> {
        let threads = match self.settings.query_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let options = SessionOptions {
            project: self.folder.clone(),
            memory_bytes: self.settings.query_bytes,
            partitions: threads,
        };
        let started = SystemClock.now().micros().cast_unsigned() & 0xFFFF_FFFF;
        let writer = u64::from(std::process::id()) << 32 | started;
        let jobs = Jobs::new(self.store()?, options, Arc::clone(&self.clock), writer);
        Ok(jobs.in_folder(folder_of(&self.store_location())))
    }

    /// The catalog and its state.
    pub async fn catalog(&self) -> Result<(Catalog, CatalogState)> {
        let catalog = Catalog::new(self.store()?);
        let state = catalog.state().await?;
        Ok((catalog, state))
    }

    /// The running store; the settings' address when none is given.
    pub fn remote_store(&self, given: Option<&String>) -> Result<RemoteFeatures> {
        let address = given.cloned().unwrap_or_else(|| self.address(self.settings.store_listen));
        RemoteFeatures::with_access(&address, self.access.clone())
    }

    /// The running worker; the settings' address when none is given.
    pub fn remote_worker(&self, given: Option<&String>) -> Result<PredictClient> {
        let address = given.cloned().unwrap_or_else(|| self.address(self.settings.worker_listen));
        PredictClient::with_access(&address, self.access.clone())
    }

    fn address(&self, listens: SocketAddr) -> String {
        let scheme = if self.settings.tls_certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{listens}")
    }

    /// The file of those who may call.
    pub fn callers_file(&self) -> Result<PathBuf> {
        let callers = self.settings.callers.as_ref().ok_or_else(|| {
            Error::invalid("the settings name no file of those who may call")
                .remedy("add to springhouse.toml: callers = \"callers.toml\"")
        })?;
        Ok(self.folder.join(callers))
    }

    /// Who may call this host's servers, and how their connections are protected.
    pub fn security(&self) -> Result<Security> {
        let place = |file: &String| self.folder.join(file);
        let Settings { tls_certificate, tls_key, tls_client_ca, callers, .. } = &self.settings;
        let tls = match (tls_certificate, tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: place(certificate),
                key: place(key),
                client_ca: tls_client_ca.as_ref().map(place),
            }),
            (None, None) if tls_client_ca.is_none() => None,
            _ => {
                return Err(Error::invalid("the settings name some files of TLS and lack others")
                    .remedy("set tls_certificate and tls_key; tls_client_ca only beside them"));
            }
        };
        Security::read(SecurityFiles { callers: callers.as_ref().map(place), tls })
    }

    /// The disk tier, for this process alone.
    pub fn disk_tier(&self) -> Result<DiskTier> {
        DiskTier::open(&self.folder.join(&self.settings.disk))
    }

    /// The store opened for online reads by this process alone.
    pub fn feature_server(&self) -> Result<FeatureServer> {
        Ok(FeatureServer::new(self.store()?, self.disk_tier()?, self.settings.cache_bytes, Arc::clone(&self.clock)))
    }

    /// Takes pushes for a feature server.
    pub async fn pushes(&self, features: &Arc<FeatureServer>) -> Result<Arc<dyn EventSink>> {
        let log = PushLog::open(&self.folder.join(&self.settings.log))?;
        let (tier, changing) = features.tier();
        let pushes = Pushes::start(self.jobs()?, log, tier, changing, Box::new(features.followed())).await?;
        let Settings { clock_tolerance, producer_silence, .. } = self.settings;
        Ok(Arc::new(pushes.tolerating(clock_tolerance).leaving_out_after(producer_silence)))
    }

    /// All `*.sql` files of the folder, in order of name.
    pub fn definition_files(&self) -> Result<Vec<SourceFile>> {
        let failed = |error: std::io::Error| {
            Error::unavailable("the project folder cannot be read").with("folder", self.folder.display()).source(error)
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                paths.push(path);
            }
        }
        paths.sort();
        if paths.is_empty() {
            return Err(Error::invalid("the project has no definitions")
                .with("folder", self.folder.display())
                .remedy("put *.sql files there, or name the folder with --project"));
        }
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).map_err(failed)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(SourceFile { name, text })
        };
        paths.into_iter().map(read).collect()
    }

    /// Commits changes that `decide` derives from the newest state; when another writer comes first it decides again.
    /// Returns the commit's number, or `None` where there was nothing to change.
    pub async fn commit(
        &self,
        why: &str,
        decide: impl AsyncFnMut(&CatalogState) -> Result<Vec<Change>>,
    ) -> Result<Option<u64>> {
        let by = Signature { at: self.clock.now(), who: who(), why: why.to_owned() };
        Catalog::new(self.store()?).change(by, decide).await
    }
}

/// Who is committing.
pub fn who() -> String {
    ["SPRINGHOUSE_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "unknown".to_owned())
}
