//! What the tests share: the server, for one test at a time; connections to it; and words for what every test does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use trunkline::config::{ProviderConfig, ProviderKind};
use trunkline::delivery::{Delivery, EnvelopeId, Position, Settle, Settled};
use trunkline::provider::rabbitmq::{Options, RabbitMq};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, SendError, Signal, Start, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{Error, Headers, MessageId, Result};
use trunkline_suite::server::{Server, setting};

/// Nothing that must come takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const OPTIONS: Options = Options { revoke: Duration::from_secs(3), beat: Duration::from_millis(500) };

static ONE: Mutex<()> = Mutex::const_new(());

/// The server, for this test alone.
pub(crate) async fn server() -> (Server, MutexGuard<'static, ()>) {
    (Server::named("rabbitmq"), ONE.lock().await)
}

pub(crate) fn url() -> String {
    setting("RABBITMQ")
}

/// `host:port` of the plain listener.
pub(crate) fn address() -> String {
    let url = url();
    url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned()
}

/// Runs `rabbitmqctl`.
pub(crate) async fn ctl(args: &[&str]) -> String {
    let output = tokio::process::Command::new(setting("RABBITMQCTL")).args(args).output().await.unwrap();
    assert!(output.status.success(), "rabbitmqctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) async fn open_with(config: Value) -> Result<Arc<dyn Provider>> {
    let ProviderConfig::RabbitMq(config) = ProviderConfig::parse(ProviderKind::RabbitMq, &config)? else { unreachable!() };
    Ok(Arc::new(RabbitMq::with_options(config, OPTIONS).await?))
}

pub(crate) async fn open() -> Arc<dyn Provider> {
    open_with(json!({ "url": url() })).await.unwrap()
}

pub(crate) fn name(what: &str) -> String {
    format!("{what}-{}", &MessageId::now().0.simple().to_string()[4..])
}

pub(crate) fn group(name: &str) -> GroupSpec {
    GroupSpec { name: name.into(), start: Start::Latest }
}

/// A fresh topic with the group `g`.
pub(crate) async fn topic(provider: &Arc<dyn Provider>, shards: u32, ordered: bool) -> TopicSpec {
    let topic = TopicSpec::new(name("faults"), shards, ordered);
    provider.ensure(&topic, &[group("g")]).await.unwrap();
    topic
}

pub(crate) fn message(payload: impl Into<bytes::Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

pub(crate) fn numbered(n: usize) -> Vec<Outgoing> {
    (0..n).map(|at| message(at.to_string())).collect()
}

pub(crate) async fn send(provider: &Arc<dyn Provider>, topic: &TopicSpec, batch: Vec<Outgoing>) -> Vec<Result<Position, SendError>> {
    tokio::time::timeout(PATIENCE, provider.send(topic, Arc::new(batch))).await.unwrap()
}

/// Sends; all must be confirmed. Their ids.
pub(crate) async fn confirmed(provider: &Arc<dyn Provider>, topic: &TopicSpec, batch: Vec<Outgoing>) -> Vec<MessageId> {
    let ids = batch.iter().map(|message| message.id).collect();
    for answer in send(provider, topic, batch).await {
        answer.unwrap();
    }
    ids
}

pub(crate) async fn subscribe(provider: &Arc<dyn Provider>, topic: &TopicSpec, group_name: &str) -> Arc<dyn Subscription> {
    let options = SubscribeOptions { member: name("member").into(), prefetch: Prefetch { count: 256, bytes: 64 << 20 } };
    provider.subscribe(std::slice::from_ref(topic), &group(group_name), options).await.unwrap()
}

/// What comes, until there are `n`.
pub(crate) async fn take(subscription: &Arc<dyn Subscription>, n: usize) -> Vec<Delivery> {
    let end = Instant::now() + PATIENCE;
    let mut got = Vec::new();
    while got.len() < n {
        assert!(Instant::now() < end, "{} of {n} came", got.len());
        got.extend(step(subscription, n - got.len(), Duration::from_secs(1)).await.unwrap());
    }
    got
}

pub(crate) async fn step(subscription: &Arc<dyn Subscription>, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
    let signals = tokio::time::timeout(PATIENCE, subscription.next(max, usize::MAX, wait)).await.unwrap()?;
    let items = signals.into_iter().filter_map(|signal| if let Signal::Deliveries { items, .. } = signal { Some(items) } else { None });
    Ok(items.flatten().collect())
}

/// What comes within `wait`.
pub(crate) async fn within(subscription: &Arc<dyn Subscription>, wait: Duration) -> Vec<Delivery> {
    let end = Instant::now() + wait;
    let mut got = Vec::new();
    while Instant::now() < end {
        got.extend(step(subscription, 1000, end.saturating_duration_since(Instant::now())).await.unwrap());
    }
    got
}

pub(crate) async fn done(subscription: &Arc<dyn Subscription>, got: &[Delivery]) -> Vec<Settled> {
    let items: Vec<_> = got.iter().map(|delivery| (delivery.token, Settle::Done)).collect();
    tokio::time::timeout(PATIENCE, subscription.settle(&items)).await.unwrap()
}

/// Takes `n` and settles them.
pub(crate) async fn handle(subscription: &Arc<dyn Subscription>, n: usize) -> Vec<Delivery> {
    let got = take(subscription, n).await;
    assert!(done(subscription, &got).await.iter().all(|settled| *settled == Settled::Settled));
    got
}

/// The error that ends it.
pub(crate) async fn end_of(subscription: &Arc<dyn Subscription>) -> Error {
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "the subscription did not end");
        if let Err(error) = step(subscription, 100, Duration::from_secs(1)).await {
            return error;
        }
    }
}

pub(crate) fn ids(got: &[Delivery]) -> Vec<MessageId> {
    let id = |delivery: &Delivery| if let EnvelopeId::Id(id) = delivery.id { id } else { panic!("{:?}", delivery.id) };
    got.iter().map(id).collect()
}

pub(crate) fn reason(error: &Error) -> &str {
    error.details().get("reason").and_then(Value::as_str).unwrap_or_default()
}

pub(crate) async fn close(provider: &Arc<dyn Provider>) {
    provider.close(Instant::now() + Duration::from_secs(5)).await;
}
