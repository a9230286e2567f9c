//! A store that is down as long as it is told to be: between the core and an honest store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use trunkline::audit::{AuditEntry, AuditFilter, AuditRow};
use trunkline::message::Millis;
use trunkline::store::audit::AuditStore;
use trunkline::store::cache::{CacheClaim, CacheClaimed, CacheKey, CacheStore, CacheValue};
use trunkline::store::keys::{KeyRow, KeyStore};
use trunkline::store::schedule::{ScheduleFilter, ScheduleRecord, ScheduleSettle, ScheduleState, ScheduleStore};
use trunkline::store::secrets::{SecretChange, SecretRow, SecretStore};
use trunkline::store::transfer::{Counts, Record, TransferStore};
use trunkline::store::{
    Address, Claimed, DeadGroup, Doc, DocChange, IdempotencyClaim, IdempotencyState, Job, LotClaim, LotCounts, LotEdit, LotEntry,
    LotFilter, LotRecord, LotSettle, Member, Revocation, Scope, SessionKey, SessionRefreshed, SessionRenewal, SessionRow, SessionStore,
    SessionUser, SessionsOf, Store, Subject,
};
use trunkline::{Code, Error, MessageId, Result};

/// Whether the store is down.
#[derive(Debug, Default)]
pub struct StoreFaults(AtomicBool);

impl StoreFaults {
    /// Takes it down, or brings it up again.
    pub fn down(&self, down: bool) {
        self.0.store(down, Ordering::SeqCst);
    }

    /// What goes between the core and the store.
    pub fn between(self: &Arc<Self>) -> impl Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync + 'static {
        let faults = self.clone();
        move |store| Arc::new(FaultyStore(store, faults.clone()))
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(Error::new(Code::StoreFailed, "the store is down").with_retryable(true)) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct FaultyStore(Arc<dyn Store>, Arc<StoreFaults>);

/// All calls that may fail: they do, while the store is down.
macro_rules! through {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        #[async_trait]
        impl Store for FaultyStore {
            fn scope(&self) -> Scope {
                self.0.scope()
            }

            fn location(&self) -> String {
                self.0.location()
            }

            fn now(&self) -> Millis {
                self.0.now()
            }

            async fn close(&self) {
                self.0.close().await;
            }

            async fn catalog_changed(&self) {
                self.0.catalog_changed().await;
            }

            $(async fn $name(&self, $($arg: $type),*) -> Result<$result> {
                self.1.check()?;
                self.0.$name($($arg),*).await
            })*
        }
    };
}

/// A part of the contract that has a trait of its own.
macro_rules! part {
    ($part:ident: $($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        #[async_trait]
        impl $part for FaultyStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$result> {
                self.1.check()?;
                self.0.$name($($arg),*).await
            })*
        }
    };
}

part! {
    CacheStore:
    cache_claim(claim: CacheClaim) -> CacheClaimed;
    cache_sent(key: &CacheKey, id: MessageId, owner: &str) -> ();
    cache_abandon(key: &CacheKey, owner: &str) -> ();
    cache_values(scope: &str, expiry: Duration, limit: usize, offset: usize) -> (Vec<CacheValue>, u64);
    cache_clear(scope: &str) -> u64;
}

part! {
    ScheduleStore:
    schedule_add(schedule: &ScheduleRecord) -> ();
    schedule_get(id: MessageId) -> Option<ScheduleRecord>;
    schedules(filter: &ScheduleFilter, limit: usize, offset: usize) -> (Vec<ScheduleRecord>, u64);
    schedule_claim(limit: usize, owner: &str, lease: Duration) -> Vec<(ScheduleRecord, bool)>;
    schedule_skip(id: MessageId, owner: &str, firing_at: Millis, missed: u64) -> bool;
    schedule_settle(id: MessageId, owner: &str, settle: ScheduleSettle) -> bool;
    schedule_turn(id: MessageId, from: &[ScheduleState], to: ScheduleState, next_at: Option<Millis>) -> bool;
    schedule_next() -> Option<Millis>;
}

