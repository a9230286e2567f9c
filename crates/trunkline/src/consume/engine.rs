//! One consumer: its subscription, what it has in hand, its workers, and the tasks that end with it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::consume::handler::Handler;
use crate::consume::lanes::{Lanes, Source, Work};
use crate::consume::settle::{Finished, Then};
use crate::consume::state::State;
use crate::delivery::{Delivery, EnvelopeId};
use crate::error::{Code, Error, Result};
use crate::history::Recorder;
use crate::history::{Attempt, Filed, Step};
use crate::lot::{Lot, LotFeed};
use crate::message::{MessageId, header, now_ms};
use crate::policy::{Schedule, is_crash_loop};
use crate::provider::{GroupSpec, Prefetch, Provider, Signal, SubscribeOptions, Subscription, SubscriptionState, TopicSpec};
use crate::store::{LotEntry, LotSettle, LotState, Store};

/// How long a receive waits when there is nothing; no answer for twice this long means the subscription is dead.
const WAIT: Duration = Duration::from_secs(5);
/// The pause before a lost subscription is rebuilt, growing from the first to the last.
const REBUILD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The chains of a shard may hold so many messages; then the receive stops until they are shorter.
const CHAIN_MOST: u64 = 1_000;

/// How a consumer works. Defaults are the documented ones.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) concurrency: usize,
    pub(crate) schedule: Schedule,
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
    pub(crate) breaker: bool,
    pub(crate) ordered: bool,
    pub(crate) prefetch: Prefetch,
    pub(crate) waits_per_second: f64,
    pub(crate) rate: Option<f64>,
}

/// Which ids were handled before are passed over.
#[derive(Debug, Clone)]
pub(crate) struct Dedupe {
    pub(crate) scope: String,
    pub(crate) window: Duration,
    pub(crate) open_on_failure: bool,
}

/// Also sends dead letters to a topic of the user's.
pub(crate) type DeadLetterCopy = Arc<dyn Fn(Vec<LotEntry>) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Who has paused the consumer.
#[derive(Debug, Clone, Copy)]
struct Paused {
    owner: bool,
    group: bool,
}

impl Paused {
    fn any(self) -> bool {
        self.owner || self.group
    }
}

/// All that an engine is made of.
pub(crate) struct Parts {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) topic: TopicSpec,
    pub(crate) group_spec: GroupSpec,
    pub(crate) group: Arc<str>,
    pub(crate) member: Arc<str>,
    pub(crate) filed: Arc<Filed>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lot: Arc<dyn Lot>,
    pub(crate) recorder: Recorder,
    pub(crate) dedupe: Option<Dedupe>,
    pub(crate) dead_letter_copy: Option<DeadLetterCopy>,
    pub(crate) route_epoch: u64,
    /// Whether its group is paused: then nothing is received before it is resumed.
    pub(crate) paused: bool,
    pub(crate) options: Options,
}

/// See the module.
pub(crate) struct Engine {
    provider: Arc<dyn Provider>,
    topic: TopicSpec,
    group_spec: GroupSpec,
    pub(crate) group: Arc<str>,
    pub(crate) member: Arc<str>,
    pub(crate) filed: Arc<Filed>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lot: Arc<dyn Lot>,
    pub(crate) recorder: Recorder,
    pub(crate) dedupe: Option<Dedupe>,
    pub(crate) dead_letter_copy: Option<DeadLetterCopy>,
    pub(crate) route_epoch: u64,
    pub(crate) pulse: crate::background::Pulse,
    pub(crate) options: Options,
    pub(crate) lanes: Mutex<Lanes>,
    pub(crate) work: Notify,
    pub(crate) finished: Mutex<Vec<Finished>>,
    pub(crate) finished_some: Notify,
    pub(crate) held_some: Notify,
    pub(crate) space: Notify,
    pub(crate) feed: Mutex<Option<Arc<dyn LotFeed>>>,
    subscription: Mutex<(Option<Arc<dyn Subscription>>, u64)>,
    running: Mutex<Vec<Option<(u32, CancellationToken)>>>,
    pub(crate) next_wait: Mutex<tokio::time::Instant>,
    pub(crate) settled: AtomicU64,
    pub(crate) store_down: AtomicBool,
    pub(crate) stuck: AtomicBool,
    /// The chains of a shard are full.
    blocked: AtomicBool,
    /// Told when messages have left the hand, for a shard that is being given up.
    pub(crate) drained: Notify,
    /// By the consumer's owner, and by the catalogue for the whole group.
    paused: watch::Sender<Paused>,
    state: watch::Sender<State>,
    /// Stop receiving and starting.
    stop: CancellationToken,
    /// The deadline of the close has passed.
    pub(crate) give_up: CancellationToken,
    pub(crate) settle_end: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("address", &self.filed.address).field("group", &self.group).finish_non_exhaustive()
    }
}

