//! The lot: putting, reading, settling, editing and discarding entries.

mod broker;
mod claim;
mod find;
mod revive;

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{named_params, params};

pub(super) use broker::{end, index, indexed, start, sweep};
pub(super) use claim::{chains, claim, claim_publishes, extend, next_due};
pub(super) use find::{count, counts, groups, list};
pub(super) use revive::revive;

use super::db::{Db, int, message_id, uint};
use super::errors::{Doing, damaged};
use crate::delivery::Position;
use crate::error::Result;
use crate::message::Headers;
use crate::store::common::{DEAD, ERROR_MAX, HEADERS_FORMAT, PUBLISH, WAITING, cut, error_group, number};
use crate::store::{LotEdit, LotEntry, LotMessage, LotSettle, LotState};

/// Puts entries; those that are there already stay as they are.
pub(super) fn put(db: &Db, entries: &[LotEntry]) -> Result<()> {
    let doing = "put into the lot";
    let mut insert = db
        .conn
        .prepare_cached(
            "INSERT INTO lot (target, state, id, chain, shard, offset, size, due_at, ready_at, attempts, produced_at, died_at, reason,
                 error_group, error, job)
             VALUES (:target, :state, :id, :chain, :shard, :offset, :size, :due_at, :ready_at, :attempts, :produced_at, :died_at, :reason,
                 :error_group, :error, :job)
             ON CONFLICT DO NOTHING",
        )
        .doing(doing)?;
    let mut insert_body =
        db.conn.prepare_cached("INSERT INTO lot_body (seq, format, key, headers, payload) VALUES (?1, ?2, ?3, ?4, ?5)").doing(doing)?;
    let mut headers = Vec::new();
    for entry in entries {
        let (message, state) = (&entry.message, number(entry.state));
        let target = db.target(&entry.address, &entry.group)?;
        let chain = entry.chain.map(u64::cast_signed);
        let dead = state == DEAD;
        let behind = match chain {
            Some(chain) if state == WAITING => has_active(db, target, message.position.shard, chain)?,
            _ => false,
        };
        let error = entry.error.as_deref().map(|error| cut(error, ERROR_MAX));
        headers.clear();
        message.headers.encode(&mut headers);
        let size = headers.len() + message.payload.len() + message.key.as_ref().map_or(0, Bytes::len);
        let put = insert
            .execute(named_params! {
                ":target": target,
                ":state": state,
                ":id": &message.id.as_bytes()[..],
                ":chain": chain,
                ":shard": message.position.shard,
                ":offset": message.position.offset.cast_signed(),
                ":size": int(size as u64),
                ":due_at": int(entry.due_at),
                ":ready_at": (!dead && !behind).then_some(int(entry.due_at)),
                ":attempts": entry.attempts,
                ":produced_at": int(message.produced_at),
                ":died_at": dead.then(|| entry.died_at.map_or_else(|| db.wall(), int)),
                ":reason": entry.reason,
                ":error_group": error_group(error, entry.reason.as_deref()),
                ":error": error,
                ":job": entry.job,
            })
            .doing(doing)?;
        if put == 1 {
            let seq = db.conn.last_insert_rowid();
            insert_body.execute(params![seq, HEADERS_FORMAT, message.key.as_deref(), headers, &message.payload[..]]).doing(doing)?;
        }
    }
    Ok(())
}

/// Puts an entry of a copy under its own number, with its hand-overs without an outcome. One whose message is there already
/// stays away.
pub(super) fn put_as(db: &Db, entry: &LotEntry) -> Result<()> {
    let doing = "take a copy in";
    put(db, std::slice::from_ref(entry))?;
    let target = db.target(&entry.address, &entry.group)?;
    let sql = "SELECT seq FROM lot WHERE target = ?1 AND id = ?2";
    let put = db.first(doing, sql, params![target, &entry.message.id.as_bytes()[..]], |row| row.get::<_, i64>(0))?;
    let Some(put) = put else { return Ok(()) };
    let body =
        "INSERT INTO lot_body (seq, format, key, headers, payload) SELECT ?2, format, key, headers, payload FROM lot_body WHERE seq = ?1";
    if put != int(entry.seq) {
        // The body must have its entry at any moment, so it moves by way of a copy, at the end of the transaction's checks.
        db.run(doing, "PRAGMA defer_foreign_keys = ON", [])?;
        db.run(doing, body, [put, int(entry.seq)])?;
        db.run(doing, "DELETE FROM lot_body WHERE seq = ?1", [put])?;
    }
    db.run(doing, "UPDATE lot SET seq = ?2, lost = ?3 WHERE seq = ?1", params![put, int(entry.seq), entry.deliveries]).map(drop)
}

