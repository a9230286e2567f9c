//! One member of a group: what it holds, and what it has to say.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Clients;
use super::error::{Kind, closed};
use super::lease::{Handles, Held};
use super::options::Options;
use super::queue;
use crate::delivery::{Delivery, Settle, Settled, Token};
use crate::error::{Error, Result};
use crate::message::now_ms;
use crate::provider::net::slab::Slab;
use crate::provider::{Prefetch, Signal, Subscription, SubscriptionState, TopicSpec};

/// Deletes and changes of leases at a time.
const CALLS: usize = 16;
/// Where a settle stands alone it is sent at once; where others have just gone it waits for more to go with it.
const FEW: usize = 100;

/// A route, and the queue its messages come from.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) topic: TopicSpec,
    pub(super) fifo: bool,
    pub(super) handles: Handles,
}

/// What the tasks of a subscription share.
pub(super) struct Shared {
    pub(super) routes: Vec<Route>,
    pub(super) clients: Clients,
    pub(super) options: Options,
    pub(super) prefetch: Prefetch,
    pub(super) state: Mutex<State>,
    /// Something for `next`.
    pub(super) arrived: Notify,
    /// Room to receive into, or no longer paused.
    pub(super) room: Notify,
    /// Receive no more. Receives under way go on: what they bring is given back.
    pub(super) stop: CancellationToken,
    /// Keep leases no more.
    let_go: CancellationToken,
    /// Everything ends now.
    pub(super) end: CancellationToken,
    /// The tasks of the connection.
    pub(super) tasks: TaskTracker,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) held: Slab<Held>,
    pub(super) ready: VecDeque<Ready>,
    /// Of each route. Each has its share of the prefetch: a long poll that waits for one route's messages must not take up the
    /// room of another's.
    pub(super) rooms: Vec<Room>,
    pub(super) signals: VecDeque<Signal>,
    pub(super) degraded: Option<&'static str>,
    pub(super) dead: Option<Error>,
    pub(super) paused: bool,
    /// Of the shards of ordered routes.
    pub(super) epochs: HashMap<(usize, u32), u64>,
    last_delete: Option<Instant>,
}

/// A message that waits to be handed out.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) route: usize,
    pub(super) delivery: Delivery,
}

/// What a route takes up of its share.
#[derive(Debug, Default, Clone)]
pub(super) struct Room {
    /// Messages that wait to be handed out.
    pub(super) ready: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// Places that receives under way will fill.
    pub(super) reserved: usize,
    /// What a message has weighed of late; 0 before the first.
    pub(super) usual_size: usize,
}

impl State {
    /// Puts a message behind the others.
    pub(super) fn push(&mut self, ready: Ready) {
        let (room, size) = (&mut self.rooms[ready.route], ready.delivery.size());
        room.usual_size = if room.usual_size == 0 { size } else { room.usual_size - room.usual_size / 8 + size / 8 }.max(1);
        room.ready += 1;
        room.bytes += size;
        self.ready.push_back(ready);
    }

    /// Takes the first one out.
    fn pop(&mut self) -> Option<Ready> {
        let ready = self.ready.pop_front()?;
        let room = &mut self.rooms[ready.route];
        room.ready -= 1;
        room.bytes -= ready.delivery.size();
        Some(ready)
    }

    /// The shard is this member's from now on, as it is every member's: SQS gives each key to one of them at a time.
    fn assign(&mut self, route: usize, shard: u32) {
        let last = self.epochs.get(&(route, shard)).copied().unwrap_or(0);
        let epoch = now_ms().max(last + 1);
        self.epochs.insert((route, shard), epoch);
        self.signals.push_back(Signal::Assigned { route, shard, epoch });
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<&str> = self.routes.iter().map(|route| &*route.topic.name).collect();
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
        let State { ready, held, rooms, .. } = &mut *state;
        ready.retain(|ready| {
            let keeps = held.get(ready.token).is_some();
            if !keeps {
                rooms[ready.route].ready -= 1;
                rooms[ready.route].bytes -= ready.delivery.size();
            }
            keeps
        });
        drop(state);
        self.arrived.notify_waiters();
        self.room.notify_waiters();
    }

    /// Takes out what waits here.
    fn take_ready(&self) -> Vec<Held> {
        let mut state = self.state.lock();
        let mut taken = Vec::with_capacity(state.ready.len());
        while let Some(ready) = state.pop() {
            taken.extend(state.held.remove(ready.token));
        }
        taken
    }