impl Engine {
    /// Subscribes and starts working. Live when it returns.
    pub(crate) async fn start<H: Handler>(parts: Parts, handler: H) -> Result<Arc<Engine>> {
        let Parts {
            provider,
            topic,
            group_spec,
            group,
            member,
            filed,
            store,
            lot,
            recorder,
            dedupe,
            dead_letter_copy,
            route_epoch,
            paused,
            options,
        } = parts;
        let concurrency = options.concurrency.max(1);
        let engine = Arc::new(Engine {
            lanes: Mutex::new(Lanes::new(concurrency, options.rate, Breaker::new(options.breaker))),
            provider,
            topic,
            group_spec,
            group,
            member,
            filed,
            store,
            lot,
            recorder,
            dedupe,
            dead_letter_copy,
            route_epoch,
            pulse: crate::background::Pulse::default(),
            options,
            work: Notify::new(),
            finished: Mutex::new(Vec::new()),
            finished_some: Notify::new(),
            held_some: Notify::new(),
            space: Notify::new(),
            feed: Mutex::new(None),
            subscription: Mutex::new((None, 0)),
            running: Mutex::new((0..concurrency).map(|_| None).collect()),
            next_wait: Mutex::new(tokio::time::Instant::now()),
            settled: AtomicU64::new(0),
            store_down: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            drained: Notify::new(),
            paused: watch::Sender::new(Paused { owner: false, group: paused }),
            state: watch::Sender::new(State::Connecting),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            settle_end: CancellationToken::new(),
            tasks: Mutex::new(Vec::new()),
        });
        let feed = engine.lot.feed(engine.member.clone()).await?;
        *engine.feed.lock() = Some(feed.clone());
        let first = match engine.subscribe().await {
            Ok(subscription) => subscription,
            Err(error) => {
                feed.close().await;
                return Err(error);
            }
        };
        engine.set_state(State::Live);
        let handler = Arc::new(handler);
        let mut tasks = vec![
            tokio::spawn(engine.clone().supervise(first)),
            tokio::spawn(engine.clone().wake_held()),
            tokio::spawn(engine.clone().feed_due(feed)),
            tokio::spawn(engine.clone().settle_all()),
        ];
        tasks.extend((0..concurrency).map(|slot| tokio::spawn(engine.clone().work(slot, handler.clone()))));
        *engine.tasks.lock() = tasks;
        Ok(engine)
    }

    async fn subscribe(&self) -> Result<Arc<dyn Subscription>> {
        self.provider.ensure(&self.topic, std::slice::from_ref(&self.group_spec)).await?;
        let options = SubscribeOptions { member: self.member.clone(), prefetch: self.options.prefetch };
        let subscription = self.provider.subscribe(std::slice::from_ref(&self.topic), &self.group_spec, options).await?;
        let mut current = self.subscription.lock();
        *current = (Some(subscription.clone()), current.1 + 1);
        Ok(subscription)
    }

    /// The live subscription and its generation.
    pub(crate) fn current(&self) -> (Option<Arc<dyn Subscription>>, u64) {
        self.subscription.lock().clone()
    }

    pub(crate) fn set_running(&self, slot: usize, what: Option<(u32, CancellationToken)>) {
        self.running.lock()[slot] = what;
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.send_if_modified(|now| {
            let changed = *now != state && *now != State::Closed;
            if changed {
                tracing::info!(address = %self.filed.address, group = %self.group, state = %state.text(), "consumer");
                *now = state;
            }
            changed
        });
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.lanes.lock().count
    }

    /// Takes over what finished; the settler sees it at once.
    pub(crate) fn hand_over(&self, mut finished: Vec<Finished>) {
        if finished.is_empty() {
            return;
        }
        let first = {
            let mut queue = self.finished.lock();
            let first = queue.is_empty();
            queue.append(&mut finished);
            first
        };
        if first {
            self.finished_some.notify_one();
        }
    }

