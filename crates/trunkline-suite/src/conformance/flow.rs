//! How much comes, and when: waiting, bounds, pauses, the end.

use std::time::{Duration, Instant};

use trunkline::Code;
use trunkline::provider::Prefetch;

use crate::bed::message;
use crate::member::{ids, same};
use crate::{Bed, Failure, Sent, Verdict};

fn sent_ids(sent: &[Sent]) -> Vec<trunkline::MessageId> {
    sent.iter().map(Sent::id).collect()
}

pub(super) async fn next_is_empty_after_its_wait(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let mut member = bed.member(&topic, &group).await?;
    // What there is to say about shards comes first.
    member.within(bed.pace.quiet).await?;
    for wait in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(200)] {
        let begun = Instant::now();
        let got = member.step(10, usize::MAX, wait).await?;
        let took = begun.elapsed();
        check!(got.is_empty(), "a delivery of nothing that was sent");
        check!(took + Duration::from_millis(5) >= wait, "next(wait {wait:?}) returned empty after {took:?}");
        check!(took < wait + Duration::from_secs(2), "next(wait {wait:?}) took {took:?}");
    }
    Ok(())
}

pub(super) async fn next_returns_as_soon_as_there_is_something(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let mut member = bed.member(&topic, &group).await?;
    let sender = bed.open().await?;
    for _ in 0..5 {
        let waiting = async {
            loop {
                let got = member.step(100, usize::MAX, Duration::from_secs(600)).await?;
                if !got.is_empty() {
                    member.done(&got).await?;
                    return Verdict::Ok(Instant::now());
                }
            }
        };
        let sending = async {
            crate::bed::send(&*sender, &topic, vec![message("wake up")]).await?;
            Verdict::Ok(Instant::now())
        };
        let (woken, sent) = tokio::join!(waiting, sending);
        let late = woken?.saturating_duration_since(sent?);
        check!(late < Duration::from_secs(2), "a waiting member was handed a message {late:?} after it was confirmed");
    }
    Ok(())
}

pub(super) async fn next_keeps_its_maximum(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let sent = bed.send_some(&topic, 60).await?;
    let mut member = bed.member(&topic, &group).await?;
    let mut got = Vec::new();
    let end = bed.give_up();
    for max in [1, 3, 7].into_iter().cycle() {
        check!(Instant::now() < end, "{} of 60 messages came", got.len());
        // `step` fails if more come than asked for.
        let more = member.step(max, usize::MAX, Duration::from_millis(200)).await?;
        member.done(&more).await?;
        got.extend(more);
        if got.len() >= 60 {
            break;
        }
    }
    same(&ids(&got)?, &sent_ids(&sent))
}

pub(super) async fn next_keeps_its_bytes(bed: Bed) -> Verdict {
    const SIZE: usize = 10_000;
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send(&topic, (0..24).map(|_| message(vec![b'x'; SIZE])).collect()).await?;
    let mut member = bed.member(&topic, &group).await?;
    let mut got = Vec::new();
    let end = bed.give_up();
    for max_bytes in [25_000, 1, 10_000, 60_000].into_iter().cycle() {
        check!(Instant::now() < end, "{} of 24 messages came", got.len());
        let more = member.step(100, max_bytes, Duration::from_millis(200)).await?;
        let bytes: usize = more.iter().map(|got| got.delivery.size()).sum();
        check!(bytes <= max_bytes + SIZE + 1024, "next(max_bytes {max_bytes}) handed out {bytes} bytes in {} messages", more.len());
        member.done(&more).await?;
        got.extend(more);
        if got.len() >= 24 {
            break;
        }
    }
    same(&ids(&got)?, &sent_ids(&sent))
}

