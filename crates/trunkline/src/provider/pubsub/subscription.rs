//! One member of a group: what it holds, and what it has to say.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::closed;
use super::lease::{Held, LONGEST, What};
use super::link::Link;
use crate::delivery::{Delivery, Settle, Settled, Token};
use crate::error::{Error, Result};
use crate::message::now_ms;
use crate::provider::net::slab::Slab;
use crate::provider::{Prefetch, Signal, Subscription, SubscriptionState, TopicSpec};

/// A route, and the subscription its messages come from.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) topic: TopicSpec,
    pub(super) path: String,
}

/// What the tasks of a subscription share.
pub(super) struct Shared {
    pub(super) routes: Vec<Route>,
    pub(super) link: Arc<Link>,
    pub(super) prefetch: Prefetch,
    /// Names this member to the server over all its streams.
    pub(super) client: String,
    pub(super) state: Mutex<State>,
    /// Something for `next`.
    pub(super) arrived: Notify,
    /// Room to receive into.
    pub(super) room: Notify,
    pub(super) paused: watch::Sender<bool>,
    /// Held while leases are renewed: what is given back meanwhile is so after it, and not kept by a call that overtakes.
    pub(super) renewing: tokio::sync::Mutex<()>,
    /// Receive no more. What is under way on the streams is given back.
    pub(super) stop: CancellationToken,
    /// Keep leases no more.
    pub(super) let_go: CancellationToken,
    /// Everything ends now.
    pub(super) end: CancellationToken,
    /// The streams.
    pub(super) streams: TaskTracker,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) held: Slab<Held>,
    pub(super) ready: VecDeque<(Token, Delivery)>,
    pub(super) ready_bytes: usize,
    /// How many came so far.
    pub(super) places: u64,
    signals: VecDeque<Signal>,
    degraded: Option<&'static str>,
    dead: Option<Error>,
    /// Of the shards of ordered routes.
    epochs: HashMap<(usize, u32), u64>,
}

impl State {
    /// The shard is this member's from now on, as it is every member's: Pub/Sub gives each key to one of them at a time.
    fn assign(&mut self, route: usize, shard: u32) {
        let last = self.epochs.get(&(route, shard)).copied().unwrap_or(0);
        let epoch = now_ms().max(last + 1);
        self.epochs.insert((route, shard), epoch);
        self.signals.push_back(Signal::Assigned { route, shard, epoch });
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<&str> = self.routes.iter().map(|route| &*route.path).collect();
        let held = self.state.try_lock().map(|state| state.held.len());
        f.debug_struct("Shared").field("routes", &routes).field("held", &held).finish_non_exhaustive()
    }
}

impl Shared {
    /// Says once how it fares.
    pub(super) fn fares(&self, degraded: Option<&'static str>) {
        let mut state = self.state.lock();
        if state.degraded != degraded {
            state.degraded = degraded;
            let word = degraded.map_or(SubscriptionState::Live, SubscriptionState::Degraded);
            state.signals.push_back(Signal::State(word));
            drop(state);
            self.arrived.notify_waiters();
        }
    }

    /// The subscription cannot go on.
    pub(super) fn die(&self, error: Error) {
        self.state.lock().dead.get_or_insert(error);
        self.stop.cancel();
        self.arrived.notify_waiters();
    }

    /// The lease of these is lost. On an ordered route all of the shard goes: what follows must not be handled first.
    pub(super) fn lose(&self, tokens: &[Token]) {
        let mut state = self.state.lock();
        let mut shards = Vec::new();
        for token in tokens {
            let Some(held) = state.held.remove(*token) else { continue };
            if self.routes[held.route].topic.ordered && !shards.contains(&(held.route, held.shard)) {
                shards.push((held.route, held.shard));
            }
        }
        for (route, shard) in &shards {
            let of: Vec<Token> =
                state.held.iter().filter(|(_, held)| (held.route, held.shard) == (*route, *shard)).map(|(token, _)| token).collect();
            of.into_iter().for_each(|token| drop(state.held.remove(token)));
            state.signals.push_back(Signal::Lost { route: *route, shard: *shard });
            state.assign(*route, *shard);
        }
        let State { ready, held, ready_bytes, .. } = &mut *state;
        ready.retain(|(token, delivery)| {
            let keeps = held.get(*token).is_some();
            *ready_bytes -= if keeps { 0 } else { delivery.size() };
            keeps
        });
        drop(state);
        self.arrived.notify_waiters();
        self.room.notify_waiters();
    }

