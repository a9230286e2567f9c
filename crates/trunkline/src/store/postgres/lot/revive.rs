//! Dead letters go back to waiting, together with the progress of the job that does it.

use serde_json::{Value, json};

use super::super::link::Db;
use super::super::{jobs, lot};
use super::chain::{self, Chain};
use super::find::{Order, seqs};
use crate::error::Result;
use crate::store::common::{RESULTS_MAX, uint};
use crate::store::{LotEdit, LotEntry, LotFilter, LotState};

/// A dead letter without a group was a delayed publish, and is one again.
const BACK: &str = "UPDATE lot l SET state = CASE t.grp WHEN '' THEN 1 ELSE 0 END, due_at = $2::bigint,
        ready_at = CASE WHEN l.chain IS NULL OR t.grp = '' THEN $2::bigint END, owner = NULL, attempts = 0, lost = 0, reason = NULL, job = $3
    FROM target t WHERE t.id = l.target AND l.seq = ANY($1) AND l.state = 2 RETURNING l.seq";

/// Sets up to `limit` dead letters back to waiting and moves the job's cursor, counters and results with them, in a
/// transaction.
pub(in super::super) async fn revive(
    db: &Db,
    schema: &str,
    job: &str,
    filter: &LotFilter,
    edit: Option<&LotEdit>,
    limit: usize,
) -> Result<Vec<LotEntry>> {
    let doing = "revive dead letters";
    let job = jobs::hold(db, job).await?;
    let filter = LotFilter { state: Some(LotState::Dead), after: filter.after.max(Some(job.cursor)), ..filter.clone() };
    let found = seqs(db, &filter, Order::Oldest, limit).await?;
    let Some(last) = found.last().copied() else { return Ok(Vec::new()) };
    let chains = chains(db, &found).await?;
    chain::lock(db, schema, &chains).await?;
    let mut back: Vec<i64> = db.all(doing, BACK, &[&found, &db.now(), &job.id]).await?.iter().map(|row| row.get(0)).collect();
    back.sort_unstable();
    chain::rehead(db, &chains).await?;
    if let Some(edit) = edit {
        lot::edit_bodies(db, &back, edit).await?;
    }
    let entries = lot::load(db, &back).await?;
    let newest = entries.len().saturating_sub(RESULTS_MAX);
    let results: Vec<Value> =
        entries[newest..].iter().map(|entry| json!({ "process_id": entry.message.id, "group": entry.group, "success": true })).collect();
    jobs::move_on(db, &job, uint(last), job.done + entries.len() as u64, results).await?;
    Ok(entries)
}

/// The chains that these belong to once they wait again.
async fn chains(db: &Db, seqs: &[i64]) -> Result<Vec<Chain>> {
    let sql = "SELECT DISTINCT l.target, l.shard, l.chain FROM lot l JOIN target t ON t.id = l.target
        WHERE l.seq = ANY($1) AND l.chain IS NOT NULL AND t.grp <> ''";
    let rows = db.all("look into chains", sql, &[&seqs]).await?;
    Ok(rows.iter().map(|row| Chain { target: row.get(0), shard: row.get(1), chain: row.get(2) }).collect())
}
