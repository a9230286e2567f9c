//! Leases and live members.

use std::time::Duration;

use super::errors::damaged;
use super::link::Db;
use crate::error::{Error, Result};
use crate::message::millis;
use crate::store::common::{MEMBER_KEPT_MS, int, uint};
use crate::store::{Address, Member};

/// Takes or renews a lease; its epoch, or `None` if another holds it.
pub(super) async fn take(db: &Db, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>> {
    let sql = "INSERT INTO lease AS l (name, owner, epoch, until) VALUES ($1, $2, 1, $3)
        ON CONFLICT (name) DO UPDATE
            SET owner = excluded.owner, epoch = l.epoch + (l.owner <> excluded.owner)::int, until = excluded.until
            WHERE l.owner = excluded.owner OR l.until <= $4
        RETURNING epoch";
    let row = db.first("take a lease", sql, &[&name, &owner, &db.after(ttl), &db.now()]).await?;
    Ok(row.map(|row| uint(row.get(0))))
}

/// Gives a lease back. The row stays: its epoch must never be given again.
pub(super) async fn release(db: &Db, name: &str, owner: &str) -> Result<()> {
    let sql = "UPDATE lease SET owner = '', until = 0 WHERE name = $1 AND owner = $2";
    db.run("give a lease back", sql, &[&name, &owner]).await.map(drop)
}

/// Reports members.
pub(super) async fn report(db: &Db, members: &[Member]) -> Result<()> {
    let sql = "INSERT INTO member (id, product, env, event, last_seen_at, body) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (id) DO UPDATE SET product = excluded.product, env = excluded.env, event = excluded.event,
            last_seen_at = excluded.last_seen_at, body = excluded.body";
    for member in members {
        // JSON has no infinity; a rate over no time at all is no rate.
        let rate = if member.rate.is_finite() { member.rate } else { 0.0 };
        let member = Member { last_seen_at: uint(db.wall()), rate, ..member.clone() };
        let body = serde_json::to_string(&member).map_err(|_| Error::input("members", "a member cannot be written as JSON"))?;
        let Address { product, env, event } = &member.address;
        db.run("report a member", sql, &[&member.id, &&**product, &&**env, &event.as_str(), &db.now(), &body]).await?;
    }
    Ok(())
}

/// Members seen within `within`.
pub(super) async fn members(db: &Db, address: Option<&Address>, within: Duration) -> Result<Vec<Member>> {
    let sql = "SELECT body FROM member
        WHERE last_seen_at >= $1 AND ($2::text IS NULL OR (product = $2 AND env = $3 AND event = $4)) ORDER BY id COLLATE \"C\"";
    let since = db.now().saturating_sub(int(millis(within)));
    let [product, env] = [address.map(|a| &*a.product), address.map(|a| &*a.env)];
    let rows = db.all("read the members", sql, &[&since, &product, &env, &address.map(|a| a.event.as_str())]).await?;
    rows.iter().map(|row| serde_json::from_str(row.get(0)).map_err(|_| damaged("a member cannot be read"))).collect()
}

/// Removes members that left.
pub(super) async fn leave(db: &Db, ids: &[String]) -> Result<()> {
    db.run("remove members", "DELETE FROM member WHERE id = ANY($1)", &[&ids]).await.map(drop)
}

/// Drops members that went silent long ago.
pub(super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let sql = "DELETE FROM member WHERE id IN (SELECT id FROM member WHERE last_seen_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    db.run("drop silent members", sql, &[&(db.now() - MEMBER_KEPT_MS), &limit]).await
}
