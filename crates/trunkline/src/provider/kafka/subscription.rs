//! One member of a group, as the core uses it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::RDKafkaErrorCode as Kafka;
use tokio_util::sync::CancellationToken;

use super::client::{Client, NoReports, Properties, blocking};
use super::desk::{Desk, at_desk};
use super::error::{Fault, closed, error};
use super::group::{CUT_OFF, EXPIRED, Group, SHARDS_CHANGED};
use super::native::{self, EARLIEST};
use super::rebalance::{self, Context};
use super::shard::{Key, Progress};
use super::{offsets, topics};
use crate::delivery::{Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::provider::{GroupSpec, Signal, SubscribeOptions, Subscription, TopicSpec};

/// A settle waits for its commit at most this long.
const SETTLE: Duration = Duration::from_secs(10);
/// How often a member looks whether it was set back, and for what else comes from outside.
const WATCH: Duration = Duration::from_secs(1);
/// How many looks until the next one at the partitions of ordered topics.
const PARTITIONS_EVERY: u32 = 30;
/// A topic that is missing for longer than this does not come back by itself.
const GONE: Duration = Duration::from_secs(3);
/// Fetched ahead of one partition: at least and at most, in bytes.
const FETCH: (usize, usize) = (64 << 10, 1 << 20);

/// See the module.
#[derive(Debug)]
pub(super) struct KafkaSubscription {
    group: Arc<Group>,
}

impl KafkaSubscription {
    /// Joins, and returns when the group has taken the member in.
    pub(super) async fn join(
        properties: &Properties,
        clients: (Arc<Client<NoReports>>, Arc<Desk>),
        routes: &[TopicSpec],
        spec: &GroupSpec,
        options: &SubscribeOptions,
        session: Duration,
        connection: CancellationToken,
    ) -> Result<Self> {
        // The core may have as many again on their way to be settled.
        let in_hand = options.prefetch.count.saturating_mul(2);
        let group = Group::new(Arc::clone(&spec.name), routes.to_vec(), properties.ear(), clients, in_hand);
        let group = Arc::new(group);
        let config = consumer_config(properties, routes, spec, options, session);
        let consumer = BaseConsumer::from_config_and_context(&config, Context(Arc::clone(&group)));
        let consumer = Arc::new(consumer.map_err(|e| error("the member cannot be set up", &e.into()))?);
        let topics: Vec<&str> = routes.iter().map(|route| &*route.name).collect();
        consumer.subscribe(&topics).map_err(|e| error("the topics cannot be subscribed to", &e.into()))?;
        group.state.lock().consumer = Some(Arc::clone(&consumer));
        // From here on leaving is dropping.
        let subscription = KafkaSubscription { group };
        let group = &subscription.group;
        let mut joined = group.joined.subscribe();
        if let Err(error) = rebalance::spawn(Arc::clone(group), consumer) {
            group.state.lock().consumer = None;
            return Err(error);
        }
        // Another member may have died without a word, or may take its time to settle.
        let limit = session + rebalance::REVOKE + Duration::from_secs(20);
        let taken_in = tokio::time::timeout(limit, async {
            loop {
                if let Some(why) = group.state.lock().dead.clone() {
                    return Err(why);
                }
                if *joined.borrow_and_update() {
                    return Ok(());
                }
                tokio::select! {
                    changed = joined.changed() => if changed.is_err() { return Err(closed()) },
                    () = connection.cancelled() => return Err(closed()),
                }
            }
        });
        taken_in.await.unwrap_or_else(|_| {
            let why = group.ear.last().map_or_else(String::new, |fault| format!(": {fault}"));
            Err(Error::new(Code::SubscribeFailed, format!("the group did not take this member in within {limit:?}{why}"))
                .reason("not_joined")
                .next("check that the broker answers, and that no member of the group hangs"))
        })?;
        tokio::spawn(watch(Arc::clone(group), connection));
        Ok(subscription)
    }

    /// The member, for who must reach it.
    pub(super) fn member(&self) -> Weak<Group> {
        Arc::downgrade(&self.group)
    }
}

fn consumer_config(
    properties: &Properties,
    routes: &[TopicSpec],
    spec: &GroupSpec,
    options: &SubscribeOptions,
    session: Duration,
) -> rdkafka::ClientConfig {
    let shards: usize = routes.iter().map(|route| route.shards as usize).sum();
    // What lies in the queues of all partitions together stays within the prefetch, but for one fetch each.
    let each = (options.prefetch.bytes / shards.max(1) / 2).clamp(FETCH.0, FETCH.1);
    let whole = options.prefetch.bytes.clamp(1_000_000, 50 << 20);
    properties.with(&[
        ("group.id", &spec.name),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A position that is not in the log is never passed over in silence: see `Shard::expired`.
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("session.timeout.ms", &session.as_millis().to_string()),
        ("heartbeat.interval.ms", &(session.as_millis() / 5).to_string()),
        ("queued.min.messages", &options.prefetch.count.clamp(100, 100_000).to_string()),
        ("queued.max.messages.kbytes", &(each >> 10).to_string()),
        ("fetch.message.max.bytes", &each.to_string()),
        ("fetch.max.bytes", &whole.to_string()),
        // With small queues the default of a second would leave them empty for most of the time.
        ("fetch.queue.backoff.ms", "10"),
        ("fetch.wait.max.ms", "500"),
        ("fetch.error.backoff.ms", "100"),
    ])
}

impl Drop for KafkaSubscription {
    fn drop(&mut self) {
        self.group.leave();
    }
}

#[async_trait]
impl Subscription for KafkaSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let end = Instant::now() + wait;
        loop {
            let bell = self.group.bell.notified();
            {
                let mut state = self.group.state.lock();
                if state.closing {
                    self.group.bell.notify_one();
                    return Err(closed());
                }
                if let Some(why) = &state.dead {
                    self.group.bell.notify_one();
                    return Err(why.clone());
                }
                let signals = self.group.pull(&mut state, max, max_bytes);
                if !signals.is_empty() || Instant::now() >= end {
                    return Ok(signals);
                }
            }
            let _ = tokio::time::timeout_at(end.into(), bell).await;
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let group = &self.group;
        let mut answers = vec![Settled::Stale; items.len()];
        // The ownerships that settles wait for, and which settle waits for which.
        let mut owners: Vec<(Key, Arc<Progress>)> = Vec::new();
        let mut waiting: Vec<(usize, usize)> = Vec::new();
        let turn;
        {
            let mut guard = group.state.lock();
            let state = &mut *guard;
            if state.closing {
                return answers;
            }
            turn = group.next_turn(state);
            let (mut released, mut recovered) = (false, false);
            for (at, (token, how)) in items.iter().enumerate() {
                if let Settle::Retry { after, .. } = how
                    && !after.is_zero()
                {
                    // Not declared: it stays in hand.
                    answers[at] = if state.held.get(*token).is_some() { Settled::Unknown } else { Settled::Stale };
                    continue;
                }
                let Some(held) = state.held.remove(*token) else { continue };
                let Some(shard) = state.shards.get_mut(&held.key) else { continue };
                if *how == Settle::Done {
                    shard.done(held.ready.came.offset);
                    recovered |= std::mem::take(&mut shard.expired);
                    let owner = owners.iter().position(|(key, _)| *key == held.key).unwrap_or_else(|| {
                        owners.push((held.key, Arc::clone(&shard.progress)));
                        owners.len() - 1
                    });
                    waiting.push((at, owner));
                } else {
                    shard.release(held.ready);
                    released = true;
                    answers[at] = Settled::Settled;
                }
            }
            if recovered && !state.shards.values().any(|shard| shard.expired) {
                group.trouble(state, EXPIRED, false);
            }
            if !waiting.is_empty() {
                group.commit(state);
            }
            if released || state.shards.values().any(|shard| shard.held == 0) {
                // What waited for these, one after the other, may come now.
                group.bell.notify_one();
            }
        }
        if waiting.is_empty() {
            return answers;
        }
        let end = tokio::time::Instant::now() + SETTLE;
        loop {
            let answered = group.settled.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let over = owners.iter().all(|(_, owner)| owner.holds(turn) || owner.is_lost());
            if over || group.state.lock().dead.is_some() || tokio::time::timeout_at(end, answered).await.is_err() {
                break;
            }
        }
        for (at, owner) in waiting {
            let (_, owner) = &owners[owner];
            answers[at] = if owner.holds(turn) {
                Settled::Settled
            } else if owner.is_lost() {
                Settled::Stale
            } else {
                Settled::Unknown
            };
        }
        answers
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        let state = self.group.state.lock();
        tokens.iter().map(|token| state.held.get(*token).is_some()).collect()
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        let mut state = self.group.state.lock();
        if let Some(revoke) = &mut state.revoke {
            revoke.left.remove(&(route, shard));
        }
    }

    async fn pause(&self) {
        self.group.state.lock().paused = true;
    }

    async fn resume(&self) {
        self.group.state.lock().paused = false;
        self.group.bell.notify_one();
    }

    async fn close(&self, deadline: Instant) {
        let mut ended = self.group.ended.subscribe();
        self.group.leave();
        if tokio::time::timeout_at(deadline.into(), ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!(group = %self.group.name, "the member has not left the group in time: its thread goes on trying");
        }
    }
}

