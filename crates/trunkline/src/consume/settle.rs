//! What follows a verdict, in the one order that never loses: dedupe mark and lot first, then the ack, then the record.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::consume::engine::Engine;
use crate::consume::lanes::{Source, Work};
use crate::consume::state::Cause;
use crate::delivery::{Settle, Settled};
use crate::history::{Attempt, Batch};
use crate::store::{LotEntry, LotMessage, LotSettle, LotState};

/// At most this many are settled in one turn.
const TURN: usize = 4_096;
/// At most this many turns wait for the broker's answer at a time: what finishes meanwhile need not wait for it.
const ANSWERS: usize = 4;
/// How long a write to the lot that failed is left alone.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// What is to be done with a message that is through with its run.
#[derive(Debug)]
pub(crate) enum Then {
    /// Ack.
    Done,
    /// Give back, uncounted.
    Release,
    /// Write to the lot (waiting or dead), then ack.
    Lot(Box<LotEntry>),
    /// Stays in flight: only the attempt is recorded.
    Record,
}

/// One message on its way out, without its payload unless the lot needs it.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) source: Source,
    pub(crate) shard: u32,
    pub(crate) size: usize,
    pub(crate) lane: Option<u64>,
    pub(crate) then: Then,
    /// Whether the key's later messages may go on once this one is acked (they may not while it waits in a chain).
    pub(crate) dedupe: bool,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) id: crate::message::MessageId,
}

impl Finished {
    pub(crate) fn of(work: &Work, then: Then, attempt: Option<Attempt>, dedupe: bool) -> Self {
        Finished { source: work.source, shard: work.position.shard, size: work.size, lane: work.lane, then, dedupe, attempt, id: work.id }
    }
}

impl Engine {
    /// The entry that carries a message into the lot.
    pub(crate) fn entry(
        &self,
        work: &Work,
        state: LotState,
        due_at: u64,
        attempts: u32,
        reason: Option<String>,
        error: Option<String>,
    ) -> LotEntry {
        LotEntry {
            seq: 0,
            state,
            address: self.filed.address.clone(),
            group: self.group.clone(),
            chain: if state == LotState::Waiting { work.lane } else { None },
            due_at,
            attempts,
            reason,
            error,
            died_at: (state == LotState::Dead).then_some(due_at),
            job: None,
            deliveries: 0,
            message: LotMessage {
                id: work.id,
                key: work.key.clone(),
                headers: work.headers.clone(),
                payload: work.payload.clone(),
                produced_at: work.produced_at,
                position: work.position,
            },
        }
    }

    /// Runs until the engine is closed and everything that finished is settled.
    pub(crate) async fn settle_all(self: Arc<Self>) {
        let mut stalled: VecDeque<Finished> = VecDeque::new();
        let mut turn = Vec::new();
        let mut acks = JoinSet::new();
        loop {
            if acks.len() >= ANSWERS {
                acks.join_next().await;
            }
            {
                let mut queue = self.finished.lock();
                let n = queue.len().min(TURN);
                turn.extend(queue.drain(..n));
            }
            if turn.is_empty() && stalled.is_empty() {
                if self.settle_end.is_cancelled() && acks.is_empty() {
                    return;
                }
                tokio::select! {
                    () = self.finished_some.notified() => {}
                    Some(_) = acks.join_next() => {}
                    () = self.settle_end.cancelled(), if acks.is_empty() => {}
                }
                continue;
            }
            // What could not be written stays in front, so that a chain keeps its order.
            let mut all: Vec<Finished> = stalled.drain(..).collect();
            all.append(&mut turn);
            let (failed, written) = self.write(all).await;
            if !written.is_empty() {
                acks.spawn(self.clone().ack(written));
            }
            if !failed.is_empty() {
                if self.give_up.is_cancelled() {
                    // The deadline of the close has passed: they are not acked, so the broker hands them out again.
                    self.forget(failed);
                    continue;
                }
                stalled.extend(failed);
                self.set_store_down(true);
                tokio::select! {
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                    () = self.give_up.cancelled() => {}
                }
            } else {
                self.set_store_down(false);
            }
        }
    }

