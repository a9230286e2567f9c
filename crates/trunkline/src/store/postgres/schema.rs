//! The tables, and how older ones are brought up to date.
//!
//! Times are ms since 1970. Numbers that may use all 64 bits (offsets, hashes) are stored as the signed number of the
//! same bits and never compared. A step only adds: processes of the version before go on working while it runs and after.

use super::errors::{damaged, newer};
use super::link::{Db, Link};
use super::lock;
use crate::error::Result;

/// One entry for each version; entry n brings a schema of version n to n + 1. Never change one that was released.
const MIGRATIONS: &[&str] =
    &[include_str!("schema/v1.sql"), include_str!("schema/v2.sql"), include_str!("schema/v3.sql"), include_str!("schema/v4.sql")];

/// The version this code writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the schema to [`VERSION`]. Safe when many processes open it at once: each step looks again under the lock.
pub(super) async fn migrate(link: &Link) -> Result<()> {
    let schema = &link.target().schema;
    let db = link.db(0, 0).await?;
    while version(&db, schema).await?.unwrap_or(0) < VERSION {
        step(link.db(0, 0).await?.begin().await?, schema).await?;
    }
    Ok(())
}

async fn step(db: Db, schema: &str) -> Result<()> {
    let doing = "bring the store up to date";
    // Held until the end of the transaction, so that it is given back whatever becomes of this process.
    lock::take(&db, &[lock::number(&[b"migrate", schema.as_bytes()])]).await?;
    let from = version(&db, schema).await?;
    if from.is_none() {
        db.batch(doing, &format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")).await?;
    }
    let from = from.unwrap_or(0);
    let sql = usize::try_from(from).ok().and_then(|at| MIGRATIONS.get(at));
    // Otherwise another process was faster.
    if let Some(sql) = sql {
        db.batch(doing, sql).await?;
        db.run(doing, "UPDATE meta SET value = $1 WHERE name = 'version'", &[&(from + 1)]).await?;
    }
    db.commit().await
}

/// The version of the schema, if it is there; an error if it is newer, or not ours.
async fn version(db: &Db, schema: &str) -> Result<Option<i64>> {
    let doing = "read the store's version";
    let sql = "SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = $1),
        (SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'meta')";
    let Some(row) = db.first(doing, sql, &[&schema]).await? else { return Ok(None) };
    let (tables, meta): (i64, i64) = (row.get(0), row.get(1));
    match (tables, meta) {
        (0, _) => Ok(None),
        (_, 0) => Err(damaged(&format!("the schema '{schema}' holds tables of another program")).next("name another with ?schema=NAME")),
        _ => {
            let row = db.first(doing, "SELECT value FROM meta WHERE name = 'version'", &[]).await?;
            let found: i64 = row.ok_or_else(|| damaged("it has no version"))?.get(0);
            if found > VERSION { Err(newer(found, VERSION)) } else { Ok(Some(found)) }
        }
    }
}
