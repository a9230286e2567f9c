//! What is particular to ordered topics: what is given back, and members that share a connection.

use std::time::{Duration, Instant};

use trunkline::delivery::Settle;
use trunkline::provider::Outgoing;

use crate::bed::{self, confirmed, done, handle, ids, numbered, open, server, step, subscribe, take};

fn keyed(n: usize) -> Vec<Outgoing> {
    numbered(n).into_iter().map(|message| Outgoing { shard: Some(0), key: Some("k".into()), ..message }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_comes_again_in_its_place() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, true).await;
    let sent = confirmed(&provider, &topic, keyed(400)).await;
    let member = subscribe(&provider, &topic, "g").await;
    let got = take(&member, 20).await;
    assert_eq!(ids(&got), sent[..20]);
    done(&member, &got[..5]).await;
    // Given back: one in the middle. The others are settled late, and nothing overtakes what was given back.
    member.settle(&[(got[7].token, Settle::Release)]).await;
    assert!(step(&member, 100, Duration::from_millis(300)).await.unwrap().is_empty());
    let rest: Vec<_> = got[5..].iter().filter(|delivery| delivery.token != got[7].token).cloned().collect();
    done(&member, &rest).await;
    let wanted: Vec<_> = std::iter::once(sent[7]).chain(sent[20..].iter().copied()).collect();
    let mut again = Vec::new();
    while again.len() < wanted.len() {
        again.extend(ids(&handle(&member, 100.min(wanted.len() - again.len())).await));
    }
    assert_eq!(again, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_that_die_one_after_the_other_leave_the_order() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, true).await;
    let sent = confirmed(&provider, &topic, keyed(900)).await;
    let mut next = 0;
    for round in 0..10 {
        let own = open().await;
        let member = subscribe(&own, &topic, "g").await;
        let got = take(&member, 60).await;
        assert_eq!(ids(&got), sent[next..next + 60], "round {round}");
        let settled = round * 6;
        done(&member, &got[..settled]).await;
        next += settled;
        if round % 2 == 0 {
            // Without a word.
            drop(member);
            drop(own);
        } else {
            member.close(Instant::now() + Duration::from_secs(5)).await;
        }
    }
    let member = subscribe(&provider, &topic, "g").await;
    while next < sent.len() {
        let n = 100.min(sent.len() - next);
        assert_eq!(ids(&handle(&member, n).await), sent[next..next + n]);
        next += n;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_on_one_connection_share_the_shards() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 4, true).await;
    let members = [subscribe(&provider, &topic, "g").await, subscribe(&provider, &topic, "g").await];
    let mut owned = [0_i32; 2];
    let end = Instant::now() + bed::PATIENCE;
    while owned != [2, 2] {
        assert!(Instant::now() < end, "{owned:?}");
        for (at, member) in members.iter().enumerate() {
            for signal in member.next(10, usize::MAX, Duration::from_millis(50)).await.unwrap() {
                match signal {
                    trunkline::provider::Signal::Assigned { .. } => owned[at] += 1,
                    trunkline::provider::Signal::Revoking { route, shard, .. } => {
                        owned[at] -= 1;
                        member.yield_shard(route, shard).await;
                    }
                    _ => {}
                }
            }
        }
    }
    let batch: Vec<_> = numbered(40).into_iter().enumerate().map(|(at, m)| Outgoing { shard: Some(at as u32 % 4), ..m }).collect();
    let sent = confirmed(&provider, &topic, batch).await;
    let mut got = ids(&handle(&members[0], 20).await);
    got.extend(ids(&handle(&members[1], 20).await));
    got.sort_unstable();
    let mut sent = sent;
    sent.sort_unstable();
    assert_eq!(got, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_on_the_server_when_all_have_left() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 2, true).await;
    let member = subscribe(&provider, &topic, "g").await;
    confirmed(&provider, &topic, numbered(4)).await;
    handle(&member, 4).await;
    member.close(Instant::now() + Duration::from_secs(5)).await;
    let queues = bed::ctl(&["list_queues", "name", "--silent"]).await;
    let left: Vec<_> = queues.lines().filter(|line| line.starts_with(&*topic.name)).map(|line| &line[topic.name.len()..]).collect();
    let mut left = left;
    left.sort_unstable();
    assert_eq!(left, [".g.@0", ".g.@1", ".g.@epoch"]);
    provider.remove(trunkline::provider::Remove::Topic(&topic)).await.unwrap();
    assert!(!bed::ctl(&["list_queues", "name", "--silent"]).await.contains(&*topic.name));
    assert!(!bed::ctl(&["list_exchanges", "name", "--silent"]).await.contains(&*topic.name));
}
