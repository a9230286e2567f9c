//! The lot: whole entries as they are read, and editing and discarding dead letters.

mod broker;
mod chain;
mod claim;
mod find;
mod put;
mod revive;
mod settle;

use tokio_postgres::Row;

pub(super) use broker::{end, index, indexed, start, sweep};
pub(super) use claim::{Claimant, chains, claim, claim_publishes, claim_suspect, extend, has_suspect, next_due};
pub(super) use find::{count, counts, groups, list};
pub(super) use put::{Filed, put, put_chained};
pub(super) use revive::revive;
pub(super) use settle::settle;

use super::errors::damaged;
use super::link::Db;
use crate::delivery::Position;
use crate::error::Result;
use crate::event::Event;
use crate::message::{Headers, MessageId};
use crate::store::common::{HEADERS_FORMAT, PUBLISH, WAITING, int, uint};
use crate::store::{Address, LotEdit, LotEntry, LotMessage, LotState};

/// What [`entry`] reads, of `l` (the lot), `b` (its body) and `t` (its target).
const COLUMNS: &str =
    "l.seq, l.state, l.id, l.chain, l.shard, l.position, l.due_at, l.attempts, l.produced_at, l.died_at, l.reason, l.error,
    l.job, l.lost + (l.owner IS NOT NULL)::int, b.format, b.key, b.headers, b.payload, t.product, t.env, t.broker, t.topic, t.grp";

/// Whole entries, in the order of `seqs`.
pub(super) async fn load(db: &Db, seqs: &[i64]) -> Result<Vec<LotEntry>> {
    if seqs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM unnest($1::bigint[]) WITH ORDINALITY AS s (seq, at) JOIN lot l USING (seq) JOIN lot_body b USING (seq)
         JOIN target t ON t.id = l.target ORDER BY s.at"
    );
    db.all("read the lot", &sql, &[&seqs]).await?.iter().map(entry).collect()
}

/// The entry of a row.
fn entry(row: &Row) -> Result<LotEntry> {
    let time = |at| uint(row.get(at));
    let attempts = |at| u32::try_from(row.get::<_, i64>(at)).unwrap_or(u32::MAX);
    if row.get::<_, i64>(14) != HEADERS_FORMAT {
        return Err(damaged("the headers of an entry of the lot have an unknown format"));
    }
    let headers = Headers::decode(&row.get::<_, Vec<u8>>(16).into());
    Ok(LotEntry {
        seq: time(0),
        state: match row.get::<_, i64>(1) {
            WAITING => LotState::Waiting,
            PUBLISH => LotState::Publish,
            _ => LotState::Dead,
        },
        address: address(row, 18)?,
        group: row.get::<_, &str>(22).into(),
        chain: row.get::<_, Option<i64>>(3).map(i64::cast_unsigned),
        due_at: time(6),
        attempts: attempts(7),
        reason: row.get(10),
        error: row.get(11),
        died_at: row.get::<_, Option<i64>>(9).map(uint),
        job: row.get(12),
        deliveries: attempts(13),
        message: LotMessage {
            id: MessageId(row.get(2)),
            key: row.get::<_, Option<Vec<u8>>>(15).map(Into::into),
            headers: headers.ok_or_else(|| damaged("the headers of an entry of the lot cannot be read"))?,
            payload: row.get::<_, Vec<u8>>(17).into(),
            produced_at: time(8),
            position: Position { shard: attempts(4), offset: row.get::<_, i64>(5).cast_unsigned() },
        },
    })
}

/// The address in four columns from `at` on.
pub(super) fn address(row: &Row, at: usize) -> Result<Address> {
    let event = Event::new(row.get(at + 2), row.get(at + 3)).map_err(|_| damaged("a topic of the lot has no valid tag"))?;
    Ok(Address { product: row.get::<_, &str>(at).into(), env: row.get::<_, &str>(at + 1).into(), event })
}

/// A text of PostgreSQL holds no NUL.
pub(super) fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Changes a dead letter in place.
pub(super) async fn edit(db: &Db, seq: u64, edit: &LotEdit) -> Result<bool> {
    let sql = "SELECT seq FROM lot WHERE seq = $1 AND state = 2 FOR UPDATE";
    let dead = db.first("edit a dead letter", sql, &[&int(seq)]).await?.is_some();
    if dead {
        edit_bodies(db, &[int(seq)], edit).await?;
    }
    Ok(dead)
}

/// Changes payload and headers of these entries.
async fn edit_bodies(db: &Db, seqs: &[i64], edit: &LotEdit) -> Result<()> {
    let headers = edit.headers.as_ref().map(|headers| {
        let mut bytes = Vec::new();
        headers.encode(&mut bytes);
        bytes
    });
    let sql = "WITH body AS (
            UPDATE lot_body SET payload = coalesce($2, payload), headers = coalesce($3, headers),
                format = CASE WHEN $3::bytea IS NULL THEN format ELSE $4 END
            WHERE seq = ANY($1) RETURNING seq, length(headers) + length(payload) + coalesce(length(key), 0) AS size
        ) UPDATE lot l SET size = body.size FROM body WHERE l.seq = body.seq";
    db.run("edit a dead letter", sql, &[&seqs, &edit.payload.as_deref(), &headers, &HEADERS_FORMAT]).await.map(drop)
}

/// Removes dead letters.
pub(super) async fn discard(db: &Db, seqs: &[u64]) -> Result<u64> {
    let seqs: Vec<i64> = seqs.iter().copied().map(int).collect();
    db.run("discard dead letters", "DELETE FROM lot WHERE seq = ANY($1) AND state = 2", &[&seqs]).await
}
