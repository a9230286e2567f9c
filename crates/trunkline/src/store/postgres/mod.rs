//! The store in a PostgreSQL database: one schema that many hosts share.
//!
//! Every part of the contract is a file. [`link`] has the connections, [`batch`] the group commit, [`clock`] the clock that
//! nobody sets, [`keeper`] what the store does by itself. Nothing is held by a session: leases and claims are rows with an
//! end, locks end with their transaction.

mod audit;
mod batch;
mod caches;
mod catalog;
mod clock;
mod errors;
mod idempotency;
mod jobs;
mod keeper;
mod key;
mod keys;
mod link;
mod lock;
mod lot;
mod registry;
mod schedules;
mod schema;
mod secrets;
mod sessions;
mod target;
mod targets;
mod transfer;

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::batch::Batcher;
use self::clock::StoreClock;
use self::idempotency::Handled;
use self::link::{Db, Link, retried};
use self::lot::Claimant;
use self::target::Target;
use self::targets::Targets;
use super::clock::Clock;
use super::common::{SWEEP_ROWS, int};
use super::transfer::{Counts, Record, TransferStore};
use super::{
    Address, Claimed, DeadGroup, Doc, DocChange, IdempotencyClaim, IdempotencyState, Job, LotClaim, LotCounts, LotEdit, LotEntry,
    LotFilter, LotRecord, LotSettle, LotState, Member, Scope, Store,
};
use crate::error::Result;
use crate::message::{MessageId, Millis};

/// How long a close waits for calls that are under way.
const DRAIN: Duration = Duration::from_secs(15);

/// How a [`PostgresStore`] works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many connections there are at most, beside the one that listens. Default: 8.
    pub connections: usize,
    /// How long a call waits for a free connection before it is `STORE_FAILED` with reason `busy`. Default: 5 s.
    pub busy_timeout: Duration,
    /// How long a statement may take. Default: 15 s.
    pub statement_timeout: Duration,
    /// Whether changes of the catalogue are listened for. Default: yes.
    pub listen: bool,
    /// The clock. Default: the server's, counted on by this host's uptime.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            connections: 8,
            busy_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            listen: true,
            clock: Clock::default(),
        }
    }
}

/// The store in a schema of a PostgreSQL database (15 or later). Dropping it ends its tasks.
///
/// While the server is away every call fails with `STORE_FAILED`, which may be retried, and works again once it is back.
pub struct PostgresStore {
    shared: Arc<Shared>,
    batchers: Mutex<Option<Arc<Batchers>>>,
    tasks: TaskTracker,
    end: CancellationToken,
}

/// What the store's own tasks need of it.
#[derive(Debug)]
pub(super) struct Shared {
    link: Link,
    clock: StoreClock,
    targets: Targets,
    changed: Notify,
}

impl Shared {
    /// A connection, as of now.
    async fn db(&self) -> Result<Db> {
        self.link.db(self.clock.now(), self.clock.wall()).await
    }

    /// The same, with a transaction.
    async fn begin(&self) -> Result<Db> {
        self.db().await?.begin().await
    }

    fn schema(&self) -> &str {
        &self.link.target().schema
    }
}

/// The writes that many callers make at the same time.
#[derive(Debug)]
struct Batchers {
    claims: Batcher<IdempotencyClaim, Claimed>,
    sent: Batcher<(String, MessageId), ()>,
    handled: Batcher<Handled, ()>,
    put: Batcher<LotEntry, ()>,
}

