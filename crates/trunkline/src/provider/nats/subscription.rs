//! One member of a group: the consumers it pulls from, what it has in hand, and the tasks that end with it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::assign::Assign;
use super::envelope;
use super::error;
use super::feed::{Feed, Held, Phase, Ready};
use super::link::{CHANNEL, Link};
use super::place::Place;
use super::{Shared, admin, api, assign, keeper, pull, reader, settle};
use crate::delivery::{Deliveries, Delivery, Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::provider::net::slab::Slab;
use crate::provider::{GroupSpec, Prefetch, Signal, SubscribeOptions, Subscription, TopicSpec};

/// What the tasks of a subscription share.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    pub(super) places: Vec<Place>,
    pub(super) group: Arc<str>,
    /// Names this member in the ledgers.
    pub(super) member: String,
    pub(super) lease: Duration,
    prefetch: Prefetch,
    pub(super) state: Mutex<State>,
    /// Told when `next` may have something to say.
    pub(super) some: Notify,
    /// Told when there may be room.
    pub(super) room: Notify,
    /// Of each ordered route.
    pub(super) assigns: Vec<Option<Arc<Assign>>>,
    pub(super) end: CancellationToken,
    /// The readers are to take what is there, and end.
    pub(super) hush: CancellationToken,
    pub(super) readers: TaskTracker,
    pub(super) tasks: TaskTracker,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) feeds: Vec<Feed>,
    pub(super) held: Slab<Held>,
    pub(super) signals: VecDeque<Signal>,
    /// Why it is over.
    pub(super) dead: Option<Error>,
    pub(super) paused: bool,
    /// The feeds that may have room.
    pub(super) dirty: Vec<usize>,
    /// Until when the shards of each route are surely ours.
    pub(super) sure: Vec<Option<Instant>>,
    turn: usize,
}

impl State {
    /// Whether a feed is surely ours at this moment.
    pub(super) fn is_sure(&self, feed: usize, now: Instant) -> bool {
        let feed = &self.feeds[feed];
        !feed.ordered || self.sure[feed.route].is_some_and(|until| until > now)
    }

    /// Takes a shard out: what was in hand of it is stale from now on.
    pub(super) fn abandon(&mut self, feed: usize) {
        let feed = &mut self.feeds[feed];
        feed.forget_pulls();
        feed.lose_pin();
        feed.drop_held(&mut self.held, true);
        feed.phase = Phase::Idle;
    }
}

impl Live {
    /// The subscription is over, and says so to everybody who asks.
    pub(super) fn die(&self, error: Error) {
        self.state.lock().dead.get_or_insert(error);
        self.some.notify_waiters();
    }

    /// The room of one feed: all that pull share it.
    pub(super) fn share(&self, state: &State) -> (usize, usize) {
        let pulling = state.feeds.iter().filter(|feed| feed.phase != Phase::Idle).count().max(1);
        ((self.prefetch.count / pulling).clamp(1, CHANNEL / 4), (self.prefetch.bytes / pulling).max(1))
    }

    /// Runs with the subscription, and ends with it.
    pub(super) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = end.cancelled() => {}
            }
        });
    }

    /// What can be handed out now.
    fn look(&self, max: usize, max_bytes: usize) -> Result<Vec<Signal>> {
        let mut state = self.state.lock();
        if let Some(error) = &state.dead {
            return Err(error.clone());
        }
        let mut signals: Vec<Signal> = state.signals.drain(..).collect();
        if state.paused {
            return Ok(signals);
        }
        let now = Instant::now();
        let (mut left, mut bytes) = (max, 0);
        let mut taken = Vec::new();
        let feeds = state.feeds.len();
        let first = state.turn;
        state.turn = (first + 1) % feeds.max(1);
        for at in (0..feeds).map(|at| (first + at) % feeds) {
            if left == 0 || bytes >= max_bytes {
                break;
            }
            if !state.feeds[at].is_open() || !state.is_sure(at, now) {
                continue;
            }
            let State { feeds, held, dirty, .. } = &mut *state;
            let feed = &mut feeds[at];
            let mut of = Vec::new();
            while left > 0 && bytes < max_bytes {
                let Some(ready) = feed.pop() else { break };
                let Some(held) = held.get_mut(ready.token) else { continue };
                held.out = true;
                bytes += ready.message.length;
                left -= 1;
                of.push((ready, held.until));
            }
            if !of.is_empty() {
                dirty.push(at);
                taken.push((feed.route, feed.shard, feed.epoch, of));
            }
        }
        drop(state);
        if !taken.is_empty() {
            self.room.notify_one();
        }
        // Headers are read where nobody waits for the lock.
        signals.extend(taken.into_iter().map(|(route, shard, epoch, of)| {
            let items = of.into_iter().map(|(ready, until)| delivery(ready, shard, until)).collect();
            Signal::Deliveries { route, shard, epoch, items }
        }));
        Ok(signals)
    }
}

