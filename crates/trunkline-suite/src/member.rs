//! A member of a group as the scenarios use it: receives, keeps account of shards, and checks what must always hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline::MessageId;
use trunkline::delivery::{Delivery, EnvelopeId, Settle, Settled, Token};
use trunkline::provider::{Provider, Signal, Subscription, TopicSpec};

use crate::{Failure, Pace, Verdict};

/// One delivery, with where it came from.
#[derive(Debug, Clone)]
pub struct Got {
    /// Which route.
    pub route: usize,
    /// The shard.
    pub shard: u32,
    /// The ownership it came under.
    pub epoch: u64,
    /// When it arrived here.
    pub at: Instant,
    /// What came.
    pub delivery: Delivery,
}

impl Got {
    /// The id; the suite sends no message without one.
    pub fn id(&self) -> Verdict<MessageId> {
        match self.delivery.id {
            EnvelopeId::Id(id) => Ok(id),
            other => Err(Failure::new(format!("a delivery came with {other:?} instead of its id"))),
        }
    }
}

/// What a shard went through, as this member was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Owned from now on, with this epoch.
    Assigned(u64),
    /// To be given up until then.
    Revoking(Instant),
    /// Gone.
    Lost,
}

/// A member of a group. It gives up a shard that is revoked as soon as it holds nothing of it.
#[derive(Debug)]
pub struct Member {
    /// The subscription itself.
    pub subscription: Arc<dyn Subscription>,
    /// What it was told about shards, in order: route, shard, change.
    pub changes: Vec<(usize, u32, Change)>,
    /// Whether it gives up revoked shards by itself.
    pub yields: bool,
    routes: Vec<TopicSpec>,
    epochs: HashMap<(usize, u32), u64>,
    held: HashMap<Token, (usize, u32)>,
    revoking: HashSet<(usize, u32)>,
    pace: Pace,
    provider: Arc<dyn Provider>,
}

impl Member {
    pub(crate) fn new(subscription: Arc<dyn Subscription>, provider: Arc<dyn Provider>, routes: &[TopicSpec], pace: Pace) -> Self {
        Member {
            subscription,
            changes: Vec::new(),
            yields: true,
            routes: routes.to_vec(),
            epochs: HashMap::new(),
            held: HashMap::new(),
            revoking: HashSet::new(),
            pace,
            provider,
        }
    }

    /// The connection it receives on.
    pub fn provider(&self) -> &Arc<dyn Provider> {
        &self.provider
    }

    /// The shards of a route it was told it owns.
    pub fn owns(&self, route: usize) -> HashSet<u32> {
        self.epochs.keys().filter(|(r, _)| *r == route).map(|(_, shard)| *shard).collect()
    }

    /// One call of `next`. Checks what every answer of an ordered topic must keep.
    pub async fn step(&mut self, max: usize, max_bytes: usize, wait: Duration) -> Verdict<Vec<Got>> {
        let limit = wait + self.pace.patience;
        let signals = tokio::time::timeout(limit, self.subscription.next(max, max_bytes, wait))
            .await
            .map_err(|_| Failure::new(format!("next(wait {wait:?}) did not return within {limit:?}")))??;
        let got = self.heard(signals)?;
        check!(got.len() <= max, "next(max {max}) handed out {}", got.len());
        self.give_up().await;
        Ok(got)
    }

    /// Takes account of signals that came another way.
    pub fn heard(&mut self, signals: Vec<Signal>) -> Verdict<Vec<Got>> {
        let mut got = Vec::new();
        for signal in signals {
            self.hear(signal, &mut got)?;
        }
        Ok(got)
    }

    fn hear(&mut self, signal: Signal, got: &mut Vec<Got>) -> Verdict {
        match signal {
            Signal::Deliveries { route, shard, epoch, items } => {
                check!(route < self.routes.len(), "a delivery of route {route}, of {} routes", self.routes.len());
                let at = Instant::now();
                for delivery in items {
                    check!(delivery.position.shard == shard, "a delivery of shard {shard} lies at {} in another shard", delivery.position);
                    if self.routes[route].ordered {
                        self.check_owned(route, shard, epoch)?;
                    }
                    let twice = self.held.insert(delivery.token, (route, shard)).is_some();
                    check!(!twice, "two deliveries are held under one token");
                    got.push(Got { route, shard, epoch, at, delivery });
                }
            }
            Signal::Assigned { route, shard, epoch } => {
                self.epochs.insert((route, shard), epoch);
                self.revoking.remove(&(route, shard));
                self.changes.push((route, shard, Change::Assigned(epoch)));
            }
            Signal::Revoking { route, shard, deadline } => {
                self.revoking.insert((route, shard));
                self.changes.push((route, shard, Change::Revoking(deadline)));
            }
            Signal::Lost { route, shard } => {
                self.forget(route, shard);
                self.changes.push((route, shard, Change::Lost));
            }
            Signal::State(_) => {}
        }
        Ok(())
    }

    /// A shard is delivered to its owner only, and not while it is being taken away.
    fn check_owned(&self, route: usize, shard: u32, epoch: u64) -> Verdict {
        let owned = self.epochs.get(&(route, shard));
        check!(owned.is_some(), "shard {shard} was delivered before it was assigned");
        check!(owned == Some(&epoch), "shard {shard} was assigned with epoch {owned:?} and delivered with {epoch}");
        check!(!self.revoking.contains(&(route, shard)), "shard {shard} was delivered while it is being revoked");
        Ok(())
    }

