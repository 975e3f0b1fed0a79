//! Queries that come over the wire: whose text is run, and how many places there are for them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use futures::{StreamExt, TryStreamExt, stream};
use springhouse_featurestore::training_set::{CommandSpine, TrainingSetCommand, TrainingSets};
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_materializer::wire_queries::{PLACES, WireQueries};
use springhouse_serving::flight::Command as FlightCommand;
use springhouse_serving::security::Scope;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::{Running, token, with_tokens};
use crate::project::DEFINITIONS;
use crate::wire::deployed;

fn spine_command(spine: Option<&str>) -> TrainingSetCommand {
    TrainingSetCommand {
        contract: "fraud".to_owned(),
        spine: spine.map(|text| CommandSpine::Written(text.to_owned())),
        time: Some("t".to_owned()),
        parts: None,
        part: None,
    }
}

/// What the engineer of the foreign clients asks for, defined for those who read.
pub(super) const DEFINED_SPINE: &str = "
CREATE SPINE asked EVENT TIME t
  AS SELECT 'ann' AS user_name, 'NL' AS country, TIMESTAMP '1970-01-01 00:00:10' AT TIME ZONE 'UTC' AS t
     UNION ALL SELECT 'ann', 'NL', TIMESTAMP '1970-01-01 00:00:09' AT TIME ZONE 'UTC' ORDER BY t DESC;";

const SPINE: &str = "SELECT user_name, 'NL' AS country, paid_at AS t FROM payments";

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_has_training_sets_of_defined_spines_and_runs_no_text() {
    let (project, _) = deployed().await;
    project.apply(&format!("{DEFINITIONS}{DEFINED_SPINE}")).await.expect("a spine");
    let folder = project.folder.path().to_owned();
    let reader = token(&folder, "reader", &[Scope::Read]);
    let shown = format!("Bearer {}", std::fs::read_to_string(reader).expect("there").trim());
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    let mut client = FlightServiceClient::new(channel.connect_lazy());
    let asked = |spine: CommandSpine| {
        let command = TrainingSetCommand { spine: Some(spine), time: None, ..spine_command(None) };
        let mut request = tonic::Request::new(Ticket::new(FlightCommand::TrainingSet(command).to_bytes()));
        request.metadata_mut().insert("authorization", shown.parse().expect("letters"));
        request
    };
    let answer = client.do_get(asked(CommandSpine::defined("asked"))).await.expect("allowed").into_inner();
    let batches = FlightRecordBatchStream::new_from_flight_data(answer.map_err(Into::into));
    let batches: Vec<RecordBatch> = batches.try_collect().await.expect("whole");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    // A text is never taken for a name, whatever it says.
    for text in [SPINE, "payments.parquet", "asked", "\"asked\""] {
        let refused = client.do_get(asked(CommandSpine::Written(text.to_owned()))).await;
        let status = refused.map(|_| ()).expect_err("an engineer's");
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{text}: {status:?}");
        assert!(status.message().contains("query"), "{text}: {status:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_the_wire_have_places_and_schemas_run_nothing() {
    let (project, _) = deployed().await;
    let queries = WireQueries::start(project.jobs()).expect("threads");
    let fails = format!("{SPINE} WHERE CAST(user_name AS BIGINT) > 0");
    queries.schema(&spine_command(Some(&fails))).await.expect("is planned alone");
    queries.training_set(&spine_command(Some(&fails)), None).await.map(|_| ()).expect_err("is run");
    let error = queries.schema(&spine_command(None)).await.expect_err("no spine").to_string();
    assert!(error.contains("DoExchange"), "{error}");

    let mut open = Vec::new();
    let command = spine_command(Some(SPINE));
    while open.len() < PLACES {
        // The place of the query that failed may be given back a moment later.
        match queries.training_set(&command, None).await {
            Ok(set) => open.push(set),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
        }
    }
    // All of them are whole, and give their places back.
    for (schema, batches) in open {
        let batches: Vec<RecordBatch> = batches.try_collect().await.expect("whole");
        assert!(batches.iter().all(|batch| batch.schema() == schema));
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Spines that never end hold their places until they are given up.
    let waiting = async || {
        let spine = (spine_batch().schema(), stream::pending::<Result<RecordBatch>>().boxed());
        queries.training_set(&spine_command(None), Some(spine)).await.map(|_| ())
    };
    {
        let mut held: Vec<_> = (0..PLACES).map(|_| Box::pin(waiting())).collect();
        let all = futures::future::select_all(held.iter_mut());
        assert!(tokio::time::timeout(Duration::from_secs(2), all).await.is_err(), "each waits in its place");
        let error = queries.training_set(&command, None).await.map(|_| ()).expect_err("no place");
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("try again"), "{error:?}");
    }
    let spine = (spine_batch().schema(), stream::iter([Ok(spine_batch())]).boxed());
    let mut spine = Some(spine);
    for _ in 0..100 {
        let Some(given) = spine.take() else { break };
        match queries.training_set(&spine_command(None), Some(given)).await {
            Ok((_, batches)) => {
                let batches: Vec<RecordBatch> = batches.try_collect().await.expect("whole");
                assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
                return;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                spine = Some((spine_batch().schema(), stream::iter([Ok(spine_batch())]).boxed()));
            }
        }
    }
    panic!("a place that was given up is not free");
}

/// Asks for a training set with a spine that never ends, as whoever has this token.
async fn endless_spine(address: &str, token: &Path) -> Result<(), tonic::Status> {
    let command = br#"{"training_set": {"contract": "fraud", "time": "t"}}"#;
    let mut first = crate::bounds::messages(&spine_batch(), None).into_iter().next().expect("a schema");
    first.flight_descriptor = Some(FlightDescriptor::new_cmd(command.as_slice()));
    let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    let mut request = tonic::Request::new(stream::iter([first]).chain(stream::pending::<FlightData>()));
    let token = std::fs::read_to_string(token).expect("there");
    let token = format!("Bearer {}", token.trim()).parse().expect("ascii");
    request.metadata_mut().insert("authorization", token);
    FlightServiceClient::new(channel).do_exchange(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_never_takes_the_places_of_all_others() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let (ann, bob) = (token(&folder, "ann", &[Scope::Read]), token(&folder, "bob", &[Scope::Read]));
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let waits = async |token: &Path| {
        tokio::time::timeout(Duration::from_millis(700), endless_spine(&server.address, token)).await
    };
    let held: Vec<JoinHandle<_>> = (0..PLACES / 2)
        .map(|_| {
            let (address, ann) = (server.address.clone(), ann.clone());
            tokio::spawn(async move { endless_spine(&address, &ann).await })
        })
        .collect();
    let mut refused = None;
    for _ in 0..20 {
        // The others may not have come yet.
        if let Ok(answered) = waits(&ann).await {
            refused = Some(answered.expect_err("the spine does not end"));
            break;
        }
    }
    let refused = refused.expect("it has half of the places");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("caller: ann") && refused.message().contains("share: 4"), "{refused}");
    assert!(waits(&bob).await.is_err(), "another is not refused: it waits for its spine");
    held.iter().for_each(JoinHandle::abort);
    for _ in 0..50 {
        // Places are given back when who held them has gone.
        if waits(&ann).await.is_err() {
            server.stop().await;
            return;
        }
    }
    panic!("places that were given up are not free");
}

fn spine_batch() -> RecordBatch {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![20_000_000]).with_timezone("UTC"));
    RecordBatch::try_from_iter([("user_name", text("ann")), ("country", text("NL")), ("t", times)]).expect("columns")
}