fn delivery(ready: Ready, shard: u32, until: Instant) -> Delivery {
    let Ready { token, message, mark } = ready;
    let envelope = envelope::decode(message.headers);
    Delivery {
        token,
        position: crate::delivery::Position { shard, offset: mark.stream_seq },
        id: envelope.id,
        key: envelope.key,
        payload: Some(message.payload),
        headers: envelope.headers,
        deliveries: Deliveries::UpperBound(mark.count),
        stored_at: mark.stored_at,
        lease_end: Some(until),
    }
}

/// Opens a subscription; live when it returns.
pub(super) async fn subscribe(
    shared: &Arc<Shared>,
    link: Arc<Link>,
    routes: &[TopicSpec],
    group: &GroupSpec,
    options: &SubscribeOptions,
) -> Result<Arc<dyn Subscription>> {
    let places: Vec<Place> = routes.iter().map(|route| shared.place(route)).collect();
    let mut feeds = Vec::new();
    for (route, place) in places.iter().enumerate() {
        for shard in 0..place.shards {
            let mut feed = Feed::new(route, shard, &place.stream, place.consumer(&group.name, shard), place.ordered, place.shards);
            look_up(&link, &group.name, &mut feed).await?;
            feeds.push(feed);
        }
    }
    let live = Arc::new(Live {
        member: shared.join(&options.member),
        assigns: places.iter().map(|place| place.ordered.then(Arc::default)).collect(),
        lease: shared.options.lease,
        group: group.name.clone(),
        prefetch: Prefetch { count: options.prefetch.count.max(1), bytes: options.prefetch.bytes.max(1) },
        state: Mutex::new(State {
            dirty: (0..feeds.len()).collect(),
            feeds,
            held: Slab::default(),
            signals: VecDeque::new(),
            dead: None,
            paused: false,
            sure: vec![None; places.len()],
            turn: 0,
        }),
        shared: shared.clone(),
        some: Notify::new(),
        room: Notify::new(),
        end: shared.closed.child_token(),
        hush: CancellationToken::new(),
        readers: TaskTracker::new(),
        tasks: TaskTracker::new(),
        places,
        link,
    });
    let subscription = Arc::new(NatsSubscription { live: live.clone() });
    let plain: Vec<usize> = (0..).zip(&live.state.lock().feeds).filter(|(_, feed)| !feed.ordered).map(|(at, _)| at).collect();
    for at in plain {
        reader::listen(&live, at).await?;
    }
    live.spawn(pull::pull(live.clone()));
    live.spawn(keeper::keep(live.clone()));
    live.spawn(keeper::watch_drops(live.clone()));
    for route in 0..live.places.len() {
        if let Some(assign) = &live.assigns[route] {
            live.tasks.spawn(assign::run(live.clone(), route));
            // A member has joined when it stands in the ledger.
            tokio::select! {
                () = assign.joined() => {}
                () = tokio::time::sleep(api::WITHIN * 2) => return Err(error::late("joining the group")),
            }
        }
    }
    let died = live.state.lock().dead.clone();
    died.map_or(Ok(subscription as Arc<dyn Subscription>), Err)
}

