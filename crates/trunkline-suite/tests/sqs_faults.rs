//! SQS when its server dies, stands still, or the network between breaks. One test at a time: they share the server.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trunkline::delivery::{EnvelopeId, Settle};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, Signal, Start, SubscribeOptions, Subscription, TopicSpec, shard_of};
use trunkline::{Error, Headers, MessageId};
use trunkline_suite::elasticmq::{authority, connect, endpoint};
use trunkline_suite::proxy::{Proxy, Weather};
use trunkline_suite::server::{Act, Server};

static ALONE: Mutex<()> = Mutex::const_new(());
const PATIENCE: Duration = Duration::from_secs(120);

async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

struct Flow {
    topic: TopicSpec,
    end: CancellationToken,
    sending: JoinHandle<()>,
    handling: JoinHandle<()>,
    confirmed: Ids,
    handled: Ids,
}

type Ids = Arc<parking_lot::Mutex<HashSet<MessageId>>>;

/// One task sends, and sends again what was not confirmed; another handles, and subscribes anew when it has to.
async fn flow(sender: Arc<dyn Provider>, receiver: Arc<dyn Provider>, fifo: bool) -> Flow {
    let name = format!("f{}{}", &MessageId::now().0.simple().to_string()[4..], if fifo { ".fifo" } else { "" });
    let topic = TopicSpec::new(name.as_str(), 4, fifo);
    let group = GroupSpec { name: name.as_str().into(), start: Start::Latest };
    sender.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let end = CancellationToken::new();
    let (confirmed, handled) = (Ids::default(), Ids::default());
    let sending = tokio::spawn(send(sender, topic.clone(), confirmed.clone(), end.clone()));
    let handling = tokio::spawn(handle(receiver, topic.clone(), group, handled.clone()));
    Flow { topic, end, sending, handling, confirmed, handled }
}

