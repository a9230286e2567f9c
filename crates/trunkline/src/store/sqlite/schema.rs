//! The tables, and how older files are brought up to date.
//!
//! Times are ms since 1970. Numbers that may use all 64 bits (offsets, hashes) are stored as the signed number of the
//! same bits and never compared.

use rusqlite::Connection;

use super::db::begin_immediate;
use super::errors::{Doing, damaged, newer};
use crate::error::Result;

/// `Trnk`: says that the file is ours.
pub(super) const APPLICATION_ID: i64 = 0x5472_6e6b;

/// One entry for each version; entry n brings a file of version n to n + 1. Never change one that was released.
const MIGRATIONS: &[&str] = &[V1, V2, V3, V4, V5];

/// The version this code writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// The rows of the lot are split: `lot` is small and changes with each claim, `lot_body` is large and is written once.
/// `ready_at` is when an entry may be claimed: its due time, or the end of a claim; NULL for what is dead, or stands
/// behind another of its chain. So "due and not claimed" is one range of one index, however many are in hand.
const V1: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('catalog_version', 0), ('probe', 0);

CREATE TABLE doc (kind TEXT NOT NULL, path TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, path)) STRICT, WITHOUT ROWID;

CREATE TABLE target (
    id INTEGER PRIMARY KEY, product TEXT NOT NULL, env TEXT NOT NULL, broker TEXT NOT NULL, topic TEXT NOT NULL,
    grp TEXT NOT NULL, UNIQUE (product, env, broker, topic, grp)
) STRICT;

CREATE TABLE lot (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    target INTEGER NOT NULL REFERENCES target (id),
    state INTEGER NOT NULL,           -- 0 waiting, 1 publish, 2 dead
    id BLOB NOT NULL,
    chain INTEGER,
    shard INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    ready_at INTEGER,
    owner TEXT,                       -- who claimed it last; NULL: nobody
    attempts INTEGER NOT NULL,
    produced_at INTEGER NOT NULL,
    died_at INTEGER,
    reason TEXT,
    error_group TEXT,                 -- the error's first line, or the reason
    error TEXT,
    job TEXT,
    key_id INTEGER                    -- the data key of a session's subject; NULL: not encrypted
) STRICT;
CREATE UNIQUE INDEX lot_once ON lot (id, target);
CREATE UNIQUE INDEX lot_publish_once ON lot (id) WHERE state = 1;
CREATE INDEX lot_state ON lot (target, state, seq);
CREATE INDEX lot_ready ON lot (target, ready_at) WHERE state = 0 AND ready_at IS NOT NULL;
CREATE INDEX lot_publish_ready ON lot (ready_at) WHERE state = 1 AND ready_at IS NOT NULL;
CREATE INDEX lot_chain ON lot (target, shard, chain, seq, size) WHERE state = 0 AND chain IS NOT NULL;
CREATE UNIQUE INDEX lot_chain_active ON lot (target, shard, chain) WHERE state = 0 AND chain IS NOT NULL AND ready_at IS NOT NULL;
CREATE INDEX lot_dead_error ON lot (target, error_group, seq, reason, died_at) WHERE state = 2;

CREATE TABLE lot_body (
    seq INTEGER PRIMARY KEY REFERENCES lot (seq) ON DELETE CASCADE,
    format INTEGER NOT NULL,          -- of the headers
    key BLOB,
    headers BLOB NOT NULL,
    payload BLOB NOT NULL
) STRICT;

