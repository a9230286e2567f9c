//! Kafka, through librdkafka.
//!
//! - `client` sets up librdkafka's clients, `desk` the one that asks about groups, `native` and `queue` are where its Rust wrapper does not reach.
//! - `send` produces, `envelope` is how a message lies on Kafka.
//! - `group` is a member of a group, `rebalance` its thread, `shard`, `window` and `mark` what it holds and has settled,
//!   `subscription` what the core calls.
//! - `topics` and `offsets` are what is asked of the broker beside, `read` reads without a group, `probe` tests.

pub mod config;

mod client;
mod desk;
mod envelope;
mod error;
mod group;
mod mark;
mod native;
mod offsets;
mod probe;
mod queue;
mod read;
mod rebalance;
mod send;
mod shard;
mod subscription;
mod topics;
mod window;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::types::RDKafkaErrorCode as ErrorCode;
use tokio_util::sync::CancellationToken;

use self::client::{Client, NoReports, Properties, blocking};
use self::desk::{Desk, at_desk};
use self::error::{Fault, closed, error};
use self::native::{EARLIEST, LATEST};
use self::offsets::patiently;
use self::read::LazyReader;
use self::send::Senders;
use self::subscription::KafkaSubscription;
use self::topics::{Cluster, Facts};
use crate::capability::{Capabilities, DeliveryCount};
use crate::config::KafkaConfig;
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};

/// A member that gave no sign of life for this long is dead, unless `options` say otherwise.
const SESSION: Duration = Duration::from_secs(10);
/// How long opening waits for the cluster.
const OPEN: Duration = Duration::from_secs(10);
/// How long a call to the broker may take, with its tries.
const CALL: Duration = Duration::from_secs(20);
/// How long a seek waits until the owners have followed it.
const FOLLOWED: Duration = Duration::from_secs(10);

/// A connection to a Kafka cluster.
#[derive(Debug)]
pub struct Kafka {
    config: KafkaConfig,
    properties: Properties,
    /// Asks; never produces and is in no group.
    control: Mutex<Option<Arc<Client<NoReports>>>>,
    /// Asks about groups; made with the first of them.
    desk: Mutex<Option<Arc<Desk>>>,
    senders: Senders,
    reader: Arc<LazyReader>,
    cluster: Cluster,
    /// What was seen of topics that were ensured.
    topics: Mutex<HashMap<Arc<str>, Facts>>,
    members: Mutex<Vec<Weak<group::Group>>>,
    session: Duration,
    end: CancellationToken,
}

impl Kafka {
    /// Connects, and asks the cluster for its settings.
    ///
    /// # Errors
    /// `CONFIG_INVALID` and `INPUT_INVALID` naming the field; `CONNECTION_FAILED`, `AUTHENTICATION_FAILED`.
    pub async fn open(config: &KafkaConfig) -> Result<Self> {
        let properties = Properties::new(config).await?;
        let control = Arc::new(Client::new(&properties, &[], NoReports)?);
        let cluster = connect(&control, Instant::now() + OPEN).await?;
        let session = properties.option("session.timeout.ms").and_then(|ms| ms.parse().ok()).map_or(SESSION, Duration::from_millis);
        Ok(Kafka {
            config: config.clone(),
            senders: Senders::new(properties.clone()),
            properties,
            control: Mutex::new(Some(control)),
            desk: Mutex::default(),
            reader: Arc::default(),
            cluster,
            topics: Mutex::default(),
            members: Mutex::default(),
            session,
            end: CancellationToken::new(),
        })
    }

    /// Tests a connection that need not be open, in stages.
    ///
    /// # Errors
    /// `CONFIG_INVALID` and `INPUT_INVALID` for what is wrong in the config itself.
    pub async fn test(config: &KafkaConfig, deadline: Instant) -> Result<Vec<Stage>> {
        Ok(probe::run(&Properties::new(config).await?, config, deadline).await)
    }

    fn control(&self) -> Result<Arc<Client<NoReports>>> {
        self.control.lock().clone().ok_or_else(closed)
    }

    /// What is known of a topic, or is true of one that this config creates.
    fn facts(&self, topic: &TopicSpec) -> Facts {
        let known = self.topics.lock().get(&topic.name).copied();
        known.unwrap_or_else(|| self.cluster.of_new_topic(self.config.replication))
    }

