//! One member of a model's group.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use trunkline::capability::DeliveryCount;
use trunkline::delivery::{Deliveries, Delivery, EnvelopeId, Settle, Settled, Token};
use trunkline::provider::{GroupSpec, Signal, Subscription, TopicSpec};
use trunkline::{Code, Error, Result};

use super::group::{Group, HandOut, MemberId, Notice};
use super::{Shared, Topic, Traits};

static IDS: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(super) struct ModelSubscription {
    id: MemberId,
    shared: Arc<Shared>,
    routes: Vec<Arc<str>>,
    group: Arc<str>,
    traits: Traits,
    connection_closed: Arc<AtomicBool>,
    closed: AtomicBool,
    paused: AtomicBool,
    held: Mutex<HashMap<Token, (usize, HandOut)>>,
}

impl ModelSubscription {
    /// Nothing is buffered here, so every prefetch is kept.
    pub(super) fn new(
        shared: Arc<Shared>,
        routes: &[TopicSpec],
        group: &GroupSpec,
        traits: Traits,
        connection_closed: Arc<AtomicBool>,
    ) -> Self {
        ModelSubscription {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            shared,
            routes: routes.iter().map(|route| Arc::clone(&route.name)).collect(),
            group: Arc::clone(&group.name),
            traits,
            connection_closed,
            closed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> MemberId {
        self.id
    }

    fn with<T>(&self, route: usize, f: impl FnOnce(&mut Group, &[u64]) -> T) -> Option<T> {
        let mut topics = self.shared.topics.lock();
        let topic = topics.get_mut(self.routes.get(route)?)?;
        let ends = topic.ends();
        Some(f(topic.groups.get_mut(&self.group)?, &ends))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) || self.connection_closed.load(Ordering::Relaxed)
    }

    /// What there is now, and when there may be more without anybody's doing.
    fn look(&self, max: usize, max_bytes: usize) -> (Vec<Signal>, Option<Instant>) {
        let (mut signals, mut alarm, mut room, mut bytes) = (Vec::new(), None::<Instant>, max, 0);
        let mut topics = self.shared.topics.lock();
        for (route, name) in self.routes.iter().enumerate() {
            let Some(Topic { shards, groups, .. }) = topics.get_mut(name) else { continue };
            let Some(group) = groups.get_mut(&self.group) else { continue };
            let ends: Vec<_> = shards.iter().map(|shard| shard.len() as u64).collect();
            for notice in group.notices(self.id) {
                signals.push(match notice {
                    Notice::Assigned(shard, epoch) => Signal::Assigned { route, shard, epoch },
                    Notice::Revoking(shard, deadline) => Signal::Revoking { route, shard, deadline },
                    Notice::Lost(shard) => Signal::Lost { route, shard },
                });
            }
            while room > 0 && bytes < max_bytes && !self.paused.load(Ordering::Relaxed) {
                let Some(out) = group.hand_out(self.id, &ends) else { break };
                let (message, stored_at) = &shards[out.position.shard as usize][out.position.offset as usize];
                let token = Token(IDS.fetch_add(1, Ordering::Relaxed));
                self.held.lock().insert(token, (route, out));
                let delivery = Delivery {
                    token,
                    position: out.position,
                    id: EnvelopeId::Id(message.id),
                    key: message.key.clone(),
                    payload: Some(message.payload.clone()),
                    headers: message.headers.clone(),
                    deliveries: match self.traits.count {
                        DeliveryCount::Exact => Deliveries::Exact(out.count),
                        DeliveryCount::UpperBound => Deliveries::UpperBound(out.count),
                        DeliveryCount::Unknown => Deliveries::Unknown,
                    },
                    stored_at: *stored_at,
                    lease_end: None,
                };
                (room, bytes) = (room - 1, bytes + delivery.size());
                signals.push(Signal::Deliveries { route, shard: out.position.shard, epoch: out.epoch, items: vec![delivery] });
            }
            alarm = alarm.into_iter().chain(group.alarm()).min();
        }
        (signals, alarm)
    }

    fn settle_one(&self, token: Token, how: Settle) -> Settled {
        let held = self.held.lock().get(&token).copied();
        let Some((route, out)) = held else { return Settled::Stale };
        let settled = self.with(route, |group, _| {
            if !group.holds(self.id, &out) {
                return Settled::Stale;
            }
            match how {
                Settle::Done => group.done(out.position),
                Settle::Retry { after, .. } if after.as_millis() > u128::from(self.traits.delay_ms) => return Settled::Unknown,
                Settle::Retry { after, counted } => group.again(out.position, after, counted),
                Settle::Release => group.again(out.position, Duration::ZERO, !self.traits.release_uncounted),
            }
            Settled::Settled
        });
        let settled = settled.unwrap_or(Settled::Stale);
        if settled != Settled::Unknown {
            self.held.lock().remove(&token);
        }
        settled
    }

    fn leave(&self, counted: bool) {
        self.closed.store(true, Ordering::Relaxed);
        for route in 0..self.routes.len() {
            self.with(route, |group, _| group.leave(self.id, counted));
        }
        self.shared.changed.notify_waiters();
    }
}

impl Drop for ModelSubscription {
    fn drop(&mut self) {
        self.leave(true);
    }
}

#[async_trait]
impl Subscription for ModelSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let end = Instant::now() + wait;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_closed() {
                return Err(Error::new(Code::Closed, "the subscription is closed"));
            }
            let (signals, alarm) = self.look(max, max_bytes);
            if !signals.is_empty() || Instant::now() >= end {
                return Ok(signals);
            }
            // An alarm that is due and not ours to serve must not spin.
            let until = alarm.map_or(end, |alarm| alarm.max(Instant::now() + Duration::from_millis(5)).min(end));
            let _ = tokio::time::timeout_at(until.into(), changed).await;
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let answers = items.iter().map(|(token, how)| self.settle_one(*token, *how)).collect();
        self.shared.changed.notify_waiters();
        answers
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        let held = self.held.lock().clone();
        let holds = |(route, out): &(usize, HandOut)| self.with(*route, |group, _| group.holds(self.id, out)) == Some(true);
        tokens.iter().map(|token| held.get(token).is_some_and(holds)).collect()
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        self.with(route, |group, _| group.yielded(self.id, shard));
        self.shared.changed.notify_waiters();
    }

    async fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    async fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
        self.shared.changed.notify_waiters();
    }

    async fn close(&self, _deadline: Instant) {
        self.leave(!self.traits.release_uncounted);
    }
}
