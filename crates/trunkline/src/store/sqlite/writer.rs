//! The threads: one that writes, a few that read.
//!
//! Group commit: the writer takes everything that is queued, runs it in one transaction, and answers only after the
//! commit. A thousand callers that wait for their own durable write then share one fsync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::db::{Db, begin_immediate};
use super::errors::Doing;
use crate::error::{Error, Result};

/// At most this many jobs in one transaction,
const MAX_JOBS: usize = 4096;
/// and about this many rows, so that the last of them does not wait for long.
const MAX_ROWS: usize = 20_000;

/// A piece of work with someone who waits for it.
pub(super) trait Job: Send {
    /// Does the work, again if its transaction was rolled back; the last result is kept until [`Job::answer`].
    fn run(&mut self, db: &Db);
    /// The error, if the work failed.
    fn error(&self) -> Option<&Error>;
    /// Whether nobody waits any more.
    fn given_up(&self) -> bool;
    /// About how many rows it touches.
    fn rows(&self) -> usize;
    /// Answers: with `fate` if the transaction failed, else with the result.
    fn answer(self: Box<Self>, fate: Option<&Error>);
}

struct Call<T, F> {
    work: F,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    rows: usize,
}

impl<T: Send, F: Fn(&Db) -> Result<T> + Send> Job for Call<T, F> {
    fn run(&mut self, db: &Db) {
        // A bug in one job must not take the store away from all others.
        self.result = Some(catch_unwind(AssertUnwindSafe(|| (self.work)(db))).unwrap_or_else(|_| {
            Err(Error::store("the store's work panicked").reason("internal").next("please report this with the panic's message on stderr"))
        }));
    }

    fn error(&self) -> Option<&Error> {
        self.result.as_ref().and_then(|result| result.as_ref().err())
    }

    fn given_up(&self) -> bool {
        self.reply.is_closed()
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn answer(self: Box<Self>, fate: Option<&Error>) {
        let result = match (self.result, fate) {
            (Some(Err(own)), _) => Err(own),
            (_, Some(fate)) => Err(fate.clone()),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => return, // nobody waits for it
        };
        let _ = self.reply.send(result);
    }
}

/// A job and the end at which its answer arrives.
pub(super) fn job<T: Send + 'static>(
    rows: usize,
    work: impl Fn(&Db) -> Result<T> + Send + 'static,
) -> (Box<dyn Job>, oneshot::Receiver<Result<T>>) {
    let (reply, answer) = oneshot::channel();
    (Box::new(Call { work, result: None, reply, rows }), answer)
}

/// Writes until the queue is closed and empty.
pub(super) fn write_loop(db: &Db, mut queue: mpsc::Receiver<Box<dyn Job>>, busy_timeout: Duration) {
    let mut batch: Vec<Box<dyn Job>> = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        let mut rows = first.rows();
        batch.push(first);
        while batch.len() < MAX_JOBS && rows < MAX_ROWS {
            let Ok(next) = queue.try_recv() else { break };
            rows += next.rows();
            batch.push(next);
        }
        batch.retain(|job| !job.given_up());
        if batch.is_empty() {
            continue;
        }
        let deadline = Instant::now() + busy_timeout;
        let mut done = transact(db, &mut batch, deadline, false);
        if let Ok(Ended::NotAlone) = done {
            done = transact(db, &mut batch, deadline, true);
        }
        let fate = done.err();
        for job in batch.drain(..) {
            job.answer(fate.as_ref());
        }
    }
}

/// How a transaction ended.
enum Ended {
    /// It is on the disk.
    Committed,
    /// A job failed after it had written, and the others were rolled back with it.
    NotAlone,
}

/// Runs all jobs in one transaction.
///
/// A savepoint around each job lets one fail alone, but SQLite then copies every page a job touches, which costs a third
/// of the speed of small jobs. So a batch runs without them first; only if a job fails after it has written does the
/// batch run again, `carefully`.
fn transact(db: &Db, batch: &mut [Box<dyn Job>], deadline: Instant, carefully: bool) -> Result<Ended> {
    begin_immediate(&db.conn, deadline)?;
    let ended = run_all(db, batch, carefully).and_then(|ended| match ended {
        Ended::Committed => db.conn.execute_batch("COMMIT").doing("commit").map(|()| ended),
        Ended::NotAlone => Ok(ended),
    });
    if !matches!(ended, Ok(Ended::Committed)) {
        db.forget();
        if !db.conn.is_autocommit() {
            let _ = db.conn.execute_batch("ROLLBACK");
        }
    }
    ended
}

fn run_all(db: &Db, batch: &mut [Box<dyn Job>], carefully: bool) -> Result<Ended> {
    // The time is taken under the lock, so that claims of several processes are made in the order of their times.
    db.tick();
    let alone = batch.len() == 1;
    for job in batch {
        if carefully {
            db.run("begin a step", "SAVEPOINT job", [])?;
        }
        let before = db.conn.total_changes();
        job.run(db);
        if let Some(error) = job.error() {
            // A full disk and the like end the whole transaction at once.
            if alone || db.conn.is_autocommit() {
                return Err(error.clone());
            }
            if carefully {
                db.run("take a step back", "ROLLBACK TO job", [])?;
                db.forget();
            } else if db.conn.total_changes() != before {
                return Ok(Ended::NotAlone);
            }
        }
        if carefully {
            db.run("end a step", "RELEASE job", [])?;
        }
    }
    Ok(Ended::Committed)
}

/// Reads until the queue is closed and empty. Several threads share the queue.
#[expect(clippy::needless_pass_by_value, reason = "the thread owns its connection")]
pub(super) fn read_loop(db: Db, queue: Arc<Mutex<mpsc::Receiver<Box<dyn Job>>>>) {
    loop {
        // The guard is dropped before the work, so that another thread takes the next job meanwhile.
        let next = queue.lock().blocking_recv();
        let Some(mut job) = next else { return };
        if job.given_up() {
            continue;
        }
        let begun = db.conn.execute_batch("BEGIN").doing("begin to read").err();
        if begun.is_none() {
            db.tick();
            job.run(&db);
            if !db.conn.is_autocommit() {
                let _ = db.conn.execute_batch("COMMIT");
            }
        }
        job.answer(begun.as_ref());
    }
}
