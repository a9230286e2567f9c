//! Secrets: sealed rows under the catalogue's version.

use async_trait::async_trait;
use tokio_postgres::Row;

use super::errors::damaged;
use super::link::{Db, retried};
use super::{PostgresStore, catalog};
use crate::error::Result;
use crate::store::DocChange;
use crate::store::common::{int, uint};
use crate::store::secrets::{SecretChange, SecretRow, SecretStore};

async fn read(db: &Db) -> Result<(u64, Vec<SecretRow>)> {
    // One statement, so that secrets and version are of one moment.
    let sql = "SELECT m.value, s.id, s.product, s.key, s.envs, s.sealed, s.created_at, s.updated_at
        FROM meta m LEFT JOIN secret s ON true WHERE m.name = 'catalog_version' ORDER BY s.id";
    let rows = db.all("read the secrets", sql, &[]).await?;
    let version = rows.first().map(|row| uint(row.get(0))).ok_or_else(|| damaged("the catalogue has no version"))?;
    Ok((version, rows.iter().filter_map(|row| row.get::<_, Option<String>>(1).map(|id| secret(row, id))).collect()))
}

fn secret(row: &Row, id: String) -> SecretRow {
    SecretRow {
        id,
        product: row.get(2),
        key: row.get(3),
        envs: row.get(4),
        sealed: row.get(5),
        created_at: uint(row.get(6)),
        updated_at: uint(row.get(7)),
    }
}

/// Changes secrets and documents, in a transaction.
async fn write(db: &Db, schema: &str, expected: u64, changes: &[SecretChange], docs: &[DocChange]) -> Result<Option<u64>> {
    let doing = "write a secret";
    let Some(version) = catalog::write(db, schema, expected, docs).await? else { return Ok(None) };
    for change in changes {
        match change {
            SecretChange::Put(row) => {
                let sql = "INSERT INTO secret (id, product, key, envs, sealed, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
                    ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at";
                let [created, updated] = [row.created_at, row.updated_at].map(int);
                db.run(doing, sql, &[&row.id, &row.product, &row.key, &row.envs, &row.sealed, &created, &updated]).await?
            }
            SecretChange::Remove(id) => db.run(doing, "DELETE FROM secret WHERE id = $1", &[id]).await?,
        };
    }
    Ok(Some(version))
}

#[async_trait]
impl SecretStore for PostgresStore {
    async fn secrets(&self) -> Result<(u64, Vec<SecretRow>)> {
        read(&self.db().await?).await
    }

    async fn secrets_write(&self, expected: u64, changes: Vec<SecretChange>, docs: Vec<DocChange>) -> Result<Option<u64>> {
        retried(|| async {
            let db = self.begin().await?;
            let version = write(&db, self.shared.schema(), expected, &changes, &docs).await?;
            db.commit().await?;
            Ok(version)
        })
        .await
    }
}
