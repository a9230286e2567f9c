//! One connection with what it remembers, and small helpers for rows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::clock::StoreClock;
use super::errors::{Doing, damaged, failed};
use crate::error::Result;
use crate::event::Event;
use crate::message::{MessageId, Millis};
use crate::store::Address;
pub(super) use crate::store::common::{int, uint};

/// A connection as jobs see it.
pub(super) struct Db {
    /// The connection.
    pub(super) conn: Connection,
    /// The time at which the current transaction began.
    pub(super) now: Cell<Millis>,
    /// The store's clock.
    pub(super) clock: StoreClock,
    names: RefCell<Names>,
}

/// Targets are never removed or changed, so what was read once stays true.
#[derive(Default)]
struct Names {
    ids: HashMap<(Address, Arc<str>), i64>,
    targets: HashMap<i64, (Address, Arc<str>)>,
}

impl Db {
    pub(super) fn new(conn: Connection, clock: StoreClock) -> Self {
        Db { conn, now: Cell::new(0), clock, names: RefCell::default() }
    }

    /// Takes the time for the transaction that just began.
    pub(super) fn tick(&self) {
        self.now.set(self.clock.now());
    }

    /// The time of this transaction, as it is stored.
    pub(super) fn now(&self) -> i64 {
        int(self.now.get())
    }

    /// The wall clock's time, as it is stored: for what people read, not for what is decided by.
    pub(super) fn wall(&self) -> i64 {
        int(self.clock.wall())
    }

    /// This transaction's time and a span after it.
    pub(super) fn after(&self, span: Duration) -> i64 {
        int(self.now.get().saturating_add(crate::message::millis(span)))
    }

    /// A rollback may have taken targets back that are remembered here.
    pub(super) fn forget(&self) {
        *self.names.borrow_mut() = Names::default();
    }

    /// Runs one cached statement.
    pub(super) fn run(&self, doing: &str, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        self.conn.prepare_cached(sql).and_then(|mut statement| statement.execute(params)).doing(doing)
    }

    /// The first row of a cached query, if there is one.
    pub(super) fn first<T>(
        &self,
        doing: &str,
        sql: &str,
        params: impl rusqlite::Params,
        map: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.conn.prepare_cached(sql).and_then(|mut statement| statement.query_row(params, map).optional()).doing(doing)
    }

    /// All rows of a cached query.
    pub(super) fn all<T>(
        &self,
        doing: &str,
        sql: &str,
        params: impl rusqlite::Params,
        map: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.conn.prepare_cached(sql).doing(doing)?;
        let rows = statement.query_map(params, map).doing(doing)?;
        rows.collect::<rusqlite::Result<_>>().doing(doing)
    }

    /// The target's number, if anything was ever filed under it.
    pub(super) fn find_target(&self, address: &Address, group: &Arc<str>) -> Result<Option<i64>> {
        let name = (address.clone(), group.clone());
        if let Some(id) = self.names.borrow().ids.get(&name) {
            return Ok(Some(*id));
        }
        let found = self.first(
            "look up a group",
            "SELECT id FROM target WHERE product = ?1 AND env = ?2 AND broker = ?3 AND topic = ?4 AND grp = ?5",
            params![&*address.product, &*address.env, address.event.broker(), address.event.topic(), &**group],
            |row| row.get(0),
        )?;
        if let Some(id) = found {
            self.names.borrow_mut().ids.insert(name, id);
        }
        Ok(found)
    }

    /// The target's number, given now if need be.
    pub(super) fn target(&self, address: &Address, group: &Arc<str>) -> Result<i64> {
        if let Some(id) = self.find_target(address, group)? {
            return Ok(id);
        }
        self.run(
            "file a group",
            "INSERT INTO target (product, env, broker, topic, grp) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![&*address.product, &*address.env, address.event.broker(), address.event.topic(), &**group],
        )?;
        let id = self.conn.last_insert_rowid();
        self.names.borrow_mut().ids.insert((address.clone(), group.clone()), id);
        Ok(id)
    }

    /// What a target's number stands for.
    pub(super) fn target_name(&self, id: i64) -> Result<(Address, Arc<str>)> {
        if let Some(name) = self.names.borrow().targets.get(&id) {
            return Ok(name.clone());
        }
        let texts = self.first("look up a group", "SELECT product, env, broker, topic, grp FROM target WHERE id = ?1", [id], |row| {
            Ok([row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
        })?;
        let [product, env, broker, topic, group] = texts.ok_or_else(|| damaged("an entry of the lot has no topic"))?;
        let event = Event::new(&broker, &topic).map_err(|_| damaged("a topic of the lot has no valid tag"))?;
        let name = (Address { product: product.into(), env: env.into(), event }, Arc::<str>::from(group));
        self.names.borrow_mut().targets.insert(id, name.clone());
        Ok(name)
    }
}

/// Begins a write transaction, waiting for other processes until `deadline`.
///
/// SQLite's own busy handler sleeps up to 100 ms at a time, and whoever sleeps longest loses. Short, uneven sleeps
/// share the lock more evenly between processes that all write.
pub(super) fn begin_immediate(db: &Connection, deadline: Instant) -> Result<()> {
    let mut wait = Duration::from_micros(100);
    loop {
        match db.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => return Ok(()),
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(wait.mul_f64(rand::random_range(0.5..1.5)));
                wait = (wait * 2).min(Duration::from_millis(3));
            }
            Err(error) => return Err(failed("begin to write", &error)),
        }
    }
}

/// Whether another connection is in the way.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// A message id of a row.
pub(super) fn message_id(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<MessageId> {
    let bytes = row.get_ref(at)?.as_blob()?;
    let uuid = uuid::Uuid::from_slice(bytes)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Blob, Box::new(error)))?;
    Ok(MessageId(uuid))
}

/// A list of numbers for `json_each`, so that one cached statement takes lists of any length.
pub(super) fn json_list(values: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let mut out = String::from("[");
    for value in values {
        if out.len() > 1 {
            out.push(',');
        }
        let _ = std::fmt::Write::write_fmt(&mut out, format_args!("{value}"));
    }
    out.push(']');
    out
}
