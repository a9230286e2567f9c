//! Making topics and groups, looking at them, and removing them.
//!
//! A question that the server answers with "no" costs its channel, so each is asked on a channel of its own when needed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{ExchangeKind, Queue};
use parking_lot::Mutex;

use super::connection::{ANSWER, Link, LinkChannel};
use super::error::{self, of, reply, within};
use super::layout::{self, Layout};
use super::links::Links;
use super::send::publish_one;
use crate::capability::Durability;
use crate::error::{Code, Error, Result};
use crate::provider::{Depth, Ensured, GroupSpec, Remove, Start, TopicSpec};

/// Far above every limit of ours: the server must not drop what the core has not buried. Without a limit RabbitMQ 3 puts
/// what is given back behind all others, and RabbitMQ 4 drops it after 20 times.
const DELIVERY_LIMIT: i64 = 1_000_000_000;

type Groups = BTreeMap<Arc<str>, Durability>;

/// See the module.
#[derive(Debug)]
pub(super) struct Admin {
    links: Arc<Links>,
    create: bool,
    /// The groups that were ensured here, each with what its queues keep: a topic's own list does not exist on the server.
    known: Mutex<HashMap<Arc<str>, Groups>>,
}

/// One channel for many calls, opened anew after each refusal.
struct Asker {
    link: Arc<Link>,
    channel: Option<LinkChannel>,
}

impl Asker {
    async fn channel(&mut self) -> Result<&LinkChannel> {
        if !self.channel.as_ref().is_some_and(|channel| channel.status().connected()) {
            self.channel = Some(self.link.channel().await?);
        }
        self.channel.as_ref().ok_or_else(error::closed)
    }

    /// `None` if the server refused with this code.
    async fn ask<T>(&mut self, doing: &str, refusal: u16, call: impl AsyncFnOnce(&LinkChannel) -> lapin::Result<T>) -> Result<Option<T>> {
        let answer = tokio::time::timeout(ANSWER, call(self.channel().await?)).await;
        match answer.map_err(|_| error::no_answer(doing, ANSWER))? {
            Ok(answer) => Ok(Some(answer)),
            Err(failed) if error::is(&failed, refusal) => Ok(None),
            Err(failed) => Err(of(doing, &failed)),
        }
    }

    async fn queue(&mut self, name: &str) -> Result<Option<Queue>> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let doing = format!("looking at queue '{name}'");
        self.ask(&doing, reply::NOT_FOUND, async |channel| channel.queue_declare(name.into(), options, FieldTable::default()).await).await
    }

    async fn exchange(&mut self, name: &str) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, durable: true, ..Default::default() };
        let doing = format!("looking at exchange '{name}'");
        let there = self.ask(&doing, reply::NOT_FOUND, async |channel| {
            channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()).await
        });
        Ok(there.await?.is_some())
    }

    /// Makes it if it is missing; in words, where it is there and differs. Without the permission it cannot be told.
    async fn same<T>(&mut self, what: &str, call: impl AsyncFnOnce(&LinkChannel) -> lapin::Result<T>) -> Result<Option<String>> {
        let answer = tokio::time::timeout(ANSWER, call(self.channel().await?)).await;
        match answer.map_err(|_| error::no_answer(what, ANSWER))? {
            Ok(_) => Ok(None),
            Err(failed) if error::is(&failed, reply::PRECONDITION_FAILED) => {
                let text = error::said(&failed).map_or("", |(_, text)| text);
                Ok(Some(format!("{what}: {}", text.trim_start_matches("PRECONDITION_FAILED - "))))
            }
            Err(failed) if error::is(&failed, reply::ACCESS_REFUSED) => Ok(None),
            Err(failed) => Err(of(what, &failed)),
        }
    }
}

async fn declare_exchange(channel: &LinkChannel, name: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()).await
}

async fn declare_queue(channel: &LinkChannel, name: &str, ordered: bool) -> lapin::Result<Queue> {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), options, arguments(ordered)).await
}

async fn bind(channel: &LinkChannel, queue: &str, layout: &Layout, key: &str) -> lapin::Result<()> {
    channel.queue_bind(queue.into(), layout.exchange.as_str().into(), key.into(), QueueBindOptions::default(), FieldTable::default()).await
}

/// What a queue keeps that differs so. The server names the first difference: being durable comes before all arguments.
fn kept_by(drift: &str) -> Durability {
    match drift.split_once("inequivalent arg ") {
        None => Durability::Fsynced,
        Some((_, first)) if first.starts_with("'durable'") => Durability::Memory,
        Some(_) => Durability::Written,
    }
}

