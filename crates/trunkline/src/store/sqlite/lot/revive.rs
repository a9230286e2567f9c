//! Dead letters go back to waiting, together with the progress of the job that does it.

use rusqlite::params;
use serde_json::{Value, json};

use super::super::db::Db;
use super::super::jobs;
use super::find::{Order, seqs};
use super::{edit_body, load, rehead};
use crate::error::Result;
use crate::store::common::{DEAD, PUBLISH, RESULTS_MAX, WAITING};
use crate::store::{LotEdit, LotEntry, LotFilter, LotState};

/// Sets up to `limit` dead letters back to waiting and moves the job's cursor, counters and results with them.
pub(in super::super) fn revive(db: &Db, job: &str, filter: &LotFilter, edit: Option<&LotEdit>, limit: usize) -> Result<Vec<LotEntry>> {
    let mut progress = jobs::progress(db, job)?;
    let filter = LotFilter { state: Some(LotState::Dead), after: filter.after.max(Some(progress.cursor)), ..filter.clone() };
    let found = seqs(db, &filter, Order::Oldest, limit)?;
    let Some(last) = found.last() else { return Ok(Vec::new()) };
    for seq in &found {
        back(db, *seq, job)?;
        if let Some(edit) = edit {
            edit_body(db, *seq, edit)?;
        }
    }
    let entries = load(db, &found)?;
    progress.cursor = (*last).cast_unsigned();
    progress.done += entries.len() as u64;
    let newest = entries.len().saturating_sub(RESULTS_MAX);
    let results: Vec<Value> =
        entries[newest..].iter().map(|entry| json!({ "process_id": entry.message.id, "group": entry.group, "success": true })).collect();
    jobs::set_progress(db, job, progress, results)?;
    Ok(entries)
}

fn back(db: &Db, seq: i64, job: &str) -> Result<()> {
    let doing = "revive a dead letter";
    let (target, shard, chain) = db
        .first(doing, "SELECT target, shard, chain FROM lot WHERE seq = ?1 AND state = 2", [seq], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, Option<i64>>(2)?))
        })?
        .unwrap_or((0, 0, None));
    // A dead letter without a group was a delayed publish, and is one again.
    let state = if db.target_name(target)?.1.is_empty() { PUBLISH } else { WAITING };
    let chain = chain.filter(|_| state == WAITING);
    let ready_at = chain.is_none().then(|| db.now());
    db.run(
        doing,
        &format!(
            "UPDATE lot SET state = ?2, due_at = ?3, ready_at = ?4, owner = NULL, attempts = 0, lost = 0, reason = NULL, job = ?5
             WHERE seq = ?1 AND state = {DEAD}"
        ),
        params![seq, state, db.now(), ready_at, job],
    )?;
    match chain {
        Some(chain) => rehead(db, target, shard, chain),
        None => Ok(()),
    }
}
