//! What is said when something is wrong: the place, the value and the remedy; and the old state stays.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use springhouse_featurestore::parquet_file::ParquetFileWriter;

use crate::Project;

const AT: &str = "--clock 2013-01-03T05:00:00Z";

fn applied() -> Project {
    let project = Project::flights();
    project.ok(&format!("{AT} apply -m first"));
    project
}

/// The weather's file, with a temperature and a time of these types.
fn weather(project: &Project, temperature: Option<ArrayRef>, observed: ArrayRef) {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["JFK"]));
    let number = || -> ArrayRef { Arc::new(arrow::array::Float64Array::from(vec![1.0])) };
    let mut columns = vec![("origin", text), ("observed_at", observed)];
    columns.extend(temperature.map(|temperature| ("temp", temperature)));
    columns.extend(["wind_speed", "precip", "visib"].map(|name| (name, number())));
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one row");
    let path = project.path("data/weather.parquet");
    std::fs::remove_file(&path).expect("a link");
    let mut file = ParquetFileWriter::create(&path, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
}

fn utc() -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(vec![1_357_000_000_000_000]).with_timezone("UTC"))
}

#[test]
fn a_missing_folder_or_no_definitions_are_said() {
    let project = Project::flights();
    Project::empty().fails("plan", &["no definitions", "--project"]);
    let gone = Project::empty();
    std::fs::remove_dir(gone.path("")).expect("empty");
    gone.fails("plan", &["no such project folder", gone.path("").to_string_lossy().trim_end_matches('/')]);
    project.write("springhouse.toml", "cache_byte = 1\n");
    project.fails("plan", &["springhouse.toml", "cache_byte", "docs/settings.md"]);
}

#[test]
fn names_that_do_not_exist_are_answered_with_those_that_do() {
    let project = applied();
    project.fails("refresh airport_wether", &["airport_wether", "airport_weather"]);
    project.fails("training-set arrival --spine 'SELECT 1' --out x.parquet", &["arrival", "arrival_delay"]);
    project.fails("deploy arrival_delay sha256:12 -m x", &["sha256:12", "package"]);
    project.fails("--clock yesterday plan", &["yesterday", "2013-12-01T05:00:00Z"]);
    project.fails(
        "lookup arrival_delay origin=JFK --store http://127.0.0.1:1",
        &["cannot be reached", "springhouse serve"],
    );
}

#[test]
fn faults_of_definitions_are_all_shown_at_once_with_their_lines() {
    let project = Project::empty();
    let text = "CREATE ENTITY plane KEY (tailnum VARCHAR);\n\
        CREATE FEATURE VIEW a ENTITY plain REFRESH EVERY '1 hour' AS SELECT tailnum FROM planes;\n\
        CREATE FEATURE VIEW b ENTITY plane REFRESH EVERY '0 hours' AS SELECT tailnum FROM planes;\n";
    project.write("views.sql", text);
    let expected =
        ["views.sql:2:", "views.sql:3:", "no entity 'plain'", "there are: plane", "^", "nothing was applied"];
    project.fails("plan", &expected);
}

#[test]
fn a_refresh_over_damaged_files_names_file_and_column_and_the_old_state_stays() {
    let project = applied();
    project.ok(&format!("{AT} refresh airport_weather"));
    let watermarks = || {
        let status = project.json(&format!("{AT} status"));
        let views = status["features"]["views"].as_array().expect("views").clone();
        views.into_iter().map(|view| view["watermark"].clone()).collect::<Vec<_>>()
    };
    let before = watermarks();
    let file = "data/weather.parquet";
    let refresh = "--clock 2013-01-03T09:00:00Z refresh airport_weather";

    std::fs::remove_file(project.path(file)).expect("a link");
    project.fails(refresh, &["airport_weather", "weather.parquet"]);
    project.write(file, "this is not Parquet, and long enough to have a footer");
    project.fails(refresh, &["airport_weather", "weather.parquet", "Parquet"]);
    weather(&project, None, utc());
    project.fails(refresh, &["weather.parquet", "temp"]);
    weather(&project, Some(Arc::new(StringArray::from(vec!["warm"]))), utc());
    project.fails(refresh, &["weather.parquet", "temp"]);
    let naive: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1_357_000_000_000_000]));
    weather(&project, Some(Arc::new(arrow::array::Float64Array::from(vec![1.0]))), naive);
    project.fails(refresh, &["weather.parquet", "observed_at"]);

    assert_eq!(before, watermarks());
}

