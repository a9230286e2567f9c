//! The store's clock: it only goes forward, whatever becomes of the wall clock, and all processes of the host agree on it.
//!
//! Leases, claims, waits and windows are counted by it. It starts with the wall time at which the store was first opened
//! since the machine was started, or with the latest time it is known to have shown, if that is later; from there it counts
//! the machine's uptime. Where it starts is kept in the store. So a wall clock that somebody sets by an hour neither ends
//! a claim that is being kept, nor makes a wait an hour longer or shorter.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, params};

use super::db::{begin_immediate, int, uint};
use super::errors::Doing;
use crate::clock::{boot_id, uptime_ms};
use crate::error::Result;
use crate::message::{Millis, now_ms};

type Source = Arc<dyn Fn() -> Millis + Send + Sync>;

/// Where a store takes the time from.
#[derive(Clone)]
pub struct Clock {
    wall: Source,
    /// The machine's uptime and the number of its start; `None` if nobody ever sets the wall clock.
    uptime: Option<(Source, u128)>,
}

impl Clock {
    /// A clock that nobody sets, for tests.
    pub fn new(now: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Clock { wall: Arc::new(now), uptime: None }
    }

    /// A wall clock that may be set, the machine's uptime, and a number that is another one after each start of it.
    pub fn with_uptime(
        wall: impl Fn() -> Millis + Send + Sync + 'static,
        uptime: impl Fn() -> Millis + Send + Sync + 'static,
        boot: u128,
    ) -> Self {
        Clock { wall: Arc::new(wall), uptime: Some((Arc::new(uptime), boot)) }
    }
}

impl Default for Clock {
    /// The clocks of this host.
    fn default() -> Self {
        Clock::with_uptime(now_ms, uptime_ms, boot_id())
    }
}

impl Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

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
