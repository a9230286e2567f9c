//! Where groups stand. Two groups on the broker make one of ours: the group itself, whose members commit what is settled,
//! and one with `.trunkline` added that never has members, so that anybody may write where the group shall start.
//!
//! Kafka refuses a commit from outside while a group has members. What is written to the second group is followed by the
//! owner of each shard: when it gets the shard, and within a second while it holds it. The number beside it rises with
//! each wish, and the owner writes the number it followed beside its own commits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::topic_partition_list::Offset;
use rdkafka::types::RDKafkaErrorCode as Kafka;

use super::desk::Desk;
use super::error::Fault;
use super::group::add;
use super::mark::Mark;
use super::native::{self, EARLIEST, LATEST, Part, Rk};
use crate::message::now_ms;
use crate::provider::Start;

type Result<T, E = Fault> = std::result::Result<T, E>;

/// One request to the broker may take this long.
pub(super) const REQUEST: Duration = Duration::from_secs(5);

/// The group where wishes are written.
pub(super) fn wishes_of(group: &str) -> String {
    format!("{group}.trunkline")
}

/// Calls again while that can help: coordinators load and move.
pub(super) fn patiently<T>(deadline: Instant, call: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(fault) if fault.passes() && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
}

/// All partitions of a topic.
pub(super) fn all(topic: &str, partitions: u32) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, i32::try_from(partition).unwrap_or(i32::MAX));
    }
    list
}

fn by_key(parts: Vec<Part>) -> HashMap<(String, i32), Part> {
    parts.into_iter().map(|part| ((part.topic.clone(), part.partition), part)).collect()
}

/// Asks the same for each partition.
pub(super) fn offsets_at(rk: Rk, list: &TopicPartitionList, at: i64) -> Result<HashMap<(String, i32), i64>> {
    let mut ask = TopicPartitionList::new();
    for element in list.elements() {
        let mut element = ask.add_partition(element.topic(), element.partition());
        let offset = match at {
            // librdkafka's own numbers for beginning and end are those of the protocol.
            EARLIEST => Offset::Beginning,
            LATEST => Offset::End,
            at => Offset::Offset(at),
        };
        element.set_offset(offset)?;
    }
    let answer = native::list_offsets(rk, &ask, REQUEST).and_then(|parts| {
        let fault = parts.iter().find(|part| part.code != Kafka::NoError);
        fault.map_or(Ok(()), check).map(|()| parts)
    });
    match answer {
        // What this client knows of a topic is older than a restart, or than its newest partition.
        Err(fault) if matches!(fault.code, Kafka::FencedLeaderEpoch | Kafka::UnknownPartition | Kafka::NoEnt) => {
            let mut topics: Vec<String> = ask.elements().iter().map(|element| element.topic().to_owned()).collect();
            topics.dedup();
            topics.iter().try_for_each(|topic| native::refresh(rk, topic, REQUEST))?;
            Err(Fault::new(Kafka::LeaderNotAvailable, fault.to_string()))
        }
        Err(fault) => Err(fault),
        Ok(parts) => Ok(parts.into_iter().map(|part| ((part.topic, part.partition), part.offset)).collect()),
    }
}

/// Where one shard of a group starts.
#[derive(Debug)]
pub(super) struct ShardStart {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) base: i64,
    /// How many offsets lay behind it when it was looked up: nobody had more of the shard in hand.
    pub(super) behind: i64,
    /// What the last owner wrote, unless a wish came after it.
    pub(super) mark: Option<Mark>,
    /// The wish that was followed last.
    pub(super) seek: u64,
    /// What was committed is not in the log any more.
    pub(super) expired: bool,
}

/// What is known of a shard of a group: its own commit, and the last wish.
#[derive(Debug, Default)]
pub(super) struct Known {
    own: Option<(i64, Option<Mark>)>,
    wish: Option<(i64, u64)>,
}

impl Known {
    /// Whether the group is known here.
    pub(super) fn is_some(&self) -> bool {
        self.own.is_some() || self.wish.is_some()
    }

    /// The wish that is not followed yet: offset and number.
    pub(super) fn open_wish(&self, followed: u64) -> Option<(i64, u64)> {
        self.wish.filter(|(_, number)| *number > followed)
    }

    /// The number of the last wish.
    pub(super) fn last_wish(&self) -> u64 {
        self.wish.map_or(0, |(_, number)| number).max(self.followed())
    }

    /// The number of the wish that was followed last.
    pub(super) fn followed(&self) -> u64 {
        self.own.as_ref().and_then(|(_, mark)| mark.as_ref()).map_or(0, |mark| mark.seek)
    }

    /// The offset to go on with, and what is settled from there on.
    pub(super) fn position(&self) -> Option<(i64, &[bool])> {
        if let Some((offset, _)) = self.open_wish(self.followed()) {
            return Some((offset, &[]));
        }
        self.own.as_ref().map(|(offset, mark)| (*offset, mark.as_ref().map_or(&[][..], |mark| &mark.settled)))
    }
}

