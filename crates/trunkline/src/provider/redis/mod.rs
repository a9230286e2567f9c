//! Redis: streams with consumer groups, or Pub/Sub that keeps nothing.
//!
//! - `target` leads from the config to a connection, `link` keeps one, `facts` knows what the server keeps.
//! - `envelope` is what of a message lies in a stream's entry, `id` where it lies, `keys` and `script` the rest of what is there.
//! - `send` produces, `admin` makes, measures and removes topics and groups.
//! - `subscription` is one member of a group: `state` holds what it has in hand, `reader` fetches, `keeper` keeps leases and
//!   shards, `settle` acks and gives back.
//! - `channel` is the Pub/Sub mode, `probe` the connection test.
//!
//! Three kinds of connections: one that produces, one that settles and manages, and one for each subscription, since a read
//! that waits holds up everything behind it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;

use self::config::{RedisConfig, RedisMode};
use self::facts::Facts;
use self::link::Link;
use self::target::Target;
use super::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};
use crate::capability::{Capabilities, DeliveryCount, Durability};
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::message::millis;

mod admin;
mod channel;
pub mod config;
mod envelope;
mod error;
mod facts;
mod id;
mod keeper;
mod keys;
mod link;
mod probe;
mod reader;
mod script;
mod send;
mod settle;
mod shards;
mod state;
mod subscription;
mod target;

/// How a connection to Redis works, beside its config. The defaults are the documented ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// After this a member that gives no sign of life loses its messages and shards. Default 30 s.
    pub lease: Duration,
    /// How long a member may take to give up a shard that is to move. Default 15 s.
    pub revoke: Duration,
    /// How often settled entries are removed that need not be kept. Default 30 s.
    pub trim: Duration,
    /// How long settled entries are kept. Default 1 h.
    pub keep_age: Duration,
    /// How many entries of a stream are kept, as far as they are settled. Default 100,000.
    pub keep_count: u64,
    /// How many bytes of a stream are kept, as far as they are settled. Default 256 MiB.
    pub keep_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lease: Duration::from_secs(30),
            revoke: Duration::from_secs(15),
            trim: Duration::from_secs(30),
            keep_age: Duration::from_secs(3600),
            keep_count: 100_000,
            keep_bytes: 256 << 20,
        }
    }
}

impl Options {
    /// How often a member looks after its group: what others left, what shards are its own.
    fn tick(&self) -> Duration {
        (self.lease / 8).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// How long a read waits on the server. Short beside the lease: after it nothing is read for a shard that was lost.
    fn block(&self) -> Duration {
        (self.lease / 4).clamp(Duration::from_millis(10), Duration::from_secs(2))
    }
}

/// The connections to one Redis.
#[derive(Debug)]
pub struct Redis(Arc<Core>);

/// What the connections and the subscriptions on them share.
#[derive(Debug)]
struct Core {
    target: Arc<Target>,
    mode: RedisMode,
    create: bool,
    prefix: Option<String>,
    options: Options,
    facts: ArcSwap<Facts>,
    /// Only for producing, so that a batch on its way holds up no lease.
    produce: Link,
    work: Link,
    known: Mutex<HashMap<Arc<str>, admin::Known>>,
    /// Topics that had to be made again and whose members were not told yet.
    lost: Mutex<HashSet<Arc<str>>>,
    room_made: Mutex<Option<Instant>>,
    spread: AtomicU32,
    members: Mutex<Vec<Weak<subscription::Shared>>>,
    listeners: Mutex<Vec<Weak<channel::Shared>>>,
}

impl Redis {
    /// Connects with the default options.
    ///
    /// # Errors
    /// `CONFIG_INVALID`, `INPUT_INVALID` for what is wrong in the config; `CONNECTION_FAILED`, `AUTHENTICATION_FAILED`,
    /// `TIMEOUT`, with `details.stage`; `CAPABILITY_UNSUPPORTED` for a server older than 7.0 or of a cluster.
    pub async fn open(config: &RedisConfig) -> Result<Self> {
        Self::with_options(config, Options::default()).await
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`Redis::open`].
    pub async fn with_options(config: &RedisConfig, options: Options) -> Result<Self> {
        let target = Arc::new(Target::new(config).await?);
        let work = Link::new(Arc::clone(&target));
        let facts = Facts::ask(&work).await?;
        for warning in &facts.warnings {
            tracing::warn!(server = %target.name(), %warning, "Redis");
        }
        Ok(Redis(Arc::new(Core {
            mode: config.mode(),
            create: config.common.create,
            prefix: config.common.prefix.clone(),
            options,
            facts: ArcSwap::from_pointee(facts),
            produce: Link::new(Arc::clone(&target)),
            work,
            target,
            known: Mutex::default(),
            lost: Mutex::default(),
            room_made: Mutex::default(),
            spread: AtomicU32::new(0),
            members: Mutex::default(),
            listeners: Mutex::default(),
        })))
    }

