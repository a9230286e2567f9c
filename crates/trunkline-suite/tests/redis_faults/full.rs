//! `maxmemory`: refused for now, with nothing lost and nothing half done.

use std::sync::Arc;

use trunkline::Code;
use trunkline::capability::Durability;
use trunkline::provider::{Outgoing, Provider, TopicSpec};

use crate::private::{MEMORY, Private};
use crate::{done, group, message, messages, subscribe, take, topic, until};

const SIZE: usize = 10_000;

/// Sends until the server takes no more; returns how many it took.
async fn fill(server: &Private, provider: &dyn Provider, topic: &TopicSpec) -> usize {
    let used: usize =
        server.cli(&["INFO", "memory"]).lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", &(used + (3 << 20)).to_string()]);
    let mut taken = 0;
    loop {
        let results = provider.send(topic, Arc::new(messages(20, SIZE))).await;
        taken += results.iter().filter(|result| result.is_ok()).count();
        if let Some(failed) = results.into_iter().find_map(Result::err) {
            let said = (failed.error.code(), failed.error.detail_str("reason"), failed.retryable, failed.ambiguous);
            assert_eq!(said, (Code::PublishFailed, Some("server_full"), true, false));
            return taken;
        }
        assert!(taken < 10_000, "it never fills");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_for_now_and_goes_on_when_there_is_room() {
    let server = Private::start(MEMORY).await;
    let (topic, group) = (topic("t"), group("g"));
    let provider = server.open().await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let taken = fill(&server, &*provider, &topic).await;
    assert_eq!(server.count(&["XLEN", "t"]), taken, "what was confirmed is there, and nothing else");
    // It is still full, and still handed out: nothing that waits is dropped to make room.
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*subscription, taken).await;
    done(&*subscription, &got).await;
    until("a message is taken again", async || provider.send(&topic, Arc::new(messages(1, SIZE))).await[0].is_ok()).await;
    done(&*subscription, &take(&*subscription, 1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_to_an_ordered_topic_is_taken_whole_or_not_at_all() {
    let server = Private::start(MEMORY).await;
    let (plain, ordered) = (topic("t"), TopicSpec::new("o", 2, true));
    let provider = server.open().await;
    provider.ensure(&plain, &[group("g")]).await.unwrap();
    provider.ensure(&ordered, &[group("g")]).await.unwrap();
    let subscription = subscribe(&*provider, &ordered, &group("g")).await.unwrap();
    fill(&server, &*provider, &plain).await;
    let batch: Vec<Outgoing> = (0..10).map(|at| Outgoing { shard: Some(at % 2), ..message(vec![b'x'; SIZE]) }).collect();
    for result in provider.send(&ordered, Arc::new(batch.clone())).await {
        let failed = result.unwrap_err();
        assert_eq!(
            (failed.error.detail_str("reason"), failed.retryable, failed.ambiguous),
            (Some("server_full"), true, false),
            "{failed:?}"
        );
    }
    assert_eq!((server.count(&["XLEN", "o:shard:0"]), server.count(&["XLEN", "o:shard:1"])), (0, 0));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    crate::send(&*provider, &ordered, batch).await;
    // The owner kept its shards through it: renewing them needs no memory.
    let got = take(&*subscription, 10).await;
    done(&*subscription, &got).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn durability_is_read_from_the_settings() {
    let server = Private::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let t = topic("t");
    assert_eq!(server.open().await.capabilities(&t).durability, Durability::Fsynced);
    for (name, value, durability) in [
        ("appendfsync", "no", Durability::Written),
        ("appendfsync", "everysec", Durability::Memory),
        ("appendfsync", "always", Durability::Fsynced),
        ("maxmemory", "100mb", Durability::Fsynced),
        ("maxmemory-policy", "allkeys-lru", Durability::Memory),
        ("maxmemory-policy", "noeviction", Durability::Fsynced),
        ("appendonly", "no", Durability::Memory),
    ] {
        assert_eq!(server.cli(&["CONFIG", "SET", name, value]), "OK");
        let provider = server.open().await;
        assert_eq!(provider.capabilities(&t).durability, durability, "{name} {value}");
        let drift = provider.ensure(&t, &[]).await.unwrap().drift;
        let warned = matches!((name, value), ("maxmemory-policy", "allkeys-lru") | ("appendonly", "no"));
        assert_eq!(!drift.is_empty(), warned, "{name} {value}: {drift:?}");
    }
}
