//! Schedules, and who is firing them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::types::Value as Cell;
use rusqlite::{params, params_from_iter};

use super::SqliteStore;
use super::db::{Db, int, message_id, uint};
use super::errors::damaged;
use crate::error::Result;
use crate::message::{Headers, MessageId, Millis};
use crate::store::Address;
use crate::store::schedule::{ScheduleFilter, ScheduleMessage, ScheduleRecord, ScheduleSettle, ScheduleState, ScheduleStore};

/// The form of the headers in a row.
const FORMAT: i64 = 1;
/// How long a schedule that is done or cancelled is kept.
const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

#[async_trait]
impl ScheduleStore for SqliteStore {
    async fn schedule_add(&self, schedule: &ScheduleRecord) -> Result<()> {
        let schedule = schedule.clone();
        self.write(1, move |db| add(db, &schedule)).await
    }

    async fn schedule_get(&self, id: MessageId) -> Result<Option<ScheduleRecord>> {
        self.read(move |db| get(db, id)).await
    }

    async fn schedules(&self, filter: &ScheduleFilter, limit: usize, offset: usize) -> Result<(Vec<ScheduleRecord>, u64)> {
        let filter = filter.clone();
        self.read(move |db| list(db, &filter, limit, offset)).await
    }

    async fn schedule_claim(&self, limit: usize, owner: &str, lease: Duration) -> Result<Vec<(ScheduleRecord, bool)>> {
        let owner = owner.to_owned();
        self.write(limit, move |db| claim(db, limit, &owner, lease)).await
    }

    async fn schedule_skip(&self, id: MessageId, owner: &str, firing_at: Millis, missed: u64) -> Result<bool> {
        let owner = owner.to_owned();
        self.write(1, move |db| {
            let sql = "UPDATE schedule SET firing_at = ?3, next_at = ?3, missed = missed + ?4, failures = 0 WHERE id = ?1 AND owner = ?2";
            db.run("pass over missed firings", sql, params![&id.as_bytes()[..], owner, int(firing_at), int(missed)]).map(|rows| rows == 1)
        })
        .await
    }

    async fn schedule_settle(&self, id: MessageId, owner: &str, settle: ScheduleSettle) -> Result<bool> {
        let owner = owner.to_owned();
        self.write(1, move |db| self::settle(db, id, &owner, &settle)).await
    }

    async fn schedule_turn(&self, id: MessageId, from: &[ScheduleState], to: ScheduleState, next_at: Option<Millis>) -> Result<bool> {
        let from = from.to_vec();
        self.write(1, move |db| turn(db, id, &from, to, next_at)).await
    }

    async fn schedule_next(&self) -> Result<Option<Millis>> {
        self.read(|db| {
            let sql = "SELECT due_at FROM schedule INDEXED BY schedule_due
                WHERE state = 'active' AND due_at IS NOT NULL AND (owner IS NULL OR until <= ?1) ORDER BY due_at LIMIT 1";
            Ok(db.first("look for the next schedule", sql, [db.now()], |row| row.get::<_, i64>(0))?.map(uint))
        })
        .await
    }
}

fn add(db: &Db, of: &ScheduleRecord) -> Result<()> {
    let mut headers = Vec::new();
    of.message.headers.encode(&mut headers);
    db.run(
        "add a schedule",
        "INSERT INTO schedule (id, product, env, event, state, timing, format, key, headers, payload, cache, next_at, due_at, until,
             fired, missed, failures, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, 0, 0, 0, 0, ?13, ?13)",
        params![
            &of.id.as_bytes()[..],
            &*of.address.product,
            &*of.address.env,
            of.address.event.as_str(),
            of.state.as_str(),
            of.timing.to_string(),
            FORMAT,
            of.message.key.as_deref(),
            headers,
            &of.message.payload[..],
            of.message.cache,
            of.next_at.map(int),
            int(of.created_at)
        ],
    )
    .map(drop)
}

const COLUMNS: &str = "id, product, env, event, state, timing, format, key, headers, payload, cache, next_at, retry_at, firing_at, fired,
    missed, failures, error, last_at, last_id, created_at, updated_at";

