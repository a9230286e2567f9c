//! Secrets, access keys, audit, sessions, caches and schedules, row by row.

use tokio_postgres::Row;

use super::Read;
use crate::error::Result;
use crate::store::postgres::errors::damaged;
use crate::store::postgres::link::Db;
use crate::store::postgres::lot::clean;
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
    ("SELECT seq, hash FROM audit_head", |row| Ok(Record::AuditHead { seq: row.get(0), hash: Blob(row.get(1)) })),
    ("SELECT id, purpose, sealed, created_at, verify_until FROM session_key ORDER BY id", session_key),
    ("SELECT id, product, tag, digest, identifier, key, created_at FROM subject ORDER BY id", subject),
    ("SELECT id, product, tag, subject, env, data, started_at, refreshed_at, expires_at, refresh_until FROM session ORDER BY id", session),
    ("SELECT hash, session, used FROM session_refresh ORDER BY hash", |row| {
        Ok(Record::Refresh { hash: Blob(row.get(0)), session: row.get(1), used: row.get(2) })
    }),
    ("SELECT seq, product, tag, session, subject, at, until FROM session_revocation ORDER BY seq", revocation),
    ("SELECT scope, hash, env, event, id, expiry, sent_at, expires_at FROM cache_value ORDER BY scope, hash", cache_value),
    (
        "SELECT id, product, env, event, state, timing, format, key, headers, payload, cache, next_at, retry_at, due_at, firing_at, fired,
             missed, failures, error, last_at, last_id, created_at, updated_at FROM schedule ORDER BY id",
        schedule,
    ),
];

fn json(row: &Row, at: usize) -> Result<serde_json::Value> {
    serde_json::from_str(row.get(at)).map_err(|_| damaged("a schedule's timing cannot be read"))
}

fn secret(row: &Row) -> Result<Record> {
    Ok(Record::Secret(Box::new(SecretRecord {
        id: row.get(0),
        product: row.get(1),
        key: row.get(2),
        envs: row.get(3),
        sealed: row.get(4),
        created_at: row.get(5),
        updated_at: row.get(6),
    })))
}

fn access_key(row: &Row) -> Result<Record> {
    Ok(Record::AccessKey(Box::new(AccessKeyRecord {
        id: row.get(0),
        role: row.get(1),
        name: row.get(2),
        hash: Blob(row.get(3)),
        created_at: row.get(4),
        expires_at: row.get(5),
        revoked_at: row.get(6),
    })))
}

fn audit(row: &Row) -> Result<Record> {
    Ok(Record::Audit(Box::new(AuditRecord {
        seq: row.get(0),
        at: row.get(1),
        actor: row.get(2),
        call: row.get(3),
        target: row.get(4),
        outcome: row.get(5),
        previous: Blob(row.get(6)),
        hash: Blob(row.get(7)),
    })))
}

fn session_key(row: &Row) -> Result<Record> {
    Ok(Record::SessionKey(Box::new(SessionKeyRecord {
        id: row.get(0),
        purpose: row.get(1),
        sealed: row.get(2),
        created_at: row.get(3),
        verify_until: row.get(4),
    })))
}

fn subject(row: &Row) -> Result<Record> {
    Ok(Record::Subject(Box::new(SubjectRecord {
        id: row.get(0),
        product: row.get(1),
        tag: row.get(2),
        digest: row.get::<_, Option<Vec<u8>>>(3).map(Blob),
        identifier: row.get(4),
        key: row.get(5),
        created_at: row.get(6),
    })))
}

fn session(row: &Row) -> Result<Record> {
    Ok(Record::Session(Box::new(SessionRecord {
        id: row.get(0),
        product: row.get(1),
        tag: row.get(2),
        subject: row.get(3),
        env: row.get(4),
        data: Blob(row.get(5)),
        started_at: row.get(6),
        refreshed_at: row.get(7),
        expires_at: row.get(8),
        refresh_until: row.get(9),
    })))
}

fn revocation(row: &Row) -> Result<Record> {
    Ok(Record::Revocation(Box::new(RevocationRecord {
        seq: row.get(0),
        product: row.get(1),
        tag: row.get(2),
        session: row.get(3),
        subject: row.get(4),
        at: row.get(5),
        until: row.get(6),
    })))
}

fn cache_value(row: &Row) -> Result<Record> {
    Ok(Record::CacheValue(Box::new(CacheRecord {
        scope: row.get(0),
        hash: Blob(row.get(1)),
        env: row.get(2),
        event: row.get(3),
        id: row.get(4),
        expiry: row.get(5),
        sent_at: row.get(6),
        expires_at: row.get(7),
    })))
}

fn schedule(row: &Row) -> Result<Record> {
    Ok(Record::Schedule(Box::new(ScheduleRow {
        id: row.get(0),
        product: row.get(1),
        env: row.get(2),
        event: row.get(3),
        state: row.get(4),
        timing: json(row, 5)?,
        format: row.get(6),
        key: row.get::<_, Option<Vec<u8>>>(7).map(Blob),
        headers: Blob(row.get(8)),
        payload: Blob(row.get(9)),
        cache: row.get(10),
        next_at: row.get(11),
        retry_at: row.get(12),
        due_at: row.get(13),
        firing_at: row.get(14),
        fired: row.get(15),
        missed: row.get(16),
        failures: row.get(17),
        error: row.get(18),
        last_at: row.get(19),
        last_id: row.get(20),
        created_at: row.get(21),
        updated_at: row.get(22),
    })))
}

