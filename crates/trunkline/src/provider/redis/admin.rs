//! Topics and groups: made, measured, read, set back, removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::envelope::{self, bytes};
use super::id::EntryId;
use super::link::{int, is_missing, items, strange};
use super::script::{ENSURE, REMOVE, REMOVE_GROUP, SEEK, TRIM};
use super::target::pairs;
use super::{Core, keys};
use crate::delivery::{EnvelopeId, Position};
use crate::error::{Code, Error, Result};
use crate::provider::{Depth, Ensured, GroupSpec, ReadFrom, Remove, Start, Stored, TopicSpec};

/// A read asks for at most this many entries at once.
const PAGE: usize = 256;
/// When memory is full, settled entries are removed at most this often.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// What this connection has ensured: to name what is gone, and to make it again.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) streams: Arc<[Arc<str>]>,
    shards: u32,
    groups: HashMap<Arc<str>, GroupSpec>,
    /// How many connections there were when it was last seen.
    seen: u64,
}

/// The topic is not there.
pub(super) fn missing(topic: &str) -> Error {
    Error::new(Code::TopicNotFound, format!("the stream of topic '{topic}' does not exist"))
        .next(format!("create it: redis-cli XGROUP CREATE '{topic}' <group> 0 MKSTREAM"))
}

fn no_group(topic: &str, group: &str) -> Error {
    Error::new(Code::GroupNotFound, format!("topic '{topic}' has no group '{group}'"))
        .next(format!("create it: redis-cli XGROUP CREATE '{topic}' '{group}' 0"))
}

/// The id a group has read up to that starts there.
fn read_up_to(start: &Start) -> Result<String> {
    Ok(match start {
        Start::Earliest => "0-0".to_owned(),
        Start::Latest => "$".to_owned(),
        Start::Time(at) => EntryId::at(*at).before().to_string(),
        Start::Position { .. } => return Err(Error::input("from", "a position is of one shard: it is for `seek`")),
    })
}

impl Core {
    pub(super) async fn ensure_streams(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        // There before anything is noted: a connection made later means that one broke.
        self.produce.wire().await?;
        let ensured = if self.create { self.make(topic, groups).await? } else { self.look(topic, groups).await? };
        let mut known = self.known.lock();
        let shards = topic.shards.max(1);
        let entry = known.entry(Arc::clone(&topic.name)).or_insert_with(|| Known {
            streams: keys::streams(topic).into(),
            shards,
            groups: HashMap::new(),
            seen: 0,
        });
        if entry.shards != shards {
            (entry.streams, entry.shards) = (keys::streams(topic).into(), shards);
        }
        entry.seen = self.produce.made();
        entry.groups.extend(groups.iter().map(|group| (Arc::clone(&group.name), group.clone())));
        Ok(ensured)
    }

    async fn make(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let mut args: Vec<String> = vec![topic.name.to_string(), topic.shards.max(1).to_string()];
        for group in groups {
            args.extend([group.name.to_string(), read_up_to(&group.start)?]);
        }
        let meta = keys::meta(&topic.name);
        let answer = self.work.run(&ENSURE, &[&meta], &[&args], Code::SubscribeFailed).await?;
        let mut answer = items(answer).into_iter();
        let (Some(shards), Some(made), Some(new)) = (answer.next(), answer.next(), answer.next()) else { return Err(strange("a topic")) };
        let mut ensured = Ensured::default();
        if int(&made) == Some(1) {
            ensured.created.push(format!("stream {}", topic.name));
            if self.known.lock().contains_key(&topic.name) {
                ensured.drift.push(self.note_loss(topic));
            }
        }
        let shards = int(&shards).unwrap_or(0);
        if shards != i64::from(topic.shards.max(1)) {
            ensured.drift.push(format!("topic '{}' has {shards} shards instead of {}", topic.name, topic.shards));
        }
        ensured.created.extend(items(new).into_iter().map(|group| format!("group {}", String::from_utf8_lossy(&bytes(group)))));
        ensured.drift.extend(self.facts.load().warnings.iter().cloned());
        Ok(ensured)
    }

