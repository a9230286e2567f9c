//! The audit: a chain of rows, and where it ends.

use async_trait::async_trait;
use rusqlite::params;

use super::SqliteStore;
use super::db::{Db, int, uint};
use super::errors::damaged;
use crate::audit::{AuditEntry, AuditFilter, AuditRow};
use crate::error::Result;
use crate::store::audit::AuditStore;

type Head = (u64, [u8; 32]);

fn hash(bytes: Vec<u8>) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| damaged("a hash of the audit cannot be read"))
}

fn head(db: &Db) -> Result<Head> {
    let found = db.first("read the end of the audit", "SELECT seq, hash FROM audit_head", [], |row| {
        Ok((uint(row.get(0)?), row.get::<_, Vec<u8>>(1)?))
    })?;
    let (seq, bytes) = found.ok_or_else(|| damaged("the audit has no end"))?;
    Ok((seq, hash(bytes)?))
}

fn append(db: &Db, entries: &[AuditEntry]) -> Result<()> {
    let doing = "write the audit";
    let (mut seq, mut previous) = head(db)?;
    let at = db.wall();
    for entry in entries {
        let row = AuditRow::after(seq, previous, uint(at), entry.clone());
        db.run(
            doing,
            "INSERT INTO audit (seq, at, actor, call, target, outcome, previous, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![int(row.seq), at, entry.actor, entry.call, entry.target, entry.outcome, &row.previous[..], &row.hash[..]],
        )?;
        (seq, previous) = (row.seq, row.hash);
    }
    db.run(doing, "UPDATE audit_head SET seq = ?1, hash = ?2", params![int(seq), &previous[..]]).map(drop)
}

fn rows(db: &Db, filter: &AuditFilter, limit: usize, newest_first: bool) -> Result<Vec<AuditRow>> {
    let order = if newest_first { "DESC" } else { "ASC" };
    let sql = format!(
        "SELECT seq, at, actor, call, target, outcome, previous, hash FROM audit
         WHERE (?1 IS NULL OR actor = ?1) AND (?2 IS NULL OR call = ?2) AND (?3 IS NULL OR instr(target, ?3) > 0)
             AND (?4 IS NULL OR outcome = ?4) AND (?5 IS NULL OR at >= ?5) AND (?6 IS NULL OR at < ?6)
             AND (?7 IS NULL OR seq > ?7) AND (?8 IS NULL OR seq < ?8) ORDER BY seq {order} LIMIT ?9"
    );
    let found = db.all(
        "read the audit",
        &sql,
        params![
            filter.actor,
            filter.call,
            filter.target,
            filter.outcome,
            filter.from.map(int),
            filter.to.map(int),
            filter.after.map(int),
            filter.before.map(int),
            int(limit as u64)
        ],
        |row| {
            let entry = AuditEntry { actor: row.get(2)?, call: row.get(3)?, target: row.get(4)?, outcome: row.get(5)? };
            let bytes: (Vec<u8>, Vec<u8>) = (row.get(6)?, row.get(7)?);
            Ok((AuditRow { seq: uint(row.get(0)?), at: uint(row.get(1)?), entry, previous: [0; 32], hash: [0; 32] }, bytes))
        },
    )?;
    found.into_iter().map(|(row, (previous, own))| Ok(AuditRow { previous: hash(previous)?, hash: hash(own)?, ..row })).collect()
}

#[async_trait]
impl AuditStore for SqliteStore {
    async fn audit_append(&self, entries: Vec<AuditEntry>) -> Result<()> {
        self.write(entries.len(), move |db| append(db, &entries)).await
    }

    async fn audit_rows(&self, filter: &AuditFilter, limit: usize, newest_first: bool) -> Result<Vec<AuditRow>> {
        let filter = filter.clone();
        self.read(move |db| rows(db, &filter, limit, newest_first)).await
    }

    async fn audit_head(&self) -> Result<Head> {
        self.read(head).await
    }
}
