//! The broker as a whole: two handles on one directory stand for two processes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::delivery::{Delivery, Settle, Settled, Token};
use crate::message::Headers;
use crate::provider::{Prefetch, Signal};

mod faults;
mod groups;
mod log;

const LEASE: Duration = Duration::from_millis(250);
const SOON: Duration = Duration::from_secs(10);

fn options(dir: &Path) -> Options {
    Options { lease: LEASE, ..Options::new(dir) }
}

fn topic(shards: u32) -> TopicSpec {
    TopicSpec::new("orders", shards, true)
}

fn group(name: &str) -> GroupSpec {
    GroupSpec { name: name.into(), start: Start::Earliest }
}

fn message(shard: Option<u32>, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard, key: None, headers: Headers::new(), payload: payload.into() }
}

fn numbered(shard: Option<u32>, numbers: std::ops::Range<u64>) -> Vec<Outgoing> {
    numbers.map(|n| message(shard, n.to_string())).collect()
}

async fn send_all(broker: &Embedded, topic: &TopicSpec, batch: Vec<Outgoing>) -> Vec<Position> {
    broker.send(topic, Arc::new(batch)).await.into_iter().map(|sent| sent.expect("confirmed")).collect()
}

async fn join(broker: &Embedded, topic: &TopicSpec, name: &str) -> Arc<dyn Subscription> {
    let options = SubscribeOptions { member: "m".into(), prefetch: Prefetch { count: 1000, bytes: 1 << 20 } };
    broker.subscribe(std::slice::from_ref(topic), &group(name), options).await.expect("subscribed")
}

fn deliveries(signals: Vec<Signal>) -> Vec<Delivery> {
    signals.into_iter().flat_map(|signal| if let Signal::Deliveries { items, .. } = signal { items } else { Vec::new() }).collect()
}

/// The next `n` deliveries.
async fn receive(subscription: &dyn Subscription, n: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    let end = Instant::now() + SOON;
    while all.len() < n {
        assert!(Instant::now() < end, "only {} of {n} came", all.len());
        all.extend(deliveries(subscription.next(n - all.len(), 1 << 20, Duration::from_millis(200)).await.expect("alive")));
    }
    all
}

/// The first signal that is one of those.
async fn until(subscription: &dyn Subscription, wanted: impl Fn(&Signal) -> bool) -> Signal {
    let end = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < end, "the signal never came");
        let signals = subscription.next(1, 1, Duration::from_millis(200)).await.expect("alive");
        if let Some(signal) = signals.into_iter().find(&wanted) {
            return signal;
        }
    }
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|d| String::from_utf8_lossy(d.payload.as_deref().unwrap_or_default()).into_owned()).collect()
}

fn done(deliveries: &[Delivery]) -> Vec<(Token, Settle)> {
    deliveries.iter().map(|delivery| (delivery.token, Settle::Done)).collect()
}

async fn settle_done(subscription: &dyn Subscription, deliveries: &[Delivery]) {
    let settled = subscription.settle(&done(deliveries)).await;
    assert!(settled.iter().all(|settled| *settled == Settled::Settled), "{settled:?}");
}

/// Lets a member of the group die without a word: its lease is simply not renewed any more.
fn kill(broker: Embedded, subscription: Arc<dyn Subscription>) {
    broker.handle.stop();
    std::mem::forget((broker, subscription));
}
