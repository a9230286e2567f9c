//! The lot: where deliveries wait until they are due, and where the dead lie.
//!
//! It has two forms behind one interface: rows in the store ([`store::StoreLot`]), or topics on the broker
//! ([`topics::TopicLot`]) where a replicated broker must not depend on one host's disk. Which one a route uses is
//! decided by [`crate::policy::plan`].

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::store::{LotEntry, LotSettle};

mod index;
pub mod store;
pub mod topics;

/// The reason of a dead letter whose content was erased before it could be handled.
pub(crate) const ERASED: &str = "erased";

/// Names an entry to the feed that handed it out.
pub type LotHandle = u64;

/// The lot of one group on one topic.
#[async_trait]
pub trait Lot: Send + Sync + Debug {
    /// Must have written every entry durably when it returns `Ok`: the originals are acked right after.
    async fn put(&self, entries: Vec<LotEntry>) -> Result<()>;

    /// Opens the feed of what is due. `shards` is asked for at each turn: on ordered topics, what this member owns.
    async fn feed(&self, member: Arc<str>) -> Result<Arc<dyn LotFeed>>;

    /// The chains of a shard that has just been assigned: key hash and number of entries, and the bytes of all.
    async fn chains(&self, shard: u32) -> Result<(Vec<(u64, u64)>, u64)>;
}

/// Hands out what is due, and keeps it for its owner until it is settled.
#[async_trait]
pub trait LotFeed: Send + Sync + Debug {
    /// Must return up to `max` due entries; waits at most `wait` if there is none. On ordered topics (`shards` is `Some`)
    /// only the heads of chains of these shards.
    async fn next(&self, max: usize, shards: Option<&[u32]>, wait: Duration) -> Result<Vec<(LotHandle, LotEntry)>>;

    /// Must settle each; `false` where another has taken it meanwhile.
    async fn settle(&self, items: Vec<(LotHandle, LotSettle)>) -> Result<Vec<bool>>;

    /// Must give back what was not settled.
    async fn close(&self);
}
