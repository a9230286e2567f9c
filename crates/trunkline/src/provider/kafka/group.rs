//! A member of a group: the state that its thread, librdkafka's callbacks and the calls of the subscription share.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::Offset;
use rdkafka::types::RDKafkaErrorCode as Kafka;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::client::{Client, Ear, NoReports};
use super::desk::Desk;
use super::error::{Fault, error};
use super::native::{self, Rk};
use super::offsets::patiently;
use super::rebalance::Context;
use super::shard::{Key, Ready, Shard};
use crate::delivery::{Delivery, Token};
use crate::error::{Code, Error};
use crate::message::now_ms;
use crate::provider::net::slab::Slab;
use crate::provider::{Signal, SubscriptionState, TopicSpec};

/// The pause before a commit that failed is tried again.
const COMMIT_PAUSE: Duration = Duration::from_millis(100);
/// A member with shards commits at least this often: the answer shows that it is still a member.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// A commit that was not answered for this long is sent again.
const ANSWER: Duration = Duration::from_secs(20);
/// Without a commit for this long the subscription is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// At most so many of one shard before the next one gets a turn.
const TURN: usize = 256;

pub(super) type Consumer = BaseConsumer<Context>;

/// A message that was handed out and not settled.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: Key,
    pub(super) ready: Ready,
}

/// Shards that librdkafka shall give up.
#[derive(Debug)]
pub(super) struct Revoke {
    pub(super) list: TopicPartitionList,
    pub(super) left: BTreeSet<Key>,
    pub(super) deadline: Instant,
}

/// A commit on its way.
#[derive(Debug)]
struct Flying {
    turn: u64,
    since: Instant,
    /// Told apart from others by what is written in it.
    written: Vec<Written>,
    /// The shards in it, with their epochs and start marks.
    shards: Vec<(Key, u64, Option<i64>)>,
}

/// What a commit says of one shard: offset, and what is written beside it.
pub(super) type Written = (Key, i64, String);

/// See the module.
pub(super) struct Group {
    pub(super) name: Arc<str>,
    pub(super) routes: Vec<TopicSpec>,
    by_topic: HashMap<Arc<str>, usize>,
    pub(super) ear: Ear,
    /// For what needs no membership.
    pub(super) control: Arc<Client<NoReports>>,
    pub(super) desk: Arc<Desk>,
    /// As many messages the core takes in hand.
    pub(super) in_hand: u32,
    pub(super) state: Mutex<State>,
    /// Told when there may be something for `next`.
    pub(super) bell: Arc<Notify>,
    /// Told when commits were answered, or will not be.
    pub(super) settled: Notify,
    /// Told when the watch shall look now.
    pub(super) poke: Notify,
    pub(super) stop: CancellationToken,
    pub(super) ended: watch::Sender<bool>,
    pub(super) joined: watch::Sender<bool>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What is behind the lock.
#[derive(Default)]
pub(super) struct State {
    /// The consumer, until the member leaves. Only calls that do not wait are made on it under the lock.
    pub(super) consumer: Option<Arc<Consumer>>,
    pub(super) shards: BTreeMap<Key, Shard>,
    pub(super) held: Slab<Held>,
    pub(super) signals: VecDeque<Signal>,
    pub(super) revoke: Option<Revoke>,
    /// Shards whose position is gone, and where they go on.
    pub(super) reassign: Vec<(Key, i64)>,
    /// Since when a topic is said to be missing.
    pub(super) missed: Option<Instant>,
    pub(super) paused: bool,
    pub(super) closing: bool,
    pub(super) dead: Option<Error>,
    /// The broker takes no marks as long as ours: only what is settled in order holds.
    pub(super) short_marks: bool,
    troubles: BTreeSet<&'static str>,
    turn: u64,
    flying: Option<Flying>,
    retry_at: Option<Instant>,
    last_commit: Option<Instant>,
    next_shard: usize,
}

impl State {
    /// Whether no broker answered, the last time one was looked for.
    pub(super) fn is_cut_off(&self) -> bool {
        self.troubles.contains(CUT_OFF)
    }
}

impl Group {
    pub(super) fn new(
        name: Arc<str>,
        routes: Vec<TopicSpec>,
        ear: Ear,
        clients: (Arc<Client<NoReports>>, Arc<Desk>),
        in_hand: usize,
    ) -> Self {
        let (control, desk) = clients;
        Group {
            by_topic: routes.iter().enumerate().map(|(at, route)| (Arc::clone(&route.name), at)).collect(),
            name,
            routes,
            ear,
            control,
            desk,
            in_hand: u32::try_from(in_hand).unwrap_or(u32::MAX),
            state: Mutex::default(),
            bell: Arc::default(),
            settled: Notify::new(),
            poke: Notify::new(),
            stop: CancellationToken::new(),
            ended: watch::Sender::new(false),
            joined: watch::Sender::new(false),
        }
    }