    /// With `create: false`: only looks, with the least permissions.
    async fn look(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        for stream in keys::streams(topic) {
            let answer = self.work.ask(redis::cmd("XINFO").arg("GROUPS").arg(&*stream)).await?;
            if is_missing(&answer) {
                return Err(missing(&stream));
            }
            let there = group_infos(super::link::accepted(answer, Code::SubscribeFailed)?);
            if let Some(group) = groups.iter().find(|group| !there.iter().any(|info| info.name == group.name.as_bytes())) {
                return Err(no_group(&stream, &group.name));
            }
        }
        Ok(Ensured { created: Vec::new(), drift: self.facts.load().warnings.clone() })
    }

    /// A topic that this connection had ensured had to be made again.
    fn note_loss(&self, topic: &TopicSpec) -> String {
        self.lost.lock().insert(Arc::clone(&topic.name));
        let words = format!("topic '{}' was gone and was made again: the server lost its data, or somebody removed it", topic.name);
        tracing::warn!(topic = %topic.name, reason = "data_gone", "the topic was gone from the server and was made again");
        words
    }

    /// Makes a topic again that was lost with the server's data, with the groups this connection knows.
    pub(super) async fn revive(&self, topic: &TopicSpec) -> bool {
        let groups: Vec<GroupSpec> = {
            let known = self.known.lock();
            match known.get(&topic.name) {
                // Seen on this very connection: somebody removed it.
                Some(known) if self.create && known.seen < self.produce.made() => known.groups.values().cloned().collect(),
                _ => return false,
            }
        };
        self.ensure_streams(topic, &groups).await.is_ok()
    }

