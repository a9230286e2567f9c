//! The server dies, stops, or comes back without its data.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Signal as Posix;
use tokio::sync::watch;
use trunkline::provider::{Signal, SubscriptionState};
use trunkline::{Code, MessageId};

use crate::private::{DURABLE, LEASE, MEMORY, Private};
use crate::{PATIENCE, deliveries, done, group, id, message, messages, next, send, set, settle, subscribe, take, topic, until};
use trunkline::delivery::Settle;

/// Receives for ever: a subscription that died is opened again, as the core does it.
async fn consume(server: Arc<Private>, got: Arc<Mutex<HashSet<MessageId>>>) {
    let provider = server.open().await;
    let (topic, group) = (topic("t"), group("g"));
    loop {
        if let Ok(subscription) = subscribe(&*provider, &topic, &group).await {
            while let Ok(came) = next(&*subscription, Duration::from_secs(1)).await {
                got.lock().extend(came.iter().map(id));
                settle(&*subscription, &came, Settle::Done).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_when_the_server_is_killed_in_mid_flow() {
    const ALL: usize = 3_000;
    let server = Arc::new(Private::start(DURABLE).await);
    let provider = server.open().await;
    let (topic, group) = (topic("t"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let got = Arc::default();
    let consumer = tokio::spawn(consume(Arc::clone(&server), Arc::clone(&got)));
    let (count, mut counted) = watch::channel(0);
    let producer = tokio::spawn(async move {
        let mut confirmed = Vec::new();
        while confirmed.len() < ALL {
            let batch = Arc::new(messages(25, 64));
            // What may have been stored is sent again with the same id, as the core does it.
            let mut open: Vec<usize> = (0..batch.len()).collect();
            while !open.is_empty() {
                let again = Arc::new(open.iter().map(|at| batch[*at].clone()).collect::<Vec<_>>());
                let results = provider.send(&topic, again).await;
                let failed = open.iter().zip(&results).filter(|(_, result)| result.is_err()).map(|(at, _)| *at).collect();
                for failed in results.into_iter().filter_map(Result::err) {
                    assert!(failed.retryable, "a server that is away is worth another try: {failed:?}");
                }
                open = failed;
                if !open.is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            confirmed.extend(batch.iter().map(|message| message.id));
            count.send_replace(confirmed.len());
        }
        confirmed
    });
    for at in [400, 1_200, 2_000] {
        tokio::time::timeout(PATIENCE, counted.wait_for(|n| *n >= at)).await.unwrap().unwrap();
        server.restart().await;
    }
    let confirmed = tokio::time::timeout(PATIENCE * 2, producer).await.unwrap().unwrap();
    until("everything confirmed was delivered", async || set(confirmed.clone()).is_subset(&got.lock())).await;
    consumer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_for_longer_than_a_lease_loses_nothing() {
    let server = Private::start(DURABLE).await;
    let (topic, group) = (topic("t"), group("g"));
    let (a, b) = (server.open().await, server.open().await);
    a.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let mut sent = set(send(&*a, &topic, messages(20, 64)).await);
    let (first, second) = (subscribe(&*a, &topic, &group).await.unwrap(), subscribe(&*b, &topic, &group).await.unwrap());
    let held = take(&*first, 5).await;
    server.signal(Posix::STOP);
    let sending = tokio::spawn({
        let (a, topic) = (Arc::clone(&a), topic.clone());
        async move { send(&*a, &topic, messages(5, 64)).await }
    });
    tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
    server.signal(Posix::CONT);
    sent.extend(sending.await.unwrap());
    // Whoever holds them now: what was answered as settled does not come again, everything else does.
    let mut handled = HashSet::new();
    let answers = settle(&*first, &held, Settle::Done).await;
    handled.extend(held.iter().zip(answers).filter(|(_, answer)| *answer == trunkline::delivery::Settled::Settled).map(|(of, _)| id(of)));
    until("all were handled by one of the two", async || {
        for member in [&first, &second] {
            let came = next(&**member, Duration::from_millis(20)).await.unwrap();
            settle(&**member, &came, Settle::Done).await;
            handled.extend(came.iter().map(id));
        }
        handled == sent
    })
    .await;
    until("nothing waits", async || a.depth(&topic, "g").await.is_ok_and(|depth| depth.ready + depth.in_flight == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_data_is_named_and_used_again() {
    let server = Private::start(MEMORY).await;
    let (topic, group) = (topic("t"), group("g"));
    let provider = server.open().await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(3, 10)).await;
    take(&*subscription, 3).await;
    server.restart().await;
    let error = loop {
        if let Err(error) = next(&*subscription, Duration::from_secs(1)).await {
            break error;
        }
    };
    assert_eq!(error.code(), Code::ConnectionFailed, "{error:?}");
    // The first try may still meet the broken connection.
    let mut reasons = Vec::new();
    let late = message("late");
    until("a message is confirmed again", async || match provider.send(&topic, Arc::new(vec![late.clone()])).await.remove(0) {
        Ok(_) => true,
        Err(failed) => {
            assert!(failed.retryable, "{failed:?}");
            if failed.error.detail_str("reason") == Some("data_gone") {
                assert!(!failed.ambiguous && failed.error.code() == Code::PublishFailed, "{failed:?}");
            }
            reasons.push(failed.error.detail_str("reason").map(str::to_owned));
            false
        }
    })
    .await;
    assert!(reasons.contains(&Some("data_gone".to_owned())), "{reasons:?}");
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let (mut states, mut got) = (Vec::new(), Vec::new());
    until("it is live again", async || {
        let signals = subscription.next(10, usize::MAX, Duration::from_millis(200)).await.unwrap();
        states.extend(signals.iter().filter_map(|signal| if let Signal::State(state) = signal { Some(state.clone()) } else { None }));
        got.extend(deliveries(signals));
        !got.is_empty() && states.len() == 2
    })
    .await;
    assert_eq!(states, [SubscriptionState::Degraded("data_gone"), SubscriptionState::Live]);
    assert_eq!(id(&got[0]), late.id);
    done(&*subscription, &got).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_vanished_under_a_reader_is_named() {
    let server = Private::start(MEMORY).await;
    let (topic, group) = (topic("t"), group("g"));
    let provider = server.open().await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    server.cli(&["FLUSHALL"]);
    let (mut named, mut error) = (false, None);
    until("the subscription ends", async || {
        match subscription.next(1, usize::MAX, Duration::from_secs(1)).await {
            Ok(signals) => {
                named |= signals.iter().any(|signal| matches!(signal, Signal::State(SubscriptionState::Degraded("data_gone"))));
            }
            Err(ended) => error = Some(ended),
        }
        error.is_some()
    })
    .await;
    assert!(named, "the state was not named");
    assert_eq!(error.unwrap().detail_str("reason"), Some("data_gone"));
}

/// A producer must not bring back a topic that somebody removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_topic_does_not_come_back_with_the_next_message() {
    let server = Private::start(MEMORY).await;
    let topic = topic("t");
    let (a, b) = (server.open().await, server.open().await);
    a.ensure(&topic, &[group("g")]).await.unwrap();
    send(&*a, &topic, messages(2, 10)).await;
    b.remove(trunkline::provider::Remove::Topic(&topic)).await.unwrap();
    let failed = a.send(&topic, Arc::new(messages(1, 10))).await.remove(0).unwrap_err();
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::TopicNotFound, false, false), "{failed:?}");
    assert_eq!(server.cli(&["KEYS", "*"]), "");
}