    /// The key of a partition of one of the routes.
    pub(super) fn key(&self, topic: &str, partition: i32) -> Option<Key> {
        Some((*self.by_topic.get(topic)?, u32::try_from(partition).ok()?))
    }

    /// The subscription is dead: `next` says why, and the core opens another one.
    pub(super) fn die(&self, why: Error) {
        let mut state = self.state.lock();
        if state.dead.is_none() {
            tracing::debug!(group = %self.name, error = %why, "the member is dead");
            state.dead = Some(why);
        }
        drop(state);
        self.joined.send_modify(|_| {});
        self.bell.notify_one();
        self.settled.notify_waiters();
    }

    /// Leaves the group; its thread does the rest.
    pub(super) fn leave(&self) {
        self.state.lock().closing = true;
        self.stop.cancel();
        self.bell.notify_one();
        self.settled.notify_waiters();
    }

    /// Puts a word on the state, or takes it away; tells the change.
    pub(super) fn trouble(&self, state: &mut State, word: &'static str, there: bool) {
        let before = state.troubles.first().copied();
        if there {
            state.troubles.insert(word);
        } else {
            state.troubles.remove(word);
        }
        let now = state.troubles.first().copied();
        if now != before {
            state.signals.push_back(Signal::State(now.map_or(SubscriptionState::Live, SubscriptionState::Degraded)));
            self.bell.notify_one();
        }
    }

    /// Commits what there is to commit, if no commit is on its way.
    pub(super) fn commit(&self, state: &mut State) {
        if state.flying.is_some() || state.retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let Some(consumer) = state.consumer.clone() else { return };
        let short = state.short_marks;
        let mut list = TopicPartitionList::new();
        let mut flying = Flying { turn: state.turn, since: Instant::now(), written: Vec::new(), shards: Vec::new() };
        for (key, shard) in state.shards.iter_mut().filter(|(_, shard)| shard.dirty) {
            let (offset, mark) = shard.to_commit(false, !short);
            let text = mark.encode();
            add(&mut list, &self.routes[key.0].name, key.1, offset, &text);
            flying.written.push((*key, offset, text));
            shard.dirty = false;
            flying.shards.push((*key, shard.epoch, shard.asks()));
        }
        if flying.shards.is_empty() {
            return;
        }
        match native::commit_soon(Rk::new(consumer.client().native_ptr()), &list) {
            Ok(()) => state.flying = Some(flying),
            Err(fault) => self.commit_failed(state, flying, &fault),
        }
    }

    fn commit_failed(&self, state: &mut State, flying: Flying, fault: &Fault) {
        tracing::debug!(group = %self.name, %fault, "a commit failed and is tried again");
        if matches!(fault.code, Kafka::OffsetMetadataTooLarge) {
            tracing::warn!(group = %self.name, "the broker's `offset.metadata.max.bytes` is too small: only settles in order are kept");
            state.short_marks = true;
        }
        state.retry_at = Some(Instant::now() + COMMIT_PAUSE);
        for (key, epoch, _) in flying.shards {
            if let Some(shard) = state.shards.get_mut(&key).filter(|shard| shard.epoch == epoch) {
                shard.dirty = true;
            }
        }
    }

    /// The broker answered the commit of this.
    pub(super) fn commit_answered(&self, result: Result<(), Fault>, mut written: Vec<Written>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        written.sort_unstable();
        // An answer to a commit that was given up says nothing about the one on its way.
        let Some(flying) = state.flying.take_if(|flying| flying.written == written) else { return };
        match result {
            Ok(()) => {
                state.last_commit = Some(Instant::now());
                let mut started = false;
                for (key, epoch, asked) in flying.shards {
                    if let Some(shard) = state.shards.get_mut(&key).filter(|shard| shard.epoch == epoch) {
                        started |= shard.committed(flying.turn, asked);
                    }
                }
                self.trouble(state, CUT_OFF, false);
                if started {
                    self.bell.notify_one();
                }
            }
            Err(fault) => self.commit_failed(state, flying, &fault),
        }
        self.commit(state);
        drop(guard);
        self.settled.notify_waiters();
    }

