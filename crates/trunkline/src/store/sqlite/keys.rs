//! Access keys: hashes under the catalogue's version.

use async_trait::async_trait;
use rusqlite::params;

use super::db::{Db, int, uint};
use super::errors::damaged;
use super::{SqliteStore, catalog};
use crate::error::Result;
use crate::store::keys::{KeyRow, KeyStore};

fn read(db: &Db) -> Result<(u64, Vec<KeyRow>)> {
    let sql = "SELECT id, role, name, hash, created_at, expires_at, revoked_at FROM access_key ORDER BY created_at, id";
    let rows = db.all("read the access keys", sql, [], |row| {
        let hash: Vec<u8> = row.get(3)?;
        let key = KeyRow {
            id: row.get(0)?,
            role: row.get(1)?,
            name: row.get(2)?,
            hash: [0; 32],
            created_at: uint(row.get(4)?),
            expires_at: row.get::<_, Option<i64>>(5)?.map(uint),
            revoked_at: row.get::<_, Option<i64>>(6)?.map(uint),
        };
        Ok((key, hash))
    })?;
    let whole = |(key, hash): (KeyRow, Vec<u8>)| {
        let hash = hash.try_into().map_err(|_| damaged("the hash of an access key cannot be read"))?;
        Ok(KeyRow { hash, ..key })
    };
    Ok((catalog::version(db)?, rows.into_iter().map(whole).collect::<Result<_>>()?))
}

fn write(db: &Db, expected: u64, row: &KeyRow) -> Result<Option<u64>> {
    let Some(version) = catalog::write(db, expected, &[])? else { return Ok(None) };
    db.run(
        "write an access key",
        "INSERT INTO access_key (id, role, name, hash, created_at, expires_at, revoked_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET revoked_at = excluded.revoked_at",
        params![row.id, row.role, row.name, &row.hash[..], int(row.created_at), row.expires_at.map(int), row.revoked_at.map(int)],
    )?;
    Ok(Some(version))
}

#[async_trait]
impl KeyStore for SqliteStore {
    async fn keys(&self) -> Result<(u64, Vec<KeyRow>)> {
        self.read(read).await
    }

    async fn key_write(&self, expected: u64, row: KeyRow) -> Result<Option<u64>> {
        self.write(1, move |db| write(db, expected, &row)).await
    }
}
