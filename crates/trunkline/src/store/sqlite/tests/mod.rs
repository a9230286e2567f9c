//! What SQLite alone has to show; what every store promises stands in `tests/stores/`.

mod caches;
mod clock;
mod opening;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::db::Db;
use super::{Clock, Options, SqliteStore};
use crate::delivery::Position;
use crate::error::{Code, Error};
use crate::message::{Headers, MessageId, Millis};
use crate::store::*;

/// A directory, and a time that moves only when told.
struct Bed {
    dir: tempfile::TempDir,
    time: Arc<AtomicU64>,
}

const START: Millis = 1_800_000_000_000;

impl Bed {
    fn new() -> Self {
        Bed { dir: tempfile::tempdir().unwrap(), time: Arc::new(AtomicU64::new(START)) }
    }

    fn options(&self) -> Options {
        let time = self.time.clone();
        Options { clock: Clock::new(move || time.load(Ordering::SeqCst)), ..Options::default() }
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(self.dir.path(), self.options()).unwrap()
    }

    fn pass(&self, ms: u64) {
        self.time.fetch_add(ms, Ordering::SeqCst);
    }
}

fn address(topic: &str) -> Address {
    Address { product: "shop".into(), env: "dev".into(), event: format!("orders:{topic}").parse().unwrap() }
}

fn entry(state: LotState, n: u64) -> LotEntry {
    LotEntry {
        seq: 0,
        state,
        address: address("created"),
        group: if state == LotState::Publish { "" } else { "billing" }.into(),
        chain: None,
        due_at: START,
        attempts: 3,
        reason: (state == LotState::Dead).then(|| "attempts_exhausted".to_owned()),
        error: Some(format!("no connection {}\nat line 1", n % 3)),
        died_at: None,
        job: None,
        deliveries: 0,
        message: LotMessage {
            id: MessageId::derived(START + n / 50, &[&n.to_le_bytes()]),
            key: Some(Bytes::from(format!("key-{n}"))),
            headers: Headers::from_iter([("tenant", Bytes::from_static(b"a"))]),
            payload: Bytes::from(format!("{{\"n\":{n}}}")),
            produced_at: START - 5,
            position: Position { shard: 0, offset: u64::MAX - n },
        },
    }
}

fn job(id: &str) -> Job {
    Job {
        id: id.to_owned(),
        kind: "reprocess".to_owned(),
        product: "shop".to_owned(),
        state: "running".to_owned(),
        spec: json!({ "all": true }),
        cursor: 0,
        matched: 0,
        done: 0,
        failed: 0,
        skipped: 0,
        results: Vec::new(),
        created_at: START,
        updated_at: START,
    }
}

