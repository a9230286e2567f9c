//! Settled entries leave, unsettled ones never; and what happens when another client trims without looking.

use std::time::Duration;

use trunkline::provider::redis::Options;
use trunkline::provider::{Signal, SubscriptionState};

use crate::private::{MEMORY, Private, open, short};
use crate::{done, group, id, messages, send, set, subscribe, take, topic, until};

#[tokio::test(flavor = "multi_thread")]
async fn trimming_never_passes_what_a_group_has_not_settled() {
    let server = Private::start(MEMORY).await;
    let (topic, fast, slow) = (topic("t"), group("fast"), group("slow"));
    let options = Options { trim: Duration::from_millis(100), keep_age: Duration::ZERO, ..short() };
    let provider = open(server.config(), options).await.unwrap();
    provider.ensure(&topic, &[fast.clone(), slow.clone()]).await.unwrap();
    let sent = send(&*provider, &topic, messages(1_000, 20)).await;
    let (a, b) = (subscribe(&*provider, &topic, &fast).await.unwrap(), subscribe(&*provider, &topic, &slow).await.unwrap());
    done(&*a, &take(&*a, 1_000).await).await;
    let first = take(&*b, 400).await;
    // All but one of the first 400: that one holds back everything behind it.
    let (held, settled): (Vec<_>, Vec<_>) = first.into_iter().partition(|delivery| id(delivery) == sent[150]);
    done(&*b, &settled).await;
    // Whole nodes of a hundred entries leave.
    until("what is settled leaves", async || server.count(&["XLEN", "t"]) < 1_000).await;
    assert!(server.count(&["XLEN", "t"]) >= 850, "an entry that a group has not settled was removed");
    done(&*b, &held).await;
    until("the rest of it leaves", async || server.count(&["XLEN", "t"]) < 700).await;
    assert!(server.count(&["XLEN", "t"]) >= 600);
    let rest = take(&*b, 600).await;
    assert_eq!(set(rest.iter().map(id)), set(sent[400..].iter().copied()));
    done(&*b, &rest).await;
    until("nothing is kept", async || server.count(&["XLEN", "t"]) <= 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_groups_is_not_trimmed() {
    let server = Private::start(MEMORY).await;
    let (dead, live) = (topic("dead"), topic("live"));
    let options = Options { trim: Duration::from_millis(50), keep_age: Duration::ZERO, keep_count: 0, keep_bytes: 0, ..short() };
    let provider = open(server.config(), options).await.unwrap();
    provider.ensure(&dead, &[]).await.unwrap();
    provider.ensure(&live, &[group("g")]).await.unwrap();
    send(&*provider, &dead, messages(500, 10)).await;
    send(&*provider, &live, messages(500, 10)).await;
    let member = subscribe(&*provider, &live, &group("g")).await.unwrap();
    done(&*member, &take(&*member, 500).await).await;
    until("the other topic is trimmed", async || server.count(&["XLEN", "live"]) <= 100).await;
    assert_eq!(server.count(&["XLEN", "dead"]), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_another_client_trimmed_are_reported_and_do_not_stick() {
    let server = Private::start(MEMORY).await;
    let (topic, group) = (topic("t"), group("g"));
    let provider = server.open().await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*provider, &topic, messages(5, 10)).await;
    let dies = subscribe(&*provider, &topic, &group).await.unwrap();
    take(&*dies, 5).await;
    drop(dies);
    server.cli(&["XTRIM", "t", "MAXLEN", "2"]);
    let next = subscribe(&*provider, &topic, &group).await.unwrap();
    let (mut named, mut got) = (false, Vec::new());
    until("the two that are left come, and the others are reported", async || {
        for signal in next.next(10, usize::MAX, Duration::from_millis(200)).await.unwrap() {
            match signal {
                Signal::State(SubscriptionState::Degraded("messages_trimmed")) => named = true,
                Signal::Deliveries { items, .. } => got.extend(items),
                _ => {}
            }
        }
        named && got.len() == 2
    })
    .await;
    done(&*next, &got).await;
    let depth = provider.depth(&topic, "g").await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, 0));
}
