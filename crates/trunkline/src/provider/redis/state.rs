//! What one member of a group has in hand: entries that wait here, entries that were handed out, and the shards it owns.
//! Nothing here waits or speaks to the server.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use super::id::EntryId;
use super::link::Argument;
use super::{envelope, keys};
use crate::delivery::{Deliveries, Delivery, Position, Token};
use crate::error::Error;
use crate::provider::net::slab::Slab;
use crate::provider::{Prefetch, Signal, TopicSpec};

/// An entry that is pending for this member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) lane: usize,
    pub(super) id: EntryId,
    /// How often it was handed out, this time included.
    pub(super) count: u32,
    /// When its lease was last known to be kept.
    pub(super) kept: Instant,
}

/// Where the reader stands in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A shard that this member does not own.
    Idle,
    /// What is pending comes first, from here on.
    Draining(EntryId),
    /// What nobody has read yet.
    Reading,
}

/// One stream of one route.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) route: usize,
    pub(super) shard: u32,
    pub(super) stream: Arc<str>,
    /// The topic's meta hash, and in it the field of the round.
    pub(super) meta: Arc<str>,
    pub(super) round_field: Arc<str>,
    /// How often the group was set back here. All that is in hand is of this round.
    pub(super) round: u64,
    pub(super) ordered: bool,
    pub(super) phase: Phase,
    /// The number of the ownership; 0 where there is no order.
    pub(super) epoch: u64,
    /// Until when the ownership holds, as far as this process knows.
    pub(super) owned_until: Instant,
    /// To be given up until then.
    pub(super) revoking: Option<Instant>,
    /// On its way to be given up: not to be taken for owned.
    pub(super) leaving: bool,
    /// Something of it is just being given back: nothing is fetched meanwhile.
    pub(super) held_back: bool,
    /// Raised when draining begins again: what was fetched before is of no use.
    pub(super) drains: u64,
}

/// Where a call about a lane goes, and in which round: as it was when it was made.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) stream: Arc<str>,
    pub(super) meta: Arc<str>,
    pub(super) field: Arc<str>,
    pub(super) round: u64,
}

impl Argument for Place {
    fn put(&self, cmd: &mut Cmd) {
        cmd.arg(&*self.field).arg(self.round);
    }
}

impl Lane {
    pub(super) fn place(&self) -> Place {
        let Lane { stream, meta, round_field, round, .. } = self;
        Place { stream: Arc::clone(stream), meta: Arc::clone(meta), field: Arc::clone(round_field), round: *round }
    }

    pub(super) fn new(route: usize, topic: &TopicSpec, shard: u32, group: &str) -> Self {
        let ordered = topic.ordered;
        // What an earlier subscription of this member left comes first.
        let phase = if ordered { Phase::Idle } else { Phase::Draining(EntryId::default()) };
        let owned_until = Instant::now();
        Lane {
            route,
            shard,
            stream: keys::stream(&topic.name, topic.shards, shard),
            meta: keys::meta(&topic.name).into(),
            round_field: keys::round(shard, group).into(),
            round: 0,
            ordered,
            phase,
            epoch: 0,
            owned_until,
            revoking: None,
            leaving: false,
            held_back: false,
            drains: 0,
        }
    }

    pub(super) fn is_owned(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Whether new entries may be handed out.
    fn is_open(&self) -> bool {
        self.is_owned() && self.revoking.is_none()
    }
}

/// Entries of one lane that wait, in order.
#[derive(Debug)]
struct Run {
    lane: usize,
    epoch: u64,
    items: VecDeque<Delivery>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) lanes: Vec<Lane>,
    pub(super) held: Slab<Held>,
    by_id: HashMap<(usize, EntryId), Token>,
    runs: VecDeque<Run>,
    count: usize,
    bytes: usize,
    /// The largest of the last entries: how many fit into the bytes that are free.
    largest: usize,
    pub(super) signals: VecDeque<Signal>,
    pub(super) paused: bool,
    pub(super) ended: Option<Error>,
    /// When something that was given back here is due.
    pub(super) due: Option<Instant>,
}

