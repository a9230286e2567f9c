//! What the store knows of a lot that lies on the broker: what is being handled, and what its dead topics say.

use std::collections::HashMap;

use uuid::Uuid;

use super::super::link::Db;
use super::super::lock;
use super::{clean, edit_bodies, put};
use crate::error::Result;
use crate::message::MessageId;
use crate::store::common::{DEAD, ERROR_MAX, HAND_OVER_KEPT, SUSPECT, cut, error_group, int, uint};
use crate::store::{LotEdit, LotEntry, LotRecord};

/// Counts that messages are about to be handled, in a transaction.
pub(in super::super) async fn start(db: &Db, schema: &str, target: i64, ids: &[MessageId], suspect: bool) -> Result<Vec<Option<u32>>> {
    let doing = "count hand-overs";
    lock::take(db, &[lock::number(&[b"start", schema.as_bytes(), &target.to_le_bytes()])]).await?;
    let wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let sql = "SELECT id, count FROM lot_start WHERE target = $1 AND id = ANY($2) AND expires_at > $3";
    let rows = db.all(doing, sql, &[&target, &wanted, &db.now()]).await?;
    let mut known: HashMap<Uuid, u32> =
        rows.iter().map(|row| (row.get(0), u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX))).collect();
    let mut counted: HashMap<Uuid, i64> = HashMap::new();
    let mut free = suspect;
    let mut out = Vec::with_capacity(ids.len());
    for id in wanted {
        let count = known.entry(id).or_default();
        if *count >= SUSPECT && !std::mem::take(&mut free) {
            out.push(None);
            continue;
        }
        *count += 1;
        counted.insert(id, i64::from(*count));
        out.push(Some(*count));
    }
    let (ids, counts): (Vec<Uuid>, Vec<i64>) = counted.into_iter().unzip();
    let sql = "INSERT INTO lot_start (target, id, count, expires_at) SELECT $1, g.id, g.count, $4 FROM unnest($2::uuid[], $3::bigint[]) AS g (id, count)
        ON CONFLICT (target, id) DO UPDATE SET count = excluded.count, expires_at = excluded.expires_at";
    db.run(doing, sql, &[&target, &ids, &counts, &db.after(HAND_OVER_KEPT)]).await?;
    Ok(out)
}

/// Takes back what was counted, in a transaction.
pub(in super::super) async fn end(db: &Db, schema: &str, target: i64, items: &[(MessageId, bool)]) -> Result<()> {
    let doing = "end hand-overs";
    lock::take(db, &[lock::number(&[b"start", schema.as_bytes(), &target.to_le_bytes()])]).await?;
    let of = |wanted: bool| items.iter().filter(|(_, outcome)| *outcome == wanted).map(|(id, _)| id.0).collect::<Vec<Uuid>>();
    db.run(doing, "UPDATE lot_start SET count = greatest(count - 1, 0) WHERE target = $1 AND id = ANY($2)", &[&target, &of(false)]).await?;
    db.run(doing, "DELETE FROM lot_start WHERE target = $1 AND id = ANY($2)", &[&target, &of(true)]).await.map(drop)
}

/// Forgets up to `limit` hand-overs whose time is over.
pub(in super::super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let sql = "DELETE FROM lot_start WHERE (target, id) IN (SELECT target, id FROM lot_start WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    db.run("forget old hand-overs", sql, &[&db.now(), &limit]).await
}

/// How far the dead topic was read.
pub(in super::super) async fn indexed(db: &Db, target: i64) -> Result<u64> {
    let row = db.first("read the index", "SELECT next FROM lot_indexed WHERE target = $1", &[&target]).await?;
    Ok(row.map_or(0, |row| row.get::<_, i64>(0).cast_unsigned()))
}

/// Applies what the dead topic says, in a transaction.
pub(in super::super) async fn index(db: &Db, schema: &str, target: i64, from: u64, to: u64, records: &[LotRecord]) -> Result<bool> {
    let doing = "index dead letters";
    lock::take(db, &[lock::number(&[b"index", schema.as_bytes(), &target.to_le_bytes()])]).await?;
    if indexed(db, target).await? != from {
        return Ok(false);
    }
    for record in records {
        match record {
            LotRecord::Dead(entry) => dead(db, target, entry).await?,
            LotRecord::Gone { id, died_at } => {
                let sql = "DELETE FROM lot WHERE target = $1 AND id = $2 AND state = 2 AND died_at = $3";
                db.run(doing, sql, &[&target, &id.0, &int(*died_at)]).await?;
            }
        }
    }
    let sql = "INSERT INTO lot_indexed (target, next) VALUES ($1, $2) ON CONFLICT (target) DO UPDATE SET next = excluded.next";
    db.run(doing, sql, &[&target, &to.cast_signed()]).await?;
    Ok(true)
}

/// Puts a letter, or brings the one that is there up to date.
async fn dead(db: &Db, target: i64, entry: &LotEntry) -> Result<()> {
    let doing = "index a dead letter";
    let sql = "SELECT seq, state, died_at FROM lot WHERE target = $1 AND id = $2 FOR UPDATE";
    let Some(known) = db.first(doing, sql, &[&target, &entry.message.id.0]).await? else {
        return put(db, &[(target, entry.clone())]).await;
    };
    let (seq, state, died_at) = (known.get::<_, i64>(0), known.get::<_, i64>(1), known.get::<_, Option<i64>>(2).map(uint));
    if state != DEAD && died_at == entry.died_at {
        // This death was dealt with: it is on its way back to its group.
        return Ok(());
    }
    let error = entry.error.as_deref().map(clean);
    let error = error.as_deref().map(|error| cut(error, ERROR_MAX));
    let sql =
        "UPDATE lot SET state = 2, owner = NULL, ready_at = NULL, died_at = $2, attempts = $3, reason = $4, error = $5, error_group = $6
        WHERE seq = $1";
    let group = error_group(error, entry.reason.as_deref());
    db.run(doing, sql, &[&seq, &entry.died_at.map(int), &i64::from(entry.attempts), &entry.reason, &error, &group]).await?;
    let edit = LotEdit { payload: Some(entry.message.payload.clone()), headers: Some(entry.message.headers.clone()) };
    edit_bodies(db, &[seq], &edit).await
}
