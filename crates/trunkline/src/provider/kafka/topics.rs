//! Topics as they are on the broker: found, created, removed, and what their settings and those of the cluster promise.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode as Kafka;

use super::client::{Client, NoReports};
use super::error::Fault;
use super::native::{self, Rk, Whose};
use super::offsets::{REQUEST, patiently};
use crate::capability::Durability;
use crate::provider::{Ensured, TopicSpec};

type Result<T, E = Fault> = std::result::Result<T, E>;

/// The default of `message.max.bytes` on Kafka's brokers.
const MAX_BYTES: usize = 1_048_588;
/// How long a new topic may take until the broker that is asked knows it.
const APPEARS: Duration = Duration::from_secs(10);

/// The partitions of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partitions {
    pub(super) count: u32,
    /// The smallest number of replicas of any of them.
    pub(super) replicas: u32,
}

/// What is known of a topic, or is true of one that will be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) replicas: u32,
    pub(super) min_in_sync: u32,
    /// The largest record batch.
    pub(super) max_bytes: usize,
    /// Every message is synced to disk before it is confirmed.
    pub(super) synced: bool,
}

impl Facts {
    /// What a confirmed message survives: an answer with `acks=all` says that all replicas in sync have it, so it is on
    /// several machines only where fewer than two are not enough.
    pub(super) fn durability(&self) -> Durability {
        match (self.replicas >= 2 && self.min_in_sync >= 2, self.synced) {
            (true, _) => Durability::Replicated,
            (false, true) => Durability::Fsynced,
            (false, false) => Durability::Written,
        }
    }
}

/// What the cluster does with topics that say nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cluster {
    defaults: Facts,
}

impl Cluster {
    /// Asks any broker. Without the permission to read settings, Kafka's own defaults are taken: they promise least.
    pub(super) fn ask(rk: Rk) -> Result<Cluster> {
        let brokers = native::brokers(rk, REQUEST)?;
        let mut defaults = Facts { replicas: 1, min_in_sync: 1, max_bytes: MAX_BYTES, synced: false };
        let Some((id, _)) = brokers.first() else { return Ok(Cluster { defaults }) };
        match native::settings(rk, Whose::Broker(*id), REQUEST) {
            Ok(settings) => {
                let settings: HashMap<String, String> = settings.into_iter().collect();
                let number = |name: &str| settings.get(name).and_then(|value| value.parse::<u64>().ok());
                let small = |name: &str, default| number(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
                defaults.replicas = small("default.replication.factor", 1);
                defaults.min_in_sync = small("min.insync.replicas", 1);
                defaults.max_bytes = number("message.max.bytes").and_then(|n| usize::try_from(n).ok()).unwrap_or(MAX_BYTES);
                defaults.synced = number("log.flush.interval.messages") == Some(1);
            }
            Err(fault) => tracing::debug!(%fault, "the broker's settings cannot be read: the weakest are assumed"),
        }
        Ok(Cluster { defaults })
    }

    /// What is true of a topic that this config creates, or of one nothing is known about.
    pub(super) fn of_new_topic(&self, replication: Option<u32>) -> Facts {
        let replicas = replication.unwrap_or(self.defaults.replicas);
        let min_in_sync = if replication.is_some_and(keeps_two) { 2 } else { self.defaults.min_in_sync };
        Facts { replicas, min_in_sync, ..self.defaults }
    }
}

/// With three replicas one may be missing while a second is always there.
fn keeps_two(replication: u32) -> bool {
    replication >= 3
}

/// The partitions of a topic; `None` if there is no such topic.
pub(super) fn partitions(client: &Client<NoReports>, name: &str) -> Result<Option<Partitions>> {
    let metadata = client.producer().client().fetch_metadata(Some(name), REQUEST)?;
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else { return Ok(None) };
    match topic.error().map(Kafka::from) {
        Some(Kafka::UnknownTopicOrPartition | Kafka::UnknownTopic) => return Ok(None),
        // Partitions that have just been made have no leader for a moment.
        Some(Kafka::LeaderNotAvailable) | None => {}
        Some(code) => return Err(Fault::new(code, format!("topic '{name}'"))),
    }
    if topic.partitions().is_empty() {
        return Ok(None);
    }
    if topic.partitions().iter().any(|partition| partition.leader() < 0) {
        return Err(Fault::new(Kafka::LeaderNotAvailable, format!("topic '{name}' has a partition without a leader")));
    }
    let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Some(Partitions { count: count(topic.partitions().len()), replicas: count(replicas) }))
}