/// Whether the chain has an entry that may be claimed, or is.
fn has_active(db: &Db, target: i64, shard: u32, chain: i64) -> Result<bool> {
    Ok(active(db, target, shard, chain)?.is_some())
}

/// The one entry of the chain that may be claimed, and whether it is.
fn active(db: &Db, target: i64, shard: u32, chain: i64) -> Result<Option<(i64, bool)>> {
    db.first(
        "look into a chain",
        "SELECT seq, owner IS NOT NULL FROM lot INDEXED BY lot_chain_active
         WHERE target = ?1 AND shard = ?2 AND chain = ?3 AND state = 0 AND ready_at IS NOT NULL",
        params![target, shard, chain],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Makes the entry with the lowest seq the one that may be claimed, unless another is claimed just now.
fn rehead(db: &Db, target: i64, shard: u32, chain: i64) -> Result<()> {
    let head: Option<i64> = db.first(
        "look into a chain",
        "SELECT seq FROM lot INDEXED BY lot_chain WHERE target = ?1 AND shard = ?2 AND chain = ?3 AND state = 0 ORDER BY seq LIMIT 1",
        params![target, shard, chain],
        |row| row.get(0),
    )?;
    let active = active(db, target, shard, chain)?;
    match (head, active) {
        (None, _) | (_, Some((_, true))) => Ok(()),
        (Some(head), Some((active, _))) if head == active => Ok(()),
        (Some(head), active) => {
            if let Some((active, _)) = active {
                db.run("move a chain on", "UPDATE lot SET ready_at = NULL WHERE seq = ?1", [active])?;
            }
            db.run("move a chain on", "UPDATE lot SET ready_at = due_at WHERE seq = ?1", [head]).map(drop)
        }
    }
}

/// Settles claimed entries; `false` where the claim is not the owner's any more.
pub(super) fn settle(db: &Db, owner: &str, items: &[(u64, LotSettle)]) -> Result<Vec<bool>> {
    items.iter().map(|(seq, settle)| settle_one(db, owner, int(*seq), settle)).collect()
}

fn settle_one(db: &Db, owner: &str, seq: i64, settle: &LotSettle) -> Result<bool> {
    let doing = "settle an entry of the lot";
    let found =
        db.first(doing, "SELECT target, shard, chain FROM lot WHERE seq = ?1 AND owner = ?2 AND state <> 2", params![seq, owner], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, Option<i64>>(2)?))
        })?;
    let Some((target, shard, chain)) = found else { return Ok(false) };
    match settle {
        LotSettle::Done => db.run(doing, "DELETE FROM lot WHERE seq = ?1", [seq])?,
        LotSettle::Release => db.run(doing, "UPDATE lot SET owner = NULL, ready_at = due_at WHERE seq = ?1", [seq])?,
        LotSettle::Wait { due_at, attempts, error } => {
            let error = error.as_deref().map(|error| cut(error, ERROR_MAX));
            db.run(
                doing,
                "UPDATE lot SET owner = NULL, ready_at = ?2, due_at = ?2, attempts = ?3, error = ?4, error_group = ?5, lost = 0 WHERE seq = ?1",
                params![seq, int(*due_at), attempts, error, error_group(error, None)],
            )?
        }
        LotSettle::Bury { reason, attempts, error } => {
            let error = error.as_deref().map(|error| cut(error, ERROR_MAX));
            db.run(
                doing,
                "UPDATE lot SET state = 2, owner = NULL, ready_at = NULL, died_at = ?2, attempts = ?3, reason = ?4, error = ?5,
                     error_group = ?6 WHERE seq = ?1",
                params![seq, db.wall(), attempts, reason, error, error_group(error, Some(reason))],
            )?
        }
    };
    if let Some(chain) = chain {
        rehead(db, target, shard, chain)?;
    }
    Ok(true)
}

