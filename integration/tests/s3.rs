//! A real S3-protocol server on loopback: the catalog's race and a full refresh through the code that a folder uses.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::{Catalog, CatalogCommit, Change};
use springhouse_featurestore::definition::DefinitionKind;
use springhouse_featurestore::tier::{DiskTier, ObjectStore, catch_up, open_store};

use crate::project::{DEFINITIONS, TestProject, at};
use crate::wire::python;

/// moto's server; it ends with the test.
struct S3(Child);

impl Drop for S3 {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill() {
            panic!("the S3 server does not end: {error}");
        }
    }
}

async fn s3() -> (S3, Arc<dyn ObjectStore>) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let server = Command::new(python())
        .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("moto starts");
    let server = S3(server);
    let endpoint = format!("http://127.0.0.1:{port}");
    let make_bucket = format!(
        "import time, boto3\nfor _ in range(100):\n  try:\n    boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1', \
         aws_access_key_id='k', aws_secret_access_key='s').create_bucket(Bucket='house'); break\n  except Exception: time.sleep(0.1)\n\
         else: raise SystemExit('no answer')"
    );
    let made = tokio::task::spawn_blocking(move || Command::new(python()).args(["-c", &make_bucket]).status());
    assert!(made.await.expect("no panic").expect("python runs").success());
    let options = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_region", "us-east-1"),
        ("aws_access_key_id", "k"),
        ("aws_secret_access_key", "s"),
    ];
    (server, open_store("s3://house/project", options).expect("an S3 URL"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_race_and_a_refresh_on_s3() {
    let (server, store) = s3().await;
    let mut project = TestProject::new(&[("ann", 10, 10, Some(1.0)), ("bob", 20, 20, None)]);
    project.store = Arc::clone(&store);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");

    let commit = |why: &str| {
        CatalogCommit::new(
            at(0),
            "test",
            why,
            vec![Change::Retire { kind: DefinitionKind::Entity, name: "nothing".to_owned() }],
        )
    };
    let (one, other) = (Catalog::new(Arc::clone(&store)), Catalog::new(Arc::clone(&store)));
    let (mut first, mut second) = (state.clone(), state.clone());
    let (a, b) = tokio::join!(one.commit(&mut first, commit("a")), other.commit(&mut second, commit("b")));
    let lost: Vec<_> = [a, b].into_iter().filter_map(Result::err).collect();
    assert_eq!(lost.iter().map(springhouse_featurestore::Error::kind).collect::<Vec<_>>(), [ErrorKind::Conflict]);
    assert_eq!(one.history().await.expect("readable").len(), 2);

    let view = state.live_views()[0];
    tokio::time::timeout(Duration::from_secs(60), async {
        project.clock.set(at(60));
        let done = project.jobs().refresh(&state, view).await.expect("refreshes");
        assert_eq!(done.rows, 2);
        let disk = DiskTier::open(&project.folder.path().join("disk")).expect("a folder");
        let mark = catch_up(&disk, &project.jobs().log(view), view, &()).await.expect("loads");
        assert_eq!(mark.watermark, Some(at(60)));
    })
    .await
    .expect("within a minute");
    drop(server);
}
