//! Copies of the store: everything out of it in one snapshot, and into it batch by batch.

use tokio::sync::mpsc;
use tokio_postgres::Row;

use super::errors::damaged;
use super::keeper::channel;
use super::link::Db;
use super::lot::Filed;
use super::{catalog, jobs, lot};
use crate::error::{Error, Result};
use crate::store::common::{int, uint};
use crate::store::transfer::{BATCH, Counts, KeyRecord, Record, base64};

mod rows;

/// The rows of a page.
const PAGE: i64 = BATCH as i64;

async fn send(to: &mpsc::Sender<Vec<Record>>, batch: Vec<Record>) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    to.send(batch).await.map_err(|_| Error::store("the copy was given up").reason("given_up"))
}

/// Sends everything; in a transaction that sees one moment.
pub(super) async fn export(db: &Db, to: &mpsc::Sender<Vec<Record>>) -> Result<()> {
    let docs = catalog::read(db).await?.1;
    send(to, docs.into_iter().map(|doc| Record::Doc { kind: doc.kind, path: doc.path, body: doc.body }).collect()).await?;
    let mut after = 0_i64;
    loop {
        let rows = db.all("copy the lot", "SELECT seq FROM lot WHERE seq > $1 ORDER BY seq LIMIT $2", &[&after, &PAGE]).await?;
        let seqs: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let Some(last) = seqs.last() else { break };
        after = *last;
        let entries = lot::load(db, &seqs).await?;
        send(to, entries.iter().map(|entry| Record::Entry(Box::new(entry.into()))).collect()).await?;
    }
    for (number, (query, record)) in ROWS.iter().chain(&rows::ROWS).enumerate() {
        paged(db, to, number, query, *record).await?;
    }
    for row in db.all("copy the jobs", "SELECT id FROM job ORDER BY id", &[]).await? {
        if let Some(job) = jobs::get(db, row.get(0)).await? {
            send(to, vec![Record::Job(Box::new(job))]).await?;
        }
    }
    Ok(())
}

/// All rows of a query, a page at a time. Each query has a cursor of its own name: what is fetched from one is prepared once,
/// with its columns.
async fn paged(db: &Db, to: &mpsc::Sender<Vec<Record>>, number: usize, query: &str, record: Read) -> Result<()> {
    let doing = "copy the store";
    db.batch(doing, &format!("DECLARE page_{number} CURSOR FOR {query}")).await?;
    loop {
        let rows = db.all(doing, &format!("FETCH {PAGE} FROM page_{number}"), &[]).await?;
        if rows.is_empty() {
            break;
        }
        send(to, rows.iter().map(record).collect::<Result<_>>()?).await?;
    }
    db.batch(doing, &format!("CLOSE page_{number}")).await
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| damaged("a key is no text"))
}

type Read = fn(&Row) -> Result<Record>;

const ROWS: [(&str, Read); 4] = [
    ("SELECT key, hash, id, sent_at, keep, expires_at FROM idempotency", |row| {
        Ok(Record::Key(Box::new(KeyRecord {
            key: text(row.get(0))?,
            hash: base64(row.get(1)),
            id: row.get(2),
            sent_at: row.get::<_, Option<i64>>(3).map(uint),
            keep: uint(row.get(4)),
            expires_at: uint(row.get(5)),
        })))
    }),
    ("SELECT scope, id, expires_at FROM dedupe", |row| {
        Ok(Record::Handled { scope: text(row.get(0))?, id: row.get(1), expires_at: uint(row.get(2)) })
    }),
    ("SELECT name, epoch FROM lease", |row| Ok(Record::Lease { name: row.get(0), epoch: uint(row.get(1)) })),
    ("SELECT t.product, t.env, t.broker, t.topic, t.grp, i.next FROM lot_indexed i JOIN target t ON t.id = i.target", |row| {
        let address = lot::address(row, 0)?;
        Ok(Record::Indexed { address, group: row.get(4), next: row.get::<_, i64>(5).cast_unsigned() })
    }),
];

