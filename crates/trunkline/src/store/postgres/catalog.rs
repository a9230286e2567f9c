//! The catalogue: documents under one version.

use serde_json::Value;

use super::errors::damaged;
use super::keeper::channel;
use super::link::Db;
use crate::error::Result;
use crate::store::common::{int, uint};
use crate::store::{Doc, DocChange, DocKind};

/// A kind as it is stored: the word it has in JSON.
pub(super) fn word(kind: DocKind) -> String {
    serde_json::to_value(kind).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn kind(word: &str) -> Option<DocKind> {
    serde_json::from_value(Value::from(word)).ok()
}

/// The catalogue's version.
pub(super) async fn version(db: &Db) -> Result<u64> {
    let row = db.first("read the catalogue's version", "SELECT value FROM meta WHERE name = 'catalog_version'", &[]).await?;
    row.map(|row| uint(row.get(0))).ok_or_else(|| damaged("the catalogue has no version"))
}

/// The whole catalogue, by kind and path.
pub(super) async fn read(db: &Db) -> Result<(u64, Vec<Doc>)> {
    // One statement, so that documents and version are of one moment.
    let sql = "SELECT m.value, d.kind, d.path, d.body FROM meta m LEFT JOIN doc d ON true WHERE m.name = 'catalog_version'";
    let rows = db.all("read the catalogue", sql, &[]).await?;
    let version = rows.first().map(|row| uint(row.get(0))).ok_or_else(|| damaged("the catalogue has no version"))?;
    let mut docs = Vec::with_capacity(rows.len());
    for row in &rows {
        let (Some(word), Some(path), Some(body)) =
            (row.get::<_, Option<&str>>(1), row.get::<_, Option<String>>(2), row.get::<_, Option<&str>>(3))
        else {
            continue;
        };
        // A kind of a later version is left alone: old and new processes run side by side during an upgrade.
        let Some(kind) = kind(word) else { continue };
        let body = serde_json::from_str(body).map_err(|_| damaged(&format!("the {word} '{path}' of the catalogue cannot be read")))?;
        docs.push(Doc { kind, path, body });
    }
    docs.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
    Ok((version, docs))
}

/// Applies all changes if the version is still `expected`, and tells all who listen; the new version.
pub(super) async fn write(db: &Db, schema: &str, expected: u64, changes: &[DocChange]) -> Result<Option<u64>> {
    let doing = "write the catalogue";
    // Whoever comes second waits here for the first, and then finds another version.
    let sql = "UPDATE meta SET value = value + 1 WHERE name = 'catalog_version' AND value = $1";
    if db.run(doing, sql, &[&int(expected)]).await? == 0 {
        return Ok(None);
    }
    for change in changes {
        match change {
            DocChange::Put(doc) => {
                let sql =
                    "INSERT INTO doc (kind, path, body) VALUES ($1, $2, $3) ON CONFLICT (kind, path) DO UPDATE SET body = excluded.body";
                db.run(doing, sql, &[&word(doc.kind), &doc.path, &doc.body.to_string()]).await?
            }
            DocChange::Remove(kind, path) => db.run(doing, "DELETE FROM doc WHERE kind = $1 AND path = $2", &[&word(*kind), path]).await?,
        };
    }
    // Told with the commit, not before.
    db.run(doing, "SELECT pg_notify($1, $2)", &[&channel(schema), &(expected + 1).to_string()]).await?;
    Ok(Some(expected + 1))
}
