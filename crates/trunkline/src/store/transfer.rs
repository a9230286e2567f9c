//! Copies of a store: everything that has to survive it, one record each, of one moment.
//!
//! A copy goes from a store into an empty one, or into a file and back. Claims are not part of it: what was in hand waits, and
//! counts as handed over without an outcome. Nor are live members and what processes hold: leases keep only their epochs.

use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

pub use self::rows::{
    AccessKeyRecord, AuditRecord, Blob, CacheRecord, RevocationRecord, ScheduleRow, SecretRecord, SessionKeyRecord, SessionRecord,
    SubjectRecord,
};
use super::{Address, DocKind, Job, LotEntry, LotMessage, LotState, Store};
use crate::delivery::Position;
use crate::error::{Error, Result};
use crate::message::{Headers, MessageId, Millis, now_ms};

mod rows;

/// How many records go together.
pub(super) const BATCH: usize = 500;
/// The layout of a file that this code writes; it knows those before it too. 2 added secrets, access keys, the audit, sessions,
/// caches and schedules.
const FORMAT: u32 = 2;

/// A part of a store that can be copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "camelCase")]
pub enum Record {
    /// A document of the catalogue.
    Doc {
        /// Its kind.
        kind: DocKind,
        /// Its path.
        path: String,
        /// Its body; credentials in it are sealed.
        body: Value,
    },
    /// An entry of the lot.
    Entry(Box<EntryRecord>),
    /// An idempotency key.
    Key(Box<KeyRecord>),
    /// A message that a group has handled.
    Handled {
        /// Address and group.
        scope: String,
        /// The message.
        id: Uuid,
        /// Until when that is remembered.
        expires_at: Millis,
    },
    /// A job with its progress.
    Job(Box<Job>),
    /// A lease's epoch, which must never be given again.
    Lease {
        /// The lease.
        name: String,
        /// Its epoch.
        epoch: u64,
    },
    /// How far a dead topic on a broker was read.
    Indexed {
        /// The topic and env.
        address: Address,
        /// The group.
        group: String,
        /// The next offset.
        next: u64,
    },
    /// A secret.
    Secret(Box<SecretRecord>),
    /// An access key.
    AccessKey(Box<AccessKeyRecord>),
    /// A row of the audit.
    Audit(Box<AuditRecord>),
    /// Where the audit ends, as it is noted beside its rows.
    AuditHead {
        /// The number of the last row.
        seq: i64,
        /// Its hash.
        hash: Blob,
    },
    /// A key of the workspace's sessions.
    SessionKey(Box<SessionKeyRecord>),
    /// A subject of sessions.
    Subject(Box<SubjectRecord>),
    /// A session.
    Session(Box<SessionRecord>),
    /// A refresh token of a session.
    Refresh {
        /// Its hash.
        hash: Blob,
        /// The session.
        session: String,
        /// Whether it was exchanged.
        used: bool,
    },
    /// Something of sessions that was taken back.
    Revocation(Box<RevocationRecord>),
    /// A message under a cache.
    CacheValue(Box<CacheRecord>),
    /// A schedule.
    Schedule(Box<ScheduleRow>),
}

/// An idempotency key as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// Address and key.
    pub key: String,
    /// Of event and payload, as base64.
    pub hash: String,
    /// The message.
    pub id: Uuid,
    /// When it was confirmed.
    pub sent_at: Option<Millis>,
    /// How long a result is kept, in ms.
    pub keep: u64,
    /// Until when it is remembered.
    pub expires_at: Millis,
}

impl KeyRecord {
    pub(super) fn hash_bytes(&self) -> Result<Vec<u8>> {
        unbase64(&self.hash)
    }
}

/// An entry of the lot as a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryRecord {
    seq: u64,
    state: LotState,
    address: Address,
    group: String,
    chain: Option<u64>,
    due_at: Millis,
    attempts: u32,
    reason: Option<String>,
    error: Option<String>,
    died_at: Option<Millis>,
    job: Option<String>,
    lost: u32,
    id: Uuid,
    key: Option<String>,
    headers: String,
    payload: String,
    produced_at: Millis,
    shard: u32,
    offset: u64,
}

