//! Spines that a project defines: checked as other queries are, versioned and dropped as other definitions are, and named by
//! those who want training sets.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use springhouse_featurestore::definition::DefinitionKind;
use springhouse_featurestore::training_set::{CommandSpine, TrainingSetCommand, TrainingSets};
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_materializer::wire_queries::WireQueries;
use springhouse_sql::change_plan::{ChangePlan, changes};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{DEFINITIONS, Event, TestProject, at};

const EVENTS: [Event; 2] = [("ann", 10, 10, Some(70.0)), ("bob", 20, 20, Some(2.0))];

const SPINE: &str = "
CREATE SPINE asked EVENT TIME t
  AS SELECT user_name, 'NL' AS country, paid_at AS t, amount > 10 AS label FROM paid ORDER BY t DESC;";

fn with_spine() -> String {
    format!("{DEFINITIONS}{SPINE}")
}

fn command(spine: CommandSpine, time: Option<&str>) -> TrainingSetCommand {
    let time = time.map(str::to_owned);
    TrainingSetCommand { contract: "fraud".to_owned(), spine: Some(spine), time, parts: None, part: None }
}

async fn rows_of(queries: &WireQueries, command: &TrainingSetCommand) -> Result<RecordBatch> {
    let (schema, batches) = queries.training_set(command, None).await?;
    let batches: Vec<RecordBatch> = batches.try_collect().await?;
    Ok(arrow::compute::concat_batches(&schema, &batches).expect("one schema"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defined_spine_makes_the_training_set_of_its_query() {
    let project = TestProject::new(&EVENTS);
    let state = project.apply(&with_spine()).await.expect("valid definitions");
    project.clock.set(at(60));
    project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    let queries = WireQueries::start(project.jobs()).expect("threads");
    let query = "SELECT user_name, 'NL' AS country, paid_at AS t, amount > 10 AS label FROM paid ORDER BY t DESC";
    let written = rows_of(&queries, &command(CommandSpine::Written(query.to_owned()), Some("t"))).await;
    let defined = command(CommandSpine::defined("asked"), None);
    let rows = rows_of(&queries, &defined).await.expect("runs");
    assert_eq!(rows, written.expect("runs"));
    assert_eq!(rows["amount"].as_primitive::<Float64Type>().values(), &[2.0, 70.0]);
    assert_eq!(queries.schema(&defined).await.expect("plans"), rows.schema());

    // By the command line's rules too, and the file says by which definition it was made.
    let spine = SpineSource::given(&state, "asked", None).expect("defined");
    let request = TrainingSetRequest {
        spine,
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: false,
        order: SpineOrder::AsGiven,
    };
    let contract = state.current_contract("fraud").expect("defined");
    let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
    let pinned = state.current_spine("asked").expect("defined").pinned().to_string();
    assert_eq!(set.metadata().get("springhouse.spine_definition"), Some(&pinned));

    // Its own time may be named again, another not.
    rows_of(&queries, &command(CommandSpine::defined("asked"), Some("t"))).await.expect("the same");
    let error = rows_of(&queries, &command(CommandSpine::defined("asked"), Some("as_of"))).await.expect_err("another");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("defined: t"), "{error}");
    let error = rows_of(&queries, &command(CommandSpine::defined("landings"), None)).await.expect_err("unknown");
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("asked"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_of_a_defined_spine_runs_nothing_and_its_columns_are_checked_by_the_contract() {
    let project = TestProject::new(&EVENTS);
    let text = with_spine()
        + "CREATE SPINE failing AS SELECT user_name, 'NL' AS country, paid_at AS as_of FROM paid
             WHERE CAST(user_name AS BIGINT) > 0;
           CREATE SPINE short AS SELECT user_name, paid_at AS as_of FROM paid;
           CREATE SPINE odd AS SELECT user_name, amount AS country, paid_at AS as_of FROM paid;";
    let state = project.apply(&text).await.expect("valid definitions");
    project.clock.set(at(60));
    project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    let queries = WireQueries::start(project.jobs()).expect("threads");
    let failing = command(CommandSpine::defined("failing"), None);
    queries.schema(&failing).await.expect("is planned alone");
    rows_of(&queries, &failing).await.expect_err("is run");
    let error = queries.schema(&command(CommandSpine::defined("short"), None)).await.expect_err("a column is missing");
    assert!(error.to_string().contains("missing: country"), "{error}");
    let error = rows_of(&queries, &command(CommandSpine::defined("odd"), None)).await.expect_err("not a text");
    assert!(error.to_string().contains("country"), "{error}");
}

#[tokio::test]
async fn a_spine_is_planned_repinned_and_dropped_as_other_definitions_are() {
    let project = TestProject::new(&EVENTS);
    let text = with_spine();
    let plan = ChangePlan::new(&project.check(&text).await.expect("valid"), &project.state().await).to_string();
    assert!(plan.contains("+ spine asked (new"), "{plan}");
    let state = project.apply(&text).await.expect("valid definitions");
    assert!(changes(&project.check(&text).await.expect("the same"), &state).is_empty());
    let printed = state.current_spine("asked").expect("defined").text.clone();
    assert!(printed.starts_with("CREATE SPINE asked EVENT TIME t\n  AS SELECT user_name"), "{printed}");
    assert!(changes(&project.check(&format!("{printed};")).await.expect("reads back"), &state).is_empty());

    // What it reads is not dropped under it, and a changed source is told.
    for (drop, used) in [("DROP SOURCE paid;", "spine asked"), ("DROP SPINE asked; DROP SOURCE paid;", "last_payment")]
    {
        let error = project.check(drop).await.expect_err("in use").to_string();
        assert!(error.contains("still used by") && error.contains(used), "{error}");
    }
    let changed = text.replace(" FROM payments", " FROM payments WHERE amount > 0");
    let plan = ChangePlan::new(&project.check(&changed).await.expect("valid"), &state).to_string();
    assert!(plan.contains("spine asked (same text, newer dependencies"), "{plan}");

    let state = project.apply("DROP SPINE asked;").await.expect("nobody uses it");
    assert!(state.current(DefinitionKind::Spine, "asked").is_none());
    assert_eq!(state.current_spine("asked").expect_err("gone").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_faults_of_spines_are_named_with_their_places() {
    let project = TestProject::new(&EVENTS);
    let faults = [
        ("FROM paid ORDER", "FROM payd ORDER", "there is no table or source 'payd'"),
        ("amount > 10 AS label", "amont > 10 AS label", "did you mean 'amount'?"),
        ("EVENT TIME t\n", "EVENT TIME label\n", "the time column 'label' is BOOLEAN, not a TIMESTAMP"),
        ("EVENT TIME t\n", "EVENT TIME tt\n", "does not yield the time column 'tt'"),
        ("EVENT TIME t\n", "\n", "EVENT TIME column before AS"),
        ("EVENT TIME t\n", "EVENT TIME t AT TIME ZONE 'Mars/Olympus'\n", "there is no time zone 'Mars/Olympus'"),
        ("paid_at AS t", "CAST(paid_at AS TIMESTAMP) AS t", "the time column 't' has no time zone"),
        ("amount > 10 AS label", "random() AS label", "random() gives another value"),
        ("amount > 10 AS label", "amount AS \"a@b\"", "has '@' in its name"),
        ("CREATE SPINE asked EVENT", "CREATE SPINE asked REFRESH EVERY '1 day' EVENT", "expected EVENT TIME or AS"),
    ];
    project.check_faults(&with_spine(), &faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_a_named_zone_are_those_of_its_clocks() {
    let project = TestProject::new(&EVENTS);
    let text = DEFINITIONS.to_owned()
        + "CREATE SPINE local EVENT TIME t AT TIME ZONE 'Europe/Berlin'
             AS SELECT 'ann' AS user_name, 'NL' AS country, TIMESTAMP '1970-01-01 01:00:15' AS t;";
    let state = project.apply(&text).await.expect("valid definitions");
    project.clock.set(at(60));
    project.jobs().refresh(&state, state.live_views()[0]).await.expect("refreshes");
    let queries = WireQueries::start(project.jobs()).expect("threads");
    let rows = rows_of(&queries, &command(CommandSpine::defined("local"), None)).await.expect("runs");
    assert_eq!(rows["t"].as_primitive::<TimestampMicrosecondType>().values(), &[15_000_000]);
    assert_eq!(rows["amount"].as_primitive::<Float64Type>().values(), &[70.0]);
}
