//! A subscription that lies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use trunkline::Result;
use trunkline::delivery::{Deliveries, Delivery, Settle, Settled, Token};
use trunkline::provider::{Signal, Subscription};

use super::{Lie, Shared};

/// Tokens from here on are of copies the liar made.
const COPIES: u64 = 0xC0FE_0000_0000_0000;

#[derive(Debug)]
pub(super) struct LyingSubscription {
    inner: Arc<dyn Subscription>,
    lie: Option<Lie>,
    shared: Arc<Shared>,
    group: Arc<str>,
    me: u64,
    fetched: Mutex<VecDeque<Signal>>,
    held: Mutex<Vec<Held>>,
    seen: AtomicU64,
}

#[derive(Debug)]
struct Held {
    route: usize,
    shard: u32,
    epoch: u64,
    since: Instant,
    delivery: Delivery,
}

/// Calls `f` with each delivery; those for which it is false are left out.
fn retain(signals: &mut Vec<Signal>, mut f: impl FnMut(usize, u32, u64, &mut Delivery) -> bool) {
    signals.retain_mut(|signal| match signal {
        Signal::Deliveries { route, shard, epoch, items } => {
            items.retain_mut(|item| f(*route, *shard, *epoch, item));
            !items.is_empty()
        }
        _ => true,
    });
}

/// The same signals with one delivery each, so that they can be put into any order.
fn one_by_one(signals: Vec<Signal>) -> impl Iterator<Item = Signal> {
    signals.into_iter().flat_map(|signal| match signal {
        Signal::Deliveries { route, shard, epoch, items } => {
            items.into_iter().map(|item| Signal::Deliveries { route, shard, epoch, items: vec![item] }).collect()
        }
        other => vec![other],
    })
}

impl LyingSubscription {
    pub(super) fn new(inner: Arc<dyn Subscription>, lie: Option<Lie>, shared: Arc<Shared>, group: &Arc<str>) -> Self {
        let me = shared.numbers.fetch_add(1, Ordering::Relaxed);
        shared.copies.lock().entry(Arc::clone(group)).or_default().members.push(me);
        LyingSubscription {
            inner,
            lie,
            shared,
            group: Arc::clone(group),
            me,
            fetched: Mutex::default(),
            held: Mutex::default(),
            seen: AtomicU64::new(0),
        }
    }

    fn lies(&self, lie: Lie) -> bool {
        self.lie == Some(lie)
    }

    fn copy(&self, delivery: &Delivery) -> Delivery {
        Delivery { token: Token(COPIES + self.shared.numbers.fetch_add(1, Ordering::Relaxed)), ..delivery.clone() }
    }

    /// Puts copies where the other members of the group find them.
    fn copy_to_others(&self, signals: &[Signal]) {
        let mut copies = self.shared.copies.lock();
        let Some(copies) = copies.get_mut(&self.group) else { return };
        for other in copies.members.iter().filter(|other| **other != self.me) {
            for signal in signals {
                let Signal::Deliveries { route, shard, epoch, items } = signal else { continue };
                if self.lies(Lie::TwoOwners) {
                    copies.waiting.push_back((*other, Signal::Assigned { route: *route, shard: *shard, epoch: *epoch }));
                }
                let items = items.iter().map(|item| self.copy(item)).collect();
                copies.waiting.push_back((*other, Signal::Deliveries { route: *route, shard: *shard, epoch: *epoch, items }));
            }
        }
    }

    fn take_copy(&self) -> Option<Signal> {
        let mut copies = self.shared.copies.lock();
        let waiting = &mut copies.get_mut(&self.group)?.waiting;
        let at = waiting.iter().position(|(to, _)| *to == self.me)?;
        waiting.remove(at).map(|(_, signal)| signal)
    }

    /// What is held for too long comes again.
    fn take_forgotten(&self) -> Option<Signal> {
        let mut held = self.held.lock();
        let at = held.iter().position(|held| held.since.elapsed() > Duration::from_millis(50))?;
        let Held { route, shard, epoch, delivery, .. } = held.remove(at);
        Some(Signal::Deliveries { route, shard, epoch, items: vec![self.copy(&delivery)] })
    }

    /// Fetches all there is, and hands out of that.
    async fn fetch_all(&self, max: usize, wait: Duration) -> Result<Vec<Signal>> {
        let mut wait = if self.fetched.lock().is_empty() { wait } else { Duration::ZERO };
        loop {
            let more = self.inner.next(100_000, usize::MAX, wait).await?;
            if more.is_empty() {
                break;
            }
            wait = Duration::ZERO;
            self.fetched.lock().extend(one_by_one(more));
        }
        let mut fetched = self.fetched.lock();
        let n = max.min(fetched.len());
        Ok(fetched.drain(..n).collect())
    }

