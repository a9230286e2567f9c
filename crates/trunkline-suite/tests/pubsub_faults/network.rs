//! A bad network between a client and the server.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::delivery::{Settle, Settled};
use trunkline::provider::{GroupSpec, Outgoing, Prefetch, Provider, Subscription, TopicSpec};
use trunkline::{Code, MessageId};
use trunkline_suite::proxy::{Proxy, Weather};

use crate::{
    LEASE, PATIENCE, config, deliveries, done, group, id, message, messages, name, open, send, server, set, settle, subscribe,
    subscribe_with, take, topic, until, within,
};

/// A connection through the proxy, and one beside it, to the same project.
async fn both(proxy: &Proxy) -> (Arc<dyn Provider>, Arc<dyn Provider>) {
    let project = name("project");
    let far = config(&json!({ "projectId": project, "endpoint": format!("http://{}", proxy.address()) }));
    let near = config(&json!({ "projectId": project }));
    (open(&far).await.unwrap(), open(&near).await.unwrap())
}

/// Subscribes as the core does: again, while the network says that it may help.
async fn again(provider: &dyn Provider, topic: &TopicSpec, group: &GroupSpec) -> Arc<dyn Subscription> {
    let end = Instant::now() + PATIENCE;
    loop {
        match subscribe(provider, topic, group).await {
            Ok(subscription) => return subscription,
            Err(error) => assert!(error.retryable() && Instant::now() < end, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_is_ambiguous_and_never_sent_again() {
    let proxy = Proxy::new(server()).await.unwrap();
    let (far, near) = both(&proxy).await;
    let (topic, group) = (topic("orders"), group("g"));
    near.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let first = send(&*far, &topic, messages(1)).await;
    let subscription = subscribe(&*near, &topic, &group).await.unwrap();
    done(&*subscription, &take(&*subscription, 1).await).await;
    proxy.set(Weather::Delay(Duration::from_millis(300)));
    let batch = messages(100);
    let ids = set(batch.iter().map(|message| message.id));
    let sending = tokio::spawn({
        let (far, topic) = (far.clone(), topic.clone());
        async move { far.send(&topic, Arc::new(batch)).await }
    });
    // They are at the server, and the answer is on its way.
    let got = take(&*subscription, 100).await;
    proxy.cut_once().await;
    for result in sending.await.unwrap() {
        let failed = result.unwrap_err();
        assert!(failed.ambiguous && failed.retryable && failed.error.code() == Code::ConnectionFailed, "{failed:?}");
    }
    assert_eq!(set(got.iter().map(id)), ids);
    done(&*subscription, &got).await;
    send(&*far, &topic, messages(1)).await;
    let rest = within(&*subscription, Duration::from_secs(1)).await;
    assert_eq!(rest.len(), 1, "something was sent twice, beside {first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_nothing_is_ambiguous() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let provider = open(&config(&json!({ "endpoint": format!("http://{nobody}") }))).await.unwrap();
    for result in provider.send(&topic("orders"), Arc::new(messages(3))).await {
        let failed = result.unwrap_err();
        assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::ConnectionFailed, true, false), "{failed:?}");
    }
    let error = provider.ensure(&topic("orders"), &[group("g")]).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (Code::ConnectionFailed, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stands_and_says_nothing_is_found_dead() {
    let proxy = Proxy::new(server()).await.unwrap();
    let (far, near) = both(&proxy).await;
    let (topic, group) = (topic("orders"), group("g"));
    near.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*far, &topic, &group).await.unwrap();
    send(&*far, &topic, messages(1)).await;
    done(&*subscription, &take(&*subscription, 1).await).await;
    proxy.set(Weather::HalfOpen);
    let failed = far.send(&topic, Arc::new(messages(1))).await.remove(0).unwrap_err();
    assert!(failed.ambiguous && failed.retryable, "{failed:?}");
    let mut ended = None;
    until("the subscription ends", async || {
        ended = subscription.next(10, usize::MAX, Duration::from_secs(1)).await.err();
        ended.is_some()
    })
    .await;
    assert!(ended.as_ref().is_some_and(|error| error.retryable()), "{ended:?}");
    proxy.set(Weather::Fair);
    let subscription = again(&*far, &topic, &group).await;
    let sent = send(&*far, &topic, messages(3)).await;
    let mut got = HashSet::new();
    until("all came", async || {
        let more = deliveries(subscription.next(10, usize::MAX, Duration::from_millis(500)).await.unwrap());
        done(&*subscription, &more).await;
        got.extend(more.iter().map(id));
        set(sent.clone()).is_subset(&got)
    })
    .await;
}

/// Short cuts are nothing a subscription dies of: its stream is opened again, and what it holds stays its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_got_over() {
    let proxy = Proxy::new(server()).await.unwrap();
    let (far, near) = both(&proxy).await;
    let (topic, group) = (topic("orders"), group("g"));
    near.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*far, &topic, &group).await.unwrap();
    let other = subscribe(&*near, &topic, &group).await.unwrap();
    other.pause().await;
    for round in 0..5 {
        let sent = send(&*near, &topic, messages(20)).await;
        let held = take(&*subscription, 20).await;
        proxy.cut_once().await;
        // Leases are kept over the cut, so nobody else gets them.
        other.resume().await;
        assert!(within(&*other, if round == 0 { LEASE * 2 } else { Duration::from_millis(100) }).await.is_empty());
        other.pause().await;
        assert_eq!(set(held.iter().map(id)), set(sent));
        done(&*subscription, &held).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_for_a_lease_settles_nothing_of_its_successor() {
    let proxy = Proxy::new(server()).await.unwrap();
    let (far, near) = both(&proxy).await;
    let (topic, group) = (topic("orders"), group("g"));
    near.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*near, &topic, messages(3)).await;
    let cut_off = subscribe(&*far, &topic, &group).await.unwrap();
    let held = take(&*cut_off, 3).await;
    proxy.set(Weather::HalfOpen);
    let successor = subscribe(&*near, &topic, &group).await.unwrap();
    let taken = take(&*successor, 3).await;
    proxy.set(Weather::Fair);
    let answers = settle(&*cut_off, &held, Settle::Done).await;
    assert!(answers.iter().all(|answer| *answer == Settled::Stale || *answer == Settled::Unknown), "{answers:?}");
    done(&*successor, &taken).await;
}

/// 5,000 messages through ten cuts of both sides: what was confirmed comes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_over_ten_cuts() {
    const N: usize = 5_000;
    let (there, back) = (Proxy::new(server()).await.unwrap(), Proxy::new(server()).await.unwrap());
    let project = name("project");
    let through = |proxy: &Proxy| config(&json!({ "projectId": project, "endpoint": format!("http://{}", proxy.address()) }));
    let (producer, consumer) = (open(&through(&there)).await.unwrap(), open(&through(&back)).await.unwrap());
    let (topic, group) = (topic("orders"), group("g"));
    producer.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let (confirmed, mut seen) = (Arc::new(parking_lot::Mutex::new(HashSet::<MessageId>::new())), HashSet::new());
    let sending = tokio::spawn({
        let (topic, confirmed) = (topic.clone(), confirmed.clone());
        async move {
            let mut left: Vec<Outgoing> = messages(N);
            let mut tries = 0;
            while !left.is_empty() {
                tries += 1;
                let batch = Arc::new(left.split_off(left.len().saturating_sub(100)));
                let results = producer.send(&topic, batch.clone()).await;
                for (message, result) in batch.iter().zip(results) {
                    match result {
                        Ok(_) => drop(confirmed.lock().insert(message.id)),
                        // As the core does: the same message again.
                        Err(failed) if failed.retryable => left.push(message.clone()),
                        Err(failed) => panic!("{failed:?}"),
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(tries < 5_000, "{} messages were not confirmed", left.len());
            }
        }
    });
    let cutting = tokio::spawn(async move {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            there.cut_once().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            back.cut_once().await;
        }
        (there, back)
    });
    let end = Instant::now() + PATIENCE * 2;
    let mut subscription = subscribe(&*consumer, &topic, &group).await.unwrap();
    while seen.len() < N {
        assert!(Instant::now() < end, "{} of {N} came, {} were confirmed", seen.len(), confirmed.lock().len());
        match subscription.next(500, usize::MAX, Duration::from_millis(500)).await {
            Ok(signals) => {
                let got = deliveries(signals);
                for (delivery, answer) in got.iter().zip(settle(&*subscription, &got, Settle::Done).await) {
                    // What is not settled comes again; what nobody answered may be.
                    if answer != Settled::Stale {
                        seen.insert(id(delivery));
                    }
                }
            }
            Err(error) if error.retryable() => subscription = again(&*consumer, &topic, &group).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    sending.await.unwrap();
    let (_there, _back) = cutting.await.unwrap();
    let lost = confirmed.lock().difference(&seen).count();
    assert_eq!((lost, confirmed.lock().len()), (0, N), "confirmed and not seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_and_larger_ones_are_refused() {
    let provider = open(&config(&json!({}))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let most = provider.capabilities(&topic).max_message_bytes;
    let payload = |n: usize| -> Vec<u8> { (0..n).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect() };
    let batch = vec![message(payload(1 << 20)), message(payload(most)), message(payload(most + 1))];
    let (first, largest) = (batch[0].clone(), batch[1].clone());
    let results = provider.send(&topic, Arc::new(batch)).await;
    assert!(results[0].is_ok() && results[1].is_ok(), "{results:?}");
    let failed = results[2].as_ref().unwrap_err();
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::PayloadTooLarge, false, false));
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*subscription, 2).await;
    for sent in [first, largest] {
        let came = got.iter().find(|delivery| id(delivery) == sent.id).and_then(|delivery| delivery.payload.clone());
        assert!(came == Some(sent.payload), "a large payload came as another");
    }
    done(&*subscription, &got).await;
}

/// The server keeps what the member has no room for.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_leaves_the_rest_to_others() {
    let provider = open(&config(&json!({}))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*provider, &topic, messages(100)).await;
    let slow = subscribe_with(&*provider, &topic, &group, Prefetch { count: 5, bytes: 1 << 20 }).await.unwrap();
    let held = take(&*slow, 1).await;
    let quick = subscribe(&*provider, &topic, &group).await.unwrap();
    // Twice its prefetch: what it may have in hand, and what may wait.
    let got = take(&*quick, 90).await;
    done(&*quick, &got).await;
    assert!(within(&*quick, Duration::from_millis(300)).await.is_empty());
    let error = provider.depth(&topic, "g").await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::CapabilityUnsupported, Some("not_counted")));
    done(&*slow, &held).await;
    // By bytes.
    send(&*provider, &topic, (0..50).map(|_| message(vec![b'x'; 100_000])).collect()).await;
    let few = subscribe_with(&*provider, &topic, &group, Prefetch { count: 1000, bytes: 500_000 }).await.unwrap();
    quick.pause().await;
    take(&*few, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let held = few.next(1000, usize::MAX, Duration::from_millis(100)).await.map(deliveries).unwrap().len();
    assert!(held <= 30, "{held} of 100 kB are in a hand of 500 kB");
}
