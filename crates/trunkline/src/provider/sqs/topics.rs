//! The queues of each topic, as this connection knows them: those it made sure of, and those that others made.
//!
//! A queue of a group carries the tag `trunkline-topic`, so that a queue whose name only looks like a group's is left
//! alone. Queues are looked for when a topic is first produced to, and then once a minute.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use futures_util::future::{join_all, try_join_all};
use parking_lot::Mutex;

use super::error::{Failure, Kind, failure};
use super::provider::LIMIT;
use super::queue;
use crate::error::{Code, Error, Result};
use crate::provider::{Ensured, GroupSpec, Remove, TopicSpec};

/// Whose group's queue it is.
const TAG_TOPIC: &str = "trunkline-topic";
/// How many shards the topic has.
const TAG_SHARDS: &str = "trunkline-shards";
/// The longest that SQS keeps a message: 14 days.
const RETENTION: &str = "1209600";
/// The largest message there is in SQS, in bytes.
const LARGEST: &str = "1048576";
/// A redrive policy that takes messages away after fewer receives than this takes them before a retry schedule is over.
const RECEIVES: u64 = 100;
/// A queue that does not exist for so long was deleted, and its group with it. Not every server knows a queue at once when
/// it was made, and an emulator that starts answers before it has read its own.
pub(super) const GONE: Duration = Duration::from_secs(10);

/// One group's queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) url: String,
    /// Since when SQS has been saying that it does not exist.
    missing: Mutex<Option<Instant>>,
}

