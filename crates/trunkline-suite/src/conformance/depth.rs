//! What waits for a group, as the broker counts it.

use trunkline::message::now_ms;
use trunkline::provider::Depth;

use crate::{Bed, Verdict};

/// Of `waiting` messages, at least `held` are held. What a provider fetched ahead may count as either.
fn counts(depth: &Depth, waiting: u64, held: u64, when: &str) -> Verdict {
    if !depth.exact {
        return Ok(());
    }
    let sum = depth.ready + depth.in_flight;
    check!(sum == waiting, "{when}: {waiting} wait, depth says {} + {}", depth.ready, depth.in_flight);
    check!(depth.in_flight >= held, "{when}: {held} are held, depth says {}", depth.in_flight);
    Ok(())
}

pub(super) async fn depth_counts(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let depth = async |when: &str, waiting, held| {
        let depth = bed.provider.depth(&topic, &group.name).await?;
        counts(&depth, waiting, held, when)
    };
    depth("new", 0, 0).await?;
    bed.send_some(&topic, 12).await?;
    depth("sent", 12, 0).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(12).await?;
    depth("handed out", 12, 12).await?;
    member.done(&got[..5]).await?;
    depth("five settled", 7, 7).await?;
    bed.send_some(&topic, 3).await?;
    depth("three more sent", 10, 7).await?;
    member.close().await;
    depth("member gone", 10, 0).await?;
    let mut member = bed.member(&topic, &group).await?;
    member.handle(10).await?;
    depth("all settled", 0, 0).await
}

pub(super) async fn depth_is_of_its_group(bed: Bed) -> Verdict {
    let (topic, first) = bed.topic(1).await?;
    let second = bed.group_spec();
    bed.provider.ensure(&topic, &[first.clone(), second.clone()]).await?;
    bed.send_some(&topic, 5).await?;
    bed.member(&topic, &first).await?.handle(5).await?;
    counts(&bed.provider.depth(&topic, &first.name).await?, 0, 0, "the group that handled everything")?;
    counts(&bed.provider.depth(&topic, &second.name).await?, 5, 0, "the group that handled nothing")
}

pub(super) async fn depth_knows_the_oldest(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let empty = bed.provider.depth(&topic, &group.name).await?;
    check!(empty.oldest.is_none(), "nothing waits, and the oldest is of {:?}", empty.oldest);
    let before = now_ms();
    bed.send_some(&topic, 3).await?;
    let depth = bed.provider.depth(&topic, &group.name).await?;
    let near = depth.oldest.is_none_or(|oldest| oldest.abs_diff(before) < 60_000);
    check!(near, "sent at {before} ms, the oldest is of {:?}", depth.oldest);
    check!(depth.oldest.is_some() || !depth.exact, "three wait, and there is no oldest");
    bed.member(&topic, &group).await?.handle(3).await?;
    let empty = bed.provider.depth(&topic, &group.name).await?;
    check!(empty.oldest.is_none(), "everything is settled, and the oldest is of {:?}", empty.oldest);
    Ok(())
}

pub(super) async fn depth_survives_a_new_connection(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    bed.send_some(&topic, 9).await?;
    let mut member = bed.stranger(&topic, &group).await?;
    member.handle(4).await?;
    member.close().await;
    let depth = bed.open().await?.depth(&topic, &group.name).await?;
    counts(&depth, 5, 0, "on a new connection")
}
