//! The lot as topics on the broker, where a local file must not be the only place of a message.
//!
//! Waiting messages lie in tiers: topics whose messages all wait about equally long, so that the one at the front is
//! (nearly) the first one due. A message goes to the largest tier not above what remains of its wait, carries when it is
//! due, and is filed again from tier to tier until then; it comes back at most ten seconds late. Dead letters go to a topic
//! of their own, which every host reads into the index in its store (`index.rs`).
//!
//! The counts of a broker say how often a message was received, not how often it was handled: a message may lie in hand
//! for hours before it is due. So the store of the host counts what is about to be handled.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::delivery::{Delivery, EnvelopeId, Position, Settle, Token};
use crate::error::{Code, Error, Result};
use crate::lot::store::StoreLot;
use crate::lot::{Lot, LotFeed, LotHandle};
use crate::message::{Headers, MessageId, Millis, header, now_ms};
use crate::provider::{GroupSpec, Outgoing, Prefetch, Provider, Remove, Signal, Start, SubscribeOptions, Subscription, TopicSpec};
use crate::store::{Address, LotEntry, LotMessage, LotSettle, LotState, Store};

/// The tiers, smallest first: name and nominal wait in ms.
pub const TIERS: [(&str, Millis); 4] = [("10s", 10_000), ("1m", 60_000), ("10m", 600_000), ("1h", 3_600_000)];
/// What a tier hands over before it is due stays in hand, at most this many.
const PREFETCH: Prefetch = Prefetch { count: 256, bytes: 8 << 20 };
/// What was handed over so often without an outcome goes out alone, as the store has it.
const SUSPECT: u32 = 2;
/// Where the original lay: `shard/offset`.
const ORIGIN: &str = "trunkline-origin";

/// The tier for a wait of this long: the largest not above it, else the smallest.
#[must_use]
pub fn tier(wait: Millis) -> usize {
    TIERS.iter().rposition(|(_, nominal)| *nominal <= wait).unwrap_or(0)
}

/// See the module.
#[derive(Debug, Clone)]
pub struct TopicLot {
    pub(super) provider: Arc<dyn Provider>,
    tiers: Vec<TopicSpec>,
    pub(super) dead: TopicSpec,
    pub(super) address: Address,
    /// What its entries are filed under: the group, or nothing for delayed publishes.
    pub(super) group: Arc<str>,
    group_spec: GroupSpec,
    pub(super) store: Arc<dyn Store>,
    index: StoreLot,
    ensured: Arc<tokio::sync::OnceCell<()>>,
}

impl TopicLot {
    /// The lot of a group: `<topic>.<group>.retry.<tier>` and `<topic>.<group>.dead`.
    #[must_use]
    pub fn of_group(provider: Arc<dyn Provider>, topic: &TopicSpec, address: Address, group: Arc<str>, store: Arc<dyn Store>) -> Self {
        let base = format!("{}.{group}", topic.name);
        Self::new(provider, &base, "retry", address, group.clone(), group, store)
    }

    /// The lot of delayed publishes: `<topic>.delay.<tier>`.
    #[must_use]
    pub fn of_delays(provider: Arc<dyn Provider>, topic: &TopicSpec, address: Address, store: Arc<dyn Store>) -> Self {
        Self::new(provider, &topic.name, "delay", address, "".into(), "trunkline".into(), store)
    }

    fn new(
        provider: Arc<dyn Provider>,
        base: &str,
        kind: &str,
        address: Address,
        group: Arc<str>,
        subscriber: Arc<str>,
        store: Arc<dyn Store>,
    ) -> Self {
        let spec = |name: String| TopicSpec::new(name, 1, false);
        TopicLot {
            tiers: TIERS.iter().map(|(tier, _)| spec(format!("{base}.{kind}.{tier}"))).collect(),
            dead: spec(format!("{base}.dead")),
            group_spec: GroupSpec { name: subscriber, start: Start::Earliest },
            index: StoreLot::new(store.clone(), address.clone(), group.clone()),
            provider,
            address,
            group,
            store,
            ensured: Arc::default(),
        }
    }

