//! A broker that misbehaves under a running program: the core retries, rebuilds, and says what it does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use trunkline::delivery::{Position, Settle, Settled, Token};
use trunkline::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Signal, Stage, Start, Stored, SubscribeOptions,
    Subscription, TopicSpec,
};
use trunkline::{Code, Context, Error, Raw, Result, State};

use crate::bed::{self, Bed, EVENT, Lot, Seen};

/// What goes wrong, and how often.
#[derive(Debug, Default)]
struct Faults {
    /// Sends that fail before they reach the broker.
    unsent: AtomicU32,
    /// Sends that reach the broker but are not confirmed.
    unconfirmed: AtomicU32,
    /// Sends that reach the broker and are never answered.
    unanswered: AtomicU32,
    /// Receives that find the connection dead.
    dead: AtomicU32,
    /// Receives that never return.
    silent: AtomicU32,
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
    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let failed = |ambiguous| {
            let error = Error::new(Code::ConnectionFailed, "the connection broke");
            Err(SendError { error, retryable: true, ambiguous })
        };
        if takes(&self.1.unsent) {
            return batch.iter().map(|_| failed(false)).collect();
        }
        if takes(&self.1.unanswered) {
            self.0.send(topic, batch).await;
            std::future::pending::<()>().await;
            return Vec::new();
        }
        let lost = takes(&self.1.unconfirmed);
        let sent = self.0.send(topic, batch).await;
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

async fn faulty() -> (Bed, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let f = faults.clone();
    let bed = Bed::wrapped(Lot::Store, move |provider| Arc::new(Faulty(provider, f.clone()))).await;
    (bed, faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_fails_is_sent_again_with_the_same_id() {
    let (bed, faults) = faulty().await;
    faults.unsent.store(3, Ordering::SeqCst);
    let id = bed.produce(1).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push(c.process_id);
            async {}
        })
        .await
        .unwrap();
    assert_eq!(seen.wait(1).await, [id]);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_unconfirmed_is_reported_as_ambiguous() {
    let (bed, faults) = faulty().await;
    bed.produce(0).await;
    faults.unconfirmed.store(u32::MAX, Ordering::SeqCst);
    let error = bed.env.produce(EVENT, &1).timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!((error.code(), error.details()["ambiguous"].as_bool()), (Code::PublishFailed, Some(true)));
    faults.unconfirmed.store(0, Ordering::SeqCst);
    faults.unsent.store(u32::MAX, Ordering::SeqCst);
    let error = bed.env.produce(EVENT, &1).timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!((error.code(), error.details()["ambiguous"].as_bool()), (Code::PublishFailed, Some(false)));
    bed.close().await;
}

async fn receives_again_after(silent: bool) {
    let (bed, faults) = faulty().await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, _: Context| {
            s.push(payload["n"].as_u64().unwrap());
            async {}
        })
        .await
        .unwrap();
    bed.produce(1).await;
    seen.wait(1).await;
    if silent {
        faults.silent.store(1, Ordering::SeqCst)
    } else {
        faults.dead.store(3, Ordering::SeqCst)
    }
    let mut states = consumer.states();
    let reconnecting = async { states.wait_for(|state| *state == State::Degraded("reconnecting")).await.map(drop) };
    assert!(tokio::time::timeout(bed::DEADLINE, reconnecting).await.is_ok(), "the loss is visible");
    bed.produce(2).await;
    seen.wait(2).await;
    assert_eq!(consumer.state(), State::Live);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_subscription_is_rebuilt() {
    receives_again_after(false).await;
}

/// Connected but dead: only progress counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_subscription_is_rebuilt() {
    receives_again_after(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_in_mid_send_tells_what_the_broker_may_have() {
    let faults = Arc::new(Faults::default());
    let f = faults.clone();
    let bed = Bed::wrapped(Lot::Store, move |provider| Arc::new(Faulty(provider, f.clone()))).await;
    bed.produce(0).await;
    faults.unanswered.store(1, Ordering::SeqCst);
    let first = bed.env.clone();
    let sent = tokio::spawn(async move { first.produce(EVENT, &1).await });
    bed::until("the first is at the broker", || async { faults.unanswered.load(Ordering::SeqCst) == 0 }).await;
    let mut queued = bed.env.produce(EVENT, &2).into_future();
    tokio::select! {
        biased;
        answer = &mut queued => panic!("answered before it was sent: {answer:?}"),
        () = std::future::ready(()) => {}
    }
    bed.trunkline.close(Duration::from_millis(200)).await;
    let errors = [sent.await.unwrap().unwrap_err(), queued.await.unwrap_err()];
    let ambiguous = errors.map(|error| (error.code(), error.details().get("ambiguous").and_then(Value::as_bool)));
    assert_eq!(ambiguous, [(Code::Closed, Some(true)), (Code::Closed, Some(false))]);
}
