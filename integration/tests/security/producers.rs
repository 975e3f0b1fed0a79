//! Whose the name of a producer is, and who changes that.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use springhouse_featurestore::push::PushHeader;
use springhouse_featurestore::{ErrorKind, Result};
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::security::{Access, Scope, Security};

use super::{Running, token, with_tokens, without_log};
use crate::wire::deployed;

/// Pushes an event as a producer's batch; whether it was taken, and not passed over.
async fn push_as(store: &RemoteFeatures, producer: &str, sequence: u64) -> Result<bool> {
    let events = crate::push::batch(&[("ann", 50, 50, Some(1.0))]);
    let mut pusher = store.pusher("paid", events.schema()).await?;
    let header = PushHeader { producer: Some(producer.to_owned()), sequence: Some(sequence), watermark: None };
    pusher.send(&events, &header).await?;
    pusher.ack().await.map(|ack| !ack.duplicate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producers_name_belongs_to_who_used_it_and_its_sequences_can_be_given_back() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let [ann, bob, op] = [("ann", Scope::Push), ("bob", Scope::Push), ("op", Scope::Operate)]
        .map(|(caller, scope)| token(&folder, caller, &[scope]));
    let as_caller = |server: &Running, token: &PathBuf| {
        let access = Access { token_file: Some(token.clone()), ..Access::default() };
        RemoteFeatures::with_access(&format!("http://{}", server.address), access).expect("an address")
    };
    let server = Running::start(&project, with_tokens(&folder), None).await;
    assert!(push_as(&as_caller(&server, &ann), "till", 1).await.expect("nobody's yet"));
    let burn = push_as(&as_caller(&server, &bob), "till", 1_000_000).await.expect_err("another's");
    assert_eq!(burn.kind(), ErrorKind::Forbidden, "{burn:?}");
    let said = burn.chain();
    assert!(said.contains("belongs to: ann") && said.contains("--hand-over till --to bob"), "{said}");
    assert!(push_as(&as_caller(&server, &bob), "other till", 1).await.expect("a name of its own"));
    assert!(push_as(&as_caller(&server, &ann), "till", 2).await.expect("nothing was used up"));
    as_caller(&server, &op).act("flush", "").await.expect("operates");
    server.stop().await;

    // It is known after a restart, and on another machine that has the store alone.
    without_log(&folder).await;
    let server = Running::start(&project, with_tokens(&folder), None).await;
    push_as(&as_caller(&server, &bob), "till", 9).await.expect_err("another's still");
    let change = async |store: RemoteFeatures, change: &str| {
        let body = format!(r#"{{"source": "paid", "change": ["till", {change}], "why": "moved"}}"#);
        store.act("change_producer", &body).await
    };
    let hand_over = r#"{"hand_over": "bob"}"#;
    let error = change(as_caller(&server, &bob), hand_over).await.expect_err("does not operate");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error:?}");
    let changed = change(as_caller(&server, &op), hand_over).await.expect("operates");
    let changed: serde_json::Value = serde_json::from_slice(&changed).expect("JSON");
    assert_eq!((&changed["owner"], &changed["corrected"]["by"]["who"]), (&"bob".into(), &"op".into()), "{changed}");
    push_as(&as_caller(&server, &ann), "till", 3).await.expect_err("handed over");
    assert!(push_as(&as_caller(&server, &bob), "till", 1_000_000).await.expect("its own now"));
    assert!(!push_as(&as_caller(&server, &bob), "till", 3).await.expect("passed over"));
    change(as_caller(&server, &op), r#"{"sequence": 2}"#).await.expect("operates");
    assert!(push_as(&as_caller(&server, &bob), "till", 3).await.expect("its next"));
    server.stop().await;
    without_log(&folder).await;
    let server = Running::start(&project, with_tokens(&folder), None).await;
    assert!(push_as(&as_caller(&server, &bob), "till", 4).await.expect("counted on from what was set back"));
    server.stop().await;

    // Where nobody is asked who they are a name is everybody's, as before.
    let server = Running::start(&project, Security::open(), None).await;
    let store = RemoteFeatures::new(&format!("http://{}", server.address)).expect("an address");
    assert!(push_as(&store, "till", 5).await.expect("everybody's"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_from_before_callers_were_known_is_nobodys_until_it_is_handed_over() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let server = Running::start(&project, Security::open(), None).await;
    let open = RemoteFeatures::new(&format!("http://{}", server.address)).expect("an address");
    assert!(push_as(&open, "till", 7).await.expect("nobody is asked"));
    server.stop().await;

    let [ann, mallory, op] = [("ann", Scope::Push), ("mallory", Scope::Push), ("op", Scope::Operate)]
        .map(|(caller, scope)| token(&folder, caller, &[scope]));
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let as_caller = |token: &PathBuf| {
        let access = Access { token_file: Some(token.clone()), ..Access::default() };
        RemoteFeatures::with_access(&format!("http://{}", server.address), access).expect("an address")
    };
    // Else all that the till sends from here on would have been sent before.
    let error = push_as(&as_caller(&mallory), "till", 1_000_000).await.expect_err("the first who comes");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error:?}");
    assert!(error.chain().contains("--hand-over till --to mallory"), "{error:?}");
    push_as(&as_caller(&ann), "till", 8).await.expect_err("nor is it another's");
    let body = r#"{"source": "paid", "change": ["till", {"hand_over": "ann"}], "why": "tokens"}"#;
    as_caller(&op).act("change_producer", body).await.expect("operates");
    assert!(push_as(&as_caller(&ann), "till", 8).await.expect("its own now"));
    assert!(!push_as(&as_caller(&ann), "till", 7).await.expect("sent before"));
    push_as(&as_caller(&mallory), "till", 9).await.expect_err("another's");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_never_uses_up_the_producers_of_a_source() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let [ann, bob] = ["ann", "bob"].map(|caller| token(&folder, caller, &[Scope::Push]));
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let as_caller = |token: &PathBuf| {
        let access = Access { token_file: Some(token.clone()), ..Access::default() };
        RemoteFeatures::with_access(&format!("http://{}", server.address), access).expect("an address")
    };
    let schema = crate::push::batch(&[]).schema();
    let nothing = RecordBatch::new_empty(Arc::clone(&schema));
    let mut pusher = as_caller(&ann).pusher("paid", schema).await.expect("opens");
    for number in 0..2_500_u64 {
        let producer = Some(format!("till {number}"));
        let header = PushHeader { producer, sequence: Some(number), watermark: None };
        pusher.send(&nothing, &header).await.expect("taken");
    }
    while pusher.waiting() > 0 {
        pusher.ack().await.expect("taken");
    }
    let error = push_as(&as_caller(&ann), "one more", 1).await.expect_err("a quarter of them");
    assert!(error.kind() == ErrorKind::Busy && error.chain().contains("caller: ann"), "{error:?}");
    assert!(push_as(&as_caller(&ann), "till 7", 8).await.expect("it is known"));
    assert!(push_as(&as_caller(&bob), "till of bob", 1).await.expect("the rest is for others"));
    server.stop().await;
}