impl From<&LotEntry> for EntryRecord {
    fn from(entry: &LotEntry) -> Self {
        let mut headers = Vec::new();
        entry.message.headers.encode(&mut headers);
        EntryRecord {
            seq: entry.seq,
            state: entry.state,
            address: entry.address.clone(),
            group: entry.group.to_string(),
            chain: entry.chain,
            due_at: entry.due_at,
            attempts: entry.attempts,
            reason: entry.reason.clone(),
            error: entry.error.clone(),
            died_at: entry.died_at,
            job: entry.job.clone(),
            lost: entry.deliveries,
            id: entry.message.id.0,
            key: entry.message.key.as_ref().map(|key| BASE64.encode(key)),
            headers: BASE64.encode(headers),
            payload: BASE64.encode(&entry.message.payload),
            produced_at: entry.message.produced_at,
            shard: entry.message.position.shard,
            offset: entry.message.position.offset,
        }
    }
}

impl EntryRecord {
    /// The entry; `deliveries` are its hand-overs without an outcome.
    pub(super) fn entry(&self) -> Result<LotEntry> {
        let headers = Bytes::from(unbase64(&self.headers)?);
        Ok(LotEntry {
            seq: self.seq,
            state: self.state,
            address: self.address.clone(),
            group: self.group.as_str().into(),
            chain: self.chain,
            due_at: self.due_at,
            attempts: self.attempts,
            reason: self.reason.clone(),
            error: self.error.clone(),
            died_at: self.died_at,
            job: self.job.clone(),
            deliveries: self.lost,
            message: LotMessage {
                id: MessageId(self.id),
                key: self.key.as_deref().map(unbase64).transpose()?.map(Bytes::from),
                headers: Headers::decode(&headers).ok_or_else(|| broken("headers cannot be read"))?,
                payload: unbase64(&self.payload)?.into(),
                produced_at: self.produced_at,
                position: Position { shard: self.shard, offset: self.offset },
            },
        })
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn unbase64(text: &str) -> Result<Vec<u8>> {
    BASE64.decode(text).map_err(|_| broken("it holds no base64"))
}

fn broken(why: &str) -> Error {
    Error::store(format!("the copy is damaged: {why}")).reason("damaged").next("use another backup")
}

/// How many records a store or a copy has, by kind. What an older file does not count, it does not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Documents of the catalogue.
    pub docs: u64,
    /// Entries of the lot.
    pub entries: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Handled messages.
    pub handled: u64,
    /// Jobs.
    pub jobs: u64,
    /// Secrets.
    pub secrets: u64,
    /// Access keys, the revoked ones too.
    pub access_keys: u64,
    /// Rows of the audit.
    pub audit: u64,
    /// Keys of the workspace's sessions.
    pub session_keys: u64,
    /// Subjects of sessions, the erased ones too.
    pub subjects: u64,
    /// Sessions.
    pub sessions: u64,
    /// Refresh tokens, the exchanged ones too.
    pub refreshes: u64,
    /// What was taken back of sessions.
    pub revocations: u64,
    /// Messages under caches.
    pub cache_values: u64,
    /// Schedules.
    pub schedules: u64,
}

impl Counts {
    /// The tables that are counted, in the order of [`of`](Self::of).
    pub(super) const TABLES: [&'static str; 15] = [
        "doc",
        "lot",
        "idempotency",
        "dedupe",
        "job",
        "secret",
        "access_key",
        "audit",
        "session_key",
        "subject",
        "session",
        "session_refresh",
        "session_revocation",
        "cache_value",
        "schedule",
    ];

    /// One query for the counts of all tables.
    pub(super) fn query() -> String {
        let counts: Vec<String> = Self::TABLES.iter().map(|table| format!("(SELECT count(*) FROM {table})")).collect();
        format!("SELECT {}", counts.join(", "))
    }

    /// The counts of [`TABLES`](Self::TABLES).
    pub(super) fn of(counts: [u64; 15]) -> Self {
        let [docs, entries, keys, handled, jobs, secrets, access_keys, audit, session_keys, ..] = counts;
        let [.., subjects, sessions, refreshes, revocations, cache_values, schedules] = counts;
        Counts {
            docs,
            entries,
            keys,
            handled,
            jobs,
            secrets,
            access_keys,
            audit,
            session_keys,
            subjects,
            sessions,
            refreshes,
            revocations,
            cache_values,
            schedules,
        }
    }

