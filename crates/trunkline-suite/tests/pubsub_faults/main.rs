//! What happens to Pub/Sub in production: its streams are closed, the network breaks, it refuses, it is reached with the wrong
//! settings. And that clients which know nothing of Trunkline can share a topic with it.
//!
//! The test server keeps nothing over a restart: what would restart it cuts the network instead.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod answers;
mod interop;
mod network;
mod order;
mod private;
mod streams;
mod tls;
mod whole;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use trunkline::config::{ProviderConfig, ProviderKind, PubsubConfig};
use trunkline::delivery::{Delivery, EnvelopeId, Settle, Settled};
use trunkline::provider::pubsub::{Options, PubSub};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, Signal, Start, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{Headers, MessageId, Result};
use trunkline_suite::server::setting;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Short, so that what waits for a lease is quick; the service takes ten seconds at the least.
const LEASE: Duration = Duration::from_secs(3);

/// The test server's address.
fn server() -> String {
    setting("PUBSUB")
}

fn options() -> Options {
    Options { lease: LEASE, ping: Duration::from_secs(1), patience: Duration::from_secs(2) }
}

/// A project nobody else uses, with these fields beside it.
fn config(fields: &Value) -> Value {
    let mut config = json!({ "projectId": name("project"), "endpoint": format!("http://{}", server()) });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    config
}

fn parsed(config: &Value) -> PubsubConfig {
    match ProviderConfig::parse(ProviderKind::GooglePubSub, config).unwrap() {
        ProviderConfig::GooglePubSub(config) => config,
        other => panic!("{other:?}"),
    }
}

async fn open(config: &Value) -> Result<Arc<dyn Provider>> {
    Ok(Arc::new(PubSub::open(&parsed(config), options()).await?))
}

fn name(what: &str) -> String {
    format!("{what}-{}", MessageId::now().0.simple())
}

fn topic(name: &str) -> TopicSpec {
    TopicSpec::new(name, 1, false)
}

fn group(name: &str) -> GroupSpec {
    GroupSpec { name: name.into(), start: Start::Latest }
}

fn message(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

fn messages(n: usize) -> Vec<Outgoing> {
    (0..n).map(|n| message(format!("{{\"n\":{n}}}"))).collect()
}

/// Sends; all must be confirmed.
async fn send(provider: &dyn Provider, topic: &TopicSpec, batch: Vec<Outgoing>) -> Vec<MessageId> {
    let ids = batch.iter().map(|message| message.id).collect();
    for result in provider.send(topic, Arc::new(batch)).await {
        result.unwrap_or_else(|failed| panic!("not confirmed: {failed:?}"));
    }
    ids
}

async fn subscribe_with(
    provider: &dyn Provider,
    topic: &TopicSpec,
    group: &GroupSpec,
    prefetch: Prefetch,
) -> Result<Arc<dyn Subscription>> {
    let options = SubscribeOptions { member: MessageId::now().to_string().into(), prefetch };
    provider.subscribe(std::slice::from_ref(topic), group, options).await
}

async fn subscribe(provider: &dyn Provider, topic: &TopicSpec, group: &GroupSpec) -> Result<Arc<dyn Subscription>> {
    subscribe_with(provider, topic, group, Prefetch { count: 256, bytes: 32 << 20 }).await
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

/// What comes within this time.
async fn within(subscription: &dyn Subscription, wait: Duration) -> Vec<Delivery> {
    let end = Instant::now() + wait;
    let mut all = Vec::new();
    while Instant::now() < end {
        all.extend(deliveries(subscription.next(1000, usize::MAX, end - Instant::now()).await.unwrap()));
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
