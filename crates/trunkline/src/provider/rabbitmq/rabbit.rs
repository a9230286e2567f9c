//! The provider: one config on one server.

use std::sync::{Arc, Weak};
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::admin::Admin;
use super::config::RabbitmqConfig;
use super::connection::CONNECT;
use super::error::closed;
use super::hello::{self, Version};
use super::layout::Layout;
use super::links::Links;
use super::options::Options;
use super::probe::probe;
use super::send::Publisher;
use super::subscribe::{Member, RabbitSubscription};
use super::target::Target;
use crate::capability::{Capabilities, DeliveryCount};
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};

/// The largest message that every version takes by default (16 MiB from RabbitMQ 4 on, 128 MiB before).
const MAX_MESSAGE: usize = 16 << 20;

/// RabbitMQ behind the contract of a provider.
#[derive(Debug)]
pub struct RabbitMq {
    config: RabbitmqConfig,
    options: Options,
    links: Arc<Links>,
    publisher: Publisher,
    admin: Admin,
    members: Mutex<Vec<Weak<Member>>>,
}

impl RabbitMq {
    /// Connects and logs in.
    ///
    /// # Errors
    /// `CONNECTION_FAILED` if the server cannot be reached or TLS fails, `AUTHENTICATION_FAILED` if it refuses the user or
    /// the virtual host, `CONFIG_INVALID` and `INPUT_INVALID` for a URL or a certificate that cannot be used, `TIMEOUT`.
    pub async fn open(config: RabbitmqConfig) -> Result<Self> {
        Self::with_options(config, Options::default()).await
    }

    /// The same with other times for ordered groups.
    ///
    /// # Errors
    /// As [`RabbitMq::open`].
    pub async fn with_options(config: RabbitmqConfig, options: Options) -> Result<Self> {
        let target = Arc::new(Target::new(&config).await?);
        let version = hello::version(&target, CONNECT).await?;
        let links = Arc::new(Links::new(target, version));
        // Wrong credentials are an error of opening, not of the first message.
        links.publishing().await?;
        Ok(RabbitMq {
            publisher: Publisher::new(links.clone(), MAX_MESSAGE),
            admin: Admin::new(links.clone(), config.common.create),
            members: Mutex::default(),
            config,
            options,
            links,
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.links.is_closed() { Err(closed()) } else { Ok(()) }
    }

    fn keeps_nothing<T>(&self, what: &str) -> Result<T> {
        self.check_open()?;
        Err(Error::new(Code::CapabilityUnsupported, format!("RabbitMQ keeps no message once it is settled: {what} is not possible"))
            .detail("provider", "RABBITMQ")
            .next("replay from the history, or use a provider that keeps messages (EMBEDDED, KAFKA, REDIS, NATS)"))
    }
}

#[async_trait]
impl Provider for RabbitMq {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        Capabilities {
            durability: self.admin.durability(topic),
            ordered_shards: topic.ordered,
            broker_orders_keys: false,
            keeps_messages: false,
            native_delay_max_ms: 0,
            delivery_count: DeliveryCount::UpperBound,
            // Ordered ones are given back by closing their channel, which every version counts.
            release_uncounted: self.links.version >= Version::UNCOUNTED_NACK && !topic.ordered,
            extends_leases: true,
            lossy: false,
            max_message_bytes: self.publisher.max_bytes(),
            dedup_window_ms: 0,
            max_wait_ms: u64::MAX,
            takeover_ms: 5_000,
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        self.check_open()?;
        self.admin.ensure(topic, groups).await
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        self.check_open()?;
        self.admin.remove(what).await
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let answers = self.publisher.send(topic, &batch).await;
        drop(batch);
        answers
    }

    fn sends_at_once(&self) -> usize {
        2
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        self.check_open()?;
        let (subscription, member) = RabbitSubscription::open(self.links.clone(), routes, group, options, self.options).await?;
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(&member));
        Ok(Arc::new(subscription))
    }

    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        self.check_open()?;
        let mut depth = self.admin.depth(topic, group).await?;
        let queues = Layout::of(topic).queues(group);
        let members: Vec<Arc<Member>> = self.members.lock().iter().filter_map(Weak::upgrade).collect();
        let feeds =
            members.iter().flat_map(|member| member.inbox.feeds()).filter(|feed| queues.iter().any(|(_, queue)| *queue == feed.queue));
        depth.in_flight = feeds.map(|feed| feed.held() as u64).sum();
        Ok(depth)
    }

    async fn read(&self, _topic: &TopicSpec, _from: ReadFrom, _max: usize) -> Result<Vec<Stored>> {
        self.keeps_nothing("reading without consuming")
    }

    async fn seek(&self, _topic: &TopicSpec, _group: &str, _to: &Start) -> Result<()> {
        self.keeps_nothing("setting a group back or forth")
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        probe(&self.config, deadline).await
    }

    async fn close(&self, deadline: Instant) {
        self.publisher.close();
        self.links.close(deadline).await;
    }
}
