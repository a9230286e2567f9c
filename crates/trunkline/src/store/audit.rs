//! What the store keeps of the audit: rows that are only ever added, each with the hash of the one before it.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::audit::{AuditEntry, AuditFilter, AuditRow};
use crate::error::Result;

/// Rows are numbered from 1 without a gap, and never changed.
#[async_trait]
pub trait AuditStore: Send + Sync + Debug {
    /// Adds rows behind the last one, in their order; number, time and hashes are given in the same transaction, which also
    /// notes where the chain ends.
    async fn audit_append(&self, entries: Vec<AuditEntry>) -> Result<()>;

    /// Rows that match, by number; descending if `newest_first`.
    async fn audit_rows(&self, filter: &AuditFilter, limit: usize, newest_first: bool) -> Result<Vec<AuditRow>>;

    /// Number and hash of the last row as they were noted beside the rows; number 0 before the first.
    async fn audit_head(&self) -> Result<(u64, [u8; 32])>;
}
