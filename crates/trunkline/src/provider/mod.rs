//! The contract of a provider: the two traits every broker implements, and the one list of providers.
//!
//! A provider moves bytes. It never interprets a payload, never retries on its own account, never buffers without a
//! bound, and never answers `Ok` to what it cannot do: an unsupported wish is `CAPABILITY_UNSUPPORTED` when the route
//! is opened. Retries, back-off, attempts, dead letters, history and the rebuilding of dead subscriptions are the core's.
//!
//! To add one: a folder here with `mod.rs`, `config.rs`, `error.rs` and `docs.md`, a variant of
//! [`crate::config::ProviderConfig`], a cargo feature, and a line in [`open`].

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::capability::Capabilities;
use crate::config::ProviderConfig;
use crate::delivery::{Delivery, Position, Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::message::{Headers, MessageId, Millis};

pub use crate::route::shard_of;

#[cfg(feature = "embedded")]
pub mod embedded;
/// Configs are always compiled: a catalogue may hold a broker that this build cannot open.
#[cfg(not(feature = "embedded"))]
pub mod embedded {
    pub mod config;
}
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(not(feature = "kafka"))]
pub mod kafka {
    pub mod config;
}
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(not(feature = "nats"))]
pub mod nats {
    pub mod config;
}
#[cfg(any(
    test,
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "pubsub",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqs"
))]
pub(crate) mod net;
pub mod pubsub;
pub mod rabbitmq;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(not(feature = "redis"))]
pub mod redis {
    pub mod config;
}
pub mod sqs;

/// A topic as the provider sees it: its physical name and what is fixed about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicSpec {
    /// The name on the broker.
    pub name: Arc<str>,
    /// How many shards it has (fixed when it was created).
    pub shards: u32,
    /// Whether the messages of a shard must be handed out in order to one owner.
    pub ordered: bool,
    /// RabbitMQ: the exchange (`None`: one of the topic's own name).
    pub exchange: Option<Arc<str>>,
    /// RabbitMQ and Pub/Sub: the queue or subscription of the default group (`None`: named after the topic).
    pub queue: Option<Arc<str>>,
}

impl TopicSpec {
    /// A topic that is named by one name.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, shards: u32, ordered: bool) -> Self {
        TopicSpec { name: name.into(), shards, ordered, exchange: None, queue: None }
    }
}

/// A group as the provider sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupSpec {
    /// The name on the broker.
    pub name: Arc<str>,
    /// Where a group that is new to the topic starts.
    pub start: Start,
}

/// Where a group starts, or is set back to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the oldest message kept.
    Earliest,
    /// With what is produced from now on.
    Latest,
    /// With the first message stored at or after this time (ms since 1970).
    Time(Millis),
    /// With this offset in one shard (`seek` only).
    Position {
        /// The shard.
        shard: u32,
        /// The first offset to hand out.
        offset: u64,
    },
}

/// A message on its way to the broker.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The message id; travels natively, as bytes or text.
    pub id: MessageId,
    /// `Some` if the core chose the shard (by key), `None` if the provider may spread.
    pub shard: Option<u32>,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// All other headers.
    pub headers: Headers,
    /// The payload, sent untouched.
    pub payload: Bytes,
}

impl Outgoing {
    /// Bytes of payload, key and headers.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.len() + self.key.as_ref().map_or(0, Bytes::len) + self.headers.size()
    }
}

/// Why one message was not confirmed.
#[derive(Debug, Clone)]
pub struct SendError {
    /// What happened, with a code of the product.
    pub error: Error,
    /// Whether sending it again may succeed.
    pub retryable: bool,
    /// Whether the broker may have it all the same.
    pub ambiguous: bool,
}

/// What `ensure` did and saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ensured {
    /// What was created, in words.
    pub created: Vec<String>,
    /// Where the broker differs from the wish, in words. Reported, never changed.
    pub drift: Vec<String>,
}

/// What to remove from the broker.
#[derive(Debug, Clone, Copy)]
pub enum Remove<'a> {
    /// The topic with all its messages and groups.
    Topic(&'a TopicSpec),
    /// One group of a topic.
    Group(&'a TopicSpec, &'a str),
}

/// How much a subscription may hold before it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Messages.
    pub count: usize,
    /// Bytes; may be passed by one message.
    pub bytes: usize,
}