/// What is known of these shards.
pub(super) fn known(desk: &Desk, group: &str, list: &TopicPartitionList) -> Result<HashMap<(String, i32), Known>> {
    let mut known: HashMap<(String, i32), Known> = HashMap::new();
    for (key, part) in by_key(desk.committed(group, list)?) {
        check(&part)?;
        let own = (part.offset >= 0).then(|| (part.offset, Mark::decode(&part.metadata)));
        known.entry(key).or_default().own = own;
    }
    for (key, wish) in wishes(desk, group, list)? {
        known.entry(key).or_default().wish = Some(wish);
    }
    Ok(known)
}

fn check(part: &Part) -> Result<()> {
    if part.code == Kafka::NoError {
        Ok(())
    } else {
        Err(Fault::new(part.code, format!("partition {} of '{}'", part.partition, part.topic)))
    }
}

/// Where the shards of a list start for their new owner.
pub(super) fn starts(desk: &Desk, group: &str, list: &TopicPartitionList) -> Result<Vec<ShardStart>> {
    let mut known = known(desk, group, list)?;
    let (low, high) = (offsets_at(desk.rk(), list, EARLIEST)?, offsets_at(desk.rk(), list, LATEST)?);
    let mut starts = Vec::new();
    for element in list.elements() {
        let key = (element.topic().to_owned(), element.partition());
        let known = known.remove(&key).unwrap_or_default();
        let (low, high) = (low.get(&key).copied().unwrap_or(0).max(0), high.get(&key).copied().unwrap_or(i64::MAX));
        let wish = known.open_wish(known.followed());
        let seek = wish.map_or(known.followed(), |(_, number)| number);
        let position = known.position().map(|(offset, _)| offset);
        let mark = known.own.and_then(|(_, mark)| mark).map(|mark| match wish {
            // A wish sets everything back but the epoch.
            Some(_) => Mark { clean: true, epoch: mark.epoch, ..Mark::default() },
            None => mark,
        });
        let in_log = |offset: &i64| (low..=high).contains(offset);
        let expired = position.is_some_and(|offset| !in_log(&offset));
        let base = position.filter(in_log).unwrap_or(low);
        let mark = if expired { mark.map(|mark| Mark { settled: Vec::new(), ..mark }) } else { mark };
        let behind = high.saturating_sub(base);
        starts.push(ShardStart { topic: key.0, partition: key.1, base, behind, mark, seek, expired });
    }
    Ok(starts)
}

/// The offset of each shard that a start means. A position names one shard only.
pub(super) fn resolve(rk: Rk, list: &TopicPartitionList, start: &Start) -> Result<HashMap<(String, i32), i64>> {
    match start {
        Start::Earliest => offsets_at(rk, list, EARLIEST),
        Start::Latest => offsets_at(rk, list, LATEST),
        Start::Time(at) => {
            let mut found = offsets_at(rk, list, i64::try_from(*at).unwrap_or(i64::MAX))?;
            if found.values().any(|offset| *offset < 0) {
                // Nothing is stored at or after that time: what comes next is.
                let ends = offsets_at(rk, list, LATEST)?;
                for (key, offset) in found.iter_mut().filter(|(_, offset)| **offset < 0) {
                    *offset = ends.get(key).copied().unwrap_or(0);
                }
            }
            Ok(found)
        }
        Start::Position { shard, offset } => {
            let topic = list.elements().first().map(|element| element.topic().to_owned()).unwrap_or_default();
            let partition = i32::try_from(*shard).unwrap_or(i32::MAX);
            Ok(HashMap::from([((topic, partition), i64::try_from(*offset).unwrap_or(i64::MAX))]))
        }
    }
}

/// The number of the start that a new group is given. A seek's is higher.
const FIRST: u64 = 1;

/// Sets the group back or forth; `after` is the number of the last wish known. Returns the number of this one.
pub(super) fn seek(desk: &Desk, group: &str, offsets: &HashMap<(String, i32), i64>, after: u64) -> Result<u64> {
    let number = now_ms().max(after + 1);
    wish(desk, group, offsets, number).map(|()| number)
}

fn wish(desk: &Desk, group: &str, offsets: &HashMap<(String, i32), i64>, number: u64) -> Result<()> {
    let metadata = Mark { clean: true, seek: number, ..Mark::default() }.encode();
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in offsets {
        add(&mut list, topic, u32::try_from(*partition).unwrap_or(0), *offset, &metadata);
    }
    for part in desk.commit_for(&wishes_of(group), &list)? {
        check(&part)?;
    }
    Ok(())
}