impl Batchers {
    fn start(shared: &Arc<Shared>, tasks: &TaskTracker) -> Self {
        let [a, b, c, d] = [(); 4].map(|()| shared.clone());
        let claims = Batcher::start(
            tasks,
            |_| 1,
            move |claims: Vec<IdempotencyClaim>| {
                let shared = a.clone();
                Box::pin(async move { retried(|| async { idempotency::claim(&shared.db().await?, &claims).await }).await })
            },
        );
        let sent = Batcher::start(
            tasks,
            |_| 1,
            move |keys: Vec<(String, MessageId)>| {
                let shared = b.clone();
                Box::pin(async move {
                    retried(|| async { idempotency::sent(&shared.db().await?, &keys).await }).await?;
                    Ok(vec![(); keys.len()])
                })
            },
        );
        let handled = Batcher::start(
            tasks,
            |_| 1,
            move |handled: Vec<Handled>| {
                let shared = c.clone();
                Box::pin(async move {
                    retried(|| async { idempotency::done(&shared.db().await?, &handled).await }).await?;
                    Ok(vec![(); handled.len()])
                })
            },
        );
        // A batch holds some MB of payload at most, whatever the number of its rows.
        let weight = |entry: &LotEntry| 1 + entry.message.payload.len() / 16_384;
        let put = Batcher::start(tasks, weight, move |entries: Vec<LotEntry>| {
            let shared = d.clone();
            Box::pin(async move {
                retried(|| async { put_plain(&shared, &entries).await }).await?;
                Ok(vec![(); entries.len()])
            })
        });
        Batchers { claims, sent, handled, put }
    }
}

async fn filed(shared: &Shared, entries: &[LotEntry]) -> Result<Vec<lot::Filed>> {
    let db = shared.db().await?;
    let mut filed = Vec::with_capacity(entries.len());
    for entry in entries {
        filed.push((shared.targets.number(&db, &entry.address, &entry.group).await?, entry.clone()));
    }
    Ok(filed)
}

async fn put_plain(shared: &Shared, entries: &[LotEntry]) -> Result<()> {
    let filed = filed(shared, entries).await?;
    lot::put(&shared.db().await?, &filed).await
}

async fn put_chained(shared: &Shared, entries: &[LotEntry]) -> Result<()> {
    let filed = filed(shared, entries).await?;
    let db = shared.begin().await?;
    lot::put_chained(&db, shared.schema(), &filed).await?;
    db.commit().await
}

impl PostgresStore {
    /// Opens the store that `url` names; its schema is created or brought up to date. The parameters of the URL are those of
    /// PostgreSQL, and `schema` (`trunkline` by default), `sslmode` (`disable`, `prefer`, `require`, `verify-ca`,
    /// `verify-full`), `sslrootcert`, `sslcert`, `sslkey`. A missing password is taken from `PGPASSWORD`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a URL that cannot be read; `STORE_FAILED`, with `details.reason` `unreachable`, `authentication`,
    /// `missing` (the database), `forbidden`, `newer`, `damaged`, `busy`, `disk_full`, `read_only` or `internal`.
    pub async fn open(url: &str, options: Options) -> Result<PostgresStore> {
        let target = Target::parse(url, "url").await?;
        let location = target.location();
        Self::open_at(target, options).await.map_err(|error| error.detail("store", location))
    }

    async fn open_at(target: Target, options: Options) -> Result<PostgresStore> {
        let link = Link::new(target, &options)?;
        schema::migrate(&link).await?;
        let clock = StoreClock::start(&link, options.clock).await?;
        let shared = Arc::new(Shared { link, clock, targets: Targets::default(), changed: Notify::new() });
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        if options.listen {
            tasks.spawn(keeper::listen(shared.clone(), end.clone()));
        }
        tasks.spawn(keeper::compare(shared.clone(), end.clone()));
        let batchers = Mutex::new(Some(Arc::new(Batchers::start(&shared, &tasks))));
        Ok(PostgresStore { shared, batchers, tasks, end })
    }

    /// The batchers, while the store is open.
    fn batchers(&self) -> Result<Arc<Batchers>> {
        self.batchers.lock().clone().ok_or_else(errors::closed)
    }

    /// A connection for a call that others' calls do not share, while the store is open.
    async fn db(&self) -> Result<Db> {
        self.batchers()?;
        self.shared.db().await
    }

