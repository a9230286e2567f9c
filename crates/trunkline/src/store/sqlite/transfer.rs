//! Copies of the store: everything out of it in one read transaction, and into it batch by batch.

use rusqlite::{Row, params};
use tokio::sync::mpsc;

use super::db::{Db, int, message_id, uint};
use super::errors::{Doing, damaged};
use super::{jobs, lot};
use crate::error::{Error, Result};
use crate::store::DocKind;
use crate::store::transfer::{BATCH, Counts, KeyRecord, Record, base64};

mod rows;

/// Where batches go; it waits until the one before was taken.
struct Out<'a> {
    to: &'a mpsc::Sender<Vec<Record>>,
    batch: Vec<Record>,
}

impl Out<'_> {
    fn push(&mut self, record: Record) -> Result<()> {
        self.batch.push(record);
        if self.batch.len() >= BATCH { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.to.blocking_send(std::mem::take(&mut self.batch)).map_err(|_| Error::store("the copy was given up").reason("given_up"))
    }
}

/// Sends everything.
pub(super) fn export(db: &Db, to: &mpsc::Sender<Vec<Record>>) -> Result<()> {
    let mut out = Out { to, batch: Vec::with_capacity(BATCH) };
    for doc in super::catalog::read(db)?.1 {
        out.push(Record::Doc { kind: doc.kind, path: doc.path, body: doc.body })?;
    }
    let mut after = 0;
    loop {
        let seqs: Vec<i64> =
            db.all("copy the lot", "SELECT seq FROM lot WHERE seq > ?1 ORDER BY seq LIMIT ?2", params![after, BATCH as i64], |row| {
                row.get(0)
            })?;
        let Some(last) = seqs.last() else { break };
        after = *last;
        for entry in lot::load(db, &seqs)? {
            out.push(Record::Entry(Box::new((&entry).into())))?;
        }
    }
    for (sql, read) in ROWS.iter().chain(&rows::ROWS) {
        stream(db, sql, *read, &mut out)?;
    }
    for id in db.all("copy the jobs", "SELECT id FROM job ORDER BY id", [], |row| row.get::<_, String>(0))? {
        if let Some(job) = jobs::get(db, &id)? {
            out.push(Record::Job(Box::new(job)))?;
        }
    }
    let indexed = db.all("copy the index", "SELECT target, next FROM lot_indexed", [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    for (target, next) in indexed {
        let (address, group) = db.target_name(target)?;
        out.push(Record::Indexed { address, group: group.to_string(), next: next.cast_unsigned() })?;
    }
    out.send()
}

/// Sends the rows of a query one after the other, so that no table has to fit into memory.
fn stream(db: &Db, sql: &str, read: Read, out: &mut Out<'_>) -> Result<()> {
    let doing = "copy the store";
    let mut statement = db.conn.prepare_cached(sql).doing(doing)?;
    let mut found = statement.query([]).doing(doing)?;
    while let Some(row) = found.next().doing(doing)? {
        out.push(read(row).doing(doing)?)?;
    }
    Ok(())
}

type Read = fn(&Row<'_>) -> rusqlite::Result<Record>;

const ROWS: [(&str, Read); 3] = [
    ("SELECT key, hash, id, sent_at, window, expires_at FROM idempotency ORDER BY key", |row| {
        Ok(Record::Key(Box::new(KeyRecord {
            key: row.get(0)?,
            hash: base64(&row.get::<_, Vec<u8>>(1)?),
            id: message_id(row, 2)?.0,
            sent_at: row.get::<_, Option<i64>>(3)?.map(uint),
            keep: uint(row.get(4)?),
            expires_at: uint(row.get(5)?),
        })))
    }),
    ("SELECT s.name, d.id, d.expires_at FROM dedupe d JOIN dedupe_scope s ON s.id = d.scope", |row| {
        Ok(Record::Handled { scope: row.get(0)?, id: message_id(row, 1)?.0, expires_at: uint(row.get(2)?) })
    }),
    ("SELECT name, epoch FROM lease", |row| Ok(Record::Lease { name: row.get(0)?, epoch: uint(row.get(1)?) })),
];

/// Takes records in.
pub(super) fn import(db: &Db, records: &[Record]) -> Result<()> {
    let mut docs = 0;
    for record in records {
        match record {
            // These follow the catalogue's version too.
            Record::Secret(_) | Record::AccessKey(_) => docs += rows::put(db, record)?,
            Record::Doc { kind, path, body } => docs += doc(db, *kind, path, &body.to_string())?,
            Record::Entry(entry) => {
                let entry = entry.entry()?;
                let known = db.first("take a copy in", "SELECT 1 FROM lot WHERE seq = ?1", [int(entry.seq)], |_| Ok(()))?;
                if known.is_none() {
                    lot::put_as(db, &entry)?;
                }
            }
            Record::Key(key) => drop(db.run(
                "take a copy in",
                "INSERT OR IGNORE INTO idempotency (key, hash, id, owner, until, sent_at, window, expires_at, taken_over)
                 VALUES (?1, ?2, ?3, '', 0, ?4, ?5, ?6, 1)",
                params![key.key, key.hash_bytes()?, &key.id.as_bytes()[..], key.sent_at.map(int), int(key.keep), int(key.expires_at)],
            )?),
            Record::Handled { scope, id, expires_at } => {
                db.run("take a copy in", "INSERT OR IGNORE INTO dedupe_scope (name) VALUES (?1)", [scope])?;
                db.run(
                    "take a copy in",
                    "INSERT OR IGNORE INTO dedupe (scope, id, expires_at) SELECT id, ?2, ?3 FROM dedupe_scope WHERE name = ?1",
                    params![scope, &id.as_bytes()[..], int(*expires_at)],
                )?;
            }
            Record::Job(job) => jobs::put(db, job)?,
            Record::Lease { name, epoch } => drop(db.run(
                "take a copy in",
                "INSERT OR IGNORE INTO lease (name, owner, epoch, until) VALUES (?1, '', ?2, 0)",
                params![name, int(*epoch)],
            )?),
            Record::Indexed { address, group, next } => {
                let target = db.target(address, &group.as_str().into())?;
                db.run(
                    "take a copy in",
                    "INSERT OR IGNORE INTO lot_indexed (target, next) VALUES (?1, ?2)",
                    params![target, next.cast_signed()],
                )?;
            }
            other => drop(rows::put(db, other)?),
        }
    }
    if docs > 0 { changed(db) } else { Ok(()) }
}

fn doc(db: &Db, kind: DocKind, path: &str, body: &str) -> Result<usize> {
    let sql = "INSERT OR IGNORE INTO doc (kind, path, body) VALUES (?1, ?2, ?3)";
    db.run("take a copy in", sql, params![super::catalog::word(kind), path, body])
}

fn changed(db: &Db) -> Result<()> {
    db.run("take a copy in", "UPDATE meta SET value = value + 1 WHERE name = 'catalog_version'", []).map(drop)
}

/// How many records there are.
pub(super) fn counts(db: &Db) -> Result<Counts> {
    let found = db.first("count the store", &Counts::query(), [], |row| {
        let mut counts = [0; Counts::TABLES.len()];
        for (at, count) in counts.iter_mut().enumerate() {
            *count = uint(row.get(at)?);
        }
        Ok(Counts::of(counts))
    })?;
    found.ok_or_else(|| damaged("it cannot be counted"))
}

/// Removes every record, the audit with them: what takes their place brings its own.
pub(super) fn clear(db: &Db) -> Result<()> {
    rows::clear_audit(db)?;
    for table in ["session_refresh", "lot_start", "lot_indexed"].iter().chain(Counts::TABLES.iter().filter(|table| **table != "audit")) {
        db.run("empty the store", &format!("DELETE FROM {table}"), [])?;
    }
    changed(db)
}
