//! The catalogue: documents under one version.

use rusqlite::params;
use serde_json::Value;

use super::db::{Db, int, uint};
use super::errors::damaged;
use crate::error::Result;
use crate::store::{Doc, DocChange, DocKind};

pub(super) fn word(kind: DocKind) -> &'static str {
    match kind {
        DocKind::Product => "product",
        DocKind::Broker => "broker",
        DocKind::Topic => "topic",
        DocKind::Group => "group",
        DocKind::Session => "session",
        DocKind::Cache => "cache",
    }
}

fn kind(word: &str) -> Option<DocKind> {
    use DocKind::{Broker, Cache, Group, Product, Session, Topic};
    [Product, Broker, Topic, Group, Session, Cache].into_iter().find(|kind| self::word(*kind) == word)
}

/// The catalogue's version.
pub(super) fn version(db: &Db) -> Result<u64> {
    db.first("read the catalogue's version", "SELECT value FROM meta WHERE name = 'catalog_version'", [], |row| row.get(0))?
        .map(uint)
        .ok_or_else(|| damaged("the catalogue has no version"))
}

/// The whole catalogue, by kind and path.
pub(super) fn read(db: &Db) -> Result<(u64, Vec<Doc>)> {
    let rows = db.all("read the catalogue", "SELECT kind, path, body FROM doc", [], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    })?;
    let mut docs = Vec::with_capacity(rows.len());
    for (word, path, body) in rows {
        // A kind of a later version is left alone: old and new processes run side by side during an upgrade.
        let Some(kind) = kind(&word) else { continue };
        let body: Value =
            serde_json::from_str(&body).map_err(|_| damaged(&format!("the {word} '{path}' of the catalogue cannot be read")))?;
        docs.push(Doc { kind, path, body });
    }
    docs.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
    Ok((version(db)?, docs))
}

/// Applies all changes if the version is still `expected`; the new version.
pub(super) fn write(db: &Db, expected: u64, changes: &[DocChange]) -> Result<Option<u64>> {
    let doing = "write the catalogue";
    if version(db)? != expected {
        return Ok(None);
    }
    for change in changes {
        match change {
            DocChange::Put(doc) => db.run(
                doing,
                "INSERT INTO doc (kind, path, body) VALUES (?1, ?2, ?3) ON CONFLICT (kind, path) DO UPDATE SET body = excluded.body",
                params![word(doc.kind), doc.path, doc.body.to_string()],
            )?,
            DocChange::Remove(kind, path) => db.run(doing, "DELETE FROM doc WHERE kind = ?1 AND path = ?2", params![word(*kind), path])?,
        };
    }
    db.run(doing, "UPDATE meta SET value = ?1 WHERE name = 'catalog_version'", [int(expected + 1)])?;
    Ok(Some(expected + 1))
}
