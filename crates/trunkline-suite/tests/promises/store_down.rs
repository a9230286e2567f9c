//! A store that is down under a running consumer: nothing that needs it is acked, the rest goes on, and it recovers by
//! itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use trunkline::{Code, ConsumeOptions, Consumer, Context, State, Verdict};
use trunkline_suite::faulty::Faults;
use trunkline_suite::faulty_store::StoreFaults;
use trunkline_suite::promise::{Bed, DEADLINE, EVENT, Lot, Seen, retries, until};

const DOWN: State = State::Degraded("store_down");

async fn bed() -> (Bed, Arc<StoreFaults>) {
    let (store, provider) = (Arc::new(StoreFaults::default()), Arc::new(Faults::default()));
    // The provider's wrapper is honest here; it makes a receive that finds nothing return soon.
    let open = |builder: trunkline::Builder| builder.wrap_store(store.between()).wrap_providers(provider.between());
    (Bed::with(Lot::Store, open, json!({}), json!({})).await, store)
}

async fn reaches(consumer: &Consumer, state: State) {
    let mut states = consumer.states();
    let reached = async { states.wait_for(|now| *now == state).await.is_ok() };
    assert_eq!(tokio::time::timeout(DEADLINE, reached).await, Ok(true), "{state:?}; it is {:?}", consumer.state());
}

fn number(payload: &Value) -> u64 {
    payload["n"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_and_burials_stay_in_hand_and_successes_go_on() {
    let (bed, store) = bed().await;
    let (seen, gate) = (Seen::new(), Arc::new(Semaphore::new(0)));
    let (s, g) = (seen.clone(), gate.clone());
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            let (n, g) = (number(&payload), g.clone());
            s.push(n);
            async move {
                g.acquire().await.unwrap().forget();
                match n {
                    0..5 => Verdict::Failed("later".into()),
                    5..8 => c.bury("not for us"),
                    _ => Verdict::Done,
                }
            }
        })
        .retry(retries(&[60_000]))
        .breaker(false)
        .await
        .unwrap();
    for n in 0..10 {
        bed.produce(n).await;
    }
    seen.wait(10).await;
    store.down(true);
    gate.add_permits(20);
    reaches(&consumer, DOWN).await;
    until("the successes are acked", || async { consumer.settled() == 2 }).await;
    assert_eq!(consumer.in_flight(), 8, "what needs the store stays in hand");
    // A receive that was under way ends; no other begins.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for n in 10..20 {
        bed.produce(n).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((seen.all().len(), consumer.in_flight(), consumer.settled(), consumer.state()), (10, 8, 2, DOWN));
    store.down(false);
    reaches(&consumer, State::Live).await;
    seen.wait(20).await;
    until("all are settled", || async { consumer.settled() == 20 }).await;
    let group = bed.env.group(EVENT, "shop").await.unwrap();
    assert_eq!((group.waiting, group.dead, group.ready, group.in_flight), (5, 3, 0, 0));
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>(), "each once");
    bed.close().await;
}

/// A process that dies while it waits for the store has acked none of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_hand_is_handed_out_again_after_a_death() {
    let (bed, store) = bed().await;
    let (seen, gate) = (Seen::new(), Arc::new(Semaphore::new(0)));
    let (s, g) = (seen.clone(), gate.clone());
    let handler = move |_: Value, c: Context| {
        let g = g.clone();
        s.push(());
        async move {
            g.acquire().await.unwrap().forget();
            c.bury("not for us")
        }
    };
    let failing = bed.env.consume(EVENT, handler).breaker(false).await.unwrap();
    for n in 0..5 {
        bed.produce(n).await;
    }
    seen.wait(5).await;
    store.down(true);
    gate.add_permits(5);
    reaches(&failing, DOWN).await;
    assert_eq!(failing.in_flight(), 5);
    failing.close(Duration::from_millis(200)).await;
    store.down(false);
    let (_consumer, seen) = bed.watch(|payload, _| number(payload)).await;
    let mut all = seen.wait(5).await;
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4]);
    bed.close().await;
}

/// A consumer with dedupe, whose handler waits for a permit for each message.
async fn dedupes(bed: &Bed, closed: bool) -> (Consumer, Seen<u64>, Arc<Semaphore>) {
    let (seen, gate) = (Seen::new(), Arc::new(Semaphore::new(0)));
    let (s, g) = (seen.clone(), gate.clone());
    let options = ConsumeOptions { dedupe: Some(Duration::from_secs(60)), dedupe_closed: closed, ..ConsumeOptions::default() };
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, _: Context| {
            let (s, g) = (s.clone(), g.clone());
            async move {
                s.push(number(&payload));
                g.acquire().await.unwrap().forget();
            }
        })
        .options(options)
        .await
        .unwrap();
    (consumer, seen, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_dedupe_waits_for_the_store() {
    let (bed, store) = bed().await;
    let (consumer, seen, gate) = dedupes(&bed, true).await;
    bed.produce(0).await;
    seen.wait(1).await;
    // It goes down between the handler and the mark: no mark, no ack.
    store.down(true);
    gate.add_permits(1);
    reaches(&consumer, DOWN).await;
    assert_eq!((consumer.in_flight(), consumer.settled()), (1, 0));
    store.down(false);
    until("it is marked, then acked", || async { consumer.settled() == 1 }).await;
    reaches(&consumer, State::Live).await;
    // It goes down before the handler: whether it was handled before must be known first.
    gate.add_permits(100);
    store.down(true);
    bed.produce(1).await;
    reaches(&consumer, DOWN).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((seen.all(), consumer.state()), (vec![0], DOWN));
    store.down(false);
    assert_eq!(seen.wait(2).await, [0, 1]);
    reaches(&consumer, State::Live).await;
    until("all are settled", || async { consumer.settled() == 2 }).await;
    assert_eq!(seen.all().len(), 2, "each once");
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_dedupe_goes_on_without_the_store() {
    let (bed, store) = bed().await;
    let (consumer, seen, gate) = dedupes(&bed, false).await;
    gate.add_permits(100);
    store.down(true);
    for n in 0..5 {
        bed.produce(n).await;
    }
    seen.wait(5).await;
    until("all are acked", || async { consumer.settled() == 5 }).await;
    assert_eq!(consumer.state(), State::Live);
    store.down(false);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_produce_that_needs_the_store_says_so_and_others_go_on() {
    let (bed, store) = bed().await;
    bed.produce(0).await;
    store.down(true);
    let keyed = bed.env.produce(EVENT, &json!({ "n": 1 })).idempotency_key("key").await.unwrap_err();
    let delayed = bed.env.produce(EVENT, &json!({ "n": 2 })).delay(Duration::from_secs(1)).await.unwrap_err();
    for error in [keyed, delayed] {
        assert_eq!((error.code(), error.retryable()), (Code::StoreFailed, true));
    }
    bed.produce(3).await;
    store.down(false);
    let again = bed.env.produce(EVENT, &json!({ "n": 1 })).idempotency_key("key").await.unwrap();
    assert_eq!(again.duplicate, Some(false));
    let (_consumer, seen) = bed.watch(|payload, _| number(payload)).await;
    let mut counts = HashMap::new();
    seen.wait(3).await.into_iter().for_each(|n| *counts.entry(n).or_insert(0) += 1);
    assert_eq!(counts, HashMap::from([(0, 1), (1, 1), (3, 1)]));
    bed.close().await;
}