    /// Takes out what waits here.
    fn take_ready(&self) -> Vec<Held> {
        let mut state = self.state.lock();
        state.ready_bytes = 0;
        let ready = std::mem::take(&mut state.ready);
        ready.into_iter().filter_map(|(token, _)| state.held.remove(token)).collect()
    }

    /// What `next` may hand out now.
    fn take(&self, max: usize, max_bytes: usize) -> Vec<Signal> {
        let mut state = self.state.lock();
        let mut signals: Vec<Signal> = state.signals.drain(..).collect();
        if *self.paused.borrow() {
            return signals;
        }
        let (mut count, mut bytes) = (0, 0);
        while count < max && (count == 0 || bytes < max_bytes) {
            let Some((token, mut delivery)) = state.ready.pop_front() else { break };
            let size = delivery.size();
            state.ready_bytes -= size;
            let Some(held) = state.held.get(token) else { continue };
            delivery.lease_end = Some(held.lease_end);
            (count, bytes) = (count + 1, bytes + size);
            let (of, shard) = (held.route, held.shard);
            match signals.last_mut() {
                Some(Signal::Deliveries { route, shard: last, items, .. }) if (*route, *last) == (of, shard) => items.push(delivery),
                _ => {
                    let epoch = state.epochs.get(&(of, shard)).copied().unwrap_or(0);
                    signals.push(Signal::Deliveries { route: of, shard, epoch, items: vec![delivery] });
                }
            }
        }
        drop(state);
        if count > 0 {
            self.room.notify_waiters();
        }
        signals
    }
}

/// See the module. Dropping it is a death: what it holds comes again when the leases end.
#[derive(Debug)]
pub(super) struct PubSubSubscription {
    shared: Arc<Shared>,
}

impl PubSubSubscription {
    /// Starts receiving from the subscriptions of `routes`.
    pub(super) fn start(
        link: &Arc<Link>,
        routes: Vec<Route>,
        client: String,
        prefetch: Prefetch,
        connection: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let end = connection.child_token();
        let shared = Arc::new(Shared {
            routes,
            link: link.clone(),
            prefetch,
            client,
            state: Mutex::new(State {
                held: Slab::default(),
                ready: VecDeque::new(),
                ready_bytes: 0,
                places: 0,
                signals: VecDeque::new(),
                degraded: None,
                dead: None,
                epochs: HashMap::new(),
            }),
            arrived: Notify::new(),
            room: Notify::new(),
            paused: watch::Sender::new(false),
            renewing: tokio::sync::Mutex::default(),
            stop: end.child_token(),
            let_go: end.child_token(),
            end,
            streams: TaskTracker::new(),
        });
        {
            let mut state = shared.state.lock();
            for (at, route) in shared.routes.iter().enumerate().filter(|(_, route)| route.topic.ordered) {
                (0..route.topic.shards).for_each(|shard| state.assign(at, shard));
            }
        }
        tasks.spawn(shared.clone().keep_leases());
        for at in 0..shared.routes.len() {
            tasks.spawn(shared.streams.track_future(shared.clone().receive(at)));
        }
        shared.streams.close();
        PubSubSubscription { shared }
    }

