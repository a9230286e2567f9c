//! Sessions: keys, subjects, refresh tokens by their hash, and what was taken back.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::db::{Db, int, uint};
use super::errors::{Doing, damaged};
use crate::error::Result;
use crate::message::Millis;
use crate::store::{Revocation, SessionKey, SessionKeyUse, SessionRefreshed, SessionRenewal, SessionRow, SessionUser, SessionsOf, Subject};

/// What was taken back is told for at least this long, so that every running process hears of it.
const TOLD: Duration = Duration::from_secs(24 * 3_600);

fn word(purpose: SessionKeyUse) -> &'static str {
    match purpose {
        SessionKeyUse::Sign => "sign",
        SessionKeyUse::Digest => "digest",
    }
}

/// The keys in use, newest first.
pub(super) fn keys(db: &Db) -> Result<Vec<SessionKey>> {
    let rows = db.all(
        "read the keys of sessions",
        "SELECT id, purpose, sealed, created_at, verify_until FROM session_key
         WHERE verify_until IS NULL OR verify_until > ?1 ORDER BY verify_until IS NOT NULL, created_at DESC, id DESC",
        [db.now()],
        |row| {
            let purpose = match row.get::<_, String>(1)?.as_str() {
                "sign" => Some(SessionKeyUse::Sign),
                "digest" => Some(SessionKeyUse::Digest),
                _ => None,
            };
            let until = row.get::<_, Option<i64>>(4)?.map(uint);
            Ok((purpose, row.get::<_, String>(0)?, row.get::<_, String>(2)?, uint(row.get(3)?), until))
        },
    )?;
    let key = |(purpose, id, sealed, created_at, verify_until): (Option<_>, _, _, _, _)| {
        let purpose = purpose.ok_or_else(|| damaged("a key of sessions has an unknown use"))?;
        Ok(SessionKey { id, purpose, sealed, created_at, verify_until })
    };
    rows.into_iter().map(key).collect()
}

/// Adds a key: in the place of others, or if there is none of its use.
pub(super) fn add_key(db: &Db, key: &SessionKey, retire: Option<Millis>) -> Result<()> {
    let (doing, purpose) = ("keep a key of sessions", word(key.purpose));
    if let Some(until) = retire {
        db.run(
            doing,
            "UPDATE session_key SET verify_until = ?2 WHERE purpose = ?1 AND verify_until IS NULL",
            params![purpose, int(until)],
        )?;
    }
    db.run(
        doing,
        "INSERT INTO session_key (id, purpose, sealed, created_at)
         SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM session_key WHERE purpose = ?2 AND verify_until IS NULL)",
        params![key.id, purpose, key.sealed, int(key.created_at)],
    )
    .map(drop)
}

const SUBJECT: &str = "u.id, u.product, u.tag, u.digest, u.identifier, u.key, u.created_at";

fn subject_row(row: &Row<'_>) -> rusqlite::Result<Subject> {
    let digest = row.get::<_, Option<Vec<u8>>>(3)?.unwrap_or_default();
    let (id, product, tag) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(Subject { id, product, tag, digest, identifier: row.get(4)?, key: row.get(5)?, created_at: uint(row.get(6)?) })
}

fn find(db: &Db, product: &str, tag: &str, digest: &[u8]) -> Result<Option<Subject>> {
    let sql = format!("SELECT {SUBJECT} FROM subject u WHERE u.product = ?1 AND u.tag = ?2 AND u.digest = ?3");
    db.first("look up a subject", &sql, params![product, tag, digest], subject_row)
}

/// Subjects that are not erased, in the order of their ids.
pub(super) fn subjects_after(db: &Db, after: &str, limit: usize) -> Result<Vec<Subject>> {
    let sql = format!("SELECT {SUBJECT} FROM subject u WHERE u.id > ?1 AND u.key <> '' ORDER BY u.id LIMIT ?2");
    db.all("read subjects", &sql, params![after, limit as i64], subject_row)
}

