//! The breaker and the bytes in hand are not one consumer's.

use super::*;

/// Two members of one process that fail: neither has enough outcomes for a breaker of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_one_breaker_in_a_process() {
    let bed = Bed::new(|builder| builder).await;
    let well = watch::Sender::new(false);
    let consume = || {
        let well = well.clone();
        let handler = move |_: Raw, _: Context| {
            let ok = *well.borrow();
            async move { if ok { Verdict::Done } else { Verdict::Failed("not yet".into()) } }
        };
        // What fails waits for long: every message gives one outcome.
        let later = Schedule { delays: vec![Duration::from_secs(3_600)], jitter: 0.0 };
        async { bed.env.consume(EVENT, handler).concurrency(1).retry(later).await.expect("it starts") }
    };
    let (a, b) = (consume().await, consume().await);
    bed.produce(24, 10).await;
    is_seen(&a, State::Degraded("handler_failing")).await;
    is_seen(&b, State::Degraded("handler_failing")).await;
    // One that comes now finds it open.
    let c = consume().await;
    assert_eq!(c.state(), State::Degraded("handler_failing"));
    // The success of one is the end of it for all.
    well.send_replace(true);
    for consumer in [&a, &b, &c] {
        is_seen(consumer, State::Live).await;
    }
    until("what was not failed is handled", || a.settled() + b.settled() + c.settled() >= 24).await;
    bed.trunkline.close(Duration::from_secs(5)).await;
}

/// Whoever probes and goes away leaves the probe to the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_goes_while_it_probes_blocks_nobody() {
    let bed = Bed::new(|builder| builder).await;
    let (failing, probing) = (watch::Sender::new(true), watch::Sender::new(0));
    let (f, p) = (failing.clone(), probing.clone());
    let first = bed
        .env
        .consume(EVENT, move |_: Raw, _: Context| {
            let fails = *f.borrow();
            p.send_modify(|n| *n += 1);
            async move {
                if !fails {
                    std::future::pending::<()>().await;
                }
                Err::<(), _>("no")
            }
        })
        .concurrency(1)
        .retry(Schedule { delays: vec![Duration::from_secs(3_600)], jitter: 0.0 })
        .await
        .expect("it starts");
    bed.produce(40, 10).await;
    is_seen(&first, State::Degraded("handler_failing")).await;
    failing.send_replace(false);
    let before = *probing.borrow();
    // The probe runs, and never ends.
    assert!(probing.subscribe().wait_for(|n| *n > before).await.is_ok());
    let second = bed.env.consume(EVENT, |_: Raw, _: Context| async {}).await.expect("it starts");
    assert_eq!(second.state(), State::Degraded("handler_failing"));
    drop(first);
    is_seen(&second, State::Live).await;
    until("the others are handled", || second.settled() >= 19).await;
    bed.trunkline.close(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_in_hand_are_bounded_over_all_consumers() {
    const SIZE: usize = 10_000;
    const MOST: usize = 100_000;
    let bed = Bed::new(|builder| builder.in_hand_bytes(MOST)).await;
    let open = watch::Sender::new(false);
    let mut consumers = Vec::new();
    for group in ["a", "b", "c"] {
        let gate = open.subscribe();
        let handler = move |_: Raw, _: Context| {
            let mut gate = gate.clone();
            async move { gate.wait_for(|open| *open).await.map(drop).map_err(|error| error.to_string()) }
        };
        consumers.push(bed.env.consume(EVENT, handler).group(group).await.expect("it starts"));
    }
    bed.produce(60, SIZE).await;
    let hand = &bed.trunkline.0.hand;
    until("the hand is full and everybody has something", || hand.room() < SIZE && consumers.iter().all(|c| c.in_flight() > 0)).await;
    // Nobody takes more while it is full: each may have passed the bound by one message.
    let held = || consumers.iter().map(Consumer::in_flight).sum::<usize>();
    for _ in 0..50 {
        assert!(held() * SIZE <= MOST + consumers.len() * (SIZE + 1_000), "{} messages in hand", held());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    open.send_replace(true);
    until("all are handled", || consumers.iter().all(|consumer| consumer.settled() == 60)).await;
    for consumer in &consumers {
        consumer.close(DEADLINE).await;
    }
    assert_eq!(hand.room(), MOST, "the hand is empty");
    let error = bed.env.consume(EVENT, |_: Raw, _: Context| async {});
    let options = crate::ConsumeOptions { prefetch_bytes: Some(MOST + 1), ..crate::ConsumeOptions::default() };
    assert_eq!(error.options(options).await.expect_err("more than there is").detail_str("field"), Some("prefetch_bytes"));
    bed.trunkline.close(Duration::from_secs(5)).await;
}