/// How a subscription is opened.
#[derive(Debug, Clone)]
pub struct SubscribeOptions {
    /// Names the member among the members of its group.
    pub member: Arc<str>,
    /// The bound of what waits in the provider.
    pub prefetch: Prefetch,
}

/// The waiting messages of one group on one topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Not yet handed out.
    pub ready: u64,
    /// Handed out, not yet settled.
    pub in_flight: u64,
    /// When the oldest of them was stored (ms since 1970).
    pub oldest: Option<Millis>,
    /// Whether the numbers are exact.
    pub exact: bool,
}

/// Where `read` starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At this position, in its shard.
    Position(Position),
    /// At the oldest message of a shard stored at or after this time.
    Time {
        /// The shard.
        shard: u32,
        /// Milliseconds since 1970.
        at: Millis,
    },
}

/// A message read without consuming it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Where it lies.
    pub position: Position,
    /// Its id, if it has one.
    pub id: Option<MessageId>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Headers,
    /// Its payload.
    pub payload: Bytes,
    /// When it was stored.
    pub stored_at: Millis,
}

/// One step of a connection test.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// `resolve`, `connect`, `tls`, `authenticate`, `permissions`, `ensure`, `round_trip`, or a provider's own.
    pub stage: &'static str,
    /// Whether it passed.
    pub ok: bool,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// The code of the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// A connection to one broker.
#[async_trait]
pub trait Provider: Send + Sync + Debug {
    /// Must tell the truth for this topic on this server with this config; never fails and never waits.
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities;

    /// Must make topic and groups exist, and may be called any number of times, from any number of processes at once.
    /// Must report where the broker differs from the wish, and must not change it. A group that exists stays where it is.
    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured>;

    /// Must remove it with its data; removing what is not there succeeds.
    async fn remove(&self, what: Remove<'_>) -> Result<()>;

    /// Must answer for each message, in order: `Ok` only after the broker confirmed it at the strongest practical setting.
    /// Must keep the order of messages of one shard, within a batch and from one awaited call to the next.
    /// Must not retry. Must say `ambiguous` whenever the broker may have the message all the same. Must have let go of the
    /// batch when it answers, so that the caller goes on with it without a copy.
    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>>;

    /// How many calls of `send` for one unordered topic are worth making at the same time; on ordered topics there is one.
    fn sends_at_once(&self) -> usize {
        1
    }

    /// Must open one subscription to all routes for one member of a group, live when it returns. Must not lose what is
    /// buffered when the future of [`Subscription::next`] is dropped. Topic and group must have been ensured.
    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>>;

    /// Must count what waits for the group, over all members.
    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth>;

    /// Must return up to `max` messages from there on without consuming any. `CAPABILITY_UNSUPPORTED` where nothing is kept.
    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>>;

    /// Must set the group to start there, for all members, also while they are live.
    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()>;

    /// Must test the connection in stages and end by itself before the deadline.
    async fn probe(&self, deadline: Instant) -> Vec<Stage>;

    /// Must end every task and connection within the deadline. Later calls fail with `CLOSED`.
    async fn close(&self, deadline: Instant);
}

/// What a subscription has to say.
#[derive(Debug)]
pub enum Signal {
    /// Messages of one shard, in order.
    Deliveries {
        /// Which of the routes given to `subscribe`.
        route: usize,
        /// The shard.
        shard: u32,
        /// The number of this ownership.
        epoch: u64,
        /// The messages.
        items: Vec<Delivery>,
    },
    /// This member owns the shard from now on. Comes before its first delivery.
    Assigned {
        /// Which route.
        route: usize,
        /// The shard.
        shard: u32,
        /// The number of this ownership; higher than any before.
        epoch: u64,
    },
    /// The shard shall be given up: no more deliveries of it come, settle what runs, then call `yield_shard`.
    Revoking {
        /// Which route.
        route: usize,
        /// The shard.
        shard: u32,
        /// After this it is taken away.
        deadline: Instant,
    },
    /// The shard is gone: settles of it are stale, running handlers should be cancelled.
    Lost {
        /// Which route.
        route: usize,
        /// The shard.
        shard: u32,
    },
    /// The state seen from the broker changed.
    State(SubscriptionState),
}

/// How a subscription fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionState {
    /// Joined, with or without a shard.
    Live,
    /// Works only in part; the word is fixed.
    Degraded(&'static str),
}

/// One member of a group, receiving. Lives as long as its connection: an `Err` from `next` means it is dead,
/// and the core rebuilds it. All calls may run at the same time.
#[async_trait]
pub trait Subscription: Send + Sync + Debug {
    /// Must return as soon as there is something, at most `max` messages and about `max_bytes` (at least one message),
    /// and an empty list after `wait`. Must keep the leases of what it handed out and of what it buffers.
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>>;