    /// What is due by time; called by the member's thread.
    pub(super) fn tick(&self) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = Instant::now();
        if state.retry_at.is_some_and(|at| at <= now) {
            state.retry_at = None;
            self.commit(state);
        }
        if let Some(flying) = state.flying.take_if(|flying| now - flying.since > ANSWER) {
            self.commit_failed(state, flying, &Fault::new(Kafka::OperationTimedOut, "no answer to a commit in time"));
        }
        let last = *state.last_commit.get_or_insert(now);
        if state.shards.is_empty() {
            state.last_commit = Some(now);
        } else if now - last > SILENCE {
            drop(guard);
            self.die(Error::new(Code::ConnectionFailed, "no commit of this member was answered for a minute").reason("silent"));
        } else if now - last > SIGN_OF_LIFE && state.flying.is_none() {
            state.shards.values_mut().for_each(|shard| shard.dirty = true);
            self.commit(state);
        }
    }

    /// Signals and messages for `next`.
    pub(super) fn pull(&self, state: &mut State, max: usize, max_bytes: usize) -> Vec<Signal> {
        let mut out: Vec<Signal> = state.signals.drain(..).collect();
        let (mut left, mut bytes) = (max, max_bytes);
        let keys: Vec<Key> = if state.paused || max == 0 { Vec::new() } else { state.shards.keys().copied().collect() };
        let first = state.next_shard;
        state.next_shard = state.next_shard.wrapping_add(1);
        let mut dirty = false;
        for at in 0..keys.len() {
            if left == 0 || bytes == 0 {
                break;
            }
            let key = keys[(first + at) % keys.len()];
            let Some(shard) = state.shards.get_mut(&key) else { continue };
            let mut items = Vec::new();
            let mut turn = TURN.min(left);
            while turn > 0 && (bytes > 0) {
                match shard.next(turn, bytes) {
                    Ok(Some(ready)) => {
                        bytes = bytes.saturating_sub(ready.came.size());
                        (turn, left) = (turn - 1, left - 1);
                        items.push(hand_out(&mut state.held, key, ready));
                    }
                    Ok(None) => break,
                    Err(fault) if matches!(fault.code, Kafka::AutoOffsetReset | Kafka::OffsetOutOfRange) => {
                        shard.out_of_range = true;
                        self.poke.notify_one();
                        break;
                    }
                    Err(fault) if fault.is_missing_topic() => {
                        state.missed.get_or_insert_with(Instant::now);
                        break;
                    }
                    Err(fault) => {
                        tracing::debug!(group = %self.name, %fault, "a partition cannot be fetched");
                        state.dead = state.dead.take().or_else(|| deadly(&fault, false));
                        break;
                    }
                }
            }
            dirty |= shard.dirty;
            if !items.is_empty() {
                let (route, shard, epoch) = (key.0, key.1, shard.epoch);
                out.push(Signal::Deliveries { route, shard, epoch, items });
            }
        }
        if dirty {
            self.commit(state);
        }
        if !out.is_empty() {
            self.bell.notify_one();
        }
        out
    }

    /// A settle begins: its turn.
    pub(super) fn next_turn(&self, state: &mut State) -> u64 {
        state.turn += 1;
        state.turn
    }

    /// Sets a shard to an offset; what it handed out before settles nothing any more.
    pub(super) fn seek(&self, state: &mut State, key: Key, offset: i64, number: u64) -> Result<(), Fault> {
        let Some(consumer) = &state.consumer else { return Ok(()) };
        let partition = i32::try_from(key.1).unwrap_or(i32::MAX);
        // Without a wait: from here on nothing fetched before comes out of the queue.
        consumer.seek(&self.routes[key.0].name, partition, Offset::Offset(offset), Duration::ZERO)?;
        self.restart(state, key, offset, Some(number));
        Ok(())
    }

    /// A shard starts anew: after a wish of this number, or else since its position had expired.
    pub(super) fn restart(&self, state: &mut State, key: Key, offset: i64, wish: Option<u64>) {
        let Some(shard) = state.shards.get_mut(&key) else { return };
        shard.restart(offset, wish.unwrap_or(shard.seek), now_ms());
        let expired = wish.is_none();
        shard.expired = expired;
        let epoch = shard.epoch;
        forget(&mut state.held, &[key]);
        let (route, shard) = key;
        state.signals.push_back(Signal::Lost { route, shard });
        state.signals.push_back(Signal::Assigned { route, shard, epoch });
        if expired {
            self.trouble(state, EXPIRED, true);
        }
        self.commit(state);
        self.bell.notify_one();
    }

