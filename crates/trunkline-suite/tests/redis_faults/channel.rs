//! Pub/Sub: what travels, what other clients see, and what is lost in the open.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use trunkline::delivery::{EnvelopeId, Settle, Settled};
use trunkline::provider::{Outgoing, Prefetch, Provider, Signal, SubscribeOptions, SubscriptionState};
use trunkline::{Code, Headers};

use crate::private::{MEMORY, Private, open, short};
use crate::{deliveries, done, group, message, messages, send, settle, subscribe, take, topic, until};

async fn channels(server: &Private) -> Arc<dyn Provider> {
    open(json!({ "host": "127.0.0.1", "port": server.port(), "channel": "news" }), short()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_listens_gets_everything() {
    let server = Private::start(MEMORY).await;
    let provider = channels(&server).await;
    let topic = topic("news");
    provider.ensure(&topic, &[group("g")]).await.unwrap();
    send(&*provider, &topic, messages(3, 10)).await;
    let listeners = [subscribe(&*provider, &topic, &group("g")).await.unwrap(), subscribe(&*provider, &topic, &group("g")).await.unwrap()];
    let headers: Headers = [("a", "1"), ("a", "2")].into_iter().collect();
    let sent = Outgoing { key: Some(Bytes::from_static(b"\xff")), headers, ..message("payload") };
    send(&*provider, &topic, vec![sent.clone(), Outgoing { id: trunkline::MessageId::now(), ..sent.clone() }]).await;
    for listener in &listeners {
        let got = take(&**listener, 2).await;
        assert_eq!(got[0].id, EnvelopeId::Id(sent.id), "the first that was sent while somebody listened");
        assert_ne!(got[0].id, got[1].id, "equal payloads keep their own ids");
        assert_eq!((&got[0].key, &got[0].headers, got[0].payload.as_ref()), (&sent.key, &sent.headers, Some(&sent.payload)));
        done(&**listener, &got[..1]).await;
        assert_eq!(settle(&**listener, &got, Settle::Release).await, [Settled::Stale, Settled::Unknown], "nothing can be given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_publishes_and_listens() {
    let server = Private::start(MEMORY).await;
    let provider = channels(&server).await;
    let topic = topic("news");
    let listener = subscribe(&*provider, &topic, &group("g")).await.unwrap();
    assert_eq!(server.cli(&["PUBLISH", "news", "{\"from\":\"cli\"}"]), "1");
    let got = take(&*listener, 1).await;
    assert_eq!((got[0].id, got[0].payload.as_deref()), (EnvelopeId::Foreign, Some(&b"{\"from\":\"cli\"}"[..])));
    let mut cli = Command::new("redis-cli")
        .args(["-p", &server.port().to_string(), "SUBSCRIBE", "news"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("redis-cli listens", async || server.cli(&["PUBSUB", "NUMSUB", "news"]).lines().last() == Some("2")).await;
    send(&*provider, &topic, vec![Outgoing { key: Some(Bytes::from_static(b"k")), ..message("{\"n\":1}") }]).await;
    let out = cli.stdout.take().unwrap();
    let lines = tokio::task::spawn_blocking(|| BufReader::new(out).lines().take(6).map(Result::unwrap).collect::<Vec<_>>());
    let lines = tokio::time::timeout(crate::PATIENCE, lines).await.unwrap().unwrap();
    cli.kill().unwrap();
    cli.wait().unwrap();
    assert_eq!(lines[3..], ["message", "news", "{\"n\":1}"], "the payload as it was sent, and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_slow_loses_messages_and_is_told() {
    let server = Private::start(MEMORY).await;
    let provider = channels(&server).await;
    let topic = topic("news");
    let options = SubscribeOptions { member: "slow".into(), prefetch: Prefetch { count: 5, bytes: 1 << 20 } };
    let listener = provider.subscribe(std::slice::from_ref(&topic), &group("g"), options).await.unwrap();
    send(&*provider, &topic, messages(50, 10)).await;
    let (mut states, mut got) = (Vec::new(), Vec::new());
    until("it is told", async || {
        let signals = listener.next(100, usize::MAX, Duration::from_millis(100)).await.unwrap();
        states.extend(signals.iter().filter_map(|signal| if let Signal::State(state) = signal { Some(state.clone()) } else { None }));
        got.extend(deliveries(signals));
        states.contains(&SubscriptionState::Live)
    })
    .await;
    assert_eq!(states[0], SubscriptionState::Degraded("messages_dropped"));
    assert!(got.len() < 50, "{} of 50 came to one with room for 5", got.len());
    send(&*provider, &topic, messages(1, 10)).await;
    until("it goes on", async || !deliveries(listener.next(1, usize::MAX, Duration::from_secs(1)).await.unwrap()).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_server_dies_ends() {
    let server = Private::start(MEMORY).await;
    let provider = channels(&server).await;
    let listener = subscribe(&*provider, &topic("news"), &group("g")).await.unwrap();
    server.restart().await;
    let error = loop {
        if let Err(error) = listener.next(1, usize::MAX, Duration::from_secs(1)).await {
            break error;
        }
    };
    assert_eq!(error.code(), Code::ConnectionFailed);
    let listener = subscribe(&*provider, &topic("news"), &group("g")).await.unwrap();
    until("it is heard again", async || {
        provider.send(&topic("news"), Arc::new(messages(1, 1))).await;
        !deliveries(listener.next(1, usize::MAX, Duration::from_millis(100)).await.unwrap()).is_empty()
    })
    .await;
    let other = subscribe(&*provider, &topic("news"), &group("g")).await.unwrap();
    listener.close(Instant::now() + Duration::from_secs(5)).await;
    provider.close(Instant::now() + Duration::from_secs(5)).await;
    until("all connections are closed", async || server.cli(&["CLIENT", "LIST"]).lines().count() == 1).await;
    assert_eq!(other.next(1, 1, Duration::from_secs(1)).await.unwrap_err().code(), Code::Closed);
}
