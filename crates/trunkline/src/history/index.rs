//! The index: where each block lies and how far its ids reach, the roll-ups, and the gaps. One SQLite file, many processes.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, Transaction, TransactionBehavior, params};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::message::Millis;

use super::encode::Meta;
use super::levels::SPANS;
use super::rollup::{Counts, Deltas, WIDTHS};
use super::{Capture, Class};

/// The format of the index; a newer one is not touched.
const FORMAT: i64 = 1;
const APPLICATION: i64 = 0x544c_4849;

// AUTOINCREMENT where other processes remember the ids: none may come back as another file.
const SCHEMA: &str = "
CREATE TABLE file (
    id INTEGER PRIMARY KEY AUTOINCREMENT, class TEXT NOT NULL, age_ms INTEGER NOT NULL, class_bytes INTEGER NOT NULL,
    day INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, live INTEGER NOT NULL);
CREATE TABLE block (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL, level INTEGER NOT NULL, gen INTEGER NOT NULL,
    id_from INTEGER NOT NULL, id_to INTEGER NOT NULL, offset INTEGER NOT NULL, len INTEGER NOT NULL,
    records INTEGER NOT NULL, messages INTEGER NOT NULL, head INTEGER NOT NULL, top INTEGER NOT NULL, bundle INTEGER);
CREATE TABLE bundle (id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL, offset INTEGER NOT NULL, len INTEGER NOT NULL);
CREATE INDEX block_start ON block (level, id_from, id_to);
CREATE INDEX block_end ON block (id_to, id, file, gen, offset, len, level, id_from, records, messages, head, top, bundle);
CREATE INDEX block_asc ON block (id_from, id);
CREATE INDEX block_file ON block (file);
CREATE INDEX block_small ON block (gen, level, id_from) WHERE gen < 4;
CREATE INDEX block_loose ON block (file, id_from) WHERE gen >= 4 AND bundle IS NULL;
CREATE TABLE series (
    id INTEGER PRIMARY KEY, product TEXT NOT NULL, env TEXT NOT NULL, broker TEXT NOT NULL, topic TEXT NOT NULL,
    grp TEXT NOT NULL, UNIQUE (product, env, broker, topic, grp));
CREATE TABLE rollup (
    width INTEGER NOT NULL, series INTEGER NOT NULL, start INTEGER NOT NULL, counts BLOB NOT NULL,
    PRIMARY KEY (width, series, start)) WITHOUT ROWID;
CREATE TABLE gap (id INTEGER PRIMARY KEY, gap_from INTEGER NOT NULL, gap_to INTEGER NOT NULL, count INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE replayed (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE dropped (one INTEGER PRIMARY KEY CHECK (one = 1), id_to INTEGER NOT NULL);
CREATE TABLE freed (id INTEGER PRIMARY KEY, file INTEGER NOT NULL, offset INTEGER NOT NULL, len INTEGER NOT NULL, at INTEGER NOT NULL);
";

/// A time of which records are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// The first that is missing was to be recorded at, in ms.
    pub from: Millis,
    /// The last.
    pub to: Millis,
    /// How many records.
    pub count: u64,
    /// `overflow`, `spill_full`, `build`; in a page also `damaged`, `newer`.
    pub reason: String,
}

/// A block as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRow {
    pub(super) id: i64,
    pub(super) file: i64,
    pub(super) generation: u8,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) meta: Meta,
    /// The bundle it belongs to; 0 if it stays by itself.
    pub(super) bundle: Option<i64>,
}

/// The columns of [`BlockRow`], in the order [`block_row`] reads them.
pub(super) const BLOCK: &str = "id, file, gen, offset, len, level, id_from, id_to, records, messages, head, top, bundle";

