//! A store that keeps what sessions' subjects sent encrypted: between the core and any other store.
//!
//! An entry of the lot whose message carries a session is put with key, headers and payload in one sealed text under the
//! subject's data key, and opened as it comes back. Where that key was destroyed the entry comes back without content, marked
//! as erased.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::audit::AuditStore;
use super::cache::{CacheClaim, CacheClaimed, CacheKey, CacheStore, CacheValue};
use super::keys::{KeyRow, KeyStore};
use super::schedule::{ScheduleFilter, ScheduleRecord, ScheduleSettle, ScheduleState, ScheduleStore};
use super::secrets::{SecretChange, SecretRow, SecretStore};
use super::transfer::{Counts, Record, TransferStore};
use super::{
    Address, Claimed, DeadGroup, Doc, DocChange, IdempotencyClaim, IdempotencyState, Job, LotClaim, LotCounts, LotEdit, LotEntry,
    LotFilter, LotMessage, LotRecord, LotSettle, Member, Revocation, Scope, SessionKey, SessionRefreshed, SessionRenewal, SessionRow,
    SessionStore, SessionUser, SessionsOf, Store, Subject,
};
use crate::audit::{AuditEntry, AuditFilter, AuditRow};
use crate::error::{Error, Result};
use crate::message::{Headers, MessageId, Millis, header};
use crate::sessions::{SessionContext, SubjectKey, Vault};

/// The header that names the data key of a sealed entry.
const SEALED: &str = "trunkline-sealed";

/// See the module.
#[derive(Debug)]
pub(crate) struct SealedStore {
    inner: Arc<dyn Store>,
    vault: Arc<Vault>,
}

impl SealedStore {
    pub(crate) fn new(inner: Arc<dyn Store>, vault: Arc<Vault>) -> Self {
        SealedStore { inner, vault }
    }

    async fn seal(&self, mut entry: LotEntry) -> Result<LotEntry> {
        if entry.message.headers.get(header::SESSION).is_none() {
            return Ok(entry);
        }
        let Some(context) = SessionContext::of(&entry.message.headers) else { return Ok(entry) };
        let key = self.vault.key(&context.subject).await?;
        entry.message = sealed(&entry.message, &context.subject, key.as_deref())?;
        Ok(entry)
    }

    async fn open(&self, mut entry: LotEntry) -> Result<LotEntry> {
        let Some(subject) = entry.message.headers.get_str(SEALED) else { return Ok(entry) };
        let key = self.vault.key(subject).await?;
        entry.message = opened(&entry.message, key.as_deref());
        Ok(entry)
    }

    async fn open_all(&self, entries: Vec<LotEntry>) -> Result<Vec<LotEntry>> {
        let mut out = Vec::with_capacity(entries.len());
        for entry in entries {
            out.push(self.open(entry).await?);
        }
        Ok(out)
    }

    async fn seal_all(&self, entries: Vec<LotEntry>) -> Result<Vec<LotEntry>> {
        let mut out = Vec::with_capacity(entries.len());
        for entry in entries {
            out.push(self.seal(entry).await?);
        }
        Ok(out)
    }

    /// The edit of a letter as it is stored: of a sealed one all is sealed anew.
    async fn sealed_edit(&self, entry: LotEntry, edit: &LotEdit) -> Result<Option<LotEdit>> {
        if entry.message.headers.get_str(SEALED).is_none() {
            return Ok(Some(edit.clone()));
        }
        let mut plain = self.open(entry).await?;
        if plain.is_erased() {
            return Ok(None);
        }
        let session = plain.message.headers.get(header::SESSION).cloned();
        plain.message.payload = edit.payload.clone().unwrap_or(plain.message.payload);
        plain.message.headers = edit.headers.clone().unwrap_or(plain.message.headers);
        // New headers do not take a message away from who sent it.
        if let Some(session) = session {
            plain.message.headers.set(header::SESSION, session);
        }
        let LotMessage { payload, headers, .. } = self.seal(plain).await?.message;
        Ok(Some(LotEdit { payload: Some(payload), headers: Some(headers) }))
    }
}

