//! Shards that come and go: chains are loaded before the first message, and nothing of a shard is left when it goes.

use std::sync::Arc;
use std::time::Instant;

use crate::consume::engine::Engine;
use crate::consume::lanes::Source;
use crate::consume::receive::REBUILD;
use crate::consume::settle::{Finished, Then};
use crate::provider::Subscription;

impl Engine {
    pub(super) async fn load_chains(&self, shard: u32) {
        let mut pause = REBUILD.0;
        loop {
            match self.lot.chains(shard).await {
                Ok((chains, bytes)) => {
                    tracing::debug!(shard, keys = chains.len(), bytes, "chains loaded");
                    self.lanes.lock().set_chains(shard, chains);
                    return;
                }
                // Without the chains the shard's messages would overtake those that wait.
                Err(error) => tracing::warn!(%error, shard, "the chains of a shard cannot be loaded"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(REBUILD.1),
                () = self.stop.cancelled() => return,
            }
        }
    }

    pub(super) async fn revoke(self: Arc<Self>, subscription: Arc<dyn Subscription>, route: usize, shard: u32, deadline: Instant) {
        let waiting = {
            let mut lanes = self.lanes.lock();
            lanes.revoking.insert(shard);
            lanes.take_waiting(Some(shard))
        };
        let released = waiting.iter().map(|work| Finished::of(work, Then::Release, None, false)).collect();
        self.hand_over(released);
        let drained = async {
            loop {
                let left = self.drained.notified();
                if !self.lanes.lock().by_shard.contains_key(&shard) {
                    return;
                }
                left.await;
            }
        };
        let _ = tokio::time::timeout_at(deadline.into(), drained).await;
        self.lanes.lock().drop_shard(shard);
        subscription.yield_shard(route, shard).await;
    }

    /// A shard (or all) is gone: what has not started is dropped, what runs is told to stop.
    pub(super) fn lose(&self, shard: Option<u32>) {
        let mut released = Vec::new();
        let mut lanes = self.lanes.lock();
        for work in lanes.take_waiting(shard) {
            match work.source {
                Source::Broker(..) => lanes.gone(work.position.shard, work.size),
                // The lot's are not the broker's to take: they go back to the lot.
                Source::Lot(_) => released.push(Finished::of(&work, Then::Release, None, false)),
            }
        }
        match shard {
            Some(shard) => lanes.drop_shard(shard),
            None => lanes.all_shards().into_iter().for_each(|shard| lanes.drop_shard(shard)),
        }
        drop(lanes);
        for (of, token) in self.running.lock().iter().flatten() {
            if shard.is_none_or(|shard| shard == *of) {
                token.cancel();
            }
        }
        self.hand_over(released);
        self.space.notify_one();
    }
}