    fn forget(&mut self, route: usize, shard: u32) {
        self.epochs.remove(&(route, shard));
        self.revoking.remove(&(route, shard));
        self.held.retain(|_, of| *of != (route, shard));
    }

    /// Yields what is being revoked and no longer held.
    async fn give_up(&mut self) {
        if !self.yields {
            return;
        }
        let free: Vec<_> = self.revoking.iter().filter(|of| !self.held.values().any(|held| held == *of)).copied().collect();
        for (route, shard) in free {
            self.forget(route, shard);
            self.subscription.yield_shard(route, shard).await;
        }
    }

    /// Waits until at least `n` came.
    pub async fn take(&mut self, n: usize) -> Verdict<Vec<Got>> {
        let end = Instant::now() + self.pace.patience;
        let mut got = Vec::new();
        while got.len() < n {
            let left = end.saturating_duration_since(Instant::now());
            check!(!left.is_zero(), "{} of {n} messages came within {:?}", got.len(), self.pace.patience);
            got.extend(self.step(n - got.len(), usize::MAX, left.min(Duration::from_secs(1))).await?);
        }
        Ok(got)
    }

    /// Waits until `n` came, and settles each as done at once.
    pub async fn handle(&mut self, n: usize) -> Verdict<Vec<Got>> {
        let end = Instant::now() + self.pace.patience;
        let mut all = Vec::new();
        while all.len() < n {
            let left = end.saturating_duration_since(Instant::now());
            check!(!left.is_zero(), "{} of {n} messages came within {:?}", all.len(), self.pace.patience);
            let got = self.step(n - all.len(), usize::MAX, left.min(Duration::from_secs(1))).await?;
            self.done(&got).await?;
            all.extend(got);
        }
        Ok(all)
    }

    /// What comes within `wait`.
    pub async fn within(&mut self, wait: Duration) -> Verdict<Vec<Got>> {
        let end = Instant::now() + wait;
        let mut got = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(got);
            }
            got.extend(self.step(1024, usize::MAX, left).await?);
        }
    }

    /// Listens for a short while; nothing may come.
    pub async fn nothing(&mut self, why: &str) -> Verdict {
        let got = self.within(self.pace.quiet).await?;
        check!(got.is_empty(), "{} came at {}, but {why}", got.len(), got[0].delivery.position);
        Ok(())
    }

    /// Receives until it was told this much about its shards. What comes meanwhile is returned.
    pub async fn until(&mut self, what: &str, told: impl Fn(&Self) -> bool) -> Verdict<Vec<Got>> {
        let end = Instant::now() + self.pace.patience;
        let mut got = Vec::new();
        while !told(self) {
            let left = end.saturating_duration_since(Instant::now());
            check!(!left.is_zero(), "waited {:?} in vain until {what}; told {:?}", self.pace.patience, self.changes);
            got.extend(self.step(64, usize::MAX, left.min(Duration::from_millis(200))).await?);
        }
        Ok(got)
    }

    /// Settles each the same way and returns the answers.
    pub async fn settle(&mut self, got: &[Got], how: Settle) -> Verdict<Vec<Settled>> {
        if got.is_empty() {
            return Ok(Vec::new());
        }
        let items: Vec<_> = got.iter().map(|got| (got.delivery.token, how)).collect();
        let answers = self.subscription.settle(&items).await;
        check!(answers.len() == items.len(), "{} settles, {} answers", items.len(), answers.len());
        for got in got {
            self.held.remove(&got.delivery.token);
        }
        self.give_up().await;
        Ok(answers)
    }

    /// Settles as done; each must hold.
    pub async fn done(&mut self, got: &[Got]) -> Verdict {
        self.settled(got, Settle::Done).await
    }

    /// Settles each the same way; each must hold.
    pub async fn settled(&mut self, got: &[Got], how: Settle) -> Verdict {
        for (answer, got) in self.settle(got, how).await?.into_iter().zip(got) {
            check!(answer == Settled::Settled, "{how:?} of {} was answered {answer:?}", got.delivery.position);
        }
        Ok(())
    }

    /// Leaves the group.
    pub async fn close(self) {
        self.subscription.close(Instant::now() + self.pace.patience).await;
    }
}

/// The ids of deliveries, in the order they came.
pub(crate) fn ids(got: &[Got]) -> Verdict<Vec<MessageId>> {
    got.iter().map(Got::id).collect()
}

/// Exactly these ids came, each once, in any order.
pub(crate) fn same(got: &[MessageId], sent: &[MessageId]) -> Verdict {
    let unique: HashSet<_> = got.iter().collect();
    let wanted: HashSet<_> = sent.iter().collect();
    let missing = wanted.difference(&unique).count();
    let strange = unique.difference(&wanted).count();
    check!(missing == 0, "{missing} of {} confirmed messages did not come", sent.len());
    check!(strange == 0, "{strange} messages came that were not expected");
    check!(unique.len() == got.len(), "{} messages came more than once", got.len() - unique.len());
    Ok(())
}