    /// Gives messages back: visible again at once.
    pub(super) async fn release(&self, held: Vec<Held>) {
        let by_route = (0..self.routes.len()).map(async |route| {
            let items: Vec<_> = held.iter().filter(|held| held.route == route).map(|held| (held.receipt.clone(), 0)).collect();
            for failed in self.routes[route].handles.hide(&items).await.into_iter().filter_map(Result::err) {
                tracing::debug!(error = %failed.error, "a message could not be given back: it comes again when its lease ends");
            }
        });
        futures_util::future::join_all(by_route).await;
    }

    /// Renews leases that are half used up, as often as needed, until the end.
    pub(super) async fn keep_leases(self: Arc<Self>) {
        let lease = self.options.lease;
        loop {
            tokio::select! {
                () = self.let_go.cancelled() => return,
                () = tokio::time::sleep(lease / 6) => {}
            }
            let soon = Instant::now() + lease / 2;
            let due: Vec<Token> =
                self.state.lock().held.iter().filter(|(_, held)| held.lease_end <= soon).map(|(token, _)| token).collect();
            self.renew(&due).await;
        }
    }

    /// Renews these leases; whether each is kept.
    async fn renew(&self, tokens: &[Token]) -> Vec<bool> {
        let asked = Instant::now();
        let held: Vec<(usize, Token, Held)> = {
            let state = self.state.lock();
            let held = tokens.iter().enumerate().filter_map(|(at, token)| Some((at, *token, state.held.get(*token)?.clone())));
            held.collect()
        };
        let mut kept = vec![false; tokens.len()];
        let mut lost = Vec::new();
        let by_route = (0..self.routes.len()).map(async |route| {
            let items: Vec<_> = held.iter().filter(|(_, _, held)| held.route == route).collect();
            let lengths: Vec<_> = items.iter().map(|(.., held)| held.longest(asked).min(self.options.lease.as_secs())).collect();
            let asks: Vec<_> = items.iter().zip(&lengths).map(|((.., held), length)| (held.receipt.clone(), *length)).collect();
            let answers = if asks.is_empty() { Vec::new() } else { self.routes[route].handles.hide(&asks).await };
            items.into_iter().zip(lengths).zip(answers).collect::<Vec<_>>()
        });
        for (((at, token, before), length), answer) in futures_util::future::join_all(by_route).await.into_iter().flatten() {
            match answer {
                Ok(()) if length > 0 => {
                    kept[*at] = true;
                    if let Some(held) = self.state.lock().held.get_mut(*token) {
                        held.lease_end = asked + Duration::from_secs(length);
                    }
                }
                // Not known: the lease it had is still good.
                Err(failed) if failed.kind != Kind::Stale && before.lease_end > Instant::now() => kept[*at] = true,
                _ => lost.push(*token),
            }
        }
        if !lost.is_empty() {
            tracing::debug!(count = lost.len(), "leases were lost");
            self.lose(&lost);
        }
        kept
    }