    /// What must be written before a turn is acked; returns what could not be written and must be tried again, and the rest.
    async fn write(&self, mut all: Vec<Finished>) -> (Vec<Finished>, Vec<Finished>) {
        let mut failed = Vec::new();
        // 1. Dedupe: `done` after the handler and before the ack.
        if let Some(dedupe) = &self.dedupe {
            let ids: Vec<_> = all.iter().filter(|f| f.dedupe).map(|f| f.id).collect();
            if !ids.is_empty() && self.store.dedupe_done(&dedupe.scope, &ids, dedupe.window).await.is_err() && !dedupe.open_on_failure {
                let (marked, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|f| f.dedupe);
                failed = marked;
                all = rest;
            }
        }
        // 2. Copies of dead letters to a topic of the user's.
        let dead: Vec<LotEntry> = all
            .iter()
            .filter_map(|f| match &f.then {
                Then::Lot(entry) if entry.state == LotState::Dead => Some((**entry).clone()),
                _ => None,
            })
            .collect();
        if !dead.is_empty()
            && let Some(copy) = &self.dead_letter_copy
            && let Err(error) = copy(dead).await
        {
            tracing::warn!(%error, "dead letters could not be copied to their topic");
            // Neither acked nor buried before the copy is there.
            let (dead, rest): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|f| matches!(&f.then, Then::Lot(entry) if entry.state == LotState::Dead));
            failed.extend(dead);
            all = rest;
        }
        // 3. The lot: written before the original is acked.
        let mut entries = Vec::new();
        let mut lot_settles = Vec::new();
        for finished in &mut all {
            match (&finished.then, finished.source) {
                (Then::Lot(entry), Source::Broker(..)) => entries.push((**entry).clone()),
                (Then::Lot(entry), Source::Lot(handle)) => lot_settles.push((
                    handle,
                    if entry.state == LotState::Dead {
                        LotSettle::Bury {
                            reason: entry.reason.clone().unwrap_or_default(),
                            attempts: entry.attempts,
                            error: entry.error.clone(),
                        }
                    } else {
                        LotSettle::Wait { due_at: entry.due_at, attempts: entry.attempts, error: entry.error.clone() }
                    },
                )),
                (Then::Done, Source::Lot(handle)) => lot_settles.push((handle, LotSettle::Done)),
                (Then::Release, Source::Lot(handle)) => lot_settles.push((handle, LotSettle::Release)),
                _ => {}
            }
        }
        let waits_again = |(_, settle): &&(u64, LotSettle)| matches!(settle, LotSettle::Wait { .. });
        self.pace(entries.iter().filter(|e| e.state == LotState::Waiting).count() + lot_settles.iter().filter(waits_again).count()).await;
        let mut lot_ok = true;
        if !entries.is_empty() {
            lot_ok =
                self.lot.put(entries).await.inspect_err(|error| tracing::warn!(%error, "a wait or a burial could not be written")).is_ok();
        }
        if !lot_ok {
            let (lot, rest): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|f| matches!(f.then, Then::Lot(_)) && matches!(f.source, Source::Broker(..)));
            failed.extend(lot);
            all = rest;
        }
        if !lot_settles.is_empty() {
            match self.settle_lot(lot_settles).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "the lot could not be settled");
                    let (lot, rest): (Vec<_>, Vec<_>) =
                        all.into_iter().partition(|f| matches!(f.source, Source::Lot(_)) && !matches!(f.then, Then::Record));
                    failed.extend(lot);
                    all = rest;
                }
            }
        }
        (failed, all)
    }

    /// What follows the writes: the ack, then the record, and the hand is free.
    async fn ack(self: Arc<Self>, all: Vec<Finished>) {
        self.lanes.lock().settling += all.iter().filter(|finished| !matches!(finished.then, Then::Record)).count();
        self.space.notify_one();
        self.settle_broker(&all).await;
        self.leave(all);
    }

    async fn settle_lot(&self, items: Vec<(u64, LotSettle)>) -> crate::Result<()> {
        let feed = self.feed.lock().clone();
        match feed {
            Some(feed) => feed.settle(items).await.map(drop),
            None => Ok(()),
        }
    }

    async fn settle_broker(&self, all: &[Finished]) {
        let (subscription, generation) = self.current();
        let Some(subscription) = subscription else { return };
        let items: Vec<_> = all
            .iter()
            .filter_map(|f| match (f.source, &f.then) {
                (Source::Broker(token, of), then) if of == generation => match then {
                    Then::Done | Then::Lot(_) => Some((token, Settle::Done)),
                    Then::Release => Some((token, Settle::Release)),
                    Then::Record => None,
                },
                // Of an earlier subscription: stale, the broker hands it out again.
                _ => None,
            })
            .collect();
        if items.is_empty() {
            return;
        }
        let stale = subscription.settle(&items).await.into_iter().filter(|settled| *settled != Settled::Settled).count();
        if stale > 0 {
            tracing::debug!(stale, group = %self.group, "settles came too late: these messages may be handled again");
        }
    }

    /// Records the attempts, then frees what the messages held: what is counted as settled is in the record.
    fn leave(&self, mut all: Vec<Finished>) {
        let attempts: Vec<_> = all.iter_mut().filter_map(|finished| finished.attempt.take()).collect();
        if !attempts.is_empty() {
            self.tracker.record(Batch::Attempts {
                filed: self.filed.clone(),
                group: self.group.clone(),
                consumer: self.member.clone(),
                session: self.session.clone(),
                items: attempts,
            });
        }
        {
            let mut lanes = self.lanes.lock();
            for finished in all {
                if !matches!(finished.then, Then::Record) {
                    lanes.settling -= 1;
                    lanes.gone(finished.shard, finished.size);
                    if let (Source::Lot(_), Some(lane), true) = (finished.source, finished.lane, !waits(&finished.then)) {
                        lanes.shorten_chain(finished.shard, lane);
                    }
                    self.settled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
        self.space.notify_one();
        self.drained.notify_waiters();
    }

    fn forget(&self, failed: Vec<Finished>) {
        let mut lanes = self.lanes.lock();
        for finished in failed {
            lanes.gone(finished.shard, finished.size);
        }
    }

    /// Waits are rate-limited per group: beyond the rate the settles slow down, and with them the receive.
    async fn pace(&self, waits: usize) {
        if waits == 0 {
            return;
        }
        let pause = self.share.pace(waits, self.options.waits_per_second);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn set_store_down(&self, down: bool) {
        if self.note(Cause::StoreDown, down) && !down {
            self.space.notify_one();
        }
    }
}

fn waits(then: &Then) -> bool {
    match then {
        Then::Lot(entry) => entry.state == LotState::Waiting,
        Then::Release | Then::Record => true,
        Then::Done => false,
    }
}
