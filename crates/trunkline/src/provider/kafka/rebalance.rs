//! The thread of a member: it polls librdkafka whatever the handlers do, and answers when shards come and go.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::Offset;
use rdkafka::types::{RDKafkaErrorCode as Kafka, RDKafkaRespErr};

use super::client::TICK;
use super::error::{Fault, error};
use super::group::{CUT_OFF, Consumer, EXPIRED, Group, Revoke, SHARDS_CHANGED, add, commit_and_wait, deadly};
use super::native::Rk;
use super::offsets;
use super::queue::Queue;
use super::shard::{Claim, Key, Shard};
use crate::error::{Code, Error, Result};
use crate::message::now_ms;
use crate::provider::Signal;

/// How long the core has to settle what it holds of a shard that is to be given up. Others of the group wait meanwhile.
pub(super) const REVOKE: Duration = Duration::from_secs(10);
/// How long taking over shards may take.
const CLAIM: Duration = Duration::from_secs(15);

/// What librdkafka calls.
pub(super) struct Context(pub(super) Arc<Group>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.ear.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.ear.complain(&error, reason);
        if error.rdkafka_error_code() == Some(Kafka::AllBrokersDown) {
            let mut state = self.0.state.lock();
            self.0.trouble(&mut state, CUT_OFF, true);
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.0.assigned(consumer, list);
        } else {
            self.0.revoked(consumer, list);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let all = result.map_err(Fault::from);
        let each = || offsets.elements().iter().find_map(|element| element.error().err()).map(Fault::from);
        let answer = all.and_then(|()| each().map_or(Ok(()), Err));
        let elements = offsets.elements();
        let written = elements.iter().filter_map(|element| {
            let key = self.0.key(element.topic(), element.partition())?;
            Some((key, element.offset().to_raw()?, element.metadata().to_owned()))
        });
        self.0.commit_answered(answer, written.collect());
    }
}

/// Runs the member until it leaves. The consumer is destroyed on this thread, since that may block.
pub(super) fn spawn(group: Arc<Group>, consumer: Arc<Consumer>) -> Result<()> {
    let name = "trunkline-kafka-member".to_owned();
    let spawned = thread::Builder::new().name(name).spawn(move || {
        while !group.state.lock().closing {
            match consumer.poll(TICK) {
                None => {}
                Some(Ok(message)) => group.came_astray(&consumer, message.topic(), message.partition(), message.offset()),
                Some(Err(e)) => {
                    let fatal = matches!(e, KafkaError::MessageConsumptionFatal(_));
                    let fault = Fault::from(e);
                    if fault.is_missing_topic() {
                        group.state.lock().missed.get_or_insert_with(Instant::now);
                    } else if let Some(why) = deadly(&fault, fatal) {
                        group.die(why);
                    }
                }
            }
            group.tick();
            group.finish_revoke(&consumer);
            group.reassign(&consumer);
        }
        let keys: Vec<Key> = group.state.lock().shards.keys().copied().collect();
        group.commit_now(&consumer, &keys, true);
        let revoke = {
            let mut state = group.state.lock();
            group.drop_shards(&mut state, &keys, |_| false);
            state.consumer = None;
            state.revoke.take()
        };
        // librdkafka waits for the answer to every revocation, and does not end before it.
        if let Some(Revoke { list, .. }) = revoke {
            unassign(&consumer, &list);
        }
        drop(consumer);
        group.ended.send_replace(true);
    });
    spawned.map(drop).map_err(|e| Error::new(Code::SubscribeFailed, format!("no thread for the member: {e}")))
}

