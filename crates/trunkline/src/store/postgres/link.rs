//! The connections: a bounded pool, each call with a deadline, and a transaction that nobody can leave half open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Connection, NoTls, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::errors::{Doing, closed, failed, unreachable};
use super::target::Target;
use crate::error::{Error, Result};
use crate::message::{Millis, millis};
use crate::store::common::int;

/// What is bound to a statement.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

/// The connections of an open store.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    pool: Pool,
    answer: Duration,
}

impl Link {
    /// A pool that has no connection yet.
    pub(super) fn new(target: Target, options: &Options) -> Result<Link> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match &target.tls {
            Some(tls) => Manager::from_config(target.config.clone(), MakeRustlsConnect::new((**tls).clone()), config),
            None => Manager::from_config(target.config.clone(), NoTls, config),
        };
        let connect = target.config.get_connect_timeout().copied().unwrap_or(options.busy_timeout);
        let settings = settings(&target.schema, options);
        let hook = Hook::async_fn(move |client, _| {
            let settings = settings.clone();
            Box::pin(async move { client.batch_execute(&settings).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(options.connections.max(2))
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(options.busy_timeout))
            // The handshake comes after the connect, and the settings after that.
            .create_timeout(Some(connect * 2))
            .recycle_timeout(Some(connect))
            .post_create(hook)
            .build()
            .map_err(|error| Error::store(format!("the connections cannot be set up: {error}")).reason("internal"))?;
        // The server's own limit comes first; this one is for a server that says nothing any more.
        let answer = options.statement_timeout + Duration::from_secs(2);
        Ok(Link { target, pool, answer })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Says where it failed.
    pub(super) fn located(&self, error: Error) -> Error {
        error.detail("store", self.target.location())
    }

    /// A connection, with the time as of which the work is done. What is written without [`Db::begin`] is durable at once.
    pub(super) async fn db(&self, now: Millis, wall: Millis) -> Result<Db> {
        let client = self.pool.get().await.map_err(|error| self.located(self.no_connection(error)))?;
        Ok(Db {
            client: Some(client),
            begun: false,
            broken: AtomicBool::new(false),
            answer: self.answer,
            now,
            wall,
            at: self.target.location(),
        })
    }

    fn no_connection(&self, error: PoolError) -> Error {
        match error {
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => failed("connect to the database", &error),
            PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => Error::store("no connection to the database came free in time")
                .reason("busy")
                .next("try again; the database or this process is overloaded")
                .with_retryable(true),
            PoolError::Timeout(_) => unreachable("connect to the database: it does not answer"),
            PoolError::Closed => closed(),
            other => unreachable(&format!("connect to the database: {other}")),
        }
    }

    /// A connection of its own beside the pool, whose notifications `heard` is told of until `end`.
    pub(super) async fn listen(&self, channel: &str, end: &CancellationToken, heard: impl Fn() + Send + Sync) -> Result<()> {
        let doing = "listen for changes";
        let config = &self.target.config;
        match &self.target.tls {
            Some(tls) => {
                let (client, connection) = config.connect(MakeRustlsConnect::new((**tls).clone())).await.doing(doing)?;
                listen_on(client, connection, channel, end, heard).await
            }
            None => {
                let (client, connection) = config.connect(NoTls).await.doing(doing)?;
                listen_on(client, connection, channel, end, heard).await
            }
        }
    }

    /// Closes the connections; later calls get none.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

/// What every connection is set to: our schema, confirmed writes, and limits that the server keeps itself.
fn settings(schema: &str, options: &Options) -> String {
    format!(
        "SET search_path TO \"{schema}\"; SET synchronous_commit TO on; SET default_transaction_isolation TO 'read committed'; \
         SET statement_timeout TO {}; SET idle_in_transaction_session_timeout TO {}; SET timezone TO 'UTC'; SET jit TO off; \
         SET client_min_messages TO warning",
        millis(options.statement_timeout),
        millis(options.statement_timeout * 2)
    )
}

async fn listen_on<S>(
    client: tokio_postgres::Client,
    mut connection: Connection<Socket, S>,
    channel: &str,
    end: &CancellationToken,
    heard: impl Fn() + Send + Sync,
) -> Result<()>
where
    S: tokio_postgres::tls::TlsStream + Unpin + Send,
{
    let doing = "listen for changes";
    let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
    let sql = format!("LISTEN \"{channel}\"");
    let asked = client.batch_execute(&sql);
    tokio::pin!(asked);
    let mut listening = false;
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            asked = &mut asked, if !listening => {
                asked.doing(doing)?;
                listening = true;
                // What changed before we listened was not told.
                heard();
            }
            message = futures_util::StreamExt::next(&mut messages) => match message {
                Some(Ok(tokio_postgres::AsyncMessage::Notification(_))) => heard(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(failed(doing, &error)),
                None => return Err(unreachable("listen for changes: the connection ended")),
            },
        }
    }
}

/// A connection at work. Dropped with a transaction open, or in the middle of an answer, it is thrown away, and the server
/// rolls back.
#[derive(Debug)]
pub(super) struct Db {
    client: Option<Object>,
    begun: bool,
    broken: AtomicBool,
    answer: Duration,
    /// The store's time of this work.
    now: Millis,
    /// The wall clock's: for what people read, not for what is decided by.
    wall: Millis,
    at: String,
}

impl Db {
    /// The store's time of this work, as it is stored.
    pub(super) fn now(&self) -> i64 {
        int(self.now)
    }

    /// The wall clock's time, as it is stored.
    pub(super) fn wall(&self) -> i64 {
        int(self.wall)
    }

    /// This work's time and a span after it.
    pub(super) fn after(&self, span: Duration) -> i64 {
        int(self.now.saturating_add(millis(span)))
    }

    fn client(&self) -> &Object {
        self.client.as_ref().expect("taken only by the drop")
    }

    /// Waits for an answer, but not for ever.
    async fn answered<T>(&self, doing: &str, work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
        // Until the answer is there, a caller that goes away leaves the connection in the middle of something.
        self.broken.store(true, Ordering::Relaxed);
        let answer = tokio::time::timeout(self.answer, work).await;
        match answer {
            Ok(Ok(value)) => {
                self.broken.store(false, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) => {
                self.broken.store(error.as_db_error().is_none(), Ordering::Relaxed);
                let text = failed(doing, &error).detail("store", self.at.clone());
                Err(if error.code().is_some_and(super::errors::is_conflict) { text.detail("conflict", true) } else { text })
            }
            Err(_) => Err(unreachable(&format!("{doing}: the database does not answer")).detail("store", self.at.clone())),
        }
    }

    /// All rows of a statement.
    pub(super) async fn all(&self, doing: &str, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        self.answered(doing, async {
            let statement = self.client().prepare_cached(sql).await?;
            self.client().query(&statement, params).await
        })
        .await
    }

    /// The first row, if there is one.
    pub(super) async fn first(&self, doing: &str, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>> {
        Ok(self.all(doing, sql, params).await?.into_iter().next())
    }

    /// How many rows it changed.
    pub(super) async fn run(&self, doing: &str, sql: &str, params: &[Param<'_>]) -> Result<u64> {
        self.answered(doing, async {
            let statement = self.client().prepare_cached(sql).await?;
            self.client().execute(&statement, params).await
        })
        .await
    }

    /// Statements without values.
    pub(super) async fn batch(&self, doing: &str, sql: &str) -> Result<()> {
        self.answered(doing, self.client().batch_execute(sql)).await
    }

    /// Begins a transaction.
    pub(super) async fn begin(mut self) -> Result<Db> {
        self.begun = true;
        self.batch("begin to write", "BEGIN").await?;
        Ok(self)
    }

    /// Begins a transaction that sees one moment.
    pub(super) async fn snapshot(mut self) -> Result<Db> {
        self.begun = true;
        self.batch("begin to read", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        Ok(self)
    }

    /// Ends the transaction: what was written is durable when this returns.
    pub(super) async fn commit(mut self) -> Result<()> {
        self.batch("commit", "COMMIT").await?;
        self.begun = false;
        Ok(())
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if (self.begun || self.broken.load(Ordering::Relaxed))
            && let Some(client) = self.client.take()
        {
            drop(Object::take(client));
        }
    }
}

/// How often work is done again that was rolled back because others were in the way.
const ATTEMPTS: u32 = 5;

/// Does the work again if it was rolled back because others were in the way.
pub(super) async fn retried<T, F: Future<Output = Result<T>>>(work: impl Fn() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match work().await {
            Err(error) if attempt < ATTEMPTS && error.details().contains_key("conflict") => {
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) * rand::random_range(1..=10))).await;
                attempt += 1;
            }
            done => return done,
        }
    }
}
