//! The index of dead letters that lie on the broker.
//!
//! A group's dead topic is the truth: it says of each death that there is a letter, what the letter says after an edit, and
//! that it is one no longer. Every host reads it into its store, where letters are listed, grouped and counted. What a host
//! does to a letter it says in the topic first, and then does in its index. A letter is told from another of the same
//! message by when it died.

use std::time::Duration;

use bytes::Bytes;

use crate::delivery::{Deliveries, Delivery, EnvelopeId, Position, Token};
use crate::error::{Code, Result};
use crate::lot::ERASED;
use crate::lot::topics::{TopicLot, entry, outgoing};
use crate::message::{Headers, header};
use crate::provider::{Outgoing, ReadFrom, Stored};
use crate::store::{LotClaim, LotEntry, LotRecord, LotSettle, LotState};

/// Marks what says that a letter is one no longer.
const GONE: &str = "trunkline-gone";
/// So many are read, or moved, at a time.
const STEP: usize = 256;
/// How long what is being moved is kept from other processes of the host.
const LEASE: Duration = Duration::from_secs(30);

impl TopicLot {
    /// Reads what the dead topic says since it was last read. Where the broker cannot be read without consuming, the index
    /// stays at what this host buried.
    ///
    /// # Errors
    /// As the provider's, and `STORE_FAILED`.
    pub(crate) async fn catch_up(&self) -> Result<()> {
        self.ensure().await?;
        loop {
            let from = self.store.lot_indexed(&self.address, &self.group).await?;
            let at = ReadFrom::Position(Position { shard: 0, offset: from });
            let stored = match self.provider.read(&self.dead, at, STEP).await {
                Err(error) if error.code() == Code::CapabilityUnsupported => return Ok(()),
                stored => stored?,
            };
            let Some(last) = stored.last() else { return Ok(()) };
            let to = last.position.offset + 1;
            let records = stored.into_iter().filter_map(|stored| self.record(stored)).collect();
            // Where another process was faster, it goes on from there.
            self.store.lot_index(&self.address, &self.group, from, to, records).await?;
        }
    }

    /// What one message of the dead topic says; nothing if it is not ours.
    fn record(&self, stored: Stored) -> Option<LotRecord> {
        let id = stored.id?;
        let died_at = stored.headers.get_str(header::DIED_AT).and_then(|text| text.parse().ok()).unwrap_or(stored.stored_at);
        if stored.headers.get(GONE).is_some() {
            return Some(LotRecord::Gone { id, died_at });
        }
        let reason = stored.headers.get_str(header::REASON).map(str::to_owned);
        let delivery = Delivery {
            token: Token(0),
            position: stored.position,
            id: EnvelopeId::Id(id),
            key: stored.key,
            payload: Some(stored.payload),
            headers: stored.headers,
            deliveries: Deliveries::Unknown,
            stored_at: stored.stored_at,
            lease_end: None,
        };
        let entry = entry(&delivery, &self.address, &self.group, LotState::Dead, died_at);
        Some(LotRecord::Dead(Box::new(LotEntry { reason, died_at: Some(died_at), ..entry })))
    }

    /// Says that these letters are no longer ones; to be called before they leave the index.
    ///
    /// # Errors
    /// As the provider's.
    pub(crate) async fn gone(&self, letters: &[LotEntry]) -> Result<()> {
        let gone = |letter: &LotEntry| {
            let mut headers = Headers::new();
            headers.set(GONE, "1");
            headers.set(header::DIED_AT, letter.died_at?.to_string());
            Some(Outgoing { id: letter.message.id, shard: None, key: None, headers, payload: Bytes::new() })
        };
        let batch: Vec<Outgoing> = letters.iter().filter_map(gone).collect();
        if batch.is_empty() {
            return Ok(());
        }
        self.ensure().await?;
        self.send(&self.dead, batch).await
    }

    /// Says what an edited letter says now; to be called before the index does.
    ///
    /// # Errors
    /// As the provider's.
    pub(crate) async fn amended(&self, letter: &LotEntry) -> Result<()> {
        self.ensure().await?;
        self.send(&self.dead, vec![outgoing(letter, 0)]).await
    }

    /// Moves what a reprocess set back to waiting from the index to the broker, where any member of any host gets it. Each is
    /// there before it leaves the index: a crash in between gives a duplicate.
    ///
    /// # Errors
    /// As the provider's, and `STORE_FAILED`; what was not moved stays in the index and is moved later.
    pub(crate) async fn forward(&self, owner: &str) -> Result<()> {
        loop {
            let (address, group) = (&self.address, &*self.group);
            let claim = LotClaim { address, group, shards: None, limit: STEP, owner, lease: LEASE };
            let (erased, claimed): (Vec<_>, Vec<_>) = self.store.lot_claim(claim).await?.into_iter().partition(LotEntry::is_erased);
            if erased.is_empty() && claimed.is_empty() {
                return Ok(());
            }
            // Of these there is nothing to hand over.
            let bury = |entry: &LotEntry| LotSettle::Bury { reason: ERASED.into(), attempts: entry.attempts, error: None };
            self.store.lot_settle(owner, erased.iter().map(|entry| (entry.seq, bury(entry))).collect()).await?;
            let moved = async {
                self.ensure().await?;
                self.file(&claimed).await?;
                self.gone(&claimed).await
            };
            let moved = moved.await;
            let settle = if moved.is_ok() { LotSettle::Done } else { LotSettle::Release };
            self.store.lot_settle(owner, claimed.iter().map(|entry| (entry.seq, settle.clone())).collect()).await?;
            moved?;
        }
    }
}
