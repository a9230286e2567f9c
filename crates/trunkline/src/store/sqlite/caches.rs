//! The values of caches.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::params;

use super::SqliteStore;
use super::db::{Db, int, message_id, uint};
use super::errors::damaged;
use crate::error::Result;
use crate::message::{MessageId, millis};
use crate::store::cache::{CacheClaim, CacheClaimed, CacheKey, CacheStore, CacheValue, VALUES_MOST};

#[async_trait]
impl CacheStore for SqliteStore {
    async fn cache_claim(&self, of: CacheClaim) -> Result<CacheClaimed> {
        self.write(1, move |db| claim(db, &of)).await
    }

    async fn cache_sent(&self, key: &CacheKey, id: MessageId, owner: &str) -> Result<()> {
        let (key, owner) = (key.clone(), owner.to_owned());
        self.write(1, move |db| sent(db, &key, id, &owner)).await
    }

    async fn cache_abandon(&self, key: &CacheKey, owner: &str) -> Result<()> {
        let (key, owner) = (key.clone(), owner.to_owned());
        self.write(1, move |db| abandon(db, &key, &owner)).await
    }

    async fn cache_values(&self, scope: &str, expiry: Duration, limit: usize, offset: usize) -> Result<(Vec<CacheValue>, u64)> {
        let scope = scope.to_owned();
        self.read(move |db| values(db, &scope, expiry, limit, offset)).await
    }

    async fn cache_clear(&self, scope: &str) -> Result<u64> {
        let scope = scope.to_owned();
        self.write(1_000, move |db| {
            let sql = "DELETE FROM cache_value WHERE scope = ?1 AND sent_at IS NOT NULL";
            db.run("clear a cache", sql, [&scope]).map(|rows| rows as u64)
        })
        .await
    }
}

fn claim(db: &Db, claim: &CacheClaim) -> Result<CacheClaimed> {
    let (doing, now, until) = ("claim a message under a cache", db.now(), db.after(claim.lease));
    let key = &claim.key;
    let known = db.first(
        doing,
        "SELECT id, until, sent_at FROM cache_value WHERE scope = ?1 AND hash = ?2",
        params![key.scope, key.hash],
        |row| Ok((message_id(row, 0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?)),
    )?;
    let expires_at = db.after(claim.expiry.max(claim.lease));
    // What is too old by the cache's expiry of today counts as unknown.
    match known.filter(|(.., sent_at)| sent_at.is_none_or(|at| at.saturating_add(int(millis(claim.expiry))) > now)) {
        Some((id, _, Some(_))) => Ok(CacheClaimed::Hit { id }),
        Some((_, held, None)) if held > now => Ok(CacheClaimed::InProgress { until: uint(held) }),
        Some((id, ..)) => {
            db.run(
                doing,
                "UPDATE cache_value SET owner = ?3, until = ?4, expires_at = ?5, taken_over = 1 WHERE scope = ?1 AND hash = ?2",
                params![key.scope, key.hash, claim.owner, until, expires_at],
            )?;
            Ok(CacheClaimed::Ours(id))
        }
        None => {
            db.run(
                doing,
                "INSERT OR REPLACE INTO cache_value (scope, hash, env, event, id, owner, until, expiry, expires_at, taken_over)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0)",
                params![
                    key.scope,
                    key.hash,
                    claim.env,
                    claim.event.as_str(),
                    &claim.id.as_bytes()[..],
                    claim.owner,
                    until,
                    int(millis(claim.expiry)),
                    expires_at
                ],
            )?;
            // Counting at each claim would cost more than the claim; one in 256 hashes does it for all.
            if key.hash[0] == 0 {
                shorten(db, &key.scope)?;
            }
            Ok(CacheClaimed::Ours(claim.id))
        }
    }
}

fn sent(db: &Db, key: &CacheKey, id: MessageId, owner: &str) -> Result<()> {
    db.run(
        "note a result under a cache",
        "UPDATE cache_value SET id = ?3, sent_at = ?5, expires_at = ?5 + expiry
         WHERE scope = ?1 AND hash = ?2 AND owner = ?4 AND sent_at IS NULL",
        params![key.scope, key.hash, &id.as_bytes()[..], owner, db.now()],
    )
    .map(drop)
}

fn abandon(db: &Db, key: &CacheKey, owner: &str) -> Result<()> {
    let doing = "give a message under a cache back";
    let which = "WHERE scope = ?1 AND hash = ?2 AND owner = ?3 AND sent_at IS NULL";
    db.run(doing, &format!("DELETE FROM cache_value {which} AND taken_over = 0"), params![key.scope, key.hash, owner])?;
    db.run(doing, &format!("UPDATE cache_value SET until = 0 {which}"), params![key.scope, key.hash, owner]).map(drop)
}

fn values(db: &Db, scope: &str, expiry: Duration, limit: usize, offset: usize) -> Result<(Vec<CacheValue>, u64)> {
    let doing = "read the values of a cache";
    let (now, wall) = (uint(db.now()), uint(db.wall()));
    let after = db.now().saturating_sub(int(millis(expiry)));
    let total = db.first(doing, "SELECT count(*) FROM cache_value WHERE scope = ?1 AND sent_at > ?2", params![scope, after], |row| {
        row.get::<_, i64>(0)
    })?;
    let rows = db.all(
        doing,
        "SELECT id, env, event, sent_at FROM cache_value WHERE scope = ?1 AND sent_at > ?2 ORDER BY sent_at DESC, hash LIMIT ?3 OFFSET ?4",
        params![scope, after, int(limit as u64), int(offset as u64)],
        |row| Ok((message_id(row, 0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, i64>(3)?)),
    )?;
    let value = |(process_id, env, event, sent_at): (MessageId, String, String, i64)| {
        let event = event.parse().map_err(|_| damaged("a value of a cache has no valid event"))?;
        let age_ms = now.saturating_sub(uint(sent_at));
        Ok(CacheValue { process_id, env, event, at: wall.saturating_sub(age_ms), age_ms })
    };
    Ok((rows.into_iter().map(value).collect::<Result<_>>()?, total.map_or(0, uint)))
}

/// Drops the oldest values of a cache beyond the most it may have.
fn shorten(db: &Db, scope: &str) -> Result<usize> {
    db.run(
        "drop the oldest values of a cache",
        "DELETE FROM cache_value WHERE scope = ?1 AND hash IN (SELECT hash FROM cache_value WHERE scope = ?1 AND sent_at IS NOT NULL
             ORDER BY sent_at DESC LIMIT -1 OFFSET ?2)",
        params![scope, int(VALUES_MOST as u64)],
    )
}

/// Drops values whose time is over, and those that a cache has too many of.
pub(super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    let doing = "forget old values of caches";
    let mut rows = db.run(
        doing,
        "DELETE FROM cache_value WHERE (scope, hash) IN
             (SELECT scope, hash FROM cache_value INDEXED BY cache_value_expires WHERE expires_at <= ?1 AND until <= ?1 LIMIT ?2)",
        params![db.now(), int(limit as u64)],
    )?;
    let full = db.all(
        doing,
        "SELECT scope FROM cache_value WHERE sent_at IS NOT NULL GROUP BY scope HAVING count(*) > ?1",
        [int(VALUES_MOST as u64)],
        |row| row.get::<_, String>(0),
    )?;
    for scope in full {
        rows += shorten(db, &scope)?;
    }
    Ok(rows)
}