/// What the reader is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Fetch pending entries of a lane from there on, at most this many.
    Drain(usize, EntryId, usize),
    /// Read these lanes, at most this many in all.
    Read(Vec<usize>, usize),
    /// Nothing before something changes.
    Wait,
}

/// An entry as it came: its id, its fields, how often it was handed out.
pub(super) type Came = (EntryId, Vec<Value>, u32);

impl State {
    pub(super) fn new(lanes: Vec<Lane>) -> Self {
        State {
            lanes,
            held: Slab::default(),
            by_id: HashMap::new(),
            runs: VecDeque::new(),
            count: 0,
            bytes: 0,
            largest: 0,
            signals: VecDeque::new(),
            paused: false,
            ended: None,
            due: None,
        }
    }

    /// How many more may be fetched; 0 while at least a quarter of the room is not free.
    pub(super) fn room(&self, prefetch: Prefetch) -> usize {
        let (count, bytes) = (prefetch.count.max(1), prefetch.bytes.max(1));
        if self.paused || self.count > count - count.div_ceil(4) || self.bytes > bytes - bytes.div_ceil(4) {
            return 0;
        }
        // The first one shows how large they are.
        let fitting = (bytes - self.bytes).checked_div(self.largest).unwrap_or(1);
        fitting.clamp(1, count - self.count)
    }

    /// What to fetch next. `ahead` is how long a read may take: no shard is read whose ownership may end before.
    pub(super) fn plan(&self, prefetch: Prefetch, now: Instant, ahead: Duration) -> Plan {
        let room = self.room(prefetch);
        if room == 0 || self.ended.is_some() {
            return Plan::Wait;
        }
        let sure = |lane: &Lane| !lane.ordered || lane.owned_until > now + ahead;
        let open = || self.lanes.iter().enumerate().filter(|(_, lane)| lane.is_open() && !lane.leaving && !lane.held_back && sure(lane));
        for (at, lane) in open() {
            if let Phase::Draining(from) = lane.phase {
                return Plan::Drain(at, from, room);
            }
        }
        let lanes: Vec<usize> = open().map(|(at, _)| at).collect();
        if lanes.is_empty() { Plan::Wait } else { Plan::Read(lanes, room) }
    }

    /// Whether this entry is in hand.
    pub(super) fn holds(&self, lane: usize, id: EntryId) -> bool {
        self.by_id.contains_key(&(lane, id))
    }

    /// Takes what came for a lane into the buffer. What may not be handed out now stays pending on the server.
    pub(super) fn admit(&mut self, at: usize, came: Vec<Came>, now: Instant, lease: Duration) {
        let lane = &self.lanes[at];
        if !lane.is_open() || came.is_empty() {
            return;
        }
        let (shard, epoch) = (lane.shard, lane.epoch);
        let mut items = VecDeque::with_capacity(came.len());
        let mut largest = 0;
        for (id, fields, count) in came {
            let entry = envelope::read(fields);
            let token = self.held.insert(Held { lane: at, id, count, kept: now });
            // It came again while it was in hand (the group was set back, or its lease had ended): the earlier one is stale.
            if let Some(earlier) = self.by_id.insert((at, id), token) {
                self.held.remove(earlier);
                self.unbuffer(|delivery| delivery.token == earlier);
            }
            let delivery = Delivery {
                token,
                position: Position { shard, offset: id.offset() },
                id: entry.id,
                key: entry.key,
                payload: entry.payload,
                headers: entry.headers,
                deliveries: Deliveries::UpperBound(count),
                stored_at: id.ms,
                lease_end: Some(now + lease),
            };
            let size = delivery.size();
            self.bytes += size;
            largest = largest.max(size);
            items.push_back(delivery);
        }
        self.count += items.len();
        // Falls slowly, so that a few small ones do not make room for many large ones.
        self.largest = largest.max(self.largest - self.largest / 8);
        match self.runs.back_mut() {
            Some(run) if run.lane == at && run.epoch == epoch => run.items.append(&mut items),
            _ => self.runs.push_back(Run { lane: at, epoch, items }),
        }
    }

