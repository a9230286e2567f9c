//! A queue that is received from: one channel with one consumer, and what of it is not yet settled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::connection::{ANSWER, Link, LinkChannel};
use super::envelope;
use super::error::{of, within};
use super::inbox::Inbox;
use super::settle;
use crate::delivery::{Delivery, Position, Token};
use crate::error::{Code, Error, Result};

/// Taken over in one go.
const BATCH: usize = 256;
/// Until it is known how large messages are, each is taken for this.
const ASSUMED: usize = 1 << 20;
/// What a message of an ordered topic is taken for.
const ASSUMED_ORDERED: usize = 32 << 10;

/// Which delivery tags are settled. The server numbers the deliveries of a channel from 1.
#[derive(Debug)]
pub(super) struct Window {
    /// The lowest tag that is not settled.
    base: u64,
    settled: VecDeque<bool>,
}

impl Default for Window {
    fn default() -> Self {
        Window { base: 1, settled: VecDeque::new() }
    }
}

impl Window {
    pub(super) fn came(&mut self, tag: u64) {
        while self.base + (self.settled.len() as u64) < tag {
            self.settled.push_back(true);
        }
        self.settled.push_back(false);
    }

    pub(super) fn settle(&mut self, tag: u64) {
        if let Some(slot) = tag.checked_sub(self.base).and_then(|at| self.settled.get_mut(at as usize)) {
            *slot = true;
        }
    }

    /// Everything up to this tag is settled.
    pub(super) fn settled_up_to(&mut self) -> u64 {
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.base += 1;
        }
        self.base - 1
    }
}

/// What a feed may hold that is not handed out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Share {
    /// How many messages of this size it may hold: RabbitMQ only counts.
    fn messages(self, size: usize) -> usize {
        self.count.min((self.bytes / size.max(1)).max(1)).max(1)
    }
}

/// How large the messages of a group are: follows larger ones at once and smaller ones slowly; 0 before the first.
#[derive(Debug, Default)]
pub(super) struct Size(AtomicUsize);

impl Size {
    fn saw(&self, size: usize) {
        let known = self.0.load(Ordering::Relaxed);
        self.0.store(if size > known { size } else { known - (known - size).div_ceil(16) }, Ordering::Relaxed);
    }

    fn known(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|size| *size > 0)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) number: u64,
    pub(super) route: usize,
    pub(super) shard: u32,
    pub(super) epoch: u64,
    pub(super) ordered: bool,
    pub(super) queue: String,
    pub(super) channel: LinkChannel,
    /// Held while settles are written to the channel: their order decides what `multiple` covers.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) window: parking_lot::Mutex<Window>,
    /// Handed out or waiting to be.
    held: AtomicUsize,
    /// Waiting to be handed out.
    waiting: AtomicUsize,
    share: Share,
    size: Arc<Size>,
    prefetch: AtomicU16,
    /// Something happened that may call for another prefetch.
    nudge: Notify,
    /// Of an ordered feed: everything is to come again, in its order.
    returning: AtomicBool,
    paused: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
}

/// A consumer that is received from. Dropped, the client cancels it; the server then gives back what is on its way to it
/// before what is older. Of an ordered feed, the connection is ended first, so that no cancel goes out.
#[derive(Debug)]
pub(super) struct Receiving {
    consumer: Consumer,
    ends: Option<Arc<Link>>,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(link) = &self.ends {
            link.abort();
        }
    }
}

/// What a feed is opened with.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) route: usize,
    pub(super) shard: u32,
    pub(super) epoch: u64,
    pub(super) ordered: bool,
    pub(super) queue: String,
    pub(super) share: Share,
    pub(super) size: Arc<Size>,
}

impl Feed {
    /// Starts consuming; the consumer is given to [`Feed::pump`].
    pub(super) async fn open(
        number: u64,
        opening: Opening,
        channel: LinkChannel,
        stop: CancellationToken,
    ) -> Result<(Arc<Feed>, Receiving)> {
        let Opening { route, shard, epoch, ordered, queue, share, size } = opening;
        let feed = Feed {
            number,
            route,
            shard,
            epoch,
            ordered,
            queue,
            channel,
            turn: tokio::sync::Mutex::new(()),
            window: parking_lot::Mutex::default(),
            held: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            share,
            size,
            prefetch: AtomicU16::new(0),
            nudge: Notify::new(),
            returning: AtomicBool::new(false),
            paused: watch::Sender::new(false),
            stop,
        };
        // Settles count when they are committed.
        within(&feed.doing(), ANSWER, feed.channel.tx_select()).await?;
        let consumer = feed.consume().await?;
        Ok((Arc::new(feed), consumer))
    }