impl Group {
    /// Shards were given to this member: it claims them, and only then takes from them.
    fn assigned(&self, consumer: &Consumer, list: &TopicPartitionList) {
        if self.state.lock().closing {
            // Taken away again at once; nothing of the consumer may be kept beyond its end.
            return assign(consumer, list).unwrap_or_else(|e| tracing::debug!(error = %Fault::from(e), "an assignment at the end"));
        }
        let mut claimed = self.claim(consumer, list);
        if let Err(fault) = &claimed {
            self.die(error("the shards given to this member could not be taken over", fault));
        }
        if let Ok(claimed) = &claimed {
            // A shard that is ours still is given to us anew: its old queue must be let go first, both ring the same bell.
            let mut state = self.state.lock();
            let again: Vec<Key> = claimed.iter().map(|(key, _)| *key).filter(|key| state.shards.contains_key(key)).collect();
            if !again.is_empty() {
                self.drop_shards(&mut state, &again, |_| true);
            }
        }
        // librdkafka waits for the assignment in any case.
        let mut assignment = TopicPartitionList::new();
        for element in list.elements() {
            let base = claimed.as_ref().ok().and_then(|all| {
                all.iter().find(|(key, _)| self.key(element.topic(), element.partition()) == Some(*key)).map(|(_, claim)| claim.base)
            });
            // Only an offset that is no number is refused.
            let offset = base.map_or(Offset::End, Offset::Offset);
            let _ = assignment.add_partition_offset(element.topic(), element.partition(), offset);
        }
        let rk = Rk::new(consumer.client().native_ptr());
        let mut shards = Vec::new();
        for (key, claim) in claimed.iter_mut().flat_map(|all| all.drain(..)) {
            let partition = i32::try_from(key.1).unwrap_or(i32::MAX);
            match Queue::of_partition(rk, &self.routes[key.0].name, partition, Arc::clone(&self.bell)) {
                Ok(queue) => shards.push((key, Shard::new(claim, queue))),
                Err(fault) => self.die(error("a partition has no queue", &fault)),
            }
        }
        if let Err(e) = assign(consumer, &assignment) {
            self.die(error("the shards given to this member could not be taken over", &e.into()));
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        for (key, shard) in shards {
            let (route, epoch, expired) = (&self.routes[key.0], shard.epoch, shard.expired);
            if route.ordered && key.1 >= route.shards {
                self.trouble(state, SHARDS_CHANGED, true);
            }
            state.shards.insert(key, shard);
            state.signals.push_back(Signal::Assigned { route: key.0, shard: key.1, epoch });
            if expired {
                self.trouble(state, EXPIRED, true);
            }
        }
        self.trouble(state, CUT_OFF, false);
        drop(guard);
        self.joined.send_replace(true);
        self.bell.notify_one();
    }

    /// Finds out where the shards start, and writes down that they are ours.
    fn claim(&self, consumer: &Consumer, list: &TopicPartitionList) -> Result<Vec<(Key, Claim)>, Fault> {
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + CLAIM;
        let found = offsets::patiently(deadline, || offsets::starts(&self.desk, &self.name, list))?;
        let now = now_ms();
        let mut claims = Vec::new();
        let mut commit = TopicPartitionList::new();
        for start in found {
            let Some(key) = self.key(&start.topic, start.partition) else { continue };
            if start.expired {
                tracing::warn!(
                    group = %self.name, topic = %start.topic, shard = key.1, from = start.base,
                    "the committed position is not in the log any more: this shard goes on with the oldest message"
                );
            }
            let claim = Claim::take_over((start.base, start.behind), start.mark, start.seek, self.in_hand, now, start.expired);
            add(&mut commit, &start.topic, key.1, claim.base, &claim.mark.encode());
            claims.push((key, claim));
        }
        commit_and_wait(consumer, &commit, deadline)?;
        Ok(claims)
    }

    /// Shards are to be given up, or are gone already.
    fn revoked(&self, consumer: &Consumer, list: &TopicPartitionList) {
        let keys: Vec<Key> = list.elements().iter().filter_map(|e| self.key(e.topic(), e.partition())).collect();
        let lost = consumer.assignment_lost();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if lost || state.closing || state.dead.is_some() {
            // Nothing can be committed for a shard that is somebody else's.
            self.drop_shards(state, &keys, |_| true);
            state.revoke = None;
            drop(guard);
            unassign(consumer, list);
            return;
        }
        let deadline = Instant::now() + REVOKE;
        let mut left = std::collections::BTreeSet::new();
        for key in keys {
            let Some(shard) = state.shards.get_mut(&key) else { continue };
            shard.revoking = true;
            // Who holds nothing of an unordered topic has nothing to settle first.
            if shard.held > 0 || self.routes[key.0].ordered {
                left.insert(key);
                state.signals.push_back(Signal::Revoking { route: key.0, shard: key.1, deadline });
            }
        }
        state.revoke = Some(Revoke { list: list.clone(), left, deadline });
        drop(guard);
        self.bell.notify_one();
    }

    /// Gives up what is to be given up, once everything of it is settled or its time is over.
    fn finish_revoke(&self, consumer: &Consumer) {
        let revoke = {
            let mut state = self.state.lock();
            let over = state.dead.is_some();
            state.revoke.take_if(|revoke| over || revoke.left.is_empty() || Instant::now() >= revoke.deadline)
        };
        let Some(Revoke { list, left, .. }) = revoke else { return };
        let keys: Vec<Key> = list.elements().iter().filter_map(|e| self.key(e.topic(), e.partition())).collect();
        self.commit_now(consumer, &keys, true);
        {
            let mut state = self.state.lock();
            let yielded: Vec<Key> = keys.iter().filter(|key| !left.contains(key)).copied().collect();
            let ordered = |key: &Key| self.routes[key.0].ordered;
            // Who yielded a shard knows; the others are told.
            self.drop_shards(&mut state, &keys, |key| !yielded.contains(key) || !ordered(key));
        }
        unassign(consumer, &list);
    }

    /// Fetches shards again whose position was gone: librdkafka fetches nothing more of such a partition before it is
    /// assigned anew.
    fn reassign(&self, consumer: &Consumer) {
        let gone = std::mem::take(&mut self.state.lock().reassign);
        for (key, offset) in gone {
            let (topic, partition) = (&self.routes[key.0].name, i32::try_from(key.1).unwrap_or(i32::MAX));
            let mut list = TopicPartitionList::new();
            // Only an offset that is no number is refused.
            let _ = list.add_partition_offset(topic, partition, Offset::Offset(offset));
            let rk = Rk::new(consumer.client().native_ptr());
            let again = || {
                if !matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
                    return Err(Fault::new(Kafka::AutoOffsetReset, "the position is not in the log any more"));
                }
                match self.state.lock().shards.get_mut(&key) {
                    Some(shard) if shard.out_of_range => shard.attach(None),
                    _ => return Ok(()),
                }
                consumer.incremental_unassign(&list)?;
                let queue = Queue::of_partition(rk, topic, partition, Arc::clone(&self.bell))?;
                consumer.incremental_assign(&list)?;
                let mut state = self.state.lock();
                if let Some(shard) = state.shards.get_mut(&key) {
                    shard.attach(Some(queue));
                }
                self.restart(&mut state, key, offset, None);
                Ok(())
            };
            if let Err(fault) = again() {
                self.die(error("a shard whose position is gone cannot go on", &fault));
            }
        }
    }

    /// A message in the consumer's own queue instead of its partition's: it is fetched again, into the right one.
    fn came_astray(&self, consumer: &Consumer, topic: &str, partition: i32, offset: i64) {
        let owned = self.key(topic, partition).is_some_and(|key| self.state.lock().shards.contains_key(&key));
        if owned && let Err(e) = consumer.seek(topic, partition, Offset::Offset(offset), Duration::ZERO) {
            self.die(error("a partition cannot be fetched", &e.into()));
        }
    }
}

fn assign(consumer: &Consumer, list: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
        _ => consumer.assign(list),
    }
}

fn unassign(consumer: &Consumer, list: &TopicPartitionList) {
    let done = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    };
    if let Err(e) = done {
        tracing::debug!(error = %Fault::from(e), "shards could not be given up");
    }
}