through! {
    probe() -> ();
    catalog_version() -> u64;
    catalog() -> (u64, Vec<Doc>);
    catalog_write(expected: u64, changes: Vec<DocChange>) -> Option<u64>;
    lot_put(entries: Vec<LotEntry>) -> ();
    lot_claim(claim: LotClaim<'_>) -> Vec<LotEntry>;
    lot_claim_publishes(limit: usize, owner: &str, lease: Duration) -> Vec<LotEntry>;
    lot_extend(seqs: &[u64], owner: &str, lease: Duration) -> Vec<bool>;
    lot_settle(owner: &str, items: Vec<(u64, LotSettle)>) -> Vec<bool>;
    lot_chains(address: &Address, group: &str, shard: u32) -> Vec<(u64, u64, u64)>;
    lot_counts(address: &Address, group: Option<&str>) -> LotCounts;
    lot_next_due(of: Option<(&Address, &str)>) -> Option<Millis>;
    lot_list(filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Vec<LotEntry>;
    lot_count(filter: &LotFilter) -> u64;
    lot_groups(filter: &LotFilter) -> Vec<DeadGroup>;
    lot_edit(seq: u64, edit: LotEdit) -> bool;
    lot_discard(seqs: &[u64]) -> u64;
    lot_revive(job: &str, filter: &LotFilter, edit: Option<&LotEdit>, limit: usize) -> Vec<LotEntry>;
    lot_start(address: &Address, group: &str, ids: &[MessageId], suspect: bool) -> Vec<Option<u32>>;
    lot_end(address: &Address, group: &str, items: &[(MessageId, bool)]) -> ();
    lot_indexed(address: &Address, group: &str) -> u64;
    lot_index(address: &Address, group: &str, from: u64, to: u64, records: Vec<LotRecord>) -> bool;
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
}

part! {
    SecretStore:
    secrets() -> (u64, Vec<SecretRow>);
    secrets_write(expected: u64, changes: Vec<SecretChange>, docs: Vec<DocChange>) -> Option<u64>;
}

part! {
    KeyStore:
    keys() -> (u64, Vec<KeyRow>);
    key_write(expected: u64, row: KeyRow) -> Option<u64>;
}

part! {
    AuditStore:
    audit_append(entries: Vec<AuditEntry>) -> ();
    audit_rows(filter: &AuditFilter, limit: usize, newest_first: bool) -> Vec<AuditRow>;
    audit_head() -> (u64, [u8; 32]);
}

part! {
    SessionStore:
    session_keys() -> Vec<SessionKey>;
    session_key_add(key: &SessionKey, retire: Option<Millis>) -> ();
    subject_of(fresh: &Subject) -> Subject;
    subject(id: &str) -> Option<Subject>;
    subjects_after(after: &str, limit: usize) -> Vec<Subject>;
    session_resealed(keys: Vec<SessionKey>, subjects: Vec<Subject>) -> ();
    subjects_with(product: &str, digest: &[u8]) -> Vec<String>;
    session_start(session: &SessionRow, hash: &[u8; 32]) -> bool;
    session_refresh(product: &str, tag: &str, hash: &[u8; 32], next: SessionRenewal) -> SessionRefreshed;
    session_revoke(product: &str, tag: &str, which: SessionsOf) -> u64;
    session_list(product: &str, tag: &str, digest: Option<&[u8]>, limit: u64, offset: u64) -> (Vec<SessionRow>, u64);
    session_users(product: &str, tag: &str, limit: u64, offset: u64) -> (Vec<SessionUser>, u64);
    session_erase(product: &str, tag: &str, digest: &[u8]) -> Option<(String, u64)>;
    session_revocations(after: u64) -> Vec<Revocation>;
}

part! {
    TransferStore:
    export(to: mpsc::Sender<Vec<Record>>) -> ();
    import(records: Vec<Record>) -> ();
    counts() -> Counts;
    clear() -> ();
}