    async fn begin(&self) -> Result<Db> {
        self.db().await?.begin().await
    }

    async fn find(&self, address: &Address, group: &str) -> Result<Option<i64>> {
        self.shared.targets.find(&self.db().await?, address, group).await
    }

    async fn target(&self, address: &Address, group: &str) -> Result<i64> {
        self.shared.targets.number(&self.db().await?, address, group).await
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresStore").field(&self.shared.link.target().location()).finish()
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn scope(&self) -> Scope {
        Scope::Shared
    }

    fn location(&self) -> String {
        self.shared.link.target().location()
    }

    fn now(&self) -> Millis {
        self.shared.clock.now()
    }

    async fn close(&self) {
        self.end.cancel();
        // The workers end when nobody can give them anything any more and all of it is done.
        drop(self.batchers.lock().take());
        self.tasks.close();
        let _ = tokio::time::timeout(DRAIN, self.tasks.wait()).await;
        self.shared.link.close();
    }

    async fn probe(&self) -> Result<()> {
        self.db().await?.run("write a probe", "UPDATE meta SET value = value + 1 WHERE name = 'probe'", &[]).await.map(drop)
    }

    async fn catalog_version(&self) -> Result<u64> {
        catalog::version(&self.db().await?).await
    }

    async fn catalog(&self) -> Result<(u64, Vec<Doc>)> {
        catalog::read(&self.db().await?).await
    }

    async fn catalog_write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>> {
        retried(|| async {
            let db = self.begin().await?;
            let version = catalog::write(&db, self.shared.schema(), expected, &changes).await?;
            db.commit().await?;
            Ok(version)
        })
        .await
    }

    async fn catalog_changed(&self) {
        self.shared.changed.notified().await;
    }

    async fn lot_put(&self, entries: Vec<LotEntry>) -> Result<()> {
        let batchers = self.batchers()?;
        if entries.iter().any(|entry| entry.chain.is_some() && entry.state == LotState::Waiting) {
            return retried(|| put_chained(&self.shared, &entries)).await;
        }
        batchers.put.write(entries).await.map(drop)
    }

    async fn lot_claim(&self, claim: LotClaim<'_>) -> Result<Vec<LotEntry>> {
        let Some(target) = self.find(claim.address, claim.group).await? else { return Ok(Vec::new()) };
        let by = Claimant { owner: claim.owner, lease: claim.lease };
        let shards: Option<Vec<i64>> = claim.shards.map(|shards| shards.iter().copied().map(i64::from).collect());
        let shards = shards.as_deref();
        let mut claimed = retried(|| async { lot::claim(&self.db().await?, target, shards, claim.limit, by).await }).await?;
        if claimed.len() < claim.limit && lot::has_suspect(&self.db().await?, target, shards).await? {
            let suspect = retried(|| async {
                let db = self.begin().await?;
                let suspect = lot::claim_suspect(&db, self.shared.schema(), target, shards, by).await?;
                db.commit().await?;
                Ok(suspect)
            });
            // What is claimed already goes out all the same.
            match suspect.await {
                Ok(suspect) => claimed.extend(suspect),
                Err(error) if claimed.is_empty() => return Err(error),
                Err(error) => tracing::debug!(%error, "a suspect waits for the next claim"),
            }
        }
        Ok(claimed)
    }

    async fn lot_claim_publishes(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<LotEntry>> {
        retried(|| async { lot::claim_publishes(&self.db().await?, limit, Claimant { owner, lease }).await }).await
    }

    async fn lot_extend(&self, seqs: &[u64], owner: &str, lease: Duration) -> Result<Vec<bool>> {
        retried(|| async { lot::extend(&self.db().await?, seqs, Claimant { owner, lease }).await }).await
    }

    async fn lot_settle(&self, owner: &str, items: Vec<(u64, LotSettle)>) -> Result<Vec<bool>> {
        retried(|| async {
            let db = self.begin().await?;
            let settled = lot::settle(&db, self.shared.schema(), owner, &items).await?;
            db.commit().await?;
            Ok(settled)
        })
        .await
    }

    async fn lot_chains(&self, address: &Address, group: &str, shard: u32) -> Result<Vec<(u64, u64, u64)>> {
        match self.find(address, group).await? {
            Some(target) => lot::chains(&self.db().await?, target, shard).await,
            None => Ok(Vec::new()),
        }
    }

    async fn lot_counts(&self, address: &Address, group: Option<&str>) -> Result<LotCounts> {
        lot::counts(&self.db().await?, address, group).await
    }

    async fn lot_next_due(&self, of: Option<(&Address, &str)>) -> Result<Option<Millis>> {
        let target = match of {
            None => None,
            Some((address, group)) => match self.find(address, group).await? {
                None => return Ok(None),
                found => found,
            },
        };
        lot::next_due(&self.db().await?, target).await
    }

    async fn lot_list(&self, filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Result<Vec<LotEntry>> {
        let db = self.db().await?.snapshot().await?;
        let entries = lot::list(&db, filter, limit, offset, newest_first).await?;
        db.commit().await?;
        Ok(entries)
    }

    async fn lot_count(&self, filter: &LotFilter) -> Result<u64> {
        lot::count(&self.db().await?, filter).await
    }

    async fn lot_groups(&self, filter: &LotFilter) -> Result<Vec<DeadGroup>> {
        lot::groups(&self.db().await?, filter).await
    }

    async fn lot_edit(&self, seq: u64, edit: LotEdit) -> Result<bool> {
        retried(|| async {
            let db = self.begin().await?;
            let edited = lot::edit(&db, seq, &edit).await?;
            db.commit().await?;
            Ok(edited)
        })
        .await
    }

    async fn lot_discard(&self, seqs: &[u64]) -> Result<u64> {
        retried(|| async { lot::discard(&self.db().await?, seqs).await }).await
    }

    async fn lot_revive(&self, job: &str, filter: &LotFilter, edit: Option<&LotEdit>, limit: usize) -> Result<Vec<LotEntry>> {
        retried(|| async {
            let db = self.begin().await?;
            let revived = lot::revive(&db, self.shared.schema(), job, filter, edit, limit).await?;
            db.commit().await?;
            Ok(revived)
        })
        .await
    }

    async fn lot_start(&self, address: &Address, group: &str, ids: &[MessageId], suspect: bool) -> Result<Vec<Option<u32>>> {
        let target = self.target(address, group).await?;
        retried(|| async {
            let db = self.begin().await?;
            let counts = lot::start(&db, self.shared.schema(), target, ids, suspect).await?;
            db.commit().await?;
            Ok(counts)
        })
        .await
    }

    async fn lot_end(&self, address: &Address, group: &str, items: &[(MessageId, bool)]) -> Result<()> {
        let Some(target) = self.find(address, group).await? else { return Ok(()) };
        retried(|| async {
            let db = self.begin().await?;
            lot::end(&db, self.shared.schema(), target, items).await?;
            db.commit().await
        })
        .await
    }

    async fn lot_indexed(&self, address: &Address, group: &str) -> Result<u64> {
        match self.find(address, group).await? {
            Some(target) => lot::indexed(&self.db().await?, target).await,
            None => Ok(0),
        }
    }

    async fn lot_index(&self, address: &Address, group: &str, from: u64, to: u64, records: Vec<LotRecord>) -> Result<bool> {
        let target = self.target(address, group).await?;
        retried(|| async {
            let db = self.begin().await?;
            let indexed = lot::index(&db, self.shared.schema(), target, from, to, &records).await?;
            db.commit().await?;
            Ok(indexed)
        })
        .await
    }

    async fn idempotency_claim(&self, claims: Vec<IdempotencyClaim>) -> Result<Vec<Claimed>> {
        self.batchers()?.claims.write(claims).await
    }

    async fn idempotency_sent(&self, keys: &[(String, MessageId)]) -> Result<()> {
        self.batchers()?.sent.write(keys.to_vec()).await.map(drop)
    }

    async fn idempotency_abandon(&self, key: &str, id: MessageId, owner: &str) -> Result<()> {
        idempotency::abandon(&self.db().await?, key, id, owner).await
    }

    async fn idempotency_get(&self, key: &str) -> Result<Option<IdempotencyState>> {
        idempotency::get(&self.db().await?, key).await
    }

    async fn dedupe_seen(&self, scope: &str, ids: &[MessageId]) -> Result<Vec<bool>> {
        idempotency::seen(&self.db().await?, scope, ids).await
    }

    async fn dedupe_done(&self, scope: &str, ids: &[MessageId], window: Duration) -> Result<()> {
        let scope: Arc<str> = scope.into();
        self.batchers()?.handled.write(ids.iter().map(|id| (scope.clone(), *id, window)).collect()).await.map(drop)
    }

    async fn lease_take(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>> {
        registry::take(&self.db().await?, name, owner, ttl).await
    }

    async fn lease_release(&self, name: &str, owner: &str) -> Result<()> {
        registry::release(&self.db().await?, name, owner).await
    }

    async fn members_report(&self, members: &[Member]) -> Result<()> {
        registry::report(&self.db().await?, members).await
    }

    async fn members(&self, address: Option<&Address>, within: Duration) -> Result<Vec<Member>> {
        registry::members(&self.db().await?, address, within).await
    }

    async fn members_leave(&self, ids: &[String]) -> Result<()> {
        registry::leave(&self.db().await?, ids).await
    }

    async fn job_put(&self, job: &Job) -> Result<()> {
        jobs::put(&self.db().await?, job).await
    }

    async fn job_get(&self, id: &str) -> Result<Option<Job>> {
        jobs::get(&self.db().await?, id).await
    }

    async fn jobs(&self, product: &str) -> Result<Vec<Job>> {
        jobs::of_product(&self.db().await?, product).await
    }

    async fn sweep(&self) -> Result<u64> {
        let rows = int(SWEEP_ROWS as u64);
        let mut sum = 0;
        loop {
            let db = self.db().await?;
            clock::note(&db).await?;
            let step = idempotency::sweep(&db, rows).await?
                + registry::sweep(&db, rows).await?
                + jobs::sweep(&db, rows).await?
                + lot::sweep(&db, rows).await?
                + sessions::sweep(&db, rows).await?
                + caches::sweep(&db, rows).await?
                + schedules::sweep(&db, rows).await?;
            sum += step;
            if step < SWEEP_ROWS as u64 {
                return Ok(sum);
            }
        }
    }
}

#[async_trait]
impl TransferStore for PostgresStore {
    async fn export(&self, to: mpsc::Sender<Vec<Record>>) -> Result<()> {
        let db = self.db().await?.snapshot().await?;
        transfer::export(&db, &to).await?;
        db.commit().await
    }

    async fn import(&self, records: Vec<Record>) -> Result<()> {
        let mut targets = Vec::new();
        for record in &records {
            match record {
                Record::Entry(entry) => {
                    let entry = entry.entry()?;
                    targets.push(self.target(&entry.address, &entry.group).await?);
                }
                Record::Indexed { address, group, .. } => targets.push(self.target(address, group).await?),
                _ => {}
            }
        }
        retried(|| async {
            let db = self.begin().await?;
            transfer::import(&db, self.shared.schema(), &records, &targets).await?;
            db.commit().await
        })
        .await
    }

    async fn counts(&self) -> Result<Counts> {
        transfer::counts(&self.db().await?).await
    }

    async fn clear(&self) -> Result<()> {
        retried(|| async {
            let db = self.begin().await?;
            transfer::clear(&db, self.shared.schema()).await?;
            db.commit().await
        })
        .await
    }
}