    // ------------------------------------------------------------------------------------------ receiving

    /// Receives until closed; a subscription that is dead or silent is rebuilt.
    async fn supervise(self: Arc<Self>, first: Arc<dyn Subscription>) {
        let mut subscription = first;
        let mut pause = REBUILD.0;
        loop {
            let error = match self.receive(&subscription).await {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(%error, address = %self.filed.address, group = %self.group, "the subscription is rebuilt");
            self.lose(None);
            let started = Instant::now();
            let _ = tokio::time::timeout(REBUILD.1, subscription.close(started + REBUILD.1)).await;
            self.set_state(State::Degraded("reconnecting"));
            subscription = loop {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(REBUILD.1);
                match self.subscribe().await {
                    Ok(subscription) => break subscription,
                    Err(error) => tracing::warn!(%error, "subscribing again failed"),
                }
            };
            pause = REBUILD.0;
            self.set_state(State::Live);
        }
    }

    /// Receives from one subscription until the engine stops (`Ok`) or the subscription dies (`Err`).
    async fn receive(self: &Arc<Self>, subscription: &Arc<dyn Subscription>) -> Result<()> {
        let generation = self.current().1;
        let mut paused = self.paused.subscribe();
        loop {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if paused.borrow_and_update().any() {
                subscription.pause().await;
                tokio::select! {
                    _ = async { paused.wait_for(|paused| !paused.any()).await.map(drop) } => {}
                    () = self.stop.cancelled() => return Ok(()),
                }
                subscription.resume().await;
                continue;
            }
            let blocked = self.options.ordered && self.lanes.lock().chains_full(CHAIN_MOST);
            if self.blocked.swap(blocked, Ordering::Relaxed) != blocked {
                self.set_state(if blocked { State::Degraded("key_blocked") } else { State::Live });
            }
            let room = self.room().filter(|_| !blocked);
            let Some((count, bytes)) = room else {
                tokio::select! {
                    () = self.space.notified() => {}
                    () = self.stop.cancelled() => return Ok(()),
                }
                continue;
            };
            let signals = tokio::select! {
                signals = tokio::time::timeout(WAIT * 2, subscription.next(count, bytes, WAIT)) => signals
                    .map_err(|_| Error::new(Code::Timeout, "the subscription gave no sign of life"))??,
                _ = paused.changed() => continue,
                () = self.stop.cancelled() => return Ok(()),
            };
            for signal in signals {
                self.take(subscription, generation, signal).await;
            }
        }
    }

    /// How many messages and bytes may still be taken in hand; `None` while nothing may be.
    fn room(&self) -> Option<(usize, usize)> {
        let lanes = self.lanes.lock();
        let Prefetch { count, bytes } = self.options.prefetch;
        let stopped = (lanes.breaker.is_open() && lanes.ready() > 0) || self.store_down.load(Ordering::Relaxed);
        (lanes.count < count && lanes.bytes < bytes && !stopped).then(|| (count - lanes.count, bytes - lanes.bytes))
    }

    async fn take(self: &Arc<Self>, subscription: &Arc<dyn Subscription>, generation: u64, signal: Signal) {
        match signal {
            Signal::Deliveries { epoch, items, .. } => self.take_deliveries(items, epoch, generation).await,
            Signal::Assigned { shard, epoch, .. } => {
                {
                    let mut lanes = self.lanes.lock();
                    lanes.revoking.remove(&shard);
                    lanes.epochs.insert(shard, epoch);
                }
                if self.options.ordered {
                    self.load_chains(shard).await;
                }
            }
            // The other shards go on meanwhile.
            Signal::Revoking { route, shard, deadline } => {
                tokio::spawn(self.clone().revoke(subscription.clone(), route, shard, deadline));
            }
            Signal::Lost { shard, .. } => self.lose(Some(shard)),
            Signal::State(SubscriptionState::Live) => self.set_state(State::Live),
            Signal::State(SubscriptionState::Degraded(reason)) => self.set_state(State::Degraded(reason)),
        }
    }

    async fn take_deliveries(&self, items: Vec<Delivery>, epoch: u64, generation: u64) {
        let mut works: Vec<Work> = items.into_iter().map(|delivery| self.decode(delivery, epoch, generation)).collect();
        let mut finished = Vec::new();
        if let Some(dedupe) = &self.dedupe {
            let ids: Vec<MessageId> = works.iter().map(|work| work.id).collect();
            let seen = loop {
                match self.store.dedupe_seen(&dedupe.scope, &ids).await {
                    Ok(seen) => break seen,
                    Err(_) if dedupe.open_on_failure => break vec![false; ids.len()],
                    Err(error) => {
                        tracing::warn!(%error, "dedupe is closed while the store is down");
                        tokio::select! {
                            () = tokio::time::sleep(Duration::from_millis(500)) => {}
                            () = self.stop.cancelled() => return,
                        }
                    }
                }
            };
            let mut seen = seen.into_iter();
            works.retain(|work| {
                let handled = seen.next().unwrap_or(false);
                if handled {
                    finished.push(Finished::of(work, Then::Done, None, false));
                }
                !handled
            });
        }
        {
            let mut lanes = self.lanes.lock();
            // They were handled before: in hand only until the ack.
            for known in &finished {
                lanes.count += 1;
                lanes.bytes += known.size;
                *lanes.by_shard.entry(known.shard).or_default() += 1;
            }
            for work in works {
                if let Some(reason) = self.unfit(&work) {
                    lanes.count += 1;
                    lanes.bytes += work.size;
                    *lanes.by_shard.entry(work.position.shard).or_default() += 1;
                    let entry = self.entry(&work, LotState::Dead, self.store.now(), work.attempts, Some(reason.into()), None);
                    finished.push(Finished::of(&work, Then::Lot(Box::new(entry)), Some(unhandled(&work, reason)), false));
                } else if let Some(behind) = lanes.admit(work) {
                    finished.push(self.behind(&behind));
                }
            }
            let wake = lanes.ready().min(lanes.idle).min(2);
            drop(lanes);
            // Each worker that finds more wakes the next.
            for _ in 0..wake {
                self.work.notify_one();
            }
        }
        self.hand_over(finished);
    }

    /// Why a message must be buried without being handled.
    fn unfit(&self, work: &Work) -> Option<&'static str> {
        if work.headers.get(BROKEN).is_some() {
            return Some("broken_envelope");
        }
        is_crash_loop(&self.options.schedule, work.deliveries).then_some("crash_loop")
    }

