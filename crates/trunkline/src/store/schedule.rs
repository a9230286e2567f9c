//! The contract's part for schedules: messages that are produced again and again, or once at a time.
//!
//! A due time is wall time, since that is what people mean by nine o'clock. Claims hold by the store's clock. A schedule moves
//! on from one due time to the next in one step that only the owner of its claim can do, so each due time is fired once,
//! whatever the clock does.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::message::{Headers, MessageId, Millis};
use crate::store::Address;

/// How a schedule fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleState {
    /// It fires when it is due.
    Active,
    /// It does not fire until it is resumed.
    Paused,
    /// Nothing of it is left to fire.
    Done,
    /// It was cancelled.
    Cancelled,
}

impl ScheduleState {
    /// The state as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ScheduleState::Active => "active",
            ScheduleState::Paused => "paused",
            ScheduleState::Done => "done",
            ScheduleState::Cancelled => "cancelled",
        }
    }

    /// The state of a text.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        use ScheduleState::{Active, Cancelled, Done, Paused};
        [Active, Paused, Done, Cancelled].into_iter().find(|state| state.as_str() == text)
    }
}

/// What a schedule produces each time.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleMessage {
    /// The key.
    pub key: Option<Bytes>,
    /// All headers but id and key.
    pub headers: Headers,
    /// The payload.
    pub payload: Bytes,
    /// The tag of the cache it is produced under.
    pub cache: Option<String>,
}

/// One schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleRecord {
    /// Unique.
    pub id: MessageId,
    /// Where it produces to.
    pub address: Address,
    /// Its state.
    pub state: ScheduleState,
    /// When it fires, as the core writes it. The store does not interpret it.
    pub timing: Value,
    /// What it produces.
    pub message: ScheduleMessage,
    /// When it is due next (wall time); `None` once it is done or cancelled.
    pub next_at: Option<Millis>,
    /// A firing that failed is not tried again before this (wall time).
    pub retry_at: Option<Millis>,
    /// The due time that is being fired, or was when its owner died.
    pub firing_at: Option<Millis>,
    /// How many due times were fired.
    pub fired: u64,
    /// How many were not, because the next one was due before they could be.
    pub missed: u64,
    /// How often the due time at hand failed so far.
    pub failures: u32,
    /// Why it failed last.
    pub error: Option<String>,
    /// The due time that was fired last (wall time).
    pub last_at: Option<Millis>,
    /// The message of it.
    pub last_id: Option<MessageId>,
    /// When it was made (wall time).
    pub created_at: Millis,
    /// When it last changed (wall time).
    pub updated_at: Millis,
}

/// How a claimed schedule goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleSettle {
    /// The due time at hand was fired.
    Fired {
        /// The message.
        id: MessageId,
        /// The next due time; `None`: it is done.
        next_at: Option<Millis>,
    },
    /// It failed and is tried again.
    Failed {
        /// Why, as code and message.
        error: String,
        /// Not before this (wall time).
        retry_at: Millis,
    },
    /// Given back as it was, for another to fire.
    Release,
}

/// Which schedules. Empty fields match all.
#[derive(Debug, Clone, Default)]
pub struct ScheduleFilter {
    /// The product.
    pub product: Option<String>,
    /// The env.
    pub env: Option<String>,
    /// Broker and topic.
    pub event: Option<String>,
    /// In one of these states.
    pub states: Vec<ScheduleState>,
    /// Only those whose last try failed.
    pub failing: bool,
}

/// What a store keeps for schedules.
#[async_trait]
pub trait ScheduleStore: Send + Sync {
    /// Adds one.
    async fn schedule_add(&self, schedule: &ScheduleRecord) -> Result<()>;

    /// One of them.
    async fn schedule_get(&self, id: MessageId) -> Result<Option<ScheduleRecord>>;

    /// Those that match, newest first, and how many there are.
    async fn schedules(&self, filter: &ScheduleFilter, limit: usize, offset: usize) -> Result<(Vec<ScheduleRecord>, u64)>;

    /// Claims active schedules that are due; `firing_at` of each is the due time that its owner may fire: the one before an
    /// owner died, else `next_at`. With each, whether it was taken over from an owner that died.
    async fn schedule_claim(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<(ScheduleRecord, bool)>>;

    /// Before a later due time than `firing_at` is fired: it takes the place of that one, and `missed` more are counted.
    /// `false` where the claim is no longer the owner's.
    async fn schedule_skip(&self, id: MessageId, owner: &str, firing_at: Millis, missed: u64) -> Result<bool>;

    /// Ends a claim; `false` where it is no longer the owner's (then nothing was changed).
    async fn schedule_settle(&self, id: MessageId, owner: &str, settle: ScheduleSettle) -> Result<bool>;

    /// Moves it from one of the states `from` to another, due at `next_at`; `false` if it is in none of them. A claim that is
    /// under way no longer settles anything.
    async fn schedule_turn(&self, id: MessageId, from: &[ScheduleState], to: ScheduleState, next_at: Option<Millis>) -> Result<bool>;

    /// When the next active schedule may be claimed (wall time).
    async fn schedule_next(&self) -> Result<Option<Millis>>;
}

/// No schedule of this id.
pub(crate) fn unknown(id: &str) -> Error {
    Error::new(crate::error::Code::ScheduleNotFound, format!("schedule '{id}' does not exist"))
        .field("schedule_id")
        .next("list them with `trunkline schedules list --all`")
}
