//! A bad network between a client and the server, and connections that must not be left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::Code;
use trunkline::delivery::{Settle, Settled};
use trunkline::provider::redis::Options;
use trunkline::provider::{Prefetch, SubscribeOptions};
use trunkline_suite::proxy::{Proxy, Weather};

use crate::private::{LEASE, MEMORY, Private, open, short};
use crate::{done, group, id, message, messages, next, send, set, settle, subscribe, take, topic, until};

async fn through(proxy: &Proxy) -> Arc<dyn trunkline::provider::Provider> {
    open(json!({ "host": "127.0.0.1", "port": proxy.address().port() }), short()).await.unwrap()
}

/// A client that sends again by itself what was not answered stores it twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_is_ambiguous_and_never_sent_again() {
    let server = Private::start(MEMORY).await;
    let proxy = Proxy::new(server.address()).await.unwrap();
    let provider = through(&proxy).await;
    let topic = topic("t");
    provider.ensure(&topic, &[group("g")]).await.unwrap();
    send(&*provider, &topic, messages(1, 10)).await;
    proxy.set(Weather::Delay(Duration::from_millis(150)));
    let sending = tokio::spawn({
        let (provider, topic) = (Arc::clone(&provider), topic.clone());
        async move { provider.send(&topic, Arc::new(messages(100, 10))).await }
    });
    // It is at the server, and the answer is on its way.
    until("the server has it", async || server.count(&["XLEN", "t"]) == 101).await;
    proxy.cut_once().await;
    for result in sending.await.unwrap() {
        let failed = result.unwrap_err();
        assert!(failed.ambiguous && failed.retryable && failed.error.code() == Code::ConnectionFailed, "{failed:?}");
    }
    send(&*provider, &topic, messages(1, 10)).await;
    assert_eq!(server.count(&["XLEN", "t"]), 102, "something was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_nothing_is_ambiguous() {
    let server = Private::start(MEMORY).await;
    let provider = server.open().await;
    let topic = topic("t");
    provider.ensure(&topic, &[]).await.unwrap();
    server.kill();
    // The first call may find the connection broken; after it there is none.
    provider.send(&topic, Arc::new(messages(1, 1))).await;
    let failed = provider.send(&topic, Arc::new(messages(1, 1))).await.remove(0).unwrap_err();
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::ConnectionFailed, true, false), "{failed:?}");
}

