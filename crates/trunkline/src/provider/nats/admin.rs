//! Topics and groups on the server: made, compared, counted, set back, removed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::api::{self, ConsumerInfo, Refused, StreamInfo};
use super::error;
use super::link::Link;
use super::place::{OWNERS, OWNERS_SUBJECTS, PIN_GROUP, Place, covers};
use super::{read, topics};
use crate::capability::Durability;
use crate::error::{Code, Error, Result};
use crate::message::Millis;
use crate::provider::{Depth, Ensured, GroupSpec, Start};

/// How many of a group's messages may be handed out at once, over all members.
pub(super) const MAX_ACK_PENDING: i64 = 20_000;
/// How long the server knows the ids it has seen.
pub(super) const DEDUP_WINDOW: Duration = Duration::from_secs(120);
/// How many members may wait for messages at once.
const MAX_WAITING: u32 = 4_096;

/// What is to be known of a topic's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) durability: Durability,
    pub(super) dedup_window_ms: u64,
    /// The stream's own limit, if it has one.
    pub(super) max_message: Option<usize>,
    /// Whether a limit drops the oldest messages, settled or not.
    pub(super) drops: bool,
}

impl Facts {
    /// Of a stream as it is made here.
    pub(super) fn wished(replicas: u32) -> Facts {
        let durability = if replicas > 1 { Durability::Replicated } else { Durability::Written };
        Facts { durability, dedup_window_ms: crate::message::millis(DEDUP_WINDOW), max_message: None, drops: false }
    }

    fn of(info: &StreamInfo) -> Facts {
        let durability = match (info.number("num_replicas") > 1, info.text("storage")) {
            (true, _) => Durability::Replicated,
            (false, "memory") => Durability::Memory,
            // Whether the server syncs each write (`sync_interval: always`) cannot be asked for.
            (false, _) => Durability::Written,
        };
        Facts {
            durability,
            dedup_window_ms: u64::try_from(info.number("duplicate_window") / 1_000_000).unwrap_or(0),
            max_message: usize::try_from(info.number("max_msg_size")).ok().filter(|most| *most > 0),
            drops: !limits(info).is_empty() && (info.text("discard") != "new" || info.number("max_age") > 0),
        }
    }
}

/// What admin calls need to know of the config.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) create: bool,
    pub(super) replicas: Option<u32>,
    pub(super) lease: Duration,
}

/// Makes topic and groups exist; see [`crate::provider::Provider::ensure`].
pub(super) async fn ensure(link: &Link, rules: Rules, place: &Place, groups: &[GroupSpec]) -> Result<(Ensured, Facts)> {
    let mut ensured = Ensured::default();
    let stream = ensure_stream(link, rules, place, &mut ensured).await?;
    let facts = Facts::of(&stream);
    if place.ordered {
        ensure_owners(link, rules, &mut ensured).await?;
    }
    // Beyond the shards that there are, consumers would wait for nothing.
    let shards = shards_there(&stream, place).unwrap_or(place.shards).min(place.shards);
    for group in groups {
        for shard in 0..shards {
            ensure_consumer(link, rules, place, group, shard, &mut ensured).await?;
        }
    }
    Ok((ensured, facts))
}

async fn ensure_stream(link: &Link, rules: Rules, place: &Place, ensured: &mut Ensured) -> Result<StreamInfo> {
    let doing = format!("stream '{}'", place.stream);
    let found = api::stream_info(link, &place.stream).await.map_err(|e| e.into_error(&doing))?;
    let info = match found {
        Some(info) if !place.shared || listens(&info, place) => info,
        _ if !rules.create => return Err(missing_stream(place)),
        _ if place.shared => {
            ensure_owners(link, rules, ensured).await?;
            let (info, made) = topics::add(link, place, &stream_config(rules, place)).await?;
            ensured.created.push(match made {
                true => format!("stream '{}' for subject '{}'", place.stream, place.pattern()),
                false => format!("subject '{}' in stream '{}'", place.pattern(), place.stream),
            });
            info
        }
        _ => match api::stream_create(link, &place.stream, &stream_config(rules, place)).await {
            Ok(info) => {
                ensured.created.push(format!("stream '{}' for subject '{}'", place.stream, place.pattern()));
                return Ok(info);
            }
            Err(refused) if refused.is(error::SUBJECTS_OVERLAP) => {
                let others = api::streams_of(link, &place.pattern()).await.unwrap_or_default();
                return Err(topics::taken(place, &others.join("', '")));
            }
            // Another process was faster, with another config.
            Err(refused) if refused.is(error::STREAM_IN_USE) => api::stream_info(link, &place.stream)
                .await
                .map_err(|e| e.into_error(&doing))?
                .ok_or_else(|| Error::new(Code::SubscribeFailed, format!("{doing} came and went")).with_retryable(true))?,
            Err(refused) => return Err(refused.into_error(&doing)),
        },
    };
    ensured.drift.extend(stream_drift(&info, rules, place));
    Ok(info)
}