/// A row before its texts are read.
struct Row {
    record: ScheduleRecord,
    texts: [String; 3],
    format: i64,
    headers: Bytes,
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let time = |at| row.get::<_, Option<i64>>(at).map(|time| time.map(uint));
    let count = |at| row.get::<_, i64>(at).map(uint);
    let last_id = if row.get_ref(19)? == rusqlite::types::ValueRef::Null { None } else { Some(message_id(row, 19)?) };
    let [product, env]: [String; 2] = [row.get(1)?, row.get(2)?];
    let placeholder = crate::Event::new("b", "t").map_err(|_| rusqlite::Error::InvalidQuery)?;
    let record = ScheduleRecord {
        id: message_id(row, 0)?,
        address: Address { product: product.into(), env: env.into(), event: placeholder },
        state: ScheduleState::Active,
        timing: serde_json::Value::Null,
        message: ScheduleMessage {
            key: row.get::<_, Option<Vec<u8>>>(7)?.map(Bytes::from),
            headers: Headers::new(),
            payload: row.get::<_, Vec<u8>>(9)?.into(),
            cache: row.get(10)?,
        },
        next_at: time(11)?,
        retry_at: time(12)?,
        firing_at: time(13)?,
        fired: count(14)?,
        missed: count(15)?,
        failures: u32::try_from(count(16)?).unwrap_or(u32::MAX),
        error: row.get(17)?,
        last_at: time(18)?,
        last_id,
        created_at: count(20)?,
        updated_at: count(21)?,
    };
    let texts = [row.get(3)?, row.get(4)?, row.get(5)?];
    Ok(Row { record, texts, format: row.get(6)?, headers: row.get::<_, Vec<u8>>(8)?.into() })
}

fn parse(row: Row) -> Result<ScheduleRecord> {
    let broken = |what: &str| damaged(&format!("{what} of a schedule cannot be read"));
    let Row { mut record, texts: [event, state, timing], format, headers } = row;
    record.address.event = event.parse().map_err(|_| broken("the event"))?;
    record.state = ScheduleState::of(&state).ok_or_else(|| broken("the state"))?;
    record.timing = serde_json::from_str(&timing).map_err(|_| broken("the timing"))?;
    record.message.headers = Headers::decode(&headers).filter(|_| format == FORMAT).ok_or_else(|| broken("the headers"))?;
    Ok(record)
}

fn get(db: &Db, id: MessageId) -> Result<Option<ScheduleRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM schedule WHERE id = ?1");
    db.first("read a schedule", &sql, [&id.as_bytes()[..]], row)?.map(parse).transpose()
}

/// The conditions of a filter with what stands in their places.
fn conditions(filter: &ScheduleFilter) -> (String, Vec<Cell>) {
    let mut places = Vec::new();
    let mut sql = String::from("1");
    for (column, value) in [("product", &filter.product), ("env", &filter.env), ("event", &filter.event)] {
        if let Some(value) = value {
            places.push(Cell::from(value.clone()));
            sql.push_str(&format!(" AND {column} = ?{}", places.len()));
        }
    }
    if !filter.states.is_empty() {
        let states: Vec<String> = filter.states.iter().map(|state| format!("'{}'", state.as_str())).collect();
        sql.push_str(&format!(" AND state IN ({})", states.join(", ")));
    }
    if filter.failing {
        sql.push_str(" AND failures > 0");
    }
    (sql, places)
}

fn list(db: &Db, filter: &ScheduleFilter, limit: usize, offset: usize) -> Result<(Vec<ScheduleRecord>, u64)> {
    let (which, places) = conditions(filter);
    let doing = "list schedules";
    let total =
        db.first(doing, &format!("SELECT count(*) FROM schedule WHERE {which}"), params_from_iter(&places), |row| row.get::<_, i64>(0))?;
    let sql = format!("SELECT {COLUMNS} FROM schedule WHERE {which} ORDER BY created_at DESC, id DESC LIMIT {limit} OFFSET {offset}");
    let rows = db.all(doing, &sql, params_from_iter(&places), row)?;
    Ok((rows.into_iter().map(parse).collect::<Result<_>>()?, total.map_or(0, uint)))
}