    /// What `next` may hand out now.
    fn take(&self, max: usize, max_bytes: usize) -> Vec<Signal> {
        let mut state = self.state.lock();
        let mut signals: Vec<Signal> = state.signals.drain(..).collect();
        if state.paused {
            return signals;
        }
        let (mut count, mut bytes) = (0, 0);
        while count < max && (count == 0 || bytes < max_bytes) {
            let Some(Ready { token, mut delivery, .. }) = state.pop() else { break };
            let size = delivery.size();
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

/// What is to be settled: its place, what was held, and for how many seconds to hide it (`None`: delete it).
type Work = (usize, Held, Option<u64>);

/// See the module. Dropping it is a death: what it holds comes again when the leases end.
#[derive(Debug)]
pub(super) struct SqsSubscription {
    shared: Arc<Shared>,
}

impl SqsSubscription {
    /// Starts receiving from the queues of `routes`.
    pub(super) fn start(
        clients: &Clients,
        routes: Vec<(TopicSpec, String)>,
        options: Options,
        prefetch: Prefetch,
        connection: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let calls = Arc::new(Semaphore::new(CALLS));
        let route = |(topic, url): (TopicSpec, String)| Route {
            fifo: queue::is_fifo(&topic.name),
            topic,
            handles: Handles { client: clients.again.clone(), url: url.into(), calls: calls.clone() },
        };
        let rooms = vec![Room::default(); routes.len()];
        let end = connection.child_token();
        let shared = Arc::new(Shared {
            routes: routes.into_iter().map(route).collect(),
            clients: clients.clone(),
            options,
            prefetch,
            state: Mutex::new(State {
                held: Slab::default(),
                ready: VecDeque::new(),
                rooms,
                signals: VecDeque::new(),
                degraded: None,
                dead: None,
                paused: false,
                epochs: HashMap::new(),
                last_delete: None,
            }),
            arrived: Notify::new(),
            room: Notify::new(),
            stop: end.child_token(),
            let_go: end.child_token(),
            end,
            tasks: tasks.clone(),
        });
        {
            let mut state = shared.state.lock();
            for (at, route) in shared.routes.iter().enumerate().filter(|(_, route)| route.topic.ordered) {
                (0..route.topic.shards).for_each(|shard| state.assign(at, shard));
            }
        }
        tasks.spawn(shared.clone().keep_leases());
        for at in 0..shared.routes.len() {
            tasks.spawn(shared.clone().receive(at));
        }
        SqsSubscription { shared }
    }

    /// Takes what is to be settled out of hand.
    fn take_out(&self, items: &[(Token, Settle)]) -> (Vec<Settled>, Vec<Work>) {
        let (mut answers, mut work) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        for (at, (token, how)) in items.iter().enumerate() {
            let hide = match how {
                Settle::Done => None,
                Settle::Release => Some(0),
                // Not before: up to the next whole second.
                Settle::Retry { after, .. } => Some(after.as_secs() + u64::from(after.subsec_nanos() > 0)),
            };
            match state.held.get(*token) {
                None => answers.push(Settled::Stale),
                // Beyond what SQS can do: it stays in hand.
                Some(held) if hide.is_some_and(|seconds| seconds > held.longest(now)) => answers.push(Settled::Unknown),
                Some(_) => {
                    answers.push(Settled::Unknown);
                    work.extend(state.held.remove(*token).map(|held| (at, held, hide)));
                }
            }
        }
        (answers, work)
    }

    /// A few acks that follow others closely wait for more: every call to SQS costs, and ten acks cost as much as one.
    async fn linger(&self, acks: usize) {
        let last = {
            let mut state = self.shared.state.lock();
            state.last_delete.replace(Instant::now())
        };
        if acks > 0
            && acks < FEW
            && let Some(left) = last.and_then(|last| self.shared.options.linger.checked_sub(last.elapsed()))
        {
            tokio::time::sleep(left).await;
            self.shared.state.lock().last_delete = Some(Instant::now());
        }
    }
}

impl Drop for SqsSubscription {
    fn drop(&mut self) {
        // After a close, receives that are under way still give back what they bring.
        if !self.shared.let_go.is_cancelled() {
            self.shared.end.cancel();
        }
    }
}

#[async_trait]
impl Subscription for SqsSubscription {
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
        self.linger(items.iter().filter(|(_, how)| *how == Settle::Done).count()).await;
        let (mut answers, work) = self.take_out(items);
        if work.is_empty() {
            return answers;
        }
        self.shared.room.notify_waiters();
        let now = Instant::now();
        let by_route = self.shared.routes.iter().enumerate().map(async |(at, route)| {
            let (done, back): (Vec<_>, Vec<_>) = work.iter().filter(|(_, held, _)| held.route == at).partition(|(.., hide)| hide.is_none());
            let receipts: Vec<_> = done.iter().map(|(_, held, _)| held.receipt.clone()).collect();
            let hides: Vec<_> = back.iter().map(|(_, held, hide)| (held.receipt.clone(), hide.unwrap_or(0))).collect();
            let (deleted, hidden) = tokio::join!(route.handles.delete(&receipts), route.handles.hide(&hides));
            done.into_iter().zip(deleted).chain(back.into_iter().zip(hidden)).collect::<Vec<_>>()
        });
        for ((at, held, _), answer) in futures_util::future::join_all(by_route).await.into_iter().flatten() {
            answers[*at] = match answer {
                // SQS also says yes to the handle of a message that others have by now.
                Ok(()) if held.lease_end < now => Settled::Stale,
                Ok(()) => Settled::Settled,
                Err(failed) if failed.kind == Kind::Stale => Settled::Stale,
                Err(_) => Settled::Unknown,
            };
        }
        answers
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        self.shared.renew(tokens).await
    }

    /// Shards have no owner here: nothing is ever revoked.
    async fn yield_shard(&self, _route: usize, _shard: u32) {}

    async fn pause(&self) {
        self.shared.state.lock().paused = true;
        let ready = self.shared.take_ready();
        self.shared.release(ready).await;
    }

    async fn resume(&self) {
        self.shared.state.lock().paused = false;
        self.shared.room.notify_waiters();
    }

    async fn close(&self, deadline: Instant) {
        self.shared.stop.cancel();
        let held: Vec<Held> = {
            let mut state = self.shared.state.lock();
            while state.pop().is_some() {}
            let tokens: Vec<Token> = state.held.iter().map(|(token, _)| token).collect();
            tokens.into_iter().filter_map(|token| state.held.remove(token)).collect()
        };
        let _ = tokio::time::timeout_at(deadline.into(), self.shared.release(held)).await;
        self.shared.let_go.cancel();
    }
}
