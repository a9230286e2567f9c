//! Claims of what is due. Those of others who are claiming right now are passed by, never waited for.

use std::time::Duration;

use super::super::link::Db;
use super::super::lock;
use super::{COLUMNS, entry};
use crate::error::Result;
use crate::message::Millis;
use crate::store::LotEntry;
use crate::store::common::{SUSPECT, int, uint};

/// What a claim is made with.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Claimant<'a> {
    pub(in super::super) owner: &'a str,
    pub(in super::super) lease: Duration,
}

/// Claims the rows that `due` chooses, oldest first, and reads them.
fn claiming(due: &str) -> String {
    format!(
        "WITH due AS (SELECT seq, ready_at FROM lot WHERE {due} ORDER BY ready_at, seq LIMIT $4 FOR UPDATE SKIP LOCKED),
         l AS (
            UPDATE lot SET lost = lost + (owner IS NOT NULL)::int, owner = $2, ready_at = $3 FROM due WHERE lot.seq = due.seq
            RETURNING lot.*, due.ready_at AS was
         )
         SELECT {COLUMNS} FROM l JOIN lot_body b ON b.seq = l.seq JOIN target t ON t.id = l.target ORDER BY l.was, l.seq"
    )
}

/// Rows of one group that are due: without a chain, or heads of chains of some shards. Behind the head of a chain
/// `ready_at` is NULL. A claim that is found here ended without a word: it counts.
fn of_group(chained: bool, suspects: bool) -> String {
    let many = if suspects { ">=" } else { "<" };
    let of = if chained { "chain IS NOT NULL AND shard = ANY($6)" } else { "chain IS NULL AND $6::bigint[] IS NULL" };
    format!(
        "target = $5 AND state = 0 AND ready_at IS NOT NULL AND ready_at <= $1 AND {of} AND lost + (owner IS NOT NULL)::int {many} {SUSPECT}"
    )
}

/// Claims due entries of one group that are no suspects.
pub(in super::super) async fn claim(db: &Db, target: i64, shards: Option<&[i64]>, limit: usize, by: Claimant<'_>) -> Result<Vec<LotEntry>> {
    let sql = claiming(&of_group(shards.is_some(), false));
    let rows =
        db.all("claim from the lot", &sql, &[&db.now(), &by.owner, &db.after(by.lease), &int(limit as u64), &target, &shards]).await?;
    rows.iter().map(entry).collect()
}

/// Claims one whose owners died before, unless one is being handled; in a transaction.
pub(in super::super) async fn claim_suspect(
    db: &Db,
    schema: &str,
    target: i64,
    shards: Option<&[i64]>,
    by: Claimant<'_>,
) -> Result<Vec<LotEntry>> {
    let doing = "claim from the lot";
    lock::take(db, &[lock::number(&[b"suspects", schema.as_bytes(), &target.to_le_bytes()])]).await?;
    let out =
        format!("SELECT 1 FROM lot WHERE target = $1 AND state = 0 AND lost >= {SUSPECT} AND ready_at > $2 AND owner IS NOT NULL LIMIT 1");
    if db.first(doing, &out, &[&target, &db.now()]).await?.is_some() {
        return Ok(Vec::new());
    }
    let sql = claiming(&of_group(shards.is_some(), true));
    let rows = db.all(doing, &sql, &[&db.now(), &by.owner, &db.after(by.lease), &1_i64, &target, &shards]).await?;
    rows.iter().map(entry).collect()
}

/// Whether one is due whose owners died before.
pub(in super::super) async fn has_suspect(db: &Db, target: i64, shards: Option<&[i64]>) -> Result<bool> {
    let sql = "SELECT 1 FROM lot WHERE target = $1 AND state = 0 AND ready_at IS NOT NULL AND ready_at <= $2
        AND (CASE WHEN $3::bigint[] IS NULL THEN chain IS NULL ELSE chain IS NOT NULL AND shard = ANY($3) END)
        AND lost + (owner IS NOT NULL)::int >= $4 LIMIT 1";
    Ok(db.first("claim from the lot", sql, &[&target, &db.now(), &shards, &i64::from(SUSPECT)]).await?.is_some())
}

/// Claims due delayed publishes of all topics.
pub(in super::super) async fn claim_publishes(db: &Db, limit: usize, by: Claimant<'_>) -> Result<Vec<LotEntry>> {
    let sql = claiming("state = 1 AND ready_at IS NOT NULL AND ready_at <= $1");
    let rows = db.all("claim delayed publishes", &sql, &[&db.now(), &by.owner, &db.after(by.lease), &int(limit as u64)]).await?;
    rows.iter().map(entry).collect()
}

/// Renews claims that are still the owner's, also those whose lease ran out with nobody taking them.
pub(in super::super) async fn extend(db: &Db, seqs: &[u64], by: Claimant<'_>) -> Result<Vec<bool>> {
    let wanted: Vec<i64> = seqs.iter().copied().map(int).collect();
    let sql = "WITH mine AS (SELECT seq FROM lot WHERE seq = ANY($1) AND owner = $2 AND state <> 2 ORDER BY seq FOR UPDATE)
        UPDATE lot SET ready_at = $3 FROM mine WHERE lot.seq = mine.seq RETURNING lot.seq";
    let rows = db.all("renew claims", sql, &[&wanted, &by.owner, &db.after(by.lease)]).await?;
    let kept: std::collections::HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    Ok(wanted.iter().map(|seq| kept.contains(seq)).collect())
}

/// The chains of a shard: hash, entries, bytes.
pub(in super::super) async fn chains(db: &Db, target: i64, shard: u32) -> Result<Vec<(u64, u64, u64)>> {
    let sql = "SELECT chain, count(*), sum(size)::bigint FROM lot
        WHERE target = $1 AND shard = $2 AND state = 0 AND chain IS NOT NULL GROUP BY chain";
    let rows = db.all("read the chains", sql, &[&target, &i64::from(shard)]).await?;
    Ok(rows.iter().map(|row| (row.get::<_, i64>(0).cast_unsigned(), uint(row.get(1)), uint(row.get(2)))).collect())
}

/// When the next entry of the group, or delayed publish (`None`), may be claimed.
pub(in super::super) async fn next_due(db: &Db, target: Option<i64>) -> Result<Option<Millis>> {
    let doing = "look for what is due";
    let row = match target {
        None => {
            let sql = "SELECT ready_at FROM lot WHERE state = 1 AND ready_at IS NOT NULL ORDER BY ready_at LIMIT 1";
            db.first(doing, sql, &[]).await?
        }
        Some(target) => {
            let sql = "SELECT ready_at FROM lot WHERE target = $1 AND state = 0 AND ready_at IS NOT NULL ORDER BY ready_at LIMIT 1";
            db.first(doing, sql, &[&target]).await?
        }
    };
    Ok(row.map(|row| uint(row.get(0))))
}