fn claim(db: &Db, limit: usize, owner: &str, lease: Duration) -> Result<Vec<(ScheduleRecord, bool)>> {
    let doing = "claim due schedules";
    let due = db.all(
        doing,
        "SELECT id, owner IS NOT NULL FROM schedule INDEXED BY schedule_due
         WHERE state = 'active' AND due_at <= ?1 AND (owner IS NULL OR until <= ?2) ORDER BY due_at LIMIT ?3",
        params![db.wall(), db.now(), int(limit as u64)],
        |row| Ok((message_id(row, 0)?, row.get::<_, bool>(1)?)),
    )?;
    let mut claimed = Vec::with_capacity(due.len());
    for (id, taken_over) in due {
        // What an owner that died was firing is fired again, with the same id.
        db.run(
            doing,
            "UPDATE schedule SET owner = ?2, until = ?3, firing_at = CASE WHEN ?4 THEN coalesce(firing_at, next_at) ELSE next_at END
             WHERE id = ?1",
            params![&id.as_bytes()[..], owner, db.after(lease), taken_over],
        )?;
        if let Some(record) = get(db, id)? {
            claimed.push((record, taken_over));
        }
    }
    Ok(claimed)
}

fn settle(db: &Db, id: MessageId, owner: &str, settle: &ScheduleSettle) -> Result<bool> {
    let (doing, id, wall) = ("note a firing", &id.as_bytes()[..], db.wall());
    let rows = match settle {
        ScheduleSettle::Fired { id: message, next_at } => db.run(
            doing,
            "UPDATE schedule SET owner = NULL, until = 0, last_at = firing_at, last_id = ?3, firing_at = NULL, fired = fired + 1,
                 failures = 0, error = NULL, retry_at = NULL, next_at = ?4, due_at = ?4,
                 state = CASE WHEN ?4 IS NULL THEN 'done' ELSE state END, updated_at = ?5
             WHERE id = ?1 AND owner = ?2",
            params![id, owner, &message.as_bytes()[..], next_at.map(int), wall],
        ),
        ScheduleSettle::Failed { error, retry_at } => db.run(
            doing,
            "UPDATE schedule SET owner = NULL, until = 0, firing_at = NULL, failures = failures + 1, error = ?3, retry_at = ?4,
                 due_at = ?4, updated_at = ?5
             WHERE id = ?1 AND owner = ?2",
            params![id, owner, error, int(*retry_at), wall],
        ),
        ScheduleSettle::Release => {
            let sql = "UPDATE schedule SET owner = NULL, until = 0, firing_at = NULL WHERE id = ?1 AND owner = ?2";
            db.run(doing, sql, params![id, owner])
        }
    };
    rows.map(|rows| rows == 1)
}

fn turn(db: &Db, id: MessageId, from: &[ScheduleState], to: ScheduleState, next_at: Option<Millis>) -> Result<bool> {
    let from: Vec<String> = from.iter().map(|state| format!("'{}'", state.as_str())).collect();
    let sql = format!(
        "UPDATE schedule SET state = ?2, next_at = ?3, due_at = ?3, retry_at = NULL, firing_at = NULL, owner = NULL, until = 0, failures = 0,
             updated_at = ?4
         WHERE id = ?1 AND state IN ({})",
        from.join(", ")
    );
    db.run("change a schedule", &sql, params![&id.as_bytes()[..], to.as_str(), next_at.map(int), db.wall()]).map(|rows| rows == 1)
}

/// Drops schedules that ended long ago.
pub(super) fn sweep(db: &Db, limit: usize) -> Result<usize> {
    db.run(
        "drop old schedules",
        "DELETE FROM schedule WHERE id IN (SELECT id FROM schedule WHERE state IN ('done', 'cancelled') AND updated_at < ?1 LIMIT ?2)",
        params![db.wall() - KEPT_MS, int(limit as u64)],
    )
}