    /// Starts a consumer with the prefetch that fits now; one that runs cannot get another prefetch.
    async fn consume(&self) -> Result<Receiving> {
        let prefetch = self.wanted();
        self.prefetch.store(prefetch, Ordering::Relaxed);
        let doing = self.doing();
        within(&doing, ANSWER, self.channel.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
        let consume =
            self.channel.basic_consume(self.queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = within(&doing, ANSWER, consume).await?;
        Ok(Receiving { consumer, ends: self.ordered.then(|| self.channel.link().clone()) })
    }

    fn doing(&self) -> String {
        format!("consuming from queue '{}'", self.queue)
    }

    /// Takes over what comes until the feed is stopped (`Ok`), or the server or the connection ends it (`Err`).
    pub(super) async fn pump(&self, mut from: Receiving, inbox: &Inbox) -> Result<()> {
        let mut last = 0;
        let mut batch = Vec::new();
        let mut paused = self.paused.subscribe();
        loop {
            let pauses = *paused.borrow_and_update();
            if pauses || self.misfits() {
                self.cancel(from, inbox, &mut last).await?;
                if pauses {
                    self.release_waiting(inbox).await;
                }
                tokio::select! {
                    _ = paused.wait_for(|paused| !paused) => {}
                    () = self.stop.cancelled() => return Ok(()),
                }
                from = self.consume().await?;
            }
            let first = tokio::select! {
                first = from.consumer.next() => first,
                _ = paused.changed() => continue,
                () = self.nudge.notified() => continue,
                () = self.stop.cancelled() => {
                    // Until whoever stopped it has ended the connection, when the last settles are through.
                    while self.ordered && matches!(from.consumer.next().await, Some(Ok(_))) {}
                    return Ok(());
                }
            };
            let mut more = Some(first);
            while let Some(next) = more.take() {
                match next {
                    Some(Ok(message)) => batch.push(self.take(message, &mut last)),
                    ended => {
                        inbox.put(self, &mut batch);
                        return Err(self.ended(ended.and_then(Result::err).as_ref()));
                    }
                }
                if batch.len() < BATCH {
                    more = from.consumer.next().now_or_never();
                }
            }
            inbox.put(self, &mut batch);
        }
    }

    fn ended(&self, failed: Option<&lapin::Error>) -> Error {
        match failed {
            Some(failed) => of(&self.doing(), failed),
            None => Error::new(Code::SubscribeFailed, format!("the server ended the consumer of queue '{}'", self.queue))
                .reason("consumer_cancelled")
                .next("was the queue deleted? It is created again where `create` allows"),
        }
    }

    /// A message as it arrived; `last` is the last place, as places of one owner only grow.
    fn take(&self, message: Message, last: &mut u64) -> (u64, Delivery) {
        let decoded = envelope::decode(&message.properties, message.routing_key.as_str(), message.redelivered, &message.data);
        let mut place = decoded.place;
        if self.ordered && envelope::is_numbered(place) {
            // Clocks of two producers may differ by more than their messages lie apart.
            place = place.max(*last + 1);
            *last = place;
        }
        self.window.lock().came(message.delivery_tag);
        let delivery = Delivery {
            token: Token(0),
            position: Position { shard: self.shard, offset: place },
            id: decoded.id,
            key: decoded.key,
            payload: Some(Bytes::from(message.data)),
            headers: decoded.headers,
            deliveries: decoded.deliveries,
            stored_at: decoded.stored_at,
            lease_end: None,
        };
        self.size.saw(delivery.size());
        (message.delivery_tag, delivery)
    }

    /// How many the server may hand out: what may wait here, and what is in the hands of others.
    ///
    /// Of an ordered feed it is always the same. The server puts what a dead owner held in front, but what is given back
    /// while some of that still lies there goes behind it: so each owner must be handed all that the one before it held.
    fn wanted(&self) -> u16 {
        let messages = if self.ordered {
            self.share.messages(ASSUMED_ORDERED)
        } else {
            let handed_out = self.held().saturating_sub(self.waiting.load(Ordering::Relaxed));
            self.share.messages(self.size.known().unwrap_or(ASSUMED)) + handed_out
        };
        u16::try_from(messages).unwrap_or(u16::MAX)
    }

    /// Whether the prefetch is far from what is wanted: by size, or because nothing comes while others hold it all.
    fn misfits(&self) -> bool {
        let (now, wanted) = (usize::from(self.prefetch.load(Ordering::Relaxed)), usize::from(self.wanted()));
        let starves = self.held() >= now && self.waiting.load(Ordering::Relaxed) * 4 < self.share.count;
        !self.ordered && (wanted * 3 <= now || wanted >= now * 2 || (starves && wanted > now))
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// So many arrived and wait.
    pub(super) fn came(&self, n: usize) {
        self.held.fetch_add(n, Ordering::Relaxed);
        self.waiting.fetch_add(n, Ordering::Relaxed);
    }

    /// So many of what waited are handed out.
    pub(super) fn handed_out(&self, n: usize) {
        let left = self.waiting.fetch_sub(n, Ordering::Relaxed) - n;
        if left == 0 && self.held() >= usize::from(self.prefetch.load(Ordering::Relaxed)) {
            self.nudge.notify_one();
        }
    }

    /// So many of what waited are held no more.
    pub(super) fn taken_back(&self, n: usize) {
        self.waiting.fetch_sub(n, Ordering::Relaxed);
        self.gone(n);
    }

    /// So many of what was handed out are held no more.
    pub(super) fn gone(&self, n: usize) {
        self.held.fetch_sub(n, Ordering::Relaxed);
    }

    /// Ends the consumer; what was on its way still comes.
    async fn cancel(&self, mut from: Receiving, inbox: &Inbox, last: &mut u64) -> Result<()> {
        let doing = self.doing();
        within(&doing, ANSWER, self.channel.basic_cancel(from.consumer.tag(), BasicCancelOptions::default())).await?;
        let mut batch = Vec::new();
        while let Some(message) = from.consumer.next().await {
            batch.push(self.take(message.map_err(|failed| of(&doing, &failed))?, last));
        }
        inbox.put(self, &mut batch);
        Ok(())
    }

    /// What waits and was not handed out goes to other members.
    async fn release_waiting(&self, inbox: &Inbox) {
        let tags = inbox.take_back(self);
        if !tags.is_empty() {
            settle::release(self, tags).await;
        }
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.send_if_modified(|now| std::mem::replace(now, paused) != paused);
    }

    /// From now on nothing of it is handed out; it is opened anew once nothing is held.
    pub(super) fn return_all(&self) {
        self.returning.store(true, Ordering::Relaxed);
        self.stop.cancel();
    }

    pub(super) fn is_returning(&self) -> bool {
        self.returning.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_settled_when_nothing_below_is_open() {
        let mut window = Window::default();
        (1..=5).for_each(|tag| window.came(tag));
        window.settle(2);
        window.settle(3);
        assert_eq!(window.settled_up_to(), 0);
        window.settle(1);
        assert_eq!(window.settled_up_to(), 3);
        window.came(6);
        window.settle(3);
        window.settle(9);
        window.settle(6);
        assert_eq!(window.settled_up_to(), 3);
        window.settle(4);
        window.settle(5);
        assert_eq!(window.settled_up_to(), 6);
    }

    #[test]
    fn the_prefetch_keeps_both_bounds() {
        let share = Share { count: 256, bytes: 8 << 20 };
        assert_eq!((share.messages(ASSUMED), share.messages(100), share.messages(64 << 20)), (8, 256, 1));
        assert_eq!(Share { count: 0, bytes: 0 }.messages(0), 1);
        let size = Size::default();
        assert_eq!(size.known(), None);
        size.saw(1000);
        assert_eq!(size.known(), Some(1000));
        (0..100).for_each(|_| size.saw(10));
        assert!(size.known().is_some_and(|size| size < 30));
    }
}
