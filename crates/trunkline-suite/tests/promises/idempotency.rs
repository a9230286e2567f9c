//! Idempotent publish and dedupe.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use trunkline::store::Scope;
use trunkline::{Code, Context, Raw};

use trunkline_suite::promise::{Bed, EVENT, Lot, Seen};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_first_result() {
    let bed = Bed::new(Lot::Store).await;
    let other = bed.another().await;
    let first = bed.env.produce(EVENT, &json!({ "a": 1, "b": 2 })).idempotency_key("k").await.unwrap();
    assert_eq!((first.duplicate, first.scope), (Some(false), Some(Scope::Host)));
    // The order of fields is not part of the meaning.
    let again = other.env.produce_raw(EVENT, r#"{ "b": 2, "a": 1 }"#).idempotency_key("k").await.unwrap();
    assert_eq!((again.process_id, again.duplicate), (first.process_id, Some(true)));
    let conflict = bed.env.produce(EVENT, &json!({ "a": 2 })).idempotency_key("k").await.unwrap_err();
    assert_eq!(conflict.code(), Code::IdempotencyConflict);
    other.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_of_two_instances_publishes_each_key_once() {
    let bed = Bed::new(Lot::Store).await;
    let other = bed.another().await;
    let produce = |env: trunkline::Env| async move {
        let all = (0..200).map(|n| {
            let env = env.clone();
            async move { env.produce(EVENT, &n).idempotency_key(format!("key-{n}")).await.unwrap() }
        });
        let mut receipts = Vec::new();
        for receipt in all {
            receipts.push(receipt.await);
        }
        receipts
    };
    let (a, b) = tokio::join!(tokio::spawn(produce(bed.env.clone())), tokio::spawn(produce(other.env.clone())));
    let (a, b) = (a.unwrap(), b.unwrap());
    for (x, y) in a.iter().zip(&b) {
        assert_eq!(x.process_id, y.process_id);
        assert_eq!([x.duplicate, y.duplicate].iter().filter(|d| **d == Some(true)).count(), 1);
    }
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    let ids = seen.wait(200).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((seen.all().len(), ids.into_iter().collect::<HashSet<_>>().len()), (200, 200));
    consumer.close(Duration::from_secs(5)).await;
    other.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dedupe_passes_over_what_the_group_has_handled() {
    use trunkline::Start;
    let bed = Bed::new(Lot::Store).await;
    for n in 0..20 {
        bed.produce(n).await;
    }
    let handled = Seen::new();
    for round in 0..2 {
        let h = handled.clone();
        let consumer = bed
            .env
            .consume(EVENT, move |_: Raw, c: Context| {
                h.push(c.process_id);
                async {}
            })
            .dedupe(Duration::from_secs(60))
            .await
            .unwrap();
        trunkline_suite::promise::until("all are settled", || async { consumer.settled() >= 20 }).await;
        consumer.close(Duration::from_secs(5)).await;
        assert_eq!(handled.all().len(), 20, "round {round}");
        // Everything is handed out again: dedupe knows it.
        bed.env.seek_group(EVENT, "shop", &Start::Earliest).await.unwrap();
    }
    bed.close().await;
}
