//! The keeper of a member: keeps the leases of all it has in hand, finds what others left, owns shards, trims.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::admin::entries;
use super::envelope::bytes;
use super::id::EntryId;
use super::link::{Call, int, items, strange};
use super::reader::round;
use super::script::{REAP, RECLAIM, TRIM};
use super::settle::RELEASED;
use super::shards::read_lanes;
use super::state::{Came, Phase};
use super::subscription::Shared;
use super::target::pairs;
use crate::error::{Code, Result};
use crate::message::millis;
use crate::provider::{Signal, SubscriptionState};

/// Consumers that have nothing pending and gave no sign of life for so long are removed.
const DEAD: Duration = Duration::from_secs(3600);
/// Every so many trims.
const REAP_EVERY: u32 = 20;
/// A look for what others left takes at most so many calls for one stream.
const PAGES: usize = 64;
/// Streams asked in one pipeline.
const STREAMS: usize = 256;

/// Keeps until the subscription ends.
pub(super) async fn keep(shared: Arc<Shared>) {
    let options = shared.core.options.clone();
    let (mut beat, mut look) = (Instant::now(), Instant::now());
    // Members that began together need not trim together.
    let mut trim = Instant::now() + options.trim.mul_f64(0.5 + rand::random::<f64>() / 2.0);
    let mut trims = 0;
    while !shared.stop.is_cancelled() {
        let due = shared.state.lock().due;
        let next = look.min(beat).min(trim).min(due.unwrap_or(look));
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = shared.woken.notified() => {}
            () = shared.stop.cancelled() => return,
        }
        let now = Instant::now();
        let mut done = Ok(());
        if now >= beat {
            beat = now + options.lease / 4;
            done = done.and(shared.beat().await);
        }
        let due = {
            let mut state = shared.state.lock();
            state.due.take_if(|due| *due <= now).is_some()
        };
        if now >= look || due {
            let regular = now >= look;
            if regular {
                look = now + options.tick();
                done = done.and(shared.look_after_shards().await);
            }
            done = done.and(shared.reclaim().await);
        }
        if now >= trim {
            trim = now + options.trim;
            trims += 1;
            done = done.and(shared.trim(trims % REAP_EVERY == 0).await);
        }
        match done {
            Ok(()) => {}
            Err(error) if error.detail_str("reason") == Some("data_gone") => {
                let error = shared.refused(error);
                return shared.end(error);
            }
            Err(error) => tracing::debug!(%error, group = %shared.group, "leases could not be looked after"),
        }
    }
}

impl Shared {
    /// Renews the lease of everything in hand, the buffer included.
    async fn beat(&self) -> Result<()> {
        let held = self.state.lock().by_lane();
        for (lane, list) in held {
            self.keep_list(lane, &list).await?;
        }
        Ok(())
    }

    async fn look_after_shards(&self) -> Result<()> {
        for route in 0..self.routes.len() {
            self.own(route).await?;
        }
        self.give_up_late().await;
        // An earlier owner's read may have ended after it lost the shard: what it took is pending for nobody who lives.
        let lanes = read_lanes(&self.state.lock().lanes);
        for part in lanes.chunks(STREAMS) {
            let mut pipeline = redis::pipe();
            for (_, stream) in part {
                pipeline.cmd("XPENDING").arg(&**stream).arg(&*self.group);
            }
            let answers = self.core.work.pipe(&pipeline).await?;
            for ((lane, _), answer) in part.iter().zip(answers) {
                let consumers = items(answer).into_iter().nth(3).map(items).unwrap_or_default();
                let strange =
                    consumers.into_iter().filter_map(|of| items(of).into_iter().next()).any(|name| bytes(name) != self.member.as_bytes());
                if strange {
                    self.state.lock().drain_again(*lane);
                    self.wanted.notify_one();
                }
            }
        }
        Ok(())
    }

    /// Takes over entries whose lease has ended, and those that were given back.
    async fn reclaim(&self) -> Result<()> {
        // What is still ours is renewed first: it is not to be taken over from ourselves.
        let late = self.lease() / 2;
        let old = self.state.lock().held.iter().any(|(_, held)| held.kept.elapsed() > late);
        if old {
            self.beat().await?;
        }
        let lanes: Vec<usize> = {
            let state = self.state.lock();
            // While the reader drains a lane it claims itself.
            let plain = state.lanes.iter().enumerate().filter(|(_, lane)| !lane.ordered && lane.phase == Phase::Reading);
            plain.map(|(at, _)| at).collect()
        };
        for part in lanes.chunks(STREAMS) {
            let mut open: Vec<(usize, EntryId)> = part.iter().map(|at| (*at, EntryId::default())).collect();
            for _ in 0..PAGES {
                let room = self.state.lock().room(self.prefetch);
                if open.is_empty() || room == 0 {
                    break;
                }
                let count = (room / open.len()).max(1);
                open = self.reclaim_page(open, count).await?;
            }
        }
        Ok(())
    }

