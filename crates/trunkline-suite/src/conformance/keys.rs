//! Ordered topics whose keys the broker itself gives to one member at a time: no shard has an owner, and a key that is in
//! hand is nobody else's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use trunkline::MessageId;
use trunkline::delivery::Settle;
use trunkline::provider::{Outgoing, TopicSpec, shard_of};

use crate::bed::message;
use crate::member::{ids, same};
use crate::{Bed, Got, Member, Sent, Verdict};

/// `n` messages, the keys taking turns.
fn of_keys(topic: &TopicSpec, keys: &[&str], n: usize) -> Vec<Outgoing> {
    (0..n)
        .map(|at| {
            let key = Bytes::from(keys[at % keys.len()].to_owned());
            Outgoing { shard: Some(shard_of(&key, topic.shards)), key: Some(key), ..message(format!("{{\"n\":{at}}}")) }
        })
        .collect()
}

/// Each key's messages came in the order they were sent in, none was left out, none came twice.
fn in_order(handled: &[Got], sent: &[Sent]) -> Verdict {
    let mut by_key: HashMap<&Option<Bytes>, Vec<MessageId>> = HashMap::new();
    for sent in sent {
        by_key.entry(&sent.message.key).or_default().push(sent.id());
    }
    for (key, wanted) in by_key {
        let of_key: Vec<Got> = handled.iter().filter(|got| got.delivery.key == *key).cloned().collect();
        let came = ids(&of_key)?;
        let first = came.iter().zip(&wanted).position(|(came, wanted)| came != wanted);
        check!(first.is_none(), "key {key:?} left its order at place {first:?} of {}", wanted.len());
        check!(came.len() == wanted.len(), "{} of {} messages of key {key:?} were handled", came.len(), wanted.len());
    }
    Ok(())
}

/// Steps each member in turn; what it gets is handled at once, one after the other.
async fn together(bed: &Bed, members: &mut [Member], n: usize) -> Verdict<Vec<Got>> {
    let end = bed.give_up();
    let mut all = Vec::new();
    while all.len() < n {
        check!(std::time::Instant::now() < end, "{} of {n} messages came to {} members", all.len(), members.len());
        for member in &mut *members {
            let got = member.step(16, usize::MAX, Duration::from_millis(20)).await?;
            member.done(&got).await?;
            all.extend(got);
        }
    }
    Ok(all)
}

pub(super) async fn a_key_keeps_its_order(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let keys = ["a", "b", "c", "d", "e", "f", "g"];
    let mut members = [bed.stranger(&topic, &group).await?, bed.stranger(&topic, &group).await?];
    let mut sent = bed.send(&topic, of_keys(&topic, &keys, 70)).await?;
    let mut handled = together(&bed, &mut members, 30).await?;
    sent.extend(bed.send(&topic, of_keys(&topic, &keys, 70)).await?);
    let rest = sent.len() - handled.len();
    handled.extend(together(&bed, &mut members, rest).await?);
    in_order(&handled, &sent)
}

pub(super) async fn a_key_in_hand_is_nobody_elses(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let first = bed.send(&topic, of_keys(&topic, &["held"], 3)).await?;
    let mut holder = bed.stranger(&topic, &group).await?;
    let mut held = holder.take(1).await?;
    let mut other = bed.stranger(&topic, &group).await?;
    let others = bed.send(&topic, of_keys(&topic, &["x", "y", "held"], 9)).await?;
    let free: Vec<_> = others.iter().filter(|sent| sent.message.key.as_deref() != Some(b"held")).collect();
    // The holder may have some of them, as any member.
    let mut members = [other, holder];
    let mut seen: HashSet<MessageId> = HashSet::new();
    let end = bed.give_up();
    while !free.iter().all(|sent| seen.contains(&sent.id())) {
        check!(std::time::Instant::now() < end, "a key in hand holds up the others");
        for (who, member) in members.iter_mut().enumerate() {
            let (of_held, rest): (Vec<_>, Vec<_>) = member
                .step(8, usize::MAX, Duration::from_millis(50))
                .await?
                .into_iter()
                .partition(|got| got.delivery.key.as_deref() == Some(b"held"));
            check!(who == 1 || of_held.is_empty(), "a key that is in hand came to another member");
            held.extend(of_held);
            member.done(&rest).await?;
            seen.extend(ids(&rest)?);
        }
    }
    let [mut free_member, mut holder] = members;
    free_member.nothing("the key is in another member's hand").await?;
    holder.done(&held).await?;
    other = free_member;
    let mut members = [other, holder];
    let all: Vec<_> = first.into_iter().chain(others.into_iter().filter(|sent| sent.message.key.as_deref() == Some(b"held"))).collect();
    let rest = all.len() - held.len();
    held.extend(together(&bed, &mut members, rest).await?);
    in_order(&held, &all)
}