    /// Makes the topics. Idempotent.
    ///
    /// # Errors
    /// As the provider's.
    pub async fn ensure(&self) -> Result<()> {
        let ensure = || async {
            for tier in &self.tiers {
                self.provider.ensure(tier, std::slice::from_ref(&self.group_spec)).await?;
            }
            // Where nothing is kept but for a group, the dead need one to lie in.
            let keeps = self.provider.capabilities(&self.dead).keeps_messages;
            let groups = if keeps { &[] } else { std::slice::from_ref(&self.group_spec) };
            self.provider.ensure(&self.dead, groups).await.map(drop)
        };
        self.ensured.get_or_try_init(ensure).await.map(drop)
    }

    /// The topics that entries wait in, and the group that reads them.
    pub(crate) fn waiting_in(&self) -> impl Iterator<Item = (&TopicSpec, &str)> {
        self.tiers.iter().map(|tier| (tier, &*self.group_spec.name))
    }

    /// Removes the topics with what lies in them.
    ///
    /// # Errors
    /// As the provider's.
    pub async fn remove(&self) -> Result<()> {
        for topic in self.tiers.iter().chain([&self.dead]) {
            self.provider.remove(Remove::Group(topic, &self.group_spec.name)).await?;
            self.provider.remove(Remove::Topic(topic)).await?;
        }
        Ok(())
    }

    pub(super) async fn send(&self, topic: &TopicSpec, batch: Vec<Outgoing>) -> Result<()> {
        for result in self.provider.send(topic, Arc::new(batch)).await {
            result.map_err(|failed| failed.error)?;
        }
        Ok(())
    }

    /// Files waiting entries by what remains of their wait.
    pub(super) async fn file(&self, entries: &[LotEntry]) -> Result<()> {
        let now = self.store.now();
        let mut by_tier: HashMap<usize, Vec<Outgoing>> = HashMap::new();
        for entry in entries {
            by_tier.entry(tier(entry.due_at.saturating_sub(now))).or_default().push(outgoing(entry, now));
        }
        for (tier, batch) in by_tier {
            self.send(&self.tiers[tier], batch).await?;
        }
        Ok(())
    }
}

/// A lot entry as it travels. When it is due travels as wall time: that is what hosts agree on, each within its own error.
pub(super) fn outgoing(entry: &LotEntry, now: Millis) -> Outgoing {
    let mut headers = entry.message.headers.clone();
    let mut set = |name: &str, value: String| headers.set(name, value);
    set(header::ATTEMPT, entry.attempts.to_string());
    set(header::PRODUCED_AT, entry.message.produced_at.to_string());
    set(ORIGIN, entry.message.position.to_string());
    if entry.state == LotState::Dead {
        set(header::REASON, entry.reason.clone().unwrap_or_default());
        set(header::DIED_AT, entry.died_at.unwrap_or_default().to_string());
    } else {
        set(header::NOT_BEFORE, (now_ms() + entry.due_at.saturating_sub(now)).to_string());
    }
    if let Some(error) = &entry.error {
        headers.set(header::ERROR, error.clone());
    }
    Outgoing { id: entry.message.id, shard: None, key: entry.message.key.clone(), headers, payload: entry.message.payload.clone() }
}

/// When a message that was received from this tier at `now` is due, by the store's clock. No longer than messages of the
/// tier can wait: so a wall clock that was set back meanwhile makes nothing wait for as long as it was set back.
fn due_at(delivery: &Delivery, route: usize, now: Millis) -> Millis {
    let due_at = delivery.headers.get_str(header::NOT_BEFORE).and_then(|text| text.parse().ok()).unwrap_or(0);
    let most = TIERS.get(route + 1).map_or(Millis::MAX, |(_, nominal)| *nominal);
    now.saturating_add(most.min(Millis::saturating_sub(due_at, now_ms())))
}

