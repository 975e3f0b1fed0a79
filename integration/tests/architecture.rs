//! The house's arrows point one way, and confined crates stay in their folders.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each crate of ours may depend on, among ours.
const ARROWS: [(&str, &[&str]); 7] = [
    ("featurestore", &[]),
    ("sql", &["featurestore"]),
    ("materializer", &["featurestore", "sql"]),
    ("serving", &["featurestore", "sql"]),
    ("cli", &["featurestore", "sql", "materializer", "serving"]),
    ("benches", &["featurestore", "sql", "materializer", "serving", "cli"]),
    ("integration", &["featurestore", "sql", "materializer", "serving", "cli"]),
];

/// Third-party crates and the only folders that may depend on them directly.
const CONFINED: [(&str, &[&str]); 12] = [
    ("moka", &["featurestore"]),
    ("rocksdb", &["featurestore"]),
    ("parquet", &["featurestore"]),
    ("object_store", &["featurestore"]),
    ("datafusion", &["sql"]),
    ("arrow-flight", &["serving"]),
    ("tonic", &["serving"]),
    ("candle-core", &["serving"]),
    ("axum", &["serving"]),
    ("prometheus-client", &["serving"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
];

/// Test and benchmark folders speak to the system from outside, with whatever that takes.
const OUTSIDE: [&str; 2] = ["benches", "integration"];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--no-deps"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// Direct dependencies (not those of tests) by folder.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    packages
        .map(|package| {
            let folder = package["name"].as_str().expect("name").trim_start_matches("springhouse-").to_owned();
            let direct = package["dependencies"].as_array().expect("dependencies").iter();
            let names = direct
                .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
                .map(|dependency| dependency["name"].as_str().expect("name").to_owned());
            (folder, names.collect())
        })
        .collect()
}

#[test]
fn the_arrows_of_the_house_point_one_way() {
    let found = dependencies();
    assert_eq!(found.len(), ARROWS.len(), "a folder is missing or new: {:?}", found.keys());
    for (folder, allowed) in ARROWS {
        for name in found[folder].iter().filter_map(|name| name.strip_prefix("springhouse-")) {
            assert!(allowed.contains(&name), "{folder} must not depend on {name}");
        }
    }
}

#[test]
fn confined_crates_stay_in_their_folders() {
    for (folder, names) in dependencies() {
        for (name, allowed) in CONFINED {
            let confined =
                !names.contains(name) || allowed.contains(&folder.as_str()) || OUTSIDE.contains(&folder.as_str());
            assert!(confined, "{folder} must not depend on {name}: only {allowed:?} may");
        }
    }
}
