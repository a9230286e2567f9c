//! A connection to Pub/Sub in one project, with one set of credentials.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::xxh3_64;

use super::error::{Failure, Kind, closed};
use super::lease::LONGEST;
use super::link::Link;
use super::names::{Names, tail};
use super::options::Options;
use super::probe::probe;
use super::send::Sender;
use super::subscription::{PubSubSubscription, Route};
use super::topics::{Topics, look};
use crate::capability::{Capabilities, DeliveryCount, Durability};
use crate::config::PubsubConfig;
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::message::{MessageId, millis};
use crate::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};

/// The largest payload with key and headers: Pub/Sub's limit, which is 10 MB for the data and a little more for a request.
pub(super) const LARGEST: usize = 10_000_000;
/// Over the lease: Pub/Sub counts in whole seconds, and hands out again some time after.
const SLACK: Duration = Duration::from_secs(3);
/// What waits for its retry in flight is kept by Pub/Sub for as long as any other: a week at the least, less time to handle it.
const WAITS: Duration = Duration::from_secs(6 * 86_400);

/// See the module.
pub struct PubSub {
    link: Arc<Link>,
    config: PubsubConfig,
    names: Names,
    topics: Topics,
    sender: Sender,
    /// Ends every subscription.
    end: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for PubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubSub").field("project", &self.config.project_id).field("link", &self.link).finish_non_exhaustive()
    }
}

/// The shard of a message: the core's choice, which is the key's hash; one without a key is spread by its id.
pub(super) fn shard_of(topic: &TopicSpec, given: Option<u32>, key: Option<&[u8]>, id: MessageId) -> u32 {
    if !topic.ordered {
        return 0;
    }
    let of_id = || (xxh3_64(id.as_bytes()) % u64::from(topic.shards.max(1))) as u32;
    given.or_else(|| key.map(|key| crate::provider::shard_of(key, topic.shards))).unwrap_or_else(of_id)
}

impl PubSub {
    /// Prepares a connection. Nothing is sent before it is used.
    ///
    /// # Errors
    /// `CONFIG_INVALID` naming `endpoint`, `keyFilename` or `credentials`, `INPUT_INVALID` naming a `tls` field, where it
    /// cannot be used; `AUTHENTICATION_FAILED` where the machine's own credentials are damaged.
    pub async fn open(config: &PubsubConfig, options: Options) -> Result<PubSub> {
        let names = Names::of(config);
        Ok(PubSub {
            link: Arc::new(Link::of(config, options).await?),
            topics: Topics::new(names.clone(), config.common.create),
            names,
            config: config.clone(),
            sender: Sender::new(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.end.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Looks at a group's subscription. `None` where that is not allowed.
    async fn look(&self, topic: &TopicSpec, path: &str) -> Result<()> {
        match look(&self.link, path).await {
            Ok(found) => self.topics.usable(topic, &found).map_err(|failed| failed.error),
            Err(failed) if failed.kind == Kind::Denied => Ok(()),
            Err(failed) => Err(no_group(failed, path)),
        }
    }
}

fn no_group(failed: Failure, path: &str) -> Error {
    if failed.kind != Kind::Missing {
        return failed.error;
    }
    let name = tail(path);
    Error::new(Code::GroupNotFound, format!("subscription '{name}' of the group does not exist"))
        .detail("subscription", name)
        .reason("no_subscription")
}

fn nothing_kept(what: &str) -> Error {
    Error::new(Code::CapabilityUnsupported, format!("Pub/Sub lets nobody read what a group has settled: {what} is not possible"))
        .detail("provider", "GOOGLE_PUBSUB")
        .next("use a provider that keeps messages, or the history; `gcloud pubsub subscriptions seek` sets a subscription back by hand")
}

#[async_trait]
impl Provider for PubSub {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        let ordered = topic.ordered;
        Capabilities {
            // Emulators keep nothing when they end.
            durability: if self.link.target.is_service() { Durability::Cloud } else { Durability::Memory },
            ordered_shards: ordered,
            broker_orders_keys: ordered,
            keeps_messages: false,
            native_delay_max_ms: if ordered { 0 } else { millis(LONGEST) },
            delivery_count: DeliveryCount::Unknown,
            release_uncounted: false,
            extends_leases: true,
            lossy: false,
            max_message_bytes: LARGEST,
            dedup_window_ms: 0,
            max_wait_ms: if ordered { millis(WAITS) } else { u64::MAX },
            takeover_ms: millis(self.link.options().lease + SLACK),
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        self.check_open()?;
        self.topics.ensure(&self.link, topic, groups).await.map_err(|failed| failed.error)
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        self.check_open()?;
        self.topics.remove(&self.link, what).await.map_err(|failed| failed.error)
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let all = |ambiguous| batch.iter().map(|_| Err(SendError { error: closed(), retryable: false, ambiguous })).collect();
        if self.end.is_cancelled() {
            return all(false);
        }
        let path = self.names.topic(&topic.name);
        tokio::select! {
            results = self.sender.send(&self.link, &path, topic, &batch) => results,
            () = self.end.cancelled() => all(true),
        }
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        self.check_open()?;
        let paths = routes.iter().map(|topic| self.names.subscription(&topic.name, &group.name));
        let routes: Vec<Route> = routes.iter().zip(paths).map(|(topic, path)| Route { topic: topic.clone(), path }).collect();
        futures_util::future::try_join_all(routes.iter().map(|route| self.look(&route.topic, &route.path))).await?;
        let client = MessageId::now().to_text();
        Ok(Arc::new(PubSubSubscription::start(&self.link, routes, client, options.prefetch, &self.end, &self.tasks)))
    }

    /// Pub/Sub's API counts nothing, and a number that is made up could end a move to another server too early.
    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        self.check_open()?;
        let path = self.names.subscription(&topic.name, group);
        match look(&self.link, &path).await {
            Err(failed) if failed.kind != Kind::Denied => return Err(no_group(failed, &path)),
            _ => {}
        }
        Err(Error::new(Code::CapabilityUnsupported, "Pub/Sub does not say how many messages wait for a group")
            .detail("provider", "GOOGLE_PUBSUB")
            .detail("subscription", tail(&path))
            .reason("not_counted")
            .next("look at `num_undelivered_messages` of the subscription in Cloud Monitoring"))
    }

    async fn read(&self, _topic: &TopicSpec, _from: ReadFrom, _max: usize) -> Result<Vec<Stored>> {
        self.check_open()?;
        Err(nothing_kept("reading it"))
    }

    async fn seek(&self, _topic: &TopicSpec, _group: &str, _to: &Start) -> Result<()> {
        self.check_open()?;
        Err(nothing_kept("setting a group back"))
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        probe(&self.link, &self.names, &self.config, deadline).await
    }

    async fn close(&self, deadline: Instant) {
        self.end.cancel();
        self.link.close();
        self.tasks.close();
        let _ = tokio::time::timeout_at(deadline.into(), self.tasks.wait()).await;
    }
}

impl Drop for PubSub {
    fn drop(&mut self) {
        self.end.cancel();
    }
}