/// What the consumer of a feed is like; refused if it cannot be pulled from with acks.
pub(super) async fn look_up(link: &Link, group: &str, feed: &mut Feed) -> Result<()> {
    let doing = format!("consumer '{}' of stream '{}'", feed.consumer, feed.stream);
    let info = api::consumer_info(link, &feed.stream, &feed.consumer).await.map_err(|e| e.into_error(&doing))?;
    let Some(info) = info else { return Err(admin::no_group(group)) };
    if info.config.deliver_subject.is_some() || info.config.ack_policy != "explicit" {
        return Err(Error::new(Code::SubscribeFailed, format!("{doing} is not a pull consumer with explicit acks"))
            .with_retryable(false)
            .next("remove it, so that it is made as it must be, or give the group another name"));
    }
    feed.created = info.created;
    feed.max_ack_pending = usize::try_from(info.config.max_ack_pending).unwrap_or(usize::MAX);
    Ok(())
}

impl Shared {
    /// A name for a member that no other live one has. One that is opened again has its old name, and so its old shards.
    fn join(&self, member: &str) -> String {
        let mut members = self.members.lock();
        let name = (0..).map(|n| if n == 0 { format!("{member}.{}", self.nonce) } else { format!("{member}.{n}.{}", self.nonce) });
        let free = name.into_iter().find(|name| !members.contains(name)).unwrap_or_default();
        members.insert(free.clone());
        free
    }
}

#[derive(Debug)]
struct NatsSubscription {
    live: Arc<Live>,
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        self.live.end.cancel();
        self.live.shared.members.lock().remove(&self.live.member);
    }
}

#[async_trait]
impl Subscription for NatsSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let live = &self.live;
        let end = Instant::now() + wait;
        loop {
            let some = live.some.notified();
            tokio::pin!(some);
            some.as_mut().enable();
            if live.shared.closed.is_cancelled() || live.end.is_cancelled() {
                return Err(error::closed());
            }
            let signals = live.look(max, max_bytes)?;
            if !signals.is_empty() || Instant::now() >= end {
                return Ok(signals);
            }
            tokio::select! {
                () = some => {}
                () = live.shared.closed.cancelled() => {}
                () = live.end.cancelled() => {}
                () = tokio::time::sleep_until(end.into()) => {}
            }
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        settle::settle(&self.live, items).await
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        keeper::extend(&self.live, tokens).await
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        let mut state = self.live.state.lock();
        let at = state.feeds.iter().position(|feed| feed.route == route && feed.shard == shard);
        let Some(at) = at.filter(|at| matches!(state.feeds[*at].phase, Phase::Revoking(_))) else { return };
        state.abandon(at);
        drop(state);
        if let Some(Some(assign)) = self.live.assigns.get(route) {
            assign.give_up(shard);
        }
    }

    async fn pause(&self) {
        self.live.state.lock().paused = true;
    }

    async fn resume(&self) {
        let mut state = self.live.state.lock();
        state.paused = false;
        state.dirty = (0..state.feeds.len()).collect();
        drop(state);
        self.live.some.notify_waiters();
        self.live.room.notify_one();
    }

    async fn close(&self, deadline: Instant) {
        let live = &self.live;
        // Nothing more is handed out or asked for; what is in hand goes back.
        live.die(error::closed());
        live.hush.cancel();
        live.readers.close();
        let _ = tokio::time::timeout_at(deadline.into(), live.readers.wait()).await;
        let _ = tokio::time::timeout_at(deadline.into(), settle::give_back(live)).await;
        for assign in live.assigns.iter().flatten() {
            let _ = tokio::time::timeout_at(deadline.into(), assign.leave()).await;
        }
        live.end.cancel();
        live.tasks.close();
        let _ = tokio::time::timeout_at(deadline.into(), live.tasks.wait()).await;
        live.shared.members.lock().remove(&live.member);
    }
}
