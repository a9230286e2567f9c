//! Positions that are gone, and partitions that came later.

use std::time::Instant;

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::topic_partition_list::Offset;
use serde_json::json;
use trunkline::delivery::Settle;
use trunkline::provider::{Provider as _, SubscriptionState};

use crate::bed::{PATIENCE, group, join, listen, message, offsets, open, send, spec, to_shard};
use crate::content::admin;

/// As retention would, but now.
async fn expire(topic: &str, below: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(below)).unwrap();
    admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_position_has_expired_says_so_and_goes_on() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    for n in 0..10 {
        send(&kafka, &topic, message(format!("{n}"))).await;
    }
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, false, |told| told.messages.len() >= 5).await;
    member.settle(&[(told.messages[0].token, Settle::Done)]).await;
    member.close(Instant::now() + PATIENCE).await;
    expire(&topic.name, 7).await;
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| told.messages.len() == 3 && told.states.len() >= 2).await;
    assert_eq!(offsets(&told), [7, 8, 9]);
    assert_eq!(told.states, [SubscriptionState::Degraded("offsets_expired"), SubscriptionState::Live]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_expires_under_a_member_is_said_too() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    // Large, so that the member has fetched only a few when the others go.
    for _ in 0..20 {
        send(&kafka, &topic, message(vec![b'x'; 900_000])).await;
    }
    let member = join(&kafka, &topic, &group).await;
    let mut first = Vec::new();
    while first.is_empty() {
        first = listen(&*member, false, |told| !told.messages.is_empty()).await.messages;
    }
    assert!(first.len() < 15, "{} messages of 900 kB were fetched ahead", first.len());
    expire(&topic.name, 17).await;
    let told = listen(&*member, true, |told| told.messages.iter().any(|m| m.position.offset == 19)).await;
    assert!(told.states.contains(&SubscriptionState::Degraded("offsets_expired")), "{:?}", told.states);
    assert!(offsets(&told).ends_with(&[17, 18, 19]), "{:?}", offsets(&told));
    assert_eq!(told.states.last(), Some(&SubscriptionState::Live));
}

async fn add_partitions(topic: &str, to: usize) {
    admin().create_partitions([&NewPartitions::new(topic, to)], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_from_outside_are_drift_and_are_consumed() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(2, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let member = join(&kafka, &topic, &group).await;
    add_partitions(&topic.name, 3).await;
    let ensured = kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    assert!(ensured.drift.iter().any(|drift| drift.contains("3 partitions instead of 2")), "{ensured:?}");
    assert!(ensured.created.is_empty(), "{ensured:?}");
    let producer = open(&json!({})).await.unwrap();
    for shard in 0..3 {
        send(&producer, &topic, to_shard(shard, format!("{shard}"))).await;
    }
    let told = listen(&*member, true, |told| told.messages.len() == 3).await;
    let mut shards: Vec<_> = told.messages.iter().map(|m| m.position.shard).collect();
    shards.sort_unstable();
    assert_eq!(shards, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_to_an_ordered_topic_are_a_named_trouble() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(2, true), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let member = join(&kafka, &topic, &group).await;
    add_partitions(&topic.name, 4).await;
    let told = listen(&*member, true, |told| !told.states.is_empty()).await;
    assert_eq!(told.states[0], SubscriptionState::Degraded("shards_changed"));
    // What foreign producers put there is not lost.
    let producer = open(&json!({})).await.unwrap();
    send(&producer, &topic, to_shard(3, "x")).await;
    listen(&*member, true, |told| told.messages.iter().any(|m| m.position.shard == 3)).await;
}
