//! Producing: an answer for each message, and what an `Ok` means.

use std::collections::HashMap;
use std::sync::Arc;

use trunkline::delivery::Position;
use trunkline::provider::{Outgoing, ReadFrom};
use trunkline::{Code, MessageId};

use crate::bed::{message, send, some};
use crate::member::{ids, same};
use crate::{Bed, Sent, Verdict};

fn sent_ids(sent: &[Sent]) -> Vec<MessageId> {
    sent.iter().map(Sent::id).collect()
}

/// Per shard, each position is higher than the one before.
fn grows(positions: &[Position]) -> Verdict {
    let mut last: HashMap<u32, u64> = HashMap::new();
    for position in positions {
        let before = last.insert(position.shard, position.offset);
        check!(before.is_none_or(|before| before < position.offset), "{position} was confirmed after offset {before:?} of its shard");
    }
    Ok(())
}

pub(super) async fn results_come_in_order(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 100).await?;
    grows(&sent.iter().map(|sent| sent.position).collect::<Vec<_>>())
}

pub(super) async fn positions_grow(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(4).await?;
    let mut all = Vec::new();
    for round in 0..10 {
        let sent = bed.send_some(&topic, 1 + round * 3).await?;
        for sent in &sent {
            check!(Some(sent.position.shard) == sent.message.shard, "sent to shard {:?}, lies at {}", sent.message.shard, sent.position);
        }
        all.extend(sent.iter().map(|sent| sent.position));
    }
    grows(&all)
}

pub(super) async fn results_are_of_their_messages(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    for sent in bed.send_some(&topic, 20).await? {
        let stored = bed.provider.read(&topic, ReadFrom::Position(sent.position), 1).await?;
        let found = stored.first().and_then(|stored| stored.id);
        check!(found == Some(sent.id()), "{} was confirmed at {}, where {found:?} lies", sent.id(), sent.position);
    }
    Ok(())
}

pub(super) async fn too_large_is_refused_alone(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let capabilities = bed.capabilities(&topic);
    let large = message(vec![b'x'; capabilities.max_message_bytes + 1]);
    let batch = vec![message("first"), large, message("last"), message("very last")];
    let wanted: Vec<_> = [0, 2, 3].iter().map(|at| batch[*at].id).collect();
    let results = bed.provider.send(&topic, Arc::new(batch)).await;
    check!(results.len() == 4, "4 messages sent, {} results", results.len());
    for at in [0, 2, 3] {
        check!(results[at].is_ok(), "message {at} was not confirmed beside one that is too large: {:?}", results[at]);
    }
    match &results[1] {
        Ok(position) => check!(false, "a message over the declared maximum was confirmed at {position}"),
        Err(error) => {
            check!(error.error.code() == Code::PayloadTooLarge, "too large was refused as {:?}", error.error);
            check!(!error.retryable, "too large is said to be worth another try");
            check!(!error.ambiguous, "too large is said to be ambiguous");
        }
    }
    if capabilities.lossy {
        return Ok(());
    }
    let mut member = bed.member(&topic, &group).await?;
    same(&ids(&member.handle(3).await?)?, &wanted)?;
    member.nothing("the fourth message was too large").await
}

pub(super) async fn just_fits(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let most = bed.capabilities(&topic).max_message_bytes.min(64 << 20);
    bed.send(&topic, vec![message(vec![b'x'; most])]).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.handle(1).await?;
    let len = got[0].delivery.payload.as_ref().map_or(0, bytes::Bytes::len);
    check!(len == most, "sent {most} bytes, {len} came");
    Ok(())
}

pub(super) async fn nothing_to_send(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    let results = bed.provider.send(&topic, Arc::new(Vec::new())).await;
    check!(results.is_empty(), "no message sent, {} results", results.len());
    Ok(())
}

pub(super) async fn ten_thousand_at_once(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 10_000).await?;
    grows(&sent.iter().map(|sent| sent.position).collect::<Vec<_>>())?;
    let mut member = bed.member(&topic, &group).await?;
    same(&ids(&member.handle(10_000).await?)?, &sent_ids(&sent))
}

/// Eight connections send batches of `batch`, one after the other each. What each sent, in its order.
async fn eight_senders(bed: &Bed, topic: &trunkline::provider::TopicSpec, rounds: usize, batch: usize) -> Verdict<Vec<Vec<Sent>>> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (provider, topic) = (bed.open().await?, topic.clone());
        tasks.spawn(async move {
            let mut sent = Vec::new();
            for _ in 0..rounds {
                sent.extend(send(&*provider, &topic, some(&topic, batch)).await?);
            }
            Verdict::Ok(sent)
        });
    }
    tasks.join_all().await.into_iter().collect()
}

pub(super) async fn eight_senders_at_once(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let by_sender = eight_senders(&bed, &topic, 25, 8).await?;
    let all: Vec<_> = by_sender.concat();
    let mut member = bed.member(&topic, &group).await?;
    let got = member.handle(all.len()).await?;
    same(&ids(&got)?, &sent_ids(&all))?;
    let mut places = HashMap::new();
    for (place, got) in got.iter().enumerate() {
        places.insert(got.id()?, (got.shard, got.delivery.position.offset, place));
    }
    for sent in by_sender {
        grows(&sent.iter().map(|sent| sent.position).collect::<Vec<_>>())?;
        let mut last: HashMap<u32, (u64, usize)> = HashMap::new();
        for sent in sent {
            let (shard, offset, place) = places[&sent.id()];
            let before = last.insert(shard, (offset, place));
            check!(before.is_none_or(|(o, p)| o < offset && p < place), "two messages of one sender changed places in shard {shard}");
        }
    }
    Ok(())
}

pub(super) async fn eight_plain_senders_at_once(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(3).await?;
    let all: Vec<_> = eight_senders(&bed, &topic, 10, 20).await?.concat();
    let mut member = bed.member(&topic, &group).await?;
    same(&ids(&member.handle(all.len()).await?)?, &sent_ids(&all))
}

pub(super) async fn to_a_missing_topic_is_not_confirmed(bed: Bed) -> Verdict {
    let missing = bed.topic_spec(1);
    let batch: Vec<Outgoing> = some(&missing, 2);
    for result in Arc::clone(&bed.provider).send(&missing, Arc::new(batch)).await {
        check!(result.is_err(), "a message to a topic that does not exist was confirmed at {result:?}");
    }
    Ok(())
}
