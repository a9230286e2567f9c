//! Beside other clients: what a plain NATS client sees of our messages, and we of its.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use trunkline::Headers;
use trunkline::delivery::EnvelopeId;
use trunkline::provider::{Outgoing, TopicSpec};

use crate::bed::{ask, foreign, fresh, group, join, message, open, plain, send, take, topic};

/// A plain pull consumer reads payload and headers as they were produced.
#[tokio::test]
async fn a_plain_client_reads_what_we_produce() {
    let provider = open(&plain()).await.unwrap();
    let topic = topic("ours");
    provider.ensure(&topic, &[]).await.unwrap();
    let headers: Headers = [("content-type", "application/json"), ("a", "1"), ("a", "2")].into_iter().collect();
    let sent = Outgoing { key: Some("customer 7".into()), headers, ..message("{ \"n\" : 1 }") };
    send(&*provider, &topic, sent.clone()).await.unwrap();

    let client = foreign().await;
    let durable = fresh("plain");
    let config = json!({ "name": durable, "durable_name": durable, "ack_policy": "explicit" });
    let body = json!({ "stream_name": topic.name, "config": config });
    ask(&client, &format!("CONSUMER.CREATE.{}.{durable}", topic.name), body).await;
    let inbox = client.new_inbox();
    let mut pulled = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(format!("$JS.API.CONSUMER.MSG.NEXT.{}.{durable}", topic.name), inbox, "1".into()).await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(20), pulled.next()).await.unwrap().unwrap();
    assert_eq!((got.subject.as_str(), &got.payload[..]), (&*topic.name, &sent.payload[..]));
    let headers = got.headers.unwrap();
    let all = |name: &str| headers.get_all(name).map(|value| value.as_str()).collect::<Vec<_>>();
    assert_eq!(all("Nats-Msg-Id"), [format!("tl:{}", sent.id.to_text())]);
    assert_eq!((all("trunkline-key"), all("content-type"), all("a")), (vec!["customer 7"], vec!["application/json"], vec!["1", "2"]));
}

/// What a plain client publishes is consumed, with an id that stays the same; a broken id is told apart.
#[tokio::test]
async fn we_consume_what_a_plain_client_publishes() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("theirs"), group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let client = foreign().await;
    let publish = async |headers: &[(&str, &str)], payload: &'static str| {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.append(*name, *value));
        let answer = client.request_with_headers(topic.name.to_string(), map, payload.into()).await.unwrap();
        serde_json::from_slice::<Value>(&answer.payload).unwrap()["seq"].as_u64().unwrap()
    };
    let seqs = [
        publish(&[], "bare").await,
        publish(&[("Nats-Msg-Id", "their own"), ("b", "2"), ("a", "1"), ("b", "3")], "with headers").await,
        publish(&[("trunkline-id", "no id at all")], "broken").await,
    ];
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 3).await;
    assert_eq!(got.iter().map(|delivery| delivery.position.offset).collect::<Vec<_>>(), seqs);
    assert_eq!(got.iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [EnvelopeId::Foreign, EnvelopeId::Foreign, EnvelopeId::Broken]);
    assert_eq!(got[0].headers, Headers::new());
    let headers: Headers = [("Nats-Msg-Id", "their own"), ("a", "1"), ("b", "2"), ("b", "3")].into_iter().collect();
    assert_eq!((&got[1].headers, got[1].payload.as_deref()), (&headers, Some(&b"with headers"[..])));
}

/// A message on an ordered topic is published to the shard that its publisher chose.
#[tokio::test]
async fn a_plain_client_publishes_to_a_shard() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (TopicSpec { ordered: true, shards: 4, ..topic("sharded") }, group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let client = foreign().await;
    client.request(format!("{}._shard.2", topic.name), "hello".into()).await.unwrap();
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 1).await;
    assert_eq!(got[0].position.shard, 2);
}

/// Core NATS, both ways.
#[tokio::test]
async fn core_nats_both_ways() {
    let provider = open(&json!({ "servers": trunkline_suite::server::setting("NATS"), "mode": "core" })).await.unwrap();
    let (topic, group) = (topic("core"), group());
    let client = foreign().await;
    let mut listener = client.subscribe(topic.name.to_string()).await.unwrap();
    client.flush().await.unwrap();
    let member = join(&*provider, &topic, &group).await;
    let sent = Outgoing { key: Some("k".into()), ..message("ours") };
    send(&*provider, &topic, sent.clone()).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(20), listener.next()).await.unwrap().unwrap();
    assert_eq!(seen.payload, sent.payload);
    client.publish(topic.name.to_string(), "theirs".into()).await.unwrap();
    let got = take(&*member, 2).await;
    assert_eq!(got.iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [EnvelopeId::Id(sent.id), EnvelopeId::Foreign]);
    assert_eq!(
        got.iter().map(|delivery| delivery.payload.clone()).collect::<Vec<_>>(),
        [Some(Bytes::from("ours")), Some(Bytes::from("theirs"))]
    );
}