/// Reads the columns of [`BLOCK`].
pub(super) fn block_row(row: &SqlRow<'_>) -> rusqlite::Result<BlockRow> {
    Ok(BlockRow {
        id: row.get(0)?,
        file: row.get(1)?,
        generation: row.get(2)?,
        offset: row.get::<_, i64>(3)? as u64,
        len: row.get(4)?,
        meta: Meta {
            level: row.get(5)?,
            id_from: row.get::<_, i64>(6)? as u64,
            id_to: row.get::<_, i64>(7)? as u64,
            records: row.get(8)?,
            messages: row.get(9)?,
            head: row.get(10)?,
            top: row.get(11)?,
        },
        bundle: row.get(12)?,
    })
}

/// The same columns, of the table by this name.
pub(super) fn columns_of(table: &str) -> String {
    BLOCK.split(", ").map(|column| format!("{table}.{column}")).collect::<Vec<_>>().join(", ")
}

/// A block to be written to the index.
#[derive(Debug, Clone)]
pub(super) struct NewBlock<'a> {
    pub(super) class: Class,
    pub(super) day: u32,
    /// Relative to the history's directory.
    pub(super) file: &'a str,
    pub(super) generation: u8,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) meta: Meta,
}

/// All that becomes visible at once.
#[derive(Debug, Default)]
pub(super) struct Change<'a> {
    pub(super) blocks: Vec<NewBlock<'a>>,
    pub(super) deltas: Option<&'a Deltas>,
    pub(super) gaps: &'a [Gap],
    /// Blocks that the new ones replace.
    pub(super) removed: &'a [BlockRow],
    /// A spill file this change comes from: it is applied once.
    pub(super) once: Option<&'a str>,
    pub(super) now: Millis,
}

/// A typed error from what SQLite says.
pub(super) fn failed(doing: &str) -> impl Fn(rusqlite::Error) -> Error + '_ {
    move |e| {
        let reason = match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => "damaged",
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => "busy",
            Some(rusqlite::ErrorCode::DiskFull) => "disk_full",
            Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::CannotOpen) => "read_only",
            _ => "index",
        };
        let error = Error::store(format!("{doing} failed: {e}")).reason(reason).with_retryable(reason == "busy");
        if reason != "damaged" {
            return error;
        }
        error.next("the files were left as they are; put a backup of the directory `history` in its place, or move it away: then a new one begins, and messages are not touched")
    }
}

/// A connection to the index.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) sql: Connection,
}

impl Index {
    /// Opens the index, made if it is not there.
    pub(super) fn open(path: &Path, busy: Duration) -> Result<Self> {
        let open = || -> rusqlite::Result<(Connection, i64)> {
            let sql = Connection::open(path)?;
            sql.busy_timeout(busy.max(Duration::from_secs(5)))?;
            let version: i64 = sql.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if version <= FORMAT {
                sql.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
                sql.execute_batch(
                    "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 8000; PRAGMA cache_size = -4000; PRAGMA temp_store = MEMORY;",
                )?;
                sql.set_prepared_statement_cache_capacity(32);
            }
            Ok((sql, version))
        };
        let (mut sql, version) = open().map_err(failed("opening the history"))?;
        if version > FORMAT {
            return Err(Error::store(format!("the history has format {version}, this Trunkline knows {FORMAT}"))
                .reason("newer")
                .next("use the newer Trunkline, or another data directory"));
        }
        if version < FORMAT {
            create(&mut sql).map_err(failed("making the history"))?;
        }
        sql.busy_timeout(busy).map_err(failed("opening the history"))?;
        Ok(Index { sql })
    }

    /// Applies all of a change or nothing. `false` if it was applied before.
    pub(super) fn apply(&mut self, change: &Change<'_>) -> Result<bool> {
        self.try_apply(change).map_err(failed("writing the history"))
    }

