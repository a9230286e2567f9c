//! Secrets, access keys, audit, sessions, caches and schedules, row by row.

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Row, params};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::Read;
use crate::error::Result;
use crate::store::sqlite::db::{Db, message_id};
use crate::store::sqlite::errors::Doing;
use crate::store::transfer::{
    AccessKeyRecord, AuditRecord, Blob, CacheRecord, Record, RevocationRecord, ScheduleRow, SecretRecord, SessionKeyRecord, SessionRecord,
    SubjectRecord,
};

const DOING: &str = "take a copy in";

/// Queries, and what makes a record of each row. Sessions stand behind their subjects, and their tokens behind them.
pub(super) const ROWS: [(&str, Read); 11] = [
    ("SELECT id, product, key, envs, sealed, created_at, updated_at FROM secret ORDER BY id", secret),
    ("SELECT id, role, name, hash, created_at, expires_at, revoked_at FROM access_key ORDER BY created_at, id", access_key),
    ("SELECT seq, at, actor, call, target, outcome, previous, hash FROM audit ORDER BY seq", audit),
    ("SELECT seq, hash FROM audit_head", |row| Ok(Record::AuditHead { seq: row.get(0)?, hash: blob(row, 1)? })),
    ("SELECT id, purpose, sealed, created_at, verify_until FROM session_key ORDER BY id", session_key),
    ("SELECT id, product, tag, digest, identifier, key, created_at FROM subject ORDER BY id", subject),
    ("SELECT id, product, tag, subject, env, data, started_at, refreshed_at, expires_at, refresh_until FROM session ORDER BY id", session),
    ("SELECT hash, session, used FROM session_refresh ORDER BY hash", |row| {
        Ok(Record::Refresh { hash: blob(row, 0)?, session: row.get(1)?, used: row.get(2)? })
    }),
    ("SELECT seq, product, tag, session, subject, at, until FROM session_revocation ORDER BY seq", revocation),
    ("SELECT scope, hash, env, event, id, expiry, sent_at, expires_at FROM cache_value ORDER BY scope, hash", cache_value),
    (
        "SELECT id, product, env, event, state, timing, format, key, headers, payload, cache, next_at, retry_at, due_at, firing_at, fired,
             missed, failures, error, last_at, last_id, created_at, updated_at FROM schedule ORDER BY id",
        schedule,
    ),
];

fn blob(row: &Row<'_>, at: usize) -> rusqlite::Result<Blob> {
    row.get(at).map(Blob)
}

fn blob_or_null(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Blob>> {
    Ok(row.get::<_, Option<Vec<u8>>>(at)?.map(Blob))
}

fn uuid_or_null(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Uuid>> {
    if row.get_ref(at)? == ValueRef::Null { Ok(None) } else { message_id(row, at).map(|id| Some(id.0)) }
}

fn json<T: DeserializeOwned>(row: &Row<'_>, at: usize) -> rusqlite::Result<T> {
    let text: String = row.get(at)?;
    serde_json::from_str(&text).map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error)))
}

fn secret(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::Secret(Box::new(SecretRecord {
        id: row.get(0)?,
        product: row.get(1)?,
        key: row.get(2)?,
        envs: json(row, 3)?,
        sealed: row.get(4)?,
        created_at: row.get(5)?,
        updated_at: row.get(6)?,
    })))
}

fn access_key(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::AccessKey(Box::new(AccessKeyRecord {
        id: row.get(0)?,
        role: row.get(1)?,
        name: row.get(2)?,
        hash: blob(row, 3)?,
        created_at: row.get(4)?,
        expires_at: row.get(5)?,
        revoked_at: row.get(6)?,
    })))
}

fn audit(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::Audit(Box::new(AuditRecord {
        seq: row.get(0)?,
        at: row.get(1)?,
        actor: row.get(2)?,
        call: row.get(3)?,
        target: row.get(4)?,
        outcome: row.get(5)?,
        previous: blob(row, 6)?,
        hash: blob(row, 7)?,
    })))
}