/// Follows what comes from outside, until the member leaves: wishes, expired positions, added partitions.
async fn watch(group: Arc<Group>, connection: CancellationToken) {
    for look in 0_u32.. {
        tokio::select! {
            () = group.stop.cancelled() => return,
            () = connection.cancelled() => return group.leave(),
            () = group.poke.notified() => {}
            () = tokio::time::sleep(WATCH) => {}
        }
        if let Err(fault) = set_back(&group).await {
            tracing::debug!(group = %group.name, %fault, "could not look whether the group was set back");
        }
        look_for_topics(&group).await;
        if look % PARTITIONS_EVERY == 0 {
            look_at_partitions(&group).await;
        }
    }
}

/// Follows wishes, and sets shards back whose position has expired.
async fn set_back(group: &Arc<Group>) -> Result<(), Fault> {
    let (list, expired) = {
        let state = group.state.lock();
        let mut list = rdkafka::TopicPartitionList::new();
        for (route, shard) in state.shards.keys() {
            list.add_partition(&group.routes[*route].name, i32::try_from(*shard).unwrap_or(i32::MAX));
        }
        (list, state.shards.values().any(|shard| shard.out_of_range))
    };
    if list.count() == 0 {
        if group.state.lock().is_cut_off() {
            blocking(&group.control, |rk| native::brokers(rk, offsets::REQUEST)).await?;
            group.trouble(&mut group.state.lock(), CUT_OFF, false);
        }
        return Ok(());
    }
    let name = Arc::clone(&group.name);
    let (known, low) = at_desk(&group.desk, move |desk| {
        let low = if expired { offsets::offsets_at(desk.rk(), &list, EARLIEST)? } else { Default::default() };
        Ok((offsets::wishes(desk, &name, &list)?, low))
    })
    .await?;
    let mut guard = group.state.lock();
    let state = &mut *guard;
    group.trouble(state, CUT_OFF, false);
    let shards: Vec<(Key, u64, bool)> = state.shards.iter().map(|(key, shard)| (*key, shard.seek, shard.out_of_range)).collect();
    for (key, followed, out_of_range) in shards {
        let of = (group.routes[key.0].name.to_string(), i32::try_from(key.1).unwrap_or(i32::MAX));
        let wish = known.get(&of).filter(|(_, number)| *number > followed);
        let done = match (wish, low.get(&of)) {
            (Some((offset, number)), _) => {
                tracing::info!(group = %group.name, topic = %of.0, shard = key.1, to = offset, "the group was set to another position");
                if out_of_range {
                    // The wish is followed when the shard fetches again.
                    state.reassign.push((key, *offset));
                    continue;
                }
                group.seek(state, key, *offset, *number)
            }
            (None, Some(low)) if out_of_range => {
                tracing::warn!(
                    group = %group.name, topic = %of.0, shard = key.1, from = low,
                    "the position is not in the log any more: this shard goes on with the oldest message"
                );
                state.reassign.push((key, *low));
                continue;
            }
            _ => continue,
        };
        if let Err(fault) = done {
            drop(guard);
            group.die(error("a shard cannot be set to another position", &fault));
            return Ok(());
        }
    }
    Ok(())
}

