//! Ordered topics: the order of a shard, and its one owner.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::members::handle_together;
use crate::member::{Change, ids, same};
use crate::{Bed, Got, Member, Sent, Verdict};

/// What came, per shard, is exactly what was sent, in that order.
fn in_order(got: &[Got], sent: &[Sent]) -> Verdict {
    let shards: HashSet<_> = sent.iter().map(|sent| sent.position.shard).collect();
    for shard in shards {
        let wanted: Vec<_> = sent.iter().filter(|sent| sent.position.shard == shard).map(Sent::id).collect();
        let came = ids(&got.iter().filter(|got| got.shard == shard).cloned().collect::<Vec<_>>())?;
        let first = came.iter().zip(&wanted).position(|(came, wanted)| came != wanted);
        check!(first.is_none(), "shard {shard} left the order of its {} messages at place {first:?}", wanted.len());
        check!(came.len() == wanted.len(), "{} of {} messages of shard {shard} came", came.len(), wanted.len());
    }
    Ok(())
}

pub(super) async fn a_shard_keeps_its_order(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let mut member = bed.member(&topic, &group).await?;
    let mut sent = bed.send_some(&topic, 200).await?;
    let mut got = member.take(100).await?;
    sent.extend(bed.send_some(&topic, 200).await?);
    got.extend(member.take(300).await?);
    in_order(&got, &sent)?;
    member.done(&got).await
}

pub(super) async fn a_message_lies_in_its_shard(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(5).await?;
    let sent = bed.send_some(&topic, 50).await?;
    let mut member = bed.member(&topic, &group).await?;
    for got in member.handle(50).await? {
        let id = got.id()?;
        let wanted = sent.iter().find(|sent| sent.id() == id).map(|sent| (sent.message.shard, sent.position));
        let came = (Some(got.shard), got.delivery.position);
        check!(wanted == Some(came), "sent to and confirmed at {wanted:?}, came at {came:?}");
    }
    Ok(())
}

/// Under which ownership each shard was last seen.
#[derive(Default)]
struct Owners(HashMap<u32, (u64, usize)>);

impl Owners {
    /// Notes what a member was told and given since `told`. Nobody may be behind another.
    fn note(&mut self, who: usize, member: &Member, told: &mut usize, got: &[Got]) -> Verdict {
        for (_, shard, change) in &member.changes[*told..] {
            if let Change::Assigned(epoch) = change {
                let before = self.0.insert(*shard, (*epoch, who));
                check!(before.is_none_or(|(last, _)| last < *epoch), "shard {shard} was assigned with epoch {epoch} after {before:?}");
            }
        }
        *told = member.changes.len();
        for got in got {
            let owner = self.0.get(&got.shard);
            check!(
                owner == Some(&(got.epoch, who)),
                "member {who} was given shard {} under epoch {}, while (epoch, member) {owner:?} owns it",
                got.shard,
                got.epoch
            );
        }
        Ok(())
    }
}

pub(super) async fn a_shard_has_one_owner(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let mut members = vec![(bed.stranger(&topic, &group).await?, 0)];
    let mut owners = Owners::default();
    let (mut sent, mut handled) = (0, Vec::new());
    let end = bed.give_up();
    while sent < 300 || handled.len() < sent {
        check!(std::time::Instant::now() < end, "{} of {sent} messages were handled", handled.len());
        if sent < 300 {
            sent += bed.send_some(&topic, 12).await?.len();
        }
        if members.len() < 3 && handled.len() > members.len() * 60 {
            members.push((bed.stranger(&topic, &group).await?, 0));
        }
        for (who, (member, told)) in members.iter_mut().enumerate() {
            let got = member.step(8, usize::MAX, Duration::from_millis(3)).await?;
            owners.note(who, member, told, &got)?;
            member.done(&got).await?;
            handled.extend(ids(&got)?);
        }
    }
    let once: HashSet<_> = handled.iter().collect();
    check!(once.len() == handled.len(), "{} messages were handled twice", handled.len() - once.len());
    check!(members.len() == 3, "only {} members joined", members.len());
    Ok(())
}

pub(super) async fn epochs_rise(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(3).await?;
    let mut last: HashMap<u32, u64> = HashMap::new();
    for round in 0..4 {
        let mut member = bed.stranger(&topic, &group).await?;
        member.until("all shards are assigned", |member| member.owns(0).len() == 3).await?;
        bed.send_some(&topic, 6).await?;
        for got in member.handle(6).await? {
            let before = last.get(&got.shard);
            check!(before.is_none_or(|before| *before < got.epoch), "round {round}: epoch {} after {before:?}", got.epoch);
        }
        for (_, shard, change) in &member.changes {
            if let Change::Assigned(epoch) = change {
                last.insert(*shard, *epoch);
            }
        }
        // Leaves in peace and without a word by turns.
        if round % 2 == 0 { member.close().await } else { drop(member) }
    }
    Ok(())
}

pub(super) async fn a_new_owner_goes_on_in_order(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 40).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let got = member.take(20).await?;
    member.done(&got[..5]).await?;
    member.done(&got[8..9]).await?;
    drop(member);
    let rest: Vec<_> = sent.into_iter().enumerate().filter(|(at, _)| *at >= 5 && *at != 8).map(|(_, sent)| sent).collect();
    let mut next = bed.stranger(&topic, &group).await?;
    let mut came = Vec::new();
    let end = bed.give_up() + bed.takeover(&topic);
    while came.len() < rest.len() {
        check!(std::time::Instant::now() < end, "{} of {} messages came to the new owner", came.len(), rest.len());
        let more = next.step(7, usize::MAX, Duration::from_millis(500)).await?;
        next.done(&more).await?;
        came.extend(more);
    }
    in_order(&came, &rest)
}

pub(super) async fn order_holds_while_members_change(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let mut members = vec![bed.stranger(&topic, &group).await?];
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..8 {
        sent.extend(bed.send_some(&topic, 24).await?);
        got.extend(handle_together(&bed, &mut members, 12).await?);
        if round % 3 == 2 {
            members.remove(0).close().await;
        } else {
            members.push(bed.stranger(&topic, &group).await?);
        }
    }
    let rest = sent.len() - got.len();
    got.extend(handle_together(&bed, &mut members, rest).await?);
    same(&ids(&got)?, &sent.iter().map(Sent::id).collect::<Vec<_>>())?;
    in_order(&got, &sent)
}

pub(super) async fn what_comes_again_comes_before_what_follows(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send_some(&topic, 60).await?;
    for take in [1, 10, 25] {
        let mut member = bed.stranger(&topic, &group).await?;
        let got = member.take(take).await?;
        for got in &got {
            let place = sent.iter().filter(|sent| sent.position.shard == got.shard).position(|sent| Some(sent.id()) == got.id().ok());
            check!(
                place.is_some_and(|place| place < take),
                "nothing is settled, and the message at place {place:?} is among the first {take}"
            );
        }
        member.close().await;
    }
    let mut member = bed.stranger(&topic, &group).await?;
    in_order(&member.handle(60).await?, &sent)
}
