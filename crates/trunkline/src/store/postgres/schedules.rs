//! Schedules, and who is firing them.

use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::Row;

use super::PostgresStore;
use super::errors::damaged;
use super::link::{Db, retried};
use super::lot::clean;
use crate::error::Result;
use crate::message::{Headers, MessageId, Millis};
use crate::store::Address;
use crate::store::common::{HEADERS_FORMAT, int, uint};
use crate::store::schedule::{ScheduleFilter, ScheduleMessage, ScheduleRecord, ScheduleSettle, ScheduleState, ScheduleStore};

/// How long a schedule that is done or cancelled is kept.
const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

const COLUMNS: &str = "id, product, env, event, state, timing, format, key, headers, payload, cache, next_at, retry_at, firing_at, fired,
    missed, failures, error, last_at, last_id, created_at, updated_at";

async fn add(db: &Db, of: &ScheduleRecord) -> Result<()> {
    let sql = "INSERT INTO schedule (id, product, env, event, state, timing, format, key, headers, payload, cache, next_at, due_at, until,
            fired, missed, failures, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, 0, 0, 0, 0, $13, $13)";
    let mut headers = Vec::new();
    of.message.headers.encode(&mut headers);
    let Address { product, env, event } = &of.address;
    let (key, payload) = (of.message.key.as_deref(), &of.message.payload[..]);
    let (timing, next_at, created_at) = (of.timing.to_string(), of.next_at.map(int), int(of.created_at));
    db.run(
        "add a schedule",
        sql,
        &[
            &of.id.0,
            &&**product,
            &&**env,
            &event.as_str(),
            &of.state.as_str(),
            &timing,
            &HEADERS_FORMAT,
            &key,
            &headers,
            &payload,
            &of.message.cache,
            &next_at,
            &created_at,
        ],
    )
    .await
    .map(drop)
}

fn record(row: &Row) -> Result<ScheduleRecord> {
    let broken = |what: &str| damaged(&format!("{what} of a schedule cannot be read"));
    let time = |at| row.get::<_, Option<i64>>(at).map(uint);
    let event = row.get::<_, &str>(3).parse().map_err(|_| broken("the event"))?;
    let headers = Headers::decode(&row.get::<_, Vec<u8>>(8).into()).filter(|_| row.get::<_, i64>(6) == HEADERS_FORMAT);
    Ok(ScheduleRecord {
        id: MessageId(row.get(0)),
        address: Address { product: row.get::<_, &str>(1).into(), env: row.get::<_, &str>(2).into(), event },
        state: ScheduleState::of(row.get(4)).ok_or_else(|| broken("the state"))?,
        timing: serde_json::from_str(row.get(5)).map_err(|_| broken("the timing"))?,
        message: ScheduleMessage {
            key: row.get::<_, Option<Vec<u8>>>(7).map(Into::into),
            headers: headers.ok_or_else(|| broken("the headers"))?,
            payload: row.get::<_, Vec<u8>>(9).into(),
            cache: row.get(10),
        },
        next_at: time(11),
        retry_at: time(12),
        firing_at: time(13),
        fired: uint(row.get(14)),
        missed: uint(row.get(15)),
        failures: u32::try_from(row.get::<_, i64>(16)).unwrap_or(u32::MAX),
        error: row.get(17),
        last_at: time(18),
        last_id: row.get::<_, Option<uuid::Uuid>>(19).map(MessageId),
        created_at: uint(row.get(20)),
        updated_at: uint(row.get(21)),
    })
}

async fn get(db: &Db, id: MessageId) -> Result<Option<ScheduleRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM schedule WHERE id = $1");
    db.first("read a schedule", &sql, &[&id.0]).await?.as_ref().map(record).transpose()
}

fn words(states: &[ScheduleState]) -> Vec<&'static str> {
    states.iter().map(|state| state.as_str()).collect()
}

/// A page of what matches and its number, in a transaction that sees one moment.
async fn list(db: &Db, filter: &ScheduleFilter, limit: usize, offset: usize) -> Result<(Vec<ScheduleRecord>, u64)> {
    let doing = "list schedules";
    let from = "FROM schedule WHERE ($1::text IS NULL OR product = $1) AND ($2::text IS NULL OR env = $2)
        AND ($3::text IS NULL OR event = $3) AND ($4::text[] IS NULL OR state = ANY($4)) AND (NOT $5 OR failures > 0)";
    let [product, env, event] = [&filter.product, &filter.env, &filter.event].map(|text| text.as_deref().map(clean));
    let states = (!filter.states.is_empty()).then(|| words(&filter.states));
    let total = db.first(doing, &format!("SELECT count(*) {from}"), &[&product, &env, &event, &states, &filter.failing]).await?;
    let sql = format!("SELECT {COLUMNS} {from} ORDER BY created_at DESC, id DESC LIMIT $6 OFFSET $7");
    let (limit, offset) = (int(limit as u64), int(offset as u64));
    let rows = db.all(doing, &sql, &[&product, &env, &event, &states, &filter.failing, &limit, &offset]).await?;
    Ok((rows.iter().map(record).collect::<Result<_>>()?, total.map_or(0, |row| uint(row.get(0)))))
}

