//! What the tests of NATS share: connections by config, and the brokers of the suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use trunkline::config::{NatsConfig, ProviderConfig, ProviderKind};
use trunkline::delivery::{Delivery, Position, Settle, Settled};
use trunkline::provider::nats::{Nats, Options};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, SendError, Signal, Start, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{Headers, MessageId, Result};
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

/// Short, so that what waits for a lease to end is quick; long beside what a busy machine holds up.
pub(crate) const LEASE: Duration = Duration::from_millis(2500);

/// A config as a user writes it.
pub(crate) fn config(value: &Value) -> NatsConfig {
    match ProviderConfig::parse(ProviderKind::Nats, value) {
        Ok(ProviderConfig::Nats(config)) => config,
        other => panic!("{other:?}"),
    }
}

/// A connection with a short lease.
pub(crate) async fn open(value: &Value) -> Result<Arc<dyn Provider>> {
    Ok(Arc::new(Nats::open(&config(value), Options { lease: LEASE }).await?))
}

/// A name nobody else uses.
pub(crate) fn fresh(start: &str) -> String {
    format!("{start}-{}", MessageId::now().0.simple())
}

/// An unordered topic of a name nobody else uses.
pub(crate) fn topic(start: &str) -> TopicSpec {
    TopicSpec::new(fresh(start), 1, false)
}

/// A group that starts with the oldest message.
pub(crate) fn group() -> GroupSpec {
    GroupSpec { name: fresh("g").into(), start: Start::Earliest }
}

/// A message without a key.
pub(crate) fn message(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

/// Sends one message.
pub(crate) async fn send(provider: &dyn Provider, topic: &TopicSpec, message: Outgoing) -> Result<Position, SendError> {
    provider.send(topic, Arc::new(vec![message])).await.pop().unwrap()
}

/// One member of a group with room enough.
pub(crate) async fn join(provider: &dyn Provider, topic: &TopicSpec, group: &GroupSpec) -> Arc<dyn Subscription> {
    let options = SubscribeOptions { member: fresh("m").into(), prefetch: Prefetch { count: 256, bytes: 16 << 20 } };
    provider.subscribe(std::slice::from_ref(topic), group, options).await.unwrap()
}

/// The next deliveries, at least `n`.
pub(crate) async fn take(subscription: &dyn Subscription, n: usize) -> Vec<Delivery> {
    let mut got = Vec::new();
    let all = async {
        while got.len() < n {
            for signal in subscription.next(n - got.len(), usize::MAX, Duration::from_secs(1)).await.unwrap() {
                if let Signal::Deliveries { items, .. } = signal {
                    got.extend(items);
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the deliveries come");
    got
}

/// Settles them as done.
pub(crate) async fn done(subscription: &dyn Subscription, got: &[Delivery]) {
    let items: Vec<_> = got.iter().map(|delivery| (delivery.token, Settle::Done)).collect();
    assert!(subscription.settle(&items).await.iter().all(|settled| *settled == Settled::Settled));
}

/// A plain client of the same server, that knows nothing of Trunkline.
pub(crate) async fn foreign() -> async_nats::Client {
    // A server whose disk is busy may take longer than the client's ten seconds.
    let options = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_secs(60)));
    options.connect(setting("NATS")).await.unwrap()
}

/// Asks JetStream's API something, as an operator would.
pub(crate) async fn ask(client: &async_nats::Client, what: &str, body: Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(format!("$JS.API.{what}"), body.into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// The plain server's config.
pub(crate) fn plain() -> Value {
    json!({ "servers": setting("NATS") })
}

#[derive(Debug)]
pub(crate) struct JetStream;

#[async_trait]
impl Broker for JetStream {
    fn name(&self) -> &str {
        "NATS JetStream"
    }

    fn pace(&self) -> Pace {
        Pace { patience: Duration::from_secs(60), quiet: Duration::from_millis(400) }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        open(&plain()).await
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[]
    }
}

#[derive(Debug)]
pub(crate) struct CoreNats;

#[async_trait]
impl Broker for CoreNats {
    fn name(&self) -> &str {
        "core NATS"
    }

    fn pace(&self) -> Pace {
        Pace { patience: Duration::from_secs(60), quiet: Duration::from_millis(400) }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        open(&json!({ "servers": setting("NATS"), "mode": "core" })).await
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[("send/to_a_missing_topic_is_not_confirmed", "a subject of core NATS needs no making: there is no topic that could be missing")]
    }
}
