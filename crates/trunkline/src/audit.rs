//! The audit: who did what, when, and with which outcome, in a chain that shows when a row was changed, removed or moved.
//!
//! Every change made through the API, and every read of payloads, adds a row once its outcome is known. Produced and consumed
//! messages do not: the history has those. A row holds the SHA-256 of the row before it, and its own over all its fields.
//! Whoever can write the store can also compute a whole new chain: keep the hash that [`Audit::verify`] gives somewhere else.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::access::Call;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::message::Millis;
use crate::store::Store;
use crate::trunkline::Trunkline;

/// The most rows of one list.
pub const LIMIT_MAX: usize = 1_000;

/// What happened, before it has its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Who did it: `key:<id>`, or `local:<user>@<host>` where no key was asked for.
    pub actor: String,
    /// What was called, for example `brokers.create`.
    pub call: String,
    /// What it was done to.
    pub target: String,
    /// `ok`, or the code of the error.
    pub outcome: String,
}

/// A row of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Its number, from 1 without a gap.
    pub seq: u64,
    /// When, in ms since 1970.
    pub at: Millis,
    /// What happened.
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// The hash of the row before it; zeros for the first.
    #[serde(serialize_with = "hex")]
    pub previous: [u8; 32],
    /// Its own hash.
    #[serde(serialize_with = "hex")]
    pub hash: [u8; 32],
}

/// A hash in 64 hex digits.
fn hex<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex_text(hash))
}

fn hex_text(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl AuditRow {
    /// The row that follows number `seq` with the hash `previous`.
    #[must_use]
    pub fn after(seq: u64, previous: [u8; 32], at: Millis, entry: AuditEntry) -> Self {
        let mut row = AuditRow { seq: seq + 1, at, entry, previous, hash: [0; 32] };
        row.hash = row.digest();
        row
    }

    /// What its hash must be. Every text is preceded by its length, so that no two rows read alike.
    fn digest(&self) -> [u8; 32] {
        let AuditEntry { actor, call, target, outcome } = &self.entry;
        let mut hasher = Sha256::new();
        hasher.update(b"trunkline audit 1\0");
        hasher.update(self.previous);
        hasher.update(self.seq.to_le_bytes());
        hasher.update(self.at.to_le_bytes());
        for text in [actor, call, target, outcome] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        hasher.finalize().into()
    }
}

/// Which rows. Empty fields match all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Who.
    pub actor: Option<String>,
    /// The call, for example `secrets.rotate`.
    pub call: Option<String>,
    /// Stands somewhere in the target.
    pub target: Option<String>,
    /// `ok`, or a code.
    pub outcome: Option<String>,
    /// At or after, in ms since 1970.
    pub from: Option<Millis>,
    /// Before.
    pub to: Option<Millis>,
    /// Only rows with a higher number.
    pub after: Option<u64>,
    /// Only rows with a lower number: where the last page ended.
    pub before: Option<u64>,
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The first row that does not fit, or that is missing.
    pub seq: u64,
    /// `changed`, `removed` or `reordered`.
    pub what: &'static str,
}

/// What came of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Whether the chain is whole.
    pub ok: bool,
    /// How many rows fit, from the first on.
    pub rows: u64,
    /// The hash of the last row that fits, in hex: note it elsewhere, and a later chain can be held against it.
    pub hash: String,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
}

/// The audit of a workspace; only admins see it.
#[derive(Debug)]
pub struct Audit<'a>(&'a Arc<Inner>);

impl Trunkline {
    /// The audit.
    #[must_use]
    pub fn audit(&self) -> Audit<'_> {
        Audit(&self.0)
    }
}

impl Audit<'_> {
    /// Rows that match, newest first, at most `limit` (1 to 1,000). The next page is `before` the last row's number.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a limit out of range, `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditRow>> {
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Error::input("limit", format!("`limit` must be 1 to {LIMIT_MAX}")));
        }
        self.0.access.allow(Call::AuditRead)?;
        self.0.store.audit_rows(filter, limit, true).await
    }

    /// Goes through all rows and says whether each fits the one before it, and whether any is missing at the end.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`. A broken chain is a result, not an error.
    pub async fn verify(&self) -> Result<Verified> {
        self.0.access.allow(Call::AuditVerify)?;
        verify(self.0.store.as_ref()).await
    }
}

