//! The contract's part for caches: the first result of each message that was produced under a cache.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::error::Result;
use crate::event::Event;
use crate::message::{MessageId, Millis};

/// At most so many values are kept of one cache, give or take a few hundred between two sweeps; the oldest go first.
pub const VALUES_MOST: usize = 100_000;

/// A message under a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey {
    /// The cache, made by the core: another one if the cache was deleted and made anew.
    pub scope: String,
    /// Hash of env, event, key and canonical payload.
    pub hash: [u8; 32],
}

/// A claim to produce a message that is not known under a cache.
#[derive(Debug, Clone)]
pub struct CacheClaim {
    /// The message.
    pub key: CacheKey,
    /// Its env, to be shown.
    pub env: String,
    /// Its event, to be shown.
    pub event: Event,
    /// The id it is to be produced with, if the claim is fresh.
    pub id: MessageId,
    /// The claiming process.
    pub owner: String,
    /// How long the claim is held before another may take it over.
    pub lease: Duration,
    /// How old a result may be to be returned again.
    pub expiry: Duration,
}

/// What came of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheClaimed {
    /// It is ours: send with this id (the stored one if the claim was taken over from an owner that died).
    Ours(MessageId),
    /// An equal message was produced within the expiry.
    Hit {
        /// The first result.
        id: MessageId,
    },
    /// Another produce of an equal message is under way.
    InProgress {
        /// Until when its claim holds.
        until: Millis,
    },
}

/// One value of a cache: the first result of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheValue {
    /// The message that was sent.
    #[serde(rename = "process_id")]
    pub process_id: MessageId,
    /// Its env.
    pub env: String,
    /// Its event.
    pub event: Event,
    /// When it was confirmed (ms since 1970).
    pub at: Millis,
    /// How long ago that was (ms).
    pub age_ms: u64,
}

/// What a store keeps for caches. All ages are counted by the store's clock.
#[async_trait]
pub trait CacheStore: Send + Sync {
    /// Claims a message, unless an equal one was produced within the expiry, or is being produced. Durable when it returns.
    async fn cache_claim(&self, claim: CacheClaim) -> Result<CacheClaimed>;

    /// Notes the result of a claim that is still the owner's: from now on it is returned again.
    async fn cache_sent(&self, key: &CacheKey, id: MessageId, owner: &str) -> Result<()>;

    /// Gives a claim back whose message was certainly not sent, if it is still the owner's. Where it had been taken over, its
    /// id stays for the next claim: the owner that died may have sent it.
    async fn cache_abandon(&self, key: &CacheKey, owner: &str) -> Result<()>;

    /// The values of a cache that are younger than `expiry`, newest first, and how many there are.
    async fn cache_values(&self, scope: &str, expiry: Duration, limit: usize, offset: usize) -> Result<(Vec<CacheValue>, u64)>;

    /// Forgets all values of a cache; how many. Claims under way stay.
    async fn cache_clear(&self, scope: &str) -> Result<u64>;
}
