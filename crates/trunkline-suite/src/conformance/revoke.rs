//! Handing a shard over: asked for, waited for, and in the end taken.

use std::time::{Duration, Instant};

use trunkline::delivery::{Settle, Settled};

use super::members::handle_together;
use crate::member::{Change, ids, same};
use crate::{Bed, Member, Sent, Verdict};

/// Steps both members until `told`; nothing is sent meanwhile.
async fn settle_down(bed: &Bed, members: &mut [Member], what: &str, told: impl Fn(&[Member]) -> bool) -> Verdict {
    let end = bed.give_up();
    while !told(members) {
        check!(Instant::now() < end, "waited in vain until {what}; told {:?}", members.iter().map(|m| &m.changes).collect::<Vec<_>>());
        for member in &mut *members {
            let got = member.step(16, usize::MAX, Duration::from_millis(10)).await?;
            member.done(&got).await?;
        }
    }
    Ok(())
}

pub(super) async fn a_yielded_shard_moves(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let mut first = bed.stranger(&topic, &group).await?;
    first.until("all shards are assigned", |member| member.owns(0).len() == 4).await?;
    let mut members = [first, bed.stranger(&topic, &group).await?];
    settle_down(&bed, &mut members, "each member owns two shards", |m| m.iter().all(|m| m.owns(0).len() == 2)).await?;
    check!(members[0].owns(0).is_disjoint(&members[1].owns(0)), "two members own the same shard");
    let sent = bed.send_some(&topic, 40).await?;
    let got = handle_together(&bed, &mut members, 40).await?;
    same(&ids(&got)?, &sent.iter().map(Sent::id).collect::<Vec<_>>())
}

fn revoked(member: &Member) -> Option<(u32, Instant)> {
    member.changes.iter().find_map(|(_, shard, change)| match change {
        Change::Revoking(deadline) => Some((*shard, *deadline)),
        _ => None,
    })
}

/// A member that holds one message of each of two shards, one of which is being revoked for another member.
async fn revoking(bed: &Bed) -> Verdict<(Member, Member, Vec<crate::Got>, u32, Instant)> {
    let (topic, group) = bed.topic(2).await?;
    let mut holder = bed.stranger(&topic, &group).await?;
    holder.yields = false;
    holder.until("all shards are assigned", |member| member.owns(0).len() == 2).await?;
    bed.send_some(&topic, 2).await?;
    let held = holder.take(2).await?;
    let other = bed.stranger(&topic, &group).await?;
    let late = holder.until("a shard is revoked", |member| revoked(member).is_some()).await?;
    check!(late.is_empty(), "messages that were never sent");
    let (shard, deadline) = revoked(&holder).unwrap_or((0, Instant::now()));
    check!(deadline > Instant::now(), "a shard is to be given up at a time that has passed");
    Ok((holder, other, held, shard, deadline))
}

pub(super) async fn a_shard_waits_to_be_yielded(bed: Bed) -> Verdict {
    let (mut holder, mut other, held, shard, deadline) = revoking(&bed).await?;
    let before = (deadline - Instant::now()) / 2;
    let early = other.within(before.min(Duration::from_secs(2))).await?;
    check!(early.is_empty(), "shard {shard} was handed out to another before it was given up");
    check!(other.owns(0).is_empty(), "shard {shard} was assigned to another before it was given up");
    if Instant::now() < deadline {
        holder.done(&held).await?;
        holder.subscription.yield_shard(0, shard).await;
        other.until("the yielded shard is assigned", |member| member.owns(0).contains(&shard)).await?;
        other.nothing("its messages were settled before it was given up").await?;
    }
    Ok(())
}

pub(super) async fn a_shard_that_is_not_yielded_is_lost(bed: Bed) -> Verdict {
    let (mut holder, mut other, held, shard, deadline) = revoking(&bed).await?;
    let lost: Vec<_> = held.iter().filter(|got| got.shard == shard).cloned().collect();
    let end = deadline + bed.pace.patience;
    let mut stolen = Vec::new();
    while !holder.changes.contains(&(0, shard, Change::Lost)) || stolen.len() < lost.len() {
        check!(Instant::now() < end, "told {:?}; {} of {} messages moved", holder.changes, stolen.len(), lost.len());
        holder.step(4, usize::MAX, Duration::from_millis(20)).await?;
        let got = other.step(4, usize::MAX, Duration::from_millis(20)).await?;
        check!(got.is_empty() || Instant::now() >= deadline, "shard {shard} was taken away before its deadline");
        stolen.extend(got);
    }
    same(&ids(&stolen)?, &ids(&lost)?)?;
    check!(stolen[0].epoch > lost[0].epoch, "epoch {} after {}", stolen[0].epoch, lost[0].epoch);
    let answers = holder.settle(&lost, Settle::Done).await?;
    check!(answers == [Settled::Stale], "a settle of a lost shard was answered {answers:?}");
    other.done(&stolen).await?;
    let kept: Vec<_> = held.into_iter().filter(|got| got.shard != shard).collect();
    holder.done(&kept).await
}

pub(super) async fn the_last_member_gets_all_shards(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let mut members = vec![bed.stranger(&topic, &group).await?, bed.stranger(&topic, &group).await?];
    settle_down(&bed, &mut members, "each member owns two shards", |m| m.iter().all(|m| m.owns(0).len() == 2)).await?;
    members.remove(0).close().await;
    settle_down(&bed, &mut members, "the last member owns all shards", |m| m[0].owns(0).len() == 4).await?;
    let sent = bed.send_some(&topic, 20).await?;
    let got = handle_together(&bed, &mut members, 20).await?;
    same(&ids(&got)?, &sent.iter().map(Sent::id).collect::<Vec<_>>())
}
