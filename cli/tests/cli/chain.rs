//! The whole chain, command by command.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::Project;

const AT: &str = "--clock 2013-01-15T05:00:00Z";

const SPINE: &str = "--time scheduled_at --spine 'SELECT origin, dest, carrier, tailnum, distance, scheduled_at, \
    arr_delay >= 15 AS late FROM flights WHERE scheduled_at >= TIMESTAMP ''2013-01-08'' AND scheduled_at < TIMESTAMP \
    ''2013-01-09'''";

/// A server; it ends with the test.
struct Server {
    process: Child,
    addresses: Vec<String>,
}

impl Server {
    fn start(project: &Project, line: &str) -> Self {
        Self::started(project, line, "serving")
    }

    /// Once it has said a line with this, which names its addresses.
    fn started(project: &Project, line: &str, says: &str) -> Self {
        let mut process = project.command(line).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(says))).expect("it says so");
        let line = line.expect("text");
        let (_, addresses) = line.split_once(" on ").expect("with its addresses");
        let addresses = addresses.split(" and ").map(str::to_owned).collect();
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, addresses }
    }
}

/// What a URL answers.
fn fetched(url: &str) -> String {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream = TcpStream::connect(host).expect("it listens");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

/// What a command writes on a terminal.
fn on_a_terminal(project: &Project, line: &str) -> String {
    let mut command = std::process::Command::new("script");
    let line = format!("{} --project {} {line}", env!("CARGO_BIN_EXE_springhouse"), project.path("").display());
    crate::said(&command.args(["-qec", &line, "/dev/null"]).output().expect("script, of every Debian")).out
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("still running");
        self.process.wait().expect("ends");
    }
}

fn spine() -> String {
    SPINE.replace("''", "\"")
}

#[test]
fn a_stretch_of_history_is_computed_anew() {
    let project = Project::flights();
    project.ok(&format!("{AT} apply -m first"));
    project.ok(&format!("{AT} refresh"));
    let line = "backfill carrier_landings --from 2013-01-03T00:00:00Z --until 2013-01-12T00:00:00Z --every '2 days'";
    let done = project.json(&format!("{AT} {line} --memory 256MiB"));
    assert_eq!((&done["ranges"], &done["resumed"], &done["commit"]), (&5.into(), &0.into(), &2.into()));
    assert!(done["rows"].as_u64().is_some_and(|rows| rows > 5_000), "{done}");
    assert!(project.ok(&format!("{AT} {line}")).contains("in 5 ranges; commit 3"));
    // The same history gives the same rows: a refresh and an audit find nothing to say.
    assert_eq!(project.json(&format!("{AT} refresh carrier_landings"))[0]["restated"], serde_json::Value::Null);
    let audit = project.json(&format!("{AT} audit arrival_delay {}", spine()));
    assert_eq!((&audit["mismatches"], &audit["columns"]), (&0.into(), &serde_json::json!({})));
    let counted = project.json(&format!("{AT} query 'SELECT count(*) AS n FROM landings'"));
    assert!(counted[0]["n"].as_u64().is_some_and(|rows| rows > 300_000), "{counted}");
    project.fails(&format!("{AT} backfill plane_facts"), &["a static view", "a refresh replaces"]);
    project.fails(&format!("{AT} backfill carrier_landing"), &["no such feature view", "carrier_landings"]);
}

