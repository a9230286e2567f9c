//! NATS: JetStream streams with durable pull consumers, or core NATS that keeps nothing.
//!
//! - `access` says where the servers are and who we are; `link` is one connection, never repaired; `probe` tests
//!   one in stages.
//! - `place` names streams, subjects and consumers; `api` asks JetStream; `admin` makes, compares, counts and removes;
//!   `topics` lists those of a stream that several share.
//! - `envelope` is the wire; `send` publishes and `confirms` gathers the answers.
//! - `feed` is what is known of one consumer that is being pulled from; `subscription` puts the feeds of one member
//!   together, `reader` fills them, `pull` asks for more, `settle` acks, `keeper` keeps the leases.
//! - `owners` decides who owns which shard of an ordered topic, `assign` writes it down and hands shards over, `takeover`
//!   makes a shard's messages come in order to its new owner.
//! - `read` looks at messages without consuming them; `core` is core NATS.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use self::admin::{Facts, Rules};
use self::link::{Dial, Link};
use self::place::Place;
use super::net::tls;
use super::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};
use crate::capability::{Capabilities, DeliveryCount, Durability};
use crate::config::{NatsConfig, NatsMode};
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::message::millis;

mod access;
mod admin;
mod api;
mod assign;
pub mod config;
mod confirms;
mod core;
mod envelope;
mod error;
mod feed;
mod keeper;
mod link;
mod owners;
mod place;
mod probe;
mod pull;
mod read;
mod reader;
mod send;
mod settle;
mod subscription;
mod takeover;
mod topics;

/// A delivery can be given back for at most this long: what waits takes up room among what may be in hand.
const LONGEST_RETRY_MS: u64 = 60_000;
/// The largest message of a server that says nothing else.
const MAX_PAYLOAD: usize = 1 << 20;
/// Kept free for the envelope and for what headers take on the wire beside their names and values.
const HEADROOM: usize = 512;
/// Pinned clients came with this version.
const PINNED_SINCE: (u32, u32, u32) = (2, 11, 0);
/// What is said where messages were dropped before the group had them.
const DROPPED: &str = "messages_dropped";
/// The pause before a connection is opened again, growing from this to `reconnectTimeWait`.
const AGAIN: Duration = Duration::from_millis(50);

/// What is not in the config.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A member that gives no sign of life for this long loses what it holds, and its shards. Default 30 s.
    pub lease: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { lease: Duration::from_secs(30) }
    }
}

/// NATS, reached with one config.
#[derive(Debug)]
pub struct Nats {
    shared: Arc<Shared>,
}

/// What the connection and its subscriptions share.
#[derive(Debug)]
pub(super) struct Shared {
    config: NatsConfig,
    options: Options,
    dial: Dial,
    line: tokio::sync::Mutex<Line>,
    /// The newest connection, for what may not wait.
    current: Mutex<Option<Arc<Link>>>,
    facts: Mutex<HashMap<Arc<str>, Facts>>,
    closed: CancellationToken,
    spread: AtomicU32,
    numbers: AtomicU64,
    /// Tells the members of this process from those of others that have the same name.
    nonce: String,
    members: Mutex<std::collections::HashSet<String>>,
}

/// The connection, and how the attempts to open it went.
#[derive(Debug, Default)]
struct Line {
    link: Option<Arc<Link>>,
    ever: bool,
    failures: u32,
    not_before: Option<Instant>,
    /// When the last attempt that failed began, and why it failed.
    last: Option<(Instant, Error)>,
}

impl Nats {
    /// Reads the config, with its certificates and credentials, and tries to connect. A server that cannot be reached
    /// now is no error: every call tries again, and says what is wrong.
    ///
    /// # Errors
    /// `CONFIG_INVALID` and `INPUT_INVALID` naming the field.
    pub async fn open(config: &NatsConfig, options: Options) -> Result<Self> {
        let servers = access::servers(config)?;
        let wanted = config.common.tls.is_some() || servers.iter().any(|server| server.tls);
        let tls = match tls::client(&config.common.tls.clone().unwrap_or_default()).await {
            Ok(tls) => Some(tls),
            Err(error) if wanted => return Err(error),
            Err(_) => tls::trusting_nobody(),
        };
        let tls = tls.map(|tls| (*tls).clone());
        let dial = Dial {
            servers,
            identity: access::identity(config).await?,
            tls_required: config.common.tls.is_some(),
            tls,
            name: config.name.clone().unwrap_or_else(|| "trunkline".into()),
            first: Arc::default(),
        };
        if let Some(stream) = &config.stream {
            check_stream(stream)?;
        }
        let shared = Arc::new(Shared {
            config: config.clone(),
            options,
            dial,
            line: tokio::sync::Mutex::default(),
            current: Mutex::default(),
            facts: Mutex::default(),
            closed: CancellationToken::new(),
            spread: AtomicU32::new(0),
            numbers: AtomicU64::new(0),
            nonce: crate::message::MessageId::now().to_text(),
            members: Mutex::default(),
        });
        if let Err(error) = shared.link().await {
            tracing::debug!(%error, "NATS cannot be reached yet");
        }
        Ok(Nats { shared })
    }
}