/// Keeps what was sealed anew; an erased subject has no key any more, and gets none.
pub(super) fn resealed(db: &Db, keys: &[SessionKey], subjects: &[Subject]) -> Result<()> {
    for key in keys {
        db.run("keep a key of sessions", "UPDATE session_key SET sealed = ?2 WHERE id = ?1", params![key.id, key.sealed])?;
    }
    for of in subjects {
        let sql = "UPDATE subject SET identifier = ?2, key = ?3 WHERE id = ?1 AND key <> ''";
        db.run("keep a subject", sql, params![of.id, of.identifier, of.key])?;
    }
    Ok(())
}

/// The subject there is, else the one given.
pub(super) fn subject_of(db: &Db, fresh: &Subject) -> Result<Subject> {
    if let Some(known) = find(db, &fresh.product, &fresh.tag, &fresh.digest)? {
        return Ok(known);
    }
    db.run(
        "keep a subject",
        "INSERT INTO subject (id, product, tag, digest, identifier, key, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![fresh.id, fresh.product, fresh.tag, fresh.digest, fresh.identifier, fresh.key, int(fresh.created_at)],
    )?;
    Ok(fresh.clone())
}

/// A subject by its id.
pub(super) fn subject(db: &Db, id: &str) -> Result<Option<Subject>> {
    db.first("look up a subject", &format!("SELECT {SUBJECT} FROM subject u WHERE u.id = ?1"), [id], subject_row)
}

/// Subjects of a product by their digest.
pub(super) fn subjects_with(db: &Db, product: &str, digest: &[u8]) -> Result<Vec<String>> {
    let sql = "SELECT id FROM subject WHERE product = ?1 AND digest = ?2 ORDER BY id";
    db.all("look up subjects", sql, params![product, digest], |row| row.get(0))
}

const SESSION: &str = "s.id, s.product, s.tag, s.subject, s.env, s.data, s.started_at, s.refreshed_at, s.expires_at, s.refresh_until";

fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let time = |at| row.get::<_, i64>(at).map(uint);
    Ok(SessionRow {
        id: row.get(0)?,
        product: row.get(1)?,
        tag: row.get(2)?,
        subject: row.get(3)?,
        env: row.get(4)?,
        data: row.get(5)?,
        started_at: time(6)?,
        refreshed_at: time(7)?,
        expires_at: time(8)?,
        refresh_until: time(9)?,
    })
}

/// Keeps a session that begins.
pub(super) fn start(db: &Db, session: &SessionRow, hash: &[u8; 32]) -> Result<bool> {
    let doing = "keep a session";
    let kept = db.run(
        doing,
        "INSERT INTO session (id, product, tag, subject, env, data, started_at, refreshed_at, expires_at, refresh_until)
         SELECT ?1, ?2, ?3, id, ?5, ?6, ?7, ?8, ?9, ?10 FROM subject WHERE id = ?4 AND key <> ''",
        params![
            session.id,
            session.product,
            session.tag,
            session.subject,
            session.env,
            session.data,
            int(session.started_at),
            int(session.refreshed_at),
            int(session.expires_at),
            int(session.refresh_until)
        ],
    )?;
    if kept == 1 {
        db.run(doing, "INSERT INTO session_refresh (hash, session, used) VALUES (?1, ?2, 0)", params![&hash[..], session.id])?;
    }
    Ok(kept == 1)
}

/// Exchanges a refresh token.
pub(super) fn refresh(db: &Db, product: &str, tag: &str, hash: &[u8; 32], next: SessionRenewal) -> Result<SessionRefreshed> {
    let doing = "refresh a session";
    let found = db.first(
        doing,
        &format!(
            "SELECT {SESSION}, r.used FROM session_refresh r JOIN session s ON s.id = r.session
             WHERE r.hash = ?1 AND s.product = ?2 AND s.tag = ?3 AND s.refresh_until > ?4"
        ),
        params![&hash[..], product, tag, db.now()],
        |row| Ok((session_row(row)?, row.get::<_, bool>(10)?)),
    )?;
    let Some((session, used)) = found else { return Ok(SessionRefreshed::Unknown) };
    if used {
        end(db, &session)?;
        return Ok(SessionRefreshed::Reused);
    }
    db.run(doing, "UPDATE session_refresh SET used = 1 WHERE hash = ?1", [&hash[..]])?;
    db.run(doing, "INSERT INTO session_refresh (hash, session, used) VALUES (?1, ?2, 0)", params![&next.hash[..], session.id])?;
    db.run(
        doing,
        "UPDATE session SET refreshed_at = ?2, expires_at = ?3, refresh_until = ?4 WHERE id = ?1",
        params![session.id, int(next.at), int(next.expires_at), int(next.refresh_until)],
    )?;
    let SessionRenewal { at, expires_at, refresh_until, .. } = next;
    Ok(SessionRefreshed::Renewed(Box::new(SessionRow { refreshed_at: at, expires_at, refresh_until, ..session })))
}