    /// What `next` hands out: signals first, then what waits.
    pub(super) fn take(&mut self, max: usize, max_bytes: usize) -> Vec<Signal> {
        let mut out: Vec<Signal> = self.signals.drain(..).collect();
        if self.paused {
            return out;
        }
        let (mut left, mut bytes) = (max, 0);
        while left > 0 && bytes < max_bytes {
            let Some(run) = self.runs.front_mut() else { break };
            let mut items = Vec::with_capacity(run.items.len().min(left));
            while left > 0 && bytes < max_bytes {
                let Some(delivery) = run.items.pop_front() else { break };
                let size = delivery.size();
                bytes += size;
                self.bytes -= size;
                self.count -= 1;
                left -= 1;
                items.push(delivery);
            }
            let lane = &self.lanes[run.lane];
            let (route, shard, epoch) = (lane.route, lane.shard, run.epoch);
            if run.items.is_empty() {
                self.runs.pop_front();
            }
            if !items.is_empty() {
                out.push(Signal::Deliveries { route, shard, epoch, items });
            }
        }
        out
    }

    /// Takes an entry out of hand.
    pub(super) fn release(&mut self, token: Token) -> Option<Held> {
        let held = self.held.remove(token)?;
        self.by_id.remove(&(held.lane, held.id));
        Some(held)
    }

    /// Entries whose lease was lost: in hand no more.
    pub(super) fn lose(&mut self, lane: usize, ids: &[EntryId]) {
        let tokens: Vec<Token> = ids.iter().filter_map(|id| self.by_id.get(&(lane, *id)).copied()).collect();
        for token in &tokens {
            self.release(*token);
        }
        if !tokens.is_empty() {
            self.unbuffer(|delivery| tokens.contains(&delivery.token));
        }
    }

    /// The leases of these were kept.
    pub(super) fn kept(&mut self, tokens: &[Token], at: Instant) {
        for token in tokens {
            if let Some(held) = self.held.get_mut(*token) {
                held.kept = at;
            }
        }
    }

    /// Takes out of the buffer, and out of hand, all that waits of these lanes.
    pub(super) fn take_buffered(&mut self, of: impl Fn(usize) -> bool) -> Vec<Held> {
        let mut tokens = Vec::new();
        for run in &mut self.runs {
            if of(run.lane) {
                tokens.extend(run.items.drain(..).map(|delivery| {
                    self.bytes -= delivery.size();
                    self.count -= 1;
                    delivery.token
                }));
            }
        }
        self.runs.retain(|run| !run.items.is_empty());
        tokens.into_iter().filter_map(|token| self.release(token)).collect()
    }

    fn unbuffer(&mut self, gone: impl Fn(&Delivery) -> bool) {
        for run in &mut self.runs {
            run.items.retain(|delivery| {
                let stays = !gone(delivery);
                if !stays {
                    self.bytes -= delivery.size();
                    self.count -= 1;
                }
                stays
            });
        }
        self.runs.retain(|run| !run.items.is_empty());
    }

    /// Drops all of a lane: it is somebody else's now.
    pub(super) fn forget(&mut self, at: usize) {
        self.take_buffered(|lane| lane == at);
        let tokens: Vec<Token> = self.held.iter().filter(|(_, held)| held.lane == at).map(|(token, _)| token).collect();
        for token in tokens {
            self.release(token);
        }
        let lane = &mut self.lanes[at];
        (lane.phase, lane.revoking) = (Phase::Idle, None);
    }

    /// A shard that was owned is gone.
    pub(super) fn lose_lane(&mut self, at: usize) {
        if self.lanes[at].is_owned() {
            self.forget(at);
            let lane = &self.lanes[at];
            self.signals.push_back(Signal::Lost { route: lane.route, shard: lane.shard });
        }
    }

    /// All that was handed out is out of hand.
    pub(super) fn drain_held(&mut self) -> Vec<Held> {
        let tokens: Vec<Token> = self.held.iter().map(|(token, _)| token).collect();
        tokens.into_iter().filter_map(|token| self.release(token)).collect()
    }

