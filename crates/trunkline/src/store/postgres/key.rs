//! Whether a master key is the one that the store's credentials are sealed with: every host must bring the same.

use super::PostgresStore;
use super::errors::damaged;
use crate::error::{Error, Result};
use crate::secret::{MASTER_KEY_ENV, MasterKey, Sealer};

/// What is sealed, and the record that it is sealed for.
const CHECK: &str = "store/master_key";

impl PostgresStore {
    /// Whether hosts agreed on a master key already.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn has_key(&self) -> Result<bool> {
        Ok(self.sealed_check().await?.is_some())
    }

    /// Checks the master key of this host; the first host's becomes the store's.
    ///
    /// # Errors
    /// `STORE_FAILED` with reason `master_key` if it is another one than that of the other hosts.
    pub async fn check_key(&self, key: &MasterKey) -> Result<()> {
        let sealer = Sealer::new(key);
        let sealed = sealer.seal(CHECK, key.id())?;
        let db = self.shared.db().await?;
        let sql = "INSERT INTO note (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        db.run("note the master key", sql, &[&CHECK, &sealed]).await?;
        drop(db);
        let kept = self.sealed_check().await?.ok_or_else(|| damaged("the check of the master key is gone"))?;
        sealer.open(CHECK, &kept).map(drop).map_err(|_| {
            Error::store("this host's master key is not the one of the store: its credentials could not be read")
                .reason("master_key")
                .detail("keyId", key.id())
                .detail("store", self.shared.link.target().location())
                .next(format!("set {MASTER_KEY_ENV} to the key of the first host, or copy its master.key into this host's data directory"))
        })
    }

    async fn sealed_check(&self) -> Result<Option<String>> {
        let row = self.shared.db().await?.first("read the master key's check", "SELECT value FROM note WHERE name = $1", &[&CHECK]).await?;
        Ok(row.map(|row| row.get(0)))
    }
}
