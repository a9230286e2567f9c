//! What is not declared is refused, never answered with a silent `Ok`.

use std::time::Duration;

use trunkline::delivery::{Position, Settle, Settled};
use trunkline::provider::{ReadFrom, Start};
use trunkline::{Code, Error};

use crate::{Bed, Failure, Verdict};

fn refused<T>(what: &str, result: Result<T, Error>) -> Verdict {
    match result {
        Ok(_) => Err(Failure::new(format!("{what} is not declared, and was answered Ok"))),
        Err(error) => {
            check!(error.code() == Code::CapabilityUnsupported, "{what} is not declared, and was refused as {error:?}");
            check!(!error.retryable(), "{what} is not declared, and its refusal is said to be worth another try");
            Ok(())
        }
    }
}

pub(super) async fn read_where_nothing_is_kept(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    bed.send_some(&topic, 1).await?;
    refused("read", bed.provider.read(&topic, ReadFrom::Position(Position::default()), 1).await)?;
    refused("read", bed.provider.read(&topic, ReadFrom::Time { shard: 0, at: 0 }, 1).await)
}

pub(super) async fn seek_where_nothing_is_kept(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    for to in [Start::Earliest, Start::Time(0), Start::Position { shard: 0, offset: 0 }] {
        refused("seek", bed.provider.seek(&topic, &group.name, &to).await)?;
    }
    Ok(())
}

pub(super) async fn order_where_none_is_declared(bed: Bed) -> Verdict {
    let topic = bed.topic_spec(2);
    refused("order", bed.provider.ensure(&topic, &[bed.group_spec()]).await)
}

pub(super) async fn delays_beyond_the_declared(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 1).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.take(1).await?;
    let after = Duration::from_millis(bed.capabilities(&topic).native_delay_max_ms) + Duration::from_secs(3600);
    let answers = member.settle(&got, Settle::Retry { after, counted: true }).await?;
    check!(answers != [Settled::Settled], "a delay of {after:?} is beyond the declared, and was answered {answers:?}");
    // It was refused, so it is still held or already back: it can be handled now, not in an hour.
    if member.settle(&got, Settle::Done).await? != [Settled::Settled] {
        member.handle(1).await?;
    }
    member.nothing("the one message was handled").await
}

pub(super) async fn a_group_that_was_not_ensured(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    let stranger = bed.name();
    let depth = bed.provider.depth(&topic, &stranger).await;
    check!(depth.is_err(), "a group that was not ensured has a depth: {depth:?}");
    Ok(())
}
