//! The whole library over Redis: produce, consume, retry, dead letters, with both forms of the lot, and over a restart.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::dead_letter::DeadFilter;
use trunkline::{Context, Env, Raw, Schedule, State, Trunkline};

use crate::private::{DURABLE, MEMORY, Private};
use crate::until;

const EVENT: &str = "orders:created";

struct Whole {
    trunkline: Trunkline,
    env: Env,
    _dir: TempDir,
}

async fn whole(server: &Private, single_host: bool, topic: Value) -> Whole {
    let dir = tempfile::tempdir().unwrap();
    let trunkline = Trunkline::builder().url(dir.path().join("data").to_string_lossy()).single_host(single_host).open().await.unwrap();
    let envs = json!([{ "slug": "prd", "type": "REDIS", "config": server.config() }]);
    trunkline.catalog().create_broker(Some("shop"), json!({ "name": "Orders", "tag": "orders", "envs": envs })).await.unwrap();
    let mut created = json!({ "name": "Created", "tag": EVENT });
    created.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some("shop"), created).await.unwrap();
    Whole { env: trunkline.env("shop", "prd"), trunkline, _dir: dir }
}

fn retries(millis: &[u64]) -> Schedule {
    Schedule { delays: millis.iter().map(|ms| Duration::from_millis(*ms)).collect(), jitter: 0.0 }
}

async fn fails_waits_and_dies(single_host: bool) {
    let server = Private::start(DURABLE).await;
    let bed = whole(&server, single_host, json!({})).await;
    let id = bed.env.produce(EVENT, "payload").key("k").header("h", "v").await.unwrap().process_id;
    let good = bed.env.produce(EVENT, &json!({ "good": true })).await.unwrap().process_id;
    let seen: Arc<Mutex<Vec<_>>> = Arc::default();
    let saw = Arc::clone(&seen);
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            saw.lock().push((c.process_id, c.attempt));
            async move { if payload == "payload" { Err("boom") } else { Ok(()) } }
        })
        // One retry is held in flight; the other is longer than that, and waits in the lot.
        .retry(retries(&[50, 5_100]))
        .await
        .unwrap();
    until("it is dead", async || bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1 == 1).await;
    let (dead, _) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    let letter = &dead[0];
    assert_eq!((letter.message.id, letter.attempts, letter.reason.as_deref()), (id, 3, Some("attempts_exhausted")));
    assert_eq!((&letter.message.payload[..], letter.message.key.as_deref()), (&b"\"payload\""[..], Some(&b"k"[..])));
    assert_eq!((letter.message.headers.get_str("h"), letter.error.as_deref()), (Some("v"), Some("boom")));
    let mut all = seen.lock().clone();
    all.sort_unstable();
    let mut wanted = vec![(good, 1), (id, 1), (id, 2), (id, 3)];
    wanted.sort_unstable();
    assert_eq!(all, wanted);
    let on_broker = server.cli(&["KEYS", "*.dead"]);
    assert_eq!(on_broker.is_empty(), single_host, "{on_broker}");
    consumer.close(Duration::from_secs(5)).await;
    bed.trunkline.close(Duration::from_secs(10)).await;
    until("all connections are closed", async || server.cli(&["CLIENT", "LIST"]).lines().count() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_message_waits_and_dies_on_the_broker() {
    fails_waits_and_dies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_message_waits_and_dies_in_the_store_of_a_single_host() {
    fails_waits_and_dies(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_order_while_one_of_them_fails() {
    let server = Private::start(MEMORY).await;
    let bed = whole(&server, true, json!({ "ordering": "key", "shards": 4 })).await;
    for n in 0..60 {
        bed.env.produce(EVENT, &json!({ "key": n % 6, "n": n })).key(format!("key-{}", n % 6)).await.unwrap();
    }
    let seen: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let saw = Arc::clone(&seen);
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            let (key, n) = (payload["key"].as_u64().unwrap(), payload["n"].as_u64().unwrap());
            let fails = n == 7 && c.attempt < 3;
            if !fails {
                saw.lock().push((key, n));
            }
            async move { if fails { Err("not yet") } else { Ok(()) } }
        })
        .retry(retries(&[50, 50, 50]))
        .await
        .unwrap();
    until("all were handled", async || seen.lock().len() == 60).await;
    for key in 0..6 {
        let of_key: Vec<u64> = seen.lock().iter().filter(|(of, _)| *of == key).map(|(_, n)| *n).collect();
        assert!(of_key.is_sorted(), "key {key} came as {of_key:?}");
    }
    consumer.close(Duration::from_secs(5)).await;
    bed.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_by_itself_after_its_server_died() {
    let server = Private::start(DURABLE).await;
    let bed = whole(&server, false, json!({})).await;
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let saw = Arc::clone(&seen);
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            saw.lock().push(c.process_id.millis());
            async { Ok::<(), &str>(()) }
        })
        .await
        .unwrap();
    bed.env.produce(EVENT, &1).await.unwrap();
    until("the first is handled", async || seen.lock().len() == 1).await;
    server.kill();
    // Produced while there is no server: sent again by the library until it is back.
    let late = tokio::spawn({
        let env = bed.env.clone();
        async move { env.produce(EVENT, &2).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.begin().await;
    late.await.unwrap().unwrap();
    until("the second is handled", async || seen.lock().len() >= 2).await;
    until("the consumer is live", async || consumer.state() == State::Live).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.trunkline.close(Duration::from_secs(10)).await;
}
