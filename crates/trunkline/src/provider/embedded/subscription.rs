//! A subscription: one member per route, the shards they own, and what there is to say about them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::LONGEST_RETRY_MS;
use super::error;
use super::group::Group;
use super::lease::{self, Member};
use super::owned::{FillError, FlushError, NAMES, Owned, Room, Tidy, name_of};
use super::topic::Topic;
use crate::clock::uptime_ms;
use crate::delivery::{Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::message::millis;
use crate::provider::{Signal, Subscription, SubscriptionState};

/// How long a member has to settle what it holds of a shard that another one should have.
const GRACE: Duration = Duration::from_secs(15);
/// A shard hands out at least so many at once before it is the next one's turn.
const QUANTUM: usize = 64;

/// One subscription.
#[derive(Debug)]
pub(super) struct Live {
    /// Rung when there may be something to say.
    pub(super) bell: Arc<Notify>,
    lease: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    routes: Vec<Route>,
    owned: Vec<Owned>,
    /// Where in `owned` an ownership is.
    places: HashMap<u32, usize>,
    signals: VecDeque<Signal>,
    names: u32,
    turn: usize,
    paused: bool,
    /// Why the subscription is dead.
    dead: Option<Error>,
    bell: Arc<Notify>,
}

#[derive(Debug)]
struct Route {
    topic: Arc<Topic>,
    group: Arc<Group>,
    group_name: Arc<str>,
    member: Option<Member>,
    /// The version of the page that was looked at.
    seen: u64,
}

impl Live {
    /// Joins the group on all routes and takes what is free.
    pub(super) fn open(routes: Vec<(Arc<Topic>, Arc<Group>)>, group: &Arc<str>, lease: Duration) -> Result<Arc<Self>> {
        let bell = Arc::new(Notify::new());
        for (topic, _) in &routes {
            topic.listen(&bell);
        }
        let routes = routes
            .into_iter()
            .map(|(topic, group_)| Route { topic, group: group_, group_name: Arc::clone(group), member: None, seen: u64::MAX })
            .collect();
        let state = State {
            routes,
            owned: Vec::new(),
            places: HashMap::new(),
            signals: VecDeque::from([Signal::State(SubscriptionState::Live)]),
            names: 0,
            turn: 0,
            paused: false,
            dead: None,
            bell: Arc::clone(&bell),
        };
        let live = Arc::new(Live { bell, lease: millis(lease), state: Mutex::new(state) });
        live.beat(true);
        let dead = live.state.lock().dead.clone();
        match dead {
            Some(error) => Err(error),
            None => Ok(live),
        }
    }

    /// Renews the leases (if that is due), takes and gives up shards, and notices what was lost.
    pub(super) fn beat(&self, renew: bool) {
        let mut state = self.state.lock();
        if state.dead.is_some() {
            return;
        }
        let before = state.signals.len();
        let now = uptime_ms();
        for index in 0..state.routes.len() {
            if let Err(error) = state.beat_route(index, now, self.lease, renew) {
                state.die(error);
                break;
            }
        }
        if state.signals.len() != before || state.dead.is_some() {
            self.bell.notify_one();
        }
    }

    /// What is to be done about the ack logs.
    pub(super) fn tidy(&self) -> Vec<Tidy> {
        let mut state = self.state.lock();
        let mut todo = Vec::new();
        for owned in &mut state.owned {
            match owned.tidy() {
                Ok(tidy) => todo.extend(tidy),
                Err(error) => tracing::warn!(topic = %owned.topic.name, %error, "an ack log could not be shortened"),
            }
        }
        todo
    }

    /// Gives everything back and leaves.
    pub(super) fn leave(&self) {
        self.state.lock().die(error::closed().context("the subscription is closed"));
        self.bell.notify_one();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.leave();
    }
}

impl State {
    fn beat_route(&mut self, index: usize, now: u64, lease: u64, renew: bool) -> Result<()> {
        let route = &mut self.routes[index];
        if route.topic.removed() {
            return Err(error::no_topic(&route.topic.name));
        }
        if route.group.removed() {
            return Err(error::no_group(&route.topic.name, &route.group_name));
        }
        let page = &route.group.page;
        let version = page.version().load(SeqCst);
        if !renew && version == route.seen {
            return Ok(());
        }
        if route.member.as_mut().is_some_and(|member| !member.renew(page, now, lease)) {
            route.member = None;
        }
        lease::evict(page, now);
        let joined = route.member.is_none();
        if joined {
            route.member = Member::join(page, now, lease);
            page.version().fetch_add(1, SeqCst);
            route.topic.host.ring();
        }
        let Some(member) = route.member else {
            return Err(Error::new(Code::SubscribeFailed, "the group has no room for another member").reason("members"));
        };
        route.seen = page.version().load(SeqCst);
        let quota = member.quota(page, now);
        self.drop_lost(index);
        self.expire(index);
        self.revoke(index, quota);
        self.claim(index, member, quota)
    }

    /// Notices shards that were taken away.
    fn drop_lost(&mut self, route: usize) {
        let mut at = 0;
        while at < self.owned.len() {
            if self.owned[at].route == route && !self.owned[at].ours() {
                self.lose(at);
            } else {
                at += 1;
            }
        }
    }

    /// Gives up what was not yielded in time.
    fn expire(&mut self, route: usize) {
        let now = Instant::now();
        let late = |owned: &Owned| owned.route == route && owned.revoking.is_some_and(|deadline| deadline <= now);
        while let Some(at) = self.owned.iter().position(late) {
            let owned = self.lose(at);
            owned.release();
        }
    }

    fn lose(&mut self, at: usize) -> Owned {
        let owned = self.take(at);
        self.signals.push_back(Signal::Lost { route: owned.route, shard: owned.shard });
        owned
    }

    fn take(&mut self, at: usize) -> Owned {
        let owned = self.owned.swap_remove(at);
        self.places.remove(&owned.name);
        if let Some(moved) = self.owned.get(at) {
            self.places.insert(moved.name, at);
        }
        owned
    }

    /// Asks back what is more than this member's part.
    fn revoke(&mut self, route: usize, quota: usize) {
        let kept = self.owned.iter().filter(|owned| owned.route == route && owned.revoking.is_none()).count();
        let deadline = Instant::now() + GRACE;
        let surplus = self.owned.iter_mut().rev().filter(|owned| owned.route == route && owned.revoking.is_none());
        for owned in surplus.take(kept.saturating_sub(quota)) {
            owned.revoking = Some(deadline);
            self.signals.push_back(Signal::Revoking { route, shard: owned.shard, deadline });
        }
    }

    /// Takes shards nobody owns, up to this member's part.
    fn claim(&mut self, index: usize, member: Member, quota: usize) -> Result<()> {
        let mut have = self.owned.iter().filter(|owned| owned.route == index).count();
        let (topic, group) = (Arc::clone(&self.routes[index].topic), Arc::clone(&self.routes[index].group));
        for shard in 0..topic.shards {
            if have >= quota {
                break;
            }
            if self.owned.iter().any(|owned| owned.route == index && owned.shard == shard) {
                continue;
            }
            let Some(claim) = group.claim(&topic, shard, member)? else { continue };
            let name = self.name();
            self.signals.push_back(Signal::Assigned { route: index, shard, epoch: claim.epoch });
            self.places.insert(name, self.owned.len());
            self.owned.push(Owned::new(name, index, &topic, &group, shard, claim, &self.bell));
            have += 1;
        }
        Ok(())
    }

    fn name(&mut self) -> u32 {
        loop {
            self.names = (self.names + 1) % NAMES;
            if !self.places.contains_key(&self.names) {
                return self.names;
            }
        }
    }

    fn die(&mut self, error: Error) {
        if self.dead.is_some() {
            return;
        }
        self.dead = Some(error);
        self.places.clear();
        for owned in std::mem::take(&mut self.owned) {
            owned.release();
        }
        for route in &mut self.routes {
            if let Some(member) = route.member.take() {
                member.leave(&route.group.page);
                route.group.changed(&route.topic);
            }
        }
    }

    /// What there is to say now.
    fn collect(&mut self, max: usize, max_bytes: usize) -> Result<Vec<Signal>> {
        let mut out: Vec<Signal> = self.signals.drain(..).collect();
        if !out.is_empty() || self.paused {
            return Ok(out);
        }
        let mut room = Room { messages: max.max(1), bytes: max_bytes.max(1) };
        let mut idle = 0;
        while room.messages > 0 && room.bytes > 0 && idle < self.owned.len() {
            let at = self.turn % self.owned.len();
            self.turn = at + 1;
            let part = room.messages.div_ceil(self.owned.len()).max(QUANTUM).min(room.messages);
            let owned = &mut self.owned[at];
            match owned.fill(Room { messages: part, bytes: room.bytes }) {
                Ok(items) if items.is_empty() => idle += 1,
                Ok(items) => {
                    idle = 0;
                    room.messages -= items.len();
                    room.bytes = room.bytes.saturating_sub(items.iter().map(crate::delivery::Delivery::size).sum());
                    out.push(Signal::Deliveries { route: owned.route, shard: owned.shard, epoch: owned.epoch, items });
                }
                Err(FillError::Lost) => {
                    self.lose(at);
                    out.extend(self.signals.drain(..));
                }
                // What was collected goes out first; the next call meets the same error.
                Err(FillError::Failed(_)) if !out.is_empty() => break,
                Err(FillError::Failed(error)) => {
                    self.die(error.clone());
                    return Err(error);
                }
            }
        }
        Ok(out)
    }

    fn due(&self) -> Option<Instant> {
        if self.paused { None } else { self.owned.iter().filter_map(Owned::due).min() }
    }
}

#[async_trait]
impl Subscription for Live {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let end = Instant::now() + wait;
        loop {
            // Nothing is awaited between taking messages and returning them, so a dropped future loses none.
            let due = {
                let mut state = self.state.lock();
                if let Some(error) = &state.dead {
                    return Err(error.clone());
                }
                let signals = state.collect(max, max_bytes)?;
                if !signals.is_empty() || Instant::now() >= end {
                    return Ok(signals);
                }
                state.due().map_or(end, |due| due.min(end))
            };
            let _ = tokio::time::timeout_at(due.into(), self.bell.notified()).await;
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let mut state = self.state.lock();
        let State { owned, places, .. } = &mut *state;
        let mut out = vec![Settled::Stale; items.len()];
        let mut touched: Vec<usize> = Vec::new();
        let mut last = None;
        let mut more = false;
        for ((token, settle), settled) in items.iter().zip(&mut out) {
            let name = name_of(*token);
            let at = match last {
                Some((known, at)) if known == name => at,
                _ => {
                    let Some(at) = places.get(&name).copied() else { continue };
                    last = Some((name, at));
                    if !touched.contains(&at) {
                        touched.push(at);
                    }
                    at
                }
            };
            if matches!(settle, Settle::Retry { after, .. } if millis(*after) > LONGEST_RETRY_MS) {
                // Not a delay that is declared: it comes again at once, and nobody is told that it waits.
                if owned[at].settle(*token, Settle::Release) {
                    *settled = Settled::Unknown;
                    more = true;
                }
            } else if owned[at].settle(*token, *settle) {
                *settled = Settled::Settled;
                more |= *settle != Settle::Done;
            }
        }
        for at in touched {
            let failed = match owned[at].flush() {
                Ok(()) => continue,
                Err(FlushError::Lost) => {
                    more = true;
                    Settled::Stale
                }
                Err(FlushError::Disk(error)) => {
                    tracing::warn!(topic = %owned[at].topic.name, %error, "an ack could not be written");
                    Settled::Unknown
                }
            };
            for ((token, _), settled) in items.iter().zip(&mut out).filter(|(_, settled)| **settled == Settled::Settled) {
                if name_of(*token) == owned[at].name {
                    *settled = failed;
                }
            }
        }
        drop(state);
        if more {
            self.bell.notify_one();
        }
        out
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        let state = self.state.lock();
        let holds = |token: &Token| state.places.get(&name_of(*token)).is_some_and(|at| state.owned[*at].holds(*token));
        tokens.iter().map(holds).collect()
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        let mut state = self.state.lock();
        let given = |owned: &Owned| owned.route == route && owned.shard == shard && owned.revoking.is_some();
        if let Some(at) = state.owned.iter().position(given) {
            let owned = state.take(at);
            owned.release();
        }
    }

    async fn pause(&self) {
        self.state.lock().paused = true;
    }

    async fn resume(&self) {
        self.state.lock().paused = false;
        self.bell.notify_one();
    }

    async fn close(&self, _deadline: Instant) {
        self.leave();
    }
}
