//! A broker that misbehaves under a running program: the core retries, rebuilds, and says what it does not know.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use trunkline::{Code, State};
use trunkline_suite::faulty::Faults;
use trunkline_suite::promise::{Bed, DEADLINE, EVENT, Lot, until};

async fn faulty() -> (Bed, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    (Bed::wrapped(Lot::Store, faults.between()).await, faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_fails_is_sent_again_with_the_same_id() {
    let (bed, faults) = faulty().await;
    faults.unsent.store(3, Ordering::SeqCst);
    let id = bed.produce(1).await;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    assert_eq!(seen.wait(1).await, [id]);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_unconfirmed_is_reported_as_ambiguous() {
    let (bed, faults) = faulty().await;
    bed.produce(0).await;
    faults.unconfirmed.store(u32::MAX, Ordering::SeqCst);
    let error = bed.env.produce(EVENT, &1).timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!((error.code(), error.details()["ambiguous"].as_bool()), (Code::PublishFailed, Some(true)));
    faults.unconfirmed.store(0, Ordering::SeqCst);
    faults.unsent.store(u32::MAX, Ordering::SeqCst);
    let error = bed.env.produce(EVENT, &1).timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!((error.code(), error.details()["ambiguous"].as_bool()), (Code::PublishFailed, Some(false)));
    bed.close().await;
}

async fn receives_again_after(silent: bool) {
    let (bed, faults) = faulty().await;
    let (consumer, seen) = bed.watch(|payload, _| payload["n"].as_u64().unwrap()).await;
    bed.produce(1).await;
    seen.wait(1).await;
    if silent {
        faults.silent.store(1, Ordering::SeqCst)
    } else {
        faults.dead.store(3, Ordering::SeqCst)
    }
    let mut states = consumer.states();
    let reconnecting = async { states.wait_for(|state| *state == State::Degraded("reconnecting")).await.map(drop) };
    assert!(tokio::time::timeout(DEADLINE, reconnecting).await.is_ok(), "the loss is visible");
    bed.produce(2).await;
    seen.wait(2).await;
    assert_eq!(consumer.state(), State::Live);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_subscription_is_rebuilt() {
    receives_again_after(false).await;
}

/// Connected but dead: only progress counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_subscription_is_rebuilt() {
    receives_again_after(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_in_mid_send_tells_what_the_broker_may_have() {
    let (bed, faults) = faulty().await;
    bed.produce(0).await;
    faults.unanswered.store(1, Ordering::SeqCst);
    let first = bed.env.clone();
    let sent = tokio::spawn(async move { first.produce(EVENT, &1).await });
    until("the first is at the broker", || async { faults.unanswered.load(Ordering::SeqCst) == 0 }).await;
    let mut queued = bed.env.produce(EVENT, &2).into_future();
    tokio::select! {
        biased;
        answer = &mut queued => panic!("answered before it was sent: {answer:?}"),
        () = std::future::ready(()) => {}
    }
    bed.trunkline.close(Duration::from_millis(200)).await;
    let errors = [sent.await.unwrap().unwrap_err(), queued.await.unwrap_err()];
    let ambiguous = errors.map(|error| (error.code(), error.details().get("ambiguous").and_then(Value::as_bool)));
    assert_eq!(ambiguous, [(Code::Closed, Some(true)), (Code::Closed, Some(false))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_are_all_answered_while_batches_fail_beside_each_other() {
    let (bed, faults) = faulty().await;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    for round in 0..20 {
        faults.unsent.store(round % 3, Ordering::SeqCst);
        faults.unconfirmed.store(round % 2, Ordering::SeqCst);
        let calls = (0..400).map(|n| bed.env.produce(EVENT, &n).into_future());
        let ids = futures_util::future::try_join_all(calls).await.expect("all are confirmed in the end");
        assert_eq!(ids.len(), 400);
        let confirmed: std::collections::HashSet<_> = ids.into_iter().map(|receipt| receipt.process_id).collect();
        until("all that was confirmed comes", || async { seen.all().iter().filter(|id| confirmed.contains(id)).count() >= 400 }).await;
    }
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}
