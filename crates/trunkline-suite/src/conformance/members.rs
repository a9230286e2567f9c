//! Members of one group: they compete, come, go and die.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use trunkline::delivery::{Settle, Settled};
use trunkline::provider::Signal;

use crate::bed::PREFETCH;
use crate::member::{ids, same};
use crate::{Bed, Failure, Got, Member, Sent, Verdict};

fn sent_ids(sent: &[Sent]) -> Vec<trunkline::MessageId> {
    sent.iter().map(Sent::id).collect()
}

/// Steps each member in turn, settling what comes, until `n` were handled.
pub(super) async fn handle_together(bed: &Bed, members: &mut [Member], n: usize) -> Verdict<Vec<Got>> {
    let end = bed.give_up();
    let mut all = Vec::new();
    while all.len() < n {
        check!(std::time::Instant::now() < end, "{} of {n} messages came to {} members", all.len(), members.len());
        for member in &mut *members {
            let got = member.step(16, usize::MAX, Duration::from_millis(5)).await?;
            member.done(&got).await?;
            all.extend(got);
        }
    }
    Ok(all)
}

pub(super) async fn members_compete(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(4).await?;
    let mut members = [bed.stranger(&topic, &group).await?, bed.stranger(&topic, &group).await?, bed.stranger(&topic, &group).await?];
    let mut sent = Vec::new();
    let mut got = Vec::new();
    for _ in 0..10 {
        let batch = bed.send_some(&topic, 20).await?;
        got.extend(handle_together(&bed, &mut members, batch.len()).await?);
        sent.extend(batch);
    }
    for member in &mut members {
        got.extend(member.within(bed.pace.quiet).await?);
    }
    same(&ids(&got)?, &sent_ids(&sent))
}

pub(super) async fn members_come_and_go(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(3).await?;
    let mut members = vec![bed.stranger(&topic, &group).await?];
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let batch = bed.send_some(&topic, 30).await?;
        got.extend(handle_together(&bed, &mut members, 15).await?);
        if round % 2 == 0 {
            members.push(bed.stranger(&topic, &group).await?);
        } else {
            members.remove(0).close().await;
        }
        sent.extend(batch);
    }
    let rest = sent.len() - got.len();
    got.extend(handle_together(&bed, &mut members, rest).await?);
    same(&ids(&got)?, &sent_ids(&sent))
}

pub(super) async fn unsettled_comes_back_after_a_death(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 10).await?;
    let mut member = bed.member(&topic, &group).await?;
    member.take(10).await?;
    drop(member);
    tokio::time::timeout(bed.takeover(&topic) + bed.pace.patience, async {
        let mut next = bed.member(&topic, &group).await?;
        let mut got = Vec::new();
        while got.len() < 10 {
            let more = next.step(10, usize::MAX, Duration::from_secs(1)).await?;
            next.done(&more).await?;
            got.extend(more);
        }
        same(&ids(&got)?, &sent_ids(&sent))
    })
    .await
    .map_err(|_| Failure::new("what a dead member held did not come to another within the declared time"))?
}

pub(super) async fn a_death_does_not_bring_back_what_was_done(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 10).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let got = member.take(10).await?;
    member.done(&got[..6]).await?;
    drop(member);
    let mut next = bed.stranger(&topic, &group).await?;
    let again = next.within(bed.takeover(&topic) + bed.pace.quiet).await?;
    same(&ids(&again)?, &ids(&got[6..])?)
}

pub(super) async fn a_dead_connection_frees_its_messages(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 10).await?;
    let mut survivor = bed.stranger(&topic, &group).await?;
    let held = survivor.take(3).await?;
    let mut dying = bed.stranger(&topic, &group).await?;
    let mut got = dying.within(bed.pace.quiet).await?;
    drop(dying);
    survivor.done(&held).await?;
    got = [held, got].concat();
    let rest = survivor.within(bed.takeover(&topic) + bed.pace.quiet).await?;
    survivor.done(&rest).await?;
    // What the dead one held is in both; everything else came once.
    let all: HashSet<_> = ids(&[got, rest].concat())?.into_iter().collect();
    same(&all.into_iter().collect::<Vec<_>>(), &sent_ids(&sent))
}

pub(super) async fn held_messages_go_to_nobody_else(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 5).await?;
    let mut holder = bed.stranger(&topic, &group).await?;
    let held = holder.take(5).await?;
    let mut other = bed.stranger(&topic, &group).await?;
    // The holder does nothing at all for longer than a lease: keeping it is the provider's work.
    let long = bed.takeover(&topic) * 2 + bed.pace.quiet;
    let stolen = other.within(long).await?;
    check!(stolen.is_empty(), "{} messages that another member holds came to this one after {long:?}", stolen.len());
    let twice = holder.within(bed.pace.quiet).await?;
    check!(twice.is_empty(), "{} messages came to their holder again", twice.len());
    holder.done(&held).await
}

pub(super) async fn calls_of_one_member_at_once(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let member = bed.member_on(&bed.provider, std::slice::from_ref(&topic), &group, PREFETCH).await?;
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (subscription, send) = (Arc::clone(&member.subscription), send.clone());
        tasks.spawn(async move {
            loop {
                for signal in subscription.next(8, usize::MAX, Duration::from_secs(5)).await? {
                    let Signal::Deliveries { items, .. } = signal else { continue };
                    let settles: Vec<_> = items.iter().map(|item| (item.token, Settle::Done)).collect();
                    let answers = subscription.settle(&settles).await;
                    let held = subscription.extend(&items.iter().map(|item| item.token).collect::<Vec<_>>()).await;
                    let _ = send.send((items, answers, held));
                }
            }
            #[expect(unreachable_code, reason = "names the type of the error")]
            Verdict::Ok(())
        });
    }
    let sent = bed.send_some(&topic, 500).await?;
    let all = collect(receive, 500);
    let got = tokio::time::timeout(bed.pace.patience, all).await.map_err(|_| Failure::new("four callers did not get 500 messages"))??;
    tasks.shutdown().await;
    same(&got, &sent_ids(&sent))
}

type Handled = (Vec<trunkline::delivery::Delivery>, Vec<Settled>, Vec<bool>);

async fn collect(mut from: tokio::sync::mpsc::UnboundedReceiver<Handled>, n: usize) -> Verdict<Vec<trunkline::MessageId>> {
    let mut got = Vec::new();
    while got.len() < n {
        let Some((items, answers, held)) = from.recv().await else { return Err(Failure::new("the callers ended early")) };
        check!(answers.iter().all(|answer| *answer == Settled::Settled), "settles of held messages were answered {answers:?}");
        check!(!held.contains(&true), "a settled message is said to be held");
        for item in items {
            match item.id {
                trunkline::delivery::EnvelopeId::Id(id) => got.push(id),
                other => check!(false, "a delivery came with {other:?} instead of its id"),
            }
        }
    }
    Ok(got)
}