pub(super) async fn a_dropped_next_loses_nothing(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let mut member = bed.member(&topic, &group).await?;
    let mut got = Vec::new();
    let mut sent = Vec::new();
    for round in 0..60_u64 {
        let sender = bed.send_some(&topic, 5);
        let subscription = std::sync::Arc::clone(&member.subscription);
        // Dropped at another moment each time: before, while and after the messages arrive.
        let dropped = async {
            let patience = Duration::from_micros(round * 97 % 4000);
            tokio::time::timeout(patience, subscription.next(3, usize::MAX, Duration::from_secs(5))).await
        };
        let (batch, early) = tokio::join!(sender, dropped);
        sent.extend(batch?);
        if let Ok(signals) = early {
            got.extend(member.heard(signals?)?);
        }
        if round % 10 == 9 {
            got.extend(member.take(sent.len() - got.len()).await?);
        }
    }
    same(&ids(&got)?, &sent_ids(&sent))?;
    member.done(&got).await
}

/// Subscribes with this prefetch to 50 messages of `size` bytes, takes one, and looks how many are no longer ready.
async fn taken(bed: &Bed, prefetch: Prefetch, size: usize) -> Verdict<Option<u64>> {
    let (topic, group) = bed.topic(1).await?;
    bed.send(&topic, (0..50).map(|_| message(vec![b'x'; size])).collect()).await?;
    let mut member = bed.member_on(&bed.provider, std::slice::from_ref(&topic), &group, prefetch).await?;
    member.take(1).await?;
    // Gives a task that fetches too much the time to do so.
    tokio::time::sleep(bed.pace.quiet).await;
    let depth = bed.provider.depth(&topic, &group.name).await?;
    drop(member);
    Ok(depth.exact.then_some(depth.in_flight))
}

pub(super) async fn prefetch_is_bounded_by_count(bed: Bed) -> Verdict {
    let taken = taken(&bed, Prefetch { count: 5, bytes: 1 << 20 }, 100).await?;
    check!(taken.is_none_or(|n| n <= 6), "one message was asked for with a prefetch of 5, and {taken:?} were taken");
    Ok(())
}

pub(super) async fn prefetch_is_bounded_by_bytes(bed: Bed) -> Verdict {
    let taken = taken(&bed, Prefetch { count: 1000, bytes: 50_000 }, 10_000).await?;
    check!(taken.is_none_or(|n| n <= 7), "one message of 10 kB was asked for with a prefetch of 50 kB, and {taken:?} were taken");
    Ok(())
}

pub(super) async fn pause_stops_and_resume_starts(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let mut member = bed.member(&topic, &group).await?;
    for _ in 0..2 {
        bed.send_some(&topic, 2).await?;
        member.handle(2).await?;
        member.subscription.pause().await;
        let sent = bed.send_some(&topic, 5).await?;
        member.nothing("the member is paused").await?;
        member.subscription.resume().await;
        same(&ids(&member.handle(5).await?)?, &sent_ids(&sent))?;
    }
    Ok(())
}

pub(super) async fn paused_members_settle(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 4).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let got = member.take(4).await?;
    member.subscription.pause().await;
    member.done(&got).await?;
    member.subscription.resume().await;
    member.close().await;
    bed.stranger(&topic, &group).await?.nothing("a paused member settled everything").await
}

pub(super) async fn a_closed_subscription_ends(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let member = bed.member(&topic, &group).await?;
    let subscription = std::sync::Arc::clone(&member.subscription);
    let waiting = {
        let subscription = std::sync::Arc::clone(&subscription);
        tokio::spawn(async move {
            loop {
                if let Err(error) = subscription.next(1, usize::MAX, Duration::from_secs(600)).await {
                    return error;
                }
            }
        })
    };
    let provider = std::sync::Arc::clone(member.provider());
    member.close().await;
    let ended = tokio::time::timeout(bed.pace.patience, waiting).await;
    let Ok(Ok(error)) = ended else { return Err(Failure::new("a waiting `next` did not end with its subscription")) };
    check!(error.code() == Code::Closed, "a waiting `next` ended with {error:?}");
    bed.send_some(&topic, 3).await?;
    let late = subscription.next(1, usize::MAX, Duration::from_millis(10)).await;
    check!(matches!(&late, Err(error) if error.code() == Code::Closed), "a closed subscription answered {late:?}");
    if bed.capabilities(&topic).lossy {
        return Ok(());
    }
    // The connection goes on.
    bed.member_on(&provider, std::slice::from_ref(&topic), &group, crate::bed::PREFETCH).await?.handle(3).await.map(drop)
}
