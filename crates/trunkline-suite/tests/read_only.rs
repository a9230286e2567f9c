//! The file system of the log turns read-only under a running program: a produce says so at once, what is there is still
//! handed out, and nothing that was confirmed is lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use trunkline::Code;
use trunkline_suite::mount::Mount;
use trunkline_suite::promise::{Bed, EVENT, Lot, builder, data};

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_turns_read_only_refuses_and_loses_nothing() {
    let mount = Mount::ext4();
    let config = json!({ "path": mount.path().join("log") });
    let bed = Bed::with(Lot::Store, |builder| builder, config, json!({})).await;
    let mut confirmed = HashSet::new();
    for n in 0..50 {
        confirmed.insert(bed.produce(n).await);
    }
    mount.turn_read_only();
    for _ in 0..3 {
        let error = bed.env.produce(EVENT, &1).timeout(Duration::from_secs(20)).await.unwrap_err();
        assert_eq!((error.code(), error.retryable()), (Code::PublishFailed, false), "{error:?}");
        // The first may have been written and not synced; what was not even written says why.
        let ambiguous = error.details()["ambiguous"].as_bool();
        assert!(ambiguous == Some(true) || error.detail_str("reason") == Some("read_only"), "{error:?}");
        assert!(error.detail_str("next").is_some(), "{error:?}");
    }
    bed.trunkline.close(Duration::from_secs(5)).await;
    let dir = bed.dir.clone();
    drop(bed);
    mount.repair();
    // Another start of the program: everything confirmed is there, and more can be produced.
    let trunkline = builder(&data(dir.path()), Lot::Store).open().await.unwrap();
    let env = trunkline.env("shop", "prd");
    confirmed.insert(env.produce(EVENT, &2).await.unwrap().process_id);
    let mut stream = env.stream::<serde_json::Value>(EVENT, trunkline::ConsumeOptions::default()).await.unwrap();
    while !confirmed.is_empty() {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("in time").unwrap();
        confirmed.remove(&message.context.process_id);
        message.ack();
    }
    stream.close(Duration::from_secs(5)).await;
    trunkline.close(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_on_a_log_that_turned_read_only_goes_on_and_what_it_could_not_ack_comes_again() {
    let mount = Mount::ext4();
    let config = json!({ "path": mount.path().join("log") });
    let bed = Bed::with(Lot::Store, |builder| builder, config, json!({})).await;
    let mut confirmed = HashSet::new();
    for n in 0..50 {
        confirmed.insert(bed.produce(n).await);
    }
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    seen.wait(50).await;
    consumer.pause();
    for n in 50..100 {
        confirmed.insert(bed.produce(n).await);
    }
    mount.turn_read_only();
    consumer.resume();
    // Handling needs no writing; the acks do, and are not there later.
    seen.wait(100).await;
    bed.trunkline.close(Duration::from_secs(5)).await;
    let dir = bed.dir.clone();
    drop((bed, consumer));
    mount.repair();
    let trunkline = builder(&data(dir.path()), Lot::Store).open().await.unwrap();
    let env = trunkline.env("shop", "prd");
    let last = env.produce(EVENT, &1).await.unwrap().process_id;
    let mut stream = env.stream::<serde_json::Value>(EVENT, trunkline::ConsumeOptions::default()).await.unwrap();
    let mut again = HashSet::new();
    while !again.contains(&last) {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("in time").unwrap();
        again.insert(message.context.process_id);
        message.ack();
    }
    again.remove(&last);
    assert!(again.is_subset(&confirmed));
    assert_eq!(seen.all().into_iter().collect::<HashSet<_>>(), confirmed, "all were handled the first time");
    stream.close(Duration::from_secs(5)).await;
    trunkline.close(Duration::from_secs(5)).await;
}
