//! The contract of a store: where the catalogue, the lot, idempotency keys, leases, the registry and jobs live.
//!
//! Two implementations keep it: SQLite in a data directory (one host, several processes) and, by its own feature,
//! PostgreSQL (many hosts). Every write is durable when the call returns: the core acks a delivery right after.
//! Times are the store's clock ([`Store::now`]), so that hosts agree on what is due.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::delivery::Position;
use crate::error::Result;
use crate::event::Event;
use crate::message::{Headers, MessageId, Millis, header};
use audit::AuditStore;
use keys::KeyStore;
use secrets::SecretStore;

pub mod audit;
pub mod cache;
pub mod clock;
mod common;
pub mod datadir;
pub mod keys;
mod open;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod schedule;
mod sealed;
pub mod secrets;
mod sessions;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod transfer;

pub use open::{Opened, is_postgres, open, shown};
pub(crate) use sealed::{SealedStore, erased};
pub use sessions::{
    Revocation, SessionKey, SessionKeyUse, SessionRefreshed, SessionRenewal, SessionRow, SessionStore, SessionUser, SessionsOf, Subject,
};

/// How far the store's knowledge reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This host.
    Host,
    /// Every host that opens the same store.
    Shared,
}

/// A topic in one env: what messages, lot entries and history are filed under.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The product's tag.
    pub product: Arc<str>,
    /// The env's slug.
    pub env: Arc<str>,
    /// Broker and topic.
    pub event: Event,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.product, self.env, self.event)
    }
}

impl Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// ---------------------------------------------------------------------------------------------- catalogue

/// The kinds of documents in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DocKind {
    /// A product.
    Product,
    /// A broker with its envs.
    Broker,
    /// A topic.
    Topic,
    /// A declared or known group of a topic.
    Group,
    /// A session definition.
    Session,
    /// A cache of a product.
    Cache,
}

/// One document of the catalogue. The store does not interpret the body.
#[derive(Debug, Clone, PartialEq)]
pub struct Doc {
    /// Its kind.
    pub kind: DocKind,
    /// Unique within its kind: `product`, `product/broker`, `product/broker:topic`, `product/broker:topic/group`,
    /// `product/session`, `product/cache`.
    pub path: String,
    /// The document; credentials in it are sealed already.
    pub body: Value,
}

/// A change to the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub enum DocChange {
    /// Insert or replace.
    Put(Doc),
    /// Remove; what is not there stays away.
    Remove(DocKind, String),
}

// ---------------------------------------------------------------------------------------------------- lot

/// What a lot entry is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LotState {
    /// A delivery of one group, waiting to be handed to it again.
    Waiting,
    /// A publish that waits until it is due; its group is empty.
    Publish,
    /// A dead letter of one group.
    Dead,
}

/// A message as the lot keeps it: all that is needed to hand it over or produce it.
#[derive(Debug, Clone, PartialEq)]
pub struct LotMessage {
    /// The `process_id`.
    pub id: MessageId,
    /// The key.
    pub key: Option<Bytes>,
    /// All headers but id and key.
    pub headers: Headers,
    /// The payload.
    pub payload: Bytes,
    /// When it was produced (or stored, if foreign).
    pub produced_at: Millis,
    /// Where it lay on the broker.
    pub position: Position,
}

/// One entry of the lot.
#[derive(Debug, Clone, PartialEq)]
pub struct LotEntry {
    /// Given by the store; grows in the order of insertion. 0 in an entry that is being put.
    pub seq: u64,
    /// What it waits for.
    pub state: LotState,
    /// Its topic and env.
    pub address: Address,
    /// The group it comes back to; empty for [`LotState::Publish`].
    pub group: Arc<str>,
    /// On ordered topics: the hash of its key. All waiting entries of one chain are handed over in the order of `seq`,
    /// one at a time, by the owner of `message.position.shard`.
    pub chain: Option<u64>,
    /// When it is due (store's clock).
    pub due_at: Millis,
    /// Recorded failures.
    pub attempts: u32,
    /// Fixed word: `attempts_exhausted`, `buried`, `expired`, `crash_loop`, `broken_envelope`, …
    pub reason: Option<String>,
    /// The last error's text, cut at 4 KiB.
    pub error: Option<String>,
    /// When it was buried last.
    pub died_at: Option<Millis>,
    /// The job that set it back to waiting last.
    pub job: Option<String>,
    /// Hand-overs that gave no outcome so far, one that is running included: what kills its process has many.
    pub deliveries: u32,
    /// The message.
    pub message: LotMessage,
}

impl LotEntry {
    /// Whether its content is gone, because the subject of its session was erased.
    #[must_use]
    pub fn is_erased(&self) -> bool {
        self.message.headers.len() == 1 && self.message.payload.is_empty() && self.message.headers.get(header::ERASED).is_some()
    }
}

