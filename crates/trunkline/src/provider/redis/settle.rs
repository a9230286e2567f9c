//! Settling: one `XACK` for many, and giving back without counting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::id::EntryId;
use super::link::{Argument, Call, int, items};
use super::reader::round;
use super::script::{ACK, KEEP, REAP, RELEASE};
use super::state::{Held, Place};
use super::subscription::Shared;
use crate::delivery::{Settle, Settled, Token};
use crate::error::{Code, Result};
use crate::message::millis;

/// Ids of one call.
pub(super) const CHUNK: usize = 1_000;
/// What was given back counts as idle for so long: longer than anybody's lease, so that it is claimed at the next look.
const AT_ONCE: Duration = Duration::from_secs(3600);
/// Who holds what was given back. Nobody reads under this name.
pub(super) const RELEASED: &str = "trunkline:released";
/// What an ack is answered instead of a number.
const NOT_OWNER: i64 = -1;
const SET_BACK: i64 = -2;

/// An entry to be given back: where, how long it is to count as idle, with which count.
struct Back {
    held: Held,
    idle: Duration,
    count: u32,
    answer: Option<usize>,
}

/// Ids of one lane that are acked by one call.
struct Part<'a> {
    at: usize,
    items: &'a [(usize, EntryId)],
    ids: Vec<EntryId>,
    place: Place,
    key: Option<String>,
    /// The owner it must be, where the lane is ordered.
    owner: String,
}

/// Ids of one lane, each with the place of its answer.
type Acks = Vec<(usize, Vec<(usize, EntryId)>)>;

fn push(acks: &mut Acks, lane: usize, item: (usize, EntryId)) {
    match acks.iter_mut().rev().find(|(of, _)| *of == lane) {
        Some((_, items)) => items.push(item),
        None => acks.push((lane, vec![item])),
    }
}

impl Shared {
    pub(super) async fn settle(&self, settles: &[(Token, Settle)]) -> Vec<Settled> {
        let mut answers = vec![Settled::Stale; settles.len()];
        let (mut acks, mut doubtful, mut backs) = (Acks::new(), Acks::new(), Vec::new());
        {
            let now = Instant::now();
            let lease = self.lease();
            let mut state = self.state.lock();
            for (at, (token, how)) in settles.iter().enumerate() {
                let Some(held) = state.held.get(*token).copied() else { continue };
                let ordered = state.lanes[held.lane].ordered;
                match how {
                    Settle::Done => {
                        // Somebody else may hold it by now: looked at before it is acked.
                        let list = if now.duration_since(held.kept) < lease { &mut acks } else { &mut doubtful };
                        push(list, held.lane, (at, held.id));
                    }
                    // More than Redis can wait for by itself: refused, and still held.
                    Settle::Retry { after, .. } if (ordered && !after.is_zero()) || *after > lease => {
                        answers[at] = Settled::Unknown;
                        continue;
                    }
                    Settle::Retry { after, counted } => {
                        let idle = if after.is_zero() { AT_ONCE } else { lease.saturating_sub(*after) };
                        let count = if *counted { held.count } else { held.count.saturating_sub(1) };
                        backs.push(Back { held, idle, count, answer: Some(at) });
                        let due = now + *after;
                        state.due = Some(state.due.map_or(due, |earlier| earlier.min(due)));
                    }
                    Settle::Release => {
                        backs.push(Back { held, idle: AT_ONCE, count: held.count.saturating_sub(1), answer: Some(at) });
                        state.due = Some(now);
                    }
                }
                state.release(*token);
            }
        }
        if !doubtful.is_empty() {
            self.still_held(doubtful, &mut acks).await;
        }
        if !acks.is_empty() {
            self.ack(acks, &mut answers).await;
        }
        if !backs.is_empty() {
            self.give_back(backs, &mut answers).await;
        }
        answers
    }

