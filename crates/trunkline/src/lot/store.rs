//! The lot as rows of the store: one view for every process that opens it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Result;
use crate::lot::{Lot, LotFeed, LotHandle};
use crate::store::{Address, LotClaim, LotEntry, LotSettle, Store};

/// How long a claim holds without being renewed; a dead process's entries come back after it.
const LEASE: Duration = Duration::from_secs(5);
/// What another process puts is seen within this.
const LOOK: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Clone)]
pub struct StoreLot {
    store: Arc<dyn Store>,
    address: Address,
    group: Arc<str>,
    put: Arc<Notify>,
}

impl StoreLot {
    /// The lot of one group on one topic.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, address: Address, group: Arc<str>) -> Self {
        StoreLot { store, address, group, put: Arc::new(Notify::new()) }
    }
}

#[async_trait]
impl Lot for StoreLot {
    async fn put(&self, entries: Vec<LotEntry>) -> Result<()> {
        self.store.lot_put(entries).await?;
        self.put.notify_one();
        Ok(())
    }

    async fn feed(&self, member: Arc<str>) -> Result<Arc<dyn LotFeed>> {
        let held = Arc::new(Mutex::new(HashSet::new()));
        let keeper = tokio::spawn(keep(self.store.clone(), member.clone(), held.clone()));
        Ok(Arc::new(StoreFeed {
            store: self.store.clone(),
            address: self.address.clone(),
            group: self.group.clone(),
            member,
            put: self.put.clone(),
            held,
            keeper: keeper.abort_handle(),
        }))
    }

    async fn chains(&self, shard: u32) -> Result<(Vec<(u64, u64)>, u64)> {
        let chains = self.store.lot_chains(&self.address, &self.group, shard).await?;
        let bytes = chains.iter().map(|(_, _, bytes)| bytes).sum();
        Ok((chains.into_iter().map(|(key, count, _)| (key, count)).collect(), bytes))
    }
}

#[derive(Debug)]
struct StoreFeed {
    store: Arc<dyn Store>,
    address: Address,
    group: Arc<str>,
    member: Arc<str>,
    put: Arc<Notify>,
    held: Arc<Mutex<HashSet<u64>>>,
    keeper: tokio::task::AbortHandle,
}

impl StoreFeed {
    /// What has no chain (no key, or handed over again by a reprocess) is claimed by any member, chains by their shard's owner.
    async fn claim(&self, limit: usize, shards: Option<&[u32]>) -> Result<Vec<LotEntry>> {
        let claim = LotClaim { address: &self.address, group: &self.group, shards, limit, owner: &self.member, lease: LEASE };
        self.store.lot_claim(claim).await
    }
}

/// Renews the claims of what is in hand, from the claim to the settle.
async fn keep(store: Arc<dyn Store>, member: Arc<str>, held: Arc<Mutex<HashSet<u64>>>) {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        let seqs: Vec<u64> = held.lock().iter().copied().collect();
        if !seqs.is_empty() {
            // A failure here is seen again at the settle, which then changes nothing.
            let _ = store.lot_extend(&seqs, &member, LEASE).await;
        }
    }
}

#[async_trait]
impl LotFeed for StoreFeed {
    async fn next(&self, max: usize, shards: Option<&[u32]>, wait: Duration) -> Result<Vec<(LotHandle, LotEntry)>> {
        let until = Instant::now() + wait;
        loop {
            let put = self.put.notified();
            let mut due = self.claim(max, None).await?;
            if let Some(shards) = shards.filter(|_| due.len() < max) {
                due.extend(self.claim(max - due.len(), Some(shards)).await?);
            }
            if !due.is_empty() {
                self.held.lock().extend(due.iter().map(|entry| entry.seq));
                return Ok(due.into_iter().map(|entry| (entry.seq, entry)).collect());
            }
            let now = Instant::now();
            if now >= until {
                return Ok(Vec::new());
            }
            let mut look = (now + LOOK).min(until);
            if let Some(due) = self.store.lot_next_due(Some((&self.address, &self.group))).await? {
                look = look.min(now + Duration::from_millis(due.saturating_sub(self.store.now()).max(5)));
            }
            tokio::select! {
                () = put => {}
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    async fn settle(&self, items: Vec<(LotHandle, LotSettle)>) -> Result<Vec<bool>> {
        let seqs: Vec<u64> = items.iter().map(|(seq, _)| *seq).collect();
        let settled = self.store.lot_settle(&self.member, items).await?;
        let mut held = self.held.lock();
        for seq in &seqs {
            held.remove(seq);
        }
        // What waits again may be due sooner than the next look, and so is what stood behind it in its chain.
        self.put.notify_one();
        Ok(settled)
    }

    async fn close(&self) {
        self.keeper.abort();
        let items: Vec<_> = self.held.lock().drain().map(|seq| (seq, LotSettle::Release)).collect();
        if !items.is_empty() {
            // If this fails the claims run out by themselves.
            let _ = self.store.lot_settle(&self.member, items).await;
        }
    }
}

impl Drop for StoreFeed {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}
