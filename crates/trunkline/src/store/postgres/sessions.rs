//! Sessions: keys, subjects, refresh tokens by their hash, and what was taken back.
//!
//! Who changes a session holds its row, and who starts one holds its subject's, so that a revocation or an erasure that runs at
//! the same time misses none. What was taken back gets its number and its time last, under one lock, so that whoever follows
//! the numbers sees each.

use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::Row;

use super::errors::damaged;
use super::link::{Db, Param, retried};
use super::{PostgresStore, Shared, lock};
use crate::error::{Error, Result};
use crate::message::{Millis, millis};
use crate::store::common::{int, uint};
use crate::store::{
    Revocation, SessionKey, SessionKeyUse, SessionRefreshed, SessionRenewal, SessionRow, SessionStore, SessionUser, SessionsOf, Subject,
};

/// What was taken back is told for at least this long, so that every running process hears of it.
const TOLD: Duration = Duration::from_secs(24 * 3_600);
/// How often a subject is looked for anew that came and went meanwhile.
const ROUNDS: usize = 20;

const SUBJECT: &str = "u.id, u.product, u.tag, u.digest, u.identifier, u.key, u.created_at";
const SESSION: &str = "s.id, s.product, s.tag, s.subject, s.env, s.data, s.started_at, s.refreshed_at, s.expires_at, s.refresh_until";

fn word(purpose: SessionKeyUse) -> &'static str {
    match purpose {
        SessionKeyUse::Sign => "sign",
        SessionKeyUse::Digest => "digest",
    }
}

fn key(row: &Row) -> Result<SessionKey> {
    let purpose = match row.get(1) {
        "sign" => SessionKeyUse::Sign,
        "digest" => SessionKeyUse::Digest,
        _ => return Err(damaged("a key of sessions has an unknown use")),
    };
    let verify_until = row.get::<_, Option<i64>>(4).map(uint);
    Ok(SessionKey { id: row.get(0), purpose, sealed: row.get(2), created_at: uint(row.get(3)), verify_until })
}

/// Adds a key in the place of others, or if there is none of its use; in a transaction.
async fn add_key(db: &Db, schema: &str, key: &SessionKey, retire: Option<Millis>) -> Result<()> {
    let (doing, purpose) = ("keep a key of sessions", word(key.purpose));
    lock::take(db, &[lock::number(&[b"session keys", schema.as_bytes()])]).await?;
    if let Some(until) = retire {
        let sql = "UPDATE session_key SET verify_until = $2 WHERE purpose = $1 AND verify_until IS NULL";
        db.run(doing, sql, &[&purpose, &int(until)]).await?;
    }
    let sql = "INSERT INTO session_key (id, purpose, sealed, created_at)
        SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM session_key WHERE purpose = $2 AND verify_until IS NULL)";
    db.run(doing, sql, &[&key.id, &purpose, &key.sealed, &int(key.created_at)]).await.map(drop)
}

fn subject(row: &Row) -> Subject {
    Subject {
        id: row.get(0),
        product: row.get(1),
        tag: row.get(2),
        digest: row.get::<_, Option<_>>(3).unwrap_or_default(),
        identifier: row.get(4),
        key: row.get(5),
        created_at: uint(row.get(6)),
    }
}

/// The subject there is, else the one given.
async fn subject_of(db: &Db, fresh: &Subject) -> Result<Subject> {
    let Subject { id, product, tag, digest, identifier, key, created_at } = fresh;
    let look = format!("SELECT {SUBJECT} FROM subject u WHERE u.product = $1 AND u.tag = $2 AND u.digest = $3");
    let keep = "INSERT INTO subject (id, product, tag, digest, identifier, key, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (product, tag, digest) DO NOTHING";
    for _ in 0..ROUNDS {
        if let Some(row) = db.first("look up a subject", &look, &[product, tag, digest]).await? {
            return Ok(subject(&row));
        }
        if db.run("keep a subject", keep, &[id, product, tag, digest, identifier, key, &int(*created_at)]).await? == 1 {
            return Ok(fresh.clone());
        }
    }
    Err(Error::store("a subject is being kept and erased by too many processes at once").reason("busy").with_retryable(true))
}