/// The client's own response timeout of half a second would end every read that waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_silence_is_not_an_error() {
    let server = Private::start(MEMORY).await;
    let provider = open(server.config(), Options::default()).await.unwrap();
    let (topic, group) = (topic("t"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    assert!(next(&*subscription, Duration::from_secs(5)).await.unwrap().is_empty());
    let sent = send(&*provider, &topic, messages(1, 1)).await;
    assert_eq!(set(take(&*subscription, 1).await.iter().map(id)), set(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stands_and_says_nothing_is_found_dead() {
    let server = Private::start(MEMORY).await;
    let proxy = Proxy::new(server.address()).await.unwrap();
    let provider = through(&proxy).await;
    let (topic, group) = (topic("t"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    proxy.set(Weather::HalfOpen);
    let mut ended = None;
    until("the subscription ends", async || {
        ended = next(&*subscription, Duration::from_secs(1)).await.err();
        ended.is_some()
    })
    .await;
    assert_eq!(ended.map(|error| error.code()), Some(Code::Timeout));
    proxy.set(Weather::Fair);
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(3, 1)).await;
    done(&*subscription, &take(&*subscription, 3).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_for_a_lease_settles_nothing_of_its_successor() {
    let server = Private::start(MEMORY).await;
    let proxy = Proxy::new(server.address()).await.unwrap();
    let (far, near) = (through(&proxy).await, server.open().await);
    let (topic, group) = (topic("t"), group("g"));
    near.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*near, &topic, messages(3, 1)).await;
    let cut_off = subscribe(&*far, &topic, &group).await.unwrap();
    let held = take(&*cut_off, 3).await;
    proxy.set(Weather::HalfOpen);
    let successor = subscribe(&*near, &topic, &group).await.unwrap();
    let taken = take(&*successor, 3).await;
    assert!(taken.iter().all(|delivery| delivery.deliveries.count() == 2), "handed out a second time");
    proxy.set(Weather::Fair);
    let answers = settle(&*cut_off, &held, Settle::Done).await;
    assert!(answers.iter().all(|answer| *answer == Settled::Stale), "{answers:?}");
    assert_eq!(server.count(&["XLEN", "t"]), 3);
    assert_eq!(near.depth(&topic, "g").await.unwrap().in_flight, 3, "the successor's deliveries were settled by another");
    done(&*successor, &taken).await;
}

/// After a seek another member holds what this one was handed before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_out_before_a_seek_settles_nothing_of_another_member() {
    let server = Private::start(MEMORY).await;
    let (a, b) = (server.open().await, server.open().await);
    let (topic, group) = (topic("t"), group("g"));
    a.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*a, &topic, messages(4, 1)).await;
    let first = subscribe(&*a, &topic, &group).await.unwrap();
    let held = take(&*first, 4).await;
    // It reads no more, so that the other gets everything.
    first.pause().await;
    let second = subscribe(&*b, &topic, &group).await.unwrap();
    b.seek(&topic, "g", &trunkline::provider::Start::Earliest).await.unwrap();
    let again = take(&*second, 4).await;
    for how in [Settle::Done, Settle::Release] {
        let answers = settle(&*first, &held[..2], how).await;
        assert!(answers.iter().all(|answer| *answer == Settled::Stale), "{answers:?}");
    }
    let tokens: Vec<_> = held.iter().map(|delivery| delivery.token).collect();
    assert_eq!(first.extend(&tokens).await, [false; 4]);
    assert_eq!(b.depth(&topic, "g").await.unwrap().in_flight, 4, "the other's deliveries were touched");
    done(&*second, &again).await;
}

/// A read counts per stream: with more streams than room it must not bring one of each.
#[tokio::test(flavor = "multi_thread")]
async fn many_topics_share_one_read_and_little_room() {
    const TOPICS: usize = 60;
    const ROOM: usize = 4;
    let server = Private::start(MEMORY).await;
    let provider = server.open().await;
    let group = group("g");
    let topics: Vec<_> = (0..TOPICS).map(|n| topic(&format!("t{n}"))).collect();
    let mut sent = Vec::new();
    for topic in &topics {
        provider.ensure(topic, std::slice::from_ref(&group)).await.unwrap();
        sent.extend(send(&*provider, topic, messages(3, 1)).await);
    }
    let connections = || server.cli(&["CLIENT", "LIST"]).lines().count();
    let before = connections();
    let options = SubscribeOptions { member: "m".into(), prefetch: Prefetch { count: ROOM, bytes: 1 << 20 } };
    let subscription = provider.subscribe(&topics, &group, options).await.unwrap();
    assert_eq!(connections(), before + 1, "one connection for all topics");
    let first = take(&*subscription, 1).await;
    tokio::time::sleep(LEASE / 4).await;
    let mut pending = 0;
    for topic in &topics {
        pending += provider.depth(topic, "g").await.unwrap().in_flight;
    }
    assert!(pending <= (ROOM + 1) as u64, "{pending} of {} were fetched for a room of {ROOM}", sent.len());
    let mut got = first.clone();
    done(&*subscription, &first).await;
    while got.len() < sent.len() {
        let more = take(&*subscription, 1).await;
        done(&*subscription, &more).await;
        got.extend(more);
    }
    assert_eq!(set(got.iter().map(id)), set(sent));
    // All are empty now: it waits for them together, and hears of any.
    for topic in [&topics[TOPICS - 1], &topics[0]] {
        let sent = send(&*provider, topic, messages(1, 1)).await;
        let more = take(&*subscription, 1).await;
        assert_eq!(id(&more[0]), sent[0]);
        done(&*subscription, &more).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_on_the_server_after_a_close() {
    let server = Private::start(MEMORY).await;
    let provider = server.open().await;
    let (topic, group) = (topic("t"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let deadline = || Instant::now() + Duration::from_secs(10);
    for _ in 0..3 {
        let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
        send(&*provider, &topic, vec![message("x")]).await;
        done(&*subscription, &take(&*subscription, 1).await).await;
        subscription.close(deadline()).await;
    }
    // Neither a consumer, nor, after the provider's own close, a connection: only the one that asks.
    assert_eq!(server.cli(&["XINFO", "CONSUMERS", "t", "g"]), "");
    let dropped = subscribe(&*provider, &topic, &group).await.unwrap();
    drop(dropped);
    let open = subscribe(&*provider, &topic, &group).await.unwrap();
    provider.close(deadline()).await;
    until("all connections are closed", async || server.cli(&["CLIENT", "LIST"]).lines().count() == 1).await;
    assert_eq!(next(&*open, Duration::from_secs(1)).await.unwrap_err().code(), Code::Closed);
}

/// Another client that reads a shard of an ordered topic takes messages away from its owner: they are found.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_took_of_a_shard_comes_to_its_owner() {
    let server = Private::start(MEMORY).await;
    let provider = server.open().await;
    let (topic, group) = (trunkline::provider::TopicSpec::new("t", 1, true), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let sent = send(&*provider, &topic, messages(2, 1)).await;
    server.cli(&["XREADGROUP", "GROUP", "g", "stranger", "COUNT", "1", "STREAMS", "t", ">"]);
    let owner = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*owner, 2).await;
    assert_eq!(got.iter().map(id).collect::<Vec<_>>(), sent, "in order");
    done(&*owner, &got).await;
    owner.pause().await;
    send(&*provider, &topic, messages(1, 1)).await;
    server.cli(&["XREADGROUP", "GROUP", "g", "stranger", "COUNT", "1", "STREAMS", "t", ">"]);
    owner.resume().await;
    done(&*owner, &take(&*owner, 1).await).await;
    tokio::time::sleep(LEASE / 4).await;
    assert_eq!(provider.depth(&topic, "g").await.unwrap().in_flight, 0);
}
