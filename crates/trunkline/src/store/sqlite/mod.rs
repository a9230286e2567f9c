//! The store in a data directory: one SQLite file that several processes of one host share.
//!
//! Calls send a piece of work to the thread that writes, or to one of those that read, and wait for its answer; no
//! call blocks the runtime. [`writer`] has the group commit, [`schema`] the tables, and a file each the parts of the
//! contract.

mod audit;
mod caches;
mod catalog;
mod clock;
mod db;
mod errors;
#[cfg(target_os = "linux")]
mod filesystem;
mod idempotency;
mod jobs;
mod keys;
mod lot;
mod open;
mod registry;
mod schedules;
mod schema;
mod secrets;
mod sessions;
mod transfer;
mod writer;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use self::clock::StoreClock;
use self::db::Db;
use self::writer::Job as Work;
pub use super::clock::Clock;
use super::common::SWEEP_ROWS;
use super::transfer::{Counts, Record, TransferStore};
use super::{
    Address, Claimed, DeadGroup, Doc, DocChange, IdempotencyClaim, IdempotencyState, Job, LotClaim, LotCounts, LotEdit, LotEntry,
    LotFilter, LotRecord, LotSettle, Member, Revocation, Scope, SessionKey, SessionRefreshed, SessionRenewal, SessionRow, SessionStore,
    SessionUser, SessionsOf, Store, Subject,
};
use crate::error::{Code, Error, Result};
use crate::message::{MessageId, Millis};

/// How a [`SqliteStore`] works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a write waits for other processes before it is `STORE_FAILED` with reason `busy`. Default: 5 s.
    pub busy_timeout: Duration,
    /// How many threads read. Default: 2.
    pub readers: usize,
    /// How many calls may wait for a thread before more callers are held back. Default: 4,096.
    pub queue: usize,
    /// The clock. Default: the host's.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Options { busy_timeout: Duration::from_secs(5), readers: 2, queue: 4096, clock: Clock::default() }
    }
}

/// The store in a data directory. Dropping it ends its threads after what they were given is done.
pub struct SqliteStore {
    path: PathBuf,
    clock: StoreClock,
    busy_timeout: Duration,
    queues: Mutex<Option<Queues>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

#[derive(Clone)]
struct Queues {
    write: mpsc::Sender<Box<dyn Work>>,
    read: mpsc::Sender<Box<dyn Work>>,
}

impl SqliteStore {
    /// Opens the store in `dir`, which must exist; the file in it is created or brought up to date.
    ///
    /// # Errors
    /// `STORE_FAILED`; `details.reason` is `missing`, `read_only`, `newer`, `damaged`, `network_filesystem`, `busy`,
    /// `disk_full`, `io` or `cannot_open`. What cannot be opened is not changed.
    pub fn open(dir: &Path, options: Options) -> Result<SqliteStore> {
        Self::open_file(dir, options).map_err(|error| located(error, dir))
    }

    fn open_file(dir: &Path, options: Options) -> Result<SqliteStore> {
        let path = open::inspect(dir)?;
        let Options { busy_timeout, readers, queue, clock } = options;
        let writer = open::writer(&path, busy_timeout)?;
        let clock = StoreClock::start(&writer, clock, Instant::now() + busy_timeout)?;
        let writer = Db::new(writer, clock.clone());
        let (read, jobs) = mpsc::channel(queue.max(1));
        let jobs = Arc::new(Mutex::new(jobs));
        let mut threads = Vec::new();
        for _ in 0..readers.max(1) {
            let (db, jobs) = (Db::new(open::reader(&path, busy_timeout)?, clock.clone()), jobs.clone());
            threads.push(spawn("trunkline-read", move || writer::read_loop(db, jobs))?);
        }
        let (write, jobs) = mpsc::channel(queue.max(1));
        let (end, ended) = oneshot::channel();
        spawn("trunkline-write", move || {
            writer::write_loop(&writer, jobs, busy_timeout);
            // The last connection folds the log into the file; of several that close at once, none would be the last.
            for thread in threads {
                let _ = thread.join();
            }
            drop((writer, end));
        })?;
        Ok(SqliteStore {
            path,
            clock,
            busy_timeout,
            queues: Mutex::new(Some(Queues { write, read })),
            ended: tokio::sync::Mutex::new(Some(ended)),
        })
    }

