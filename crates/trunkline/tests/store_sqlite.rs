//! The list of tests that every store passes, on SQLite.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no outside")]

mod stores;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use stores::{Bed, START};
use trunkline::store::Store;
use trunkline::store::sqlite::{Clock, Options, SqliteStore};

/// A directory.
struct Directory {
    dir: tempfile::TempDir,
    time: Arc<AtomicU64>,
}

impl Directory {
    #[expect(clippy::unused_async, reason = "the list awaits every bed")]
    async fn new() -> Self {
        Directory { dir: tempfile::tempdir().expect("a directory"), time: Arc::new(AtomicU64::new(START)) }
    }

    #[expect(clippy::unused_async, reason = "the list awaits every bed")]
    async fn end(self) {}
}

#[async_trait]
impl Bed for Directory {
    async fn open(&self) -> Arc<dyn Store> {
        let time = self.time.clone();
        let options = Options { clock: Clock::new(move || time.load(Ordering::SeqCst)), ..Options::default() };
        Arc::new(SqliteStore::open(self.dir.path(), options).expect("a store"))
    }

    fn pass(&self, ms: u64) {
        self.time.fetch_add(ms, Ordering::SeqCst);
    }
}

stores::store_tests!(super::Directory::new());