    /// Must settle each, in order, and say what became of it. `Done` holds when it returns `Settled`, at least against
    /// the death of this process.
    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled>;

    /// Must keep each lease for another period; `false` where it was lost.
    async fn extend(&self, tokens: &[Token]) -> Vec<bool>;

    /// Must let the revocation of the shard finish: everything of it has been settled.
    async fn yield_shard(&self, route: usize, shard: u32);

    /// Must stop receiving; what was handed out stays.
    async fn pause(&self);

    /// Must receive again.
    async fn resume(&self);

    /// Must release what was not settled without counting it as a failure where the broker can, flush, and leave the group.
    async fn close(&self, deadline: Instant);
}

/// A stage that took `since` until now.
#[must_use]
pub fn stage(name: &'static str, since: Instant, result: Result<(), (Error, &str)>) -> Stage {
    let ms = crate::message::millis(since.elapsed());
    match result {
        Ok(()) => Stage { stage: name, ok: true, ms, code: None, message: None, fix: None },
        Err((error, fix)) => Stage {
            stage: name,
            ok: false,
            ms,
            code: Some(error.code()),
            message: Some(error.message().to_owned()),
            fix: Some(fix.to_owned()),
        },
    }
}

/// Tests a resolved config in stages without opening it, and ends before the deadline; `None` where only what is open can
/// be tested ([`Provider::probe`]).
///
/// # Errors
/// `CONFIG_INVALID`, `INPUT_INVALID` for what is wrong in the config itself.
pub async fn test(config: &ProviderConfig, deadline: Instant) -> Result<Option<Vec<Stage>>> {
    match config {
        #[cfg(feature = "rabbitmq")]
        ProviderConfig::RabbitMq(config) => Ok(Some(rabbitmq::probe(config, deadline).await)),
        #[cfg(feature = "redis")]
        ProviderConfig::Redis(config) => redis::Redis::test(config, deadline).await.map(Some),
        _ => {
            let _ = deadline;
            Ok(None)
        }
    }
}

/// Opens the connection of a resolved config. This and [`crate::config::ProviderConfig`] are the one list of providers.
///
/// # Errors
/// `CAPABILITY_UNSUPPORTED` naming the feature if the provider is not compiled in; else as the provider's.
pub async fn open(config: &ProviderConfig, data: &std::path::Path) -> Result<Arc<dyn Provider>> {
    #[cfg(not(feature = "embedded"))]
    let _ = data;
    match config {
        #[cfg(feature = "embedded")]
        ProviderConfig::Embedded(config) => Ok(Arc::new(embedded::Embedded::open_config(config, data)?)),
        #[cfg(feature = "kafka")]
        ProviderConfig::Kafka(config) => Ok(Arc::new(kafka::Kafka::open(config).await?)),
        #[cfg(feature = "nats")]
        ProviderConfig::Nats(config) => Ok(Arc::new(nats::Nats::open(config, nats::Options::default()).await?)),
        #[cfg(feature = "pubsub")]
        ProviderConfig::GooglePubSub(config) => Ok(Arc::new(pubsub::PubSub::open(config, pubsub::Options::default()).await?)),
        #[cfg(feature = "rabbitmq")]
        ProviderConfig::RabbitMq(config) => Ok(Arc::new(rabbitmq::RabbitMq::open(config.clone()).await?)),
        #[cfg(feature = "redis")]
        ProviderConfig::Redis(config) => Ok(Arc::new(redis::Redis::open(config).await?)),
        #[cfg(feature = "sqs")]
        ProviderConfig::AwsSqs(config) => Ok(Arc::new(sqs::Sqs::open(config, sqs::Options::default()).await?)),
        #[cfg(not(all(
            feature = "embedded",
            feature = "kafka",
            feature = "nats",
            feature = "pubsub",
            feature = "rabbitmq",
            feature = "redis",
            feature = "sqs"
        )))]
        other => {
            other.kind().require_compiled_in()?;
            Err(Error::new(Code::CapabilityUnsupported, format!("{} cannot be opened by this version", other.kind().as_str())))
        }
    }
}
