//! Topics, groups, connections: made, found again, tested, removed, closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline::Code;
use trunkline::provider::{GroupSpec, ReadFrom, Remove, Start, TopicSpec};

use crate::bed::{message, send};
use crate::member::{ids, same};
use crate::{Bed, Failure, Verdict};

pub(super) async fn ensure_is_idempotent(bed: Bed) -> Verdict {
    let (topic, group) = (bed.topic_spec(2), bed.group_spec());
    for round in 0..3 {
        let provider = bed.open().await?;
        let ensured = provider.ensure(&topic, std::slice::from_ref(&group)).await?;
        check!(ensured.drift.is_empty(), "round {round} sees drift in what the first one made: {:?}", ensured.drift);
        if round > 0 {
            check!(ensured.created.is_empty(), "round {round} created again: {:?}", ensured.created);
        }
    }
    Ok(())
}

pub(super) async fn ensure_at_once_from_many(bed: Bed) -> Verdict {
    let (topic, groups) = (bed.topic_spec(2), [bed.group_spec(), bed.group_spec()]);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (provider, topic, groups) = (bed.open().await?, topic.clone(), groups.clone());
        tasks.spawn(async move { provider.ensure(&topic, &groups).await });
    }
    for ensured in tasks.join_all().await {
        let ensured = ensured.map_err(|e| Failure::from(e).context("eight at once"))?;
        check!(ensured.drift.is_empty(), "one of eight sees drift: {:?}", ensured.drift);
    }
    let member = bed.member(&topic, &groups[1]).await?;
    bed.send_some(&topic, 1).await?;
    member.close().await;
    Ok(())
}

pub(super) async fn ensure_leaves_a_group_where_it_is(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let sent = bed.send_some(&topic, 6).await?;
    let mut member = bed.member(&topic, &group).await?;
    let handled = ids(&member.handle(3).await?)?;
    member.close().await;
    for start in [Start::Latest, Start::Earliest] {
        bed.provider.ensure(&topic, &[GroupSpec { start, ..group.clone() }]).await?;
    }
    let mut member = bed.member(&topic, &group).await?;
    let rest = ids(&member.handle(3).await?)?;
    same(&[handled, rest].concat(), &sent.iter().map(|sent| sent.id()).collect::<Vec<_>>())?;
    member.nothing("all six were handled and the group was only ensured again").await
}

pub(super) async fn ensure_reports_drift_and_changes_nothing(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    let wish = TopicSpec { shards: 4, ..topic.clone() };
    let ensured = bed.open().await?.ensure(&wish, std::slice::from_ref(&group)).await?;
    check!(!ensured.drift.is_empty(), "a topic of 2 shards was ensured with 4, and no drift was reported");
    let again = bed.open().await?.ensure(&topic, std::slice::from_ref(&group)).await?;
    check!(again.drift.is_empty(), "the topic was changed by a wish: {:?}", again.drift);
    bed.send_some(&topic, 4).await?;
    let mut member = bed.member(&topic, &group).await?;
    member.handle(4).await.map(drop)
}

pub(super) async fn ensure_adds_a_group_later(bed: Bed) -> Verdict {
    let (topic, first) = bed.topic(1).await?;
    let second = GroupSpec { start: Start::Latest, ..bed.group_spec() };
    bed.provider.ensure(&topic, &[first.clone(), second.clone()]).await?;
    bed.send_some(&topic, 2).await?;
    for group in [first, second] {
        bed.member(&topic, &group).await?.handle(2).await?;
    }
    Ok(())
}

pub(super) async fn remove_group_forgets_it(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    bed.send_some(&topic, 3).await?;
    bed.provider.remove(Remove::Group(&topic, &group.name)).await?;
    let latest = GroupSpec { start: Start::Latest, ..group };
    bed.provider.ensure(&topic, std::slice::from_ref(&latest)).await?;
    let mut member = bed.member(&topic, &latest).await?;
    member.nothing("the group was removed and made again, to start with the latest").await?;
    bed.send_some(&topic, 1).await?;
    member.handle(1).await.map(drop)
}

pub(super) async fn remove_topic_forgets_everything(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(2).await?;
    bed.send_some(&topic, 3).await?;
    bed.provider.remove(Remove::Topic(&topic)).await?;
    let ensured = bed.provider.ensure(&topic, std::slice::from_ref(&group)).await?;
    check!(!ensured.created.is_empty(), "a removed topic was made again, and nothing was reported as created");
    let mut member = bed.member(&topic, &group).await?;
    member.nothing("the topic was removed with its messages").await?;
    let sent = bed.send_some(&topic, 2).await?;
    same(&ids(&member.handle(2).await?)?, &[sent[0].id(), sent[1].id()])
}