fn session_key(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::SessionKey(Box::new(SessionKeyRecord {
        id: row.get(0)?,
        purpose: row.get(1)?,
        sealed: row.get(2)?,
        created_at: row.get(3)?,
        verify_until: row.get(4)?,
    })))
}

fn subject(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::Subject(Box::new(SubjectRecord {
        id: row.get(0)?,
        product: row.get(1)?,
        tag: row.get(2)?,
        digest: blob_or_null(row, 3)?,
        identifier: row.get(4)?,
        key: row.get(5)?,
        created_at: row.get(6)?,
    })))
}

fn session(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::Session(Box::new(SessionRecord {
        id: row.get(0)?,
        product: row.get(1)?,
        tag: row.get(2)?,
        subject: row.get(3)?,
        env: row.get(4)?,
        data: blob(row, 5)?,
        started_at: row.get(6)?,
        refreshed_at: row.get(7)?,
        expires_at: row.get(8)?,
        refresh_until: row.get(9)?,
    })))
}

fn revocation(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::Revocation(Box::new(RevocationRecord {
        seq: row.get(0)?,
        product: row.get(1)?,
        tag: row.get(2)?,
        session: row.get(3)?,
        subject: row.get(4)?,
        at: row.get(5)?,
        until: row.get(6)?,
    })))
}

fn cache_value(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::CacheValue(Box::new(CacheRecord {
        scope: row.get(0)?,
        hash: blob(row, 1)?,
        env: row.get(2)?,
        event: row.get(3)?,
        id: message_id(row, 4)?.0,
        expiry: row.get(5)?,
        sent_at: row.get(6)?,
        expires_at: row.get(7)?,
    })))
}

fn schedule(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record::Schedule(Box::new(ScheduleRow {
        id: message_id(row, 0)?.0,
        product: row.get(1)?,
        env: row.get(2)?,
        event: row.get(3)?,
        state: row.get(4)?,
        timing: json(row, 5)?,
        format: row.get(6)?,
        key: blob_or_null(row, 7)?,
        headers: blob(row, 8)?,
        payload: blob(row, 9)?,
        cache: row.get(10)?,
        next_at: row.get(11)?,
        retry_at: row.get(12)?,
        due_at: row.get(13)?,
        firing_at: row.get(14)?,
        fired: row.get(15)?,
        missed: row.get(16)?,
        failures: row.get(17)?,
        error: row.get(18)?,
        last_at: row.get(19)?,
        last_id: uuid_or_null(row, 20)?,
        created_at: row.get(21)?,
        updated_at: row.get(22)?,
    })))
}

/// Takes a record of these kinds in; how many rows that made. Others make none.
pub(super) fn put(db: &Db, record: &Record) -> Result<usize> {
    match record {
        Record::Secret(of) => {
            let sql = "INSERT OR IGNORE INTO secret (id, product, key, envs, sealed, created_at, updated_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let envs = serde_json::Value::from(of.envs.clone()).to_string();
            db.run(DOING, sql, params![of.id, of.product, of.key, envs, of.sealed, of.created_at, of.updated_at])
        }
        Record::AccessKey(of) => {
            let sql = "INSERT OR IGNORE INTO access_key (id, role, name, hash, created_at, expires_at, revoked_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            db.run(DOING, sql, params![of.id, of.role, of.name, of.hash.0, of.created_at, of.expires_at, of.revoked_at])
        }
        Record::Audit(of) => {
            let sql = "INSERT OR IGNORE INTO audit (seq, at, actor, call, target, outcome, previous, hash)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            db.run(DOING, sql, params![of.seq, of.at, of.actor, of.call, of.target, of.outcome, of.previous.0, of.hash.0])
        }
        Record::AuditHead { seq, hash } => db.run(DOING, "UPDATE audit_head SET seq = ?1, hash = ?2 WHERE seq < ?1", params![seq, hash.0]),
        Record::CacheValue(of) => {
            let sql =
                "INSERT OR IGNORE INTO cache_value (scope, hash, env, event, id, owner, until, expiry, sent_at, expires_at, taken_over)
                VALUES (?1, ?2, ?3, ?4, ?5, '', 0, ?6, ?7, ?8, 1)";
            let id = &of.id.as_bytes()[..];
            db.run(DOING, sql, params![of.scope, of.hash.0, of.env, of.event, id, of.expiry, of.sent_at, of.expires_at])
        }
        Record::Schedule(of) => put_schedule(db, of),
        other => put_session(db, other),
    }
}

