//! Somebody sets the wall clock by an hour while messages are produced, handled and waiting: nothing is lost, nothing is
//! handled twice, nothing waits for an hour, and no claim is taken from who keeps it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{Barrier, Mutex, MutexGuard};
use trunkline::message::now_ms;
use trunkline::{Code, Context, Raw};
use trunkline_suite::app::Apps;
use trunkline_suite::ledger::Entry;
use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, retries, until};

const HOUR: i64 = 3_600_000;
/// Far more than any wait here, far less than an hour.
const SOON: Duration = Duration::from_secs(15);

/// The clock of this process, for one test at a time.
struct Wall(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Wall {
    async fn take() -> Self {
        static ONE: Mutex<()> = Mutex::const_new(());
        Wall(ONE.lock().await)
    }

    fn set(&self, by: i64) {
        trunkline::clock::set(by);
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        trunkline::clock::set(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_lose_and_repeat_nothing_when_the_clock_is_set() {
    let _wall = Wall::take().await;
    let dir = TempDir::new().unwrap();
    let mut apps = Apps::new(env!("CARGO_BIN_EXE_suite-app"), dir.path(), json!({ "ordering": "key", "shards": 4 })).await;
    let producer = apps.start("produce", "5");
    apps.start("consume", "20");
    apps.start("consume", "20");
    let handled = |entries: &[Vec<Entry>]| entries.iter().flatten().filter(|entry| matches!(entry, Entry::Handled { .. })).count();
    for by in [HOUR, 0, -HOUR, 0] {
        let before = handled(&apps.entries());
        apps.wait("more is handled", |entries| handled(entries) >= before + 60).await;
        apps.set_clock(by);
    }
    let before = handled(&apps.entries());
    apps.wait("more is handled", |entries| handled(entries) >= before + 60).await;
    apps.workers[producer].kill();
    apps.wait_for_all().await;
    let account = apps.account();
    assert!(account.confirmed() > 200, "{} confirmed", account.confirmed());
    // Nobody died and nobody was stopped: not one may come twice.
    account.check(0).expect("an account that adds up");
    apps.close().await;
}

/// A retry of five seconds and a publish that is delayed by four, while the clock is set.
async fn waits_take_their_time(lot: Lot, wall: &Wall, waiting: &Barrier, by: i64) {
    let bed = Bed::new(lot).await;
    let seen = Seen::new();
    let s = seen.clone();
    bed.produce(1).await;
    let begun = Instant::now();
    let delayed = bed.env.produce(EVENT, &2).delay(Duration::from_secs(4)).await.unwrap().process_id;
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push((c.process_id, c.attempt, Instant::now()));
            async move { if c.attempt == 1 { Err("not yet") } else { Ok(()) } }
        })
        .retry(retries(&[5_100]))
        .await
        .unwrap();
    seen.wait(1).await;
    until("it waits in the lot", || async { consumer.in_flight() == 0 }).await;
    waiting.wait().await;
    wall.set(by);
    let all = seen.wait(4).await;
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?} with the lot in {lot:?}");
    for (id, attempt, at) in &all {
        let least = if *id == delayed { 3_900 } else { 0 } + if *attempt == 2 { 5_000 } else { 0 };
        assert!(at.duration_since(begun) >= Duration::from_millis(least), "attempt {attempt} of {id} came too early");
    }
    until("both are done", || async { consumer.in_flight() == 0 }).await;
    assert_eq!(seen.all().len(), 4, "each has two runs");
    bed.close().await;
}

async fn all_waits_take_their_time(by: i64) {
    let (wall, waiting) = (Wall::take().await, Barrier::new(2));
    tokio::join!(waits_take_their_time(Lot::Store, &wall, &waiting, by), waits_take_their_time(Lot::Topics, &wall, &waiting, by));
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_take_their_time_when_the_clock_goes_back() {
    all_waits_take_their_time(-HOUR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_take_their_time_when_the_clock_goes_forward() {
    all_waits_take_their_time(HOUR).await;
}

/// What a message says about its own time is wall time: that is what "not after noon" means.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_and_when_to_deliver_follow_the_wall_clock() {
    let wall = Wall::take().await;
    let bed = Bed::new(Lot::Store).await;
    let soon = now_ms() + 600_000;
    let expires = bed.env.produce(EVENT, &1).expires_at(soon).await.unwrap().process_id;
    wall.set(HOUR);
    let refused = bed.env.produce(EVENT, &2).expires_at(soon).await.unwrap_err();
    assert_eq!((refused.code(), refused.detail_str("field")), (Code::InputInvalid, Some("expiresAt")));
    let past = bed.env.produce(EVENT, &3).deliver_at(soon).await.unwrap().process_id;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    until("both are settled", || async { consumer.settled() == 2 }).await;
    assert_eq!(seen.all(), [past]);
    let dead = bed.env.dead_letter(expires).await.unwrap();
    assert_eq!(dead[0].reason.as_deref(), Some("expired"));
    assert!(dead[0].died_at.unwrap().abs_diff(now_ms()) < 60_000, "what people read is wall time");
    bed.close().await;
}

/// A claim holds for as long as it was made for, and is not taken over because the clock says so.
#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_window_is_neither_longer_nor_shorter() {
    let wall = Wall::take().await;
    let bed = Bed::new(Lot::Store).await;
    for by in [HOUR, -HOUR] {
        wall.set(0);
        let key = format!("key{by}");
        let first = bed.env.produce(EVENT, &1).idempotency_key(&key).window(Duration::from_secs(600)).await.unwrap();
        wall.set(by);
        let again = bed.env.produce(EVENT, &1).idempotency_key(&key).window(Duration::from_secs(600)).await.unwrap();
        assert_eq!((again.process_id, again.duplicate), (first.process_id, Some(true)));
    }
    bed.close().await;
}