    fn try_apply(&mut self, change: &Change<'_>) -> rusqlite::Result<bool> {
        let tx = self.sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(name) = change.once
            && tx.prepare_cached("INSERT OR IGNORE INTO replayed (name) VALUES (?1)")?.execute([name])? == 0
        {
            return Ok(false);
        }
        for block in change.removed {
            if tx.prepare_cached("DELETE FROM block WHERE id = ?1")?.execute([block.id])? == 0 {
                // Retention was faster: what is merged out of it must not come back.
                return Ok(false);
            }
            tx.prepare_cached("INSERT INTO freed (file, offset, len, at) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                block.file,
                block.offset as i64,
                block.len,
                change.now as i64
            ])?;
            tx.prepare_cached("UPDATE file SET live = live - ?2 WHERE id = ?1")?.execute(params![block.file, block.len])?;
        }
        add_blocks(&tx, &change.blocks)?;
        if let Some(deltas) = change.deltas {
            add_counts(&tx, deltas)?;
        }
        for gap in change.gaps {
            tx.prepare_cached("INSERT INTO gap (gap_from, gap_to, count, reason) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                gap.from as i64,
                gap.to as i64,
                gap.count as i64,
                gap.reason
            ])?;
        }
        tx.commit()?;
        Ok(true)
    }

    /// Moves what is in the write-ahead log to where it belongs, so that the recorder, which would have to wait for the disk,
    /// need not.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.sql.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }

    /// Blocks that may hold an id of these times, narrow ones first.
    pub(super) fn covering(&self, from: Millis, to: Millis) -> rusqlite::Result<Vec<BlockRow>> {
        let mut found = Vec::new();
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {BLOCK} FROM block INDEXED BY block_start WHERE level = ?1 AND id_from BETWEEN ?2 AND ?3 AND id_to >= ?4"
        ))?;
        for (level, span) in SPANS.iter().enumerate() {
            let rows = statement.query_map(params![level as i64, from.saturating_sub(*span) as i64, to as i64, from as i64], block_row)?;
            for row in rows {
                found.push(row?);
            }
        }
        Ok(found)
    }

    /// Up to which time in their ids messages may have been dropped; 0 if none were.
    pub(super) fn dropped_to(&self) -> rusqlite::Result<Millis> {
        let to: Option<i64> = self.sql.prepare_cached("SELECT id_to FROM dropped")?.query_row([], |row| row.get(0)).optional()?;
        Ok(to.unwrap_or(0) as u64)
    }

    /// Where the filter of a bundle is: file, offset, length.
    pub(super) fn bundle(&self, bundle: i64) -> rusqlite::Result<Option<(i64, u64, u32)>> {
        self.sql
            .prepare_cached("SELECT file, offset, len FROM bundle WHERE id = ?1")?
            .query_row([bundle], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get(2)?)))
            .optional()
    }

    /// The path of a file, relative to the history's directory.
    pub(super) fn file_name(&self, file: i64) -> rusqlite::Result<Option<String>> {
        self.sql.prepare_cached("SELECT name FROM file WHERE id = ?1")?.query_row([file], |row| row.get(0)).optional()
    }

    /// Gaps that touch these times, oldest first.
    pub(super) fn gaps(&self, from: Millis, to: Millis) -> rusqlite::Result<Vec<Gap>> {
        let mut statement = self.sql.prepare_cached(
            "SELECT gap_from, gap_to, count, reason FROM gap WHERE gap_to >= ?1 AND gap_from <= ?2 ORDER BY gap_from LIMIT 1000",
        )?;
        let gap = |row: &SqlRow<'_>| {
            Ok(Gap {
                from: row.get::<_, i64>(0)? as u64,
                to: row.get::<_, i64>(1)? as u64,
                count: row.get::<_, i64>(2)? as u64,
                reason: row.get(3)?,
            })
        };
        statement.query_map(params![from as i64, to.min(i64::MAX as u64) as i64], gap)?.collect()
    }
}

fn create(sql: &mut Connection) -> rusqlite::Result<()> {
    let tx = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have made it meanwhile.
    let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        tx.execute_batch(SCHEMA)?;
        tx.pragma_update(None, "application_id", APPLICATION)?;
        tx.pragma_update(None, "user_version", FORMAT)?;
    }
    tx.commit()
}

