//! Features that are lists: pushed by another system or made of events, they come back the same from memory, disk, Parquet
//! and training sets, and inputs take numbers out of them.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float32Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Float32Type, Float64Type};
use futures::TryStreamExt;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{TestProject, at};
use crate::push::{Server, closed, refresh_all};

const DEFINITIONS: &str = "
CREATE ENTITY user_account KEY (user_name VARCHAR);
CREATE FEATURE VIEW taste ENTITY user_account EVENT TIME seen_at REFRESH EVERY '1 hour'
  AS PUSHED (user_name VARCHAR, seen_at TIMESTAMP, embedding FLOAT[], shops VARCHAR[]);
CREATE CONTRACT limits TIER interactive REQUEST (user_name VARCHAR, shop VARCHAR)
  FEATURES (taste FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(taste.embedding[2], -1) AS second, coalesce(array_length(taste.embedding), 0) AS length,
          coalesce(array_has(taste.shops, shop), false) AS usual)
  OUTPUT (limit FLOAT);";

type Taste = (&'static str, i64, Option<&'static [Option<f32>]>, Option<&'static [&'static str]>);

/// Ann's is replaced, bob's has nulls, cid has seen nothing and has no shops.
const TASTES: [Taste; 4] = [
    ("ann", 10, Some(&[Some(9.0)]), None),
    ("ann", 20, Some(&[Some(0.5), Some(-1.5), Some(f32::NAN)]), Some(&["book", "", "tea"])),
    ("bob", 30, Some(&[None, Some(2.5)]), Some(&["tea"])),
    ("cid", 40, None, Some(&[])),
];

fn tastes() -> RecordBatch {
    let (mut embeddings, mut shops) = (ListBuilder::new(Float32Builder::new()), ListBuilder::new(StringBuilder::new()));
    for (_, _, embedding, of) in TASTES {
        embeddings.append_option(embedding.map(<[Option<f32>]>::to_vec));
        shops.append_option(of.map(|of| of.iter().map(|shop| Some(*shop))));
    }
    let users: ArrayRef = Arc::new(StringArray::from_iter_values(TASTES.iter().map(|of| of.0)));
    let times = TASTES.iter().map(|of| of.1 * 1_000_000);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"));
    RecordBatch::try_from_iter([
        ("user_name", users),
        ("seen_at", times),
        ("embedding", Arc::new(embeddings.finish()) as ArrayRef),
        ("shops", Arc::new(shops.finish()) as ArrayRef),
    ])
    .expect("four columns")
}

/// Ann, bob, cid and nobody, as of the last of the tastes.
fn check(answer: &RecordBatch, place: &str) {
    let bits =
        |values: &[Option<f32>]| -> Vec<Option<u32>> { values.iter().map(|value| value.map(f32::to_bits)).collect() };
    for (row, expected) in [Some(1), Some(2), Some(3), None].into_iter().enumerate() {
        let embeddings = answer["taste.embedding"].as_list::<i32>();
        let found: Option<Vec<Option<f32>>> =
            embeddings.is_valid(row).then(|| embeddings.value(row).as_primitive::<Float32Type>().iter().collect());
        let wanted = expected.and_then(|index: usize| TASTES[index].2);
        assert_eq!(found.as_deref().map(bits), wanted.map(bits), "{place}, row {row}");
        let shops = answer["taste.shops"].as_list::<i32>();
        let found: Option<Vec<Option<String>>> = shops
            .is_valid(row)
            .then(|| shops.value(row).as_string::<i32>().iter().map(|shop| shop.map(str::to_owned)).collect());
        let wanted = expected.and_then(|index: usize| TASTES[index].3);
        let wanted = wanted.map(|shops| shops.iter().map(|shop| Some((*shop).to_owned())).collect());
        assert_eq!(found, wanted, "{place}, row {row}");
    }
}

#[tokio::test]
async fn pushed_lists_come_back_from_every_place_and_inputs_take_numbers_out_of_them() {
    let project = TestProject::new(&[]);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    project.clock.set(at(100));
    refresh_all(&project, &state).await;
    let users = [Some("ann"), Some("bob"), Some("cid"), Some("nobody")];
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    let header = PushHeader { watermark: Some(at(60)), ..PushHeader::default() };
    server.pushes.push("taste", tastes(), header).await.expect("taken");
    check(&server.lookup(&users), "from disk");
    check(&server.lookup(&users), "from memory");
    server.pushes.flush().await.expect("flushes");
    server.features.follow(&()).await.expect("follows");
    check(&server.lookup(&users), "after the flush");
    drop(server);
    let disk = project.folder.path().join("disk");
    closed(&disk).await;
    std::fs::remove_dir_all(&disk).expect("removable");
    let server = Server::start_on(&project, &project.store, 1 << 20).await;
    check(&server.lookup(&users), "from Parquet alone");

    let from = "SELECT user_name, arrow_cast(50000000, 'Timestamp(us, \"UTC\")') AS asked_at, 'tea' AS shop
        FROM (VALUES ('ann'), ('bob'), ('cid'), ('nobody')) AS asked (user_name)";
    let contract = state.current_contract("limits").expect("defined");
    let request = TrainingSetRequest {
        spine: SpineSource { from: from.to_owned(), time: "asked_at".to_owned(), lag: Span::ZERO },
        rows: RowsFrom::Committed,
        as_of: AsOf::Known,
        with_features: true,
        order: SpineOrder::AsGiven,
    };
    let set = project.jobs().training_set(&state, contract, &request).await.expect("plans");
    let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
    let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
    check(&all, "a training set");
    let second: Vec<Option<f64>> = match all["second"].as_primitive_opt::<Float64Type>() {
        Some(values) => values.iter().collect(),
        None => all["second"].as_primitive::<Float32Type>().iter().map(|value| value.map(f64::from)).collect(),
    };
    assert_eq!(second, [-1.5, 2.5, -1.0, -1.0].map(Some));
    let length = arrow::compute::cast(&all["length"], &arrow::datatypes::DataType::Float64).expect("a number");
    assert_eq!(length.as_primitive::<Float64Type>().values(), &[3.0, 2.0, 0.0, 0.0]);
    let usual: Vec<bool> = all["usual"].as_boolean().iter().flatten().collect();
    assert_eq!(usual, [true, true, false, false]);
    // A spine without rows has a training set without rows.
    let spine = SpineSource { from: format!("{from} WHERE user_name = 'zed'"), ..request.spine.clone() };
    let set = project.jobs().training_set(&state, contract, &TrainingSetRequest { spine, ..request }).await;
    let batches: Vec<_> = set.expect("plans").execute().try_collect().await.expect("runs");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
}

#[tokio::test]
async fn a_list_where_there_can_be_none_is_named() {
    let project = TestProject::new(&[]);
    let faults = [
        ("KEY (user_name VARCHAR)", "KEY (user_name VARCHAR[])", "cannot be VARCHAR[]"),
        (
            "REQUEST (user_name VARCHAR, shop VARCHAR)",
            "REQUEST (user_name VARCHAR, shop VARCHAR[])",
            "cannot be VARCHAR[]",
        ),
        ("OUTPUT (limit FLOAT)", "OUTPUT (limit FLOAT[])", "cannot be FLOAT[]"),
        ("coalesce(taste.embedding[2], -1) AS second", "taste.embedding AS second", "array_length(list)"),
        ("embedding FLOAT[]", "embedding FLOAT[][]", "is not a type"),
    ];
    project.check_faults(DEFINITIONS, &faults).await;
}
