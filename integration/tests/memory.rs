//! Promise 5: a training set that is larger than the memory given to queries still runs, and has the same rows.

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use springhouse_featurestore::time::Span;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use crate::project::{DEFINITIONS, Event, TestProject, at};
use crate::seeded::Seeded;

/// Distinct events; the spine is their square.
const EVENTS: u32 = 1_200;

#[tokio::test]
async fn a_training_set_larger_than_its_memory_has_the_same_rows() {
    let mut random = Seeded::new(5);
    let users = ["ann", "bob", "cid", "dan", "eve"];
    let events: Vec<Event> = (0..EVENTS)
        .map(|index| (random.pick(&users), i64::from(index), i64::from(index), Some(f64::from(index))))
        .collect();
    let project = TestProject::new(&events);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    project.clock.set(at(2000));
    let view = state.live_views()[0].clone();
    project.jobs().refresh(&state, &view).await.expect("refreshes");
    let contract = state.current_contract("fraud").expect("defined");
    let mut results: Vec<Vec<RecordBatch>> = Vec::new();
    for megabytes in [1024, 48] {
        let request = TrainingSetRequest {
            spine: SpineSource {
                from: "SELECT a.user_name, 'NL' AS country, b.paid_at AS as_of, a.amount * b.amount AS label \
                       FROM payments a CROSS JOIN payments b"
                    .to_owned(),
                time: "as_of".to_owned(),
                lag: Span::ZERO,
            },
            rows: RowsFrom::Committed,
            as_of: AsOf::Known,
            with_features: true,
            order: SpineOrder::ByTime,
        };
        let jobs = project.jobs_within(megabytes << 20);
        let set = jobs.training_set(&state, contract, &request).await.expect("plans");
        results.push(set.execute().try_collect().await.expect("runs"));
    }
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    let bytes: usize = results[0].iter().map(RecordBatch::get_array_memory_size).sum();
    assert!(bytes > 3 * (48 << 20), "the result of {bytes} bytes would fit");
    assert_eq!(rows(&results[0]), (EVENTS * EVENTS) as usize);
    assert!(results[0] == results[1], "the rows differ");
}
