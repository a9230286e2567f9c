//! At least once per group; members compete; settle, drain, take-over.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use trunkline::{ConsumeOptions, Context, Raw, State};

use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_produced_before_the_first_consume_is_delivered() {
    let bed = Bed::new(Lot::Store).await;
    let id = bed.produce(1).await;
    let (consumer, seen) = bed.watch(|payload, c| (c.process_id, payload["n"].as_u64(), c.attempt, c.group.to_string())).await;
    assert_eq!(consumer.state(), State::Live);
    assert_eq!(seen.wait(1).await, [(id, Some(1), 1, "shop".to_owned())]);
    consumer.close(Duration::from_secs(5)).await;
    assert_eq!(consumer.state(), State::Closed);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_group_gets_every_message_and_members_share_it() {
    let bed = Bed::new(Lot::Store).await;
    let other = bed.another().await;
    let seen = Seen::new();
    let mut consumers = Vec::new();
    for (b, group, member) in [(&bed, "a", 1), (&other, "a", 2), (&bed, "b", 3)] {
        let s = seen.clone();
        let consumer = b.env.consume(EVENT, move |_: Raw, c: Context| {
            s.push((c.group.to_string(), member, c.process_id));
            async {}
        });
        consumers.push(consumer.group(group).await.unwrap());
    }
    let mut ids = HashSet::new();
    for n in 0..400 {
        ids.insert(bed.produce(n).await);
    }
    let all = seen.wait(800).await;
    for group in ["a", "b"] {
        let got: Vec<_> = all.iter().filter(|(g, ..)| g == group).map(|(_, _, id)| *id).collect();
        assert_eq!(got.iter().copied().collect::<HashSet<_>>(), ids, "group {group}");
        assert_eq!(got.len(), ids.len(), "no duplicates in group {group} while nobody dies");
    }
    assert!([1, 2].iter().all(|member| all.iter().any(|(_, m, _)| m == member)), "both members worked");
    for consumer in &consumers {
        consumer.close(Duration::from_secs(5)).await;
    }
    other.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acked_does_not_come_back_and_what_was_not_does() {
    let bed = Bed::new(Lot::Store).await;
    for n in 0..100 {
        bed.produce(n).await;
    }
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            let n = payload["n"].as_u64().unwrap();
            let s = s.clone();
            async move {
                if n >= 50 {
                    // Never finishes: it is in hand when the consumer goes away.
                    std::future::pending::<()>().await;
                }
                s.push((n, c.process_id));
            }
        })
        .concurrency(100)
        .await
        .unwrap();
    seen.wait(50).await;
    until("the acks are through", || async { consumer.settled() >= 50 }).await;
    consumer.close(Duration::from_millis(300)).await;
    let (second, again) = bed.watch(|payload, c| (payload["n"].as_u64().unwrap(), c.attempt)).await;
    let mut all = again.wait(50).await;
    all.sort_unstable();
    // Released, not failed: the attempt is still the first.
    assert_eq!(all, (50..100).map(|n| (n, 1)).collect::<Vec<_>>());
    second.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_lets_running_handlers_finish() {
    let bed = Bed::new(Lot::Store).await;
    let seen = Seen::new();
    let started = Arc::new(tokio::sync::Notify::new());
    let (s, st) = (seen.clone(), started.clone());
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, _: Context| {
            let (s, st) = (s.clone(), st.clone());
            async move {
                st.notify_one();
                tokio::time::sleep(Duration::from_millis(300)).await;
                s.push(());
            }
        })
        .await
        .unwrap();
    bed.produce(1).await;
    started.notified().await;
    consumer.close(Duration::from_secs(5)).await;
    assert_eq!(seen.all().len(), 1);
    assert_eq!(consumer.settled(), 1);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_flight_is_bounded_by_count_and_bytes() {
    let bed = Bed::new(Lot::Store).await;
    for n in 0..200 {
        bed.env.produce_raw(EVENT, vec![b'1'; 10_000 + n]).await.unwrap();
    }
    let running = Arc::new(AtomicUsize::new(0));
    let (r, gate) = (running.clone(), Arc::new(tokio::sync::Semaphore::new(0)));
    let g = gate.clone();
    let options =
        ConsumeOptions { concurrency: Some(4), prefetch: Some(1_000), prefetch_bytes: Some(100_000), ..ConsumeOptions::default() };
    let consumer = bed
        .env
        .consume(EVENT, move |_: Raw, _: Context| {
            let (r, g) = (r.clone(), g.clone());
            async move {
                r.fetch_add(1, Ordering::SeqCst);
                g.acquire().await.unwrap().forget();
            }
        })
        .options(options)
        .await
        .unwrap();
    until("four run", || async { running.load(Ordering::SeqCst) == 4 }).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(running.load(Ordering::SeqCst), 4, "no more than the concurrency");
    assert!(consumer.in_flight() <= 12, "{} in hand pass the byte bound by more than a message", consumer.in_flight());
    gate.add_permits(10_000);
    until("all are handled", || async { consumer.settled() == 200 }).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_consumer_receives_nothing_until_it_is_resumed() {
    let bed = Bed::new(Lot::Store).await;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    consumer.pause();
    tokio::time::sleep(Duration::from_millis(100)).await;
    bed.produce(1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(seen.all().is_empty());
    consumer.resume();
    seen.wait(1).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_settles_by_its_owner() {
    let bed = Bed::new(Lot::Store).await;
    for n in 0..3 {
        bed.produce(n).await;
    }
    let mut stream = bed.env.stream::<Value>(EVENT, ConsumeOptions::default()).await.unwrap();
    for _ in 0..3 {
        stream.next().await.unwrap().ack();
    }
    until("three are settled", || async { stream.consumer().settled() == 3 }).await;
    stream.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_handler_gets_many_at_once_and_judges_each() {
    use trunkline::Verdict;
    use trunkline::consume::handler::{BatchVerdict, Item};
    let bed = Bed::new(Lot::Store).await;
    for n in 0..100 {
        bed.produce(n).await;
    }
    let sizes = Seen::new();
    let handled = Seen::new();
    let (s, h) = (sizes.clone(), handled.clone());
    let consumer = bed
        .env
        .consume_batch(EVENT, 25, Duration::from_millis(50), move |items: Vec<Item<Value>>| {
            s.push(items.len());
            let verdicts = items
                .iter()
                .map(|item| {
                    let n = item.payload["n"].as_u64().unwrap();
                    h.push((n, item.context.attempt));
                    if n == 7 && item.context.attempt == 1 { Verdict::Failed("once".into()) } else { Verdict::Done }
                })
                .collect();
            async move { BatchVerdict::Each(verdicts) }
        })
        .retry(trunkline_suite::promise::retries(&[20]))
        .concurrency(2)
        .await
        .unwrap();
    let handled = handled.wait(101).await;
    assert_eq!(handled.iter().filter(|(n, _)| *n == 7).count(), 2);
    assert!(sizes.all().iter().any(|n| *n > 1) && sizes.all().iter().all(|n| *n <= 25));
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}