#[test]
fn a_defined_spine_is_named_and_of_a_word_that_names_none_the_other_forms_are_told() {
    let project = applied();
    project.ok(&format!("{AT} refresh"));
    let query = "SELECT origin, dest, carrier, tailnum, distance, scheduled_at, arr_delay >= 15 AS late FROM flights \
        WHERE scheduled_at >= TIMESTAMP '2013-01-02' AND scheduled_at < TIMESTAMP '2013-01-03'";
    project.write("spines.sql", format!("CREATE SPINE of_a_day EVENT TIME scheduled_at AS {query};\n"));
    assert!(project.ok(&format!("{AT} plan")).contains("+ spine of_a_day (new"));
    project.ok(&format!("{AT} apply -m spine"));
    assert!(project.ok("log").contains("of_a_day"));
    let out = project.path("out.parquet");
    let line = format!("{AT} training-set arrival_delay --out {} --spine", out.display());
    let written = project.json(&format!("{line} '{}' --time scheduled_at", query.replace('\'', "\"")));
    assert!(written["rows"].as_u64().is_some_and(|rows| rows > 100), "{written}");
    assert_eq!(project.json(&format!("{line} of_a_day")), written);
    let audited = project.json(&format!("{AT} audit arrival_delay --spine of_a_day"));
    assert_eq!((&audited["rows"], &audited["mismatches"]), (&written["rows"], &0.into()), "{audited}");
    project.fails(&format!("{line} of_a_day --time t"), &["another column by its definition", "scheduled_at"]);
    project.fails(&format!("{line} of_a_week"), &["no such spine", "of_a_day", "./name"]);
    project.fails(&format!("{line} ./of_a_week"), &["the file does not exist"]);
}

#[test]
fn a_spine_without_the_contracts_columns_says_which() {
    let project = applied();
    project.ok(&format!("{AT} refresh"));
    let line = "training-set arrival_delay --time t --out x.parquet --spine";
    project.fails(&format!("{line} 'SELECT origin FROM flights'"), &["t"]);
    project.fails(&format!("{line} 'SELECT origin, departed_at AS t FROM flights'"), &["dest"]);
    project.fails(&format!("{line} nowhere.csv"), &["nowhere.csv"]);
    let late = "SELECT origin, dest, carrier, tailnum, distance, scheduled_at AS t, scheduled_at FROM flights";
    project.fails(&format!("{line} '{late}'"), &["beyond what a view has processed", "springhouse refresh"]);
    assert!(!project.path("x.parquet").exists(), "no half a file");
    // One that fails while it runs leaves nothing under the name either.
    let out = project.path("out.parquet");
    let failing = "SELECT origin, dest, carrier, tailnum, distance, scheduled_at AS t, scheduled_at, \
        1 / (distance - distance) AS bad FROM flights WHERE scheduled_at < TIMESTAMP \"2013-01-03\"";
    let line = format!("training-set arrival_delay --time t --out {} --spine '{failing}'", out.display());
    project.fails(&line, &["ivide by zero"]);
    assert!(!out.exists(), "half a file");
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let batch = RecordBatch::try_from_iter([("a", numbers)]).expect("a column");
    let path = project.path("other.parquet");
    let mut file = ParquetFileWriter::create(&path, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
    let out = project.path("package");
    let train = format!("train arrival_delay --training-set {} --label late --out {}", path.display(), out.display());
    project.fails(&train, &["made for another contract version", "springhouse training-set"]);
}

#[test]
fn a_damaged_catalog_commit_is_named() {
    let project = applied();
    let folder = project.path(".springhouse/store/catalog");
    let commit = std::fs::read_dir(folder).expect("the catalog").next().expect("a commit").expect("readable").path();
    let text = std::fs::read(&commit).expect("readable");
    std::fs::write(&commit, &text[..text.len() / 2]).expect("writable");
    let name = commit.file_name().expect("a file").to_string_lossy().into_owned();
    project.fails("log", &["damaged", &name]);
    project.fails("plan", &["damaged", &name]);
}

#[test]
fn a_damaged_disk_tier_is_named_and_rebuilt_once_it_is_deleted() {
    let project = applied();
    project.ok(&format!("{AT} refresh airport_weather plane_facts"));
    let folder = project.path(".springhouse/disk");
    for entry in std::fs::read_dir(&folder).expect("the disk tier") {
        let path = entry.expect("readable").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("MANIFEST")) {
            std::fs::write(path, "garbage").expect("writable");
        }
    }
    project.fails("serve --stop-after '1 second'", &["disk tier", "delete the folder", &folder.display().to_string()]);
    std::fs::remove_dir_all(&folder).expect("removable");
    project.ok("serve --listen 127.0.0.1:0 --stop-after '1 second'");
    assert!(folder.join("CURRENT").exists(), "rebuilt");
}

