//! The values of caches.

use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::Row;

use super::PostgresStore;
use super::errors::damaged;
use super::link::{Db, Param, retried};
use crate::error::{Error, Result};
use crate::message::{MessageId, millis};
use crate::store::cache::{CacheClaim, CacheClaimed, CacheKey, CacheStore, CacheValue, VALUES_MOST};
use crate::store::common::{int, uint};

/// How often a message is looked at anew whose claim came and went meanwhile.
const ROUNDS: usize = 20;

/// Claims what is unknown, too old by the cache's expiry of today ($9), or left behind by an owner that died. Of the last the
/// row stays as it was made, with its id.
const CLAIM: &str = "INSERT INTO cache_value AS c (scope, hash, env, event, id, owner, until, expiry, sent_at, expires_at, taken_over)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, NULL, $10, false)
    ON CONFLICT (scope, hash) DO UPDATE SET
        env = CASE WHEN c.sent_at IS NULL THEN c.env ELSE excluded.env END,
        event = CASE WHEN c.sent_at IS NULL THEN c.event ELSE excluded.event END,
        id = CASE WHEN c.sent_at IS NULL THEN c.id ELSE excluded.id END,
        expiry = CASE WHEN c.sent_at IS NULL THEN c.expiry ELSE excluded.expiry END,
        owner = excluded.owner, until = excluded.until, expires_at = excluded.expires_at, sent_at = NULL, taken_over = c.sent_at IS NULL
    WHERE c.sent_at <= $9 OR (c.sent_at IS NULL AND c.until <= $11)
    RETURNING id, taken_over";

async fn claim(db: &Db, claim: &CacheClaim) -> Result<CacheClaimed> {
    let (doing, key) = ("claim a message under a cache", &claim.key);
    let hash = &key.hash[..];
    let (expiry, old) = (int(millis(claim.expiry)), db.now().saturating_sub(int(millis(claim.expiry))));
    let (until, expires) = (db.after(claim.lease), db.after(claim.expiry.max(claim.lease)));
    let (event, now) = (claim.event.as_str(), db.now());
    let values: [Param<'_>; 11] = [&key.scope, &hash, &claim.env, &event, &claim.id.0, &claim.owner, &until, &expiry, &old, &expires, &now];
    for _ in 0..ROUNDS {
        if let Some(row) = db.first(doing, CLAIM, &values).await? {
            if !row.get::<_, bool>(1) && key.hash[0] == 0 {
                crowded(db, &key.scope).await;
            }
            return Ok(CacheClaimed::Ours(MessageId(row.get(0))));
        }
        let sql = "SELECT id, until, sent_at FROM cache_value WHERE scope = $1 AND hash = $2";
        let Some(row) = db.first(doing, sql, &[&key.scope, &hash]).await? else { continue };
        match (row.get::<_, i64>(1), row.get::<_, Option<i64>>(2)) {
            (_, Some(sent_at)) if sent_at > old => return Ok(CacheClaimed::Hit { id: MessageId(row.get(0)) }),
            (held, None) if held > now => return Ok(CacheClaimed::InProgress { until: uint(held) }),
            _ => {}
        }
    }
    Err(Error::store("a message is being claimed and given back by too many processes at once").reason("busy").with_retryable(true))
}

/// Counting at each claim would cost more than the claim; one in 256 hashes does it for all. The claim stands either way.
async fn crowded(db: &Db, scope: &str) {
    if let Err(error) = shorten(db, scope).await {
        tracing::debug!(%error, "a cache is shortened by the next sweep");
    }
}

async fn sent(db: &Db, key: &CacheKey, id: MessageId, owner: &str) -> Result<()> {
    let sql = "UPDATE cache_value SET id = $3, sent_at = $5::bigint, expires_at = $5::bigint + least(expiry, $6::bigint - $5::bigint)
        WHERE scope = $1 AND hash = $2 AND owner = $4 AND sent_at IS NULL";
    db.run("note a result under a cache", sql, &[&key.scope, &&key.hash[..], &id.0, &owner, &db.now(), &i64::MAX]).await.map(drop)
}

async fn abandon(db: &Db, key: &CacheKey, owner: &str) -> Result<()> {
    let sql = "WITH kept AS (
            UPDATE cache_value SET until = 0 WHERE scope = $1 AND hash = $2 AND owner = $3 AND sent_at IS NULL AND taken_over RETURNING hash
        ) DELETE FROM cache_value WHERE scope = $1 AND hash = $2 AND owner = $3 AND sent_at IS NULL AND NOT taken_over";
    db.run("give a message under a cache back", sql, &[&key.scope, &&key.hash[..], &owner]).await.map(drop)
}

