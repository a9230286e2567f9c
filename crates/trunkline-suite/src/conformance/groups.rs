//! Groups: each gets everything, from where it starts.

use std::time::Duration;

use trunkline::MessageId;
use trunkline::provider::{GroupSpec, Start, TopicSpec};

use crate::member::{ids, same};
use crate::{Bed, Sent, Verdict};

fn sent_ids(sent: &[Sent]) -> Vec<MessageId> {
    sent.iter().map(Sent::id).collect()
}

pub(super) async fn every_confirmed_message_comes(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let mut member = bed.member(&topic, &group).await?;
    for size in [1, 7, 30, 2, 100] {
        let sent = bed.send_some(&topic, size).await?;
        same(&ids(&member.handle(size).await?)?, &sent_ids(&sent))?;
    }
    member.nothing("everything was handled").await
}

pub(super) async fn each_group_gets_everything(bed: Bed) -> Verdict {
    let (topic, first) = bed.topic(2).await?;
    let groups = [first, bed.group_spec(), bed.group_spec()];
    bed.provider.ensure(&topic, &groups).await?;
    let sent = bed.send_some(&topic, 50).await?;
    for group in &groups {
        let mut member = bed.member(&topic, group).await?;
        same(&ids(&member.handle(50).await?)?, &sent_ids(&sent))?;
        member.nothing("everything was handled").await?;
        member.close().await;
    }
    Ok(())
}

pub(super) async fn groups_settle_on_their_own(bed: Bed) -> Verdict {
    let (topic, first) = bed.topic(1).await?;
    let second = bed.group_spec();
    bed.provider.ensure(&topic, &[first.clone(), second.clone()]).await?;
    let sent = bed.send_some(&topic, 10).await?;
    let (mut a, mut b) = (bed.member(&topic, &first).await?, bed.member(&topic, &second).await?);
    a.handle(10).await?;
    let held = b.take(10).await?;
    same(&ids(&held)?, &sent_ids(&sent))?;
    b.close().await;
    let mut b = bed.stranger(&topic, &second).await?;
    same(&ids(&b.handle(10).await?)?, &sent_ids(&sent))?;
    a.nothing("the other group's messages are not this one's").await
}

pub(super) async fn nobody_needs_to_listen(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let mut sent = Vec::new();
    for _ in 0..5 {
        let sender = bed.open().await?;
        sent.extend(crate::bed::send(&*sender, &topic, crate::bed::some(&topic, 4)).await?);
        sender.close(bed.give_up()).await;
    }
    let mut member = bed.stranger(&topic, &group).await?;
    same(&ids(&member.handle(20).await?)?, &sent_ids(&sent))
}

pub(super) async fn a_new_group_starts_with_the_oldest(bed: Bed) -> Verdict {
    let (topic, first) = bed.topic(2).await?;
    let sent = bed.send_some(&topic, 10).await?;
    bed.member(&topic, &first).await?.handle(10).await?;
    let late = bed.group_spec();
    bed.provider.ensure(&topic, std::slice::from_ref(&late)).await?;
    same(&ids(&bed.member(&topic, &late).await?.handle(10).await?)?, &sent_ids(&sent))
}

pub(super) async fn a_new_group_starts_with_the_latest(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(2).await?;
    bed.send_some(&topic, 10).await?;
    let late = GroupSpec { start: Start::Latest, ..bed.group_spec() };
    bed.provider.ensure(&topic, std::slice::from_ref(&late)).await?;
    // What comes after `ensure` is the group's, whether or not anybody listens yet.
    let sent = bed.send_some(&topic, 5).await?;
    let mut member = bed.member(&topic, &late).await?;
    same(&ids(&member.handle(5).await?)?, &sent_ids(&sent))?;
    member.nothing("the group starts with the latest").await
}

pub(super) async fn a_new_group_starts_at_a_time(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    bed.send_some(&topic, 5).await?;
    let (sent, time) = later(&bed, &topic, 5).await?;
    let late = GroupSpec { start: Start::Time(time), ..bed.group_spec() };
    bed.provider.ensure(&topic, std::slice::from_ref(&late)).await?;
    let mut member = bed.member(&topic, &late).await?;
    same(&ids(&member.handle(5).await?)?, &sent_ids(&sent))?;
    member.nothing("the others were stored before that time").await
}

/// Sends `n` messages that are stored later than all before, and says from when on, by the broker's clock.
pub(super) async fn later(bed: &Bed, topic: &TopicSpec, n: usize) -> Verdict<(Vec<Sent>, u64)> {
    // Nothing but time itself tells two milliseconds apart.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let sent = bed.send_some(topic, n).await?;
    let from = trunkline::provider::ReadFrom::Position(sent[0].position);
    let stored = bed.provider.read(topic, from, 1).await?;
    check!(!stored.is_empty(), "what was confirmed at {} cannot be read", sent[0].position);
    Ok((sent, stored[0].stored_at))
}

pub(super) async fn many_routes_in_one_subscription(bed: Bed) -> Verdict {
    let group = bed.group_spec();
    let routes: Vec<_> = (0..8).map(|at| bed.topic_spec(1 + at % 3)).collect();
    for route in &routes {
        bed.provider.ensure(route, std::slice::from_ref(&group)).await?;
    }
    let mut member = bed.member_on(&bed.provider, &routes, &group, crate::bed::PREFETCH).await?;
    let mut sent = Vec::new();
    for (at, route) in routes.iter().enumerate() {
        sent.extend(bed.send_some(route, 5).await?.into_iter().map(|sent| (sent.id(), at)));
    }
    let got = member.handle(40).await?;
    same(&ids(&got)?, &sent.iter().map(|(id, _)| *id).collect::<Vec<_>>())?;
    for got in got {
        let id = got.id()?;
        let route = sent.iter().find(|(sent, _)| *sent == id).map(|(_, route)| *route);
        check!(route == Some(got.route), "sent to route {route:?}, came as of route {}", got.route);
    }
    member.nothing("everything was handled").await
}

pub(super) async fn routes_of_one_subscription_settle_apart(bed: Bed) -> Verdict {
    let group = bed.group_spec();
    let routes = [bed.topic_spec(1), bed.topic_spec(1)];
    for route in &routes {
        bed.provider.ensure(route, std::slice::from_ref(&group)).await?;
        bed.send_some(route, 5).await?;
    }
    let provider = bed.open().await?;
    let mut member = bed.member_on(&provider, &routes, &group, crate::bed::PREFETCH).await?;
    let got = member.take(10).await?;
    let (done, held): (Vec<_>, Vec<_>) = got.into_iter().partition(|got| got.route == 0);
    member.done(&done).await?;
    member.close().await;
    let mut member = bed.member_on(&bed.open().await?, &routes, &group, crate::bed::PREFETCH).await?;
    let again = member.handle(5).await?;
    same(&ids(&again)?, &ids(&held)?)?;
    check!(again.iter().all(|got| got.route == 1), "what was settled on one route came again");
    member.nothing("the rest was settled").await
}
