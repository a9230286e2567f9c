//! What becomes of failures: hold, wait, bury; verdicts; time-outs; panics; the breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline::dead_letter::DeadFilter;
use trunkline::{ConsumeOptions, Context, Raw, State, Verdict};

use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, retries, until};

async fn reaches(states: &mut tokio::sync::watch::Receiver<State>, state: State) -> bool {
    tokio::time::timeout(trunkline_suite::promise::DEADLINE, async { states.wait_for(|now| *now == state).await.is_ok() }).await == Ok(true)
}

async fn fails_until_the_third_attempt(lot: Lot, delays: &[u64]) {
    let bed = Bed::new(lot).await;
    let id = bed.produce(1).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push((c.process_id, c.attempt, Instant::now()));
            async move { if c.attempt < 3 { Err("not yet") } else { Ok(()) } }
        })
        .retry(retries(delays))
        .await
        .unwrap();
    let all = seen.wait(3).await;
    assert_eq!(all.iter().map(|(i, a, _)| (*i, *a)).collect::<Vec<_>>(), [(id, 1), (id, 2), (id, 3)]);
    for (n, delay) in delays.iter().enumerate() {
        let gap = all[n + 1].2.duration_since(all[n].2);
        assert!(gap >= Duration::from_millis(*delay), "retry {n} came after {gap:?}");
    }
    until("it is settled", || async { consumer.in_flight() == 0 }).await;
    assert_eq!(bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1, 0);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_retry_is_held_in_flight() {
    fails_until_the_third_attempt(Lot::Store, &[50, 100]).await;
}