    /// What becomes of signals on their way to the member.
    async fn twist(&self, mut signals: Vec<Signal>) -> Result<Vec<Signal>> {
        let mut early = Vec::new();
        retain(&mut signals, |route, shard, epoch, delivery| {
            let seen = self.seen.fetch_add(1, Ordering::Relaxed);
            if self.lies(Lie::AcksEarly) || (self.lies(Lie::DropsDeliveries) && seen % 5 == 4) {
                early.push((delivery.token, Settle::Done));
            }
            if self.lies(Lie::CountStands) {
                delivery.deliveries = Deliveries::Exact(1);
            }
            self.held.lock().push(Held { route, shard, epoch, since: Instant::now(), delivery: delivery.clone() });
            !(self.lies(Lie::DropsDeliveries) && seen % 5 == 4)
        });
        if !early.is_empty() {
            self.inner.settle(&early).await;
        }
        for signal in &mut signals {
            match signal {
                Signal::Deliveries { epoch, .. } | Signal::Assigned { epoch, .. } if self.lies(Lie::EpochsStand) => *epoch = 1,
                Signal::Deliveries { route, .. } if self.lies(Lie::MixesRoutes) => *route = 0,
                Signal::Revoking { route, shard, .. } if self.lies(Lie::TakesBeforeItIsYielded) => {
                    self.inner.yield_shard(*route, *shard).await;
                }
                _ => {}
            }
        }
        match self.lie {
            Some(Lie::HidesAssignments) => signals.retain(|signal| !matches!(signal, Signal::Assigned { .. })),
            Some(Lie::HidesLoss) => signals.retain(|signal| !matches!(signal, Signal::Lost { .. })),
            Some(Lie::HandsToTwo | Lie::TwoOwners) => self.copy_to_others(&signals),
            Some(Lie::Shuffles) => {
                let (mut deliveries, mut all): (Vec<_>, Vec<_>) =
                    one_by_one(signals).partition(|signal| matches!(signal, Signal::Deliveries { .. }));
                deliveries.reverse();
                all.extend(deliveries);
                signals = all;
            }
            _ => {}
        }
        Ok(signals)
    }

    /// What is settled in truth, each with the place of the settle it answers, if it answers one.
    fn settles(&self, items: &[(Token, Settle)]) -> Vec<(Option<usize>, (Token, Settle))> {
        let mut all = Vec::new();
        for (place, (token, how)) in items.iter().enumerate() {
            let mut how = *how;
            match (self.lie, how) {
                (Some(Lie::LosesAcks), Settle::Done) => continue,
                (Some(Lie::CountsReleases), Settle::Release) => how = Settle::Retry { after: Duration::ZERO, counted: true },
                (Some(Lie::RetriesAtOnce), Settle::Retry { counted, .. }) => how = Settle::Retry { after: Duration::ZERO, counted },
                (Some(Lie::AcksUpTo), Settle::Done) => {
                    let held = self.held.lock();
                    let of = held.iter().find(|held| held.delivery.token == *token).map(|held| held.delivery.position);
                    let below = |position: trunkline::delivery::Position| {
                        of.is_some_and(|of| of.shard == position.shard && of.offset > position.offset)
                    };
                    all.extend(held.iter().filter(|held| below(held.delivery.position)).map(|held| (None, (held.delivery.token, how))));
                }
                _ => {}
            }
            all.push((Some(place), (*token, how)));
        }
        all
    }
}

#[async_trait]
impl Subscription for LyingSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let extra = match self.lie {
            Some(Lie::HandsToTwo | Lie::TwoOwners) => self.take_copy(),
            Some(Lie::ForgetsLeases) => self.take_forgotten(),
            _ => None,
        };
        if let Some(extra) = extra {
            return Ok(vec![extra]);
        }
        let signals = match self.lie {
            Some(Lie::FetchesWithoutBound) => self.fetch_all(max, wait).await?,
            Some(Lie::PassesMaximum) => self.inner.next(max * 2 + 1, max_bytes, wait).await?,
            Some(Lie::PassesBytes) => self.inner.next(max, usize::MAX, wait).await?,
            Some(Lie::Spins) => self.inner.next(max, max_bytes, Duration::ZERO).await?,
            Some(Lie::WakesLate) => {
                tokio::time::sleep(wait.min(Duration::from_millis(2500))).await;
                self.inner.next(max, max_bytes, Duration::ZERO).await?
            }
            Some(Lie::ForgetsLeases) => self.inner.next(max, max_bytes, wait.min(Duration::from_millis(60))).await?,
            _ => self.inner.next(max, max_bytes, wait).await?,
        };
        if self.lies(Lie::DroppedNextLoses) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.twist(signals).await
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let (places, truth): (Vec<_>, Vec<_>) = self.settles(items).into_iter().unzip();
        let mut answers = vec![Settled::Settled; items.len()];
        for (place, settled) in places.into_iter().zip(self.inner.settle(&truth).await) {
            if let Some(place) = place {
                answers[place] = settled;
            }
        }
        self.held.lock().retain(|held| !items.iter().any(|(token, _)| *token == held.delivery.token));
        for (answer, (token, _)) in answers.iter_mut().zip(items) {
            let lie = match self.lie {
                Some(Lie::AcksEarly | Lie::StaleIsSettled) => *answer == Settled::Stale,
                Some(Lie::HandsToTwo | Lie::TwoOwners | Lie::ForgetsLeases) => token.0 >= COPIES,
                Some(Lie::TakesAnyDelay) => *answer == Settled::Unknown,
                _ => false,
            };
            if lie {
                *answer = Settled::Settled;
            }
        }
        if self.lies(Lie::StaleSettlesAnother) && answers.contains(&Settled::Stale) {
            let another = self.held.lock().pop().map(|held| held.delivery.token);
            if let Some(another) = another {
                self.inner.settle(&[(another, Settle::Done)]).await;
            }
        }
        answers
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        if self.lies(Lie::HoldsEverything) { vec![true; tokens.len()] } else { self.inner.extend(tokens).await }
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        self.inner.yield_shard(route, shard).await;
    }

    async fn pause(&self) {
        if !self.lies(Lie::IgnoresPause) {
            self.inner.pause().await;
        }
    }

    async fn resume(&self) {
        self.inner.resume().await;
    }

    async fn close(&self, deadline: Instant) {
        if self.lies(Lie::CloseSettles) {
            let held: Vec<_> = self.held.lock().iter().map(|held| (held.delivery.token, Settle::Done)).collect();
            self.inner.settle(&held).await;
        }
        if !self.lies(Lie::CloseKeepsDelivering) {
            self.inner.close(deadline).await;
        }
    }
}