/// What JetStream takes as the name of a stream.
fn check_stream(name: &str) -> Result<()> {
    let valid =
        !name.is_empty() && name.len() <= 255 && !name.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c));
    let rule = "`stream` is no name JetStream takes: no '.', '*', '>', '/', '\\' or white space, at most 255 bytes";
    if valid { Ok(()) } else { Err(Error::new(Code::ConfigInvalid, rule).field("stream")) }
}

impl Shared {
    fn check_open(&self) -> Result<()> {
        if self.closed.is_cancelled() { Err(error::closed()) } else { Ok(()) }
    }

    /// The live connection; a dead one is replaced, once per call.
    async fn link(&self) -> Result<Arc<Link>> {
        self.check_open()?;
        if let Some(link) = self.current.lock().clone().filter(|link| !link.is_dead()) {
            return Ok(link);
        }
        tokio::select! {
            link = self.connect() => link,
            () = self.closed.cancelled() => Err(error::closed()),
        }
    }

    async fn connect(&self) -> Result<Arc<Link>> {
        let asked = Instant::now();
        let mut line = self.line.lock().await;
        if let Some(link) = line.link.clone().filter(|link| !link.is_dead()) {
            return Ok(link);
        }
        // An attempt that began after this call was its attempt too: who waits in line does not try once more each.
        if let Some((_, error)) = line.last.as_ref().filter(|(begun, _)| *begun >= asked) {
            return Err(error.clone());
        }
        let most = u32::try_from(self.config.max_reconnect_attempts).ok();
        if line.ever && most.is_some_and(|most| line.failures >= most) {
            return Err(Error::new(
                Code::Closed,
                format!("the connection was lost, and {} attempts to open it again failed", line.failures),
            )
            .reason("reconnects_exhausted")
            .next("raise `maxReconnectAttempts`, or leave it out, and start again"));
        }
        if let Some(not_before) = line.not_before {
            tokio::time::sleep_until(not_before.into()).await;
        }
        let begun = Instant::now();
        match self.dial.connect().await {
            Ok(link) => {
                *line = Line { link: Some(link.clone()), ever: true, ..Line::default() };
                *self.current.lock() = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                line.failures += 1;
                let longest = self.config.reconnect_time_wait.unwrap_or(Duration::from_secs(2));
                let pause = (AGAIN * 2_u32.saturating_pow(line.failures.min(16))).min(longest);
                line.not_before = Some(Instant::now() + pause);
                line.last = Some((begun, error.clone()));
                Err(error)
            }
        }
    }

    fn is_core(&self) -> bool {
        self.config.mode == NatsMode::Core
    }

    fn place(&self, topic: &TopicSpec) -> Place {
        Place::of(&self.config, topic)
    }

    fn rules(&self) -> Rules {
        Rules { create: self.config.common.create, replicas: self.config.replicas, lease: self.options.lease }
    }

    fn facts(&self, topic: &str) -> Facts {
        let known = self.facts.lock().get(topic).copied();
        known.unwrap_or_else(|| Facts::wished(self.config.replicas.unwrap_or(1)))
    }

    /// The largest payload with key and headers.
    fn most(&self, topic: &str) -> usize {
        let server = self.current.lock().as_ref().map_or(MAX_PAYLOAD, |link| link.max_payload);
        self.facts(topic).max_message.map_or(server, |stream| stream.min(server)).saturating_sub(HEADROOM)
    }

    fn orders(&self) -> bool {
        // A server that was not reached yet is asked when it is.
        !self.is_core() && self.current.lock().as_ref().is_none_or(|link| link.version >= PINNED_SINCE)
    }

