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
    look: Duration,
}

impl StoreLot {
    /// The lot of one group on one topic.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, address: Address, group: Arc<str>) -> Self {
        StoreLot { store, address, group, put: Arc::new(Notify::new()), look: LOOK }
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
            look: self.look,
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
    look: Duration,
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
            let mut look = (now + self.look).min(until);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Position;
    use crate::message::{Headers, MessageId};
    use crate::store::sqlite::{Options, SqliteStore};
    use crate::store::{LotMessage, LotState};

    fn entry(address: &Address, n: u64) -> LotEntry {
        LotEntry {
            seq: 0,
            state: LotState::Waiting,
            address: address.clone(),
            group: "billing".into(),
            chain: Some(7),
            due_at: 0,
            attempts: 1,
            reason: None,
            error: None,
            died_at: None,
            job: None,
            deliveries: 0,
            message: LotMessage {
                id: MessageId::now(),
                key: Some("key".into()),
                headers: Headers::new(),
                payload: n.to_string().into(),
                produced_at: 0,
                position: Position { shard: 0, offset: n },
            },
        }
    }

    /// Nobody looks by the clock here: what comes, comes because of the settle before it.
    #[tokio::test]
    async fn the_next_of_a_chain_comes_as_soon_as_the_one_before_it_is_settled() {
        let dir = tempfile::tempdir().expect("a directory");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), Options::default()).expect("a store"));
        let address = Address { product: "shop".into(), env: "dev".into(), event: "orders:created".parse().expect("an event") };
        let hour = Duration::from_secs(3600);
        let lot = StoreLot { look: hour, ..StoreLot::new(store.clone(), address.clone(), "billing".into()) };
        let feed = lot.feed("member".into()).await.expect("a feed");
        lot.put((0..3).map(|n| entry(&address, n)).collect()).await.expect("written");
        let mut first = feed.next(10, Some(&[0]), hour).await.expect("the head");
        for n in 1..=3 {
            assert_eq!(first.iter().map(|(_, entry)| entry.message.position.offset).collect::<Vec<_>>(), [n - 1]);
            // Both ways a message leaves a chain.
            let how = if n == 1 { LotSettle::Done } else { LotSettle::Bury { reason: "test".into(), attempts: 1, error: None } };
            let (waits, handle) = (feed.clone(), first[0].0);
            let mut next = tokio::spawn(async move { waits.next(10, Some(&[0]), if n == 3 { Duration::ZERO } else { hour }).await });
            if n < 3 {
                tokio::task::yield_now().await;
                assert!(!next.is_finished(), "the one behind it has to wait");
            } else {
                assert_eq!((&mut next).await.expect("no panic").expect("an empty feed"), []);
            }
            assert_eq!(feed.settle(vec![(handle, how)]).await.expect("settled"), [true]);
            if n < 3 {
                // Before the claim of the first would end by itself.
                first = tokio::time::timeout(LEASE / 2, next).await.expect("it is woken").expect("no panic").expect("the next");
            }
        }
        feed.close().await;
        store.close().await;
    }
}