impl Queue {
    /// It took a message.
    pub(super) fn found(&self) {
        if self.missing.lock().is_some() {
            *self.missing.lock() = None;
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    /// In the order of their names: the topic's own is the first.
    queues: Vec<Arc<Queue>>,
    looked: Option<Instant>,
    /// Whether there ever was one.
    had_some: bool,
    /// Queues whose names look like a group's, and are not.
    strangers: HashSet<String>,
}

#[derive(Debug, Default)]
struct Topic {
    known: Mutex<Known>,
    looking: tokio::sync::Mutex<()>,
}

impl Topic {
    fn add(&self, name: &str, url: String) {
        let mut known = self.known.lock();
        known.had_some = true;
        if known.queues.iter().all(|queue| queue.url != url) {
            let at = known.queues.partition_point(|queue| (queue.name.len(), &*queue.name) < (name.len(), name));
            known.queues.insert(at, Arc::new(Queue { name: name.to_owned(), url, missing: Mutex::default() }));
        }
    }

    fn drop_queue(&self, url: &str) {
        let mut known = self.known.lock();
        known.queues.retain(|queue| queue.url != url);
        known.looked = None;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Topics {
    client: Client,
    create: bool,
    look: Duration,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
    warned: AtomicBool,
}

impl Topics {
    pub(super) fn new(client: Client, create: bool, look: Duration) -> Self {
        Topics { client, create, look, topics: Mutex::default(), warned: AtomicBool::new(false) }
    }

    fn of(&self, topic: &TopicSpec) -> Arc<Topic> {
        self.topics.lock().entry(Arc::clone(&topic.name)).or_default().clone()
    }

    /// All queues a message of the topic must get to.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND` if there is none; else as the call that looks for them.
    pub(super) async fn queues(&self, spec: &TopicSpec) -> Result<Vec<Arc<Queue>>, Failure> {
        let topic = self.of(spec);
        let fresh = |known: &Known| known.looked.is_some_and(|at| at.elapsed() < self.look) && !known.queues.is_empty();
        {
            let known = topic.known.lock();
            if fresh(&known) {
                return Ok(known.queues.clone());
            }
        }
        let _one = topic.looking.lock().await;
        if fresh(&topic.known.lock()) {
            return Ok(topic.known.lock().queues.clone());
        }
        let seen = self.look(spec, &topic).await;
        let mut known = topic.known.lock();
        match seen {
            Ok(()) => {}
            Err(failure) if known.queues.is_empty() => return Err(failure),
            // Those that are known go on; the look is repeated when it is due again.
            Err(failure) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %failure.error, topic = %spec.name, "queues of other groups cannot be looked for");
                }
            }
        }
        known.looked = Some(Instant::now());
        if known.queues.is_empty() {
            let mut failed = self.no_queue(&spec.name);
            // It may be made again.
            failed.error = failed.error.with_retryable(known.had_some);
            return Err(failed);
        }
        Ok(known.queues.clone())
    }

    fn no_queue(&self, name: &str) -> Failure {
        let name = queue::tail(name);
        let next = if self.create { "ensure the topic first" } else { "create it, or set `create: true`" };
        let error = Error::new(Code::TopicNotFound, format!("queue '{name}' does not exist")).detail("queue", name);
        Failure { kind: Kind::Missing, error: error.reason("no_queue").next(format!("queue '{name}': {next}")), ambiguous: false }
    }

    /// Finds the queues that others made.
    async fn look(&self, spec: &TopicSpec, topic: &Topic) -> Result<(), Failure> {
        let mut found = self.list(queue::prefix(&spec.name)).await?;
        let own = queue::tail(&spec.name);
        // A list may lag behind by a minute: the topic's own queue is asked for by its name.
        if !found.iter().any(|url| queue::tail(url) == own)
            && let Some(url) = self.url(&spec.name).await?
        {
            found.push(url);
        }
        let new: Vec<String> = {
            let known = topic.known.lock();
            let is_new = |url: &String| known.queues.iter().all(|queue| queue.url != *url) && !known.strangers.contains(url);
            found.into_iter().filter(is_new).collect()
        };
        let tags = new.iter().filter(|url| queue::is_of(own, url)).map(async |url| (url.clone(), self.tags(url).await));
        for (url, tags) in join_all(tags).await {
            if tags?.get(TAG_TOPIC).is_some_and(|of| of == own) {
                topic.add(queue::tail(&url), url.clone());
            } else {
                topic.known.lock().strangers.insert(url);
            }
        }
        if let Some(url) = new.into_iter().find(|url| queue::tail(url) == own) {
            topic.add(own, if queue::is_url(&spec.name) { spec.name.to_string() } else { url });
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let mut urls = Vec::new();
        let mut pages = self.client.list_queues().queue_name_prefix(prefix).max_results(1_000).into_paginator().send();
        while let Some(page) = pages.next().await {
            urls.extend(page.map_err(|e| failure("listing queues", &e))?.queue_urls.unwrap_or_default());
        }
        Ok(urls)
    }

    async fn tags(&self, url: &str) -> Result<HashMap<String, String>, Failure> {
        let tags = self.client.list_queue_tags().queue_url(url).send().await;
        match tags {
            Ok(tags) => Ok(tags.tags.unwrap_or_default()),
            Err(error) => match failure("reading the tags of a queue", &error) {
                Failure { kind: Kind::Missing, .. } => Ok(HashMap::new()),
                failed => Err(failed),
            },
        }
    }

    async fn attributes(&self, url: &str) -> Result<Option<HashMap<Attribute, String>>, Failure> {
        match self.client.get_queue_attributes().queue_url(url).attribute_names(Attribute::All).send().await {
            Ok(answer) => Ok(Some(answer.attributes.unwrap_or_default())),
            Err(error) => match failure("reading the attributes of a queue", &error) {
                Failure { kind: Kind::Missing, .. } => Ok(None),
                failed => Err(failed),
            },
        }
    }

    /// The URL of a queue, if there is such a queue.
    pub(super) async fn url(&self, name: &str) -> Result<Option<String>, Failure> {
        if queue::is_url(name) {
            return Ok(self.attributes(name).await?.map(|_| name.to_owned()));
        }
        match self.client.get_queue_url().queue_name(name).send().await {
            Ok(answer) => Ok(answer.queue_url),
            Err(error) => match failure("looking for a queue", &error) {
                Failure { kind: Kind::Missing, .. } => Ok(None),
                failed => Err(failed),
            },
        }
    }

    /// The URL of a group's queue.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND` if there is none.
    pub(super) async fn group_url(&self, topic: &TopicSpec, group: &str) -> Result<String> {
        let name = queue::of_group(&topic.name, group);
        let known = self.of(topic).known.lock().queues.iter().find(|queue| queue.name == queue::tail(&name)).map(|queue| queue.url.clone());
        if let Some(url) = known {
            return Ok(url);
        }
        let found = self.url(&name).await.map_err(|failed| failed.error)?;
        found.ok_or_else(|| {
            let name = queue::tail(&name);
            Error::new(Code::GroupNotFound, format!("queue '{name}' of the group does not exist")).detail("queue", name).reason("no_queue")
        })
    }

    /// As [`crate::provider::Provider::ensure`].
    pub(super) async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let mut names: Vec<String> = groups.iter().map(|group| queue::of_group(&topic.name, &group.name)).collect();
        if names.is_empty() {
            // A topic without any group keeps what is sent in a queue of its own name.
            match self.queues(topic).await {
                Ok(_) => return Ok(Ensured::default()),
                Err(Failure { kind: Kind::Missing, .. }) => names.push(topic.name.to_string()),
                Err(failed) => return Err(failed.error),
            }
        }
        let made = try_join_all(names.iter().map(|name| self.ensure_queue(topic, name))).await.map_err(|failed| failed.error)?;
        let mut ensured = Ensured::default();
        for (created, mut drift) in made {
            ensured.created.extend(created);
            ensured.drift.append(&mut drift);
        }
        Ok(ensured)
    }

    /// Makes sure of one queue: what was created, and where it differs.
    async fn ensure_queue(&self, topic: &TopicSpec, name: &str) -> Result<(Option<String>, Vec<String>), Failure> {
        let found = self.url(name).await?;
        let created = found.is_none();
        let url = match found {
            Some(url) => url,
            None if self.create => self.create(topic, name).await?,
            None => return Err(self.no_queue(name)),
        };
        let short = queue::tail(name);
        if queue::is_url(name) && url != name {
            let error = Error::new(Code::TopicNotFound, format!("queue '{short}' was made in another account or region than its URL says"));
            let error = error.detail("queue", short).reason("other_account").next("give a URL of this account and region, or a name");
            return Err(Failure { kind: Kind::Missing, error, ambiguous: false });
        }
        self.of(topic).add(short, url.clone());
        if created {
            return Ok((Some(format!("queue {short}")), Vec::new()));
        }
        Ok((None, self.drift(topic, short, &url).await?))
    }

    async fn create(&self, topic: &TopicSpec, name: &str) -> Result<String, Failure> {
        let mut call = self
            .client
            .create_queue()
            .queue_name(queue::tail(name))
            .attributes(Attribute::MessageRetentionPeriod, RETENTION)
            .attributes(Attribute::MaximumMessageSize, LARGEST)
            .tags(TAG_TOPIC, queue::tail(&topic.name))
            .tags(TAG_SHARDS, topic.shards.to_string());
        if queue::is_fifo(name) {
            // High throughput: groups of messages are throttled and deduplicated on their own.
            call = call
                .attributes(Attribute::FifoQueue, "true")
                .attributes(Attribute::DeduplicationScope, "messageGroup")
                .attributes(Attribute::FifoThroughputLimit, "perMessageGroupId");
        }
        match call.send().await {
            Ok(answer) => answer.queue_url.ok_or_else(|| self.no_queue(name)),
            Err(error) => match failure("creating a queue", &error) {
                // Somebody else was faster.
                failed @ Failure { kind: Kind::Exists, .. } => self.url(name).await?.ok_or(failed),
                failed => Err(failed),
            },
        }
    }

    /// Where a queue differs from what would have been made. What cannot be read is not reported.
    async fn drift(&self, topic: &TopicSpec, name: &str, url: &str) -> Result<Vec<String>, Failure> {
        let mut drift = Vec::new();
        let allowed = |failed: Failure| if failed.kind == Kind::Denied { Ok(None) } else { Err(failed) };
        let (attributes, tags) = tokio::join!(self.attributes(url), self.tags(url));
        if let Some(attributes) = attributes.or_else(allowed)? {
            let number = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok());
            if let Some(delay) = number(Attribute::DelaySeconds).filter(|delay| *delay > 0) {
                drift.push(format!("queue {name} delays every message by {delay} s"));
            }
            if let Some(most) = number(Attribute::MaximumMessageSize).filter(|most| *most < LIMIT as u64) {
                drift.push(format!("queue {name} takes at most {most} bytes a message, of {} that SQS allows", LIMIT));
            }
            let policy = attributes.get(&Attribute::RedrivePolicy).and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
            let receives = policy
                .as_ref()
                .and_then(|policy| policy.get("maxReceiveCount"))
                .and_then(|n| n.as_u64().or_else(|| n.as_str().and_then(|text| text.parse().ok())));
            if let Some(receives) = receives.filter(|receives| *receives < RECEIVES) {
                drift.push(format!("queue {name} moves a message away after {receives} receives, which a retry schedule may need"));
            }
        }
        if let Some(tags) = self.tags_if_allowed(tags)? {
            match tags.get(TAG_SHARDS).and_then(|text| text.parse::<u32>().ok()) {
                Some(shards) if shards != topic.shards => {
                    drift.push(format!("queue {name} was made for {shards} shards, not for {}", topic.shards));
                }
                _ => {}
            }
            if queue::tail(&topic.name) != name && tags.get(TAG_TOPIC).is_none_or(|of| of != queue::tail(&topic.name)) {
                drift.push(format!(
                    "queue {name} has no tag {TAG_TOPIC}={}: producers that do not know the group do not find it",
                    queue::tail(&topic.name)
                ));
            }
        }
        Ok(drift)
    }

