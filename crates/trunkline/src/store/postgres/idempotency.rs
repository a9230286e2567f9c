//! Idempotency keys of producers, and the ids that consumers have handled.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::Row;
use uuid::Uuid;

use super::link::Db;
use crate::error::{Error, Result};
use crate::message::{MessageId, millis};
use crate::store::common::{int, uint};
use crate::store::{Claimed, IdempotencyClaim, IdempotencyState};

/// How often keys are claimed anew that came and went while they were looked at.
const ROUNDS: usize = 20;

/// Claims all keys with one statement: what is free, expired or left behind becomes ours, the rest is looked at. Rows are
/// taken in the order of keys, so that two claims never wait for each other.
const CLAIM: &str = "WITH given AS (
    SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[])
        AS g (key, hash, id, owner, until, keep, expires_at)
), ours AS (
    INSERT INTO idempotency AS i (key, hash, id, owner, until, sent_at, keep, expires_at, taken_over)
    SELECT key, hash, id, owner, until, NULL, keep, expires_at, false FROM given ORDER BY key
    ON CONFLICT (key) DO UPDATE SET
        hash = excluded.hash, owner = excluded.owner, until = excluded.until, keep = excluded.keep, expires_at = excluded.expires_at,
        id = CASE WHEN i.expires_at > $8 THEN i.id ELSE excluded.id END, sent_at = NULL, taken_over = i.expires_at > $8
    WHERE i.expires_at <= $8 OR (i.hash = excluded.hash AND i.sent_at IS NULL AND i.until <= $8)
    RETURNING key, id
)
SELECT key, id, NULL::bytea, NULL::bigint, NULL::bigint, true FROM ours
UNION ALL
SELECT key, id, hash, until, sent_at, false FROM idempotency
WHERE key IN (SELECT key FROM given) AND key NOT IN (SELECT key FROM ours)";

/// Claims keys, each on its own.
pub(super) async fn claim(db: &Db, claims: &[IdempotencyClaim]) -> Result<Vec<Claimed>> {
    let mut out: Vec<Option<Claimed>> = vec![None; claims.len()];
    for _ in 0..ROUNDS {
        // A key that comes twice has its turn after the first.
        let mut seen = HashSet::new();
        let turn: Vec<usize> = (0..claims.len()).filter(|at| out[*at].is_none() && seen.insert(claims[*at].key.as_str())).collect();
        if turn.is_empty() {
            return Ok(out.into_iter().flatten().collect());
        }
        let found = claim_once(db, claims, &turn).await?;
        for at in turn {
            out[at] = found.get(claims[at].key.as_bytes()).map(|row| verdict(row, &claims[at]));
        }
    }
    Err(Error::store("idempotency keys are being claimed and given back by too many processes at once").reason("busy").with_retryable(true))
}

async fn claim_once(db: &Db, claims: &[IdempotencyClaim], turn: &[usize]) -> Result<HashMap<Vec<u8>, Row>> {
    fn column<'c, T>(claims: &'c [IdempotencyClaim], turn: &[usize], of: impl Fn(&'c IdempotencyClaim) -> T) -> Vec<T> {
        turn.iter().map(|at| of(&claims[*at])).collect()
    }
    let keys = column(claims, turn, |claim| claim.key.as_bytes());
    let hashes = column(claims, turn, |claim| &claim.hash[..]);
    let ids = column(claims, turn, |claim| claim.id.0);
    let owners = column(claims, turn, |claim| claim.owner.as_str());
    let until = column(claims, turn, |claim| db.after(claim.lease));
    let keep = column(claims, turn, |claim| int(millis(claim.window)));
    // A claim is remembered at least as long as its result would be: whoever takes it over needs its id.
    let expires = column(claims, turn, |claim| db.after(claim.window.max(claim.lease)));
    let rows = db.all("claim idempotency keys", CLAIM, &[&keys, &hashes, &ids, &owners, &until, &keep, &expires, &db.now()]).await?;
    Ok(rows.into_iter().map(|row| (row.get::<_, Vec<u8>>(0), row)).collect())
}

fn verdict(row: &Row, claim: &IdempotencyClaim) -> Claimed {
    let id = MessageId(row.get(1));
    if row.get(5) {
        return Claimed::Ours(id);
    }
    if row.get::<_, Option<&[u8]>>(2) != Some(&claim.hash[..]) {
        return Claimed::Conflict;
    }
    match row.get::<_, Option<i64>>(4) {
        Some(at) => Claimed::Sent { id, at: uint(at) },
        None => Claimed::InProgress { until: row.get::<_, Option<i64>>(3).map_or(0, uint) },
    }
}