/// Takes records in, in a transaction. `targets` are the numbers of the addresses in them, in their order.
pub(super) async fn import(db: &Db, schema: &str, records: &[Record], targets: &[i64]) -> Result<()> {
    let doing = "take a copy in";
    let mut targets = targets.iter();
    let mut target = || targets.next().copied().ok_or_else(|| damaged("an entry of the copy has no topic"));
    let mut entries = Vec::new();
    let mut docs = 0;
    for record in records {
        match record {
            // These follow the catalogue's version too.
            Record::Secret(_) | Record::AccessKey(_) => docs += rows::put(db, record).await?,
            Record::Doc { kind, path, body } => {
                let sql = "INSERT INTO doc (kind, path, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
                docs += db.run(doing, sql, &[&catalog::word(*kind), path, &body.to_string()]).await?;
            }
            Record::Entry(entry) => entries.push((target()?, entry.entry()?)),
            Record::Key(key) => {
                let sql = "INSERT INTO idempotency (key, hash, id, owner, until, sent_at, keep, expires_at, taken_over)
                    VALUES ($1, $2, $3, '', 0, $4, $5, $6, true) ON CONFLICT DO NOTHING";
                let (hash, sent) = (key.hash_bytes()?, key.sent_at.map(int));
                db.run(doing, sql, &[&key.key.as_bytes(), &hash, &key.id, &sent, &int(key.keep), &int(key.expires_at)]).await?;
            }
            Record::Handled { scope, id, expires_at } => {
                let sql = "INSERT INTO dedupe (scope, id, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
                db.run(doing, sql, &[&scope.as_bytes(), id, &int(*expires_at)]).await?;
            }
            Record::Job(job) => jobs::put(db, job).await?,
            Record::Lease { name, epoch } => {
                let sql = "INSERT INTO lease (name, owner, epoch, until) VALUES ($1, '', $2, 0) ON CONFLICT DO NOTHING";
                db.run(doing, sql, &[name, &int(*epoch)]).await?;
            }
            Record::Indexed { next, .. } => {
                let sql = "INSERT INTO lot_indexed (target, next) VALUES ($1, $2) ON CONFLICT DO NOTHING";
                db.run(doing, sql, &[&target()?, &next.cast_signed()]).await?;
            }
            other => drop(rows::put(db, other).await?),
        }
    }
    entries_in(db, schema, &entries).await?;
    if docs > 0 { changed(db, schema).await } else { Ok(()) }
}

/// Entries under their own numbers, with their hand-overs without an outcome.
async fn entries_in(db: &Db, schema: &str, entries: &[Filed]) -> Result<()> {
    let doing = "take a copy in";
    if entries.is_empty() {
        return Ok(());
    }
    lot::put_chained(db, schema, entries).await?;
    let column = |of: fn(&Filed) -> i64| entries.iter().map(of).collect::<Vec<i64>>();
    let (targets, seqs, lost) = (column(|f| f.0), column(|f| int(f.1.seq)), column(|f| i64::from(f.1.deliveries)));
    let ids: Vec<uuid::Uuid> = entries.iter().map(|(_, entry)| entry.message.id.0).collect();
    // New numbers are taken from above all of these, so that no number is given twice on the way.
    let moved = "WITH g AS (SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::bigint[]) AS g (target, id, seq, lost)),
        body AS (
            UPDATE lot_body b SET seq = g.seq FROM g, lot l WHERE l.target = g.target AND l.id = g.id AND b.seq = l.seq AND l.seq <> g.seq
            RETURNING b.seq
        )
        UPDATE lot l SET seq = g.seq, lost = g.lost FROM g WHERE l.target = g.target AND l.id = g.id";
    db.run(doing, moved, &[&targets, &ids, &seqs, &lost]).await?;
    let next = "SELECT setval(pg_get_serial_sequence('lot', 'seq'), (SELECT max(seq) FROM lot))";
    db.run(doing, next, &[]).await.map(drop)
}

async fn changed(db: &Db, schema: &str) -> Result<()> {
    let doing = "take a copy in";
    db.run(doing, "UPDATE meta SET value = value + 1 WHERE name = 'catalog_version'", &[]).await?;
    db.run(doing, "SELECT pg_notify($1, '')", &[&channel(schema)]).await.map(drop)
}

/// How many records there are.
pub(super) async fn counts(db: &Db) -> Result<Counts> {
    let row = db.first("count the store", &Counts::query(), &[]).await?.ok_or_else(|| damaged("it cannot be counted"))?;
    Ok(Counts::of(std::array::from_fn(|at| uint(row.get(at)))))
}

/// Removes every record, the audit with them, in a transaction: what takes their place brings its own.
pub(super) async fn clear(db: &Db, schema: &str) -> Result<()> {
    rows::clear_audit(db).await?;
    let tables: Vec<&str> = Counts::TABLES.into_iter().filter(|table| !["doc", "audit"].contains(table)).collect();
    let sql = format!("DELETE FROM doc; TRUNCATE {}, lot_body, lot_start, lot_indexed", tables.join(", "));
    db.batch("empty the store", &sql).await?;
    changed(db, schema).await
}