/// A message as it is stored; without content if there is no key any more.
fn sealed(message: &LotMessage, subject: &str, key: Option<&SubjectKey>) -> Result<LotMessage> {
    let mut plain = Vec::with_capacity(message.payload.len() + message.headers.size() + 64);
    plain.push(u8::from(message.key.is_some()));
    let mut headers = Vec::new();
    message.headers.encode(&mut headers);
    for part in [message.key.as_deref().unwrap_or_default(), &headers] {
        plain.extend_from_slice(&(part.len() as u32).to_le_bytes());
        plain.extend_from_slice(part);
    }
    plain.extend_from_slice(&message.payload);
    let payload = key.map(|key| key.seal(message.id.as_bytes(), &plain)).transpose()?.unwrap_or_default();
    let mut headers = Headers::new();
    headers.set(SEALED, subject.to_owned());
    Ok(LotMessage { key: None, headers, payload: payload.into(), ..*message })
}

/// The message of [`sealed`]; what does not open any more is marked as erased.
fn opened(message: &LotMessage, key: Option<&SubjectKey>) -> LotMessage {
    let plain = key.and_then(|key| key.open(message.id.as_bytes(), &message.payload));
    if let Some((key, headers, payload)) = plain.and_then(|plain| parts(&plain.into())) {
        return LotMessage { key, headers, payload, ..*message };
    }
    if key.is_some() && !message.payload.is_empty() {
        tracing::warn!(id = %message.id, "an entry of the lot cannot be decrypted; it is treated as erased");
    }
    let mut headers = Headers::new();
    headers.set(header::ERASED, "1");
    LotMessage { key: None, headers, payload: Bytes::new(), ..*message }
}

fn parts(plain: &Bytes) -> Option<(Option<Bytes>, Headers, Bytes)> {
    let mut at = 1;
    let mut take = || {
        let len = u32::from_le_bytes(plain.get(at..at + 4)?.try_into().ok()?) as usize;
        let (start, end) = (at + 4, at.checked_add(4)?.checked_add(len)?);
        at = end;
        (end <= plain.len()).then(|| plain.slice(start..end))
    };
    let (key, headers) = (take()?, take()?);
    Some(((plain[0] == 1).then_some(key), Headers::decode(&headers)?, plain.slice(at..)))
}

/// Calls that no message passes through.
macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)* => $($rest:item)*) => {
        #[async_trait]
        impl Store for SealedStore {
            fn scope(&self) -> Scope {
                self.inner.scope()
            }

            fn location(&self) -> String {
                self.inner.location()
            }

            fn now(&self) -> Millis {
                self.inner.now()
            }

            async fn close(&self) {
                self.inner.close().await;
            }

            $(async fn $name(&self, $($arg: $type),*) -> Result<$result> {
                self.inner.$name($($arg),*).await
            })*

            $($rest)*
        }
    };
}

