//! The shards of an ordered group: which member consumes which.
//!
//! RabbitMQ gives a queue with a single active consumer to whoever came first, and tells nobody. So members hear of each
//! other over an exchange of their own, each works out how many shards it may have, gives up what is too much and takes
//! what is free. Who owns a shard is decided by the server alone: its owner holds an exclusive queue, which goes with that
//! connection. That the shard's queue has a single active consumer holds even where that fails.
//!
//! A shard has a connection of its own, and is given back by ending that without a word: then the server puts everything
//! unsettled in its old place. After a cancel, or when a channel is closed in peace, what is on its way to the consumer is
//! given back first, before what is older (seen on 3.10).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ChannelFlowOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Consumer, ExchangeKind};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::connection::{ANSWER, Link, LinkChannel};
use super::error::{self, of, reply, within};
use super::feed::{Feed, Opening, Share};
use super::layout::{self, Layout};
use super::subscribe::{CLOSE, Member};
use crate::error::{Code, Error, Result};
use crate::message::{MessageId, now_ms};
use crate::provider::Signal;

/// A member that has heard its own first word waits this long for the answers to it.
const GRACE: Duration = Duration::from_millis(50);
/// When a shard that should be free was not, it is asked for again after this.
const AGAIN: Duration = Duration::from_millis(200);
/// How long the number of a hand-over may take to be written down.
const NUMBER: Duration = Duration::from_secs(3);

/// What the subscription wants of the owner of its shards.
#[derive(Debug)]
pub(super) enum Command {
    /// Everything of a revoked shard is settled.
    Yield(u32, oneshot::Sender<()>),
    /// This feed of the shard is to be opened anew.
    Reopen(u32, u64),
}

/// What members tell each other.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    member: String,
    holds: Vec<u32>,
    /// The highest number of a hand-over it knows.
    epoch: u64,
    leaves: bool,
}

#[derive(Debug)]
struct Peer {
    seen: Instant,
    holds: Vec<u32>,
}