/// Makes a group that is new to a topic start there; one that is known stays where it is. Whether it was new.
///
/// The start is found out before it is looked whether the group is known: if two do this at once, whatever is produced
/// after the first has returned lies behind both starts; and both write the same number, so that an owner follows one.
pub(super) fn ensure_group(desk: &Desk, topic: &str, partitions: u32, group: &str, start: &Start) -> Result<bool> {
    let list = all(topic, partitions);
    let mut offsets = resolve(desk.rk(), &list, start)?;
    let known = known(desk, group, &list)?;
    let new = !known.values().any(Known::is_some);
    if !new {
        // A partition that was added later: its first message is the group's, wherever the group once started.
        offsets = offsets_at(desk.rk(), &list, EARLIEST)?;
    }
    offsets.retain(|key, _| !known.get(key).is_some_and(Known::is_some));
    if !offsets.is_empty() {
        wish(desk, group, &offsets, FIRST)?;
    }
    Ok(new)
}

/// The last wish for each shard: offset and number.
pub(super) fn wishes(desk: &Desk, group: &str, list: &TopicPartitionList) -> Result<HashMap<(String, i32), (i64, u64)>> {
    let mut wishes = HashMap::new();
    for (key, part) in by_key(desk.committed(&wishes_of(group), list)?) {
        check(&part)?;
        if part.offset >= 0 {
            wishes.insert(key, (part.offset, Mark::decode(&part.metadata).map_or(0, |mark| mark.seek)));
        }
    }
    Ok(wishes)
}

/// One partition.
pub(super) fn one(topic: &str, shard: u32) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, i32::try_from(shard).unwrap_or(i32::MAX));
    list
}

/// Forgets a group on a topic.
pub(super) fn remove_group(desk: &Desk, topic: &str, partitions: u32, group: &str) -> Result<()> {
    let list = all(topic, partitions);
    let mut known: Vec<_> = known(desk, group, &list)?.into_iter().filter(|(_, known)| known.is_some()).collect();
    let mut forget = |of: &str, there: &dyn Fn(&Known) -> bool| {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), _) in known.iter_mut().filter(|(_, known)| there(known)) {
            list.add_partition(topic, *partition);
        }
        match desk.delete_committed(of, &list) {
            Err(fault) if fault.code != Kafka::GroupIdNotFound => Err(fault),
            Ok(parts) => parts.iter().try_for_each(check),
            Err(_) => Ok(()),
        }
    };
    // A wish without the group would make it come back.
    forget(&wishes_of(group), &|known| known.wish.is_some())?;
    forget(group, &|known| known.own.is_some())
}

/// For each shard of a group: the first offset that waits, and how many do. `None` if the group is not known.
pub(super) fn waiting(desk: &Desk, topic: &str, partitions: u32, group: &str) -> Result<Option<Vec<(u32, i64, u64)>>> {
    let list = all(topic, partitions);
    let known = known(desk, group, &list)?;
    if !known.values().any(Known::is_some) {
        return Ok(None);
    }
    let (low, high) = (offsets_at(desk.rk(), &list, EARLIEST)?, offsets_at(desk.rk(), &list, LATEST)?);
    let mut waiting = Vec::new();
    for (key, known) in &known {
        let (low, high) = (low.get(key).copied().unwrap_or(0), high.get(key).copied().unwrap_or(0));
        let (first, settled) = known.position().unwrap_or((low, &[]));
        let (first, settled) = if (low..=high).contains(&first) { (first, settled) } else { (low, &[][..]) };
        let beyond = settled.iter().filter(|settled| **settled).count() as u64;
        let n = u64::try_from(high - first).unwrap_or(0).saturating_sub(beyond);
        waiting.push((u32::try_from(key.1).unwrap_or(0), first, n));
    }
    Ok(Some(waiting))
}

/// Sets a known group to a start. Returns the number of the wish.
pub(super) fn set_back(desk: &Desk, topic: &str, partitions: u32, group: &str, to: &Start) -> Result<u64> {
    let list = all(topic, partitions);
    let known = known(desk, group, &list)?;
    if !known.values().any(Known::is_some) {
        return Err(Fault::new(Kafka::GroupIdNotFound, format!("group '{group}' is not known on topic '{topic}'")));
    }
    let after = known.values().map(Known::last_wish).max().unwrap_or(0);
    seek(desk, group, &resolve(desk.rk(), &list, to)?, after)
}

/// Waits until every shard that a live member owns has followed the wish of this number.
pub(super) fn wait_followed(desk: &Desk, topic: &str, group: &str, number: u64, deadline: Instant) -> Result<bool> {
    loop {
        let mut list = TopicPartitionList::new();
        for part in desk.owned(group)?.iter().filter(|part| part.topic == topic) {
            list.add_partition(topic, part.partition);
        }
        let wishes = wishes(desk, group, &list)?;
        let open = known(desk, group, &list)?.into_iter().any(|(key, known)| {
            // A position names one shard only: the others have nothing to follow.
            wishes.get(&key).is_some_and(|(_, wish)| *wish >= number) && known.followed() < number
        });
        if !open || Instant::now() >= deadline {
            return Ok(!open);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}
