//! What is in hand: messages that may start, lanes of keys that are busy, and the bounds.
//!
//! One lock guards it all; it is held for a few instructions at a time.

use std::cmp::Ordering as Order;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::breaker::Gate;
use crate::consume::shared::{Hand, Side};
use crate::delivery::{Deliveries, Position, Token};
use crate::lot::LotHandle;
use crate::message::{Headers, MessageId, Millis};

/// Where a piece of work came from, and is settled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The subscription of this generation.
    Broker(Token, u64),
    /// The lot.
    Lot(LotHandle),
}

/// One message in hand.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) source: Source,
    pub(crate) id: MessageId,
    /// Its envelope cannot be read: its id was made up here.
    pub(crate) broken: bool,
    /// Why its payload may not be handled.
    pub(crate) invalid: Option<String>,
    pub(crate) position: Position,
    pub(crate) epoch: u64,
    /// Hash of the key on ordered topics, so that one key is handled one after the other.
    pub(crate) lane: Option<u64>,
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    pub(crate) attempts: u32,
    pub(crate) deliveries: Deliveries,
    pub(crate) produced_at: Millis,
    pub(crate) expires_at: Option<Millis>,
    pub(crate) size: usize,
    /// Whether this is its first run, so that its wait counts.
    pub(crate) first: bool,
}

/// Why nothing can start right now.
#[derive(Debug)]
pub(crate) enum Idle {
    Empty,
    Until(Instant),
    Closed,
}