    /// Lets shards go: what they handed out is stale from now on.
    pub(super) fn drop_shards(&self, state: &mut State, keys: &[Key], say: impl Fn(&Key) -> bool) {
        for key in keys {
            if let Some(shard) = state.shards.remove(key) {
                shard.progress.lose();
                if say(key) {
                    state.signals.push_back(Signal::Lost { route: key.0, shard: key.1 });
                }
            }
        }
        forget(&mut state.held, keys);
        if !state.shards.values().any(|shard| shard.expired) {
            self.trouble(state, EXPIRED, false);
        }
        self.bell.notify_one();
        self.settled.notify_waiters();
    }

    /// Commits these shards and waits; says whether it holds. Called by the member's thread only.
    pub(super) fn commit_now(&self, consumer: &Consumer, keys: &[Key], clean: bool) {
        let mut list = TopicPartitionList::new();
        {
            let state = self.state.lock();
            for key in keys {
                if let Some(shard) = state.shards.get(key) {
                    let (offset, mark) = shard.to_commit(clean, !state.short_marks);
                    add(&mut list, &self.routes[key.0].name, key.1, offset, &mark.encode());
                }
            }
        }
        if list.count() == 0 {
            return;
        }
        match commit_and_wait(consumer, &list, Instant::now() + Duration::from_secs(3)) {
            Ok(()) => {
                let state = self.state.lock();
                keys.iter().filter_map(|key| state.shards.get(key)).for_each(|shard| shard.progress.commit(u64::MAX));
            }
            Err(fault) => tracing::debug!(group = %self.name, %fault, "the last commit of a shard failed: some messages come again"),
        }
    }
}

/// The position of a shard had expired.
pub(super) const EXPIRED: &str = "offsets_expired";
/// No broker answers.
pub(super) const CUT_OFF: &str = "reconnecting";
/// Partitions were added to an ordered topic.
pub(super) const SHARDS_CHANGED: &str = "shards_changed";

/// Commits and waits for the answer; tries again while that can help.
pub(super) fn commit_and_wait(consumer: &Consumer, list: &TopicPartitionList, deadline: Instant) -> Result<(), Fault> {
    let rk = Rk::new(consumer.client().native_ptr());
    patiently(deadline, || native::commit(rk, list, deadline.saturating_duration_since(Instant::now())))
}

/// Adds a partition with what is written beside its offset.
pub(super) fn add(list: &mut TopicPartitionList, topic: &str, shard: u32, offset: i64, metadata: &str) {
    let mut element = list.add_partition(topic, i32::try_from(shard).unwrap_or(i32::MAX));
    // Only an offset that is no number is refused.
    let _ = element.set_offset(Offset::Offset(offset));
    element.set_metadata(metadata);
}

/// Forgets what was handed out of these shards.
fn forget(held: &mut Slab<Held>, keys: &[Key]) {
    let gone: Vec<Token> = held.iter().filter(|(_, held)| keys.contains(&held.key)).map(|(token, _)| token).collect();
    for token in gone {
        held.remove(token);
    }
}

fn hand_out(held: &mut Slab<Held>, key: Key, ready: Ready) -> Delivery {
    let deliveries = ready.deliveries();
    let came = ready.came.clone();
    let token = held.insert(Held { key, ready });
    Delivery {
        token,
        position: crate::delivery::Position { shard: key.1, offset: u64::try_from(came.offset).unwrap_or(0) },
        id: came.id,
        key: came.key,
        payload: came.payload,
        headers: came.headers,
        deliveries,
        stored_at: came.stored_at,
        lease_end: None,
    }
}

/// Why a member is dead, by what librdkafka says; `None` if it goes on by itself.
pub(super) fn deadly(fault: &Fault, fatal: bool) -> Option<Error> {
    let deadly = matches!(
        fault.code,
        Kafka::Authentication
            | Kafka::SaslAuthenticationFailed
            | Kafka::GroupAuthorizationFailed
            | Kafka::TopicAuthorizationFailed
            | Kafka::PollExceeded
            | Kafka::InconsistentGroupProtocol
            | Kafka::InvalidSessionTimeout
            | Kafka::GroupMaxSizeReached
    );
    (fatal || deadly).then(|| error("the member cannot go on", fault))
}
