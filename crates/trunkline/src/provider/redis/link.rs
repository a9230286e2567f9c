//! A connection that is made again when it broke: on the next call, never by itself, and never sending anything twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, Pipeline, RedisError, Value};

use super::error::{self, Failed};
use super::script::Script;
use super::target::{Target, Wire};
use crate::error::{Code, Error, Result};

/// How long a call that does not block may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// See the module. Calls may run at the same time; they are answered in the order they were made.
#[derive(Debug)]
pub(super) struct Link {
    target: Arc<Target>,
    wire: Mutex<Option<Arc<Wire>>>,
    opening: tokio::sync::Mutex<()>,
    /// How many connections there were.
    made: AtomicU64,
    closed: AtomicBool,
}

impl Link {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Link {
            target,
            wire: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            made: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// The connection there is, or a new one.
    ///
    /// # Errors
    /// As [`Target::open`]; `CLOSED`.
    pub(super) async fn wire(&self) -> Result<Arc<Wire>> {
        let there = || self.wire.lock().clone().filter(|wire| !wire.ended());
        if self.closed.load(Ordering::Acquire) {
            return Err(error::closed());
        }
        if let Some(wire) = there() {
            return Ok(wire);
        }
        let _one = self.opening.lock().await;
        if let Some(wire) = there() {
            return Ok(wire);
        }
        let wire = Arc::new(self.target.open(None).await?);
        let mut current = self.wire.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(error::closed());
        }
        self.made.fetch_add(1, Ordering::AcqRel);
        *current = Some(Arc::clone(&wire));
        Ok(wire)
    }

    /// How many connections there were: more than before means that one broke meanwhile.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// Sends commands at once and waits for all answers. A refusal by the server is one of the answers.
    pub(super) async fn pipe(&self, pipeline: &Pipeline) -> Result<Vec<Value>> {
        self.send(pipeline).await.map_err(|failed| failed.error)
    }

    /// The same, and says whether the server may have it where it failed.
    pub(super) async fn send(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failed> {
        let (offset, count) = if pipeline.is_transaction() { (pipeline.len() + 1, 1) } else { (0, pipeline.len()) };
        let wire = self.wire().await.map_err(Failed::before)?;
        let mut connection = wire.connection.clone();
        let answer = tokio::time::timeout(ANSWER, connection.send_packed_commands(pipeline, offset, count)).await;
        self.answered(&wire, answer)
    }

    /// Sends one command and waits for its answer, which may be a refusal.
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value> {
        let wire = self.wire().await?;
        let mut connection = wire.connection.clone();
        let answer = tokio::time::timeout(ANSWER, connection.send_packed_command(cmd)).await;
        self.answered(&wire, answer).map_err(|failed| failed.error)
    }

    /// The same, where a refusal is an error: of this code, unless it says more.
    pub(super) async fn call(&self, cmd: &Cmd, other: Code) -> Result<Value> {
        accepted(self.ask(cmd).await?, other)
    }

    /// Runs a script; the server learns it on its first use.
    pub(super) async fn run(&self, script: &Script, keys: &[&str], args: &[&dyn Argument], other: Code) -> Result<Value> {
        let known = self.ask(&script.call(true, keys, args)).await?;
        let value = if is_unknown_script(&known) { self.ask(&script.call(false, keys, args)).await? } else { known };
        accepted(value, other)
    }

    /// Runs a script several times at once.
    pub(super) async fn run_all(&self, script: &Script, calls: &[Call<'_>]) -> Result<Vec<Value>> {
        let mut pipeline = Pipeline::with_capacity(calls.len());
        for (keys, args) in calls {
            pipeline.add_command(script.call(true, keys, args));
        }
        let mut answers = self.pipe(&pipeline).await?;
        if answers.iter().any(is_unknown_script) {
            // None of these did anything.
            let mut again = Pipeline::new();
            for (call, _) in calls.iter().zip(&answers).filter(|(_, answer)| is_unknown_script(answer)) {
                again.add_command(script.call(false, &call.0, &call.1));
            }
            let mut learnt = self.pipe(&again).await?.into_iter();
            for answer in answers.iter_mut().filter(|answer| is_unknown_script(answer)) {
                *answer = learnt.next().unwrap_or(Value::Nil);
            }
        }
        Ok(answers)
    }

    fn answered<T>(&self, wire: &Arc<Wire>, answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>) -> Result<T, Failed> {
        let error = match answer {
            Ok(Ok(value)) => return Ok(value),
            // The server discarded a whole transaction: it did nothing of it.
            Ok(Err(broken)) => match broken.clone().into_server_errors().as_deref() {
                Some([(_, refused), ..]) => return Err(Failed::before(error::server(refused, Code::PublishFailed))),
                _ if self.closed.load(Ordering::Acquire) => error::closed(),
                _ => error::transport(&broken),
            },
            Err(_) => error::silence("a call"),
        };
        self.forget(wire);
        Err(Failed { error, sent: true })
    }

    /// Drops a connection that is of no use any more.
    fn forget(&self, wire: &Arc<Wire>) {
        let mut current = self.wire.lock();
        if current.as_ref().is_some_and(|there| Arc::ptr_eq(there, wire)) {
            *current = None;
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends the connection and what waits on it. Later calls are `CLOSED`.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let wire = self.wire.lock().take();
        if let Some(wire) = wire {
            wire.end();
        }
    }
}

/// The keys and arguments of a script.
pub(super) type Call<'a> = (Vec<&'a str>, Vec<&'a dyn Argument>);

fn is_unknown_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(refused) if refused.code() == "NOSCRIPT")
}

/// What a script takes beside its keys.
pub(super) trait Argument: Sync {
    fn put(&self, cmd: &mut Cmd);
}

impl<T: redis::ToRedisArgs + Sync> Argument for T {
    fn put(&self, cmd: &mut Cmd) {
        cmd.arg(self);
    }
}

/// The answer, unless it is a refusal.
pub(super) fn accepted(value: Value, other: Code) -> Result<Value> {
    match value {
        Value::ServerError(refused) => Err(error::server(&refused, other)),
        value => Ok(value),
    }
}

/// A refusal that only says that it is not there.
pub(super) fn is_missing(value: &Value) -> bool {
    match value {
        Value::ServerError(refused) => refused.code() == "NOGROUP" || refused.details().is_some_and(|text| text.starts_with("no such key")),
        _ => false,
    }
}

/// A number in a reply.
pub(super) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// The items of a list in a reply; none if it is no list.
pub(super) fn items(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => Vec::new(),
    }
}

/// A reply that this version does not understand.
pub(super) fn strange(what: &str) -> Error {
    error::connection(format!("Redis answered {what} in a form that is not known"))
}