fn session(row: &Row) -> SessionRow {
    let time = |at| uint(row.get(at));
    SessionRow {
        id: row.get(0),
        product: row.get(1),
        tag: row.get(2),
        subject: row.get(3),
        env: row.get(4),
        data: row.get(5),
        started_at: time(6),
        refreshed_at: time(7),
        expires_at: time(8),
        refresh_until: time(9),
    }
}

/// Keeps a session that begins. An erasure of its subject waits for it, or it for the erasure.
async fn start(db: &Db, of: &SessionRow, hash: &[u8; 32]) -> Result<bool> {
    let sql = "WITH kept AS (
            INSERT INTO session (id, product, tag, subject, env, data, started_at, refreshed_at, expires_at, refresh_until)
            SELECT $1, $2, $3, id, $5, $6, $7, $8, $9, $10 FROM subject WHERE id = $4 AND key <> '' FOR SHARE RETURNING id
        ) INSERT INTO session_refresh (hash, session, used) SELECT $11, id, false FROM kept";
    let [started, refreshed, expires, until] = [of.started_at, of.refreshed_at, of.expires_at, of.refresh_until].map(int);
    let values: [Param<'_>; 11] =
        [&of.id, &of.product, &of.tag, &of.subject, &of.env, &of.data, &started, &refreshed, &expires, &until, &&hash[..]];
    Ok(db.run("keep a session", sql, &values).await? == 1)
}

/// Exchanges a refresh token; in a transaction.
async fn refresh(db: &Db, shared: &Shared, of: (&str, &str), hash: &[u8; 32], next: SessionRenewal) -> Result<SessionRefreshed> {
    let doing = "refresh a session";
    // From here on nobody else exchanges a token of the session, or ends it.
    let held = format!(
        "SELECT {SESSION} FROM session s WHERE s.id = (SELECT r.session FROM session_refresh r WHERE r.hash = $1)
         AND s.product = $2 AND s.tag = $3 AND s.refresh_until > $4 FOR UPDATE"
    );
    let found = db.first(doing, &held, &[&&hash[..], &of.0, &of.1, &db.now()]).await?;
    let Some(session) = found.as_ref().map(session) else { return Ok(SessionRefreshed::Unknown) };
    let fresh = db.run(doing, "UPDATE session_refresh SET used = true WHERE hash = $1 AND NOT used", &[&&hash[..]]).await? == 1;
    if !fresh {
        end(db, shared, of, "s.id = $1", &[&session.id]).await?;
        return Ok(SessionRefreshed::Reused);
    }
    let token = "INSERT INTO session_refresh (hash, session, used) VALUES ($1, $2, false)";
    db.run(doing, token, &[&&next.hash[..], &session.id]).await?;
    let SessionRenewal { at, expires_at, refresh_until, .. } = next;
    let sql = "UPDATE session SET refreshed_at = $2, expires_at = $3, refresh_until = $4 WHERE id = $1";
    db.run(doing, sql, &[&session.id, &int(at), &int(expires_at), &int(refresh_until)]).await?;
    Ok(SessionRefreshed::Renewed(Box::new(SessionRow { refreshed_at: at, expires_at, refresh_until, ..session })))
}

/// What is told of something that was taken back: the session, or the subject, and until when a token may be good.
type Told<'a> = (Option<&'a str>, Option<&'a str>, i64);