    fn tags_if_allowed(&self, tags: Result<HashMap<String, String>, Failure>) -> Result<Option<HashMap<String, String>>, Failure> {
        match tags {
            Ok(tags) => Ok(Some(tags)),
            Err(failed) if failed.kind == Kind::Denied => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// A send found that a queue does not exist: if that stays so, its group is gone.
    pub(super) fn missing(&self, topic: &TopicSpec, queue: &Queue) {
        let since = *queue.missing.lock().get_or_insert_with(Instant::now);
        if since.elapsed() >= GONE {
            tracing::warn!(queue = %queue.name, topic = %topic.name, "the queue of a group is gone: it gets no more messages");
            self.of(topic).drop_queue(&queue.url);
        }
    }

    /// As [`crate::provider::Provider::remove`].
    pub(super) async fn remove(&self, what: Remove<'_>) -> Result<()> {
        match what {
            Remove::Topic(topic) => {
                let state = self.of(topic);
                state.known.lock().looked = None;
                let queues = match self.queues(topic).await {
                    Ok(queues) => queues,
                    Err(Failure { kind: Kind::Missing, .. }) => Vec::new(),
                    Err(failed) => return Err(failed.error),
                };
                try_join_all(queues.iter().map(|queue| self.delete(&queue.url))).await?;
                self.topics.lock().remove(&topic.name);
            }
            Remove::Group(topic, group) => {
                let name = queue::of_group(&topic.name, group);
                if let Some(url) = self.url(&name).await.map_err(|failed| failed.error)? {
                    self.delete(&url).await?;
                    self.of(topic).drop_queue(&url);
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, url: &str) -> Result<()> {
        match self.client.delete_queue().queue_url(url).send().await {
            Ok(_) => Ok(()),
            Err(error) => match failure("deleting a queue", &error) {
                Failure { kind: Kind::Missing, .. } => Ok(()),
                failed => Err(failed.error),
            },
        }
    }
}
