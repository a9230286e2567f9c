//! Clients that know nothing of Trunkline, both ways: plain calls of Pub/Sub's protocol, and Google's own client for Go.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::publisher_client::PublisherClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::subscriber_client::SubscriberClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{
    AcknowledgeRequest, PublishRequest, PubsubMessage, PullRequest, Subscription, Topic,
};
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::transport::Channel;
use trunkline::Headers;
use trunkline::delivery::EnvelopeId;
use trunkline::provider::{Outgoing, TopicSpec};
use trunkline_suite::server::setting;

use crate::{config, done, group, message, name, open, send, server, subscribe, take, topic};

/// A plain client.
async fn plain() -> Channel {
    Channel::from_shared(format!("http://{}", server())).unwrap().connect().await.unwrap()
}

/// Makes a topic with a subscription, as another program would.
pub(crate) async fn by_hand(project: &Value, topic: &str, subscription: &str, ordered: bool) {
    let (topic, channel) = (format!("projects/{}/topics/{topic}", project.as_str().unwrap()), plain().await);
    let name = format!("projects/{}/subscriptions/{subscription}", project.as_str().unwrap());
    PublisherClient::new(channel.clone()).create_topic(Topic { name: topic.clone(), ..Topic::default() }).await.unwrap();
    let wish = Subscription { name, topic, enable_message_ordering: ordered, ..Subscription::default() };
    SubscriberClient::new(channel).create_subscription(wish).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_reads_what_was_produced() {
    let project = name("project");
    let provider = open(&config(&json!({ "projectId": project }))).await.unwrap();
    let headers: Headers = [("source", "web"), ("tenant", "Grüße")].into_iter().collect();
    for ordered in [false, true] {
        let name = if ordered { "ordered" } else { "plain" };
        let topic = TopicSpec { ordered, ..topic(name) };
        provider.ensure(&topic, &[group("theirs")]).await.unwrap();
        let sent = Outgoing {
            key: Some(Bytes::from_static(b"k-1")),
            shard: ordered.then_some(0),
            headers: headers.clone(),
            ..message("{\"total\":12}")
        };
        let id = send(&*provider, &topic, vec![sent]).await[0];
        let mut client = SubscriberClient::new(plain().await);
        let subscription = format!("projects/{project}/subscriptions/{name}.theirs");
        let request = PullRequest { subscription: subscription.clone(), max_messages: 1, ..PullRequest::default() };
        let received = client.pull(request).await.unwrap().into_inner().received_messages.remove(0);
        let came = received.message.unwrap();
        let mut wanted: HashMap<String, String> = [("source", "web"), ("tenant", "Grüße")].map(|(a, b)| (a.into(), b.into())).into();
        wanted.insert("trunkline-id".into(), id.to_text());
        if !ordered {
            wanted.insert("trunkline-key".into(), "k-1".into());
        }
        assert_eq!((&*came.data, came.attributes), (&b"{\"total\":12}"[..], wanted));
        assert_eq!(came.ordering_key, if ordered { "k-1" } else { "" });
        client.acknowledge(AcknowledgeRequest { subscription, ack_ids: vec![received.ack_id] }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plain_client_produces_is_consumed() {
    let project = name("project");
    by_hand(&json!(project), "theirs", "ours", true).await;
    let provider = open(&config(&json!({ "projectId": project, "create": false, "subscriptionName": "ours" }))).await.unwrap();
    let (topic, group) = (TopicSpec { ordered: true, ..topic("theirs") }, group("ours"));
    let ensured = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    // Made with Google's defaults: it ends with what lies in it when nobody consumes for a month.
    assert!(ensured.created.is_empty() && ensured.drift.len() == 1 && ensured.drift[0].contains("31 days"), "{ensured:?}");
    let mut client = PublisherClient::new(plain().await);
    for n in 0..3 {
        let attributes = [("b".to_owned(), n.to_string()), ("a".to_owned(), "x".to_owned())].into();
        let message =
            PubsubMessage { data: format!("{{\"n\":{n}}}").into(), attributes, ordering_key: "k".into(), ..PubsubMessage::default() };
        let request = PublishRequest { topic: format!("projects/{project}/topics/theirs"), messages: vec![message] };
        client.publish(request).await.unwrap();
    }
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let mut places = Vec::new();
    for n in 0..3 {
        let got = take(&*subscription, 1).await;
        assert_eq!((got[0].id, got[0].key.as_deref()), (EnvelopeId::Foreign, Some(&b"k"[..])));
        assert_eq!(got[0].payload.as_deref(), Some(format!("{{\"n\":{n}}}").as_bytes()), "in order");
        let headers: Vec<_> = got[0].headers.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        assert_eq!(headers, [("a".to_owned(), Bytes::from_static(b"x")), ("b".to_owned(), Bytes::from(n.to_string()))]);
        places.push(got[0].position.offset);
        // What is given back has the same place when it comes again.
        if n == 1 {
            crate::settle(&*subscription, &got, trunkline::delivery::Settle::Release).await;
            let again = take(&*subscription, 1).await;
            assert_eq!(again[0].position, got[0].position);
            done(&*subscription, &again).await;
        } else {
            done(&*subscription, &got).await;
        }
    }
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
}

/// Runs Google's client for Go; what it prints.
async fn google(project: &str, arguments: &[&str]) -> String {
    let run = Command::new(setting("PUBSUB_PROGRAM")).args(["-address", &server(), "-project", project]).args(arguments).output();
    let ended = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it ends").unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_client_reads_what_was_produced() {
    let project = name("project");
    let provider = open(&config(&json!({ "projectId": project }))).await.unwrap();
    let topic = TopicSpec { ordered: true, ..topic("orders") };
    provider.ensure(&topic, &[group("theirs")]).await.unwrap();
    let headers: Headers = [("tenant", "Grüße")].into_iter().collect();
    let mut ids = Vec::new();
    for n in 0..3 {
        let (key, headers) = (Some(Bytes::from_static(b"k-1")), headers.clone());
        let sent = Outgoing { key, shard: Some(0), headers, ..message(format!("{{\"n\":{n}}}")) };
        ids.push(send(&*provider, &topic, vec![sent]).await[0]);
    }
    let lines = google(&project, &["-receive", "orders.theirs", "-count", "3"]).await;
    let came: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wanted: Vec<Value> = (0..3)
        .map(|n| {
            let attributes = json!({ "tenant": "Grüße", "trunkline-id": ids[n].to_text() });
            json!({ "data": format!("{{\"n\":{n}}}"), "attributes": attributes, "orderingKey": "k-1" })
        })
        .collect();
    assert_eq!(came, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_googles_client_publishes_is_consumed() {
    let project = name("project");
    let provider = open(&config(&json!({ "projectId": project }))).await.unwrap();
    let (topic, group) = (TopicSpec { ordered: true, ..topic("orders") }, group("ours"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    google(&project, &["-publish", "orders", "-key", "k", "-attribute", "tenant=Grüße", "-data", "{\"from\":\"elsewhere\"}"]).await;
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*subscription, 1).await;
    assert_eq!((got[0].id, got[0].key.as_deref()), (EnvelopeId::Foreign, Some(&b"k"[..])));
    assert_eq!(got[0].payload.as_deref(), Some(&b"{\"from\":\"elsewhere\"}"[..]));
    assert_eq!(got[0].headers.get_str("tenant"), Some("Grüße"));
    done(&*subscription, &got).await;
}