async fn send(provider: Arc<dyn Provider>, topic: TopicSpec, confirmed: Ids, end: CancellationToken) {
    let mut n = 0_u64;
    while !end.is_cancelled() {
        let mut batch: Vec<Outgoing> = (0..20)
            .map(|at| {
                n += 1;
                let key = topic.ordered.then(|| Bytes::from(format!("k{}", at % 5)));
                let shard = key.as_ref().map(|key| shard_of(key, topic.shards));
                Outgoing { id: MessageId::now(), shard, key, headers: Headers::new(), payload: Bytes::from(format!("{{\"n\":{n}}}")) }
            })
            .collect();
        while !batch.is_empty() {
            let results = provider.send(&topic, Arc::new(batch.clone())).await;
            let mut again = Vec::new();
            for (message, result) in batch.into_iter().zip(results) {
                match result {
                    Ok(_) => drop(confirmed.lock().insert(message.id)),
                    Err(failed) if failed.retryable => again.push(message),
                    // An overtaken one of its key: never confirmed.
                    Err(failed) => assert_eq!(failed.error.detail_str("reason"), Some("overtaken"), "{failed:?}"),
                }
            }
            if !again.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            batch = again;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn subscribe(provider: &Arc<dyn Provider>, topic: &TopicSpec, group: &GroupSpec) -> Result<Arc<dyn Subscription>, Error> {
    let options = SubscribeOptions { member: "test".into(), prefetch: Prefetch { count: 200, bytes: 16 << 20 } };
    provider.subscribe(std::slice::from_ref(topic), group, options).await
}

async fn handle(provider: Arc<dyn Provider>, topic: TopicSpec, group: GroupSpec, handled: Ids) {
    loop {
        let Ok(subscription) = subscribe(&provider, &topic, &group).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while let Ok(signals) = subscription.next(100, usize::MAX, Duration::from_millis(200)).await {
            let mut settles = Vec::new();
            for signal in signals {
                let Signal::Deliveries { items, .. } = signal else { continue };
                for delivery in items {
                    let EnvelopeId::Id(id) = delivery.id else { panic!("{:?} instead of an id", delivery.id) };
                    handled.lock().insert(id);
                    settles.push((delivery.token, Settle::Done));
                }
            }
            if !settles.is_empty() {
                subscription.settle(&settles).await;
            }
        }
        subscription.close(Instant::now() + Duration::from_secs(1)).await;
    }
}

impl Flow {
    /// Until so many more messages were confirmed, and handled.
    async fn progress(&self, more: usize) {
        for ids in [&self.confirmed, &self.handled] {
            let (until, before) = (Instant::now() + PATIENCE, ids.lock().len());
            while ids.lock().len() < before + more {
                assert!(
                    Instant::now() < until,
                    "no progress: {} of {} were handled",
                    self.handled.lock().len(),
                    self.confirmed.lock().len()
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Ends the sending, lets the rest arrive, and compares.
    async fn lost_nothing(self) {
        self.end.cancel();
        tokio::time::timeout(PATIENCE, self.sending).await.expect("the sender ends").expect("the sender");
        let confirmed = self.confirmed.lock().clone();
        let until = Instant::now() + PATIENCE;
        loop {
            let lost = confirmed.difference(&self.handled.lock()).count();
            if lost == 0 {
                break;
            }
            assert!(!self.handling.is_finished(), "the handler ended");
            assert!(Instant::now() < until, "{lost} of {} confirmed messages of {} were lost", confirmed.len(), self.topic.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.handling.abort();
    }
}

async fn survives_kills(fifo: bool, kills: usize) {
    let _alone = alone().await;
    let server = Server::named("sqs");
    let flow = flow(connect(&json!({})).await, connect(&json!({})).await, fifo).await;
    for _ in 0..kills {
        flow.progress(50).await;
        server.act(Act::Restart).await;
    }
    flow.progress(50).await;
    flow.lost_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_loses_nothing() {
    survives_kills(false, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_loses_nothing_of_a_fifo_queue() {
    survives_kills(true, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_waited_for() {
    let _alone = alone().await;
    let server = Server::named("sqs");
    let flow = flow(connect(&json!({})).await, connect(&json!({})).await, false).await;
    flow.progress(50).await;
    server.act(Act::Stop).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    server.act(Act::Continue).await;
    flow.progress(50).await;
    flow.lost_nothing().await;
}

/// Cut, then silent, then slow: sends are ambiguous or fail, and nothing that was confirmed is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_breaks_loses_nothing() {
    let _alone = alone().await;
    let proxy = Proxy::new(authority(&endpoint())).await.unwrap();
    let through = json!({ "endpoint": format!("http://{}", proxy.address()) });
    let flow = flow(connect(&through).await, connect(&through).await, false).await;
    for (weather, time) in [(Weather::Cut, 2), (Weather::HalfOpen, 4), (Weather::Delay(Duration::from_millis(200)), 2), (Weather::Cut, 1)] {
        flow.progress(50).await;
        proxy.set(weather);
        tokio::time::sleep(Duration::from_secs(time)).await;
        proxy.set(Weather::Fair);
    }
    flow.progress(50).await;
    flow.lost_nothing().await;
}

/// After the broker's return a consumer goes on within five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_when_its_server_is_back() {
    let _alone = alone().await;
    let provider = connect(&json!({})).await;
    let name = format!("f{}", &MessageId::now().0.simple().to_string()[4..]);
    let topic = TopicSpec::new(name.as_str(), 1, false);
    let group = GroupSpec { name: name.as_str().into(), start: Start::Latest };
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let message = || Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: Bytes::from_static(b"{}") };
    // ElasticMQ answers before it has written down that there is a queue, but not before it has written down a message.
    provider.send(&topic, Arc::new(vec![message()])).await.remove(0).unwrap();
    let subscription = subscribe(&provider, &topic, &group).await.unwrap();
    Server::named("sqs").act(Act::Restart).await;
    let (restarted, message) = (Instant::now(), message());
    // ElasticMQ answers before it has read its queues.
    while provider.send(&topic, Arc::new(vec![message.clone()])).await.remove(0).is_err() {
        assert!(restarted.elapsed() < PATIENCE, "the server is not back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = Instant::now();
    let (mut subscription, mut came) = (subscription, false);
    while !came && back.elapsed() < Duration::from_secs(30) {
        came = match subscription.next(1, usize::MAX, Duration::from_millis(200)).await {
            Ok(signals) => signals.iter().any(|signal| match signal {
                Signal::Deliveries { items, .. } => items.iter().any(|delivery| delivery.id == EnvelopeId::Id(message.id)),
                _ => false,
            }),
            // It was away for long: the core subscribes anew.
            Err(_) => {
                subscription = subscribe(&provider, &topic, &group).await.expect("the server is back");
                false
            }
        };
    }
    assert!(came && back.elapsed() < Duration::from_secs(5), "the consumer went on after {:?}", back.elapsed());
}
