//! What a scenario is given: a broker, names nobody else uses, and short words for what every scenario does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline::capability::Capabilities;
use trunkline::delivery::Position;
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, SendError, Start, SubscribeOptions, TopicSpec};
use trunkline::{Headers, MessageId};

use crate::{Broker, Member, Pace, Verdict};

/// A broker as one scenario uses it.
#[derive(Debug)]
pub struct Bed {
    /// For more connections.
    pub broker: Arc<dyn Broker>,
    /// The first connection.
    pub provider: Arc<dyn Provider>,
    /// How long to wait.
    pub pace: Pace,
    ordered: bool,
    prefix: String,
    names: AtomicU32,
}

impl Bed {
    /// Opens the first connection. `ordered` is the kind of topic [`Bed::topic`] makes.
    pub async fn new(broker: Arc<dyn Broker>, ordered: bool) -> Verdict<Self> {
        let provider = broker.open().await?;
        let prefix = format!("s{}", &MessageId::now().0.simple().to_string()[4..]);
        Ok(Bed { pace: broker.pace(), broker, provider, ordered, prefix, names: AtomicU32::new(0) })
    }

    /// Another connection.
    pub async fn open(&self) -> Verdict<Arc<dyn Provider>> {
        Ok(self.broker.open().await?)
    }

    /// A name nobody else uses.
    pub fn name(&self) -> Arc<str> {
        format!("{}-{}", self.prefix, self.names.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// A topic of the scenario's kind that does not exist yet.
    pub fn topic_spec(&self, shards: u32) -> TopicSpec {
        let name = self.broker.topic_name(self.name().to_string(), self.ordered);
        TopicSpec::new(name, shards, self.ordered)
    }

    /// What the provider declares for it.
    pub fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        self.provider.capabilities(topic)
    }

    /// How long a member that died may keep its messages from others.
    pub fn takeover(&self, topic: &TopicSpec) -> Duration {
        Duration::from_millis(self.capabilities(topic).takeover_ms)
    }

    /// A group that starts with the oldest message.
    pub fn group_spec(&self) -> GroupSpec {
        GroupSpec { name: self.name(), start: Start::Earliest }
    }

    /// A new topic with one new group.
    pub async fn topic(&self, shards: u32) -> Verdict<(TopicSpec, GroupSpec)> {
        let (topic, group) = (self.topic_spec(shards), self.group_spec());
        self.provider.ensure(&topic, std::slice::from_ref(&group)).await?;
        Ok((topic, group))
    }

    /// Sends on the first connection; all must be confirmed.
    pub async fn send(&self, topic: &TopicSpec, batch: Vec<Outgoing>) -> Verdict<Vec<Sent>> {
        send(&*self.provider, topic, batch).await
    }

    /// Sends `n` small messages, spread over the shards where the topic is ordered.
    pub async fn send_some(&self, topic: &TopicSpec, n: usize) -> Verdict<Vec<Sent>> {
        self.send(topic, some(topic, n)).await
    }

    /// A member on the first connection.
    pub async fn member(&self, topic: &TopicSpec, group: &GroupSpec) -> Verdict<Member> {
        self.member_on(&self.provider, std::slice::from_ref(topic), group, PREFETCH).await
    }

    /// A member on a connection of its own, as another process would be.
    pub async fn stranger(&self, topic: &TopicSpec, group: &GroupSpec) -> Verdict<Member> {
        self.member_on(&self.open().await?, std::slice::from_ref(topic), group, PREFETCH).await
    }

    /// A member with everything chosen. It keeps the connection open.
    pub async fn member_on(
        &self,
        provider: &Arc<dyn Provider>,
        routes: &[TopicSpec],
        group: &GroupSpec,
        prefetch: Prefetch,
    ) -> Verdict<Member> {
        let options = SubscribeOptions { member: self.name(), prefetch };
        let subscription = provider.subscribe(routes, group, options).await?;
        Ok(Member::new(subscription, Arc::clone(provider), routes, self.pace))
    }

    /// The moment a scenario gives up waiting for what must come.
    pub fn give_up(&self) -> Instant {
        Instant::now() + self.pace.patience
    }
}

/// Room for a few hundred small messages.
pub(crate) const PREFETCH: Prefetch = Prefetch { count: 256, bytes: 16 << 20 };

/// A confirmed message.
#[derive(Debug, Clone)]
pub struct Sent {
    /// As it was sent.
    pub message: Outgoing,
    /// Where the broker says it lies.
    pub position: Position,
}

impl Sent {
    /// Its id.
    pub fn id(&self) -> MessageId {
        self.message.id
    }
}

/// A message with this payload.
pub(crate) fn message(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

/// Small messages that can be told apart, spread over the shards where the topic is ordered.
pub(crate) fn some(topic: &TopicSpec, n: usize) -> Vec<Outgoing> {
    (0..n)
        .map(|at| {
            let shard = at as u32 % topic.shards;
            let key = topic.ordered.then(|| key_of(shard, topic.shards));
            Outgoing { shard: topic.ordered.then_some(shard), key, ..message(format!("{{\"n\":{at}}}")) }
        })
        .collect()
}

/// A key that lies in this shard.
pub(crate) fn key_of(shard: u32, shards: u32) -> Bytes {
    let mut keys = (0_u32..).map(|n| format!("key-{n}"));
    Bytes::from(keys.find(|key| trunkline::provider::shard_of(key.as_bytes(), shards) == shard).unwrap_or_default())
}

/// Sends; all must be confirmed.
pub(crate) async fn send(provider: &dyn Provider, topic: &TopicSpec, batch: Vec<Outgoing>) -> Verdict<Vec<Sent>> {
    let results = provider.send(topic, Arc::new(batch.clone())).await;
    check!(results.len() == batch.len(), "{} messages sent, {} results", batch.len(), results.len());
    let mut sent = Vec::with_capacity(batch.len());
    for (message, result) in batch.into_iter().zip(results) {
        match result {
            Ok(position) => sent.push(Sent { message, position }),
            Err(SendError { error, retryable, ambiguous }) => {
                check!(false, "a message was not confirmed: {error:?}, retryable {retryable}, ambiguous {ambiguous}");
            }
        }
    }
    Ok(sent)
}
