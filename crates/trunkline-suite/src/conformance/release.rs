//! Giving back: at once, later, on leaving.

use std::time::{Duration, Instant};

use trunkline::delivery::Settle;

use crate::member::{ids, same};
use crate::{Bed, Verdict};

pub(super) async fn release_comes_again(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 6).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(6).await?;
    member.settled(&got[..3], Settle::Release).await?;
    let again = member.take(3).await?;
    same(&ids(&again)?, &ids(&got[..3])?)?;
    member.done(&again).await?;
    member.done(&got[3..]).await?;
    member.nothing("everything was settled").await
}

pub(super) async fn release_is_not_counted(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 1).await?;
    let mut member = bed.member(&topic, &group).await?;
    let mut got = member.take(1).await?;
    let first = got[0].delivery.deliveries;
    for round in 0..5 {
        member.settled(&got, Settle::Release).await?;
        got = member.take(1).await?;
        let count = got[0].delivery.deliveries;
        check!(count.count() <= first.count(), "released {} times, and the count went from {first:?} to {count:?}", round + 1);
    }
    member.done(&got).await
}

pub(super) async fn close_releases(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    bed.send_some(&topic, 10).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let got = member.take(10).await?;
    member.done(&got[..4]).await?;
    member.close().await;
    let mut next = bed.stranger(&topic, &group).await?;
    let again = next.take(6).await?;
    same(&ids(&again)?, &ids(&got[4..])?)?;
    next.done(&again).await?;
    next.nothing("the others were settled before").await
}

pub(super) async fn close_is_not_counted(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 2).await?;
    let mut counts = Vec::new();
    for _ in 0..5 {
        let mut member = bed.stranger(&topic, &group).await?;
        let got = member.take(2).await?;
        counts.push(got[0].delivery.deliveries.count().max(got[1].delivery.deliveries.count()));
        member.close().await;
    }
    check!(counts.iter().all(|count| *count <= counts[0]), "handed back on each close, and counted {counts:?}");
    Ok(())
}

fn retry(after: Duration) -> Settle {
    Settle::Retry { after, counted: true }
}

pub(super) async fn retry_comes_when_it_is_due(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 3).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(3).await?;
    member.done(&got[2..]).await?;
    let asked = Instant::now();
    for (at, after) in [(0, 500), (1, 100)] {
        member.settled(&got[at..=at], retry(Duration::from_millis(after))).await?;
    }
    let again = member.take(2).await?;
    same(&ids(&again)?, &ids(&got[..2])?)?;
    for (got, after) in [(got[0].id()?, 500), (got[1].id()?, 100)] {
        let came = again.iter().find(|again| again.id().ok() == Some(got)).map(|again| again.at - asked);
        // Clocks that count in whole milliseconds may be short of two.
        let due = Duration::from_millis(after - 2);
        check!(came.is_some_and(|came| came >= due), "to be handed out again after {after} ms, came after {came:?}");
    }
    member.done(&again).await
}

pub(super) async fn retry_does_not_hold_up_others(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let delay = Duration::from_millis(bed.capabilities(&topic).native_delay_max_ms.min(30_000));
    bed.send_some(&topic, 1).await?;
    let mut member = bed.member(&topic, &group).await?;
    let waiting = member.take(1).await?;
    member.settled(&waiting, retry(delay)).await?;
    let begun = Instant::now();
    bed.send_some(&topic, 10).await?;
    let others = member.handle(10).await?;
    check!(begun.elapsed() < delay, "ten messages waited for one that is to come after {delay:?}");
    check!(!ids(&others)?.contains(&waiting[0].id()?), "a message came before it was due");
    Ok(())
}

pub(super) async fn retry_survives_its_member(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 2).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let got = member.take(2).await?;
    member.settled(&got, retry(Duration::from_millis(300))).await?;
    drop(member);
    let mut next = bed.stranger(&topic, &group).await?;
    let again = next.within(bed.takeover(&topic) + Duration::from_millis(300) + bed.pace.quiet).await?;
    same(&ids(&again)?, &ids(&got)?)
}
