//! One group on one topic: what was handed out to whom, and who owns which shard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use trunkline::delivery::Position;

use super::REVOKE;

/// Names a member.
pub(super) type MemberId = u64;

#[derive(Debug, Default)]
struct Shard {
    /// Below it everything was handed out at least once.
    next: u64,
    /// Handed out before, waiting to be handed out again, not before.
    again: BTreeMap<u64, Instant>,
    /// Handed out.
    held: BTreeMap<u64, MemberId>,
    /// How often each was handed out.
    counts: BTreeMap<u64, u32>,
    owner: Option<MemberId>,
    epoch: u64,
    revoking: Option<Instant>,
    /// Raised by a seek: what was handed out before is stale.
    round: u64,
}

/// What a member is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    Assigned(u32, u64),
    Revoking(u32, Instant),
    Lost(u32),
}

#[derive(Debug)]
pub(super) struct Group {
    shards: Vec<Shard>,
    members: BTreeMap<MemberId, Vec<Notice>>,
    ordered: bool,
}

/// A hand-out: where, under which epoch and round, how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct HandOut {
    pub(super) position: Position,
    pub(super) epoch: u64,
    pub(super) round: u64,
    pub(super) count: u32,
}

impl Group {
    pub(super) fn new(starts: &[u64]) -> Self {
        let shards = starts.iter().map(|next| Shard { next: *next, ..Shard::default() }).collect();
        Group { shards, members: BTreeMap::new(), ordered: false }
    }

    pub(super) fn join(&mut self, member: MemberId, ordered: bool) {
        self.ordered = ordered;
        self.members.insert(member, Vec::new());
        self.balance();
    }

    /// The member is gone: what it held comes again.
    pub(super) fn leave(&mut self, member: MemberId, counted: bool) {
        self.members.remove(&member);
        for shard in &mut self.shards {
            shard.give_back(member, counted);
            if shard.owner == Some(member) {
                (shard.owner, shard.revoking) = (None, None);
            }
        }
        self.balance();
    }

    fn balance(&mut self) {
        let members: Vec<_> = self.members.keys().copied().collect();
        if !self.ordered || members.is_empty() {
            return;
        }
        for at in 0..self.shards.len() {
            let wanted = members[at % members.len()];
            let (shard, index) = (&mut self.shards[at], at as u32);
            match shard.owner {
                None => {
                    shard.epoch += 1;
                    shard.owner = Some(wanted);
                    self.members.get_mut(&wanted).unwrap().push(Notice::Assigned(index, shard.epoch));
                }
                Some(owner) if owner != wanted && shard.revoking.is_none() => {
                    let deadline = Instant::now() + REVOKE;
                    shard.revoking = Some(deadline);
                    self.members.get_mut(&owner).unwrap().push(Notice::Revoking(index, deadline));
                }
                Some(_) => {}
            }
        }
    }

    /// Takes away what was not given up in time.
    fn expire(&mut self) {
        for at in 0..self.shards.len() {
            let shard = &mut self.shards[at];
            let (Some(owner), Some(deadline)) = (shard.owner, shard.revoking) else { continue };
            if deadline <= Instant::now() {
                shard.free(owner);
                self.members.get_mut(&owner).unwrap().push(Notice::Lost(at as u32));
                self.balance();
            }
        }
    }

    pub(super) fn yielded(&mut self, member: MemberId, shard: u32) {
        let of = &mut self.shards[shard as usize];
        if of.owner == Some(member) && of.revoking.is_some() {
            of.free(member);
            self.balance();
        }
    }

    pub(super) fn notices(&mut self, member: MemberId) -> Vec<Notice> {
        self.expire();
        self.members.get_mut(&member).map(std::mem::take).unwrap_or_default()
    }

    /// When something happens by itself.
    pub(super) fn alarm(&self) -> Option<Instant> {
        self.shards.iter().flat_map(|shard| shard.again.values().chain(&shard.revoking)).min().copied()
    }

    /// The next message for this member.
    pub(super) fn hand_out(&mut self, member: MemberId, ends: &[u64]) -> Option<HandOut> {
        let now = Instant::now();
        for (at, shard) in self.shards.iter_mut().enumerate() {
            if self.ordered && (shard.owner != Some(member) || shard.revoking.is_some()) {
                continue;
            }
            let due = shard.again.iter().find(|(_, after)| **after <= now).map(|(offset, _)| *offset);
            let offset = match due {
                Some(offset) => offset,
                None if shard.next < ends[at] => {
                    shard.next += 1;
                    shard.next - 1
                }
                None => continue,
            };
            shard.again.remove(&offset);
            shard.held.insert(offset, member);
            let count = shard.counts.entry(offset).or_default();
            *count += 1;
            let position = Position { shard: at as u32, offset };
            return Some(HandOut { position, epoch: shard.epoch, round: shard.round, count: *count });
        }
        None
    }

    /// Whether the hand-out still stands.
    pub(super) fn holds(&self, member: MemberId, of: &HandOut) -> bool {
        let shard = &self.shards[of.position.shard as usize];
        shard.held.get(&of.position.offset) == Some(&member) && shard.round == of.round && (!self.ordered || shard.epoch == of.epoch)
    }

    pub(super) fn done(&mut self, position: Position) {
        let shard = &mut self.shards[position.shard as usize];
        shard.held.remove(&position.offset);
        shard.counts.remove(&position.offset);
    }

    pub(super) fn again(&mut self, position: Position, after: Duration, counted: bool) {
        let shard = &mut self.shards[position.shard as usize];
        shard.held.remove(&position.offset);
        shard.again.insert(position.offset, Instant::now() + after);
        if !counted {
            shard.uncount(position.offset);
        }
    }

    /// Ready, held, and the lowest position of each shard that is waiting.
    pub(super) fn depth(&self, ends: &[u64]) -> (u64, u64, Vec<Position>) {
        let mut sum = (0, 0, Vec::new());
        for (at, (shard, end)) in self.shards.iter().zip(ends).enumerate() {
            sum.0 += end.saturating_sub(shard.next) + shard.again.len() as u64;
            sum.1 += shard.held.len() as u64;
            let waiting: BTreeSet<_> = shard.again.keys().chain(shard.held.keys()).copied().chain([shard.next]).collect();
            sum.2.extend(waiting.first().map(|offset| Position { shard: at as u32, offset: *offset }));
        }
        sum
    }

    pub(super) fn seek(&mut self, starts: &[Option<u64>]) {
        for (shard, start) in self.shards.iter_mut().zip(starts) {
            if let Some(start) = start {
                shard.next = *start;
                shard.round += 1;
                shard.again.clear();
                shard.held.clear();
            }
        }
    }
}

impl Shard {
    fn uncount(&mut self, offset: u64) {
        if let Some(count) = self.counts.get_mut(&offset) {
            *count = count.saturating_sub(1);
        }
    }

    fn give_back(&mut self, member: MemberId, counted: bool) {
        let held: Vec<_> = self.held.iter().filter(|(_, holder)| **holder == member).map(|(offset, _)| *offset).collect();
        for offset in held {
            self.held.remove(&offset);
            self.again.insert(offset, Instant::now());
            if !counted {
                self.uncount(offset);
            }
        }
    }

    fn free(&mut self, owner: MemberId) {
        self.give_back(owner, true);
        (self.owner, self.revoking) = (None, None);
    }
}