/// Beyond five seconds a retry goes through the lot; attempts are counted there.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_retry_waits_in_the_lot_of_the_store() {
    fails_until_the_third_attempt(Lot::Store, &[50, 5_100]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_retry_waits_in_the_lot_on_the_broker() {
    fails_until_the_third_attempt(Lot::Topics, &[50, 5_100]).await;
}

async fn dies(lot: Lot) {
    let bed = Bed::new(lot).await;
    let id = bed.env.produce(EVENT, "payload").key("k").header("h", "v").await.unwrap().process_id;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push(c.attempt);
            async { Err::<(), _>("boom\nwith a stack") }
        })
        .retry(retries(&[10, 20]))
        .await
        .unwrap();
    seen.wait(3).await;
    until("it is dead", || async { bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1 == 1 }).await;
    let (dead, _) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    let letter = &dead[0];
    assert_eq!((letter.message.id, letter.attempts, letter.reason.as_deref()), (id, 3, Some("attempts_exhausted")));
    assert_eq!(letter.error.as_deref(), Some("boom\nwith a stack"));
    assert_eq!((&letter.message.payload[..], letter.message.key.as_deref()), (&b"\"payload\""[..], Some(&b"k"[..])));
    assert_eq!(letter.message.headers.get_str("h"), Some("v"));
    let groups = bed.env.dead_groups(&DeadFilter::default()).await.unwrap();
    assert_eq!((groups.len(), groups[0].error.as_str(), groups[0].count), (1, "boom", 1));
    assert_eq!(seen.all(), [1, 2, 3]);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_good_is_buried_with_its_story() {
    dies(Lot::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_good_is_buried_on_the_broker_too() {
    dies(Lot::Topics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_retry_bury_and_drop() {
    let bed = Bed::new(Lot::Store).await;
    for n in 0..3 {
        bed.produce(n).await;
    }
    let seen = Seen::new();
    let s = seen.clone();
    let first = Arc::new(AtomicBool::new(true));
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            let n = payload["n"].as_u64().unwrap();
            s.push((n, c.attempt));
            let again = n == 0 && first.swap(false, Ordering::SeqCst);
            async move {
                match n {
                    0 if again => c.retry_after(Duration::from_millis(50)),
                    1 => c.bury("not for us"),
                    2 => c.drop_message(),
                    _ => Verdict::Done,
                }
            }
        })
        .await
        .unwrap();
    let mut all = seen.wait(4).await;
    all.sort_unstable();
    // Asked to come again is not a failure: the attempt does not grow.
    assert_eq!(all, [(0, 1), (0, 1), (1, 1), (2, 1)]);
    until("all are settled", || async { consumer.in_flight() == 0 }).await;
    let (dead, total) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    assert_eq!((total, dead[0].reason.as_deref(), dead[0].attempts), (1, Some("not for us"), 0));
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panics_and_payloads_that_do_not_fit_are_failed_attempts() {
    let bed = Bed::new(Lot::Store).await;
    bed.env.produce(EVENT, &serde_json::json!("not a number")).await.unwrap();
    bed.env.produce(EVENT, &serde_json::json!(13)).await.unwrap();
    bed.env.produce(EVENT, &serde_json::json!(1)).await.unwrap();
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |n: u32, _: Context| {
            s.push(n);
            async move { assert_ne!(n, 13, "unlucky") }
        })
        .retry(retries(&[]))
        .await
        .unwrap();
    until("two are dead", || async { bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1 == 2 }).await;
    let (dead, _) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    let errors: Vec<_> = dead.iter().map(|d| d.error.clone().unwrap()).collect();
    assert!(errors.iter().any(|e| e.starts_with("panic: ") && e.contains("unlucky")), "{errors:?}");
    assert!(errors.iter().any(|e| e.contains("does not fit")), "{errors:?}");
    until("all are settled", || async { consumer.settled() == 3 }).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_cancels_and_keeps_the_slot_until_the_handler_returns() {
    let bed = Bed::new(Lot::Store).await;
    bed.produce(1).await;
    bed.produce(2).await;
    let seen = Seen::new();
    let s = seen.clone();
    let running = Arc::new(AtomicU32::new(0));
    let options = ConsumeOptions {
        concurrency: Some(1),
        timeout: Some(Duration::from_millis(100)),
        grace: Some(Duration::from_secs(5)),
        retry: Some(retries(&[10])),
        ..ConsumeOptions::default()
    };
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            let (s, running) = (s.clone(), running.clone());
            async move {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two at a time in one slot");
                let n = payload["n"].as_u64().unwrap();
                if n == 1 && c.attempt == 1 {
                    c.signal.cancelled().await;
                    // It notices late; nobody takes its slot meanwhile.
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                running.fetch_sub(1, Ordering::SeqCst);
                s.push((n, c.attempt));
            }
        })
        .options(options)
        .await
        .unwrap();
    let mut all = seen.wait(3).await;
    all.sort_unstable();
    assert_eq!(all, [(1, 1), (1, 2), (2, 1)]);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_never_returns_is_named_stuck() {
    let bed = Bed::new(Lot::Store).await;
    bed.produce(1).await;
    let options = ConsumeOptions {
        timeout: Some(Duration::from_millis(50)),
        grace: Some(Duration::from_millis(50)),
        retry: Some(retries(&[60_000])),
        ..ConsumeOptions::default()
    };
    let consumer = bed.env.consume(EVENT, |_: Raw, _: Context| std::future::pending::<()>()).options(options).await.unwrap();
    let mut states = consumer.states();
    assert!(reaches(&mut states, State::Degraded("stuck_handler")).await);
    consumer.close(Duration::from_secs(1)).await;
    bed.close().await;
}

/// A database that is down must not bury a topic.
#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_holds_what_fails_for_everything() {
    let bed = Bed::new(Lot::Store).await;
    let down = Arc::new(AtomicBool::new(true));
    let handled = Seen::new();
    let calls = Arc::new(AtomicU32::new(0));
    let (d, h, n) = (down.clone(), handled.clone(), calls.clone());
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            n.fetch_add(1, Ordering::SeqCst);
            let ok = !d.load(Ordering::SeqCst);
            if ok {
                h.push(c.process_id);
            }
            async move { if ok { Ok(()) } else { Err("the database is down") } }
        })
        .retry(retries(&[10]))
        .await
        .unwrap();
    // A few may die before the breaker has seen enough: send them one by one until it opens.
    let mut states = consumer.states();
    for n in 0..40 {
        bed.produce(n).await;
    }
    assert!(reaches(&mut states, State::Degraded("handler_failing")).await, "the breaker opens");
    let buried = bed.env.dead_letters(&DeadFilter::default(), 1, 1).await.unwrap().1;
    let before = calls.load(Ordering::SeqCst);
    for n in 0..500 {
        bed.produce(n).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(calls.load(Ordering::SeqCst) - before < 10, "it probes one at a time with pauses");
    assert_eq!(bed.env.dead_letters(&DeadFilter::default(), 1, 1).await.unwrap().1, buried, "nothing is buried while it is open");
    down.store(false, Ordering::SeqCst);
    handled.wait(540 - buried as usize).await;
    until("live again", || async { consumer.state() == State::Live }).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_messages_are_buried_unhandled() {
    let bed = Bed::new(Lot::Store).await;
    let soon = trunkline::message::now_ms() + 700;
    bed.env.produce(EVENT, &1).expires_at(soon).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let consumer =
        bed.env.consume(EVENT, |_: Raw, c: Context| async move { assert!(c.attempt == 0, "it must not be handled") }).await.unwrap();
    until("it is dead", || async { bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1 == 1 }).await;
    let (dead, _) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    assert_eq!(dead[0].reason.as_deref(), Some("expired"));
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_copied_to_a_topic_of_the_users() {
    let bed = Bed::new(Lot::Store).await;
    let topic = serde_json::json!({ "name": "Failed", "tag": "orders:failed" });
    bed.trunkline.catalog().create_topic(Some("shop"), topic).await.unwrap();
    bed.produce(1).await;
    let consumer = bed
        .env
        .consume(EVENT, |_: Raw, _: Context| async { Err::<(), _>("no") })
        .retry(retries(&[]))
        .dead_letter("orders:failed")
        .await
        .unwrap();
    let seen = Seen::new();
    let s = seen.clone();
    let copies = bed
        .env
        .consume("orders:failed", move |payload: Value, c: Context| {
            s.push((payload["n"].clone(), c.headers.get_str("trunkline-reason").map(str::to_owned)));
            async {}
        })
        .await
        .unwrap();
    assert_eq!(seen.wait(1).await, [(1.into(), Some("attempts_exhausted".to_owned()))]);
    consumer.close(Duration::from_secs(5)).await;
    copies.close(Duration::from_secs(5)).await;
    bed.close().await;
}

/// Sends a message whose id is none, as another program with access to the log might.
async fn send_broken(bed: &Bed, payload: &'static [u8]) {
    use trunkline::provider::embedded::{Embedded, Options};
    use trunkline::provider::{Outgoing, Provider as _, TopicSpec};
    let log = bed.dir.path().join("data/log");
    let name = std::fs::read_dir(log.join("topics")).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let other = Embedded::open(Options::new(log)).unwrap();
    let id = serde_json::from_str("\"00000000-0000-0000-0000-000000000001\"").unwrap();
    let message = Outgoing { id, shard: None, key: None, headers: trunkline::Headers::new(), payload: payload.into() };
    let topic = TopicSpec::new(name, 1, false);
    other.send(&topic, vec![message].into()).await.pop().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_envelope_is_buried_with_its_bytes_and_can_be_replayed() {
    use trunkline::dead_letter::{Reprocess, Target};
    let bed = Bed::new(Lot::Store).await;
    let before = bed.produce(1).await;
    send_broken(&bed, b"{\"n\":2}").await;
    let after = bed.produce(3).await;
    let (consumer, seen) = bed.watch(|payload, c| (c.process_id, payload["n"].as_u64())).await;
    let mut handled = seen.wait(2).await;
    handled.sort_unstable();
    assert_eq!(handled, [(before, Some(1)), (after, Some(3))], "it blocks nobody");
    until("all are settled", || async { consumer.settled() == 3 }).await;
    let (letters, total) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    let letter = &letters[0];
    assert_eq!((total, letter.reason.as_deref(), letter.attempts), (1, Some("broken_envelope"), 0));
    assert_eq!(&letter.message.payload[..], b"{\"n\":2}");
    let record = bed.env.message(letter.message.id).await.unwrap();
    assert!(record.is_some_and(|record| record.status == trunkline::history::Status::Dead), "and it is in the history");
    // With an envelope of its own it is a message like others.
    bed.env.reprocess(Reprocess { target: Target::Topic, ..Reprocess::default() }).await.unwrap();
    assert_eq!(seen.wait(3).await[2].1, Some(2));
    assert_eq!(bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1, 0);
    bed.close().await;
}