    fn all(&self) -> [u64; 15] {
        [
            self.docs,
            self.entries,
            self.keys,
            self.handled,
            self.jobs,
            self.secrets,
            self.access_keys,
            self.audit,
            self.session_keys,
            self.subjects,
            self.sessions,
            self.refreshes,
            self.revocations,
            self.cache_values,
            self.schedules,
        ]
    }

    /// Counts these records too.
    pub fn add(&mut self, records: &[Record]) {
        for record in records {
            let count = match record {
                Record::Doc { .. } => &mut self.docs,
                Record::Entry(_) => &mut self.entries,
                Record::Key(_) => &mut self.keys,
                Record::Handled { .. } => &mut self.handled,
                Record::Job(_) => &mut self.jobs,
                Record::Secret(_) => &mut self.secrets,
                Record::AccessKey(_) => &mut self.access_keys,
                Record::Audit(_) => &mut self.audit,
                Record::SessionKey(_) => &mut self.session_keys,
                Record::Subject(_) => &mut self.subjects,
                Record::Session(_) => &mut self.sessions,
                Record::Refresh { .. } => &mut self.refreshes,
                Record::Revocation(_) => &mut self.revocations,
                Record::CacheValue(_) => &mut self.cache_values,
                Record::Schedule(_) => &mut self.schedules,
                Record::Lease { .. } | Record::Indexed { .. } | Record::AuditHead { .. } => continue,
            };
            *count += 1;
        }
    }

    /// How many in all.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.all().iter().sum()
    }
}

/// The part of the contract that copies need.
#[async_trait]
pub trait TransferStore {
    /// Sends all records of one moment, documents first, entries in the order of `seq`.
    async fn export(&self, to: mpsc::Sender<Vec<Record>>) -> Result<()>;

    /// Takes records in, all or none; one that is there already stays as it is. Numbers of entries are kept.
    async fn import(&self, records: Vec<Record>) -> Result<()>;

    /// How many records there are.
    async fn counts(&self) -> Result<Counts>;

    /// Removes every record.
    async fn clear(&self) -> Result<()>;
}

/// Copies a store into another one, telling `progress` how far it is; the counts of both, which are equal.
///
/// # Errors
/// `STORE_FAILED`: with reason `not_empty` if the target has records and `force` does not say to replace them, `incomplete` if
/// it does not have all of them in the end, because another process wrote to it.
pub async fn copy(from: &dyn Store, to: &dyn Store, force: bool, progress: &(dyn Fn(Counts) + Send + Sync)) -> Result<Counts> {
    make_room(to, force).await?;
    let (sender, records) = mpsc::channel(4);
    let (exported, taken) = tokio::join!(from.export(sender), take(to, records, progress));
    let taken = taken?;
    exported?;
    verify(to, taken).await
}

async fn make_room(to: &dyn Store, force: bool) -> Result<()> {
    let there = to.counts().await?;
    if there.sum() == 0 {
        return Ok(());
    }
    if !force {
        return Err(Error::store(format!("{} is not empty: it holds {} records", to.location(), there.sum()))
            .reason("not_empty")
            .next("name an empty store (postgres://…?schema=NAME), or replace all that is in it with --force"));
    }
    to.clear().await
}

async fn take(to: &dyn Store, mut records: mpsc::Receiver<Vec<Record>>, progress: &(dyn Fn(Counts) + Send + Sync)) -> Result<Counts> {
    let mut taken = Counts::default();
    while let Some(batch) = records.recv().await {
        taken.add(&batch);
        to.import(batch).await?;
        progress(taken);
    }
    Ok(taken)
}

async fn verify(to: &dyn Store, taken: Counts) -> Result<Counts> {
    let there = to.counts().await?;
    if there == taken {
        return Ok(there);
    }
    Err(Error::store(format!("the copy holds {} records of {}", there.sum(), taken.sum()))
        .reason("incomplete")
        .next("stop all processes that use the target, and do it again with --force"))
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    trunkline_backup: u32,
    at: Millis,
    key_id: String,
}

