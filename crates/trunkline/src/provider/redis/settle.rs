//! Settling: one `XACK` for many, and giving back without counting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::id::EntryId;
use super::link::{int, items};
use super::script::{ACK, KEEP, REAP, RELEASE};
use super::state::Held;
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
/// A group that was set back is read again at once: how long a settle that met nothing waits for that.
const SET_BACK: Duration = Duration::from_millis(250);

/// An entry to be given back: where, how long it is to count as idle, with which count.
struct Back {
    held: Held,
    idle: Duration,
    count: u32,
    answer: Option<usize>,
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
        let mut pipeline = redis::pipe();
        let mut sent = Vec::new();
        let mut strange = false;
        for (lane, items) in acks {
            let (stream, owner) = {
                let state = self.state.lock();
                let lane = &state.lanes[lane];
                (Arc::clone(&lane.stream), lane.ordered.then(|| (self.owner_key(lane), self.owner(lane))))
            };
            for part in items.chunks(CHUNK) {
                if let Some((key, owner)) = &owner {
                    let ids: Vec<EntryId> = part.iter().map(|(_, id)| *id).collect();
                    let acked = self.core.work.run(&ACK, &[&stream, key], &[&&*self.group, owner, &ids], Code::SubscribeFailed).await;
                    let acked = acked.ok().as_ref().and_then(int);
                    strange |= note(part, acked, answers);
                    if acked == Some(-1) {
                        self.state.lock().lose_lane(lane);
                        self.arrived.notify_waiters();
                    }
                    continue;
                }
                let cmd = pipeline.cmd("XACK").arg(&*stream).arg(&*self.group);
                for (_, id) in part {
                    cmd.arg(id);
                }
                sent.push(part.to_vec());
            }
        }
        if !sent.is_empty() {
            let acked = self.core.work.pipe(&pipeline).await.unwrap_or_default();
            for (at, part) in sent.iter().enumerate() {
                strange |= note(part, acked.get(at).and_then(int), answers);
            }
        }
        if strange {
            // The group was set back, or made anew: what it is handed now is read before anything more is said.
            self.quiet(Instant::now() + SET_BACK).await;
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
            let stream = {
                let mut state = self.state.lock();
                let behind = state.hold_back(lane);
                list.extend(uncounted(behind));
                Arc::clone(&state.lanes[lane].stream)
            };
            for part in list.chunks(CHUNK / 3) {
                let mut args: Vec<String> = Vec::with_capacity(part.len() * 3);
                for back in part {
                    args.extend([back.held.id.to_string(), millis(back.idle).to_string(), back.count.to_string()]);
                }
                let given = self
                    .core
                    .work
                    .run(&RELEASE, &[&stream], &[&&*self.group, &&*self.member, &RELEASED, &args], Code::SubscribeFailed)
                    .await;
                let given: Option<Vec<Value>> = given.ok().map(items);
                for (at, back) in part.iter().enumerate() {
                    let Some(answer) = back.answer else { continue };
                    answers[answer] = match given.as_ref().and_then(|given| given.get(at)).and_then(int) {
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
    async fn keep_ids(&self, lane: usize, ids: &[EntryId]) -> Result<Vec<EntryId>> {
        let stream = Arc::clone(&self.state.lock().lanes[lane].stream);
        let lost = self.core.work.run(&KEEP, &[&stream], &[&&*self.group, &&*self.member, &ids], Code::SubscribeFailed).await?;
        Ok(items(lost).iter().filter_map(EntryId::of).collect())
    }
}

/// Answers for a part of an ack: all of it held, or nothing, or it cannot be said which. `true` if not all of it held.
fn note(part: &[(usize, EntryId)], acked: Option<i64>, answers: &mut [Settled]) -> bool {
    let all = i64::try_from(part.len()).unwrap_or(i64::MAX);
    let answer = match acked {
        Some(acked) if acked == all => Settled::Settled,
        Some(acked) if acked <= 0 => Settled::Stale,
        _ => Settled::Unknown,
    };
    part.iter().for_each(|(at, _)| answers[*at] = answer);
    acked.is_some_and(|acked| acked != all)
}

fn uncounted(held: Vec<Held>) -> Vec<Back> {
    held.into_iter().map(|held| Back { count: held.count.saturating_sub(1), held, idle: AT_ONCE, answer: None }).collect()
}
