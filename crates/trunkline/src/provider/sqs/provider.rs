//! A connection to SQS in one region, with one set of credentials.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::xxh3_64;

use super::client::{Clients, connect};
use super::error::{closed, failure};
use super::lease::LONGEST;
use super::options::Options;
use super::probe::probe;
use super::queue;
use super::send::Sender;
use super::subscription::SqsSubscription;
use super::topics::Topics;
use crate::capability::{Capabilities, DeliveryCount, Durability};
use crate::config::SqsConfig;
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::message::{MessageId, millis};
use crate::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};

/// The largest message, and the most that one call carries, in bytes (SQS quotas).
pub(super) const LIMIT: usize = 1 << 20;
/// What a message's id, the mark of a binary payload, and the types of a few headers take of it.
const ENVELOPE: usize = 128;
/// The largest payload with key and headers.
pub(super) const LARGEST: usize = LIMIT - ENVELOPE;
/// FIFO queues drop a message whose id they saw within this time.
const DEDUP: Duration = Duration::from_secs(5 * 60);
/// A lease can be renewed for twelve hours from the receipt; an hour of it is left for the handler.
const HANDLING: Duration = Duration::from_secs(3_600);
/// Over the lease: SQS counts in whole seconds.
const SLACK: Duration = Duration::from_secs(2);

/// See the module.
pub struct Sqs {
    clients: Clients,
    config: SqsConfig,
    options: Options,
    topics: Topics,
    sender: Sender,
    /// Ends every subscription.
    end: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs").field("region", &self.config.region).field("endpoint", &self.config.common.endpoint).finish_non_exhaustive()
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

impl Sqs {
    /// Prepares a connection. Nothing is sent before it is used.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming a `tls` field that cannot be used.
    pub async fn open(config: &SqsConfig, options: Options) -> Result<Sqs> {
        let options = options.fitted();
        let clients = connect(config, &options).await?;
        Ok(Sqs {
            topics: Topics::new(clients.again.clone(), config.common.create, options.look),
            sender: Sender::new(clients.once.clone()),
            clients,
            config: config.clone(),
            options,
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.end.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    fn check_order(&self, topic: &TopicSpec) -> Result<()> {
        if !topic.ordered || queue::is_fifo(&topic.name) {
            return Ok(());
        }
        let name = queue::tail(&topic.name);
        Err(Error::new(Code::CapabilityUnsupported, format!("queue '{name}' keeps no order: only FIFO queues do"))
            .detail("queue", name)
            .next("give the topic a name that ends in `.fifo`, leave out `fifo: false`, or set `ordering: none`"))
    }

    /// What a confirm survives: SQS keeps several copies; of another server at `endpoint` nothing is known.
    fn durability(&self) -> Durability {
        let host = self.config.common.endpoint.as_deref().map(|endpoint| host_of(endpoint).0);
        let aws = |host: &String| [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|domain| host.ends_with(domain));
        if host.as_ref().is_none_or(aws) { Durability::Cloud } else { Durability::Written }
    }
}

/// Host and port of an endpoint.
pub(super) fn host_of(endpoint: &str) -> (String, u16) {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let authority = rest.split('/').next().unwrap_or(rest);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = if scheme == "http" { 80 } else { 443 };
    match authority.rsplit_once(':') {
        Some((host, given)) if !host.is_empty() => (host.trim_matches(['[', ']']).to_owned(), given.parse().unwrap_or(port)),
        _ => (authority.to_owned(), port),
    }
}

fn nothing_kept(what: &str) -> Error {
    Error::new(Code::CapabilityUnsupported, format!("SQS keeps no messages: {what} is not possible"))
        .detail("provider", "AWS_SQS")
        .next("use a provider that keeps messages, or the history")
}

#[async_trait]
impl Provider for Sqs {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        let fifo = queue::is_fifo(&topic.name);
        Capabilities {
            durability: self.durability(),
            ordered_shards: fifo,
            broker_orders_keys: fifo,
            keeps_messages: false,
            native_delay_max_ms: millis(LONGEST - HANDLING),
            delivery_count: DeliveryCount::UpperBound,
            release_uncounted: false,
            extends_leases: true,
            lossy: false,
            max_message_bytes: LARGEST,
            dedup_window_ms: if fifo { millis(DEDUP) } else { 0 },
            max_wait_ms: if fifo { millis(LONGEST - HANDLING) } else { u64::MAX },
            takeover_ms: millis(self.options.lease + SLACK),
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        self.check_open()?;
        self.check_order(topic)?;
        self.topics.ensure(&queue::own(topic), groups).await
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        self.check_open()?;
        match what {
            Remove::Topic(topic) => self.topics.remove(Remove::Topic(&queue::own(topic))).await,
            Remove::Group(topic, group) => self.topics.remove(Remove::Group(&queue::own(topic), group)).await,
        }
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let all = |ambiguous| batch.iter().map(|_| Err(SendError { error: closed(), retryable: false, ambiguous })).collect();
        if self.end.is_cancelled() {
            return all(false);
        }
        let topic = queue::own(topic);
        tokio::select! {
            results = self.sender.send(&self.topics, &topic, &batch) => results,
            () = self.end.cancelled() => all(true),
        }
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        self.check_open()?;
        let mut queues = Vec::with_capacity(routes.len());
        for route in routes {
            self.check_order(route)?;
            let route = queue::own(route);
            let url = self.topics.group_url(&route, &group.name).await?;
            queues.push((route.into_owned(), url));
        }
        let started = SqsSubscription::start(&self.clients, queues, self.options.clone(), options.prefetch, &self.end, &self.tasks);
        Ok(Arc::new(started))
    }

    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        use aws_sdk_sqs::types::QueueAttributeName as Attribute;
        self.check_open()?;
        let url = self.topics.group_url(&queue::own(topic), group).await?;
        let call = self.clients.again.get_queue_attributes().queue_url(url).set_attribute_names(Some(vec![
            Attribute::ApproximateNumberOfMessages,
            Attribute::ApproximateNumberOfMessagesDelayed,
            Attribute::ApproximateNumberOfMessagesNotVisible,
        ]));
        let answer = call.send().await.map_err(|e| failure("counting the messages of a queue", &e).error)?;
        let attributes = answer.attributes.unwrap_or_default();
        let number = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Ok(Depth {
            ready: number(Attribute::ApproximateNumberOfMessages) + number(Attribute::ApproximateNumberOfMessagesDelayed),
            in_flight: number(Attribute::ApproximateNumberOfMessagesNotVisible),
            oldest: None,
            exact: false,
        })
    }

    async fn read(&self, _topic: &TopicSpec, _from: ReadFrom, _max: usize) -> Result<Vec<Stored>> {
        self.check_open()?;
        Err(nothing_kept("reading them"))
    }

    async fn seek(&self, _topic: &TopicSpec, _group: &str, _to: &Start) -> Result<()> {
        self.check_open()?;
        Err(nothing_kept("setting a group back"))
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        probe(&self.clients, &self.config, deadline).await
    }

    async fn close(&self, deadline: Instant) {
        self.end.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout_at(deadline.into(), self.tasks.wait()).await;
    }
}

impl Drop for Sqs {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_host_and_port() {
        for (endpoint, host, port) in [
            ("http://127.0.0.1:9324", "127.0.0.1", 9324),
            ("https://sqs.eu-west-1.amazonaws.com", "sqs.eu-west-1.amazonaws.com", 443),
            ("http://sqs.local/x", "sqs.local", 80),
            ("https://[::1]:4566/", "::1", 4566),
        ] {
            assert_eq!(host_of(endpoint), (host.to_owned(), port));
        }
    }
}
