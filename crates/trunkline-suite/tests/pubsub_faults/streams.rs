//! Streams that the server closes, as the service does all the time; groups that go away.

use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::Code;
use trunkline::provider::Remove;

use crate::private::Private;
use crate::{config, deliveries, done, group, id, messages, open, send, set, subscribe, take, topic, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_server_closes_is_opened_again() {
    let server = Private::start(&["-stream-timeout", "200ms"]).await;
    let provider = open(&config(&json!({ "endpoint": server.endpoint() }))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let begun = Instant::now();
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    while begun.elapsed() < Duration::from_secs(4) {
        sent.extend(send(&*provider, &topic, messages(10)).await);
        let came = take(&*subscription, 10).await;
        // In hand when the stream ends.
        tokio::time::sleep(Duration::from_millis(50)).await;
        done(&*subscription, &came).await;
        got.extend(came.iter().map(id));
    }
    assert_eq!((got.len(), set(got)), (sent.len(), set(sent)), "each came once");
}

/// A server that loses everything: the subscription dies, so that it is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_that_is_gone_says_so() {
    let server = Private::start(&[]).await;
    let provider = open(&config(&json!({ "endpoint": server.endpoint() }))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(3)).await;
    let held = take(&*subscription, 3).await;
    provider.remove(Remove::Group(&topic, "g")).await.unwrap();
    let mut ended = None;
    until("it ends", async || {
        ended = subscription.next(10, usize::MAX, Duration::from_secs(1)).await.err();
        ended.is_some()
    })
    .await;
    assert_eq!(ended.map(|error| (error.code(), error.retryable())), Some((Code::GroupNotFound, true)));
    let tokens: Vec<_> = held.iter().map(|delivery| delivery.token).collect();
    assert_eq!(subscription.extend(&tokens).await, [false; 3]);
    assert_eq!(subscribe(&*provider, &topic, &group).await.unwrap_err().code(), Code::GroupNotFound);
    // As after a restart of a server that keeps nothing.
    server.restart().await;
    until("it is made again", async || provider.ensure(&topic, std::slice::from_ref(&group)).await.is_ok()).await;
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let sent = send(&*provider, &topic, messages(3)).await;
    let got = take(&*subscription, 3).await;
    assert_eq!(set(got.iter().map(id)), set(sent));
    done(&*subscription, &got).await;
}

/// A server that stands still for a moment is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_waited_for() {
    let server = Private::start(&[]).await;
    let provider = open(&config(&json!({ "endpoint": server.endpoint() }))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    send(&*provider, &topic, messages(1)).await;
    done(&*subscription, &take(&*subscription, 1).await).await;
    server.stop();
    let sending = tokio::spawn({
        let (provider, topic) = (provider.clone(), topic.clone());
        async move { send(&*provider, &topic, messages(5)).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.go_on();
    let sent = sending.await.unwrap();
    let mut got = Vec::new();
    until("all came", async || {
        let more = deliveries(subscription.next(10, usize::MAX, Duration::from_millis(500)).await.unwrap());
        done(&*subscription, &more).await;
        got.extend(more.iter().map(id));
        set(got.clone()) == set(sent.clone())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_open_after_a_close() {
    let proxy = trunkline_suite::proxy::Proxy::new(crate::server()).await.unwrap();
    let provider = open(&config(&json!({ "endpoint": format!("http://{}", proxy.address()) }))).await.unwrap();
    let (topic, group) = (topic("orders"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let deadline = || Instant::now() + Duration::from_secs(10);
    for _ in 0..3 {
        let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
        send(&*provider, &topic, messages(1)).await;
        done(&*subscription, &take(&*subscription, 1).await).await;
        subscription.close(deadline()).await;
    }
    let open = subscribe(&*provider, &topic, &group).await.unwrap();
    assert_eq!(proxy.open(), 1, "one connection for everything");
    provider.close(deadline()).await;
    until("the connection is closed", async || proxy.open() == 0).await;
    assert_eq!(open.next(1, 1, Duration::from_secs(1)).await.unwrap_err().code(), Code::Closed);
}