    /// Runs `work` in the next write transaction; it is durable when this returns. It may run twice, see [`writer`].
    async fn write<T: Send + 'static>(&self, rows: usize, work: impl Fn(&Db) -> Result<T> + Send + 'static) -> Result<T> {
        let queue = self.queues.lock().as_ref().map(|queues| queues.write.clone());
        self.call(queue, rows, work).await
    }

    /// Runs `work` in a read transaction.
    async fn read<T: Send + 'static>(&self, work: impl Fn(&Db) -> Result<T> + Send + 'static) -> Result<T> {
        let queue = self.queues.lock().as_ref().map(|queues| queues.read.clone());
        self.call(queue, 1, work).await
    }

    async fn call<T: Send + 'static>(
        &self,
        queue: Option<mpsc::Sender<Box<dyn Work>>>,
        rows: usize,
        work: impl Fn(&Db) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let closed = || Error::new(Code::Closed, "the store is closed");
        let (job, answer) = writer::job(rows, work);
        queue.ok_or_else(closed)?.send(job).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?.map_err(|error| located(error, self.path.parent().unwrap_or(&self.path)))
    }
}

/// Says which data directory failed.
fn located(error: Error, dir: &Path) -> Error {
    if error.code() == Code::StoreFailed { error.detail("path", dir.display().to_string()) } else { error }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Error::store(format!("a thread of the store cannot be started: {error}")).reason("memory").with_retryable(true))
}

