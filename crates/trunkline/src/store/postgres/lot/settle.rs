//! What becomes of claimed entries.

use std::collections::{BTreeMap, HashSet};

use super::super::link::Db;
use super::chain::{self, Chain};
use super::clean;
use crate::error::Result;
use crate::store::LotSettle;
use crate::store::common::{ERROR_MAX, WAITING, cut, error_group, int};

/// Entries that wait again, or are buried: what is written of each.
#[derive(Default)]
struct Failed {
    seqs: Vec<i64>,
    due_at: Vec<i64>,
    attempts: Vec<i64>,
    reasons: Vec<Option<String>>,
    errors: Vec<Option<String>>,
    groups: Vec<Option<String>>,
}

impl Failed {
    fn push(&mut self, seq: i64, due_at: i64, attempts: u32, reason: Option<&str>, error: Option<&str>) {
        let error = error.map(clean);
        let error = error.as_deref().map(|error| cut(error, ERROR_MAX));
        self.seqs.push(seq);
        self.due_at.push(due_at);
        self.attempts.push(i64::from(attempts));
        self.reasons.push(reason.map(clean));
        self.groups.push(error_group(error, reason).map(str::to_owned));
        self.errors.push(error.map(str::to_owned));
    }
}

/// The settlements by kind. The first one of an entry counts: after it the claim is nobody's.
#[derive(Default)]
struct Sorted {
    done: Vec<i64>,
    release: Vec<i64>,
    wait: Failed,
    bury: Failed,
}

impl Sorted {
    fn of(items: &[(u64, LotSettle)]) -> Self {
        let mut sorted = Sorted::default();
        // In the order of seq, so that two who settle never wait for each other.
        let mut first: BTreeMap<i64, &LotSettle> = BTreeMap::new();
        for (seq, settle) in items {
            first.entry(int(*seq)).or_insert(settle);
        }
        for (seq, settle) in first {
            match settle {
                LotSettle::Done => sorted.done.push(seq),
                LotSettle::Release => sorted.release.push(seq),
                LotSettle::Wait { due_at, attempts, error } => sorted.wait.push(seq, int(*due_at), *attempts, None, error.as_deref()),
                LotSettle::Bury { reason, attempts, error } => sorted.bury.push(seq, 0, *attempts, Some(reason), error.as_deref()),
            }
        }
        sorted
    }
}

/// Settles claimed entries, in a transaction; `false` where the claim is not the owner's any more.
pub(in super::super) async fn settle(db: &Db, schema: &str, owner: &str, items: &[(u64, LotSettle)]) -> Result<Vec<bool>> {
    let chains = hold(db, schema, owner, items).await?;
    let sorted = Sorted::of(items);
    let mut settled = HashSet::new();
    apply(db, owner, &sorted, &mut settled).await?;
    chain::rehead(db, &chains).await?;
    // Of an entry that comes twice, only the first settlement found its claim.
    Ok(items.iter().map(|(seq, _)| settled.remove(&int(*seq))).collect())
}

/// Takes the locks of the chains first, then those of the rows.
async fn hold(db: &Db, schema: &str, owner: &str, items: &[(u64, LotSettle)]) -> Result<Vec<Chain>> {
    let doing = "settle entries of the lot";
    let seqs: Vec<i64> = items.iter().map(|(seq, _)| int(*seq)).collect();
    let sql = "SELECT target, shard, chain FROM lot WHERE seq = ANY($1) AND owner = $2 AND state = $3 AND chain IS NOT NULL";
    let rows = db.all(doing, sql, &[&seqs, &owner, &WAITING]).await?;
    let chains: Vec<Chain> = rows.iter().map(|row| Chain { target: row.get(0), shard: row.get(1), chain: row.get(2) }).collect();
    chain::lock(db, schema, &chains).await?;
    db.run(doing, "SELECT seq FROM lot WHERE seq = ANY($1) AND owner = $2 AND state <> 2 ORDER BY seq FOR UPDATE", &[&seqs, &owner])
        .await?;
    Ok(chains)
}

async fn apply(db: &Db, owner: &str, sorted: &Sorted, settled: &mut HashSet<i64>) -> Result<()> {
    let doing = "settle entries of the lot";
    let Sorted { done, release, wait, bury } = sorted;
    let mut note = |rows: Vec<tokio_postgres::Row>| settled.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
    if !done.is_empty() {
        let sql = "DELETE FROM lot WHERE seq = ANY($1) AND owner = $2 AND state <> 2 RETURNING seq";
        note(db.all(doing, sql, &[done, &owner]).await?);
    }
    if !release.is_empty() {
        let sql = "UPDATE lot SET owner = NULL, ready_at = due_at WHERE seq = ANY($1) AND owner = $2 AND state <> 2 RETURNING seq";
        note(db.all(doing, sql, &[release, &owner]).await?);
    }
    if !wait.seqs.is_empty() {
        let sql = "UPDATE lot l SET owner = NULL, ready_at = g.due_at, due_at = g.due_at, attempts = g.attempts, error = g.error,
                error_group = g.error_group, lost = 0
            FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[]) AS g (seq, due_at, attempts, error, error_group)
            WHERE l.seq = g.seq AND l.owner = $6 AND l.state <> 2 RETURNING l.seq";
        note(db.all(doing, sql, &[&wait.seqs, &wait.due_at, &wait.attempts, &wait.errors, &wait.groups, &owner]).await?);
    }
    if !bury.seqs.is_empty() {
        let sql = "UPDATE lot l SET state = 2, owner = NULL, ready_at = NULL, died_at = $7, attempts = g.attempts, reason = g.reason,
                error = g.error, error_group = g.error_group
            FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[]) AS g (seq, attempts, reason, error, error_group)
            WHERE l.seq = g.seq AND l.owner = $6 AND l.state <> 2 RETURNING l.seq";
        note(db.all(doing, sql, &[&bury.seqs, &bury.attempts, &bury.reasons, &bury.errors, &bury.groups, &owner, &db.wall()]).await?);
    }
    Ok(())
}
