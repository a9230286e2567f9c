//! Locks on what is no row: a chain's order, the suspects of a group, the upgrade of a schema.
//!
//! They are held to the end of a transaction, never by a session, so that a process that dies or a connection that breaks
//! gives them back.

use xxhash_rust::xxh3::Xxh3;

use super::link::Db;
use crate::error::Result;

/// The number of what these parts name.
pub(super) fn number(parts: &[&[u8]]) -> i64 {
    let mut hash = Xxh3::new();
    hash.update(b"trunkline");
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest().cast_signed()
}

/// Takes them for the rest of the transaction, lowest number first, so that nobody waits for each other.
pub(super) async fn take(db: &Db, numbers: &[i64]) -> Result<()> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.is_empty() {
        return Ok(());
    }
    // In the order of the list: a sort below the call would be allowed to come after it.
    db.run("wait for others", "SELECT pg_advisory_xact_lock(n) FROM unnest($1::bigint[]) AS n", &[&numbers]).await.map(drop)
}
