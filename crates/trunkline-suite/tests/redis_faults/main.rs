//! What happens to a Redis in production: it dies, loses its data, fills up, refuses, is reached through a bad network. And
//! that clients which know nothing of Trunkline can share a stream with it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod channel;
mod death;
mod full;
mod interop;
mod network;
mod private;
mod trim;
mod whole;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline::delivery::{Delivery, EnvelopeId, Settle, Settled};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, Signal, Start, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{Headers, MessageId};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn topic(name: &str) -> TopicSpec {
    TopicSpec::new(name, 1, false)
}

fn group(name: &str) -> GroupSpec {
    GroupSpec { name: name.into(), start: Start::Earliest }
}

fn message(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

fn messages(n: usize, size: usize) -> Vec<Outgoing> {
    (0..n).map(|_| message(vec![b'x'; size])).collect()
}

/// Sends; all must be confirmed.
async fn send(provider: &dyn Provider, topic: &TopicSpec, batch: Vec<Outgoing>) -> Vec<MessageId> {
    let ids = batch.iter().map(|message| message.id).collect();
    for result in provider.send(topic, Arc::new(batch)).await {
        result.unwrap_or_else(|failed| panic!("not confirmed: {failed:?}"));
    }
    ids
}

async fn subscribe(provider: &dyn Provider, topic: &TopicSpec, group: &GroupSpec) -> trunkline::Result<Arc<dyn Subscription>> {
    let options = SubscribeOptions { member: MessageId::now().to_string().into(), prefetch: Prefetch { count: 256, bytes: 16 << 20 } };
    provider.subscribe(std::slice::from_ref(topic), group, options).await
}

/// The deliveries of one `next`.
async fn next(subscription: &dyn Subscription, wait: Duration) -> trunkline::Result<Vec<Delivery>> {
    Ok(deliveries(subscription.next(100, usize::MAX, wait).await?))
}

fn deliveries(signals: Vec<Signal>) -> Vec<Delivery> {
    let of = |signal| match signal {
        Signal::Deliveries { items, .. } => items,
        _ => Vec::new(),
    };
    signals.into_iter().flat_map(of).collect()
}

fn id(delivery: &Delivery) -> MessageId {
    match delivery.id {
        EnvelopeId::Id(id) => id,
        other => panic!("{other:?}"),
    }
}

/// Waits until `n` came.
async fn take(subscription: &dyn Subscription, n: usize) -> Vec<Delivery> {
    let end = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while all.len() < n {
        assert!(Instant::now() < end, "{} of {n} came", all.len());
        all.extend(deliveries(subscription.next(n - all.len(), usize::MAX, Duration::from_secs(1)).await.unwrap()));
    }
    all
}

async fn settle(subscription: &dyn Subscription, of: &[Delivery], how: Settle) -> Vec<Settled> {
    subscription.settle(&of.iter().map(|delivery| (delivery.token, how)).collect::<Vec<_>>()).await
}

async fn done(subscription: &dyn Subscription, of: &[Delivery]) {
    let answers = settle(subscription, of, Settle::Done).await;
    assert!(answers.iter().all(|answer| *answer == Settled::Settled), "{answers:?}");
}

/// Waits until it holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn set(ids: impl IntoIterator<Item = MessageId>) -> HashSet<MessageId> {
    ids.into_iter().collect()
}