pub(super) async fn what_waits_holds_its_key(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send(&topic, of_keys(&topic, &["waits", "goes"], 8)).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let (mut handled, mut retried) = (Vec::new(), false);
    let end = bed.give_up();
    while handled.len() < 8 {
        check!(std::time::Instant::now() < end, "{} of 8 messages were handled", handled.len());
        let got = member.step(16, usize::MAX, Duration::from_millis(200)).await?;
        let (waits, goes): (Vec<_>, Vec<_>) = got.into_iter().partition(|got| got.delivery.key.as_deref() == Some(b"waits"));
        member.done(&goes).await?;
        handled.extend(goes);
        if retried {
            member.done(&waits).await?;
            handled.extend(waits);
        } else if let Some((head, behind)) = waits.split_first() {
            // What is behind it in hand is given back; it must not come before.
            let asked = std::time::Instant::now();
            member.settled(std::slice::from_ref(head), Settle::Retry { after: Duration::from_secs(1), counted: true }).await?;
            member.settled(behind, Settle::Release).await?;
            retried = true;
            let again = member.take(1).await?;
            let (waits, goes): (Vec<_>, Vec<_>) = again.into_iter().partition(|got| got.delivery.key.as_deref() == Some(b"waits"));
            if let Some(first) = waits.first() {
                check!(first.id()? == head.id()?, "what follows a message that waits came before it");
                check!(first.at - asked >= Duration::from_millis(998), "a message came after {:?}, to wait a second", first.at - asked);
            }
            member.done(&goes).await?;
            member.done(&waits).await?;
            handled.extend(goes);
            handled.extend(waits);
        }
    }
    in_order(&handled, &sent)
}

pub(super) async fn what_is_released_comes_before_what_follows(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send(&topic, of_keys(&topic, &["a", "b"], 24)).await?;
    for take in [1, 5, 9] {
        let mut member = bed.stranger(&topic, &group).await?;
        for got in member.take(take).await? {
            let of_key = sent.iter().filter(|sent| sent.message.key == got.delivery.key).position(|sent| Some(sent.id()) == got.id().ok());
            check!(of_key.is_some_and(|place| place < take), "nothing is settled, and the message at place {of_key:?} of its key came");
        }
        member.close().await;
    }
    let mut members = [bed.stranger(&topic, &group).await?];
    in_order(&together(&bed, &mut members, 24).await?, &sent)
}

pub(super) async fn order_of_keys_holds_while_members_change(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let keys = ["a", "b", "c", "d", "e"];
    let mut members = vec![bed.stranger(&topic, &group).await?];
    let (mut sent, mut handled) = (Vec::new(), Vec::new());
    for round in 0..6 {
        sent.extend(bed.send(&topic, of_keys(&topic, &keys, 20)).await?);
        handled.extend(together(&bed, &mut members, 8).await?);
        match round % 3 {
            0 => members.push(bed.stranger(&topic, &group).await?),
            1 => {
                members.push(bed.stranger(&topic, &group).await?);
                members.remove(0).close().await;
            }
            // One dies without a word.
            _ => drop(members.remove(0)),
        }
    }
    let rest = sent.len() - handled.len();
    let end = bed.give_up() + bed.takeover(&topic) * 2;
    while handled.len() < sent.len() && std::time::Instant::now() < end {
        for member in &mut members {
            let got = member.step(16, usize::MAX, Duration::from_millis(50)).await?;
            member.done(&got).await?;
            handled.extend(got);
        }
    }
    check!(handled.len() >= sent.len(), "{} of the last {rest} messages came", rest + handled.len() - sent.len());
    same(&ids(&handled)?, &sent.iter().map(Sent::id).collect::<Vec<_>>())?;
    in_order(&handled, &sent)
}