/// What every queue of a group is declared with.
pub(super) fn arguments(ordered: bool) -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments: BTreeMap<ShortString, AMQPValue> = [
        ("x-queue-type".into(), text("quorum")),
        ("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT)),
        ("x-overflow".into(), text("reject-publish")),
    ]
    .into();
    if ordered {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments.into()
}

impl Admin {
    pub(super) fn new(links: Arc<Links>, create: bool) -> Self {
        Admin { links, create, known: Mutex::default() }
    }

    async fn asker(&self) -> Result<Asker> {
        Ok(Asker { link: self.links.consuming().await?, channel: None })
    }

    /// What a confirm of this topic means. A quorum queue writes to the disks of most of its members; how many there are,
    /// AMQP does not tell.
    pub(super) fn durability(&self, topic: &TopicSpec) -> Durability {
        self.known.lock().get(&topic.name).and_then(|groups| groups.values().min().copied()).unwrap_or(Durability::Fsynced)
    }

    pub(super) async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let layout = Layout::of(topic);
        for group in groups {
            if matches!(group.start, Start::Time(_) | Start::Position { .. }) {
                return Err(Error::new(Code::CapabilityUnsupported, "RabbitMQ keeps no messages: a group starts when it is created")
                    .field("from")
                    .next("use `latest`, or leave `from` out"));
            }
        }
        let mut asker = self.asker().await?;
        let mut ensured = Ensured::default();
        self.ensure_exchange(&mut asker, &layout, &mut ensured).await?;
        for group in groups {
            let before = ensured.drift.len();
            self.ensure_group(&mut asker, &topic.name, &layout, &group.name, &mut ensured).await?;
            let keeps = ensured.drift[before..].iter().map(|drift| kept_by(drift)).min().unwrap_or(Durability::Fsynced);
            self.known.lock().entry(topic.name.clone()).or_default().insert(group.name.clone(), keeps);
        }
        Ok(ensured)
    }

    async fn ensure_exchange(&self, asker: &mut Asker, layout: &Layout, ensured: &mut Ensured) -> Result<()> {
        let name = &layout.exchange;
        if asker.exchange(name).await? {
            if self.create {
                ensured
                    .drift
                    .extend(asker.same(&format!("exchange '{name}'"), async |channel| declare_exchange(channel, name).await).await?);
            }
            return Ok(());
        }
        if !self.create {
            return Err(Error::new(Code::TopicNotFound, format!("exchange '{name}' does not exist, and `create` is false"))
                .next(format!("create a durable topic exchange '{name}', and the queues of its groups")));
        }
        within(&format!("creating exchange '{name}'"), ANSWER, declare_exchange(asker.channel().await?, name)).await?;
        ensured.created.push(format!("exchange {name}"));
        Ok(())
    }

    /// An ordered group is there when its first queue is: that one is made last and removed first.
    async fn ensure_group(&self, asker: &mut Asker, topic: &Arc<str>, layout: &Layout, group: &str, ensured: &mut Ensured) -> Result<()> {
        let queues = layout.queues(group);
        let first = &queues[0].1;
        if asker.queue(first).await?.is_some() {
            if self.create {
                self.look(asker, layout, group, &queues, ensured).await?;
            }
            return Ok(());
        }
        if !self.create {
            let keys = if layout.shards.is_some() { "each with its own number in the routing key" } else { "with the routing key" };
            return Err(Error::new(Code::TopicNotFound, format!("queue '{first}' does not exist, and `create` is false")).next(format!(
                "create the quorum queue{} {} and bind {keys} '{}' to exchange '{}'",
                if queues.len() > 1 { "s" } else { "" },
                queues.iter().map(|(_, queue)| format!("'{queue}'")).collect::<Vec<_>>().join(", "),
                layout.routing_key(0),
                layout.exchange
            )));
        }
        let ordered = layout.shards.is_some();
        if ordered {
            let name = layout::epochs(&layout.queue(group));
            self.create_queue(asker, layout, &name, false, &name).await?;
            publish_one(&self.links.publishing().await?, &layout.exchange, &name, b"0", ANSWER).await?;
        }
        for (shard, queue) in queues.iter().rev() {
            self.create_queue(asker, layout, queue, ordered, &layout.routing_key(*shard)).await?;
        }
        if ordered {
            // What others publish without a shard goes to the first one.
            let bound = bind(asker.channel().await?, first, layout, &layout.key);
            within(&format!("binding queue '{first}'"), ANSWER, bound).await?;
        }
        self.links.declared(topic);
        ensured.created.extend(queues.into_iter().map(|(_, queue)| format!("queue {queue}")));
        Ok(())
    }

    async fn create_queue(&self, asker: &mut Asker, layout: &Layout, queue: &str, ordered: bool, key: &str) -> Result<()> {
        let channel = asker.channel().await?;
        within(&format!("creating queue '{queue}'"), ANSWER, declare_queue(channel, queue, ordered)).await?;
        within(&format!("binding queue '{queue}'"), ANSWER, bind(channel, queue, layout, key)).await
    }

    /// Tells where a group that is there differs. Bindings cannot be seen, so they are made again.
    async fn look(&self, asker: &mut Asker, layout: &Layout, group: &str, queues: &[(u32, String)], ensured: &mut Ensured) -> Result<()> {
        let ordered = layout.shards.is_some();
        if ordered {
            let base = layout.queue(group);
            let (last, beyond) = (&queues[queues.len() - 1].1, layout::of_shard(&base, queues.len() as u32));
            if asker.queue(last).await?.is_none() || asker.queue(&beyond).await?.is_some() {
                let there = self.count_shards(asker, &base).await?;
                ensured.drift.push(format!("group '{group}' has {there} shards on the server instead of {}", queues.len()));
                return Ok(());
            }
        }
        for (shard, queue) in queues {
            let differs = asker.same(&format!("queue '{queue}'"), async |channel| declare_queue(channel, queue, ordered).await).await?;
            ensured.drift.extend(differs);
            let key = layout.routing_key(*shard);
            asker.same(&format!("binding queue '{queue}'"), async |channel| bind(channel, queue, layout, &key).await).await?;
        }
        Ok(())
    }

    async fn count_shards(&self, asker: &mut Asker, queue: &str) -> Result<u32> {
        let mut shards = 0;
        while asker.queue(&layout::of_shard(queue, shards)).await?.is_some() {
            shards += 1;
        }
        Ok(shards)
    }

    pub(super) async fn remove(&self, what: Remove<'_>) -> Result<()> {
        let mut asker = self.asker().await?;
        match what {
            Remove::Group(topic, group) => {
                self.remove_group(&mut asker, topic, group).await?;
                if let Some(known) = self.known.lock().get_mut(&topic.name) {
                    known.remove(group);
                }
                Ok(())
            }
            Remove::Topic(topic) => {
                let layout = Layout::of(topic);
                let known = self.known.lock().remove(&topic.name).unwrap_or_default();
                for group in known.keys().map(|group| &**group).chain([layout.default_queue()]) {
                    self.remove_group(&mut asker, topic, group).await?;
                }
                // Others may use it: topics of the same exchange, or queues that are not ours.
                let doing = format!("removing exchange '{}'", layout.exchange);
                let options = ExchangeDeleteOptions { if_unused: true, ..Default::default() };
                let removed = asker.ask(&doing, reply::PRECONDITION_FAILED, async |channel| {
                    channel.exchange_delete(layout.exchange.as_str().into(), options).await
                });
                removed.await.map(drop)
            }
        }
    }

    async fn remove_group(&self, asker: &mut Asker, topic: &TopicSpec, group: &str) -> Result<()> {
        let layout = Layout::of(topic);
        let base = layout.queue(group);
        let mut queues: Vec<String> = layout.queues(group).into_iter().map(|(_, queue)| queue).collect();
        if layout.shards.is_some() {
            // As many as there are, whatever their number was thought to be.
            while asker.queue(&layout::of_shard(&base, queues.len() as u32)).await?.is_some() {
                queues.push(layout::of_shard(&base, queues.len() as u32));
            }
            queues.push(layout::epochs(&base));
        }
        for queue in queues {
            let doing = format!("removing queue '{queue}'");
            asker
                .ask(&doing, reply::NOT_FOUND, async |channel| {
                    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await
                })
                .await?;
        }
        Ok(())
    }

    /// The server tells what is ready, and nothing of what is handed out.
    pub(super) async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        let layout = Layout::of(topic);
        let mut asker = self.asker().await?;
        let mut depth = Depth::default();
        for (_, name) in layout.queues(group) {
            let Some(queue) = asker.queue(&name).await? else {
                return Err(Error::new(Code::GroupNotFound, format!("queue '{name}' does not exist"))
                    .next("start a consumer of the group, or create the group"));
            };
            depth.ready += u64::from(queue.message_count());
        }
        Ok(depth)
    }
}
