//! The audit: a chain of rows, and where it ends. Who appends holds the row that notes its end, so that hosts append one after
//! the other.

use async_trait::async_trait;
use tokio_postgres::Row;

use super::PostgresStore;
use super::errors::damaged;
use super::link::{Db, retried};
use super::lot::clean;
use crate::audit::{AuditEntry, AuditFilter, AuditRow};
use crate::error::Result;
use crate::store::audit::AuditStore;
use crate::store::common::{int, uint};

type Head = (u64, [u8; 32]);

const HEAD: &str = "SELECT seq, hash FROM audit_head";

fn hash(bytes: &[u8]) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| damaged("a hash of the audit cannot be read"))
}

async fn head(db: &Db, sql: &str) -> Result<Head> {
    let row = db.first("read the end of the audit", sql, &[]).await?.ok_or_else(|| damaged("the audit has no end"))?;
    Ok((uint(row.get(0)), hash(row.get(1))?))
}

/// The entry as it can be stored; the hash is over what is stored.
fn storable(entry: &AuditEntry) -> AuditEntry {
    let AuditEntry { actor, call, target, outcome } = entry;
    AuditEntry { actor: clean(actor), call: clean(call), target: clean(target), outcome: clean(outcome) }
}

/// Appends rows, in a transaction.
async fn append(db: &Db, entries: &[AuditEntry]) -> Result<()> {
    let doing = "write the audit";
    let (mut seq, mut previous) = head(db, &format!("{HEAD} FOR UPDATE")).await?;
    let mut rows = Vec::with_capacity(entries.len());
    for entry in entries {
        let row = AuditRow::after(seq, previous, uint(db.wall()), storable(entry));
        (seq, previous) = (row.seq, row.hash);
        rows.push(row);
    }
    let column = |of: fn(&AuditRow) -> &str| rows.iter().map(of).collect::<Vec<_>>();
    let hashes = |of: fn(&AuditRow) -> &[u8]| rows.iter().map(of).collect::<Vec<_>>();
    let seqs: Vec<i64> = rows.iter().map(|row| int(row.seq)).collect();
    let (actors, calls) = (column(|row| &row.entry.actor), column(|row| &row.entry.call));
    let (targets, outcomes) = (column(|row| &row.entry.target), column(|row| &row.entry.outcome));
    let (before, own) = (hashes(|row| &row.previous), hashes(|row| &row.hash));
    let sql = "INSERT INTO audit (seq, at, actor, call, target, outcome, previous, hash)
        SELECT seq, $2, actor, call, target, outcome, previous, hash
        FROM unnest($1::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::bytea[])
            AS g (seq, actor, call, target, outcome, previous, hash) ORDER BY seq";
    db.run(doing, sql, &[&seqs, &db.wall(), &actors, &calls, &targets, &outcomes, &before, &own]).await?;
    db.run(doing, "UPDATE audit_head SET seq = $1, hash = $2", &[&int(seq), &&previous[..]]).await.map(drop)
}

async fn rows(db: &Db, filter: &AuditFilter, limit: usize, newest_first: bool) -> Result<Vec<AuditRow>> {
    let order = if newest_first { "DESC" } else { "ASC" };
    let sql = format!(
        "SELECT seq, at, actor, call, target, outcome, previous, hash FROM audit
         WHERE ($1::text IS NULL OR actor = $1) AND ($2::text IS NULL OR call = $2) AND ($3::text IS NULL OR strpos(target, $3) > 0)
             AND ($4::text IS NULL OR outcome = $4) AND ($5::bigint IS NULL OR at >= $5) AND ($6::bigint IS NULL OR at < $6)
             AND ($7::bigint IS NULL OR seq > $7) AND ($8::bigint IS NULL OR seq < $8) ORDER BY seq {order} LIMIT $9"
    );
    let text = |text: &Option<String>| text.as_deref().map(clean);
    let (actor, call, target, outcome) = (text(&filter.actor), text(&filter.call), text(&filter.target), text(&filter.outcome));
    let [from, to, after, before] = [filter.from, filter.to, filter.after, filter.before].map(|number| number.map(int));
    let limit = int(limit as u64);
    db.all("read the audit", &sql, &[&actor, &call, &target, &outcome, &from, &to, &after, &before, &limit])
        .await?
        .iter()
        .map(row)
        .collect()
}

fn row(row: &Row) -> Result<AuditRow> {
    let entry = AuditEntry { actor: row.get(2), call: row.get(3), target: row.get(4), outcome: row.get(5) };
    Ok(AuditRow { seq: uint(row.get(0)), at: uint(row.get(1)), entry, previous: hash(row.get(6))?, hash: hash(row.get(7))? })
}

#[async_trait]
impl AuditStore for PostgresStore {
    async fn audit_append(&self, entries: Vec<AuditEntry>) -> Result<()> {
        retried(|| async {
            let db = self.begin().await?;
            append(&db, &entries).await?;
            db.commit().await
        })
        .await
    }

    async fn audit_rows(&self, filter: &AuditFilter, limit: usize, newest_first: bool) -> Result<Vec<AuditRow>> {
        rows(&self.db().await?, filter, limit, newest_first).await
    }

    async fn audit_head(&self) -> Result<Head> {
        head(&self.db().await?, HEAD).await
    }
}
