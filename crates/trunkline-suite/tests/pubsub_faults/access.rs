//! Who may, and what is there: permissions, `create: false`, subscriptions of others. Each refusal is told apart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::Code;
use trunkline::capability::Durability;
use trunkline::provider::TopicSpec;

use crate::{config, done, group, messages, name, open, send, server, subscribe, take, topic};

/// The stage that failed, its code, and a word of what to do.
async fn diagnosis(fields: Value, stage: &str, code: Code, fix: &str) {
    let provider = open(&config(&fields)).await.unwrap();
    let stages = provider.probe(Instant::now() + Duration::from_secs(20)).await;
    let last = stages.last().unwrap();
    assert_eq!((last.stage, last.code), (stage, Some(code)), "{stages:?}");
    assert!(last.fix.as_deref().is_some_and(|says| says.contains(fix)), "{stages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_has_a_diagnosis_of_its_own() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    diagnosis(json!({ "endpoint": "http://nowhere.invalid:8085" }), "resolve", Code::ConnectionFailed, "host name").await;
    diagnosis(json!({ "endpoint": format!("http://{nobody}") }), "connect", Code::ConnectionFailed, "port").await;
    diagnosis(json!({ "projectId": name("token-p") }), "authenticate", Code::AuthenticationFailed, "key").await;
    let refused = |method: &str, code: &str| json!({ "projectId": name(&format!("refuse-{method}-{code}-0")) });
    diagnosis(refused("GetTopic", "PERMISSION_DENIED"), "permissions", Code::AuthenticationFailed, "roles/pubsub.").await;
    diagnosis(refused("CreateTopic", "PERMISSION_DENIED"), "ensure", Code::AuthenticationFailed, "create: false").await;
    diagnosis(refused("Publish", "PERMISSION_DENIED"), "round_trip", Code::AuthenticationFailed, "roles/pubsub.publisher").await;
    diagnosis(refused("Pull", "RESOURCE_EXHAUSTED"), "round_trip", Code::ConnectionFailed, "quota").await;
    let missing = json!({ "create": false, "topicName": "not-there" });
    diagnosis(missing, "permissions", Code::TopicNotFound, "projectId").await;
}

/// Nothing is at a port that speaks another protocol.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_kind_is_not_one() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    diagnosis(json!({ "endpoint": format!("http://{address}") }), "authenticate", Code::ConnectionFailed, "endpoint").await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_create_nothing_is_created_and_what_is_missing_is_named() {
    let project = name("project");
    let mine = open(&config(&json!({ "projectId": project, "create": false }))).await.unwrap();
    let theirs = open(&config(&json!({ "projectId": project }))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    let error = mine.ensure(&topic, std::slice::from_ref(&group)).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("topic")), (Code::TopicNotFound, Some("orders")));
    assert!(error.detail_str("next").is_some_and(|next| next.contains("'orders'") && next.contains("create: true")), "{error:?}");
    let failed = mine.send(&topic, std::sync::Arc::new(messages(1))).await.remove(0).unwrap_err();
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::TopicNotFound, false, false));
    theirs.ensure(&topic, &[]).await.unwrap();
    let error = mine.ensure(&topic, std::slice::from_ref(&group)).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("subscription")), (Code::TopicNotFound, Some("orders.g")));
    assert_eq!(subscribe(&*mine, &topic, &group).await.unwrap_err().code(), Code::GroupNotFound);
    theirs.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    assert!(mine.ensure(&topic, std::slice::from_ref(&group)).await.unwrap().created.is_empty());
    let subscription = subscribe(&*mine, &topic, &group).await.unwrap();
    send(&*mine, &topic, messages(2)).await;
    done(&*subscription, &take(&*subscription, 2).await).await;
}

/// With `create: false` an account that may publish and subscribe, and look at nothing, works.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_look_may_work() {
    for method in ["GetTopic", "GetSubscription"] {
        let project = name(&format!("refuse-{method}-PERMISSION_DENIED-0"));
        let near = json!({ "projectId": project });
        let provider = open(&config(&json!({ "projectId": project, "create": false }))).await.unwrap();
        let (topic, group) = (topic("orders"), group("g"));
        // Who creates must look first, so it is made by hand.
        crate::interop::by_hand(&near["projectId"], "orders", "orders.g", false).await;
        provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
        let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
        send(&*provider, &topic, messages(2)).await;
        done(&*subscription, &take(&*subscription, 2).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_config_are_used_as_they_are() {
    let provider = open(&config(&json!({ "topicName": "orders", "subscriptionName": "worker" }))).await.unwrap();
    let ensured = provider.ensure(&topic("orders"), &[group("worker"), group("audit")]).await.unwrap();
    assert_eq!(ensured.created, ["topic orders", "subscription worker", "subscription orders.audit"]);
    let ensured = provider.ensure(&topic("orders.paid"), &[group("worker.paid")]).await.unwrap();
    assert_eq!(ensured.created, ["topic orders.paid", "subscription worker.paid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused() {
    let provider = open(&config(&json!({ "subscriptionName": "shared" }))).await.unwrap();
    provider.ensure(&topic("orders"), &[group("shared")]).await.unwrap();
    // The same subscription, of another topic.
    let error = provider.ensure(&topic("payments"), &[group("shared")]).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::InUse, Some("other_topic")));
    assert_eq!(subscribe(&*provider, &topic("payments"), &group("shared")).await.unwrap_err().code(), Code::InUse);
    // Order cannot be had from a subscription that was made without it.
    let ordered = TopicSpec { ordered: true, ..topic("orders") };
    let error = provider.ensure(&ordered, &[group("shared")]).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::CapabilityUnsupported, Some("unordered_subscription")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_groups_keeps_what_is_sent() {
    let provider = open(&config(&json!({}))).await.unwrap();
    let ensured = provider.ensure(&topic("orders.dead"), &[]).await.unwrap();
    assert_eq!(ensured.created, ["topic orders.dead", "subscription orders.dead.kept"]);
    assert!(provider.ensure(&topic("orders.dead"), &[]).await.unwrap().created.is_empty());
    let sent = send(&*provider, &topic("orders.dead"), messages(2)).await;
    let subscription = subscribe(&*provider, &topic("orders.dead"), &group("kept")).await.unwrap();
    let got = take(&*subscription, 2).await;
    assert_eq!(crate::set(got.iter().map(crate::id)), crate::set(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_confirm_survives_is_declared_by_the_server() {
    let here = open(&config(&json!({}))).await.unwrap();
    assert_eq!(here.capabilities(&topic("t")).durability, Durability::Memory, "an emulator keeps nothing, {}", server());
    let google = json!({ "endpoint": "https://europe-west1-pubsub.googleapis.com", "tls": { "insecure": true } });
    let google = open(&config(&google)).await.unwrap();
    assert_eq!(google.capabilities(&topic("t")).durability, Durability::Cloud);
}