/// The entry that travelled.
pub(super) fn entry(delivery: &Delivery, address: &Address, group: &Arc<str>, state: LotState, due_at: Millis) -> LotEntry {
    let mut headers: Headers = delivery.headers.clone();
    let number = |headers: &Headers, name: &str| headers.get_str(name).and_then(|text| text.parse::<u64>().ok());
    let attempts = number(&headers, header::ATTEMPT).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let produced_at = number(&headers, header::PRODUCED_AT).unwrap_or(delivery.stored_at);
    let error = headers.get_str(header::ERROR).map(str::to_owned);
    let position = headers
        .get_str(ORIGIN)
        .and_then(|text| text.split_once('/'))
        .and_then(|(shard, offset)| Some(Position { shard: shard.parse().ok()?, offset: offset.parse().ok()? }))
        .unwrap_or(delivery.position);
    for name in [header::ATTEMPT, header::NOT_BEFORE, header::PRODUCED_AT, header::ERROR, header::REASON, header::DIED_AT, ORIGIN] {
        headers.remove(name);
    }
    let id = match delivery.id {
        EnvelopeId::Id(id) => id,
        _ => MessageId::derived(delivery.stored_at, &[&delivery.position.offset.to_le_bytes()]),
    };
    LotEntry {
        seq: 0,
        state,
        address: address.clone(),
        group: group.clone(),
        chain: None,
        due_at,
        attempts,
        reason: None,
        error,
        died_at: None,
        job: None,
        deliveries: 0,
        message: LotMessage {
            id,
            key: delivery.key.clone(),
            headers,
            payload: delivery.payload.clone().unwrap_or_default(),
            produced_at,
            position,
        },
    }
}

#[async_trait]
impl Lot for TopicLot {
    async fn put(&self, entries: Vec<LotEntry>) -> Result<()> {
        let (dead, waiting): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.state == LotState::Dead);
        if !waiting.is_empty() {
            self.file(&waiting).await?;
        }
        if !dead.is_empty() {
            self.send(&self.dead, dead.iter().map(|entry| outgoing(entry, 0)).collect()).await?;
            // The broker has them; the index of this host may lag.
            if let Err(error) = self.index.put(dead).await {
                tracing::warn!(%error, "dead letters lie on the broker but could not be indexed here");
            }
        }
        Ok(())
    }

    async fn feed(&self, member: Arc<str>) -> Result<Arc<dyn LotFeed>> {
        self.ensure().await?;
        let options = SubscribeOptions { member, prefetch: PREFETCH };
        let subscription = self.provider.subscribe(&self.tiers, &self.group_spec, options.clone()).await?;
        Ok(Arc::new(TopicFeed {
            lot: self.clone(),
            options,
            current: Mutex::new((subscription, 0)),
            waiting: tokio::sync::Mutex::new(Vec::new()),
            handed: Mutex::new(HashMap::new()),
        }))
    }

    async fn chains(&self, _shard: u32) -> Result<(Vec<(u64, u64)>, u64)> {
        Err(Error::new(
            Code::CapabilityUnsupported,
            "order per key with waits needs one view of the chains: the lot on the broker has none",
        ))
    }
}

/// Received from a tier and not yet due.
#[derive(Debug)]
struct Held {
    token: Token,
    entry: LotEntry,
    /// When it has lain in its tier for the tier's nominal wait.
    ripe_at: Millis,
    /// Its owners died while they handled it: it is handed out when no other such one is.
    suspect: bool,
    /// It was received before, by one who did not settle it.
    redelivered: bool,
}

/// Handed out and not yet settled.
#[derive(Debug)]
struct Handed {
    token: Token,
    generation: u64,
    suspect: bool,
    entry: Box<LotEntry>,
}

#[derive(Debug)]
struct TopicFeed {
    lot: TopicLot,
    options: SubscribeOptions,
    /// The subscription to all tiers, and its generation.
    current: Mutex<(Arc<dyn Subscription>, u64)>,
    waiting: tokio::sync::Mutex<Vec<Held>>,
    handed: Mutex<HashMap<LotHandle, Handed>>,
}

impl TopicFeed {
    fn hand(&self, handed: Handed, out: &mut Vec<(LotHandle, LotEntry)>) {
        let mut map = self.handed.lock();
        let mut handle = rand::random::<u64>() >> 1;
        while map.contains_key(&handle) {
            handle = rand::random::<u64>() >> 1;
        }
        out.push((handle, LotEntry::clone(&handed.entry)));
        map.insert(handle, handed);
    }