fn stream_config(rules: Rules, place: &Place) -> Value {
    let mut config = json!({
        "name": place.stream,
        "subjects": [place.pattern()],
        "retention": "limits",
        "storage": "file",
        // A stream that reaches a limit set later refuses, and does not drop what nobody has settled.
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "num_replicas": rules.replicas.unwrap_or(1),
        "duplicate_window": nanos(DEDUP_WINDOW),
        "allow_direct": true,
    });
    if place.ordered {
        config["metadata"] = json!({ place.shards_key(): place.shards.to_string() });
    }
    config
}

fn listens(info: &StreamInfo, place: &Place) -> bool {
    info.subjects().any(|pattern| covers(pattern, &place.pattern()))
}

fn shards_there(info: &StreamInfo, place: &Place) -> Option<u32> {
    if place.ordered { info.metadata(&place.shards_key())?.parse().ok() } else { None }
}

fn missing_stream(place: &Place) -> Error {
    let shards = if place.ordered { format!(" and the metadata {}={}", place.shards_key(), place.shards) } else { String::new() };
    Error::new(Code::TopicNotFound, format!("no stream '{}' listens to '{}', and `create` is false", place.stream, place.pattern()))
        .detail("stream", place.stream.as_str())
        .next(format!("create the stream '{}' with the subject '{}'{shards}, or set `create: true`", place.stream, place.pattern()))
}

/// The limits of a stream, as `name=value`.
fn limits(info: &StreamInfo) -> Vec<String> {
    let names = ["max_msgs", "max_bytes", "max_age", "max_msgs_per_subject"].into_iter();
    names.filter(|name| info.number(name) > 0).map(|name| format!("{name}={}", info.number(name))).collect()
}

fn stream_drift(info: &StreamInfo, rules: Rules, place: &Place) -> Vec<String> {
    let mut drift = Vec::new();
    let mut say = |when: bool, text: String| {
        if when {
            drift.push(format!("stream '{}': {text}", place.stream));
        }
    };
    say(!listens(info, place), format!("it does not listen to '{}'", place.pattern()));
    let shards = shards_there(info, place);
    say(place.ordered && shards.is_some_and(|n| n != place.shards), format!("it has {} shards, not {}", shards.unwrap_or(0), place.shards));
    let retention = info.text("retention");
    say(
        !matches!(retention, "" | "limits"),
        format!("its retention is '{retention}': messages are gone once settled, replay and new groups miss them"),
    );
    say(retention == "workqueue", "its retention is 'workqueue': only one group can exist".into());
    let limits = limits(info).join(", ");
    let drops = info.text("discard") != "new" && !limits.is_empty();
    say(drops, format!("discard=old with {limits}: messages that no group has settled are dropped at the limit"));
    say(
        !drops && info.number("max_age") > 0,
        format!("max_age={}: messages older than that are dropped, settled or not", info.number("max_age")),
    );
    say(info.text("storage") == "memory", "it lies in memory: messages do not survive the server".into());
    say(info.flag("no_ack"), "no_ack=true: publishes are not confirmed".into());
    say(info.flag("sealed"), "it is sealed: nothing can be published".into());
    let replicas = info.number("num_replicas");
    let wished = rules.replicas.map(i64::from);
    say(wished.is_some_and(|wished| wished != replicas.max(1)), format!("it has {replicas} replicas, not {}", wished.unwrap_or(0)));
    drift
}

