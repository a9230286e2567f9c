//! The store's clock: the server's, as long as nobody sets that one, and always one that only goes forward.
//!
//! Each process counts its own uptime, so that a clock that is set moves nothing, and is held to the server's by a look
//! every few seconds. If the server's clock jumped meanwhile, whoever sees it first writes down by how much, in the row
//! `clock_ahead`, and all processes of all hosts go on as if nothing had happened. What the clock has shown is kept in
//! `clock_shown`, so that a server that comes up with its clock behind does not turn the store back.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::errors::damaged;
use super::link::{Db, Link};
use crate::error::Result;
use crate::message::Millis;
use crate::store::clock::Clock;
use crate::store::common::{int, uint};

/// Two clocks that nobody sets never come so far apart between two looks.
const JUMP_MS: i64 = 2_000;
/// An answer that took longer tells the time too roughly.
const ROUGH_MS: i64 = 500;
/// How far one look moves the clock.
const STEP_MS: i64 = 20;
/// A process that finds two jumps so shortly after each other is itself the one whose clock is wrong.
const FAITH_MS: i64 = 60_000;

/// The clock of an open store.
#[derive(Debug)]
pub(super) struct StoreClock {
    clock: Clock,
    /// What this host's uptime is behind the store's time.
    ahead: AtomicI64,
    /// The latest time that was shown.
    shown: AtomicU64,
    /// When this process last wrote down a jump; uptime.
    mended: AtomicI64,
}

impl StoreClock {
    /// Sets the clock to the server's.
    pub(super) async fn start(link: &Link, clock: Clock) -> Result<Self> {
        let this = StoreClock { clock, ahead: AtomicI64::new(0), shown: AtomicU64::new(0), mended: AtomicI64::new(i64::MIN / 2) };
        if this.clock.uptime.is_none() {
            return Ok(this);
        }
        let db = link.db(0, 0).await?;
        // It must not begin before what was shown already.
        let behind = "UPDATE meta SET value = s.shown - s.server FROM
            (SELECT value AS shown, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS server FROM meta WHERE name = 'clock_shown') s
            WHERE name = 'clock_ahead' AND s.server + value < s.shown";
        db.run("start the store's clock", behind, &[]).await?;
        let look = this.look(&db).await?;
        this.ahead.store(look.server + look.ahead - look.uptime, Ordering::Release);
        Ok(this)
    }

    fn uptime(&self) -> i64 {
        self.clock.uptime.as_ref().map_or(0, |(uptime, _)| int(uptime()))
    }

    async fn look(&self, db: &Db) -> Result<Look> {
        let before = self.uptime();
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, value FROM meta WHERE name = 'clock_ahead'";
        let row = db.first("read the server's clock", sql, &[]).await?.ok_or_else(|| damaged("the store has no clock"))?;
        let after = self.uptime();
        Ok(Look { server: row.get(0), ahead: row.get(1), uptime: before + (after - before) / 2, took: after - before })
    }

    /// Looks at the server's clock, and follows it or mends it.
    pub(super) async fn follow(&self, db: &Db) -> Result<()> {
        if self.clock.uptime.is_none() {
            return Ok(());
        }
        let look = self.look(db).await?;
        if look.took > ROUGH_MS {
            return Ok(());
        }
        let known = self.ahead.load(Ordering::Acquire);
        let off = look.server + look.ahead - look.uptime - known;
        if off.abs() < JUMP_MS {
            self.ahead.store(known + off.clamp(-STEP_MS, STEP_MS), Ordering::Release);
        } else if look.uptime - self.mended.load(Ordering::Acquire) > FAITH_MS {
            let mend = "UPDATE meta SET value = value - $1 WHERE name = 'clock_ahead' AND value = $2";
            if db.run("mend the store's clock", mend, &[&off, &look.ahead]).await? == 1 {
                tracing::warn!(ms = off, "the database server's clock was set; the store's goes on as before");
                self.mended.store(look.uptime, Ordering::Release);
            }
        } else {
            tracing::warn!(ms = off, "this host's uptime does not agree with the store's clock, which is followed");
            self.ahead.store(known + off, Ordering::Release);
        }
        Ok(())
    }

    /// The store's time.
    pub(super) fn now(&self) -> Millis {
        let now = match &self.clock.uptime {
            Some(_) => uint(self.uptime().saturating_add(self.ahead.load(Ordering::Acquire))),
            None => self.wall(),
        };
        self.shown.fetch_max(now, Ordering::AcqRel).max(now)
    }

    /// The wall clock's, for people to read.
    pub(super) fn wall(&self) -> Millis {
        (self.clock.wall)()
    }
}

struct Look {
    server: i64,
    ahead: i64,
    uptime: i64,
    took: i64,
}

/// Notes how late it is, so that the clock does not go back with a server whose own clock is behind.
pub(super) async fn note(db: &Db) -> Result<()> {
    let sql = "UPDATE meta SET value = greatest(value, $1) WHERE name = 'clock_shown'";
    db.run("note the time", sql, &[&db.now()]).await.map(drop)
}