/// Says what was taken back, as the last thing of its transaction.
async fn tell(db: &Db, shared: &Shared, (product, tag): (&str, &str), what: &[Told<'_>]) -> Result<()> {
    if what.is_empty() {
        return Ok(());
    }
    lock::take(db, &[lock::number(&[b"revocations", shared.schema().as_bytes()])]).await?;
    // What was waited for may have made tokens since this work began.
    let now = shared.clock.now();
    let told = int(now.saturating_add(millis(TOLD)));
    let sessions: Vec<Option<&str>> = what.iter().map(|told| told.0).collect();
    let subjects: Vec<Option<&str>> = what.iter().map(|told| told.1).collect();
    let until: Vec<i64> = what.iter().map(|one| one.2.max(told)).collect();
    let sql = "INSERT INTO session_revocation (product, tag, session, subject, at, until)
        SELECT $1, $2, session, subject, $6, until FROM unnest($3::text[], $4::text[], $5::bigint[]) AS g (session, subject, until)";
    db.run("take sessions back", sql, &[&product, &tag, &sessions, &subjects, &until, &int(now)]).await.map(drop)
}

/// Removes sessions and says so of each; how many there were whose token was good.
async fn end(db: &Db, shared: &Shared, of: (&str, &str), which: &str, values: &[Param<'_>]) -> Result<u64> {
    let sql = format!("DELETE FROM session s WHERE {which} RETURNING s.id, s.expires_at");
    let gone = db.all("end sessions", &sql, values).await?;
    let told: Vec<Told<'_>> = gone.iter().map(|row| (Some(row.get(0)), None, row.get(1))).collect();
    tell(db, shared, of, &told).await?;
    Ok(told.iter().filter(|(.., expires_at)| *expires_at > db.now()).count() as u64)
}

/// Ends sessions; in a transaction.
async fn revoke(db: &Db, shared: &Shared, of: (&str, &str), which: &SessionsOf) -> Result<u64> {
    match which {
        // No id holds a NUL, and no text of PostgreSQL does.
        SessionsOf::Session(id) if id.contains('\0') => Ok(0),
        SessionsOf::Session(id) => end(db, shared, of, "s.id = $1 AND s.product = $2 AND s.tag = $3", &[id, &of.0, &of.1]).await,
        SessionsOf::Subject(digest) => {
            let which = "s.subject = (SELECT id FROM subject WHERE product = $1 AND tag = $2 AND digest = $3)";
            end(db, shared, of, which, &[&of.0, &of.1, digest]).await
        }
        SessionsOf::All => revoke_all(db, shared, of).await,
    }
}

/// One word for all, however many there are.
async fn revoke_all(db: &Db, shared: &Shared, of: (&str, &str)) -> Result<u64> {
    let sql = "WITH gone AS (DELETE FROM session WHERE product = $1 AND tag = $2 RETURNING expires_at)
        SELECT count(*), coalesce(max(expires_at), 0) FROM gone WHERE expires_at > $3";
    let row = db.first("end sessions", sql, &[&of.0, &of.1, &db.now()]).await?;
    let (active, until) = row.map_or((0, 0), |row| (uint(row.get(0)), row.get(1)));
    tell(db, shared, of, &[(None, None, until)]).await?;
    Ok(active)
}

/// A page of the sessions whose token is good now, newest first, and how many there are; of one moment.
async fn list(db: &Db, of: (&str, &str), digest: Option<&[u8]>, limit: u64, offset: u64) -> Result<(Vec<SessionRow>, u64)> {
    let doing = "list sessions";
    let from = "FROM session s WHERE s.product = $1 AND s.tag = $2 AND s.expires_at > $3
        AND ($4::bytea IS NULL OR s.subject IN (SELECT id FROM subject WHERE product = $1 AND tag = $2 AND digest = $4))";
    let total = db.first(doing, &format!("SELECT count(*) {from}"), &[&of.0, &of.1, &db.now(), &digest]).await?;
    let sql = format!("SELECT {SESSION} {from} ORDER BY s.id DESC LIMIT $5 OFFSET $6");
    let rows = db.all(doing, &sql, &[&of.0, &of.1, &db.now(), &digest, &int(limit), &int(offset)]).await?;
    Ok((rows.iter().map(session).collect(), total.map_or(0, |row| uint(row.get(0)))))
}

/// A page of the subjects of a tag, newest first, and how many there are; of one moment.
async fn users(db: &Db, of: (&str, &str), limit: u64, offset: u64) -> Result<(Vec<SessionUser>, u64)> {
    let doing = "list the users of sessions";
    let from = "FROM subject u WHERE u.product = $1 AND u.tag = $2 AND u.key <> ''";
    let total = db.first(doing, &format!("SELECT count(*) {from}"), &[&of.0, &of.1]).await?;
    let sql = format!(
        "SELECT {SUBJECT}, (SELECT count(*) FROM session s WHERE s.subject = u.id AND s.expires_at > $3),
            (SELECT max(s.refreshed_at) FROM session s WHERE s.subject = u.id)
         {from} ORDER BY u.created_at DESC, u.id LIMIT $4 OFFSET $5"
    );
    let rows = db.all(doing, &sql, &[&of.0, &of.1, &db.now(), &int(limit), &int(offset)]).await?;
    let user = |row: &Row| SessionUser { subject: subject(row), active: uint(row.get(7)), last_at: row.get::<_, Option<i64>>(8).map(uint) };
    Ok((rows.iter().map(user).collect(), total.map_or(0, |row| uint(row.get(0)))))
}

/// Destroys a subject; in a transaction.
async fn erase(db: &Db, shared: &Shared, of: (&str, &str), digest: &[u8]) -> Result<Option<(String, u64)>> {
    let doing = "erase a subject";
    let held = "SELECT id FROM subject WHERE product = $1 AND tag = $2 AND digest = $3 FOR UPDATE";
    let Some(row) = db.first(doing, held, &[&of.0, &of.1, &digest]).await? else { return Ok(None) };
    let id: String = row.get(0);
    let sessions = "WITH gone AS (DELETE FROM session WHERE subject = $1 RETURNING expires_at)
        SELECT count(*), coalesce(max(expires_at), 0) FROM gone";
    let (ended, until) = db.first(doing, sessions, &[&id]).await?.map_or((0, 0), |row| (uint(row.get(0)), row.get(1)));
    // The row stays as a word that there was one: what it encrypted is shown as erased, and not as damaged.
    db.run(doing, "UPDATE subject SET digest = NULL, identifier = '', key = '' WHERE id = $1", &[&id]).await?;
    tell(db, shared, of, &[(None, Some(&id), until)]).await?;
    Ok(Some((id, ended)))
}

/// Drops up to `limit` each of sessions that can no longer be refreshed, of what need not be told any more, and of keys that
/// verify no more.
pub(super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let sessions = "DELETE FROM session WHERE id IN (
        SELECT id FROM session WHERE refresh_until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    let told = "DELETE FROM session_revocation WHERE seq IN (
        SELECT seq FROM session_revocation WHERE until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    let keys = "DELETE FROM session_key WHERE id IN (
        SELECT id FROM session_key WHERE verify_until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    let mut rows = 0;
    for sql in [sessions, told, keys] {
        rows += db.run("drop what is over of sessions", sql, &[&db.now(), &limit]).await?;
    }
    Ok(rows)
}

fn revocation(row: &Row) -> Revocation {
    Revocation {
        seq: uint(row.get(0)),
        product: row.get(1),
        tag: row.get(2),
        session: row.get(3),
        subject: row.get(4),
        at: uint(row.get(5)),
        until: uint(row.get(6)),
    }
}

#[async_trait]
impl SessionStore for PostgresStore {
    async fn session_keys(&self) -> Result<Vec<SessionKey>> {
        let db = self.db().await?;
        let sql = "SELECT id, purpose, sealed, created_at, verify_until FROM session_key
            WHERE verify_until IS NULL OR verify_until > $1 ORDER BY verify_until IS NOT NULL, created_at DESC, id DESC";
        db.all("read the keys of sessions", sql, &[&db.now()]).await?.iter().map(key).collect()
    }

    async fn session_key_add(&self, key: &SessionKey, retire: Option<Millis>) -> Result<()> {
        retried(|| async {
            let db = self.begin().await?;
            add_key(&db, self.shared.schema(), key, retire).await?;
            db.commit().await
        })
        .await
    }

    async fn subject_of(&self, fresh: &Subject) -> Result<Subject> {
        subject_of(&self.db().await?, fresh).await
    }

    async fn subject(&self, id: &str) -> Result<Option<Subject>> {
        let sql = format!("SELECT {SUBJECT} FROM subject u WHERE u.id = $1");
        Ok(self.db().await?.first("look up a subject", &sql, &[&id]).await?.as_ref().map(subject))
    }

    async fn subjects_with(&self, product: &str, digest: &[u8]) -> Result<Vec<String>> {
        let sql = "SELECT id FROM subject WHERE product = $1 AND digest = $2 ORDER BY id";
        let rows = self.db().await?.all("look up subjects", sql, &[&product, &digest]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn session_start(&self, session: &SessionRow, hash: &[u8; 32]) -> Result<bool> {
        retried(|| async { start(&self.db().await?, session, hash).await }).await
    }

    async fn session_refresh(&self, product: &str, tag: &str, hash: &[u8; 32], next: SessionRenewal) -> Result<SessionRefreshed> {
        retried(|| async {
            let db = self.begin().await?;
            let refreshed = refresh(&db, &self.shared, (product, tag), hash, next).await?;
            db.commit().await?;
            Ok(refreshed)
        })
        .await
    }

    async fn session_revoke(&self, product: &str, tag: &str, which: SessionsOf) -> Result<u64> {
        retried(|| async {
            let db = self.begin().await?;
            let ended = revoke(&db, &self.shared, (product, tag), &which).await?;
            db.commit().await?;
            Ok(ended)
        })
        .await
    }

    async fn session_list(
        &self,
        product: &str,
        tag: &str,
        digest: Option<&[u8]>,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<SessionRow>, u64)> {
        let db = self.db().await?.snapshot().await?;
        let page = list(&db, (product, tag), digest, limit, offset).await?;
        db.commit().await?;
        Ok(page)
    }

    async fn session_users(&self, product: &str, tag: &str, limit: u64, offset: u64) -> Result<(Vec<SessionUser>, u64)> {
        let db = self.db().await?.snapshot().await?;
        let page = users(&db, (product, tag), limit, offset).await?;
        db.commit().await?;
        Ok(page)
    }

    async fn session_erase(&self, product: &str, tag: &str, digest: &[u8]) -> Result<Option<(String, u64)>> {
        let erased = retried(|| async {
            let db = self.begin().await?;
            let erased = erase(&db, &self.shared, (product, tag), digest).await?;
            db.commit().await?;
            Ok(erased)
        })
        .await?;
        if erased.is_some() {
            // The server keeps what a row held until it is vacuumed. The key is gone for all readers either way.
            let vacuum = async { self.db().await?.batch("vacuum what was erased", "VACUUM (SKIP_LOCKED) subject, session").await };
            if let Err(error) = vacuum.await {
                tracing::warn!(%error, "what was erased leaves the tables' files with the server's next vacuum");
            }
        }
        Ok(erased)
    }

    async fn session_revocations(&self, after: u64) -> Result<Vec<Revocation>> {
        let db = self.db().await?;
        let sql =
            "SELECT seq, product, tag, session, subject, at, until FROM session_revocation WHERE seq > $1 AND until > $2 ORDER BY seq";
        Ok(db.all("read what was taken back", sql, &[&int(after), &db.now()]).await?.iter().map(revocation).collect())
    }
}
