//! Produce: the order of checks, limits, delays.

use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::history::Status;
use trunkline::{Code, Context, ProduceOptions, Raw};

use trunkline_suite::promise::{Bed, EVENT, Lot, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failing_check_is_the_error() {
    let bed = Bed::new(Lot::Store).await;
    let t = &bed.trunkline;
    let code = |product: &str, env: &str, event: &str| {
        let env = t.env(product, env);
        let event = event.to_owned();
        async move { env.produce(&event, &1).await.unwrap_err().code() }
    };
    assert_eq!(code("nobody", "prd", "malformed").await, Code::ProductNotFound);
    assert_eq!(code("shop", "prd", "malformed").await, Code::EventInvalid);
    assert_eq!(code("shop", "prd", "none:created").await, Code::BrokerNotFound);
    assert_eq!(code("shop", "dev", "orders:none").await, Code::BrokerEnvNotFound);
    assert_eq!(code("shop", "prd", "orders:none").await, Code::TopicNotFound);
    let typo = t.env("shop", "prd").produce("orders:creatd", &1).await.unwrap_err();
    assert!(typo.detail_str("next").is_some_and(|next| !next.is_empty()), "{typo:?}");
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_reserved_is_refused_before_it_is_sent() {
    let bed = Bed::new(Lot::Store).await;
    let large = bed.env.produce_raw(EVENT, vec![b'x'; (1 << 20) + 1]).await.unwrap_err();
    assert_eq!((large.code(), large.retryable()), (Code::PayloadTooLarge, false));
    let reserved = bed.env.produce(EVENT, &1).header("trunkline-id", "x").await.unwrap_err();
    assert_eq!((reserved.code(), reserved.detail_str("field")), (Code::InputInvalid, Some("headers")));
    let past = bed.env.produce(EVENT, &1).expires_at(1).await.unwrap_err();
    assert_eq!(past.detail_str("field"), Some("expiresAt"));
    bed.close().await;
}

async fn delayed(lot: Lot) {
    let bed = Bed::new(lot).await;
    let (consumer, seen) = bed.watch(|_, c| (c.process_id, Instant::now())).await;
    let start = Instant::now();
    let late = bed.env.produce(EVENT, &1).delay(Duration::from_millis(700)).await.unwrap().process_id;
    let at_once = bed.env.produce(EVENT, &2).await.unwrap().process_id;
    let all = seen.wait(2).await;
    assert_eq!([all[0].0, all[1].0], [at_once, late]);
    assert!(all[1].1.duration_since(start) >= Duration::from_millis(700));
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_publish_comes_when_it_is_due() {
    delayed(Lot::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_publish_on_the_broker_comes_when_it_is_due() {
    delayed(Lot::Topics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_for_each_message_in_order() {
    let bed = Bed::new(Lot::Store).await;
    let mut messages: Vec<_> = (0..1_000).map(|n| (json!({ "n": n }).to_string().into(), ProduceOptions::default())).collect();
    messages[500].0 = vec![b'x'; 2 << 20].into();
    let results = bed.env.produce_batch(EVENT, messages).await.unwrap();
    assert_eq!(results.len(), 1_000);
    assert!(results.iter().enumerate().all(|(n, result)| result.is_ok() == (n != 500)));
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_close_nothing_is_sent() {
    let bed = Bed::new(Lot::Store).await;
    bed.produce(1).await;
    let env = bed.env.clone();
    bed.close().await;
    assert_eq!(env.produce(EVENT, &1).await.unwrap_err().code(), Code::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_removed_when_nobody_uses_it_and_purged_when_asked() {
    use trunkline::removal::Removal;
    let bed = Bed::new(Lot::Store).await;
    bed.produce(1).await;
    let event = EVENT.parse().unwrap();
    let consumer = bed.env.consume(EVENT, |_: Raw, _: Context| async {}).await.unwrap();
    let live = async || !bed.trunkline.members(None).await.unwrap().iter().all(|member| member.group.is_none());
    until("the consumer is in the registry", live).await;
    let refused = bed.trunkline.delete_topic("shop", &event, Removal::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InUse);
    consumer.close(Duration::from_secs(5)).await;
    bed.trunkline.delete_topic("shop", &event, Removal { force: true, purge: true }).await.unwrap();
    assert_eq!(bed.env.produce(EVENT, &1).await.unwrap_err().code(), Code::TopicNotFound);
    // Made again, it is empty: nothing of the old one is left on the broker.
    bed.trunkline.catalog().create_topic(Some("shop"), json!({ "name": "Created", "tag": EVENT })).await.unwrap();
    let id = bed.produce(2).await;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    assert_eq!(seen.wait(1).await, [id]);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_after_a_confirm_or_a_settle_finds_it_in_the_history() {
    let bed = Bed::new(Lot::Store).await;
    let (consumer, _seen) = bed.watch(|_, c| c.process_id).await;
    for n in 0..200 {
        let id = bed.produce(n).await;
        assert!(bed.env.message(id).await.unwrap().is_some(), "{n}: confirmed, and not in the history");
        until("it is settled", || async { consumer.settled() > n }).await;
        let record = bed.env.message(id).await.unwrap().expect("the message");
        assert!(record.groups.iter().any(|group| group.status == Status::Delivered), "{n}: settled, and not in the history: {record:?}");
    }
    bed.close().await;
}