/// The name of a class's folder, the same in every process.
pub(super) fn class_name(class: Class) -> String {
    let capture = match class.capture {
        Capture::Full => "full",
        Capture::Metadata => "metadata",
        Capture::Off => "off",
    };
    format!("{capture}-{}-{}", class.age_ms, class.bytes)
}

/// Notes that so many bytes were appended to a file; its id.
pub(super) fn add_file(tx: &Transaction<'_>, class: Class, day: u32, name: &str, offset: u64, len: u32) -> rusqlite::Result<i64> {
    let values = params![
        class_name(class),
        class.age_ms.min(i64::MAX as u64) as i64,
        class.bytes.min(i64::MAX as u64) as i64,
        day,
        name,
        offset as i64 + i64::from(len),
        len
    ];
    tx.prepare_cached(
        "INSERT INTO file (class, age_ms, class_bytes, day, name, bytes, live) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (name) DO UPDATE SET bytes = max(bytes, excluded.bytes), live = live + excluded.live RETURNING id",
    )?
    .query_row(values, |row| row.get(0))
}

fn add_blocks(tx: &Transaction<'_>, blocks: &[NewBlock<'_>]) -> rusqlite::Result<()> {
    for block in blocks {
        let file = add_file(tx, block.class, block.day, block.file, block.offset, block.len)?;
        let meta = &block.meta;
        tx.prepare_cached(
            "INSERT INTO block (file, gen, offset, len, level, id_from, id_to, records, messages, head, top)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            file,
            block.generation,
            block.offset as i64,
            block.len,
            meta.level,
            meta.id_from as i64,
            meta.id_to as i64,
            meta.records,
            meta.messages,
            meta.head,
            meta.top
        ])?;
    }
    Ok(())
}

fn add_counts(tx: &Transaction<'_>, deltas: &Deltas) -> rusqlite::Result<()> {
    for series in &deltas.series {
        let address = &series.address;
        let key = params![address.product, address.env, address.event.broker(), address.event.topic(), series.group];
        let known: Option<i64> = tx
            .prepare_cached("SELECT id FROM series WHERE product = ?1 AND env = ?2 AND broker = ?3 AND topic = ?4 AND grp = ?5")?
            .query_row(key, |row| row.get(0))
            .optional()?;
        let id = match known {
            Some(id) => id,
            None => tx.prepare_cached("INSERT INTO series (product, env, broker, topic, grp) VALUES (?1, ?2, ?3, ?4, ?5)")?.insert(key)?,
        };
        for width in WIDTHS {
            let mut starts: Vec<(Millis, Counts)> = Vec::new();
            for (minute, counts) in &series.minutes {
                let start = minute - minute % width;
                match starts.iter_mut().find(|(known, _)| *known == start) {
                    Some((_, sum)) => sum.merge(counts),
                    None => starts.push((start, counts.clone())),
                }
            }
            for (start, counts) in starts {
                add_to(tx, width, id, start, counts)?;
            }
        }
    }
    Ok(())
}

fn add_to(tx: &Transaction<'_>, width: Millis, series: i64, start: Millis, mut counts: Counts) -> rusqlite::Result<()> {
    let key = params![width as i64, series, start as i64];
    let stored: Option<Vec<u8>> = tx
        .prepare_cached("SELECT counts FROM rollup WHERE width = ?1 AND series = ?2 AND start = ?3")?
        .query_row(key, |row| row.get(0))
        .optional()?;
    if let Some(stored) = stored {
        counts.merge_encoded(&stored).ok_or(rusqlite::Error::InvalidQuery)?;
    }
    tx.prepare_cached("INSERT OR REPLACE INTO rollup (width, series, start, counts) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        width as i64,
        series,
        start as i64,
        counts.encode()
    ])?;
    Ok(())
}