    fn decode(&self, delivery: Delivery, epoch: u64, generation: u64) -> Work {
        let size = delivery.size();
        let mut headers = delivery.headers;
        let id = match delivery.id {
            EnvelopeId::Id(id) => id,
            EnvelopeId::Foreign | EnvelopeId::Broken => {
                if delivery.id == EnvelopeId::Broken {
                    headers.push(BROKEN, &b"1"[..]);
                }
                let (shard, offset) = (delivery.position.shard.to_le_bytes(), delivery.position.offset.to_le_bytes());
                MessageId::derived(delivery.stored_at, &[self.topic.name.as_bytes(), &shard, &offset])
            }
        };
        let expires_at = if headers.is_empty() { None } else { headers.get_str(header::EXPIRES_AT).and_then(|text| text.parse().ok()) };
        Work {
            source: Source::Broker(delivery.token, generation),
            id,
            position: delivery.position,
            epoch,
            lane: match &delivery.key {
                Some(key) if self.options.ordered => Some(lane_of(key)),
                _ => None,
            },
            key: delivery.key,
            headers,
            payload: delivery.payload.unwrap_or_default(),
            attempts: 0,
            deliveries: delivery.deliveries,
            produced_at: delivery.stored_at,
            expires_at,
            size,
            first: true,
        }
    }

    // --------------------------------------------------------------------------------- shards that come and go

