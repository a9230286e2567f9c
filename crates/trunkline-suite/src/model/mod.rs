//! The shortest provider that keeps the contract: in memory, with as many or as few capabilities as asked for.
//!
//! A member dies when its subscription is dropped; there are no leases to wait for, and nothing is lost but the process.

mod group;
mod subscription;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline::capability::{Capabilities, DeliveryCount, Durability};
use trunkline::delivery::Position;
use trunkline::message::{Millis, now_ms};
use trunkline::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec, stage,
};
use trunkline::{Code, Error, Result};

use self::group::Group;
use self::subscription::ModelSubscription;
use crate::{Broker, Pace};

/// What a model declares and keeps.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// Takes ordered topics.
    pub ordered: bool,
    /// Keeps messages after they were settled.
    pub keeps: bool,
    /// The longest native delay.
    pub delay_ms: u64,
    /// How it counts.
    pub count: DeliveryCount,
    /// A release is not counted.
    pub release_uncounted: bool,
}

impl Traits {
    /// Everything the contract knows.
    pub const LOG: Traits = Traits { ordered: true, keeps: true, delay_ms: 60_000, count: DeliveryCount::Exact, release_uncounted: true };
    /// A plain queue: no order, no history, no delay.
    pub const QUEUE: Traits = Traits { ordered: false, keeps: false, delay_ms: 0, count: DeliveryCount::Unknown, release_uncounted: false };
}

const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// A model broker.
#[derive(Debug, Clone)]
pub struct Model {
    traits: Traits,
    shared: Arc<Shared>,
}

impl Model {
    /// An empty broker.
    #[must_use]
    pub fn new(traits: Traits) -> Self {
        Model { traits, shared: Arc::default() }
    }
}

#[async_trait]
impl Broker for Model {
    fn name(&self) -> &str {
        "model"
    }

    fn pace(&self) -> Pace {
        Pace::LOCAL
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        Ok(Arc::new(Connection { traits: self.traits, shared: Arc::clone(&self.shared), closed: Arc::default() }))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[]
    }
}

#[derive(Debug, Default)]
struct Shared {
    topics: Mutex<HashMap<Arc<str>, Topic>>,
    changed: Notify,
}

#[derive(Debug)]
struct Topic {
    ordered: bool,
    shards: Vec<Vec<(Outgoing, Millis)>>,
    groups: HashMap<Arc<str>, Group>,
    spread: usize,
}

impl Topic {
    fn ends(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.len() as u64).collect()
    }

    fn starts(&self, start: &Start, kept: bool) -> Vec<u64> {
        let at_time = |time: u64| self.shards.iter().map(|shard| shard.partition_point(|(_, at)| *at < time) as u64).collect();
        match start {
            Start::Earliest if kept => vec![0; self.shards.len()],
            Start::Time(time) => at_time(*time),
            _ => self.ends(),
        }
    }
}

#[derive(Debug)]
struct Connection {
    traits: Traits,
    shared: Arc<Shared>,
    closed: Arc<AtomicBool>,
}

impl Connection {
    fn with<T>(&self, topic: &str, f: impl FnOnce(&mut Topic) -> Result<T>) -> Result<T> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::new(Code::Closed, "the connection is closed"));
        }
        let mut topics = self.shared.topics.lock();
        let topic = topics.get_mut(topic).ok_or_else(|| Error::new(Code::TopicNotFound, format!("no topic '{topic}'")))?;
        let answer = f(topic);
        drop(topics);
        self.shared.changed.notify_waiters();
        answer
    }

    fn claimed(&self, has: bool, wish: &str) -> Result<()> {
        if has { Ok(()) } else { Err(Error::new(Code::CapabilityUnsupported, format!("this model cannot {wish}"))) }
    }
}

fn not_confirmed(error: Error) -> SendError {
    SendError { retryable: error.retryable(), error, ambiguous: false }
}