/// See [`Audit::verify`].
async fn verify(store: &dyn Store) -> Result<Verified> {
    // Taken first: rows that are added meanwhile lie behind it.
    let (end, noted) = store.audit_head().await?;
    let (mut last, mut hash) = (0, [0; 32]);
    let broken = 'rows: loop {
        let filter = AuditFilter { after: Some(last), ..AuditFilter::default() };
        let rows = store.audit_rows(&filter, LIMIT_MAX, false).await?;
        if rows.is_empty() {
            break (last < end).then_some(Broken { seq: last + 1, what: "removed" });
        }
        for row in rows {
            if let Some(what) = misfit(&row, last, &hash) {
                break 'rows Some(Broken { seq: last + 1, what });
            }
            (last, hash) = (row.seq, row.hash);
            if last == end && hash != noted {
                break 'rows Some(Broken { seq: last, what: "changed" });
            }
        }
    };
    Ok(Verified { ok: broken.is_none(), rows: last, hash: hex_text(&hash), broken })
}

/// Why a row cannot follow number `last` with this hash.
fn misfit(row: &AuditRow, last: u64, hash: &[u8; 32]) -> Option<&'static str> {
    match (row.seq == last + 1, row.hash == row.digest(), row.previous == *hash) {
        (true, true, true) => None,
        (false, _, _) => Some("removed"),
        // Its content is of this place, but its hash is not.
        (true, false, true) => Some("changed"),
        (true, true, false) => Some("removed"),
        // Neither fits: it is a whole row from another place.
        (true, false, false) => Some("reordered"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::store::sqlite::{Options, SqliteStore};

    fn entry(n: u64) -> AuditEntry {
        AuditEntry { actor: "key:a".into(), call: "topics.create".into(), target: format!("shop/orders:t{n}"), outcome: "ok".into() }
    }

    /// A store with 5 rows, then what `sql` does to its file behind its back.
    async fn tampered(sql: &str) -> Verified {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Options::default()).unwrap();
        crate::store::audit::AuditStore::audit_append(&store, (1..=5).map(entry).collect()).await.unwrap();
        let file = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
        file.execute_batch("DROP TRIGGER audit_stays; DROP TRIGGER audit_keeps;").unwrap();
        file.execute_batch(sql).unwrap();
        verify(&store).await.unwrap()
    }

    #[tokio::test]
    async fn every_kind_of_tampering_is_found() {
        let whole = tampered("").await;
        assert!(whole.ok && whole.rows == 5 && whole.hash.len() == 64);
        for (sql, seq, what) in [
            ("UPDATE audit SET target = 'shop/other' WHERE seq = 3", 3, "changed"),
            ("UPDATE audit SET actor = 'key:b' WHERE seq = 1", 1, "changed"),
            ("UPDATE audit SET at = at + 1 WHERE seq = 5", 5, "changed"),
            ("DELETE FROM audit WHERE seq = 2", 2, "removed"),
            ("DELETE FROM audit WHERE seq = 5", 5, "removed"),
            ("DELETE FROM audit", 1, "removed"),
            (
                "UPDATE audit SET seq = 9 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 9",
                2,
                "reordered",
            ),
        ] {
            let found = tampered(sql).await;
            assert_eq!((found.ok, found.broken), (false, Some(Broken { seq, what })), "{sql}");
        }
    }

    #[tokio::test]
    async fn rows_are_only_added() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Options::default()).unwrap();
        crate::store::audit::AuditStore::audit_append(&store, vec![entry(1)]).await.unwrap();
        let file = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
        assert!(file.execute_batch("UPDATE audit SET target = 'x'").is_err() && file.execute_batch("DELETE FROM audit").is_err());
        let filter = AuditFilter { target: Some("t1".into()), call: Some("topics.create".into()), ..AuditFilter::default() };
        assert_eq!(crate::store::audit::AuditStore::audit_rows(&store, &filter, 10, true).await.unwrap().len(), 1);
    }
}