pub(super) async fn remove_what_is_not_there(bed: Bed) -> Verdict {
    let missing = bed.topic_spec(1);
    bed.provider.remove(Remove::Topic(&missing)).await?;
    bed.provider.remove(Remove::Group(&missing, &bed.name())).await?;
    let (topic, group) = bed.topic(1).await?;
    bed.provider.remove(Remove::Group(&topic, &bed.name())).await?;
    for _ in 0..2 {
        bed.provider.remove(Remove::Group(&topic, &group.name)).await?;
    }
    for _ in 0..2 {
        bed.provider.remove(Remove::Topic(&topic)).await?;
    }
    Ok(())
}

pub(super) async fn probe_passes_in_stages(bed: Bed) -> Verdict {
    let stages = bed.provider.probe(bed.give_up()).await;
    check!(!stages.is_empty(), "a probe of no stage at all");
    for stage in &stages {
        check!(stage.ok, "stage {} of a working broker failed: {:?} {:?}", stage.stage, stage.code, stage.message);
        check!(stage.code.is_none(), "stage {} passed with a code", stage.stage);
    }
    Ok(())
}

pub(super) async fn probe_keeps_its_deadline(bed: Bed) -> Verdict {
    let begun = Instant::now();
    let stages = bed.provider.probe(begun).await;
    let took = begun.elapsed();
    check!(took < Duration::from_secs(2), "a probe whose deadline had passed took {took:?}");
    for stage in stages.iter().filter(|stage| !stage.ok) {
        check!(stage.fix.is_some(), "stage {} failed and names nothing to do about it", stage.stage);
    }
    Ok(())
}

pub(super) async fn close_ends_the_connection(bed: Bed) -> Verdict {
    let (topic, group) = bed.topic(1).await?;
    let provider = bed.open().await?;
    let member = bed.member_on(&provider, std::slice::from_ref(&topic), &group, crate::bed::PREFETCH).await?;
    let begun = Instant::now();
    let deadline = begun + bed.pace.patience;
    let listening = tokio::spawn(async move {
        loop {
            if let Err(error) = member.subscription.next(1, usize::MAX, Duration::from_secs(600)).await {
                return error;
            }
        }
    });
    provider.close(deadline).await;
    check!(Instant::now() < deadline, "close passed its deadline");
    let ended = tokio::time::timeout(bed.pace.patience, listening).await;
    let Ok(Ok(error)) = ended else { return Err(Failure::new("a waiting `next` did not end with its connection")) };
    check!(error.code() == Code::Closed, "a waiting `next` ended with its connection as {error:?}");

    let result = provider.send(&topic, Arc::new(vec![message("late")])).await.pop();
    match result {
        Some(Err(error)) => {
            check!(error.error.code() == Code::Closed, "a send after close failed with {:?}", error.error);
            check!(!error.ambiguous, "a send after close is said to be ambiguous");
        }
        other => check!(false, "a send after close was answered {other:?}"),
    }
    let group_name = &*group.name;
    let closed = |call: &str, result: Result<(), trunkline::Error>| match result {
        Err(error) if error.code() == Code::Closed => Ok(()),
        other => Err(Failure::new(format!("{call} after close was answered {other:?}"))),
    };
    closed("ensure", provider.ensure(&topic, &[]).await.map(drop))?;
    closed("depth", provider.depth(&topic, group_name).await.map(drop))?;
    let options = trunkline::provider::SubscribeOptions { member: bed.name(), prefetch: crate::bed::PREFETCH };
    closed("subscribe", provider.subscribe(std::slice::from_ref(&topic), &group, options).await.map(drop))?;
    // Others go on.
    send(&*bed.provider, &topic, vec![message("others")]).await.map(drop)
}

pub(super) async fn capabilities_agree(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    let first = bed.capabilities(&topic);
    let second = bed.open().await?.capabilities(&topic);
    check!(first == second, "two connections declare {first:?} and {second:?}");
    check!(first.max_message_bytes >= 1024, "at most {} bytes a message", first.max_message_bytes);
    check!(!(first.lossy && first.keeps_messages), "what is lossy keeps messages");
    let read = bed.provider.read(&topic, ReadFrom::Time { shard: 0, at: 0 }, 1).await;
    check!(read.is_ok() == first.keeps_messages, "keeps_messages is {}, and read answers {read:?}", first.keeps_messages);
    let unordered = bed.provider.capabilities(&TopicSpec::new(Arc::clone(&topic.name), 1, false));
    check!(unordered.durability == first.durability, "durability depends on the order");
    Ok(())
}
