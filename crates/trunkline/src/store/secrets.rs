//! What the store keeps of secrets: sealed texts under a name and a scope. It never sees one open.

use std::fmt::Debug;

use async_trait::async_trait;

use super::DocChange;
use crate::error::Result;
use crate::message::Millis;

/// A secret as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// What it is sealed for; unique. Made of product, key and envs.
    pub id: String,
    /// The product it belongs to; `None`: every product.
    pub product: Option<String>,
    /// Its name, as `$Secret{KEY}` says it.
    pub key: String,
    /// The envs it is for, sorted; empty: every env.
    pub envs: Vec<String>,
    /// The sealed value.
    pub sealed: String,
    /// When it was made.
    pub created_at: Millis,
    /// When it was last rotated.
    pub updated_at: Millis,
}

/// A change to the secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretChange {
    /// Insert or replace.
    Put(SecretRow),
    /// Remove, by id; what is not there stays away.
    Remove(String),
}

/// Secrets share the catalogue's version, so that whoever follows the catalogue learns of a rotated one.
#[async_trait]
pub trait SecretStore: Send + Sync + Debug {
    /// All secrets, and the catalogue's version they are of.
    async fn secrets(&self) -> Result<(u64, Vec<SecretRow>)>;

    /// Applies all changes or none, to secrets and catalogue in one transaction, if the catalogue's version is still
    /// `expected`; the new version, or `None` if another was faster.
    async fn secrets_write(&self, expected: u64, changes: Vec<SecretChange>, docs: Vec<DocChange>) -> Result<Option<u64>>;
}