#[derive(Debug)]
struct Owned {
    link: Arc<Link>,
    feed: Arc<Feed>,
    /// To be given up until then.
    revoking: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shards {
    member: Arc<Member>,
    route: usize,
    exchange: String,
    /// The group's queue, without the shard.
    queue: String,
    count: u32,
    share: Share,
    me: String,
    control: LinkChannel,
    news: Consumer,
    out: Option<LinkChannel>,
    commands: mpsc::UnboundedReceiver<Command>,
    peers: HashMap<String, Peer>,
    owned: BTreeMap<u32, Owned>,
    highest: u64,
    /// From then on it takes shards.
    ready_at: Instant,
    heard_itself: bool,
    next_beat: Instant,
    next_try: Instant,
}

impl Shards {
    /// Makes itself known to the other members.
    pub(super) async fn join(
        member: Arc<Member>,
        route: usize,
        layout: &Layout,
        group: &str,
        share: Share,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Shards> {
        let count = layout.shards.unwrap_or(1);
        let queue = layout.queue(group);
        let me = MessageId::now().to_string();
        let looked = member.link.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let first = layout::of_shard(&queue, 0);
        within("looking at the group", ANSWER, looked.queue_declare(first.into(), options, FieldTable::default())).await?;
        let (control, news) = hello(&member, &queue, &me).await?;
        let now = Instant::now();
        let n = (count as usize).max(1);
        let mut shards = Shards {
            route,
            exchange: layout.exchange.clone(),
            queue,
            count,
            // The same for each member, whatever number of shards it has.
            share: Share { count: share.count, bytes: share.bytes.div_ceil(n) },
            me,
            control,
            news,
            out: None,
            commands,
            peers: HashMap::new(),
            owned: BTreeMap::new(),
            highest: 0,
            ready_at: now + member.options.beat,
            heard_itself: false,
            next_beat: now,
            next_try: now,
            member,
        };
        shards.say(false).await;
        Ok(shards)
    }

    /// Works until the subscription ends, then leaves.
    pub(super) async fn run(mut self) {
        let end = self.member.end.clone();
        loop {
            if let Err(error) = self.balance().await {
                self.member.die(error);
                break;
            }
            let alarm = self.alarm();
            tokio::select! {
                () = end.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                word = self.news.next() => match word {
                    Some(Ok(word)) => self.hear(&word.data).await,
                    Some(Err(failed)) => {
                        self.member.die(of("hearing of the group's members", &failed));
                        break;
                    }
                    None => {
                        let text = "the server ended what members hear of each other";
                        self.member.die(Error::new(Code::SubscribeFailed, text).reason("consumer_cancelled"));
                        break;
                    }
                },
                () = tokio::time::sleep_until(alarm.into()) => {}
            }
        }
        self.leave().await;
    }

    /// When something happens without anybody's word.
    fn alarm(&self) -> Instant {
        let deadlines = self.owned.values().filter_map(|owned| owned.revoking);
        let now = Instant::now();
        let ready = Some(self.ready_at).filter(|at| *at > now);
        let again = (self.kept() < self.quota()).then_some(self.next_try.max(now));
        deadlines.chain(ready).chain(again.filter(|_| now >= self.ready_at)).fold(self.next_beat, Instant::min)
    }

    fn kept(&self) -> usize {
        self.owned.values().filter(|owned| owned.revoking.is_none()).count()
    }

    /// How many shards this member may have: as many as the others, the first ones one more where it does not come out even.
    fn quota(&self) -> usize {
        let members = self.peers.len() + 1;
        let rank = self.peers.keys().filter(|peer| **peer < self.me).count();
        let count = self.count as usize;
        count / members + usize::from(rank < count % members)
    }

    async fn balance(&mut self) -> Result<()> {
        let now = Instant::now();
        if now >= self.next_beat {
            let silence = self.member.options.silence();
            self.peers.retain(|_, peer| now.duration_since(peer.seen) < silence);
            self.say(false).await;
        }
        let late: Vec<u32> =
            self.owned.iter().filter(|(_, owned)| owned.revoking.is_some_and(|until| until <= now)).map(|(shard, _)| *shard).collect();
        for shard in late {
            self.member.inbox.forget(self.owned[&shard].feed.number);
            self.member.inbox.tell(Signal::Lost { route: self.route, shard });
            self.let_go(shard).await;
        }
        if now < self.ready_at {
            return Ok(());
        }
        let quota = self.quota();
        if self.kept() > quota {
            self.revoke(self.kept() - quota).await;
        } else if self.kept() < quota && now >= self.next_try {
            self.next_try = now + AGAIN;
            self.take(quota - self.kept()).await?;
        }
        Ok(())
    }

    /// Asks for shards back, the last ones first.
    async fn revoke(&mut self, n: usize) {
        let deadline = Instant::now() + self.member.options.revoke;
        for (shard, owned) in self.owned.iter_mut().rev().filter(|(_, owned)| owned.revoking.is_none()).take(n) {
            owned.revoking = Some(deadline);
            owned.feed.stop.cancel();
            // What was not handed out goes with the channel.
            self.member.inbox.take_back(&owned.feed);
            self.member.inbox.tell(Signal::Revoking { route: self.route, shard: *shard, deadline });
        }
    }

    /// Takes free shards, at most `n`, under one number for all.
    async fn take(&mut self, n: usize) -> Result<()> {
        let held = |shard: &u32| self.owned.contains_key(shard) || self.peers.values().any(|peer| peer.holds.contains(shard));
        let free: Vec<u32> = (0..self.count).filter(|shard| !held(shard)).collect();
        let mut taken = Vec::new();
        for shard in free {
            if taken.len() == n {
                break;
            }
            if let Some(link) = self.own(shard).await? {
                taken.push((shard, link));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let epoch = self.number().await;
        for (shard, link) in taken {
            let signal = Signal::Assigned { route: self.route, shard, epoch };
            let feed = self.open(&link, shard, epoch, Some(signal)).await?;
            self.owned.insert(shard, Owned { link, feed, revoking: None });
        }
        self.say(false).await;
        Ok(())
    }

    async fn open(&self, link: &Arc<Link>, shard: u32, epoch: u64, signal: Option<Signal>) -> Result<Arc<Feed>> {
        let opening = Opening {
            route: self.route,
            shard,
            epoch,
            ordered: true,
            queue: layout::of_shard(&self.queue, shard),
            share: self.share,
            size: self.member.links.size_of(&self.queue),
        };
        self.member.open_feed(link, opening, signal).await
    }

    /// Becomes the owner of a shard, with a connection for it; `None` if somebody else is.
    async fn own(&self, shard: u32) -> Result<Option<Arc<Link>>> {
        let link = self.member.links.owning().await?;
        let channel = link.channel().await?;
        let name = layout::owner(&self.queue, shard);
        let declared = tokio::time::timeout(ANSWER, channel.queue_declare(name.as_str().into(), exclusive(), classic())).await;
        match declared {
            Ok(Ok(_)) => Ok(Some(link)),
            Ok(Err(failed)) if error::is(&failed, reply::RESOURCE_LOCKED) => {
                link.close(Instant::now() + CLOSE).await;
                Ok(None)
            }
            Ok(Err(failed)) => Err(of("becoming the owner of a shard", &failed)),
            Err(_) => Err(error::no_answer("becoming the owner of a shard", ANSWER)),
        }
    }

    /// Gives a shard up: others may have it.
    async fn let_go(&mut self, shard: u32) {
        let Some(owned) = self.owned.remove(&shard) else { return };
        self.drop_feed(&owned).await;
        self.say(false).await;
    }

    /// Ends a shard's connection once what is being settled is settled.
    async fn drop_feed(&self, owned: &Owned) {
        owned.feed.stop.cancel();
        self.member.inbox.forget(owned.feed.number);
        let _turn = owned.feed.turn.lock().await;
        owned.link.abort();
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Yield(shard, done) => {
                if self.owned.get(&shard).is_some_and(|owned| owned.revoking.is_some()) {
                    self.let_go(shard).await;
                }
                let _ = done.send(());
            }
            Command::Reopen(shard, number) => {
                let ours = |owned: &Owned| owned.revoking.is_none() && owned.feed.number == number;
                if self.owned.get(&shard).is_some_and(ours)
                    && let Err(error) = self.reopen(shard).await
                {
                    self.member.die(error);
                }
            }
        }
    }

    /// Gives everything of a shard back and takes it again, under the same number.
    async fn reopen(&mut self, shard: u32) -> Result<()> {
        let Some(owned) = self.owned.get(&shard) else { return Ok(()) };
        self.drop_feed(owned).await;
        let epoch = owned.feed.epoch;
        let end = Instant::now() + ANSWER;
        // The server notices the end of the old connection in a moment; nobody else asks while this member says it has it.
        let link = loop {
            match self.own(shard).await? {
                Some(link) => break link,
                None if Instant::now() >= end => return Err(error::no_answer("taking a shard again", ANSWER)),
                None => tokio::time::sleep(GRACE).await,
            }
        };
        let feed = self.open(&link, shard, epoch, None).await?;
        self.owned.insert(shard, Owned { link, feed, revoking: None });
        Ok(())
    }

    async fn hear(&mut self, bytes: &[u8]) {
        let Ok(word) = serde_json::from_slice::<Word>(bytes) else { return };
        self.highest = self.highest.max(word.epoch);
        let now = Instant::now();
        if word.member == self.me {
            if !self.heard_itself {
                self.heard_itself = true;
                self.ready_at = self.ready_at.min(now + GRACE);
            }
            return;
        }
        if word.leaves {
            self.peers.remove(&word.member);
            self.next_try = now;
            return;
        }
        let fewer = |peer: &Peer| peer.holds.iter().any(|shard| !word.holds.contains(shard));
        let before = self.peers.insert(word.member, Peer { seen: now, holds: word.holds.clone() });
        match before {
            None => self.say(false).await,
            Some(before) if fewer(&before) => self.next_try = now,
            Some(_) => {}
        }
    }

    /// Tells the others what it has. Lost words do no harm: there is another one with the next beat.
    async fn say(&mut self, leaves: bool) {
        self.next_beat = Instant::now() + self.member.options.beat;
        self.highest = self.owned.values().map(|owned| owned.feed.epoch).fold(self.highest, u64::max);
        let word = Word { member: self.me.clone(), holds: self.owned.keys().copied().collect(), epoch: self.highest, leaves };
        let Ok(word) = serde_json::to_vec(&word) else { return };
        let said = async {
            if !self.out.as_ref().is_some_and(|out| out.status().connected() && out.link().lives()) {
                self.out = Some(self.member.links.publishing().await?.channel().await?);
            }
            let Some(out) = &self.out else { return Ok(()) };
            if *out.link().blocked().borrow() {
                return Ok(());
            }
            let exchange = layout::members(&self.queue);
            let sent = out.basic_publish(exchange.into(), "".into(), BasicPublishOptions::default(), &word, BasicProperties::default());
            within("telling the group's members", CLOSE, sent).await.map(drop)
        };
        if !matches!(tokio::time::timeout(CLOSE, said).await, Ok(Ok(()))) {
            self.out = None;
        }
    }

    /// The number of a hand-over: higher than any before, and written down where the next owner finds it. Where that cannot
    /// be, as while the server takes no messages, the clock decides.
    async fn number(&mut self) -> u64 {
        let written = tokio::time::timeout(NUMBER, self.write_number()).await;
        let number = match written {
            Ok(Ok(number)) => number,
            failed => {
                let why = failed.map_or_else(|_| "no answer".to_owned(), |failed| failed.err().map_or_else(String::new, |e| e.to_string()));
                tracing::warn!(queue = %self.queue, %why, "the number of a hand-over of shards was not written down");
                now_ms().max(self.highest + 1)
            }
        };
        self.highest = number;
        number
    }

    async fn write_number(&self) -> Result<u64> {
        let link = self.member.links.publishing().await?;
        let channel = link.channel().await?;
        let doing = "numbering a hand-over";
        within(doing, NUMBER, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let queue = layout::epochs(&self.queue);
        let (mut last, mut tag) = (0, None);
        // The queue is empty for the moment in which another member writes.
        for _ in 0..20 {
            while let Some(message) = within(doing, NUMBER, channel.basic_get(queue.as_str().into(), BasicGetOptions::default())).await? {
                let number = std::str::from_utf8(&message.delivery.data).ok().and_then(|text| text.parse().ok());
                last = number.unwrap_or(0).max(last);
                tag = Some(message.delivery.delivery_tag);
            }
            if tag.is_some() {
                break;
            }
            tokio::time::sleep(GRACE).await;
        }
        let number = now_ms().max(last + 1).max(self.highest + 1);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let text = number.to_string();
        let sent = async {
            channel.basic_publish(self.exchange.as_str().into(), queue.as_str().into(), options, text.as_bytes(), properties).await?.await
        };
        if !matches!(within(doing, NUMBER, sent).await?, Confirmation::Ack(None)) {
            return Err(Error::new(Code::TopicNotFound, format!("queue '{queue}' is not bound to exchange '{}'", self.exchange)));
        }
        // Written first, acked then.
        if let Some(tag) = tag {
            within(doing, NUMBER, channel.basic_ack(tag, BasicAckOptions { multiple: true })).await?;
            within(doing, NUMBER, channel.channel_flow(ChannelFlowOptions { active: true })).await?;
        }
        channel.close(CLOSE).await;
        Ok(number)
    }

    async fn leave(mut self) {
        for owned in std::mem::take(&mut self.owned).into_values() {
            self.drop_feed(&owned).await;
        }
        self.say(true).await;
        let name = layout::member(&self.queue, &self.me);
        let _ = tokio::time::timeout(CLOSE, self.control.queue_delete(name.into(), QueueDeleteOptions::default())).await;
        self.control.close(CLOSE).await;
    }
}

fn exclusive() -> QueueDeclareOptions {
    QueueDeclareOptions { exclusive: true, ..Default::default() }
}

/// A queue for one connection is a classic one, whatever the virtual host's default is.
fn classic() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments
}

/// A queue for what the other members say. The exchange goes when nobody is left, perhaps at this very moment: then again.
async fn hello(member: &Member, queue: &str, me: &str) -> Result<(LinkChannel, Consumer)> {
    let (exchange, inbox) = (layout::members(queue), layout::member(queue, me));
    let mut left = 5;
    loop {
        let channel = member.link.channel().await?;
        let joined = async {
            let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
            channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, options, FieldTable::default()).await?;
            channel.queue_declare(inbox.as_str().into(), exclusive(), classic()).await?;
            channel
                .queue_bind(inbox.as_str().into(), exchange.as_str().into(), "".into(), QueueBindOptions::default(), FieldTable::default())
                .await?;
            let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
            channel.basic_consume(inbox.as_str().into(), "".into(), options, FieldTable::default()).await
        };
        match tokio::time::timeout(ANSWER, joined).await {
            Ok(Ok(news)) => return Ok((channel, news)),
            Ok(Err(failed)) if error::is(&failed, reply::NOT_FOUND) && left > 0 => left -= 1,
            Ok(Err(failed)) => return Err(of("joining the group's members", &failed)),
            Err(_) => return Err(error::no_answer("joining the group's members", ANSWER)),
        }
    }
}