/// Which due entries to claim.
#[derive(Debug, Clone)]
pub struct LotClaim<'a> {
    /// The topic and env.
    pub address: &'a Address,
    /// The group.
    pub group: &'a str,
    /// `None`: entries without a chain, of any shard. `Some`: heads of chains of these shards, in order.
    pub shards: Option<&'a [u32]>,
    /// At most this many.
    pub limit: usize,
    /// Who claims, and for how long: until then nobody else gets them.
    pub owner: &'a str,
    /// How long the claim holds without being renewed.
    pub lease: Duration,
}

/// What becomes of a claimed (or in-hand) lot entry.
#[derive(Debug, Clone, PartialEq)]
pub enum LotSettle {
    /// Handled: it leaves the lot.
    Done,
    /// It waits again.
    Wait {
        /// When it is due.
        due_at: Millis,
        /// Recorded failures.
        attempts: u32,
        /// The last error.
        error: Option<String>,
    },
    /// It is buried.
    Bury {
        /// Fixed word.
        reason: String,
        /// Recorded failures.
        attempts: u32,
        /// The last error.
        error: Option<String>,
    },
    /// Given back as it was.
    Release,
}

/// What the dead topic of a group says about one message.
#[derive(Debug, Clone, PartialEq)]
pub enum LotRecord {
    /// It died, or the letter was edited.
    Dead(Box<LotEntry>),
    /// The letter of this death is no longer one: it was handed over again or discarded.
    Gone {
        /// The message.
        id: MessageId,
        /// The death.
        died_at: Millis,
    },
}

/// A filter over the lot. Empty fields match all.
#[derive(Debug, Clone, Default)]
pub struct LotFilter {
    /// The product.
    pub product: Option<String>,
    /// The env.
    pub env: Option<String>,
    /// The broker's tag.
    pub broker: Option<String>,
    /// The topic's short tag.
    pub topic: Option<String>,
    /// The group.
    pub group: Option<String>,
    /// What the entries wait for.
    pub state: Option<LotState>,
    /// These messages only.
    pub ids: Vec<MessageId>,
    /// Entries whose error's first line, or whose reason, is exactly this.
    pub error: Option<String>,
    /// Died (or due, if not dead) at or after.
    pub from: Option<Millis>,
    /// Died (or due) before.
    pub to: Option<Millis>,
    /// Only entries with a higher `seq` (for pages and resumable jobs).
    pub after: Option<u64>,
}

/// Dead letters that died of the same error.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadGroup {
    /// The first line of the error, or the reason where there is none.
    pub error: String,
    /// The fixed word.
    pub reason: String,
    /// The consumer group.
    pub group: String,
    /// Broker and topic.
    pub event: Event,
    /// How many.
    pub count: u64,
    /// The first death.
    pub first_at: Millis,
    /// The last death.
    pub last_at: Millis,
}

/// How much of one group's lies in the lot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LotCounts {
    /// Waiting deliveries.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// Delayed publishes.
    pub publish: u64,
    /// Those of them that failed and are tried again.
    pub failing: u64,
    /// The earliest due time of what waits.
    pub next_due: Option<Millis>,
}

/// An edit of a dead letter.
#[derive(Debug, Clone, Default)]
pub struct LotEdit {
    /// A new payload.
    pub payload: Option<Bytes>,
    /// New headers, replacing all.
    pub headers: Option<Headers>,
}

// ------------------------------------------------------------------------------------ idempotency, dedupe

/// A claim of an idempotency key.
#[derive(Debug, Clone)]
pub struct IdempotencyClaim {
    /// Address and key, made by the core.
    pub key: String,
    /// Hash of the canonical payload and the event.
    pub hash: [u8; 32],
    /// The id it is to be published with, if the claim is fresh.
    pub id: MessageId,
    /// The claiming process.
    pub owner: String,
    /// How long the claim is held before another may take it over.
    pub lease: Duration,
    /// How long a result is remembered.
    pub window: Duration,
}

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It is ours: send with this id (the stored one if an expired claim was taken over).
    Ours(MessageId),
    /// It was sent before.
    Sent {
        /// The first result.
        id: MessageId,
        /// When.
        at: Millis,
    },
    /// Another process is sending it now.
    InProgress {
        /// Until when its claim holds.
        until: Millis,
    },
    /// The same key came with another payload.
    Conflict,
}

/// What is known of an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyState {
    /// The id it was or is being published with.
    pub id: MessageId,
    /// When it was confirmed; `None` while it is being sent.
    pub sent_at: Option<Millis>,
}

// ------------------------------------------------------------------------------------- registry, leases, jobs

