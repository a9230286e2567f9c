//! The keys of a topic. All start with its name, so that one ACL pattern covers them.

use std::sync::Arc;

use crate::provider::TopicSpec;

/// The stream of a shard: the topic's own name where it has one shard.
pub(super) fn stream(topic: &str, shards: u32, shard: u32) -> Arc<str> {
    if shards <= 1 { topic.into() } else { format!("{topic}:shard:{shard}").into() }
}

/// The streams of a topic, by shard.
pub(super) fn streams(topic: &TopicSpec) -> Vec<Arc<str>> {
    (0..topic.shards.max(1)).map(|shard| stream(&topic.name, topic.shards, shard)).collect()
}

/// A hash: how many shards the topic has, and the epoch of each shard and group.
pub(super) fn meta(topic: &str) -> String {
    format!("{topic}:trunkline")
}

/// In the meta hash: how often a group was set back on a shard. What was handed out in an earlier round is stale.
pub(super) fn round(shard: u32, group: &str) -> String {
    format!("round:{shard}:{group}")
}

/// A sorted set: the members of a group of an ordered topic, by when their sign of life ends.
pub(super) fn members(topic: &str, group: &str) -> String {
    format!("{topic}:trunkline:members:{group}")
}

/// The owner of a shard, as `epoch:member`, gone when its lease ends.
pub(super) fn owner(topic: &str, group: &str, shard: u32) -> String {
    format!("{topic}:trunkline:owner:{shard}:{group}")
}

/// In Pub/Sub mode: the channel of the envelopes.
pub(super) fn envelopes(channel: &str) -> String {
    format!("{channel}:trunkline")
}
