//! Takes part in the ledger of a group: beats, takes shards, hands them over, and leaves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::admin;
use super::api;
use super::error;
use super::feed::Phase;
use super::owners::Ledger;
use super::place::OWNERS;
use super::subscription::{Live, State};
use super::takeover;
use crate::error::{Code, Error, Result};
use crate::provider::Signal;

/// The longest a shard that is to be given up may still be worked on.
const REVOKE: Duration = Duration::from_secs(10);

/// What the subscription tells the task.
#[derive(Debug)]
pub(super) struct Assign {
    told: Notify,
    given_up: Mutex<Vec<u32>>,
    leaving: AtomicBool,
    joined: watch::Sender<bool>,
    left: watch::Sender<bool>,
}

impl Default for Assign {
    fn default() -> Self {
        Assign {
            told: Notify::new(),
            given_up: Mutex::default(),
            leaving: AtomicBool::new(false),
            joined: watch::Sender::new(false),
            left: watch::Sender::new(false),
        }
    }
}

impl Assign {
    /// Done when the member stands in the ledger, or cannot.
    pub(super) async fn joined(&self) {
        let _ = self.joined.subscribe().wait_for(|joined| *joined).await;
    }

    /// Everything of the shard is settled.
    pub(super) fn give_up(&self, shard: u32) {
        self.given_up.lock().push(shard);
        self.told.notify_one();
    }

    /// Takes the member out of the ledger.
    pub(super) async fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.told.notify_one();
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }
}

/// Runs until the subscription ends.
pub(super) async fn run(live: Arc<Live>, route: usize) {
    let Some(assign) = live.assigns[route].clone() else { return };
    let member = Member { subject: live.places[route].owners(&live.group), live: live.clone(), assign: assign.clone(), route };
    let ended = tokio::select! {
        ended = member.take_part() => ended,
        () = live.end.cancelled() => Ok(()),
    };
    if let Err(error) = ended {
        live.die(error);
    }
    assign.joined.send_replace(true);
    assign.left.send_replace(true);
}

/// A ledger as it was read.
struct Seat {
    ledger: Ledger,
    /// Where it lies; 0 if there is none.
    revision: u64,
    /// Above every number that was there before: each write of a ledger has a higher one.
    above: u64,
}

struct Member {
    live: Arc<Live>,
    assign: Arc<Assign>,
    route: usize,
    subject: async_nats::Subject,
}

/// When each of the others was last seen to beat, by this process' clock.
type Seen = HashMap<String, (u64, Instant)>;

