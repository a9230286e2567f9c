//! The store's clock, on hosts whose own clocks say something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline::store::Store;
use trunkline::store::clock::Clock;
use trunkline::store::postgres::Options;

use crate::bed::Schema;

/// A host whose wall clock is wrong, and whose uptime counts as time does.
fn host(bed: &Schema, wall: u64) -> (Options, Arc<AtomicU64>) {
    let (jump, since) = (Arc::new(AtomicU64::new(0)), std::time::Instant::now());
    let uptime = {
        let jump = jump.clone();
        move || 1_000_000 + jump.load(Ordering::SeqCst) + u64::try_from(since.elapsed().as_millis()).unwrap()
    };
    (Options { clock: Clock::with_uptime(move || wall, uptime, 1), ..bed.options() }, jump)
}

#[tokio::test]
async fn hosts_agree_on_the_time_whatever_their_clocks_say() {
    let bed = Schema::new().await;
    let (a, b) = (bed.store(host(&bed, 5).0).await, bed.store(host(&bed, u64::MAX / 4).0).await);
    let wall = trunkline::message::now_ms();
    assert!(a.now().abs_diff(b.now()) < 500 && a.now().abs_diff(wall) < 2_000, "{} {} {wall}", a.now(), b.now());
    bed.end().await;
}

#[tokio::test]
async fn a_server_whose_clock_is_behind_does_not_turn_the_store_back() {
    let bed = Schema::new().await;
    let ahead = trunkline::message::now_ms() + 3_600_000;
    bed.store(host(&bed, 0).0).await.close().await;
    bed.sql(&format!("UPDATE meta SET value = {ahead} WHERE name = 'clock_shown'")).await;
    let store = bed.store(host(&bed, 0).0).await;
    assert!((ahead..ahead + 5_000).contains(&store.now()));
    // What was shown is noted by the sweep, and all hosts go by it.
    store.sweep().await.unwrap();
    let other = bed.store(host(&bed, 0).0).await;
    assert!(other.now().abs_diff(store.now()) < 500);
    bed.end().await;
}