#[test]
fn a_load_draws_a_bar_on_a_terminal_alone() {
    let project = Project::flights();
    // Long enough to be worth a bar.
    let at = "--clock 2013-09-01T05:00:00Z";
    project.ok(&format!("{at} apply -m first"));
    let quiet = project.run(&format!("{at} refresh"));
    assert!(!quiet.err.contains("loading"), "{}", quiet.err);
    std::fs::remove_dir_all(project.path(".springhouse/disk")).expect("the disk tier's folder");
    let said = on_a_terminal(&project, &format!("{at} refresh"));
    assert!(said.contains("loading carrier_landings") && said.contains("rows"), "{said}");
    // A backfill says how far it is, how fast, and how much time is left.
    let said = on_a_terminal(&project, &format!("{at} backfill carrier_landings"));
    for part in ["backfilling carrier_landings", " rows ", "/s ", " left"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn a_schedule_tells_how_its_views_are() {
    let project = Project::flights();
    project.ok(&format!("{AT} apply -m first"));
    project.write("data/weather.parquet", "not Parquet");
    let run = Server::started(&project, &format!("{AT} run --http 127.0.0.1:0"), "metrics on http://");
    let value_of = |page: &str, metric: &str, view: &str| {
        let start = format!("springhouse_{metric}{{view=\"{view}\"");
        let line = page.lines().find(|line| line.starts_with(&start));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
    };
    let done = |page: &str| {
        let refreshed = |view| value_of(page, "refreshes_total", view) >= Some(1.0);
        ["airport_departures", "carrier_landings", "route_landings", "plane_landings", "plane_facts"]
            .into_iter()
            .all(refreshed)
            && value_of(page, "refresh_failures_total", "airport_weather") >= Some(2.0)
    };
    let mut page = String::new();
    for _ in 0..300 {
        page = fetched(&run.addresses[0]);
        if done(&page) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(done(&page) && page.contains("openmetrics-text") && page.trim_end().ends_with("# EOF"), "{page}");
    assert!(value_of(&page, "refreshed_rows_total", "carrier_landings") > Some(10_000.0), "{page}");
    assert!(value_of(&page, "view_lag_seconds", "carrier_landings").is_some_and(|lag| lag < 600.0), "{page}");
    assert_eq!(value_of(&page, "view_lag_seconds", "airport_weather"), None, "{page}");
    assert!(value_of(&page, "refresh_failures_in_a_row", "airport_weather") >= Some(2.0), "{page}");
    assert!(fetched(&run.addresses[0].replace("metrics", "status")).starts_with("HTTP/1.1 404"));
}

#[test]
fn every_command_works_as_it_is_typed() {
    let project = Project::flights();
    project.write(
        "springhouse.toml",
        "store_listen = \"127.0.0.1:0\"\nworker_listen = \"127.0.0.1:0\"\nstore_http_listen = \"127.0.0.1:0\"\n",
    );

    let plan = project.ok("plan");
    assert!(plan.contains("+ contract arrival_delay") && plan.contains("+ feature view airport_weather"), "{plan}");
    let applied = project.ok(&format!("{AT} apply -m 'the first definitions'"));
    assert!(applied.contains("applied as commit 1"), "{applied}");
    assert_eq!(project.ok("apply -m again").trim(), "nothing to change");
    assert_eq!(project.json("apply -m again")["commit"], serde_json::Value::Null);
    let log = project.ok("log");
    assert!(log.contains("commit 1  2013-01-15T05:00:00") && log.contains("tester"), "{log}");
    assert!(log.contains("the first definitions"), "{log}");
    assert_eq!(project.json("log").as_array().map(Vec::len), Some(1));

    let refreshed = project.json(&format!("{AT} refresh"));
    assert_eq!(refreshed.as_array().map(Vec::len), Some(6), "{refreshed}");
    let again = project.ok(&format!("{AT} refresh airport_weather"));
    assert!(again.contains("airport_weather"), "{again}");

    let spine = spine();
    let out = project.path("training.parquet");
    let written = project.json(&format!("{AT} training-set arrival_delay {spine} --out {}", out.display()));
    assert_eq!(written["rows"], 903, "{written}");
    let parts = project.path("parts");
    let line = format!("{AT} training-set arrival_delay {spine} --memory 256MiB --parts 2 --out {}", parts.display());
    assert_eq!(project.json(&line)["rows"], written["rows"]);
    assert!(parts.join("part-00000.parquet").exists() && parts.join("part-00001.parquet").exists());
    let plan = project.ok(&format!("{AT} training-set arrival_delay {spine} --explain"));
    assert!(plan.contains("PointInTimeExec: keys=[tailnum]"), "{plan}");
    let plan = project.ok(&format!("{AT} training-set arrival_delay {spine} --explain --as-served"));
    assert!(plan.contains("as served"), "{plan}");
    project.fails(
        &format!("training-set arrival_delay {spine} --explain --as-served --as-of-event-time"),
        &["--as-served"],
    );
    let audited = project.json(&format!("{AT} audit arrival_delay {spine}"));
    assert_eq!((&audited["rows"], &audited["mismatches"]), (&903.into(), &0.into()), "{audited}");
    let sampled = project.json(&format!("{AT} audit arrival_delay {spine} --sample 0.3"));
    assert!(sampled["rows"].as_u64().is_some_and(|rows| (150..400).contains(&rows)), "{sampled}");
    assert_eq!(&sampled["mismatches"], &0);
    project.fails(&format!("{AT} audit arrival_delay {spine} --sample 30"), &["above 0 and up to 1"]);

    let folder = project.path("package");
    let trained = project.json(&format!(
        "train arrival_delay --training-set {} --label late --out {}",
        out.display(),
        folder.display()
    ));
    let digest = trained["digest"].as_str().expect("a digest").to_owned();
    assert!(digest.starts_with("sha256:"), "{trained}");
    project.ok(&format!("package push {}", folder.display()));
    assert!(project.ok("package list").contains(&digest));
    project.ok(&format!("deploy arrival_delay {} -m first", &digest[..15]));
    assert!(project.ok("log").contains("arrival_delay is answered by"));
    let curve = project.json(&format!("freshness-curve arrival_delay {digest} {spine} --label late --lags 0h,8h"));
    assert_eq!(curve.as_array().map(Vec::len), Some(2), "{curve}");
    let stopped = project.ok("status");
    assert!(stopped.contains("store is not running") && stopped.contains("airport_weather"), "{stopped}");

    serves(&project);

    let run = project.run(&format!("{AT} run --stop-after '2 seconds'"));
    assert!(run.code == 0 && run.err.contains("refreshing views by their REFRESH EVERY"), "{}", run.err);

    let features = std::fs::read_to_string(project.path("features.sql")).expect("readable");
    project.write("features.sql", features.replace("'2 hours', '24 hours'", "'2 hours', '24 hours', '3 days'"));
    let plan = project.ok("plan");
    for reached in
        ["~ feature view airport_departures", "reaches contract arrival_delay", &format!("reaches package {digest}")]
    {
        assert!(plan.contains(reached), "{reached}\n{plan}");
    }
}

fn serves(project: &Project) {
    let server = Server::start(project, &format!("{AT} serve"));
    assert_eq!(server.addresses.len(), 2, "the addresses of both roles");
    project.fails("serve", &["in use by another process", "stop that process"]);
    // Each port carries everything.
    for address in &server.addresses {
        let key = "origin=JFK dest=LAX carrier=DL tailnum=N713TW";
        let found = project.json(&format!("lookup arrival_delay {key} --store http://{address}"));
        assert_eq!(found["airport_weather@status"], "fresh", "{found}");
        let as_of = found["airport_departures@as_of"].as_str().expect("a time");
        assert!(as_of.starts_with("2013-01-15T05:00:00"), "{found}");
        let request = format!("{key} distance=2475 scheduled_at=2013-01-15T05:00:00Z");
        let answer = project.ok(&format!("predict arrival_delay {request} --worker http://{address}"));
        assert!(answer.contains("late_probability = 0.") && answer.contains("springhouse_package"), "{answer}");
        let status = project.json(&format!("status --store http://{address} --worker http://{address}"));
        assert_eq!((&status["serving"], &status["answering"]), (&true.into(), &true.into()), "{status}");
        project.fails(
            &format!("predict arrival_delay {key} --worker http://{address}"),
            &["a request column is missing", "distance"],
        );
        project.fails(&format!("lookup arrival_delay origin --store http://{address}"), &["write name=value"]);
    }
    let taken = &server.addresses[0];
    let push = format!(
        "push departures --from 'SELECT origin, departed_at, dep_delay FROM flights WHERE flight_id < 4' --producer gates \
         --watermark 2013-01-15T05:00:01Z --store http://{taken}"
    );
    let pushed = project.json(&push);
    assert!(pushed["rows"].as_u64().is_some_and(|rows| rows > 0) && pushed["duplicates"] == 0, "{pushed}");
    assert_eq!(pushed["watermark"], "2013-01-15T05:00:01Z", "{pushed}");
    let again = project.json(&push);
    assert!(again["rows"] == 0 && again["duplicates"].as_u64().is_some_and(|batches| batches > 0), "{again}");
    // Others of the same producer are numbered on, and taken.
    let others = project.json(&push.replace("flight_id < 4", "flight_id >= 4 AND flight_id < 7"));
    assert_eq!((&others["rows"], &others["duplicates"]), (&3.into(), &0.into()), "{others}");
    let producers = project.json(&format!("producers departures --store http://{taken}"));
    assert_eq!((&producers[0]["producer"], &producers[0]["sequence"]), (&"gates".into(), &2.into()), "{producers}");
    assert_eq!(producers[0]["watermark"], "2013-01-15T05:00:01Z", "{producers}");
    project
        .fails(&format!("producers departures --retire doors --store http://{taken}"), &["no such producer", "gates"]);
    project
        .fails(&format!("push departurs --from 'SELECT 1' --store http://{taken}"), &["no such source", "departures"]);
    let other = Project::flights();
    other.fails(&format!("serve --role worker --listen {taken}"), &["cannot be listened on", "--listen"]);
}