    /// Of these leases have ended as far as this process knows: adds those to `acks` that nobody has taken.
    async fn still_held(&self, doubtful: Acks, acks: &mut Acks) {
        for (lane, mut items) in doubtful {
            items.sort_unstable_by_key(|(_, id)| *id);
            for part in items.chunks(CHUNK) {
                let ids: Vec<EntryId> = part.iter().map(|(_, id)| *id).collect();
                if let Ok(lost) = self.keep_ids(lane, &ids).await {
                    part.iter().filter(|(_, id)| !lost.contains(id)).for_each(|item| push(acks, lane, *item));
                }
            }
        }
    }

    async fn ack(&self, acks: Acks, answers: &mut [Settled]) {
        let parts: Vec<Part> = {
            let state = self.state.lock();
            let parts = acks.iter().flat_map(|(at, items)| items.chunks(CHUNK).map(|items| (*at, items)));
            parts
                .map(|(at, items)| {
                    let lane = &state.lanes[at];
                    let owner = lane.ordered.then(|| (self.owner_key(lane), self.owner(lane)));
                    let (key, owner) = owner.unzip();
                    let place = lane.place();
                    Part { at, items, ids: items.iter().map(|(_, id)| *id).collect(), place, key, owner: owner.unwrap_or_default() }
                })
                .collect()
        };
        let group: &str = &self.group;
        let mut calls: Vec<Call<'_>> = Vec::with_capacity(parts.len());
        for part in &parts {
            let keys = [&*part.place.stream, &*part.place.meta].into_iter().chain(part.key.as_deref()).collect();
            calls.push((keys, vec![&group, &part.place, &part.owner, &part.ids]));
        }
        let acked = self.core.work.run_all(&ACK, &calls).await.unwrap_or_default();
        let mut acked = acked.into_iter();
        for part in &parts {
            let numbers: Vec<i64> = acked.next().map(items).unwrap_or_default().iter().filter_map(int).collect();
            let all = i64::try_from(part.ids.len()).unwrap_or(i64::MAX);
            let answer = match numbers.first() {
                Some(acked) if *acked == all => Settled::Settled,
                // None of them was pending, or not for us.
                Some(acked) if *acked <= 0 => Settled::Stale,
                // Some of them were not, or nothing came back: nobody can say which.
                _ => Settled::Unknown,
            };
            part.items.iter().for_each(|(at, _)| answers[*at] = answer);
            let mut state = self.state.lock();
            match numbers[..] {
                [NOT_OWNER, _] => state.lose_lane(part.at),
                [SET_BACK, round] => state.set_round(part.at, u64::try_from(round).unwrap_or(0)),
                _ => continue,
            }
            drop(state);
            self.arrived.notify_waiters();
        }
    }

    /// Gives back; what becomes of each is noted where it has an answer.
    async fn give_back(&self, backs: Vec<Back>, answers: &mut [Settled]) {
        let mut by_lane: Vec<(usize, Vec<Back>)> = Vec::new();
        for back in backs {
            match by_lane.iter_mut().rev().find(|(lane, _)| *lane == back.held.lane) {
                Some((_, list)) => list.push(back),
                None => by_lane.push((back.held.lane, vec![back])),
            }
        }
        for (lane, mut list) in by_lane {
            let place = {
                let mut state = self.state.lock();
                let behind = state.hold_back(lane);
                list.extend(uncounted(behind));
                state.lanes[lane].place()
            };
            for part in list.chunks(CHUNK / 3) {
                let mut args: Vec<String> = Vec::with_capacity(part.len() * 3);
                for back in part {
                    args.extend([back.held.id.to_string(), millis(back.idle).to_string(), back.count.to_string()]);
                }
                let keys = [&*place.stream, &*place.meta];
                let head: [&dyn Argument; 5] = [&&*self.group, &place, &&*self.member, &RELEASED, &args];
                let given = self.core.work.run(&RELEASE, &keys, &head, Code::SubscribeFailed).await;
                // The round, then an answer for each.
                let given: Option<Vec<Value>> = given.ok().map(items);
                for (at, back) in part.iter().enumerate() {
                    let Some(answer) = back.answer else { continue };
                    answers[answer] = match given.as_ref().and_then(|given| given.get(at + 1)).and_then(int) {
                        Some(1) => Settled::Settled,
                        Some(_) => Settled::Stale,
                        None => Settled::Unknown,
                    };
                }
            }
            self.state.lock().let_go(lane);
        }
        self.woken.notify_one();
        self.wanted.notify_one();
    }