/// Removes a session and says so.
fn end(db: &Db, session: &SessionRow) -> Result<()> {
    db.run("end a session", "DELETE FROM session WHERE id = ?1", [&session.id])?;
    tell(db, (&session.product, &session.tag), Some(&session.id), None, session.expires_at)
}

fn tell(db: &Db, (product, tag): (&str, &str), session: Option<&str>, subject: Option<&str>, until: Millis) -> Result<()> {
    let until = int(until).max(db.after(TOLD));
    db.run(
        "take sessions back",
        "INSERT INTO session_revocation (product, tag, session, subject, at, until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![product, tag, session, subject, db.now(), until],
    )
    .map(drop)
}

/// Ends sessions; how many there were whose token was good.
pub(super) fn revoke(db: &Db, product: &str, tag: &str, which: &SessionsOf) -> Result<u64> {
    let sessions = match which {
        SessionsOf::All => return revoke_all(db, product, tag),
        SessionsOf::Session(id) => {
            let sql = format!("SELECT {SESSION} FROM session s WHERE s.id = ?1 AND s.product = ?2 AND s.tag = ?3");
            db.all("end sessions", &sql, params![id, product, tag], session_row)?
        }
        SessionsOf::Subject(digest) => match find(db, product, tag, digest)? {
            Some(subject) => {
                let sql = format!("SELECT {SESSION} FROM session s WHERE s.subject = ?1");
                db.all("end sessions", &sql, [subject.id], session_row)?
            }
            None => Vec::new(),
        },
    };
    sessions.iter().try_for_each(|session| end(db, session))?;
    Ok(sessions.iter().filter(|session| int(session.expires_at) > db.now()).count() as u64)
}

/// One word for all, however many there are.
fn revoke_all(db: &Db, product: &str, tag: &str) -> Result<u64> {
    let (doing, of) = ("end sessions", params![product, tag]);
    let count = "SELECT count(*), max(expires_at) FROM session WHERE product = ?1 AND tag = ?2 AND expires_at > ?3";
    let active = db.first(doing, count, params![product, tag, db.now()], |row| {
        Ok((uint(row.get(0)?), row.get::<_, Option<i64>>(1)?.map_or(0, uint)))
    })?;
    let (active, until) = active.unwrap_or_default();
    db.run(doing, "DELETE FROM session WHERE product = ?1 AND tag = ?2", of)?;
    tell(db, (product, tag), None, None, until)?;
    Ok(active)
}

/// A page of the sessions whose token is good now, newest first, and how many there are.
pub(super) fn list(db: &Db, product: &str, tag: &str, digest: Option<&[u8]>, limit: u64, offset: u64) -> Result<(Vec<SessionRow>, u64)> {
    let doing = "list sessions";
    let from = "FROM session s WHERE s.product = ?1 AND s.tag = ?2 AND s.expires_at > ?3
         AND (?4 IS NULL OR s.subject IN (SELECT id FROM subject WHERE product = ?1 AND tag = ?2 AND digest = ?4))";
    let total = db.first(doing, &format!("SELECT count(*) {from}"), params![product, tag, db.now(), digest], |row| row.get(0))?;
    let sql = format!("SELECT {SESSION} {from} ORDER BY s.id DESC LIMIT ?5 OFFSET ?6");
    let rows = db.all(doing, &sql, params![product, tag, db.now(), digest, int(limit), int(offset)], session_row)?;
    Ok((rows, total.map_or(0, uint)))
}

