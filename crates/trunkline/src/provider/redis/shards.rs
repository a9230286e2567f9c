//! Ordered topics: which shards this member owns, and how they are taken, kept and given up.
//!
//! An owner is a key that ends with its lease; its value carries the epoch, which only rises. Each member counts who else is
//! there and takes or gives up shards until it has its share.

use std::sync::Arc;
use std::time::Instant;

use super::id::EntryId;
use super::keys;
use super::link::{int, items, strange};
use super::script::{DISOWN, OWN};
use super::state::{Lane, Phase};
use super::subscription::Shared;
use crate::error::{Code, Result};
use crate::message::millis;
use crate::provider::Signal;

impl Shared {
    /// The value of the owner's key while this member owns the lane.
    pub(super) fn owner(&self, lane: &Lane) -> String {
        format!("{}:{}", lane.epoch, self.member)
    }

    pub(super) fn owner_key(&self, lane: &Lane) -> String {
        keys::owner(&self.routes[lane.route].name, &self.group, lane.shard)
    }

    /// Says that this member lives, and takes note of what it owns. Nothing for a topic without order.
    pub(super) async fn own(&self, route: usize) -> Result<()> {
        let topic = &self.routes[route];
        if !topic.ordered {
            return Ok(());
        }
        let _one = self.moving.lock().await;
        let mut keys = vec![keys::members(&topic.name, &self.group), keys::meta(&topic.name)];
        keys.extend((0..topic.shards.max(1)).map(|shard| keys::owner(&topic.name, &self.group, shard)));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let asked = Instant::now();
        let lease = self.lease();
        let args = [&&*self.member as &dyn super::link::Argument, &millis(lease), &&*self.group];
        let answer = items(self.core.work.run(&OWN, &keys, &args, Code::SubscribeFailed).await?);
        let numbers: Vec<u64> = answer.iter().filter_map(int).filter_map(|n| u64::try_from(n).ok()).collect();
        let Some((share, epochs)) = numbers.split_first().filter(|(_, epochs)| epochs.len() == keys.len() - 2) else {
            return Err(strange("who owns what"));
        };
        self.note_owned(route, *share, epochs, asked + lease);
        drop(_one);
        self.give_up_late().await;
        Ok(())
    }

    fn note_owned(&self, route: usize, share: u64, epochs: &[u64], until: Instant) {
        let mut state = self.state.lock();
        let lanes: Vec<usize> = (0..state.lanes.len()).filter(|at| state.lanes[*at].route == route).collect();
        let mut owned = Vec::new();
        for at in lanes {
            let lane = &state.lanes[at];
            let epoch = epochs[lane.shard as usize];
            if lane.leaving {
                continue;
            }
            if lane.is_owned() && lane.epoch != epoch {
                state.lose_lane(at);
            }
            if epoch == 0 {
                continue;
            }
            let lane = &mut state.lanes[at];
            lane.owned_until = until;
            if !lane.is_owned() {
                (lane.epoch, lane.revoking) = (epoch, None);
                lane.phase = Phase::Draining(EntryId::default());
                let (route, shard) = (lane.route, lane.shard);
                state.signals.push_back(Signal::Assigned { route, shard, epoch });
            }
            if state.lanes[at].revoking.is_none() {
                owned.push(at);
            }
        }
        let moving = state.lanes.iter().filter(|lane| lane.route == route && lane.is_owned() && lane.revoking.is_some()).count();
        let too_many = (owned.len() + moving).saturating_sub(usize::try_from(share).unwrap_or(usize::MAX)).saturating_sub(moving);
        let deadline = Instant::now() + self.core.options.revoke;
        for at in owned.into_iter().rev().take(too_many) {
            // What only waits here is the next owner's.
            state.take_buffered(|lane| lane == at);
            let lane = &mut state.lanes[at];
            lane.revoking = Some(deadline);
            let (route, shard) = (lane.route, lane.shard);
            state.signals.push_back(Signal::Revoking { route, shard, deadline });
        }
        drop(state);
        self.arrived.notify_waiters();
        self.wanted.notify_one();
    }

    /// Takes away what was not given up in time, and notes what ended without a word.
    pub(super) async fn give_up_late(&self) {
        let now = Instant::now();
        let late: Vec<usize> = {
            let mut state = self.state.lock();
            let ended: Vec<usize> =
                (0..state.lanes.len()).filter(|at| state.lanes[*at].ordered && state.lanes[*at].owned_until < now).collect();
            ended.into_iter().for_each(|at| state.lose_lane(at));
            (0..state.lanes.len()).filter(|at| state.lanes[*at].revoking.is_some_and(|deadline| deadline < now)).collect()
        };
        self.arrived.notify_waiters();
        for at in late {
            self.give_up(at, true).await;
        }
    }

    /// Everything of the shard was settled.
    pub(super) async fn yield_shard(&self, route: usize, shard: u32) {
        let at = self.state.lock().lanes.iter().position(|lane| lane.ordered && lane.route == route && lane.shard == shard);
        if let Some(at) = at {
            self.give_up(at, false).await;
        }
    }

    /// Stops reading a shard, and only then lets others have it.
    async fn give_up(&self, at: usize, lost: bool) {
        let (key, owner, until) = {
            let mut state = self.state.lock();
            let lane = &mut state.lanes[at];
            if !lane.is_owned() || lane.leaving {
                return;
            }
            lane.leaving = true;
            let (key, owner, until) = (self.owner_key(lane), self.owner(lane), lane.owned_until);
            if lost {
                state.lose_lane(at)
            } else {
                state.forget(at)
            }
            (key, owner, until)
        };
        self.arrived.notify_waiters();
        self.quiet(until.min(Instant::now() + self.core.options.block() * 2)).await;
        let _one = self.moving.lock().await;
        let members = keys::members(&self.routes[self.state.lock().lanes[at].route].name, &self.group);
        // If this fails the key ends with its lease.
        if let Err(error) = self.core.work.run(&DISOWN, &[&members, &key], &[&"", &owner], Code::SubscribeFailed).await {
            tracing::debug!(%error, "a shard could not be given up at once");
        }
        self.state.lock().lanes[at].leaving = false;
    }

    /// Gives up all shards, and leaves.
    pub(super) async fn disown_all(&self) {
        let _one = self.moving.lock().await;
        for (route, topic) in self.routes.iter().enumerate().filter(|(_, topic)| topic.ordered) {
            let mut keys = vec![keys::members(&topic.name, &self.group)];
            let mut owners = vec![self.member.to_string()];
            {
                let mut state = self.state.lock();
                for lane in state.lanes.iter_mut().filter(|lane| lane.route == route && lane.is_owned()) {
                    keys.push(self.owner_key(lane));
                    owners.push(self.owner(lane));
                    lane.phase = Phase::Idle;
                }
            }
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            if let Err(error) = self.core.work.run(&DISOWN, &keys, &[&owners], Code::SubscribeFailed).await {
                tracing::debug!(%error, "the group could not be left at once");
            }
        }
    }
}

/// For the keeper: the ordered lanes that are read.
pub(super) fn read_lanes(lanes: &[Lane]) -> Vec<(usize, Arc<str>)> {
    let read = |lane: &Lane| lane.ordered && lane.phase == Phase::Reading && lane.revoking.is_none();
    lanes.iter().enumerate().filter(|(_, lane)| read(lane)).map(|(at, lane)| (at, Arc::clone(&lane.stream))).collect()
}
