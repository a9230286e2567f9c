//! Secrets: sealed rows under the catalogue's version.

use async_trait::async_trait;
use rusqlite::params;

use super::db::{Db, int, uint};
use super::errors::damaged;
use super::{SqliteStore, catalog};
use crate::error::Result;
use crate::store::DocChange;
use crate::store::secrets::{SecretChange, SecretRow, SecretStore};

fn read(db: &Db) -> Result<(u64, Vec<SecretRow>)> {
    let sql = "SELECT id, product, key, envs, sealed, created_at, updated_at FROM secret ORDER BY id";
    let rows = db.all("read the secrets", sql, [], |row| {
        let envs: String = row.get(3)?;
        let secret = SecretRow {
            id: row.get(0)?,
            product: row.get(1)?,
            key: row.get(2)?,
            envs: Vec::new(),
            sealed: row.get(4)?,
            created_at: uint(row.get(5)?),
            updated_at: uint(row.get(6)?),
        };
        Ok((secret, envs))
    })?;
    let whole = |(secret, envs): (SecretRow, String)| {
        let envs = serde_json::from_str(&envs).map_err(|_| damaged("a secret's envs cannot be read"))?;
        Ok(SecretRow { envs, ..secret })
    };
    Ok((catalog::version(db)?, rows.into_iter().map(whole).collect::<Result<_>>()?))
}

fn write(db: &Db, expected: u64, changes: &[SecretChange], docs: &[DocChange]) -> Result<Option<u64>> {
    let doing = "write a secret";
    let Some(version) = catalog::write(db, expected, docs)? else { return Ok(None) };
    for change in changes {
        match change {
            SecretChange::Put(row) => db.run(
                doing,
                "INSERT INTO secret (id, product, key, envs, sealed, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at",
                params![
                    row.id,
                    row.product,
                    row.key,
                    serde_json::Value::from(row.envs.clone()).to_string(),
                    row.sealed,
                    int(row.created_at),
                    int(row.updated_at)
                ],
            )?,
            SecretChange::Remove(id) => db.run(doing, "DELETE FROM secret WHERE id = ?1", [id])?,
        };
    }
    Ok(Some(version))
}

#[async_trait]
impl SecretStore for SqliteStore {
    async fn secrets(&self) -> Result<(u64, Vec<SecretRow>)> {
        self.read(read).await
    }

    async fn secrets_write(&self, expected: u64, changes: Vec<SecretChange>, docs: Vec<DocChange>) -> Result<Option<u64>> {
        self.write(changes.len() + docs.len() + 1, move |db| write(db, expected, &changes, &docs)).await
    }
}