/// The facts of a topic that is there.
fn facts(client: &Client<NoReports>, cluster: &Cluster, name: &str, replicas: u32) -> Facts {
    let mut facts = Facts { replicas, ..cluster.defaults };
    match native::settings(client.rk(), Whose::Topic(name), REQUEST) {
        Ok(settings) => {
            let settings: HashMap<String, String> = settings.into_iter().collect();
            let number = |name: &str| settings.get(name).and_then(|value| value.parse::<u64>().ok());
            let sized = |name: &str, default| number(name).and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
            facts.min_in_sync = number("min.insync.replicas").and_then(|n| u32::try_from(n).ok()).unwrap_or(facts.min_in_sync);
            facts.max_bytes = sized("max.message.bytes", facts.max_bytes);
            facts.synced = number("flush.messages").map_or(facts.synced, |n| n == 1);
        }
        Err(fault) => tracing::debug!(%fault, topic = name, "the topic's settings cannot be read: the cluster's are assumed"),
    }
    facts
}

/// Makes the topic exist where it may be created. `None` if it is missing and may not.
pub(super) fn ensure(
    client: &Arc<Client<NoReports>>,
    cluster: &Cluster,
    spec: &TopicSpec,
    create: bool,
    replication: Option<u32>,
) -> Result<Option<(Ensured, Partitions, Facts)>> {
    ensure_with(client, cluster, spec, create, replication, &[])
}

/// The same, with settings for a topic that is created.
pub(super) fn ensure_with(
    client: &Arc<Client<NoReports>>,
    cluster: &Cluster,
    spec: &TopicSpec,
    create: bool,
    replication: Option<u32>,
    config: &[(&str, &str)],
) -> Result<Option<(Ensured, Partitions, Facts)>> {
    let mut ensured = Ensured::default();
    let deadline = Instant::now() + APPEARS;
    let mut found = patiently(deadline, || partitions(client, &spec.name))?;
    if found.is_none() {
        if !create {
            return Ok(None);
        }
        let mut config = config.to_vec();
        if replication.is_some_and(keeps_two) {
            config.push(("min.insync.replicas", "2"));
        }
        match patiently(deadline, || native::create_topic(client.rk(), &spec.name, spec.shards, replication, &config, REQUEST)) {
            Ok(()) => ensured.created.push(format!("topic {} with {} partitions", spec.name, spec.shards)),
            // Another process was faster.
            Err(fault) if fault.code == Kafka::TopicAlreadyExists => {}
            Err(fault) => return Err(fault),
        }
        while found.is_none() {
            found = patiently(deadline, || partitions(client, &spec.name))?;
            if found.is_none() {
                if Instant::now() > deadline {
                    return Err(Fault::new(Kafka::OperationTimedOut, format!("topic '{}' was created and does not appear", spec.name)));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let Some(there) = found else { return Ok(None) };
    if there.count != spec.shards {
        ensured.drift.push(format!("topic {} has {} partitions instead of {} shards", spec.name, there.count, spec.shards));
    }
    if let Some(wish) = replication
        && wish != there.replicas
    {
        ensured.drift.push(format!("topic {} has {} replicas instead of {wish}", spec.name, there.replicas));
    }
    let facts = facts(client, cluster, &spec.name, there.replicas);
    Ok(Some((ensured, there, facts)))
}

/// Removes a topic, and returns when the broker that is asked does not know it any more.
pub(super) fn remove(client: &Arc<Client<NoReports>>, name: &str) -> Result<()> {
    let deadline = Instant::now() + APPEARS;
    match patiently(deadline, || native::delete_topic(client.rk(), name, REQUEST)) {
        Ok(()) => {}
        Err(fault) if matches!(fault.code, Kafka::UnknownTopicOrPartition | Kafka::UnknownTopic) => return Ok(()),
        Err(fault) => return Err(fault),
    }
    while patiently(deadline, || partitions(client, name))?.is_some() {
        if Instant::now() > deadline {
            return Err(Fault::new(Kafka::OperationTimedOut, format!("topic '{name}' was deleted and is still there")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durability_is_what_is_always_there() {
        let facts = |replicas, min_in_sync, synced| Facts { replicas, min_in_sync, synced, max_bytes: MAX_BYTES };
        assert_eq!(facts(1, 1, false).durability(), Durability::Written);
        assert_eq!(facts(3, 1, false).durability(), Durability::Written, "the leader alone may be in sync");
        assert_eq!(facts(1, 1, true).durability(), Durability::Fsynced);
        assert_eq!(facts(3, 2, false).durability(), Durability::Replicated);
        let cluster = Cluster { defaults: facts(1, 1, false) };
        assert_eq!(cluster.of_new_topic(Some(3)).durability(), Durability::Replicated);
        assert_eq!(cluster.of_new_topic(Some(2)).durability(), Durability::Written);
    }
}