    /// Gives back what waits here and nobody was handed.
    pub(super) async fn give_back_buffered(&self) {
        let backs = self.state.lock().take_buffered(|_| true);
        self.give_back(uncounted(backs), &mut []).await;
    }

    /// Gives back everything and leaves the group, as far as the server can still be reached.
    pub(super) async fn leave(&self) {
        let held: Vec<Held> = {
            let mut state = self.state.lock();
            state.take_buffered(|_| true).into_iter().chain(state.drain_held()).collect()
        };
        self.give_back(uncounted(held), &mut []).await;
        self.disown_all().await;
        let streams: Vec<_> = self.state.lock().lanes.iter().map(|lane| Arc::clone(&lane.stream)).collect();
        for stream in streams {
            let _ = self.core.work.run(&REAP, &[&stream], &[&&*self.group, &&*self.member], Code::SubscribeFailed).await;
        }
    }

    pub(super) async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        let mut wanted: Vec<(usize, Vec<(EntryId, Token)>)> = Vec::new();
        {
            let state = self.state.lock();
            for token in tokens {
                let Some(held) = state.held.get(*token) else { continue };
                match wanted.iter_mut().rev().find(|(lane, _)| *lane == held.lane) {
                    Some((_, list)) => list.push((held.id, *token)),
                    None => wanted.push((held.lane, vec![(held.id, *token)])),
                }
            }
        }
        let mut failed = Vec::new();
        for (lane, mut list) in wanted {
            list.sort_unstable_by_key(|(id, _)| *id);
            if self.keep_list(lane, &list).await.is_err() {
                failed.extend(list.into_iter().map(|(_, token)| token));
            }
        }
        let state = self.state.lock();
        let lease = self.lease();
        let held = |token: &Token| state.held.get(*token).is_some_and(|held| !failed.contains(token) || held.kept.elapsed() < lease);
        tokens.iter().map(held).collect()
    }

    /// Keeps the leases of a lane's entries, ascending; those that were lost are in hand no more.
    pub(super) async fn keep_list(&self, lane: usize, list: &[(EntryId, Token)]) -> Result<()> {
        for part in list.chunks(CHUNK) {
            let at = Instant::now();
            let ids: Vec<EntryId> = part.iter().map(|(id, _)| *id).collect();
            let lost = self.keep_ids(lane, &ids).await?;
            let kept: Vec<Token> = part.iter().filter(|(id, _)| !lost.contains(id)).map(|(_, token)| *token).collect();
            let mut state = self.state.lock();
            state.kept(&kept, at);
            state.lose(lane, &lost);
        }
        Ok(())
    }

    /// Renews these, ascending, and returns those that are pending for this member no more.
    pub(super) async fn keep_ids(&self, lane: usize, ids: &[EntryId]) -> Result<Vec<EntryId>> {
        let place = self.state.lock().lanes[lane].place();
        let keys = [&*place.stream, &*place.meta];
        let args: [&dyn Argument; 4] = [&&*self.group, &place, &&*self.member, &ids];
        let answer = items(self.core.work.run(&KEEP, &keys, &args, Code::SubscribeFailed).await?);
        if let Some(now) = answer.first().map(round)
            && now > place.round
        {
            self.state.lock().set_round(lane, now);
            self.arrived.notify_waiters();
        }
        Ok(answer.iter().skip(1).filter_map(EntryId::of).collect())
    }
}

fn uncounted(held: Vec<Held>) -> Vec<Back> {
    held.into_iter().map(|held| Back { count: held.count.saturating_sub(1), held, idle: AT_ONCE, answer: None }).collect()
}
