//! The database is killed and comes back while two stores write to it: nothing that was confirmed is lost, no key is given
//! twice, and calls work again by themselves.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline::delivery::Position;
use trunkline::store::postgres::{Options, PostgresStore};
use trunkline::store::{Address, Claimed, IdempotencyClaim, LotEntry, LotFilter, LotMessage, LotState, Store};
use trunkline::{Code, Error, Headers, MessageId};

fn setting(name: &str) -> String {
    std::env::var(format!("TRUNKLINE_TEST_{name}")).expect("a server: eval \"$(scripts/brokers up postgres)\"")
}

fn entry() -> LotEntry {
    LotEntry {
        seq: 0,
        state: LotState::Dead,
        address: Address { product: "shop".into(), env: "dev".into(), event: "orders:created".parse().unwrap() },
        group: "billing".into(),
        chain: None,
        due_at: 1,
        attempts: 1,
        reason: None,
        error: None,
        died_at: None,
        job: None,
        deliveries: 0,
        message: LotMessage {
            id: MessageId::now(),
            key: None,
            headers: Headers::new(),
            payload: Bytes::from_static(b"{}"),
            produced_at: 1,
            position: Position::default(),
        },
    }
}

fn away(error: &Error) {
    assert!(error.code() == Code::StoreFailed && error.retryable(), "{error:?}");
}

/// Puts entries and claims keys until told to stop; what was confirmed, and whose keys are its own.
async fn write(store: &PostgresStore, owner: &str, stop: &AtomicBool) -> (Vec<MessageId>, Vec<usize>) {
    let (mut put, mut ours) = (Vec::new(), Vec::new());
    let mut key = 0;
    while !stop.load(Ordering::Relaxed) {
        let one = entry();
        match store.lot_put(vec![one.clone()]).await {
            Ok(()) => put.push(one.message.id),
            Err(error) => away(&error),
        }
        let lease = Duration::from_secs(600);
        let claim =
            IdempotencyClaim { key: key.to_string(), hash: [0; 32], id: MessageId::now(), owner: owner.into(), lease, window: lease };
        match store.idempotency_claim(vec![claim]).await.as_deref() {
            Ok([Claimed::Ours(_)]) => ours.push(key),
            Ok(_) => {}
            // It may be ours or nobody's: another key.
            Err(error) => away(error),
        }
        key += 1;
    }
    (put, ours)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_outlives_the_server() {
    let schema = format!("t{}", uuid::Uuid::now_v7().simple());
    let url = format!("{}?schema={schema}", setting("POSTGRES"));
    let a = PostgresStore::open(&url, Options::default()).await.unwrap();
    let b = PostgresStore::open(&url, Options::default()).await.unwrap();
    let stop = AtomicBool::new(false);
    let restart = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let restarted = tokio::task::spawn_blocking(|| Command::new(setting("BROKERS")).args(["restart", "postgres"]).output());
        assert!(restarted.await.unwrap().unwrap().status.success());
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = a.probe().await.and(b.probe().await) {
            away(&error);
            assert!(Instant::now() < deadline, "it works again by itself");
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ((put_a, ours_a), (put_b, ours_b), ()) = tokio::join!(write(&a, "a", &stop), write(&b, "b", &stop), restart);
    let confirmed: Vec<MessageId> = put_a.into_iter().chain(put_b).collect();
    let there = a.lot_count(&LotFilter { ids: confirmed.clone(), ..LotFilter::default() }).await.unwrap();
    assert_eq!(there, confirmed.len() as u64);
    assert!(!ours_a.iter().any(|key| ours_b.contains(key)), "each key has one owner");
    a.close().await;
    b.close().await;
    let (client, connection) = tokio_postgres::connect(&setting("POSTGRES"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
}