    /// Refuses what this mode or this server cannot do.
    fn check_order(&self, topic: &TopicSpec) -> Result<()> {
        if !topic.ordered || self.orders() {
            return Ok(());
        }
        let (what, next) = if self.is_core() {
            ("core NATS keeps no order", "leave `mode: core` out, or make the topic with `ordering: none`")
        } else {
            (
                "this server has no pinned clients, which came with 2.11",
                "upgrade the server to 2.11 or later, or make the topic with `ordering: none`",
            )
        };
        Err(Error::new(Code::CapabilityUnsupported, format!("order per key: {what}")).next(next))
    }
}

impl Shared {
    fn kept(&self, what: &str) -> Result<()> {
        if self.is_core() {
            let error = Error::new(Code::CapabilityUnsupported, format!("{what}: core NATS keeps no messages"));
            return Err(error.next("leave `mode: core` out to use JetStream"));
        }
        Ok(())
    }
}

#[async_trait]
impl Provider for Nats {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        let shared = &self.shared;
        let lossy = shared.is_core();
        let facts = shared.facts(&topic.name);
        Capabilities {
            durability: if lossy { Durability::Memory } else { facts.durability },
            ordered_shards: topic.ordered && shared.orders(),
            broker_orders_keys: false,
            keeps_messages: !lossy,
            native_delay_max_ms: if lossy || topic.ordered { 0 } else { LONGEST_RETRY_MS },
            delivery_count: if lossy { DeliveryCount::Unknown } else { DeliveryCount::UpperBound },
            release_uncounted: false,
            extends_leases: !lossy,
            lossy,
            max_message_bytes: shared.most(&topic.name),
            dedup_window_ms: if lossy { 0 } else { facts.dedup_window_ms },
            max_wait_ms: u64::MAX,
            takeover_ms: if lossy { 0 } else { millis(shared.options.lease + (shared.options.lease / 2).min(Duration::from_secs(4))) },
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let link = self.shared.link().await?;
        self.shared.check_order(topic)?;
        if self.shared.is_core() {
            return Ok(Ensured::default());
        }
        let (ensured, facts) = admin::ensure(&link, self.shared.rules(), &self.shared.place(topic), groups).await?;
        self.shared.facts.lock().insert(topic.name.clone(), facts);
        Ok(ensured)
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        let link = self.shared.link().await?;
        if self.shared.is_core() {
            return Ok(());
        }
        match what {
            Remove::Topic(topic) => {
                self.shared.facts.lock().remove(&topic.name);
                admin::remove_topic(&link, &self.shared.place(topic)).await
            }
            Remove::Group(topic, group) => admin::remove_group(&link, &self.shared.place(topic), group).await,
        }
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let shared = &self.shared;
        let link = match shared.link().await {
            Ok(link) => link,
            Err(error) => return batch.iter().map(|_| Err(error::unsent(error.clone()))).collect(),
        };
        let (place, most) = (shared.place(topic), shared.most(&topic.name));
        tokio::select! {
            answers = async {
                if shared.is_core() {
                    send::send_core(&link, &place, &shared.numbers, most, &batch).await
                } else {
                    send::send(&link, &place, &shared.spread, most, &batch).await
                }
            } => answers,
            () = shared.closed.cancelled() => batch.iter().map(|_| Err(error::unconfirmed(error::closed()))).collect(),
        }
    }

    fn sends_at_once(&self) -> usize {
        2
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        let link = self.shared.link().await?;
        routes.iter().try_for_each(|route| self.shared.check_order(route))?;
        if self.shared.is_core() {
            return core::subscribe(&self.shared, link, routes, group, &options).await;
        }
        subscription::subscribe(&self.shared, link, routes, group, &options).await
    }

    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        let link = self.shared.link().await?;
        if self.shared.is_core() {
            return Ok(Depth::default());
        }
        admin::depth(&link, self.shared.rules(), &self.shared.place(topic), group).await
    }

    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        let link = self.shared.link().await?;
        self.shared.kept("reading")?;
        read::read(&link, &self.shared.place(topic), from, max).await
    }

    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        let link = self.shared.link().await?;
        self.shared.kept("setting a group elsewhere")?;
        admin::seek(&link, self.shared.rules(), &self.shared.place(topic), group, to).await
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        probe::probe(&self.shared, deadline).await
    }

    async fn close(&self, deadline: Instant) {
        self.shared.closed.cancel();
        let link = self.shared.current.lock().take();
        if let Some(link) = link {
            link.close(deadline).await;
        }
        // An attempt that was under way has seen the end as well.
        if let Ok(mut line) = tokio::time::timeout_at(deadline.into(), self.shared.line.lock()).await
            && let Some(link) = line.link.take()
        {
            link.close(deadline).await;
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}
