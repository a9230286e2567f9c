//! History: what happened to every message, at a cost that the message does not feel.
//!
//! [`Recorder`] takes entries on the hot paths and never waits; blocks, queries and roll-ups are built from them.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::delivery::Position;
use crate::message::{MessageId, Millis};
use crate::provider::Outgoing;
use crate::sessions::SubjectKey;
use crate::store::{Address, SessionRef};

#[cfg(feature = "sqlite")]
mod ask;
#[cfg(feature = "sqlite")]
mod block;
#[cfg(feature = "sqlite")]
mod bundle;
#[cfg(feature = "sqlite")]
mod compact;
#[cfg(feature = "sqlite")]
mod decode;
#[cfg(feature = "sqlite")]
mod encode;
#[cfg(feature = "sqlite")]
mod files;
#[cfg(feature = "sqlite")]
mod histogram;
#[cfg(feature = "sqlite")]
mod index;
#[cfg(feature = "sqlite")]
mod levels;
#[cfg(feature = "sqlite")]
mod maintain;
#[cfg(feature = "sqlite")]
mod open;
#[cfg(feature = "sqlite")]
mod query;
#[cfg(feature = "sqlite")]
mod reader;
#[cfg(feature = "sqlite")]
mod record;
#[cfg(feature = "sqlite")]
mod recorder;
#[cfg(feature = "sqlite")]
mod retention;
#[cfg(feature = "sqlite")]
mod rollup;
#[cfg(feature = "sqlite")]
mod row;
#[cfg(feature = "sqlite")]
mod scan;
#[cfg(feature = "sqlite")]
mod sink;
#[cfg(feature = "sqlite")]
mod spill;
#[cfg(feature = "sqlite")]
mod stats;
#[cfg(feature = "sqlite")]
mod terms;
#[cfg(all(test, feature = "sqlite"))]
mod tests;
#[cfg(feature = "sqlite")]
mod text;
#[cfg(feature = "sqlite")]
mod wire;

#[cfg(feature = "sqlite")]
pub use self::{
    index::Gap,
    open::{Clock, History, Options},
    query::{LIMIT_MAX, Page, Query},
    record::{Category, GroupRecord, Moment, Payload, Record, Status, Text, Time},
    recorder::Recorder,
    rollup::Counters,
    stats::{Bucket, GroupStats, Percentiles, Rates, Stats, StatsQuery, TopicStats},
};

/// How much of each message is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// Everything, payload included.
    #[default]
    Full,
    /// All but the payload.
    Metadata,
    /// Nothing of the message; it is only counted.
    Off,
}

/// The retention and capture of one topic's history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// How much is kept.
    pub capture: Capture,
    /// For how long, in ms; 0 means until the size bound of the whole history.
    pub age_ms: u64,
    /// How many bytes; 0 means no bound of its own.
    pub bytes: u64,
}

/// What entries are filed under: made once per route, shared by all its entries.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Filed {
    /// Topic and env.
    pub address: Address,
    /// The provider, as `EMBEDDED`.
    pub provider: &'static str,
    /// Retention and capture.
    pub class: Class,
}

/// The user context of a session, as stamped on a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMark {
    /// The session definition's tag.
    pub tag: String,
    /// The session's id.
    pub id: String,
    /// The value of the selector; nothing if it was erased.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identifier: String,
}

/// Why a produce did not succeed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The code.
    pub code: &'static str,
    /// One line.
    pub message: String,
}

/// How the content of a message is kept.
#[derive(Debug, Clone, Default)]
pub(crate) enum Content {
    /// As it is.
    #[default]
    Plain,
    /// Encrypted with this key.
    Sealed(Arc<SubjectKey>),
    /// Not at all: it would have to be encrypted, and there is no key.
    Withheld,
}

/// What the record says beside the message, where it says anything.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// The session.
    pub session: Option<Arc<SessionMark>>,
    /// The idempotency key.
    pub idempotency_key: Option<Arc<str>>,
    /// The message it replays.
    pub replay_of: Option<MessageId>,
    /// How headers and payload are kept.
    pub(crate) content: Content,
}

/// What became of a produce: confirmed, or given up.
#[derive(Debug, Clone)]
pub struct Produced {
    /// When `produce` was called.
    pub produced_at: Millis,
    /// From the call to the confirm, in microseconds.
    pub confirm_us: u32,
    /// Where it lies; `None` if it failed.
    pub position: Option<Position>,
    /// Why it failed.
    pub failure: Option<Box<Failure>>,
    /// What is rarely there.
    pub mark: Option<Box<Mark>>,
}

/// What a finished run or a verdict did to one delivery of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Handled.
    Delivered,
    /// Acked without success, by the handler's word.
    Dropped,
    /// The attempt failed; it is held and tried again.
    Held,
    /// The attempt failed; it waits in the lot.
    Waiting,
    /// Buried.
    Dead,
    /// A dead letter was handed to its group again.
    Reprocessed,
}

/// One attempt, or another step in a message's life at one group.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The message id.
    pub id: MessageId,
    /// When it was produced (stored, if foreign).
    pub produced_at: Millis,
    /// What it came to.
    pub step: Step,
    /// Recorded failures, this one included.
    pub attempts: u32,
    /// When the handler started.
    pub started_at: Millis,
    /// From the confirm (stored time) to the start, in microseconds; counted on the first attempt only.
    pub wait_us: u64,
    /// How long the handler ran, in microseconds.
    pub run_us: u64,
    /// The error or the reason.
    pub error: Option<Box<str>>,
    /// Its key, so that the attempts of a message nobody here produced are found by key too.
    pub key: Option<Bytes>,
    /// Where it lies.
    pub position: Position,
}

/// A batch for the recorder: one topic, one producer or one member of a group.
#[derive(Debug)]
pub enum Batch {
    /// Produces of one producer.
    Produced {
        /// The topic.
        filed: Arc<Filed>,
        /// The producer's id in the registry.
        producer: Arc<str>,
        /// Its messages, as they were sent (the recorder drops payloads where the class says so).
        messages: Vec<Outgoing>,
        /// What became of each.
        items: Vec<Produced>,
    },
    /// Attempts of one member of a group.
    Attempts {
        /// The topic.
        filed: Arc<Filed>,
        /// The group.
        group: Arc<str>,
        /// The consumer's id in the registry.
        consumer: Arc<str>,
        /// The session it consumes with.
        session: Option<Arc<SessionRef>>,
        /// Its attempts.
        items: Vec<Attempt>,
    },
    /// The first message is replayed by the second.
    Replayed {
        /// The topic of the first.
        filed: Arc<Filed>,
        /// The message that was replayed.
        id: MessageId,
        /// The new one.
        by: MessageId,
        /// When.
        at: Millis,
    },
}
