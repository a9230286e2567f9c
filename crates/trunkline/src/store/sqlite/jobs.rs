//! Jobs: long work with its progress.

use rusqlite::params;
use serde_json::Value;

use super::db::{Db, int, uint};
use super::errors::damaged;
use crate::error::{Code, Error, Result};
use crate::store::Job;
use crate::store::common::{JOB_KEPT_MS, RESULTS_MAX};

/// Inserts or replaces a job.
///
/// A job that someone read before the last revive and puts now (to cancel it, say) must not turn its ledger back: then
/// the progress that is there stays.
pub(super) fn put(db: &Db, job: &Job) -> Result<()> {
    let newest = job.results.len().saturating_sub(RESULTS_MAX);
    db.run(
        "keep a job",
        "INSERT INTO job (id, kind, product, state, spec, cursor, matched, done, failed, skipped, results, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, product = excluded.product, state = excluded.state, spec = excluded.spec,
             matched = excluded.matched, created_at = excluded.created_at, updated_at = max(updated_at, excluded.updated_at),
             done = iif(excluded.cursor < cursor, done, excluded.done), failed = iif(excluded.cursor < cursor, failed, excluded.failed),
             skipped = iif(excluded.cursor < cursor, skipped, excluded.skipped),
             results = iif(excluded.cursor < cursor, results, excluded.results), cursor = max(cursor, excluded.cursor)",
        params![
            job.id,
            job.kind,
            job.product,
            job.state,
            job.spec.to_string(),
            int(job.cursor),
            int(job.matched),
            int(job.done),
            int(job.failed),
            int(job.skipped),
            text(&job.results[newest..]),
            int(job.created_at),
            int(job.updated_at)
        ],
    )
    .map(drop)
}

fn text(results: &[Value]) -> String {
    super::db::json_list(results.iter())
}

const COLUMNS: &str = "id, kind, product, state, spec, cursor, matched, done, failed, skipped, results, created_at, updated_at";

struct Texts {
    job: Job,
    spec: String,
    results: String,
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Texts> {
    let number = |at| row.get::<_, i64>(at).map(uint);
    let job = Job {
        id: row.get(0)?,
        kind: row.get(1)?,
        product: row.get(2)?,
        state: row.get(3)?,
        spec: Value::Null,
        cursor: number(5)?,
        matched: number(6)?,
        done: number(7)?,
        failed: number(8)?,
        skipped: number(9)?,
        results: Vec::new(),
        created_at: number(11)?,
        updated_at: number(12)?,
    };
    Ok(Texts { job, spec: row.get(4)?, results: row.get(10)? })
}

fn parse(texts: Texts) -> Result<Job> {
    let broken = |_| damaged("a job cannot be read");
    Ok(Job {
        spec: serde_json::from_str(&texts.spec).map_err(broken)?,
        results: serde_json::from_str(&texts.results).map_err(broken)?,
        ..texts.job
    })
}

/// One job.
pub(super) fn get(db: &Db, id: &str) -> Result<Option<Job>> {
    db.first("read a job", &format!("SELECT {COLUMNS} FROM job WHERE id = ?1"), [id], row)?.map(parse).transpose()
}

/// All jobs of a product, newest first.
pub(super) fn of_product(db: &Db, product: &str) -> Result<Vec<Job>> {
    let sql = format!("SELECT {COLUMNS} FROM job WHERE product = ?1 ORDER BY created_at DESC, id DESC");
    db.all("read the jobs", &sql, [product], row)?.into_iter().map(parse).collect()
}

/// Where a job stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// The last seq that was worked on.
    pub(super) cursor: u64,
    /// How many are done.
    pub(super) done: u64,
}

/// Where the job stands; an error if there is no such job.
pub(super) fn progress(db: &Db, id: &str) -> Result<Progress> {
    db.first("read a job", "SELECT cursor, done FROM job WHERE id = ?1", [id], |row| {
        Ok(Progress { cursor: uint(row.get(0)?), done: uint(row.get(1)?) })
    })?
    .ok_or_else(|| Error::new(Code::JobNotFound, format!("job '{id}' does not exist")).next("list jobs with `trunkline jobs list`"))
}

/// Moves a job on and appends its newest results.
pub(super) fn set_progress(db: &Db, id: &str, progress: Progress, results: Vec<Value>) -> Result<()> {
    // A full list replaces the old one without reading it.
    let results = if results.len() >= RESULTS_MAX {
        results
    } else {
        let known =
            db.first("read a job", "SELECT results FROM job WHERE id = ?1", [id], |row| row.get::<_, String>(0))?.unwrap_or_default();
        let mut all: Vec<Value> = serde_json::from_str(&known).map_err(|_| damaged("a job cannot be read"))?;
        all.extend(results);
        all.drain(..all.len().saturating_sub(RESULTS_MAX));
        all
    };
    db.run(
        "move a job on",
        "UPDATE job SET cursor = ?2, done = ?3, results = ?4, updated_at = max(updated_at, ?5) WHERE id = ?1",
        params![id, int(progress.cursor), int(progress.done), text(&results), db.wall()],
    )
    .map(drop)
}

/// Drops jobs that ended long ago.
pub(super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    db.run(
        "drop old jobs",
        "DELETE FROM job WHERE id IN (SELECT id FROM job WHERE updated_at < ?1 AND state <> 'running' LIMIT ?2)",
        params![db.wall() - JOB_KEPT_MS, int(limit as u64)],
    )
}
