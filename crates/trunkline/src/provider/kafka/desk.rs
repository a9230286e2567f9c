//! Where groups are asked about: a client that finds the coordinator of a group, and asks it.
//!
//! librdkafka's calls about a group can look for its coordinator themselves. As of 2.12 they end the process with an
//! assertion when one of them runs out of time before the coordinator is back (its pull request 5397), and with a null
//! pointer when the coordinator has moved and the client is in no group. So every call here names its broker, and the
//! client has a group, which it never joins.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::RDKafkaErrorCode as Kafka;

use super::client::{Context, NoReports, Properties, TICK};
use super::error::{Fault, error};
use super::native::{self, Part, Rk};
use super::offsets::REQUEST;
use crate::error::{Code, Error, Result};

/// Where Kafka keeps the offsets of groups. The leader of a group's partition of it is the group's coordinator.
const OFFSETS: &str = "__consumer_offsets";

/// See the module.
pub(super) struct Desk {
    consumer: Arc<BaseConsumer<Context<NoReports>>>,
    /// The coordinator of each group that was asked about, as it was last seen.
    coordinators: Mutex<HashMap<String, i32>>,
    ended: Arc<AtomicBool>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    /// Connects in the background. `group` is one that the user may read; others may be asked about too.
    pub(super) fn new(properties: &Properties, group: &str) -> Result<Self> {
        let config = properties.with(&[("group.id", group), ("enable.auto.commit", "false")]);
        let consumer = BaseConsumer::from_config_and_context(&config, Context::new(properties.ear(), NoReports));
        let consumer = Arc::new(consumer.map_err(|e| error("the client cannot be set up", &e.into()))?);
        let ended = Arc::new(AtomicBool::new(false));
        let (polled, end) = (Arc::clone(&consumer), Arc::clone(&ended));
        // The thread drops its handle last: destroying a client may block.
        let spawned = thread::Builder::new().name("trunkline-kafka-desk".into()).spawn(move || {
            while !end.load(Ordering::Acquire) {
                // What it has to say was told to its context.
                drop(polled.poll(TICK));
            }
        });
        spawned.map_err(|e| Error::new(Code::ConnectionFailed, format!("no thread for the client: {e}")))?;
        Ok(Desk { consumer, coordinators: Mutex::default(), ended })
    }

    pub(super) fn rk(&self) -> Rk {
        Rk::new(self.consumer.client().native_ptr())
    }

    /// The committed offsets of a group, with what was written beside them. Needs no membership.
    pub(super) fn committed(&self, group: &str, of: &TopicPartitionList) -> Result<Vec<Part>, Fault> {
        self.at_coordinator(group, |broker| native::committed(self.rk(), broker, group, of, REQUEST))
    }

    /// Commits for a group that has no members.
    pub(super) fn commit_for(&self, group: &str, of: &TopicPartitionList) -> Result<Vec<Part>, Fault> {
        self.at_coordinator(group, |broker| native::commit_for(self.rk(), broker, group, of, REQUEST))
    }

    /// Forgets what a group committed for these partitions.
    pub(super) fn delete_committed(&self, group: &str, of: &TopicPartitionList) -> Result<Vec<Part>, Fault> {
        self.at_coordinator(group, |broker| native::delete_committed(self.rk(), broker, group, of, REQUEST))
    }

    /// The partitions that live members of a group own.
    pub(super) fn owned(&self, group: &str) -> Result<Vec<Part>, Fault> {
        self.at_coordinator(group, |broker| native::owned(self.rk(), broker, group, REQUEST))
    }

    /// Calls the broker that coordinates the group.
    fn at_coordinator(&self, group: &str, call: impl Fn(i32) -> Result<Vec<Part>, Fault>) -> Result<Vec<Part>, Fault> {
        let call = |broker| {
            let parts: Vec<Part> = call(broker)?;
            match parts.iter().find(|part| part.code == Kafka::NotCoordinator) {
                Some(part) => Err(Fault::new(part.code, "another broker coordinates the group")),
                None => Ok(parts),
            }
        };
        let known = self.coordinators.lock().get(group).copied();
        if let Some(broker) = known {
            match call(broker) {
                // A broker that does not answer may not come back: the group has another one then.
                Err(fault) if fault.passes() => drop(self.coordinators.lock().remove(group)),
                other => return other,
            }
        }
        let mut last = None;
        for broker in self.candidates(group)? {
            match call(broker) {
                Ok(parts) => {
                    self.coordinators.lock().insert(group.to_owned(), broker);
                    return Ok(parts);
                }
                Err(fault) if fault.passes() => last = Some(fault),
                Err(fault) => return Err(fault),
            }
        }
        Err(last.unwrap_or_else(|| Fault::new(Kafka::NotCoordinator, "no broker coordinates the group")))
    }

    /// The brokers that may coordinate the group: one, where the user may see the topic of the offsets, else all.
    fn candidates(&self, group: &str) -> Result<Vec<i32>, Fault> {
        let metadata = self.consumer.fetch_metadata(Some(OFFSETS), REQUEST)?;
        let partitions = metadata.topics().iter().find(|topic| topic.name() == OFFSETS).map_or(&[][..], |topic| topic.partitions());
        let shard = partition_of(group, partitions.len());
        let leader = partitions.iter().find(|partition| usize::try_from(partition.id()) == Ok(shard)).map(|partition| partition.leader());
        match leader {
            Some(leader) if leader >= 0 => Ok(vec![leader]),
            Some(_) => Err(Fault::new(Kafka::CoordinatorNotAvailable, "the group's coordinator is not elected yet")),
            None => Ok(native::brokers(self.rk(), REQUEST)?.into_iter().map(|(id, _)| id).collect()),
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The partition of a group among those of the topic of offsets: by the hash of Java's strings
/// (Kafka, `GroupCoordinatorService.partitionFor`).
fn partition_of(group: &str, partitions: usize) -> usize {
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    // The smallest number has no absolute value: Kafka takes zero.
    let hash = hash.checked_abs().and_then(|hash| usize::try_from(hash).ok()).unwrap_or(0);
    hash % partitions.max(1)
}

/// A call that blocks, on a thread that may. The client lives until it returns.
pub(super) async fn at_desk<T: Send + 'static>(
    desk: &Arc<Desk>,
    work: impl FnOnce(&Desk) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let desk = Arc::clone(desk);
    let done = tokio::task::spawn_blocking(move || work(&desk)).await;
    done.unwrap_or_else(|_| Err(Fault::new(Kafka::Fail, "the runtime is shutting down")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_partition_is_kafkas() {
        // Java: "".hashCode() is 0, "hello" 99162322, "polygenelubricants" the smallest number there is.
        for (group, partitions, partition) in [("", 50, 0), ("hello", 50, 22), ("polygenelubricants", 50, 0), ("hello", 0, 0)] {
            assert_eq!(partition_of(group, partitions), partition, "{group:?}");
        }
        // "\u{1f4e6}" is two units in Java.
        assert_eq!(partition_of("\u{1f4e6}", 1_000_000), usize::try_from(0xd83d * 31 + 0xdce6).unwrap_or(0) % 1_000_000);
    }
}