    /// The largest record batch that broker and client take.
    fn limit(&self, topic: &TopicSpec) -> usize {
        let own = self.properties.option("message.max.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(usize::MAX);
        self.facts(topic).max_bytes.min(own)
    }

    /// The partitions of a topic that must be there.
    async fn partitions(&self, topic: &TopicSpec) -> Result<u32> {
        let (control, name) = (self.control()?, Arc::clone(&topic.name));
        let asked = Arc::clone(&control);
        let found = blocking(&control, move |_| patiently(Instant::now() + CALL, || topics::partitions(&asked, &name))).await;
        match found.map_err(|fault| error("the topic's partitions cannot be found out", &fault))? {
            Some(found) => Ok(found.count),
            None => Err(missing(topic)),
        }
    }

    /// Where groups are asked about; this one may be read, or nothing is to be asked.
    fn desk(&self, group: &str) -> Result<Arc<Desk>> {
        let mut desk = self.desk.lock();
        // Looked at under the lock: a close that comes after it finds the desk.
        drop(self.control()?);
        match &*desk {
            Some(desk) => Ok(Arc::clone(desk)),
            None => Ok(Arc::clone(desk.insert(Arc::new(Desk::new(&self.properties, group)?)))),
        }
    }

    /// A call about the offsets of a group on a topic.
    async fn call<T: Send + 'static>(
        &self,
        group: &str,
        doing: &str,
        work: impl Fn(&Desk) -> Result<T, Fault> + Send + Sync + 'static,
    ) -> Result<T> {
        let done = at_desk(&self.desk(group)?, move |desk| patiently(Instant::now() + CALL, || work(desk))).await;
        done.map_err(|fault| error(doing, &fault))
    }
}

/// Waits for the cluster's first answer; says why there is none.
async fn connect(control: &Arc<Client<NoReports>>, deadline: Instant) -> Result<Cluster> {
    let ear = control.ear.clone();
    let asked = blocking(control, move |rk| {
        loop {
            match native::brokers(rk, Duration::from_millis(500)) {
                Ok(_) => return Cluster::ask(rk),
                Err(fault) => {
                    let last = ear.last();
                    let final_ = last.as_ref().is_some_and(|last| {
                        matches!(
                            last.code,
                            ErrorCode::Authentication
                                | ErrorCode::SaslAuthenticationFailed
                                | ErrorCode::UnsupportedSASLMechanism
                                | ErrorCode::SSL
                        )
                    });
                    if final_ || Instant::now() >= deadline {
                        return Err(last.unwrap_or(fault));
                    }
                }
            }
        }
    });
    asked.await.map_err(|fault| error("the cluster cannot be reached", &fault))
}

fn missing(topic: &TopicSpec) -> Error {
    Error::new(Code::TopicNotFound, format!("topic '{}' does not exist on the broker", topic.name))
        .reason("topic_missing")
        .next(format!("create it with {} partitions, or set `create: true`", topic.shards))
}

#[async_trait]
impl Provider for Kafka {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        Capabilities {
            durability: self.facts(topic).durability(),
            ordered_shards: topic.ordered,
            broker_orders_keys: false,
            keeps_messages: true,
            native_delay_max_ms: 0,
            delivery_count: DeliveryCount::UpperBound,
            release_uncounted: true,
            extends_leases: true,
            lossy: false,
            max_message_bytes: self.limit(topic).saturating_sub(envelope::OVERHEAD),
            dedup_window_ms: 0,
            max_wait_ms: u64::MAX,
            takeover_ms: crate::message::millis(self.session + Duration::from_secs(3)),
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let control = self.control()?;
        let (spec, replication, create, cluster) = (topic.clone(), self.config.replication, self.config.common.create, self.cluster);
        let asked = Arc::clone(&control);
        let found = blocking(&control, move |_| topics::ensure(&asked, &cluster, &spec, create, replication)).await;
        let found = found.map_err(|fault| error(&format!("topic '{}' cannot be ensured", topic.name), &fault))?;
        let (mut ensured, partitions, facts) = found.ok_or_else(|| missing(topic))?;
        self.topics.lock().insert(Arc::clone(&topic.name), facts);
        for group in groups {
            let (name, of, start) = (Arc::clone(&topic.name), Arc::clone(&group.name), group.start.clone());
            let doing = format!("group '{}' cannot be ensured", group.name);
            let new = self.call(&group.name, &doing, move |desk| offsets::ensure_group(desk, &name, partitions.count, &of, &start)).await?;
            if new {
                ensured.created.push(format!("group {} of topic {}", group.name, topic.name));
            }
        }
        Ok(ensured)
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        match what {
            Remove::Topic(topic) => {
                let (control, name) = (self.control()?, Arc::clone(&topic.name));
                let asked = Arc::clone(&control);
                let done = blocking(&control, move |_| topics::remove(&asked, &name)).await;
                self.topics.lock().remove(&topic.name);
                done.map_err(|fault| error(&format!("topic '{}' cannot be removed", topic.name), &fault))
            }
            Remove::Group(topic, group) => {
                let partitions = match self.partitions(topic).await {
                    Err(error) if error.code() == Code::TopicNotFound => return Ok(()),
                    other => other?,
                };
                let (topic, of) = (Arc::clone(&topic.name), group.to_owned());
                let doing = format!("group '{group}' cannot be removed");
                self.call(group, &doing, move |desk| offsets::remove_group(desk, &topic, partitions, &of)).await
            }
        }
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        self.senders.send(topic, self.limit(topic), batch).await
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        let clients = (self.control()?, self.desk(&group.name)?);
        let joined =
            KafkaSubscription::join(&self.properties, clients, routes, group, &options, self.session, self.end.child_token()).await?;
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(joined.member());
        Ok(Arc::new(joined))
    }

