//! Ordering keys: many at a time, and what is given back.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::json;
use trunkline::delivery::{Settle, Settled};
use trunkline::provider::{Outgoing, TopicSpec, shard_of};

use crate::{config, done, group, id, message, open, send, settle, subscribe, take, topic};

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_keep_their_order() {
    let provider = open(&config(&json!({}))).await.unwrap();
    let (topic, group) = (TopicSpec { ordered: true, shards: 4, ..topic("orders") }, group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let mut keys: Vec<Bytes> = (0..40).map(|n| Bytes::from(format!("key-{n}"))).collect();
    keys.extend([Bytes::from_static(b"\xff\x00"), Bytes::new(), Bytes::from("Schlüssel ✉"), Bytes::from(vec![b'k'; 2_000])]);
    let mut batch = Vec::new();
    for _ in 0..5 {
        for key in &keys {
            batch.push(Outgoing { key: Some(key.clone()), shard: Some(shard_of(key, 4)), ..message("x") });
        }
        batch.push(message("without a key"));
    }
    let wanted = batch.clone();
    send(&*provider, &topic, batch).await;
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let mut by_key: HashMap<Option<Bytes>, Vec<_>> = HashMap::new();
    let mut came = 0;
    while came < wanted.len() {
        let got = take(&*subscription, 1).await;
        done(&*subscription, &got).await;
        came += got.len();
        for delivery in &got {
            by_key.entry(delivery.key.clone()).or_default().push(id(delivery));
        }
    }
    for key in keys {
        let sent: Vec<_> = wanted.iter().filter(|message| message.key.as_ref() == Some(&key)).map(|message| message.id).collect();
        assert_eq!(by_key.get(&Some(key.clone())), Some(&sent), "key {key:?}");
    }
    assert_eq!(by_key[&None].len(), 5);
}

/// Pub/Sub would hand out what follows of the key meanwhile: so nothing of an ordered topic waits there.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_stays_in_hand() {
    let provider = open(&config(&json!({}))).await.unwrap();
    let (topic, group) = (TopicSpec { ordered: true, ..topic("orders") }, group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*provider, &topic, vec![Outgoing { key: Some("k".into()), shard: Some(0), ..message("x") }]).await;
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*subscription, 1).await;
    let answers = settle(&*subscription, &got, Settle::Retry { after: std::time::Duration::from_secs(1), counted: true }).await;
    assert_eq!(answers, [Settled::Unknown]);
    done(&*subscription, &got).await;
}
