//! Order per key: across members, with failures that are held and that wait in the lot.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use trunkline::{Code, Context, Raw};

use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, retries};

/// Each key's successes must be 0, 1, 2, … in order.
fn in_order(all: &[(String, u64)]) {
    let mut next: HashMap<&str, u64> = HashMap::new();
    for (key, n) in all {
        let expected = next.entry(key).or_default();
        assert_eq!(n, expected, "key {key} out of order");
        *expected += 1;
    }
}

async fn keys_keep_their_order(delays: &'static [u64], keys: u64, each: u64) {
    let bed = Bed::ordered().await;
    let other = bed.another().await;
    let seen = Seen::new();
    let mut consumers = Vec::new();
    for b in [&bed, &other] {
        let s = seen.clone();
        let consumer = b
            .env
            .consume(EVENT, move |payload: Value, c: Context| {
                let (key, n) = (payload["key"].as_str().unwrap().to_owned(), payload["n"].as_u64().unwrap());
                let s = s.clone();
                async move {
                    // Every fifth message of a key fails until its last chance.
                    if n % 5 == 2 && c.attempt <= delays.len() as u32 {
                        return Err("not yet");
                    }
                    s.push((key, n));
                    Ok(())
                }
            })
            .retry(retries(delays))
            .breaker(false)
            .await
            .unwrap();
        consumers.push(consumer);
    }
    for n in 0..each {
        for key in 0..keys {
            bed.produce_keyed(&format!("k{key}"), n).await;
        }
    }
    let all = seen.wait((keys * each) as usize).await;
    in_order(&all);
    assert_eq!(all.len(), (keys * each) as usize);
    for consumer in &consumers {
        consumer.close(Duration::from_secs(5)).await;
    }
    other.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_retries_keep_the_order_of_their_key() {
    keys_keep_their_order(&[10, 20], 10, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_in_the_lot_keep_the_order_of_their_key() {
    keys_keep_their_order(&[5_100], 6, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_keys_go_on_while_one_fails() {
    let bed = Bed::ordered().await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, _: Context| {
            let key = payload["key"].as_str().unwrap().to_owned();
            let s = s.clone();
            async move {
                if key == "bad" {
                    return Err("never");
                }
                s.push(key);
                Ok(())
            }
        })
        .retry(retries(&[2_000, 60_000]))
        .breaker(false)
        .await
        .unwrap();
    for n in 0..50 {
        bed.produce_keyed("bad", n).await;
        bed.produce_keyed(&format!("good{}", n % 7), n / 7).await;
    }
    seen.wait(50).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_with_long_waits_is_refused_where_the_lot_is_on_the_broker() {
    let bed = Bed::with_topic(Lot::Topics, serde_json::json!({ "ordering": "key" })).await;
    let refused = bed.env.consume(EVENT, |_: Raw, _: Context| async {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::CapabilityUnsupported);
    assert!(refused.detail_str("next").unwrap().contains("singleHost"), "{refused:?}");
    // Short waits are held in flight, so they are fine; and so is a consumer that gives up the order.
    bed.env.consume(EVENT, |_: Raw, _: Context| async {}).retry(retries(&[1_000, 5_000])).await.unwrap();
    bed.env.consume(EVENT, |_: Raw, _: Context| async {}).group("loose").unordered().await.unwrap();
    bed.close().await;
}
