//! What is due again: held retries, and what comes back from the lot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consume::engine::Engine;
use crate::consume::lanes::{Source, Work};
use crate::consume::receive::REBUILD;
use crate::consume::settle::Finished;
use crate::consume::shared::Appetite;
use crate::delivery::Deliveries;
use crate::lot::LotFeed;
use crate::message::header;
use crate::store::{LotEntry, LotMessage, LotSettle};

impl Engine {
    pub(super) async fn wake_held(self: Arc<Self>) {
        loop {
            let (next, wake) = {
                let mut lanes = self.lanes.lock();
                let before = lanes.ready();
                let next = lanes.wake(Instant::now());
                (next, lanes.ready().saturating_sub(before).min(lanes.idle))
            };
            for _ in 0..wake {
                self.work.notify_one();
            }
            let until = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.held_some.notified() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Hands over what is due in the lot.
    pub(super) async fn feed_due(self: Arc<Self>, feed: Arc<dyn LotFeed>) {
        let mut pause = REBUILD.0;
        // The lot is asked for a number of messages, so their size is guessed from those before.
        let mut typical = 1_024;
        while !self.stop.is_cancelled() {
            let wanted = (typical * self.options.concurrency.max(16) * 4).min(Appetite::LEAST.max(typical));
            let Ok((room, asked)) = self.room(wanted) else {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                    () = self.stop.cancelled() => return,
                }
                continue;
            };
            let shards = self.options.ordered.then(|| self.lanes.lock().owned());
            let most = room.min(asked.bytes.div_ceil(typical).max(1));
            let due = tokio::select! {
                due = feed.next(most, shards.as_deref(), Duration::from_millis(500)) => due,
                () = self.stop.cancelled() => return,
            };
            match due {
                Ok(due) if due.is_empty() => {
                    pause = REBUILD.0;
                    self.reconcile_chains().await;
                }
                Ok(due) => {
                    typical = due.iter().map(|(_, entry)| in_hand(&entry.message)).max().unwrap_or(typical).max(1);
                    self.take_due(&feed, due).await;
                }
                Err(error) => {
                    tracing::warn!(%error, group = %self.group, "the lot cannot be read");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(REBUILD.1),
                        () = self.stop.cancelled() => return,
                    }
                }
            }
        }
    }

    pub(super) async fn take_due(&self, feed: &Arc<dyn LotFeed>, due: Vec<(u64, LotEntry)>) {
        let (not_ours, buried) = self.admit_due(due);
        self.hand_over(buried);
        if !not_ours.is_empty()
            && let Err(error) = feed.settle(not_ours).await
        {
            tracing::debug!(%error, "claims of chains that moved run out by themselves");
        }
    }

    /// Takes what is due in hand. What is no longer this member's to run is returned, and what must be buried unhandled.
    pub(super) fn admit_due(&self, due: Vec<(u64, LotEntry)>) -> (Vec<(u64, LotSettle)>, Vec<Finished>) {
        let (mut not_ours, mut buried) = (Vec::new(), Vec::new());
        // An edited payload, or a schema that changed meanwhile: looked at before the lock is taken.
        let invalid: Vec<Option<String>> = due.iter().map(|(_, entry)| self.payloads.unfit(&entry.message.payload)).collect();
        let mut lanes = self.lanes.lock();
        for ((handle, entry), invalid) in due.into_iter().zip(invalid) {
            // The shard went to another member while its chain was being claimed.
            if entry.chain.is_some() && self.options.ordered && !lanes.owns(entry.message.position.shard) {
                not_ours.push((handle, LotSettle::Release));
                continue;
            }
            let message = entry.message;
            let size = in_hand(&message);
            let epoch = lanes.epochs.get(&message.position.shard).copied().unwrap_or(0);
            let work = Work {
                source: Source::Lot(handle),
                id: message.id,
                // It was, if at all, before it was buried.
                broken: false,
                invalid,
                position: message.position,
                epoch,
                lane: entry.chain,
                key: message.key,
                expires_at: message.headers.get_str(header::EXPIRES_AT).and_then(|text| text.parse().ok()),
                headers: message.headers,
                payload: message.payload,
                attempts: entry.attempts,
                deliveries: Deliveries::UpperBound(entry.deliveries),
                produced_at: message.produced_at,
                size,
                first: entry.attempts == 0,
            };
            match self.unfit(&work) {
                Some(reason) => buried.push(self.bury_unhandled(&mut lanes, &work, reason)),
                None => drop(lanes.admit(work)),
            }
        }
        let wake = lanes.ready().min(lanes.idle).min(2);
        drop(lanes);
        for _ in 0..wake {
            self.work.notify_one();
        }
        (not_ours, buried)
    }

    /// A message that was in the lot already when it came again was counted twice: the lot's own count decides.
    pub(super) async fn reconcile_chains(&self) {
        let quiet = |engine: &Engine| engine.finished.lock().is_empty() && engine.lanes.lock().count == 0;
        let chained = self.lanes.lock().chained();
        for shard in chained {
            if !quiet(self) {
                return;
            }
            if let Ok((chains, _)) = self.lot.chains(shard).await
                && quiet(self)
            {
                self.lanes.lock().set_chains(shard, chains);
            }
        }
    }
}

/// The bytes a message from the lot holds in memory.
fn in_hand(message: &LotMessage) -> usize {
    message.payload.len() + message.headers.size() + 64
}