/// A page of the subjects of a tag, newest first, and how many there are.
pub(super) fn users(db: &Db, product: &str, tag: &str, limit: u64, offset: u64) -> Result<(Vec<SessionUser>, u64)> {
    let doing = "list the users of sessions";
    let from = "FROM subject u WHERE u.product = ?1 AND u.tag = ?2 AND u.key <> ''";
    let total = db.first(doing, &format!("SELECT count(*) {from}"), params![product, tag], |row| row.get(0))?;
    let sql = format!(
        "SELECT {SUBJECT}, (SELECT count(*) FROM session s WHERE s.subject = u.id AND s.expires_at > ?3),
             (SELECT max(s.refreshed_at) FROM session s WHERE s.subject = u.id)
         {from} ORDER BY u.created_at DESC, u.id LIMIT ?4 OFFSET ?5"
    );
    let users = db.all(doing, &sql, params![product, tag, db.now(), int(limit), int(offset)], |row| {
        Ok(SessionUser { subject: subject_row(row)?, active: uint(row.get(7)?), last_at: row.get::<_, Option<i64>>(8)?.map(uint) })
    })?;
    Ok((users, total.map_or(0, uint)))
}

/// Destroys a subject. What is removed is overwritten in the file, and not only marked as free.
pub(super) fn erase(db: &Db, product: &str, tag: &str, digest: &[u8]) -> Result<Option<(String, u64)>> {
    let doing = "erase a subject";
    db.conn.pragma_update(None, "secure_delete", true).doing(doing)?;
    let erased = erase_row(db, product, tag, digest);
    db.conn.pragma_update(None, "secure_delete", false).doing(doing)?;
    erased
}

fn erase_row(db: &Db, product: &str, tag: &str, digest: &[u8]) -> Result<Option<(String, u64)>> {
    let doing = "erase a subject";
    let Some(subject) = find(db, product, tag, digest)? else { return Ok(None) };
    let sql = "SELECT coalesce(max(expires_at), 0) FROM session WHERE subject = ?1";
    let until = db.first(doing, sql, [&subject.id], |row| row.get(0))?.map_or(0, uint);
    let ended = db.run(doing, "DELETE FROM session WHERE subject = ?1", [&subject.id])?;
    // The row stays as a word that there was one: what it encrypted is shown as erased, and not as damaged.
    db.run(doing, "UPDATE subject SET digest = NULL, identifier = '', key = '' WHERE id = ?1", [&subject.id])?;
    tell(db, (product, tag), None, Some(&subject.id), until)?;
    Ok(Some((subject.id, ended as u64)))
}

/// Folds the log into the file and cuts it, so that the log holds no copy of what was erased either.
pub(super) fn fold(path: &Path, busy: Duration) -> Result<()> {
    let doing = "fold the store's log";
    let db = Connection::open(path).doing(doing)?;
    db.busy_timeout(busy).doing(doing)?;
    let blocked: bool = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).doing(doing)?;
    if blocked {
        tracing::info!("the store's log is in use: what was erased leaves it with the next time it is folded");
    }
    Ok(())
}

/// What was taken back since.
pub(super) fn revocations(db: &Db, after: u64) -> Result<Vec<Revocation>> {
    db.all(
        "read what was taken back",
        "SELECT seq, product, tag, session, subject, at, until FROM session_revocation WHERE seq > ?1 AND until > ?2 ORDER BY seq",
        params![int(after), db.now()],
        |row| {
            Ok(Revocation {
                seq: uint(row.get(0)?),
                product: row.get(1)?,
                tag: row.get(2)?,
                session: row.get(3)?,
                subject: row.get(4)?,
                at: uint(row.get(5)?),
                until: uint(row.get(6)?),
            })
        },
    )
}

/// Drops sessions that can no longer be refreshed, keys that verify no more, and what need not be told any more.
pub(super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    let (doing, now, limit) = ("drop what is over of sessions", db.now(), int(limit as u64));
    let sessions = "DELETE FROM session WHERE id IN (SELECT id FROM session WHERE refresh_until <= ?1 LIMIT ?2)";
    let told = "DELETE FROM session_revocation WHERE seq IN (SELECT seq FROM session_revocation WHERE until <= ?1 LIMIT ?2)";
    let keys = "DELETE FROM session_key WHERE id IN (SELECT id FROM session_key WHERE verify_until <= ?1 LIMIT ?2)";
    let mut rows = 0;
    for sql in [sessions, told, keys] {
        rows += db.run(doing, sql, params![now, limit])?;
    }
    Ok(rows)
}