    /// One call for each of these lanes; returns those that are not through.
    async fn reclaim_page(&self, open: Vec<(usize, EntryId)>, count: usize) -> Result<Vec<(usize, EntryId)>> {
        let places: Vec<_> = {
            let state = self.state.lock();
            open.iter().map(|(at, _)| state.lanes[*at].place()).collect()
        };
        let (group, member): (&str, &str) = (&self.group, &self.member);
        let lease = millis(self.lease());
        let mut calls: Vec<Call<'_>> = Vec::with_capacity(open.len());
        for (place, (_, from)) in places.iter().zip(&open) {
            calls.push((vec![&*place.stream, &*place.meta], vec![&group, place, &member, &lease, from, &count]));
        }
        let now = Instant::now();
        let answers = self.core.work.run_all(&RECLAIM, &calls).await?;
        let mut more = Vec::new();
        for ((lane, _), answer) in open.iter().zip(answers) {
            let answer = items(super::link::accepted(answer, Code::SubscribeFailed)?);
            let Ok([now_round, next, claimed, counts, trimmed]) = <[Value; 5]>::try_from(answer) else { return Err(strange("a claim")) };
            if let Some(trimmed) = int(&trimmed).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
                self.note_trimmed(trimmed);
            }
            let count = |count: &Value| int(count).and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
            let counts: Vec<u32> = items(counts).iter().map(count).collect();
            let came: Vec<Came> = entries(claimed).zip(counts).map(|((id, fields), count)| (id, fields, count)).collect();
            {
                let mut state = self.state.lock();
                state.set_round(*lane, round(&now_round));
                // Claimed in an earlier round than the one that is known meanwhile: pending for nobody.
                if state.lanes[*lane].round == round(&now_round) {
                    state.admit(*lane, came, now, self.lease());
                }
            }
            self.arrived.notify_waiters();
            match EntryId::of(&next) {
                Some(next) if next != EntryId::default() => more.push((*lane, next)),
                _ => {}
            }
        }
        Ok(more)
    }

    /// Removes settled entries that need not be kept, and now and then consumers that are long gone.
    async fn trim(&self, reap: bool) -> Result<()> {
        let options = &self.core.options;
        let quiet = self.trimmed.lock().take_if(|last| last.elapsed() > options.trim);
        if quiet.is_some() {
            self.signal(Signal::State(SubscriptionState::Live));
        }
        let streams: Vec<Arc<str>> = self.state.lock().lanes.iter().map(|lane| Arc::clone(&lane.stream)).collect();
        let bounds = [millis(options.keep_age), options.keep_count, options.keep_bytes];
        for stream in &streams {
            self.core.work.run(&TRIM, &[stream], &[&&bounds[..]], Code::SubscribeFailed).await?;
            if reap {
                self.reap(stream).await?;
            }
        }
        Ok(())
    }

    async fn reap(&self, stream: &str) -> Result<()> {
        let mut cmd = redis::cmd("XINFO");
        cmd.arg("CONSUMERS").arg(stream).arg(&*self.group);
        let mut dead = Vec::new();
        for consumer in items(self.core.work.call(&cmd, Code::SubscribeFailed).await?) {
            let (mut name, mut pending, mut idle) = (Vec::new(), 1, 0);
            for (field, value) in pairs(consumer) {
                match &field[..] {
                    b"name" => name = bytes(value),
                    b"pending" => pending = int(&value).unwrap_or(1),
                    b"idle" => idle = int(&value).unwrap_or(0),
                    _ => {}
                }
            }
            let old = u64::try_from(idle).is_ok_and(|idle| idle > millis(DEAD));
            if pending == 0 && old && name != RELEASED.as_bytes() && name != self.member.as_bytes() {
                dead.push(name);
            }
        }
        if !dead.is_empty() {
            self.core.work.run(&REAP, &[stream], &[&&*self.group, &dead], Code::SubscribeFailed).await?;
        }
        Ok(())
    }
}