    /// Takes what is to be settled out of hand.
    fn take_out(&self, items: &[(Token, Settle)]) -> (Vec<Settled>, Vec<(usize, Held, What)>) {
        let (mut answers, mut work) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        let mut state = self.shared.state.lock();
        for (at, (token, how)) in items.iter().enumerate() {
            let Some(held) = state.held.get(*token) else {
                answers.push(Settled::Stale);
                continue;
            };
            answers.push(Settled::Unknown);
            let what = match how {
                Settle::Done => What::Ack,
                Settle::Release => What::Lease(0),
                Settle::Retry { after, .. } if after.is_zero() => What::Lease(0),
                // Pub/Sub would hand out the next message of the key meanwhile: it stays in hand.
                Settle::Retry { .. } if self.shared.routes[held.route].topic.ordered => continue,
                Settle::Retry { after, .. } if *after > LONGEST => continue,
                // Not before: up to the next whole second.
                Settle::Retry { after, .. } => What::Lease((after.as_secs() + u64::from(after.subsec_nanos() > 0)) as u32),
            };
            work.extend(state.held.remove(*token).map(|held| (at, held, what)));
        }
        (answers, work)
    }
}

impl Drop for PubSubSubscription {
    fn drop(&mut self) {
        // A close has given everything back.
        if !self.shared.let_go.is_cancelled() {
            self.shared.end.cancel();
        }
    }
}

#[async_trait]
impl Subscription for PubSubSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let arrived = self.shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(error) = self.shared.state.lock().dead.clone() {
                return Err(error);
            }
            if self.shared.stop.is_cancelled() {
                return Err(closed());
            }
            let signals = self.shared.take(max, max_bytes);
            if !signals.is_empty() {
                return Ok(signals);
            }
            tokio::select! {
                () = arrived => {}
                () = self.shared.stop.cancelled() => {}
                () = tokio::time::sleep_until(until) => return Ok(Vec::new()),
            }
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let (mut answers, work) = self.take_out(items);
        if work.iter().any(|(.., what)| *what != What::Ack) {
            drop(self.shared.renewing.lock().await);
        }
        let now = Instant::now();
        let mut calls: HashMap<(usize, What), Vec<&(usize, Held, What)>> = HashMap::new();
        for one in &work {
            calls.entry((one.1.route, one.2)).or_default().push(one);
        }
        let calls = calls.into_iter().map(async |((route, what), items)| {
            let acks: Vec<_> = items.iter().map(|(_, held, _)| held.ack.clone()).collect();
            let said = self.shared.change(route, what, &acks).await;
            items.into_iter().zip(said).collect::<Vec<_>>()
        });
        for ((at, held, _), said) in futures_util::future::join_all(calls).await.into_iter().flatten() {
            // Pub/Sub also says yes to the ack of a message that others have by now.
            answers[*at] = if said == Settled::Settled && held.lease_end < now { Settled::Stale } else { said };
        }
        answers
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        self.shared.renew(tokens).await
    }

    /// Shards have no owner here: nothing is ever revoked.
    async fn yield_shard(&self, _route: usize, _shard: u32) {}

    async fn pause(&self) {
        self.shared.paused.send_replace(true);
        let ready = self.shared.take_ready();
        self.shared.release(ready).await;
    }

    async fn resume(&self) {
        self.shared.paused.send_replace(false);
        self.shared.room.notify_waiters();
    }

    async fn close(&self, deadline: Instant) {
        self.shared.stop.cancel();
        let _ = tokio::time::timeout_at(deadline.into(), self.shared.streams.wait()).await;
        let held: Vec<Held> = {
            let mut state = self.shared.state.lock();
            state.ready.clear();
            state.ready_bytes = 0;
            let tokens: Vec<Token> = state.held.iter().map(|(token, _)| token).collect();
            tokens.into_iter().filter_map(|token| state.held.remove(token)).collect()
        };
        let _ = tokio::time::timeout_at(deadline.into(), self.shared.release(held)).await;
        self.shared.let_go.cancel();
    }
}
