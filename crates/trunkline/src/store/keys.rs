//! What the store keeps of access keys: a hash, a role, and how long it holds. The text of a key is nowhere.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::Result;
use crate::message::Millis;

/// An access key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// The public part of its text; unique.
    pub id: String,
    /// The word of its role.
    pub role: String,
    /// What its maker calls it.
    pub name: Option<String>,
    /// SHA-256 of the secret part of its text.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Millis,
    /// From when on it opens nothing.
    pub expires_at: Option<Millis>,
    /// When it was revoked.
    pub revoked_at: Option<Millis>,
}

/// Keys share the catalogue's version, so that whoever follows the catalogue learns of a revoked one.
#[async_trait]
pub trait KeyStore: Send + Sync + Debug {
    /// All keys, the revoked ones too, oldest first, and the catalogue's version they are of.
    async fn keys(&self) -> Result<(u64, Vec<KeyRow>)>;

    /// Inserts or replaces a key, if the catalogue's version is still `expected`; the new version, or `None` if another was
    /// faster.
    async fn key_write(&self, expected: u64, row: KeyRow) -> Result<Option<u64>>;
}