impl Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn location(&self) -> String {
        format!("sqlite:{}", self.path.parent().unwrap_or(&self.path).display())
    }

    fn now(&self) -> Millis {
        self.clock.now()
    }

    async fn close(&self) {
        drop(self.queues.lock().take());
        // Held while waiting, so that a second call returns no earlier than the first.
        let mut ended = self.ended.lock().await;
        if let Some(thread) = ended.as_mut() {
            let _ = thread.await;
            *ended = None;
        }
    }

    async fn probe(&self) -> Result<()> {
        self.write(1, |db| db.run("write a probe", "UPDATE meta SET value = value + 1 WHERE name = 'probe'", []).map(drop)).await
    }

    async fn catalog_version(&self) -> Result<u64> {
        self.read(catalog::version).await
    }

    async fn catalog(&self) -> Result<(u64, Vec<Doc>)> {
        self.read(catalog::read).await
    }

    async fn catalog_write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>> {
        self.write(changes.len(), move |db| catalog::write(db, expected, &changes)).await
    }

    async fn catalog_changed(&self) {
        // Other processes are asked for by the version once a second: nothing of the file tells of a commit.
        std::future::pending().await
    }

    async fn lot_put(&self, entries: Vec<LotEntry>) -> Result<()> {
        self.write(entries.len(), move |db| lot::put(db, &entries)).await
    }

    async fn lot_claim(&self, claim: LotClaim<'_>) -> Result<Vec<LotEntry>> {
        let (address, group, owner) = (claim.address.clone(), Arc::<str>::from(claim.group), claim.owner.to_owned());
        let (shards, limit, lease) = (claim.shards.map(<[u32]>::to_vec), claim.limit, claim.lease);
        self.write(limit, move |db| lot::claim(db, &address, &group, shards.as_deref(), limit, &owner, lease)).await
    }

    async fn lot_claim_publishes(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<LotEntry>> {
        let owner = owner.to_owned();
        self.write(limit, move |db| lot::claim_publishes(db, limit, &owner, lease)).await
    }

    async fn lot_extend(&self, seqs: &[u64], owner: &str, lease: Duration) -> Result<Vec<bool>> {
        let (seqs, owner) = (seqs.to_vec(), owner.to_owned());
        self.write(seqs.len(), move |db| lot::extend(db, &seqs, &owner, lease)).await
    }

    async fn lot_settle(&self, owner: &str, items: Vec<(u64, LotSettle)>) -> Result<Vec<bool>> {
        let owner = owner.to_owned();
        self.write(items.len(), move |db| lot::settle(db, &owner, &items)).await
    }

    async fn lot_chains(&self, address: &Address, group: &str, shard: u32) -> Result<Vec<(u64, u64, u64)>> {
        let (address, group) = (address.clone(), Arc::from(group));
        self.read(move |db| lot::chains(db, &address, &group, shard)).await
    }

    async fn lot_counts(&self, address: &Address, group: Option<&str>) -> Result<LotCounts> {
        let (address, group) = (address.clone(), group.map(str::to_owned));
        self.read(move |db| lot::counts(db, &address, group.as_deref())).await
    }

    async fn lot_next_due(&self, of: Option<(&Address, &str)>) -> Result<Option<Millis>> {
        let of = of.map(|(address, group)| (address.clone(), Arc::from(group)));
        self.read(move |db| lot::next_due(db, of.as_ref().map(|(address, group)| (address, group)))).await
    }

    async fn lot_list(&self, filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Result<Vec<LotEntry>> {
        let filter = filter.clone();
        self.read(move |db| lot::list(db, &filter, limit, offset, newest_first)).await
    }

    async fn lot_count(&self, filter: &LotFilter) -> Result<u64> {
        let filter = filter.clone();
        self.read(move |db| lot::count(db, &filter)).await
    }

    async fn lot_groups(&self, filter: &LotFilter) -> Result<Vec<DeadGroup>> {
        let filter = filter.clone();
        self.read(move |db| lot::groups(db, &filter)).await
    }

    async fn lot_edit(&self, seq: u64, edit: LotEdit) -> Result<bool> {
        self.write(1, move |db| lot::edit(db, seq, &edit)).await
    }

    async fn lot_discard(&self, seqs: &[u64]) -> Result<u64> {
        let seqs = seqs.to_vec();
        self.write(seqs.len(), move |db| lot::discard(db, &seqs)).await
    }

    async fn lot_revive(&self, job: &str, filter: &LotFilter, edit: Option<&LotEdit>, limit: usize) -> Result<Vec<LotEntry>> {
        let (job, filter, edit) = (job.to_owned(), filter.clone(), edit.cloned());
        self.write(limit, move |db| lot::revive(db, &job, &filter, edit.as_ref(), limit)).await
    }

    async fn lot_start(&self, address: &Address, group: &str, ids: &[MessageId], suspect: bool) -> Result<Vec<Option<u32>>> {
        let (address, group, ids) = (address.clone(), Arc::from(group), ids.to_vec());
        self.write(ids.len(), move |db| lot::start(db, &address, &group, &ids, suspect)).await
    }

    async fn lot_end(&self, address: &Address, group: &str, items: &[(MessageId, bool)]) -> Result<()> {
        let (address, group, items) = (address.clone(), Arc::from(group), items.to_vec());
        self.write(items.len(), move |db| lot::end(db, &address, &group, &items)).await
    }

    async fn lot_indexed(&self, address: &Address, group: &str) -> Result<u64> {
        let (address, group) = (address.clone(), Arc::from(group));
        self.read(move |db| lot::indexed(db, &address, &group)).await
    }

    async fn lot_index(&self, address: &Address, group: &str, from: u64, to: u64, records: Vec<LotRecord>) -> Result<bool> {
        let (address, group) = (address.clone(), Arc::from(group));
        self.write(records.len() + 1, move |db| lot::index(db, &address, &group, from, to, &records)).await
    }

    async fn idempotency_claim(&self, claims: Vec<IdempotencyClaim>) -> Result<Vec<Claimed>> {
        self.write(claims.len(), move |db| idempotency::claim(db, &claims)).await
    }

    async fn idempotency_sent(&self, keys: &[(String, MessageId)]) -> Result<()> {
        let keys = keys.to_vec();
        self.write(keys.len(), move |db| idempotency::sent(db, &keys)).await
    }

    async fn idempotency_abandon(&self, key: &str, id: MessageId, owner: &str) -> Result<()> {
        let (key, owner) = (key.to_owned(), owner.to_owned());
        self.write(1, move |db| idempotency::abandon(db, &key, id, &owner)).await
    }

    async fn idempotency_get(&self, key: &str) -> Result<Option<IdempotencyState>> {
        let key = key.to_owned();
        self.read(move |db| idempotency::get(db, &key)).await
    }

    async fn dedupe_seen(&self, scope: &str, ids: &[MessageId]) -> Result<Vec<bool>> {
        let (scope, ids) = (scope.to_owned(), ids.to_vec());
        self.read(move |db| idempotency::seen(db, &scope, &ids)).await
    }

    async fn dedupe_done(&self, scope: &str, ids: &[MessageId], window: Duration) -> Result<()> {
        let (scope, ids) = (scope.to_owned(), ids.to_vec());
        self.write(ids.len(), move |db| idempotency::done(db, &scope, &ids, window)).await
    }

    async fn lease_take(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>> {
        let (name, owner) = (name.to_owned(), owner.to_owned());
        self.write(1, move |db| registry::take(db, &name, &owner, ttl)).await
    }

    async fn lease_release(&self, name: &str, owner: &str) -> Result<()> {
        let (name, owner) = (name.to_owned(), owner.to_owned());
        self.write(1, move |db| registry::release(db, &name, &owner)).await
    }

    async fn members_report(&self, members: &[Member]) -> Result<()> {
        let members = members.to_vec();
        self.write(members.len(), move |db| registry::report(db, &members)).await
    }

    async fn members(&self, address: Option<&Address>, within: Duration) -> Result<Vec<Member>> {
        let address = address.cloned();
        self.read(move |db| registry::members(db, address.as_ref(), within)).await
    }

    async fn members_leave(&self, ids: &[String]) -> Result<()> {
        let ids = ids.to_vec();
        self.write(ids.len(), move |db| registry::leave(db, &ids)).await
    }

    async fn job_put(&self, job: &Job) -> Result<()> {
        let job = job.clone();
        self.write(1, move |db| jobs::put(db, &job)).await
    }

    async fn job_get(&self, id: &str) -> Result<Option<Job>> {
        let id = id.to_owned();
        self.read(move |db| jobs::get(db, &id)).await
    }

    async fn jobs(&self, product: &str) -> Result<Vec<Job>> {
        let product = product.to_owned();
        self.read(move |db| jobs::of_product(db, &product)).await
    }

    async fn sweep(&self) -> Result<u64> {
        let mut sum = 0;
        loop {
            let step = self
                .write(SWEEP_ROWS, |db| {
                    clock::note(db)?;
                    Ok(idempotency::sweep(db, SWEEP_ROWS)?
                        + registry::sweep(db, SWEEP_ROWS)?
                        + jobs::sweep(db, SWEEP_ROWS)?
                        + lot::sweep(db, SWEEP_ROWS)?
                        + caches::sweep(db, SWEEP_ROWS)?
                        + schedules::sweep(db, SWEEP_ROWS)?
                        + sessions::sweep(db, SWEEP_ROWS)?)
                })
                .await?;
            sum += step as u64;
            if step < SWEEP_ROWS {
                return Ok(sum);
            }
        }
    }
}

#[async_trait]
impl SessionStore for SqliteStore {
    async fn session_keys(&self) -> Result<Vec<SessionKey>> {
        self.read(sessions::keys).await
    }

    async fn session_key_add(&self, key: &SessionKey, retire: Option<Millis>) -> Result<()> {
        let key = key.clone();
        self.write(1, move |db| sessions::add_key(db, &key, retire)).await
    }

    async fn subject_of(&self, fresh: &Subject) -> Result<Subject> {
        let fresh = fresh.clone();
        self.write(1, move |db| sessions::subject_of(db, &fresh)).await
    }

    async fn subject(&self, id: &str) -> Result<Option<Subject>> {
        let id = id.to_owned();
        self.read(move |db| sessions::subject(db, &id)).await
    }

    async fn subjects_with(&self, product: &str, digest: &[u8]) -> Result<Vec<String>> {
        let (product, digest) = (product.to_owned(), digest.to_vec());
        self.read(move |db| sessions::subjects_with(db, &product, &digest)).await
    }

    async fn session_start(&self, session: &SessionRow, hash: &[u8; 32]) -> Result<bool> {
        let (session, hash) = (session.clone(), *hash);
        self.write(2, move |db| sessions::start(db, &session, &hash)).await
    }

    async fn session_refresh(&self, product: &str, tag: &str, hash: &[u8; 32], next: SessionRenewal) -> Result<SessionRefreshed> {
        let (product, tag, hash) = (product.to_owned(), tag.to_owned(), *hash);
        self.write(3, move |db| sessions::refresh(db, &product, &tag, &hash, next)).await
    }

    async fn session_revoke(&self, product: &str, tag: &str, which: SessionsOf) -> Result<u64> {
        let (product, tag) = (product.to_owned(), tag.to_owned());
        self.write(2, move |db| sessions::revoke(db, &product, &tag, &which)).await
    }

    async fn session_list(
        &self,
        product: &str,
        tag: &str,
        digest: Option<&[u8]>,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<SessionRow>, u64)> {
        let (product, tag, digest) = (product.to_owned(), tag.to_owned(), digest.map(<[u8]>::to_vec));
        self.read(move |db| sessions::list(db, &product, &tag, digest.as_deref(), limit, offset)).await
    }

    async fn session_users(&self, product: &str, tag: &str, limit: u64, offset: u64) -> Result<(Vec<SessionUser>, u64)> {
        let (product, tag) = (product.to_owned(), tag.to_owned());
        self.read(move |db| sessions::users(db, &product, &tag, limit, offset)).await
    }

    async fn session_erase(&self, product: &str, tag: &str, digest: &[u8]) -> Result<Option<(String, u64)>> {
        let (product, tag, digest) = (product.to_owned(), tag.to_owned(), digest.to_vec());
        let erased = self.write(2, move |db| sessions::erase(db, &product, &tag, &digest)).await?;
        if erased.is_some() {
            let (path, busy) = (self.path.clone(), self.busy_timeout);
            let folded = tokio::task::spawn_blocking(move || sessions::fold(&path, busy)).await;
            // The key is gone either way; what remains of it in the log is overwritten later.
            if let Ok(Err(error)) = folded {
                tracing::warn!(%error, "the store's log could not be folded after an erasure");
            }
        }
        Ok(erased)
    }

    async fn session_revocations(&self, after: u64) -> Result<Vec<Revocation>> {
        self.read(move |db| sessions::revocations(db, after)).await
    }
}

#[async_trait]
impl TransferStore for SqliteStore {
    async fn export(&self, to: mpsc::Sender<Vec<Record>>) -> Result<()> {
        self.read(move |db| transfer::export(db, &to)).await
    }

    async fn import(&self, records: Vec<Record>) -> Result<()> {
        self.write(records.len(), move |db| transfer::import(db, &records)).await
    }

    async fn counts(&self) -> Result<Counts> {
        self.read(transfer::counts).await
    }

    async fn clear(&self) -> Result<()> {
        self.write(SWEEP_ROWS, transfer::clear).await
    }
}