const LEASE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn writes_of_many_callers_share_a_commit_and_one_failure_stays_alone() {
    let bed = Bed::new();
    // Each transaction takes the time once, so on a clock that ticks with each look the time names the transaction.
    let time = bed.time.clone();
    let clock = Clock::new(move || time.fetch_add(1, Ordering::SeqCst));
    let store = SqliteStore::open(bed.dir.path(), Options { clock, ..Options::default() }).unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (holding, mut holds) = mpsc::channel(1);
    let blocker = store.write(1, move |_| {
        let _ = holding.try_send(());
        let _ = held.recv();
        Ok(())
    });
    let calls = futures_util::future::join_all((0..100_u64).map(|n| {
        store.write(1, move |db| {
            db.run("test", "INSERT INTO dedupe_scope (name) VALUES (?1)", [n.to_string()])?;
            match n {
                77 => Err(Error::store("this one fails")),
                78 => panic!("this one panics"),
                _ => Ok(db.now.get()),
            }
        })
    }));
    let all = async {
        holds.recv().await.unwrap(); // from here on everything queues up
        tokio::join!(calls, async { release.send(()).unwrap() }).0
    };
    let (blocked, results) = tokio::join!(blocker, all);
    blocked.unwrap();
    let failed: Vec<usize> = (0..100).filter(|n| results[*n].is_err()).collect();
    assert_eq!(failed, [77, 78]);
    let mut transactions: Vec<Millis> = results.into_iter().flatten().collect();
    transactions.dedup();
    assert_eq!(transactions.len(), 1, "all were written by one commit");
    let kept = |db: &Db| db.first("test", "SELECT count(*) FROM dedupe_scope", [], |row| row.get::<_, i64>(0));
    assert_eq!(store.read(kept).await.unwrap(), Some(98));
    // The target cache must not remember what was rolled back with a failed step.
    store.lot_put(vec![entry(LotState::Dead, 1)]).await.unwrap();
    assert_eq!(store.lot_count(&LotFilter::default()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_failed_step_takes_its_new_group_back() {
    let bed = Bed::new();
    let store = bed.open();
    let group = Arc::<str>::from("g");
    let failing = {
        let group = group.clone();
        store.write(1, move |db| db.target(&address("created"), &group).and_then(|_| Err::<(), _>(Error::store("no"))))
    };
    assert!(failing.await.is_err());
    let mut one = entry(LotState::Waiting, 1);
    one.group = group;
    store.lot_put(vec![one.clone()]).await.unwrap();
    assert_eq!(store.lot_list(&LotFilter::default(), 10, 0, false).await.unwrap(), [LotEntry { seq: 1, ..one }]);
}

#[tokio::test]
async fn a_closed_store_says_so_and_leaves_no_thread() {
    let bed = Bed::new();
    let store = bed.open();
    let put = store.lot_put(vec![entry(LotState::Dead, 1)]);
    let (put, ()) = tokio::join!(put, store.close());
    put.unwrap();
    store.close().await;
    assert_eq!(store.probe().await.unwrap_err().code(), Code::Closed);
    assert_eq!(store.catalog_version().await.unwrap_err().code(), Code::Closed);
    assert!(!bed.dir.path().join("state.db-wal").exists(), "the last connection folded its log into the file");
    assert_eq!(bed.open().lot_count(&LotFilter::default()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_store_that_is_busy_for_too_long_says_so() {
    let bed = Bed::new();
    let (a, b) =
        (bed.open(), SqliteStore::open(bed.dir.path(), Options { busy_timeout: Duration::from_millis(20), ..bed.options() }).unwrap());
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (holding, mut holds) = mpsc::channel(1);
    let hold = a.write(1, move |_| {
        let _ = holding.try_send(());
        let _ = held.recv();
        Ok(())
    });
    let ((), held) = tokio::join!(
        async {
            holds.recv().await.unwrap();
            let error = b.probe().await.unwrap_err();
            assert_eq!((error.code(), error.detail_str("reason"), error.retryable()), (Code::StoreFailed, Some("busy"), true));
            assert!(b.catalog_version().await.is_ok(), "reading goes on");
            release.send(()).unwrap();
        },
        hold
    );
    held.unwrap();
    b.probe().await.unwrap();
}

#[tokio::test]
async fn a_revive_that_fails_takes_its_ledger_back_and_bodies_go_with_their_entries() {
    let bed = Bed::new();
    let store = bed.open();
    store.lot_put((0..10).map(|n| entry(LotState::Dead, n)).collect()).await.unwrap();
    store.job_put(&job("j")).await.unwrap();
    let failing = store.write(1, |db| {
        super::lot::revive(db, "j", &LotFilter::default(), None, 5)?;
        Err::<(), _>(Error::store("the power went out"))
    });
    assert!(failing.await.is_err());
    assert_eq!(store.lot_count(&LotFilter { state: Some(LotState::Dead), ..LotFilter::default() }).await.unwrap(), 10);
    assert_eq!(store.job_get("j").await.unwrap().unwrap().done, 0);
    assert_eq!(store.lot_discard(&[1, 2, 3]).await.unwrap(), 3);
    let bodies = store.read(|db| db.first("test", "SELECT count(*) FROM lot_body", [], |row| row.get::<_, i64>(0))).await.unwrap();
    assert_eq!(bodies, Some(7));
}
