//! Whole programs over SQS: produce, consume, retry, dead letters, with both forms of the lot, and order on FIFO queues.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::dead_letter::DeadFilter;
use trunkline::{Context, Env, MessageId, Raw, Trunkline};
use trunkline_suite::elasticmq::{Counter, json_config};
use trunkline_suite::promise::{EVENT, Seen, retries, until};

struct Program {
    trunkline: Trunkline,
    env: Env,
    _dir: TempDir,
}

/// An instance whose one env is SQS, under a product of its own: so its queues are its own too.
async fn program(single_host: bool, config: &Value, topic: &Value) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let product = format!("p{}", &MessageId::now().0.simple().to_string()[12..]);
    let builder = Trunkline::builder().url(dir.path().join("data").to_string_lossy()).single_host(single_host);
    let trunkline = builder.open().await.unwrap();
    let config = json_config(config);
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "AWS_SQS", "config": config }] });
    trunkline.catalog().create_broker(Some(&product), broker).await.unwrap();
    let mut fields = json!({ "name": "Created", "tag": EVENT });
    fields.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some(&product), fields).await.unwrap();
    Program { env: trunkline.env(&product, "prd"), trunkline, _dir: dir }
}

/// The first retry is held, the second waits in the lot, the third attempt succeeds; another message dies.
async fn retries_and_dies(single_host: bool) {
    let program = program(single_host, &json!({}), &json!({})).await;
    let env = &program.env;
    let good = env.produce(EVENT, &json!({ "good": true })).key("k1").header("tenant", "blue").await.unwrap().process_id;
    let bad = env.produce(EVENT, &json!({ "good": false })).await.unwrap().process_id;
    let seen = Seen::new();
    let s = seen.clone();
    let consume = env.consume(EVENT, move |payload: Value, c: Context| {
        s.push((c.process_id, c.attempt, c.key.clone(), c.headers.get_str("tenant").map(str::to_owned)));
        let fails = payload["good"] == false || c.attempt < 3;
        async move { if fails { Err("not yet") } else { Ok(()) } }
    });
    let consumer = consume.retry(retries(&[200, 5_100])).await.unwrap();
    // A tier is looked into every ten seconds, so the wait of five may take fifteen.
    let all = seen.wait_longer(6, Duration::from_secs(15)).await;
    let of = |id| all.iter().filter(|(seen, ..)| *seen == id).cloned().collect::<Vec<_>>();
    for id in [good, bad] {
        assert_eq!(of(id).iter().map(|(_, attempt, ..)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    }
    assert!(of(good).iter().all(|(_, _, key, tenant)| key.as_deref() == Some(b"k1") && tenant.as_deref() == Some("blue")));
    until("it is dead", || async { env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1 == 1 }).await;
    let (dead, _) = env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    assert_eq!((dead[0].message.id, dead[0].attempts), (bad, 3));
    consumer.close(Duration::from_secs(5)).await;
    program.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_lot_on_the_broker() {
    retries_and_dies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_lot_in_the_store() {
    retries_and_dies(true).await;
}

/// A message that fails holds back its key, by a short wait and by one beyond five seconds, and no other key. The lot is on the
/// broker: it is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn fifo_queues_keep_the_order_of_keys() {
    let program = program(false, &json!({}), &json!({ "ordering": "key", "shards": 4 })).await;
    let env = &program.env;
    let seen = Seen::new();
    let mut consumers = Vec::new();
    for _ in 0..2 {
        let s = seen.clone();
        let consume = env.consume(EVENT, move |payload: Value, c: Context| {
            let (key, n) = (payload["key"].as_str().unwrap().to_owned(), payload["n"].as_u64().unwrap());
            let fails = key == "k2" && n == 1 && c.attempt < 3;
            if !fails {
                s.push((key, n));
            }
            async move { if fails { Err("not yet") } else { Ok(()) } }
        });
        consumers.push(consume.retry(retries(&[300, 5_500])).breaker(false).await.unwrap());
    }
    for n in 0..4 {
        for key in ["k1", "k2", "k3"] {
            env.produce(EVENT, &json!({ "key": key, "n": n })).key(key).await.unwrap();
        }
    }
    let all = seen.wait(12).await;
    let mut next: HashMap<&str, u64> = HashMap::new();
    for (key, n) in &all {
        let expected = next.entry(key).or_default();
        assert_eq!(n, expected, "key {key} out of order: {all:?}");
        *expected += 1;
    }
    let last_of = |wanted: &str| all.iter().rposition(|(key, _)| key == wanted);
    assert!(last_of("k1") < last_of("k2") && last_of("k3") < last_of("k2"), "a failing key held up the others: {all:?}");
    for consumer in consumers {
        consumer.close(Duration::from_secs(5)).await;
    }
    program.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_program_makes_few_calls() {
    const N: usize = 2_000;
    let counter = Counter::new().await;
    let program = program(true, &json!({ "endpoint": counter.endpoint }), &json!({})).await;
    let env = &program.env;
    // A route that is open already, as under load it is.
    env.produce(EVENT, &json!({ "n": "first" })).await.unwrap();
    let before = counter.calls("SendMessageBatch");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..N {
        let env = env.clone();
        tasks.spawn(async move { env.produce(EVENT, &json!({ "n": n })).await.map(drop) });
    }
    while let Some(produced) = tasks.join_next().await {
        produced.unwrap().unwrap();
    }
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |_: Raw, _: Context| {
            s.push(());
            async {}
        })
        .await
        .unwrap();
    seen.wait(N + 1).await;
    until("all is settled", || async { consumer.in_flight() == 0 }).await;
    let most = N * 12 / 100;
    let calls = [
        ("SendMessageBatch", counter.calls("SendMessageBatch") - before),
        ("ReceiveMessage", counter.calls("ReceiveMessage")),
        ("DeleteMessageBatch", counter.calls("DeleteMessageBatch")),
    ];
    println!("{N} messages: {calls:?}, {} connections", counter.connections());
    for (action, calls) in calls {
        assert!(calls <= most, "{calls} calls of {action} for {N} messages");
    }
    consumer.close(Duration::from_secs(5)).await;
    program.trunkline.close(Duration::from_secs(10)).await;
}
