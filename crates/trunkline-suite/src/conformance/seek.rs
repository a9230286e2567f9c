//! Setting a group back and forth, with members that live.

use trunkline::provider::{Start, TopicSpec};

use super::groups::later;
use crate::member::{ids, same};
use crate::{Bed, Sent, Verdict};

fn sent_ids(sent: &[Sent]) -> Vec<trunkline::MessageId> {
    sent.iter().map(Sent::id).collect()
}

async fn seek(bed: &Bed, topic: &TopicSpec, group: &str, to: Start) -> Verdict {
    Ok(bed.open().await?.seek(topic, group, &to).await?)
}

pub(super) async fn seek_to_the_oldest(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send_some(&topic, 10).await?;
    let mut member = bed.member(&topic, &group).await?;
    for _ in 0..3 {
        same(&ids(&member.handle(10).await?)?, &sent_ids(&sent))?;
        member.nothing("everything was handled").await?;
        seek(&bed, &topic, &group.name, Start::Earliest).await?;
    }
    member.close().await;
    let mut next = bed.stranger(&topic, &group).await?;
    same(&ids(&next.handle(10).await?)?, &sent_ids(&sent))
}

pub(super) async fn seek_to_the_latest(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    bed.send_some(&topic, 10).await?;
    seek(&bed, &topic, &group.name, Start::Latest).await?;
    let depth = bed.provider.depth(&topic, &group.name).await?;
    check!(depth.ready == 0 || !depth.exact, "set to the latest, and {} wait", depth.ready);
    let sent = bed.send_some(&topic, 3).await?;
    let mut member = bed.member(&topic, &group).await?;
    same(&ids(&member.handle(3).await?)?, &sent_ids(&sent))?;
    member.nothing("the others were skipped").await
}

pub(super) async fn seek_to_a_time(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let early = bed.send_some(&topic, 5).await?;
    let (late, time) = later(&bed, &topic, 5).await?;
    let mut member = bed.member(&topic, &group).await?;
    same(&ids(&member.handle(10).await?)?, &sent_ids(&[early, late.clone()].concat()))?;
    seek(&bed, &topic, &group.name, Start::Time(time)).await?;
    same(&ids(&member.handle(5).await?)?, &sent_ids(&late))?;
    member.nothing("the others were stored before that time").await
}

pub(super) async fn seek_to_a_position_moves_one_shard(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send_some(&topic, 20).await?;
    let mut member = bed.member(&topic, &group).await?;
    member.handle(20).await?;
    let of_shard: Vec<_> = sent.iter().filter(|sent| sent.position.shard == 1).cloned().collect();
    let to = of_shard[4].position;
    seek(&bed, &topic, &group.name, Start::Position { shard: to.shard, offset: to.offset }).await?;
    let again = ids(&member.handle(of_shard.len() - 4).await?)?;
    check!(again == sent_ids(&of_shard[4..]), "set to {to}: not what lies from there on, or in another order");
    member.nothing("the other shard was not moved").await
}

pub(super) async fn seek_while_messages_are_held(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 10).await?;
    let mut member = bed.member(&topic, &group).await?;
    let held = member.take(6).await?;
    member.done(&held[..2]).await?;
    seek(&bed, &topic, &group.name, Start::Earliest).await?;
    // Whatever the old settles are answered, they settle nothing of what is handed out from now on.
    let answers = member.settle(&held[2..4], trunkline::delivery::Settle::Done).await?;
    let mut got = ids(&member.handle(10).await?)?;
    got.sort_unstable();
    let mut wanted = sent_ids(&sent);
    wanted.sort_unstable();
    check!(got == wanted, "set to the oldest while messages were held (late settles {answers:?}): not all ten came once");
    Ok(())
}

pub(super) async fn seek_moves_one_group(bed: Bed) -> Verdict {
    let (topic, first) = bed.topic(1).await?;
    let second = bed.group_spec();
    bed.provider.ensure(&topic, &[first.clone(), second.clone()]).await?;
    bed.send_some(&topic, 5).await?;
    let (mut a, mut b) = (bed.member(&topic, &first).await?, bed.member(&topic, &second).await?);
    a.handle(5).await?;
    b.handle(5).await?;
    seek(&bed, &topic, &first.name, Start::Earliest).await?;
    a.handle(5).await?;
    b.nothing("the other group was set back").await
}