#[derive(Debug)]
struct Timed(Instant, u64, Work);

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Order {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// The chains of a shard: how many messages of each key, and of all.
#[derive(Debug, Default)]
struct Chains {
    keys: HashMap<u64, u64>,
    total: u64,
}

#[derive(Debug)]
pub(crate) struct Lanes {
    ready: VecDeque<Work>,
    /// Keys with one message ready, running or held, and those behind it.
    busy: HashMap<u64, VecDeque<Work>>,
    /// By shard: keys whose messages wait in the lot.
    chains: HashMap<u32, Chains>,
    held: BinaryHeap<Timed>,
    held_most: usize,
    /// At least so long between two starts, and when the next one may be.
    spacing: Option<(Duration, Instant)>,
    ticket: u64,
    pub(crate) breaker: Side,
    /// What all consumers of the process have in hand.
    hand: Arc<Hand>,
    pub(crate) running: usize,
    pub(crate) idle: usize,
    /// Received and not yet settled.
    pub(crate) count: usize,
    /// How many of them only wait for the broker's answer to their settle.
    pub(crate) settling: usize,
    pub(crate) bytes: usize,
    pub(crate) closing: bool,
    /// Shards being given up: nothing of them starts.
    pub(crate) revoking: HashSet<u32>,
    /// The number of this member's ownership of each shard.
    pub(crate) epochs: HashMap<u32, u64>,
    /// Messages in hand by shard, to know when a shard is drained.
    pub(crate) by_shard: HashMap<u32, usize>,
}

impl Lanes {
    /// `rate`: at most so many starts a second; unbounded if `None`.
    pub(crate) fn new(concurrency: usize, rate: Option<f64>, breaker: Side, hand: Arc<Hand>) -> Self {
        Lanes {
            ready: VecDeque::new(),
            busy: HashMap::new(),
            chains: HashMap::new(),
            held: BinaryHeap::new(),
            held_most: concurrency.div_ceil(4),
            spacing: rate.filter(|rate| *rate > 0.0).map(|rate| (Duration::from_secs_f64(1.0 / rate), Instant::now())),
            ticket: 0,
            breaker,
            hand,
            running: 0,
            idle: 0,
            count: 0,
            settling: 0,
            bytes: 0,
            closing: false,
            revoking: HashSet::new(),
            epochs: HashMap::new(),
            by_shard: HashMap::new(),
        }
    }

    /// Takes a message in. Gives it back if its key's earlier messages wait in the lot: it must wait behind them.
    pub(crate) fn admit(&mut self, work: Work) -> Option<Work> {
        self.come(work.position.shard, work.size);
        if let (Source::Broker(..), Some(lane)) = (work.source, work.lane) {
            if let Some(chains) = self.chains.get_mut(&work.position.shard)
                && let Some(count) = chains.keys.get_mut(&lane)
            {
                *count += 1;
                chains.total += 1;
                return Some(work);
            }
            if let Some(behind) = self.busy.get_mut(&lane) {
                behind.push_back(work);
                return None;
            }
            self.busy.insert(lane, VecDeque::new());
        }
        self.ready.push_back(work);
        None
    }

    /// The next message that may start, with whether it is the breaker's probe.
    pub(crate) fn start(&mut self) -> Result<(Work, bool), Idle> {
        if self.closing {
            return Err(Idle::Closed);
        }
        if self.ready.is_empty() {
            return Err(Idle::Empty);
        }
        if let Some((_, next)) = self.spacing
            && next > Instant::now()
        {
            return Err(Idle::Until(next));
        }
        let probe = match if self.breaker.is_open() { self.breaker.gate(Instant::now()) } else { Gate::Go } {
            Gate::Go => false,
            Gate::Probe => true,
            Gate::Until(at) => return Err(Idle::Until(at)),
            Gate::Wait => return Err(Idle::Empty),
        };
        let work = self.ready.pop_front().ok_or(Idle::Empty)?;
        self.running += 1;
        if let Some((spacing, next)) = &mut self.spacing {
            *next = (*next).max(Instant::now() - *spacing) + *spacing;
        }
        Ok((work, probe))
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn may_hold(&self) -> bool {
        self.held.len() < self.held_most && !self.closing
    }

    /// From now on every retry goes to the lot.
    #[cfg(test)]
    pub(super) fn hold_nothing(&mut self) {
        self.held_most = 0;
    }

    /// How much of `most` is taken: what only waits for its settle's answer takes none, up to as many again.
    pub(crate) fn taken(&self, most: usize) -> usize {
        self.count.saturating_sub(self.settling.min(most))
    }

    /// Whether there is room for nothing but what is held, and what is behind it.
    pub(crate) fn holds_only(&self, most: usize) -> bool {
        self.taken(most) >= most && self.running == 0 && self.ready.is_empty()
    }

    /// Keeps it in flight until then. Its key stays busy.
    pub(crate) fn hold(&mut self, until: Instant, work: Work) {
        self.ticket += 1;
        self.held.push(Timed(until, self.ticket, work));
    }

    /// Back to the end of the line; its key stays busy.
    pub(crate) fn back(&mut self, work: Work) {
        self.ready.push_back(work);
    }

    /// Moves what has been held long enough to the front; when the next one is due.
    pub(crate) fn wake(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Timed(at, ..)) = self.held.peek() {
            if *at > now {
                return Some(*at);
            }
            if let Some(Timed(_, _, work)) = self.held.pop() {
                self.ready.push_front(work);
            }
        }
        None
    }

    /// A broker message of this key is through: the next one behind it may start.
    pub(crate) fn release_lane(&mut self, lane: Option<u64>) {
        let Some(lane) = lane else { return };
        if let Some(behind) = self.busy.get_mut(&lane) {
            match behind.pop_front() {
                Some(next) => self.ready.push_back(next),
                None => {
                    self.busy.remove(&lane);
                }
            }
        }
    }

    /// A message of this key goes to the lot: it begins (or goes on) a chain, and all behind it must follow it there.
    pub(crate) fn begin_chain(&mut self, shard: u32, lane: u64) -> Vec<Work> {
        let behind: Vec<Work> = self.busy.remove(&lane).map(Vec::from).unwrap_or_default();
        let chains = self.chains.entry(shard).or_default();
        let more = 1 + behind.len() as u64;
        *chains.keys.entry(lane).or_default() += more;
        chains.total += more;
        behind
    }

    /// One of a chain has left the lot.
    pub(crate) fn shorten_chain(&mut self, shard: u32, lane: u64) {
        if let Some(chains) = self.chains.get_mut(&shard)
            && let Some(count) = chains.keys.get_mut(&lane)
        {
            *count = count.saturating_sub(1);
            chains.total = chains.total.saturating_sub(1);
            if *count == 0 {
                chains.keys.remove(&lane);
            }
        }
    }

    /// What the lot says of a shard's chains.
    pub(crate) fn set_chains(&mut self, shard: u32, keys: impl IntoIterator<Item = (u64, u64)>) {
        let keys: HashMap<u64, u64> = keys.into_iter().collect();
        let total = keys.values().sum();
        self.chains.insert(shard, Chains { keys, total });
    }

    /// The shard is no longer this member's.
    pub(crate) fn drop_shard(&mut self, shard: u32) {
        self.chains.remove(&shard);
        self.epochs.remove(&shard);
    }

    /// Shards with chains.
    pub(crate) fn chained(&self) -> Vec<u32> {
        self.chains.iter().filter(|(_, chains)| chains.total > 0).map(|(shard, _)| *shard).collect()
    }

    /// Whether the chains of a shard hold as much as they may.
    pub(crate) fn chains_full(&self, most: u64) -> bool {
        self.chains.values().any(|chains| chains.total >= most)
    }

    /// Shards this member has anything of.
    pub(crate) fn all_shards(&self) -> Vec<u32> {
        self.epochs.keys().chain(self.chains.keys()).copied().collect()
    }

    /// Shards this member owns (only tracked where order is kept).
    pub(crate) fn owned(&self) -> Vec<u32> {
        self.chains.keys().copied().filter(|shard| self.owns(*shard)).collect()
    }

    pub(crate) fn owns(&self, shard: u32) -> bool {
        self.epochs.contains_key(&shard) && !self.revoking.contains(&shard)
    }

    /// Takes out everything that has not started: all of it, or that of one shard.
    pub(crate) fn take_waiting(&mut self, shard: Option<u32>) -> Vec<Work> {
        let goes = |work: &Work| shard.is_none_or(|shard| work.position.shard == shard);
        let mut out = Vec::new();
        let ready = std::mem::take(&mut self.ready);
        let held = std::mem::take(&mut self.held);
        let mut lanes_of_gone = Vec::new();
        for work in ready {
            if goes(&work) { out.push(work) } else { self.ready.push_back(work) }
        }
        for timed in held {
            if goes(&timed.2) { out.push(timed.2) } else { self.held.push(timed) }
        }
        for work in &out {
            lanes_of_gone.extend(work.lane);
        }
        for lane in lanes_of_gone {
            if let Some(behind) = self.busy.remove(&lane) {
                out.extend(behind);
            }
        }
        // Behind a running one: they go too, the running one keeps its lane.
        for behind in self.busy.values_mut() {
            if behind.front().is_some_and(&goes) {
                out.extend(behind.drain(..));
            }
        }
        out
    }

    /// A message is taken in hand.
    pub(crate) fn come(&mut self, shard: u32, size: usize) {
        self.count += 1;
        self.bytes += size;
        self.hand.add(size);
        *self.by_shard.entry(shard).or_default() += 1;
    }

    /// A message has been settled and leaves the hand.
    pub(crate) fn gone(&mut self, shard: u32, size: usize) {
        self.count = self.count.saturating_sub(1);
        let size = size.min(self.bytes);
        self.bytes -= size;
        self.hand.sub(size);
        if let Some(count) = self.by_shard.get_mut(&shard) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_shard.remove(&shard);
            }
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.hand.sub(self.bytes);
    }
}
