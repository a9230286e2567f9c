//! Idempotency keys of producers, and the ids that consumers have handled.

use rusqlite::params;

use super::db::{Db, int, message_id, uint};
use crate::error::Result;
use crate::message::{MessageId, millis};
use crate::store::{Claimed, IdempotencyClaim, IdempotencyState};

struct Known {
    hash: Vec<u8>,
    id: MessageId,
    until: i64,
    sent_at: Option<i64>,
}

/// Claims keys, each on its own.
pub(super) fn claim(db: &Db, claims: &[IdempotencyClaim]) -> Result<Vec<Claimed>> {
    claims.iter().map(|claim| claim_one(db, claim)).collect()
}

fn claim_one(db: &Db, claim: &IdempotencyClaim) -> Result<Claimed> {
    let doing = "claim an idempotency key";
    let (now, until) = (db.now(), db.after(claim.lease));
    let known = db.first(
        doing,
        "SELECT hash, id, until, sent_at FROM idempotency WHERE key = ?1 AND expires_at > ?2",
        params![claim.key, now],
        |row| Ok(Known { hash: row.get(0)?, id: message_id(row, 1)?, until: row.get(2)?, sent_at: row.get(3)? }),
    )?;
    // A claim is remembered at least as long as its result would be: whoever takes it over needs its id.
    let expires_at = db.after(claim.window.max(claim.lease));
    match known {
        None => {
            db.run(
                doing,
                "INSERT OR REPLACE INTO idempotency (key, hash, id, owner, until, sent_at, window, expires_at, taken_over)
                 VALUES (?1, ?2, ?3, ?4, ?5, NULL, ?6, ?7, 0)",
                params![claim.key, claim.hash, &claim.id.as_bytes()[..], claim.owner, until, int(millis(claim.window)), expires_at],
            )?;
            Ok(Claimed::Ours(claim.id))
        }
        Some(known) if known.hash != claim.hash => Ok(Claimed::Conflict),
        Some(Known { id, sent_at: Some(at), .. }) => Ok(Claimed::Sent { id, at: uint(at) }),
        Some(known) if known.until > now => Ok(Claimed::InProgress { until: uint(known.until) }),
        Some(known) => {
            db.run(
                doing,
                "UPDATE idempotency SET owner = ?2, until = ?3, window = ?4, expires_at = ?5, taken_over = 1 WHERE key = ?1",
                params![claim.key, claim.owner, until, int(millis(claim.window)), expires_at],
            )?;
            Ok(Claimed::Ours(known.id))
        }
    }
}

/// Notes that messages were confirmed.
pub(super) fn sent(db: &Db, keys: &[(String, MessageId)]) -> Result<()> {
    for (key, id) in keys {
        db.run(
            "note a confirmed message",
            "UPDATE idempotency SET sent_at = ?3, expires_at = ?3 + window WHERE key = ?1 AND id = ?2 AND sent_at IS NULL",
            params![key, &id.as_bytes()[..], db.now()],
        )?;
    }
    Ok(())
}

/// Gives a claim back whose message was certainly not sent.
///
/// Only the owner's: another may have taken the claim over meanwhile. And a claim that was taken over keeps its id, as
/// the first owner may have sent the message before it died; the next claim goes on with that id at once.
pub(super) fn abandon(db: &Db, key: &str, id: MessageId, owner: &str) -> Result<()> {
    let (doing, id) = ("give an idempotency key back", &id.as_bytes()[..]);
    let which = "WHERE key = ?1 AND id = ?2 AND owner = ?3 AND sent_at IS NULL";
    db.run(doing, &format!("DELETE FROM idempotency {which} AND taken_over = 0"), params![key, id, owner])?;
    db.run(doing, &format!("UPDATE idempotency SET until = 0 {which}"), params![key, id, owner]).map(drop)
}

/// What is known of a key.
pub(super) fn get(db: &Db, key: &str) -> Result<Option<IdempotencyState>> {
    db.first(
        "look up an idempotency key",
        "SELECT id, sent_at FROM idempotency WHERE key = ?1 AND expires_at > ?2",
        params![key, db.now()],
        |row| Ok(IdempotencyState { id: message_id(row, 0)?, sent_at: row.get::<_, Option<i64>>(1)?.map(uint) }),
    )
}

fn find_scope(db: &Db, scope: &str) -> Result<Option<i64>> {
    db.first("look up handled messages", "SELECT id FROM dedupe_scope WHERE name = ?1", [scope], |row| row.get(0))
}

/// Which of the ids were handled.
pub(super) fn seen(db: &Db, scope: &str, ids: &[MessageId]) -> Result<Vec<bool>> {
    let Some(scope) = find_scope(db, scope)? else { return Ok(vec![false; ids.len()]) };
    ids.iter()
        .map(|id| {
            let found = db.first(
                "look up handled messages",
                "SELECT 1 FROM dedupe WHERE scope = ?1 AND id = ?2 AND expires_at > ?3",
                params![scope, &id.as_bytes()[..], db.now()],
                |_| Ok(()),
            )?;
            Ok(found.is_some())
        })
        .collect()
}

/// Notes that the ids were handled.
pub(super) fn done(db: &Db, scope: &str, ids: &[MessageId], window: std::time::Duration) -> Result<()> {
    let doing = "note handled messages";
    let scope = if let Some(scope) = find_scope(db, scope)? {
        scope
    } else {
        db.run(doing, "INSERT INTO dedupe_scope (name) VALUES (?1)", [scope])?;
        db.conn.last_insert_rowid()
    };
    for id in ids {
        db.run(
            doing,
            "INSERT INTO dedupe (scope, id, expires_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (scope, id) DO UPDATE SET expires_at = max(expires_at, excluded.expires_at)",
            params![scope, &id.as_bytes()[..], db.after(window)],
        )?;
    }
    Ok(())
}

/// Drops up to `limit` keys and marks each whose time is over.
pub(super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    let (doing, now, limit) = ("forget old keys", db.now(), int(limit as u64));
    let keys = db.run(
        doing,
        "DELETE FROM idempotency WHERE key IN
             (SELECT key FROM idempotency INDEXED BY idempotency_expires WHERE expires_at <= ?1 AND until <= ?1 LIMIT ?2)",
        params![now, limit],
    )?;
    let marks = db.run(
        doing,
        "DELETE FROM dedupe WHERE (scope, id) IN
             (SELECT scope, id FROM dedupe INDEXED BY dedupe_expires WHERE expires_at <= ?1 LIMIT ?2)",
        params![now, limit],
    )?;
    Ok(keys + marks)
}
