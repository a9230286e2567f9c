//! What hurts NATS: its server killed, stopped, started again, the network cut. These tests act on the servers, so they
//! run one after the other, in a program of their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "nats/bed.rs"]
#[expect(dead_code, reason = "shared with the tests that hurt nothing")]
mod bed;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use trunkline::delivery::{EnvelopeId, Settle, Settled};
use trunkline::provider::nats::{Nats, Options};
use trunkline::provider::{GroupSpec, Prefetch, Provider, Signal, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{Code, MessageId, State};
use trunkline_suite::proxy::{Proxy, Weather};
use trunkline_suite::server::{Act, Server, setting};

use bed::{config, done, fresh, group, join, message, open, plain, send, take, topic};

/// One test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a producer had confirmed and a consumer has settled, while things break.
#[derive(Default)]
struct Ledger {
    confirmed: Mutex<HashSet<MessageId>>,
    /// Handed out, and settled as far as anyone can tell: an answer that did not come may mean that the server has it.
    settled: Mutex<HashSet<MessageId>>,
    /// Per shard, the offsets in the order they were handed out under one ownership.
    order: Mutex<HashMap<(u32, u64), Vec<u64>>>,
    stop: AtomicBool,
}

impl Ledger {
    fn missing(&self) -> usize {
        self.confirmed.lock().difference(&self.settled.lock()).count()
    }
}

/// Produces until told to stop; what is not confirmed is sent again under the same id, as the core does.
async fn produce(provider: Arc<dyn Provider>, topic: TopicSpec, ledger: Arc<Ledger>) {
    let mut again = Vec::new();
    while !ledger.stop.load(Ordering::Relaxed) {
        let mut batch = std::mem::take(&mut again);
        while batch.len() < 20 {
            let shard = topic.ordered.then(|| batch.len() as u32 % topic.shards);
            batch.push(trunkline::provider::Outgoing { shard, ..message("x") });
        }
        let results = provider.send(&topic, Arc::new(batch.clone())).await;
        for (message, result) in batch.into_iter().zip(results) {
            match result {
                Ok(_) => drop(ledger.confirmed.lock().insert(message.id)),
                Err(error) => {
                    assert!(error.retryable, "{error:?}");
                    again.push(message);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(if again.is_empty() { 2 } else { 50 })).await;
    }
}

/// Consumes, and subscribes again when the subscription is dead, as the core does.
async fn consume(provider: Arc<dyn Provider>, topic: TopicSpec, group: GroupSpec, ledger: Arc<Ledger>) {
    loop {
        let options = SubscribeOptions { member: "consumer".into(), prefetch: Prefetch { count: 64, bytes: 1 << 20 } };
        let subscription = match provider.subscribe(std::slice::from_ref(&topic), &group, options).await {
            Ok(subscription) => subscription,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while let Ok(signals) = subscription.next(32, usize::MAX, Duration::from_millis(200)).await {
            for signal in signals {
                let Signal::Deliveries { shard, epoch, items, .. } = signal else { continue };
                ledger.order.lock().entry((shard, epoch)).or_default().extend(items.iter().map(|item| item.position.offset));
                let settles: Vec<_> = items.iter().map(|item| (item.token, Settle::Done)).collect();
                for (item, settled) in items.iter().zip(subscription.settle(&settles).await) {
                    if let (EnvelopeId::Id(id), Settled::Settled | Settled::Unknown) = (item.id, settled) {
                        ledger.settled.lock().insert(id);
                    }
                }
            }
        }
        subscription.close(Instant::now() + Duration::from_secs(1)).await;
    }
}

/// Produces and consumes while `hurt` happens; in the end everything confirmed was handled.
async fn loses_nothing<F: Future<Output = ()>>(ordered: bool, hurt: impl FnOnce(Arc<Ledger>) -> F) {
    let _alone = ALONE.lock().await;
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (TopicSpec { ordered, shards: if ordered { 3 } else { 1 }, ..topic("faults") }, group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let ledger = Arc::new(Ledger::default());
    let producer = tokio::spawn(produce(provider.clone(), topic.clone(), ledger.clone()));
    let consumer = tokio::spawn(consume(provider.clone(), topic, group, ledger.clone()));
    progress(&ledger, 200).await;
    hurt(ledger.clone()).await;
    progress(&ledger, 200).await;
    ledger.stop.store(true, Ordering::Relaxed);
    producer.await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while ledger.missing() > 0 {
        assert!(Instant::now() < end, "{} confirmed messages were not handled", ledger.missing());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    consumer.abort();
    for ((shard, epoch), offsets) in ledger.order.lock().iter().filter(|_| ordered) {
        assert!(offsets.is_sorted(), "shard {shard} left its order under epoch {epoch}");
    }
}

/// Waits until so many more messages were handled: both sides work.
async fn progress(ledger: &Ledger, more: usize) {
    let (end, before) = (Instant::now() + Duration::from_secs(60), ledger.settled.lock().len());
    while ledger.settled.lock().len() < before + more {
        assert!(Instant::now() < end, "no progress: {} handled, {} missing", ledger.settled.lock().len(), ledger.missing());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_in_mid_flow() {
    loses_nothing(false, async |ledger| {
        for _ in 0..3 {
            Server::named("nats").act(Act::Restart).await;
            progress(&ledger, 100).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_under_an_ordered_topic() {
    loses_nothing(true, async |ledger| {
        for _ in 0..3 {
            Server::named("nats").act(Act::Restart).await;
            progress(&ledger, 100).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_for_twenty_seconds() {
    loses_nothing(false, async |ledger| {
        Server::named("nats").act(Act::Stop).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        Server::named("nats").act(Act::Continue).await;
        progress(&ledger, 100).await;
    })
    .await;
}

fn through(proxy: &Proxy) -> serde_json::Value {
    json!({ "servers": format!("nats://{}", proxy.address()), "reconnectTimeWait": 100 })
}

async fn proxy() -> Proxy {
    Proxy::new(setting("NATS").trim_start_matches("nats://").to_owned()).await.unwrap()
}

/// What `next` ends with.
async fn ended(subscription: &dyn Subscription) -> trunkline::Error {
    let ended = async {
        loop {
            if let Err(error) = subscription.next(1, usize::MAX, Duration::from_secs(60)).await {
                return error;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("a dead connection ends its subscriptions")
}

/// Cut, or silent for longer than a few pings: `next` says so, and a new subscription goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_ends_its_subscriptions() {
    let _alone = ALONE.lock().await;
    let proxy = proxy().await;
    // With the lease of every day: a connection is known to be dead long before that ends.
    let provider = Nats::open(&config(&through(&proxy)), Options::default()).await.unwrap();
    let group = group();
    let topics = [topic("cut"), TopicSpec { ordered: true, shards: 2, ..topic("cut-ordered") }];
    for topic in &topics {
        provider.ensure(topic, std::slice::from_ref(&group)).await.unwrap();
    }
    // Under one name: who comes back need not wait for the end of its own lease.
    let join = async |topic: &TopicSpec| {
        let options = SubscribeOptions { member: topic.name.clone(), prefetch: Prefetch { count: 256, bytes: 1 << 20 } };
        provider.subscribe(std::slice::from_ref(topic), &group, options).await.unwrap()
    };
    for half_open in [false, true] {
        let mut members = Vec::new();
        for topic in &topics {
            members.push(join(topic).await);
        }
        if half_open {
            proxy.set(Weather::HalfOpen)
        } else {
            proxy.set(Weather::Cut)
        }
        for member in &members {
            let error = ended(&**member).await;
            assert_eq!(error.code(), Code::ConnectionFailed, "half open: {half_open}: {error:?}");
        }
        drop(members);
        proxy.set(Weather::Cut);
        proxy.set(Weather::Fair);
        for topic in &topics {
            let end = Instant::now() + Duration::from_secs(30);
            while let Err(error) = send(&provider, topic, message("x")).await {
                assert!(Instant::now() < end && error.retryable, "{error:?}");
            }
            let member = join(topic).await;
            let got = take(&*member, 1).await;
            done(&*member, &got).await;
            member.close(Instant::now() + Duration::from_secs(5)).await;
        }
    }
}

/// What was on its way when the connection died may have arrived; what was not sent has not.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_arrived_is_said() {
    let _alone = ALONE.lock().await;
    let proxy = proxy().await;
    let provider = open(&through(&proxy)).await.unwrap();
    let topic = topic("ambiguous");
    provider.ensure(&topic, &[]).await.unwrap();
    proxy.set(Weather::HalfOpen);
    let error = send(&*provider, &topic, message("x")).await.expect_err("no confirm");
    assert!(error.ambiguous && error.retryable, "{error:?}");
    proxy.set(Weather::Cut);
    let error = send(&*provider, &topic, message("y")).await.expect_err("no connection");
    assert!(!error.ambiguous && error.retryable, "{error:?}");
}

/// A finite number of attempts to connect again ends in `closed`, for the provider and for a consumer of the library.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_connect_again_end() {
    let _alone = ALONE.lock().await;
    let proxy = proxy().await;
    let mut config = through(&proxy);
    config["maxReconnectAttempts"] = 2.into();
    config["prefix"] = fresh("ends").into();
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("data");
    let library = trunkline::Trunkline::builder().url(url.to_string_lossy()).single_host(true).open().await.unwrap();
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "NATS", "config": config.clone() }] });
    library.catalog().create_broker(Some("shop"), broker).await.unwrap();
    library.catalog().create_topic(Some("shop"), json!({ "name": "Created", "tag": "orders:created" })).await.unwrap();
    let consumer = library.env("shop", "prd").consume("orders:created", |_: trunkline::Raw, _| async {}).await.unwrap();
    let mut states = consumer.states();

    let provider = open(&config).await.unwrap();
    let (watched, group) = (topic("watched"), group());
    provider.ensure(&watched, std::slice::from_ref(&group)).await.unwrap();
    let member = join(&*provider, &watched, &group).await;
    proxy.set(Weather::Cut);
    // The connection is known to be dead: from here on every call tries to open another.
    assert_eq!(ended(&*member).await.code(), Code::ConnectionFailed);
    let mut failures = Vec::new();
    while failures.last() != Some(&Code::Closed) {
        assert!(failures.len() < 10, "{failures:?}");
        failures.push(provider.ensure(&topic("ends"), &[]).await.expect_err("cut").code());
    }
    assert_eq!(failures, [Code::ConnectionFailed, Code::ConnectionFailed, Code::Closed]);
    let closed = tokio::time::timeout(Duration::from_secs(30), states.wait_for(|state| *state == State::Closed)).await;
    assert!(closed.is_ok(), "the consumer is {:?}", consumer.state());
    library.close(Duration::from_secs(5)).await;
}

/// A consumer of the library resumes by itself when the server is back, and nothing that was confirmed is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_the_library_goes_on() {
    let _alone = ALONE.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("data");
    let library = trunkline::Trunkline::builder().url(url.to_string_lossy()).open().await.unwrap();
    let config = json!({ "servers": setting("NATS"), "prefix": fresh("on") });
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "NATS", "config": config }] });
    library.catalog().create_broker(Some("shop"), broker).await.unwrap();
    library.catalog().create_topic(Some("shop"), json!({ "name": "Created", "tag": "orders:created" })).await.unwrap();
    let env = library.env("shop", "prd");
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let s = seen.clone();
    let handler = move |_: trunkline::Raw, context: trunkline::Context| {
        s.lock().insert(context.process_id);
        async {}
    };
    let consumer = env.consume("orders:created", handler).await.unwrap();
    let mut confirmed = HashSet::new();
    for round in 0..3 {
        if round > 0 {
            Server::named("nats").act(Act::Restart).await;
        }
        for n in 0..50 {
            confirmed.insert(env.produce("orders:created", &json!({ "n": n })).await.unwrap().process_id);
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    while !confirmed.is_subset(&seen.lock()) {
        assert!(Instant::now() < end, "{} of {} were handled, {:?}", seen.lock().len(), confirmed.len(), consumer.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    consumer.close(Duration::from_secs(10)).await;
    library.close(Duration::from_secs(10)).await;
}
