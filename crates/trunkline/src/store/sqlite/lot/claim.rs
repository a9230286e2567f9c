//! Claims of what is due.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::params;

use super::super::db::{Db, int, json_list, uint};
use super::load;
use crate::error::Result;
use crate::message::Millis;
use crate::store::common::SUSPECT;
use crate::store::{Address, LotEntry};

/// Claims due entries of one group: without a chain, or the heads of chains of `shards`.
pub(in super::super) fn claim(
    db: &Db,
    address: &Address,
    group: &Arc<str>,
    shards: Option<&[u32]>,
    limit: usize,
    owner: &str,
    lease: Duration,
) -> Result<Vec<LotEntry>> {
    let doing = "claim from the lot";
    let Some(target) = db.find_target(address, group)? else { return Ok(Vec::new()) };
    let (now, limit) = (db.now(), int(limit as u64));
    // Behind the head of a chain `ready_at` is NULL, so both are one range of one index. A claim that is found here ended
    // without a word: it counts.
    let due = |suspects: bool, limit: i64| -> Result<Vec<i64>> {
        let many = if suspects { ">=" } else { "<" };
        let of = match shards {
            None => "chain IS NULL",
            Some(_) => "+shard IN (SELECT value FROM json_each(?4)) AND chain IS NOT NULL",
        };
        let sql = format!(
            "SELECT seq FROM lot INDEXED BY lot_ready
             WHERE target = ?1 AND state = 0 AND ready_at <= ?2 AND {of} AND lost + (owner IS NOT NULL) {many} {SUSPECT}
             ORDER BY ready_at, seq LIMIT ?3"
        );
        match shards {
            None => db.all(doing, &sql, params![target, now, limit], |row| row.get(0)),
            Some(shards) => db.all(doing, &sql, params![target, now, limit, json_list(shards.iter())], |row| row.get(0)),
        }
    };
    let mut seqs = due(false, limit)?;
    if int(seqs.len() as u64) < limit && !suspect_out(db, target)? {
        seqs.extend(due(true, 1)?);
    }
    mark(db, &seqs, owner, lease)
}

/// Whether one is being handled whose owners died before.
fn suspect_out(db: &Db, target: i64) -> Result<bool> {
    let out = db.first(
        "claim from the lot",
        &format!(
            "SELECT 1 FROM lot INDEXED BY lot_suspect
             WHERE target = ?1 AND state = 0 AND lost >= {SUSPECT} AND ready_at > ?2 AND owner IS NOT NULL LIMIT 1"
        ),
        params![target, db.now()],
        |_| Ok(()),
    )?;
    Ok(out.is_some())
}

/// Claims due delayed publishes of all topics.
pub(in super::super) fn claim_publishes(db: &Db, limit: usize, owner: &str, lease: Duration) -> Result<Vec<LotEntry>> {
    let seqs: Vec<i64> = db.all(
        "claim delayed publishes",
        "SELECT seq FROM lot INDEXED BY lot_publish_ready WHERE state = 1 AND ready_at <= ?1 ORDER BY ready_at, seq LIMIT ?2",
        params![db.now(), int(limit as u64)],
        |row| row.get(0),
    )?;
    mark(db, &seqs, owner, lease)
}

fn mark(db: &Db, seqs: &[i64], owner: &str, lease: Duration) -> Result<Vec<LotEntry>> {
    for seq in seqs {
        db.run(
            "claim from the lot",
            "UPDATE lot SET lost = lost + (owner IS NOT NULL), owner = ?2, ready_at = ?3 WHERE seq = ?1",
            params![seq, owner, db.after(lease)],
        )?;
    }
    load(db, seqs)
}

/// Renews claims that are still the owner's, also those whose lease ran out with nobody taking them.
pub(in super::super) fn extend(db: &Db, seqs: &[u64], owner: &str, lease: Duration) -> Result<Vec<bool>> {
    let until = db.after(lease);
    seqs.iter()
        .map(|seq| {
            let kept = db.run(
                "renew a claim",
                "UPDATE lot SET ready_at = ?3 WHERE seq = ?1 AND owner = ?2 AND state <> 2",
                params![int(*seq), owner, until],
            )?;
            Ok(kept == 1)
        })
        .collect()
}

/// The chains of a shard: hash, entries, bytes.
pub(in super::super) fn chains(db: &Db, address: &Address, group: &Arc<str>, shard: u32) -> Result<Vec<(u64, u64, u64)>> {
    let Some(target) = db.find_target(address, group)? else { return Ok(Vec::new()) };
    db.all(
        "read the chains",
        "SELECT chain, count(*), sum(size) FROM lot INDEXED BY lot_chain
         WHERE target = ?1 AND shard = ?2 AND state = 0 AND chain IS NOT NULL GROUP BY chain",
        params![target, shard],
        |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), uint(row.get(1)?), uint(row.get(2)?))),
    )
}

/// When the next entry of the group, or delayed publish, may be claimed.
pub(in super::super) fn next_due(db: &Db, of: Option<(&Address, &Arc<str>)>) -> Result<Option<Millis>> {
    match of {
        None => publish_due(db),
        Some((address, group)) => match db.find_target(address, group)? {
            Some(target) => target_due(db, target),
            None => Ok(None),
        },
    }
}

fn publish_due(db: &Db) -> Result<Option<Millis>> {
    let found = db.first(
        "look for what is due",
        "SELECT ready_at FROM lot INDEXED BY lot_publish_ready WHERE state = 1 AND ready_at IS NOT NULL ORDER BY ready_at LIMIT 1",
        [],
        |row| row.get(0),
    )?;
    Ok(found.map(uint))
}

pub(super) fn target_due(db: &Db, target: i64) -> Result<Option<Millis>> {
    let found = db.first(
        "look for what is due",
        "SELECT ready_at FROM lot INDEXED BY lot_ready WHERE target = ?1 AND state = 0 AND ready_at IS NOT NULL ORDER BY ready_at LIMIT 1",
        [target],
        |row| row.get(0),
    )?;
    Ok(found.map(uint))
}

pub(super) fn target_publish_due(db: &Db, target: i64) -> Result<Option<Millis>> {
    let found = db.first(
        "look for what is due",
        "SELECT min(ready_at) FROM lot INDEXED BY lot_state WHERE target = ?1 AND state = 1",
        [target],
        |row| row.get::<_, Option<i64>>(0),
    )?;
    Ok(found.flatten().map(uint))
}