CREATE TABLE idempotency (
    key TEXT PRIMARY KEY, hash BLOB NOT NULL, id BLOB NOT NULL, owner TEXT NOT NULL, until INTEGER NOT NULL,
    sent_at INTEGER, window INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    taken_over INTEGER NOT NULL       -- 1: an earlier owner may have sent it
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency (expires_at);

CREATE TABLE dedupe_scope (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE dedupe (
    scope INTEGER NOT NULL, id BLOB NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (scope, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX dedupe_expires ON dedupe (expires_at);

CREATE TABLE lease (
    name TEXT PRIMARY KEY, owner TEXT NOT NULL, epoch INTEGER NOT NULL, until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE member (
    id TEXT PRIMARY KEY, product TEXT NOT NULL, env TEXT NOT NULL, event TEXT NOT NULL, last_seen_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX member_seen ON member (last_seen_at);

CREATE TABLE job (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, product TEXT NOT NULL, state TEXT NOT NULL, spec TEXT NOT NULL,
    cursor INTEGER NOT NULL, matched INTEGER NOT NULL, done INTEGER NOT NULL, failed INTEGER NOT NULL, skipped INTEGER NOT NULL,
    results TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX job_product ON job (product, created_at);
";

/// `lost` counts the claims that ended without an outcome. `lot_start` does that for a lot that lies on the broker, and
/// `lot_indexed` says how far its dead topics were read.
const V2: &str = "
ALTER TABLE lot ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
CREATE INDEX lot_suspect ON lot (target, ready_at) WHERE state = 0 AND lost >= 2;

CREATE TABLE lot_start (
    target INTEGER NOT NULL, id BLOB NOT NULL, count INTEGER NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (target, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX lot_start_expires ON lot_start (expires_at);

CREATE TABLE lot_indexed (target INTEGER PRIMARY KEY, next INTEGER NOT NULL) STRICT;
";

/// Secrets and access keys change under the catalogue's version. `audit_head` notes where the chain ends, so that rows that are
/// taken off its end are missed; what was written stays as it is.
const V3: &str = "
CREATE TABLE secret (
    id TEXT PRIMARY KEY, product TEXT, key TEXT NOT NULL, envs TEXT NOT NULL, sealed TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE access_key (
    id TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT, hash BLOB NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, call TEXT NOT NULL, target TEXT NOT NULL,
    outcome TEXT NOT NULL, previous BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE TABLE audit_head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
INSERT INTO audit_head VALUES (1, 0, zeroblob(32));
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
";

/// Sessions. An erased subject keeps its row without digest, identifier and key.
const V4: &str = "
CREATE TABLE session_key (
    id TEXT PRIMARY KEY, purpose TEXT NOT NULL, sealed TEXT NOT NULL, created_at INTEGER NOT NULL, verify_until INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE subject (
    id TEXT PRIMARY KEY, product TEXT NOT NULL, tag TEXT NOT NULL, digest BLOB, identifier TEXT NOT NULL, key TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX subject_digest ON subject (product, tag, digest);
CREATE INDEX subject_created ON subject (product, tag, created_at);

CREATE TABLE session (
    id TEXT PRIMARY KEY, product TEXT NOT NULL, tag TEXT NOT NULL, subject TEXT NOT NULL, env TEXT, data BLOB NOT NULL,
    started_at INTEGER NOT NULL, refreshed_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, refresh_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_tag ON session (product, tag, expires_at);
CREATE INDEX session_subject ON session (subject);
CREATE INDEX session_over ON session (refresh_until);

CREATE TABLE session_refresh (
    hash BLOB PRIMARY KEY, session TEXT NOT NULL REFERENCES session (id) ON DELETE CASCADE, used INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_refresh_session ON session_refresh (session);

CREATE TABLE session_revocation (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, product TEXT NOT NULL, tag TEXT NOT NULL, session TEXT, subject TEXT,
    at INTEGER NOT NULL, until INTEGER NOT NULL
) STRICT;
CREATE INDEX session_revocation_over ON session_revocation (until);
";

/// Values of caches, and schedules. `due_at` of a schedule is when it may be claimed by the wall clock (its due time, or when
/// a failed firing is tried again); `until` ends a claim by the store's clock.
const V5: &str = "
CREATE TABLE cache_value (
    scope TEXT NOT NULL, hash BLOB NOT NULL, env TEXT NOT NULL, event TEXT NOT NULL, id BLOB NOT NULL, owner TEXT NOT NULL,
    until INTEGER NOT NULL, expiry INTEGER NOT NULL, sent_at INTEGER, expires_at INTEGER NOT NULL, taken_over INTEGER NOT NULL,
    PRIMARY KEY (scope, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX cache_value_expires ON cache_value (expires_at);
CREATE INDEX cache_value_age ON cache_value (scope, sent_at);

CREATE TABLE schedule (
    id BLOB PRIMARY KEY, product TEXT NOT NULL, env TEXT NOT NULL, event TEXT NOT NULL, state TEXT NOT NULL,
    timing TEXT NOT NULL, format INTEGER NOT NULL, key BLOB, headers BLOB NOT NULL, payload BLOB NOT NULL, cache TEXT,
    next_at INTEGER, retry_at INTEGER, due_at INTEGER, firing_at INTEGER, owner TEXT, until INTEGER NOT NULL,
    fired INTEGER NOT NULL, missed INTEGER NOT NULL, failures INTEGER NOT NULL, error TEXT, last_at INTEGER, last_id BLOB,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX schedule_due ON schedule (due_at) WHERE state = 'active';
CREATE INDEX schedule_product ON schedule (product, env, created_at);
";

/// Brings the file to [`VERSION`]. Safe when several processes open it at once: each step looks again under the lock.
pub(super) fn migrate(db: &Connection, deadline: std::time::Instant) -> Result<()> {
    while version(db)? < VERSION {
        begin_immediate(db, deadline)?;
        let step = step(db);
        let end = if step.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = db.execute_batch(end).doing("bring the store up to date");
        step.and(ended)?;
    }
    Ok(())
}

fn step(db: &Connection) -> Result<()> {
    let from = version(db)?;
    if from == VERSION {
        return Ok(()); // another process was faster
    }
    let step =
        usize::try_from(from).ok().and_then(|at| MIGRATIONS.get(at)).ok_or_else(|| damaged("its version is not a number of versions"))?;
    db.execute_batch(step).doing("bring the store up to date")?;
    db.pragma_update(None, "application_id", APPLICATION_ID).doing("bring the store up to date")?;
    db.pragma_update(None, "user_version", from + 1).doing("bring the store up to date")
}

/// The version of the file; an error if it is newer, or not ours.
pub(super) fn version(db: &Connection) -> Result<i64> {
    // One statement, so that all three are of one moment: another process may be making the file right now.
    const ALL: &str = "SELECT (SELECT user_version FROM pragma_user_version), (SELECT application_id FROM pragma_application_id),
        (SELECT count(*) FROM sqlite_schema)";
    let (found, application, tables): (i64, i64, i64) =
        db.query_row(ALL, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).doing("read the store's version")?;
    check(found, application)?;
    if application == 0 && tables > 0 {
        return Err(damaged("it is a database of another program"));
    }
    Ok(found)
}

/// Whether a file with these numbers may be opened.
pub(super) fn check(version: i64, application: i64) -> Result<()> {
    match (version, application) {
        (0, 0) => Ok(()), // just created
        (_, APPLICATION_ID) if version > VERSION => Err(newer(version, VERSION)),
        (1.., APPLICATION_ID) => Ok(()),
        _ => Err(damaged("it is a database of another program")),
    }
}
