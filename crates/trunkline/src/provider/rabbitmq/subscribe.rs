//! One member of a group: what it receives from, and how that begins and ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::Link;
use super::error::closed;
use super::feed::{Feed, Opening, Share};
use super::inbox::Inbox;
use super::layout::Layout;
use super::links::Links;
use super::options::Options;
use super::settle;
use super::shards::{Command, Shards};
use crate::delivery::{Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::provider::{GroupSpec, Signal, SubscribeOptions, Subscription, TopicSpec};

/// How long a channel may take to close.
pub(super) const CLOSE: Duration = Duration::from_secs(2);

/// What the tasks of a subscription share.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) links: Arc<Links>,
    pub(super) link: Arc<Link>,
    pub(super) inbox: Inbox,
    /// It is closed, or dead.
    pub(super) end: CancellationToken,
    pub(super) options: Options,
    pub(super) name: Arc<str>,
    /// For each ordered route, who handles its shards.
    shards: Mutex<Vec<(usize, mpsc::UnboundedSender<Command>)>>,
    numbers: AtomicU64,
}

impl Member {
    /// Consumes from a queue; what comes is in the inbox from now on.
    pub(super) async fn open_feed(self: &Arc<Self>, link: &Arc<Link>, opening: Opening, signal: Option<Signal>) -> Result<Arc<Feed>> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (feed, consumer) = Feed::open(number, opening, link.channel().await?, self.end.child_token()).await?;
        self.inbox.add(feed.clone(), signal);
        let (member, pumped) = (self.clone(), feed.clone());
        self.links.tasks.spawn(async move {
            if let Err(error) = pumped.pump(consumer, &member.inbox).await
                && !pumped.stop.is_cancelled()
            {
                member.die(error);
            }
        });
        Ok(feed)
    }

    /// A part of it broke: all of it is opened anew by the core.
    pub(super) fn die(&self, error: Error) {
        self.inbox.end(if self.links.is_closed() { closed() } else { error });
        self.end.cancel();
    }

    /// Asks the owner of its shards to open an ordered feed anew.
    pub(super) fn reopen(&self, feed: &Feed) {
        self.command(feed.route, Command::Reopen(feed.shard, feed.number));
    }

    fn command(&self, route: usize, command: Command) {
        if let Some((_, shards)) = self.shards.lock().iter().find(|(of, _)| *of == route) {
            // Whoever is not there any more has given up its shards.
            let _ = shards.send(command);
        }
    }
}

/// See the module. Dropping it leaves the group.
pub(super) struct RabbitSubscription {
    member: Arc<Member>,
}

impl fmt::Debug for RabbitSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitSubscription({})", self.member.name)
    }
}

impl RabbitSubscription {
    pub(super) async fn open(
        links: Arc<Links>,
        routes: &[TopicSpec],
        group: &GroupSpec,
        wish: SubscribeOptions,
        options: Options,
    ) -> Result<(Self, Arc<Member>)> {
        let link = links.consuming().await?;
        let member = Arc::new(Member {
            end: links.end.child_token(),
            links: links.clone(),
            link,
            inbox: Inbox::default(),
            options,
            name: wish.member,
            shards: Mutex::default(),
            numbers: AtomicU64::new(0),
        });
        // From here on, whatever fails: what was opened is closed again.
        let opened = RabbitSubscription { member: member.clone() };
        let n = routes.len().max(1);
        let share = Share { count: wish.prefetch.count.div_ceil(n), bytes: wish.prefetch.bytes.div_ceil(n) };
        for (route, topic) in routes.iter().enumerate() {
            let layout = Layout::of(topic);
            match layout.shards {
                None => {
                    let queue = layout.queue(&group.name);
                    let size = links.size_of(&queue);
                    let opening = Opening { route, shard: 0, epoch: 0, ordered: false, queue, share, size };
                    member.open_feed(&member.link, opening, None).await.map_err(missing)?;
                }
                Some(_) => {
                    let (commands, listen) = mpsc::unbounded_channel();
                    let shards = Shards::join(member.clone(), route, &layout, &group.name, share, listen).await.map_err(missing)?;
                    member.shards.lock().push((route, commands));
                    links.tasks.spawn(shards.run());
                }
            }
        }
        Ok((opened, member))
    }
}

/// A queue that is not there is a group that was not ensured.
fn missing(error: Error) -> Error {
    if error.code() == Code::TopicNotFound { Error::new(Code::GroupNotFound, error.message().to_owned()) } else { error }
}

impl Drop for RabbitSubscription {
    fn drop(&mut self) {
        self.member.end.cancel();
        self.member.inbox.end(closed());
        // Its channels close with the last who holds them.
        for feed in self.member.inbox.feeds() {
            self.member.inbox.forget(feed.number);
        }
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        tokio::select! {
            biased;
            signals = self.member.inbox.next(max, max_bytes, wait) => signals,
            () = self.member.links.end.cancelled() => Err(closed()),
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        self.member.settle_all(items).await
    }

    /// There are no leases to keep: what is held is held as long as the channel stands.
    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        self.member.inbox.holds(tokens)
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        let (done, yielded) = tokio::sync::oneshot::channel();
        self.member.command(route, Command::Yield(shard, done));
        let _ = tokio::time::timeout(CLOSE * 2, yielded).await;
    }

    /// What arrived and was not handed out goes to other members; of an ordered route it stays, as its shard does.
    async fn pause(&self) {
        self.member.inbox.set_paused(true);
        self.member.inbox.feeds().iter().filter(|feed| !feed.ordered).for_each(|feed| feed.set_paused(true));
    }

    async fn resume(&self) {
        self.member.inbox.set_paused(false);
        self.member.inbox.feeds().iter().for_each(|feed| feed.set_paused(false));
    }

    async fn close(&self, deadline: Instant) {
        let member = &self.member;
        let broken = member.inbox.has_ended();
        member.inbox.end(closed());
        let feeds = member.inbox.feeds();
        let leave = feeds.iter().filter(|feed| !feed.ordered && !broken).map(|feed| async move {
            feed.stop.cancel();
            settle::release_all(feed).await;
            feed.channel.close(CLOSE).await;
        });
        let _ = tokio::time::timeout_at(deadline.into(), futures_util::future::join_all(leave)).await;
        member.end.cancel();
        // Who handles the shards lets go of its end of the channel when it has left.
        let routes = std::mem::take(&mut *member.shards.lock());
        for (_, shards) in routes {
            let _ = tokio::time::timeout_at(deadline.into(), shards.closed()).await;
        }
        for feed in feeds {
            member.inbox.forget(feed.number);
        }
    }
}