fn put_session(db: &Db, record: &Record) -> Result<usize> {
    match record {
        Record::SessionKey(of) => {
            let sql = "INSERT OR IGNORE INTO session_key (id, purpose, sealed, created_at, verify_until) VALUES (?1, ?2, ?3, ?4, ?5)";
            db.run(DOING, sql, params![of.id, of.purpose, of.sealed, of.created_at, of.verify_until])
        }
        Record::Subject(of) => {
            let sql = "INSERT OR IGNORE INTO subject (id, product, tag, digest, identifier, key, created_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let digest = of.digest.as_ref().map(|digest| &digest.0);
            db.run(DOING, sql, params![of.id, of.product, of.tag, digest, of.identifier, of.key, of.created_at])
        }
        Record::Session(of) => {
            let sql = "INSERT OR IGNORE INTO session
                    (id, product, tag, subject, env, data, started_at, refreshed_at, expires_at, refresh_until)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
            let times = [of.started_at, of.refreshed_at, of.expires_at, of.refresh_until];
            let [started, refreshed, expires, refresh_until] = times;
            let of = params![of.id, of.product, of.tag, of.subject, of.env, of.data.0, started, refreshed, expires, refresh_until];
            db.run(DOING, sql, of)
        }
        Record::Refresh { hash, session, used } => {
            let sql = "INSERT OR IGNORE INTO session_refresh (hash, session, used) VALUES (?1, ?2, ?3)";
            db.run(DOING, sql, params![hash.0, session, used])
        }
        Record::Revocation(of) => {
            let sql = "INSERT OR IGNORE INTO session_revocation (seq, product, tag, session, subject, at, until)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            db.run(DOING, sql, params![of.seq, of.product, of.tag, of.session, of.subject, of.at, of.until])
        }
        _ => Ok(0),
    }
}

/// One that was being fired counts as taken over from an owner that died, so that it keeps its id.
fn put_schedule(db: &Db, of: &ScheduleRow) -> Result<usize> {
    let sql = "INSERT OR IGNORE INTO schedule (id, product, env, event, state, timing, format, key, headers, payload, cache, next_at,
            retry_at, due_at, firing_at, owner, until, fired, missed, failures, error, last_at, last_id, created_at, updated_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, CASE WHEN ?15 IS NOT NULL THEN '' END, 0, ?16, ?17,
            ?18, ?19, ?20, ?21, ?22, ?23)";
    let (id, last_id) = (&of.id.as_bytes()[..], of.last_id.as_ref().map(|id| &id.as_bytes()[..]));
    let cells = params![
        id,
        of.product,
        of.env,
        of.event,
        of.state,
        of.timing.to_string(),
        of.format,
        of.key.as_ref().map(|key| &key.0),
        of.headers.0,
        of.payload.0,
        of.cache,
        of.next_at,
        of.retry_at,
        of.due_at,
        of.firing_at,
        of.fired,
        of.missed,
        of.failures,
        of.error,
        of.last_at,
        last_id,
        of.created_at,
        of.updated_at
    ];
    db.run(DOING, sql, cells)
}

/// Empties the audit, whose rows nothing else may remove, and puts its guard back in the same transaction.
pub(super) fn clear_audit(db: &Db) -> Result<()> {
    const GUARD: &str = "CREATE TRIGGER audit_keeps BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;";
    let sql = format!("DROP TRIGGER audit_keeps; DELETE FROM audit; {GUARD} UPDATE audit_head SET seq = 0, hash = zeroblob(32);");
    db.conn.execute_batch(&sql).doing("empty the audit")
}
