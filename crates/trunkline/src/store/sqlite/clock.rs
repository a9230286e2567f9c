//! The store's clock: it only goes forward, whatever becomes of the wall clock, and all processes of the host agree on it.
//!
//! Leases, claims, waits and windows are counted by it. It starts with the wall time at which the store was first opened
//! since the machine was started, or with the latest time it is known to have shown, if that is later; from there it counts
//! the machine's uptime. Where it starts is kept in the store. So a wall clock that somebody sets by an hour neither ends
//! a claim that is being kept, nor makes a wait an hour longer or shorter.

use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, params};

use super::db::{begin_immediate, int, uint};
use super::errors::Doing;
use crate::error::Result;
use crate::message::Millis;
use crate::store::clock::Clock;

/// The clock of an open store.
#[derive(Debug, Clone)]
pub(super) struct StoreClock {
    clock: Clock,
    /// What its uptime is ahead by.
    ahead: i64,
}

impl StoreClock {
    /// Starts the clock of a store, or joins one that was started since the machine was.
    pub(super) fn start(db: &Connection, clock: Clock, deadline: Instant) -> Result<Self> {
        let Some((uptime, boot)) = &clock.uptime else { return Ok(StoreClock { clock, ahead: 0 }) };
        // A number of 63 bits, as rows have it.
        let boot = int((boot ^ (boot >> 64)) as u64 >> 1);
        let known = |name: &str| {
            let sql = "SELECT value FROM meta WHERE name = ?1";
            db.query_row(sql, [name], |row| row.get::<_, i64>(0)).optional().doing("read the store's clock")
        };
        let joined = || Ok(if known("clock_boot")? == Some(boot) { known("clock_ahead")? } else { None });
        if let Some(ahead) = joined()? {
            return Ok(StoreClock { clock, ahead });
        }
        begin_immediate(db, deadline)?;
        let started = || {
            // Another process may have been faster.
            if let Some(ahead) = joined()? {
                return Ok(ahead);
            }
            let shown = known("clock_shown")?.unwrap_or(0);
            let ahead = int((clock.wall)()).max(shown) - int(uptime());
            let set = |name: &str, value: i64| {
                db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", params![name, value])
                    .doing("start the store's clock")
            };
            set("clock_boot", boot)?;
            set("clock_ahead", ahead)?;
            Ok(ahead)
        };
        let ahead = started();
        let ended = db.execute_batch(if ahead.is_ok() { "COMMIT" } else { "ROLLBACK" }).doing("start the store's clock");
        let ahead = ahead?;
        ended?;
        Ok(StoreClock { clock, ahead })
    }

    /// The store's time.
    pub(super) fn now(&self) -> Millis {
        match &self.clock.uptime {
            Some((uptime, _)) => uint(int(uptime()).saturating_add(self.ahead)),
            None => self.wall(),
        }
    }

    /// The wall clock's, for people to read.
    pub(super) fn wall(&self) -> Millis {
        (self.clock.wall)()
    }
}

/// Notes how late it is, so that the clock does not go back when the machine starts with a wall clock that is behind.
pub(super) fn note(db: &super::db::Db) -> Result<()> {
    let sql = "INSERT INTO meta (name, value) VALUES ('clock_shown', ?1) ON CONFLICT (name) DO UPDATE SET value = max(value, ?1)";
    db.run("note the time", sql, [db.now()]).map(drop)
}