    /// By offsets, so that what was compacted away and transactions' marks count too: never exact.
    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        let partitions = self.partitions(topic).await?;
        let (name, of) = (Arc::clone(&topic.name), group.to_owned());
        let waiting = self.call(group, "the depth cannot be found out", move |desk| offsets::waiting(desk, &name, partitions, &of)).await?;
        let waiting = waiting.ok_or_else(|| {
            Error::new(Code::GroupNotFound, format!("group '{group}' is not known on topic '{}'", topic.name))
                .next("consume with it once, or create it")
        })?;
        let ready = waiting.iter().map(|(_, _, n)| n).sum();
        let (properties, reader, name) = (self.properties.clone(), Arc::clone(&self.reader), Arc::clone(&topic.name));
        let control = self.control()?;
        let oldest = blocking(&control, move |_| {
            let mut oldest = None;
            for (shard, first, _) in waiting.into_iter().filter(|(_, _, n)| *n > 0) {
                let stored = reader.with(&properties, |reader| reader.read(&name, shard, first, i64::MAX, 1))?;
                oldest = oldest.into_iter().chain(stored.first().map(|stored| stored.stored_at)).min();
            }
            Ok(oldest)
        });
        let oldest = oldest.await.map_err(|fault| error("the oldest message cannot be read", &fault))?;
        Ok(Depth { ready, in_flight: 0, oldest, exact: false })
    }

    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        let shard = match from {
            ReadFrom::Position(position) => position.shard,
            ReadFrom::Time { shard, .. } => shard,
        };
        let partitions = self.partitions(topic).await?;
        if shard >= partitions {
            return Err(Error::input("shard", format!("topic '{}' has {partitions} shards, and none of number {shard}", topic.name)));
        }
        let (name, properties, reader) = (Arc::clone(&topic.name), self.properties.clone(), Arc::clone(&self.reader));
        let reads = move |rk| {
            let list = offsets::one(&name, shard);
            let only = |found: HashMap<(String, i32), i64>| found.into_values().next().unwrap_or(-1);
            let end = only(offsets::offsets_at(rk, &list, LATEST)?);
            let first = match from {
                ReadFrom::Position(position) => i64::try_from(position.offset).unwrap_or(i64::MAX),
                ReadFrom::Time { at, .. } => only(offsets::resolve(rk, &list, &Start::Time(at))?),
            };
            let first = first.max(only(offsets::offsets_at(rk, &list, EARLIEST)?));
            reader.with(&properties, |reader| reader.read(&name, shard, first, end, max))
        };
        let found = blocking(&self.control()?, move |rk| patiently(Instant::now() + CALL, || reads(rk))).await;
        found.map_err(|fault| error("the topic cannot be read", &fault))
    }

    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        let partitions = self.partitions(topic).await?;
        if let Start::Position { shard, .. } = to
            && *shard >= partitions
        {
            return Err(Error::input("shard", format!("topic '{}' has {partitions} shards, and none of number {shard}", topic.name)));
        }
        let (name, of, to) = (Arc::clone(&topic.name), group.to_owned(), to.clone());
        let doing = format!("group '{group}' cannot be set to another position");
        let number = self.call(group, &doing, move |desk| offsets::set_back(desk, &name, partitions, &of, &to)).await?;
        // Members on this connection need not wait for their next look.
        self.members.lock().iter().filter_map(Weak::upgrade).for_each(|member| member.poke.notify_one());
        let (name, of) = (Arc::clone(&topic.name), group.to_owned());
        let followed =
            self.call(group, &doing, move |desk| offsets::wait_followed(desk, &name, &of, number, Instant::now() + FOLLOWED)).await?;
        if !followed {
            tracing::warn!(group, topic = %topic.name, "a member has not followed yet to the group's new position; it will when it answers");
        }
        Ok(())
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        probe::run(&self.properties, &self.config, deadline).await
    }

    async fn close(&self, deadline: Instant) {
        self.end.cancel();
        self.senders.close();
        *self.control.lock() = None;
        *self.desk.lock() = None;
        let members: Vec<_> = std::mem::take(&mut *self.members.lock()).iter().filter_map(Weak::upgrade).collect();
        let ends = members.iter().map(|member| {
            let mut ended = member.ended.subscribe();
            member.leave();
            async move { ended.wait_for(|ended| *ended).await.map(drop) }
        });
        let _ = tokio::time::timeout_at(deadline.into(), futures_util::future::join_all(ends)).await;
        let reader = Arc::clone(&self.reader);
        let _ = tokio::time::timeout_at(deadline.into(), tokio::task::spawn_blocking(move || reader.close())).await;
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.end.cancel();
    }
}
