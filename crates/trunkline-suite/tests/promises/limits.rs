//! What may wait, and how much of it at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use trunkline::{ConsumeOptions, Context, Raw};
use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, retries, until};

#[tokio::test(flavor = "multi_thread")]
async fn held_retries_take_a_quarter_of_the_slots_and_the_rest_goes_to_the_lot() {
    const SLOTS: usize = 8;
    let bed = Bed::new(Lot::Store).await;
    for n in 0..SLOTS as u64 {
        bed.produce(n).await;
    }
    let (seen, all_run) = (Seen::new(), Arc::new(Barrier::new(SLOTS)));
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push(c.attempt);
            let all_run = all_run.clone();
            async move {
                // None may end before all have begun: each has a slot of its own.
                all_run.wait().await;
                Err::<(), _>("later")
            }
        })
        // As long as a hold may be.
        .retry(retries(&[5_000]))
        .concurrency(SLOTS)
        .breaker(false)
        .await
        .unwrap();
    seen.wait(SLOTS).await;
    let waiting = async || bed.env.group(EVENT, "shop").await.unwrap().waiting;
    until("six wait in the lot", || async { waiting().await == 6 && consumer.in_flight() == 2 }).await;
    assert_eq!(seen.all(), [1; SLOTS]);
    consumer.close(Duration::from_secs(1)).await;
    bed.close().await;
}

async fn waits_are_limited(lot: Lot) {
    const ALL: u64 = 150;
    const RATE: f64 = 40.0;
    let bed = Bed::new(lot).await;
    for n in 0..ALL {
        bed.produce(n).await;
    }
    // From before the first one on.
    let begun = Instant::now();
    let options = ConsumeOptions {
        waits_per_second: Some(RATE),
        retry: Some(retries(&[600_000])),
        breaker: Some(false),
        ..ConsumeOptions::default()
    };
    let consumer = bed.env.consume(EVENT, |_: Raw, _: Context| async { Err::<(), _>("later") }).options(options).await.unwrap();
    loop {
        let settled = consumer.settled();
        // Looked at after the count: so many may there have been at most.
        let most = RATE * (begun.elapsed().as_secs_f64() + 1.0);
        assert!(settled as f64 <= most, "{settled} waits after {:?}", begun.elapsed());
        if settled == ALL {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "only {settled} of {ALL} waits were written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_in_the_store_are_written_at_their_rate() {
    waits_are_limited(Lot::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_on_the_broker_are_written_at_their_rate() {
    waits_are_limited(Lot::Topics).await;
}
