//! What the store knows of a lot that lies on the broker: what is being handled, and what its dead topics say.

use std::sync::Arc;

use rusqlite::params;

use super::super::db::{Db, int, uint};
use super::{edit_body, put};
use crate::error::Result;
use crate::message::MessageId;
use crate::store::common::{DEAD, ERROR_MAX, HAND_OVER_KEPT, SUSPECT, cut, error_group};
use crate::store::{Address, LotEdit, LotEntry, LotRecord};

/// Counts that messages are about to be handled.
pub(in super::super) fn start(db: &Db, address: &Address, group: &Arc<str>, ids: &[MessageId], suspect: bool) -> Result<Vec<Option<u32>>> {
    let doing = "count a hand-over";
    let target = db.target(address, group)?;
    let mut free = suspect;
    ids.iter()
        .map(|id| {
            let before: u32 = db
                .first(
                    doing,
                    "SELECT count FROM lot_start WHERE target = ?1 AND id = ?2 AND expires_at > ?3",
                    params![target, &id.as_bytes()[..], db.now()],
                    |row| row.get(0),
                )?
                .unwrap_or(0);
            if before >= SUSPECT && !std::mem::take(&mut free) {
                return Ok(None);
            }
            db.run(
                doing,
                "INSERT INTO lot_start (target, id, count, expires_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (target, id) DO UPDATE SET count = excluded.count, expires_at = excluded.expires_at",
                params![target, &id.as_bytes()[..], before + 1, db.after(HAND_OVER_KEPT)],
            )?;
            Ok(Some(before + 1))
        })
        .collect()
}

/// Takes back what was counted.
pub(in super::super) fn end(db: &Db, address: &Address, group: &Arc<str>, items: &[(MessageId, bool)]) -> Result<()> {
    let doing = "end a hand-over";
    let Some(target) = db.find_target(address, group)? else { return Ok(()) };
    for (id, outcome) in items {
        let key = params![target, &id.as_bytes()[..]];
        if *outcome {
            db.run(doing, "DELETE FROM lot_start WHERE target = ?1 AND id = ?2", key)?;
        } else {
            db.run(doing, "UPDATE lot_start SET count = max(count - 1, 0) WHERE target = ?1 AND id = ?2", key)?;
        }
    }
    Ok(())
}

/// Forgets up to `limit` hand-overs whose time is over.
pub(in super::super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    db.run(
        "forget old hand-overs",
        "DELETE FROM lot_start WHERE (target, id) IN
             (SELECT target, id FROM lot_start INDEXED BY lot_start_expires WHERE expires_at <= ?1 LIMIT ?2)",
        params![db.now(), int(limit as u64)],
    )
}

/// How far the dead topic was read.
pub(in super::super) fn indexed(db: &Db, address: &Address, group: &Arc<str>) -> Result<u64> {
    match db.find_target(address, group)? {
        Some(target) => next(db, target),
        None => Ok(0),
    }
}

fn next(db: &Db, target: i64) -> Result<u64> {
    let next = db.first("read the index", "SELECT next FROM lot_indexed WHERE target = ?1", [target], |row| row.get::<_, i64>(0))?;
    Ok(next.map_or(0, i64::cast_unsigned))
}

/// Applies what the dead topic says.
pub(in super::super) fn index(db: &Db, address: &Address, group: &Arc<str>, from: u64, to: u64, records: &[LotRecord]) -> Result<bool> {
    let target = db.target(address, group)?;
    if next(db, target)? != from {
        return Ok(false);
    }
    for record in records {
        match record {
            LotRecord::Dead(entry) => dead(db, target, entry)?,
            LotRecord::Gone { id, died_at } => {
                db.run(
                    "index a dead letter",
                    "DELETE FROM lot WHERE target = ?1 AND id = ?2 AND state = 2 AND died_at = ?3",
                    params![target, &id.as_bytes()[..], int(*died_at)],
                )?;
            }
        }
    }
    db.run(
        "index dead letters",
        "INSERT INTO lot_indexed (target, next) VALUES (?1, ?2) ON CONFLICT (target) DO UPDATE SET next = excluded.next",
        params![target, to.cast_signed()],
    )?;
    Ok(true)
}

/// Puts a letter, or brings the one that is there up to date.
fn dead(db: &Db, target: i64, entry: &LotEntry) -> Result<()> {
    let doing = "index a dead letter";
    let known = db.first(
        doing,
        "SELECT seq, state, died_at FROM lot WHERE target = ?1 AND id = ?2",
        params![target, &entry.message.id.as_bytes()[..]],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?.map(uint))),
    )?;
    let Some((seq, state, died_at)) = known else { return put(db, std::slice::from_ref(entry)) };
    if state != DEAD && died_at == entry.died_at {
        // This death was dealt with: it is on its way back to its group.
        return Ok(());
    }
    let error = entry.error.as_deref().map(|error| cut(error, ERROR_MAX));
    db.run(
        doing,
        "UPDATE lot SET state = 2, owner = NULL, ready_at = NULL, died_at = ?2, attempts = ?3, reason = ?4, error = ?5, error_group = ?6
         WHERE seq = ?1",
        params![seq, entry.died_at.map(int), entry.attempts, entry.reason, error, error_group(error, entry.reason.as_deref())],
    )?;
    let edit = LotEdit { payload: Some(entry.message.payload.clone()), headers: Some(entry.message.headers.clone()) };
    edit_body(db, seq, &edit)
}
