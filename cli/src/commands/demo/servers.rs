//! The demo's store and worker: two processes of this binary on ports of their own.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use springhouse_featurestore::{Error, Result};
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::predict::PredictClient;
use tokio::process::{Child, Command};

use super::CONTRACT;
use crate::render::say;

/// How often a starting process is asked whether it answers; ten seconds in all.
const ASK_AT_MOST: u32 = 100;

/// Two running processes; they end with the demo.
#[derive(Debug)]
pub struct Servers {
    /// The store's address.
    pub store: String,
    /// The worker's address.
    pub worker: String,
    processes: Vec<Child>,
}

impl Servers {
    /// Starts both, and waits until they answer. The worker reaches the store over a Unix socket.
    pub async fn start(folder: &Path, clock: &str) -> Result<Self> {
        let (store_port, worker_port) = (free_port()?, free_port()?);
        let socket = folder.join("store.sock");
        let socket_text = socket.to_string_lossy().into_owned();
        let store_listen = format!("127.0.0.1:{store_port}");
        let worker_listen = format!("127.0.0.1:{worker_port}");
        let store = spawn(
            folder,
            &["--clock", clock, "serve", "--role", "store", "--listen", &store_listen, "--socket", &socket_text],
        )?;
        let mut servers = Self {
            store: format!("http://{store_listen}"),
            worker: format!("http://{worker_listen}"),
            processes: vec![store],
        };
        let remote = RemoteFeatures::new(&servers.store)?;
        wait_for("store", async || remote.act("status", "").await.map(|_| ())).await?;
        let from = format!("unix://{socket_text}");
        servers
            .processes
            .push(spawn(folder, &["serve", "--role", "worker", "--listen", &worker_listen, "--store", &from])?);
        let client = PredictClient::new(&servers.worker)?;
        wait_for("worker", async || client.metadata(CONTRACT).await.map(|_| ())).await?;
        Ok(servers)
    }

    /// Leaves them up until the demo is interrupted.
    pub async fn stay(self, folder: &Path) -> Result<()> {
        let (store, worker, folder) = (&self.store, &self.worker, folder.display());
        say(&format!(
            "\nThe servers stay up until Ctrl-C. Try:\n\
             \x20 springhouse --project {folder} status --store {store} --worker {worker}\n\
             \x20 springhouse --project {folder} log\n\
             \x20 springhouse --project {folder} lookup {CONTRACT} origin=JFK dest=LAX carrier=DL tailnum=N713TW --store {store}\n\
             \x20 springhouse --project {folder} predict {CONTRACT} origin=JFK dest=LAX carrier=DL tailnum=N713TW \
             distance=2475 scheduled_at=2013-12-05T05:00:00Z --worker {worker}"
        ));
        tokio::signal::ctrl_c().await.map_err(|error| Error::unavailable("Ctrl-C cannot be waited for").source(error))
    }
}

fn spawn(folder: &Path, arguments: &[&str]) -> Result<Child> {
    let failed = |error: std::io::Error| Error::unavailable("a server process cannot be started").source(error);
    Command::new(std::env::current_exe().map_err(failed)?)
        .arg("--project")
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

fn free_port() -> Result<u16> {
    let failed = |error: std::io::Error| Error::unavailable("no free port").source(error);
    Ok(TcpListener::bind("127.0.0.1:0").map_err(failed)?.local_addr().map_err(failed)?.port())
}

async fn wait_for(what: &str, answers: impl AsyncFn() -> Result<()>) -> Result<()> {
    let mut last = None;
    for _ in 0..ASK_AT_MOST {
        match answers().await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let error = Error::unavailable("a server process does not answer").with("process", what);
    Err(match last {
        Some(cause) => error.source(cause),
        None => error,
    })
}
