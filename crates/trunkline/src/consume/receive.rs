//! The receiving side: a subscription that is rebuilt when it dies, and what becomes of what it brings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consume::engine::Engine;
use crate::consume::lanes::{Lanes, Source, Work};
use crate::consume::settle::{Finished, Then};
use crate::consume::shared::{Appetite, Asked};
use crate::consume::state::Cause;
use crate::delivery::{Delivery, EnvelopeId};
use crate::error::{Code, Error, Result};
use crate::history::{Attempt, Step};
use crate::lot::ERASED;
use crate::message::{MessageId, header, now_ms};
use crate::policy::is_crash_loop;
use crate::provider::{Prefetch, Signal, Subscription, SubscriptionState};
use crate::store::LotState;

/// How long a receive waits when there is nothing; no answer for twice this long means the subscription is dead.
const WAIT: Duration = Duration::from_secs(5);
/// The pause before a lost subscription is rebuilt, growing from the first to the last.
pub(super) const REBUILD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The chains of a shard may hold so many messages; then the receive stops until they are shorter.
const CHAIN_MOST: u64 = 1_000;

/// Why nothing may be taken in hand.
#[derive(Debug)]
pub(super) enum Full {
    /// This consumer has its fill, or must not receive.
    Consumer,
    /// All consumers of the process together have theirs.
    Process,
}

