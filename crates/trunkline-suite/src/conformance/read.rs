//! Reading without consuming.

use trunkline::MessageId;
use trunkline::delivery::Position;
use trunkline::provider::{Provider, ReadFrom, Stored, TopicSpec};

use super::groups::later;
use crate::member::{ids, same};
use crate::{Bed, Failure, Sent, Verdict};

/// Everything of all shards, read in pages of `page`.
async fn read_all(provider: &dyn Provider, topic: &TopicSpec, page: usize) -> Verdict<Vec<Stored>> {
    let mut all = Vec::new();
    for shard in 0..topic.shards {
        let mut from = ReadFrom::Time { shard, at: 0 };
        loop {
            let stored = provider.read(topic, from, page).await?;
            check!(stored.len() <= page, "{} messages read, of at most {page}", stored.len());
            let Some(last) = stored.last().map(|last| last.position) else { break };
            from = ReadFrom::Position(Position { shard, offset: last.offset + 1 });
            all.extend(stored);
        }
    }
    Ok(all)
}

fn stored_ids(stored: &[Stored]) -> Verdict<Vec<MessageId>> {
    stored.iter().map(|stored| stored.id.ok_or_else(|| Failure::new(format!("no id at {}", stored.position)))).collect()
}

fn sent_ids(sent: &[Sent]) -> Vec<MessageId> {
    sent.iter().map(Sent::id).collect()
}

pub(super) async fn read_gives_what_was_sent(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(3).await?;
    let mut batch = crate::bed::some(&topic, 30);
    for (at, message) in batch.iter_mut().enumerate() {
        message.key = Some(format!("key-{at}").into());
        message.headers.push("n", at.to_string());
        message.headers.push("n", "again");
    }
    let sent = bed.send(&topic, batch).await?;
    let stored = read_all(&*bed.open().await?, &topic, 7).await?;
    same(&stored_ids(&stored)?, &sent_ids(&sent))?;
    for stored in &stored {
        let Some(sent) = sent.iter().find(|sent| Some(sent.id()) == stored.id) else { continue };
        check!(stored.position == sent.position, "confirmed at {}, read at {}", sent.position, stored.position);
        let equal = stored.key == sent.message.key && stored.headers == sent.message.headers && stored.payload == sent.message.payload;
        check!(equal, "what is read at {} is not what was sent", stored.position);
    }
    Ok(())
}

pub(super) async fn read_does_not_consume(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send_some(&topic, 10).await?;
    let before = bed.provider.depth(&topic, &group.name).await?;
    for _ in 0..2 {
        same(&stored_ids(&read_all(&*bed.provider, &topic, 100).await?)?, &sent_ids(&sent))?;
    }
    let after = bed.provider.depth(&topic, &group.name).await?;
    check!(before == after, "depth was {before:?} before a read and {after:?} after");
    same(&ids(&bed.member(&topic, &group).await?.handle(10).await?)?, &sent_ids(&sent))
}

pub(super) async fn read_starts_where_asked(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 10).await?;
    for (from, max) in [(0, 3), (4, 2), (9, 5), (3, 0)] {
        let stored = bed.provider.read(&topic, ReadFrom::Position(sent[from].position), max).await?;
        let wanted = &sent[from..10.min(from + max)];
        check!(stored_ids(&stored)? == sent_ids(wanted), "read {max} from place {from}: not these, or in another order");
    }
    let end = Position { offset: sent[9].position.offset + 1, ..sent[9].position };
    let beyond = bed.provider.read(&topic, ReadFrom::Position(end), 5).await?;
    check!(beyond.is_empty(), "{} messages beyond the last", beyond.len());
    Ok(())
}

pub(super) async fn read_starts_at_a_time(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    bed.send_some(&topic, 4).await?;
    let (sent, time) = later(&bed, &topic, 4).await?;
    let stored = bed.provider.read(&topic, ReadFrom::Time { shard: 0, at: time }, 100).await?;
    check!(stored_ids(&stored)? == sent_ids(&sent), "read from a time: {} messages, not the four stored then", stored.len());
    let stored = bed.provider.read(&topic, ReadFrom::Time { shard: 0, at: time + 3_600_000 }, 100).await?;
    check!(stored.is_empty(), "{} messages an hour from now", stored.len());
    Ok(())
}

pub(super) async fn settled_messages_stay_readable(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 10).await?;
    bed.member(&topic, &group).await?.handle(10).await?;
    same(&stored_ids(&read_all(&*bed.open().await?, &topic, 100).await?)?, &sent_ids(&sent))
}
