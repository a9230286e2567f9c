//! The whole library over Kafka: produce, consume, retry, dead letter; both forms of the lot.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::dead_letter::{DeadFilter, Reprocess};
use trunkline::{Code, Context, Env, Raw, Trunkline};
use trunkline_suite::promise::{EVENT, Seen, retries};
use trunkline_suite::server::setting;

use crate::bed::{SHORT, name};
use crate::foreign::kcat;

fn short() -> Value {
    json!({ SHORT.0: SHORT.1 })
}

/// An instance with a broker on this server with these `options`, and a topic with these fields. Keep the directory.
pub(crate) async fn instance(single_host: bool, server: &str, options: Value, topic: Value) -> (Trunkline, Env, String, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let trunkline = Trunkline::builder().url(dir.path().join("data").to_string_lossy()).single_host(single_host).open().await.unwrap();
    let prefix = name();
    let config = json!({ "brokers": [server], "prefix": prefix, "groupId": format!("{prefix}-group"), "options": options });
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "KAFKA", "config": config }] });
    trunkline.catalog().create_broker(Some("shop"), broker).await.unwrap();
    let mut fields = json!({ "name": "Created", "tag": EVENT, "shards": 4 });
    fields.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some("shop"), fields).await.unwrap();
    let env = trunkline.env("shop", "prd");
    (trunkline, env, prefix, dir)
}

async fn fails_dies_and_is_reprocessed(single_host: bool) {
    let (trunkline, env, _, _dir) = instance(single_host, &setting("KAFKA"), short(), json!({})).await;
    let good = env.produce(EVENT, &json!({ "n": 1 })).key("a").header("h", "v").await.unwrap().process_id;
    let bad = env.produce(EVENT, &json!({ "n": -1 })).key("b").await.unwrap().process_id;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |payload: Value, context: Context| {
            let fails = payload["n"] == -1 && s.all().iter().filter(|(id, _)| *id == context.process_id).count() < 3;
            s.push((context.process_id, context.attempt));
            async move { if fails { Err("negative") } else { Ok(()) } }
        })
        // The second wait is too long to hold: it goes through the lot.
        .retry(retries(&[100, 6_000]))
        .await
        .unwrap();
    let all = seen.wait(4).await;
    assert!(all.contains(&(good, 1)));
    let of_bad: Vec<u32> = all.iter().filter(|(id, _)| *id == bad).map(|(_, attempt)| *attempt).collect();
    assert_eq!(of_bad, [1, 2, 3]);
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    let dead = loop {
        let dead = env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().0;
        if !dead.is_empty() {
            break dead;
        }
        assert!(tokio::time::Instant::now() < end, "no dead letter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((dead[0].message.id, dead[0].attempts), (bad, 3));
    env.reprocess(Reprocess { filter: DeadFilter::default(), ..Reprocess::default() }).await.unwrap();
    let all = seen.wait(5).await;
    assert_eq!(all[4].0, bad, "handed over again, and handled");
    consumer.close(Duration::from_secs(10)).await;
    trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_goes_all_the_way_with_the_lot_on_the_broker() {
    fails_dies_and_is_reprocessed(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_goes_all_the_way_with_the_lot_in_the_store() {
    fails_dies_and_is_reprocessed(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_with_waits_needs_one_view_of_the_chains() {
    let ordered = json!({ "ordering": "key", "shards": 4 });
    let (_trunkline, env, _, _other) = instance(false, &setting("KAFKA"), short(), ordered.clone()).await;
    let refused = env.consume(EVENT, |_: Raw, _: Context| async {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::CapabilityUnsupported, "{refused:?}");

    let (trunkline, env, _, _dir) = instance(true, &setting("KAFKA"), short(), ordered).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |payload: Value, context: Context| {
            let fails = payload["n"] == 3 && context.attempt < 3;
            s.push((payload["key"].as_str().unwrap_or_default().to_owned(), payload["n"].as_u64().unwrap_or_default(), fails));
            async move { if fails { Err("not yet") } else { Ok(()) } }
        })
        .retry(retries(&[50, 6_000, 6_000]))
        .await
        .unwrap();
    for n in 0..10_u64 {
        for key in ["a", "b", "c"] {
            env.produce(EVENT, &json!({ "key": key, "n": n })).key(key).await.unwrap();
        }
    }
    let all = seen.wait(36).await;
    for key in ["a", "b", "c"] {
        let done: Vec<u64> = all.iter().filter(|(of, _, fails)| of == key && !fails).map(|(_, n, _)| *n).collect();
        assert_eq!(done, (0..10).collect::<Vec<_>>(), "key {key}");
    }
    consumer.close(Duration::from_secs(10)).await;
    trunkline.close(Duration::from_secs(10)).await;
}

/// What librdkafka's `murmur2_random` and the Java client do with a key, the core does too.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_lies_where_other_clients_put_it() {
    let (trunkline, env, prefix, _dir) = instance(true, &setting("KAFKA"), short(), json!({ "ordering": "key", "shards": 7 })).await;
    let keys: Vec<String> = (0..30).map(|n| format!("key-{n}-{}", "x".repeat(n % 5))).collect();
    for key in &keys {
        env.produce(EVENT, &json!({})).key(key).await.unwrap();
    }
    let topic = format!("{prefix}.orders.created");
    let lines: String = keys.iter().map(|key| format!("{key}\t{{}}\n")).collect();
    kcat(&["-P", "-t", &topic, "-K", "\t", "-X", "partitioner=murmur2_random"], &lines);
    let mut partitions: HashMap<String, Vec<u32>> = HashMap::new();
    for line in kcat(&["-C", "-q", "-t", &topic, "-o", "beginning", "-e", "-f", "%k|%p\n"], "").lines() {
        let (key, partition) = line.split_once('|').unwrap();
        partitions.entry(key.to_owned()).or_default().push(partition.parse().unwrap());
    }
    assert_eq!(partitions.len(), keys.len());
    for (key, of) in &partitions {
        assert!(of.len() == 2 && of[0] == of[1], "{key} lies in {of:?}");
    }
    let used: HashSet<_> = partitions.values().flatten().collect();
    assert!(used.len() > 3, "{used:?}");
    trunkline.close(Duration::from_secs(10)).await;
}
