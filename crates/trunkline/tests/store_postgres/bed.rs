//! A schema of its own for every test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio_postgres::NoTls;
use trunkline::store::Store;
use trunkline::store::clock::Clock;
use trunkline::store::postgres::{Options, PostgresStore};

use crate::stores::{Bed, START};

/// A schema that is dropped at the end, and a time that moves only when told.
pub struct Schema {
    pub name: String,
    time: Arc<AtomicU64>,
}

/// The server's URL.
pub fn server() -> String {
    std::env::var("TRUNKLINE_TEST_POSTGRES").expect("a server: eval \"$(scripts/brokers up postgres)\"")
}

/// A plain connection beside the store's.
pub async fn psql() -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&server(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Schema {
    #[expect(clippy::unused_async, reason = "the list awaits every bed")]
    pub async fn new() -> Self {
        Schema { name: format!("t{}", uuid::Uuid::now_v7().simple()), time: Arc::new(AtomicU64::new(START)) }
    }

    pub fn url(&self) -> String {
        format!("{}?schema={1}&application_name={1}", server(), self.name)
    }

    pub fn options(&self) -> Options {
        let time = self.time.clone();
        Options { clock: Clock::new(move || time.load(Ordering::SeqCst)), connections: 4, ..Options::default() }
    }

    pub async fn store(&self, options: Options) -> PostgresStore {
        PostgresStore::open(&self.url(), options).await.unwrap()
    }

    /// Cuts the connections of the bed's stores, as a restart of the server would.
    pub async fn cut(&self, query: &str) -> usize {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE $2";
        psql().await.query(sql, &[&self.name, &query]).await.unwrap().len()
    }

    /// Statements in the schema.
    pub async fn sql(&self, sql: &str) {
        psql().await.batch_execute(&format!("SET search_path TO {}; {sql}", self.name)).await.unwrap();
    }

    pub async fn end(self) {
        psql().await.batch_execute(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.name)).await.unwrap();
    }
}

#[async_trait]
impl Bed for Schema {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.store(self.options()).await)
    }

    fn pass(&self, ms: u64) {
        self.time.fetch_add(ms, Ordering::SeqCst);
    }
}
