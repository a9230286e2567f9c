//! Beside other programs: a client that is not ours sends and receives, over SQS's older protocol; and AWS's own for Python.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::process::Command;
use trunkline::delivery::{Delivery, EnvelopeId, Settle};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, Signal, Start, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{Headers, MessageId};
use trunkline_suite::elasticmq::{connect, endpoint, query};
use trunkline_suite::server::setting;

async fn prepared() -> (Arc<dyn Provider>, TopicSpec, GroupSpec, String) {
    let name = format!("i{}", &MessageId::now().0.simple().to_string()[4..]);
    let topic = TopicSpec::new(name.as_str(), 1, false);
    let group = GroupSpec { name: name.as_str().into(), start: Start::Latest };
    let provider = connect(&json!({})).await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let path = format!("/{}/{name}", setting("SQS_ACCOUNT"));
    (provider, topic, group, path)
}

async fn one(subscription: &Arc<dyn Subscription>) -> Delivery {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        for signal in subscription.next(1, usize::MAX, Duration::from_secs(1)).await.unwrap() {
            if let Signal::Deliveries { mut items, .. } = signal {
                return items.remove(0);
            }
        }
    }
    panic!("no message came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_is_consumed() {
    let (provider, topic, group, path) = prepared().await;
    let body = "{\"from\": \"elsewhere\"}";
    let form = [
        ("Action", "SendMessage"),
        ("MessageBody", body),
        ("MessageAttribute.1.Name", "tenant"),
        ("MessageAttribute.1.Value.DataType", "String"),
        ("MessageAttribute.1.Value.StringValue", "blue"),
        ("MessageAttribute.2.Name", "count"),
        ("MessageAttribute.2.Value.DataType", "Number"),
        ("MessageAttribute.2.Value.StringValue", "7"),
    ];
    query(&path, &form).await;
    let options = SubscribeOptions { member: "test".into(), prefetch: Prefetch { count: 10, bytes: 1 << 20 } };
    let member = provider.subscribe(std::slice::from_ref(&topic), &group, options).await.unwrap();
    let first = one(&member).await;
    assert_eq!((first.id, first.payload.as_deref(), &first.key), (EnvelopeId::Foreign, Some(body.as_bytes()), &None));
    assert_eq!((first.headers.get_str("tenant"), first.headers.get_str("count")), (Some("blue"), Some("7")));
    // The same message again is known by its place.
    member.settle(&[(first.token, Settle::Release)]).await;
    let again = one(&member).await;
    assert_eq!((again.position, again.stored_at), (first.position, first.stored_at));
    assert!(again.deliveries.count() > first.deliveries.count());
    member.settle(&[(again.token, Settle::Done)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_reads_ours() {
    let (provider, topic, _, path) = prepared().await;
    let mut headers = Headers::new();
    headers.push("tenant", "blue");
    let id = MessageId::now();
    let payload = Bytes::from_static(b"plain text, as it is");
    let ours = Outgoing { id, shard: None, key: Some(Bytes::from_static(b"k1")), headers, payload };
    provider.send(&topic, Arc::new(vec![ours])).await.remove(0).unwrap();
    let form = [("Action", "ReceiveMessage"), ("WaitTimeSeconds", "5"), ("MessageAttributeName.1", "All")];
    let answer = query(&path, &form).await;
    for part in [
        "<Body>plain text, as it is</Body>",
        "<Name>trunkline-id</Name>",
        &id.to_text(),
        "<Name>trunkline-key</Name>",
        "<Name>tenant</Name>",
        "<StringValue>blue</StringValue>",
    ] {
        assert!(answer.contains(part), "'{part}' is not in: {answer}");
    }
}

/// Runs a program on AWS's client for Python; what it prints.
async fn boto(arguments: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sqs/boto.py");
    let (endpoint, region) = (endpoint(), setting("SQS_REGION"));
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", setting("SQS_BOTO3")).args([script, &endpoint, &region]).args(arguments);
    let ended = tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("it ends").expect("python3 runs");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_and_trunkline_read_each_other() {
    let (provider, topic, group, path) = prepared().await;
    let queue = path.rsplit('/').next().unwrap();
    let id = MessageId::now();
    let headers = [("tenant", "Grüße")].into_iter().collect();
    let ours = Outgoing { id, shard: None, key: Some(Bytes::from_static(b"k1")), headers, payload: Bytes::from_static(b"{\"n\":1}") };
    provider.send(&topic, Arc::new(vec![ours])).await.remove(0).unwrap();
    let came: serde_json::Value = serde_json::from_str(&boto(&["receive", queue]).await).unwrap();
    let attributes = json!({ "tenant": "Grüße", "trunkline-id": id.to_text(), "trunkline-key": "k1" });
    assert_eq!(came, json!({ "body": "{\"n\":1}", "attributes": attributes }));

    boto(&["send", queue, "{\"from\":\"elsewhere\"}", "tenant=blue"]).await;
    let options = SubscribeOptions { member: "test".into(), prefetch: Prefetch { count: 10, bytes: 1 << 20 } };
    let member = provider.subscribe(std::slice::from_ref(&topic), &group, options).await.unwrap();
    let theirs = one(&member).await;
    assert_eq!((theirs.id, theirs.payload.as_deref()), (EnvelopeId::Foreign, Some(&b"{\"from\":\"elsewhere\"}"[..])));
    assert_eq!(theirs.headers.get_str("tenant"), Some("blue"));
    member.settle(&[(theirs.token, Settle::Done)]).await;
}
