//! A broker that misbehaves under a running program: between the core and an honest provider, it fails as often as it is
//! told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use trunkline::delivery::{Position, Settle, Settled, Token};
use trunkline::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Signal, Stage, Start, Stored, SubscribeOptions,
    Subscription, TopicSpec,
};
use trunkline::{Code, Error, Result};

/// What goes wrong, and how often.
#[derive(Debug, Default)]
pub struct Faults {
    /// Sends that fail before they reach the broker.
    pub unsent: AtomicU32,
    /// Sends that reach the broker but are not confirmed.
    pub unconfirmed: AtomicU32,
    /// Sends that reach the broker and are never answered.
    pub unanswered: AtomicU32,
    /// Sends that the process does not survive, just before they reach the broker.
    pub fatal: AtomicU32,
    /// Sends that the process does not survive, just after they reached the broker.
    pub fatal_late: AtomicU32,
    /// Receives that find the connection dead.
    pub dead: AtomicU32,
    /// Receives that never return.
    pub silent: AtomicU32,
}

impl Faults {
    /// What goes between the core and each provider.
    pub fn between(self: &Arc<Self>) -> impl Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync + 'static {
        let faults = self.clone();
        move |provider| Arc::new(Faulty(provider, faults.clone()))
    }
}

fn takes(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

#[derive(Debug)]
struct Faulty(Arc<dyn Provider>, Arc<Faults>);

#[derive(Debug)]
struct FaultySubscription(Arc<dyn Subscription>, Arc<Faults>);

#[async_trait]
impl Provider for Faulty {
    fn capabilities(&self, topic: &TopicSpec) -> trunkline::capability::Capabilities {
        self.0.capabilities(topic)
    }
    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        self.0.ensure(topic, groups).await
    }
    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        self.0.remove(what).await
    }
    fn sends_at_once(&self) -> usize {
        self.0.sends_at_once()
    }
    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let failed = |ambiguous| {
            let error = Error::new(Code::ConnectionFailed, "the connection broke");
            Err(SendError { error, retryable: true, ambiguous })
        };
        if takes(&self.1.unsent) {
            return batch.iter().map(|_| failed(false)).collect();
        }
        if takes(&self.1.fatal) {
            std::process::abort();
        }
        if takes(&self.1.unanswered) {
            self.0.send(topic, batch).await;
            std::future::pending::<()>().await;
            return Vec::new();
        }
        let lost = takes(&self.1.unconfirmed);
        let sent = self.0.send(topic, batch).await;
        if takes(&self.1.fatal_late) {
            std::process::abort();
        }
        if lost { sent.iter().map(|_| failed(true)).collect() } else { sent }
    }
    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        let inner = self.0.subscribe(routes, group, options).await?;
        Ok(Arc::new(FaultySubscription(inner, self.1.clone())))
    }
    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        self.0.depth(topic, group).await
    }
    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        self.0.read(topic, from, max).await
    }
    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        self.0.seek(topic, group, to).await
    }
    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        self.0.probe(deadline).await
    }
    async fn close(&self, deadline: Instant) {
        self.0.close(deadline).await;
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        if takes(&self.1.dead) {
            return Err(Error::new(Code::ConnectionFailed, "the connection broke"));
        }
        if takes(&self.1.silent) {
            std::future::pending::<()>().await;
        }
        self.0.next(max, max_bytes, wait.min(Duration::from_millis(100))).await
    }
    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        self.0.settle(items).await
    }
    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        self.0.extend(tokens).await
    }
    async fn yield_shard(&self, route: usize, shard: u32) {
        self.0.yield_shard(route, shard).await;
    }
    async fn pause(&self) {
        self.0.pause().await;
    }
    async fn resume(&self) {
        self.0.resume().await;
    }
    async fn close(&self, deadline: Instant) {
        self.0.close(deadline).await;
    }
}
