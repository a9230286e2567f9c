//! Messages at the edges: large ones, a topic with a limit of its own, strange headers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::json;
use trunkline::Code;
use trunkline::provider::Provider as _;
use trunkline_suite::server::setting;

use crate::bed::{group, join, listen, message, open, send, spec, to_shard, try_send};

pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    rdkafka::ClientConfig::new().set("bootstrap.servers", setting("KAFKA")).create().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_passes_and_more_than_the_limit_is_refused() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let most = kafka.capabilities(&topic).max_message_bytes;
    assert!(most >= 1_000_000, "{most}");
    for size in [1_000_000, most] {
        send(&kafka, &topic, message(vec![b'x'; size])).await;
    }
    let error = try_send(&kafka, &topic, message(vec![b'x'; most + 1])).await.unwrap_err();
    assert_eq!((error.error.code(), error.retryable, error.ambiguous), (Code::PayloadTooLarge, false, false), "{error:?}");
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| told.messages.len() == 2).await;
    assert_eq!(told.messages.iter().map(|m| m.payload.as_ref().unwrap().len()).collect::<Vec<_>>(), [1_000_000, most]);
}

/// Batches that are gathered must not grow over what such a topic takes: the broker would refuse all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_a_smaller_limit_takes_many_small_messages() {
    let kafka = open(&json!({})).await.unwrap();
    let topic = spec(1, false);
    let wish = NewTopic::new(&topic.name, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "20000");
    admin().create_topics([&wish], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    kafka.ensure(&topic, &[]).await.unwrap();
    let most = kafka.capabilities(&topic).max_message_bytes;
    assert!((19_000..20_000).contains(&most), "{most}");
    let batch: Vec<_> = (0..500).map(|_| message(vec![b'x'; 1_000])).collect();
    for result in kafka.send(&topic, Arc::new(batch)).await {
        result.unwrap();
    }
    send(&kafka, &topic, message(vec![b'x'; most])).await;
    let error = try_send(&kafka, &topic, message(vec![b'x'; most + 1])).await.unwrap_err();
    assert_eq!(error.error.code(), Code::PayloadTooLarge, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_and_unicode_survive_and_a_zero_in_a_name_is_refused() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let mut strange = message(&b"\xff\x00\xfe"[..]);
    strange.key = Some(Bytes::from_static(b"\x00k\xc3\x28"));
    strange.headers.push("\u{1f4e6} \u{fc}ber", &b"\x00\xff"[..]);
    strange.headers.push("twice", "1");
    strange.headers.push("twice", "2");
    strange.headers.push("empty", "");
    send(&kafka, &topic, strange.clone()).await;
    let mut refused = message("x");
    refused.headers.push("a\0b", "1");
    let error = try_send(&kafka, &topic, refused).await.unwrap_err();
    assert_eq!((error.error.code(), error.retryable, error.ambiguous), (Code::InputInvalid, false, false), "{error:?}");
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| !told.messages.is_empty()).await;
    let came = &told.messages[0];
    assert_eq!((&came.payload, &came.key), (&Some(strange.payload), &strange.key));
    assert_eq!(came.headers, strange.headers);
}

/// A message to a shard the topic does not have is refused, not spread.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_not_there_is_refused() {
    let kafka = open(&json!({})).await.unwrap();
    let topic = spec(2, false);
    kafka.ensure(&topic, &[]).await.unwrap();
    send(&kafka, &topic, to_shard(1, "x")).await;
    let error = try_send(&kafka, &topic, to_shard(2, "x")).await.unwrap_err();
    assert!(!error.ambiguous && !error.retryable, "{error:?}");
    assert_eq!(error.error.detail_str("reason"), Some("shards_changed"), "{:?}", error.error);
    // A queue that is full of one topic is another's affair: nothing hangs.
    tokio::time::timeout(Duration::from_secs(10), send(&kafka, &topic, to_shard(0, "x"))).await.unwrap();
}
