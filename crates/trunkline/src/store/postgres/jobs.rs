//! Jobs: long work with its progress.

use serde_json::Value;
use tokio_postgres::Row;

use super::errors::damaged;
use super::link::Db;
use crate::error::{Code, Error, Result};
use crate::store::Job;
use crate::store::common::{JOB_KEPT_MS, RESULTS_MAX, int, uint};

/// A job that someone read before the last revive and puts now (to cancel it, say) must not turn its ledger back: then
/// the progress that is there stays.
const PUT: &str = "INSERT INTO job AS j
        (id, kind, product, state, spec, cursor, matched, done, failed, skipped, results, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, product = excluded.product, state = excluded.state, spec = excluded.spec,
        matched = excluded.matched, created_at = excluded.created_at, updated_at = greatest(j.updated_at, excluded.updated_at),
        done = CASE WHEN excluded.cursor < j.cursor THEN j.done ELSE excluded.done END,
        failed = CASE WHEN excluded.cursor < j.cursor THEN j.failed ELSE excluded.failed END,
        skipped = CASE WHEN excluded.cursor < j.cursor THEN j.skipped ELSE excluded.skipped END,
        results = CASE WHEN excluded.cursor < j.cursor THEN j.results ELSE excluded.results END,
        cursor = greatest(j.cursor, excluded.cursor)";

const COLUMNS: &str = "id, kind, product, state, spec, cursor, matched, done, failed, skipped, results, created_at, updated_at";

/// Inserts or replaces a job.
pub(super) async fn put(db: &Db, job: &Job) -> Result<()> {
    let newest = job.results.len().saturating_sub(RESULTS_MAX);
    let [cursor, matched, done, failed, skipped, created, updated] =
        [job.cursor, job.matched, job.done, job.failed, job.skipped, job.created_at, job.updated_at].map(int);
    let (spec, results) = (job.spec.to_string(), text(&job.results[newest..]));
    db.run(
        "keep a job",
        PUT,
        &[&job.id, &job.kind, &job.product, &job.state, &spec, &cursor, &matched, &done, &failed, &skipped, &results, &created, &updated],
    )
    .await
    .map(drop)
}

fn text(results: &[Value]) -> String {
    Value::from(results.to_vec()).to_string()
}

fn job(row: &Row) -> Result<Job> {
    let broken = |_| damaged("a job cannot be read");
    let number = |at| uint(row.get(at));
    Ok(Job {
        id: row.get(0),
        kind: row.get(1),
        product: row.get(2),
        state: row.get(3),
        spec: serde_json::from_str(row.get(4)).map_err(broken)?,
        cursor: number(5),
        matched: number(6),
        done: number(7),
        failed: number(8),
        skipped: number(9),
        results: serde_json::from_str(row.get(10)).map_err(broken)?,
        created_at: number(11),
        updated_at: number(12),
    })
}

/// One job.
pub(super) async fn get(db: &Db, id: &str) -> Result<Option<Job>> {
    let sql = format!("SELECT {COLUMNS} FROM job WHERE id = $1");
    db.first("read a job", &sql, &[&id]).await?.as_ref().map(job).transpose()
}

/// All jobs of a product, newest first.
pub(super) async fn of_product(db: &Db, product: &str) -> Result<Vec<Job>> {
    let sql = format!("SELECT {COLUMNS} FROM job WHERE product = $1 ORDER BY created_at DESC, id COLLATE \"C\" DESC");
    db.all("read the jobs", &sql, &[&product]).await?.iter().map(job).collect()
}

/// The job, held for the rest of the transaction; an error if there is no such job.
pub(super) async fn hold(db: &Db, id: &str) -> Result<Job> {
    let sql = format!("SELECT {COLUMNS} FROM job WHERE id = $1 FOR UPDATE");
    let row = db
        .first("read a job", &sql, &[&id])
        .await?
        .ok_or_else(|| Error::new(Code::JobNotFound, format!("job '{id}' does not exist")).next("list jobs with `trunkline jobs list`"))?;
    job(&row)
}

/// Moves a held job on and appends its newest results.
pub(super) async fn move_on(db: &Db, job: &Job, cursor: u64, done: u64, results: Vec<Value>) -> Result<()> {
    let mut all = job.results.clone();
    all.extend(results);
    all.drain(..all.len().saturating_sub(RESULTS_MAX));
    let sql = "UPDATE job SET cursor = $2, done = $3, results = $4, updated_at = greatest(updated_at, $5) WHERE id = $1";
    db.run("move a job on", sql, &[&job.id, &int(cursor), &int(done), &text(&all), &db.wall()]).await.map(drop)
}

/// Drops jobs that ended long ago.
pub(super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let sql = "DELETE FROM job WHERE id IN (SELECT id FROM job WHERE updated_at < $1 AND state <> 'running' LIMIT $2)";
    db.run("drop old jobs", sql, &[&(db.wall() - JOB_KEPT_MS), &limit]).await
}
