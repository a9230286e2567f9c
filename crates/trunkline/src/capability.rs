//! What a provider does natively for a topic. The core plans with it; nothing is faked and nothing hidden.

use serde::{Deserialize, Serialize};

/// What a confirmed message survives, from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Gone when the broker's process dies.
    Memory,
    /// Survives the broker's process, not its machine.
    Written,
    /// On the disk of one machine.
    Fsynced,
    /// In the memory or on the disks of several machines.
    Replicated,
    /// Kept by a cloud service in several zones.
    Cloud,
}

/// How deliveries of one message are counted by the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryCount {
    /// Every hand-over is counted once.
    Exact,
    /// May count hand-overs that no handler saw.
    UpperBound,
    /// Not counted.
    Unknown,
}

/// What a provider promises for one topic. Known after connecting, since it depends on version and config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// What "confirmed" means, computed from the broker's own settings.
    pub durability: Durability,
    /// Messages of one shard are handed out in the order they were confirmed, to one owner at a time.
    pub ordered_shards: bool,
    /// With `ordered_shards`: the broker itself gives the messages of a key to one member at a time, and shards have no
    /// owner. A message that is acked frees the next one of its key, so the core never acks one to let it wait.
    pub broker_orders_keys: bool,
    /// Messages stay readable after they were settled (`read`, `seek`, a group that starts earlier).
    pub keeps_messages: bool,
    /// A redelivery can be asked for after a delay: at most this many milliseconds; 0 means no native delay.
    pub native_delay_max_ms: u64,
    /// How the broker counts deliveries.
    pub delivery_count: DeliveryCount,
    /// A delivery can be given back without being counted as a failure.
    pub release_uncounted: bool,
    /// The lease of a delivery can be kept for as long as the handler runs.
    pub extends_leases: bool,
    /// Messages are only handed to who listens now (Redis Pub/Sub, core NATS): nothing is kept, nothing settled.
    pub lossy: bool,
    /// The largest payload plus headers, in bytes.
    pub max_message_bytes: usize,
    /// The broker drops a second message of the same id within this many milliseconds; 0 means never.
    pub dedup_window_ms: u64,
    /// The longest the whole retry schedule of one message may keep it waiting on the broker, in ms; `u64::MAX` if unlimited.
    pub max_wait_ms: u64,
    /// After a member died without a word its messages go to another within this many milliseconds.
    pub takeover_ms: u64,
}
