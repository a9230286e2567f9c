//! A delivery: one hand-over of a message to a member of a group, and what becomes of it.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{Headers, MessageId, Millis};

/// Names a delivery to the subscription that handed it out: generation and slot of a slab the provider owns.
/// A settle with a token of an earlier generation is [`Settled::Stale`], never a settle of another message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// Where a message lies in its shard. Higher is later. The meaning is the provider's own (offset, sequence, …).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The shard.
    pub shard: u32,
    /// The place in the shard.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.shard, self.offset)
    }
}

/// The broker's own count of hand-overs of one message, this one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deliveries {
    /// Exactly this many.
    Exact(u32),
    /// At most this many; a lost connection may have raised it for messages no handler saw.
    UpperBound(u32),
    /// The broker does not say.
    Unknown,
}

impl Deliveries {
    /// The number, 0 if unknown.
    #[must_use]
    pub fn count(self) -> u32 {
        match self {
            Deliveries::Exact(n) | Deliveries::UpperBound(n) => n,
            Deliveries::Unknown => 0,
        }
    }
}

/// What the id header of a message held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeId {
    /// A message of ours.
    Id(MessageId),
    /// No id: produced by another client. The core derives one from the position.
    Foreign,
    /// An id header that is not an id: the delivery is buried with its raw bytes.
    Broken,
}

/// One message as a provider hands it out. The payload is untouched; values share the receive buffer.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// For settling it.
    pub token: Token,
    /// Where it lies.
    pub position: Position,
    /// The message id.
    pub id: EnvelopeId,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The payload; `None` for a foreign message without one.
    pub payload: Option<Bytes>,
    /// All headers but id and key.
    pub headers: Headers,
    /// How often the broker handed it out.
    pub deliveries: Deliveries,
    /// When the broker (or the producer, where the broker keeps that) says it was stored.
    pub stored_at: Millis,
    /// When the lease ends, where there is one. The provider keeps it alive from receipt to settle.
    pub lease_end: Option<Instant>,
}

impl Delivery {
    /// Bytes it holds in memory, for the in-flight bound.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.key.as_ref().map_or(0, Bytes::len) + self.headers.size() + 64
    }
}

/// What the core asks to become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Acked: never handed to this group again.
    Done,
    /// To be handed out again, not before `after`. Refused by providers whose `native_delay_max_ms` is smaller.
    Retry {
        /// How long to wait.
        after: Duration,
        /// Whether the broker may count it as a failure.
        counted: bool,
    },
    /// Given back at once, not counted where the broker can do so.
    Release,
}

/// What became of a settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It holds.
    Settled,
    /// The lease or the shard was lost before: another member has or will get the message.
    Stale,
    /// The broker did not answer: it may hold or not; expect a redelivery.
    Unknown,
}
