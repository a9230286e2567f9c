//! The whole library over NATS: produce, consume, retry, dead letter, with the lot on the broker and in the store.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::dead_letter::DeadFilter;
use trunkline::{Context, Env, Trunkline};
use trunkline_suite::promise::{Seen, retries, until};
use trunkline_suite::server::setting;

use crate::bed::fresh;

const EVENT: &str = "orders:created";

async fn instance(single_host: bool, topic: Value) -> (Trunkline, Env, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("data");
    let trunkline = Trunkline::builder().url(url.to_string_lossy()).single_host(single_host).open().await.unwrap();
    let config = json!({ "servers": setting("NATS"), "prefix": fresh("lib") });
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "NATS", "config": config }] });
    trunkline.catalog().create_broker(Some("shop"), broker).await.unwrap();
    let mut fields = json!({ "name": "Created", "tag": EVENT });
    fields.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some("shop"), fields).await.unwrap();
    let env = trunkline.env("shop", "prd");
    (trunkline, env, dir)
}

/// One message is handled at once, one after a held and a longer wait, one never.
async fn handles_retries_and_buries(single_host: bool) {
    let (trunkline, env, _dir) = instance(single_host, json!({})).await;
    let seen = Seen::new();
    let s = seen.clone();
    let handler = move |payload: Value, context: Context| {
        let n = payload["n"].as_u64().unwrap();
        s.push((n, context.attempt));
        async move { if n == 0 || (n == 1 && context.attempt == 3) { Ok(()) } else { Err("not now") } }
    };
    let consumer = env.consume(EVENT, handler).retry(retries(&[100, 5_100])).await.unwrap();
    for n in 0..3 {
        env.produce(EVENT, &json!({ "n": n })).await.unwrap();
    }
    let mut all = seen.wait(7).await;
    all.sort_unstable();
    assert_eq!(all, [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]);
    let dead = async || env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    until("the third is buried", || async { dead().await.1 == 1 && consumer.in_flight() == 0 }).await;
    assert_eq!(dead().await.0[0].reason.as_deref(), Some("attempts_exhausted"));
    consumer.close(Duration::from_secs(10)).await;
    trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_lot_on_the_broker() {
    handles_retries_and_buries(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_lot_in_the_store() {
    handles_retries_and_buries(true).await;
}

/// Two members of an ordered group: each key is handled in order, also past a failure that is retried.
#[tokio::test(flavor = "multi_thread")]
async fn order_per_key_past_a_failure() {
    let (trunkline, env, _dir) = instance(true, json!({ "ordering": "key", "shards": 4 })).await;
    let seen = Seen::new();
    let mut consumers = Vec::new();
    for _ in 0..2 {
        let s = seen.clone();
        let handler = move |payload: Value, context: Context| {
            let (key, n) = (payload["key"].as_u64().unwrap(), payload["n"].as_u64().unwrap());
            let fails = n == 3 && context.attempt == 1;
            if !fails {
                s.push((key, n));
            }
            async move { if fails { Err("once") } else { Ok(()) } }
        };
        consumers.push(env.consume(EVENT, handler).retry(retries(&[200])).await.unwrap());
    }
    for n in 0..10 {
        for key in 0..8 {
            env.produce(EVENT, &json!({ "key": key, "n": n })).key(key.to_string()).await.unwrap();
        }
    }
    let all = seen.wait(80).await;
    for key in 0..8 {
        let of: Vec<u64> = all.iter().filter(|(of, _)| *of == key).map(|(_, n)| *n).collect();
        assert_eq!(of, (0..10).collect::<Vec<u64>>(), "key {key}");
    }
    for consumer in consumers {
        consumer.close(Duration::from_secs(10)).await;
    }
    trunkline.close(Duration::from_secs(10)).await;
}