/// Changes a dead letter in place.
pub(super) fn edit(db: &Db, seq: u64, edit: &LotEdit) -> Result<bool> {
    let dead = db.first("edit a dead letter", "SELECT 1 FROM lot WHERE seq = ?1 AND state = 2", [int(seq)], |_| Ok(()))?.is_some();
    if dead {
        edit_body(db, int(seq), edit)?;
    }
    Ok(dead)
}

fn edit_body(db: &Db, seq: i64, edit: &LotEdit) -> Result<()> {
    let doing = "edit a dead letter";
    if let Some(payload) = &edit.payload {
        db.run(doing, "UPDATE lot_body SET payload = ?2 WHERE seq = ?1", params![seq, &payload[..]])?;
    }
    if let Some(headers) = &edit.headers {
        let mut bytes = Vec::new();
        headers.encode(&mut bytes);
        db.run(doing, "UPDATE lot_body SET headers = ?2, format = ?3 WHERE seq = ?1", params![seq, bytes, HEADERS_FORMAT])?;
    }
    db.run(
        doing,
        "UPDATE lot SET size = (SELECT length(headers) + length(payload) + coalesce(length(key), 0) FROM lot_body b WHERE b.seq = ?1)
         WHERE seq = ?1",
        [seq],
    )
    .map(drop)
}

/// Removes dead letters.
pub(super) fn discard(db: &Db, seqs: &[u64]) -> Result<u64> {
    let mut removed = 0;
    for seq in seqs {
        removed += db.run("discard a dead letter", "DELETE FROM lot WHERE seq = ?1 AND state = 2", [int(*seq)])? as u64;
    }
    Ok(removed)
}

/// Whole entries, in the order of `seqs`.
pub(super) fn load(db: &Db, seqs: &[i64]) -> Result<Vec<LotEntry>> {
    let doing = "read the lot";
    let mut statement = db
        .conn
        .prepare_cached(
            "SELECT l.target, l.state, l.id, l.chain, l.shard, l.offset, l.due_at, l.attempts, l.produced_at, l.died_at, l.reason, l.error,
                 l.job, l.lost + (l.owner IS NOT NULL), b.format, b.key, b.headers, b.payload
             FROM lot l JOIN lot_body b ON b.seq = l.seq WHERE l.seq = ?1",
        )
        .doing(doing)?;
    let mut out = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let mut rows = statement.query([seq]).doing(doing)?;
        if let Some(row) = rows.next().doing(doing)? {
            out.push(entry(db, *seq, row)?);
        }
    }
    Ok(out)
}

fn entry(db: &Db, seq: i64, row: &rusqlite::Row<'_>) -> Result<LotEntry> {
    fn get<T: rusqlite::types::FromSql>(row: &rusqlite::Row<'_>, at: usize) -> Result<T> {
        row.get(at).doing("read the lot")
    }
    let time = |at| get::<i64>(row, at).map(uint);
    let (address, group): (_, Arc<str>) = db.target_name(get(row, 0)?)?;
    let state = match get::<i64>(row, 1)? {
        WAITING => LotState::Waiting,
        PUBLISH => LotState::Publish,
        _ => LotState::Dead,
    };
    if get::<i64>(row, 14)? != HEADERS_FORMAT {
        return Err(damaged("the headers of an entry of the lot have an unknown format"));
    }
    let headers =
        Headers::decode(&get::<Vec<u8>>(row, 16)?.into()).ok_or_else(|| damaged("the headers of an entry of the lot cannot be read"))?;
    Ok(LotEntry {
        seq: uint(seq),
        state,
        address,
        group,
        chain: get::<Option<i64>>(row, 3)?.map(i64::cast_unsigned),
        due_at: time(6)?,
        attempts: get(row, 7)?,
        reason: get(row, 10)?,
        error: get(row, 11)?,
        died_at: get::<Option<i64>>(row, 9)?.map(uint),
        job: get(row, 12)?,
        deliveries: get(row, 13)?,
        message: LotMessage {
            id: message_id(row, 2).doing("read the lot")?,
            key: get::<Option<Vec<u8>>>(row, 15)?.map(Bytes::from),
            headers,
            payload: get::<Vec<u8>>(row, 17)?.into(),
            produced_at: time(8)?,
            position: Position { shard: get(row, 4)?, offset: get::<i64>(row, 5)?.cast_unsigned() },
        },
    })
}