impl Engine {
    /// Receives until closed; a subscription that is dead or silent is rebuilt.
    pub(super) async fn supervise(self: Arc<Self>, first: Arc<dyn Subscription>) {
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
            self.note(Cause::Reconnecting, true);
            self.health.provider(None);
            subscription = loop {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(REBUILD.1);
                match self.subscribe().await {
                    Ok(subscription) => break subscription,
                    // The provider has given up for good: it was closed, or may not try again.
                    Err(error) if error.code() == Code::Closed => {
                        tracing::warn!(%error, address = %self.filed.address, group = %self.group, "the consumer ends");
                        self.note(Cause::Closed, true);
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "subscribing again failed"),
                }
            };
            pause = REBUILD.0;
            self.note(Cause::Reconnecting, false);
        }
    }

    /// Receives from one subscription until the engine stops (`Ok`) or the subscription dies (`Err`).
    pub(super) async fn receive(self: &Arc<Self>, subscription: &Arc<dyn Subscription>) -> Result<()> {
        let generation = self.current().1;
        let mut paused = self.paused.subscribe();
        let mut appetite = Appetite::new();
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
            let blocked = self.options.ordered && {
                let lanes = self.lanes.lock();
                lanes.chains_full(CHAIN_MOST) || (self.options.never_wait && lanes.holds_only(self.options.prefetch.count))
            };
            if blocked != self.health.is(Cause::KeyBlocked) {
                self.note(Cause::KeyBlocked, blocked);
            }
            let (count, asked) = match self.room(appetite.bytes()) {
                Ok(room) if !blocked => room,
                full => {
                    tokio::select! {
                        () = self.space.notified() => {}
                        () = self.hand.freed(), if matches!(full, Err(Full::Process)) => {}
                        () = self.stop.cancelled() => return Ok(()),
                    }
                    continue;
                }
            };
            let signals = tokio::select! {
                signals = tokio::time::timeout(WAIT * 2, subscription.next(count, asked.bytes.max(1), WAIT)) => signals
                    .map_err(|_| Error::new(Code::Timeout, "the subscription gave no sign of life"))??,
                _ = paused.changed() => continue,
                () = self.stop.cancelled() => return Ok(()),
            };
            appetite.fed(signals.iter().map(size_of).sum());
            for signal in signals {
                self.take(subscription, generation, signal).await;
            }
            drop(asked);
        }
    }

    /// How many messages may still be taken in hand, and how many bytes of those that are wanted. Who has nothing in hand
    /// may take one message also while the process has no room left, so that no consumer can starve another.
    pub(super) fn room(&self, wanted: usize) -> Result<(usize, Asked), Full> {
        let lanes = self.lanes.lock();
        let Prefetch { count, bytes } = self.options.prefetch;
        let stopped = (lanes.breaker.is_open() && lanes.ready() > 0) || self.health.is(Cause::StoreDown);
        let taken = lanes.taken(count);
        if taken >= count || lanes.bytes >= bytes || stopped {
            return Err(Full::Consumer);
        }
        let asked = self.hand.ask(wanted.min(bytes - lanes.bytes));
        match asked.bytes {
            0 if lanes.count > 0 => Err(Full::Process),
            0 => Ok((1, asked)),
            _ => Ok((count - taken, asked)),
        }
    }

    pub(super) async fn take(self: &Arc<Self>, subscription: &Arc<dyn Subscription>, generation: u64, signal: Signal) {
        match signal {
            Signal::Deliveries { epoch, items, .. } => self.take_deliveries(items, epoch, generation).await,
            Signal::Assigned { shard, epoch, .. } => {
                {
                    let mut lanes = self.lanes.lock();
                    lanes.revoking.remove(&shard);
                    lanes.epochs.insert(shard, epoch);
                }
                if self.options.ordered && !self.options.never_wait {
                    self.load_chains(shard).await;
                }
            }
            // The other shards go on meanwhile.
            Signal::Revoking { route, shard, deadline } => {
                tokio::spawn(self.clone().revoke(subscription.clone(), route, shard, deadline));
            }
            Signal::Lost { shard, .. } => self.lose(Some(shard)),
            Signal::State(SubscriptionState::Live) => self.health.provider(None),
            Signal::State(SubscriptionState::Degraded(word)) => self.health.provider(Some(word)),
        }
    }

    pub(super) async fn take_deliveries(&self, items: Vec<Delivery>, epoch: u64, generation: u64) {
        let mut works: Vec<Work> = items.into_iter().map(|delivery| self.decode(delivery, epoch, generation)).collect();
        let mut finished = Vec::new();
        if let Some(dedupe) = &self.dedupe {
            let ids: Vec<MessageId> = works.iter().map(|work| work.id).collect();
            let seen = loop {
                match self.store.dedupe_seen(&dedupe.scope, &ids).await {
                    Ok(seen) => {
                        self.note(Cause::DedupeDown, false);
                        break seen;
                    }
                    Err(_) if dedupe.open_on_failure => break vec![false; ids.len()],
                    Err(error) => {
                        tracing::warn!(%error, "dedupe is closed while the store is down");
                        self.note(Cause::DedupeDown, true);
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
                lanes.come(known.shard, known.size);
            }
            for work in works {
                if let Some(reason) = self.unfit(&work) {
                    finished.push(self.bury_unhandled(&mut lanes, &work, reason));
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
    pub(super) fn unfit(&self, work: &Work) -> Option<&'static str> {
        if work.broken {
            return Some("broken_envelope");
        }
        // What comes from the broker may call itself what it likes; in the lot the word is ours.
        if matches!(work.source, Source::Lot(_)) && work.headers.get(header::ERASED).is_some() {
            return Some(ERASED);
        }
        if work.invalid.is_some() {
            return Some("payload_invalid");
        }
        is_crash_loop(&self.options.schedule, work.deliveries).then_some("crash_loop")
    }

    /// Takes it in hand for as long as it takes to bury it.
    pub(super) fn bury_unhandled(&self, lanes: &mut Lanes, work: &Work, reason: &'static str) -> Finished {
        lanes.come(work.position.shard, work.size);
        let entry = self.entry(work, LotState::Dead, now_ms(), work.attempts, Some(reason.into()), work.invalid.clone());
        Finished::of(work, Then::Lot(Box::new(entry)), Some(unhandled(work, reason)), false)
    }

    pub(super) fn decode(&self, delivery: Delivery, epoch: u64, generation: u64) -> Work {
        let size = delivery.size();
        let headers = delivery.headers;
        let id = match delivery.id {
            EnvelopeId::Id(id) => id,
            EnvelopeId::Foreign | EnvelopeId::Broken => {
                let (shard, offset) = (delivery.position.shard.to_le_bytes(), delivery.position.offset.to_le_bytes());
                MessageId::derived(delivery.stored_at, &[self.topic.name.as_bytes(), &shard, &offset])
            }
        };
        let expires_at = if headers.is_empty() { None } else { headers.get_str(header::EXPIRES_AT).and_then(|text| text.parse().ok()) };
        Work {
            source: Source::Broker(delivery.token, generation),
            id,
            broken: delivery.id == EnvelopeId::Broken,
            invalid: self.payloads.unfit(delivery.payload.as_deref().unwrap_or_default()),
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
}

/// The bytes that a signal brings.
fn size_of(signal: &Signal) -> usize {
    if let Signal::Deliveries { items, .. } = signal { items.iter().map(Delivery::size).sum() } else { 0 }
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

/// The lane of a key: messages of one key meet in one lane.
pub(crate) fn lane_of(key: &[u8]) -> u64 {
    // SQLite keeps 63 bits without a sign.
    xxhash_rust::xxh3::xxh3_64(key) >> 1
}