    async fn load_chains(&self, shard: u32) {
        let mut pause = REBUILD.0;
        loop {
            match self.lot.chains(shard).await {
                Ok((chains, bytes)) => {
                    tracing::debug!(shard, keys = chains.len(), bytes, "chains loaded");
                    self.lanes.lock().set_chains(shard, chains);
                    return;
                }
                // Without the chains the shard's messages would overtake those that wait.
                Err(error) => tracing::warn!(%error, shard, "the chains of a shard cannot be loaded"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(REBUILD.1),
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn revoke(self: Arc<Self>, subscription: Arc<dyn Subscription>, route: usize, shard: u32, deadline: Instant) {
        let waiting = {
            let mut lanes = self.lanes.lock();
            lanes.revoking.insert(shard);
            lanes.take_waiting(Some(shard))
        };
        let released = waiting.iter().map(|work| Finished::of(work, Then::Release, None, false)).collect();
        self.hand_over(released);
        let drained = async {
            loop {
                let left = self.drained.notified();
                if !self.lanes.lock().by_shard.contains_key(&shard) {
                    return;
                }
                left.await;
            }
        };
        let _ = tokio::time::timeout_at(deadline.into(), drained).await;
        self.lanes.lock().drop_shard(shard);
        subscription.yield_shard(route, shard).await;
    }

    /// A shard (or all) is gone: what has not started is dropped, what runs is told to stop.
    fn lose(&self, shard: Option<u32>) {
        let mut released = Vec::new();
        let mut lanes = self.lanes.lock();
        for work in lanes.take_waiting(shard) {
            match work.source {
                Source::Broker(..) => lanes.gone(work.position.shard, work.size),
                // The lot's are not the broker's to take: they go back to the lot.
                Source::Lot(_) => released.push(Finished::of(&work, Then::Release, None, false)),
            }
        }
        match shard {
            Some(shard) => lanes.drop_shard(shard),
            None => lanes.all_shards().into_iter().for_each(|shard| lanes.drop_shard(shard)),
        }
        drop(lanes);
        for (of, token) in self.running.lock().iter().flatten() {
            if shard.is_none_or(|shard| shard == *of) {
                token.cancel();
            }
        }
        self.hand_over(released);
        self.space.notify_one();
    }

    // ------------------------------------------------------------------------------------- held and waiting

    async fn wake_held(self: Arc<Self>) {
        loop {
            let (next, wake) = {
                let mut lanes = self.lanes.lock();
                let before = lanes.ready();
                let next = lanes.wake(Instant::now());
                (next, lanes.ready().saturating_sub(before).min(lanes.idle))
            };
            for _ in 0..wake {
                self.work.notify_one();
            }
            let until = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.held_some.notified() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Hands over what is due in the lot.
    async fn feed_due(self: Arc<Self>, feed: Arc<dyn LotFeed>) {
        let mut pause = REBUILD.0;
        while !self.stop.is_cancelled() {
            let Some((room, _)) = self.room() else {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                    () = self.stop.cancelled() => return,
                }
                continue;
            };
            let shards = self.options.ordered.then(|| self.lanes.lock().owned());
            let most = room.min(self.options.concurrency.max(16) * 4);
            let due = tokio::select! {
                due = feed.next(most, shards.as_deref(), Duration::from_millis(500)) => due,
                () = self.stop.cancelled() => return,
            };
            match due {
                Ok(due) if due.is_empty() => {
                    pause = REBUILD.0;
                    self.reconcile_chains().await;
                }
                Ok(due) => self.take_due(&feed, due).await,
                Err(error) => {
                    tracing::warn!(%error, group = %self.group, "the lot cannot be read");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(REBUILD.1),
                        () = self.stop.cancelled() => return,
                    }
                }
            }
        }
    }

    async fn take_due(&self, feed: &Arc<dyn LotFeed>, due: Vec<(u64, LotEntry)>) {
        let not_ours = self.admit_due(due);
        if !not_ours.is_empty()
            && let Err(error) = feed.settle(not_ours).await
        {
            tracing::debug!(%error, "claims of chains that moved run out by themselves");
        }
    }

    /// Takes what is due in hand; what is no longer this member's to run is returned.
    fn admit_due(&self, due: Vec<(u64, LotEntry)>) -> Vec<(u64, LotSettle)> {
        let mut not_ours = Vec::new();
        let mut lanes = self.lanes.lock();
        for (handle, entry) in due {
            // The shard went to another member while its chain was being claimed.
            if entry.chain.is_some() && self.options.ordered && !lanes.owns(entry.message.position.shard) {
                not_ours.push((handle, LotSettle::Release));
                continue;
            }
            let message = entry.message;
            let size = message.payload.len() + message.headers.size() + 64;
            let epoch = lanes.epochs.get(&message.position.shard).copied().unwrap_or(0);
            lanes.admit(Work {
                source: Source::Lot(handle),
                id: message.id,
                position: message.position,
                epoch,
                lane: entry.chain,
                key: message.key,
                expires_at: message.headers.get_str(header::EXPIRES_AT).and_then(|text| text.parse().ok()),
                headers: message.headers,
                payload: message.payload,
                attempts: entry.attempts,
                deliveries: crate::delivery::Deliveries::Unknown,
                produced_at: message.produced_at,
                size,
                first: entry.attempts == 0,
            });
        }
        let wake = lanes.ready().min(lanes.idle).min(2);
        drop(lanes);
        for _ in 0..wake {
            self.work.notify_one();
        }
        not_ours
    }

    /// A message that was in the lot already when it came again was counted twice: the lot's own count decides.
    async fn reconcile_chains(&self) {
        let quiet = |engine: &Engine| engine.finished.lock().is_empty() && engine.lanes.lock().count == 0;
        let chained = self.lanes.lock().chained();
        for shard in chained {
            if !quiet(self) {
                return;
            }
            if let Ok((chains, _)) = self.lot.chains(shard).await
                && quiet(self)
            {
                self.lanes.lock().set_chains(shard, chains);
            }
        }
    }

    // ---------------------------------------------------------------------------------------------- closing

    pub(crate) fn pause_by_owner(&self, paused: bool) {
        self.paused.send_if_modified(|now| std::mem::replace(&mut now.owner, paused) != paused);
    }

    pub(crate) fn pause_by_group(&self, paused: bool) {
        self.paused.send_if_modified(|now| std::mem::replace(&mut now.group, paused) != paused);
    }

    /// Stops receiving, lets what runs finish until the deadline, gives back the rest, settles, leaves the group.
    pub(crate) async fn close(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.stop.cancel();
        let waiting = {
            let mut lanes = self.lanes.lock();
            lanes.closing = true;
            lanes.take_waiting(None)
        };
        self.hand_over(waiting.iter().map(|work| Finished::of(work, Then::Release, None, false)).collect());
        self.work.notify_waiters();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        if tasks.is_empty() {
            return;
        }
        let settler = tasks.remove(3);
        let all = async {
            for task in &mut tasks {
                // A worker notices the close when its handler returns; one that just went idle needs another word.
                while !task.is_finished() {
                    self.work.notify_waiters();
                    let _ = tokio::time::timeout(Duration::from_millis(20), &mut *task).await;
                }
            }
        };
        if tokio::time::timeout_at(deadline.into(), all).await.is_err() {
            self.give_up.cancel();
            for (_, token) in self.running.lock().iter().flatten() {
                token.cancel();
            }
            // Handlers that listen return now; the others are ended, their messages are handed out again.
            let _ = tokio::time::timeout(Duration::from_millis(500), async {
                for task in &mut tasks {
                    if !task.is_finished() {
                        let _ = (&mut *task).await;
                    }
                }
            })
            .await;
            tasks.iter().for_each(JoinHandle::abort);
        }
        // Held retries that a worker put back while it closed.
        let late = self.lanes.lock().take_waiting(None);
        self.hand_over(late.iter().map(|work| Finished::of(work, Then::Release, None, false)).collect());
        self.settle_end.cancel();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let mut settler = settler;
        if tokio::time::timeout(left, &mut settler).await.is_err() {
            self.give_up.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut settler).await;
            settler.abort();
        }
        let feed = self.feed.lock().take();
        if let Some(feed) = feed {
            feed.close().await;
        }
        let subscription = self.subscription.lock().0.take();
        if let Some(subscription) = subscription {
            subscription.close(Instant::now() + left.min(Duration::from_secs(5))).await;
        }
        self.set_state(State::Closed);
    }
}

impl Engine {
    /// Stops at once: nothing is settled any more, what is in hand is handed out again when its lease ends.
    pub(crate) fn abandon(&self) {
        self.stop.cancel();
        self.give_up.cancel();
        self.settle_end.cancel();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.set_state(State::Closed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for task in self.tasks.lock().iter() {
            task.abort();
        }
    }
}

/// The record of a burial that no handler saw.
fn unhandled(work: &Work, reason: &str) -> Attempt {
    Attempt {
        id: work.id,
        produced_at: work.produced_at,
        step: Step::Dead,
        attempts: work.attempts,
        started_at: now_ms(),
        wait_us: 0,
        run_us: 0,
        error: Some(reason.into()),
        key: work.key.clone(),
        position: work.position,
    }
}

/// Marks a message whose envelope cannot be read, inside the process only.
const BROKEN: &str = "trunkline-broken";

/// The lane of a key: messages of one key meet in one lane.
pub(crate) fn lane_of(key: &[u8]) -> u64 {
    // SQLite keeps 63 bits without a sign.
    xxhash_rust::xxh3::xxh3_64(key) >> 1
}
