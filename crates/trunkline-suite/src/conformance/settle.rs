//! Settling: what holds, what is stale, what is counted.

use std::time::Duration;

use trunkline::capability::DeliveryCount;
use trunkline::delivery::{Deliveries, Settle, Settled, Token};

use crate::member::{ids, same};
use crate::{Bed, Verdict};

pub(super) async fn done_never_comes_back(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    bed.send_some(&topic, 20).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    member.handle(20).await?;
    member.nothing("everything was settled").await?;
    // Whether it holds shows on a connection that knows nothing of the first.
    let provider = std::sync::Arc::clone(member.provider());
    member.close().await;
    provider.close(bed.give_up()).await;
    let mut next = bed.stranger(&topic, &group).await?;
    next.nothing("everything was settled before").await
}

pub(super) async fn done_out_of_order_holds_each(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 40).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let got = member.take(40).await?;
    let (even, odd): (Vec<_>, Vec<_>) = got.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
    let even: Vec<_> = even.into_iter().map(|(_, got)| got).rev().collect();
    let odd: Vec<_> = odd.into_iter().map(|(_, got)| got).collect();
    member.done(&even).await?;
    drop(member);
    let mut next = bed.stranger(&topic, &group).await?;
    let again = next.within(bed.takeover(&topic) + bed.pace.quiet).await?;
    same(&ids(&again)?, &ids(&odd)?)
}

pub(super) async fn answers_come_in_order(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 3).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(3).await?;
    let token = |at: usize| got[at].delivery.token;
    let first = member.subscription.settle(&[(token(1), Settle::Done)]).await;
    check!(first == [Settled::Settled], "a settle was answered {first:?}");
    let items = [(token(0), Settle::Done), (token(1), Settle::Done), (token(2), Settle::Done), (token(2), Settle::Done)];
    let answers = member.subscription.settle(&items).await;
    let wanted = [Settled::Settled, Settled::Stale, Settled::Settled, Settled::Stale];
    check!(answers == wanted, "held, settled, held, settled a moment ago: answered {answers:?}");
    Ok(())
}

pub(super) async fn a_stale_token_is_stale(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 4).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(4).await?;
    member.done(&got[..2]).await?;
    member.settled(&got[2..], Settle::Release).await?;
    for how in [Settle::Done, Settle::Release, Settle::Retry { after: Duration::ZERO, counted: true }] {
        for answer in member.settle(&got, how).await? {
            check!(answer == Settled::Stale, "{how:?} of what was settled before was answered {answer:?}");
        }
    }
    member.handle(2).await?;
    member.nothing("two were done and two came again").await
}

pub(super) async fn a_stale_token_settles_nothing_else(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    let mut old = Vec::new();
    for _ in 0..50 {
        bed.send_some(&topic, 1).await?;
        old.extend(member.handle(1).await?);
    }
    // These may lie where the old ones lay in the provider's memory.
    bed.send_some(&topic, 50).await?;
    let held = member.take(50).await?;
    let held_tokens: Vec<_> = held.iter().map(|got| got.delivery.token).collect();
    check!(old.iter().all(|got| !held_tokens.contains(&got.delivery.token)), "a token was given out again");
    for answer in member.settle(&old, Settle::Done).await? {
        check!(answer == Settled::Stale, "a settle of what was settled before was answered {answer:?}");
    }
    drop(member);
    let mut next = bed.stranger(&topic, &group).await?;
    let again = next.within(bed.takeover(&topic) + bed.pace.quiet).await?;
    same(&ids(&again)?, &ids(&held)?)
}

pub(super) async fn an_unknown_token_is_stale(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 2).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(2).await?;
    let held: Vec<_> = got.iter().map(|got| got.delivery.token.0).collect();
    let strange = [0, 1, u64::MAX, u64::MAX / 2, held[0] ^ (1 << 63), held[1] ^ (1 << 31), held[1].wrapping_add(1 << 32)];
    for token in strange.into_iter().filter(|token| !held.contains(token)) {
        let answer = member.subscription.settle(&[(Token(token), Settle::Done)]).await;
        check!(answer == [Settled::Stale], "a settle of token {token:#x}, which was never given out, was answered {answer:?}");
        check!(member.subscription.extend(&[Token(token)]).await == [false], "token {token:#x} is said to be held");
    }
    member.done(&got).await
}

pub(super) async fn extend_says_what_is_held(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 3).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(3).await?;
    let tokens: Vec<_> = got.iter().map(|got| got.delivery.token).collect();
    let held = member.subscription.extend(&tokens).await;
    check!(held == [true, true, true], "three held messages were extended: {held:?}");
    member.done(&got[1..2]).await?;
    let held = member.subscription.extend(&tokens).await;
    check!(held == [true, false, true], "the second was settled, and extend says {held:?}");
    member.done(&[got[0].clone(), got[2].clone()]).await
}

pub(super) async fn the_count_rises(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let exact = bed.capabilities(&topic).delivery_count == DeliveryCount::Exact;
    bed.send_some(&topic, 1).await?;
    let mut last = 0;
    for round in 1..=3 {
        let mut member = bed.stranger(&topic, &group).await?;
        let got = member.within(bed.takeover(&topic) + bed.pace.quiet).await?;
        check!(got.len() == 1, "one message is waiting, {} came in round {round}", got.len());
        let count = got[0].delivery.deliveries;
        check!(matches!(count, Deliveries::Exact(_)) == exact, "exact counts are declared {exact}, and {count:?} came");
        check!(count.count() > last, "handed out {round} times, each holder died, and the count went from {last} to {count:?}");
        check!(!exact || count.count() == round, "handed out {round} times, counted {count:?}");
        last = count.count();
    }
    Ok(())
}

pub(super) async fn the_count_is_not_made_up(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 1).await?;
    let got = bed.member(&topic, &group).await?.handle(1).await?;
    let count = got[0].delivery.deliveries;
    check!(count == Deliveries::Unknown, "no count is declared, and {count:?} came");
    Ok(())
}