/// Claims what is due. What others are claiming right now is passed by; what an owner that died was firing is fired again,
/// with the same id.
async fn claim(db: &Db, limit: usize, owner: &str, lease: Duration) -> Result<Vec<(ScheduleRecord, bool)>> {
    let sql = format!(
        "WITH due AS (
            SELECT id, owner IS NOT NULL AS taken FROM schedule WHERE state = 'active' AND due_at <= $1 AND (owner IS NULL OR until <= $2)
            ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
         ), claimed AS (
            UPDATE schedule s SET owner = $4, until = $5,
                firing_at = CASE WHEN due.taken THEN coalesce(s.firing_at, s.next_at) ELSE s.next_at END
            FROM due WHERE s.id = due.id RETURNING s.*, due.taken
         )
         SELECT {COLUMNS}, taken FROM claimed ORDER BY due_at, id"
    );
    let rows = db.all("claim due schedules", &sql, &[&db.wall(), &db.now(), &int(limit as u64), &owner, &db.after(lease)]).await?;
    rows.iter().map(|row| Ok((record(row)?, row.get(22)))).collect()
}

async fn settle(db: &Db, id: MessageId, owner: &str, settle: &ScheduleSettle) -> Result<bool> {
    let doing = "note a firing";
    let rows = match settle {
        ScheduleSettle::Fired { id: message, next_at } => {
            let sql = "UPDATE schedule SET owner = NULL, until = 0, last_at = firing_at, last_id = $3, firing_at = NULL, fired = fired + 1,
                    failures = 0, error = NULL, retry_at = NULL, next_at = $4, due_at = $4,
                    state = CASE WHEN $4::bigint IS NULL THEN 'done' ELSE state END, updated_at = $5
                WHERE id = $1 AND owner = $2";
            db.run(doing, sql, &[&id.0, &owner, &message.0, &next_at.map(int), &db.wall()]).await?
        }
        ScheduleSettle::Failed { error, retry_at } => {
            let sql = "UPDATE schedule SET owner = NULL, until = 0, firing_at = NULL, failures = failures + 1, error = $3, retry_at = $4,
                    due_at = $4, updated_at = $5
                WHERE id = $1 AND owner = $2";
            db.run(doing, sql, &[&id.0, &owner, &clean(error), &int(*retry_at), &db.wall()]).await?
        }
        ScheduleSettle::Release => {
            let sql = "UPDATE schedule SET owner = NULL, until = 0, firing_at = NULL WHERE id = $1 AND owner = $2";
            db.run(doing, sql, &[&id.0, &owner]).await?
        }
    };
    Ok(rows == 1)
}

/// Drops up to `limit` schedules that ended long ago.
pub(super) async fn sweep(db: &Db, limit: i64) -> Result<u64> {
    let sql = "DELETE FROM schedule WHERE id IN (
        SELECT id FROM schedule WHERE state IN ('done', 'cancelled') AND updated_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
    db.run("drop old schedules", sql, &[&(db.wall() - KEPT_MS), &limit]).await
}

#[async_trait]
impl ScheduleStore for PostgresStore {
    async fn schedule_add(&self, schedule: &ScheduleRecord) -> Result<()> {
        add(&self.db().await?, schedule).await
    }

    async fn schedule_get(&self, id: MessageId) -> Result<Option<ScheduleRecord>> {
        get(&self.db().await?, id).await
    }

    async fn schedules(&self, filter: &ScheduleFilter, limit: usize, offset: usize) -> Result<(Vec<ScheduleRecord>, u64)> {
        let db = self.db().await?.snapshot().await?;
        let found = list(&db, filter, limit, offset).await?;
        db.commit().await?;
        Ok(found)
    }

    async fn schedule_claim(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<(ScheduleRecord, bool)>> {
        retried(|| async { claim(&self.db().await?, limit, owner, lease).await }).await
    }

    async fn schedule_skip(&self, id: MessageId, owner: &str, firing_at: Millis, missed: u64) -> Result<bool> {
        let sql = "UPDATE schedule SET firing_at = $3, next_at = $3, missed = missed + $4, failures = 0 WHERE id = $1 AND owner = $2";
        let rows = self.db().await?.run("pass over missed firings", sql, &[&id.0, &owner, &int(firing_at), &int(missed)]).await?;
        Ok(rows == 1)
    }

    async fn schedule_settle(&self, id: MessageId, owner: &str, how: ScheduleSettle) -> Result<bool> {
        settle(&self.db().await?, id, owner, &how).await
    }

    async fn schedule_turn(&self, id: MessageId, from: &[ScheduleState], to: ScheduleState, next_at: Option<Millis>) -> Result<bool> {
        let sql = "UPDATE schedule SET state = $2, next_at = $3, due_at = $3, retry_at = NULL, firing_at = NULL, owner = NULL, until = 0,
                failures = 0, updated_at = $4
            WHERE id = $1 AND state = ANY($5)";
        let db = self.db().await?;
        let rows = db.run("change a schedule", sql, &[&id.0, &to.as_str(), &next_at.map(int), &db.wall(), &words(from)]).await?;
        Ok(rows == 1)
    }

    async fn schedule_next(&self) -> Result<Option<Millis>> {
        let db = self.db().await?;
        let sql = "SELECT due_at FROM schedule WHERE state = 'active' AND due_at IS NOT NULL AND (owner IS NULL OR until <= $1)
            ORDER BY due_at LIMIT 1";
        Ok(db.first("look for the next schedule", sql, &[&db.now()]).await?.map(|row| uint(row.get(0))))
    }
}
