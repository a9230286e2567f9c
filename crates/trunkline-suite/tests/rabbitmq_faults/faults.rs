//! What happens to a server in production, and what must come of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::delivery::{Settle, Settled};
use trunkline::provider::{Outgoing, Prefetch, Provider, Remove, SubscribeOptions, TopicSpec};
use trunkline::{Code, MessageId};
use trunkline_suite::proxy::{Proxy, Weather};
use trunkline_suite::server::Act;

use crate::bed::{
    self, address, confirmed, ctl, done, end_of, group, handle, ids, message, name, numbered, open, open_with, reason, send, server,
    subscribe, take, within,
};

/// Through a proxy, with a heartbeat of so many seconds.
async fn through(proxy: &Proxy, heartbeat: u16) -> Arc<dyn Provider> {
    open_with(json!({ "url": format!("amqp://guest:guest@{}/%2f?heartbeat={heartbeat}", proxy.address()) })).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_a_queue_confirms_nothing() {
    let _server = server().await;
    let provider = open().await;
    let topic = TopicSpec::new(name("faults"), 1, false);
    provider.ensure(&topic, &[]).await.unwrap();
    for answer in send(&provider, &topic, numbered(3)).await {
        let failed = answer.unwrap_err();
        assert_eq!((failed.error.code(), reason(&failed.error)), (Code::PublishFailed, "unroutable"));
        assert!(!failed.ambiguous && !failed.retryable);
    }
    provider.ensure(&topic, &[group("g")]).await.unwrap();
    confirmed(&provider, &topic, numbered(3)).await;
    let missing = TopicSpec::new(name("missing"), 1, false);
    let failed = send(&provider, &missing, vec![message("a")]).await.pop().unwrap().unwrap_err();
    assert_eq!((failed.error.code(), failed.ambiguous), (Code::TopicNotFound, false));
    confirmed(&provider, &topic, numbered(3)).await;
}

/// Returns are not tied to the confirms they come before: they must be found by what they carry.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_is_told_from_what_is_confirmed() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 4, true).await;
    ctl(&["delete_queue", &format!("{}.g.@2", topic.name)]).await;
    for _ in 0..5 {
        let batch: Vec<_> = numbered(1000).into_iter().enumerate().map(|(at, m)| Outgoing { shard: Some(at as u32 % 4), ..m }).collect();
        let sent: Vec<_> = batch.iter().map(|message| (message.id, message.shard)).collect();
        let answers = send(&provider, &topic, batch).await;
        for (answer, (_, shard)) in answers.iter().zip(&sent) {
            let unroutable = answer.as_ref().is_err_and(|failed| reason(&failed.error) == "unroutable" && !failed.ambiguous);
            assert_eq!(unroutable, *shard == Some(2), "{shard:?}: {answer:?}");
        }
    }
    let depth = provider.depth(&TopicSpec { shards: 2, ..topic.clone() }, "g").await.unwrap();
    assert_eq!(depth.ready, 2 * 5 * 250);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_says_so() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    let policy = name("policy");
    let pattern = format!("^{}", topic.name);
    ctl(&["set_policy", &policy, &pattern, r#"{"max-length": 5}"#, "--apply-to", "queues"]).await;
    let end = Instant::now() + bed::PATIENCE;
    let refused = loop {
        assert!(Instant::now() < end, "the policy has no effect");
        if let Some(failed) = send(&provider, &topic, numbered(20)).await.into_iter().find_map(Result::err) {
            break failed;
        }
    };
    assert_eq!((refused.error.code(), reason(&refused.error)), (Code::PublishFailed, "queue_refused"));
    assert!(refused.retryable && refused.ambiguous);
    ctl(&["clear_policy", &policy]).await;
    let member = subscribe(&provider, &topic, "g").await;
    handle(&member, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_limit_is_learned() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    ctl(&["eval", "application:set_env(rabbit, max_message_size, 65536)."]).await;
    let answers = send(&provider, &topic, vec![message("small"), message(vec![0; 100_000]), message("small too")]).await;
    ctl(&["eval", "application:set_env(rabbit, max_message_size, 134217728)."]).await;
    let large = answers[1].as_ref().unwrap_err();
    assert_eq!((large.error.code(), large.retryable, large.ambiguous), (Code::PayloadTooLarge, false, false));
    for at in [0, 2] {
        assert!(answers[at].as_ref().is_ok() || answers[at].as_ref().is_err_and(|failed| failed.retryable && failed.ambiguous));
    }
    assert_eq!(provider.capabilities(&topic).max_message_bytes, 65536);
    confirmed(&provider, &topic, vec![message("small")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_alarm_is_named_and_passes() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    let before = confirmed(&provider, &topic, numbered(10)).await;
    let member = subscribe(&provider, &topic, "g").await;
    let held = take(&member, 5).await;
    ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await;
    let begun = Instant::now();
    let mut failed = Vec::new();
    for _ in 0..2 {
        failed.push(send(&provider, &topic, numbered(3)).await.pop().unwrap().unwrap_err());
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "two refusals took {:?}", begun.elapsed());
    for failed in &failed {
        assert_eq!((failed.error.code(), reason(&failed.error)), (Code::PublishFailed, "broker_blocked"));
        assert!(failed.retryable);
    }
    assert!(failed[0].ambiguous, "the first ones were on their way when the server stopped reading");
    // Consuming goes on: on another connection.
    assert!(done(&member, &held).await.iter().all(|settled| *settled == Settled::Settled));
    let rest = handle(&member, 5).await;
    let got: HashSet<_> = ids(&held).into_iter().chain(ids(&rest)).collect();
    assert_eq!(got, before.into_iter().collect());
    let depth = provider.depth(&topic, "g").await.unwrap();
    assert!(depth.ready <= 6, "{depth:?}");
    ctl(&["set_vm_memory_high_watermark", "absolute", "1GiB"]).await;
    let after = confirmed(&provider, &topic, numbered(3)).await;
    let mut seen: HashSet<MessageId> = HashSet::new();
    while !after.iter().all(|id| seen.contains(id)) {
        seen.extend(ids(&handle(&member, 1).await));
    }
    bed::close(&provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_held_too_long_ends_the_subscription_by_name() {
    let _server = server().await;
    ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    let sent = confirmed(&provider, &topic, numbered(2)).await;
    let member = subscribe(&provider, &topic, "g").await;
    let held = take(&member, 2).await;
    let error = end_of(&member).await;
    ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1800000), application:set_env(rabbit, channel_tick_interval, 60000)."])
        .await;
    assert_eq!((error.code(), reason(&error)), (Code::SubscribeFailed, "consumer_timeout"));
    assert_eq!(done(&member, &held).await, [Settled::Stale, Settled::Stale]);
    let next = subscribe(&provider, &topic, "g").await;
    let again = handle(&next, 2).await;
    assert_eq!(ids(&again), sent);
    assert!(again.iter().all(|delivery| delivery.deliveries.count() == 2), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_ends_its_subscription_and_is_made_again() {
    let _server = server().await;
    for ordered in [false, true] {
        let provider = open().await;
        let topic = bed::topic(&provider, 2, ordered).await;
        let member = subscribe(&provider, &topic, "g").await;
        confirmed(&provider, &topic, numbered(1)).await;
        handle(&member, 1).await;
        open().await.remove(Remove::Group(&topic, "g")).await.unwrap();
        let error = end_of(&member).await;
        assert_eq!((error.code(), reason(&error)), (Code::SubscribeFailed, "consumer_cancelled"), "{error:?}");
        // As the core's supervisor does.
        member.close(Instant::now() + Duration::from_secs(2)).await;
        let ensured = provider.ensure(&topic, &[group("g")]).await.unwrap();
        assert!(!ensured.created.is_empty());
        let member = subscribe(&provider, &topic, "g").await;
        let sent = confirmed(&provider, &topic, numbered(1)).await;
        assert_eq!(ids(&handle(&member, 1).await), sent);
    }
}

/// A channel or connection that ends right after the last ack must not take acks with it.
#[tokio::test(flavor = "multi_thread")]
async fn settled_is_settled_whatever_happens_next() {
    let _server = server().await;
    let proxy = Proxy::new(address()).await.unwrap();
    let plain = open().await;
    let topic = bed::topic(&plain, 1, false).await;
    for round in 0..4 {
        let sent = confirmed(&plain, &topic, numbered(3000)).await;
        let provider = through(&proxy, 1).await;
        let member = subscribe(&provider, &topic, "g").await;
        let got = take(&member, 3000).await;
        // Every other one, so that each needs an ack of its own; or all in one.
        let (acked, kept): (Vec<_>, Vec<_>) = got.into_iter().enumerate().partition(|(at, _)| round % 2 == 0 || at % 2 == 0);
        let (acked, kept): (Vec<_>, Vec<_>) = (acked.into_iter().map(|(_, d)| d).collect(), kept.into_iter().map(|(_, d)| d).collect());
        assert!(done(&member, &acked).await.iter().all(|settled| *settled == Settled::Settled));
        if round < 2 {
            proxy.cut_once().await;
            end_of(&member).await;
        } else {
            drop(member);
        }
        let next = subscribe(&plain, &topic, "g").await;
        let mut again = ids(&handle(&next, kept.len()).await);
        again.extend(ids(&within(&next, Duration::from_millis(500)).await));
        let (again, kept): (HashSet<_>, HashSet<_>) = (again.into_iter().collect(), ids(&kept).into_iter().collect());
        assert_eq!(again.difference(&kept).count(), 0, "round {round}: settled ones of {} came again", sent.len());
        assert_eq!(kept.difference(&again).count(), 0, "round {round}: unsettled ones did not come");
        next.close(Instant::now() + Duration::from_secs(5)).await;
        bed::close(&provider).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_noticed() {
    let _server = server().await;
    let proxy = Proxy::new(address()).await.unwrap();
    let provider = through(&proxy, 1).await;
    let topic = bed::topic(&provider, 1, false).await;
    let member = subscribe(&provider, &topic, "g").await;
    confirmed(&provider, &topic, numbered(1)).await;
    handle(&member, 1).await;
    proxy.set(Weather::HalfOpen);
    let begun = Instant::now();
    let sending = tokio::spawn({
        let (provider, topic) = (provider.clone(), topic.clone());
        async move { send(&provider, &topic, numbered(1)).await.pop().unwrap() }
    });
    let error = end_of(&member).await;
    assert_eq!(error.code(), Code::ConnectionFailed, "{error:?}");
    let failed = sending.await.unwrap().unwrap_err();
    assert!(failed.ambiguous && failed.retryable, "{failed:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "noticed after {:?}", begun.elapsed());
    proxy.cut_once().await;
    let member = subscribe(&provider, &topic, "g").await;
    let sent = confirmed(&provider, &topic, numbered(1)).await;
    while ids(&handle(&member, 1).await) != sent {}
    let begun = Instant::now();
    proxy.set(Weather::HalfOpen);
    bed::close(&provider).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "closing over a silent network took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_makes_it_slow_and_nothing_else() {
    let _server = server().await;
    let proxy = Proxy::new(address()).await.unwrap();
    let provider = through(&proxy, 10).await;
    for ordered in [false, true] {
        let topic = bed::topic(&provider, 2, ordered).await;
        let member = subscribe(&provider, &topic, "g").await;
        for weather in [Weather::Delay(Duration::from_millis(40)), Weather::Throttle(2 << 20)] {
            proxy.set(weather);
            let mut batch = numbered(300);
            batch.push(message(vec![1; 1 << 20]));
            let sent: HashSet<_> = confirmed(&provider, &topic, batch).await.into_iter().collect();
            let got: HashSet<_> = ids(&handle(&member, 301).await).into_iter().collect();
            assert_eq!(got, sent);
        }
        proxy.set(Weather::Fair);
    }
}

/// RabbitMQ 3 forgets a queue that was declared a moment before it is killed, with what it confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_to_a_new_queue_outlives_the_server() {
    let (server, _one) = server().await;
    let provider = open().await;
    let topics = [bed::topic(&provider, 1, false).await, bed::topic(&provider, 2, true).await];
    let mut sent = Vec::new();
    for topic in &topics {
        sent.push(confirmed(&provider, topic, numbered(3)).await);
    }
    server.act(Act::Restart).await;
    let provider = open().await;
    for (topic, mut sent) in topics.iter().zip(sent) {
        let member = subscribe(&provider, topic, "g").await;
        let mut got = ids(&handle(&member, 3).await);
        got.sort_unstable();
        sent.sort_unstable();
        assert_eq!(got, sent);
    }
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// `TRUNKLINE_RESTARTS` and `TRUNKLINE_MESSAGES` make it a longer run.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_confirmed() {
    let (restarts, messages) = (number("TRUNKLINE_RESTARTS", 2), number("TRUNKLINE_MESSAGES", 500));
    let (server, _one) = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let (count, mut counted) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn({
        let (provider, topic) = (provider.clone(), topic.clone());
        async move {
            let mut sure = Vec::new();
            while !*stopped.borrow_and_update() {
                let batch = numbered(50);
                let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
                let answers = send(&provider, &topic, batch).await;
                let failed = answers.iter().any(Result::is_err);
                sure.extend(ids.into_iter().zip(answers).filter(|(_, answer)| answer.is_ok()).map(|(id, _)| id));
                count.send_replace(sure.len());
                if failed {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            sure
        }
    });
    let handling = tokio::spawn({
        let (provider, topic, over) = (provider.clone(), topic.clone(), stop.subscribe());
        async move {
            let mut seen: HashSet<MessageId> = HashSet::new();
            let mut quiet = 0;
            let mut member = subscribe(&provider, &topic, "g").await;
            // Until nothing has come for a while after the last message was sent.
            while quiet < 6 || !*over.borrow() {
                match bed::step(&member, 200, Duration::from_millis(500)).await {
                    Ok(got) if got.is_empty() => quiet += u32::from(*over.borrow()),
                    Ok(got) => {
                        quiet = 0;
                        seen.extend(ids(&got));
                        done(&member, &got).await;
                    }
                    Err(_) => {
                        member.close(Instant::now() + Duration::from_secs(1)).await;
                        let options = SubscribeOptions { member: "again".into(), prefetch: Prefetch { count: 256, bytes: 1 << 20 } };
                        loop {
                            match provider.subscribe(std::slice::from_ref(&topic), &group("g"), options.clone()).await {
                                Ok(anew) => break member = anew,
                                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                            }
                        }
                        quiet = 0;
                    }
                }
            }
            seen
        }
    });
    // A share of the messages before the first restart, between two, and after the last one.
    let share = messages / (restarts + 1);
    let mut more = async || {
        let wanted = *counted.borrow_and_update() + share;
        tokio::time::timeout(bed::PATIENCE * 2, counted.wait_for(|n| *n >= wanted)).await.expect("confirms go on").unwrap();
    };
    more().await;
    for _ in 0..restarts {
        server.act(Act::Restart).await;
        more().await;
    }
    stop.send_replace(true);
    let sure = sending.await.unwrap();
    let seen = handling.await.unwrap();
    println!("{} confirmed through {restarts} restarts, {} handled", sure.len(), seen.len());
    let lost = sure.iter().filter(|id| !seen.contains(id)).count();
    assert_eq!(lost, 0, "{lost} of {} confirmed ones were lost", sure.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_stopped_goes_on() {
    let (server, _one) = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    let member = subscribe(&provider, &topic, "g").await;
    confirmed(&provider, &topic, numbered(1)).await;
    let held = take(&member, 1).await;
    server.act(Act::Stop).await;
    let sending = tokio::spawn({
        let (provider, topic) = (provider.clone(), topic.clone());
        async move { send(&provider, &topic, numbered(5)).await }
    });
    assert!(within(&member, Duration::from_secs(4)).await.is_empty());
    server.act(Act::Continue).await;
    assert!(sending.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(done(&member, &held).await, [Settled::Settled]);
    handle(&member, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_counted_and_handed_out_at_once() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    confirmed(&provider, &topic, numbered(1)).await;
    let member = subscribe(&provider, &topic, "g").await;
    let mut counts = Vec::new();
    for _ in 0..5 {
        let got = take(&member, 1).await;
        counts.push(got[0].deliveries.count());
        let retry = Settle::Retry { after: Duration::ZERO, counted: true };
        assert_eq!(member.settle(&[(got[0].token, retry)]).await, [Settled::Settled]);
    }
    // An upper bound: what is on its way while the prefetch is changed, is given back by the server and counted, too.
    assert!(counts[0] == 1 && counts.is_sorted_by(|a, b| a < b), "{counts:?}");
    assert!(counts[4] < 10, "{counts:?}");
}