#[test]
fn two_appliers_at_once_lose_nothing() {
    let project = Project::flights();
    let other = Project::empty();
    other.write("gates.sql", "CREATE ENTITY gate KEY (gate VARCHAR);\n");
    let store = project.path(".springhouse/store");
    other.write("springhouse.toml", format!("store = \"{}\"\n", store.display()));
    let start =
        |project: &Project, line: &str| project.command(line).stdout(Stdio::null()).spawn().expect("the binary runs");
    for mut run in [start(&project, "apply -m flights"), start(&other, "apply -m gates")] {
        assert!(run.wait().expect("ends").success());
    }
    // The other folder does not have the flights' files, and needs none of them.
    other.write("gates.sql", "CREATE ENTITY gate KEY (gate VARCHAR);\nCREATE ENTITY stand KEY (stand VARCHAR);\n");
    other.ok("apply -m stands");
    other.write("late.sql", "CREATE SOURCE late STATIC AS SELECT tailnum FROM flights;\n");
    other.fails("apply -m late", &["data/flights.parquet", "does not exist"]);
    let log = project.ok("log");
    assert!(log.contains("commit 1") && log.contains("commit 2"), "{log}");
    assert!(log.contains("+ entity gate") && log.contains("+ contract arrival_delay"), "{log}");
}

#[test]
fn text_that_nests_too_deeply_is_refused_with_its_place_and_hundreds_of_terms_are_not() {
    let project = applied();
    let features = std::fs::read_to_string(project.path("features.sql")).expect("readable");
    let with_terms = |terms: usize| {
        let terms: Vec<String> = (0..terms).map(|term| format!("dep_delay = {term}")).collect();
        let view = format!(
            "CREATE FEATURE VIEW chosen ENTITY airport EVENT TIME departed_at REFRESH EVERY '1 hour'\n  \
             AS SELECT origin, departed_at, dep_delay FROM departures WHERE {};\n",
            terms.join(" OR ")
        );
        project.write("features.sql", format!("{features}\n{view}"));
    };
    with_terms(300);
    assert!(project.ok(&format!("{AT} plan")).contains("chosen"));
    with_terms(4_000);
    project.fails(&format!("{AT} plan"), &["operators one in another", "--> features.sql:", "help: write column IN"]);
    project.write("features.sql", &features);
    let sum = vec!["1"; 40_000].join("+");
    project.fails(
        &format!("{AT} training-set arrival_delay --time t --spine 'SELECT {sum}' --out x.parquet"),
        &["operators one in another", "line: 1"],
    );
    project.fails(&format!("{AT} query 'SELECT {sum}'"), &["operators one in another", "line: 1"]);
}