    fn suspect_out(&self) -> bool {
        self.handed.lock().values().any(|handed| handed.suspect)
    }

    /// Hands out what is due, up to `max`. That each is about to be handled is written down first, so that one that kills
    /// its process is known by it.
    async fn hand_due(&self, waiting: &mut Vec<Held>, max: usize) -> Result<Vec<(LotHandle, LotEntry)>> {
        let (now, generation) = (self.lot.store.now(), self.current().1);
        let busy = self.suspect_out();
        let is_due = |held: &Held| held.entry.due_at <= now && !(held.suspect && busy);
        let due: Vec<usize> = (0..waiting.len()).filter(|at| is_due(&waiting[*at])).take(max).collect();
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<MessageId> = due.iter().map(|at| waiting[*at].entry.message.id).collect();
        let started = self.lot.store.lot_start(&self.lot.address, &self.lot.group, &ids, !busy).await?;
        let mut out = Vec::new();
        // From the back, so that what is taken out moves nothing that is still to be looked at.
        for (at, counted) in due.into_iter().zip(started).rev() {
            let Some(count) = counted else {
                waiting[at].suspect = true;
                continue;
            };
            let Held { token, mut entry, .. } = waiting.remove(at);
            entry.deliveries = count;
            self.hand(Handed { token, generation, suspect: count > SUSPECT, entry: Box::new(entry) }, &mut out);
        }
        out.reverse();
        Ok(out)
    }

    fn current(&self) -> (Arc<dyn Subscription>, u64) {
        self.current.lock().clone()
    }

    /// Receives from the tiers into `waiting`; a dead subscription is opened anew and what it held comes again.
    async fn receive(&self, waiting: &mut Vec<Held>, wait: Duration) -> Result<()> {
        let (subscription, generation) = self.current();
        let signals = match subscription.next(PREFETCH.count - waiting.len(), PREFETCH.bytes, wait).await {
            Ok(signals) => signals,
            Err(error) => {
                waiting.clear();
                subscription.close(Instant::now() + Duration::from_secs(1)).await;
                let anew = self.lot.provider.subscribe(&self.lot.tiers, &self.lot.group_spec, self.options.clone()).await?;
                *self.current.lock() = (anew, generation + 1);
                return Err(error);
            }
        };
        let now = self.lot.store.now();
        for signal in signals {
            match signal {
                Signal::Deliveries { route, items, .. } => waiting.extend(items.iter().map(|delivery| {
                    let (nominal, lain) =
                        (TIERS.get(route).map_or(0, |(_, nominal)| *nominal), now_ms().saturating_sub(delivery.stored_at));
                    Held {
                        token: delivery.token,
                        entry: entry(delivery, &self.lot.address, &self.lot.group, LotState::Waiting, due_at(delivery, route, now)),
                        ripe_at: now + nominal.saturating_sub(lain),
                        suspect: false,
                        redelivered: delivery.deliveries.count() > 1,
                    }
                })),
                Signal::Revoking { route, shard, .. } => {
                    // What is in hand goes back, so that the hand-over can finish.
                    let back: Vec<_> = waiting.drain(..).map(|held| (held.token, Settle::Release)).collect();
                    subscription.settle(&back).await;
                    subscription.yield_shard(route, shard).await;
                }
                Signal::Lost { .. } => waiting.clear(),
                Signal::Assigned { .. } | Signal::State(_) => {}
            }
        }
        Ok(())
    }

    /// Files again what is not due and keeps others from being received: where the hand is full, what has lain in its tier for
    /// the tier's time, since what lies behind it may be due; and always what was received before, since a broker may hand
    /// out such messages one at a time.
    async fn file_again(&self, waiting: &mut Vec<Held>, now: Millis) -> Result<()> {
        let full = waiting.len() >= PREFETCH.count;
        let in_the_way = |held: &Held| held.entry.due_at > now && (held.redelivered || (full && held.ripe_at <= now));
        let (ripe, keep): (Vec<_>, Vec<_>) = waiting.drain(..).partition(in_the_way);
        *waiting = keep;
        if ripe.is_empty() {
            return Ok(());
        }
        let entries: Vec<LotEntry> = ripe.iter().map(|held| held.entry.clone()).collect();
        if let Err(error) = self.lot.file(&entries).await {
            waiting.extend(ripe);
            return Err(error);
        }
        // Written first, acked then.
        let acks: Vec<_> = ripe.iter().map(|held| (held.token, Settle::Done)).collect();
        self.current().0.settle(&acks).await;
        Ok(())
    }
}

