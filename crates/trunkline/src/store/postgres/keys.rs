//! Access keys: hashes under the catalogue's version.

use async_trait::async_trait;
use tokio_postgres::Row;

use super::errors::damaged;
use super::link::{Db, retried};
use super::lot::clean;
use super::{PostgresStore, catalog};
use crate::error::Result;
use crate::store::common::{int, uint};
use crate::store::keys::{KeyRow, KeyStore};

async fn read(db: &Db) -> Result<(u64, Vec<KeyRow>)> {
    // One statement, so that keys and version are of one moment.
    let sql = "SELECT m.value, k.id, k.role, k.name, k.hash, k.created_at, k.expires_at, k.revoked_at
        FROM meta m LEFT JOIN access_key k ON true WHERE m.name = 'catalog_version' ORDER BY k.created_at, k.id";
    let rows = db.all("read the access keys", sql, &[]).await?;
    let version = rows.first().map(|row| uint(row.get(0))).ok_or_else(|| damaged("the catalogue has no version"))?;
    Ok((version, rows.iter().filter_map(|row| row.get::<_, Option<String>>(1).map(|id| key(row, id))).collect::<Result<_>>()?))
}

fn key(row: &Row, id: String) -> Result<KeyRow> {
    let time = |at| row.get::<_, Option<i64>>(at).map(uint);
    Ok(KeyRow {
        id,
        role: row.get(2),
        name: row.get(3),
        hash: row.get::<_, &[u8]>(4).try_into().map_err(|_| damaged("the hash of an access key cannot be read"))?,
        created_at: uint(row.get(5)),
        expires_at: time(6),
        revoked_at: time(7),
    })
}

/// Inserts or revokes a key, in a transaction.
async fn write(db: &Db, schema: &str, expected: u64, row: &KeyRow) -> Result<Option<u64>> {
    let Some(version) = catalog::write(db, schema, expected, &[]).await? else { return Ok(None) };
    let sql = "INSERT INTO access_key (id, role, name, hash, created_at, expires_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (id) DO UPDATE SET revoked_at = excluded.revoked_at";
    let name = row.name.as_deref().map(clean);
    let [expires, revoked] = [row.expires_at, row.revoked_at].map(|at| at.map(int));
    db.run("write an access key", sql, &[&row.id, &row.role, &name, &&row.hash[..], &int(row.created_at), &expires, &revoked]).await?;
    Ok(Some(version))
}

#[async_trait]
impl KeyStore for PostgresStore {
    async fn keys(&self) -> Result<(u64, Vec<KeyRow>)> {
        read(&self.db().await?).await
    }

    async fn key_write(&self, expected: u64, row: KeyRow) -> Result<Option<u64>> {
        retried(|| async {
            let db = self.begin().await?;
            let version = write(&db, self.shared.schema(), expected, &row).await?;
            db.commit().await?;
            Ok(version)
        })
        .await
    }
}