    /// Something of an ordered lane is given back: it comes before all that waits here, which goes back with it.
    pub(super) fn hold_back(&mut self, at: usize) -> Vec<Held> {
        if !self.lanes[at].ordered {
            return Vec::new();
        }
        self.lanes[at].held_back = true;
        self.take_buffered(|lane| lane == at)
    }

    /// It was given back.
    pub(super) fn let_go(&mut self, at: usize) {
        if self.lanes[at].ordered {
            self.lanes[at].held_back = false;
            self.drain_again(at);
        }
    }

    /// The group was set back on a lane: what is in hand of it is stale, and nothing of it is pending any more.
    pub(super) fn set_round(&mut self, at: usize, round: u64) {
        if round <= self.lanes[at].round {
            return;
        }
        self.lanes[at].round = round;
        self.take_buffered(|lane| lane == at);
        let tokens: Vec<Token> = self.held.iter().filter(|(_, held)| held.lane == at).map(|(token, _)| token).collect();
        for token in tokens {
            self.release(token);
        }
    }

    /// Pending entries of a lane are fetched again before anything new.
    pub(super) fn drain_again(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if lane.is_owned() {
            lane.phase = Phase::Draining(EntryId::default());
            lane.drains += 1;
        }
    }

    /// What is in hand of each lane, by id.
    pub(super) fn by_lane(&self) -> Vec<(usize, Vec<(EntryId, Token)>)> {
        if self.held.len() == 0 {
            return Vec::new();
        }
        let mut lanes: Vec<Vec<(EntryId, Token)>> = vec![Vec::new(); self.lanes.len()];
        for (token, held) in self.held.iter() {
            lanes[held.lane].push((held.id, token));
        }
        let mut all: Vec<_> = lanes.into_iter().enumerate().filter(|(_, ids)| !ids.is_empty()).collect();
        all.iter_mut().for_each(|(_, ids)| ids.sort_unstable_by_key(|(id, _)| *id));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFETCH: Prefetch = Prefetch { count: 8, bytes: 10_000 };
    const LEASE: Duration = Duration::from_secs(30);

    fn lane(shard: u32, ordered: bool) -> Lane {
        let phase = if ordered { Phase::Idle } else { Phase::Reading };
        let topic = TopicSpec::new("t", 2, ordered);
        Lane { phase, ..Lane::new(0, &topic, shard, "g") }
    }

    fn came(ms: std::ops::Range<u64>, size: usize) -> Vec<Came> {
        let fields = || vec![Value::BulkString(b"payload".to_vec()), Value::BulkString(vec![b'x'; size])];
        ms.map(|ms| (EntryId::at(ms), fields(), 1)).collect()
    }

    fn offsets(signals: &[Signal]) -> Vec<u64> {
        let of = |signal: &Signal| match signal {
            Signal::Deliveries { items, .. } => items.iter().map(|item| EntryId::from_offset(item.position.offset).ms).collect(),
            _ => Vec::new(),
        };
        signals.iter().flat_map(of).collect()
    }

    #[test]
    fn what_is_fetched_is_bounded_by_count_and_bytes() {
        let mut state = State::new(vec![lane(0, false)]);
        let now = Instant::now();
        assert_eq!(state.room(PREFETCH), 1, "the first shows the size");
        state.admit(0, came(0..1, 936), now, LEASE);
        assert_eq!(state.room(PREFETCH), 7);
        state.admit(0, came(1..6, 936), now, LEASE);
        assert_eq!(state.room(PREFETCH), 2, "six of 1,000 bytes wait: two more of eight");
        state.admit(0, came(6..8, 1_936), now, LEASE);
        assert_eq!(state.room(PREFETCH), 0);
        assert_eq!(offsets(&state.take(3, usize::MAX)), [0, 1, 2]);
        assert_eq!(offsets(&state.take(9, 1_000)), [3]);
        assert_eq!(state.room(PREFETCH), 2, "6,000 bytes wait; two of 2,000 fit");
        state.paused = true;
        assert_eq!((state.room(PREFETCH), state.take(9, usize::MAX).len()), (0, 0));
    }

    #[test]
    fn what_comes_again_makes_the_earlier_stale() {
        let mut state = State::new(vec![lane(0, false)]);
        let now = Instant::now();
        state.admit(0, came(0..4, 1), now, LEASE);
        let Some(Signal::Deliveries { items, .. }) = state.take(2, usize::MAX).pop() else { panic!("two") };
        state.admit(0, came(0..4, 1), now, LEASE);
        assert_eq!(offsets(&state.take(9, usize::MAX)), [0, 1, 2, 3], "each once");
        assert!(items.iter().all(|item| state.release(item.token).is_none()));
        assert_eq!((state.held.len(), state.count, state.bytes), (4, 0, 0));
        state.lose(0, &[EntryId::at(1), EntryId::at(9)]);
        assert_eq!(state.held.len(), 3);
    }

    #[test]
    fn a_shard_is_read_by_its_owner_only_and_drained_first() {
        let mut state = State::new(vec![lane(0, true), lane(1, true)]);
        let (now, ahead) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(state.plan(PREFETCH, now, ahead), Plan::Wait);
        state.lanes[1] = Lane { phase: Phase::Draining(EntryId::at(3)), owned_until: now + ahead * 3, epoch: 7, ..lane(1, true) };
        assert_eq!(state.plan(PREFETCH, now, ahead), Plan::Drain(1, EntryId::at(3), 1));
        state.lanes[1].phase = Phase::Reading;
        assert_eq!(state.plan(PREFETCH, now, ahead), Plan::Read(vec![1], 1));
        assert_eq!(state.plan(PREFETCH, now + ahead * 2, ahead), Plan::Wait, "the ownership may end while it is read");
        state.admit(1, came(0..3, 1), now, LEASE);
        state.admit(0, came(0..3, 1), now, LEASE);
        state.lanes[1].revoking = Some(now);
        state.admit(1, came(3..5, 1), now, LEASE);
        assert_eq!(state.held.len(), 3, "neither what is not owned nor what is being revoked");
        state.lose_lane(1);
        assert_eq!((state.held.len(), state.count, state.signals.len()), (0, 0, 1));
        assert!(matches!(state.take(9, usize::MAX)[..], [Signal::Lost { shard: 1, .. }]));
    }

    #[test]
    fn what_was_handed_out_before_the_group_was_set_back_is_stale() {
        let mut state = State::new(vec![lane(0, false), lane(1, false)]);
        let now = Instant::now();
        state.admit(0, came(0..4, 1), now, LEASE);
        state.admit(1, came(0..2, 1), now, LEASE);
        let Some(Signal::Deliveries { items, .. }) = state.take(2, usize::MAX).pop() else { panic!("two") };
        state.set_round(0, 1);
        assert!(items.iter().all(|item| state.release(item.token).is_none()));
        assert_eq!((state.held.len(), offsets(&state.take(9, usize::MAX))), (2, vec![0, 1]), "the other lane's");
        state.admit(0, came(0..4, 1), now, LEASE);
        state.set_round(0, 1);
        assert_eq!(offsets(&state.take(9, usize::MAX)), [0, 1, 2, 3], "of this round");
    }

    #[test]
    fn what_waits_is_taken_back_by_lane() {
        let mut state = State::new(vec![lane(0, false), lane(1, false)]);
        let now = Instant::now();
        for (at, range) in [(0, 0..2), (1, 0..3), (0, 2..4)] {
            state.admit(at, came(range, 1), now, LEASE);
        }
        assert_eq!(offsets(&state.take(1, usize::MAX)), [0]);
        assert_eq!(state.take_buffered(|lane| lane == 0).len(), 3);
        assert_eq!(state.by_lane().iter().map(|(lane, ids)| (*lane, ids.len())).collect::<Vec<_>>(), [(0, 1), (1, 3)]);
        assert_eq!(offsets(&state.take(9, usize::MAX)), [0, 1, 2]);
    }
}
