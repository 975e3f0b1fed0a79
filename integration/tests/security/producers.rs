//! Whose the name of a producer is, and who changes that.

use std::path::PathBuf;

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