/// Takes a record of these kinds in; how many rows that made. Others make none.
pub(super) async fn put(db: &Db, record: &Record) -> Result<u64> {
    match record {
        Record::Secret(of) => {
            let sql = "INSERT INTO secret (id, product, key, envs, sealed, created_at, updated_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
            db.run(DOING, sql, &[&of.id, &of.product, &of.key, &of.envs, &of.sealed, &of.created_at, &of.updated_at]).await
        }
        Record::AccessKey(of) => {
            let sql = "INSERT INTO access_key (id, role, name, hash, created_at, expires_at, revoked_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
            let name = of.name.as_deref().map(clean);
            db.run(DOING, sql, &[&of.id, &of.role, &name, &of.hash.0, &of.created_at, &of.expires_at, &of.revoked_at]).await
        }
        Record::Audit(of) => {
            let sql = "INSERT INTO audit (seq, at, actor, call, target, outcome, previous, hash)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
            let (previous, hash) = (&of.previous.0, &of.hash.0);
            db.run(DOING, sql, &[&of.seq, &of.at, &of.actor, &of.call, &of.target, &of.outcome, previous, hash]).await
        }
        Record::AuditHead { seq, hash } => db.run(DOING, "UPDATE audit_head SET seq = $1, hash = $2 WHERE seq < $1", &[seq, &hash.0]).await,
        Record::CacheValue(of) => {
            let sql = "INSERT INTO cache_value (scope, hash, env, event, id, owner, until, expiry, sent_at, expires_at, taken_over)
                VALUES ($1, $2, $3, $4, $5, '', 0, $6, $7, $8, true) ON CONFLICT DO NOTHING";
            let (hash, sent, expires) = (&of.hash.0, &of.sent_at, &of.expires_at);
            db.run(DOING, sql, &[&of.scope, hash, &of.env, &of.event, &of.id, &of.expiry, sent, expires]).await
        }
        Record::Schedule(of) => put_schedule(db, of).await,
        other => put_session(db, other).await,
    }
}

async fn put_session(db: &Db, record: &Record) -> Result<u64> {
    match record {
        Record::SessionKey(of) => {
            let sql = "INSERT INTO session_key (id, purpose, sealed, created_at, verify_until) VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT DO NOTHING";
            db.run(DOING, sql, &[&of.id, &of.purpose, &of.sealed, &of.created_at, &of.verify_until]).await
        }
        Record::Subject(of) => {
            let sql = "INSERT INTO subject (id, product, tag, digest, identifier, key, created_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
            let digest = of.digest.as_ref().map(|digest| &digest.0);
            db.run(DOING, sql, &[&of.id, &of.product, &of.tag, &digest, &of.identifier, &of.key, &of.created_at]).await
        }
        Record::Session(of) => {
            let sql = "INSERT INTO session
                    (id, product, tag, subject, env, data, started_at, refreshed_at, expires_at, refresh_until)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
            let (started, refreshed, expires, until) = (&of.started_at, &of.refreshed_at, &of.expires_at, &of.refresh_until);
            let (product, tag, subject) = (&of.product, &of.tag, &of.subject);
            db.run(DOING, sql, &[&of.id, product, tag, subject, &of.env, &of.data.0, started, refreshed, expires, until]).await
        }
        Record::Refresh { hash, session, used } => {
            let sql = "INSERT INTO session_refresh (hash, session, used) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            db.run(DOING, sql, &[&hash.0, session, used]).await
        }
        Record::Revocation(of) => {
            let sql = "INSERT INTO session_revocation (seq, product, tag, session, subject, at, until)
                VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
            let rows = db.run(DOING, sql, &[&of.seq, &of.product, &of.tag, &of.session, &of.subject, &of.at, &of.until]).await?;
            let next = "SELECT setval(pg_get_serial_sequence('session_revocation', 'seq'), (SELECT max(seq) FROM session_revocation))";
            db.run(DOING, next, &[]).await?;
            Ok(rows)
        }
        _ => Ok(0),
    }
}

/// One that was being fired counts as taken over from an owner that died, so that it keeps its id.
async fn put_schedule(db: &Db, of: &ScheduleRow) -> Result<u64> {
    let sql = "INSERT INTO schedule (id, product, env, event, state, timing, format, key, headers, payload, cache, next_at,
            retry_at, due_at, firing_at, owner, until, fired, missed, failures, error, last_at, last_id, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, CASE WHEN $15::bigint IS NOT NULL THEN '' END, 0, $16, $17,
            $18, $19, $20, $21, $22, $23) ON CONFLICT DO NOTHING";
    let (timing, key, error) = (of.timing.to_string(), of.key.as_ref().map(|key| &key.0), of.error.as_deref().map(clean));
    db.run(
        DOING,
        sql,
        &[
            &of.id,
            &of.product,
            &of.env,
            &of.event,
            &of.state,
            &timing,
            &of.format,
            &key,
            &of.headers.0,
            &of.payload.0,
            &of.cache,
            &of.next_at,
            &of.retry_at,
            &of.due_at,
            &of.firing_at,
            &of.fired,
            &of.missed,
            &of.failures,
            &error,
            &of.last_at,
            &of.last_id,
            &of.created_at,
            &of.updated_at,
        ],
    )
    .await
}

/// Empties the audit, whose rows nothing else may remove; its guard is back before the transaction ends.
pub(super) async fn clear_audit(db: &Db) -> Result<()> {
    let sql = "ALTER TABLE audit DISABLE TRIGGER audit_stays; DELETE FROM audit; ALTER TABLE audit ENABLE TRIGGER audit_stays;
        UPDATE audit_head SET seq = 0, hash = decode(repeat('00', 32), 'hex')";
    db.batch("empty the audit", sql).await
}