/// The last line of a file: one without it was cut short.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    end: Counts,
}

/// Writes a copy of the store into a new file that only its owner reads: JSON, one record a line. `key_id` names the master key
/// that credentials in it are sealed with.
///
/// # Errors
/// `STORE_FAILED`: the file is there already or cannot be written, or the store cannot be read.
pub async fn backup(store: &dyn Store, key_id: &str, file: &Path) -> Result<Counts> {
    let failed = |error: &std::io::Error| {
        Error::store(format!("{} cannot be written: {error}", file.display())).reason("io").next("name a new file on a disk with room")
    };
    let out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(|error| failed(&error))?;
    let mut out = BufWriter::new(out);
    let head = Head { trunkline_backup: FORMAT, at: now_ms(), key_id: key_id.to_owned() };
    line(&mut out, &head).map_err(|error| failed(&error))?;
    let (sender, mut records) = mpsc::channel::<Vec<Record>>(4);
    let write = async {
        let mut counts = Counts::default();
        while let Some(batch) = records.recv().await {
            counts.add(&batch);
            batch.iter().try_for_each(|record| line(&mut out, record)).map_err(|error| failed(&error))?;
        }
        Ok::<_, Error>(counts)
    };
    let (exported, counts) = tokio::join!(store.export(sender), write);
    let ended = counts.and_then(|counts| {
        exported?;
        line(&mut out, &End { end: counts })
            .and_then(|()| out.flush())
            .and_then(|()| out.get_ref().sync_all())
            .map_err(|error| failed(&error))?;
        Ok(counts)
    });
    if ended.is_err() {
        // Half a backup is none.
        let _ = std::fs::remove_file(file);
    }
    ended
}

fn line(out: &mut impl std::io::Write, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Puts a backup into a store.
///
/// # Errors
/// `STORE_FAILED` as [`copy`]; with reason `damaged` if the file is no whole backup (nothing is changed then), `master_key` if it
/// was sealed with another master key than `key_id`.
pub async fn restore(
    store: &dyn Store,
    key_id: &str,
    file: &Path,
    force: bool,
    progress: &(dyn Fn(Counts) + Send + Sync),
) -> Result<Counts> {
    // Read to its end first: what is there is not given up for half a backup.
    read(file, key_id, |_| Ok(()))?;
    make_room(store, force).await?;
    let (sender, records) = mpsc::channel(4);
    let (path, key_id) = (file.to_owned(), key_id.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        read(&path, &key_id, |batch| sender.blocking_send(batch).map_err(|_| Error::store("the restore ended early")))
    });
    let taken = take(store, records, progress).await?;
    reading.await.map_err(|_| Error::store("the backup cannot be read"))??;
    verify(store, taken).await
}

/// Reads a backup from its first to its last line.
fn read(file: &Path, key_id: &str, mut batch: impl FnMut(Vec<Record>) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::store(format!("{} cannot be read: {error}", file.display())).reason("io");
    let mut lines = BufReader::new(std::fs::File::open(file).map_err(failed)?).lines();
    let head = lines.next().transpose().map_err(failed)?.unwrap_or_default();
    let head: Head = serde_json::from_str(&head).map_err(|_| broken("it is no backup"))?;
    if head.trunkline_backup > FORMAT {
        return Err(Error::store("the backup was written by a newer Trunkline").reason("newer").next("restore it with that version"));
    }
    if head.key_id != key_id {
        return Err(Error::store("the backup was sealed with another master key")
            .reason("master_key")
            .next("set TRUNKLINE_MASTER_KEY, or put back the master.key, that the store had when the backup was made"));
    }
    let (mut seen, mut next) = (Counts::default(), Vec::new());
    for text in lines {
        let text = text.map_err(failed)?;
        if let Ok(End { end }) = serde_json::from_str(&text) {
            batch(next)?;
            return if end == seen { Ok(()) } else { Err(broken("it does not hold what its end says")) };
        }
        let record: Record = serde_json::from_str(&text).map_err(|_| broken("a line is no record"))?;
        seen.add(std::slice::from_ref(&record));
        next.push(record);
        if next.len() >= BATCH {
            batch(std::mem::take(&mut next))?;
        }
    }
    Err(broken("it was cut short"))
}