#[async_trait]
impl Provider for Connection {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        Capabilities {
            durability: Durability::Memory,
            ordered_shards: self.traits.ordered && topic.ordered,
            broker_orders_keys: false,
            keeps_messages: self.traits.keeps,
            native_delay_max_ms: self.traits.delay_ms,
            delivery_count: self.traits.count,
            release_uncounted: self.traits.release_uncounted,
            extends_leases: true,
            lossy: false,
            max_message_bytes: MAX_MESSAGE_BYTES,
            dedup_window_ms: 0,
            max_wait_ms: u64::MAX,
            takeover_ms: 0,
        }
    }

    async fn ensure(&self, spec: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        self.claimed(self.traits.ordered || !spec.ordered, "keep order")?;
        let mut ensured = Ensured::default();
        self.shared.topics.lock().entry(Arc::clone(&spec.name)).or_insert_with(|| {
            ensured.created.push(format!("topic {}", spec.name));
            let shards = (0..spec.shards).map(|_| Vec::new()).collect();
            Topic { ordered: spec.ordered, shards, groups: HashMap::new(), spread: 0 }
        });
        self.with(&spec.name, |topic| {
            if topic.shards.len() != spec.shards as usize {
                ensured.drift.push(format!("{} shards instead of {}", topic.shards.len(), spec.shards));
            }
            for group in groups {
                if !topic.groups.contains_key(&group.name) {
                    let starts = topic.starts(&group.start, self.traits.keeps);
                    topic.groups.insert(Arc::clone(&group.name), Group::new(&starts));
                    ensured.created.push(format!("group {}", group.name));
                }
            }
            Ok(())
        })?;
        Ok(ensured)
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        let removed = match what {
            Remove::Topic(spec) => {
                self.shared.topics.lock().remove(&spec.name);
                Ok(())
            }
            Remove::Group(spec, group) => self.with(&spec.name, |topic| {
                topic.groups.remove(group);
                Ok(())
            }),
        };
        removed.or_else(|error| if error.code() == Code::TopicNotFound { Ok(()) } else { Err(error) })
    }

    async fn send(&self, spec: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let mut results = Vec::with_capacity(batch.len());
        for message in Arc::unwrap_or_clone(batch) {
            if message.size() > MAX_MESSAGE_BYTES {
                let error = Error::new(Code::PayloadTooLarge, format!("{} bytes, of at most {MAX_MESSAGE_BYTES}", message.size()));
                results.push(Err(not_confirmed(error)));
                continue;
            }
            let stored = self.with(&spec.name, |topic| {
                topic.spread += 1;
                let shard = message.shard.map_or(topic.spread % topic.shards.len(), |shard| shard as usize);
                topic.shards[shard].push((message, now_ms()));
                Ok(Position { shard: shard as u32, offset: topic.shards[shard].len() as u64 - 1 })
            });
            results.push(stored.map_err(not_confirmed));
        }
        results
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, _options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        let subscription = ModelSubscription::new(Arc::clone(&self.shared), routes, group, self.traits, Arc::clone(&self.closed));
        for route in routes {
            self.with(&route.name, |topic| {
                let ordered = topic.ordered;
                let group = topic
                    .groups
                    .get_mut(&group.name)
                    .ok_or_else(|| Error::new(Code::GroupNotFound, format!("no group '{}'", group.name)))?;
                group.join(subscription.id(), ordered);
                Ok(())
            })?;
        }
        Ok(Arc::new(subscription))
    }

    async fn depth(&self, spec: &TopicSpec, group: &str) -> Result<Depth> {
        self.with(&spec.name, |topic| {
            let ends = topic.ends();
            let group = topic.groups.get(group).ok_or_else(|| Error::new(Code::GroupNotFound, format!("no group '{group}'")))?;
            let (ready, in_flight, oldest) = group.depth(&ends);
            let oldest = oldest.iter().filter_map(|p| topic.shards[p.shard as usize].get(p.offset as usize)).map(|(_, at)| *at).min();
            Ok(Depth { ready, in_flight, oldest, exact: true })
        })
    }

    async fn read(&self, spec: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        self.claimed(self.traits.keeps, "read")?;
        self.with(&spec.name, |topic| {
            let (shard, first) = match from {
                ReadFrom::Position(position) => (position.shard, position.offset as usize),
                ReadFrom::Time { shard, at } => (shard, topic.shards[shard as usize].partition_point(|(_, stored)| *stored < at)),
            };
            let stored = topic.shards[shard as usize].iter().enumerate().skip(first).take(max);
            Ok(stored
                .map(|(offset, (message, at))| Stored {
                    position: Position { shard, offset: offset as u64 },
                    id: Some(message.id),
                    key: message.key.clone(),
                    headers: message.headers.clone(),
                    payload: Bytes::clone(&message.payload),
                    stored_at: *at,
                })
                .collect())
        })
    }

    async fn seek(&self, spec: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        self.claimed(self.traits.keeps, "seek")?;
        self.with(&spec.name, |topic| {
            let mut starts: Vec<_> = topic.starts(to, true).into_iter().map(Some).collect();
            if let Start::Position { shard, offset } = to {
                starts = vec![None; starts.len()];
                starts[*shard as usize] = Some(*offset);
            }
            let group = topic.groups.get_mut(group).ok_or_else(|| Error::new(Code::GroupNotFound, format!("no group '{group}'")))?;
            group.seek(&starts);
            Ok(())
        })
    }

    async fn probe(&self, _deadline: Instant) -> Vec<Stage> {
        vec![stage("connect", Instant::now(), Ok(()))]
    }

    async fn close(&self, _deadline: Instant) {
        self.closed.store(true, Ordering::Relaxed);
        self.shared.changed.notify_waiters();
    }
}

/// How long a shard that is to be given up may be kept.
const REVOKE: Duration = Duration::from_millis(500);
