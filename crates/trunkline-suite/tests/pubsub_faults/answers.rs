//! Answers that the test server never gives by itself: its projects say which call is refused, how, and how often.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use trunkline::Code;
use trunkline::delivery::{Settle, Settled};
use trunkline::provider::{Outgoing, Provider, Signal, SubscriptionState, TopicSpec};

use crate::{LEASE, config, done, group, id, message, messages, name, open, send, set, settle, subscribe, take, topic, within};

/// A connection to a project whose calls of `method` are refused so, the first `times`; 0 is all.
async fn refusing(method: &str, code: &str, times: u32) -> Arc<dyn Provider> {
    open(&config(&json!({ "projectId": name(&format!("refuse-{method}-{code}-{times}")) }))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_publish_says_whether_to_try_again() {
    for (code, product, retryable, ambiguous) in [
        ("UNAVAILABLE", Code::ConnectionFailed, true, true),
        ("DEADLINE_EXCEEDED", Code::ConnectionFailed, true, true),
        ("INTERNAL", Code::ConnectionFailed, true, true),
        ("RESOURCE_EXHAUSTED", Code::ConnectionFailed, true, false),
        ("PERMISSION_DENIED", Code::AuthenticationFailed, false, false),
        ("UNAUTHENTICATED", Code::AuthenticationFailed, false, false),
        ("INVALID_ARGUMENT", Code::PublishFailed, false, false),
        ("FAILED_PRECONDITION", Code::PublishFailed, false, false),
        ("NOT_FOUND", Code::TopicNotFound, false, false),
    ] {
        let provider = refusing("Publish", code, 1).await;
        let topic = topic("orders");
        provider.ensure(&topic, &[group("g")]).await.unwrap();
        for result in provider.send(&topic, Arc::new(messages(3))).await {
            let failed = result.unwrap_err();
            assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (product, retryable, ambiguous), "{code}: {failed:?}");
        }
        send(&*provider, &topic, messages(3)).await;
    }
}

/// Behind a request that failed nothing of its key is sent, and other keys go on.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_failed_request_none_of_its_key_is_sent() {
    let provider = refusing("Publish", "UNAVAILABLE", 1).await;
    let (topic, group) = (TopicSpec { ordered: true, ..topic("orders") }, group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let keyed = |key: &'static str| Outgoing { key: Some(key.into()), shard: Some(0), ..message("x") };
    let batch: Vec<Outgoing> = (0..2_500).map(|_| keyed("a")).collect();
    let results = provider.send(&topic, Arc::new(batch)).await;
    let failed: Vec<_> = results.iter().map(|result| result.as_ref().unwrap_err()).collect();
    assert!(failed.iter().all(|failed| failed.retryable));
    assert_eq!(failed.iter().filter(|failed| failed.ambiguous).count(), 1_000, "one request was sent");
    assert!(failed[1_000..].iter().all(|failed| failed.error.detail_str("reason") == Some("behind_failed")));
    send(&*provider, &topic, vec![keyed("a"), keyed("b")]).await;
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    assert_eq!(within(&*subscription, Duration::from_secs(1)).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_that_do_not_get_through_are_made_again() {
    let provider = refusing("Acknowledge", "UNAVAILABLE", 2).await;
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(5)).await;
    done(&*subscription, &take(&*subscription, 5).await).await;
    // Where that lasts, nobody knows; the message comes again.
    let provider = refusing("Acknowledge", "UNAVAILABLE", 0).await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let sent = send(&*provider, &topic, messages(5)).await;
    let answers = settle(&*subscription, &take(&*subscription, 5).await, Settle::Done).await;
    assert_eq!(answers, [Settled::Unknown; 5]);
    let again = take(&*subscription, 5).await;
    assert_eq!(set(again.iter().map(id)), set(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_kept_over_calls_that_fail() {
    let provider = refusing("ModifyAckDeadline", "UNAVAILABLE", 2).await;
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(5)).await;
    let held = take(&*subscription, 5).await;
    assert!(within(&*subscription, LEASE * 2).await.is_empty());
    done(&*subscription, &held).await;
}

/// What cannot be kept is lost in time, and settles nothing of who has it next.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_cannot_be_kept_is_lost() {
    let provider = refusing("ModifyAckDeadline", "UNAVAILABLE", 0).await;
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(2)).await;
    let held = take(&*subscription, 2).await;
    let again = take(&*subscription, 2).await;
    let answers = settle(&*subscription, &held, Settle::Done).await;
    assert_eq!(answers, [Settled::Stale; 2]);
    done(&*subscription, &again).await;
}

/// The states that a subscription was in until something came.
async fn states(provider: &dyn Provider) -> Vec<SubscriptionState> {
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(provider, &topic, &group).await.unwrap();
    send(provider, &topic, messages(3)).await;
    let (mut states, mut came) = (Vec::new(), 0);
    while came < 3 {
        for signal in subscription.next(10, usize::MAX, Duration::from_secs(1)).await.unwrap() {
            match signal {
                Signal::State(state) => states.push(state),
                Signal::Deliveries { items, .. } => came += items.len(),
                _ => {}
            }
        }
    }
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_fail_are_opened_again() {
    assert!(states(&*refusing("StreamingPull", "UNAVAILABLE", 3).await).await.is_empty(), "nothing to speak of");
    let states = states(&*refusing("StreamingPull", "RESOURCE_EXHAUSTED", 3).await).await;
    assert_eq!(states, [SubscriptionState::Degraded("throttled"), SubscriptionState::Live]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_allowed_ends_the_subscription() {
    for (code, product) in [
        ("PERMISSION_DENIED", Code::AuthenticationFailed),
        ("UNAUTHENTICATED", Code::AuthenticationFailed),
        ("NOT_FOUND", Code::GroupNotFound),
    ] {
        let provider = refusing("StreamingPull", code, 0).await;
        let (topic, group) = (topic("orders"), group("g"));
        provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
        let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
        let error = subscription.next(1, usize::MAX, Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(error.code(), product);
    }
}