#[async_trait]
impl LotFeed for TopicFeed {
    async fn next(&self, max: usize, _shards: Option<&[u32]>, wait: Duration) -> Result<Vec<(LotHandle, LotEntry)>> {
        let mut waiting = self.waiting.lock().await;
        let full = waiting.len() >= PREFETCH.count;
        let now = self.lot.store.now();
        let busy = self.suspect_out();
        let next = waiting
            .iter()
            .filter(|held| !(held.suspect && busy))
            .map(|held| if full { held.entry.due_at.min(held.ripe_at) } else { held.entry.due_at })
            .min();
        let patience = next.map_or(wait, |at| wait.min(Duration::from_millis(at.saturating_sub(now))));
        if full {
            tokio::time::sleep(patience).await;
        } else {
            self.receive(&mut waiting, patience).await?;
        }
        self.file_again(&mut waiting, self.lot.store.now()).await?;
        self.hand_due(&mut waiting, max).await
    }

    async fn settle(&self, items: Vec<(LotHandle, LotSettle)>) -> Result<Vec<bool>> {
        let mut tier = Vec::new();
        let mut put = Vec::new();
        let mut ended = Vec::new();
        let mut settled = Vec::with_capacity(items.len());
        {
            let handed = self.handed.lock();
            for (handle, settle) in &items {
                settled.push(handed.contains_key(handle));
                let Some(Handed { token, generation, entry, .. }) = handed.get(handle) else { continue };
                let mut entry = LotEntry::clone(entry);
                ended.push((entry.message.id, *settle != LotSettle::Release));
                let done = match settle {
                    LotSettle::Done => Settle::Done,
                    LotSettle::Release => Settle::Release,
                    LotSettle::Wait { due_at, attempts, error } => {
                        (entry.due_at, entry.attempts, entry.error) = (*due_at, *attempts, error.clone());
                        put.push(entry);
                        Settle::Done
                    }
                    LotSettle::Bury { reason, attempts, error } => {
                        entry.state = LotState::Dead;
                        entry.died_at = Some(now_ms());
                        (entry.reason, entry.attempts, entry.error) = (Some(reason.clone()), *attempts, error.clone());
                        put.push(entry);
                        Settle::Done
                    }
                };
                tier.push((*token, *generation, done));
            }
        }
        // Written first, acked then. On a failure the handles stay, and the caller settles again.
        if !put.is_empty() {
            self.lot.put(put).await?;
        }
        if !tier.is_empty() {
            let (subscription, of) = self.current();
            let acks: Vec<_> = tier.iter().filter(|(_, generation, _)| *generation == of).map(|(token, _, done)| (*token, *done)).collect();
            subscription.settle(&acks).await;
        }
        if let Err(error) = self.lot.store.lot_end(&self.lot.address, &self.lot.group, &ended).await {
            // At worst they are counted once more than they were handled.
            tracing::debug!(%error, "hand-overs out of the lot could not be ended");
        }
        let mut handed = self.handed.lock();
        for (handle, _) in &items {
            handed.remove(handle);
        }
        Ok(settled)
    }

    async fn close(&self) {
        self.current().0.close(Instant::now() + Duration::from_secs(2)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_goes_to_the_largest_tier_not_above_it() {
        let names: Vec<_> = [0, 9_999, 10_000, 59_999, 60_000, 600_000, 3_599_999, 3_600_000, u64::MAX].map(|ms| TIERS[tier(ms)].0).into();
        assert_eq!(names, ["10s", "10s", "10s", "10s", "1m", "10m", "10m", "1h", "1h"]);
    }
}