impl Member {
    async fn take_part(&self) -> Result<()> {
        let lease = self.live.lease;
        // Only to be quick: what is not heard is seen at the next beat.
        let mut pokes = self.live.link.client.subscribe(self.subject.clone()).await.map_err(|_| error::dead("the connection was lost"))?;
        let mut seen = Seen::new();
        let mut beaten: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            if beaten.is_some_and(|beaten| asked > beaten + lease) {
                return Err(Error::new(Code::SubscribeFailed, "the lease of this member's shards ended before it could be renewed")
                    .reason("lease_lost"));
            }
            let Seat { mut ledger, revision, above } = match self.read().await {
                Ok(read) => read,
                Err(error) if self.is_final(beaten, &error) => return Err(error),
                Err(_) => {
                    tokio::time::sleep(lease / 20).await;
                    continue;
                }
            };
            let before = ledger.clone();
            let given_up: Vec<u32> = self.assign.given_up.lock().clone();
            let leaving = self.assign.leaving.load(Ordering::Acquire);
            let dead = self.watch(&mut seen, &ledger);
            if beaten.is_none() {
                // What an earlier subscription of this member owned is taken anew, with a higher epoch.
                ledger.bury(std::slice::from_ref(&self.live.member));
            }
            self.change(&mut ledger, above + 1, &dead, &given_up, leaving);
            let due = beaten.is_none_or(|beaten| asked >= beaten + lease / 4);
            if ledger != before || due {
                if !leaving {
                    ledger.beat(&self.live.member);
                }
                match self.write(&ledger, revision).await {
                    Ok(true) => {}
                    // Another was faster: look again.
                    Ok(false) => continue,
                    Err(error) if self.is_final(beaten, &error) => return Err(error),
                    Err(_) => {
                        tokio::time::sleep(lease / 20).await;
                        continue;
                    }
                }
                beaten = Some(asked);
                self.assign.given_up.lock().retain(|shard| !given_up.contains(shard));
            }
            if leaving {
                return Ok(());
            }
            self.apply(&ledger, beaten.unwrap_or(asked));
            self.assign.joined.send_replace(true);
            self.wait(&mut pokes, &seen, beaten.unwrap_or(asked) + lease / 4).await;
        }
    }

    /// Whether a failure is no matter of time: there is time until the lease ends, where there is one.
    fn is_final(&self, beaten: Option<Instant>, error: &Error) -> bool {
        beaten.is_none() || !error.retryable() || self.live.link.is_dead()
    }

    /// The members that have not beaten for a lease.
    fn watch(&self, seen: &mut Seen, ledger: &Ledger) -> Vec<String> {
        let now = Instant::now();
        seen.retain(|name, _| ledger.members.contains_key(name));
        for (name, beat) in &ledger.members {
            let last = seen.entry(name.clone()).or_insert((*beat, now));
            if last.0 != *beat {
                *last = (*beat, now);
            }
        }
        let silent = seen.iter().filter(|(name, (_, at))| **name != self.live.member && now >= *at + self.live.lease);
        silent.map(|(name, _)| name.clone()).collect()
    }

    fn change(&self, ledger: &mut Ledger, epoch: u64, dead: &[String], given_up: &[u32], leaving: bool) {
        let me = &self.live.member;
        ledger.resize(self.live.places[self.route].shards);
        ledger.bury(dead);
        if leaving {
            ledger.bury(std::slice::from_ref(me));
            return;
        }
        ledger.members.entry(me.clone()).or_insert(0);
        ledger.give_up(me, given_up);
        ledger.settle(me, epoch);
    }

    /// What the ledger says becomes true here.
    fn apply(&self, ledger: &Ledger, beaten: Instant) {
        let live = &self.live;
        let mut syncs = Vec::new();
        {
            let mut state = live.state.lock();
            let now = Instant::now();
            state.sure[self.route] = Some(beaten + live.lease);
            let given_up = self.assign.given_up.lock().clone();
            for at in 0..state.feeds.len() {
                let feed = &mut state.feeds[at];
                if feed.route != self.route {
                    continue;
                }
                let Some(holding) = ledger.shards.get(feed.shard as usize) else { continue };
                let (route, shard) = (self.route, feed.shard);
                let mine = holding.owner == live.member;
                match feed.phase {
                    Phase::Idle if mine && !given_up.contains(&shard) => {
                        feed.phase = Phase::Syncing;
                        feed.epoch = holding.epoch;
                        state.signals.push_back(Signal::Assigned { route, shard, epoch: holding.epoch });
                        syncs.push(at);
                    }
                    Phase::Syncing | Phase::Live if mine && !holding.wish.is_empty() => {
                        let deadline = now + REVOKE.min(live.lease);
                        let State { feeds, held, .. } = &mut *state;
                        feeds[at].forget_pulls();
                        feeds[at].drop_held(held, false);
                        feeds[at].phase = Phase::Revoking(deadline);
                        state.signals.push_back(Signal::Revoking { route, shard, deadline });
                    }
                    Phase::Revoking(deadline) if mine && now < deadline => {}
                    Phase::Idle => {}
                    Phase::Revoking(_) | Phase::Syncing | Phase::Live if !mine || matches!(feed.phase, Phase::Revoking(_)) => {
                        state.abandon(at);
                        state.signals.push_back(Signal::Lost { route, shard });
                        if mine {
                            self.assign.give_up(shard);
                        }
                    }
                    Phase::Revoking(_) | Phase::Syncing | Phase::Live => {}
                }
            }
        }
        live.some.notify_waiters();
        for at in syncs {
            live.spawn(takeover::again(live.clone(), at));
        }
    }

    /// Until something happens: a change by another, a word from here, the next beat, a death, the end of a patience.
    async fn wait(&self, pokes: &mut Subscriber, seen: &Seen, beat: Instant) {
        let deaths = seen.iter().filter(|(name, _)| **name != self.live.member).map(|(_, (_, at))| *at + self.live.lease);
        let deadlines = {
            let state = self.live.state.lock();
            let of = state.feeds.iter().filter(|feed| feed.route == self.route);
            of.filter_map(|feed| if let Phase::Revoking(deadline) = feed.phase { Some(deadline) } else { None }).min()
        };
        let until = deaths.chain(deadlines).chain([beat]).min().unwrap_or(beat);
        tokio::select! {
            poke = pokes.next() => {
                if poke.is_none() {
                    // The connection is dead; the reader says so.
                    tokio::time::sleep_until(until.into()).await;
                }
            }
            () = self.assign.told.notified() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }

    async fn read(&self) -> Result<Seat> {
        let link = &self.live.link;
        let doing = "reading who owns which shard";
        let found = api::last_message(link, OWNERS, &self.subject).await.map_err(|e| e.into_error(doing))?;
        let Some(found) = found else {
            // A group that was removed and made again: its epochs go on rising all the same.
            let stream = api::stream_info(link, OWNERS).await.map_err(|e| e.into_error(doing))?;
            return Ok(Seat { ledger: Ledger::default(), revision: 0, above: stream.map_or(0, |stream| stream.state.last_seq) });
        };
        let broken =
            || Error::new(Code::SubscribeFailed, format!("what lies at '{}' is no ledger of owners", self.subject)).with_retryable(false);
        let bytes = admin::payload(&found).ok_or_else(broken)?;
        let ledger = serde_json::from_slice(&bytes).map_err(|_| broken().next("purge that subject while no member of the group lives"))?;
        Ok(Seat { ledger, revision: found.seq, above: found.seq })
    }

    /// `false` if another member has written since `revision`.
    async fn write(&self, ledger: &Ledger, revision: u64) -> Result<bool> {
        let body =
            serde_json::to_vec(ledger).map_err(|e| Error::new(Code::SubscribeFailed, format!("the ledger cannot be written: {e}")))?;
        // So that another try has time before the lease ends.
        let within = api::WITHIN.min(self.live.lease / 2);
        api::replace(&self.live.link, &self.subject, revision, body, within, "writing who owns which shard").await
    }
}