/// A live producer or consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Unique.
    pub id: String,
    /// `producer` or `consumer`.
    pub role: MemberRole,
    /// Its topic and env.
    pub address: Address,
    /// Its group, if it is a consumer.
    pub group: Option<String>,
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// `rust`, `node`, `python`, `cli`.
    pub sdk: String,
    /// The version of Trunkline.
    pub version: String,
    /// `connecting`, `live`, `degraded: <reason>`, `closed`.
    pub state: String,
    /// Messages per second over the last heartbeat's span.
    pub rate: f64,
    /// Messages in hand.
    pub in_flight: u64,
    /// The route's epoch it works with.
    pub route_epoch: u64,
    /// The session it consumes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRef>,
    /// When it last settled or confirmed a message.
    pub last_progress_at: Option<Millis>,
    /// When it last reported; set by the store.
    pub last_seen_at: Millis,
}

/// A session, named without saying who it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// The session definition's tag.
    pub tag: String,
    /// The session's id.
    pub id: String,
}

/// The two roles in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// It produces.
    Producer,
    /// It consumes.
    Consumer,
}

/// A piece of long work with its progress: a reprocess, a replay of many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// A UUIDv7 as text.
    pub id: String,
    /// `reprocess`.
    pub kind: String,
    /// The product it belongs to.
    pub product: String,
    /// `running`, `done`, `cancelled`, `failed`.
    pub state: String,
    /// What was asked for, to go on with after a crash.
    pub spec: Value,
    /// The last `seq` that was worked on.
    pub cursor: u64,
    /// How many matched when it started.
    pub matched: u64,
    /// How many are done.
    pub done: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were skipped.
    pub skipped: u64,
    /// The newest per-message results, at most 1,000.
    pub results: Vec<Value>,
    /// When it was made.
    pub created_at: Millis,
    /// When it last moved.
    pub updated_at: Millis,
}

