//! The flights example against DuckDB: all features of all 336,776 flights, with SQL that DuckDB's side wrote.

use std::path::PathBuf;

use crate::wire::run_client;

/// The binary, which `make test` builds beside the tests.
pub fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("a test binary");
    let binary = tests.parent().and_then(|deps| deps.parent()).expect("a target folder").join("springhouse");
    assert!(binary.exists(), "{} is missing: run the tests with `make test`, which builds it", binary.display());
    binary
}

#[tokio::test]
async fn every_feature_of_every_flight_is_what_duckdb_finds() {
    let folder = tempfile::tempdir().expect("a folder");
    let example = format!("{}/../sql/flights", env!("CARGO_MANIFEST_DIR"));
    let arguments = [binary().to_string_lossy().into_owned(), example, folder.path().to_string_lossy().into_owned()];
    run_client("check_duckdb.py", arguments.to_vec()).await;
}