    pub(super) async fn remove_streams(&self, what: Remove<'_>) -> Result<()> {
        match what {
            Remove::Topic(topic) => {
                self.known.lock().remove(&topic.name);
                let shards = topic.shards.max(1).to_string();
                self.work.run(&REMOVE, &[&keys::meta(&topic.name)], &[&&*topic.name, &shards], Code::SubscribeFailed).await?;
            }
            Remove::Group(topic, group) => {
                if let Some(known) = self.known.lock().get_mut(&topic.name) {
                    known.groups.remove(group);
                }
                let shards = topic.shards.max(1).to_string();
                self.work.run(&REMOVE_GROUP, &[&keys::meta(&topic.name)], &[&&*topic.name, &shards, &group], Code::SubscribeFailed).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn depth_of(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        let streams = keys::streams(topic);
        let mut pipeline = redis::pipe();
        for stream in &streams {
            pipeline.cmd("XINFO").arg("GROUPS").arg(&**stream);
            pipeline.cmd("XPENDING").arg(&**stream).arg(group);
            pipeline.cmd("XLEN").arg(&**stream);
        }
        let mut answers = self.work.pipe(&pipeline).await?.into_iter();
        let mut depth = Depth { exact: true, ..Depth::default() };
        for stream in &streams {
            let mut answer = || answers.next().ok_or_else(|| strange("a depth"));
            let (groups, pending, length) = (answer()?, answer()?, answer()?);
            if is_missing(&groups) {
                return Err(missing(stream));
            }
            let groups = group_infos(super::link::accepted(groups, Code::SubscribeFailed)?);
            let info = groups.iter().find(|info| info.name == group.as_bytes()).ok_or_else(|| no_group(stream, group))?;
            depth.in_flight += info.pending;
            let first_unread = if info.lag == Some(0) { None } else { self.first_after(stream, info.read_up_to).await? };
            let ready = match (info.lag, first_unread) {
                (_, None) => 0,
                (Some(lag), _) => lag,
                // After a seek Redis does not count it: what is kept is the most it can be.
                (None, _) => {
                    depth.exact = false;
                    int(&length).and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
                }
            };
            depth.ready += ready;
            let first_pending = items(pending).into_iter().nth(1).and_then(|id| EntryId::of(&id)).map(|id| id.ms);
            depth.oldest = depth.oldest.into_iter().chain(first_pending).chain(first_unread).min();
        }
        Ok(depth)
    }

    async fn first_after(&self, stream: &str, id: EntryId) -> Result<Option<u64>> {
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(stream).arg(id.after()).arg("+").arg("COUNT").arg(1);
        Ok(entries(self.work.call(&cmd, Code::SubscribeFailed).await?).next().map(|(id, _)| id.ms))
    }

    pub(super) async fn read_stream(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        let (shard, mut from) = match from {
            ReadFrom::Position(position) => (position.shard, EntryId::from_offset(position.offset)),
            ReadFrom::Time { shard, at } => (shard, EntryId::at(at)),
        };
        if shard >= topic.shards.max(1) {
            return Err(Error::input("shard", format!("the topic has {} shards", topic.shards)));
        }
        let stream = keys::stream(&topic.name, topic.shards, shard);
        let mut all = Vec::new();
        while all.len() < max {
            let page = PAGE.min(max - all.len());
            let mut cmd = redis::cmd("XRANGE");
            cmd.arg(&*stream).arg(from).arg("+").arg("COUNT").arg(page);
            let before = all.len();
            for (id, fields) in entries(self.work.call(&cmd, Code::SubscribeFailed).await?) {
                from = id.after();
                let entry = envelope::read(fields);
                all.push(Stored {
                    position: Position { shard, offset: id.offset() },
                    id: if let EnvelopeId::Id(id) = entry.id { Some(id) } else { None },
                    key: entry.key,
                    headers: entry.headers,
                    payload: entry.payload.unwrap_or_default(),
                    stored_at: id.ms,
                });
            }
            if all.len() - before < page {
                break;
            }
        }
        Ok(all)
    }

    pub(super) async fn seek_streams(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        let shards = 0..topic.shards.max(1);
        let (shards, up_to) = match to {
            Start::Position { shard, offset } if *shard < topic.shards.max(1) => {
                (*shard..*shard + 1, EntryId::from_offset(*offset).before().to_string())
            }
            Start::Position { .. } => return Err(Error::input("shard", format!("the topic has {} shards", topic.shards))),
            other => (shards, read_up_to(other)?),
        };
        let meta = keys::meta(&topic.name);
        let streams: Vec<_> = shards.clone().map(|shard| keys::stream(&topic.name, topic.shards, shard)).collect();
        let keys: Vec<&str> = [&*meta].into_iter().chain(streams.iter().map(|stream| &**stream)).collect();
        let places: Vec<String> = shards.flat_map(|shard| [keys::round(shard, group), up_to.clone()]).collect();
        let moved = self.work.run(&SEEK, &keys, &[&group, &places], Code::SubscribeFailed).await;
        moved.map(drop).map_err(|error| match error.code() {
            Code::GroupNotFound => no_group(&topic.name, group),
            _ => error,
        })
    }

    /// Memory is full: what every group has settled need not be kept.
    pub(super) async fn make_room(&self, streams: &[Arc<str>]) {
        {
            let mut last = self.room_made.lock();
            if last.is_some_and(|last: Instant| last.elapsed() < ROOM_EVERY) {
                return;
            }
            *last = Some(Instant::now());
        }
        for stream in streams {
            if let Err(error) = self.work.run(&TRIM, &[stream], &[&-1, &0, &-1], Code::SubscribeFailed).await {
                tracing::warn!(%error, "settled entries could not be removed");
            }
        }
    }
}

/// A group as `XINFO GROUPS` tells it.
struct GroupInfo {
    name: Vec<u8>,
    pending: u64,
    read_up_to: EntryId,
    lag: Option<u64>,
}

fn group_infos(value: Value) -> Vec<GroupInfo> {
    let number = |value: &Value| int(value).and_then(|n| u64::try_from(n).ok());
    let info = |fields| {
        let mut info = GroupInfo { name: Vec::new(), pending: 0, read_up_to: EntryId::default(), lag: None };
        for (name, value) in pairs(fields) {
            match &name[..] {
                b"name" => info.name = bytes(value),
                b"pending" => info.pending = number(&value).unwrap_or(0),
                b"last-delivered-id" => info.read_up_to = EntryId::of(&value).unwrap_or_default(),
                b"lag" => info.lag = number(&value),
                _ => {}
            }
        }
        info
    };
    items(value).into_iter().map(info).collect()
}

/// The entries of a reply, each with its fields. What was deleted meanwhile is passed over.
pub(super) fn entries(value: Value) -> impl Iterator<Item = (EntryId, Vec<Value>)> {
    items(value).into_iter().filter_map(|entry| {
        let mut entry = items(entry).into_iter();
        let id = EntryId::of(&entry.next()?)?;
        match entry.next()? {
            Value::Array(fields) => Some((id, fields)),
            _ => None,
        }
    })
}