/// The contract. All calls may run at the same time, from many processes.
#[async_trait]
pub trait Store:
    SecretStore
    + KeyStore
    + AuditStore
    + SessionStore
    + cache::CacheStore
    + schedule::ScheduleStore
    + transfer::TransferStore
    + Send
    + Sync
    + Debug
{
    /// How far it reaches.
    fn scope(&self) -> Scope;

    /// Where it lives, without secrets: for `-v`, `doctor` and errors.
    fn location(&self) -> String;

    /// The store's clock: milliseconds that only go forward, equal for all who have the store open, about those of the wall
    /// clock as long as nobody sets that one. What is due, and how long a lease or a claim holds, is counted by it.
    fn now(&self) -> Millis;

    /// Ends its work. Later calls fail with `CLOSED`.
    async fn close(&self);

    /// Whether a small durable write goes through.
    async fn probe(&self) -> Result<()>;

    // catalogue

    /// A number that grows with every change of the catalogue, by any process. Cheap: it is asked once a second.
    async fn catalog_version(&self) -> Result<u64>;

    /// The whole catalogue at one version.
    async fn catalog(&self) -> Result<(u64, Vec<Doc>)>;

    /// Applies all changes or none, if the version is still `expected`; the new version, or `None` if another was faster.
    async fn catalog_write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>>;

    /// Returns when another process may have changed the catalogue. It may never return where a store cannot tell, and may
    /// miss a change: whoever waits here looks at [`Store::catalog_version`] now and then in any case.
    async fn catalog_changed(&self);

    // lot

    /// Puts entries. One that is there already (same address, group and message id, waiting or dead; or the same id among
    /// the delayed publishes) is left as it is: the copy comes from a crash between write and ack.
    async fn lot_put(&self, entries: Vec<LotEntry>) -> Result<()>;

    /// Claims due waiting entries. A claim that ends without an outcome, because its owner died, counts as a hand-over. Of
    /// those that had two or more such ends (suspects), one at a time is handed out to all owners of the group together, so
    /// that one that kills its process does not raise the counts of the others.
    async fn lot_claim(&self, claim: LotClaim<'_>) -> Result<Vec<LotEntry>>;

    /// Claims due delayed publishes of all topics.
    async fn lot_claim_publishes(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<LotEntry>>;

    /// Renews claims; `false` where the claim was lost.
    async fn lot_extend(&self, seqs: &[u64], owner: &str, lease: Duration) -> Result<Vec<bool>>;

    /// Settles claimed entries; `false` where the claim is no longer the owner's (then nothing was changed).
    async fn lot_settle(&self, owner: &str, items: Vec<(u64, LotSettle)>) -> Result<Vec<bool>>;

    /// The chains of a shard: hash of the key, number of waiting entries, bytes.
    async fn lot_chains(&self, address: &Address, group: &str, shard: u32) -> Result<Vec<(u64, u64, u64)>>;

    /// Counts for one group (`Some`) or for all of the address (`None`).
    async fn lot_counts(&self, address: &Address, group: Option<&str>) -> Result<LotCounts>;

    /// When the next waiting entry of the group, or delayed publish (`None`) of any topic, is due.
    async fn lot_next_due(&self, of: Option<(&Address, &str)>) -> Result<Option<Millis>>;

    /// Entries that match, by `seq`, descending if `newest_first`.
    async fn lot_list(&self, filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Result<Vec<LotEntry>>;

    /// How many match.
    async fn lot_count(&self, filter: &LotFilter) -> Result<u64>;

    /// Dead letters that match, grouped by error, most first.
    async fn lot_groups(&self, filter: &LotFilter) -> Result<Vec<DeadGroup>>;

    /// Changes a dead letter in place. `false` if it is not there.
    async fn lot_edit(&self, seq: u64, edit: LotEdit) -> Result<bool>;

    /// Removes dead letters; how many were there.
    async fn lot_discard(&self, seqs: &[u64]) -> Result<u64>;

    /// In one transaction: sets up to `limit` dead letters that match and lie after the job's cursor back to waiting (due
    /// now, attempts 0, `edit` applied), and moves the job's cursor, counters and results with them. The entries moved.
    async fn lot_revive(&self, job: &str, filter: &LotFilter, edit: Option<&LotEdit>, limit: usize) -> Result<Vec<LotEntry>>;

    /// Counts durably that these messages of a group are about to be handled, for a lot that is not in the store; how many
    /// hand-overs that makes without an outcome. Of suspects (two or more before) only the first is counted, and only if
    /// `suspect`; the others are `None`, and must not be handled before that one is settled.
    async fn lot_start(&self, address: &Address, group: &str, ids: &[MessageId], suspect: bool) -> Result<Vec<Option<u32>>>;

    /// Takes back what was counted: all of it for one that came to an outcome (`true`), else only its last hand-over.
    async fn lot_end(&self, address: &Address, group: &str, items: &[(MessageId, bool)]) -> Result<()>;

    /// How far the group's dead topic on the broker was read into this store: the next offset.
    async fn lot_indexed(&self, address: &Address, group: &str) -> Result<u64>;

    /// In one transaction: applies what the dead topic says from `from` up to `to`, and remembers `to`. `false`, and nothing
    /// is changed, if another process has read on from there meanwhile. What was set back to waiting stays so, unless it
    /// died anew.
    async fn lot_index(&self, address: &Address, group: &str, from: u64, to: u64, records: Vec<LotRecord>) -> Result<bool>;

    // idempotency and dedupe

    /// Claims keys, each on its own, all durable when it returns.
    async fn idempotency_claim(&self, claims: Vec<IdempotencyClaim>) -> Result<Vec<Claimed>>;

    /// Notes that the message was confirmed.
    async fn idempotency_sent(&self, keys: &[(String, MessageId)]) -> Result<()>;

    /// Gives a claim back whose message was certainly not sent, if it is still the owner's. Where the claim had been taken
    /// over from an owner that died, the id stays for the next claim: that owner may have sent it.
    async fn idempotency_abandon(&self, key: &str, id: MessageId, owner: &str) -> Result<()>;

    /// What is known of a key.
    async fn idempotency_get(&self, key: &str) -> Result<Option<IdempotencyState>>;

    /// Which of these ids the scope (address and group) has handled within its window.
    async fn dedupe_seen(&self, scope: &str, ids: &[MessageId]) -> Result<Vec<bool>>;

    /// Notes that they were handled; forgotten after `window`.
    async fn dedupe_done(&self, scope: &str, ids: &[MessageId], window: Duration) -> Result<()>;

    // leases

    /// Takes or renews the lease of this name; its epoch (raised when the owner changes), or `None` if another holds it.
    async fn lease_take(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>>;

    /// Gives it back, if it is ours.
    async fn lease_release(&self, name: &str, owner: &str) -> Result<()>;

    // registry

    /// Reports members; the store sets `last_seen_at`.
    async fn members_report(&self, members: &[Member]) -> Result<()>;

    /// Members seen within `within`, of one address or of all.
    async fn members(&self, address: Option<&Address>, within: Duration) -> Result<Vec<Member>>;

    /// Removes one that left.
    async fn members_leave(&self, ids: &[String]) -> Result<()>;

    // jobs

    /// Inserts or replaces a job.
    async fn job_put(&self, job: &Job) -> Result<()>;

    /// One job.
    async fn job_get(&self, id: &str) -> Result<Option<Job>>;

    /// All jobs of a product, newest first.
    async fn jobs(&self, product: &str) -> Result<Vec<Job>>;

    /// Drops what its time is over for: results of idempotency keys, dedupe marks, members, old jobs. How many rows.
    async fn sweep(&self) -> Result<u64>;
}