/// A topic that is said to be missing is gone only if it still is after a while.
async fn look_for_topics(group: &Arc<Group>) {
    let Some(since) = group.state.lock().missed else { return };
    let (client, routes) = (Arc::clone(&group.control), group.routes.clone());
    let asked = Arc::clone(&client);
    let found = blocking(&client, move |_| {
        for route in routes {
            if topics::partitions(&asked, &route.name)?.is_none() {
                return Ok(Some(route.name));
            }
        }
        Ok(None)
    });
    match found.await {
        Ok(Some(name)) if since.elapsed() > GONE => {
            group.die(error("the member cannot go on", &Fault::new(Kafka::UnknownTopic, format!("topic '{name}' is gone"))));
        }
        Ok(None) => group.state.lock().missed = None,
        // Too early, or nobody to ask.
        _ => {}
    }
}

/// Partitions that were added to an ordered topic break the order of its keys: that is said.
async fn look_at_partitions(group: &Arc<Group>) {
    let ordered: Vec<TopicSpec> = group.routes.iter().filter(|route| route.ordered).cloned().collect();
    if ordered.is_empty() {
        return;
    }
    let client = Arc::clone(&group.control);
    let changed = tokio::task::spawn_blocking(move || {
        let partitions = |route: &TopicSpec| topics::partitions(&client, &route.name);
        ordered.iter().any(|route| matches!(partitions(route), Ok(Some(n)) if n.count != route.shards))
    });
    if let Ok(true) = changed.await {
        let mut state = group.state.lock();
        group.trouble(&mut state, SHARDS_CHANGED, true);
    }
}