forward! {
    probe() -> ();
    catalog_version() -> u64;
    catalog() -> (u64, Vec<Doc>);
    catalog_write(expected: u64, changes: Vec<DocChange>) -> Option<u64>;
    lot_extend(seqs: &[u64], owner: &str, lease: Duration) -> Vec<bool>;
    lot_settle(owner: &str, items: Vec<(u64, LotSettle)>) -> Vec<bool>;
    lot_chains(address: &Address, group: &str, shard: u32) -> Vec<(u64, u64, u64)>;
    lot_counts(address: &Address, group: Option<&str>) -> LotCounts;
    lot_next_due(of: Option<(&Address, &str)>) -> Option<Millis>;
    lot_count(filter: &LotFilter) -> u64;
    lot_groups(filter: &LotFilter) -> Vec<DeadGroup>;
    lot_discard(seqs: &[u64]) -> u64;
    lot_start(address: &Address, group: &str, ids: &[MessageId], suspect: bool) -> Vec<Option<u32>>;
    lot_end(address: &Address, group: &str, items: &[(MessageId, bool)]) -> ();
    lot_indexed(address: &Address, group: &str) -> u64;
    idempotency_claim(claims: Vec<IdempotencyClaim>) -> Vec<Claimed>;
    idempotency_sent(keys: &[(String, MessageId)]) -> ();
    idempotency_abandon(key: &str, id: MessageId, owner: &str) -> ();
    idempotency_get(key: &str) -> Option<IdempotencyState>;
    dedupe_seen(scope: &str, ids: &[MessageId]) -> Vec<bool>;
    dedupe_done(scope: &str, ids: &[MessageId], window: Duration) -> ();
    lease_take(name: &str, owner: &str, ttl: Duration) -> Option<u64>;
    lease_release(name: &str, owner: &str) -> ();
    members_report(members: &[Member]) -> ();
    members(address: Option<&Address>, within: Duration) -> Vec<Member>;
    members_leave(ids: &[String]) -> ();
    job_put(job: &Job) -> ();
    job_get(id: &str) -> Option<Job>;
    jobs(product: &str) -> Vec<Job>;
    sweep() -> u64;
    =>
    async fn catalog_changed(&self) {
        self.inner.catalog_changed().await;
    }

    async fn lot_put(&self, entries: Vec<LotEntry>) -> Result<()> {
        self.inner.lot_put(self.seal_all(entries).await?).await
    }

    async fn lot_claim(&self, claim: LotClaim<'_>) -> Result<Vec<LotEntry>> {
        self.open_all(self.inner.lot_claim(claim).await?).await
    }

    async fn lot_claim_publishes(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<LotEntry>> {
        self.open_all(self.inner.lot_claim_publishes(limit, owner, lease).await?).await
    }

    async fn lot_list(&self, filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Result<Vec<LotEntry>> {
        self.open_all(self.inner.lot_list(filter, limit, offset, newest_first).await?).await
    }

    async fn lot_edit(&self, seq: u64, edit: LotEdit) -> Result<bool> {
        let one = LotFilter { state: Some(super::LotState::Dead), after: seq.checked_sub(1), ..LotFilter::default() };
        let found = self.inner.lot_list(&one, 1, 0, false).await?.into_iter().find(|entry| entry.seq == seq);
        let Some(entry) = found else { return Ok(false) };
        match self.sealed_edit(entry, &edit).await? {
            Some(edit) => self.inner.lot_edit(seq, edit).await,
            None => Ok(false),
        }
    }

    async fn lot_revive(&self, job: &str, filter: &LotFilter, edit: Option<&LotEdit>, limit: usize) -> Result<Vec<LotEntry>> {
        let Some(edit) = edit else { return self.open_all(self.inner.lot_revive(job, filter, None, limit).await?).await };
        // An edit for all would stand in the place of sealed texts: each is edited by itself first. A crash in between leaves
        // letters that were edited and not handed over, and who goes on with the job edits them again.
        let cursor = self.inner.job_get(job).await?.map_or(0, |job| job.cursor);
        let after = filter.after.max(Some(cursor).filter(|cursor| *cursor > 0));
        let due = self.inner.lot_list(&LotFilter { after, ..filter.clone() }, limit, 0, false).await?;
        if !due.iter().any(|entry| entry.message.headers.get(SEALED).is_some()) {
            return self.inner.lot_revive(job, filter, Some(edit), limit).await;
        }
        for entry in due {
            let seq = entry.seq;
            if let Some(edit) = self.sealed_edit(entry, edit).await? {
                self.inner.lot_edit(seq, edit).await?;
            }
        }
        self.open_all(self.inner.lot_revive(job, filter, None, limit).await?).await
    }

    async fn lot_index(&self, address: &Address, group: &str, from: u64, to: u64, records: Vec<LotRecord>) -> Result<bool> {
        let mut sealed = Vec::with_capacity(records.len());
        for record in records {
            sealed.push(match record {
                LotRecord::Dead(entry) => LotRecord::Dead(Box::new(self.seal(*entry).await?)),
                gone @ LotRecord::Gone { .. } => gone,
            });
        }
        self.inner.lot_index(address, group, from, to, sealed).await
    }
}

/// What is kept of these is sealed already, or is no content.
macro_rules! forward_part {
    ($part:ident { $($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)* }) => {
        #[async_trait]
        impl $part for SealedStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$result> {
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

forward_part!(SessionStore {
    session_keys() -> Vec<SessionKey>;
    session_key_add(key: &SessionKey, retire: Option<Millis>) -> ();
    subject_of(fresh: &Subject) -> Subject;
    subject(id: &str) -> Option<Subject>;
    subjects_with(product: &str, digest: &[u8]) -> Vec<String>;
    session_start(session: &SessionRow, hash: &[u8; 32]) -> bool;
    session_refresh(product: &str, tag: &str, hash: &[u8; 32], next: SessionRenewal) -> SessionRefreshed;
    session_revoke(product: &str, tag: &str, which: SessionsOf) -> u64;
    session_list(product: &str, tag: &str, digest: Option<&[u8]>, limit: u64, offset: u64) -> (Vec<SessionRow>, u64);
    session_users(product: &str, tag: &str, limit: u64, offset: u64) -> (Vec<SessionUser>, u64);
    session_erase(product: &str, tag: &str, digest: &[u8]) -> Option<(String, u64)>;
    session_revocations(after: u64) -> Vec<Revocation>;
});

forward_part!(SecretStore {
    secrets() -> (u64, Vec<SecretRow>);
    secrets_write(expected: u64, changes: Vec<SecretChange>, docs: Vec<DocChange>) -> Option<u64>;
});

forward_part!(KeyStore {
    keys() -> (u64, Vec<KeyRow>);
    key_write(expected: u64, row: KeyRow) -> Option<u64>;
});

forward_part!(AuditStore {
    audit_append(entries: Vec<AuditEntry>) -> ();
    audit_rows(filter: &AuditFilter, limit: usize, newest_first: bool) -> Vec<AuditRow>;
    audit_head() -> (u64, [u8; 32]);
});

forward_part!(CacheStore {
    cache_claim(claim: CacheClaim) -> CacheClaimed;
    cache_sent(key: &CacheKey, id: MessageId, owner: &str) -> ();
    cache_abandon(key: &CacheKey, owner: &str) -> ();
    cache_values(scope: &str, expiry: Duration, limit: usize, offset: usize) -> (Vec<CacheValue>, u64);
    cache_clear(scope: &str) -> u64;
});

forward_part!(TransferStore {
    export(to: mpsc::Sender<Vec<Record>>) -> ();
    import(records: Vec<Record>) -> ();
    counts() -> Counts;
    clear() -> ();
});

forward_part!(ScheduleStore {
    schedule_add(schedule: &ScheduleRecord) -> ();
    schedule_get(id: MessageId) -> Option<ScheduleRecord>;
    schedules(filter: &ScheduleFilter, limit: usize, offset: usize) -> (Vec<ScheduleRecord>, u64);
    schedule_claim(limit: usize, owner: &str, lease: Duration) -> Vec<(ScheduleRecord, bool)>;
    schedule_skip(id: MessageId, owner: &str, firing_at: Millis, missed: u64) -> bool;
    schedule_settle(id: MessageId, owner: &str, settle: ScheduleSettle) -> bool;
    schedule_turn(id: MessageId, from: &[ScheduleState], to: ScheduleState, next_at: Option<Millis>) -> bool;
    schedule_next() -> Option<Millis>;
});

/// What is said to somebody who wants to go on with an erased entry.
pub(crate) fn erased(id: MessageId) -> Error {
    Error::new(crate::Code::MessageNotFound, format!("message {id} belonged to a session's subject that was erased: its content is gone"))
        .field("eventId")
        .reason("erased")
        .next("discard its dead letters with `trunkline dead discard`")
}