    /// Tests a connection that need not be open, in stages.
    ///
    /// # Errors
    /// `CONFIG_INVALID`, `INPUT_INVALID` for what is wrong in the config itself.
    pub async fn test(config: &RedisConfig, deadline: Instant) -> Result<Vec<Stage>> {
        let target = Target::new(config).await?;
        Ok(probe::run(&target, config.mode(), config.common.create, config.common.prefix.as_deref(), deadline).await)
    }
}

impl Core {
    fn is_stream(&self) -> bool {
        self.mode == RedisMode::Stream
    }

    fn kept(&self, wish: &str) -> Result<()> {
        if self.is_stream() {
            return Ok(());
        }
        Err(Error::new(Code::CapabilityUnsupported, format!("Redis Pub/Sub keeps nothing, so it cannot {wish}"))
            .detail("wish", wish)
            .next("use `mode: stream`"))
    }
}

/// Handlers and waits are not told by Redis how long a message may lie: nothing is too long.
const FOR_EVER: u64 = u64::MAX;

#[async_trait]
impl Provider for Redis {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        let facts = self.0.facts.load();
        let Options { lease, .. } = self.0.options;
        let stream = self.0.is_stream();
        Capabilities {
            durability: if stream { facts.durability } else { Durability::Memory },
            ordered_shards: stream && topic.ordered,
            broker_orders_keys: false,
            keeps_messages: stream,
            // A delayed entry of an ordered shard would be overtaken by those behind it.
            native_delay_max_ms: if stream && !topic.ordered { millis(lease) } else { 0 },
            delivery_count: if stream { DeliveryCount::UpperBound } else { DeliveryCount::Unknown },
            release_uncounted: stream,
            extends_leases: stream,
            lossy: !stream,
            max_message_bytes: facts.max_message_bytes,
            dedup_window_ms: 0,
            max_wait_ms: FOR_EVER,
            takeover_ms: if stream { millis(lease + self.0.options.tick() * 2) + 500 } else { 0 },
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        if self.0.is_stream() {
            return self.0.ensure_streams(topic, groups).await;
        }
        if topic.ordered {
            self.0.kept("keep order")?;
        }
        // A channel needs not be made; that the server is there is all there is to see.
        self.0.work.call(&redis::cmd("PING"), Code::SubscribeFailed).await?;
        Ok(Ensured::default())
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        if self.0.is_stream() { self.0.remove_streams(what).await } else { self.0.work.wire().await.map(drop) }
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        if self.0.is_stream() { self.0.send_to_streams(topic, &batch).await } else { self.0.publish(topic, &batch).await }
    }

    fn sends_at_once(&self) -> usize {
        2
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        if self.0.is_stream() {
            Ok(Arc::new(subscription::StreamSubscription::open(&self.0, routes, &group.name, options).await?))
        } else {
            Ok(Arc::new(channel::Listener::open(&self.0, routes, options).await?))
        }
    }

    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        if self.0.is_stream() {
            return self.0.depth_of(topic, group).await;
        }
        self.0.work.wire().await?;
        Ok(Depth::default())
    }

    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        self.0.kept("read messages again")?;
        self.0.read_stream(topic, from, max).await
    }

    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        self.0.kept("set a group back")?;
        self.0.seek_streams(topic, group, to).await
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        probe::run(&self.0.target, self.0.mode, self.0.create, self.0.prefix.as_deref(), deadline).await
    }

    async fn close(&self, _deadline: Instant) {
        self.0.produce.close();
        self.0.work.close();
        let members = std::mem::take(&mut *self.0.members.lock());
        members.iter().filter_map(Weak::upgrade).for_each(|member| member.cut());
        let listeners = std::mem::take(&mut *self.0.listeners.lock());
        listeners.iter().filter_map(Weak::upgrade).for_each(|listener| listener.end(error::closed()));
    }
}