/// A page of the values and their number, in a transaction that sees one moment.
async fn values(db: &Db, scope: &str, expiry: Duration, limit: usize, offset: usize) -> Result<(Vec<CacheValue>, u64)> {
    let doing = "read the values of a cache";
    let after = db.now().saturating_sub(int(millis(expiry)));
    let total = db.first(doing, "SELECT count(*) FROM cache_value WHERE scope = $1 AND sent_at > $2", &[&scope, &after]).await?;
    let sql = "SELECT id, env, event, sent_at FROM cache_value WHERE scope = $1 AND sent_at > $2
        ORDER BY sent_at DESC, hash LIMIT $3 OFFSET $4";
    let rows = db.all(doing, sql, &[&scope, &after, &int(limit as u64), &int(offset as u64)]).await?;
    let values = rows.iter().map(|row| value(db, row)).collect::<Result<_>>()?;
    Ok((values, total.map_or(0, |row| uint(row.get(0)))))
}

fn value(db: &Db, row: &Row) -> Result<CacheValue> {
    let age_ms = uint(db.now()).saturating_sub(uint(row.get(3)));
    Ok(CacheValue {
        process_id: MessageId(row.get(0)),
        env: row.get(1),
        event: row.get::<_, &str>(2).parse().map_err(|_| damaged("a value of a cache has no valid event"))?,
        at: uint(db.wall()).saturating_sub(age_ms),
        age_ms,
    })
}

/// Drops the oldest values of a cache beyond the most it may have.
async fn shorten(db: &Db, scope: &str) -> Result<u64> {
    let sql = "DELETE FROM cache_value WHERE scope = $1 AND sent_at IS NOT NULL AND hash IN (
        SELECT hash FROM cache_value WHERE scope = $1 AND sent_at IS NOT NULL ORDER BY sent_at DESC OFFSET $2)";
    db.run("drop the oldest values of a cache", sql, &[&scope, &int(VALUES_MOST as u64)]).await
}

/// Drops up to `limit` values whose time is over, and those that a cache has too many of.
pub(super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let doing = "forget old values of caches";
    let old = "DELETE FROM cache_value WHERE (scope, hash) IN (
        SELECT scope, hash FROM cache_value WHERE expires_at <= $1 AND until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    let mut rows = db.run(doing, old, &[&db.now(), &limit]).await?;
    let full = "SELECT scope FROM cache_value WHERE sent_at IS NOT NULL GROUP BY scope HAVING count(*) > $1";
    for row in db.all(doing, full, &[&int(VALUES_MOST as u64)]).await? {
        rows += shorten(db, row.get(0)).await?;
    }
    Ok(rows)
}

#[async_trait]
impl CacheStore for PostgresStore {
    async fn cache_claim(&self, of: CacheClaim) -> Result<CacheClaimed> {
        retried(|| async { claim(&self.db().await?, &of).await }).await
    }

    async fn cache_sent(&self, key: &CacheKey, id: MessageId, owner: &str) -> Result<()> {
        sent(&self.db().await?, key, id, owner).await
    }

    async fn cache_abandon(&self, key: &CacheKey, owner: &str) -> Result<()> {
        abandon(&self.db().await?, key, owner).await
    }

    async fn cache_values(&self, scope: &str, expiry: Duration, limit: usize, offset: usize) -> Result<(Vec<CacheValue>, u64)> {
        let db = self.db().await?.snapshot().await?;
        let values = values(&db, scope, expiry, limit, offset).await?;
        db.commit().await?;
        Ok(values)
    }

    async fn cache_clear(&self, scope: &str) -> Result<u64> {
        let sql = "DELETE FROM cache_value WHERE scope = $1 AND sent_at IS NOT NULL";
        retried(|| async { self.db().await?.run("clear a cache", sql, &[&scope]).await }).await
    }
}