/// Notes that messages were confirmed.
pub(super) async fn sent(db: &Db, keys: &[(String, MessageId)]) -> Result<()> {
    let (names, ids): (Vec<&[u8]>, Vec<Uuid>) = keys.iter().map(|(key, id)| (key.as_bytes(), id.0)).unzip();
    let sql = "WITH given AS (SELECT * FROM unnest($1::bytea[], $2::uuid[]) AS g (key, id)), mine AS (
            SELECT i.key FROM idempotency i JOIN given g USING (key, id) WHERE i.sent_at IS NULL ORDER BY i.key FOR UPDATE OF i
        ) UPDATE idempotency i SET sent_at = $3, expires_at = $3 + i.keep FROM mine WHERE i.key = mine.key AND i.sent_at IS NULL";
    db.run("note confirmed messages", sql, &[&names, &ids, &db.now()]).await.map(drop)
}

/// Gives a claim back whose message was certainly not sent.
///
/// Only the owner's: another may have taken the claim over meanwhile. And a claim that was taken over keeps its id, as
/// the first owner may have sent the message before it died; the next claim goes on with that id at once.
pub(super) async fn abandon(db: &Db, key: &str, id: MessageId, owner: &str) -> Result<()> {
    let doing = "give an idempotency key back";
    let sql = "WITH kept AS (
            UPDATE idempotency SET until = 0 WHERE key = $1 AND id = $2 AND owner = $3 AND sent_at IS NULL AND taken_over RETURNING key
        ) DELETE FROM idempotency WHERE key = $1 AND id = $2 AND owner = $3 AND sent_at IS NULL AND NOT taken_over";
    db.run(doing, sql, &[&key.as_bytes(), &id.0, &owner]).await.map(drop)
}

/// What is known of a key.
pub(super) async fn get(db: &Db, key: &str) -> Result<Option<IdempotencyState>> {
    let sql = "SELECT id, sent_at FROM idempotency WHERE key = $1 AND expires_at > $2";
    let row = db.first("look up an idempotency key", sql, &[&key.as_bytes(), &db.now()]).await?;
    Ok(row.map(|row| IdempotencyState { id: MessageId(row.get(0)), sent_at: row.get::<_, Option<i64>>(1).map(uint) }))
}

/// Which of the ids were handled.
pub(super) async fn seen(db: &Db, scope: &str, ids: &[MessageId]) -> Result<Vec<bool>> {
    let wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let sql = "SELECT id FROM dedupe WHERE scope = $1 AND id = ANY($2) AND expires_at > $3";
    let rows = db.all("look up handled messages", sql, &[&scope.as_bytes(), &wanted, &db.now()]).await?;
    let found: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    Ok(ids.iter().map(|id| found.contains(&id.0)).collect())
}

/// A message that was handled: scope, id, and how long that is remembered.
pub(super) type Handled = (std::sync::Arc<str>, MessageId, Duration);

/// Notes that messages were handled.
pub(super) async fn done(db: &Db, handled: &[Handled]) -> Result<()> {
    // One row of a statement must not meet another of it.
    let mut last: HashMap<(&[u8], Uuid), i64> = HashMap::new();
    for (scope, id, window) in handled {
        let until = last.entry((scope.as_bytes(), id.0)).or_default();
        *until = db.after(*window).max(*until);
    }
    let mut scopes = Vec::with_capacity(last.len());
    let mut ids = Vec::with_capacity(last.len());
    let mut until = Vec::with_capacity(last.len());
    for ((scope, id), at) in last {
        scopes.push(scope);
        ids.push(id);
        until.push(at);
    }
    let sql = "INSERT INTO dedupe AS d (scope, id, expires_at)
        SELECT * FROM unnest($1::bytea[], $2::uuid[], $3::bigint[]) AS g (scope, id, expires_at) ORDER BY scope, id
        ON CONFLICT (scope, id) DO UPDATE SET expires_at = greatest(d.expires_at, excluded.expires_at)";
    db.run("note handled messages", sql, &[&scopes, &ids, &until]).await.map(drop)
}

/// Drops up to `limit` keys and marks each whose time is over.
pub(super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let doing = "forget old keys";
    let keys = "DELETE FROM idempotency WHERE key IN (
        SELECT key FROM idempotency WHERE expires_at <= $1 AND until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    let marks = "DELETE FROM dedupe WHERE (scope, id) IN (
        SELECT scope, id FROM dedupe WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    Ok(db.run(doing, keys, &[&db.now(), &limit]).await? + db.run(doing, marks, &[&db.now(), &limit]).await?)
}
