//! Leases and live members.

use std::time::Duration;

use rusqlite::params;

use super::db::{Db, int, uint};
use super::errors::damaged;
use crate::error::Result;
use crate::message::millis;
use crate::store::common::MEMBER_KEPT_MS;
use crate::store::{Address, Member};

/// Takes or renews a lease; its epoch, or `None` if another holds it.
pub(super) fn take(db: &Db, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>> {
    let epoch = db.first(
        "take a lease",
        "INSERT INTO lease (name, owner, epoch, until) VALUES (?1, ?2, 1, ?3)
         ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, epoch = epoch + (owner <> excluded.owner), until = excluded.until
             WHERE owner = excluded.owner OR until <= ?4
         RETURNING epoch",
        params![name, owner, db.after(ttl), db.now()],
        |row| row.get(0),
    )?;
    Ok(epoch.map(uint))
}

/// Gives a lease back. The row stays: its epoch must never be given again.
pub(super) fn release(db: &Db, name: &str, owner: &str) -> Result<()> {
    db.run("give a lease back", "UPDATE lease SET owner = '', until = 0 WHERE name = ?1 AND owner = ?2", params![name, owner]).map(drop)
}

/// Reports members.
pub(super) fn report(db: &Db, members: &[Member]) -> Result<()> {
    for member in members {
        // JSON has no infinity; a rate over no time at all is no rate.
        let rate = if member.rate.is_finite() { member.rate } else { 0.0 };
        let member = Member { last_seen_at: uint(db.wall()), rate, ..member.clone() };
        let body = serde_json::to_string(&member).map_err(|_| crate::Error::input("members", "a member cannot be written as JSON"))?;
        db.run(
            "report a member",
            "INSERT OR REPLACE INTO member (id, product, env, event, last_seen_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![member.id, &*member.address.product, &*member.address.env, member.address.event.as_str(), db.now(), body],
        )?;
    }
    Ok(())
}

/// Members seen within `within`.
pub(super) fn members(db: &Db, address: Option<&Address>, within: Duration) -> Result<Vec<Member>> {
    let bodies: Vec<String> = db.all(
        "read the members",
        "SELECT body FROM member WHERE last_seen_at >= ?1 AND (?2 IS NULL OR (product = ?2 AND env = ?3 AND event = ?4)) ORDER BY id",
        params![
            db.now().saturating_sub(int(millis(within))),
            address.map(|a| &*a.product),
            address.map(|a| &*a.env),
            address.map(|a| a.event.as_str())
        ],
        |row| row.get(0),
    )?;
    bodies.iter().map(|body| serde_json::from_str(body).map_err(|_| damaged("a member cannot be read"))).collect()
}

/// Removes members that left.
pub(super) fn leave(db: &Db, ids: &[String]) -> Result<()> {
    for id in ids {
        db.run("remove a member", "DELETE FROM member WHERE id = ?1", [id])?;
    }
    Ok(())
}

/// Drops members that went silent long ago.
pub(super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    db.run(
        "drop silent members",
        "DELETE FROM member WHERE id IN (SELECT id FROM member WHERE last_seen_at < ?1 LIMIT ?2)",
        params![db.now() - MEMBER_KEPT_MS, int(limit as u64)],
    )
}