/// The stream that holds who owns which shard. One for all ordered topics.
async fn ensure_owners(link: &Link, rules: Rules, ensured: &mut Ensured) -> Result<()> {
    let doing = format!("stream '{OWNERS}'");
    if api::stream_info(link, OWNERS).await.map_err(|e| e.into_error(&doing))?.is_some() {
        return Ok(());
    }
    if !rules.create {
        return Err(Error::new(Code::TopicNotFound, format!("ordered topics need the stream '{OWNERS}', and `create` is false"))
            .detail("stream", OWNERS)
            .next(format!(
                "create the stream '{OWNERS}' with the subject '{OWNERS_SUBJECTS}' and max_msgs_per_subject=1, or set `create: true`"
            )));
    }
    let config = json!({
        "name": OWNERS,
        "subjects": [OWNERS_SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "num_replicas": rules.replicas.unwrap_or(1),
    });
    match api::stream_create(link, OWNERS, &config).await {
        Ok(info) => {
            if info.did_create {
                ensured.created.push(doing);
            }
            Ok(())
        }
        // Another process was faster; its replicas may differ.
        Err(refused) if refused.is(error::STREAM_IN_USE) => Ok(()),
        Err(refused) => Err(refused.into_error(&doing)),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn consumer_config(rules: Rules, place: &Place, group: &str, shard: u32, start: &Start) -> Value {
    let name = place.consumer(group, shard);
    let mut config = json!({
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": nanos(rules.lease),
        // How often a message is tried is the core's to say.
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
        "max_waiting": MAX_WAITING,
        "replay_policy": "instant",
        "filter_subject": place.subject(shard).as_str(),
    });
    if place.ordered {
        config["priority_groups"] = json!([PIN_GROUP]);
        config["priority_policy"] = "pinned_client".into();
        config["priority_timeout"] = nanos(rules.lease).into();
    }
    start_at(&mut config, start);
    config
}

/// Where a consumer starts.
pub(super) fn start_at(config: &mut Value, start: &Start) {
    match start {
        Start::Earliest => config["deliver_policy"] = "all".into(),
        Start::Latest => config["deliver_policy"] = "new".into(),
        Start::Time(at) => {
            config["deliver_policy"] = "by_start_time".into();
            config["opt_start_time"] = rfc3339(*at).into();
        }
        Start::Position { offset, .. } => {
            config["deliver_policy"] = "by_start_sequence".into();
            config["opt_start_seq"] = (*offset).max(1).into();
        }
    }
}

async fn ensure_consumer(link: &Link, rules: Rules, place: &Place, group: &GroupSpec, shard: u32, ensured: &mut Ensured) -> Result<()> {
    let name = place.consumer(&group.name, shard);
    let doing = format!("consumer '{name}' of stream '{}'", place.stream);
    let found = match api::consumer_info(link, &place.stream, &name).await {
        Ok(found) => found,
        Err(refused) if refused.is(error::STREAM_NOT_FOUND) => return Err(missing_stream(place)),
        Err(refused) => return Err(refused.into_error(&doing)),
    };
    if let Some(info) = found {
        ensured.drift.extend(consumer_drift(&info, rules, place, shard));
        return Ok(());
    }
    if !rules.create {
        return Err(Error::new(Code::GroupNotFound, format!("no {doing}, and `create` is false")).next(format!(
            "create the durable pull consumer '{name}' with explicit acks on '{}', or set `create: true`",
            place.subject(shard)
        )));
    }
    match api::consumer_create(link, &place.stream, consumer_config(rules, place, &group.name, shard, &group.start)).await {
        Ok(_) => ensured.created.push(doing),
        // Another process was faster, and started it elsewhere: it stays where it is.
        Err(refused) if refused.is(error::CONSUMER_EXISTS) => {}
        Err(refused) => return Err(refused.into_error(&doing)),
    }
    Ok(())
}

fn consumer_drift(info: &ConsumerInfo, rules: Rules, place: &Place, shard: u32) -> Vec<String> {
    let mut drift = Vec::new();
    let config = &info.config;
    let mut say = |when: bool, text: String| {
        if when {
            drift.push(format!("consumer '{}': {text}", info.name));
        }
    };
    say(config.deliver_subject.is_some(), "it pushes: a group needs a pull consumer".into());
    say(config.ack_policy != "explicit", format!("its acks are '{}', not explicit: it cannot be consumed from", config.ack_policy));
    say(
        config.ack_wait != nanos(rules.lease),
        format!("ack_wait is {} ms, not {} ms", config.ack_wait / 1_000_000, rules.lease.as_millis()),
    );
    say(
        config.max_deliver > 0,
        format!("max_deliver={}: a message that is handed out more often is passed over and stays in the stream", config.max_deliver),
    );
    say(
        config.max_ack_pending > 0 && config.max_ack_pending < MAX_ACK_PENDING,
        format!("max_ack_pending={}: so many messages in hand stall all members", config.max_ack_pending),
    );
    let filter = config.filter_subject.as_deref().unwrap_or_default();
    let wished = place.subject(shard);
    let differs = !filter.is_empty() && filter != wished.as_str();
    say(differs || (filter.is_empty() && (place.shared || place.ordered)), format!("it is filtered by '{filter}', not by '{wished}'"));
    say(
        place.ordered && config.priority_policy.as_deref() != Some("pinned_client"),
        "it has no pinned client: only the owner's lease keeps others from a shard".into(),
    );
    drift
}

/// Counts what waits for a group: exactly where a consumer may be made to count with.
pub(super) async fn depth(link: &Link, rules: Rules, place: &Place, group: &str) -> Result<Depth> {
    let mut depth = Depth { exact: rules.create, ..Depth::default() };
    for shard in 0..place.shards {
        let name = place.consumer(group, shard);
        let doing = format!("consumer '{name}'");
        let info = api::consumer_info(link, &place.stream, &name).await.map_err(|e| e.into_error(&doing))?;
        let Some(info) = info else { return Err(no_group(group)) };
        let ready = if rules.create {
            read::count(link, place, shard, info.delivered.stream_seq + 1).await.map_err(|e| e.into_error(&doing))?
        } else {
            info.num_pending
        };
        depth.ready += ready;
        depth.in_flight += info.num_ack_pending;
        if ready + info.num_ack_pending > 0 {
            let next = info.ack_floor.stream_seq + 1;
            let oldest = api::next_message(link, &place.stream, &place.subject(shard), next).await.map_err(|e| e.into_error(&doing))?;
            let at = oldest.and_then(|message| time(&message.time));
            depth.oldest = depth.oldest.into_iter().chain(at).min();
        }
    }
    Ok(depth)
}

pub(super) fn no_group(group: &str) -> Error {
    Error::new(Code::GroupNotFound, format!("the topic has no group '{group}' on the server"))
}

/// Sets a group elsewhere. A consumer cannot be moved, so it is made again; members see that theirs is gone, and go on with
/// the new one.
pub(super) async fn seek(link: &Link, rules: Rules, place: &Place, group: &str, to: &Start) -> Result<()> {
    for shard in 0..place.shards {
        let name = place.consumer(group, shard);
        let doing = format!("moving consumer '{name}'");
        if matches!(to, Start::Position { shard: of, .. } if *of != shard) {
            continue;
        }
        if !api::consumer_delete(link, &place.stream, &name).await.map_err(|e| e.into_error(&doing))? {
            return Err(no_group(group));
        }
        let config = consumer_config(rules, place, group, shard, to);
        match api::consumer_create(link, &place.stream, config).await {
            Ok(_) => {}
            Err(refused) if refused.is(error::CONSUMER_EXISTS) => {
                let error = Error::new(Code::SubscribeFailed, format!("{doing}: another process made it again meanwhile"));
                return Err(error.with_retryable(true));
            }
            Err(refused) => return Err(refused.into_error(&doing)),
        }
    }
    Ok(())
}

/// Removes a topic with all its messages and groups.
pub(super) async fn remove_topic(link: &Link, place: &Place) -> Result<()> {
    let doing = format!("removing topic '{}'", place.topic);
    let said = |refused: Refused| refused.into_error(&doing);
    if !place.shared {
        api::stream_delete(link, &place.stream).await.map_err(said)?;
        return forget_owners(link, place, "*").await;
    }
    if api::stream_info(link, &place.stream).await.map_err(said)?.is_none() {
        return Ok(());
    }
    for name in api::consumer_names(link, &place.stream).await.map_err(said)? {
        let consumer = api::consumer_info(link, &place.stream, &name).await.map_err(said)?;
        let filter = consumer.and_then(|consumer| consumer.config.filter_subject).unwrap_or_default();
        if filter.is_empty() || !covers(&place.pattern(), &filter) {
            continue;
        }
        api::consumer_delete(link, &place.stream, &name).await.map_err(said)?;
        // One consumer per shard, and one ledger for all of them.
        if let Some((group, _)) = name.rsplit_once('=').filter(|_| place.ordered) {
            forget_owners(link, place, group).await?;
        }
    }
    topics::remove(link, place).await?;
    // What was produced until a moment ago.
    api::stream_purge(link, &place.stream, &place.pattern()).await.map_err(said)
}

/// Removes a group.
pub(super) async fn remove_group(link: &Link, place: &Place, group: &str) -> Result<()> {
    for shard in 0..place.shards {
        let name = place.consumer(group, shard);
        api::consumer_delete(link, &place.stream, &name).await.map_err(|e| e.into_error(&format!("removing consumer '{name}'")))?;
    }
    if place.ordered {
        let subject = place.owners(group);
        api::stream_purge(link, OWNERS, &subject).await.map_err(|e| e.into_error("forgetting the owners of a group"))?;
    }
    Ok(())
}

async fn forget_owners(link: &Link, place: &Place, group: &str) -> Result<()> {
    if !place.ordered {
        return Ok(());
    }
    let subject = format!("_trunkline.owners.{}.{group}", place.stream);
    api::stream_purge(link, OWNERS, &subject).await.map_err(|e| e.into_error("forgetting the owners of a topic"))
}

/// The time of RFC 3339, in milliseconds since 1970.
pub(super) fn time(text: &str) -> Option<Millis> {
    let at = humantime::parse_rfc3339_weak(text).ok()?;
    at.duration_since(UNIX_EPOCH).ok().map(crate::message::millis)
}

fn rfc3339(at: Millis) -> String {
    // What lies beyond the year 9999 starts there: later than everything.
    const LAST: Millis = 253_402_300_799_000;
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(at.min(LAST))).to_string()
}

/// What a message holds, as `STREAM.MSG.GET` gives it.
pub(super) fn payload(message: &api::RawMessage) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(&message.data).ok()
}
